"""A race with nanoGPT by the clock: held-out bits per byte against minutes of training.

    python -m benchmarks.race --nanogpt=nanoGPT --minutes=8
    python -m benchmarks.race --nanogpt=nanoGPT --minutes=10 --config=configs/fast_33m.py \\
        --shapes=768-4-16 --rows=64 --learning_rates=6e-4,1e-3,2e-3 --beta2=0.95 --device=cuda

Both sides train on the same stories, in the same tokens and the same dtype, each in a process of
its own. They take turns of a few seconds, so that other load slows both, and each side's clock runs
only in its own turns, compiling included; evaluations stop it. Both learning-rate schedules end
with `minutes` on that clock.

nanoStories trains as the config says. nanoGPT trains as its train.py does: blocks of 512 tokens
from anywhere in the stream, no biases, AdamW, a cosine to a tenth, and the 100 steps of warm-up of
its configs for small models. It gets the best of a sweep over shapes, rows a step and learning
rates, each trained by turns for sweep_minutes with a whole schedule. Both are evaluated on the same
targets of the same held-out stories; nanoGPT sees them as it does in training, several in a row,
each after <|endoftext|>.

The result is the time at which nanoStories reaches nanoGPT's final bits per byte, as JSON and, next
to it, a picture.
"""

import contextlib
import itertools
import math
import multiprocessing
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

import train
from benchmarks.training import BLOCK_SIZE, nanogpt_model, nanogpt_step, training_step
from configs import UserError, load, run
from nanostories import storage
from nanostories.dataset.packing import make_loaders, open_data
from nanostories.plotting import plot_to
from nanostories.training import run_config, schedule
from nanostories.training.device import (
    autocast_for,
    environment,
    pick_device,
    pick_dtype,
    select_attention,
)
from nanostories.training.validation import evaluate


@dataclass(frozen=True)
class Settings:
    nanogpt: str = ""  # a checkout of nanoGPT
    config: str = "configs/ts_cpu.py"  # what nanoStories trains
    dataset: str = ""  # the stories of both; default: the config's data folder
    minutes: float = 8.0  # of training for each side
    turn_seconds: float = 10.0  # a turn; an evaluation ends it early
    points: int = 16  # evaluations of each side
    eval_stories: int = 500  # on so many held-out stories, evenly spread; 0: on all
    shapes: str = "128-4-4"  # nanoGPT's, n_embd-n_layer-n_head, comma-separated
    rows: str = "4"  # nanoGPT's blocks of 512 tokens in a step, comma-separated
    learning_rates: str = "1e-3,2e-3,4e-3"  # nanoGPT's, comma-separated
    beta2: float = 0.99  # nanoGPT's; its configs take 0.99 for small steps and 0.95 for large ones
    sweep_minutes: float = 1.0  # for each shape, number of rows and learning rate
    seed: int = 1337  # decides both sides' weights and batches
    device: str = "auto"  # cpu or cuda; auto takes the best there is
    dtype: str = "auto"  # float32, bfloat16 or float16; auto: bfloat16 where the hardware has it
    out: str = "out/race.json"  # a JSON file for the figures; the picture stands next to it


@dataclass(frozen=True)
class Trial:
    """One way to train nanoGPT."""

    shape: tuple  # n_embd, n_layer, n_head
    rows: int  # blocks of BLOCK_SIZE tokens in a step
    learning_rate: float


# ---- the two sides -----------------------------------------------------------------------------
#
# Each is a function of the race's Settings (and a Trial) and a function that returns the seconds
# trained so far. It returns a function that trains one step and returns its number of tokens, and
# one that returns the bits per byte of the held-out stories.


def own_settings(settings):
    """train.py's complete Settings of nanoStories' side."""
    names = ("dataset", "device", "dtype", "seed", "eval_stories")
    words = [f"--{name}={getattr(settings, name)}" for name in names if getattr(settings, name)]
    words += [f"--max_minutes={settings.minutes}", "--max_iters=0", "--lr_decay_iters=0"]
    return run_config.complete(*load(train.Settings, [settings.config, *words]))


def set_up(own):
    """What both sides need of train.py's Settings: (device, dtype, what `open_data` returns, what
    `make_loaders` returns), with torch's random numbers seeded."""
    device = pick_device(own.device)
    data = open_data(own)
    torch.manual_seed(own.seed)
    return device, pick_dtype(own.dtype, device), data, make_loaders(own, *data, device)


def nanostories(settings, seconds):
    """This project, as train.py sets it up."""
    own = own_settings(settings)
    device, dtype, (*_, tokenizer), (loader, val_loader, val_bytes) = set_up(own)
    model = train.build_model(own, tokenizer, device).train()
    select_attention(model, own.attn, dtype)
    model.residual_dtype = dtype if own.bfloat16_residual else None
    model.fused_mlp = own.fused_mlp
    steps = itertools.count()

    def lr():
        progress = schedule.decay_progress(own, 0, seconds())  # by the clock, whatever the step
        return schedule.get_lr(own, next(steps), progress)

    step, _ = training_step(model, loader, own, lr)

    def bits_per_byte():
        batches = (val_loader[i] for i in range(len(val_loader)))
        total_loss, _ = evaluate(model, batches, autocast_for(device, dtype))
        return total_loss / math.log(2) / val_bytes

    return step, bits_per_byte


def nanogpt(settings, seconds, trial):
    """nanoGPT, as its train.py trains."""
    own = replace(own_settings(settings), block_size=BLOCK_SIZE, row_tokens=BLOCK_SIZE)
    device, dtype, (data, _, tokenizer), (_, val_loader, val_bytes) = set_up(own)
    model = nanogpt_model(settings.nanogpt, tokenizer.vocab_size, *trial.shape, bias=False)
    model.to(device)
    steps = itertools.count(1)

    def lr():
        progress = min(1.0, seconds() / (60 * settings.minutes))
        cosine = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
        return trial.learning_rate * cosine * min(1.0, next(steps) / 100)

    ids = np.concatenate(data.shards)
    step = nanogpt_step(model, ids, trial.rows, dtype, betas=(0.9, settings.beta2), lr=lr)
    autocast = autocast_for(device, dtype)

    @torch.no_grad()
    def bits_per_byte():
        model.eval()
        total_loss = 0.0
        for i in range(len(val_loader)):
            batch = val_loader[i]
            with autocast():  # nanoGPT ignores targets of -1, and returns the mean over the rest
                _, loss = model(batch.tokens, batch.targets)
            total_loss += loss.item() * batch.target_count
        model.train()
        return total_loss / math.log(2) / val_bytes

    return step, bits_per_byte


# ---- turns -------------------------------------------------------------------------------------


def worker(pipe, settings, trial):
    """A side's process. For each number received it trains until its clock has run for so many
    more seconds; for "evaluate" it evaluates. It answers with what it has come to."""
    cuda, clock, tokens = pick_device(settings.device).type == "cuda", 0.0, 0
    begin = None  # of the turn

    def seconds():
        return clock + (time.perf_counter() - begin if begin else 0.0)

    with contextlib.redirect_stdout(None):  # nanoGPT prints its parameters
        side = nanogpt(settings, seconds, trial) if trial else nanostories(settings, seconds)
    step, bits_per_byte = side
    pipe.send("ready")
    while (order := pipe.recv()) != "end":
        if order == "evaluate":
            pipe.send({"seconds": clock, "tokens": tokens, "bits_per_byte": bits_per_byte()})
            continue
        end, begin = clock + order, time.perf_counter()
        while seconds() < end:
            tokens += step()
        if cuda:
            torch.cuda.synchronize()
        clock, begin = seconds(), None
        pipe.send(clock)


def take_turns(sides, settings, points):
    """Train all sides by turns and evaluate each at `points` times of its clock, evenly spread.

    sides: {name: a Trial, or None for nanoStories}. Returns {name: [what `worker` answers]}."""
    spawn, pipes, processes = multiprocessing.get_context("spawn"), {}, []
    for name, trial in sides.items():
        pipes[name], end = spawn.Pipe()
        processes.append(spawn.Process(target=worker, args=(end, settings, trial), daemon=True))
        processes[-1].start()
        end.close()
    curves, clocks = {name: [] for name in sides}, dict.fromkeys(sides, 0.0)
    total = 60 * settings.minutes
    try:
        for name in sides:
            pipes[name].recv()
        while any(len(curve) < points for curve in curves.values()):
            for name, curve in curves.items():
                if len(curve) == points:
                    continue
                due = total * (len(curve) + 1) / points
                pipes[name].send(min(settings.turn_seconds, due - clocks[name]))
                clocks[name] = pipes[name].recv()
                if clocks[name] >= due - 1e-3:
                    pipes[name].send("evaluate")
                    curve.append(pipes[name].recv())
                    print(line(name, curve[-1]), flush=True)
    except (EOFError, ConnectionError):
        raise UserError(f"{name} failed: see above") from None
    finally:
        for process in processes:
            process.kill()
    return curves


def line(name, point):
    speed = point["tokens"] / point["seconds"]
    return (
        f"{name:<28} {point['seconds'] / 60:>6.2f} min  {point['tokens']:>12,} tokens  "
        f"{speed:>9,.0f} tok/s  {point['bits_per_byte']:.4f} bits per byte"
    )


# ---- the race ----------------------------------------------------------------------------------


def trials(settings):
    """Every Trial that the settings name; UserError where they name none."""
    try:
        shapes = [tuple(map(int, shape.split("-"))) for shape in settings.shapes.split(",")]
        rows = [int(rows) for rows in settings.rows.split(",")]
        rates = [float(rate) for rate in settings.learning_rates.split(",")]
        assert all(len(shape) == 3 for shape in shapes)
    except (ValueError, AssertionError):
        raise UserError(
            "shapes must be n_embd-n_layer-n_head, rows and learning_rates numbers, not "
            f"'{settings.shapes}', '{settings.rows}', '{settings.learning_rates}'"
        ) from None
    return [Trial(*choice) for choice in itertools.product(shapes, rows, rates)]


def time_to(curve, goal):
    """Seconds until a curve first comes down to `goal` bits per byte, by straight lines between its
    points; None where it never does. Before the first point nothing is known: then its time."""
    before = None
    for point in curve:
        if point["bits_per_byte"] <= goal:
            if before is None:
                return point["seconds"]
            fall = before["bits_per_byte"] - point["bits_per_byte"]
            part = (before["bits_per_byte"] - goal) / fall
            return before["seconds"] + part * (point["seconds"] - before["seconds"])
        before = point
    return None


def plot(path, curves, goal, reached):
    with plot_to(path) as (_, axes):
        for name, curve in curves.items():
            minutes = [point["seconds"] / 60 for point in curve]
            axes.plot(minutes, [point["bits_per_byte"] for point in curve], marker=".", label=name)
        axes.axhline(goal, color="gray", linestyle="--", linewidth=1)
        if reached:
            axes.axvline(reached / 60, color="gray", linestyle="--", linewidth=1)
        axes.set(xlabel="minutes of training", ylabel="bits per byte of held-out stories")
        axes.legend()


def main():
    settings, _ = load(Settings)
    if not (Path(settings.nanogpt) / "model.py").is_file() or not settings.nanogpt:
        raise UserError(f"no nanoGPT in '{settings.nanogpt}' (no model.py): name it with --nanogpt")
    if not settings.minutes:
        raise UserError("minutes must be more than 0")
    choices, device = trials(settings), pick_device(settings.device)
    open_data(own_settings(settings))  # a missing folder is one line, here
    sweep, best = {}, choices[0]
    if len(choices) > 1:
        short = replace(settings, minutes=settings.sweep_minutes)
        names = {f"nanoGPT {'-'.join(map(str, t.shape))} {t.rows} {t.learning_rate:g}": t
                 for t in choices}  # fmt: skip
        sweep = {name: points[-1] for name, points in take_turns(names, short, 1).items()}
        best = names[min(sweep, key=lambda name: sweep[name]["bits_per_byte"])]
    curves = take_turns({"nanoStories": None, "nanoGPT": best}, settings, settings.points)
    goal = curves["nanoGPT"][-1]["bits_per_byte"]
    reached = time_to(curves["nanoStories"], goal)
    names = {name: Path(getattr(settings, name)).name for name in ("nanogpt", "dataset")}
    stored = asdict(replace(settings, **names, out=""))
    facts = {"environment": environment(device), "settings": stored, "sweep": sweep}
    facts |= {"nanogpt": asdict(best), "curves": curves, "seconds_to_nanogpt": reached}
    storage.write_json(settings.out, facts)
    plot(Path(settings.out).with_suffix(".png"), curves, goal, reached)
    if reached is None:
        print(f"nanoStories did not reach nanoGPT's {goal:.4f} bits per byte")
    else:
        ratio = reached / curves["nanoGPT"][-1]["seconds"]
        print(
            f"nanoStories reaches nanoGPT's {goal:.4f} bits per byte in {reached:.0f} s, "
            f"{ratio:.3f} of its time"
        )


if __name__ == "__main__":
    run(main)
