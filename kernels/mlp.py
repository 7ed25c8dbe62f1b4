"""The transformer's MLP in one operation, with the GELU inside its matrix products.

    y = g W2^T + b2,   g = gelu(u),   u = x W1^T + b1       x (N, C), W1 (4C, C), W2 (C, 4C)

A matrix product spends its time on arithmetic, a GELU on moving memory: it reads a tensor of 4 N C
numbers and writes another. A product that applies the GELU to each tile of its result, while the
tile is still in registers, saves those passes. That end of a product is called its epilogue.

Forward. `_product_gelu` computes a tile of u and writes it and gelu(u). The last product is
torch's. The GELU and the approximation of it that GPT-2 has (Hendrycks and Gimpel 2016):

    erf     gelu(u) = u P(u),   P(u) = (1 + erf(u / sqrt(2))) / 2, the normal distribution's
    tanh    gelu(u) = u P(u),   P(u) = (1 + tanh(z)) / 2,   z = sqrt(2 / pi) (u + 0.044715 u^3)

With tanh(z) = (1 - e^-2z) / (1 + e^-2z) the second is P(u) = 1 / (1 + e^-2z). That needs no tanh,
and for u far below 0 it keeps the digits that 1 + tanh(z) cancels.

Backward. Write dX for the gradient of the loss with respect to X; dy is given. From y = g W2^T + b2

    dg = dy W2          dW2 = dy^T g        db2 = sum_n dy_n

and from g = gelu(u) and u = x W1^T + b1, element by element in the first line,

    du = dg gelu'(u)    gelu'(u) = P(u) + u P'(u)
    dx = du W1          dW1 = du^T x        db1 = sum_n du_n

For erf, P' is the normal distribution's density; for tanh, P = 1 / (1 + q) with q = e^-2z and
dq/du = -2 z' q:

    erf     P'(u) = e^(-u^2 / 2) / sqrt(2 pi)
    tanh    P'(u) = 2 z' q / (1 + q)^2 = 2 z' q P^2,    z' = sqrt(2 / pi) (1 + 3 * 0.044715 u^2)

`_product_gelu_backward` computes a tile of dg, reads that of u, and writes du and the sum of each
of its columns, a part of db1. The four other products are torch's.

What this saves, on paper. An H100 was measured at 779 TFLOP/s in torch's products and 3.01 TB/s.
N = 32,768 tokens in bfloat16, for each layer:

    C = 768   torch.compile's GELU passes move 201 + 201 MB forward and 603 MB backward: 0.134 +
              0.200 ms. Each of the two products is 155 GFLOP, 0.198 ms at torch's rate, and 0.258
              if the Triton product reaches 600 TFLOP/s. Net gain 0.21 ms, 0.86 ms a step of 4
              layers. Below about 420 TFLOP/s it loses.
    C = 256   The passes take 0.045 + 0.067 ms. The products are bound by memory too: torch's move
              84 MB each, 0.028 ms; with the GELU 151 MB each, 0.050 ms, where the arithmetic takes
              0.029 at 600 TFLOP/s. Net gain 0.067 ms, 0.53 ms a step of 8 layers.

Not counted: db1 does not read du once more (0.067 ms at C = 768). The price is memory: u and g are
both kept for the backward pass, 16 N C bytes in a 2-byte type.

No GPU has timed this yet, or run it, so only train.py's `fused_mlp=True` selects it. Limits:
float32, bfloat16 and float16, in rows of a multiple of 16 bytes; anything else goes torch's way.
Tested in Triton's interpreter; compiled for sm_80, sm_90 and sm_100 with Triton 3.6 and 3.9
(`python -m benchmarks.kernel_compile`).
"""

import torch
import torch.nn.functional as F

from kernels.backend import compute_dtype, launch, product_tile, product_tiles, tl, triton

IMPLEMENTATIONS = ("triton", "torch")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the Triton kernels
CUBIC = tl.constexpr(0.044715)
SQRT_HALF, LOG2_E = tl.constexpr(0.7071067811865476), tl.constexpr(1.4426950408889634)
TWICE_SQRT_2_OVER_PI = tl.constexpr(1.5957691216057308)
DENSITY_AT_0 = tl.constexpr(0.3989422804014327)  # 1 / sqrt(2 pi)


# ---- Triton ------------------------------------------------------------------------------------


@triton.jit
def _probability(u, TANH: tl.constexpr):
    """(P(u), P'(u)) of a float32 tile; the compiler drops what the caller does not use."""
    if TANH:
        two_z = u * (1 + u * u * CUBIC) * TWICE_SQRT_2_OVER_PI
        # q of |u|, at most 1: nothing overflows. P(-u) = 1 - P(u) = q P(u), and P' is even.
        q = tl.exp2(-tl.abs(two_z) * LOG2_E)
        p_abs = 1 / (1 + q)
        p = tl.where(u < 0, q * p_abs, p_abs)
        density = q * p_abs * p_abs * (1 + 3 * (u * u * CUBIC)) * TWICE_SQRT_2_OVER_PI
    else:
        p = 0.5 + 0.5 * tl.erf(u * SQRT_HALF)
        density = tl.exp2(u * u * LOG2_E * -0.5) * DENSITY_AT_0
    return p, density


@triton.jit
def _halves(tile):
    """The left and the right half of a tile's columns. An epilogue takes one after the other, for
    all its values at once need so many registers that only one block fits a multiprocessor."""
    BLOCK: tl.constexpr = tile.shape[0]
    WIDTH: tl.constexpr = tile.shape[1]
    return tl.split(tl.permute(tl.reshape(tile, (BLOCK, 2, WIDTH // 2)), (0, 2, 1)))


@triton.jit
def _product_gelu(
    X, W1, B1, U, G, N, M, C: tl.constexpr, TANH: tl.constexpr, GRAD: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A tile of g = gelu(u), and with GRAD of u = x W1^T + b1, STEP channels of x at a time.

    X (N, C), W1 (M, C), B1 (M,); U, G (N, M). M is 4C in the transformer."""
    row, column = product_tile(N, M, BLOCK, WIDTH, GROUP)
    x = tl.make_tensor_descriptor(X, [N, C], [C, 1], [BLOCK, STEP])
    w = tl.make_tensor_descriptor(W1, [M, C], [C, 1], [WIDTH, STEP])
    acc = tl.zeros((BLOCK, WIDTH), tl.float32)
    for channel in range(0, C, STEP):  # beyond an edge a descriptor loads zeros
        a, b = x.load([row, channel]), w.load([column, channel])
        acc = tl.dot(a, b.T, acc, input_precision="ieee")
    u_out = tl.make_tensor_descriptor(U, [N, M], [M, 1], [BLOCK, WIDTH // 2])
    g_out = tl.make_tensor_descriptor(G, [N, M], [M, 1], [BLOCK, WIDTH // 2])
    halves = _halves(acc)
    for HALF in tl.static_range(2):
        first = column + HALF * (WIDTH // 2)
        columns = first + tl.arange(0, WIDTH // 2)
        bias = tl.load(B1 + columns, mask=columns < M, other=0.0).to(tl.float32)
        u = halves[HALF] + bias[None, :]
        p, _ = _probability(u, TANH)
        if GRAD:  # beyond an edge a descriptor stores nothing
            u_out.store([row, first], u.to(U.dtype.element_ty))
        g_out.store([row, first], (u * p).to(G.dtype.element_ty))


@triton.jit
def _product_gelu_backward(
    D_Y, W2, U, D_U, SUMS, N, M, C: tl.constexpr, TANH: tl.constexpr,
    BLOCK: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """A tile of du = (dy W2) gelu'(u), and the sums of its columns.

    D_Y (N, C), W2 (C, M); U, D_U (N, M); SUMS (blocks of rows, M) float32."""
    row, column = product_tile(N, M, BLOCK, WIDTH, GROUP)
    d_y = tl.make_tensor_descriptor(D_Y, [N, C], [C, 1], [BLOCK, STEP])
    w = tl.make_tensor_descriptor(W2, [C, M], [M, 1], [STEP, WIDTH])
    d_g = tl.zeros((BLOCK, WIDTH), tl.float32)
    for channel in range(0, C, STEP):
        a, b = d_y.load([row, channel]), w.load([channel, column])
        d_g = tl.dot(a, b, d_g, input_precision="ieee")
    u = tl.make_tensor_descriptor(U, [N, M], [M, 1], [BLOCK, WIDTH // 2])
    out = tl.make_tensor_descriptor(D_U, [N, M], [M, 1], [BLOCK, WIDTH // 2])
    sums = SUMS + (row // BLOCK).to(tl.int64) * M
    halves = _halves(d_g)
    for HALF in tl.static_range(2):
        first = column + HALF * (WIDTH // 2)
        u_half = u.load([row, first]).to(tl.float32)
        p, density = _probability(u_half, TANH)
        d_u = halves[HALF] * (p + u_half * density)
        out.store([row, first], d_u.to(D_U.dtype.element_ty))
        # Rows past N add nothing: their dy was loaded as zeros.
        columns = first + tl.arange(0, WIDTH // 2)
        tl.store(sums + columns, tl.sum(d_u, 0), mask=columns < M)


# ---- custom ops, which torch.compile keeps in one graph, and the public function ---------------


def tiles(dtype):
    """The launch settings of both kernels. In 16 bits on Hopper a thread takes up to 128 registers,
    but for the backward pass of erf: two blocks fit a multiprocessor, and one can multiply during
    the other's epilogue."""
    settings = product_tiles(dtype)
    return settings | {"WIDTH": settings["BLOCK"]}


def _grid(N, M, settings):
    return (triton.cdiv(N, settings["BLOCK"]) * triton.cdiv(M, settings["WIDTH"]),)


def _aligned(tensor):
    """Contiguous, from an address of a multiple of 16 bytes on, as a descriptor needs it."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


@torch.library.custom_op("nanostories::mlp", mutates_args=())
def triton_mlp(
    x: torch.Tensor, w1: torch.Tensor, b1: torch.Tensor, w2: torch.Tensor, b2: torch.Tensor,
    tanh: bool, grad: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """(y (N, C), u, g (N, 4C)) of x (N, C), all of one dtype.

    grad: there will be a backward pass; else u and g are empty."""
    x, w1 = _aligned(x), _aligned(w1)
    (N, C), M = x.shape, len(w1)
    g = x.new_empty(N, M)
    u = torch.empty_like(g) if grad else x.new_empty(0)
    settings = tiles(x.dtype)
    args = (x, w1, b1.contiguous(), u if grad else g, g, N, M)
    launch(_product_gelu, _grid(N, M, settings), *args, C=C, TANH=tanh, GRAD=grad, **settings)
    with torch.autocast(x.device.type, enabled=False):  # the tensors have its dtype already
        y = F.linear(g, w2, b2)
    return y, u, g if grad else x.new_empty(0)


@torch.library.custom_op("nanostories::mlp_backward", mutates_args=())
def triton_mlp_backward(
    d_y: torch.Tensor, w2: torch.Tensor, u: torch.Tensor, tanh: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(du (N, 4C), db1 (4C,)) from dy (N, C)."""
    d_y, w2 = _aligned(d_y), _aligned(w2)
    (N, C), M = d_y.shape, w2.shape[1]
    settings, d_u = tiles(u.dtype), torch.empty_like(u)
    sums = u.new_empty(triton.cdiv(N, settings["BLOCK"]), M, dtype=torch.float32)
    args = (d_y, w2, u, d_u, sums, N, M)
    launch(_product_gelu_backward, _grid(N, M, settings), *args, C=C, TANH=tanh, **settings)
    return d_u, sums.sum(0).to(u.dtype)


@triton_mlp.register_fake
def _(x, w1, b1, w2, b2, tanh, grad):
    hidden = (len(x), len(w1)) if grad else 0
    return x.new_empty(len(x), len(w2)), x.new_empty(hidden), x.new_empty(hidden)


triton_mlp_backward.register_fake(
    lambda d_y, w2, u, tanh: (u.new_empty(u.shape), u.new_empty(u.shape[1]))
)


def _save(ctx, inputs, output):
    x, w1, _, w2, _, ctx.tanh, _ = inputs
    ctx.save_for_backward(x, w1, w2, *output[1:])
    ctx.set_materialize_grads(False)  # u and g get no gradient: make no zeros for them


def _differentiate(ctx, d_y, *_):
    x, w1, w2, u, g = ctx.saved_tensors
    d_u, d_b1 = triton_mlp_backward(d_y, w2, u, ctx.tanh)
    return d_u @ w1, d_u.T @ x, d_b1, d_y.T @ g, d_y.sum(0, dtype=d_y.dtype), None, None


triton_mlp.register_autograd(_differentiate, setup_context=_save)


def fused_mlp(x, w1, b1, w2, b2, approximate, implementation=""):
    """gelu(x W1^T + b1) W2^T + b2.

    x: (..., C) float. w1: (4C, C), w2: (C, 4C), b1 (4C,), b2 (C,). approximate: "none" or "tanh",
    as F.gelu has it. implementation: one of IMPLEMENTATIONS, by default choose_mlp's. Returns
    (..., C), of autocast's dtype where that is on, else of x's."""
    if choose_mlp(x, w1, implementation) == "torch":
        return F.linear(F.gelu(F.linear(x, w1, b1), approximate=approximate), w2, b2)
    # Cast here, where torch.compile joins a cast to what made the tensor; its backward pass gives
    # the gradients of the weights the weights' dtype, as under autocast.
    dtype, tensors = compute_dtype(x), (x.flatten(0, -2), w1, b1, w2, b2)
    grad = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    tensors = [tensor.to(dtype) for tensor in tensors]
    return triton_mlp(*tensors, approximate == "tanh", grad)[0].unflatten(0, x.shape[:-1])


def choose_mlp(x, w1, implementation):
    """The implementation that runs where one is asked for, or none (""): "triton" or "torch".

    Raises ValueError for other names."""
    if implementation not in ("", *IMPLEMENTATIONS):
        raise ValueError(f"implementation is one of {IMPLEMENTATIONS}, not '{implementation}'")
    dtype = compute_dtype(x)
    # A descriptor's rows are a multiple of 16 bytes, and there is at least one.
    fits = dtype in DTYPES and x.numel() and not any(n * dtype.itemsize % 16 for n in w1.shape)
    # By default torch's, until a GPU has timed the kernels.
    return "triton" if implementation == "triton" and fits else "torch"
