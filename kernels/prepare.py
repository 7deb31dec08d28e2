"""Before the bank is read: the features in the form of the products, and the similarities c = u.v of eq. 8.

u.b_i = lambda_i (u.v) + (1 - lambda_i) (u.m_i): with c = u.v at hand, no mixed bank is ever built. Which u meets which
v is the table of distributions in `kernels.sweep`. Under own mixing a sample has one c per distribution; under tiled
mixing entry i is mixed with the feature of sample i mod B, so c is a (B, B) matrix per distribution.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.products import parts, product, split


@triton.jit
def query_view(i_distribution):
    """Row of (f1, f2, f3) that is the query u of a distribution."""
    return tl.minimum(i_distribution, 2)


@triton.jit
def mixed_view(i_distribution):
    """Row of (f1, f2, f3) that is v, which the bank of a distribution is mixed with."""
    return tl.where(i_distribution == 3, 1, i_distribution)


@triton.jit
def select_view(i_view, p_f1, p_f2, p_f3, FIRST: tl.constexpr):
    """The view's own pointer; those before FIRST are None."""
    if FIRST == 2:
        return p_f3
    else:
        return tl.where(i_view == 0, p_f1, tl.where(i_view == 1, p_f2, p_f3))


@triton.jit
def _prepare_kernel(
    p_f1,  # (B, D) each; None for a view that is not there
    p_f2,
    p_f3,
    p_split,  # (3, 1 or 2, B, D): hi, and lo under bf16x3
    p_c,  # (4, B) for own, (4, B, B) for tiled mixing, else None
    p_ticket,  # int32 scalar, which `kernels.combine` wants to be 0
    B,
    FIRST: tl.constexpr,  # the first distribution: 0, or 2 where f3 is the only view
    MIX: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,  # columns at a time
):
    i_row, i_distribution, i_column = tl.program_id(0), tl.program_id(1) + FIRST, tl.program_id(2)
    i_u, i_v = query_view(i_distribution), mixed_view(i_distribution)
    p_u, p_v = select_view(i_u, p_f1, p_f2, p_f3, FIRST), select_view(i_v, p_f1, p_f2, p_f3, FIRST)
    o_b = i_row * BLOCK_B + tl.arange(0, BLOCK_B)
    o_r = i_column * BLOCK_B + tl.arange(0, BLOCK_B)
    m_b, m_r = o_b < B, o_r < B
    if (i_row == 0) & (i_distribution == FIRST) & (i_column == 0):
        tl.store(p_ticket, 0)
    PARTS: tl.constexpr = parts(PRECISION)
    p_hi = p_split + i_u * PARTS * B * D
    if MIX == "own":
        c = tl.zeros([BLOCK_B], tl.float32)
    if MIX == "tiled":
        c = tl.zeros([BLOCK_B, BLOCK_B], tl.float32)

    for i_first in range(0, D, BLOCK_D):
        o_d = i_first + tl.arange(0, BLOCK_D)
        m_d = (o_d < D)[None, :]
        o_u, m_u = o_b[:, None] * D + o_d[None, :], m_b[:, None] & m_d
        b_u = tl.load(p_u + o_u, mask=m_u, other=0.0).to(tl.float32)
        u_hi, u_lo = split(b_u, PRECISION)
        if (i_distribution < 3) & (i_column == 0):
            tl.store(p_hi + o_u, u_hi, mask=m_u)
            if PARTS == 2:
                tl.store(p_hi + B * D + o_u, u_lo, mask=m_u)
        if MIX == "own":
            c += tl.sum(b_u * tl.load(p_v + o_u, mask=m_u, other=0.0).to(tl.float32), axis=1)
        if MIX == "tiled":
            b_v = tl.load(p_v + o_r[:, None] * D + o_d[None, :], mask=m_r[:, None] & m_d, other=0.0).to(tl.float32)
            v_hi, v_lo = split(b_v, PRECISION)
            c = product(u_hi, u_lo, tl.trans(v_hi), tl.trans(v_lo), c, PRECISION)

    if MIX == "own":
        tl.store(p_c + i_distribution * B + o_b, c, mask=m_b)
    if MIX == "tiled":
        p_block = p_c + (i_distribution * B + o_b[:, None]) * B + o_r[None, :]
        tl.store(p_block, c, mask=m_b[:, None] & m_r[None, :])
