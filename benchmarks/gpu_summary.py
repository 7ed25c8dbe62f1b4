"""summary.md of benchmarks/gpu_check.py: each goal met, missed or not measured yet, every part, the
trained models and the pictures, from the files that the parts have written so far."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_parts import PROFILED, SIZES, TRAINED
from benchmarks.gpu_schedule import MISSING
from nanostories import storage

TORCH_ATTENTION = ("cudnn", "flash", "efficient", "math", "flex")
SPEEDUPS = dict(zip(SIZES, (1.25, 1.55, 1.30, 2.7), strict=True))  # over compiled nanoGPT
TOKENS_PER_SECOND = 500_000


@dataclass(frozen=True)
class Goal:
    """Something that is to reach a number on a GPU."""

    text: str
    least: float
    part: str  # which measures it
    file: str  # of the part's folder, JSON
    value: Callable  # of what is in the file; KeyError where it was not measured
    unit: str = "x"


def speedup_of_case(name, baselines):
    """A function of bench.json: the fastest baseline's time over ours, of the case `name`."""

    def value(facts):
        [case] = [case for case in facts["cases"] if case["name"] == name]
        us = {n: x["both_us"] for n, x in case["implementations"].items() if "both_us" in x}
        if "nanostories" not in us:
            return 0.0  # it failed
        return min(us[n] for n in baselines if n in us) / us["nanostories"]

    return value


def times_as_soon(facts):
    """nanoGPT's time over ours to its final bits per byte; 0 where we never reach it."""
    own = facts["seconds_to_nanogpt"]
    return facts["curves"]["nanoGPT"][-1]["seconds"] / own if own else 0.0


def batch_throughput(facts):
    speeds = facts["results"][0]["tokens_per_second"]
    return max(speed for name, speed in speeds.items() if name.startswith("batch of "))


def goals():
    """Every Goal."""
    result = [
        Goal(f"training step at {size}, over compiled nanoGPT's", least, f"speed-{size}",
             "speed.json", lambda facts: facts["cases"][0]["ratio"]["median"])
        for size, least in SPEEDUPS.items()
    ]  # fmt: skip
    for D, least in ((16, 2.5), (32, 2.4)):
        value = speedup_of_case(f"D={D} T=512 causal", TORCH_ATTENTION)
        text = f"attention with heads of {D}, over the fastest of torch's"
        result.append(Goal(text, least, "kernels-attention", "bench.json", value))
    for C, least in ((256, 1.6), (768, 1.15)):
        value = speedup_of_case(f"loss C={C}", ("compile",))
        text = f"loss at width {C}, over torch.compile's"
        result.append(Goal(text, least, "kernels-loss", "bench.json", value))
    for size in PROFILED:
        where = (f"generation-{size}", "generation.json")
        result.append(
            Goal(f"one story at {size}, over transformers'", 10.0, *where, lambda facts: facts[
                "results"][0]["ratio"]["bfloat16 / transformers"]["median"])
        )  # fmt: skip
        result.append(
            Goal(f"1,024 stories at once at {size}", TOKENS_PER_SECOND, *where, batch_throughput,
                 " tok/s")
        )  # fmt: skip
    text = "the race: how many times as soon at nanoGPT's final bits per byte"
    return [*result, Goal(text, 1.0, "race", "race.json", times_as_soon)]


def read(path):
    """What is in a JSON file; None where there is none, or it is not complete."""
    with contextlib.suppress(OSError, ValueError):
        return storage.from_json(Path(path).read_text(encoding="utf-8"))


def measured(goal, out):
    """A goal's number; None where it was not measured."""
    facts = read(Path(out, goal.part, goal.file))
    with contextlib.suppress(KeyError, IndexError, TypeError, ValueError, ZeroDivisionError):
        return goal.value(facts)


# ---- the page ----------------------------------------------------------------------------------


def number(value, unit):
    return f"{value:,.0f}{unit}" if value >= 1000 else f"{value:.2f}{unit}"


def where_measured(record):
    """The GPU and the commit of a part's record."""
    version = (record or {}).get("version", {})
    return f"{version.get('gpu', '')} | {version.get('commit', '')[:10]}"


def goal_rows(state):
    """[(the goal's row, whether it is met, None where it was not measured)]"""
    rows = []
    for goal in goals():
        value = measured(goal, state.out)
        text = f"| {goal.text} | {number(goal.least, goal.unit)} |"
        if value is None:
            rows.append((f"{text} | not measured yet | | |", None))
            continue
        met = value >= goal.least
        verdict = "met" if met else "missed"
        facts = where_measured(state.records.get(goal.part))
        rows.append((f"{text} {number(value, goal.unit)} | {verdict} | {facts} |", met))
    return rows


def part_rows(parts, state):
    """A row for each part: its status, its time, and what went wrong."""
    for part in parts:
        record, status = state.records.get(part.name, {}), state.status(part)
        note = part.problem if status == MISSING else record.get("error", "")
        note = " ".join(note.split())[:300].replace("|", "/")
        seconds = f"{record['seconds']:.0f} s" if "seconds" in record else ""
        yield (f"| {part.name} | {status or 'to do'} | {seconds} | "
               f"{where_measured(record)} | {note} |")  # fmt: skip


def model_rows(out):
    """A row for each trained model that eval.loss has scored."""
    for config in TRAINED:
        run = Path(out, f"train-{config}", config)
        if loss := read(run / "eval" / "loss.json"):
            lines = [storage.from_json(line) for line in (run / "metrics.jsonl").open()]
            last = [line for line in lines if "tokens" in line][-1]
            bits = f"{loss['bits_per_byte']:.4f} ± {loss['bits_per_byte_95'] or 0:.4f}"
            yield (f"| {config} | {last['step']:,} | {last['tokens']:,} | "
                   f"{last['seconds'] / 60:.1f} | {bits} | {loss['source']} | "
                   f"[ten stories](train-{config}/stories.txt) |")  # fmt: skip


def pictures(out):
    """The pictures that the parts have drawn, as paths in `out`."""
    paths = sorted(Path(out).glob("*/*.png")) + sorted(Path(out).glob("*/*/*.png"))
    return [path.relative_to(out).as_posix() for path in paths]


def write(parts, state, tiny=False):
    """Write summary.md anew; returns its rows of goals, which tell most, as lines to print."""
    rows = goal_rows(state)
    counts = [sum(met is verdict for _, met in rows) for verdict in (True, False, None)]
    lines = ["# What the GPU showed: {} of {} goals met, {} missed, {} not measured yet".format(
        counts[0], len(rows), *counts[1:])]  # fmt: skip
    if tiny:
        lines += ["", "A dry run with tiny sizes: its figures mean nothing."]
    lines += ["", "| goal | at least | measured | | GPU | commit |", "|---|---|---|---|---|---|"]
    lines += [row for row, _ in rows]
    lines += ["", "| part | | time | GPU | commit | |", "|---|---|---|---|---|---|"]
    lines += part_rows(parts, state)
    if models := list(model_rows(state.out)):
        lines += ["", "| model | steps | tokens | minutes | bits per byte | of | |",
                  "|---|---|---|---|---|---|---|", *models]  # fmt: skip
    for path in pictures(state.out):
        lines += ["", f"![{path}]({path})"]
    storage.write_text(state.out / "summary.md", "\n".join(lines) + "\n")
    return lines[: 5 + len(rows) + 2 * tiny]
