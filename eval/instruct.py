"""Does a model follow instructions? Stories for held-out instructions, checked by program.

    python -m eval.instruct out/instruct                     # instructions of its data's val split
    python -m eval.instruct out/ood --beside=out/instruct    # two models, the same instructions
    python -m eval.instruct --init_from=gpt2 --source=tinystories-instruct    # any model, any data

A story is generated for each instruction and checked for each requirement (instruct_checks.py), and
for all of them together ("joint"). The same checks of the true story give the ceiling. Those of the
model's own stories, shuffled over the instructions, give the floor: the score of a model that reads
no instruction. Intervals are 95 % bootstrap intervals over the instructions.

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
from nanostories.inference.generate import check_sampling_settings
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
    check_settings(settings)
    models = harness.open_models(settings, origin)
    records, source = harness.read_records(settings, models[0])
    records = harness.choose_records(records, models, settings.prompts, settings.seed)
    prompts = [record.prompt() for record in records]
    print(f"{len(records)} instructions of {source}, {settings.num_samples} story(s) for each")
    measured, checks, lines = [], [], []
    for model in models:
        samples = harness.generate_completions(model, prompts, settings, settings.num_samples)
        stories = [[harness.story_of(model, one) for one in some] for some in samples]
        measured.append(measure(records, stories, settings))
        checks.append(intervals(measured[-1], records, settings))
        print_table(model.out_dir, checks[-1])
        lines = lines or lines_of(records, stories)  # the first model's
    results = harness.facts_of(models[0], settings, "num_samples", "pair")
    results |= {"source": source, "instructions": len(records)}
    if (Path(source) / "manifest.json").is_file():
        results["data"] = checkpoint.data_hashes(read_manifest(source))
    results["checks"], *others = checks
    for other in others:
        gaps = differences(*measured, records, settings)
        results["beside"] = {"run": settings.beside, "checkpoint": models[1].identity(),
                             "checks": other, "difference": gaps}  # fmt: skip
        for name, gap in gaps.items():
            interval = bootstrap.format_interval(gap)
            print(f"{name}: {models[0].out_dir} less {models[1].out_dir}: {interval}")
    name = "instruct"
    if given := settings.source or settings.dataset:
        name += f"-{sources.slug(given)}"
    if settings.beside:
        name += f"-beside-{Path(settings.beside).name}"
    harness.write_result(models[0].out_dir, name, results, lines)


def check_settings(settings):
    """Raise UserError for settings out of range."""
    check_sampling_settings(settings)
    if settings.prompts < 2:
        raise UserError("prompts must be at least 2")
    if len(harness.beside_names(settings)) > 1:
        raise UserError("beside takes one run or model")
    pair = settings.pair.split("+")
    if len(pair) < 2 or not set(pair) <= set(instruct.LABELS):
        raise UserError(f"pair takes two of {', '.join(instruct.LABELS)}, as in words+summary")


def lines_of(records, stories):
    """The lines of the .jsonl: each story with its checks."""
    return [
        {"prompt": record.prompt(), "story": text, "ended": ended,
         "checks": check_story(record, text)}
        for record, some in zip(records, stories, strict=True) for text, ended in some
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------
# measures


def measure(records, stories, settings):
    """{check: {side: (sums, counts)}} of a model's stories, float64 (prompts,) each.

    stories: for each record a list of (text, whether it ended). The sides are the model, its
    stories shuffled (the floor) and, where the records have their stories, the true ones (the
    ceiling). Besides the checks there are "joint", what comes unrequested, and "ended": the stories
    that came to their end.
    """
    texts = [[text for text, _ in some] for some in stories]
    shift = np.random.default_rng([settings.seed, 1]).integers(1, len(records))
    sides = {"model": texts, "shuffled": [*texts[shift:], *texts[:shift]]}
    if all(record.story for record in records):
        sides["true"] = [[record.story] for record in records]
    counted = {side: count_checks(records, some) for side, some in sides.items()}
    ended = [sum(end for _, end in some) for some in stories]
    by_check = {name: {side: counted[side][name] for side in sides} for name in counted["model"]}
    return by_check | {"ended": {"model": (ended, [len(some) for some in stories])}}


def count_checks(records, texts):
    """{check: (sums, counts)} over all stories of each prompt, float64 (2, prompts)."""
    by_check = collections.defaultdict(lambda: np.zeros((2, len(records))))
    for i, (record, some) in enumerate(zip(records, texts, strict=True)):
        for text in some:
            scores = check_story(record, text)
            scores |= {"joint": passes_all(scores)} | find_unrequested(record, text)
            for name, score in scores.items():
                by_check[name][:, i] += score, 1
    return {name: by_check[name] for name in (*CHECKS, "joint", *UNREQUESTED) if name in by_check}


def joint_by_subset(measured, records, settings):
    """{name: {side: (sums, counts)}}: "joint" of `measure`, over the records that request both of
    the pair, and over the others.
    """
    both = np.array([record.has_fields(settings.pair.split("+")) for record in records])
    return {
        f"joint, {name}": {side: counts * mask for side, counts in measured["joint"].items()}
        for name, mask in ((settings.pair, both), ("others", ~both))
    }


def intervals(measured, records, settings):
    """{check: {side: interval}} of what `measure` returns, and "joint" by subset."""
    rows = measured | joint_by_subset(measured, records, settings)
    return {
        name: {side: bootstrap.ratio(*counts, settings.seed) for side, counts in row.items()}
        for name, row in rows.items()
    }


def differences(one, other, records, settings):
    """{check: interval of one model's less the other's} of "joint", over all and by subset."""
    rows = [
        {"joint": measured["joint"]} | joint_by_subset(measured, records, settings)
        for measured in (one, other)
    ]
    return {
        name: bootstrap.difference(*(row[name]["model"] for row in rows), settings.seed)
        for name in rows[0]
    }


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
