"""
Causal attention inside a story.

    O_i = sum_j softmax_j(scale * Q_i . K_j) V_j      over start_i <= j <= i

A row of a batch holds several stories, and token i attends from its own story's first token
`start_i` to itself, so one int32 tensor says which tokens see each other. A window of w tokens is
the same thing with start_i raised to i - w + 1 (`windowed`). `start=None` is plain causal.

`qkv` is packed as the projection leaves it, (B, T, 3, H, D), and the result is (B, T, H, D).
Two ways to compute it here, which agree to rounding:

    math   the formula, written out: the reference of every test
    sdpa   torch's fused attention; on a CPU story by story, since a dense T x T mask would spend
           most of its time on pairs of tokens that belong to different stories
"""

import itertools

import torch
import torch.nn.functional as F

IMPLEMENTATIONS = ("auto", "sdpa", "math")


def choose(name, device):
    """
    The implementation behind a setting, and why: (name, reason).

    name: one of IMPLEMENTATIONS. device: where the model runs. Raises ValueError for other names.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attn must be one of {', '.join(IMPLEMENTATIONS)}, not '{name}'")
    if name != "auto":
        return name, "as asked"
    return "sdpa", f"torch's fused attention is the fastest here on {torch.device(device).type}"


def windowed(start, window, shape, device):
    """
    The `start` of a layer in which a token sees at most `window` tokens, itself included.

    start: (B, T) int32 or None. shape: (B, T). Returns (B, T) int32.
    """
    position = torch.arange(shape[1], dtype=torch.int32, device=device).expand(shape)
    floor = (position - window + 1).clamp(min=0)
    return floor if start is None else torch.maximum(start, floor)


def mask_of(start):
    """start (B, T) int32 -> (B, 1, T, T) bool, True where query i (row) may see key j (column)."""
    position = torch.arange(start.shape[1], device=start.device)
    causal = position[None, :] <= position[:, None]  # (T, T)
    return (causal & (position[None, None, :] >= start[:, :, None]))[:, None]


def attention(qkv, start=None, scale=None, impl="sdpa"):
    """
    Attention of packed queries, keys and values.

    qkv: (B, T, 3, H, D) float. start: (B, T) int32, 0 <= start[b, i] <= i, nondecreasing in i; a
    padding token's start is itself. scale: factor of the scores, default 1 / sqrt(D). impl: "sdpa"
    or "math". Returns (B, T, H, D) of qkv's dtype.
    """
    if impl == "math":
        return attention_math(qkv, start, scale)
    if start is not None and qkv.device.type == "cpu" and _is_story_mask(start):
        return attention_by_story(qkv, start, scale)
    q, k, v = qkv.transpose(1, 3).unbind(2)  # each (B, H, T, D)
    mask = None if start is None else mask_of(start)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale)
    return out.transpose(1, 2)


def attention_math(qkv, start=None, scale=None):
    """The formula as it stands, in qkv's dtype; shapes as in `attention`."""
    q, k, v = qkv.transpose(1, 3).unbind(2)  # each (B, H, T, D)
    if start is None:
        start = torch.zeros(qkv.shape[:2], dtype=torch.int32, device=qkv.device)
    scores = q @ k.transpose(-2, -1) * (scale or q.shape[-1] ** -0.5)  # (B, H, T, T)
    weights = scores.masked_fill(~mask_of(start), float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2)


def _is_story_mask(start):
    """True if `start` only separates stories, with no window: every start is its own start."""
    return bool((start.gather(1, start.long()) == start).all())


def attention_by_story(qkv, start, scale=None):
    """
    The same, one fused call for each story of the batch: no pair across stories is computed.

    start must be a story mask (no window). Meant for CPUs, where a call costs microseconds.
    """
    B, T, _, H, D = qkv.shape
    first = start == torch.arange(T, dtype=start.dtype, device=start.device)  # (B, T) bool
    bounds = [*first.flatten().nonzero().flatten().tolist(), B * T]
    lengths = [end - begin for begin, end in itertools.pairwise(bounds)]
    stories = qkv.reshape(B * T, 3, H, D).split(lengths)  # its backward is one concatenation
    outs = []
    for story in stories:  # (L, 3, H, D)
        q, k, v = story.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)  # each (1, H, L, D)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        outs.append(out[0].transpose(0, 1))  # (L, H, D)
    return torch.cat(outs).view(B, T, H, D)
