"""The cases of benchmarks/kernels.py: our kernels and their baselines, on the same inputs.

Baselines of attention: torch's own backends (cuDNN, FlashAttention, memory-efficient, math) and
compiled FlexAttention. Of the loss: eager PyTorch, torch.compile and, where they are installed,
liger-kernel (linkedin/Liger-Kernel) and cut-cross-entropy (Wijmans et al. 2024). Of the MLP: eager
PyTorch and torch.compile.
"""

import contextlib
from dataclasses import dataclass, field
from unittest import mock

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import attention, attention_backward, cross_entropy, mlp

STORY_TOKENS = 190  # the mean length of a story of TinyStories


@dataclass
class Case:
    """One operation on one set of inputs, its implementations, and its least possible cost."""

    name: str
    implementations: dict  # name -> function of `inputs` that returns the output
    inputs: tuple  # tensors; those that require gradients get them
    bytes: int  # that must move, forward and backward
    flops: int
    required: dict = field(default_factory=dict)  # required speedup -> the baselines it is over
    no_graph: tuple = ()  # implementations that wait for the GPU, which a CUDA graph cannot


def story_starts(B, T, device):
    """`start` (B, T) int32 of stories of STORY_TOKENS tokens on average, as in a packed batch."""
    torch.manual_seed(1)
    new = torch.rand(B, T, device=device) < 1 / STORY_TOKENS
    new[:, 0] = True
    position = torch.arange(T, device=device, dtype=torch.int32)
    return torch.where(new, position, 0).cummax(1).values.int()


def sdpa(backends, start=None):
    """torch's attention with one backend, from packed qkv; start becomes a dense mask."""
    mask = None if start is None else attention.attention_mask(start)

    def call(qkv):
        with sdpa_kernel(backends):
            q, k, v = qkv.transpose(1, 3).unbind(2)
            out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        return out.transpose(1, 2)

    return call


def flex(shape, start=None):
    """Compiled FlexAttention, with a document mask if there is a start."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def mask_mod(b, h, query, key):
        causal = query >= key
        return causal if start is None else causal & (key >= start[b, query])

    B, T = shape[:2]
    device = "cuda" if start is None else start.device
    mask = create_block_mask(mask_mod, B if start is not None else None, None, T, T, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def call(qkv):
        q, k, v = qkv.transpose(1, 3).unbind(2)
        return compiled(q, k, v, block_mask=mask).transpose(1, 2)

    return call


class TwoSweeps(torch.autograd.Function):
    """Our attention of (qkv, start, end), whose backward pass takes two sweeps in any case."""

    @staticmethod
    def forward(ctx, qkv, start, end):
        ctx.scale = qkv.shape[-1] ** -0.5
        out, lse = attention.flash_attention(qkv, start, end, ctx.scale)
        ctx.save_for_backward(qkv, out, lse, start, end)
        return out

    @staticmethod
    def backward(ctx, d_out):
        with mock.patch.object(attention_backward, "one_pass_programs", lambda *_: 0):
            d_qkv = attention.flash_attention_backward(d_out, *ctx.saved_tensors, ctx.scale)
        return d_qkv, None, None


def attention_case(tokens, device, D, T, H, masked, required):
    """Attention of `tokens` bfloat16 tokens in rows of T, packed with stories if masked."""
    dtype = torch.bfloat16
    if device == "cpu":
        T, H = 64, 2
    B = max(1, tokens // T)
    torch.manual_seed(0)
    qkv = torch.randn(B, T, 3, H, D, device=device, dtype=dtype, requires_grad=True)
    start = story_starts(B, T, device) if masked else None
    span = attention.attention_span(start, "triton")

    def nanostories(qkv, start=span[0], end=span[1]):
        return attention.attention(qkv, start, None, "triton", end)

    implementations = {"nanostories": nanostories}
    if attention_backward.one_pass_programs(B * H, D, dtype, qkv.device):
        implementations["nanostories, 2 sweeps"] = lambda qkv: TwoSweeps.apply(qkv, *span)
    if masked:
        implementations["nanostories, causal"] = lambda qkv: nanostories(qkv, None, None)
    if device == "cuda":
        for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"):
            implementations[name.split("_")[0].lower()] = sdpa(getattr(SDPBackend, name), start)
        implementations["flex"] = flex(qkv.shape, start)
    implementations["math"] = sdpa(SDPBackend.MATH, start)
    position = torch.arange(T, device=device)
    pairs = B * T * (T + 1) // 2 if start is None else int((position - start + 1).sum())
    return Case(
        f"D={D} T={T} {'stories' if masked else 'causal'}",
        implementations,
        (qkv,),
        bytes=26 * B * T * H * D,
        flops=(4 + 10) * pairs * H * D,  # 10: the least, if P were kept
        required=required,
    )


def loss_case(tokens, device, C, required):
    """The loss of `tokens` tokens over GPT-2's vocabulary; the baselines score the padding too."""
    N, V, words = tokens, 50304, 50257
    if device == "cpu":
        N, V, words = 64, 256, 200
    torch.manual_seed(0)
    hidden = torch.randn(N, C, device=device, dtype=torch.bfloat16, requires_grad=True)
    weight = 0.02 * torch.randn(V, C, device=device)
    weight = weight.bfloat16().requires_grad_()
    targets = torch.randint(words, (N,), device=device)

    def eager(hidden, weight):
        return F.cross_entropy(F.linear(hidden, weight).float(), targets)

    def nanostories(implementation):
        args = (targets, words, -1, True, implementation)
        return lambda hidden, weight: cross_entropy.linear_cross_entropy(hidden, weight, *args)

    chosen = cross_entropy.choose_kernels(torch.bfloat16, C)
    implementations = {
        "nanostories": nanostories(chosen),
        "eager": eager,
        "compile": torch.compile(eager, dynamic=False),
    }
    other = "chunks" if chosen == "recompute" else "recompute"
    if other == "chunks" or C <= 256:
        implementations[f"nanostories, {other}"] = nanostories(other)
    if C >= 256:
        implementations["nanostories, epilogue"] = nanostories("epilogue")
    with contextlib.suppress(ImportError):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        implementations["liger"] = lambda h, w: liger_fused_linear_cross_entropy(h, w, targets)
    with contextlib.suppress(ImportError):
        from cut_cross_entropy import linear_cross_entropy as cut

        implementations["cut"] = lambda h, w: cut(h, w, targets)
    if device == "cpu":
        implementations.pop("compile")
    size = 2 * 2 * (N + V) * C
    flops, no_graph = 6 * N * V * C, ("liger", "cut")
    return Case(f"loss C={C}", implementations, (hidden, weight), size, flops, required, no_graph)


def mlp_case(tokens, device, C, required):
    """The MLP of `tokens` tokens with GPT-2's GELU."""
    N, M = (tokens, 4 * C) if device == "cuda" else (64, 64)
    torch.manual_seed(0)
    shapes = (N, C), (M, C), (M,), (C, M), (C,)
    tensors = [0.02 * torch.randn(shape, device=device) for shape in shapes]
    tensors[0] *= 50
    tensors = tuple(tensor.bfloat16().requires_grad_() for tensor in tensors)

    def eager(*tensors):
        return mlp.fused_mlp(*tensors, "tanh", "torch")

    implementations = {
        "nanostories": lambda *tensors: mlp.fused_mlp(*tensors, "tanh", "triton"),
        "torch": eager,  # not called eager: it does not take the memory that the loss saves
    }
    if device == "cuda":
        implementations["compile"] = torch.compile(eager, dynamic=False)
    # x, W1 and W2 are read twice and dy once, y, dx and both dW written; u and g written and read.
    size = 2 * (5 * N * C + 6 * M * C + 5 * N * M)
    return Case(f"mlp C={C}", implementations, tensors, size, 12 * N * C * M, required)


def cases(tokens, device, only):
    """The cases whose names have `only`, one after another: they need not fit in memory together.

    tokens: of each; device: "cuda", or "cpu" for tiny ones.
    """
    torch_backends = ("cudnn", "flash", "efficient", "math")
    attentions = [
        (64, 512, 12, False, {1.3: torch_backends}),
        (48, 512, 16, False, {1.5: torch_backends}),
        (32, 512, 16, False, {2.0: torch_backends}),
        (16, 512, 16, False, {2.0: torch_backends}),
        (64, 1024, 12, False, {1.0: torch_backends}),
        (64, 2048, 12, False, {0.9: torch_backends}),
        (128, 512, 8, False, {}),
        (48, 512, 16, True, {1.0: ("nanostories, causal",), 2.0: ("flex",)}),
        (64, 512, 12, True, {1.0: ("nanostories, causal",), 2.0: ("flex",)}),
        (48, 2048, 16, True, {1.0: ("nanostories, causal",), 2.0: ("flex",)}),
    ]
    losses = [(64, 2.0), (128, 1.3), (256, 1.15), (768, 1.05)]
    for D, T, H, masked, required in attentions:
        torch.compiler.reset()  # or torch.compile would generalize from one case to the next
        name = f"D={D} T={T} {'stories' if masked else 'causal'}"
        if only in name:
            yield attention_case(tokens, device, D, T, H, masked, required)
    for C, speedup in losses:
        torch.compiler.reset()
        if only in f"loss C={C}":
            yield loss_case(tokens, device, C, {speedup: ("compile",)})
    for C in (256, 768):
        torch.compiler.reset()
        if only in f"mlp C={C}":
            yield mlp_case(tokens, device, C, {1.0: ("compile",)})
