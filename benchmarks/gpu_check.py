"""All checks of the kernels that need a GPU, in one command of under nine minutes.

    python -m benchmarks.gpu_check                # needs pytest beside torch and triton

It runs the kernels' tests with the real compiler, then the benchmark, then the other tile shapes,
each in a process with its own time limit, so that one failure does not stop the others. It writes
test.log, bench.json, bench.png, bench.log, tune.json and tune.log to --out, prints which required
speedups were met or missed, and exits with 1 if a test failed.
"""

import importlib.util
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks import kernels
from configs import UserError, load, run

TESTS = [f"tests/kernels/test_{name}.py" for name in ("attention", "cross_entropy", "mlp")]


@dataclass(frozen=True)
class Settings:
    out: str = "out/gpu_check"  # folder for what it writes
    device: str = "cuda"  # cuda; cpu tests the script itself
    tests: str = ""  # only these tests, as pytest's -k selects them
    only: str = ""  # only the benchmark's cases with this in their name
    minutes: float = 8.5  # for all of it


def parts(settings):
    """[(name, seconds it may take, command)]."""
    python, out = [sys.executable, "-m"], f"--out={settings.out}"
    pytest = [*python, "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *TESTS]
    if importlib.util.find_spec("xdist"):
        pytest += ["-n", str(os.cpu_count())]  # most of a test is Triton compiling
    if settings.tests:
        pytest += ["-k", settings.tests]
    where = [f"--device={settings.device}", out]
    timed = [*python, "benchmarks.kernels", *where, f"--only={settings.only}"]
    tuned = [*python, "benchmarks.kernel_tuning", *where]
    if settings.device == "cpu":
        timed += ["--tokens=64", "--rounds=1"]
        tuned += ["--tokens=64", "--length=64", "--rounds=1"]
    return [("test", 200, pytest), ("bench", 220, timed), ("tune", 600, tuned)]


def main():
    settings, _ = load(Settings)
    kernels.check_device(settings.device)
    if not importlib.util.find_spec("pytest"):
        raise UserError("pytest is not installed: pip install pytest")
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    began, codes = time.monotonic(), {}
    for name, limit, command in parts(settings):
        left = settings.minutes * 60 - (time.monotonic() - began)
        print(f"--- {name}: {' '.join(command[1:])}", flush=True)
        log = out / f"{name}.log"
        with open(log, "w") as file:
            try:
                codes[name] = subprocess.run(
                    command, stdout=file, stderr=subprocess.STDOUT, timeout=max(1, min(limit, left))
                ).returncode
            except subprocess.TimeoutExpired:
                codes[name] = "out of time"
        lines = log.read_text(errors="replace").splitlines()
        print("\n".join(lines[-6:] if name == "test" else lines), flush=True)
    kind = torch.cuda.get_device_name() if settings.device == "cuda" else "cpu"
    checks = [x for x in (out / "bench.log").read_text().splitlines() if ", required " in x]
    met = sum(line.endswith(": met") for line in checks)
    print(
        f"--- on {kind}, {time.monotonic() - began:.0f} s: "
        f"{met} of {len(checks)} required speedups met"
    )
    print("   ".join(f"{name}: {'ok' if code == 0 else code}" for name, code in codes.items()))
    sys.exit(codes["test"] != 0)


if __name__ == "__main__":
    run(main)
