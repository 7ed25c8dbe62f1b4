"""
The attention kernels in other block shapes than `kernels.attention.tiles` chooses, timed.

    python -m kernels.tune                     # minutes on a GPU; prints the best four of each

For each pass and head size of a bfloat16 causal case every shape of SHAPES that compiles is timed
as kernels/bench.py times its contestants. Compare the winner with what `tiles` chose before
changing it: a shape that wins by little here may spill registers with another version of Triton
(`python -m kernels.offline` shows it).
"""

import itertools
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

from configs import load, run
from kernels import attention, bench
from kernels.rivals import attention_case

NAMES = ("BLOCK", "STEP", "num_warps", "num_stages")
SHAPES = [
    *itertools.product((64, 128), (32, 64), (4, 8), (2, 3)),
    (128, 128, 8, 2),
    (256, 64, 8, 2),
]
HEADS = {16: 16, 32: 16, 48: 16, 64: 12, 128: 8}  # head size: heads


@dataclass(frozen=True)
class Settings:
    out: str = "out/bench"  # folder for tune.json
    tokens: int = 32768  # of each case
    length: int = 512  # tokens a row
    rounds: int = 20  # times each shape has its turn
    device: str = "cuda"  # cuda; cpu tries the script itself out
    workers: int = 8  # processes that compile


def shaped(pass_name, shape):
    """A context in which one pass of the attention kernels has this shape."""
    plain, chosen = attention.tiles, dict(zip(NAMES, shape, strict=True))

    def tiles(head_size, dtype, backward, device):
        settings = plain(head_size, dtype, backward, device)
        return settings | chosen if backward == (pass_name == "backward") else settings

    return mock.patch.object(attention, "tiles", tiles)


def why_not(settings, D, pass_name, shape):
    """Compile one shape into the cache on disk by running it once; None, or why it does not run."""
    T = settings.length
    try:
        with shaped(pass_name, shape):
            case = attention_case(T, settings.device, D, T, HEADS[D], False, {})
            out = case.contestants["ours"](*case.inputs)
            out.backward(out)
    except Exception as error:  # out of shared memory, say
        return str(error).splitlines()[0]


def times_of(settings, D, pass_name, shapes):
    """{shape: microseconds}, fastest first."""
    sizes = (settings.tokens, settings.device)
    case = attention_case(*sizes, D, settings.length, HEADS[D], False, {})
    functions = {}
    for shape in shapes:
        with shaped(pass_name, shape):
            ready, _ = bench.runners(case.contestants["ours"], case.inputs)
            functions[shape] = ready[pass_name]
    times = bench.by_turns(functions, settings.device == "cuda", settings.rounds)
    return {shape: time * 1e6 for shape, time in sorted(times.items(), key=lambda x: x[1])}


def main():
    settings, _ = load(Settings)
    bench.check_device(settings.device)
    jobs = list(itertools.product(HEADS, bench.PASSES[:2], SHAPES))
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.workers, mp_context=context) as pool:
        reasons = pool.map(why_not, itertools.repeat(settings), *zip(*jobs, strict=True))
        broken = dict(zip(jobs, reasons, strict=True))
    found = []
    for D, name in itertools.product(HEADS, bench.PASSES[:2]):
        shapes = [shape for shape in SHAPES if broken[D, name, shape] is None]
        us = times_of(settings, D, name, shapes)
        chosen = attention.tiles(D, torch.bfloat16, name == "backward", settings.device)
        print(f"D={D} {name}, BLOCK STEP num_warps num_stages; chosen: {[*chosen.values()]}")
        print("   ".join(f"{shape} {time:.0f} us" for shape, time in list(us.items())[:4]))
        found.append({"D": D, "pass": name, "us": {str(x): time for x, time in us.items()}})
    out = Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tune.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {out}/tune.json")


if __name__ == "__main__":
    run(main)
