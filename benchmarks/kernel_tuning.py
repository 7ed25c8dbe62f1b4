"""Time other tile shapes than those that `tiles` of attention.py and cross_entropy.py choose.

    python -m benchmarks.kernel_tuning            # minutes on a GPU; prints the best four of each

For each pass and head size of a bfloat16 causal case, and for each pass and width of the loss's two
sweeps, every shape of SHAPES that compiles is timed as in benchmarks/kernels.py. Compare the
fastest with the choice of `tiles` before changing it: a shape that is little faster here may spill
registers with another version of Triton (`python -m benchmarks.kernel_compile` shows it).
"""

import itertools
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from benchmarks import kernels
from benchmarks.kernel_baselines import attention_case, loss_case
from configs import UserError, load, run
from kernels import attention, cross_entropy

NAMES = ("BLOCK", "STEP", "num_warps", "num_stages")
SHAPES = [
    *itertools.product((64, 128), (32, 64), (4, 8), (2, 3)),
    (128, 128, 8, 2),
    (256, 64, 8, 2),
]
HEADS = {16: 16, 32: 16, 48: 16, 64: 12, 128: 8}  # head size: heads
EMBEDDINGS = (64, 128)  # n_embd of the loss
MODULES = {"attention": attention, "loss": cross_entropy}  # each has its `tiles`


@dataclass(frozen=True)
class Settings:
    out: str = "out/bench"  # folder for tune.json
    tokens: int = 32768  # of each case
    length: int = 512  # tokens a row
    rounds: int = 20  # measurements of each shape
    only: str = ""  # only passes with this in their name, such as "loss 64 backward"
    device: str = "cuda"  # cuda; cpu tests the script itself
    workers: int = 8  # processes that compile


def make_case(settings, kernel, size, tokens):
    """The benchmark's case of `tokens` tokens for the kernel "attention" or "loss"."""
    if kernel == "loss":
        return loss_case(tokens, settings.device, size, {})
    length = settings.length
    return attention_case(tokens, settings.device, size, length, HEADS[size], False, {})


def use_shape(kernel, pass_name, shape):
    """A context in which one pass of a kernel has this shape."""
    module, changes = MODULES[kernel], dict(zip(NAMES, shape, strict=True))
    original = module.tiles

    def tiles(size, dtype, backward, device):
        settings = original(size, dtype, backward, device)
        return settings | changes if backward == (pass_name == "backward") else settings

    return mock.patch.object(module, "tiles", tiles)


def compile_error(settings, kernel, size, pass_name, shape):
    """Compile one shape into the cache on disk by running it once; the error, or None."""
    try:
        with use_shape(kernel, pass_name, shape):
            case = make_case(settings, kernel, size, settings.length)
            out = case.implementations["nanostories"](*case.inputs)
            out.backward(torch.ones_like(out))
    except Exception as error:  # such as too little shared memory
        return str(error).splitlines()[0]


def time_shapes(settings, kernel, size, pass_name, shapes):
    """{shape: microseconds}, fastest first."""
    case, functions = make_case(settings, kernel, size, settings.tokens), {}
    # The loss's first sweep makes gradients too where there is a backward pass to come.
    timed = "both" if kernel == "loss" else pass_name
    for shape in shapes:
        with use_shape(kernel, pass_name, shape):
            ready, _ = kernels.pass_functions(case.implementations["nanostories"], case.inputs)
            functions[shape] = ready[timed]
    times = kernels.interleaved_medians(functions, settings.device == "cuda", settings.rounds)
    return {shape: time * 1e6 for shape, time in sorted(times.items(), key=lambda x: x[1])}


def main():
    settings, _ = load(Settings)
    kernels.check_device(settings.device)
    sizes = [("attention", D) for D in HEADS] + [("loss", C) for C in EMBEDDINGS]
    passes = [
        (kernel, size, name)
        for kernel, size in sizes
        for name in kernels.PASSES[:2]
        if settings.only in f"{kernel} {size} {name}"
    ]
    if not passes:
        raise UserError(f"no pass has '{settings.only}' in its name")
    jobs = [(*one, shape) for one in passes for shape in SHAPES]
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.workers, mp_context=context) as pool:
        errors = pool.map(compile_error, itertools.repeat(settings), *zip(*jobs, strict=True))
        errors = dict(zip(jobs, errors, strict=True))
    results, out = [], Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    for kernel, size, name in passes:
        shapes = [shape for shape in SHAPES if errors[kernel, size, name, shape] is None]
        us = time_shapes(settings, kernel, size, name, shapes)
        module, backward = MODULES[kernel], name == "backward"
        chosen = module.tiles(size, torch.bfloat16, backward, settings.device)
        chosen = [chosen[name] for name in NAMES]
        print(f"{kernel} {size} {name}, {' '.join(NAMES)}; chosen: {chosen}")
        print("   ".join(f"{shape} {time:.0f} us" for shape, time in list(us.items())[:4]))
        us = {str(shape): time for shape, time in us.items()}
        results.append({"kernel": kernel, "size": size, "pass": name, "chosen": chosen, "us": us})
        (out / "tune.json").write_text(json.dumps(results, indent=1) + "\n")  # so far
    print(f"written: {out}/tune.json")


if __name__ == "__main__":
    run(main)
