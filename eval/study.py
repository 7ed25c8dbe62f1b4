"""
The whole study in one command: a grid of models, every evaluation that applies, and the report.

    python -m eval.study configs/study_small.py                  # 55 minutes on two cores of a CPU
    python -m eval.study configs/study_small.py --dry_run        # its commands, and what is done
    python -m eval.study configs/study_paper.py --judge=gpt-4o   # a GPU, and a judge's grades

The config has the recipe of train.py and what is studied (plan.py says which commands that is).
They run `jobs` at a time, each on cores of its own, and what each one says is in
out/<study>/logs. Whatever has been made by the very same command is kept: stopped or killed at any
point, a second call does only what is missing, and trainings go on from their checkpoints. One that
fails does not stop the others. At the end stands out/<study>/report.html, see eval.report.
"""

import contextlib
import fcntl
import json
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlsplit

from configs import ROOT, UserError, declared, load, read_file, run
from eval.llm import endpoint
from eval.plan import plan, sizes
from nanostories import storage
from nanostories.storage import sha256 as file_sha256
from nanostories.text import wordnet
from nanostories.training import checkpoint

DONE, FAILED, LEFT = "done", "failed", "left"  # what has become of a piece


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # folder of the study; default out/<name of the config file>
    # the data
    source: str = "tinystories"  # stories, any source of prepare.py
    val_source: str = ""  # the held-out ones; default: the data set's own
    instruct_source: str = ""  # Instruct records; default: made of source
    instruct_val_source: str = ""  # the held-out ones
    tokenizer: str = "gpt2"  # as of prepare.py: gpt2, gpt2-10k, bpe, bytes, or a path
    vocab_size: int = 4096  # of bpe, <|endoftext|> included
    dataset: str = ""  # folder of tokens to make; default data/<name of the study>
    # the models: width-layers-heads, with commas
    models: str = "64-2-4"  # the grid
    seeds: int = 3  # runs of each
    heads: str = ""  # further ones, for the table of heads
    syn: str = ""  # trained on stories with synonyms, too
    instructed: str = ""  # trained on instructions, too
    rewarded: str = ""  # taught by reward, too
    diverse: str = ""  # looked at for what they copy
    inside: str = ""  # looked into: heads and neurons
    rivals: str = ""  # published models that are asked the same: gpt2, hub:owner/name
    options: str = ""  # lines "eval.diversity: --prompts=30": what else to tell a script
    # the judge, see eval.judge
    judge: str = ""  # the model that grades, as its server calls it; none: no grades
    base_url: str = "https://api.openai.com/v1"  # the server; its key is $JUDGE_API_KEY
    # the machine
    jobs: int = 0  # commands at a time; 0: a core each, on a GPU one
    device: str = "auto"  # cpu, cuda, mps; auto takes the best there is
    dry_run: bool = False  # print the commands and what is done of them; run nothing


# ----------------------------------------------------------------------------------------------
# what is done


def key_of(piece, pieces):
    """A hash of a Piece's command and of those of all that it needs."""
    needs = [key_of(pieces[name], pieces) for name in piece.needs]
    return sha256(json.dumps([piece.command, needs]).encode()).hexdigest()[:16]


def digest(proof):
    """The sha256 of a proof that is a file; "" of a folder, None where there is none."""
    path = ROOT / proof
    return file_sha256(path) if path.is_file() else "" if path.exists() else None


class Record:
    """
    out/<study>/study.json: {piece: what became of it, by which command}, written at each change.
    Attributes: pieces, keys ({name: key_of}), status ({name: DONE, FAILED or LEFT}), sums ({name:
    digest of its proof}), others (rows of pieces that are not planned this time, kept).
    """

    def __init__(self, settings, pieces):
        self.path, self.pieces = Path(settings.out_dir) / "study.json", pieces
        self.facts = {name: value for name, value in vars(settings).items() if name != "dry_run"}
        self.keys = {name: key_of(piece, pieces) for name, piece in pieces.items()}
        before = self.read()
        self.others = [row for name, row in before.items() if name not in pieces]
        self.status, self.sums = {}, {}
        for name, piece in pieces.items():
            row = before.get(name, {})
            self.refuse(piece, row.get("key"))
            self.sums[name] = digest(piece.proof)
            same = row.get("key") == self.keys[name] and row.get("sha256") == self.sums[name]
            made = same and row["status"] == DONE and self.sums[name] is not None
            self.status[name] = DONE if made else LEFT

    def read(self):
        """{name: row} of the file, {} where there is none."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            return {row["name"]: row for row in [*found["pieces"], *found["others"]]}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{self.path} is damaged: remove it and the runs beside it, or name another "
                "--out_dir"
            ) from None

    def refuse(self, piece, key):
        """Raise UserError where a run is there that another command has begun."""
        if piece.run and checkpoint.steps_of(piece.run) and key != self.keys[piece.name]:
            raise UserError(
                f"'{piece.run}' was made with other settings: remove it, or name another --out_dir"
            )

    def set(self, name, status):
        """Note what has become of a piece."""
        self.status[name], self.sums[name] = status, digest(self.pieces[name].proof)
        self.write()

    def write(self):
        """study.json, in one go."""
        rows = [
            {"name": name, "command": list(piece.command), "proof": piece.proof,
             "needs": list(piece.needs), "run": piece.run, "key": self.keys[name],
             "status": self.status[name], "sha256": self.sums[name]}
            for name, piece in self.pieces.items()
        ]  # fmt: skip
        found = {"settings": self.facts, "pieces": rows, "others": self.others}
        storage.write_json(self.path, found)

    def ready(self, started):
        """Names of pieces that can start, those first on which the most depends."""
        ahead = {}
        for name, piece in reversed(self.pieces.items()):  # what needs a piece stands behind it
            after = [ahead[x] for x, other in self.pieces.items() if name in other.needs]
            ahead[name] = piece.weight + max(after, default=0.0)
        can = [
            name for name, piece in self.pieces.items()
            if self.status[name] == LEFT and name not in started
            and all(self.status[need] == DONE for need in piece.needs)
        ]  # fmt: skip
        return sorted(can, key=lambda name: -ahead[name])


# ----------------------------------------------------------------------------------------------
# running


def slots(jobs):
    """A set of cores for each of the jobs, as even as can be; None where there are too few."""
    if not hasattr(os, "sched_setaffinity"):  # a Mac
        return [None] * jobs
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        return [None] * jobs
    return [set(cores[i::jobs]) for i in range(jobs)]


class Runner:
    """Runs what is left of a study."""

    def __init__(self, settings, record, jobs, lock):
        self.settings, self.record, self.lock = settings, record, lock
        self.slots, self.jobs = queue.SimpleQueue(), jobs
        for slot in slots(jobs):
            self.slots.put(slot)
        self.logs = Path(settings.out_dir) / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.running, self.guard, self.asked = set(), threading.RLock(), False
        self.spent = self.worked = 0.0  # seconds of the pieces that ended, and their weights

    def one(self, piece):
        """Run a Piece to its end; whether it did what it should."""
        slot, begun = self.slots.get(), time.monotonic()
        try:
            return self.call(piece, slot)
        finally:
            self.slots.put(slot)
            with self.guard:
                self.spent += time.monotonic() - begun
                self.worked += piece.weight

    def call(self, piece, slot):
        """The same, on the cores of a slot."""
        words, env, log = list(piece.command), dict(os.environ), self.log_of(piece.name)
        if piece.run and checkpoint.steps_of(piece.run):
            words = [words[0], "--resume", f"--out_dir={piece.run}"]
        words += self.where(words)
        if slot is not None:
            os.sched_setaffinity(0, slot)  # of this thread, and of what it starts
            env["OMP_NUM_THREADS"] = str(len(slot))
        with open(log, "wb") as out:
            with self.guard:
                if self.asked:
                    return False
                process = subprocess.Popen(
                    [sys.executable, *words], cwd=ROOT, env=env, stdout=out, stderr=out,
                    start_new_session=True, pass_fds=(self.lock.fileno(),),
                )  # fmt: skip
                self.running.add(process)
            code = process.wait()
            with self.guard:
                self.running.discard(process)
        # A training that was asked to stop has saved, and ends well; it has not come to its end.
        whole = not piece.run or b"\ndone with step " in log.read_bytes()
        return code == 0 and whole and (ROOT / piece.proof).exists()

    def log_of(self, name):
        """The file with what a piece has said."""
        return self.logs / f"{name.replace('/', '-').replace(' ', '-')}.log"

    def where(self, words):
        """The words that name the device, for a script that has one."""
        device = self.settings.device
        path = ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0])
        known = device != "auto" and path.is_file() and "device" in declared(path)
        return [f"--device={device}"] if known else []

    def stop(self, number, _frame):
        """A signal: once, what runs may end well; twice, it is killed."""
        with self.guard:  # of a thread's own: a second signal may come within the first one's
            how = signal.SIGKILL if self.asked else signal.SIGTERM
            self.asked = True
            os.write(2, b"\nstopping; trainings save what they have first\n")
            for process in self.running:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(how)

    def run(self):
        """All pieces that are left, or until asked to stop."""
        record, started, flying = self.record, set(), {}
        before = {n: signal.signal(n, self.stop) for n in (signal.SIGINT, signal.SIGTERM)}
        with ThreadPoolExecutor(self.jobs) as pool:
            while not self.asked:
                for name in record.ready(started)[: self.jobs - len(flying)]:
                    started.add(name)
                    flying[pool.submit(self.one, record.pieces[name])] = name
                if not flying:
                    break
                for future in wait(flying, timeout=0.5, return_when=FIRST_COMPLETED)[0]:
                    self.ended(flying.pop(future), future)
            for future, name in flying.items():
                self.ended(name, future)
        for number, handler in before.items():
            signal.signal(number, handler)
        if self.asked:
            raise UserError("stopped; the same command goes on")

    def ended(self, name, future):
        """Note what became of a piece, and say so. What was stopped is left for the next call."""
        error = future.exception()
        if error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        made = not error and future.result()
        if made or not self.asked:
            self.record.set(name, DONE if made else FAILED)
            self.say(name)

    def say(self, name):
        """A line of progress, as a piece ends."""
        status, left = self.record.status, []
        for x, piece in self.record.pieces.items():  # what needs a piece stands behind it
            if status[x] == LEFT and all(status[y] == DONE or y in left for y in piece.needs):
                left.append(x)
        pace = self.spent / self.worked / self.jobs
        weight = sum(self.record.pieces[x].weight for x in left)
        eta = timedelta(seconds=round(weight * pace))
        what = "" if status[name] == DONE else f" FAILED: see {self.log_of(name)}"
        print(f"[{len(status) - len(left)}/{len(status)}] {name}{what} | about {eta} left",
              flush=True)  # fmt: skip


# ----------------------------------------------------------------------------------------------
# the command


def complete(settings, argv):
    """(the settings, with what was left open filled in; the recipe: train.py's settings)."""
    files, before = [], ""
    for word in argv:  # a bare word, and no setting's value
        free = "=" in before or not before.startswith("--") or before == "--dry_run"
        if word.endswith(".py") and not word.startswith("--") and free:
            files.append(word)
        before = word
    if not files:
        raise UserError("name a study: configs/study_small.py")
    name = Path(files[-1]).stem
    recipe, known = {}, declared(ROOT / "train.py")
    for path in files:
        recipe |= {key: value for key, value in read_file(path).items() if key in known}
    out = settings.out_dir or f"out/{name}"
    data = settings.dataset or f"data/{Path(out).name}"
    return replace(settings, out_dir=out, dataset=data), recipe


def check(settings):
    """Raise UserError for settings that cannot be."""
    if settings.seeds < 1 or settings.jobs < 0:
        raise UserError("seeds must be at least 1, jobs not negative")
    grid = sizes(settings.models, "models")
    if not grid:
        raise UserError("name the models of the grid: --models=64-2-4,128-2-4")
    for what in ("syn", "instructed", "rewarded", "diverse", "inside"):
        for size in sizes(getattr(settings, what), what):
            if size not in grid:
                raise UserError(f"{what}: {size} is none of the models")
    if settings.syn:  # an hour later is no time to say that there are no synonyms
        wordnet.pos_tags(["dog"]), wordnet.reader()
    if settings.judge:
        endpoint.check_url(settings.base_url)
        if not endpoint.key_of_environment() and not is_local(settings.base_url):
            raise UserError(f"the judge's key is to be in ${endpoint.KEY}")


def is_local(url):
    """Whether a server is this machine's: most of these want no key."""
    return endpoint.is_loopback(urlsplit(url).hostname)


def jobs_of(settings):
    """How many commands run at a time."""
    if settings.jobs:
        return settings.jobs
    from nanostories.dataset.workers import cpu_count
    from nanostories.training.device import pick_device

    return 1 if pick_device(settings.device).type != "cpu" else cpu_count()


@contextlib.contextmanager
def alone(folder):
    """
    Within it, no other study runs in this folder: gives the locked file. What a study has started
    holds on to the lock, too, until it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"a study runs in '{folder}', or what a killed one had started has not ended yet: "
                "wait for it"
            ) from None
        yield lock


def main():
    settings, _ = load(Settings)
    settings, recipe = complete(settings, sys.argv[1:])
    check(settings)
    pieces = plan(settings, recipe)
    if settings.dry_run:
        record = Record(settings, pieces)
        for name, piece in pieces.items():
            print(f"{record.status[name]:8} python {shlex.join(piece.command)}")
        return
    with alone(Path(settings.out_dir)) as lock:
        record, jobs = Record(settings, pieces), jobs_of(settings)
        record.write()
        print(f"{len(pieces)} pieces, {list(record.status.values()).count(DONE)} of them done, "
              f"{jobs} at a time")  # fmt: skip
        Runner(settings, record, jobs, lock).run()
        failed = [name for name, status in record.status.items() if status == FAILED]
        waiting = [name for name, status in record.status.items() if status == LEFT]
        report = [sys.executable, "-m", "eval.report", settings.out_dir]
        if subprocess.run(report, cwd=ROOT).returncode:
            raise UserError("all is done but the report")
    if failed:
        raise UserError(
            f"{len(failed)} pieces failed ({', '.join(failed)}), {len(waiting)} wait for them; "
            "the same command tries again"
        )


if __name__ == "__main__":
    run(main)
