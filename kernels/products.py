"""Matrix products inside a kernel, in three precisions.

A logit is a similarity divided by a temperature such as 0.03: one bfloat16 rounding of a similarity, 4e-3, would be a
13 % error of a probability. So a float32 operand is split into two bfloat16 numbers, x = hi + lo, which together keep
16 bits of mantissa, and lo.hi + hi.lo + hi.hi is accumulated in float32: three products on the fastest path of the
tensor cores. The fourth, lo.lo, is below the rounding of what is kept.
"""

from __future__ import annotations

import triton
import triton.language as tl

PRECISIONS = ("bf16x3", "ieee", "bf16")
"""bf16x3: split operands, three products (default). ieee: float32 without tensor cores, exact and slow. bf16: one
product of rounded operands, fast and loose."""


@triton.constexpr_function
def parts(precision):
    """How many blocks a split operand is."""
    return 2 if precision == "bf16x3" else 1


@triton.jit
def split(x, PRECISION: tl.constexpr):
    """(hi, lo), the form in which `product` takes the float32 block x; lo counts under bf16x3 only."""
    if PRECISION == "ieee":
        return x, x
    elif PRECISION == "bf16":
        hi = x.to(tl.bfloat16)
        return hi, hi
    else:
        hi = _to_8_bits(x)
        return hi.to(tl.bfloat16), (x - hi).to(tl.bfloat16)


@triton.jit
def _to_8_bits(x):
    """x rounded to the bits of a bfloat16, as a float32. A conversion there and back would do, but the compiler makes
    an instruction of its own for each number of it, on the unit of the exponentials; from here, it converts pairs."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 0x8000) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def product(x_hi, x_lo, y_hi, y_lo, acc, PRECISION: tl.constexpr):
    """acc + x @ y in float32; the small terms first."""
    if PRECISION == "ieee":
        return tl.dot(x_hi, y_hi, acc, input_precision="ieee")
    else:
        if PRECISION == "bf16x3":
            acc = tl.dot(x_lo, y_hi, acc)
            acc = tl.dot(x_hi, y_lo, acc)
        return tl.dot(x_hi, y_hi, acc)
