"""The backward pass of attention (attention.py), in Triton.

Write dX for the gradient of the loss with respect to X; dO is given. From O = P V,

    dV_j = sum_i P_ij dO_i       dP_ij = dO_i . V_j

For the softmax, dP_ij / dS_ik = P_ij ([j = k] - P_ik), where [j = k] is 1 if j = k, else 0. Hence

    dS_ik = sum_j dP_ij P_ij ([j = k] - P_ik) = P_ik (dP_ik - delta_i)
    delta_i = sum_j P_ij dP_ij = (sum_j P_ij V_j) . dO_i = O_i . dO_i

and with S = scale Q K^T,

    dQ_i = scale sum_j dS_ij K_j         dK_j = scale sum_i dS_ij Q_i

`_delta` computes delta. dQ_i is a sum over keys, dK_j and dV_j are sums over queries: `_backward`
takes two sweeps for them, `_backward_one_pass` one. Neither uses atomics, and both give the same
bits every time.

Two sweeps. Program i first takes key block i: it sweeps over the queries that attend to it and sums
dK and dV. Then it takes query block i: it sweeps over the keys that the block attends to and sums
dQ. Both recompute P: 7 matrix products (S, dV, dP and dK, then S, dP and dQ) where 5 would do, and
2 exponentials a pair. But no two programs ever write to the same place. A late block has few
queries after it and many keys before it, so under a plain causal mask programs have nearly the same
work: 4 products for each later block, 3 for each earlier one.

One pass. A program takes a whole head, one key block after the other, from the first. It sweeps
over the queries as above, and adds dS K to their dQ as well: 5 products and 1 exponential a pair.
The sums of dQ, one row a query, are too many for registers. They wait in float32 in global memory,
where each program has room for one head: so little that it stays in the L2 cache. Nothing sets them
to zero first. Query i attends to an earlier block than the one whose first key is `first` exactly
where start_i < first; elsewhere its sum begins at 0, whatever is in memory. Its last block is its
own, the diagonal one: there scale times the sum goes to d_qkv.

No block between is left out. STEP queries are computed together, and END of a block's last key is
above the first of them exactly where that query attends to the block or to an earlier one. Its
start is the smallest of the step, so the step meets every block from there to the diagonal. A query
of the step that begins later adds zeros until then, and its sum still begins at 0 as above.

One pass is taken for D <= 32 in a 2-byte type, where the exponentials and the other instructions
for each pair take more time than the products. Wider tiles of dK, dV and dQ leave too few
registers. A GPU must also have enough heads to share among its programs (`one_pass_programs`).

Lower bounds. In the notation of attention.py, at N = 32,768, C = 768 and T = 512, from an H200's
data sheet, the kernels must at least

    both         read O, dO, then qkv, dO; write dqkv         18 N C bytes   453 MB     94 us
    two sweeps   compute 7 products                           14 M C FLOPs    90 GFLOP  91 us
    one pass     compute 5 products                           10 M C FLOPs    65 GFLOP  65 us

and compute M H exponentials, twice in two sweeps: 104 us each time with D = 16, 52 us with D = 32
(16 a clock in each of 132 multiprocessors, at 1.83 GHz). In the compiled loops for sm_90 a thread
executes 11 instructions a pair in one pass where it executes 20 in two sweeps (D = 16; 14 and 22
with D = 32; off the diagonal, without start, Triton 3.9). Estimates for an H100, 32,768 tokens in
rows of 512 and 16 heads: 172 us in two sweeps and 116 in one pass with D = 16, 214 and 169 with
D = 32. Measured for two sweeps, `_delta` included: 234 and 273 us.

`_backward` was tested and timed on an H100, as attention.py says. `_backward_one_pass` has not run
on a GPU yet: it was tested in Triton's interpreter and compiled for sm_80, sm_90 and sm_100.
`python -m benchmarks.kernels` times both.
"""

import torch

from kernels import tile
from kernels.backend import LOG2_E, launch, tensor_memory, tl, triton

ONE_PASS_HEAD_SIZE = 32  # the largest that one pass takes
REGISTERS = 65536  # of a multiprocessor


@triton.jit
def _delta(OUT, D_OUT, DELTA, T, H: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """DELTA (B, H, T) float32: O . dO of each query and head. Grid: (H, blocks, B)."""
    head, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    rows = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    base = batch * T * (H * D) + head * D
    out = tile.load(OUT + base, rows, T, H * D, D, True)
    d_out = tile.load(D_OUT + base, rows, T, H * D, D, True)
    delta = tl.sum(out[0].to(tl.float32) * d_out[0].to(tl.float32), 1)
    if len(out) == 2:
        delta += tl.sum(out[1].to(tl.float32) * d_out[1].to(tl.float32), 1)
    tl.store(DELTA + (batch * H + head) * T + rows, delta, mask=rows < T)


@triton.jit
def _key_gradients(
    Q, DO, LSE, DELTA, DQ, SUM, START, END, first, last, T, scale, scale_log2,
    H: tl.constexpr, D: tl.constexpr, HAS_START: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr, WITH_DQ: tl.constexpr,
):  # fmt: skip
    """dK and dV of the keys from `first` to `last`, and WITH_DQ their part of dQ.

    Q and DQ point at this head's q in QKV and D_QKV; its k and v lie H D and 2 H D further. The
    other pointers are moved likewise. SUM (T, width of a tile) float32: dQ / scale so far."""
    ROW: tl.constexpr = 3 * H * D
    WIDTH: tl.constexpr = tile.left(D)  # of SUM
    keys, offsets = first + tl.arange(0, BLOCK), tl.arange(0, STEP)
    # From P^T, (keys, queries), because dV = P^T dO and dK = dS^T Q need that layout: P and dS are
    # never transposed.
    k = tile.load(Q + H * D, keys, T, ROW, D, True)
    v = tile.load(Q + 2 * H * D, keys, T, ROW, D, True)
    dk, dv = tile.zeros(BLOCK, D), tile.zeros(BLOCK, D)
    end = T
    if HAS_START:
        end = tl.load(END + last - 1)
    # DIAGONAL = 0: queries after the block; 1: the block's own. Order does not matter for a sum.
    # The last step may go beyond `end`: `start` masks those queries. Past T, q and dO are loaded as
    # zeros and add nothing.
    for DIAGONAL in tl.static_range(2):
        low, high = first + BLOCK, end
        if DIAGONAL:
            low, high = first, last
        for query in range(low, high, STEP):
            queries = query + offsets
            q = tile.load(Q, queries, T, ROW, D, True)
            do = tile.load(DO, queries, T, H * D, D, True)
            lse = tl.load(LSE + queries, mask=queries < T, other=0.0)
            delta = tl.load(DELTA + queries, mask=queries < T, other=0.0)
            start = tl.zeros((STEP,), tl.int32)
            if HAS_START:
                start = tl.load(START + queries, mask=queries < T, other=0)
            if WITH_DQ:  # long before it is needed, because memory takes its time
                dq = tile.load(SUM, queries, T, WIDTH, WIDTH, True)
            p_t = tl.exp2(tile.dot_transposed(k, q) * scale_log2 - lse[None, :])
            if HAS_START:
                p_t = tl.where(keys[:, None] >= start[None, :], p_t, 0.0)
            if DIAGONAL:
                p_t = tl.where(keys[:, None] <= queries[None, :], p_t, 0.0)
            dv = tile.add_dot(dv, p_t, do)
            ds_t = p_t * (tile.dot_transposed(v, do) - delta[None, :])
            dk = tile.add_dot(dk, ds_t, q)
            if WITH_DQ:
                # Where no earlier block holds keys of the query, SUM is not yet written.
                dq = (tl.where((start < first)[:, None], dq[0], 0.0),)
                dq = tile.add_dot(dq, tl.trans(ds_t), k)
                if DIAGONAL:
                    tile.store(DQ, queries, T, tile.times(dq, scale), ROW, D)
                else:
                    tile.store(SUM, queries, T, dq, WIDTH, WIDTH)
    tile.store(DQ + H * D, keys, T, tile.times(dk, scale), ROW, D)
    tile.store(DQ + 2 * H * D, keys, T, dv, ROW, D)


@triton.jit
def _backward(
    QKV, D_OUT, LSE, DELTA, D_QKV, START, END, T, scale, scale_log2,
    H: tl.constexpr, D: tl.constexpr, HAS_START: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """dK and dV of BLOCK keys of one head, then dQ of the same BLOCK tokens as queries.

    Shapes as in _forward; D_QKV as QKV, DELTA as LSE, END as START; scale_log2 = scale log2(e)."""
    head, batch = tl.program_id(0), tl.program_id(2).to(tl.int64)
    first = tl.program_id(1) * BLOCK  # in any order: under a causal mask the work is 4 to 3 at most
    last = tl.minimum(first + BLOCK, T)  # one past the block
    ROW: tl.constexpr = 3 * H * D
    Q = QKV + batch * T * ROW + head * D
    K, V = Q + H * D, Q + 2 * H * D
    DO = D_OUT + batch * T * (H * D) + head * D
    DQ = D_QKV + batch * T * ROW + head * D
    LSE += (batch * H + head) * T
    DELTA += (batch * H + head) * T
    START += batch * T
    END += batch * T
    _key_gradients(
        Q, DO, LSE, DELTA, DQ, DQ, START, END, first, last, T, scale, scale_log2,
        H, D, HAS_START, BLOCK, STEP, False,
    )  # fmt: skip

    queries, offsets = first + tl.arange(0, BLOCK), tl.arange(0, STEP)
    q = tile.load(Q, queries, T, ROW, D, True)
    do = tile.load(DO, queries, T, H * D, D, True)
    lse = tl.load(LSE + queries, mask=queries < T, other=0.0)
    delta = tl.load(DELTA + queries, mask=queries < T, other=0.0)
    dq = tile.zeros(BLOCK, D)
    begin = 0
    if HAS_START:
        start = tl.load(START + queries, mask=queries < T, other=0)
        begin = tl.load(START + first) // STEP * STEP
    for DIAGONAL in tl.static_range(2):
        low, high = begin, first
        if DIAGONAL:
            low, high = first, last
        for key in range(low, high, STEP):
            keys = key + offsets
            k = tile.load(K, keys, T, ROW, D, DIAGONAL)
            v = tile.load(V, keys, T, ROW, D, DIAGONAL)
            p = tl.exp2(tile.dot_transposed(q, k) * scale_log2 - lse[:, None])
            if HAS_START:
                p = tl.where(offsets[None, :] >= (start - key)[:, None], p, 0.0)
            if DIAGONAL:
                p = tl.where(offsets[None, :] <= (queries - key)[:, None], p, 0.0)
            ds = p * (tile.dot_transposed(do, v) - delta[:, None])
            dq = tile.add_dot(dq, ds, k)
    tile.store(DQ, queries, T, tile.times(dq, scale), ROW, D)


@triton.jit
def _backward_one_pass(
    QKV, D_OUT, LSE, DELTA, D_QKV, SUMS, START, END, T, n_heads, scale, scale_log2,
    H: tl.constexpr, D: tl.constexpr, HAS_START: tl.constexpr,
    BLOCK: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """dQ, dK and dV of whole heads, D <= 32: n_heads = B H of them, shared out among the programs.

    Shapes as in _backward. SUMS (programs, T, width of a tile) float32 is scratch."""
    program = tl.program_id(0).to(tl.int64)  # and so every offset below has 64 bits
    ROW: tl.constexpr = 3 * H * D
    SUM = SUMS + program * T * tile.left(D)
    for work in range(program, n_heads, tl.num_programs(0)):
        head, row, of_head = work % H, work // H * T, work * T
        for first in range(0, T, BLOCK):
            # Threads read sums that other threads wrote: in the block before, or for the head
            # before, which may still be reading what this block overwrites.
            tl.debug_barrier()
            _key_gradients(
                QKV + row * ROW + head * D, D_OUT + row * (H * D) + head * D, LSE + of_head,
                DELTA + of_head, D_QKV + row * ROW + head * D, SUM, START + row, END + row,
                first, tl.minimum(first + BLOCK, T), T, scale, scale_log2,
                H, D, HAS_START, BLOCK, STEP, True,
            )  # fmt: skip


# ---- the custom op, and its launch settings ----------------------------------------------------


def one_pass_tiles(head_size, device):
    """The launch settings of `_backward_one_pass`, as `tile.tiles` describes them.

    Of the shapes with BLOCK 64 or 128, STEP 32 to 128 and 4 or 8 warps, 64 x 64 has the fewest
    instructions of those that let 2 programs share a multiprocessor: they hide each other's
    barriers. STEP 64 fills a warpgroup's product for dQ. Not timed yet."""
    settings = {"BLOCK": 64, "STEP": 64, "num_warps": 4, "num_stages": 3}
    # 168 registers a thread let 3 programs share one, and spill only with D = 32 or on Blackwell.
    three = head_size <= 16 and not tensor_memory(device)
    return settings | {"maxnreg": 168 if three else 255}


def one_pass_programs(n_heads, head_size, dtype, device):
    """How many programs of `_backward_one_pass` share n_heads = B H heads; 0: two sweeps instead.

    As many as the GPU holds at a time: more would wait, and need more room for sums."""
    if head_size > ONE_PASS_HEAD_SIZE or dtype == torch.float32:
        return 0
    if device.type != "cuda":  # in the interpreter: two, so that a program has several heads
        return min(n_heads, 2)
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    if n_heads < 2 * multiprocessors:
        return 0
    settings = one_pass_tiles(head_size, device)
    resident = REGISTERS // (32 * settings["num_warps"] * settings["maxnreg"])
    return min(n_heads, resident * multiprocessors)


@torch.library.custom_op("nanostories::attention_backward", mutates_args=())
def flash_attention_backward(
    d_out: torch.Tensor, qkv: torch.Tensor, out: torch.Tensor, lse: torch.Tensor,
    start: torch.Tensor | None, end: torch.Tensor | None, scale: float,
) -> torch.Tensor:  # fmt: skip
    """The gradient of qkv, (B, T, 3, H, D), contiguous."""
    qkv, d_out = qkv.contiguous(), d_out.contiguous()
    B, T, _, H, D = qkv.shape
    delta, d_qkv = torch.empty_like(lse), torch.empty_like(qkv)
    settings = tile.tiles(D, qkv.dtype, True, qkv.device)
    grid = (H, triton.cdiv(T, settings["BLOCK"]), B)
    launch(_delta, grid, out, d_out, delta, T, H=H, D=D, BLOCK=settings["BLOCK"])
    has_start = start is not None
    span = (start.contiguous(), end.contiguous()) if has_start else (lse, lse)
    programs = one_pass_programs(B * H, D, qkv.dtype, qkv.device)
    if programs:
        sums = qkv.new_empty(programs, T, tile.left(D), dtype=torch.float32)
        launch(
            _backward_one_pass, (programs,), qkv, d_out, lse, delta, d_qkv, sums, *span, T, B * H,
            scale, scale * LOG2_E, H=H, D=D, HAS_START=has_start,
            **one_pass_tiles(D, qkv.device),
        )  # fmt: skip
    else:
        launch(
            _backward, grid, qkv, d_out, lse, delta, d_qkv, *span, T, scale, scale * LOG2_E,
            H=H, D=D, HAS_START=has_start, **settings,
        )  # fmt: skip
    return d_qkv


flash_attention_backward.register_fake(lambda d_out, qkv, *_: qkv.new_empty(qkv.shape))
