"""The whole study in one command: a grid of models, every evaluation that applies, and the report.

    python -m eval.study configs/study_small.py                  # an hour on two CPU cores
    python -m eval.study configs/study_small.py --dry_run        # its commands, and which are done
    python -m eval.study configs/study_paper.py --judge=gpt-4o   # a GPU, and a judge's grades
    python -m eval.study configs/study_paper.py --stage=released --minutes=25    # a part of it

The config holds train.py's recipe and what to study; study_jobs.py makes commands of it. They run
`jobs` at a time, each on CPU cores of its own, and write their logs to out/<study>/logs. A job is
done when its output file is there, made by the very same command: stopped or killed at any point,
a second call runs only what is missing, and trainings continue from their checkpoints. A job that
fails stops only those that need it. The result is out/<study>/report.html, see eval.report. A
config with `stages` (study_stages.py) runs one after the other, and each leaves a report.
"""

import math
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from configs import ROOT, UserError, declared, load, read_config_file, require_posix, run
from eval.llm import settings as judge_settings
from eval.reporting.study_jobs import plan_jobs, sizes
from eval.reporting.study_state import DONE, FAILED, PENDING, StudyState
from eval.study_estimate import h100_minutes, print_estimate, spent
from eval.study_stages import OF_THE_GRID, select_stages
from nanostories import storage
from nanostories.dataset.workers import cpu_count
from nanostories.text import wordnet
from nanostories.training import checkpoint
from nanostories.training.device import pick_device
from nanostories.training.distributed import StopSignal


@dataclass(frozen=True)
class Settings:
    out_dir: str = ""  # folder of the study; default out/<name of the config file>
    # the data
    source: str = "tinystories"  # training stories, any source of prepare.py
    val_source: str = ""  # validation stories; default: the data set's own
    instruct_source: str = ""  # Instruct records; default: made from source
    instruct_val_source: str = ""  # validation records
    hold_out: str = "words+summary"  # instructions that are never together in the data of `ood`
    v1_source: str = "tinystories"  # for `corpora`: stories of GPT-3.5 and GPT-4,
    v2_source: str = "tinystories-v2"  # and of GPT-4 alone
    tokenizer: str = "gpt2"  # as in prepare.py: gpt2, gpt2-10k, bpe, bytes, or a path
    vocab_size: int = 4096  # of bpe, <|endoftext|> included
    dataset: str = ""  # token folder to make; default data/<study> for out/<study>, else in out_dir
    # the models: width-layers-heads, separated by commas
    models: str = "64-2-4"  # the grid
    seeds: int = 3  # training runs of each
    heads: str = ""  # further models, for the table of attention heads
    # models of the grid that
    syn: str = ""  # are also trained on stories with synonyms
    instruct: str = ""  # are also trained on Instruct records
    ood: str = ""  # and on records where `hold_out` is never together
    architectures: str = ""  # are also trained as study_jobs.ARCHITECTURES,
    corpora: str = ""  # and on the other stories of study_jobs.CORPORA
    table1: str = ""  # are also trained by the student report's table 1
    reward: str = ""  # are also fine-tuned with reinforcement learning
    diversity: str = ""  # are searched for copies of training stories
    interpret: str = ""  # have their heads and neurons interpreted
    baselines: str = ""  # published models to evaluate too: gpt2, hub:owner/name
    options: str = ""  # lines "eval.diversity: --num_prompts=30": further settings of a script
    stages: str = ""  # lines "first models: 64-2-4": parts of the study, in the order to run them
    stage: str = ""  # the last stage to run; default: all of them
    # the judge, see eval.judge
    judge: str = ""  # the model that grades, as its server calls it; none: no grades
    base_url: str = "https://api.openai.com/v1"  # the server; its key is $JUDGE_API_KEY
    price_in: float = 0.0  # of a million tokens read by the judge
    price_out: float = 0.0  # of a million tokens written by it
    max_cost: float = 0.0  # most that all judging of the study may cost; 0: any amount
    # the machine
    jobs: int = 0  # commands to run at a time; 0: one per CPU core, on a GPU one
    device: str = "auto"  # cpu, cuda, mps; auto takes the best available
    minutes: float = 0.0  # stop after so many, as a signal does, and write the report; 0: no limit
    dry_run: bool = False  # print the commands and their status, the hours and the cost; run none


# ---- running -----------------------------------------------------------------------------------


def split_cores(jobs):
    """A set of CPU cores for each of the jobs; None each where there are too few, or on a Mac."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []
    if jobs > len(cores):
        return [None] * jobs
    return [set(cores[i::jobs]) for i in range(jobs)]


class Runner:
    """Runs the pending jobs of a study, `count` at a time. lock: of storage.lock, for them all.
    deadline: when to stop, a time of time.monotonic()."""

    def __init__(self, settings, state, count, lock, deadline=math.inf):
        self.settings, self.state, self.count, self.lock = settings, state, count, lock
        self.deadline = deadline
        self.logs = Path(settings.out_dir) / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.processes = {}  # {Popen: how many signals it was sent}
        # The first signal stops what runs, a second one kills it.
        self.stop = StopSignal("stopping; trainings save a checkpoint first", exits=False)
        self.seconds = self.weight = 0.0  # of the jobs that have ended

    def run(self):
        """Run all jobs that are pending; UserError if a signal stops it."""
        free_cores, started, running = split_cores(self.count), set(), {}
        with self.stop, ThreadPoolExecutor(self.count) as pool:
            while True:
                late = time.monotonic() > self.deadline and self.state.names(PENDING)
                if late and not self.stop.received:
                    signal.raise_signal(signal.SIGTERM)
                ready = [] if self.stop.received else self.state.ready(started)
                for name in ready:
                    # One judges at a time: they share a run's file of replies, and max_cost.
                    judging = any(self.is_judged(other) for other, *_ in running.values())
                    if not free_cores or (judging and self.is_judged(name)):
                        continue
                    started.add(name)
                    cores = free_cores.pop()
                    future = pool.submit(self.run_job, self.state.jobs[name], cores)
                    running[future] = name, cores, time.monotonic()
                if not running:
                    break
                ended, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                self.forward_signals()
                for future in ended:
                    name, cores, begin = running.pop(future)
                    free_cores.append(cores)
                    seconds = time.monotonic() - begin
                    self.state.rows[name]["seconds"] += seconds
                    self.seconds += seconds
                    self.weight += self.state.jobs[name].weight
                    self.record(name, future)
        if self.stop.received:
            left = len(self.state.names(PENDING))
            raise UserError(f"stopped with {left} jobs left; the same command continues")

    def forward_signals(self):
        """Send our signals on to the commands, each once."""
        for process, sent in list(self.processes.items()):
            if sent < self.stop.received:
                process.kill() if self.stop.received > 1 else process.terminate()
                self.processes[process] = self.stop.received

    def run_job(self, job, cores):
        """Run a Job to its end on a set of CPU cores; returns whether it has made its output."""
        words, env, log = list(job.command), dict(os.environ), self.log_of(job.name)
        if job.run and checkpoint.steps_of(job.run):
            words = [words[0], "--resume", f"--out_dir={job.run}"]
        if self.settings.device != "auto" and words[0] not in ("prepare.py", "synonyms.py"):
            words.append(f"--device={self.settings.device}")
        if cores is not None:
            os.sched_setaffinity(0, cores)  # of this thread, and so of the command it starts
            env["OMP_NUM_THREADS"] = str(len(cores))
        if self.settings.max_cost and self.is_judged(job.name):
            words += self.budget()
        with open(log, "wb") as out:
            process = subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, env=env, stdout=out, stderr=out,
                start_new_session=True, pass_fds=self.lock,
            )  # fmt: skip
            self.processes[process] = 0
            code = process.wait()
            del self.processes[process]
        # A training that a signal stopped has saved a checkpoint and exits with 0, unfinished.
        finished = not job.run or b"\ndone with step " in log.read_bytes()
        return code == 0 and finished and (ROOT / job.output).exists()

    def is_judged(self, name):
        return f"--judge={self.settings.judge}" in self.state.jobs[name].command

    def budget(self):
        """The settings that bound a job's judging by what is left of max_cost."""
        prices = [f"--{name}={getattr(self.settings, name)}" for name in ("price_in", "price_out")]
        left = self.settings.max_cost - spent(self.state.jobs.values(), self.settings)
        return [*prices, f"--max_cost={max(left, 1e-9)}"]  # 0 would be any amount

    def log_of(self, name):
        return self.logs / f"{name.replace('/', '-').replace(' ', '-')}.log"

    def record(self, name, future):
        """Record and print the status of a job that ended; one that was stopped stays pending."""
        error, state = future.exception(), self.state
        if error:
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
        done = not error and future.result()
        if self.stop.received and not done:
            return state.write()
        state.set(name, DONE if done else FAILED)
        left = state.names(PENDING)
        pace = self.seconds / self.weight / self.count
        eta = timedelta(seconds=round(pace * sum(state.jobs[x].weight for x in left)))
        failure = "" if done else f" FAILED: see {self.log_of(name)}"
        count = f"[{len(state.jobs) - len(left)}/{len(state.jobs)}]"
        print(f"{count} {name}{failure} | about {eta} left", flush=True)


# ---- the command -------------------------------------------------------------------------------


def complete_settings(settings, argv):
    """(settings with the default folders filled in, {name: value} of the configs' recipe)."""
    # A config file is a word that ends in .py and is not the value of the --setting before it.
    files = [
        word for before, word in pairwise(["", *argv])
        if word.endswith(".py") and not word.startswith("--")
        and ("=" in before or not before.startswith("--") or before == "--dry_run")
    ]  # fmt: skip
    if not files:
        raise UserError("name a study: configs/study_small.py")
    known, recipe = declared(ROOT / "train.py"), {}
    for path in files:
        recipe |= {k: v for k, v in read_config_file(path).items() if k in known}
    out_dir = settings.out_dir or f"out/{Path(files[-1]).stem}"
    in_out = Path(os.path.abspath(ROOT / out_dir)).parent == ROOT / "out"  # no two of one name
    own = f"data/{Path(out_dir).name}" if in_out else f"{out_dir}/data"
    return replace(settings, out_dir=out_dir, dataset=settings.dataset or own), recipe


def check(settings):
    """Raise UserError for settings that cannot be, before an hour of training is spent."""
    require_posix("a study")
    if settings.seeds < 1 or settings.jobs < 0:
        raise UserError("seeds must be at least 1, jobs 0 or more")
    grid = sizes(settings.models, "models")
    if not grid:
        raise UserError("name the models of the grid: --models=64-2-4,128-2-4")
    for name in OF_THE_GRID:
        for size in sizes(getattr(settings, name), name):
            if size not in grid:
                raise UserError(f"{name}: {size} is not one of the models")
    needs_words = settings.syn or settings.corpora
    if needs_words and not settings.dry_run:  # raise UserError if the word lists are missing
        wordnet.pos_tags(["dog"]), wordnet.reader()
    if settings.max_cost and not settings.price_in + settings.price_out:
        raise UserError("max_cost needs prices: --price_in and --price_out, per million tokens")
    if settings.judge:
        judge_settings.check_url(settings.base_url)
        local = judge_settings.is_loopback(urlsplit(settings.base_url).hostname)  # needs no key
        if not local and not judge_settings.api_key():
            raise UserError(f"set the judge's key in ${judge_settings.KEY_VARIABLE}")


def write_report(settings):
    report = [sys.executable, "-m", "eval.report", settings.out_dir]
    if subprocess.run(report, cwd=ROOT).returncode:
        raise UserError("the report failed")


def run_stages(plans, count, lock):
    """Run the plans of `main`, one after the other, each with a report; the last StudyState."""
    failed, minutes = [], next(iter(plans.values()))[0].minutes
    deadline = time.monotonic() + 60 * minutes if minutes else math.inf
    for stage, (settings, jobs) in plans.items():
        state = StudyState(settings, jobs)
        for name in failed:  # in an earlier stage: not tried again in this call
            state.set(name, FAILED)
        if stage != list(plans)[-1] and not state.names(PENDING):
            continue
        state.write()
        done = f"{len(jobs)} jobs, {len(state.names(DONE))} of them done; {count} run at a time"
        print(f"stage {stage}: {done}" if stage else done, flush=True)
        try:
            Runner(settings, state, count, lock, deadline).run()
        except UserError:
            if time.monotonic() > deadline:
                write_report(settings)
            raise
        write_report(settings)
        failed = state.names(FAILED)
    return state


def print_plans(plans, device):
    """Print the commands of each stage's plan and their status, and what the pending ones take."""
    pending, printed = [], set()
    for stage, (settings, jobs) in plans.items():
        status = StudyState(settings, jobs).status
        new = [job for name, job in jobs.items() if name not in printed]
        todo = [job for job in new if status[job.name] == PENDING]
        if stage:
            minutes = h100_minutes(todo, settings)
            print(f"stage {stage}: about {minutes:.0f} minutes on an H100, by estimate")
        for job in new:
            print(f"{status[job.name]:8} python {shlex.join(job.command)}", flush=True)
        pending, printed = [*pending, *todo], printed | set(jobs)
    print_estimate(pending, settings, device)


def main():
    settings, _ = load(Settings)
    settings, recipe = complete_settings(settings, sys.argv[1:])
    stages = select_stages(settings)
    for part in stages.values():
        check(part)
    # {stage: (the settings of the study up to it, its jobs)}
    plans = {stage: (part, plan_jobs(part, recipe)) for stage, part in stages.items()}
    device = pick_device(settings.device).type
    if settings.dry_run:
        return print_plans(plans, device)
    count = settings.jobs or (cpu_count() if device == "cpu" else 1)
    with storage.lock(settings.out_dir) as lock:
        state = run_stages(plans, count, lock)
    hours = sum(row["seconds"] for row in state.rows.values()) / 3600
    print(f"all commands together: {hours:.2f} hours, {hours / count:.2f} with {count} at a time")
    if failed := state.names(FAILED):
        waiting = f"{len(state.names(PENDING))} wait for them; the same command tries again"
        raise UserError(f"{len(failed)} jobs failed ({', '.join(failed)}), {waiting}")


if __name__ == "__main__":
    run(main)
