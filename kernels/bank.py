"""The bank's side: gradient of the loss with respect to the raw rows, and the step of eq. 7 in place.

A tile of the bank owns its rows: it meets all B samples itself, so its gradient is complete and the ascent, through
the normalisation of the rows, with momentum and weight decay, ends in the same program, without atomics. With psi the
softmax weights of a row of the table (`kernels.prepare`) and W = psi_plain + (1 - lambda) psi_mixed:

    dL/dm = 1 / (tau B) sum over samples and queries of  (W - W_target) f

without W_target where the target is one-hot. The similarities are recomputed; each query's features are loaded once per
tile. So a target's W is made when its own query is there, and kept until its students': queries come in an order in
which they meet no other target meanwhile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.prepare import QUERY, TARGET, entry, students, weighted
from kernels.products import parts, product, split
from kernels.rows import (
    in_parts,
    inverse_norms,
    load,
    load_parted,
    load_rows,
    load_split,
    store_parted,
    store_rows,
    whole,
)


@triton.jit
def _weights(s, i_row, mixing, p_c, p_lse, o_b, m_b, o_v, B, scale, MIX: tl.constexpr):
    """W of the similarities s (BLOCK_K, BLOCK_B); 0 for samples that do not exist."""
    row = i_row * B + o_b
    if m_b is None:
        lse = tl.load(p_lse + row)[None, :]
    else:
        lse = tl.load(p_lse + row, mask=m_b, other=float("inf"))[None, :]
    weights = tl.exp2(s * scale - lse)
    if MIX != "none":
        if MIX == "own":
            c = load(p_c + row, m_b)[None, :]
        else:
            c = load(p_c + row[None, :] * B + o_v[:, None], None if m_b is None else m_b[None, :])
        weights += (1 - mixing) * tl.exp2((s + mixing * (c - s)) * scale - lse)
    return weights


@triton.constexpr_function
def _is_target(table, row):
    """Whether a row is the target of another."""
    return any(student[TARGET] == row for student in table)


@triton.jit
def _bank_kernel(
    p_split,  # (queries, 1 or 2, B, D), from `kernels.prepare`
    p_c,  # (R, B) or (R, B, B); None if MIX is "none"
    p_lse,  # (R, B), from `kernels.combine`
    p_bank,  # (K, D)
    p_momentum,  # (K, D); both change in place unless there are p_parts
    p_mixing,  # (K,) or None
    p_parts,  # (queries,) factors of their losses in the gradient that is wanted; or None
    p_gradient,  # (K, D), where that is written; or None
    p_loss,  # a scalar: nothing is written unless it is finite; or None
    B,
    K,
    scale,  # 1 / (temperature ln 2)
    factor,  # 1 / (temperature B)
    lr,
    momentum_factor,
    weight_decay,
    TABLE: tl.constexpr,
    BACKWARDS: tl.constexpr,  # the last query first
    MIX: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EVEN_B: tl.constexpr,  # B is a multiple of BLOCK_B, K one of BLOCK_K
    EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK_K
    o_k = tl.arange(0, BLOCK_K)
    m_k = None if EVEN_K else start + o_k < K
    b_w = load_parted(p_bank + start * D, o_k, m_k, D, BLOCK_D, AGAIN=False)
    if p_parts is None:  # here, so that it is there when the loop is done
        velocity = load_parted(p_momentum + start * D, o_k, m_k, D, BLOCK_D, AGAIN=False)
    inverse = inverse_norms(whole(b_w))
    m_hi, m_lo = split(whole(b_w * inverse[None, :, None]), PRECISION)
    o_v = ((start % B).to(tl.int32) + o_k) % B
    mixing = 0.0
    if MIX != "none":
        mixing = load(p_mixing + start + o_k, m_k)[:, None]

    PARTS: tl.constexpr = parts(PRECISION)
    QUERIES: tl.constexpr = students(TABLE)
    gradient = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    target = tl.zeros([BLOCK_K, BLOCK_B], tl.float32)
    # A loop that is not unrolled, since ptxas would load every query's features at once and spill.
    for i_step in tl.range(0, QUERIES * tl.cdiv(B, BLOCK_B), num_stages=STAGES):
        i_query = QUERIES - 1 - i_step % QUERIES if BACKWARDS else i_step % QUERIES
        o_b = (i_step // QUERIES) * BLOCK_B + tl.arange(0, BLOCK_B)
        m_b = None if EVEN_B else o_b < B
        f_hi, f_lo = load_split(p_split, i_query * (PARTS * B) + o_b, m_b, B * D, D, BLOCK_D, PRECISION)
        zero = tl.zeros([BLOCK_K, BLOCK_B], tl.float32)
        s = product(m_hi, m_lo, tl.trans(f_hi), tl.trans(f_lo), zero, PRECISION)
        weights = _weights(s, i_query, mixing, p_c, p_lse, o_b, m_b, o_v, B, scale, MIX)
        softmax = weights
        for ROW in tl.static_range(QUERIES):
            if entry(TABLE, ROW, TARGET) is not None:
                if i_query == ROW:
                    weights -= target
        weights = weighted(weights, i_query, TABLE)
        for ROW in tl.static_range(len(TABLE)):
            if _is_target(TABLE, ROW):
                if i_query == entry(TABLE, ROW, QUERY):
                    if ROW < QUERIES:
                        target = softmax
                    else:
                        target = _weights(s, ROW, mixing, p_c, p_lse, o_b, m_b, o_v, B, scale, MIX)
        if p_parts is not None:
            weights *= tl.load(p_parts + i_query)
        w_hi, w_lo = split(weights, PRECISION)
        gradient = product(w_hi, w_lo, f_hi, f_lo, gradient, PRECISION)

    # The rows are loaded again, for the last time: kept through the loop, they and the momentum would spill.
    b_w = load_parted(p_bank + start * D, o_k, m_k, D, BLOCK_D, AGAIN=True)
    b_m = b_w * inverse[None, :, None]
    # Through w / max(|w|, eps): rows that were clamped are only scaled.
    b_g = in_parts(gradient)
    radial = tl.where(inverse < 1e12, tl.sum(whole(b_g * b_m), axis=1), 0.0)
    b_g = (b_g - radial[None, :, None] * b_m) * (factor * inverse)[None, :, None]
    if p_parts is not None:
        store_parted(p_gradient + start * D, o_k, m_k, b_g, D, BLOCK_D)
    else:
        velocity = momentum_factor * velocity - b_g + weight_decay * b_w
        if p_loss is not None:
            finite = tl.abs(tl.load(p_loss)) < float("inf")
            m_k = (o_k < BLOCK_K if EVEN_K else m_k) & finite
        store_parted(p_momentum + start * D, o_k, m_k, velocity, D, BLOCK_D)
        store_parted(p_bank + start * D, o_k, m_k, b_w - lr * velocity, D, BLOCK_D)


@triton.jit
def _enqueue_kernel(
    p_f0,  # (B, D); several positives of a sample are rows that follow one another
    p_bank,  # (K, D)
    p_momentum,  # (K, D)
    p_cursor,  # int64 scalar: features written so far, so that the oldest row is this mod K
    p_loss,
    B,
    K,
    D: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """First in, first out: f0 over the oldest rows, at rest. One program, since it moves the cursor that it reads."""
    cursor = tl.load(p_cursor)
    finite = tl.abs(tl.load(p_loss)) < float("inf")
    skipped = tl.maximum(B - K, 0)  # of more than K features the last K stay
    for i_first in range(0, B, BLOCK_B):
        o_b = i_first + tl.arange(0, BLOCK_B)
        m_b = (o_b < B) & (o_b >= skipped) & finite
        o_k = (cursor + o_b) % K
        store_rows(p_bank, o_k, m_b, load_rows(p_f0, o_b, m_b, D, BLOCK_D), D, BLOCK_D)
        store_rows(p_momentum, o_k, m_b, tl.zeros([BLOCK_B, BLOCK_D], tl.float32), D, BLOCK_D)
    tl.debug_barrier()  # every thread has read the cursor
    tl.store(p_cursor, cursor + B, mask=finite)
