"""Every kernel compiles for three GPU architectures: no spills, tensor cores, nothing serialized.

In processes of their own: TRITON_INTERPRET, which the other tests set, is read at import.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD_TRITON = ROOT / ".venv" / "triton-3.6"  # what torch 2.11 brings; `make test-slow` installs it

# What `make test` compiles: (configuration, architecture). All of them: `make test-slow`.
SOME = [
    ("attention D=16 stories bfloat16", 90),
    ("attention D=32 stories bfloat16", 80),
    ("attention D=32 stories bfloat16", 90),
    ("attention D=32 stories bfloat16", 100),
    ("attention D=48 causal bfloat16", 90),
    ("attention D=48 stories bfloat16", 90),
    ("attention D=64 stories bfloat16", 80),
    ("attention D=64 stories bfloat16", 90),
    ("attention D=64 stories bfloat16", 100),
    ("attention D=128 stories float16", 90),
    ("attention D=64 stories float32", 90),
    ("loss C=128 recompute bfloat16", 80),
    ("loss C=128 recompute bfloat16", 90),
    ("loss C=64 recompute bfloat16", 100),
    ("loss C=768 chunks bfloat16", 90),
    ("loss C=768 epilogue bfloat16", 90),
    ("mlp C=256 erf bfloat16", 90),
    ("mlp C=768 tanh bfloat16", 80),
    ("mlp C=768 tanh bfloat16", 90),
    ("mlp C=768 tanh bfloat16", 100),
]
MANY = """
import json, sys
from concurrent.futures import ProcessPoolExecutor
from benchmarks.kernel_compile import reports
with ProcessPoolExecutor(2) as pool:
    results = list(pool.map(reports, *zip(*json.load(sys.stdin))))
print(json.dumps([[(r.name, r.problems()) for r in one] for one in results]))
"""
BAD = """
from benchmarks import kernel_compile
from kernels import tile
tile.tiles = lambda *_: {"BLOCK": 64, "STEP": 64, "num_warps": 4, "num_stages": 4}
for report in kernel_compile.reports("attention D=128 causal bfloat16", 80):
    print(report.name, report.problems())
"""


def python(*args, stdin=None, path=None):
    """Standard output of a Python process that compiles; fails if it does."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_DEFAULT_FP_FUSION"] = "1"
    environment["PYTHONPATH"] = str(path or "")
    done = subprocess.run(
        [sys.executable, *args], cwd=ROOT, env=environment, input=stdin, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def compiled():
    """{(configuration, architecture): [(kernel, problems)]} for all of SOME."""
    results = json.loads(python("-c", MANY, stdin=json.dumps(SOME)).splitlines()[-1])
    return dict(zip(SOME, results, strict=True))


@pytest.mark.parametrize("name, arch", SOME)
def test_it_compiles_cleanly(compiled, name, arch):
    result = compiled[name, arch]
    kernels = {"attention": ["forward", "delta", "backward"],
               "chunks": ["exponentials", "finish", "exponentials", "finish"],
               "epilogue": ["target_logits", "product_exponentials", "finish"],
               "recompute": ["sweep_words", "sweep_words", "sweep_tokens"],
               "mlp": ["product_gelu"] * 2 + ["product_gelu_backward"]}  # fmt: skip
    expected = next(names for word, names in kernels.items() if word in name)
    if "D=16" in name or "D=32" in name:
        expected = ["forward", "delta", "backward_one_pass", "backward"]
    assert [kernel.split(": ")[1] for kernel, _ in result] == expected
    assert [problems for _, problems in result] == [[]] * len(expected)


def test_problems_are_reported():
    """A tile shape that is too large for an A100 and its smaller relatives."""
    output = python("-c", BAD)
    assert "bytes of stack" in output and "bytes of shared memory" in output


def test_an_unknown_configuration_is_one_line():
    with pytest.raises(AssertionError, match="no configuration has all of: attention,D=130"):
        python("-m", "benchmarks.kernel_compile", "--only=attention,D=130")


@pytest.mark.slow
@pytest.mark.parametrize(
    "only, triton",
    # float16 compiles as bfloat16 does, and float32 is never chosen: training's kernels, once each.
    [("bfloat16", "installed"), ("bfloat16", "3.6"), ("stories,float16", "installed"),
     ("stories,float32", "installed")],
)  # fmt: skip
def test_every_configuration_compiles_cleanly(only, triton):
    path = OLD_TRITON if triton == "3.6" else None
    version = python("-c", "import triton; print(triton.__version__)", path=path)
    assert (version == "3.6.0\n") == (triton == "3.6")
    print(version, python("-m", "benchmarks.kernel_compile", f"--only={only}", path=path))
