"""
What benchmarks/kernels.py compares: every job the kernels have, and everything else that can do it.

For attention torch's own backends (cuDNN, FlashAttention, memory-efficient, math) and compiled
FlexAttention; for the loss eager PyTorch, torch.compile and, where they are installed, liger-kernel
(linkedin/Liger-Kernel) and cut-cross-entropy (Wijmans et al. 2024).
"""

import contextlib
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from kernels import attention, cross_entropy

STORY = 190  # tokens of a story of TinyStories, on average


@dataclass
class Case:
    """One job, who can do it, and what it must at least cost."""

    name: str
    contestants: dict  # name -> function of `inputs` that returns the output
    inputs: tuple  # tensors; those that require gradients get them
    bytes: int
    flops: int
    bars: dict = field(default_factory=dict)  # the ratio asked for -> the rivals it is against
    launched: tuple = ()  # contestants that wait for the GPU, so that no CUDA graph can hold them


def stories(B, T, device):
    """A start (B, T) int32 of stories of STORY tokens on average, as in a packed batch."""
    torch.manual_seed(1)
    new = torch.rand(B, T, device=device) < 1 / STORY
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

    def visible(b, h, query, key):
        causal = query >= key
        return causal if start is None else causal & (key >= start[b, query])

    B, T = shape[:2]
    device = "cuda" if start is None else start.device
    mask = create_block_mask(visible, B if start is not None else None, None, T, T, device=device)
    compiled = torch.compile(flex_attention, dynamic=False)

    def call(qkv):
        q, k, v = qkv.transpose(1, 3).unbind(2)
        return compiled(q, k, v, block_mask=mask).transpose(1, 2)

    return call


def attention_case(tokens, device, D, T, H, masked, bars):
    """Attention on `tokens` bfloat16 tokens in rows of T, of stories if masked."""
    dtype = torch.bfloat16
    if device == "cpu":
        T, H = 64, 2
    B = max(1, tokens // T)
    torch.manual_seed(0)
    qkv = torch.randn(B, T, 3, H, D, device=device, dtype=dtype, requires_grad=True)
    start = stories(B, T, device) if masked else None
    band = (start, attention.span_ends(start)) if masked else (None, None)

    def ours(qkv, start=band[0], end=band[1]):
        return attention.attention(qkv, start, None, "triton", end)

    contestants = {"ours": ours}
    if masked:
        contestants["ours, causal"] = lambda qkv: ours(qkv, None, None)
    if device == "cuda":
        for name in ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION"):
            contestants[name.split("_")[0].lower()] = sdpa(getattr(SDPBackend, name), start)
        contestants["flex"] = flex(qkv.shape, start)
    contestants["math"] = sdpa(SDPBackend.MATH, start)
    position = torch.arange(T, device=device)
    pairs = B * T * (T + 1) // 2 if start is None else int((position - start + 1).sum())
    return Case(
        f"D={D} T={T} {'stories' if masked else 'causal'}",
        contestants,
        (qkv,),
        bytes=26 * B * T * H * D,
        flops=(4 + 10) * pairs * H * D,  # 10: with P kept, which nobody does
        bars=bars,
    )


def loss_case(tokens, device, C, bars):
    """The loss of `tokens` tokens over GPT-2's vocabulary, padded; the rivals know no padding."""
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

    def ours(implementation):
        args = (targets, words, -1, True, implementation)
        return lambda hidden, weight: cross_entropy.linear_cross_entropy(hidden, weight, *args)

    chosen = cross_entropy.choose_kernels(torch.bfloat16, C)
    contestants = {
        "ours": ours(chosen),
        "eager": eager,
        "compile": torch.compile(eager, dynamic=False),
    }
    other = "chunks" if chosen == "recompute" else "recompute"
    if other == "chunks" or C <= 256:
        contestants[f"ours, {other}"] = ours(other)
    with contextlib.suppress(ImportError):
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        contestants["liger"] = lambda h, w: liger_fused_linear_cross_entropy(h, w, targets)
    with contextlib.suppress(ImportError):
        from cut_cross_entropy import linear_cross_entropy as cut

        contestants["cut"] = lambda h, w: cut(h, w, targets)
    if device == "cpu":
        contestants.pop("compile")
    size = 2 * 2 * (N + V) * C
    flops, waiting = 6 * N * V * C, ("liger", "cut")
    return Case(f"loss C={C}", contestants, (hidden, weight), size, flops, bars, waiting)


def cases(tokens, device, only):
    """
    The cases whose names have `only`, one after another: they need not fit in memory together.

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
        (48, 512, 16, True, {1.0: ("ours, causal",), 2.0: ("flex",)}),
        (64, 512, 12, True, {1.0: ("ours, causal",), 2.0: ("flex",)}),
        (48, 2048, 16, True, {1.0: ("ours, causal",), 2.0: ("flex",)}),
    ]
    losses = [(64, 2.0), (128, 1.3), (256, 1.15), (768, 1.05)]
    for D, T, H, masked, bars in attentions:
        torch.compiler.reset()  # or torch.compile would generalise from one case to the next
        name = f"D={D} T={T} {'stories' if masked else 'causal'}"
        if only in name:
            yield attention_case(tokens, device, D, T, H, masked, bars)
    for C, bar in losses:
        torch.compiler.reset()
        if only in f"loss C={C}":
            yield loss_case(tokens, device, C, {bar: ("compile",)})
