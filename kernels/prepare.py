"""Before the bank is read: the features in the form of the products, and the similarities c = u.v of eq. 8.

u.b_i = lambda_i (u.v) + (1 - lambda_i) (u.m_i): with c = u.v at hand, no mixed bank is ever built. Which u meets which
v is said by a table, see below. Under own mixing a sample has one c per row of it; under tiled mixing entry i is mixed
with the feature of sample i mod B, so c is a (B, B) matrix per row.

TABLE, a constant of each kernel, is the tuple of rows of a `fastmc.contrast_table`: (query, the query that
its bank is mixed with, the row that is its target, weight of its loss, entries that are mined of each query for its
one-hot target, entries that it lifts as a target), None where there is nothing. The first of them, `students` in
number, have the losses of the queries, each at its query's place; the others are targets only.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.products import parts, product, split

QUERY = tl.constexpr(0)
MIXED_WITH = tl.constexpr(1)
TARGET = tl.constexpr(2)
WEIGHT = tl.constexpr(3)
MINED = tl.constexpr(4)
LIFTED = tl.constexpr(5)


@triton.constexpr_function
def entry(table, row, column):
    """Of the table."""
    return table[row][column]


@triton.constexpr_function
def students(table):
    """How many queries there are."""
    return 1 + max(row[0] for row in table)


@triton.constexpr_function
def most_mined(table):
    """How many entries of each query are mined."""
    return max(row[MINED] for row in table)


@triton.constexpr_function
def most_lifted(table):
    """How many entries a row lifts that lifts any."""
    return max(row[LIFTED] for row in table)


@triton.jit
def look_up(i_row, TABLE: tl.constexpr, COLUMN: tl.constexpr):
    """The table's entry for a row, or a block of rows, that is known when the kernel runs."""
    found = i_row
    for ROW in tl.static_range(len(TABLE)):
        if entry(TABLE, ROW, COLUMN) != ROW:
            found = tl.where(i_row == ROW, entry(TABLE, ROW, COLUMN), found)
    return found


@triton.jit
def weighted(x, i_query, TABLE: tl.constexpr):
    """x times the weight of the query's loss."""
    for ROW in tl.static_range(students(TABLE)):
        if entry(TABLE, ROW, WEIGHT) != 1:
            x = tl.where(i_query == ROW, x * entry(TABLE, ROW, WEIGHT), x)
    return x


@triton.jit
def select_query(i_query, p_queries):
    """The query's own pointer."""
    p_query = p_queries[len(p_queries) - 1]
    for BEFORE in tl.static_range(len(p_queries) - 2, -1, -1):
        p_query = tl.where(i_query == BEFORE, p_queries[BEFORE], p_query)
    return p_query


@triton.jit
def _prepare_kernel(
    p_queries,  # a tuple: (B, D) each
    p_split,  # (queries, 1 or 2, B, D): hi, and lo under bf16x3
    p_c,  # (rows, B) for own, (rows, B, B) for tiled mixing, else None
    p_ticket,  # int32 scalar, which `kernels.combine` wants to be 0
    B,
    TABLE: tl.constexpr,
    MIX: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,  # columns at a time
):
    i_block, i_row, i_column = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    i_u = look_up(i_row, TABLE, QUERY)
    p_u = select_query(i_u, p_queries)
    if MIX != "none":
        p_v = select_query(look_up(i_row, TABLE, MIXED_WITH), p_queries)
    o_b = i_block * BLOCK_B + tl.arange(0, BLOCK_B)
    o_r = i_column * BLOCK_B + tl.arange(0, BLOCK_B)
    m_b, m_r = o_b < B, o_r < B
    if (i_block == 0) & (i_row == 0) & (i_column == 0):
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
        if (i_row < students(TABLE)) & (i_column == 0):
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
        tl.store(p_c + i_row * B + o_b, c, mask=m_b)
    if MIX == "tiled":
        p_block = p_c + (i_row * B + o_b[:, None]) * B + o_r[None, :]
        tl.store(p_block, c, mask=m_b[:, None] & m_r[None, :])
