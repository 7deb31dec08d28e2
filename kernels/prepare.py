"""Before the bank is read: the features in the form of the products, and the similarities c = u.v of eq. 8.

u.b_i = lambda_i (u.v) + (1 - lambda_i) (u.m_i): with c = u.v at hand, no mixed bank is ever built. Which u meets which
v is the table of distributions in `kernels.sweep`. Under own mixing a sample has one c per distribution; under tiled
mixing entry i is mixed with the feature of sample i mod B, so c is a (B, B) matrix per distribution.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.products import product, split
from kernels.rows import load_rows, row_mask, row_offsets


@triton.jit
def query_view(i_distribution):
    """Row of (f1, f2, f3) that is the query u of a distribution."""
    return tl.minimum(i_distribution, 2)


@triton.jit
def mixed_view(i_distribution):
    """Row of (f1, f2, f3) that is v, which the bank of a distribution is mixed with."""
    return tl.where(i_distribution == 3, 1, i_distribution)


@triton.jit
def select_view(i_view, p_f1, p_f2, p_f3):
    return tl.where(i_view == 0, p_f1, tl.where(i_view == 1, p_f2, p_f3))


@triton.jit
def _prepare_kernel(
    p_f1,  # (B, D) each
    p_f2,
    p_f3,
    p_split,  # (3, 1 or 2, B, D): hi, and lo under bf16x3
    p_c,  # (4, B) for own, (4, B, B) for tiled mixing
    B,
    FIRST: tl.constexpr,  # the first distribution: 0, or 2 where f3 is the only view
    MIX: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_row, i_distribution, i_column = tl.program_id(0), tl.program_id(1) + FIRST, tl.program_id(2)
    i_u, i_v = query_view(i_distribution), mixed_view(i_distribution)
    o_b = i_row * BLOCK_B + tl.arange(0, BLOCK_B)
    m_b = o_b < B
    b_u = load_rows(select_view(i_u, p_f1, p_f2, p_f3), o_b, m_b, D, BLOCK_D)
    u_hi, u_lo = split(b_u, PRECISION)

    PARTS: tl.constexpr = 2 if PRECISION == "bf16x3" else 1
    if (i_distribution < 3) & (i_column == 0):
        p_hi = p_split + i_u * PARTS * B * D + row_offsets(o_b, D, BLOCK_D)
        mask = row_mask(m_b, D, BLOCK_D)
        tl.store(p_hi, u_hi, mask=mask)
        if PARTS == 2:
            tl.store(p_hi + B * D, u_lo, mask=mask)

    p_v = select_view(i_v, p_f1, p_f2, p_f3)
    if MIX == "own":
        c = tl.sum(b_u * load_rows(p_v, o_b, m_b, D, BLOCK_D), axis=1)
        tl.store(p_c + i_distribution * B + o_b, c, mask=m_b)
    if MIX == "tiled":
        o_r = i_column * BLOCK_B + tl.arange(0, BLOCK_B)
        v_hi, v_lo = split(load_rows(p_v, o_r, o_r < B, D, BLOCK_D), PRECISION)
        zero = tl.zeros([BLOCK_B, BLOCK_B], tl.float32)
        c = product(u_hi, u_lo, tl.trans(v_hi), tl.trans(v_lo), zero, PRECISION)
        p_block = p_c + (i_distribution * B + o_b[:, None]) * B + o_r[None, :]
        tl.store(p_block, c, mask=m_b[:, None] & (o_r < B)[None, :])
