"""
The machine: which device and dtype, which ranks, when it is asked to stop, where the time goes.

    device = pick_device("auto")                 # cuda, or cuda:<local rank> of several; mps; cpu
    autocast = autocast_for(device, pick_dtype("auto", device))
    with distributed():                          # does nothing where torchrun started no ranks
        say(rank(), "of", ranks())               # printed once, by rank 0
        seconds, stop = highest(seconds, stop)   # the same numbers on every rank

Ranks are torch.distributed's: NCCL between GPUs, gloo between CPUs and for the numbers the hosts
agree on, so that agreeing never waits for a GPU.
"""

import contextlib
import ctypes
import os
import platform
import signal
import subprocess
import threading
import time

import torch
import torch.distributed as dist

from configs import ROOT, UserError

# ----------------------------------------------------------------------------------------------
# where it runs


def pick_device(name):
    """The torch.device behind a setting; raises UserError if it is not there."""
    if name == "auto":
        mps = torch.backends.mps.is_available() and ranks() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda" and ranks() > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # each process has a GPU of its own
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from None
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)  # what asks for "cuda" without a number gets the same
    if name == "cpu":
        keep_memory()
    return torch.device(name)


def keep_memory():
    """
    Have the C library keep what is freed for what comes next, but for blocks of 32 MB and more.
    glibc gives more of it back to the kernel, which zeroes each page again for the next step: up to
    a third of a small model's time.
    """
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    with contextlib.suppress(AttributeError):  # another C library has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 2**25)  # of this size on, a block comes from the kernel alone
        mallopt(trim_threshold, 2**31 - 1)


def pick_dtype(name, device):
    """The torch dtype behind a setting; "auto" is bfloat16 where the hardware computes in it."""
    if name == "auto":
        name = "float32"
        if device.type == "cuda":
            name = "bfloat16" if torch.cuda.is_bf16_supported(False) else "float16"
        elif device.type == "cpu":
            # Emulated, as on CPUs with AVX-512 alone, bf16 is slower than float32.
            native = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
            if any(getattr(torch.cpu, check, bool)() for check in native):
                name = "bfloat16"
    if name not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype must be auto, float32, bfloat16 or float16, not '{name}'")
    return getattr(torch, name)


def autocast_for(device, dtype):
    """A function that returns the context in which `device` computes in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype)


# Dense bf16 (fp16 on V100 and T4) matmul peaks of the makers' data sheets, in TFLOP/s.
PEAKS = {
    "H200": 989, "H100 PCIe": 756, "H100": 989, "B200": 2250, "A100": 312, "A10": 125, "A40": 150,
    "L40S": 362, "L4": 121, "A6000": 155, "4090": 165, "3090": 71, "V100": 125, "T4": 65,
}  # fmt: skip


def peak_flops(device):
    """FLOP/s this GPU could do at best, or None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak * 1e12 for key, peak in PEAKS.items() if key in name), None)


def describe(device):
    """The commit of this code, the versions and the machine: what a result may depend on."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    cuda = torch.device(device).type == "cuda"
    return {
        "git": commit or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "threads": torch.get_num_threads(),
    }


# ----------------------------------------------------------------------------------------------
# ranks


@contextlib.contextmanager
def distributed():
    """Join the ranks that torchrun started, if it did, and part from them at the end."""
    if "RANK" not in os.environ:
        yield
        return
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    yield
    dist.destroy_process_group()  # not after an error: it would wait for ranks that are gone


def _joined():
    return dist.is_available() and dist.is_initialized()


def rank():
    """This process's number among the ranks, 0 where it is alone."""
    return dist.get_rank() if _joined() else 0


def ranks():
    """How many processes train together."""
    return dist.get_world_size() if _joined() else 1


def wait_for_all():
    """Return when every rank has come here."""
    totals(0)


def say(*words):
    """print, on rank 0 alone."""
    if rank() == 0:
        print(*words, flush=True)


def totals(*numbers):
    """Each number's sum over the ranks, as floats."""
    return _reduce(numbers, "SUM")


def everyone(items):
    """The lists of all ranks, one after the other by rank, as one list on each of them."""
    if not _joined():
        return list(items)
    found = [None] * ranks()
    dist.all_gather_object(found, list(items))
    return [item for part in found for item in part]


def highest(*numbers):
    """Each number's maximum over the ranks, as floats."""
    return _reduce(numbers, "MAX")


def _reduce(numbers, how):
    numbers = torch.tensor(numbers, dtype=torch.float64)
    if _joined():
        dist.all_reduce(numbers, getattr(dist.ReduceOp, how))
    return numbers.tolist()


# ----------------------------------------------------------------------------------------------
# being asked to stop


class Interrupt:
    """
    Within `with Interrupt() as interrupt:`, SIGTERM and the first Ctrl-C only set `asked`.

    The second ends the process at once. torchrun passes a signal on to its ranks, and kills them
    30 seconds later.
    """

    def __enter__(self):
        self.asked, self.before = False, {}
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _handle(self, number, _frame):
        if self.asked:
            os._exit(128 + number)
        self.asked = True
        if rank() == 0:  # not with print: a signal may come in the middle of one
            os.write(2, b"\nstopping after this step; once more to stop at once\n")


# ----------------------------------------------------------------------------------------------
# where the time goes


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
