"""The device: which one, in which dtype, with which attention, and what it could do at best.

device = pick_device("auto")                 # cuda, or cuda:<local rank> of several; mps; cpu
autocast = autocast_for(device, pick_dtype("auto", device))
with autocast(): ...
"""

import contextlib
import ctypes
import math
import os
import platform
import re
import subprocess
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from configs import ROOT, UserError, explained
from nanostories.training.distributed import world_size


def pick_device(name):
    """The torch.device behind a setting; raises UserError where it cannot be used."""
    if name == "auto":
        mps = torch.backends.mps.is_available() and world_size() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if name == "cuda" and world_size() > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"  # each process has a GPU of its own
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}") from None
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)  # what asks for "cuda" without a number gets the same
    if name == "cpu":
        reuse_freed_memory()
    return torch.device(name)


def memory_of(device):
    """The bytes of memory of a GPU, or of this machine; of one with Windows inf, not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    sysconf = getattr(os, "sysconf", lambda name: math.inf)
    return sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES")


def reuse_freed_memory():
    """Have glibc keep freed blocks below 32 MB for the next step. By default it gives them back to
    the kernel, which zeroes each page again: up to a third of a small model's training time."""
    with contextlib.suppress(AttributeError, TypeError):  # another C library has none
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD of malloc.h: larger blocks come from the kernel
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def pick_dtype(name, device):
    """The torch dtype behind a setting; "auto" is bfloat16 where the hardware computes in it."""
    if name == "auto":
        other = "float16" if device.type == "cuda" else "float32"
        name = "bfloat16" if computes_in_bfloat16(device) else other
    if name not in ("float32", "bfloat16", "float16"):
        raise UserError(f"dtype must be auto, float32, bfloat16 or float16, not '{name}'")
    return getattr(torch, name)


def computes_in_bfloat16(device):
    """Whether the hardware multiplies in bfloat16. Emulated, as on CPUs with AVX-512 alone, that is
    slower than float32."""
    if device.type == "cpu":
        native = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, check, bool)() for check in native)
    return device.type == "cuda" and torch.cuda.is_bf16_supported(False)


def select_attention(model, name, dtype):
    """`model.use_attention` for a setting; raises UserError where the device cannot run it."""
    with explained("", ValueError):
        return model.use_attention(name, dtype)


def autocast_for(device, dtype):
    """A function that returns the context in which `device` computes in `dtype`."""
    if dtype == torch.float32:
        return contextlib.nullcontext
    return lambda: torch.autocast(device.type, dtype)


def compile_model(model, settings, device):
    """(compiled, ddp_model, cuda_graphs): the model compiled where that pays, the same wrapped so
    that its gradients are averaged over the ranks, and whether CUDA graphs launch its passes."""
    cuda, compiled = device.type == "cuda", model
    use_compile = cuda if settings.compile is None else settings.compile
    # A small model's kernels finish sooner than they are launched.
    small = settings.n_embd <= 256 and world_size() == 1
    graphs_wanted = small if settings.cuda_graphs is None else settings.cuda_graphs
    cuda_graphs = cuda and use_compile and graphs_wanted
    if cuda:
        torch.set_float32_matmul_precision("high")  # TF32 for what autocast leaves in float32
    if cuda_graphs:  # gradients must live outside the memory that a graph reuses
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    if use_compile:
        # On CPUs attention runs story by story: no graph can hold that whole.
        mode = "reduce-overhead" if cuda_graphs else None
        compiled = torch.compile(model, dynamic=False, fullgraph=cuda, mode=mode)
    ddp_model = compiled
    if world_size() > 1:
        gpu = [device.index] if cuda else None
        ddp_model = DistributedDataParallel(compiled, gpu, gradient_as_bucket_view=True)
    return compiled, ddp_model, cuda_graphs


# Dense bf16 (fp16 on V100 and T4) matmul peaks of the makers' data sheets, in TFLOP/s, of these
# names exactly: an "RTX 4090 Laptop GPU" or a MIG slice is another card.
PEAKS = {
    2250: "B200", 989: "H200|H100 80GB HBM3|H100 SXM5 80GB", 835: "H200 NVL|H100 NVL",
    756: "H100 PCIe", 312: "A100-SXM4-[48]0GB|A100-PCIE-[48]0GB|A100 80GB PCIe", 150: "A40",
    125: "A10|V100-SXM2-(16|32)GB", 112: "V100-PCIE-(16|32)GB", 362: "L40S", 121: "L4",
    155: "RTX A6000", 165: "RTX 4090", 71: "RTX 3090", 65: "T4",
}  # fmt: skip


def peak_flops(device):
    """The GPU's peak in FLOP/s, a float, or None where it is not known."""
    if device.type != "cuda":
        return None
    name = re.sub(r"^(NVIDIA )?(GeForce |Tesla )?", "", torch.cuda.get_device_name(device))
    return next((peak * 1e12 for peak, names in PEAKS.items() if re.fullmatch(names, name)), None)


def cpu_name():
    """The CPU's model where Linux tells it, else its architecture."""
    with contextlib.suppress(OSError):
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        if match := re.search(r"model name\s*:\s*(\S.*)", info):
            return match[1].strip()
    return platform.machine()


def environment(device):
    """What a result may depend on: the commit of this code, versions, device and threads."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    cuda = torch.device(device).type == "cuda"
    return {
        "git": commit or None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else cpu_name(),
        "threads": torch.get_num_threads(),
    }
