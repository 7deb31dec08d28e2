"""Triton's Philox as the kernels call it, alone: its words, for tests in either engine."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from plain_philox import philox_plain
from torch import Tensor

# Largest and smallest words of the key and of the counter: block, step, sample, view.
HOSTILE = [
    (0, (0, 0, 0, 0)),
    (2**63 - 1, (2**32 - 1, 2**31 - 1, 2**31 - 1, 3)),
    (2**32 - 1, (2**16, 2**31, 2**32 - 1, 2)),
    (2**32, (2**31, 5, 0, 1)),
    (0x9876_5432_1234_5678 >> 1, (2**16 + 3199, 12_345, 56_877, 0)),
]


@triton.jit(do_not_specialize=["seed", "step"])
def _words_kernel(p_block, p_sample, p_words, seed, step, VIEW: tl.constexpr, BLOCK: tl.constexpr):
    o_n = tl.arange(0, BLOCK)
    block, sample = tl.load(p_block + o_n).to(tl.uint32), tl.load(p_sample + o_n).to(tl.uint32)
    zero = block * 0
    w_0, w_1, w_2, w_3 = tl.philox(seed, block, zero + step.to(tl.uint32), sample, zero + VIEW)
    tl.store(p_words + 4 * o_n, w_0.to(tl.int64))
    tl.store(p_words + 4 * o_n + 1, w_1.to(tl.int64))
    tl.store(p_words + 4 * o_n + 2, w_2.to(tl.int64))
    tl.store(p_words + 4 * o_n + 3, w_3.to(tl.int64))


def kernel_words(seed: int, block: Tensor, step: int, sample: Tensor, view: int) -> Tensor:
    """(N, 4) int64, N a power of two."""
    words = torch.empty(len(block), 4, dtype=torch.int64)
    _words_kernel[(1,)](block, sample, words, seed, step, VIEW=view, BLOCK=len(block))
    return words


def assert_words() -> None:
    """Bit for bit, against Python's integers."""
    for seed, (block, step, sample, view) in HOSTILE:
        blocks = (torch.arange(16) + block) % 2**32
        samples = (torch.arange(16) * 1_000_003 + sample) % 2**32
        words = kernel_words(seed, blocks, step, samples, view)
        key = (seed & 0xFFFFFFFF, seed >> 32)
        plain = [philox_plain(key, (int(b), step, int(s), view)) for b, s in zip(blocks, samples, strict=True)]
        assert np.array_equal(words.numpy(), np.array(plain, dtype=np.int64)), (seed, block, step)
