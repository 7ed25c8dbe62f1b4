""""""

import contextlib
import time

import torch


def profile(step, device, folder, steps=5, rows=14):
    """
    Run step(phase) a few times under torch's profiler; returns a summary that fits on a screen.

    step: a function that does its work within `with phase(name):` blocks; the device is waited for
    at the end of each, so that a block's time is its own. Writes folder/trace.json, for
    https://ui.perfetto.dev or chrome://tracing, and folder/summary.txt.
    """
    cuda = device.type == "cuda"
    seconds = {}

    @contextlib.contextmanager
    def phase(name):
        with torch.profiler.record_function(name):
            begin = time.perf_counter()
            yield
            if cuda:
                torch.cuda.synchronize(device)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin

    for _ in range(3):  # compilation, and memory that is asked for once
        step(phase)
    seconds.clear()
    with torch.profiler.profile(acc_events=True) as profiler:
        for _ in range(steps):
            step(phase)
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / "trace.json"))

    total = sum(seconds.values())
    lines = [f"{'phase':<60} {'ms a step':>10} {'share':>7}"]
    for name, spent in [*seconds.items(), ("all", total)]:
        lines.append(f"{name:<60} {spent / steps * 1e3:>10.2f} {spent / total:>7.1%}")
    kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    events = [
        event
        for event in profiler.key_averages()
        if event.device_type == kind and event.key not in seconds
    ]
    own = "self_device_time_total" if cuda else "self_cpu_time_total"  # microseconds
    events.sort(key=lambda event: -getattr(event, own))
    spent = sum(getattr(event, own) for event in events)
    lines.append(f"\n{'costliest ' + ('kernels' if cuda else 'operations'):<60} {'ms a step':>10}")
    lines[-1] += f" {'share':>7} {'calls':>6}"
    for event in events[:rows]:
        own_time = getattr(event, own)
        lines.append(
            f"{event.key[:60]:<60} {own_time / steps / 1e3:>10.2f} {own_time / spent:>7.1%} "
            f"{event.count // steps:>6}"
        )
    summary = "\n".join(lines)
    (folder / "summary.txt").write_text(summary + "\n", encoding="utf-8")
    return summary
