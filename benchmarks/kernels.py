"""
How fast the kernels are on this GPU, beside everything else that could do their work.

    python -m benchmarks.kernels                    # minutes; a table, and bench.json and bench.png
    python -m benchmarks.kernels --only=stories

All contestants of a case start from the same tensors (for attention the packed qkv, so a rival pays
for its layout) and end with their gradients. Each is warmed up, captured in a CUDA graph (so no
Python is timed; rivals that no graph can hold are launched) and replayed by turns in one process;
the figures are medians. The floor is what the hardware allows: the larger of the bytes that must
move over the copy bandwidth and the FLOPs that must be done over the matmul rate, both measured
here too.
"""

import itertools
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.kernel_baselines import cases
from configs import UserError, load, run
from kernels import backend

PASSES = ("forward", "backward", "both")


@dataclass(frozen=True)
class Settings:
    out: str = "out/bench"  # folder for bench.json and bench.png
    tokens: int = 32768  # of each case; the loss and its rivals need 20 GB of memory at 32768
    rounds: int = 30  # times each contestant has its turn
    only: str = ""  # only cases with this in their name
    device: str = "cuda"  # cuda; cpu tries the script itself out, on tiny shapes


# ----------------------------------------------------------------------------------------------
# the clock


def graphed(function, stream, pool):
    """`function`, run once, as a CUDA graph with its memory from `pool`: what replays it."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool, stream):
        function()

    def replay(kept=function):  # the graph reads tensors that only `function` holds
        graph.replay()

    return replay


def runners(contestant, inputs, capture=True):
    """
    {pass: function that runs it once}, and the memory it takes in bytes beyond its inputs.

    capture: on a GPU the functions replay CUDA graphs.
    """
    leaves = [x for x in inputs if x.requires_grad]
    on_gpu = inputs[0].is_cuda

    def forward():
        with torch.no_grad():
            contestant(*inputs)

    def both():
        out = contestant(*inputs)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    if not on_gpu:
        out = contestant(*inputs)

        def backward():
            torch.autograd.grad(out, leaves, torch.ones_like(out), retain_graph=True)

        return dict(zip(PASSES, (forward, backward, both), strict=True)), 0

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, and settles the allocator
            both()
        forward()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        out = contestant(*inputs)
        d_out = torch.ones_like(out)

        def backward():
            torch.autograd.grad(out, leaves, d_out, retain_graph=True)

        backward()
        torch.cuda.synchronize()
    functions = dict(zip(PASSES, (forward, backward, both), strict=True))
    if capture:  # one pool: they never run at the same time, and the eager loss takes 20 GB
        pool = torch.cuda.graph_pool_handle()
        functions = {p: graphed(function, stream, pool) for p, function in functions.items()}
    return functions, peak


def seconds(function, on_gpu, repeats):
    """Seconds that one of `repeats` calls takes."""
    if not on_gpu:
        began = time.perf_counter()
        for _ in range(repeats):
            function()
        return (time.perf_counter() - began) / repeats
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(repeats):
        function()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / 1000 / repeats


def by_turns(functions, on_gpu, rounds):
    """{name: median seconds} of functions that take turns."""
    repeats = {}
    for name, function in functions.items():
        once = seconds(function, on_gpu, 1)
        repeats[name] = max(1, min(50, int(0.005 / once))) if on_gpu else 1
    samples = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            samples[name].append(seconds(function, on_gpu, repeats[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def measure(case, settings):
    """A case's figures: {"name", "bytes", "flops", "bars", "contestants": {name: figures}}."""
    on_gpu, found, ready = settings.device == "cuda", {}, {}
    for name, contestant in case.contestants.items():
        try:
            ready[name], peak = runners(contestant, case.inputs, name not in case.launched)
            found[name] = {"peak_bytes": peak}
        except Exception as error:  # not every rival has every shape; the table says which
            found[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
    for p in PASSES:
        times = by_turns({name: ready[name][p] for name in ready}, on_gpu, settings.rounds)
        for name, value in times.items():
            found[name][f"{p}_us"] = value * 1e6
    bars = [{"ratio": ratio, "against": list(names)} for ratio, names in case.bars.items()]
    facts = {"name": case.name, "bytes": case.bytes, "flops": case.flops, "bars": bars}
    return facts | {"contestants": found}


def machine(settings):
    """What ran, and the two rates that the floors are made of."""
    facts = {"torch": torch.__version__, "triton": getattr(backend.triton, "__version__", "none")}
    on_gpu = settings.device == "cuda"
    facts["device"] = torch.cuda.get_device_name() if on_gpu else "cpu"
    n, side = (1 << 30, 8192) if on_gpu else (1 << 20, 256)
    source = torch.zeros(n, dtype=torch.uint8, device=settings.device)
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=settings.device).bfloat16() for _ in range(2))
    jobs = {"copy": lambda: target.copy_(source), "matmul": lambda: a @ b}
    for job in jobs.values():
        job()
    times = by_turns(jobs, on_gpu, settings.rounds)
    facts["copy_bytes_per_second"] = 2 * n / times["copy"]
    facts["matmul_flops_per_second"] = 2 * side**3 / times["matmul"]
    return facts


# ----------------------------------------------------------------------------------------------
# reading it


def floor_us(case, facts):
    """Microseconds that a case's forward and backward passes take on perfect hardware use."""
    moving = case["bytes"] / facts["copy_bytes_per_second"]
    computing = case["flops"] / facts["matmul_flops_per_second"]
    return max(moving, computing) * 1e6


def verdicts(case):
    """[(what, reached, bar, whether it is met)], the middle two as text, for each bar of a case."""
    found, them = [], {n: x for n, x in case["contestants"].items() if "error" not in x}
    if "ours" not in them:
        return [("ours", "failed", "running", False)]
    for bar in case["bars"]:
        rivals = {name: them[name]["both_us"] for name in bar["against"] if name in them}
        if rivals:
            best = min(rivals, key=rivals.get)
            ratio = rivals[best] / them["ours"]["both_us"]
            what = f"speed against {best}"
            found.append((what, f"{ratio:.2f}x", f"{bar['ratio']}x", ratio >= bar["ratio"]))
    if "eager" in them and them["eager"]["peak_bytes"]:
        share = them["ours"]["peak_bytes"] / them["eager"]["peak_bytes"]
        found.append(("peak memory against eager", f"{share:.1%}", "5%", share <= 0.05))
    return found


def lines_of(case, facts):
    """A case's figures as lines of text, at most 100 columns wide."""
    low = floor_us(case, facts)
    lines = [f"{case['name']}: floor {low:.0f} us"]
    lines += [f"  {'us':16} {'forward':>9} {'backward':>9} {'both':>9} {'floor':>6} {'MB':>8}"]
    for name, x in case["contestants"].items():
        if "error" in x:
            lines.append(f"  {name:16} {x['error']}"[:100])
            continue
        times = " ".join(f"{x[f'{p}_us']:9.1f}" for p in PASSES)
        lines.append(f"  {name:16} {times} {low / x['both_us']:6.0%} {x['peak_bytes'] / 1e6:8.0f}")
    for what, reached, bar, met in verdicts(case):
        lines.append(f"  {what}: {reached}, the bar is {bar}: {'met' if met else 'MISSED'}")
    return lines


def plot(result, path):
    """Forward + backward of every contestant, a panel a case, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [case for case in result["cases"] if "both_us" in case["contestants"]["ours"]]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.4 * columns, 2.3 * rows), layout="constrained", squeeze=False
    )
    for axis, case in itertools.zip_longest(axes.flat, shown):
        if case is None:
            axis.axis("off")
            continue
        us = {name: x["both_us"] for name, x in case["contestants"].items() if "both_us" in x}
        names = sorted(us, key=us.get, reverse=True)
        limit = 4 * us["ours"]  # longer bars are cut; their figure says so
        widths = [min(us[name], limit) for name in names]
        colors = ["#c44e52" if name == "ours" else "#b8c4d6" for name in names]
        axis.barh(names, widths, color=colors)
        for y, (name, width) in enumerate(zip(names, widths, strict=True)):
            axis.text(width, y, f" {us[name]:,.0f}", va="center", fontsize=7)
        axis.axvline(floor_us(case, result["machine"]), color="black", linewidth=0.8, linestyle=":")
        axis.set_xlim(0, 1.25 * max(widths))
        axis.set_xticks([])
        axis.set_title(case["name"], fontsize=9)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"forward + backward in µs on {result['machine']['device']}; dotted: the floor", fontsize=10
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def check_device(device):
    """Raises UserError where nothing can be timed."""
    if device == "cuda":
        why = backend.unavailable(device) if torch.cuda.is_available() else "no CUDA GPU here"
        if why:
            raise UserError(f"{why}; --device=cpu tries the script out on tiny shapes")
    elif device != "cpu":
        raise UserError(f"device must be cuda or cpu, not '{device}'")
    elif not backend.interpreted():
        raise UserError("on a CPU the kernels need TRITON_INTERPRET=1 in the environment")


def main():
    settings, _ = load(Settings)
    check_device(settings.device)
    # Or a compiled rival's backward pass could run only once, and not be timed by itself.
    torch._functorch.config.donated_buffer = False
    facts = machine(settings)
    print(
        f"{facts['device']}, torch {facts['torch']}, triton {facts['triton']}: "
        f"copies {facts['copy_bytes_per_second'] / 1e12:.2f} TB/s, "
        f"multiplies {facts['matmul_flops_per_second'] / 1e12:.0f} TFLOP/s\n",
        flush=True,
    )
    result, out = {"machine": facts, "cases": []}, Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    for case in cases(settings.tokens, settings.device, settings.only):
        result["cases"].append(measure(case, settings))
        (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")  # so far
        print("\n".join(lines_of(result["cases"][-1], facts)) + "\n", flush=True)
        del case
        if settings.device == "cuda":
            torch.cuda.empty_cache()
    if not result["cases"]:
        raise UserError(f"no case has '{settings.only}' in its name")
    plot(result, out / "bench.png")
    print(f"written: {out}/bench.json, {out}/bench.png")


if __name__ == "__main__":
    run(main)
