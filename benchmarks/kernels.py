"""Speed and memory of the kernels on this GPU, compared with their baselines.

    python -m benchmarks.kernels                    # minutes; a table, and bench.json and bench.png
    python -m benchmarks.kernels --only=stories

All implementations of a case start from the same tensors (for attention the packed qkv, so a
baseline pays for its layout) and end with their gradients. Each is warmed up, captured in a CUDA
graph (so that no Python is timed; those that a graph cannot capture are launched) and replayed,
interleaved with the others in one process; the figures are medians. The roofline is the least time
that the hardware allows: the larger of the bytes that must move over the copy bandwidth and the
FLOPs that must be done over the matmul rate, both measured here too.
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
from nanostories.plotting import plot_to

PASSES = ("forward", "backward", "both")


@dataclass(frozen=True)
class Settings:
    out: str = "out/bench"  # folder for bench.json and bench.png
    tokens: int = 32768  # of each case; the loss and its baselines need 20 GB of memory at 32768
    rounds: int = 30  # measurements of each implementation
    only: str = ""  # only cases with this in their name
    device: str = "cuda"  # cuda; cpu runs tiny shapes, to test the script


# ---- timing ------------------------------------------------------------------------------------


def capture_graph(function, stream, pool):
    """Capture one call of `function` in a CUDA graph, memory from `pool`; returns its replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool, stream):
        function()

    def replay(kept=function):  # the graph reads tensors that only `function` holds
        graph.replay()

    return replay


def pass_functions(implementation, inputs, capture=True):
    """{pass: function that runs it once}, and the peak memory in bytes beyond the inputs.

    capture: on a GPU the functions replay CUDA graphs.
    """
    leaves = [x for x in inputs if x.requires_grad]
    on_gpu = inputs[0].is_cuda

    def forward():
        with torch.no_grad():
            implementation(*inputs)

    def both():
        out = implementation(*inputs)
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    if not on_gpu:
        out = implementation(*inputs)

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
        out = implementation(*inputs)
        d_out = torch.ones_like(out)

        def backward():
            torch.autograd.grad(out, leaves, d_out, retain_graph=True)

        backward()
        torch.cuda.synchronize()
    functions = dict(zip(PASSES, (forward, backward, both), strict=True))
    if capture:  # one pool: they never run at the same time, and the eager loss takes 20 GB
        pool = torch.cuda.graph_pool_handle()
        functions = {p: capture_graph(function, stream, pool) for p, function in functions.items()}
    return functions, peak


def seconds_per_call(function, on_gpu, repeats):
    """Mean seconds of `repeats` calls."""
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


def interleaved_medians(functions, on_gpu, rounds):
    """{name: median seconds per call} of functions that take turns."""
    repeats = {}
    for name, function in functions.items():
        once = seconds_per_call(function, on_gpu, 1)
        repeats[name] = max(1, min(50, int(0.005 / once))) if on_gpu else 1
    samples = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            samples[name].append(seconds_per_call(function, on_gpu, repeats[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def measure(case, settings):
    """Figures of a case: {name, bytes, flops, required, implementations: {name: figures}}."""
    on_gpu, figures, ready = settings.device == "cuda", {}, {}
    for name, function in case.implementations.items():
        try:
            ready[name], peak = pass_functions(function, case.inputs, name not in case.no_graph)
            figures[name] = {"peak_bytes": peak}
        except Exception as error:  # not every baseline takes every shape; the table says which
            figures[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"}
    for p in PASSES:
        times = interleaved_medians(
            {name: ready[name][p] for name in ready}, on_gpu, settings.rounds
        )
        for name, value in times.items():
            figures[name][f"{p}_us"] = value * 1e6
    required = [{"speedup": x, "over": list(names)} for x, names in case.required.items()]
    facts = {"name": case.name, "bytes": case.bytes, "flops": case.flops, "required": required}
    return facts | {"implementations": figures}


def environment(settings):
    """Versions, the device, and the two rates that the rooflines are computed from."""
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
    times = interleaved_medians(jobs, on_gpu, settings.rounds)
    facts["copy_bytes_per_second"] = 2 * n / times["copy"]
    facts["matmul_flops_per_second"] = 2 * side**3 / times["matmul"]
    return facts


# ---- the table and the plot --------------------------------------------------------------------


def roofline_us(case, facts):
    """The least microseconds that a case's forward and backward passes take on this hardware."""
    moving = case["bytes"] / facts["copy_bytes_per_second"]
    computing = case["flops"] / facts["matmul_flops_per_second"]
    return max(moving, computing) * 1e6


def check_required(case):
    """[(quantity, measured, required, whether it is met)] of a case, the middle two as text."""
    checks, ran = [], {n: x for n, x in case["implementations"].items() if "error" not in x}
    if "nanostories" not in ran:
        return [("nanostories", "failed", "to run", False)]
    for rule in case["required"]:
        baselines = {name: ran[name]["both_us"] for name in rule["over"] if name in ran}
        if baselines:
            fastest = min(baselines, key=baselines.get)
            speedup, least = baselines[fastest] / ran["nanostories"]["both_us"], rule["speedup"]
            checks.append(
                (f"speedup over {fastest}", f"{speedup:.2f}x", f"{least}x", speedup >= least)
            )
    if "eager" in ran and ran["eager"]["peak_bytes"]:
        fraction = ran["nanostories"]["peak_bytes"] / ran["eager"]["peak_bytes"]
        checks.append(("peak memory, of eager's", f"{fraction:.1%}", "5%", fraction <= 0.05))
    return checks


def format_case(case, facts):
    """A case's figures as lines of text, at most 100 columns wide."""
    least = roofline_us(case, facts)
    lines = [f"{case['name']}: roofline {least:.0f} us"]
    lines += [f"  {'us':22} {'forward':>9} {'backward':>9} {'both':>9} {'roofline':>8} {'MB':>8}"]
    for name, x in case["implementations"].items():
        if "error" in x:
            lines.append(f"  {name:22} {x['error']}"[:100])
            continue
        times = " ".join(f"{x[f'{p}_us']:9.1f}" for p in PASSES)
        memory = f"{x['peak_bytes'] / 1e6:8.0f}"
        lines.append(f"  {name:22} {times} {least / x['both_us']:8.0%} {memory}")
    for quantity, measured, required, met in check_required(case):
        lines.append(f"  {quantity}: {measured}, required {required}: {'met' if met else 'MISSED'}")
    return lines


def plot(result, path):
    """Forward + backward time of every implementation, one panel per case, as a PNG."""
    shown = [c for c in result["cases"] if "both_us" in c["implementations"]["nanostories"]]
    columns = max(1, min(4, len(shown)))
    rows = -(-len(shown) // columns) or 1
    with plot_to(path, rows, columns, (3.4 * columns, 2.3 * rows), dpi=110) as (figure, _):
        for axis, case in itertools.zip_longest(figure.axes, shown):
            if case is None:
                axis.axis("off")
                continue
            us = {k: x["both_us"] for k, x in case["implementations"].items() if "both_us" in x}
            names = sorted(us, key=us.get, reverse=True)
            longest = 4 * us["nanostories"]  # longer bars are cut; the number beside them is whole
            widths = [min(us[name], longest) for name in names]
            colors = ["#c44e52" if name == "nanostories" else "#b8c4d6" for name in names]
            axis.barh(names, widths, color=colors)
            for y, (name, width) in enumerate(zip(names, widths, strict=True)):
                axis.text(width, y, f" {us[name]:,.0f}", va="center", fontsize=7)
            axis.axvline(roofline_us(case, result["environment"]), color="black", lw=0.8, ls=":")
            axis.set_xlim(0, 1.25 * max(widths))
            axis.set_xticks([])
            axis.set_title(case["name"], fontsize=9)
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        what = f"forward + backward in µs on {result['environment']['device']}; dotted: roofline"
        figure.suptitle(what, fontsize=10)


def check_device(device):
    """Raises UserError where nothing can be timed."""
    if device == "cuda":
        why = backend.unavailable(device) if torch.cuda.is_available() else "no CUDA GPU here"
        if why:
            raise UserError(f"{why}; --device=cpu runs tiny shapes, to test the script")
    elif device != "cpu":
        raise UserError(f"device must be cuda or cpu, not '{device}'")
    elif not backend.interpreted():
        raise UserError("on a CPU the kernels need TRITON_INTERPRET=1 in the environment")


def main():
    settings, _ = load(Settings)
    check_device(settings.device)
    from torch._functorch import config  # brings torch.compile, which no import needs

    # Or a compiled baseline's backward pass could run only once, and not be timed by itself.
    config.donated_buffer = False
    facts = environment(settings)
    print(
        f"{facts['device']}, torch {facts['torch']}, triton {facts['triton']}: "
        f"copies {facts['copy_bytes_per_second'] / 1e12:.2f} TB/s, "
        f"multiplies {facts['matmul_flops_per_second'] / 1e12:.0f} TFLOP/s\n",
        flush=True,
    )
    result, out = {"environment": facts, "cases": []}, Path(settings.out)
    out.mkdir(parents=True, exist_ok=True)
    for case in cases(settings.tokens, settings.device, settings.only):
        result["cases"].append(measure(case, settings))
        (out / "bench.json").write_text(json.dumps(result, indent=1) + "\n")  # so far
        print("\n".join(format_case(result["cases"][-1], facts)) + "\n", flush=True)
        del case
        if settings.device == "cuda":
            torch.cuda.empty_cache()
    if not result["cases"]:
        raise UserError(f"no case has '{settings.only}' in its name")
    plot(result, out / "bench.png")
    print(f"written: {out}/bench.json, {out}/bench.png")


if __name__ == "__main__":
    run(main)
