"""A tile of an attention head: what the kernels load, multiply and store at a time.

A kernel is a function that the GPU runs once for each program of a grid; tl.program_id is its
number. A program computes on tiles: matrices whose sides are powers of two, at least 16 for
tensor cores. A tensor argument (in capitals) arrives as a pointer; adding a matrix of offsets
gives a matrix of addresses, and tl.load(addresses, mask, other) reads those where the mask is
True. tl.constexpr arguments are constants: each set of them is compiled by itself. num_warps x 32
threads run a program; num_stages is how many steps of a loop have their loads under way.

The 33M model's heads of 48, padded to 64, would waste a quarter of the work. So a head's tile is
a tuple of one matrix or of two side by side: 48 = 32 + 16 columns, 80 = 64 + 16. Only this file's
functions and `_delta` know; the other code reads as if a tile were one (rows, D) matrix. How many
rows it has is a launch setting, BLOCK or STEP: see `tiles`.
"""

import torch

from kernels.backend import tl, triton, warpgroups


def tiles(head_size, dtype, backward, device):
    """The launch settings of a pass: {"BLOCK", "STEP" (in tokens), "num_warps", "num_stages"} and
    perhaps "maxnreg", registers a thread. STEP divides BLOCK.

    A tile that needs more registers than there are spills the rest to slow memory. Of the settings
    that spill next to nothing on the device's kind of tensor cores (benchmarks.kernel_compile),
    these are the fastest on an H100 (benchmarks.kernel_tuning)."""
    wide = warpgroups(device)  # four warps share a matrix product
    if dtype == torch.float32:
        block, step, warps, stages = 32, 16, 8, 2
    elif head_size > 64 and not wide:
        block, step, warps, stages = 64, 32, 8, 2
    elif backward and (head_size != 64 or not wide):
        block, step, warps, stages = 64, 32, 4, 3
    else:
        block, step, warps, stages = 64, 64, 4, 2 if backward or not wide else 3
    settings = {"BLOCK": block, "STEP": step, "num_warps": warps, "num_stages": stages}
    # Without maxnreg the assembler sometimes spills although registers are free.
    if warps == 8 or not wide:
        settings["maxnreg"] = 255
    return settings


@triton.constexpr_function
def left(D):
    """Columns of a tile's first matrix, a power of two. Run by the compiler, not by the GPU."""
    return 16 if D <= 16 else D - 16 if D in (48, 80) else triton.next_power_of_2(D)


@triton.constexpr_function
def right(D):
    """Columns of its second matrix, 0 where there is none."""
    return 16 if D in (48, 80) else 0


@triton.jit
def _columns(D: tl.constexpr, SECOND: tl.constexpr):
    """The columns of one of the two matrices, (1, width), and which of them are no padding.

    Without padding, `| (...)` makes the mask the constant True: it then costs nothing."""
    if SECOND:
        columns = left(D) + tl.arange(0, right(D))[None, :]
        return columns, (columns < D) | (left(D) + right(D) <= D)
    else:
        columns = tl.arange(0, left(D))[None, :]
        return columns, (columns < D) | (left(D) <= D)


@triton.jit
def load(matrix, rows, n_rows, STRIDE: tl.constexpr, D: tl.constexpr, CHECK: tl.constexpr):
    """A tile of rows of `matrix`, STRIDE elements apart. CHECK: rows from n_rows on become 0."""
    valid = (rows[:, None] < n_rows) | (not CHECK)  # constant True without CHECK, as in _columns
    columns, real = _columns(D, False)
    x = tl.load(matrix + rows[:, None] * STRIDE + columns, mask=valid & real, other=0.0)
    if right(D) == 0:
        return (x,)
    else:
        columns, real = _columns(D, True)
        y = tl.load(matrix + rows[:, None] * STRIDE + columns, mask=valid & real, other=0.0)
        return x, y


@triton.jit
def store(matrix, rows, n_rows, tile, STRIDE: tl.constexpr, D: tl.constexpr):
    """Write a tile into rows of `matrix`, in its dtype; rows from n_rows on are skipped."""
    valid = rows[:, None] < n_rows
    dtype = matrix.dtype.element_ty
    columns, real = _columns(D, False)
    tl.store(matrix + rows[:, None] * STRIDE + columns, tile[0].to(dtype), mask=valid & real)
    if right(D) > 0:
        columns, real = _columns(D, True)
        tl.store(matrix + rows[:, None] * STRIDE + columns, tile[1].to(dtype), mask=valid & real)


@triton.jit
def zeros(ROWS: tl.constexpr, D: tl.constexpr):
    x = tl.zeros((ROWS, left(D)), tl.float32)
    if right(D) == 0:
        return (x,)
    else:
        return x, tl.zeros((ROWS, right(D)), tl.float32)


@triton.jit
def times(tile, factor):
    """tile * factor; factor: (rows, 1) or a number."""
    if len(tile) == 1:
        return (tile[0] * factor,)
    else:
        return tile[0] * factor, tile[1] * factor


@triton.jit
def dot_transposed(a, b):
    """a b^T, (rows of a, rows of b), in float32."""
    x = tl.dot(a[0], tl.trans(b[0]), input_precision="ieee")
    if len(a) == 2:
        x = tl.dot(a[1], tl.trans(b[1]), x, input_precision="ieee")
    return x


@triton.jit
def add_dot(tile, p, b):
    """tile + p b; p (rows of the tile, rows of b) is rounded to b's dtype first."""
    p = p.to(b[0].dtype)
    x = tl.dot(p, b[0], tile[0], input_precision="ieee")
    if len(b) == 1:
        return (x,)
    else:
        return x, tl.dot(p, b[1], tile[1], input_precision="ieee")
