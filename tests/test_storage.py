"""One writer at a time: the lock of a folder, and who takes it."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from tiny import settings_for

import prepare
import train
from configs import ROOT, UserError
from eval import harness
from nanostories import storage
from nanostories.training import checkpoint, run_config
from nanostories.training.distributed import barrier

# ---- the lock ----------------------------------------------------------------------------------

HOLD = """
import os, subprocess, sys, time
from nanostories import storage
with storage.lock(sys.argv[1]) as lock:
    if sys.argv[2] == "child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3)"], pass_fds=lock)
    if sys.argv[2] != "fork" or not os.fork():
        print("held", flush=True)  # by a worker that forgets to end, once it runs: it let go first
    time.sleep(60)
"""


@contextlib.contextmanager
def holder(path, *words):
    """A process that holds the lock of a path."""
    call = [sys.executable, "-c", HOLD, str(path), *(words or ["alone"])]
    process = subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def is_locked(path):
    try:
        with storage.lock(path):
            return False
    except UserError:
        return True


def test_a_lock_names_its_folder_and_its_holder(tmp_path):
    (tmp_path / "link").symlink_to("run")
    with holder(tmp_path / "run") as process:
        for name in ("run", "link", "run/../run"):  # whatever it is called
            with pytest.raises(UserError) as error, storage.lock(tmp_path / name):
                pass
            assert f"writing '{tmp_path / name}' (process {process.pid} on " in str(error.value)
            assert "\n" not in str(error.value)
        assert not is_locked(tmp_path / "run2")


@pytest.mark.parametrize("words", ["alone", "fork"])
def test_a_killed_process_holds_no_lock(words, tmp_path):
    """Not even one whose forked worker lives on."""
    with holder(tmp_path / "run", words) as process:
        assert is_locked(tmp_path / "run")
        process.kill()
        process.wait()
        assert not is_locked(tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_command_that_inherits_it_holds_the_lock_too(tmp_path):
    with holder(tmp_path / "run", "child") as process:
        process.kill()
        process.wait()
        assert is_locked(tmp_path / "run")
        end = time.monotonic() + 30
        while is_locked(tmp_path / "run"):
            assert time.monotonic() < end


def test_a_forked_process_that_ends_leaves_the_lock(tmp_path):
    with storage.lock(tmp_path / "run"):
        if not (pid := os.fork()):
            with contextlib.suppress(BaseException), storage.lock(tmp_path / "other"):
                raise SystemExit
            os._exit(0)
        os.waitpid(pid, 0)
        assert is_locked(tmp_path / "run")


def test_a_folder_may_be_replaced_removed_and_copied_while_it_is_locked(tmp_path):
    out = tmp_path / "new" / "data"
    with storage.lock(out):
        with storage.atomic_folder(out) as part:
            (part / "a").write_text("a")
        assert is_locked(out)
        shutil.copytree(out, tmp_path / "copy")
        assert [path.name for path in out.iterdir()] == ["a"]
        assert not is_locked(tmp_path / "copy")
        shutil.rmtree(out)
        assert is_locked(out)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_waiting_for_the_other_command(tmp_path, capsys):
    with holder(tmp_path / "run", "child") as process:
        process.kill()
        process.wait()
        with storage.lock(tmp_path / "run", wait=True):
            assert f"(process {process.pid} on " in capsys.readouterr().out


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks(number, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with storage.lock(tmp_path / "run") as handles:
        assert handles == []
    note = capsys.readouterr().err
    assert note.count("\n") == 1 and f"note: '{tmp_path / 'run'}' is not locked" in note
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_block_is_its_own(tmp_path, capsys):
    with pytest.raises(OSError, match="full"), storage.lock(tmp_path / "new" / "run"):
        raise OSError("full")
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().err


# ---- who takes it ------------------------------------------------------------------------------


def command(main, *words):
    """Call a script's main with these words."""
    sys.argv = ["x.py", *words]
    main()


def words_of(settings):
    return [f"--{name}={value}" for name, value in vars(settings).items() if value is not None]


@contextlib.contextmanager
def live_run(data, out):
    """A training that goes on for ever, with at least one checkpoint."""
    settings = settings_for(data, out, max_iters=10**6, lr_decay_iters=10**4, save_interval=1)
    process = tiny.start(command, train.main, *words_of(settings))
    try:
        while not checkpoint.steps_of(out) and process.is_alive():
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.join()


def refused(errors):
    """Whether the errors are that one line, from each process."""
    lines = errors.read_text().splitlines()
    return bool(lines) and all("another command is writing" in line for line in lines)


def test_a_live_run_is_trained_by_nobody_else(data, tmp_path):
    """Neither anew, though its folder was removed, nor with --resume; until it is killed."""
    out, errors = tmp_path / "run", tmp_path / "errors"
    new = words_of(settings_for(data, out, max_iters=2))
    with live_run(data, out) as process:
        resume = ["--resume", f"--out_dir={out}", "--max_iters=3"]
        for words in (resume, new):
            assert tiny.call(command, train.main, *words, errors=errors) == 1
        assert refused(errors) and "Traceback" not in errors.read_text()
        errors.unlink()
        os.kill(process.pid, signal.SIGSTOP)
        while "State:\tT" not in Path(f"/proc/{process.pid}/status").read_text():
            time.sleep(0.02)  # it may be in the middle of a write
        shutil.rmtree(out)  # by somebody who thinks that it has ended
        assert tiny.call(command, train.main, *new, errors=errors) == 1
        process.kill()
        process.join()
        assert refused(errors) and not out.exists()
    assert tiny.call(command, train.main, *new) == 0
    assert tiny.call(command, train.main, *resume) == 0
    assert not list(tmp_path.glob(".*"))


def hold_run(out):
    with run_config.only_writer(out):
        assert is_locked(out)
        barrier()


def test_ranks_share_the_lock_and_are_refused_together(tmp_path):
    out, errors = tmp_path / "run", tmp_path / "errors"
    assert tiny.call_ranks(2, hold_run, out) == [0, 0]
    with storage.lock(out):
        assert tiny.call_ranks(2, hold_run, out, errors=errors) == [1, 1]
    assert len(errors.read_text().splitlines()) == 2 and refused(errors)


def test_two_commands_into_one_data_folder(tmp_path, monkeypatch, nltk_data):
    import synonyms

    (tmp_path / "a.txt").write_text("One day.<|endoftext|>Two days.<|endoftext|>It ended.")
    monkeypatch.chdir(tmp_path)
    words = ["--source=a.txt", "--val_source=a.txt", "--tokenizer=bytes", "--workers=1", "--out=x"]
    before = sorted(tmp_path.rglob("*"))
    for main in (prepare.main, synonyms.main):
        with storage.lock("x"), pytest.raises(UserError, match="is writing 'x'"):
            monkeypatch.setattr(sys, "argv", ["x.py", *words])
            main()
        assert sorted(tmp_path.rglob("*")) == before


def write_many(out, number):
    for i in range(200):
        harness.write_result(out, "loss", {"x": [number] * 500}, [{"x": number, "i": i}] * 50)


def test_two_evaluations_of_one_run(tmp_path):
    """Both end well; the file of results, and that of lines beside it, are of the same one."""
    processes = [tiny.start(write_many, tmp_path, number) for number in (1, 2)]
    while any(process.is_alive() for process in processes):
        with contextlib.suppress(UserError):
            if (tmp_path / "eval" / "loss.json").exists():
                assert len(set(storage.read_json(tmp_path / "eval" / "loss.json")["x"])) == 1
    assert [process.exitcode for process in processes] == [0, 0]
    lines = (tmp_path / "eval" / "loss.jsonl").read_text().splitlines()
    numbers = {json.loads(line)["x"] for line in lines}
    assert numbers == set(storage.read_json(tmp_path / "eval" / "loss.json")["x"])
    assert sorted(path.name for path in Path(tmp_path, "eval").iterdir()) == [
        "loss.json", "loss.jsonl",
    ]  # fmt: skip


COUNT = """
import sys
from pathlib import Path
from nanostories import storage
folder, number = Path(sys.argv[1]), Path(sys.argv[1], "number")
for _ in range(60):
    with storage.lock(folder / "new" / "run", wait=True):
        number.write_text(str(int(number.read_text()) + 1))
"""


def test_each_of_many_has_the_lock_alone(tmp_path):
    """Though each removes its lock file, and the folder above that it made, as others wait."""
    (tmp_path / "number").write_text("0")
    call = [sys.executable, "-c", COUNT, str(tmp_path)]
    jobs = [subprocess.Popen(call, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [job.wait() for job in jobs] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "180"
