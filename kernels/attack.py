"""The attack of eq. 5 and 6 around the encoder's passes: one launch before the backward pass, one after it.

    logit_gradient   dL_at/dlogits of the loss of eq. 5, in closed form
    limited_step     x_hat = x + rho: Adam's first step against the gradient, its norm limited to eta

A sequence is one program's: it reads x and the gradient once (those of a sequence beyond ``TILE`` elements twice, the
second time out of the caches) and sums in an order that depends on the shape alone, so that no bit depends on the
batch. Arguments and results are those of the functions of the same names in `fastmc.methods.attack`, which do the same
in PyTorch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_BODIES = 32
"""Of a frame: a bit each of a word says whether they are there."""
TILE = 16384
"""Elements of x, and as many of the gradient, that a program holds: 32 in a thread, without spills."""
PART = 8192
"""The same of a sequence that is longer and so read twice, in parts: the compiler overlaps two of them."""
LOG2E = tl.constexpr(1.4426950408889634)
ADAM_EPSILON = tl.constexpr(1e-8)


@triton.jit
def _logit_gradient_kernel(
    p_logits,  # (B, C)
    p_gradient,  # (B, C)
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * C
    o_c = tl.arange(0, BLOCK_C)
    b_logits = tl.load(p_logits + start + o_c, mask=o_c < C, other=float("-inf")).to(tl.float32)
    b_p = tl.exp2((b_logits - tl.max(b_logits, axis=0)) * LOG2E)
    b_p /= tl.sum(b_p, axis=0)
    b_gradient = b_p * (b_p - tl.sum(b_p * b_p, axis=0)) * (2 / C)
    tl.store(p_gradient + start + o_c, b_gradient.to(p_gradient.dtype.element_ty), mask=o_c < C)


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _present(b_x, o_c, WIDTH: tl.constexpr, BODIES: tl.constexpr):
    """Whether the body that an element of b_x (rows, columns) belongs to is there in its frame: has a number that is
    not 0. A row is some frames of (joint, body, coordinate); each of their bodies has a bit in a word of the row."""
    # Columns behind the row's last are 0; without the remainder they would shift by more than a word has.
    o_bit = (((o_c // WIDTH) * BODIES + (o_c // 3) % BODIES) % 32)[None, :]
    b_word = tl.reduce(tl.where(b_x != 0, 1 << o_bit, 0), 1, _either)
    return ((b_word[:, None] >> o_bit) & 1) != 0


@triton.jit
def _direction(
    p_x,
    p_gradient,
    first,
    FRAMES: tl.constexpr,
    WIDTH: tl.constexpr,
    BODIES: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Of the rows from ``first`` on, blocks (BLOCK_R, BLOCK_C): offsets and mask of the elements, x, and
    g / (|g| + 1e-8) with zeros where a body is missing."""
    o_c = tl.arange(0, BLOCK_C)
    offsets = (first + tl.arange(0, BLOCK_R))[:, None] * (GROUP * WIDTH) + o_c[None, :]
    mask = (o_c < GROUP * WIDTH)[None, :] & (offsets < FRAMES * WIDTH)
    b_x = tl.load(p_x + offsets, mask=mask, other=0.0).to(tl.float32)
    b_g = tl.load(p_gradient + offsets, mask=mask, other=0.0).to(tl.float32)
    b_u = tl.where(_present(b_x, o_c, WIDTH, BODIES), b_g / (tl.abs(b_g) + ADAM_EPSILON), 0.0)
    return offsets, mask, b_x, b_u


@triton.jit
def _scale(square, lr, limit):
    """What multiplies the direction of the squared length ``square``, so that lr times it, or less, has the norm limit
    at most. A length that is no number limits nothing."""
    length = tl.sqrt(square)
    return tl.where(lr * length > limit, limit / length, lr)


@triton.jit
def _limited_step_kernel(
    p_x,  # (B, FRAMES, WIDTH) each
    p_gradient,
    p_attacked,
    lr,  # epsilon
    limit,  # eta
    FRAMES: tl.constexpr,
    WIDTH: tl.constexpr,  # of a frame: joints, bodies, 3
    BODIES: tl.constexpr,
    GROUP: tl.constexpr,  # frames of a row: as many as make its length a multiple of 16 bytes
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,  # >= GROUP * WIDTH
):
    start = tl.program_id(0).to(tl.int64) * (FRAMES * WIDTH)
    p_x += start
    p_gradient += start
    p_attacked += start
    ROWS: tl.constexpr = (FRAMES + GROUP - 1) // GROUP
    if ROWS <= BLOCK_R:  # all of it at once
        offsets, mask, b_x, b_u = _direction(p_x, p_gradient, 0, FRAMES, WIDTH, BODIES, GROUP, BLOCK_R, BLOCK_C)
        b_attacked = b_x - _scale(tl.sum(b_u * b_u), lr, limit) * b_u
        tl.store(p_attacked + offsets, b_attacked.to(p_attacked.dtype.element_ty), mask=mask)
    else:
        square = 0.0
        for first in range(0, ROWS, BLOCK_R):
            _offsets, _mask, _b_x, b_u = _direction(
                p_x, p_gradient, first, FRAMES, WIDTH, BODIES, GROUP, BLOCK_R, BLOCK_C
            )
            square += tl.sum(b_u * b_u)
        scale = _scale(square, lr, limit)
        for first in range(0, ROWS, BLOCK_R):
            offsets, mask, b_x, b_u = _direction(p_x, p_gradient, first, FRAMES, WIDTH, BODIES, GROUP, BLOCK_R, BLOCK_C)
            tl.store(p_attacked + offsets, (b_x - scale * b_u).to(p_attacked.dtype.element_ty), mask=mask)


def logit_gradient(logits: Tensor) -> Tensor:
    """dL_at/dlogits (B, C) of the summed losses of eq. 5; one launch."""
    logits = logits.contiguous()
    batch, classes = logits.shape
    gradient, block = torch.empty_like(logits), triton.next_power_of_2(classes)
    _logit_gradient_kernel[(batch,)](logits, gradient, C=classes, BLOCK_C=block, num_warps=_warps(block, 8))
    return gradient


def limited_step(x: Tensor, gradient: Tensor, bodies: int, lr: float, limit: float) -> Tensor:
    """x_hat (B, T, V * M * 3) of eq. 6; one launch."""
    if bodies > MAX_BODIES:
        raise ValueError(f"the kernels of the attack take at most {MAX_BODIES} bodies, got {bodies}: use impl='torch'")
    x, gradient = x.contiguous(), gradient.contiguous()
    batch, frames, width = x.shape
    group = _frames_of_a_row(width, bodies, 16 // min(x.element_size(), gradient.element_size()))
    block_c = triton.next_power_of_2(group * width)
    block_r = triton.next_power_of_2(triton.cdiv(frames, group))
    if block_r * block_c > TILE:
        block_r = max(1, PART // block_c)
    attacked = torch.empty_like(x)
    _limited_step_kernel[(batch,)](
        x, gradient, attacked, float(lr), float(limit), FRAMES=frames, WIDTH=width, BODIES=bodies, GROUP=group,
        BLOCK_R=block_r, BLOCK_C=block_c, num_warps=_warps(block_r * block_c, 32),
    )  # fmt: skip
    return attacked


def _frames_of_a_row(width: int, bodies: int, vector: int) -> int:
    """So many that a row is a multiple of ``vector`` elements (a power of two), if its bodies' bits fit one word."""
    return min(vector // math.gcd(width, vector), max(1, 2 ** int(math.log2(MAX_BODIES // bodies))))


def _warps(elements: int, a_thread: int) -> int:
    """Of a program that holds so many elements, up to ``a_thread`` in a thread."""
    return min(16, max(1, elements // (32 * a_thread)))
