"""Does a model follow instructions? Stories for held-out instructions, checked by program.

    python -m eval.instruct out/instruct                     # instructions of its data's val split
    python -m eval.instruct out/ood --beside=out/instruct    # two models, the same instructions
    python -m eval.instruct --init_from=gpt2 --source=tinystories-instruct    # any model, any data

A story is generated for each instruction and checked for each requirement (instruct_checks.py), for
the fraction of them that it meets ("met") and for all of them together ("joint"). The same checks
of the true story give the ceiling. Those of the model's own stories, shuffled over the
instructions, give the floor: the score of a model that reads no instruction.

    own     whether the model finds the true story likelier after its own instruction than after
            another record's: chance answers half, and no story need be generated well

Intervals are 95 % bootstrap intervals over the instructions.

Results are in eval/instruct.json of the run, the stories with their checks in eval/instruct.jsonl;
with --source, --dataset or --beside in files whose names say so.
"""

import collections
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import UserError, load, run
from eval import bootstrap, harness
from eval.instruct_checks import CHECKS, UNREQUESTED, check_story, find_unrequested, passes_all
from nanostories.dataset import instruct, sources
from nanostories.dataset.shards import read_manifest
from nanostories.inference.generate import Completion
from nanostories.training import checkpoint

COLUMNS = {"model": "model", "true": "true story", "shuffled": "shuffled stories"}


@dataclass(frozen=True)
class Settings(harness.SamplingSettings):
    beside: str = ""  # a second run or model, given the same instructions
    dataset: str = ""  # a data folder with instructions in val; default: the run's
    source: str = ""  # instead: any source of Instruct records, as prepare.py takes
    pair: str = "words+summary"  # instructions with both of these are also counted apart
    prompts: int = 300  # how many instructions
    num_samples: int = 1  # stories for each
    temperature: float = 0.8  # 0: always the likeliest token
    max_new_tokens: int = 500  # most tokens of a story


def main():
    settings, origin = load(Settings, positional="out_dir")
    if len(harness.beside_names(settings)) > 1:
        raise UserError("beside takes one run or model")
    pair = settings.pair.split("+")
    if len(pair) < 2 or not set(pair) <= set(instruct.LABELS):
        raise UserError(f"pair takes two of {', '.join(instruct.LABELS)}, as in words+summary")
    models = harness.open_models(settings, origin)
    records, source = harness.read_instructions(settings, models, settings.prompts)
    prompts = [record.prompt() for record in records]
    print(f"{len(records)} instructions of {source}, {settings.num_samples} story(s) for each")
    measured, checks, lines = [], [], []
    for model in models:
        samples = harness.generate_completions(model, prompts, settings, settings.num_samples)
        stories = [[harness.story_of(model, one) for one in some] for some in samples]
        measured.append(measure(records, stories, settings))
        if all(record.story for record in records):
            measured[-1]["model"]["own"] = prefers_own(model, records, settings)
        checks.append(intervals(measured[-1], settings.seed))
        print_table(model.out_dir, checks[-1])
        lines = lines or lines_of(records, stories)  # the first model's
    results = harness.facts_of(models[0], settings, "num_samples", "pair")
    results |= {"source": source, "instructions": len(records)}
    if (Path(source) / "manifest.json").is_file():
        results["data"] = checkpoint.data_hashes(read_manifest(source))
    results["checks"], *others = checks
    results["by_instruction"] = {name: by_instruction(measured[0], name) for name in ("met", "own")}
    given = settings.source or settings.dataset
    name = f"instruct-{sources.slug(given)}" if given else "instruct"
    for other in others:
        gaps = differences(*measured, settings.seed)
        results["beside"] = {"run": settings.beside, "checkpoint": models[1].identity(),
                             "checks": other, "difference": gaps}  # fmt: skip
        for check, gap in gaps.items():
            interval = bootstrap.format_interval(gap)
            print(f"{check}: {models[0].out_dir} less {models[1].out_dir}: {interval}")
        name += f"-beside-{Path(settings.beside).name}"
    harness.write_result(models[0].out_dir, name, results, lines)


def lines_of(records, stories):
    """The lines of the .jsonl: each story with its checks."""
    return [
        {"prompt": record.prompt(), "story": text, "ended": ended,
         "checks": check_story(record, text)}
        for record, some in zip(records, stories, strict=True) for text, ended in some
    ]  # fmt: skip


def shift_of(records, settings):
    """How many records further another record's instruction is taken from."""
    return np.random.default_rng([settings.seed, 1]).integers(1, len(records))


def prefers_own(loaded, records, settings):
    """(whether the true story is likelier after its own instruction than after another record's, 1
    for each record where both fit the model), float64 (2, records)."""
    shift, encode = shift_of(records, settings), loaded.tokenizer.encode
    own = [loaded.encode_prompt(record.prompt()) for record in records]
    others = [*own[shift:], *own[:shift]]
    stories = [Completion(encode(record.story)) for record in records]
    lengths = [max(len(one), len(other)) for one, other in zip(own, others, strict=True)]
    limit = loaded.model.config.block_size
    fits = [n + len(story.ids) <= limit for n, story in zip(lengths, stories, strict=True)]
    pairs = [
        (prompt, story)
        for *prompts, story, fit in zip(own, others, stories, fits, strict=True)
        for prompt in prompts if fit
    ]  # fmt: skip
    if not pairs:
        return np.zeros((2, len(records)))
    nlls = harness.completion_nlls(loaded.model, *zip(*pairs, strict=True), loaded.tokenizer.eot)
    after_own, after_other = np.array([nll for nll, _ in nlls]).reshape(-1, 2).T
    answers = np.array([fits, fits], np.float64)
    answers[0, fits] = after_own < after_other
    return answers


def by_instruction(measured, check):
    """{side: the score of each instruction, None where it has none} of what `measure` returns."""
    return {
        side: [total / n if n else None for total, n in counts[check].T.tolist()]
        for side, counts in measured.items() if check in counts
    }  # fmt: skip


def measure(records, stories, settings):
    """{side: `count_checks`}: of a model's stories, for each record a list of (text, whether it
    ended), of the same shuffled, and of the true ones where the records have them."""
    shift = shift_of(records, settings)
    texts = [[(text, None) for text, _ in some] for some in stories]
    sides = {"model": stories, "shuffled": [*texts[shift:], *texts[:shift]]}
    if all(record.story for record in records):
        sides["true"] = [[(record.story, None)] for record in records]
    return {side: count_checks(records, some, settings.pair) for side, some in sides.items()}


def count_checks(records, stories, pair):
    """{check: (sums, counts)} over the stories of each prompt, float64 (2, prompts); "met" and
    "joint" also apart, where the pair is required and where not."""
    counts = collections.defaultdict(lambda: np.zeros((2, len(records))))
    for i, (record, some) in enumerate(zip(records, stories, strict=True)):
        for text, ended in some:
            scores = check_story(record, text)
            if scores:  # none for what no program can check: a twist, words of one letter
                met = sum(scores.values()) / len(scores)
                scores |= {"met": met, "joint": passes_all(scores)}
            scores |= find_unrequested(record, text)
            if ended is not None:
                scores["ended"] = ended
            for name, score in scores.items():
                counts[name][:, i] += score, 1
    has_pair = np.array([record.has_fields(pair.split("+")) for record in records])
    apart = {
        f"{check}, {part}": counts[check] * mask
        for check in ("met", "joint") for part, mask in ((pair, has_pair), ("others", ~has_pair))
    }  # fmt: skip
    names = (*CHECKS, "met", "joint", *UNREQUESTED, "ended")
    return {name: counts[name] for name in names if name in counts} | apart


def intervals(measured, seed):
    """{check: {side: interval}} of what `measure` returns."""
    return {
        check: {
            side: bootstrap.ratio(*counts[check], seed)
            for side, counts in measured.items() if check in counts
        }
        for check in measured["model"]
    }  # fmt: skip


def differences(one, other, seed):
    """{check: interval of one model's less the other's} of "met", "joint" and "own", over all, and
    of the first two by subset."""
    one, other = one["model"], other["model"]
    names = [name for name in one if name.startswith(("met", "joint", "own"))]
    return {name: bootstrap.difference(one[name], other[name], seed) for name in names}


def print_table(name, checks):
    """Print a model's table."""
    sides = [side for side in COLUMNS if side in checks["joint"]]
    print(f"\n{name}")
    harness.print_table(["check", "n", *(COLUMNS[side] for side in sides)], [
        [check, row["model"]["n"] if row["model"] else 0,
         *(row.get(side, "") for side in sides)]
        for check, row in checks.items()
    ])  # fmt: skip


if __name__ == "__main__":
    run(main)
