"""Machines as they are: file systems that lack something, signals, lost terminals, other GPUs."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tiny import losses, settings_for

import configs
import train
from configs import ROOT, UserError
from nanostories import plotting, storage
from nanostories.training import checkpoint, device, model_settings, run_config

# ----------------------------------------------------------------------------------------------
# file systems


def fails(number):
    def function(*_, **__):
        raise OSError(number, os.strerror(number))

    return function


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    settings = settings_for(data, tmp_path_factory.mktemp("out") / "run", max_iters=2)
    tiny.train(settings)
    return settings


def copied(finished, folder, **changes):
    """The settings of a copy of the finished run; changes: of shutil.copytree."""
    shutil.copytree(finished.out_dir, folder, **({"symlinks": True} | changes))
    return replace(finished, out_dir=str(folder), resume=True, max_iters=3)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_symlinks_a_file_holds_the_step(data, tmp_path, monkeypatch, number):
    """As on exFAT and Google Drive."""
    monkeypatch.setattr(os, "symlink", fails(number))
    settings = settings_for(data, tmp_path / "run", max_iters=2, eval_interval=1)
    tiny.train(settings)
    tiny.train(replace(settings, resume=True, max_iters=3))
    out = tmp_path / "run"
    assert (out / "latest").read_text() == "3\n" and (out / "best").is_file()
    assert model_settings.newest_run(tmp_path) == str(out)
    for which, step in (("latest", 3), ("best", checkpoint.read_state(out)["best_step"])):
        assert checkpoint.load_run(out, which).provenance["step"] == step


def test_a_copy_with_links_followed_is_a_run(finished, tmp_path):
    settings = copied(finished, tmp_path / "run", symlinks=False)
    latest = tmp_path / "run" / "latest"
    assert not latest.is_symlink() and checkpoint.load_run(settings.out_dir)
    tiny.train(settings)
    assert latest.is_symlink() and checkpoint.load_run(settings.out_dir).provenance["step"] == 3


def test_a_real_latest_alone_is_no_place_for_a_new_run(finished, tmp_path):
    settings = copied(finished, tmp_path / "run", symlinks=False)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="holds a run already"):
        run_config.check(replace(settings, resume=False))
    tiny.train(settings)
    assert checkpoint.steps_of(settings.out_dir) == [3]


@pytest.mark.parametrize("left", [None, "checkpoints/77", "", "nonsense\n", "\udcff"])
def test_lost_or_dangling_links_give_the_newest_checkpoint(finished, tmp_path, left):
    settings = copied(finished, tmp_path / "run")
    for name in ("latest", "best"):
        (tmp_path / "run" / name).unlink()
        if left == "checkpoints/77":
            (tmp_path / "run" / name).symlink_to(left)
        elif left is not None:
            (tmp_path / "run" / name).write_bytes(os.fsencode(left))
    assert checkpoint.load_run(settings.out_dir).provenance["step"] == 2
    with pytest.raises(UserError, match="no checkpoint 'best' in"):
        checkpoint.load_run(settings.out_dir, "best")
    tiny.train(settings)  # puts them back
    assert checkpoint.load_run(settings.out_dir, "best").provenance["step"] in (2, 3)


def test_a_link_that_git_wrote_as_text(finished, tmp_path):
    settings = copied(finished, tmp_path / "run")
    (tmp_path / "run" / "best").unlink()
    (tmp_path / "run" / "best").write_text("checkpoints/2")
    assert checkpoint.load_run(settings.out_dir, "best").provenance["step"] == 2


def test_out_dir_may_not_be_a_dangling_link(tmp_path):
    (tmp_path / "run").symlink_to("nowhere")
    with pytest.raises(UserError, match="run' is no folder, or a link to one that is missing"):
        run_config.check_free(str(tmp_path / "run"))


def test_out_dir_is_utf8():
    with pytest.raises(UserError, match="is not UTF-8, which safetensors needs"):
        run_config.check_free("out/caf\udce9")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_what_cannot_be_flushed_is_written_all_the_same(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", fails(number))
    with storage.atomic_folder(tmp_path / "folder") as part:
        storage.write_json(part / "a.json", [1])
    assert storage.read_json(tmp_path / "folder" / "a.json") == [1]
    monkeypatch.setattr(os, "fsync", fails(errno.EIO))
    line = r"Input/output error: '.*full'"
    with pytest.raises(OSError, match=line), storage.atomic_folder(tmp_path / "full"):
        pass
    with pytest.raises(OSError, match=r"Input/output error: '.*b\.json'"):  # and says which file
        storage.write_json(tmp_path / "b.json", [1])


def test_a_name_that_is_no_utf8_comes_back_from_json(tmp_path):
    storage.write_json(tmp_path / "a.json", {"out_dir": "caf\udce9"})
    assert storage.read_json(tmp_path / "a.json") == {"out_dir": "caf\udce9"}


def test_a_safetensors_error_is_one_line():
    line = r"^'out/x' cannot be written: .*Read-only file system"
    with pytest.raises(UserError, match=line), checkpoint.full_disk_explained("out/x"):
        raise SafetensorError("I/O error: Read-only file system (os error 30)")


def test_all_who_may_read_the_folder_may_read_the_weights(tmp_path):
    with storage.atomic_folder(tmp_path / "5") as part:
        save_file({"w": torch.ones(1)}, part / "model.safetensors")
        (part / "state.json").write_text("{}")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "5").iterdir()}
    assert modes["model.safetensors"] == modes["state.json"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_read_is_not_called_damaged(finished, monkeypatch, number):
    """Its advice is to remove the checkpoint, which may be whole."""
    monkeypatch.setattr(checkpoint, "sha256", fails(number))
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        checkpoint.load_run(finished.out_dir)


@pytest.mark.parametrize("which", ["", ".", "..", "/etc", "checkpoints", "checkpoints/7"])
def test_another_folder_is_not_called_a_damaged_checkpoint(finished, which):
    line = re.escape(f"no checkpoint '{which}' in '{finished.out_dir}'; it has checkpoints/2")
    with pytest.raises(UserError, match=line):
        checkpoint.load_run(finished.out_dir, which)


@pytest.mark.parametrize("config", ["[]", "{}", '{"model": 5, "train": {}}', '{"train": []}', "3"])
def test_a_config_of_another_kind_is_one_line(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="was not written by this version"):
        checkpoint.read_config(tmp_path)


def test_lines_of_another_kind_in_the_log_are_left_out(finished, tmp_path):
    settings = copied(finished, tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('null\n{}\n[1]\n{"step": "x"}\n7\n')
    tiny.train(settings)
    assert [line["step"] for line in tiny.metrics(tmp_path / "run")] == [1, 2, 2, 3, 3]


# ----------------------------------------------------------------------------------------------
# errors in one line


def line_of(error, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as exit:
        configs.run(main)
    return exit.value.code


@pytest.mark.parametrize(
    "error, line",
    [
        (PermissionError(13, "Permission denied", "out/x"), "Permission denied: 'out/x'"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "y"), "the disk is full; free some space"),
        (OSError(28, "No space left on device", "z"), "the disk is full; free some space"),
        (ConnectionError("one\ntwo"), "one two"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_every_os_error_is_one_line(monkeypatch, capsys, error, line):
    monkeypatch.setattr(sys, "argv", ["/home/x/prepare.py"])
    code = line_of(error, capsys)
    assert code.startswith("prepare.py: ") and line in code and "\n" not in code
    assert str(error.filename or "") in code


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["prepare.py", "--debug", "--seed=1"])

    def main():
        assert sys.argv == ["prepare.py", "--seed=1"]
        raise PermissionError(13, "Permission denied", "out/x")

    with pytest.raises(PermissionError):
        configs.run(main)


def test_every_script_ends_in_run():
    scripts = [path for path in ROOT.glob("[!.]*.py")] + [*ROOT.glob("eval/**/*.py")]
    scripts += [*ROOT.glob("nanostories/**/*.py")]
    texts = {path: path.read_text() for path in scripts}
    ends = {path.name: text.splitlines()[-1].strip() for path, text in texts.items()
            if 'if __name__ == "__main__"' in text and path.name != "storybook.py"}  # fmt: skip
    assert len(ends) >= 18 and set(ends.values()) <= {"run(main)", "configs.run(main)"}


@pytest.mark.parametrize("lines", [3, 50_000])
@pytest.mark.parametrize("out, code", [("/dev/full", 1), (None, 0)])
def test_output_that_cannot_be_written(lines, out, code):
    text = f"import configs\nconfigs.run(lambda: print('a line of some length\\n' * {lines}))"
    command = [sys.executable, "-c", text]
    close = None if out else lambda: os.close(1)
    with open(out or os.devnull, "w") as stdout:
        done = subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True,
                              preexec_fn=close)  # fmt: skip
    assert done.returncode == code
    assert done.stderr.count("\n") == (1 if code else 0) and "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [(1,), (2,), (0, 1, 2)])
def test_closed_streams_take_nothing_from_files(tmp_path, closed):
    """Else the first file opened has number 1 or 2, and gets the lines that are printed."""
    text = f"""import configs, os, sys
def main():
    with open({str(tmp_path / "file")!r}, "wb") as file:
        print("out", sys.stdout.encoding), sys.stdin.read(), os.write(2, b"message"), tqdm(total=1)
        assert file.fileno() > 2
from tqdm import tqdm
configs.run(main)"""
    command, streams = [sys.executable, "-c", text], {"stdin": subprocess.DEVNULL}
    done = subprocess.run(command, cwd=ROOT, preexec_fn=lambda: list(map(os.close, closed)),
                          capture_output=True, **streams)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_bytes() == b""


def test_a_log_on_a_full_disk_fails_no_run(tmp_path):
    text = """import configs
from nanostories.training.distributed import print0
configs.run(lambda: [print0("step", i) for i in range(9)])"""
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, stdout=full,
                              stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": ""},
                              )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_run_starts_without_a_reader_of_its_settings(data, tmp_path):
    """Python writes each line at once in many containers, so `| head -1` is gone by the second."""
    run = [sys.executable, "train.py", f"--dataset={data}", f"--out_dir={tmp_path / 'run'}"]
    shape = ["--n_layer=1", "--n_head=1", "--n_embd=16", "--max_iters=1", "--device=cpu"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(run + shape, cwd=ROOT, stdout=full, stderr=subprocess.PIPE,
                              env=os.environ | {"PYTHONUNBUFFERED": "1"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert checkpoint.steps_of(tmp_path / "run") == [1]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_kill_leaves_no_half_of_a_folder(tmp_path, name):
    text = f"""import configs, os, prepare, signal
from nanostories.storage import atomic_folder
def killed(_):
    with atomic_folder({str(tmp_path / "data")!r}):
        os.kill(os.getpid(), signal.{name})
prepare.prepare = killed
configs.run(prepare.main)"""
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True)
    assert done.returncode == 128 + getattr(signal, name) and not [*tmp_path.iterdir()]


def test_errors_command_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sample.py"])
    assert (
        line_of(UserError("no run in '\x1b[31mout'"), capsys)
        == "sample.py: no run in '\ufffd[31mout'"
    )


# ----------------------------------------------------------------------------------------------
# plots


@pytest.mark.parametrize("name", ["cost $5", "$x^$", "$\\frac$", "a_b^c"])
def test_a_name_is_no_formula(finished, tmp_path, capsys, name):
    settings = replace(finished, out_dir=str(tmp_path / name))
    tiny.train(settings)
    assert capsys.readouterr().err == "" and (tmp_path / name / "loss.png").stat().st_size


def test_a_logarithmic_scale_keeps_its_powers(tmp_path):
    with plotting.plot_to(tmp_path / "a.png") as (_, axes):
        axes.plot([1, 1000], [1, 2])
        axes.set(xscale="log", title="cost $5")
    labels = [label for label in axes.get_xticklabels() if label.get_text()]
    assert labels and all(label.get_parse_math() for label in labels)
    assert not axes.title.get_parse_math()


def test_a_full_disk_for_a_plot_ends_no_run(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails(errno.ENOSPC))
    tiny.train(settings_for(data, tmp_path / "run", max_iters=2))
    assert checkpoint.steps_of(tmp_path / "run") == [2]
    note = capsys.readouterr().err
    assert note.startswith("note: no ") and "loss.png: OSError" in note and note.count("\n") == 1


# ----------------------------------------------------------------------------------------------
# evaluations


def killed_in_the_evaluation(settings):
    train.validate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    tiny.train(settings)


def test_a_kill_in_an_evaluation_costs_nothing(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=5, save_steps="log", dropout=0.1)
    assert tiny.call(killed_in_the_evaluation, settings) == -signal.SIGKILL
    out = tmp_path / "run"
    assert checkpoint.steps_of(out)[-1] == 5
    weights = (out / "latest" / "model.safetensors").read_bytes()
    tiny.train(replace(settings, resume=True))
    state, lines = checkpoint.read_state(out), tiny.metrics(out)
    assert state["last_evaluation"] == state["best_step"] == 5 and len(losses(out)) == 5
    assert state["best"] == [line["val_loss"] for line in lines if "val_loss" in line][-1]
    assert state["kept_steps"] == [1, 2, 4]
    assert (out / "latest" / "model.safetensors").read_bytes() == weights
    assert not [*(out / "checkpoints").glob("*.part"), *(out / "checkpoints").glob(".*")]
    tiny.train(replace(settings, resume=True))  # and knows that it is done
    assert tiny.metrics(out) == lines


def test_a_kill_between_the_two_renames_of_a_new_state(finished, tmp_path):
    settings = copied(finished, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    (folder / "2").rename(folder / ".2.4711.old")
    tiny.train(settings)
    assert checkpoint.steps_of(settings.out_dir) == [2, 3]
    assert sorted(os.listdir(folder)) == ["2", "3"]


# ----------------------------------------------------------------------------------------------
# signals


def signals_at_step_2(settings, numbers):
    """Train, with signals in the middle of step 2, and another 2.2 seconds later for each 0."""

    def signalled(train_step, model, optimizers, scaler, guard, batches, step, *rest):
        for number in numbers if step == 1 else ():
            if number:
                os.kill(os.getpid(), number)
            time.sleep(0.01 if number else 2.2)
        return train_step(model, optimizers, scaler, guard, batches, step, *rest)

    with tiny.each_step(signalled):
        tiny.train(settings)


HUP, INT, TERM, USR1 = signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1


@pytest.mark.parametrize(
    "numbers, code",
    [
        ([HUP], 0),
        ([USR1], 0),
        ([TERM, TERM], 0),  # torchrun, timeout
        ([TERM, HUP], 0),  # systemd
        ([INT, TERM], 0),  # a study's Ctrl-C
        ([INT, INT], 0),  # 10 ms apart: of a wrapper that passes Ctrl-C on
        ([TERM, 0, TERM], 128 + TERM),
        ([USR1, 0, INT], 128 + INT),
    ],
)
def test_signals_save_once_and_end_at_a_later_second(data, tmp_path, numbers, code):
    settings = settings_for(data, tmp_path / "run")
    assert tiny.call(signals_at_step_2, settings, numbers) == code
    assert checkpoint.steps_of(settings.out_dir) == ([] if code else [2])


def without_a_terminal(settings):
    """Train under nohup, whose SIGHUP is ignored."""
    signal.signal(HUP, signal.SIG_IGN)
    signals_at_step_2(settings, [HUP])


def test_nohup_goes_on(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=4)
    assert tiny.call(without_a_terminal, settings) == 0
    assert checkpoint.steps_of(settings.out_dir) == [4]


def with_a_broken_output(settings):
    """Train with an output whose reader goes away in step 2, and so do those of its errors."""
    reader, writer = os.pipe()
    os.dup2(writer, 1), os.close(writer)
    sys.stdout = os.fdopen(1, "w")

    def cut(train_step, model, optimizers, scaler, guard, batches, step, *rest):
        if step == 1:
            os.close(reader)
            os.dup2(1, 2)
        return train_step(model, optimizers, scaler, guard, batches, step, *rest)

    with tiny.each_step(cut):
        tiny.train(settings)


def test_a_lost_output_costs_no_step(data, tmp_path):
    """As `train.py | tee log` has at Ctrl-C, or a terminal that was closed."""
    settings = settings_for(data, tmp_path / "run", max_iters=4)
    assert tiny.call(with_a_broken_output, settings) == 0  # nothing is lost but lines
    assert checkpoint.steps_of(settings.out_dir) == [4]


def slow_steps(settings):
    def slow(train_step, *args):
        time.sleep(0.05)
        return train_step(*args)

    with tiny.each_step(slow):
        tiny.train(settings)


def test_suspended_time_is_no_training_time(data, tmp_path):
    settings = settings_for(data, tmp_path / "run", max_iters=20)
    process = tiny.start(slow_steps, settings)
    log = tmp_path / "run" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") > 5):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(3)
    os.kill(process.pid, signal.SIGCONT)
    process.join(60)
    assert process.exitcode == 0
    steps = [line for line in tiny.metrics(tmp_path / "run") if "loss" in line]
    seconds = [b["seconds"] - a["seconds"] for a, b in pairwise(steps)]
    assert max(seconds) < 3 and all(line["tok_s"] < 1e6 for line in steps)


# ----------------------------------------------------------------------------------------------
# other machines


@pytest.mark.parametrize(
    "name, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("NVIDIA H200", 989), ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", None), ("NVIDIA H800", None), ("NVIDIA B200", 2250),
        ("NVIDIA GB200", None), ("NVIDIA A100-SXM4-40GB", 312), ("A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA A10", 125), ("NVIDIA A10G", None), ("NVIDIA A1000 Laptop GPU", None),
        ("NVIDIA A40", 150), ("NVIDIA RTX A4000", None), ("NVIDIA L4", 121), ("NVIDIA L40", None),
        ("NVIDIA L40S", 362), ("NVIDIA RTX A6000", 155), ("NVIDIA RTX 6000 Ada Generation", None),
        ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 3090 Ti", None), ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-16GB", 112), ("Tesla V100S-PCIE-32GB", None), ("Tesla T4", 65),
        ("NVIDIA T400", None), ("NVIDIA T4G", None), ("NVIDIA T1000", None), ("Quadro T4", None),
    ],
)  # fmt: skip
def test_a_gpu_has_its_own_peak_or_none(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert device.peak_flops(SimpleNamespace(type="cuda")) == (peak and peak * 1e12)


WITHOUT_POSIX = """
import os, pathlib, signal, sys, filelock, torch
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGUSR1", "SIGCONT", "SIGKILL", "SIGPIPE"):
    delattr(signal, name)
for name in ("pread", "sched_getaffinity", "sched_setaffinity", "geteuid"):
    delattr(os, name)
import train, reward, sample, prepare, synonyms, nanostories.training.export
for path in pathlib.Path("eval").glob("*.py"):
    __import__(f"eval.{path.stem}")
from configs import UserError
from eval import study
from eval.llm.client import ReplyFile
from nanostories.training.distributed import StopSignal
with StopSignal() as stop:
    signal.raise_signal(signal.SIGTERM)
assert stop.received
for function, word in ((lambda: study.check(study.Settings()), "study"),
                       (lambda: ReplyFile("x"), "judge")):
    try:
        function()
        raise AssertionError(word)
    except UserError as error:
        assert str(error) == f"a {word} does not run on Windows itself: use WSL 2 there"
"""


def test_windows_runs_a_script_or_names_wsl():
    subprocess.run([sys.executable, "-c", WITHOUT_POSIX], cwd=ROOT, check=True)


def test_windows(monkeypatch):
    """Its C library cannot be asked by no name, and it does not tell its memory so."""

    def loaded(name):
        raise TypeError("argument of type 'NoneType' is not iterable")

    monkeypatch.setattr(device.ctypes, "CDLL", loaded)
    monkeypatch.delattr(os, "sysconf")
    assert device.memory_of(device.pick_device("cpu")) == float("inf")
