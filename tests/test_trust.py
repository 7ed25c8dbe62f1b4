"""A run that is stopped, killed, out of disk or full of nan loses minutes at most, and says so."""

import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from tiny import contents, losses, settings_for
from torch.utils._python_dispatch import TorchDispatchMode

import prepare
import train
from configs import UserError
from nanostories import storage
from nanostories.dataset.shards import Dataset
from nanostories.training import checkpoint, run_config
from nanostories.training.optim import make_optimizers
from train import Settings

# ---- exact resume ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer, stop",
    [
        ("adamw", 1),
        ("muon", 4),
        *(pytest.param("adamw", step, marks=pytest.mark.slow) for step in (2, 3, 4, 5)),
    ],
)
def test_resume_equals_never_stopping(data, tmp_path, optimizer, stop):
    """N + M steps are N steps, stop, a new process, M steps: every bit, and every story told."""
    same = {"optimizer": optimizer, "dropout": 0.1, "gradient_accumulation_steps": 2,
            "positions": "rope" if optimizer == "muon" else "learned",
            "max_iters": 6, "eval_interval": 2}  # fmt: skip
    whole, parts = (settings_for(data, tmp_path / name, **same) for name in ("whole", "parts"))
    assert tiny.call(tiny.train, whole) == 0
    assert tiny.call(tiny.train_and_stop, parts, stop) == 0
    assert checkpoint.steps_of(parts.out_dir)[-1] == stop
    assert tiny.call(tiny.train, replace(parts, resume=True)) == 0
    assert contents(whole.out_dir) == contents(parts.out_dir)


def test_float16_resumes_with_its_loss_scale(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=2, dtype="float16")
    tiny.train(settings)
    stored, scales = checkpoint.read_state(settings.out_dir)["scaler"], []

    def recorded(train_step, model, optimizers, scaler, *args):
        scales.append(scaler.state_dict())
        return train_step(model, optimizers, scaler, *args)

    with tiny.each_step(recorded):
        tiny.train(replace(settings, resume=True, max_iters=3))
    assert scales == [stored] and stored["_growth_tracker"] == 2


def test_a_longer_run_keeps_the_schedule(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=4, min_lr=1e-4, warmup_iters=1)
    tiny.train(settings)
    assert checkpoint.read_config(settings.out_dir)["train"]["lr_decay_iters"] == 4
    origin = dict.fromkeys(asdict(settings), "default") | {"max_iters": "command line"}
    longer = Settings(resume=True, out_dir=settings.out_dir, max_iters=6)
    tiny.train(run_config.complete(longer, origin))
    tiny.train(replace(settings, out_dir=str(tmp_path / "whole")))
    rates, whole = (
        [line["lr"] for line in tiny.metrics(tmp_path / name) if "lr" in line]
        for name in ("run", "whole")
    )
    assert rates[:4] == whole
    assert rates[4:] == [1e-4, 1e-4]


def resume(out, **named):
    origin = dict.fromkeys(asdict(Settings()), "default") | dict.fromkeys(named, "command line")
    return run_config.complete(Settings(resume=True, out_dir=str(out), **named), origin)


def test_resume_refuses_other_settings_by_name(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=1)
    tiny.train(settings)
    may = {"max_iters": 9, "max_minutes": 1.0, "eval_interval": 7, "save_interval": 3,
           "device": "cpu", "compile": False, "attn": "math", "fused_mlp": True,
           "skip_nonfinite": True, "report_to": "tensorboard"}  # fmt: skip
    assert set(run_config.MAY_CHANGE) == {*may, "resume", "out_dir", "cuda_graphs", "profile"}
    changed = resume(settings.out_dir, **may)
    assert {name: getattr(changed, name) for name in may} == may
    assert changed.learning_rate == settings.learning_rate and changed.n_embd == 32
    assert resume(settings.out_dir, batch_size=2).batch_size == 2  # said again, not changed
    for name, value in asdict(Settings()).items():
        if name not in run_config.MAY_CHANGE:
            others = {str: ["other"], int: [77, 0], float: [0.77, 0.0]}.get(type(value), [True])
            stored = checkpoint.read_config(settings.out_dir)["train"][name]
            for other in others:
                if other != stored and (other or name not in run_config.FILLED_IN):
                    with pytest.raises(UserError, match=f"^{name} of '.*run' is .*, not "):
                        resume(settings.out_dir, **{name: other})


def test_resume_takes_the_run_of_its_config(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        tiny.train(settings_for(data, f"out/{name}", max_iters=1))
    origin = dict.fromkeys(asdict(Settings()), "default")
    newest = run_config.complete(Settings(resume=True), origin)
    assert newest.out_dir == "out/two"
    ours = run_config.complete(
        Settings(resume=True, max_iters=1), origin | {"max_iters": "c/one.py"}
    )
    assert ours.out_dir == "out/one"


def test_of_a_fine_tuned_run_the_config_does_not_say_the_shape(data, tmp_path):
    """The same command with --resume goes on, though the weights it started from have another."""
    tiny.train(settings_for(data, tmp_path / "base", max_iters=1))
    same = {"init_from": str(tmp_path / "base"), "max_iters": 1}
    tiny.train(settings_for(data, tmp_path / "run", **same))
    origin = dict.fromkeys(asdict(Settings()), "default") | {"n_layer": "c.py"}
    asked = Settings(resume=True, out_dir=str(tmp_path / "run"), n_layer=7)
    found = run_config.complete(asked, origin)
    assert found.n_layer == settings_for(data, "").n_layer != 7
    with pytest.raises(UserError, match=r"^n_layer of"):
        run_config.complete(asked, origin | {"n_layer": "command line"})
    with pytest.raises(UserError, match=r"^n_layer of"):
        run_config.complete(replace(asked, out_dir=str(tmp_path / "base")), origin)


def test_resume_refuses_other_data(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=1)
    tiny.train(settings)
    other = tmp_path / "other"
    same = {"source": "storybook", "workers": 1, "val_fraction": 0.1, "out": str(other)}
    prepare.prepare(prepare.Settings(tokenizer="bytes", stories=50, **same))
    with pytest.raises(UserError, match=r"holds another tokenizer than .*tokenizer\.json"):
        tiny.train(replace(settings, resume=True, dataset=str(other)))
    shutil.rmtree(other)
    shutil.copytree(data, other)
    shard = other / "train_000.bin"
    shard.write_bytes(shard.read_bytes()[::-1])
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["files"][shard.name]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"holds other data than .*: train_000\.bin differ"):
        tiny.train(replace(settings, resume=True, dataset=str(other)))
    tiny.train(replace(settings, resume=True))


def test_resume_refuses_another_architecture(data, tmp_path):
    """The number of heads shows in no tensor's shape."""
    settings = settings_for(data, tmp_path / "run", max_iters=1)
    tiny.train(settings)
    path = tmp_path / "run" / "config.json"
    path.write_text(path.read_text().replace('"n_head": 2', '"n_head": 4'))
    with pytest.raises(UserError, match=r"config\.json is not what .*: n_head is 4, not 2"):
        tiny.train(replace(settings, resume=True))


def test_resume_reads_a_log_cut_in_the_middle_of_a_letter(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=2, eval_interval=1)
    tiny.train(settings)
    with open(tmp_path / "run" / "samples.txt", "ab") as file:
        file.write("“".encode()[:2])
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "lo')
    tiny.train(replace(settings, resume=True))
    assert len(tiny.metrics(tmp_path / "run")) == 4


def test_a_profile_leaves_a_run_alone(data, tmp_path):
    """Also one that is saving right now."""
    settings = settings_for(data, tmp_path / "run", max_iters=2)
    tiny.train(settings)
    parts = [tmp_path / "run" / name for name in ("checkpoints/4.part", "loss.png.part")]
    parts[0].mkdir()
    parts[1].touch()
    tiny.train(replace(settings, profile=True))
    assert parts[0].exists() and parts[1].exists()
    tiny.train(replace(settings, resume=True))  # nothing saves now: that was left by a killed run
    assert not parts[0].exists() and not parts[1].exists()


# ---- checkpoints, signals, kills ---------------------------------------------------------------


def test_log_spaced_checkpoints_stay_and_the_rest_is_bounded(data, tmp_path):
    settings = settings_for(
        data, tmp_path / "run", max_iters=11, save_interval=1, save_steps="log", eval_interval=6
    )
    tiny.train(settings)
    out = Path(settings.out_dir)
    best = checkpoint.read_state(out)["best_step"]
    assert (out / "latest").readlink() == Path("checkpoints/11")
    assert (out / "best").readlink() == Path(f"checkpoints/{best}") and best in (6, 11)
    assert checkpoint.steps_of(out) == sorted({1, 2, 4, 8, 10, best, 11})  # 10: the one before
    for step in (1, 8):
        assert checkpoint.load_run(out, f"checkpoints/{step}")


def test_a_checkpoint_every_ten_minutes_unless_set_otherwise(data, tmp_path, monkeypatch):
    """With a clock of our own, on which a step takes 250 seconds."""
    clock, saved = [0.0], []
    monkeypatch.setattr(train, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(
        checkpoint.CheckpointSaver,
        "save",
        lambda self, model, optimizers, state: saved.append(state["step"]),
    )

    def slow_step(train_step, *args):
        clock[0] += 250
        return train_step(*args)

    with tiny.each_step(slow_step):
        tiny.train(settings_for(data, tmp_path / "run", max_iters=9))
    assert saved == [3, 6, 9, 9]  # before and after the last evaluation


def test_a_save_copies_first_and_writes_in_a_thread(tmp_path, monkeypatch):
    model = tiny.random_model()
    optimizers = make_optimizers(model, Settings())
    state = {"best_step": 0, "kept_steps": []}
    saver = checkpoint.CheckpointSaver(tmp_path)
    saver.save(model, optimizers, state | {"step": 1})
    saver.wait()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    let_go, write = threading.Event(), checkpoint.write_checkpoint

    def slow_write(*args):
        let_go.wait(10)
        write(*args)

    monkeypatch.setattr(checkpoint, "write_checkpoint", slow_write)
    saver.save(model, optimizers, state | {"step": 2})
    with torch.no_grad():
        model.wte.weight.zero_()  # training goes on meanwhile
    assert checkpoint.steps_of(tmp_path) == [1]
    let_go.set()
    saver.save(model, optimizers, state | {"step": 3})
    saved = checkpoint.read_tensors(tmp_path / "checkpoints" / "2", "model.safetensors")
    saver.wait()
    assert all(torch.equal(saved[name], before[name]) for name in before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_exits_with_0(data, tmp_path, number):
    settings = settings_for(data, tmp_path / "run")
    assert tiny.call(tiny.train_and_stop, settings, 3, number) == 0
    assert checkpoint.steps_of(settings.out_dir) == [3] and len(losses(tmp_path / "run")) == 3


def train_slowly(settings, ready):
    def step(*_):
        Path(ready).touch()
        time.sleep(60)

    with tiny.each_step(step):
        tiny.train(settings)


def test_a_second_signal_exits_at_once(data, tmp_path):
    settings, ready = settings_for(data, tmp_path / "run"), tmp_path / "ready"
    process = tiny.start(train_slowly, settings, str(ready))
    while not ready.exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert process.is_alive()  # the first one waits for the step
    os.kill(process.pid, signal.SIGINT)
    process.join(5)
    assert process.exitcode == 128 + signal.SIGINT


def test_a_signal_cuts_an_evaluation_short(data, tmp_path, monkeypatch):
    settings = settings_for(data, tmp_path / "run", eval_interval=2, max_iters=4)
    validate = train.validate

    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*args)

    def evaluations():
        return [line["step"] for line in tiny.metrics(tmp_path / "run") if "val_loss" in line]

    monkeypatch.setattr(train, "validate", interrupted)
    assert tiny.train(settings)["step"] == 2
    assert checkpoint.steps_of(tmp_path / "run") == [2] and evaluations() == []
    monkeypatch.setattr(train, "validate", validate)
    tiny.train(replace(settings, resume=True))  # which makes up for it
    assert evaluations() == [2, 4]
    # The checkpoint of step 2 knows of it: whoever resumes there does not evaluate once more.
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    tiny.train(replace(settings, resume=True))
    assert evaluations() == [2, 4]
    samples = (tmp_path / "run" / "samples.txt").read_text()
    assert samples.count("--- step 2\n") == samples.count("--- step 4\n") == 1


def train_on_a_slow_disk(settings):
    """So that most moments are moments of a save."""
    flush = storage.fsync

    def slow_flush(path):
        time.sleep(0.01)
        flush(path)

    storage.fsync = slow_flush
    tiny.train(settings)


def test_a_setting_younger_than_the_run_takes_its_default(tmp_path):
    storage.write_json(tmp_path / "config.json", {"train": {"seed": 7}})
    settings = replace(Settings(), resume=True, out_dir=str(tmp_path))
    origin = dict.fromkeys(asdict(settings), "default") | {"out_dir": "command line"}
    found = run_config.complete(settings, origin)
    assert found == replace(Settings(), seed=7, out_dir=str(tmp_path))
    storage.write_json(tmp_path / "config.json", {"train": {"sede": 7}})
    with pytest.raises(UserError, match=r"written by another version of this code: see sede"):
        run_config.complete(settings, origin)


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(data, tmp_path, rounds):
    """kill -9, saves included: the newest complete checkpoint loads, nothing stale stays, and in
    the end the weights are those of a run that nobody killed.
    """
    draw = random.Random(rounds)
    settings = settings_for(
        data, tmp_path / "run", max_iters=10**6, lr_decay_iters=10**4, save_interval=1,
        save_steps="log", eval_interval=7, optimizer="muon", dropout=0.1,
    )  # fmt: skip
    out, in_a_save = Path(settings.out_dir), 0
    for i in range(rounds):
        now = replace(settings, resume=bool(checkpoint.steps_of(out)))
        process = tiny.start(train_on_a_slow_disk, now)
        before = checkpoint.steps_of(out)
        while checkpoint.steps_of(out) == before and process.is_alive():
            time.sleep(0.01)  # it has begun to save
        time.sleep(draw.uniform(0, 0.5))
        while i == 0 and not [*out.glob("checkpoints/*.part")]:
            time.sleep(0.001)  # once in a save, whatever the machine
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        in_a_save += bool([*out.glob("checkpoints/*.part"), *out.glob("*.part")])
        newest = f"checkpoints/{checkpoint.steps_of(out)[-1]}"
        checkpoint.load_run(out, newest)
        checkpoint.read_optimizer_state(out, newest)
        checkpoint.load_run(out)
    steps = checkpoint.steps_of(out)[-1] + 2
    last = replace(settings, resume=True, max_iters=steps)
    assert tiny.call(tiny.train, last) == 0
    assert in_a_save > 0
    kept = {1 << n for n in range(20) if 1 << n <= steps}
    best = checkpoint.read_state(out)["best_step"]
    assert checkpoint.steps_of(out) == sorted(kept | {best, steps - 1, steps})
    names = {path.name for path in out.iterdir()}
    assert names == {"config.json", "tokenizer.json", "env.json", "metrics.jsonl", "loss.png",
                     "samples.txt", "latest", "best", "checkpoints"}  # fmt: skip
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "lr" in line] == list(range(1, steps + 1))
    whole = replace(settings, out_dir=str(tmp_path / "whole"), max_iters=steps, save_interval=0)
    assert tiny.call(tiny.train, whole) == 0
    assert contents(whole.out_dir) == contents(out)


def train_without_disk(settings):
    """Once step 2 is saved no file may grow past 20 kB, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))
    save = checkpoint.CheckpointSaver.save

    def fill_up(saver, *args):
        save(saver, *args)
        saver.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 10**6))

    checkpoint.CheckpointSaver.save = fill_up
    with checkpoint.full_disk_explained(settings.out_dir):
        tiny.train(settings)


def test_a_full_disk_keeps_the_last_checkpoint_and_says_so(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=6, save_interval=2)
    assert tiny.call(train_without_disk, settings, errors=tmp_path / "errors") == 1
    error = (tmp_path / "errors").read_text()
    assert "the disk is full" in error and "the checkpoint of step 2 stands" in error
    assert "Traceback" not in error
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
    checkpoint.load_run(tmp_path / "run")
    checkpoint.read_optimizer_state(tmp_path / "run")
    assert tiny.call(tiny.train, replace(settings, resume=True)) == 0


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    settings = settings_for(data, tmp_path_factory.mktemp("out") / "run", max_iters=1)
    tiny.train(settings)
    return settings


@pytest.mark.parametrize("name", [*checkpoint.CHECKPOINT_FILES, "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_is_refused_by_name(finished, tmp_path, name, damage):
    out = tmp_path / "run"
    shutil.copytree(finished.out_dir, out, symlinks=True)
    path = out / "latest" / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 16]) + whole[middle + 1 :]
    path.write_bytes(whole[:-5] if damage == "cut" else flipped)
    with pytest.raises(UserError, match=f"(?s){name}.*damaged|damaged.*{name}"):
        tiny.train(replace(finished, out_dir=str(out), resume=True))


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors"])
def test_a_malicious_pickle_is_refused(finished, tmp_path, name):
    out, mark = tmp_path / "run", tmp_path / "mark"
    shutil.copytree(finished.out_dir, out, symlinks=True)
    bomb = pickle.dumps(Bomb(mark))
    with open(out / "latest" / name, "wb") as file:
        file.write(bomb)
    torch.save({"model": Bomb(mark)}, out / "ckpt.pt")
    old = load_sums(out)[name]
    sums = out / "latest" / "SHA256SUMS"  # whoever plants a file can plant its sum
    sums.write_text(sums.read_text().replace(old, hashlib.sha256(bomb).hexdigest()))
    with pytest.raises(UserError, match=rf"{name} is no safetensors file"):
        tiny.train(replace(finished, out_dir=str(out), resume=True))
    assert not mark.exists()
    pickle.loads(bomb)
    assert mark.exists()  # it would have worked


def load_sums(out):
    lines = (out / "latest" / "SHA256SUMS").read_text().splitlines()
    return dict(line.split()[::-1] for line in lines)


def test_a_pickle_among_the_data_is_refused(data, tmp_path):
    copy, mark = tmp_path / "data", tmp_path / "mark"
    shutil.copytree(data, copy)
    path = copy / "train_stories.npy"
    np.save(path, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"][path.name]["bytes"] = path.stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"train_stories\.npy is damaged"):
        Dataset(copy, "train")
    assert not mark.exists()


# ---- numbers that go wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_nan_stops_the_run_with_the_weights_before_it(data, tmp_path, optimizer, where):
    """The host reads the verdict only every 10 steps: until then no step may move a weight."""
    same = {"optimizer": optimizer, "log_interval": 10, "lr_decay_iters": 30}
    calls, spoil = [], tiny.poison([3], where)

    def recorded(train_step, *args):
        calls.append(args)
        return spoil(train_step, *args)

    with tiny.each_step(recorded), pytest.raises(UserError) as error:
        tiny.train(settings_for(data, tmp_path / "run", max_iters=30, **same))
    assert str(error.value).startswith("step 3: the loss or the gradient is nan or inf")
    assert len(calls) == 10 and checkpoint.steps_of(tmp_path / "run") == []
    model, optimizers, *_ = calls[-1]
    tiny.train(settings_for(data, tmp_path / "good", max_iters=2, **same))
    weights = checkpoint.read_tensors(tmp_path / "good" / "latest", "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    expected = checkpoint.read_tensors(tmp_path / "good" / "latest", "state.safetensors")
    moments = checkpoint.optimizer_state_dict(model, optimizers)
    assert expected and all(torch.equal(moments[name], expected[name]) for name in expected)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_nan_is_skipped_and_counted_where_it_may(data, tmp_path, optimizer):
    settings = settings_for(data, tmp_path / "run", optimizer=optimizer, max_iters=6,
                            skip_nonfinite=True)  # fmt: skip
    before, spoil = [], tiny.poison([3], "loss")

    def recorded(train_step, model, *args):
        before.append([p.detach().clone() for p in model.parameters()])
        return spoil(train_step, model, *args)

    with tiny.each_step(recorded):
        assert tiny.train(settings)["skipped"] == 1
    same_weights = [
        all(torch.equal(a, b) for a, b in zip(before[i], before[i + 1], strict=True))
        for i in range(5)
    ]
    assert same_weights == [False, False, True, False, False]
    assert checkpoint.read_state(tmp_path / "run")["skipped"] == 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in lines and '"skipped": 1' in lines
    assert len(losses(tmp_path / "run")) == 5


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_float16_overflow_halves_the_scale_and_moves_no_weight(data, tmp_path, optimizer):
    settings = settings_for(data, tmp_path / "run", max_iters=9, dtype="float16",
                            optimizer=optimizer)  # fmt: skip
    # One parameter's gradient overflows, whichever optimizer has it: no weight of either moves.
    overflow, scalers = tiny.poison([1], "gradient"), []

    def recorded(train_step, model, optimizers, scaler, *args):
        args = (model, optimizers, scaler, *args)
        if scalers:
            return train_step(*args)
        scalers.append(scaler)
        scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**20})
        before = [p.detach().clone() for p in model.parameters()]
        result = overflow(train_step, *args)
        for a, b in zip(before, model.parameters(), strict=True):
            assert torch.equal(a, b)
        return result

    with tiny.each_step(recorded):
        assert tiny.train(settings)["skipped"] == 0  # training goes on
    assert scalers[0].get_scale() < 2.0**20
    weights = checkpoint.read_tensors(tmp_path / "run" / "latest", "model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_nan_in_float16_is_no_overflow(data, tmp_path, optimizer, where):
    """At a scale of 1 the scaler has nothing left to halve."""
    settings = settings_for(data, tmp_path / "run", dtype="float16", optimizer=optimizer)
    spoil = tiny.poison([2], where)

    def unscaled(train_step, model, optimizers, scaler, *args):
        scaler.load_state_dict(scaler.state_dict() | {"scale": 1.0})
        return spoil(train_step, model, optimizers, scaler, *args)

    with tiny.each_step(unscaled), pytest.raises(UserError, match=r"^step 2: "):
        tiny.train(settings)


def test_a_step_never_waits_for_the_device(data, tmp_path, monkeypatch):
    """No .item(), .tolist() or bool() of a tensor: on a GPU each would empty the pipeline."""
    waits = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
                waits.append(func)
            return func(*args, **(kwargs or {}))

    def watched(train_step, *args):
        with Watch():
            loss, norm = train_step(*args)
            assert waits == []
            loss.item()
        return loss, norm

    monkeypatch.setattr(train, "validate", lambda *_: None)
    settings = settings_for(data, tmp_path / "run", attn="math", gradient_accumulation_steps=2)
    with tiny.each_step(watched):
        tiny.train(replace(settings, max_iters=1))
    assert len(waits) == 1
