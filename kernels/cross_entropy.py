"""The output head and its cross-entropy in one operation, without the N x V logits.

    loss_n = log sum_v exp(S_nv) - S_nt,     S_nv = h_n . W_v,     t = the target of n
    d loss_n / d h_n = sum_v (p_nv - [v = t]) W_v,                 p_nv = exp(S_nv) / sum_v' ...
    d loss_n / d W_v = sum_n (p_nv - [v = t]) h_n

With a vocabulary of V = 50,000 words the logits S are by far the largest tensor of a training step:
3 GB for 32,768 tokens in bfloat16, and eager PyTorch holds several copies. Both gradients need only
p, and p follows from S, so S is computed, used and dropped one part at a time. Which way is faster
depends on C = n_embd, because computing S once more costs 2 N V C operations:

    recompute   for small C. Two Triton kernels that keep a tile of S in registers, as attention
                does: one sweeps over the vocabulary and makes the loss and d h (attention with
                K = V = W), one sweeps over the tokens and makes d W.
    chunks      for larger C. The logits of CHUNK tokens come from a plain matrix product; one
                Triton kernel turns each row into its loss and, in place, into p - [v = t]; two more
                products make d h and d W. For a mean loss all of this happens in the forward pass:
                its gradients are those of the sum, times one factor that is known later.
    torch       chunks without Triton, for CPUs: a chunk stays in the cache, where all logits would
                cross the memory bus six times.

The cost in a 2-byte type, besides reading h and W and writing their gradients:

                 products     logits moved   logits held
    recompute    8 N V C      -              a tile
    chunks       6 N V C      10 N V bytes   2 CHUNK V bytes
    eager        6 N V C      34 N V bytes   10 N V bytes

On an H100, 32,768 tokens and 50,304 words took `recompute` 3.9 ms and `chunks` 7.6 ms at C = 128,
and 6.3 and 8.2 ms at C = 256, where the running sum of d h no longer fits a program's registers and
goes to the stack (results/bench/kernels_h100.json). Beyond, `chunks` is used.

A target of which the model is sure has p near 1, and p - 1 would lose its digits if p were rounded
to bfloat16 first. So d h leaves the target out of the rounded sum and adds (p_t - 1) W_t in full.

Tested and timed on an H100 with Triton 3.6, except for two later choices, the tile shapes for C up
to 64 and `recompute` above 128; tested in Triton's interpreter; compiled for sm_80, sm_90 and
sm_100 (`python -m benchmarks.kernel_compile`), `recompute` up to 128.
"""

import torch
import torch.nn.functional as F

from kernels.backend import launch, tl, triton, unavailable, warpgroups

IGNORE_INDEX = -1  # a target that is not scored: padding
IMPLEMENTATIONS = ("recompute", "chunks", "torch")
CHUNK = {"cpu": 512, "cuda": 4096}  # tokens; of 50,304 words, 4,096 take 0.4 GB in bfloat16
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)


# ---- Triton's work, in torch: the reference ----------------------------------------------------


def _softmax_gradient_torch(logits, targets, d_loss, losses, vocab_size, ignore_index, grad):
    """The kernel _softmax_gradient below in torch's operations; logits have no padding here."""
    p = logits.softmax(-1, dtype=torch.float32)
    scored = targets != ignore_index
    target = targets.where(scored, 0)[:, None]
    loss = -p.gather(1, target)[:, 0].log()
    if (rare := loss > 80).any():  # p is too small for a float32: from the logits, then
        log_p = logits[rare].log_softmax(-1, dtype=torch.float32)
        loss[rare] = -log_p.gather(1, target[rare])[:, 0]
    losses.copy_(loss * scored)
    if grad:
        p.scatter_add_(1, target, torch.full_like(target, -1.0, dtype=p.dtype))
        torch.mul(p, (scored * d_loss)[:, None], out=logits)


# ---- Triton: recompute -------------------------------------------------------------------------


@triton.jit
def _rows(matrix, rows, n_rows, C: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of a matrix (n_rows, C) as a tile (rows, WIDTH): zeros beyond its edges."""
    columns = tl.arange(0, WIDTH)[None, :]
    valid = (rows[:, None] < n_rows) & ((columns < C) | (WIDTH == C))
    return tl.load(matrix + rows[:, None].to(tl.int64) * C + columns, mask=valid, other=0.0)


@triton.jit
def _sweep_words(
    HIDDEN, WEIGHT, TARGETS, LOSS, LSE, D_HIDDEN, N, V, ignore_index,
    C: tl.constexpr, WIDTH: tl.constexpr, GRAD: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Loss of BLOCK tokens, and with GRAD its gradient, from all V words, STEP at a time.

    HIDDEN, D_HIDDEN (N, C), WEIGHT (V, C), TARGETS (N,); LOSS (N,) and LSE (N,), the log2 of each
    row's sum, float32. WIDTH: C rounded up to a power of two. m, z and acc: as in attention.py."""
    tokens = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(TARGETS + tokens, mask=tokens < N, other=ignore_index)
    scored = target != ignore_index
    target = tl.where(scored, target, 0).to(tl.int32)
    h = _rows(HIDDEN, tokens, N, C, WIDTH)
    m = tl.full((BLOCK,), -1e38, tl.float32)
    z = tl.zeros((BLOCK,), tl.float32)
    acc = tl.zeros((BLOCK, WIDTH), tl.float32)
    for LAST in tl.static_range(2):  # whole steps, then what is left of the vocabulary
        low, high = 0, V // STEP * STEP
        if LAST:
            low, high = V // STEP * STEP, V
        for word in range(low, high, STEP):
            words = word + tl.arange(0, STEP)
            w = _rows(WEIGHT, words, V, C, WIDTH)
            s = tl.dot(h, tl.trans(w), input_precision="ieee")  # (tokens, words)
            if LAST:
                s = tl.where(words[None, :] < V, s, float("-inf"))
            new_m = tl.maximum(m, tl.max(s, 1) * LOG2_E)
            p = tl.exp2(s * LOG2_E - new_m[:, None])
            rescale = tl.exp2(m - new_m)
            z = z * rescale + tl.sum(p, 1)
            if GRAD:
                p = tl.where(words[None, :] == target[:, None], 0.0, p).to(w.dtype)
                acc = tl.dot(p, w, acc * rescale[:, None], input_precision="ieee")
            m = new_m
    lse = m + tl.log2(z)
    w_target = _rows(WEIGHT, target, V, C, WIDTH).to(tl.float32)
    s_target = tl.sum(h.to(tl.float32) * w_target, 1) * LOG2_E
    tl.store(LSE + tokens, lse, mask=tokens < N)
    tl.store(LOSS + tokens, tl.where(scored, (lse - s_target) * LN_2, 0.0), mask=tokens < N)
    if GRAD:
        d = acc / z[:, None] + (tl.exp2(s_target - lse) - 1)[:, None] * w_target
        d = tl.where(scored[:, None], d, 0.0)
        columns = tl.arange(0, WIDTH)[None, :]
        place = D_HIDDEN + tokens[:, None].to(tl.int64) * C + columns
        valid = (tokens[:, None] < N) & (columns < C)
        tl.store(place, d.to(D_HIDDEN.dtype.element_ty), mask=valid)


@triton.jit
def _sweep_tokens(
    HIDDEN, WEIGHT, TARGETS, LSE, D_LOSS, D_WEIGHT, N, V, V_PADDED, ignore_index,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK words' weights from all N tokens, STEP at a time.

    As in _sweep_words; D_LOSS (N,) float32, D_WEIGHT (V_PADDED, C) float32, 0 from row V on."""
    words = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    w = _rows(WEIGHT, words, V, C, WIDTH)
    d = tl.zeros((BLOCK, WIDTH), tl.float32)
    for token in range(0, N, STEP):
        tokens = token + tl.arange(0, STEP)
        h = _rows(HIDDEN, tokens, N, C, WIDTH)
        target = tl.load(TARGETS + tokens, mask=tokens < N, other=ignore_index)
        d_loss = tl.load(D_LOSS + tokens, mask=tokens < N, other=0.0)
        d_loss = tl.where(target != ignore_index, d_loss, 0.0)
        lse = tl.load(LSE + tokens, mask=tokens < N, other=0.0)  # past N h is 0
        s = tl.dot(w, tl.trans(h), input_precision="ieee")  # (words, tokens)
        p = tl.exp2(s * LOG2_E - lse[None, :])
        hit = words[:, None] == target.to(tl.int32)[None, :]
        p = tl.where(hit, p - 1, p) * d_loss[None, :]
        d = tl.dot(p.to(h.dtype), h, d, input_precision="ieee")
    columns = tl.arange(0, WIDTH)[None, :]
    place = D_WEIGHT + words[:, None].to(tl.int64) * C + columns
    d = tl.where(words[:, None] < V, d, 0.0)
    tl.store(place, d, mask=(words[:, None] < V_PADDED) & (columns < C))


# ---- Triton: chunks ----------------------------------------------------------------------------


@triton.jit
def _softmax_gradient(
    LOGITS, TARGETS, D_LOSS, LOSS, V, V_PADDED, ignore_index,
    GRAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss of one row of LOGITS (rows, V_PADDED); with GRAD the row becomes D_LOSS (p - [v = t]).

    The padding and ignored rows become zeros."""
    row = tl.program_id(0)
    LOGITS += row.to(tl.int64) * V_PADDED
    target = tl.load(TARGETS + row)
    scored = target != ignore_index
    # One maximum and sum for each of BLOCK lanes, combined at the end.
    m = tl.full((BLOCK,), -1e38, tl.float32)
    z = tl.zeros((BLOCK,), tl.float32)
    for word in range(0, V, BLOCK):
        words = word + tl.arange(0, BLOCK)
        # V_PADDED, whose divisors the compiler knows, lets it load 16 bytes at a time.
        s = tl.load(LOGITS + words, mask=words < V_PADDED, other=0.0).to(tl.float32)
        s = tl.where(words < V, s, float("-inf"))
        new_m = tl.maximum(m, s)
        z = z * tl.exp2((m - new_m) * LOG2_E) + tl.exp2((s - new_m) * LOG2_E)
        m = new_m
    top = tl.max(m, 0)
    total = tl.sum(z * tl.exp2((m - top) * LOG2_E), 0)
    s_target = tl.load(LOGITS + tl.where(scored, target, 0)).to(tl.float32)
    loss = tl.log2(total) * LN_2 + (top - s_target)
    tl.store(LOSS + row, tl.where(scored, loss, 0.0))
    if GRAD:
        d_loss = tl.where(scored, tl.load(D_LOSS + row), 0.0)
        # Threads do not run in step: none may overwrite the target's logit before all have read it.
        # The loop itself needs no barrier: the same thread reads and replaces an element.
        tl.debug_barrier()
        for word in range(0, V_PADDED, BLOCK):
            words = word + tl.arange(0, BLOCK)
            s = tl.load(LOGITS + words, mask=words < V_PADDED, other=0.0).to(tl.float32)
            p = tl.exp2((s - top) * LOG2_E) / total
            d = (p - tl.where(words == target, 1.0, 0.0)) * d_loss
            d = tl.where(words < V, d, 0.0).to(LOGITS.dtype.element_ty)
            tl.store(LOGITS + words, d, mask=words < V_PADDED)


# ---- custom ops, which torch.compile keeps in one graph, and the public function ---------------


def tiles(n_embd, dtype, backward, device):
    """The launch settings of a sweep: its constexprs, num_warps and num_stages.

    backward: of _sweep_tokens, else of _sweep_words. For n_embd up to 64 the fastest on an H100
    (`python -m benchmarks.kernel_tuning`)."""
    width, stages = max(16, triton.next_power_of_2(n_embd)), 2
    if dtype == torch.float32:
        block, step = 32, 32
    elif width <= 64 and warpgroups(device):
        block, step, stages = 128 if backward else 64, 32, 3
    else:
        block, step = 64, 32 if width > 64 and not warpgroups(device) else 64
    settings = {"C": n_embd, "WIDTH": width, "BLOCK": block, "STEP": step}
    return settings | {"num_warps": 4, "num_stages": stages}


def _add_product(total, a, b):
    """total += a b; total is float32, a and b may be of 16 bits."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


def _in_chunks(hidden, weight, targets, d_loss, vocab_size, ignore_index, grad, implementation):
    """(losses (N,), d hidden (N, C), d weight (V_padded, C) float32), CHUNK tokens at a time.

    The gradients are of sum(d_loss * losses), and empty unless `grad`. hidden and weight are of the
    dtype to compute in."""
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    d_hidden = torch.empty_like(hidden) if grad else hidden.new_empty(0)
    d_weight = weight.new_zeros(weight.shape if grad else 0, dtype=torch.float32)
    # The kernel needs the padding, for aligned rows; torch's operations are better off without.
    width = vocab_size if implementation == "torch" else len(weight)
    weight = weight[:width]
    size = CHUNK.get(hidden.device.type, CHUNK["cuda"])
    for first in range(0, len(hidden), size):
        rows = slice(first, first + size)
        logits = F.linear(hidden[rows], weight)
        args = (logits, targets[rows], d_loss[rows], losses[rows], vocab_size)
        if implementation == "torch":
            _softmax_gradient_torch(*args, ignore_index, grad)
        else:
            options = {"GRAD": grad, "BLOCK": 4096, "num_warps": 8}
            launch(_softmax_gradient, (len(logits),), *args, width, ignore_index, **options)
        if grad:
            torch.mm(logits, weight, out=d_hidden[rows])
            _add_product(d_weight[:width], logits.T, hidden[rows])
    return losses, d_hidden, d_weight


@torch.library.custom_op("nanostories::linear_cross_entropy", mutates_args=())
def fused_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, vocab_size: int,
    ignore_index: int, uniform: bool, grad: bool, implementation: str, dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Losses (N,) and what their backward pass needs: (losses, lse, d hidden, d weight).

    uniform: every loss will have the same gradient, as under a mean. grad: there will be a backward
    pass. lse, d hidden and d weight are empty where the implementation does not make them here."""
    implementation = implementation or choose_loss(hidden.device, dtype, hidden.shape[1])
    with torch.autocast(hidden.device.type, enabled=False):
        h, w = hidden.to(dtype).contiguous(), weight.to(dtype).contiguous()
        if implementation != "recompute":
            ones, make = h.new_ones(len(h), dtype=torch.float32), grad and uniform
            args = (h, w, targets, ones, vocab_size, ignore_index, make, implementation)
            losses, d_hidden, d_weight = _in_chunks(*args)
            return losses, torch.empty_like(losses[:0]), d_hidden, d_weight
        losses, lse = (h.new_empty(len(h), dtype=torch.float32) for _ in range(2))
        d_hidden = torch.empty_like(h) if grad else h.new_empty(0)
        settings = tiles(h.shape[1], dtype, False, h.device)
        grid = (triton.cdiv(len(h), settings["BLOCK"]),)
        args = (h, w, targets, losses, lse, d_hidden, len(h), vocab_size, ignore_index)
        launch(_sweep_words, grid, *args, GRAD=grad, **settings)
        return losses, lse, d_hidden, torch.empty_like(losses[:0])


@torch.library.custom_op("nanostories::linear_cross_entropy_backward", mutates_args=())
def fused_loss_backward(
    d_losses: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
    lse: torch.Tensor, d_hidden: torch.Tensor, d_weight: torch.Tensor, vocab_size: int,
    ignore_index: int, implementation: str, dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of hidden and weight, in their dtypes, from those of the losses (N,)."""
    with torch.autocast(hidden.device.type, enabled=False):
        d_losses = d_losses.float().contiguous()
        if d_weight.numel():  # made with the losses, for a gradient of 1
            d_hidden, d_weight = d_hidden * d_losses[:, None], d_weight * d_losses[:1]
            return d_hidden.to(hidden.dtype), d_weight.to(weight.dtype)
        h, w = hidden.to(dtype).contiguous(), weight.to(dtype).contiguous()
        if implementation == "recompute":
            d_weight = torch.empty_like(w, dtype=torch.float32)
            settings = tiles(h.shape[1], dtype, True, h.device)
            grid = (triton.cdiv(len(w), settings["BLOCK"]),)
            args = (h, w, targets, lse, d_losses, d_weight, len(h), vocab_size, len(w))
            launch(_sweep_tokens, grid, *args, ignore_index, **settings)
            d_hidden = d_hidden * d_losses[:, None]
        else:
            args = (h, w, targets, d_losses, vocab_size, ignore_index, True, implementation)
            _, d_hidden, d_weight = _in_chunks(*args)
        return d_hidden.to(hidden.dtype), d_weight.to(weight.dtype)


@fused_loss.register_fake
def _(hidden, weight, targets, vocab_size, ignore_index, uniform, grad, implementation, dtype):
    implementation = implementation or choose_loss(hidden.device, dtype, hidden.shape[1])
    recompute = implementation == "recompute"
    make = grad and (uniform or recompute)
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    return (
        losses,
        losses.new_empty(len(hidden) if recompute else 0),
        hidden.new_empty(hidden.shape if make else 0, dtype=dtype),
        losses.new_empty(weight.shape if make and not recompute else 0),
    )


@fused_loss_backward.register_fake
def _(d_losses, hidden, weight, *rest):
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _save(ctx, inputs, output):
    hidden, weight, targets, vocab_size, ignore_index, _, _, implementation, dtype = inputs
    implementation = implementation or choose_loss(hidden.device, dtype, hidden.shape[1])
    ctx.constants = (vocab_size, ignore_index, implementation, dtype)
    ctx.save_for_backward(hidden, weight, targets, *output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, d_losses, *_):
    return *fused_loss_backward(d_losses, *ctx.saved_tensors, *ctx.constants), *[None] * 7


fused_loss.register_autograd(_differentiate, setup_context=_save)


def linear_cross_entropy(
    hidden, weight, targets, vocab_size, ignore_index=IGNORE_INDEX, mean=True, implementation=""
):
    """Cross-entropy of softmax(hidden W^T) against targets.

    hidden: (N, C) float. weight: (V_padded, C) float; rows from vocab_size on are padding, which
    takes no part and gets no gradient. targets: (N,) int64, ignore_index where not scored.
    implementation: one of IMPLEMENTATIONS, by default choose_loss's. Computed in autocast's dtype
    where that is on, else in hidden's. Returns nats, float32: the mean over the scored targets (nan
    if there are none), or with mean=False a loss for each row (N,), 0 where ignored."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    rest = (ignore_index, mean, grad, implementation, dtype)
    losses = fused_loss(hidden, weight, targets.contiguous(), vocab_size, *rest)[0]
    return losses.sum() / (targets != ignore_index).sum() if mean else losses


def choose_loss(device, dtype, n_embd):
    """The implementation for a torch.device, a compute dtype and C: one of IMPLEMENTATIONS.
    Asked by the ops, not by their caller, which torch.compile traces: it cannot trace Triton."""
    if unavailable(device) or torch.device(device).type != "cuda":
        return "torch"
    return choose_kernels(dtype, n_embd)


def choose_kernels(dtype, n_embd):
    """The faster of the two implementations with kernels."""
    # Without tensor cores, as in float32, computing the logits again costs more than storing them.
    return "recompute" if n_embd <= 256 and dtype != torch.float32 else "chunks"
