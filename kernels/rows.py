"""Blocks of rows: what the kernels load, store and normalise.

All matrices are contiguous with D columns; a block has BLOCK_D >= D of them, a power of two. Where the two are equal
there is no column mask: the mask of a row is then one value along it, and loads and stores stay 128 bits wide. Where
all rows exist, their mask is None.

The bank's rows are held in parts, (BLOCK_D / 32, rows, 32): then 8 threads share a row instead of 32, still with 128
bits each, and the sum of a row takes 3 shuffles instead of 5, for a quarter of the rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

PART = tl.constexpr(32)


@triton.jit
def row_offsets(o_row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D) element offsets of the rows ``o_row``."""
    return o_row[:, None] * D + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def row_mask(m_row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, 1) or (rows, BLOCK_D) mask of the elements that exist in the rows of ``m_row``."""
    if D == BLOCK_D:
        return m_row[:, None]
    else:
        return m_row[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]


@triton.jit
def load(p_block, mask):
    """What lies there, 0 where the mask has nothing. There is all of it if the mask is None."""
    if mask is None:
        return tl.load(p_block)
    else:
        return tl.load(p_block, mask=mask, other=0.0)


@triton.jit
def load_rows(p_rows, o_row, m_row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The rows ``o_row`` as a float32 block; 0 where nothing exists."""
    offsets, mask = row_offsets(o_row, D, BLOCK_D), row_mask(m_row, D, BLOCK_D)
    return tl.load(p_rows + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rows(p_rows, o_row, m_row, b_rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write the block to the rows ``o_row``, in the matrix's dtype."""
    offsets, mask = row_offsets(o_row, D, BLOCK_D), row_mask(m_row, D, BLOCK_D)
    tl.store(p_rows + offsets, b_rows.to(p_rows.dtype.element_ty), mask=mask)


@triton.jit
def load_split(p_split, o_row, m_row, part, D: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr):
    """(hi, lo) of the rows ``o_row`` of a matrix that `kernels.prepare` has split; lo lies ``part`` elements on."""
    p_hi = p_split + row_offsets(o_row, D, BLOCK_D)
    p_lo = p_hi + part if PRECISION == "bf16x3" else p_hi
    if m_row is None and D == BLOCK_D:
        hi = tl.load(p_hi)
        lo = tl.load(p_lo) if PRECISION == "bf16x3" else hi
    else:
        m_all = (o_row >= 0) if m_row is None else m_row
        mask = row_mask(m_all, D, BLOCK_D)
        hi = tl.load(p_hi, mask=mask, other=0.0)
        lo = tl.load(p_lo, mask=mask, other=0.0) if PRECISION == "bf16x3" else hi
    return hi, lo


# --- The bank's rows, in parts


@triton.jit
def _parted(o_row, m_row, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Offsets (parts, rows, columns of a part) of the elements of the rows ``o_row``, and which of them exist."""
    WIDE: tl.constexpr = min(PART, BLOCK_D)
    o_d = tl.arange(0, BLOCK_D // WIDE)[:, None, None] * WIDE + tl.arange(0, WIDE)[None, None, :]
    mask = ((o_row >= 0) if m_row is None else m_row)[None, :, None]
    if D < BLOCK_D:
        mask = mask & (o_d < D)
    return o_row[None, :, None] * D + o_d, mask


@triton.jit
def load_parted(p_rows, o_row, m_row, D: tl.constexpr, BLOCK_D: tl.constexpr, AGAIN: tl.constexpr):
    """The rows ``o_row`` of a float32 matrix in parts; 0 where nothing exists. AGAIN: for the last time."""
    offsets, mask = _parted(o_row, m_row, D, BLOCK_D)
    # Were the last load like the first, the compiler would take the two for one and keep it.
    if m_row is None and D == BLOCK_D:
        b_rows = tl.load(p_rows + offsets, eviction_policy="evict_first" if AGAIN else "")
    else:
        b_rows = tl.load(p_rows + offsets, mask=mask, other=0.0, eviction_policy="evict_first" if AGAIN else "")
    return b_rows


@triton.jit
def store_parted(p_rows, o_row, m_row, b_rows, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write a block in parts to the rows ``o_row``."""
    offsets, mask = _parted(o_row, m_row, D, BLOCK_D)
    tl.store(p_rows + offsets, b_rows, mask=mask)


@triton.jit
def whole(b_parted):
    """(rows, BLOCK_D) of a block in parts."""
    rows: tl.constexpr = b_parted.shape[1]
    columns: tl.constexpr = b_parted.shape[0] * b_parted.shape[2]
    return tl.reshape(tl.permute(b_parted, (1, 0, 2)), (rows, columns))


@triton.jit
def in_parts(b_rows):
    """The other way round."""
    rows: tl.constexpr = b_rows.shape[0]
    columns: tl.constexpr = b_rows.shape[1]
    WIDE: tl.constexpr = min(PART, columns)
    return tl.permute(tl.reshape(b_rows, (rows, columns // WIDE, WIDE)), (1, 0, 2))


@triton.jit
def inverse_norms(b_rows):
    """(rows,) 1 / max(|row|, 1e-12), what torch.nn.functional.normalize multiplies rows (rows, BLOCK_D) by."""
    return tl.minimum(tl.rsqrt(tl.sum(b_rows * b_rows, axis=1)), 1e12)
