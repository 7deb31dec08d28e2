"""The pass over the bank: the softmaxes of the MC loss, as attention over a doubled bank.

A row of the table (`kernels.prepare`) is a softmax of a query u over the plain entries m_i and, if mixed with a v, the
mixed entries b_i = lambda_i v + (1 - lambda_i) m_i. The log of its sum is the loss, and the gradient of that log with
respect to u is the expected entry: what attention computes, with the bank as keys and as values. So one pass with a
running maximum, as in flash attention, gives the sums at both temperatures and the expected entries, and no similarity
is stored.

The rows of all samples are one list of R B, row of the table after row. A program takes a block of them and every n-th
tile of the bank; what it has summed goes to a buffer that `kernels.combine` adds up in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.prepare import MIXED_WITH, QUERY, look_up, most_mined
from kernels.products import parts, product, split
from kernels.rows import inverse_norms, load, load_parted, load_split, row_mask, row_offsets, whole

NOTHING = tl.constexpr(-1.0e30)
"""The largest of no similarities: finite, so that the difference of two of them is 0 and not a NaN."""

# What is kept of a row and a chunk of the bank, beside the sum of exponential times entry:
TOP = tl.constexpr(0)  # the largest similarity, which the sums are above
LOSS_SUM = tl.constexpr(1)  # of exponentials, at the loss's temperature
LOSS_SHARE = tl.constexpr(2)  # under own mixing, the factor of v in the mixed entries: sum of exponential times lambda
BANK_SUM = tl.constexpr(3)  # at the bank's temperature
TOP_PLAIN = tl.constexpr(4)  # the largest plain similarity
BANK_PLAIN = tl.constexpr(5)  # plain half of the bank's sum, above the largest plain similarity
PLANES = tl.constexpr(6)


@triton.jit
def _raised(top, largest):
    """The larger of the two, and what sums that refer to ``top`` are multiplied by to refer to that."""
    new_top = tl.maximum(top, largest)
    return new_top, tl.exp2(top - new_top)


@triton.jit
def _added(sums, shrink, x):
    """sums (rows, fold) times shrink (rows,), and x (rows, columns) added: columns that lie ``fold`` apart."""
    fold: tl.constexpr = sums.shape[1]
    folded = tl.reshape(x, (x.shape[0], x.shape[1] // fold, fold))
    return sums * shrink[:, None] + tl.sum(folded, axis=1)


@triton.jit
def _inserted(nearest, mined, x, entry):
    """The largest similarities so far and their entries, largest first, after one more, which lies behind them in the
    bank: of equals the first stays."""
    new_nearest = ()
    new_mined = ()
    for RANK in tl.static_range(len(nearest)):
        larger = x > nearest[RANK]
        new_nearest += (tl.where(larger, x, nearest[RANK]),)
        new_mined += (tl.where(larger, entry, mined[RANK]),)
        x = tl.where(larger, nearest[RANK], x)
        entry = tl.where(larger, mined[RANK], entry)
    return new_nearest, new_mined


# A size that is a multiple of 16 on one batch and not on the next must not compile anew.
@triton.jit(do_not_specialize=["period", "num_steps"])
def _sweep_kernel(
    p_split,  # (queries, 1 or 2, B, D): features, from `kernels.prepare`
    p_c,  # (R, B) or (R, B, B); None if MIX is "none", as p_mixing
    p_bank,  # (K, D)
    p_mixing,  # (K,)
    p_sums,  # (chunks, PLANES, R B), see above
    p_entries,  # (chunks, R B, D): sum of exponential times entry; None unless LOSS
    p_mined,  # (chunks, mined, 2, R B) of a table that mines, nearest first: the similarity as bits, the entry; or None
    B,
    K,
    period,  # rows of the bank from tile to tile; under tiled mixing a multiple of B, so that a column keeps its v
    num_steps,  # tiles one after the other: ceil(K / period)
    scale,  # 1 / (temperature ln 2): exponentials are powers of two
    bank_scale,
    TABLE: tl.constexpr,
    MIX: tl.constexpr,
    UNIT: tl.constexpr,  # the bank's rows are scaled to unit length
    LOSS: tl.constexpr,  # sums and expected entries at the loss's temperature
    BANK: tl.constexpr,  # sums at the bank's temperature
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN: tl.constexpr,  # no tile reaches beyond the period or the bank
    # Sums that a row is kept in until the last tile. Of 8, a thread holds all columns in the tensor cores' layout, so
    # that nothing is shuffled; of 1, none costs a register.
    FOLD: tl.constexpr,
    STAGES: tl.constexpr,
):
    i_row, i_part, i_column = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_parts = tl.num_programs(1)
    PARTS: tl.constexpr = parts(PRECISION)

    N = len(TABLE) * B  # rows of all samples
    o_row = i_row * BLOCK_R + tl.arange(0, BLOCK_R)
    m_row = o_row < N
    o_u = look_up(o_row // B, TABLE, QUERY) * (PARTS * B) + o_row % B
    u_hi, u_lo = load_split(p_split, o_u, m_row, B * D, D, BLOCK_D, PRECISION)

    o_k = i_column * BLOCK_K + tl.arange(0, BLOCK_K)
    m_period = o_k < period
    if MIX == "own":
        c = tl.load(p_c + o_row, mask=m_row, other=0.0)[:, None]
        share = tl.zeros([BLOCK_R, FOLD], tl.float32)
    if MIX == "tiled":
        p_block = p_c + o_row[:, None] * B + (o_k % B)[None, :]
        c = tl.load(p_block, mask=m_row[:, None] & m_period[None, :], other=0.0)
        share = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)

    # Sums refer to the largest logit so far, at their own temperature and rounded: equal numbers cancel exactly.
    top_plain = tl.full([BLOCK_R], NOTHING, tl.float32)
    top = tl.full([BLOCK_R], NOTHING, tl.float32)
    loss_top = tl.full([BLOCK_R], NOTHING, tl.float32)
    plain_top = tl.full([BLOCK_R], NOTHING, tl.float32)
    mixed_top = tl.full([BLOCK_R], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_R, FOLD], tl.float32)
    bank_plain = tl.zeros([BLOCK_R, FOLD], tl.float32)
    bank_mixed = tl.zeros([BLOCK_R, FOLD], tl.float32)
    entries = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    MOST: tl.constexpr = most_mined(TABLE)
    nearest = (tl.full([BLOCK_R], NOTHING, tl.float32),) * MOST
    mined = (tl.zeros([BLOCK_R], tl.int32),) * MOST

    start = i_part.to(tl.int64) * period
    for _ in tl.range(i_part, num_steps, num_parts, num_stages=STAGES):
        m_k = None if EVEN else m_period & (start + o_k < K)
        b_w = whole(load_parted(p_bank + start * D, o_k, m_k, D, BLOCK_D, AGAIN=False))
        if UNIT:
            b_w *= inverse_norms(b_w)[:, None]
        m_hi, m_lo = split(b_w, PRECISION)
        zero = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
        s = product(u_hi, u_lo, tl.trans(m_hi), tl.trans(m_lo), zero, PRECISION)
        if MIX != "none":
            mixing = load(p_mixing + start + o_k, m_k)[None, :]
            mixed = s + mixing * (c - s)
            if m_k is not None:
                mixed = tl.where(m_k[None, :], mixed, float("-inf"))
        if m_k is not None:
            s = tl.where(m_k[None, :], s, float("-inf"))

        largest = tl.max(s, axis=1)
        top_plain = tl.maximum(top_plain, largest)
        rest = s
        for _rank in tl.static_range(MOST):
            x = tl.max(rest, axis=1)
            column = tl.min(tl.where(rest == x[:, None], o_k[None, :], period), axis=1)
            rest = tl.where(o_k[None, :] == column[:, None], float("-inf"), rest)
            nearest, mined = _inserted(nearest, mined, x, start.to(tl.int32) + column)
        if BANK:
            plain_top, shrink = _raised(plain_top, largest * bank_scale)
            bank_plain = _added(bank_plain, shrink, tl.exp2(s * bank_scale - plain_top[:, None]))
        if MIX != "none":
            largest_mixed = tl.max(mixed, axis=1)
            if BANK:
                mixed_top, shrink = _raised(mixed_top, largest_mixed * bank_scale)
                bank_mixed = _added(bank_mixed, shrink, tl.exp2(mixed * bank_scale - mixed_top[:, None]))
            largest = tl.maximum(largest, largest_mixed)
        top = tl.maximum(top, largest)
        if LOSS:
            loss_top, shrink = _raised(loss_top, largest * scale)
            weight = tl.exp2(s * scale - loss_top[:, None])
            if MIX != "none":
                e_mixed = tl.exp2(mixed * scale - loss_top[:, None])
                weight += (1 - mixing) * e_mixed
                if MIX == "own":
                    share = _added(share, shrink, mixing * e_mixed)
                else:
                    share = share * shrink[:, None] + mixing * e_mixed
            total = _added(total, shrink, weight)  # which lacks the share: it is added in the end
            w_hi, w_lo = split(weight, PRECISION)
            entries = product(w_hi, w_lo, m_hi, m_lo, entries * shrink[:, None], PRECISION)
        start += num_parts * period

    i_chunk = (i_column * num_parts + i_part).to(tl.int64)
    p_row = p_sums + i_chunk * (PLANES * N) + o_row
    tl.store(p_row + TOP * N, top, mask=m_row)
    tl.store(p_row + TOP_PLAIN * N, top_plain, mask=m_row)
    for RANK in tl.static_range(MOST):
        p_rank = p_mined + (i_chunk * MOST + RANK) * 2 * N + o_row
        tl.store(p_rank, nearest[RANK].to(tl.int32, bitcast=True), mask=m_row)
        tl.store(p_rank + N, mined[RANK], mask=m_row)
    if BANK:
        plain = tl.sum(bank_plain, axis=1)
        both_top = tl.maximum(plain_top, mixed_top)
        both = plain * tl.exp2(plain_top - both_top) + tl.sum(bank_mixed, axis=1) * tl.exp2(mixed_top - both_top)
        tl.store(p_row + BANK_SUM * N, both, mask=m_row)
        tl.store(p_row + BANK_PLAIN * N, plain, mask=m_row)
    if LOSS:
        row_total = tl.sum(total, axis=1)
        if MIX != "none":
            row_share = tl.sum(share, axis=1)
            row_total += row_share
        tl.store(p_row + LOSS_SUM * N, row_total, mask=m_row)
        if MIX == "own":
            tl.store(p_row + LOSS_SHARE * N, row_share, mask=m_row)
        if MIX == "tiled":
            # lambda_i v of every entry that was mixed with this v. A block may hold several rows of the table.
            last_row = tl.minimum((i_row + 1) * BLOCK_R, N) - 1
            for i_mixed in range(i_row * BLOCK_R // B, last_row // B + 1):
                o_v = look_up(i_mixed, TABLE, MIXED_WITH) * (PARTS * B) + o_k % B
                v_hi, v_lo = load_split(p_split, o_v, m_period, B * D, D, BLOCK_D, PRECISION)
                s_hi, s_lo = split(tl.where((o_row // B == i_mixed)[:, None], share, 0.0), PRECISION)
                entries = product(s_hi, s_lo, v_hi, v_lo, entries, PRECISION)
        p_out = p_entries + i_chunk * N * D + row_offsets(o_row, D, BLOCK_D)
        tl.store(p_out, entries, mask=row_mask(m_row, D, BLOCK_D))
