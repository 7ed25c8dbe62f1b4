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
import subprocess

import torch

from configs import ROOT, UserError
from nanostories.training.distributed import world_size

# ----------------------------------------------------------------------------------------------
# where it runs


def pick_device(name):
    """The torch.device behind a setting; raises UserError if it is not there."""
    if name == "auto":
        mps = torch.backends.mps.is_available() and world_size() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda" and world_size() > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # each process has a GPU of its own
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from None
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)  # what asks for "cuda" without a number gets the same
    if name == "cpu":
        reuse_freed_memory()
    return torch.device(name)


def reuse_freed_memory():
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


def select_attention(model, name, dtype):
    """`model.use_attention`, where what the device cannot do is the user's to mend: UserError."""
    try:
        return model.use_attention(name, dtype)
    except ValueError as error:
        raise UserError(str(error)) from None


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


def environment(device):
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


# ----------------------------------------------------------------------------------------------
# being asked to stop


# ----------------------------------------------------------------------------------------------
# where the time goes
