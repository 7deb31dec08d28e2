"""Blocks of rows: what the kernels load, store and normalise.

All matrices are contiguous with D columns; a block has BLOCK_D >= D of them, a power of two. Where the two are equal
there is no column mask: the mask of a row is then one value along it, and loads and stores stay 128 bits wide.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
    offsets, mask = row_offsets(o_row, D, BLOCK_D), row_mask(m_row, D, BLOCK_D)
    hi = tl.load(p_split + offsets, mask=mask, other=0.0)
    if PRECISION == "bf16x3":
        return hi, tl.load(p_split + part + offsets, mask=mask, other=0.0)
    else:
        return hi, hi


@triton.jit
def unit_rows(b_rows):
    """The rows scaled to unit length as torch.nn.functional.normalize does (eps 1e-12), and their norms."""
    norm = tl.sqrt(tl.sum(b_rows * b_rows, axis=1))
    return b_rows / tl.maximum(norm, 1e-12)[:, None], norm
