"""Two ranks compute what one does: gloo on CPU, in processes of their own and under torchrun."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import losses, settings_for

from configs import ROOT
from nanostories.dataset.packing import split_rows_across_ranks
from nanostories.training import checkpoint, distributed
from nanostories.training.distributed import rank
from nanostories.training.run_config import check


@given(rows=st.integers(1, 60), batch_size=st.integers(1, 12), ranks=st.integers(1, 9))
def test_every_row_of_a_step_is_computed_once(rows, batch_size, ranks):
    ranks = min(ranks, rows)
    shares = [split_rows_across_ranks(rows, batch_size, rank, ranks) for rank in range(ranks)]
    assert [row for passes in shares for a, b in passes for row in range(a, b)] == [*range(rows)]
    sizes = [sum(b - a for a, b in passes) for passes in shares]
    assert max(sizes) - min(sizes) <= 1
    for passes in shares:
        sizes = [b - a for a, b in passes]
        assert min(sizes) >= 1 and max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_one_rank_takes_the_passes_as_they_are_set():
    assert split_rows_across_ranks(12, 4, 0, 1) == [(0, 4), (4, 8), (8, 12)]


def record(settings, folder):
    """Train; leave what this rank read, and the gradients and the loss of the first step."""
    tokens, apart, gradients = [], [], {}

    def recorded(train_step, model, optimizers, scaler, guard, batches, step, *rest):
        tokens.extend(batch.tokens for _, batch, _ in batches)
        if distributed.world_size() > 1:
            no_sync = type(model).no_sync
            model.no_sync = lambda: apart.append(step) or no_sync(model)
        hooks = []
        if step == 0:

            def keep(optimizer, *_):
                for name, parameter in model.named_parameters():
                    gradients[name.removeprefix("module.")] = parameter.grad.clone()

            hooks = [optimizer.register_step_pre_hook(keep) for optimizer in optimizers]
        rest = (optimizers, scaler, guard, batches, step, *rest)
        loss, norm = train_step(model, *rest)
        for hook in hooks:
            hook.remove()
        if step == 0:
            gradients.update(loss=loss.clone(), norm=norm)
        micro_batches.append(len(batches))
        return loss, norm

    micro_batches = []
    with tiny.each_step(recorded):
        tiny.train(settings)
    if distributed.world_size() > 1:  # gradients meet on the last micro-batch only
        assert len(apart) == sum(micro_batches) - settings.max_iters
    save_file(gradients, Path(folder) / f"gradients{rank()}.safetensors")
    save_file({"tokens": torch.cat(tokens)}, Path(folder) / f"read{rank()}.safetensors")


@pytest.mark.parametrize(
    "shape",
    [
        {"gradient_accumulation_steps": 4, "dropout": 0.1},  # two passes a rank, of two rows
        {
            "batch_size": 3,
            "gradient_accumulation_steps": 1,
            "positions": "rope",
            "mlp": "swiglu",
            "tied_head": False,
        },  # 2 rows and 1
    ],
    ids=["even", "uneven, another architecture"],
)
def test_two_ranks_compute_what_one_does(data, tmp_path, shape):
    same = {"max_iters": 5, "eval_interval": 5, "grad_clip": 0.0} | shape
    folders = []
    for ranks in (1, 2):
        folders.append(tmp_path / str(ranks))
        folders[-1].mkdir()
        settings = settings_for(data, folders[-1] / "run", **same)
        codes = tiny.call_ranks(ranks, record, settings, str(folders[-1]))
        assert codes == [0] * ranks
    one, two = folders
    assert losses(one / "run") == pytest.approx(losses(two / "run"), abs=1e-6)
    alone = load_file(one / "gradients0.safetensors")
    for i in range(2):
        for name, value in load_file(two / f"gradients{i}.safetensors").items():
            assert (value - alone[name]).abs().max() <= 1e-5, (i, name)
    # The same stories: each step's rows are rank 0's, then rank 1's.
    passes = settings.batch_size, settings.gradient_accumulation_steps
    shares = [split_rows_across_ranks(math.prod(passes), passes[0], i, 2) for i in range(2)]
    parts = [
        load_file(two / f"read{i}.safetensors")["tokens"].split(shares[i][-1][1] - shares[i][0][0])
        for i in range(2)
    ]
    together = torch.cat([torch.cat(pair) for pair in zip(*parts, strict=True)])
    assert torch.equal(together, load_file(one / "read0.safetensors")["tokens"])
    values = [checkpoint.read_state(folder / "run")["best"] for folder in folders]
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    # Rank 0 alone writes: one line a step.
    assert len(losses(two / "run")) == 5


@pytest.mark.parametrize(
    "shape",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 4, "grow_iters": 5, "dropout": 0.0},  # 2 rows, 4, then 8
    ],
    ids=["even", "growing"],
)
def test_a_changed_number_of_ranks_changes_no_batch(data, tmp_path, shape):
    """2 steps on two ranks, 2 on one, 2 on two again, as 6 on one."""
    same = {"max_iters": 6, "dropout": 0.1, "lr_decay_iters": 6} | shape
    settings = settings_for(data, tmp_path / "run", **same)
    for ranks, steps in ((2, 2), (1, 4), (2, 6)):
        now = replace(settings, max_iters=steps, resume=steps > 2)
        assert tiny.call_ranks(ranks, tiny.train, now) == [0] * ranks
    whole = replace(settings, out_dir=str(tmp_path / "whole"))
    assert tiny.call(tiny.train, whole) == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)
    a, b = (checkpoint.read_state(tmp_path / name) for name in ("run", "whole"))
    assert a["tokens"] == b["tokens"]


def train_poisoned(settings):
    weights, spoil = {}, tiny.poison([2] if rank() == 1 else [], "loss")

    def recorded(train_step, model, optimizers, scaler, guard, batches, step, *rest):
        if step == 1:
            weights["before"] = [p.detach().clone() for p in model.parameters()]
        weights["after"] = list(model.parameters())
        return spoil(train_step, model, optimizers, scaler, guard, batches, step, *rest)

    try:
        with tiny.each_step(recorded):
            tiny.train(settings)
    finally:
        pairs = zip(weights["before"], weights["after"], strict=True)
        same = all(torch.equal(a, b) for a, b in pairs)
        Path(settings.out_dir, f"same{rank()}").write_text(str(same))


def test_nan_in_one_rank_stops_all(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=8, log_interval=4)
    errors = tmp_path / "errors"
    assert tiny.call_ranks(2, train_poisoned, settings, errors=errors) == [1, 1]
    error = errors.read_text()
    # torchrun would have ended the second rank before it repeats what the first one says.
    assert error.startswith("train.py: step 2: the loss or the gradient is nan or inf")
    assert "train.py: rank 1: step 2: the loss" in error
    for i in range(2):
        assert (tmp_path / "run" / f"same{i}").read_text() == "True"
    assert checkpoint.steps_of(tmp_path / "run") == []


def test_a_signal_to_one_rank_stops_all_after_the_same_step(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=300)
    assert tiny.call_ranks(2, stop_one, settings) == [0, 0]
    assert checkpoint.steps_of(tmp_path / "run") == [3]


def stop_one(settings):
    if rank() == 1:
        tiny.train_and_stop(settings, 3)
    else:
        tiny.train(settings)


def test_more_ranks_than_rows_are_refused(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", batch_size=1)
    errors = tmp_path / "errors"
    assert tiny.call_ranks(2, check, settings, errors=errors) == [1, 1]
    assert "2 ranks cannot share a step of 1 rows" in errors.read_text()


# ---- torchrun ----------------------------------------------------------------------------------


def torchrun(settings, *options):
    """`torchrun train.py` with these settings, started."""
    given = [f"--{name}={value}" for name, value in asdict(settings).items() if value is not None]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "train.py", *given]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_within_a_minute(data, tmp_path):
    out = tmp_path / "run"
    settings = settings_for(data, out, max_iters=10**6, save_interval=5, save_steps="log")
    job = torchrun(settings, "--standalone", "--nproc_per_node=2")
    while not checkpoint.steps_of(out) and job.poll() is None:
        time.sleep(0.1)
    workers = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    victim = next(w for w in workers if b"\0RANK=1\0" in Path(f"/proc/{w}/environ").read_bytes())
    os.kill(int(victim), signal.SIGKILL)
    begin = time.monotonic()
    job.communicate(timeout=60)
    assert job.returncode != 0 and time.monotonic() - begin < 60
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    checkpoint.load_run(out)
    steps = checkpoint.steps_of(out)[-1] + 1
    assert tiny.call(tiny.train, replace(settings, resume=True, max_iters=steps)) == 0


@pytest.mark.slow
def test_a_signal_to_torchrun_saves(data, tmp_path):
    out = tmp_path / "run"
    settings = settings_for(data, out, max_iters=10**6, lr_decay_iters=10**6)
    job = torchrun(settings, "--standalone", "--nproc_per_node=2")
    while not (out / "metrics.jsonl").exists() or len(losses(out)) < 2:
        assert job.poll() is None
        time.sleep(0.1)
    job.terminate()
    error = job.communicate(timeout=60)[1]
    assert "stopping after this step" in error
    [step] = checkpoint.steps_of(out)
    assert len(losses(out)) == step


@pytest.mark.slow
def test_two_machines(data, tmp_path):
    """Two torchruns that meet at an address, as on two machines, of one rank each."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    settings = settings_for(data, tmp_path / "run", max_iters=4)
    meet = ("--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=tiny",
            f"--rdzv_endpoint=127.0.0.1:{port}")  # fmt: skip
    jobs = [torchrun(settings, *meet) for _ in range(2)]
    for job in jobs:
        error = job.communicate(timeout=120)[1]
        assert job.returncode == 0, error
    alone = replace(settings, out_dir=str(tmp_path / "alone"))
    assert tiny.call(tiny.train, alone) == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "alone"), abs=1e-6)
