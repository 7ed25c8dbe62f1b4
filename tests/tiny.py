"""Tiny training runs that several tests share, in this process or in others."""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import sys
from dataclasses import replace
from pathlib import Path

import torch

import train as script
from configs import run
from model import GPT, GPTConfig
from nanostories.training import distributed
from train import Settings


def settings_for(data, out, **changes):
    settings = Settings(
        dataset=data, out_dir=str(out), n_layer=2, n_head=2, n_embd=32, block_size=128,
        row_tokens=256, batch_size=2, max_iters=30, warmup_iters=5, learning_rate=1e-2,
        eval_interval=1000, log_interval=1, device="cpu", dtype="float32",
    )  # fmt: skip
    return replace(settings, **changes)


def metrics(out):
    """The lines of a run's metrics.jsonl, a list of dicts."""
    return list(map(json.loads, (Path(out) / "metrics.jsonl").read_text().splitlines()))


def losses(out):
    """The training losses that a run logged."""
    return [line["loss"] for line in metrics(out) if "loss" in line]


# ---- other processes -----------------------------------------------------------------------------
#
# Forked from a server that has imported what a training does already, so that each costs little.

FORKS = multiprocessing.get_context("forkserver")
IMPORTED = ["train", "torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg"]
FORKS.set_forkserver_preload(IMPORTED)


def start(function, *args, env=None, errors=os.devnull):
    """A process that runs function(*args), `env` in its environment, its stderr in a file."""
    process = FORKS.Process(target=_child, args=(function, args, env or {}, str(errors)))
    process.start()
    return process


def _child(function, args, env, errors):
    os.environ.update(env)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    torch.set_num_threads(1)
    sys.argv = ["train.py"]
    run(lambda: function(*args))


def call(function, *args, errors=os.devnull):
    """Run function(*args) in a process of its own; returns its exit code."""
    process = start(function, *args, errors=errors)
    process.join(120)
    assert process.exitcode is not None, "still running after two minutes"
    return process.exitcode


def call_ranks(ranks, function, *args, errors=os.devnull):
    """Run function(*args) in several processes that train together; returns their exit codes."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    processes = [
        start(
            _rank, function, args, env=env | {"RANK": str(i), "LOCAL_RANK": str(i)}, errors=errors
        )
        for i in range(ranks)
    ]
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def _rank(function, args):
    with distributed.process_group():
        function(*args)


def train(settings):
    """Train to the end of the run; returns its state."""
    return script.train(settings)


@contextlib.contextmanager
def each_step(function):
    """Within it train.py calls function(train_step, model, *args) where it would train_step."""
    train_step = script.train_step
    script.train_step = lambda *args: function(train_step, *args)
    try:
        yield
    finally:
        script.train_step = train_step


def train_and_stop(settings, steps, number=signal.SIGTERM):
    """Train, and be sent a signal in the middle of step number `steps`."""

    def signalled(train_step, model, optimizers, scaler, guard, batches, step, *rest):
        if step == steps - 1:
            os.kill(os.getpid(), number)
        return train_step(model, optimizers, scaler, guard, batches, step, *rest)

    with each_step(signalled):
        train(settings)


class Poisoned:
    """A model whose loss is nan. model: a GPT, or DDP's form of one."""

    def __init__(self, model):
        self.model = model

    def __call__(self, *args, **kwargs):
        return self.model(*args, **kwargs) * float("nan")

    def no_sync(self):
        return self.model.no_sync()


def poison(steps, where):
    """For `each_step`: make the loss nan or a gradient inf at these steps, counted from 1."""

    def poisoned(train_step, model, optimizers, scaler, guard, batches, step, *rest):
        rest = (optimizers, scaler, guard, batches, step, *rest)
        if step + 1 not in steps:
            return train_step(model, *rest)
        if where == "loss":
            return train_step(Poisoned(model), *rest)
        hook = model.ln_f.weight.register_hook(lambda gradient: gradient * float("inf"))
        try:
            return train_step(model, *rest)
        finally:
            hook.remove()

    return poisoned


def contents(out):
    """What a finished run computed: bytes of weights and optimizer, losses, the stories it told."""
    latest = Path(out) / "latest"
    files = ("model.safetensors", "state.safetensors")
    samples = (Path(out) / "samples.txt").read_text()
    return [(latest / name).read_bytes() for name in files], losses(Path(out)), samples


LAYOUTS = {
    "gpt2": {},
    "neo": {"n_layer": 3, "window": 9, "scale_attention": False, "qkv_bias": False},
    "neox": {"positions": "rope", "gelu": "erf"},
}


def random_model(**changes):
    """Random weights, sharp enough that its choices differ from step to step."""
    torch.manual_seed(0)
    shape = {"vocab_size": 257, "block_size": 48, "n_layer": 2, "n_head": 2, "n_embd": 32}
    model = GPT(GPTConfig(**shape | changes)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.2)
    return model
