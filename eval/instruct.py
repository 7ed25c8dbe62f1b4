"""
Does a model do what it is told? Stories to held-out instructions, checked by program.

    python -m eval.instruct out/instruct                     # instructions of its data's val split
    python -m eval.instruct out/ood --beside=out/instruct    # two models, the same instructions
    python -m eval.instruct --init_from=gpt2 --source=tinystories-instruct    # any model, any data

A story is told to each instruction and checked for each thing asked (compliance.py says how), for
all of them together ("joint"), and the same is done to the true story, which is the ceiling, and to
the model's own stories dealt out to other instructions, which is the floor: what a model that reads
no instruction would get. Intervals are 95 % bootstrap intervals over the instructions.

Results are in eval/instruct.json of the run, the stories with their checks in eval/instruct.jsonl;
with --source, --dataset or --beside in files that say so in their names.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import UserError, load, run
from eval import bootstrap, compliance
from eval.harness import choose_records, read_records, story_of
from nanostories import storage
from nanostories.dataset import instruct, sources
from nanostories.dataset.shards import read_manifest
from nanostories.inference.decoder import open_decoder
from nanostories.inference.generate import check_sampling_settings, generate, request_seeds
from nanostories.training import checkpoint
from nanostories.training.device import pick_device


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # run folder; default: the newest in out/
    checkpoint: str = "latest"  # latest or best
    init_from: str = ""  # instead of a run: a model of the hub, or a folder with one
    revision: str = ""  # which commit, tag or branch of a model of the hub
    beside: str = ""  # a second run, asked the same
    dataset: str = ""  # a data folder with instructions in val; default: the run's
    source: str = ""  # instead: any source of Instruct records, as prepare.py takes
    pair: str = "words+summary"  # instructions with these are counted apart from the others too
    prompts: int = 300  # how many instructions
    num_samples: int = 1  # stories to each
    temperature: float = 0.8  # 0: the likeliest token always; below 1: safer, above: wilder
    top_p: float = 1.0  # choose among the likeliest tokens that hold this share of probability
    max_new_tokens: int = 500  # tokens of a story at the most
    seed: int = 1337  # of the choice of instructions, the stories and the intervals
    batch_size: int = 64  # stories generated at a time
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is
    weights: str = "auto"  # float32, bfloat16 or, on CPUs, int8; auto: bfloat16 on CUDA


# ----------------------------------------------------------------------------------------------
# the stories, and what they do


def tell(found, decoder, records, settings):
    """num_samples stories to each record: a list of lists of (text, whether it came to an end)."""
    asked = [record for record in records for _ in range(settings.num_samples)]
    ids = [found.encode_prompt(record.prompt()) for record in asked]
    names = ("temperature", "top_p", "max_new_tokens")
    how = {name: getattr(settings, name) for name in names} | {"max_length": found.max_length}
    how["batch_size"] = settings.batch_size
    stories = generate(
        decoder, ids, found.tokenizer.eot, request_seeds(settings.seed, len(ids)), **how
    )
    told = [story_of(found, story) for story in stories]
    return [told[i : i + settings.num_samples] for i in range(0, len(told), settings.num_samples)]


def points(records, stories):
    """
    What is done: {check: (tops, bottoms)}, each (prompts,) float64, over all stories of a prompt;
    "joint" with them. stories: a list of texts for each record.
    """
    tops = {name: np.zeros(len(records)) for name in (*compliance.NAMES, "joint")}
    bottoms = {name: np.zeros(len(records)) for name in tops}
    for i, (record, texts) in enumerate(zip(records, stories, strict=True)):
        for text in texts:
            found = compliance.checks(record, text)
            for name, value in (found | {"joint": float(compliance.complies(found))}).items():
                tops[name][i] += value
                bottoms[name][i] += 1
    return {name: (tops[name], bottoms[name]) for name in tops if bottoms[name].any()}


def unasked(records, stories):
    """How often dialogue and a bad ending come where they are not asked for, as `points` has it."""
    found = {}
    for name, feature, holds in (
        ("dialogue", "Dialogue", instruct.has_dialogue),
        ("ending", "BadEnding", compliance.ends_badly),
    ):
        free = np.array([feature not in record.entries("features") for record in records])
        tops = [sum(map(holds, texts)) for texts in stories]
        found[f"{name} unasked"] = (tops * free, np.array([len(one) for one in stories]) * free)
    return found


def measure(records, told, settings):
    """
    What a model's stories `told` to the records do: {check: {side: (tops, bottoms)}}, see `points`.

    The sides are the model, its stories shuffled (the floor) and, where the records have their
    stories, the true ones (the ceiling). Besides the checks, "joint" and what came unasked there is
    "ended": the stories that came to their end.
    """
    stories = [[text for text, _ in texts] for texts in told]
    shift = np.random.default_rng([settings.seed, 1]).integers(1, len(records))
    sides = {"model": stories, "shuffled": [*stories[shift:], *stories[:shift]]}
    if all(record.story for record in records):
        sides["true"] = [[record.story] for record in records]
    found = {side: points(records, one) | unasked(records, one) for side, one in sides.items()}
    found = {name: {side: found[side][name] for side in sides} for name in found["model"]}
    ended = [sum(end for _, end in texts) for texts in told]
    return found | {"ended": {"model": (ended, [len(texts) for texts in told])}}


def kinds(records, settings):
    """{name: bool (prompts,)}: the records that ask for the pair together, and the others."""
    both = np.array([record.has_fields(settings.pair.split("+")) for record in records])
    return {f"joint, {settings.pair}": both, "joint, others": ~both}


def summed(found, records, settings):
    """{check: {side: interval}} of what `measure` found, and "joint" of the pair and the others."""
    rows = dict(found)
    for name, kept in kinds(records, settings).items():
        joint = found["joint"].items()
        rows[name] = {side: [x * kept for x in pair] for side, pair in joint}
    return {
        name: {side: bootstrap.ratio(*pair, settings.seed) for side, pair in row.items()}
        for name, row in rows.items()
    }


# ----------------------------------------------------------------------------------------------
# the command


def show(name, checks):
    """Print a model's table."""
    titles = {"model": "model", "true": "true story", "shuffled": "other instruction"}
    sides = [side for side in titles if side in checks["joint"]]
    print(f"\n{name}")
    print("".join(["check".ljust(24), "asked".rjust(6), *(titles[s].rjust(26) for s in sides)]))
    for check_, row in checks.items():
        n = row["model"]["n"] if row["model"] else 0
        cells = (
            bootstrap.format_interval(row[side]).rjust(26) if side in row else "" for side in sides
        )
        print("".join([check_.ljust(24), f"{n:>6}", *cells]))


def main():
    settings, origin = load(Settings, positional="out_dir")
    check_sampling_settings(settings)
    if settings.prompts < 2:
        raise UserError("prompts must be at least 2")
    pair = settings.pair.split("+")
    if len(pair) < 2 or not set(pair) <= set(instruct.LABELS):
        raise UserError(f"pair takes two of {', '.join(instruct.LABELS)}, as in words+summary")
    device = pick_device(settings.device)
    models = [checkpoint.load_from_settings(settings, origin, device)]
    if settings.beside:
        models.append(checkpoint.load_run(settings.beside, settings.checkpoint, device))
    records, where = read_records(settings, models[0])
    records = choose_records(records, models, settings.prompts, settings.seed)
    print(f"{len(records)} instructions of {where}, {settings.num_samples} story(s) to each")
    found, told = [], []
    for model in models:
        decoder = open_decoder(model.model, settings.weights, device)
        told.append(tell(model, decoder, records, settings))
        found.append(measure(records, told[-1], settings))
        show(model.out_dir, summed(found[-1], records, settings))
    results = facts_of(records, where, settings)
    results |= {"checkpoint": models[0].identity(), "checks": summed(found[0], records, settings)}
    if settings.beside:
        results["beside"] = {"run": settings.beside, "checkpoint": models[1].identity()}
        results["beside"]["checks"] = summed(found[1], records, settings)
        results["beside"]["difference"] = differences(*found, records, settings)
        print()
        for name, gap in results["beside"]["difference"].items():
            sides = f"{models[0].out_dir} less {models[1].out_dir}"
            print(f"{name}: {sides}: {bootstrap.format_interval(gap)}")
    write(models[0], records, told[0], results, settings)


def differences(one, other, records, settings):
    """{check: interval of one model's less the other's} for joint, the pair's and the others'."""
    sides = [found["joint"]["model"] for found in (one, other)]
    return {
        name: bootstrap.difference(*([x * kept for x in pair] for pair in sides), settings.seed)
        for name, kept in ({"joint": np.ones(len(records))} | kinds(records, settings)).items()
    }


def facts_of(records, where, settings):
    """What was asked, of which data, and how."""
    names = (
        "num_samples", "temperature", "top_p", "max_new_tokens", "weights", "seed", "pair",
    )  # fmt: skip
    facts = {"source": where, "instructions": len(records)}
    if (Path(where) / "manifest.json").is_file():
        facts["data"] = checkpoint.data_hashes(read_manifest(where))
    return facts | {name: getattr(settings, name) for name in names}


def write(found, records, told, results, settings):
    """eval/instruct.json and .jsonl in the model's folder, or of a name that says what else."""
    name = "instruct"
    if where := settings.source or settings.dataset:
        name += f"-{sources.slug(where)}"
    if settings.beside:
        name += f"-beside-{Path(settings.beside).name}"
    folder = Path(found.out_dir) / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_json(folder / f"{name}.json", results)
    lines = [
        {"prompt": record.prompt(), "story": text, "ended": ended}
        | {"checks": compliance.checks(record, text)}
        for record, texts in zip(records, told, strict=True)
        for text, ended in texts
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    storage.write_text(folder / f"{name}.jsonl", text)


if __name__ == "__main__":
    run(main)
