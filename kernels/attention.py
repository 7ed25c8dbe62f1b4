"""Causal attention within a story, which others call a document.

    out = attention(qkv, start)                         # (B, T, 3, H, D) -> (B, T, H, D)

    O_i = sum_j P_ij V_j,   P_ij = exp(S_ij) / sum_j' exp(S_ij'),   S_ij = scale * Q_i . K_j

over start_i <= j <= i. A row of a batch holds several stories; start_i is the first key that query
i may attend to, the first token of its story (or of its part, where a long one was cut). A window
of w tokens makes it max(start_i, i - w + 1) (`windowed`). `start=None` is plain causal attention.
`qkv` is packed as the projection leaves it. Three implementations, equal up to rounding:

    math     the formula, written out: the reference of every test
    sdpa     torch's fused attention; on a CPU story by story (but for windows), since a dense T x T
             mask would spend most of its time on pairs of tokens from different stories
    triton   the kernels below, for CUDA

Forward (FlashAttention-2: Dao 2023, algorithm 1). P has T x T entries a head, and writing it to
memory would cost far more than the matrix products. But one sweep over the keys, a block at a time,
is enough for a softmax, with a running maximum m, sum z and weighted sum of values acc:

    m' = max(m, max_j S_j)     z'   = z e^(m - m')   + sum_j e^(S_j - m')
                               acc' = acc e^(m - m') + sum_j e^(S_j - m') V_j

and O = acc / z at the end. P exists for one block at a time, in registers. L = m + log z is kept
for the backward pass, which recomputes any P_ij = exp(S_ij - L_i) from it. The kernels work in base
2, because a GPU has exp2 and not exp: with S' = S log2(e) and LSE = L log2(e),
P_ij = exp2(S'_ij - LSE_i).

The backward pass has a file of its own, attention_backward.py.

Lower bounds. N = B T tokens of C = H D channels in a 2-byte type have M pairs (i, j) with start_i
<= j <= i; under a plain causal mask M = N (T + 1) / 2. The forward pass must at least

    read qkv, write O                               8 N C bytes   201 MB     42 us
    compute 2 products                              4 M C FLOPs    26 GFLOP  26 us

at N = 32,768, C = 768 and T = 512. The times are computed from an H200's data sheet (4.8 TB/s, 989
TFLOP/s); measured times are an H100's, whose memory is slower (results/bench/kernels_h100.json).

Blocks in which every pair crosses stories are skipped. start never decreases along a row, so a
block's first query has the smallest one: a sweep over keys begins there, rounded down to STEP and
masked. A sweep over queries ends where `span_ends` says that no later query attends to the block.

Limits: D a multiple of 4 up to 128; float32, bfloat16 and float16; any T. Tested and timed on an
H100 with Triton 3.6; tested in Triton's interpreter; compiled for sm_80, sm_90 and sm_100
(`python -m benchmarks.kernel_compile`).
"""

import itertools

import torch
import torch.nn.functional as F

from kernels import tile
from kernels.attention_backward import flash_attention_backward
from kernels.backend import LOG2_E, launch, tl, triton, unavailable

IMPLEMENTATIONS = ("auto", "triton", "sdpa", "math")  # `choose_attention` resolves auto
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the Triton kernels
MAX_HEAD_SIZE = 128


# ---- which keys a query attends to -------------------------------------------------------------


def windowed(start, window, shape, device):
    """`start` (B, T) int32 or None, raised so that a query sees at most `window` keys (0: all)."""
    if not window:
        return start
    position = torch.arange(shape[1], dtype=torch.int32, device=device).expand(shape)
    earliest = (position - window + 1).clamp(min=0)
    return earliest if start is None else torch.maximum(start, earliest)


def span_ends(start):
    """For each key j, one past the last query that attends to it: (B, T) int32.

    start_i <= j holds for every i <= j and, as start (B, T) int32 never decreases in T, up to some
    last i: the end is how many entries of start are at most j."""
    key = torch.arange(start.shape[1], dtype=start.dtype, device=start.device)
    keys = key.expand_as(start).contiguous()
    return torch.searchsorted(start.contiguous(), keys, right=True, out_int32=True)


def attention_span(start, implementation):
    """(start, end) as `attention` takes them; end = span_ends(start) for Triton, else None.

    Call it once per forward pass: every layer uses the same pair."""
    needed = start is not None and implementation == "triton"
    return start, span_ends(start) if needed else None


def attention_mask(start):
    """start (B, T) int32 -> (B, 1, T, T) bool, True where query i (row) attends to key j."""
    position = torch.arange(start.shape[1], device=start.device)
    causal = position[None, :] <= position[:, None]  # (T, T)
    return (causal & (position[None, None, :] >= start[:, :, None]))[:, None]


# ---- in torch: the reference, and its fused attention ------------------------------------------


def attention_scores(qkv, scale=None):
    """S of every query and key, masked or not: (B, H, T, T)."""
    q, k, _ = qkv.transpose(1, 3).unbind(2)  # each (B, H, T, D)
    return q @ k.transpose(-2, -1) * (scale or q.shape[-1] ** -0.5)


def attention_weights(qkv, start=None, scale=None):
    """P, which the fused implementations never hold whole: (B, H, T, T), each row sums to 1."""
    if start is None:
        start = torch.zeros(qkv.shape[:2], dtype=torch.int32, device=qkv.device)
    scores = attention_scores(qkv, scale).masked_fill(~attention_mask(start), float("-inf"))
    return scores.softmax(-1)


def attention_math(qkv, start=None, scale=None):
    """The formula, computed in qkv's dtype; shapes as in `attention`."""
    v = qkv[:, :, 2].transpose(1, 2)  # (B, H, T, D)
    return (attention_weights(qkv, start, scale) @ v).transpose(1, 2)


def attention_sdpa(qkv, start=None, scale=None):
    """torch's scaled_dot_product_attention; shapes as in `attention`."""
    if start is not None and qkv.device.type == "cpu" and _no_window(start):
        return attention_by_story(qkv, start, scale)
    q, k, v = qkv.transpose(1, 3).unbind(2)  # each (B, H, T, D)
    mask = None if start is None else attention_mask(start)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale)
    return out.transpose(1, 2)


def _no_window(start):
    """Without a window a story's first token starts at itself: start[start[i]] == start[i]."""
    return bool((start.gather(1, start.long()) == start).all())


def attention_by_story(qkv, start, scale=None):
    """`attention_sdpa` with one call per story, for CPUs: no pair across stories is computed."""
    B, T, _, H, D = qkv.shape
    first = start == torch.arange(T, dtype=start.dtype, device=start.device)  # (B, T) bool
    # In the flattened batch: every row's first column starts a story, so no piece crosses rows.
    bounds = [*first.flatten().nonzero().flatten().tolist(), B * T]
    lengths = [end - begin for begin, end in itertools.pairwise(bounds)]
    # In float32: torch's bfloat16 attention takes twice as long on a CPU for short stories.
    flat, outs = qkv.float().reshape(B * T, 3, H, D), []
    for story in flat.split(lengths):  # (L, 3, H, D); split's backward is one concatenation
        q, k, v = story.permute(1, 2, 0, 3).unsqueeze(1).unbind(0)  # each (1, H, L, D)
        with torch.autocast("cpu", enabled=False):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        outs.append(out[0].transpose(0, 1))  # (L, H, D)
    return torch.cat(outs).view(B, T, H, D).to(qkv.dtype)


# ---- Triton: the forward pass ------------------------------------------------------------------


@triton.jit
def _forward(
    QKV, OUT, LSE, START, T, scale_log2,
    H: tl.constexpr, D: tl.constexpr, HAS_START: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Attention of BLOCK queries of one head to their keys, STEP at a time.

    QKV (B, T, 3, H, D), OUT (B, T, H, D), LSE (B, H, T) float32, in base 2, START (B, T) int32,
    read only with HAS_START. scale_log2 = scale log2(e). Grid: (H, blocks, B)."""
    head, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    # Long programs (late blocks) start first, so that no long one is left at the end.
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK
    # Element (b, t, part, h, d) of qkv lies at ((b T + t) 3 + part) H D + h D + d.
    ROW: tl.constexpr = 3 * H * D
    Q = QKV + batch * T * ROW + head * D
    K, V = Q + H * D, Q + 2 * H * D

    queries, offsets = first + tl.arange(0, BLOCK), tl.arange(0, STEP)
    q = tile.load(Q, queries, T, ROW, D, True)
    m = tl.full((BLOCK,), -1e38, tl.float32)  # not -inf: s - m must not be -inf - -inf = nan
    z = tl.zeros((BLOCK,), tl.float32)
    acc = tile.zeros(BLOCK, D)
    begin = 0
    if HAS_START:
        start = tl.load(START + batch * T + queries, mask=queries < T, other=0)
        begin = tl.load(START + batch * T + first) // STEP * STEP

    # DIAGONAL = 0: keys before the block, each in every query's past; 1: the block's own keys. Only
    # these need the causal mask, and only these may reach past T. static_range unrolls at compile
    # time: two loops, with each `if DIAGONAL` decided. Masks compare offsets within the step:
    # offsets >= start - key means keys >= start.
    for DIAGONAL in tl.static_range(2):
        low, high = begin, first
        if DIAGONAL:
            low, high = first, tl.minimum(first + BLOCK, T)
        for key in range(low, high, STEP):
            keys = key + offsets
            k = tile.load(K, keys, T, ROW, D, DIAGONAL)
            s = tile.dot_transposed(q, k)  # (queries, keys)
            if HAS_START:
                s = tl.where(offsets[None, :] >= (start - key)[:, None], s, float("-inf"))
            if DIAGONAL:
                s = tl.where(offsets[None, :] <= (queries - key)[:, None], s, float("-inf"))
            new_m = tl.maximum(m, tl.max(s, 1) * scale_log2)
            # P but for the factor 1 / z: one multiply-add and one exp2 a pair.
            p = tl.exp2(s * scale_log2 - new_m[:, None])
            rescale = tl.exp2(m - new_m)
            v = tile.load(V, keys, T, ROW, D, DIAGONAL)
            acc = tile.add_dot(tile.times(acc, rescale[:, None]), p, v)
            z = z * rescale + tl.sum(p, 1)
            m = new_m

    out = OUT + batch * T * (H * D) + head * D
    tile.store(out, queries, T, tile.times(acc, 1 / z[:, None]), H * D, D)
    tl.store(LSE + (batch * H + head) * T + queries, m + tl.log2(z), mask=queries < T)


# ---- custom ops, which torch.compile keeps in one graph, and the public function ---------------


@torch.library.custom_op("nanostories::attention", mutates_args=())
def flash_attention(
    qkv: torch.Tensor, start: torch.Tensor | None, end: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention` in Triton: (out (B, T, H, D), LSE (B, H, T) float32, in base 2).

    `end` is only for the backward pass."""
    qkv = qkv.contiguous()
    B, T, _, H, D = qkv.shape
    out, lse = qkv.new_empty(B, T, H, D), qkv.new_empty(B, H, T, dtype=torch.float32)
    settings = tile.tiles(D, qkv.dtype, False, qkv.device)
    grid = (H, triton.cdiv(T, settings["BLOCK"]), B)
    has_start = start is not None
    start = start.contiguous() if has_start else lse  # without start any tensor: it is not read
    launch(
        _forward, grid, qkv, out, lse, start, T, scale * LOG2_E,
        H=H, D=D, HAS_START=has_start, **settings,
    )  # fmt: skip
    return out, lse


@flash_attention.register_fake
def _(qkv, start, end, scale):
    B, T, _, H, D = qkv.shape
    return qkv.new_empty(B, T, H, D), qkv.new_empty(B, H, T, dtype=torch.float32)


def _save(ctx, inputs, output):
    qkv, start, end, ctx.scale = inputs
    ctx.save_for_backward(qkv, *output, start, end)
    ctx.set_materialize_grads(False)  # lse gets no gradient: make no zeros for it


def _differentiate(ctx, d_out, _):
    qkv, out, lse, start, end = ctx.saved_tensors
    d_qkv = flash_attention_backward(d_out, qkv, out, lse, start, end, ctx.scale)
    return d_qkv, None, None, None


flash_attention.register_autograd(_differentiate, setup_context=_save)


def attention(qkv, start=None, scale=None, implementation="sdpa", end=None):
    """Attention of packed queries, keys and values.

    qkv: (B, T, 3, H, D) float. start: (B, T) int32, 0 <= start[b, i] <= i, nondecreasing in i;
    padding at a row's end counts as one more story. scale: factor of the scores, above 0;
    default 1 / sqrt(D). implementation: "triton", "sdpa" or "math". end: span_ends(start), if the
    caller has it: it is the same in every layer. Returns (B, T, H, D) of qkv's dtype. Raises
    TypeError where the kernels do not take qkv's dtype."""
    if implementation == "math":
        return attention_math(qkv, start, scale)
    if implementation == "sdpa":
        return attention_sdpa(qkv, start, scale)
    if qkv.dtype not in DTYPES:
        raise TypeError(f"attention's kernels take float32, bfloat16 or float16, not {qkv.dtype}")
    if start is not None and end is None:
        end = span_ends(start)
    return flash_attention(qkv, start, end, scale or qkv.shape[-1] ** -0.5)[0]


def choose_attention(name, device, head_size, dtype):
    """The implementation that a setting selects, and the reason: (name, reason).

    name: one of IMPLEMENTATIONS. dtype: what the model computes in. Raises ValueError for other
    names, and for "triton" where it cannot run."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attn must be one of {', '.join(IMPLEMENTATIONS)}, not '{name}'")
    obstacle = unavailable(device)
    if head_size % 4 or head_size > MAX_HEAD_SIZE:
        obstacle = f"heads of {head_size} are not a multiple of 4 up to {MAX_HEAD_SIZE}"
    if name == "triton" and obstacle:
        raise ValueError(f"attn=triton cannot run: {obstacle}; use attn=sdpa")
    if name != "auto":
        return name, "as set"
    if torch.device(device).type != "cuda":
        return "sdpa", f"the fastest on {torch.device(device).type}"
    if obstacle:
        return "sdpa", f"triton cannot run: {obstacle}"
    if dtype == torch.float32:  # exact products, without tensor cores: torch's kernels are faster
        return "sdpa", "the fastest in float32"
    return "triton", "the fastest by python -m benchmarks.kernels"
