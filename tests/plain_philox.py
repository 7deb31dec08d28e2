"""Philox and the numbers drawn from it, written a second time: with Python's integers, or NumPy's, and in float64."""

from __future__ import annotations

from typing import Any

import numpy as np


def philox_plain(key: tuple[int, int], counter: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
    """Philox4x32-10 of counter words that are ints, or uint64 arrays of one shape."""
    k0, k1 = key
    c = list(counter)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c[0], c[1], c[2], c[3]


def words_plain(seed: int, block: np.ndarray, step: int, sample: int, view: int) -> np.ndarray:
    """(len(block), 4) uint64 words of some blocks of a view's numbers."""
    rest = [np.full(len(block), word, np.uint64) for word in (step, sample, view)]
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    return np.stack(philox_plain(key, (block.astype(np.uint64), *rest)), axis=1)


def uniform_plain(words: np.ndarray) -> np.ndarray:
    """The upper 24 bits as float64 in [0, 1)."""
    return (words >> 8) / 2.0**24


def normal_plain(words: np.ndarray) -> np.ndarray:
    """(n, 4) words to (n, 4) float64, by Box and Muller: each pair of uniform numbers gives a pair of normal ones."""
    u = uniform_plain(words)
    radius, angle = np.sqrt(-2 * np.log(1 - u[:, 0::2])), 2 * np.pi * u[:, 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2).reshape(len(u), 4)
