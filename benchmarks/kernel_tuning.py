"""Time other tile shapes than those that `tiles` of attention.py and cross_entropy.py choose.

    python -m benchmarks.kernel_tuning            # minutes on a GPU; prints the best four of each

For each pass and head size of a bfloat16 causal case, and for each pass and width of the loss's two
sweeps, every shape of SHAPES that compiles is timed as in benchmarks/kernels.py. Small heads have
two backward passes, in two sweeps and in one; compare their fastest shapes too. Compare the fastest
with the choice of `tiles` or `one_pass_tiles` before changing it: a shape that is little faster
here may spill registers with another version of Triton (`python -m benchmarks.kernel_compile` shows
it).
"""

import contextlib
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
from kernels import attention_backward, cross_entropy, tile
from kernels.attention_backward import ONE_PASS_HEAD_SIZE
from nanostories.dataset.workers import cpu_count

NAMES = ("BLOCK", "STEP", "num_warps", "num_stages", "maxnreg")  # a shape may end before the last
SHAPES = [
    *itertools.product((64, 128), (32, 64), (4, 8), (2, 3)),
    (128, 128, 8, 2),
    (256, 64, 8, 2),
]
ONE_PASS = "one-pass backward"
# Registers decide how many programs share a multiprocessor, see `one_pass_programs`.
ONE_PASS_SHAPES = [
    *itertools.product((64, 128), (32, 64), (4,), (2, 3), (168, 255)),
    *itertools.product((128,), (64, 128), (8,), (2, 3), (255,)),
    (128, 64, 8, 2, 128),
]
HEADS = {16: 16, 32: 16, 48: 16, 64: 12, 128: 8}  # head size: heads
EMBEDDINGS = (64, 128)  # n_embd of the loss
MODULES = {"attention": tile, "loss": cross_entropy}  # each has its `tiles`


@dataclass(frozen=True)
class Settings:
    out: str = "out/bench"  # folder for tune.json
    tokens: int = 32768  # of each case
    length: int = 512  # tokens a row
    rounds: int = 20  # measurements of each shape
    only: str = ""  # only passes with this in their name, such as "attention 16 one-pass"
    device: str = "cuda"  # cuda; cpu tests the script itself
    workers: int = 8  # processes that compile; 0: one a core


def make_case(settings, kernel, size, tokens):
    """The benchmark's case of `tokens` tokens for the kernel "attention" or "loss"."""
    if kernel == "loss":
        return loss_case(tokens, settings.device, size, {})
    length = settings.length
    return attention_case(tokens, settings.device, size, length, HEADS[size], False, {})


def use_shape(kernel, pass_name, shape):
    """A context in which one pass of a kernel has this shape, and no other backward pass runs."""
    module, changes = MODULES[kernel], dict(zip(NAMES, shape, strict=False))
    original, original_one_pass = module.tiles, attention_backward.one_pass_tiles
    programs = attention_backward.one_pass_programs

    def tiles(size, dtype, backward, device):
        settings = original(size, dtype, backward, device)
        return settings | changes if backward == (pass_name == "backward") else settings

    stack = contextlib.ExitStack()
    if pass_name == ONE_PASS:
        one_pass = {
            "one_pass_tiles": lambda *args: original_one_pass(*args) | changes,
            # However few the heads: `compile_error` has one row of them.
            "one_pass_programs": lambda n_heads, *args: programs(n_heads, *args) or n_heads,
        }
    else:
        stack.enter_context(mock.patch.object(module, "tiles", tiles))
        one_pass = {"one_pass_programs": lambda *_: 0}
    stack.enter_context(mock.patch.multiple(attention_backward, **one_pass))
    return stack


def chosen_shape(kernel, size, pass_name, device):
    """The shape that the kernel's launcher takes, as long as it is set."""
    if pass_name == ONE_PASS:
        settings = attention_backward.one_pass_tiles(size, torch.device(device))
    else:
        settings = MODULES[kernel].tiles(size, torch.bfloat16, pass_name == "backward", device)
    return [settings[name] for name in NAMES if name in settings]


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
    timed = "both" if kernel == "loss" else pass_name.removeprefix("one-pass ")
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
        for name in (*kernels.PASSES[:2], ONE_PASS)
        if name != ONE_PASS or (kernel == "attention" and size <= ONE_PASS_HEAD_SIZE)
        if settings.only in f"{kernel} {size} {name}"
    ]
    if not passes:
        raise UserError(f"no pass has '{settings.only}' in its name")
    shapes = {name: ONE_PASS_SHAPES if name == ONE_PASS else SHAPES for *_, name in passes}
    jobs = [(*one, shape) for one in passes for shape in shapes[one[-1]]]
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.workers or cpu_count(), mp_context=context) as pool:
        errors = pool.map(compile_error, itertools.repeat(settings), *zip(*jobs, strict=True))
        errors = dict(zip(jobs, errors, strict=True))
    results, out = [], Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    for kernel, size, name in passes:
        good = [shape for shape in shapes[name] if errors[kernel, size, name, shape] is None]
        us = time_shapes(settings, kernel, size, name, good)
        chosen = chosen_shape(kernel, size, name, settings.device)
        print(f"{kernel} {size} {name}, {' '.join(NAMES)}; chosen: {chosen}")
        print("   ".join(f"{shape} {time:.0f} us" for shape, time in list(us.items())[:4]))
        us = {str(shape): time for shape, time in us.items()}
        results.append({"kernel": kernel, "size": size, "pass": name, "chosen": chosen, "us": us})
        (out / "tune.json").write_text(json.dumps(results, indent=1) + "\n")  # so far
    print(f"written: {out}/tune.json")


if __name__ == "__main__":
    run(main)
