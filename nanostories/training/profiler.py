"""Where the time of a training step goes, by torch's profiler."""

import contextlib
import time

import torch


def profile(step, device, folder, steps=5, rows=8):
    """Run step(timed) a few times under torch's profiler; returns a summary that fits on a screen.

    step works within `with timed(name):` blocks; each ends by waiting for the device, so that its
    time is its own. rows: of torch's table of the costliest operations. Writes folder/trace.json,
    for https://ui.perfetto.dev or chrome://tracing, and folder/summary.txt."""
    cuda, seconds = device.type == "cuda", {}

    @contextlib.contextmanager
    def timed(name):
        with torch.profiler.record_function(name):
            begin = time.perf_counter()
            yield
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - begin

    for _ in range(3):  # compilation, and memory that is allocated once
        step(timed)
    seconds.clear()
    with torch.profiler.profile(acc_events=True) as profiler:
        for _ in range(steps):
            step(timed)
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / "trace.json"))

    total = sum(seconds.values())
    lines = [f"{'phase':<10} {'ms a step':>10} {'share':>7}"]
    for name, spent in [*seconds.items(), ("all", total)]:
        lines.append(f"{name:<10} {spent / steps * 1e3:>10.2f} {spent / total:>7.1%}")
    order = "self_device_time_total" if cuda else "self_cpu_time_total"
    lines.append(profiler.key_averages().table(order, row_limit=rows, max_name_column_width=40))
    summary = "\n".join(lines)
    (folder / "summary.txt").write_text(summary + "\n", encoding="utf-8")
    return summary
