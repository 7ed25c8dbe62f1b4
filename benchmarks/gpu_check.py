"""All that this project is to show on a GPU, in one command, to be called until all is done.

    python -m benchmarks.gpu_check --nanogpt=nanoGPT       # nine minutes of it; then call it again
    python -m benchmarks.gpu_check --only=kernels          # the parts whose names begin so
    python -m benchmarks.gpu_check --device=cpu            # all of it in tiny sizes: a dry run

Its parts, the most important first: the tests and 60 steps of ts_33m (`tests`), ts_33m and
fast_33m on the stories at hand (`train`), the race with nanoGPT (`race`), training steps of four
sizes beside nanoGPT's, and where their time goes (`speed`), the kernels beside all others and other
tile shapes (`kernels`), generation beside transformers (`generation`).

A call runs the parts that are not done, each in processes of its own with a time limit, as many as
fit in --minutes. A part that was interrupted, by a kill too, is resumed or repeated by the next
call, which takes its settings from the first one. A part that failed does not stop the others; it
runs again with --retry, by name with --only, or once the code has changed. A part that is done is
not repeated, also after the code has changed: the summary names the commit and the GPU of each, and
--anew, in one call, forgets them. Other settings run again what they change.

--out gets state.json, a folder for each part, and summary.md: each goal met, missed or not measured
yet. The exit status is 0 if every part is done and passed, 3 if there is more to do (call again),
and 1 if nothing is left to run, but a part failed or lacks what its line names.
"""

import hashlib
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import gpu_summary, kernels
from benchmarks.gpu_parts import all_parts
from benchmarks.gpu_schedule import DONE, GRACE, State, run_parts
from configs import ROOT, UserError, clean_up_when_killed, load, require_posix, run
from nanostories import storage

MORE_TO_DO = 3  # exit status
KEPT = ("data", "nanogpt", "train_minutes", "epochs", "race_minutes")  # settings for later calls


@dataclass(frozen=True)
class Settings:
    out: str = ""  # folder for all that it writes; default out/gpu, with tiny out/gpu_tiny
    minutes: float = 9.0  # of this call; what is not done then is left to the next one
    data: str = "data/tinystories"  # token folders: this with -gpt2 for ts_33m, -bpe for fast_33m
    nanogpt: str = ""  # a checkout of nanoGPT to compare with
    train_minutes: float = 4.0  # of training for each of the two models, where an epoch is long
    epochs: int = 8  # of training for them, where so many fit train_minutes
    race_minutes: float = 1.5  # of training for each side of the race
    only: str = ""  # only parts whose names begin so, comma-separated
    retry: bool = False  # run parts that failed once more
    anew: bool = False  # forget what was done of these parts, and run them again
    tiny: bool = False  # tiny sizes and made-up stories: tries this command itself
    device: str = "cuda"  # cuda; or cpu, for the tiny form

    train_minutes_range = race_minutes_range = 1e-2, 10**6
    epochs_range = 1, 1000


def version(device):
    """What the figures belong to: the git commit, a hash of the source files (so that work which is
    not committed counts, too) and the GPU's name."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        commit = ""
    files = [path for kind in ("*.py", "*.c") for path in ROOT.glob(kind)]
    for folder in ("benchmarks", "configs", "eval", "kernels", "nanostories", "tests"):
        files += [path for kind in ("*.py", "*.c") for path in (ROOT / folder).rglob(kind)]
    names = [f"{path.relative_to(ROOT)} {storage.sha256(path)}\n" for path in sorted(files)]
    source = hashlib.sha256("".join(names).encode()).hexdigest()[:16]
    gpu = torch.cuda.get_device_name() if device == "cuda" else device
    return {"commit": commit or "no git", "source": source, "gpu": gpu}


def select(parts, only):
    """The parts that the setting `only` names, by the beginning of their names; or UserError."""
    words = [word.strip() for word in only.split(",") if word.strip()]
    for word in words:
        if not any(part.name.startswith(word) for part in parts):
            names = ", ".join(part.name for part in parts)
            raise UserError(f"no part '{word}'; there are {names}")
    return [part for part in parts if part.name.startswith(tuple(words or [""]))]


def check_minutes(minutes, parts, grace=GRACE):
    """Raise UserError where a part would never be started."""
    longest = max(parts, key=lambda part: part.needed())
    least = (longest.needed() + grace) / 60
    if minutes < least:
        raise UserError(f"{longest.name} needs {least:.1f} minutes: --minutes={minutes} is too few")


def complete(settings, origin, state):
    """The settings with those of earlier calls, which state.json keeps; UserError for what cannot
    be."""
    named = {name: getattr(settings, name) for name in KEPT if origin[name] != "default"}
    state.settings |= named
    settings = replace(settings, **state.settings)
    if settings.nanogpt and not (Path(settings.nanogpt) / "model.py").is_file():
        raise UserError(f"no nanoGPT in '{settings.nanogpt}' (no model.py)")
    if not settings.nanogpt:
        print("without --nanogpt there is no race, and training steps are timed alone", flush=True)
    return settings


def check_device(settings):
    """Raise UserError where the settings cannot run."""
    require_posix("this check")
    if settings.device == "cuda":
        kernels.check_device("cuda")
    elif settings.device != "cpu":
        raise UserError(f"device must be cuda or cpu, not '{settings.device}'")


def call(parts, state, settings, deadline, **options):
    """One call: run what is due, write the summary, say what is left; returns the exit status.
    options: of run_parts."""
    chosen = select(parts, settings.only)
    if settings.anew:
        state.forget(chosen)
    again = settings.retry or bool(settings.only)
    if due := [part for part in chosen if state.is_due(part, again) and not part.problem]:
        check_minutes(settings.minutes, due)
    done = [part for part in chosen if state.status(part) == DONE]
    if others := [part.name for part in done if not state.is_current(part)]:
        print(f"done before, by other code or on another GPU: {', '.join(others)}; --anew would "
              "run them again", flush=True)  # fmt: skip

    def write_summary():
        return gpu_summary.write(parts, state, settings.tiny)

    waiting = run_parts(chosen, state, deadline, again, write_summary, **options)
    print("\n".join(write_summary()))
    failed = [p.name for p in chosen if state.status(p) != DONE and p.name not in waiting]
    if failed:
        print(f"\nfailed, or left out: {', '.join(failed)}; see {state.out}/summary.md")
    if waiting:
        print(f"\nmore to do, call it again: {', '.join(waiting)}")
    return MORE_TO_DO if waiting else 1 if failed else 0


def main():
    began = time.monotonic()
    settings, origin = load(Settings)
    clean_up_when_killed()
    check_device(settings)
    on_cpu = settings.device == "cpu"
    tiny = settings.tiny or on_cpu
    out = settings.out or ("out/gpu_tiny" if tiny else "out/gpu")
    env = {"TRITON_INTERPRET": "1"} if on_cpu else {}
    with storage.lock(out) as lock:
        state = State(out, version(settings.device))
        settings = complete(replace(settings, out=out, tiny=tiny), origin, state)
        deadline = began + 60 * settings.minutes - GRACE
        sys.exit(call(all_parts(settings), state, settings, deadline, env=env, lock=lock))


if __name__ == "__main__":
    run(main)
