"""The output head and its cross-entropy in one operation, without the N x V logits.

    loss_n = log sum_v exp(S_nv) - S_nt,     S_nv = h_n . W_v,     t = the target of n
    d loss_n / d h_n = sum_v (p_nv - [v = t]) W_v,                 p_nv = exp(S_nv) / sum_v' ...
    d loss_n / d W_v = sum_n (p_nv - [v = t]) h_n

A softmax usually subtracts the row's maximum, so that no exponential is too large, and has to look
at all logits first. Here the target's logit is subtracted. Its own term is then 1, and

    E_nv = exp(S_nv - S_nt)    R_n = sum of E_nv over v != t    loss_n = log(1 + R_n)
    p_nv = E_nv / (1 + R_n)    p_nt - 1 = -R_n / (1 + R_n)

A sum of at least 1 cannot vanish. It can only become too large, where the model finds another word
2^100 times as likely as the target, a loss of 69 nats: such rows are noticed, and computed again
with their maximum. And R, summed without the target, keeps the digits of p_t - 1 where the model is
sure of a target, p_t near 1.

With a vocabulary of V = 50,000 words the logits S are by far the largest tensor of a training step:
3 GB for 32,768 tokens in bfloat16, and eager PyTorch holds several copies. Both gradients need only
p, and p follows from S, so S is computed, used and dropped one part at a time. Which way is faster
depends on C = n_embd, because computing S once more costs 2 N V C operations:

    recompute   for small C. Two Triton kernels that keep a tile of S in registers, as attention
                does: one sweeps over the vocabulary and makes the loss and d h (attention with
                K = V = W), one sweeps over the tokens and makes d W.
    chunks      for larger C. The logits of a chunk of tokens come from a plain matrix product. One
                Triton kernel turns them into E in place and sums it, a second one makes the losses
                and puts -R in the target's place; two more products make d h and d W. For a mean
                loss all of this happens in the forward pass: its gradients are those of the sum,
                times one factor that is known later.
    epilogue    chunks in which the product itself turns its tiles into E before it writes them.
    torch       chunks without Triton, for CPUs: a chunk stays in the cache, where all logits would
                cross the memory bus six times.

The cost in a 2-byte type, besides reading h and W and writing their gradients:

                 products     logits moved   logits held
    recompute    8 N V C      -              a tile
    chunks       6 N V C      10 N V bytes   2 x 16,384 V bytes (1.6 GB at V = 50,304)
    epilogue     6 N V C      6 N V bytes    as chunks
    eager        6 N V C      34 N V bytes   10 N V bytes

On an H100, 32,768 tokens and 50,304 words took `recompute` 3.9 ms and `chunks` 7.6 ms at C = 128,
and 6.3 and 8.2 ms at C = 256, where the running sum of d h no longer fits a program's registers and
goes to the stack (results/bench/kernels_h100.json). Beyond, `chunks` is used. All of these times
are from before the target's logit took the maximum's place, with chunks of 4,096 tokens that read S
twice: on paper the one is worth 1.1 ms of 14.7 at C = 768, and the other, which adds to d W less
often, 0.5. `epilogue` saves 4 N V bytes more, 2.2 ms of memory traffic, if Triton's product is as
fast as the library's (3.3 ms); it is chosen only by name until it has been timed.

Tested in Triton's interpreter and compiled for sm_80, sm_90 and sm_100 (`python -m
benchmarks.kernel_compile`), `recompute` up to C = 128. An H100 with Triton 3.6 ran an earlier
version, with the maximum.
"""

import torch
import torch.nn.functional as F

from kernels.backend import (
    compute_dtype,
    launch,
    product_tile,
    product_tiles,
    tl,
    triton,
    unavailable,
    warpgroups,
)

IGNORE_INDEX = -1  # a target that is not scored: padding
IMPLEMENTATIONS = ("recompute", "chunks", "epilogue", "torch")
CHUNK, CHUNK_ON_GPUS = 512, 16384  # tokens
SEGMENT = 128  # words
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)


# ---- in torch ----------------------------------------------------------------------------------


def _softmax_gradient(logits, targets, d_loss, losses, ignore_index, grad):
    """Fills `losses` from logits (rows, V). With `grad` these become G and (G, scale) is returned:
    the gradient of the logits is scale[:, None] * G. Here scale (rows,), float32, is 1."""
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
    return logits, torch.ones_like(loss)


# ---- Triton: recompute -------------------------------------------------------------------------


@triton.jit
def _rows(matrix, rows, n_rows, C: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of a matrix (n_rows, C) as a tile (rows, WIDTH): zeros beyond its edges."""
    columns = tl.arange(0, WIDTH)[None, :]
    valid = (rows[:, None] < n_rows) & ((columns < C) | (WIDTH == C))
    return tl.load(matrix + rows[:, None].to(tl.int64) * C + columns, mask=valid, other=0.0)


@triton.jit
def _sum_words(
    h, target, m, WEIGHT, V, C: tl.constexpr, WIDTH: tl.constexpr, GRAD: tl.constexpr,
    RISING: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Sums over the V words but for the target, STEP at a time: (acc, m, rest) of e W and of e,
    e = exp2(S log2(e) - m). With RISING m is a running maximum, as in attention.py, from m on."""
    rest = tl.zeros((BLOCK,), tl.float32)
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
            if RISING:
                new_m = tl.maximum(m, tl.max(s, 1) * LOG2_E)
                rescale = tl.exp2(m - new_m)
                rest, acc, m = rest * rescale, acc * rescale[:, None], new_m
            e = tl.exp2(s * LOG2_E - m[:, None])
            e = tl.where(words[None, :] == target[:, None], 0.0, e)
            rest += tl.sum(e, 1)
            if GRAD:
                acc = tl.dot(e.to(w.dtype), w, acc, input_precision="ieee")
    return acc, m, rest


@triton.jit
def _sweep_words(
    HIDDEN, WEIGHT, TARGETS, LOSS, LSE, D_HIDDEN, N, V, ignore_index, limit,
    C: tl.constexpr, WIDTH: tl.constexpr, GRAD: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Loss of BLOCK tokens, and with GRAD its gradient, from all V words, STEP at a time.

    HIDDEN, D_HIDDEN (N, C), WEIGHT (V, C), TARGETS (N,); LOSS (N,) and LSE (N,), the log2 of each
    row's sum, float32. WIDTH: C rounded up to a power of two. limit: see _LIMIT."""
    tokens = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    target = tl.load(TARGETS + tokens, mask=tokens < N, other=ignore_index)
    scored = target != ignore_index
    target = tl.where(scored, target, 0).to(tl.int32)
    h = _rows(HIDDEN, tokens, N, C, WIDTH)
    w_target = _rows(WEIGHT, target, V, C, WIDTH)
    s_target = tl.sum(h.to(tl.float32) * w_target.to(tl.float32), 1) * LOG2_E
    acc, m, rest = _sum_words(h, target, s_target, WEIGHT, V, C, WIDTH, GRAD, False, BLOCK, STEP)
    if tl.max(tl.where(rest < limit, 0, 1), 0) > 0:  # a sum is too large, or nan: all anew
        acc, m, rest = _sum_words(
            h, target, s_target, WEIGHT, V, C, WIDTH, GRAD, True, BLOCK, STEP // 2
        )
    z = rest + tl.exp2(s_target - m)
    lse = m + tl.log2(z)
    tl.store(LSE + tokens, lse, mask=tokens < N)
    loss = tl.log2(z) + (m - s_target)
    tl.store(LOSS + tokens, tl.where(scored, loss * LN_2, 0.0), mask=tokens < N)
    if GRAD:
        # Read again, as in between its place is needed. p_t - 1 = -rest / z.
        w_target = _rows(WEIGHT, target, V, C, WIDTH).to(tl.float32)
        d = (acc - rest[:, None] * w_target) / z[:, None]
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
#
# A chunk's logits S become E in segments of SEGMENT words. SUMS (rows, segments) float32 has each
# segment's sum of E without the target; -1 means that some E would pass 2^limit: there S stays.


@triton.jit
def _exponentials(
    LOGITS, TARGETS, S_TARGET, SUMS, V, V_PADDED, ignore_index, limit,
    GRAD: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr,
):  # fmt: skip
    """One row of LOGITS (rows, V_PADDED), SEGMENTS at a time; only with GRAD is E written.

    S_TARGET (rows,) float32 gets the target's logit, in base 2."""
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * V_PADDED
    SUMS += row * tl.cdiv(V_PADDED, SEGMENT)
    target = tl.load(TARGETS + row)
    target = tl.where(target == ignore_index, 0, target)
    s_target = tl.load(LOGITS + target).to(tl.float32) * LOG2_E
    tl.store(S_TARGET + row, s_target)
    # Threads do not run in step: none may overwrite the target's logit before all have read it.
    # The loop itself needs no barrier: the same thread reads and replaces an element.
    tl.debug_barrier()
    for first in range(0, V_PADDED, SEGMENTS * SEGMENT):
        segments = first // SEGMENT + tl.arange(0, SEGMENTS)
        words = (segments * SEGMENT)[:, None] + tl.arange(0, SEGMENT)[None, :]
        # V_PADDED, whose divisors the compiler knows, lets it load 16 bytes at a time.
        s = tl.load(LOGITS + words, mask=words < V_PADDED, other=0.0).to(tl.float32)
        d = tl.where(words < V, s * LOG2_E - s_target, float("-inf"))
        fits = tl.max(d, 1) <= limit
        e = tl.exp2(d)
        total = tl.sum(tl.where(words == target, 0.0, e), 1)
        tl.store(SUMS + segments, tl.where(fits, total, -1.0), mask=segments * SEGMENT < V_PADDED)
        if GRAD:
            e = tl.where(fits[:, None], e, s).to(LOGITS.dtype.element_ty)
            tl.store(LOGITS + words, e, mask=words < V_PADDED)


@triton.jit
def _words_of_row(
    LOGITS, SUMS, word, s_target, V, V_PADDED,
    GRAD: tl.constexpr, SEGMENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The logits, in base 2, of BLOCK words of a row that is partly E, and which words they are."""
    words = word + tl.arange(0, BLOCK)
    x = tl.load(LOGITS + words, mask=words < V_PADDED, other=0.0).to(tl.float32)
    total = tl.load(SUMS + words // SEGMENT, mask=words < V_PADDED, other=0.0)
    is_e = (total >= 0) & GRAD
    s = tl.where(is_e, s_target + tl.log2(tl.where(is_e, x, 1.0)), x * LOG2_E)
    return tl.where(words < V, s, float("-inf")), words


@triton.jit
def _finish(
    LOGITS, TARGETS, S_TARGET, SUMS, D_LOSS, LOSS, SCALE, V, V_PADDED, ignore_index,
    GRAD: tl.constexpr, SEGMENT: tl.constexpr, SEGMENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Loss of one row, and with GRAD what its gradient SCALE E lacks: the target's E and SCALE.

    A row in which an E was too large gets a gradient the usual way: from its maximum and its sum,
    BLOCK words at a time. SEGMENTS: at least as many as a row has."""
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * V_PADDED
    SUMS += row * tl.cdiv(V_PADDED, SEGMENT)
    target = tl.load(TARGETS + row)
    scored = target != ignore_index
    target = tl.where(scored, target, 0)
    d_loss = tl.where(scored, tl.load(D_LOSS + row), 0.0)
    s_target = tl.load(S_TARGET + row)
    segments = tl.arange(0, SEGMENTS)
    sums = tl.load(SUMS + segments, mask=segments * SEGMENT < V_PADDED, other=0.0)
    if tl.min(sums, 0) >= 0:
        rest = tl.sum(sums, 0)
        loss, scale = tl.log2(1 + rest), d_loss / (1 + rest)
        if GRAD:
            tl.store(LOGITS + target, (-rest).to(LOGITS.dtype.element_ty))
    else:
        # One maximum and sum for each of BLOCK lanes, combined at the end.
        m = tl.full((BLOCK,), -1e38, tl.float32)
        z = tl.zeros((BLOCK,), tl.float32)
        for word in range(0, V, BLOCK):
            s, words = _words_of_row(
                LOGITS, SUMS, word, s_target, V, V_PADDED, GRAD, SEGMENT, BLOCK
            )
            new_m = tl.maximum(m, s)
            z = z * tl.exp2(m - new_m) + tl.exp2(s - new_m)
            m = new_m
        top = tl.max(m, 0)
        total = tl.sum(z * tl.exp2(m - top), 0)
        loss, scale = tl.log2(total) + (top - s_target), d_loss
        if GRAD:
            for word in range(0, V_PADDED, BLOCK):
                s, words = _words_of_row(
                    LOGITS, SUMS, word, s_target, V, V_PADDED, GRAD, SEGMENT, BLOCK
                )
                p = tl.exp2(s - top) / total - tl.where(words == target, 1.0, 0.0)
                tl.store(LOGITS + words, p.to(LOGITS.dtype.element_ty), mask=words < V_PADDED)
    tl.store(LOSS + row, tl.where(scored, loss * LN_2, 0.0))
    tl.store(SCALE + row, scale)


# ---- Triton: epilogue --------------------------------------------------------------------------


@triton.jit
def _target_logits(HIDDEN, WEIGHT, TARGETS, S_TARGET, ignore_index, C, BLOCK: tl.constexpr):
    """S_TARGET (rows,) float32: h . W_t of one row of HIDDEN (rows, C), in base 2."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(TARGETS + row)
    target = tl.where(target == ignore_index, 0, target).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    h = tl.load(HIDDEN + row * C + columns, mask=columns < C, other=0.0).to(tl.float32)
    w = tl.load(WEIGHT + target * C + columns, mask=columns < C, other=0.0).to(tl.float32)
    tl.store(S_TARGET + row, tl.sum(h * w, 0) * LOG2_E)


@triton.jit
def _product_exponentials(
    HIDDEN, WEIGHT, TARGETS, S_TARGET, LOGITS, SUMS, N, V, V_PADDED, limit,
    C: tl.constexpr, BLOCK: tl.constexpr, SEGMENT: tl.constexpr, STEP: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    """E of BLOCK tokens and SEGMENT words straight from their product, STEP channels at a time.

    HIDDEN (N, C), WEIGHT (V_PADDED, C); LOGITS (N, V_PADDED) and SUMS: as of _exponentials."""
    row, word = product_tile(N, V_PADDED, BLOCK, SEGMENT, GROUP)
    h = tl.make_tensor_descriptor(HIDDEN, [N, C], [C, 1], [BLOCK, STEP])
    w = tl.make_tensor_descriptor(WEIGHT, [V_PADDED, C], [C, 1], [SEGMENT, STEP])
    out = tl.make_tensor_descriptor(LOGITS, [N, V_PADDED], [V_PADDED, 1], [BLOCK, SEGMENT])
    s = tl.zeros((BLOCK, SEGMENT), tl.float32)
    for channel in range(0, C, STEP):
        a, b = h.load([row, channel]), w.load([word, channel])
        s = tl.dot(a, b.T, s, input_precision="ieee")
    rows, words = row + tl.arange(0, BLOCK), word + tl.arange(0, SEGMENT)
    s_target = tl.load(S_TARGET + rows, mask=rows < N, other=0.0)
    target = tl.load(TARGETS + rows, mask=rows < N, other=0)
    d = tl.where(words[None, :] < V, s * LOG2_E - s_target[:, None], float("-inf"))
    fits = tl.max(d, 1) <= limit
    e = tl.exp2(d)
    total = tl.sum(tl.where(words[None, :] == target[:, None], 0.0, e), 1)
    place = SUMS + rows.to(tl.int64) * tl.cdiv(V_PADDED, SEGMENT) + word // SEGMENT
    tl.store(place, tl.where(fits, total, -1.0), mask=rows < N)
    e = tl.where(fits[:, None], e, s)
    out.store([row, word], e.to(LOGITS.dtype.element_ty))


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


def chunk_size(device):
    """Tokens whose logits exist at a time. Of 50,304 words in bfloat16, 16,384 take 1.6 GB; larger
    chunks read W and add to its gradient less often."""
    if device.type != "cuda":
        return CHUNK
    memory = torch.cuda.get_device_properties(device).total_memory
    return CHUNK_ON_GPUS if memory > 32e9 else CHUNK_ON_GPUS // 4


def _limit(dtype):
    """The log2 of the largest E a row may have. Above it come 16 bits for a sum of words, and some
    for a product with weights. float16 has no room: there each row goes the usual way."""
    return float("-inf") if dtype == torch.float16 else 100.0


def _chunk_kernels(
    hidden, weight, targets, d_loss, losses, vocab_size, ignore_index, grad, epilogue
):
    """As _softmax_gradient, from hidden (rows, C) and weight (width, C), in Triton."""
    rows, width, C = len(hidden), *weight.shape
    # Tensor descriptors need rows of a multiple of 16 bytes. In float16 the logits would be rounded
    # and their target's not.
    epilogue &= C * hidden.element_size() % 16 == 0 and hidden.dtype != torch.float16
    floats = {"dtype": torch.float32, "device": hidden.device}
    s_target, scale = torch.empty(rows, **floats), torch.empty(rows, **floats)
    sums = torch.empty(rows, triton.cdiv(width, SEGMENT), **floats)
    limit, grid = _limit(hidden.dtype), (rows,)
    if epilogue:
        logits = hidden.new_empty(rows, width)
        block = triton.next_power_of_2(C)
        launch(
            _target_logits, grid, hidden, weight, targets, s_target, ignore_index, C, BLOCK=block
        )
        settings = product_tiles(hidden.dtype)
        programs = triton.cdiv(rows, settings["BLOCK"]) * sums.shape[1]
        args = (hidden, weight, targets, s_target, logits, sums, rows, vocab_size, width, limit)
        launch(_product_exponentials, (programs,), *args, C=C, SEGMENT=SEGMENT, **settings)
    else:
        logits = F.linear(hidden, weight)
        args = (logits, targets, s_target, sums, vocab_size, width, ignore_index, limit)
        options = {"GRAD": grad, "SEGMENT": SEGMENT, "SEGMENTS": 4096 // SEGMENT, "num_warps": 8}
        launch(_exponentials, grid, *args, **options)
    args = (logits, targets, s_target, sums, d_loss, losses, scale, vocab_size, width, ignore_index)
    segments = triton.next_power_of_2(sums.shape[1])
    options = {"SEGMENT": SEGMENT, "SEGMENTS": segments, "BLOCK": 1024, "num_warps": 4}
    launch(_finish, grid, *args, GRAD=grad or epilogue, **options)
    return logits, scale


def _in_chunks(hidden, weight, targets, d_loss, vocab_size, ignore_index, grad, implementation):
    """(losses (N,), scale (N,), d hidden (N, C), d weight (V_padded, C)), a chunk of tokens at a
    time; all but d hidden float32, which still lacks the factor scale[:, None].

    The gradients are of sum(d_loss * losses), and empty unless `grad`. hidden and weight are of the
    dtype to compute in."""
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    scales = torch.empty_like(losses) if grad else losses[:0].clone()
    d_hidden = torch.empty_like(hidden) if grad else hidden.new_empty(0)
    d_weight = weight.new_zeros(weight.shape if grad else 0, dtype=torch.float32)
    # The kernel needs the padding, for aligned rows; torch's operations are better off without.
    width = vocab_size if implementation == "torch" else len(weight)
    weight, size = weight[:width], chunk_size(hidden.device)
    for first in range(0, len(hidden), size):
        rows = slice(first, first + size)
        h, args = hidden[rows], (targets[rows], d_loss[rows], losses[rows])
        if implementation == "torch":
            part, scale = _softmax_gradient(F.linear(h, weight), *args, ignore_index, grad)
        else:
            options = (vocab_size, ignore_index, grad, implementation == "epilogue")
            part, scale = _chunk_kernels(h, weight, *args, *options)
        if grad:
            torch.mm(part, weight, out=d_hidden[rows])
            h = torch.mul(h, scale[:, None], out=torch.empty_like(h))
            _add_product(d_weight[:width], part.T, h)
            scales[rows] = scale
    return losses, scales, d_hidden, d_weight


def compute_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, vocab_size: int,
    ignore_index: int, uniform: bool, grad: bool, implementation: str, dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Losses (N,) and what their backward pass needs: (losses, lse or scale, d hidden, d weight).

    uniform: every loss will have the same gradient, as under a mean. grad: there will be a backward
    pass. recompute has lse and makes d hidden. The others have `_in_chunks`' scale and make both
    gradients if uniform. What is not made here is empty."""
    implementation = implementation or choose_loss(hidden.device, dtype, hidden.shape[1])
    with torch.autocast(hidden.device.type, enabled=False):
        h, w = hidden.to(dtype).contiguous(), weight.to(dtype).contiguous()
        if implementation != "recompute":
            ones, make = h.new_ones(len(h), dtype=torch.float32), grad and uniform
            args = (h, w, targets, ones, vocab_size, ignore_index, make, implementation)
            return _in_chunks(*args)
        losses, lse = (h.new_empty(len(h), dtype=torch.float32) for _ in range(2))
        d_hidden = torch.empty_like(h) if grad else h.new_empty(0)
        settings = tiles(h.shape[1], dtype, False, h.device)
        grid = (triton.cdiv(len(h), settings["BLOCK"]),)
        args = (h, w, targets, losses, lse, d_hidden, len(h), vocab_size, ignore_index)
        args = (*args, 2.0 ** _limit(dtype))
        launch(_sweep_words, grid, *args, GRAD=grad, **settings)
        return losses, lse, d_hidden, torch.empty_like(losses[:0])


fused_loss = torch.library.custom_op(
    "nanostories::linear_cross_entropy", compute_loss, mutates_args=()
)


@torch.library.custom_op("nanostories::linear_cross_entropy_backward", mutates_args=())
def fused_loss_backward(
    d_losses: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor,
    saved: torch.Tensor, d_hidden: torch.Tensor, d_weight: torch.Tensor, vocab_size: int,
    ignore_index: int, implementation: str, dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of hidden and weight, in their dtypes, from those of the losses (N,)."""
    with torch.autocast(hidden.device.type, enabled=False):
        d_losses = d_losses.float().contiguous()
        if d_weight.numel():  # made with the losses, for a gradient of 1
            d_hidden, d_weight = d_hidden * (d_losses * saved)[:, None], d_weight * d_losses[:1]
            return d_hidden.to(hidden.dtype), d_weight.to(weight.dtype)
        h, w = hidden.to(dtype).contiguous(), weight.to(dtype).contiguous()
        if implementation == "recompute":
            d_weight = torch.empty_like(w, dtype=torch.float32)
            settings = tiles(h.shape[1], dtype, True, h.device)
            grid = (triton.cdiv(len(w), settings["BLOCK"]),)
            args = (h, w, targets, saved, d_losses, d_weight, len(h), vocab_size, len(w))
            launch(_sweep_tokens, grid, *args, ignore_index, **settings)
            d_hidden = d_hidden * d_losses[:, None]
        else:
            args = (h, w, targets, d_losses, vocab_size, ignore_index, True, implementation)
            _, scale, d_hidden, d_weight = _in_chunks(*args)
            d_hidden = d_hidden * scale[:, None]
        return d_hidden.to(hidden.dtype), d_weight.to(weight.dtype)


@fused_loss.register_fake
def _(hidden, weight, targets, vocab_size, ignore_index, uniform, grad, implementation, dtype):
    implementation = implementation or choose_loss(hidden.device, dtype, hidden.shape[1])
    recompute = implementation == "recompute"
    make = grad and (uniform or recompute)
    losses = hidden.new_empty(len(hidden), dtype=torch.float32)
    return (
        losses,
        losses.new_empty(len(hidden) if recompute or make else 0),
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
    dtype = compute_dtype(hidden)
    grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    rest = (ignore_index, mean, grad, implementation, dtype)
    # The first call of an op imports torch's compiler, a second that evaluations need not wait.
    op = fused_loss if grad or torch.compiler.is_compiling() else compute_loss
    losses = op(hidden, weight, targets.contiguous(), vocab_size, *rest)[0]
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
