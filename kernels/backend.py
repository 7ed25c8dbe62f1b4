"""Triton, where it is installed: what the kernel files share.

Triton comes with torch's CUDA build on Linux and is absent elsewhere. The kernel files can then
still be imported and used for their torch implementations; `unavailable` gives the reason.

    TRITON_INTERPRET=1 python ...      runs the kernels on the CPU, in numpy: slowly, for study
"""

import functools

import torch

LOG2_E = 1.4426950408889634  # the kernels' exp is exp2

try:
    import triton
    import triton.language as tl
except ImportError:  # a Mac, for example: the kernels stay plain functions

    class triton:
        jit = constexpr_function = staticmethod(lambda function: function)

    class tl:
        constexpr = staticmethod(lambda value: value)


def installed():
    """True if there is a Triton to compile or interpret the kernels."""
    return hasattr(triton, "knobs")


def interpreted():
    """True if the kernels run on the CPU, in Triton's interpreter (TRITON_INTERPRET=1)."""
    return installed() and triton.knobs.runtime.interpret


def unavailable(device):
    """Why no Triton kernel can run on this torch.device, in a few words; None if they can."""
    device = torch.device(device)
    if not installed():
        return "triton is not installed"
    if interpreted():
        return None
    if device.type != "cuda":
        return f"Triton kernels need a CUDA GPU, not {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "Triton kernels need a GPU of compute capability 8.0 (A100, RTX 30) or later"
    return None


def warpgroups(device):
    """True if four warps share a matrix product: Hopper and data-center Blackwell GPUs."""
    return interpreted() or torch.cuda.get_device_capability(device)[0] in (9, 10)


def tensor_memory(device):
    """True if matrix products are summed in a memory of their own: data-center Blackwell GPUs."""
    return not interpreted() and torch.cuda.get_device_capability(device)[0] == 10


def _scratch(size, alignment, stream):
    """Memory in which a running kernel builds its tensor descriptors (Hopper's TMA)."""
    return torch.empty(size, dtype=torch.int8, device="cuda")


def launch(kernel, grid, *args, **options):
    """Run `kernel` over `grid` on the GPU that holds its first argument, a tensor.

    options: the kernel's constexpr arguments, num_warps, num_stages and maxnreg."""
    if interpreted():
        _repair_interpreter()
    with torch.cuda.device_of(args[0]):
        triton.set_allocator(_scratch)  # here, for it is set for each thread, as autograd's
        # a * b + c in one rounding, set explicitly because Triton's default is about to change
        kernel[grid](*args, enable_fp_fusion=True, **options)


def compute_dtype(x):
    """autocast's dtype where that is on, else x's."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


# ---- matrix products ---------------------------------------------------------------------------


@triton.jit
def product_tile(N, M, BLOCK: tl.constexpr, WIDTH: tl.constexpr, GROUP: tl.constexpr):
    """(first row, first column) of this program's BLOCK x WIDTH tile of an (N, M) product.

    Programs that run at the same time read the same columns' weights, for GROUP blocks of rows."""
    blocks, across = tl.cdiv(N, BLOCK), tl.cdiv(M, WIDTH)
    group = tl.program_id(0) // (GROUP * across)
    height = tl.minimum(blocks - group * GROUP, GROUP)
    inside = tl.program_id(0) % (GROUP * across)
    return (group * GROUP + inside % height) * BLOCK, inside // height * WIDTH


def product_tiles(dtype):
    """The launch settings of a product with an epilogue, but for its tile's width; STEP: of the
    sum. In 16 bits and 128 wide it takes 96 KB of shared memory: two blocks a multiprocessor."""
    if dtype == torch.float32:  # without tensor cores
        return {"BLOCK": 32, "STEP": 16, "GROUP": 8, "num_warps": 4, "num_stages": 2}
    return {"BLOCK": 128, "STEP": 64, "GROUP": 8, "num_warps": 8, "num_stages": 3}


@functools.cache
def _repair_interpreter():
    """Make Triton's interpreter (3.6 to 3.9) compute in bfloat16 as a GPU does.

    As shipped, it multiplies the raw bits of bfloat16 in tl.dot, and rounds float32 towards zero.
    """
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain_dot, plain_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widen(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot(self, a, b, *rest):
        return plain_dot(self, widen(a), widen(b), *rest)

    def cast(self, x, to):
        if (x.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return plain_cast(self, x, to)
        values = torch.from_numpy(np.ascontiguousarray(x.data)).bfloat16()  # to nearest even
        return TensorHandle(values.view(torch.int16).numpy().view(np.uint16), tl.bfloat16)

    InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl = dot, cast
