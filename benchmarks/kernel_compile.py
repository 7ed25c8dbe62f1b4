"""Compile every kernel that can be launched, for three GPU architectures, without a GPU.

    python -m benchmarks.kernel_compile            # a table of all: minutes, on any Linux CPU
    python -m benchmarks.kernel_compile --arch=90 --only=attention,D=48,bfloat16

Triton brings its own assembler and cuobjdump, so a computer without a GPU can report what decides a
kernel's speed: registers per thread (at most 255; what does not fit spills to the stack, in slow
memory), shared memory per block, whether the tensor cores are used, and whether the assembler
serialized Hopper's asynchronous matrix products (wgmma), which only its log reveals.

The launches are recorded from the launchers themselves, so what is compiled here is what runs.
"""

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from unittest import mock

import torch

from configs import UserError, load, run
from kernels import attention, attention_backward, backend, cross_entropy, mlp
from nanostories.dataset.workers import cpu_count

ARCHES = (80, 90, 100)
# KiB of shared memory a block may have. 80 stands for 8.6, 8.9 and 12.0 too, which have less than
# the 163 of 8.0 (CUDA C++ Programming Guide, compute capabilities).
SHARED_LIMIT = {80: 99, 90: 227, 100: 227}
# Bytes of stack per thread (16 registers) that do little harm: with them the backward pass of heads
# of 128 took 419 us on an H100, where the fastest shape without any took 924 (kernel_tuning.py).
STACK_LIMIT = 64
HEAD_SIZES = (4, 16, 32, 48, 64, 80, 96, 128)
EMBEDDINGS = (64, 96, 128, 768)
MLP_EMBEDDINGS = (256, 768)
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class Settings:
    arch: int = 0  # compute capability without the dot, 80, 90 or 100; default: all
    only: str = ""  # comma-separated words, all in the configuration's name; default: all
    workers: int = 0  # processes; 0: one a core


@dataclass(frozen=True)
class Report:
    """One kernel, compiled for one architecture."""

    name: str  # configuration and kernel
    arch: int
    dtype: str
    registers: int  # per thread
    stack: int  # bytes per thread: spilled registers and local arrays
    shared: int  # bytes per block
    tensor_cores: bool
    serialized: bool

    def problems(self):
        """Names of its problems, [] if none. float32 products use no tensor cores by design."""
        checks = {
            f"{self.stack} bytes of stack": self.stack > STACK_LIMIT,
            f"{self.shared} bytes of shared memory": self.shared > SHARED_LIMIT[self.arch] * 1024,
            "no tensor cores": not self.tensor_cores and self.dtype != "float32",
            "serialized wgmma": self.serialized,
        }
        return [problem for problem, present in checks.items() if present]


# ---- recording the launches --------------------------------------------------------------------


def attention_passes(head_size, dtype, stories):
    """Run attention's launchers, forward and backward."""
    B, T, H = 1, 512, 16
    qkv = torch.zeros(B, T, 3, H, head_size, dtype=dtype)
    start = torch.zeros(B, T, dtype=torch.int32) if stories else None
    out, lse = torch.zeros(B, T, H, head_size, dtype=dtype), torch.zeros(B, H, T)
    attention.flash_attention(qkv, start, start, 1.0)
    args = (out, qkv, out, lse, start, start, 1.0)
    attention.flash_attention_backward(*args)
    with mock.patch.object(attention_backward, "one_pass_programs", lambda *_: 0):
        attention.flash_attention_backward(*args)  # two sweeps, as where heads are few


def loss_passes(n_embd, dtype, implementation):
    """Run the launchers of linear_cross_entropy, forward and backward and forward alone."""
    hidden, weight = torch.zeros(32, n_embd, dtype=dtype), torch.zeros(128, n_embd, dtype=dtype)
    targets = torch.zeros(32, dtype=torch.int64)
    for grad in (True, False):
        saved = cross_entropy.fused_loss(
            hidden, weight, targets, 97, -1, True, grad, implementation, dtype
        )
    cross_entropy.fused_loss_backward(
        torch.ones(32), hidden, weight, targets, *saved[1:], 97, -1, implementation, dtype
    )


def mlp_passes(n_embd, dtype, gelu):
    """Run the launchers of fused_mlp, forward and backward and forward alone."""
    x, bias = torch.zeros(32, n_embd, dtype=dtype), torch.zeros(4 * n_embd, dtype=dtype)
    w1, tanh = torch.zeros(4 * n_embd, n_embd, dtype=dtype), gelu == "tanh"
    for grad in (False, True):
        y, u, _ = mlp.triton_mlp(x, w1, bias, w1.T, bias[:n_embd], tanh, grad)
    mlp.triton_mlp_backward(y, w1.T, u, tanh)


def record_launches(operation, *args):
    """[(kernel, arguments, options)] of the Triton launches that operation(*args) makes."""
    launches = []

    def launch(kernel, grid, *args, **options):
        launches.append((kernel, args, options))

    with contextlib.ExitStack() as stack:
        for module in (attention, attention_backward, cross_entropy, mlp):
            stack.enter_context(mock.patch.object(module, "launch", launch))
        operation(*args)
    return launches


def configurations():
    """{name: (function, *arguments)} of all launches that compile to different code."""
    launchers = {}
    for dtype in DTYPES:
        for size in HEAD_SIZES:
            for stories in (False, True):
                name = f"attention D={size} {'stories' if stories else 'causal'} {dtype}"
                launchers[name] = (attention_passes, size, getattr(torch, dtype), stories)
        for size in EMBEDDINGS:
            implementation = cross_entropy.choose_kernels(getattr(torch, dtype), size)
            name = f"loss C={size} {implementation} {dtype}"
            launchers[name] = (loss_passes, size, getattr(torch, dtype), implementation)
        for size in MLP_EMBEDDINGS:
            for gelu in ("erf", "tanh"):
                name = f"mlp C={size} {gelu} {dtype}"
                launchers[name] = (mlp_passes, size, getattr(torch, dtype), gelu)
    for size in (256, 768):  # never chosen without a measurement
        launchers[f"loss C={size} epilogue bfloat16"] = (
            loss_passes, size, torch.bfloat16, "epilogue",
        )  # fmt: skip
    return launchers


# ---- compiling and inspecting ------------------------------------------------------------------


def compile_launch(kernel, args, options, arch):
    """Compile one recorded launch for sm_<arch>; returns Triton's CompiledKernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    compiler = ("num_warps", "num_stages", "maxnreg", "enable_fp_fusion")
    compiler_options = {name: options[name] for name in compiler if name in options}
    values = dict(zip(kernel.arg_names, args, strict=False))
    values |= {name: value for name, value in options.items() if name not in compiler}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = values[name]
        if name in options:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
            kind = str(value.dtype).removeprefix("torch.")
            signature[name] = "*" + short.get(kind, kind.replace("int", "i"))
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
            if isinstance(value, int) and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    compiler_options.setdefault("enable_fp_fusion", True)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=compiler_options)


def inspect(compiled, name, arch, dtype):
    """The Report of a CompiledKernel."""
    from triton import knobs
    from triton.backends.nvidia.compiler import get_ptxas

    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = os.path.join(folder, "kernel.cubin"), os.path.join(folder, "kernel.ptx")
        with open(cubin, "wb") as file:
            file.write(compiled.asm["cubin"])
        with open(ptx, "w") as file:
            file.write(compiled.asm["ptx"])
        show = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", cubin]
        usage = subprocess.run(show, check=True, capture_output=True, text=True).stdout
        log = ""
        if arch == 90:  # the only architecture with wgmma
            assemble = [get_ptxas(arch).path, "-v", "--gpu-name=sm_90a", ptx, "-o", os.devnull]
            log = subprocess.run(assemble, check=True, capture_output=True, text=True).stderr
    registers, stack = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))
    instruction = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[arch]
    has_matrices = "tt.dot" in compiled.asm["ttir"]
    tensor_cores = instruction in compiled.asm["ptx"] or not has_matrices
    shared = compiled.metadata.shared
    return Report(name, arch, dtype, registers, stack, shared, tensor_cores, "serialized" in log)


def reports(name, arch):
    """[Report] of the kernels of one configuration."""
    operation, *args = configurations()[name]
    results, seen = [], set()
    with mock.patch.object(torch.cuda, "get_device_capability", lambda *_: divmod(arch, 10)):
        launches = record_launches(operation, *args)
    for kernel, launch_args, options in launches:
        compiled = compile_launch(kernel, launch_args, options, arch)
        if compiled.hash not in seen:
            title = f"{name}: {kernel.__name__.lstrip('_')}"
            results.append(inspect(compiled, title, arch, name.split()[-1]))
        seen.add(compiled.hash)
    return results


def main():
    settings, _ = load(Settings)
    if not backend.installed():
        raise UserError("triton is not installed; on Linux: pip install triton")
    if backend.interpreted():
        raise UserError("TRITON_INTERPRET is set: unset it, the interpreter compiles nothing")
    arches = [settings.arch] if settings.arch else ARCHES
    if not set(arches) <= set(ARCHES):
        raise UserError(f"arch must be one of {', '.join(map(str, ARCHES))}")
    words = settings.only.replace(",", " ").split()
    names = [name for name in configurations() if set(words) <= set(name.split())]
    work = [(name, arch) for name in names for arch in arches]
    if not work:
        raise UserError(f"no configuration has all of: {settings.only}")
    print(f"{'configuration and kernel':52} {'sm':>4} {'registers':>9} {'shared':>7}  problems")
    bad = 0
    with ProcessPoolExecutor(settings.workers or cpu_count()) as pool:
        for results in pool.map(reports, *zip(*work, strict=True)):
            for report in results:
                problems = ", ".join(report.problems())
                bad += bool(problems)
                print(
                    f"{report.name:52} {report.arch:4} {report.registers:9} {report.shared:7}  "
                    f"{problems}".rstrip(),
                    flush=True,
                )
    print(f"{bad} with problems" if bad else "no problems")
    sys.exit(bool(bad))


if __name__ == "__main__":
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    run(main)
