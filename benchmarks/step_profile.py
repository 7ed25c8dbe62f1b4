"""Where the time of one training step goes: its kernels, by their time on the GPU.

    python -m benchmarks.step_profile --size=768-4 --out=profile.json    # and profile.txt beside it
    python -m benchmarks.step_profile --size=16-1 --vocab_size=300 --tokens=1024 --device=cpu

The step is the one that benchmarks/training.py times: compiled on a GPU, on stories of random ids.
First some steps are timed as they are, then as many under torch's profiler. What is left of a step
beside its kernels is time in which the GPU waits. On a CPU the rows are torch's operations.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import training
from configs import load, run
from nanostories import storage
from nanostories.training.device import environment, pick_device, pick_dtype

ROWS = 40  # of the table that is printed; the JSON file has all


@dataclass(frozen=True)
class Settings:
    size: str = "768-4"  # n_embd-n_layer
    vocab_size: int = 50257  # of the model
    tokens: int = 32_768  # per step
    steps: int = 10  # that are timed, and that are profiled
    device: str = "auto"  # cpu or cuda; auto takes the best there is
    dtype: str = "auto"  # float32, bfloat16 or float16; auto: bfloat16 where the hardware has it
    out: str = ""  # a JSON file for the figures; the table is written beside it


def seconds_per_step(step, steps, cuda):
    """Mean seconds of `steps` calls, until the device is done."""
    if cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    if cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def kernel_times(step, steps, cuda):
    """[{name, calls, us}] of each kernel of a step, the costliest first. us: of all its calls; on a
    CPU of the operation itself, without those that it calls."""
    with torch.profiler.profile(acc_events=True) as profiler:
        seconds_per_step(step, steps, cuda)
    rows, wanted = [], "CUDA" if cuda else "CPU"
    for event in profiler.key_averages():
        # An annotation spans kernels that have rows of their own.
        if event.device_type.name != wanted or event.is_user_annotation:
            continue
        us = event.self_device_time_total if cuda else event.self_cpu_time_total
        if us:
            rows.append({"name": event.key, "calls": event.count / steps, "us": us / steps})
    return sorted(rows, key=lambda row: -row["us"])


def format_table(facts, shown=ROWS):
    """The figures as lines of text, at most 100 columns wide."""
    size, device, rows = facts["settings"]["size"], facts["environment"]["device"], facts["kernels"]
    total = sum(row["us"] for row in rows)
    times = f"{facts['step_us'] / 1e3:.2f} ms a step, {total / 1e3:.2f} ms in kernels"
    lines = [f"{size} on {device}: {times}"[:100]]
    lines += [f"{'us a step':>10} {'share':>6} {'calls':>6}  kernel"]
    for row in rows[:shown]:
        share = row["us"] / total
        lines.append(f"{row['us']:>10.1f} {share:>6.1%} {row['calls']:>6.0f}  {row['name'][:70]}")
    if rest := rows[shown:]:
        us, calls = (sum(row[key] for row in rest) for key in ("us", "calls"))
        lines.append(f"{us:>10.1f} {us / total:>6.1%} {calls:>6.0f}  {len(rest)} others")
    return lines


def main():
    settings, _ = load(Settings)
    device = pick_device(settings.device)
    dtype = str(pick_dtype(settings.dtype, device)).removeprefix("torch.")
    table = training.Settings(settings.size, str(settings.vocab_size), dtype, settings.tokens)
    [case] = training.cases(table, device)
    step, _ = training.nanostories(case, None)
    cuda = device.type == "cuda"
    seconds_per_step(step, 3 if cuda else 1, cuda)  # compiles
    facts = {"environment": environment(device), "settings": asdict(settings) | {"out": ""}}
    facts["settings"]["dtype"] = dtype
    facts["step_us"] = seconds_per_step(step, settings.steps, cuda) * 1e6
    facts["kernels"] = kernel_times(step, settings.steps, cuda)
    lines = format_table(facts)
    print("\n".join(lines), flush=True)
    if settings.out:
        storage.write_json(settings.out, facts)
        storage.write_text(Path(settings.out).with_suffix(".txt"), "\n".join(lines) + "\n")


if __name__ == "__main__":
    run(main)
