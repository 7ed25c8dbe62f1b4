"""The benchmark's own arithmetic and output; what it measures needs a GPU."""

import subprocess
import sys

import pytest
import torch

from benchmarks import kernels
from benchmarks.kernel_baselines import Case, story_starts

FACTS = {"device": "cpu", "copy_bytes_per_second": 1e12, "matmul_flops_per_second": 1e14}


def figures(both, peak=0):
    return {
        "forward_us": both / 3,
        "backward_us": 2 * both / 3,
        "both_us": both,
        "peak_bytes": peak,
    }


def case(**implementations):
    required = [{"speedup": 1.5, "over": ["flash", "math"]}]
    return {
        "name": "D=48",
        "bytes": 1e8,
        "flops": 1e9,
        "required": required,
        "implementations": implementations,
    }


def test_the_required_speedup_is_over_the_fastest_baseline():
    result = case(nanostories=figures(100), flash=figures(140), math=figures(900), flex=figures(1))
    assert kernels.check_required(result) == [("speedup over flash", "1.40x", "1.5x", False)]
    result["implementations"]["flash"] = {"error": "no such head size"}
    assert kernels.check_required(result) == [("speedup over math", "9.00x", "1.5x", True)]


def test_memory_is_compared_with_eager():
    result = case(nanostories=figures(1, 40), eager=figures(1, 1000))
    assert kernels.check_required(result)[-1] == (
        "peak memory, of eager's",
        "4.0%",
        "5%",
        True,
    )
    result["implementations"]["nanostories"]["peak_bytes"] = 60
    assert not kernels.check_required(result)[-1][-1]


def test_a_failure_of_nanostories_misses_what_is_required():
    result = case(nanostories={"error": "RuntimeError: out of resource"}, flash=figures(1))
    assert not kernels.check_required(result)[0][-1]


def test_the_roofline_is_the_slower_of_moving_and_computing():
    result = case(nanostories=figures(100))
    assert kernels.roofline_us(result, FACTS) == pytest.approx(100)  # 1e8 bytes at 1 TB/s
    assert kernels.roofline_us(result | {"flops": 1e11}, FACTS) == pytest.approx(1000)


def test_the_table_fits_100_columns():
    long = {"error": "RuntimeError: " + "no kernel of this baseline takes these inputs " * 5}
    result = case(
        nanostories=figures(123456.7, 10**10),
        flash=long,
        **{"nanostories, recompute": figures(9.9)},
    )
    lines = kernels.format_case(result, FACTS)
    assert max(map(len, lines)) <= 100
    assert any("nanostories, recompute" in line and "1010%" in line for line in lines)


def test_measuring_and_the_plot(tmp_path):
    x = torch.randn(40, 40, requires_grad=True)

    def fails(x):
        raise RuntimeError("no kernel\nmore")

    implementations = {
        "nanostories": lambda x: x @ x,
        "slow": lambda x: x @ x @ x @ x @ x,
        "fails": fails,
    }
    job = Case(
        "product", implementations, (x,), bytes=3200, flops=128000, required={1.0: ("slow",)}
    )
    result = kernels.measure(job, kernels.Settings(device="cpu", rounds=9))
    assert result["implementations"]["fails"] == {"error": "RuntimeError: no kernel"}
    nanostories, slow = (
        result["implementations"]["nanostories"],
        result["implementations"]["slow"],
    )
    assert all(x[f"{p}_us"] > 0 for x in (nanostories, slow) for p in kernels.PASSES)
    kernels.plot({"environment": FACTS, "cases": [result]}, tmp_path / "bench.png")
    kernels.plot({"environment": FACTS, "cases": []}, tmp_path / "none.png")  # ours failed in all
    for name in ("bench.png", "none.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_rows_of_stories_are_what_attention_takes():
    start = story_starts(60, 1000, "cpu")
    position = torch.arange(1000)
    assert start.dtype == torch.int32
    assert ((start >= 0) & (start <= position)).all() and (start.diff() >= 0).all()
    begun = (start == position).sum() - 60  # each row begins one more
    assert 60 * 1000 / begun == pytest.approx(190, rel=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["kernels", "kernel_tuning", "gpu_check"])
def test_without_a_gpu_one_line_says_so(script, tmp_path):
    command = [sys.executable, "-m", f"benchmarks.{script}", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no CUDA GPU here" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
