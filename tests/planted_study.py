"""A study with planted results: for tests of the claims, the scaling law and the report."""

import numpy as np

from eval.reporting.results import Run, Study
from eval.reporting.study_jobs import Size

QUESTIONS = 200
SIZES = "32-2-2, 64-1-4, 64-2-4, 64-4-4, 128-1-4, 128-2-4, 128-4-4, 256-2-4"
GRID = [Size(*map(int, name.split("-"))) for name in SIZES.split(", ")]
KINDS = ("grammar", "consistency", "plot", "context", "reasoning", "facts")


def answers(accuracy, seed):
    """Answers of this accuracy; a higher one has the same right ones and more, noise apart."""
    rng = np.random.default_rng(99)
    hard = rng.permutation(QUESTIONS) / QUESTIONS + np.random.default_rng(seed).normal(
        0, 0.02, QUESTIONS
    )
    return (hard < accuracy).astype(float).tolist()


def interval(mean, half=0.01):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": QUESTIONS}


def skills(accuracies, seed, along=None):
    """What eval/skills.json holds, from {kind: accuracy}."""
    results = {
        "questions_sha256": "same",
        "skills": {
            kind: {"accuracy": interval(x), "margin": interval(x)} for kind, x in accuracies.items()
        },
        "correct": {kind: answers(x, seed) for kind, x in accuracies.items()},
    }
    if along:
        results["checkpoints"] = [
            {"step": n // 2000, "tokens": n, "correct": {k: answers(x, 0) for k, x in row.items()},
             "skills": {kind: {"accuracy": interval(x)} for kind, x in row.items()}}
            for n, row in along
        ]  # fmt: skip
    return results


def run(size, seed, accuracies, loss=3.0, kind="", along=None, tokens=2_000_000):
    """A Run; accuracies: {kind: accuracy}."""
    curve = [(n, loss + 1 - n / tokens) for n in np.linspace(tokens / 8, tokens, 8)]
    return Run(
        str(size), f"out/planted/{kind}{size}-s{seed}", kind, size, seed,
        parameters=size.parameters + 200_000, block_parameters=size.parameters,
        matmul_parameters=size.parameters + 200_000 - 512 * size.width, tokens=tokens,
        curve=curve, train_curve=curve, recipe={"dataset": "data/planted"},
        results={"skills": skills(accuracies, seed, along)} if accuracies else {},
    )  # fmt: skip


def instructed(accuracy_of, sizes, seeds=2):
    """Runs with what eval.instruct measured: how often a story's own instruction is preferred."""
    runs = [run(size, seed, {}, kind="instruct") for size in sizes for seed in range(1, seeds + 1)]
    for one in runs:
        own = answers(accuracy_of(one.size), one.seed)
        one.results["instruct"] = {"by_instruction": {"own": {"model": own}}}
    return runs


def study(accuracies_of, loss_of=lambda size: 3.0, seeds=3, more=(), **changes):
    """A Study of GRID; accuracies_of(size): {kind: accuracy}; loss_of(size): the last loss."""
    runs = [
        run(size, seed, accuracies_of(size), loss_of(size), **changes)
        for size in GRID
        for seed in range(1, seeds + 1)
    ]
    settings = {"models": SIZES, "dataset": "data/planted", "source": "planted", "judge": "",
                "baselines": "", "out_dir": "out/planted", "hold_out": "words+summary"}  # fmt: skip
    data = {"splits": {"train": {"tokens": 6_000_000, "stories": 9, "bytes": 99}},
            "tokenizer": "bpe", "vocab_size": 2048, "files": {}}  # fmt: skip
    return Study(settings, [], [*runs, *more], {"data/planted": data})
