"""
Grammar, consistency, plot and knowledge without a judge: does a model prefer what is right?

    python -m eval.skills out/ts_33m
    python -m eval.skills out/ts_33m --steps             # its earlier checkpoints, too
    python -m eval.skills --init_from=gpt2 --dataset=data/tinystories-gpt2

Each question is a beginning with a right and a wrong way to go on, half of them told by chance:

    grammar, consistency, plot     held-out stories with one thing broken (minimal_pairs.py)
    context, reasoning, facts      the paper's prompts (knowledge_prompts.py)

    margin = log p(right | beginning) - log p(wrong | beginning), in nats

and the model has told it where that is above 0. Grades stand for what a reader thinks of a story;
these do not: they say what the model knows, hundreds of times, the same for every model. Intervals
are 95 % bootstrap intervals over the questions. Results are in eval/skills.json of the run, with
what was told of each question, so that models can be compared question by question.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from configs import UserError, load, run
from eval import bootstrap
from eval.harness import log_likelihood_margins
from eval.prompts import knowledge_prompts as questions
from eval.prompts import minimal_pairs
from nanostories import storage
from nanostories.dataset.shards import Dataset
from nanostories.dataset.tokenizer import Tokenizer
from nanostories.training import checkpoint
from nanostories.training.device import pick_device

KINDS = (*minimal_pairs.KINDS, *questions.KINDS)


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # run folder; default: the newest in out/
    checkpoint: str = "latest"  # latest or best
    init_from: str = ""  # instead of a run: a model of the hub, or a folder with one
    revision: str = ""  # which commit, tag or branch of a model of the hub
    dataset: str = ""  # a data folder, whose held-out stories are asked about; default: the run's
    questions: int = 320  # of each kind that is made of stories, at the most
    steps: bool = False  # every checkpoint that the run has kept, too
    seed: int = 1337  # of the questions and the intervals
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is


def texts_of(found, settings):
    """(the held-out stories, a list of str, what they were read from)."""
    where = settings.dataset or checkpoint.data_folder(found)
    data, decode = Dataset(where, "val"), Tokenizer.load(where).decode
    return [decode(data.story(i)[1:]) for i in range(data.stories)], where


def asked(texts, settings):
    """[(kind, Prompt)]: the questions, made of the stories and the paper's."""
    made = minimal_pairs.make(texts, settings.questions, settings.seed)
    return [(one.kind, one.prompt) for one in made] + [(p.kind, p) for p in questions.paper()]


def fitting(prompts, found):
    """Those of the prompts that a model can read to their end."""
    encode, limit = found.tokenizer.encode, found.model.config.block_size

    def length(prompt):
        rest = max(len(encode(text)) for pair in prompt.pairs for text in pair)
        return len(found.encode_prompt(prompt.text)) + rest

    return [(kind, prompt) for kind, prompt in prompts if length(prompt) <= limit]


def told_by(found, prompts):
    """Of each kind (share of pairs told, mean margin), float64 (2, questions), of a Trained."""
    margins = log_likelihood_margins(found, [prompt for _, prompt in prompts])
    columns = {kind: [] for kind in KINDS}
    for (kind, _), some in zip(prompts, margins, strict=True):
        columns[kind].append((np.mean(np.array(some) > 0), np.mean(some)))
    return {kind: np.array(rows).T for kind, rows in columns.items() if rows}


def summed(told, seed):
    """{kind: {"right", "margin": intervals}} of what `told_by` found."""
    return {
        kind: {"right": bootstrap.mean(right, seed), "margin": bootstrap.mean(margin, seed)}
        for kind, (right, margin) in told.items()
    }


def along(found, prompts, settings):
    """[{"step", "tokens", "skills"}] of the run's checkpoints, the earliest first."""
    rows = []
    for step in checkpoint.steps_of(found.out_dir):
        which, device = f"checkpoints/{step}", found.model.wte.weight.device
        then = checkpoint.load_run(found.out_dir, which, device)
        tokens = checkpoint.read_state(found.out_dir, which)["tokens"]
        skills = summed(told_by(then, prompts), settings.seed)
        rows.append({"step": step, "tokens": tokens, "skills": skills})
    return rows


def main():
    settings, origin = load(Settings, positional="out_dir")
    if settings.questions < 2:
        raise UserError("questions must be at least 2")
    found = checkpoint.load_from_settings(settings, origin, pick_device(settings.device))
    if settings.steps and not found.is_run():
        raise UserError("steps are those of a run: name its folder")
    texts, source = texts_of(found, settings)
    every = asked(texts, settings)
    prompts = fitting(every, found)
    if left := len(every) - len(prompts):
        print(f"{left} of {len(every)} questions are too long for this model, and left out")
    told = told_by(found, prompts)
    results = {
        "checkpoint": found.identity(),
        "source": source,
        "seed": settings.seed,
        "left_out": left,
        "questions_sha256": sha256(repr(prompts).encode("utf-8", "surrogatepass")).hexdigest(),
        "skills": summed(told, settings.seed),
        "told": {kind: right.tolist() for kind, (right, _) in told.items()},
    }
    print(f"{'':14}{'questions':>10}{'told':>24}{'margin, nats':>26}")
    for kind, row in results["skills"].items():
        cells = bootstrap.format_interval(row["right"]), bootstrap.format_interval(row["margin"], 2)
        print(f"{kind:14}{row['right']['n']:>10}{cells[0]:>24}{cells[1]:>26}")
    if settings.steps:
        results["along"] = along(found, prompts, settings)
        print(f"\n{'step':>8}" + "".join(f"{kind:>13}" for kind in told))
        for row in results["along"]:
            shares = (row["skills"][kind]["right"]["mean"] for kind in told)
            print(f"{row['step']:>8}" + "".join(f"{share:>13.3f}" for share in shares))
    path = Path(found.out_dir) / "eval" / "skills.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(path, results)
    print(f"\n{path}")


if __name__ == "__main__":
    run(main)
