"""Training throughput, hardware utilization and peak memory, compared with nanoGPT's.

    python -m benchmarks.training                          # sizes that suit this computer
    python -m benchmarks.training --nanogpt=nanoGPT       # and the same models in a clone of it
    python -m benchmarks.training --sizes=64-8,768-12 --vocabs=4096 --dtypes=bfloat16 --out=a.json

A size is n_embd-n_layer, with 16 heads and block_size 512. Each project trains in a process of its
own, as it would for its user: nanoStories packs whole stories and counts their tokens, nanoGPT cuts
blocks of 512 from the stream and counts all of them. Both take the same number of tokens per step,
the same dtype, AdamW and, on a GPU, torch.compile. They take turns, so that other load slows both.
Figures are medians over the rounds, ratios medians of the rounds' ratios. Stories are random ids in
the lengths of TinyStories.

"of matmul" is the fraction of the speed measured in large matrix products here, counting 6
floating-point operations per weight and token, and attention's (GPT.flops_per_token).
"""

import contextlib
import importlib.util
import multiprocessing
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

import train
from configs import UserError, load, run
from model import GPT, GPTConfig
from nanostories import storage
from nanostories.dataset.packing import PackedDataLoader
from nanostories.dataset.shards import InMemoryDataset
from nanostories.training import optim
from nanostories.training.device import (
    autocast_for,
    compile_model,
    environment,
    pick_device,
    pick_dtype,
)

BLOCK_SIZE, HEADS = 512, 16


@dataclass(frozen=True)
class Settings:
    sizes: str = ""  # n_embd-n_layer, comma-separated; default: five on a GPU, two on a CPU
    vocabs: str = "4096,50257"  # vocabulary sizes, comma-separated
    dtypes: str = ""  # float32, bfloat16, float16, comma-separated; default: as --dtype=auto
    tokens: int = 0  # per step; default: 32,768 on a GPU, 8,192 on a CPU
    nanogpt: str = ""  # a checkout of nanoGPT to compare with
    steps: int = 0  # per turn; default: 20 on a GPU, 1 on a CPU
    rounds: int = 5  # turns of each project
    device: str = "auto"  # cpu or cuda; auto takes the best there is
    out: str = ""  # a JSON file for the figures


@dataclass(frozen=True)
class Case:
    """One model and how it is trained."""

    n_embd: int
    n_layer: int
    vocab_size: int
    dtype: str
    tokens: int  # per step
    device: str


def random_stories(vocab_size, stories=20_000):
    """Stories of random ids in the lengths of TinyStories, about 190 tokens each."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5.15, 0.45, stories).astype(int), 30, 1000)
    starts = np.cumsum([0, *lengths])
    ids = rng.integers(1, vocab_size, starts[-1]).astype(np.uint16)
    ids[starts[:-1]] = 0  # <|endoftext|>
    return InMemoryDataset(ids, starts)


# ---- the two projects --------------------------------------------------------------------------
#
# Each returns a function that trains one step and returns its number of tokens, and the
# floating-point operations per token.


def training_step(model, loader, settings, lr=lambda: 1e-4):
    """train.py's step of a GPT on a PackedDataLoader, at the learning rate that lr() returns: (a
    function that trains the next step and returns its number of tokens, the optimizers)."""
    device = loader.device
    dtype = pick_dtype(settings.dtype, device)
    optimizers = optim.make_optimizers(model, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    guard = optim.NonFiniteGuard(optimizers, scaler, device)
    _, model, cuda_graphs = compile_model(model, settings, device)
    batches = enumerate(train.step_batches(loader, settings, first_step=0))

    def step():
        number, (tokens, micro_batches) = next(batches)
        train.train_step(model, optimizers, scaler, guard, micro_batches, number, lr(), settings,
                         autocast_for(device, dtype), cuda_graphs)  # fmt: skip
        return tokens

    return step, optimizers


def nanostories(case, _):
    """This project: train.py's step."""
    data, device = random_stories(case.vocab_size), torch.device(case.device)
    row_tokens = 2 * BLOCK_SIZE
    settings = train.Settings(
        batch_size=case.tokens // row_tokens, n_embd=case.n_embd, dtype=case.dtype
    )
    shape = (BLOCK_SIZE, row_tokens, settings.batch_size, settings.seed)
    model = GPT(GPTConfig(case.vocab_size, BLOCK_SIZE, case.n_layer, HEADS, case.n_embd)).to(device)
    model.use_attention("auto", getattr(torch, case.dtype))
    loader = PackedDataLoader(data, 0, *shape, device=device)
    step, _ = training_step(model, loader, settings)
    return step, model.flops_per_token(loader.mean_context)


def nanogpt_model(path, vocab_size, n_embd, n_layer, n_head, bias=True):
    """A model of the clone of nanoGPT in `path`, with new random weights. bias: True as in GPT-2,
    and here; False is what nanoGPT's train.py takes."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(path) / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=BLOCK_SIZE, vocab_size=-(-vocab_size // 64) * 64, n_layer=n_layer,
        n_head=n_head, n_embd=n_embd, dropout=0.0, bias=bias,
    )  # fmt: skip
    return module.GPT(config)


def nanogpt_step(model, ids, rows, dtype, betas=(0.9, 0.95), lr=lambda: 1e-4):
    """The step of nanoGPT's train.py, with its optimizer and its way of drawing a batch.

    model: of `nanogpt_model`, on its device. ids: uint16, all training tokens. rows: blocks of
    BLOCK_SIZE tokens in a step. dtype: what to compute in, a torch dtype. lr: as of
    `training_step`. Returns a function that trains the next step and returns its number of tokens.
    """
    device = next(model.parameters()).device
    optimizer = model.configure_optimizers(0.1, 1e-4, betas, device.type)
    cuda = device.type == "cuda"
    forward = torch.compile(model) if cuda else model
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    autocast = autocast_for(device, dtype)
    if cuda:
        torch.backends.cuda.matmul.allow_tf32 = True

    def batch():
        starts = torch.randint(len(ids) - BLOCK_SIZE - 1, (rows,)).tolist()
        blocks = np.stack([ids[i : i + BLOCK_SIZE + 1] for i in starts]).astype(np.int64)
        x, y = torch.from_numpy(blocks[:, :-1].copy()), torch.from_numpy(blocks[:, 1:].copy())
        if cuda:
            x, y = (t.pin_memory().to(device, non_blocking=True) for t in (x, y))
        return x, y

    upcoming = batch()

    def step():
        nonlocal upcoming
        x, y = upcoming
        rate = lr()
        for group in optimizer.param_groups:
            group["lr"] = rate
        with autocast():
            _, loss = forward(x, y)
        upcoming = batch()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return x.numel()

    return step


def nanogpt(case, path):
    """nanoGPT: the step of its train.py."""
    shape = (case.vocab_size, case.n_embd, case.n_layer, HEADS)
    model = nanogpt_model(path, *shape).to(case.device)
    ids, rows = random_stories(case.vocab_size).ids, case.tokens // BLOCK_SIZE
    step = nanogpt_step(model, ids, rows, getattr(torch, case.dtype))
    twin = GPT(GPTConfig(case.vocab_size, BLOCK_SIZE, case.n_layer, HEADS, case.n_embd))
    return step, twin.flops_per_token(BLOCK_SIZE / 2)


PROJECTS = {"nanoStories": nanostories, "nanoGPT": nanogpt}


def worker(pipe, project, case, path, steps):
    """A project's process: for each "go" it trains `steps` steps and sends what it measured."""
    cuda = case.device == "cuda"
    wait = (lambda: None) if case.device == "cpu" else torch.accelerator.synchronize
    with contextlib.redirect_stdout(None):  # nanoGPT prints its parameters
        step, flops = PROJECTS[project](case, path)
    for _ in range(3 if cuda else 1):
        step()
    while pipe.recv() == "go":
        wait()
        begin = time.perf_counter()
        tokens = sum(step() for _ in range(steps))
        wait()
        throughput = tokens / (time.perf_counter() - begin)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, else KiB
        peak *= 1 if sys.platform == "darwin" else 1024
        peak = torch.cuda.max_memory_allocated() if cuda else peak
        pipe.send({"tokens_per_second": throughput, "flops_per_token": flops, "peak_bytes": peak})


# ---- rounds and the table ----------------------------------------------------------------------


def matmul_rate(device, dtype):
    """Floating-point operations per second in products of large square matrices."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        times.append(time.perf_counter() - begin)
    return 2 * n**3 / statistics.median(times)


def measure(case, settings):
    """{project: medians of its figures} of a case; with two projects also their ratios."""
    projects = ["nanoStories", *(["nanoGPT"] if settings.nanogpt else [])]
    pipes, processes, turns = {}, [], {project: [] for project in projects}
    spawn = multiprocessing.get_context("spawn")
    for project in projects:
        pipes[project], end = spawn.Pipe()
        args = (end, project, case, settings.nanogpt, settings.steps)
        processes.append(spawn.Process(target=worker, args=args, daemon=True))
        processes[-1].start()
        end.close()
    try:
        for _ in range(settings.rounds):
            for project in projects:
                pipes[project].send("go")
                turns[project].append(pipes[project].recv())
    except (EOFError, ConnectionError):
        raise UserError(f"{project} failed at {case}: see above") from None
    finally:
        for process in processes:
            process.kill()
    result = {
        project: {name: statistics.median(turn[name] for turn in rounds) for name in rounds[0]}
        for project, rounds in turns.items()
    }
    if len(projects) == 2:
        speeds = ([turn["tokens_per_second"] for turn in turns[name]] for name in projects)
        ratios = [a / b for a, b in zip(*speeds, strict=True)]
        result["ratio"] = {"median": statistics.median(ratios), "all": ratios}
        peaks = [result[project]["peak_bytes"] for project in projects]
        result["peak_ratio"] = peaks[0] / peaks[1]
    return result


def cases(settings, device):
    """Yield every Case that the settings name; raises UserError where one is not possible."""
    if settings.tokens % (2 * BLOCK_SIZE) or min(settings.tokens, settings.rounds) < 1:
        raise UserError(f"tokens must be a multiple of {2 * BLOCK_SIZE}, and rounds at least 1")
    for size in settings.sizes.split(","):
        try:
            n_embd, n_layer = map(int, size.split("-"))
            vocabs = [int(vocab) for vocab in settings.vocabs.split(",")]
        except ValueError:
            raise UserError(
                "sizes must be n_embd-n_layer and vocabs numbers, "
                f"not '{size}', '{settings.vocabs}'"
            ) from None
        if n_embd % HEADS or not 1 < min(vocabs) <= max(vocabs) <= 1 << 16:
            raise UserError(
                f"n_embd must be a multiple of {HEADS}, a vocabulary have 2 to 65,536 ids"
            )
        for vocab in vocabs:
            for dtype in settings.dtypes.split(","):
                pick_dtype(dtype, device)
                yield Case(n_embd, n_layer, vocab, dtype, settings.tokens, device.type)


def main():
    settings, _ = load(Settings)
    device = pick_device(settings.device)
    cuda = device.type == "cuda"
    if settings.nanogpt and not (Path(settings.nanogpt) / "model.py").is_file():
        raise UserError(f"no nanoGPT in '{settings.nanogpt}' (no model.py)")
    own = str(pick_dtype("auto", device)).removeprefix("torch.")
    settings = replace(
        settings,
        sizes=settings.sizes or ("64-8,256-8,512-8,768-4,768-12" if cuda else "64-8,256-8"),
        dtypes=settings.dtypes or own,
        tokens=settings.tokens or (32_768 if cuda else 8_192),
        steps=settings.steps or (20 if cuda else 1),
    )
    todo = list(cases(settings, device))  # all checked before the first is measured
    rates = {
        dtype: matmul_rate(device, getattr(torch, dtype)) for dtype in settings.dtypes.split(",")
    }
    title = "size    vocab  dtype     project        tok/s  of matmul  peak MiB   ratio  peak ratio"
    print(title, flush=True)
    rows = []
    for case in todo:
        result = measure(case, settings)
        rows.append(asdict(case) | result)
        for project in PROJECTS.keys() & result.keys():
            figures = result[project]
            figures["matmul_fraction"] = (
                figures["tokens_per_second"] * figures["flops_per_token"] / rates[case.dtype]
            )
        for project in (project for project in PROJECTS if project in result):
            figures, ratio = result[project], ""
            speed, utilization = figures["tokens_per_second"], figures["matmul_fraction"]
            if project == "nanoStories" and "ratio" in result:
                ratio = f"{result['ratio']['median']:>8.2f}x{result['peak_ratio']:>10.2f}x"
            print(
                f"{f'{case.n_embd}-{case.n_layer}':<7} {case.vocab_size:>5}  {case.dtype:<9} "
                f"{project:<12} {speed:>7,.0f} {utilization:>9.1%} "
                f"{figures['peak_bytes'] / 2**20:>9,.0f}{ratio}",
                flush=True,
            )
        if settings.out:  # the cases so far
            stored = asdict(replace(settings, nanogpt=Path(settings.nanogpt).name, out=""))
            facts = {"environment": environment(device), "settings": stored, "matmul_flops": rates}
            storage.write_json(settings.out, facts | {"cases": rows})


if __name__ == "__main__":
    run(main)
