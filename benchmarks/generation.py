"""Generation throughput, compared with transformers, nanoGPT and llama2.c.

    python -m benchmarks.generation                      # compared with transformers, if installed
    python -m benchmarks.generation --nanogpt=nanoGPT --llama2c=llama2.c --out=cpu.json
    python -m benchmarks.generation --loss=out/ts_33m    # how much int8 and bfloat16 raise the loss
    python -m benchmarks.generation --device=cuda        # on a GPU, with a batch of 1,024

All models have the same shape and random weights, and take turns in one process.

One story: tokens per second after a prompt of 8 tokens, sampled at temperature 0.8, and the
fraction of the memory-bandwidth bound: reading all weights once per token, at the speed at which
torch sums as many numbers. Batch: 64 prompts of 4 to 16 tokens, on a GPU 1,024. `torch` is the
decoder that is left where there is no C compiler. nanoGPT has no KV cache, so its cost per token
grows with the length: it is compared over 400 tokens. llama2.c is a Llama in C of the same width,
layers, heads and number of weights; its checkout must have been built with `make runomp`. It runs
with one thread and with all, and the faster one counts.

`ratio` is the median over the rounds, with the lowest and the highest.
"""

import importlib.util
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from configs import load, run
from model import GPT, GPTConfig
from nanostories import storage
from nanostories.dataset.shards import Dataset
from nanostories.inference.decoder import Decoder, open_decoder
from nanostories.inference.generate import generate, request_seeds
from nanostories.training import checkpoint
from nanostories.training.device import environment


@dataclass(frozen=True)
class Settings:
    nanogpt: str = ""  # a checkout of nanoGPT to compare with
    llama2c: str = ""  # a compiled checkout of llama2.c to compare with
    loss: str = ""  # instead: the loss of this run with weights of each dtype
    only: str = ""  # comma-separated shapes, width-layers-vocabulary; default: all
    tokens: int = 200  # of a story
    rounds: int = 5  # measurements of each, in turns
    device: str = "cpu"  # cpu or cuda; nanoGPT and llama2.c are compared on CPUs
    out: str = ""  # a JSON file for the figures


# width, layers, heads, tokens of the vocabulary
SHAPES = [(64, 8, 16, 4096), (128, 4, 4, 4096), (256, 8, 16, 4096), (768, 4, 16, 4096),
          (256, 8, 16, 50257), (512, 8, 16, 50257), (768, 4, 16, 50257)]  # fmt: skip
DTYPES = ("float32", "bfloat16", "int8")
NO_EOT = -1  # no token ends a story, so that all have one length


def throughput(decoder, prompts, tokens):
    """Tokens per second that our decoder generates for a batch of prompts."""
    seeds, rows = request_seeds(0, len(prompts)), len(prompts)
    begin = time.perf_counter()
    generate(
        decoder, prompts, NO_EOT, seeds, max_new_tokens=tokens, batch_size=rows, temperature=0.8
    )
    return tokens * len(prompts) / (time.perf_counter() - begin)


def transformers_baseline(shape, device):
    """transformers' GPT-2 of a shape: a function (tokens to generate) -> tokens per second."""
    from transformers import GPT2Config, GPT2LMHeadModel

    C, L, H, V = shape
    config = GPT2Config(vocab_size=V, n_positions=512, n_embd=C, n_layer=L, n_head=H,
                        bos_token_id=V - 1, eos_token_id=V - 1)  # fmt: skip
    model = GPT2LMHeadModel(config).eval().to(device)
    prompt = torch.arange(8, device=device)[None]
    kwargs = {"attention_mask": torch.ones_like(prompt), "do_sample": True, "temperature": 0.8,
              "top_k": 0, "pad_token_id": V - 1}  # fmt: skip

    def measure(tokens):
        begin = time.perf_counter()
        model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, **kwargs)
        return tokens / (time.perf_counter() - begin)

    return measure


def nanogpt_baseline(shape, checkout):
    """nanoGPT's model and its generate, as its sample.py calls it."""
    C, L, H, V = shape
    spec = importlib.util.spec_from_file_location("nanogpt", Path(checkout) / "model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt"] = module
    spec.loader.exec_module(module)
    model = module.GPT(module.GPTConfig(512, V, L, H, C, 0.0, True)).eval()

    def measure(tokens):
        begin = time.perf_counter()
        model.generate(torch.arange(8)[None], tokens, temperature=0.8)
        return tokens / (time.perf_counter() - begin)

    return measure


def llama2c_baseline(shape, checkout, folder):
    """llama2.c's `run`, with random weights of the same width, layers, heads and number."""
    C, L, H, V = shape
    hidden = 8 * C // 3  # its MLP has three matrices
    rng = np.random.default_rng(0)
    weights = 4 * C * C * L + 3 * C * hidden * L + (2 * L + 1) * C + V * C + 512 * (C // H)
    with open(folder / "model.bin", "wb") as file:
        file.write(struct.pack("7i", C, hidden, L, H, H, V, 512))
        file.write((rng.standard_normal(weights, np.float32) * 0.05).tobytes())
    with open(folder / "tokenizer.bin", "wb") as file:
        file.write(struct.pack("i", 5))
        for i in range(V):
            file.write(struct.pack("fi", 0.0, 5) + f"{i:05d}".encode())

    def measure(tokens):
        best = 0.0
        for threads in (1, os.cpu_count()):
            generated, elapsed = 0, 0.0
            for seed in range(1, 50):  # a story of random weights may end early
                program = Path(checkout).resolve() / "run"
                done = subprocess.run(
                    [program, "model.bin", "-z", "tokenizer.bin", "-t", "0.8", "-p", "1.0",
                     "-n", str(tokens), "-s", str(seed)],
                    cwd=folder, capture_output=True, check=True,
                    env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                )  # fmt: skip
                n = len(re.findall(rb"\d{5}", done.stdout))
                if n < 20:
                    continue
                generated, elapsed = generated + n, elapsed + n / float(done.stderr.split()[-1])
                if generated >= tokens:
                    break
            best = max(best, generated / elapsed)
        return best

    return measure


def memory_bound(shape):
    """The memory-bandwidth bound: all weights are read once per token."""
    C, L, _, V = shape
    weights = torch.ones(12 * C * C * L + V * C)

    def measure(tokens):
        begin = time.perf_counter()
        for _ in range(10):
            weights.sum()
        return 10 / (time.perf_counter() - begin)

    return measure


def compare(settings, shape):
    """The figures of one shape: median throughputs and ratios."""
    C, L, H, V = shape
    torch.manual_seed(0)
    model = GPT(GPTConfig(V, 512, L, H, C)).eval().to(settings.device)
    device, cuda = torch.device(settings.device), settings.device == "cuda"
    dtypes = DTYPES[: 2 if cuda else 3]
    decoders = {dtype: open_decoder(model, dtype, device) for dtype in dtypes}
    generator, count = np.random.default_rng(0), 1024 if cuda else 64
    many = [generator.integers(V, size=4 + i % 13).tolist() for i in range(count)]
    one = [list(range(8))]
    measures = {
        dtype: lambda n, decoder=decoder: throughput(decoder, one, n)
        for dtype, decoder in decoders.items()
    }
    if importlib.util.find_spec("transformers"):
        measures["transformers"] = transformers_baseline(shape, settings.device)
    fastest = "bfloat16" if cuda else "float32"
    measures[f"batch of {count}"] = lambda n: throughput(decoders[fastest], many, n)
    if not cuda:  # without a C compiler it would be this one
        torch_decoder = Decoder(model)
        measures["torch"] = lambda n: throughput(torch_decoder, one, n)
        measures[f"torch, batch of {count}"] = lambda n: throughput(torch_decoder, many, n)
        measures["memory bound"] = memory_bound(shape)
    with tempfile.TemporaryDirectory() as folder:
        if settings.llama2c:
            measures["llama2.c"] = llama2c_baseline(shape, settings.llama2c, Path(folder))
        if settings.nanogpt and C <= 256 and V == 4096:  # larger shapes would take minutes
            nanogpt = nanogpt_baseline(shape, settings.nanogpt)
            measures["nanoGPT"] = lambda n: nanogpt(400)
            measures["400 tokens"] = lambda n: throughput(decoders["float32"], one, 400)
        for measure in measures.values():
            measure(20)  # warm up
        rounds = [
            {name: measure(settings.tokens) for name, measure in measures.items()}
            for _ in range(settings.rounds)
        ]
    pairs = [(dtype, "transformers") for dtype in DTYPES] + [("float32", "memory bound")]
    pairs += [(f"batch of {count}", fastest), ("float32", "llama2.c"), ("400 tokens", "nanoGPT")]
    pairs += [("float32", "torch"), (f"batch of {count}", f"torch, batch of {count}")]
    pairs += [("bfloat16", "float32"), ("int8", "float32")]
    result = {"shape": f"{C}-{L}", "vocab_size": V, "tokens_per_second": {}, "ratio": {}}
    for name in measures:
        result["tokens_per_second"][name] = statistics.median(r[name] for r in rounds)
    for name, baseline in (pair for pair in pairs if pair[0] in measures and pair[1] in measures):
        ratios = sorted(r[name] / r[baseline] for r in rounds)
        result["ratio"][f"{name} / {baseline}"] = {
            "median": statistics.median(ratios), "lowest": ratios[0], "highest": ratios[-1],
        }  # fmt: skip
    return result


@torch.no_grad()
def mean_loss(decoder, stories):
    """Loss per token in nats of lists of ids; <|endoftext|> begins each, and is its last target."""
    cache = decoder.new_cache(len(stories), max(map(len, stories)))
    cache.add_requests([story[:1] for story in stories], request_seeds(0, len(stories)))
    total_loss, count = 0.0, 0
    for step in range(1, max(map(len, stories)) + 1):
        finished = [row for row, story in enumerate(stories) if len(story) < step]
        if finished:
            stories = [stories[row] for row in cache.free_slots(finished)]
        logits = cache.logits()
        target = torch.tensor([(story + story[:1])[step] for story in stories])
        total_loss += F.cross_entropy(logits, target, reduction="sum").item()
        count += len(stories)
        cache.last_tokens[: len(stories)] = target
    return total_loss / count


def losses(settings):
    """The loss of a run on its first 128 validation stories, with weights of each dtype."""
    loaded = checkpoint.load_run(settings.loss)
    data = Dataset(checkpoint.data_folder(settings.loss), "val")
    stories = [data.story(i).tolist() for i in range(min(400, data.stories))]
    stories = [story for story in stories if len(story) < loaded.max_length][:128]
    result = {"parameters": loaded.model.num_params(), "checkpoint": loaded.identity(), "loss": {}}
    for dtype in DTYPES:
        decoder = open_decoder(loaded.model, dtype, torch.device("cpu"))
        result["loss"][dtype] = mean_loss(decoder, stories)
        more = result["loss"][dtype] / result["loss"]["float32"] - 1
        print(f"{dtype:<10} loss {result['loss'][dtype]:.4f} ({more:+.3%})", flush=True)
    return result


def write_results(settings, results):
    """Write the results so far."""
    if settings.out:
        facts = {
            "environment": environment(settings.device),
            "cores": os.cpu_count(),
            "results": results,
        }
        storage.write_json(settings.out, facts)


def main():
    settings, _ = load(Settings)
    torch.set_grad_enabled(False)
    results = []
    if not (settings.loss or importlib.util.find_spec("transformers")):
        print("transformers is not installed: it is left out", flush=True)
    if settings.loss:
        results.append(losses(settings))
        write_results(settings, results)
    else:
        for shape in SHAPES:
            C, L, _, V = shape
            if settings.only and f"{C}-{L}-{V}" not in settings.only.split(","):
                continue
            results.append(result := compare(settings, shape))
            speeds = result["tokens_per_second"].items()
            print(f"{C}-{L}, {V:,} tokens", *(f"{name} {speed:,.0f}" for name, speed in speeds),
                  sep="; ")  # fmt: skip
            for name, ratio in result["ratio"].items():
                print(f"    {name}: {ratio['median']:.2f} "
                      f"({ratio['lowest']:.2f} to {ratio['highest']:.2f})", flush=True)  # fmt: skip
            write_results(settings, results)


if __name__ == "__main__":
    run(main)
