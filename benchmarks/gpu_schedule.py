"""Parts of a long check, run in order within a limit of time; the next call goes on with the rest.

    state = State("out/gpu", {"commit": "abc", "source": "def", "gpu": "H100"})
    waiting = run_parts(parts, state, deadline=time.monotonic() + 500)

A part is a few commands, each in a process of its own with its output in a file. What was done is
in state.json, written after every command: a call that is killed loses the command that ran, and a
training loses the steps since its last checkpoint.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanostories import storage

GRACE = 20  # seconds for a training to save, once it is to stop
DONE, FAILED, STARTED, MISSING = "done", "failed", "started", "missing"


@dataclass(frozen=True)
class Command:
    """A Python command."""

    log: str  # the file for its output, in the folder of its part
    words: tuple  # after the interpreter: a script, or -m and a module, and its settings
    run: str = ""  # of a training: its run folder; one that holds a checkpoint is resumed
    last: str = ""  # how the last line of its output begins, if all went well

    def words_now(self):
        if not self.started() or "--resume" in self.words:
            return self.words
        return (self.words[0], "--resume", f"--out_dir={self.run}")

    def started(self):
        """Whether it is a training with a checkpoint."""
        folders = Path(self.run).glob("checkpoints/*") if self.run else ()
        return any(folder.name.isdigit() for folder in folders)


@dataclass(frozen=True)
class Part:
    """Commands that belong together, run one after the other."""

    name: str  # and that of its folder
    seconds: float  # that it may take, of all calls together; then it failed
    commands: tuple  # of Command
    least: float = 0.0  # seconds to start it with, if it can be stopped; default: all of `seconds`
    problem: str = ""  # why it cannot run, in one line that says what to do

    def needed(self):
        """The seconds that must be left to start it."""
        return self.least or self.seconds

    def facts(self):
        """Its commands as they are recorded."""
        return [list(command.words) for command in self.commands]


class State:
    """What became of each part: {name: record}, in state.json of the folder `out`.

    version: of the code and of the GPU, a dict of str. A record has `status`, the part's `commands`
    and how many of them are `finished`, the `seconds` spent, the version that it ran with, and of a
    failure the last lines as `error`. settings: {name: value} for later calls."""

    def __init__(self, out, version):
        self.out, self.version = Path(out), version
        path = self.out / "state.json"
        facts = storage.read_json(path) if path.exists() else {}
        self.records, self.settings = facts.get("parts", {}), facts.get("settings", {})

    def write(self):
        facts = {"version": self.version, "settings": self.settings, "parts": self.records}
        storage.write_json(self.out / "state.json", facts)

    def status(self, part):
        """DONE, FAILED, STARTED or MISSING; None of a part that is still to begin."""
        record = self.records.get(part.name)
        if record and record["commands"] == part.facts():
            return record["status"]
        return MISSING if part.problem else None

    def is_current(self, part):
        """Whether its record is of these commands, this code and this GPU."""
        record = self.records.get(part.name, {})
        same_commands = record.get("commands") == part.facts()
        return same_commands and record["version"] == self.version

    def is_due(self, part, retry=False):
        """Whether it is to be run: not once it is done, and after a failure only with `retry`, or
        with other code or another GPU."""
        status = self.status(part)
        return status != DONE and (status != FAILED or retry or not self.is_current(part))

    def begin(self, part):
        """The record of a part that is run now. What was begun by other commands, other code or on
        another GPU is removed."""
        folder = self.out / part.name
        if not self.is_current(part):
            self.forget([part])
            self.records[part.name] = {"commands": part.facts(), "finished": 0, "seconds": 0.0}
        record = self.records[part.name]
        if record.get("status") == FAILED:
            record["seconds"] = 0.0
        record |= {"status": STARTED, "version": self.version, "error": ""}
        folder.mkdir(parents=True, exist_ok=True)
        self.write()
        return record

    def forget(self, parts):
        """Remove all that was done of these parts."""
        for part in parts:
            self.records.pop(part.name, None)
            self.write()
            shutil.rmtree(self.out / part.name, ignore_errors=True)


# ---- running -----------------------------------------------------------------------------------


def run_command(words, log, seconds, append=False, env=None, lock=(), grace=GRACE):
    """Run `python words`, its output to the file `log`; returns its exit status, or None if it was
    stopped after `seconds`: by SIGTERM, then SIGKILL `grace` seconds later. Nothing that it started
    is left running, however this ends. lock: descriptors that it holds, of storage.lock."""
    with open(log, "ab" if append else "wb") as out:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            env=os.environ | (env or {}), pass_fds=lock, start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait(grace)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def last_lines(log, count):
    """The last lines of a file that are not blank, a list of str of at most 200 characters."""
    lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    return [line[:200] for line in lines if line.strip()][-count:]


def run_part(part, state, deadline, env=None, lock=(), grace=GRACE):
    """Run what is left of a part until `deadline`, of time.monotonic; returns its status: DONE,
    FAILED, or STARTED where it was stopped before its end."""
    record, folder = state.begin(part), state.out / part.name
    for command in part.commands[record["finished"] :]:
        words, append = command.words_now(), command.started()
        print(f"--- {part.name}: python {shlex.join(words)}", flush=True)
        began, log = time.monotonic(), folder / command.log
        own_limit = part.seconds - record["seconds"]
        code = run_command(words, log, min(own_limit, deadline - began), append, env, lock, grace)
        spent = time.monotonic() - began
        record["seconds"] = round(record["seconds"] + spent, 1)
        lines = last_lines(log, 8)
        print("\n".join(lines[-3:]), flush=True)
        error, last = "", "".join(lines[-1:])
        if code is None and spent >= own_limit:
            error = f"not done in {part.seconds:.0f} s"
        elif code is None or (command.run and last.startswith("stopped after step ")):
            state.write()  # a training that something else stopped has exit status 0
            return STARTED
        elif code or not last.startswith(command.last):
            error = f"exit status {code}" if code else f"its last line is not '{command.last}'"
        if error:
            record |= {"status": FAILED, "error": "\n".join([f"{command.log}: {error}", *lines])}
            state.write()
            return FAILED
        record["finished"] += 1
        state.write()
    record["status"] = DONE
    state.write()
    return DONE


def run_parts(parts, state, deadline, retry=False, after_each: Callable = lambda: None, **options):
    """Run the parts that are due, in order, each if the time that it needs is left: a shorter one
    further on may run where the next one does not fit. after_each: called after each. options: of
    `run_part`. Returns the names of those for the next call."""
    waiting = []
    for part in parts:
        if not state.is_due(part, retry):
            continue
        if part.problem:
            print(f"--- {part.name} is left out: {part.problem}", flush=True)
        elif deadline - time.monotonic() < part.needed():
            waiting.append(part.name)
        else:
            status = run_part(part, state, deadline, **options)
            print(f"{part.name}: {status}, {state.records[part.name]['seconds']:.0f} s", flush=True)
            if status == STARTED:
                waiting.append(part.name)
            after_each()
    return waiting
