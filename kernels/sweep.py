"""The pass over the bank: the softmaxes of the MC loss, as attention over a doubled bank.

A distribution (eq. 2 over M_0 and M_*) is a softmax of a query u over the plain entries m_i and the mixed entries
b_i = lambda_i v + (1 - lambda_i) m_i. The log of its sum is the loss, and the gradient of that log with respect to u is
the expected entry: what attention computes, with the bank as keys and as values. So one pass with a running maximum, as
in flash attention, gives the sums at both temperatures and the expected entries, and no similarity is stored.

    distribution   query u   mixed with v
    0              f1        f1            L1
    1              f2        f2            L2, prediction
    2              f3        f3            L3
    3              f3        f2            L2, target

The 4 B queries are one list of rows, distribution after distribution. A program takes a block of rows and every n-th
tile of the bank; what it has summed goes to a buffer that `kernels.combine` adds up in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.prepare import mixed_view, query_view
from kernels.products import parts, product, split
from kernels.rows import load_rows, load_split, row_mask, row_offsets, unit_rows

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


# A size that is a multiple of 16 on one batch and not on the next must not compile anew.
@triton.jit(do_not_specialize=["period", "num_steps"])
def _sweep_kernel(
    p_split,  # (3, 1 or 2, B, D): features, from `kernels.prepare`
    p_c,  # (4, B) or (4, B, B)
    p_bank,  # (K, D)
    p_mixing,  # (K,)
    p_sums,  # (chunks, PLANES, 4 B), see above
    p_entries,  # (chunks, 4 B, D): sum of exponential times entry
    B,
    K,
    period,  # rows of the bank from tile to tile; under tiled mixing a multiple of B, so that a column keeps its v
    num_steps,  # tiles one after the other: ceil(K / period)
    scale,  # 1 / (temperature ln 2): exponentials are powers of two
    bank_scale,
    FIRST: tl.constexpr,  # distributions FIRST to LAST - 1 are there: 0 to 3; 0 to 2 without a soft target; 2, f3 alone
    LAST: tl.constexpr,
    MIX: tl.constexpr,
    LOSS: tl.constexpr,  # sums and expected entries at the loss's temperature
    BANK: tl.constexpr,  # sums at the bank's temperature
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    STAGES: tl.constexpr,
):
    i_row, i_part, i_column = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    num_parts = tl.num_programs(1)
    PARTS: tl.constexpr = parts(PRECISION)

    o_row = FIRST * B + i_row * BLOCK_R + tl.arange(0, BLOCK_R)
    m_row = o_row < LAST * B
    i_distribution = o_row // B
    o_u = query_view(i_distribution) * (PARTS * B) + o_row % B
    u_hi, u_lo = load_split(p_split, o_u, m_row, B * D, D, BLOCK_D, PRECISION)

    o_k = i_column * BLOCK_K + tl.arange(0, BLOCK_K)
    m_period = o_k < period
    if MIX == "own":
        c = tl.load(p_c + o_row, mask=m_row, other=0.0)[:, None]
        share = tl.zeros([BLOCK_R], tl.float32)
    if MIX == "tiled":
        p_block = p_c + o_row[:, None] * B + (o_k % B)[None, :]
        c = tl.load(p_block, mask=m_row[:, None] & m_period[None, :], other=0.0)
        share = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)

    top = tl.full([BLOCK_R], NOTHING, tl.float32)
    top_plain = tl.full([BLOCK_R], NOTHING, tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    bank_total = tl.zeros([BLOCK_R], tl.float32)
    bank_plain = tl.zeros([BLOCK_R], tl.float32)
    entries = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)

    start = i_part.to(tl.int64) * period
    for _ in tl.range(i_part, num_steps, num_parts, num_stages=STAGES):
        m_k = m_period & (start + o_k < K)
        b_m, _norm = unit_rows(load_rows(p_bank + start * D, o_k, m_k, D, BLOCK_D))
        m_hi, m_lo = split(b_m, PRECISION)
        zero = tl.zeros([BLOCK_R, BLOCK_K], tl.float32)
        s = product(u_hi, u_lo, tl.trans(m_hi), tl.trans(m_lo), zero, PRECISION)

        # Similarities above the running maximum, which both temperatures share.
        plain = tl.where(m_k[None, :], s, float("-inf"))
        new_top_plain = tl.maximum(top_plain, tl.max(plain, axis=1))
        if BANK and LOSS:
            # For the positive's probability, beside which the mixed entries may be out of float32's range.
            shrink = tl.exp2((top_plain - new_top_plain) * bank_scale)
            e_plain = tl.exp2((plain - new_top_plain[:, None]) * bank_scale)
            bank_plain = bank_plain * shrink + tl.sum(e_plain, axis=1)
        top_plain = new_top_plain
        new_top = tl.maximum(top, top_plain)
        if MIX != "none":
            mixing = tl.load(p_mixing + start + o_k, mask=m_k, other=0.0)[None, :]
            mixed = tl.where(m_k[None, :], s + mixing * (c - s), float("-inf"))
            new_top = tl.maximum(new_top, tl.max(mixed, axis=1))
            mixed -= new_top[:, None]
        plain -= new_top[:, None]

        if BANK:
            shrink = tl.exp2((top - new_top) * bank_scale)
            e_both = tl.exp2(plain * bank_scale)
            if MIX != "none":
                e_both += tl.exp2(mixed * bank_scale)
            bank_total = bank_total * shrink + tl.sum(e_both, axis=1)
        if LOSS:
            shrink = tl.exp2((top - new_top) * scale)
            weight = tl.exp2(plain * scale)
            if MIX == "none":
                total = total * shrink + tl.sum(weight, axis=1)
            else:
                e_mixed = tl.exp2(mixed * scale)
                total = total * shrink + tl.sum(weight + e_mixed, axis=1)
                weight += (1 - mixing) * e_mixed
                if MIX == "own":
                    share = share * shrink + tl.sum(mixing * e_mixed, axis=1)
                else:
                    share = share * shrink[:, None] + mixing * e_mixed
            w_hi, w_lo = split(weight, PRECISION)
            entries = product(w_hi, w_lo, m_hi, m_lo, entries * shrink[:, None], PRECISION)
        top = new_top
        start += num_parts * period

    i_chunk = (i_column * num_parts + i_part).to(tl.int64)
    p_row = p_sums + i_chunk * (PLANES * 4 * B) + o_row
    tl.store(p_row + TOP * 4 * B, top, mask=m_row)
    tl.store(p_row + TOP_PLAIN * 4 * B, top_plain, mask=m_row)
    if BANK:
        tl.store(p_row + BANK_SUM * 4 * B, bank_total, mask=m_row)
        tl.store(p_row + BANK_PLAIN * 4 * B, bank_plain, mask=m_row)
    if LOSS:
        tl.store(p_row + LOSS_SUM * 4 * B, total, mask=m_row)
        if MIX == "own":
            tl.store(p_row + LOSS_SHARE * 4 * B, share, mask=m_row)
        if MIX == "tiled":
            # lambda_i v of every entry that was mixed with this v. A block of rows may hold several distributions.
            last_row = tl.minimum(FIRST * B + (i_row + 1) * BLOCK_R, LAST * B) - 1
            for i_mixed in range((FIRST * B + i_row * BLOCK_R) // B, last_row // B + 1):
                o_v = mixed_view(i_mixed) * (PARTS * B) + o_k % B
                v_hi, v_lo = load_split(p_split, o_v, m_period, B * D, D, BLOCK_D, PRECISION)
                s_hi, s_lo = split(tl.where((i_distribution == i_mixed)[:, None], share, 0.0), PRECISION)
                entries = product(s_hi, s_lo, v_hi, v_lo, entries, PRECISION)
        p_out = p_entries + i_chunk * 4 * B * D + row_offsets(o_row, D, BLOCK_D)
        tl.store(p_out, entries, mask=row_mask(m_row, D, BLOCK_D))
