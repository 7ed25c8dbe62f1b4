"""A study made up of numbers, whose claims are known: tests of claims, scaling and the report."""

import numpy as np

from eval.reporting.results import Run, Study
from eval.reporting.study_jobs import Size

QUESTIONS = 200
SIZES = "32-2-2, 64-1-4, 64-2-4, 64-4-4, 128-1-4, 128-2-4, 128-4-4, 256-2-4"
GRID = [Size(*map(int, name.split("-"))) for name in SIZES.split(", ")]
KINDS = ("grammar", "consistency", "plot", "context", "reasoning", "facts")


def told(share, seed):
    """Questions of which this share is told, the same ones for a higher share, noise apart."""
    rng = np.random.default_rng(99)
    hard = rng.permutation(QUESTIONS) / QUESTIONS + np.random.default_rng(seed).normal(
        0, 0.02, QUESTIONS
    )
    return (hard < share).astype(float).tolist()


def interval(mean, half=0.01):
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": QUESTIONS}


def skills(shares, seed, along=None):
    """What eval/skills.json has, {kind: share}."""
    found = {
        "questions_sha256": "same",
        "skills": {k: {"right": interval(x), "margin": interval(x)} for k, x in shares.items()},
        "told": {kind: told(share, seed) for kind, share in shares.items()},
    }
    if along:
        found["along"] = [
            {"step": n // 2000, "tokens": n,
             "skills": {kind: {"right": interval(x)} for kind, x in row.items()}}
            for n, row in along
        ]  # fmt: skip
    return found


def run(size, seed, shares, loss=3.0, kind="", along=None, tokens=2_000_000):
    """A Run; shares: {kind: share told}."""
    curve = [(n, loss + 1 - n / tokens) for n in np.linspace(tokens / 8, tokens, 8)]
    blocks = size.parameters
    one = Run(str(size), f"out/planted/{kind}{size}-s{seed}", kind, size, seed, blocks + 200_000,
              blocks, 512 * size.width, tokens, curve, curve)  # fmt: skip
    one.found = {"skills": skills(shares, seed, along)} if shares else {}
    return one


def study(shares_of, loss_of=lambda size: 3.0, seeds=3, more=(), **changes):
    """A Study of GRID; shares_of(size): {kind: share told}; loss_of(size): the last loss."""
    runs = [
        run(size, seed, shares_of(size), loss_of(size), **changes)
        for size in GRID
        for seed in range(1, seeds + 1)
    ]
    settings = {"models": SIZES, "dataset": "data/planted", "source": "planted", "judge": "",
                "baselines": "", "out_dir": "out/planted"}  # fmt: skip
    data = {"splits": {"train": {"tokens": 6_000_000, "stories": 9, "bytes": 99}},
            "tokenizer": "bpe", "vocab_size": 2048, "files": {}}  # fmt: skip
    return Study(settings, [], [*runs, *more], {"data/planted": data})
