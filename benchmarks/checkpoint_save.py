"""The time that saving checkpoints takes from training.

    python -m benchmarks.checkpoint_save data/tinystories-bpe     # a data folder of prepare.py

Trains the model of configs/ts_cpu.py in turns of ten steps, every second turn with a save at its
start, and compares the pairs: how long the loop waits, and the whole cost, in which the writing
thread slows the training. Then the size and times of a save of configs/ts_33m.py's model and AdamW.
"""

import dataclasses
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

import train
from benchmarks.training import training_step
from configs import UserError, load, run
from model import GPT, GPTConfig
from nanostories.dataset.packing import make_loaders, open_data
from nanostories.training import checkpoint
from nanostories.training.device import pick_device
from nanostories.training.optim import make_optimizers
from train import build_model

PAIRS, STEPS = 60, 10


@dataclass(frozen=True)
class Settings:
    dataset: str = ""  # a data folder of prepare.py


def timed(function):
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def small(dataset, out):
    """Compare turns of training ts_cpu without a save and with one."""
    settings, _ = load(train.Settings, ["configs/ts_cpu.py"])
    settings = dataclasses.replace(settings, dataset=dataset, row_tokens=1024)
    device = pick_device("cpu")
    train_data, val_data, tokenizer = open_data(settings)
    loader, *_ = make_loaders(settings, train_data, val_data, tokenizer, device)
    model = build_model(settings, tokenizer, device).train()
    step, optimizers = training_step(model, loader, settings)
    saver, state = checkpoint.CheckpointSaver(out), {"step": 0, "best_step": 0, "kept_steps": []}

    def save():
        state["step"] += 1
        saver.save(model, optimizers, state)

    def turn(with_save):
        begin = time.perf_counter()
        if with_save:
            waits.append(timed(save))
        for _ in range(STEPS):
            step()
        if with_save:
            saver.wait()
        return time.perf_counter() - begin

    waits = []
    turn(with_save=True)
    pairs = [
        (turn(with_save=False), turn(with_save=True)) for _ in tqdm(range(PAIRS), desc="pairs")
    ]
    cost = statistics.median(b - a for a, b in pairs)
    fraction = cost / (100 / STEPS * statistics.median(a for a, _ in pairs))
    print(
        f"ts_cpu: a save costs {cost * 1e3:.0f} ms, of which the loop waits "
        f"{statistics.median(waits) * 1e3:.1f} ms; every 100 steps {fraction:.2%} of the run"
    )


def large(out):
    """Time a save of the 33M model with the state of AdamW."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = GPT(GPTConfig(50257, 512, 4, 16, 768)).to(device)
    [optimizer] = make_optimizers(model, train.Settings())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    saver = checkpoint.CheckpointSaver(out)
    state = {"best_step": 1, "kept_steps": []}
    for step in (1, 2, 3):  # the first one also allocates memory
        wait = timed(lambda step=step: saver.save(model, [optimizer], state | {"step": step}))
        write = timed(saver.wait)
    size = sum(path.stat().st_size for path in (Path(out) / "latest").iterdir()) / 1e9
    print(f"ts_33m: {size:.2f} GB; the loop waits {wait * 1e3:.0f} ms, the thread {write:.1f} s")


def main():
    settings, _ = load(Settings, positional="dataset")
    if not settings.dataset:
        raise UserError("name a data folder: python -m benchmarks.checkpoint_save data/<name>")
    with tempfile.TemporaryDirectory() as folder:
        small(settings.dataset, f"{folder}/small")
        large(f"{folder}/large")


if __name__ == "__main__":
    run(main)
