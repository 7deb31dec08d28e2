"""Philox against an independent implementation and against its published vectors; the distributions drawn from it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from plain_philox import normal_plain, philox_plain, uniform_plain, words_plain

from fastmc.random import normal, philox, uniform

# From the known-answer tests of the Random123 distribution (kat_vectors, philox4x32 10).
KNOWN = [
    ((0, 0), (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0xA4093822, 0x299F31D0),
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("key", "counter", "expected"), KNOWN)
def test_known_answers(key, counter, expected):
    seed = key[0] | key[1] << 32
    words = philox(seed, torch.tensor([counter[0]]), *counter[1:])
    assert tuple(words[0].tolist()) == expected == philox_plain(key, counter)


def test_equals_plain_philox_on_random_input():
    generator = torch.Generator().manual_seed(0)
    c = torch.randint(0, 2**32, (4, 200), generator=generator)
    seed = 0x9876_5432_1234_5678
    words = philox(seed, c[0], c[1], c[2], c[3])
    key = (seed & 0xFFFFFFFF, seed >> 32)
    assert words.tolist() == [list(philox_plain(key, tuple(row))) for row in c.T.tolist()]


def test_counters_are_words_whatever_their_type():
    """Ints and tensors mean the same, and so does what wraps modulo 2^32."""
    block = torch.tensor([0, 3, 2**32 - 1])
    words = philox(2**63 - 1, block, 2**32 - 1, 2**31, 5)
    assert torch.equal(words, philox(2**63 - 1, block, torch.tensor(2**32 - 1), torch.tensor(2**31), torch.tensor(5)))
    assert torch.equal(words, philox(2**63 - 1, block - 2**32, -1, 2**31 + 2**32, 5))
    assert words.min() >= 0 and words.max() < 2**32


def test_the_arrays_of_numpy_that_other_tests_rely_on():
    """`words_plain` is `philox_plain` of Python's ints."""
    block, seed = np.array([0, 7, 2**16, 2**32 - 1], np.uint64), 2**63 - 25
    words = words_plain(seed, block, 2**31 - 1, 2**31 - 2, 3)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    assert words.tolist() == [list(philox_plain(key, (int(b), 2**31 - 1, 2**31 - 2, 3))) for b in block]


def test_uniform_and_normal_equal_float64():
    words = philox(3, torch.arange(20_000), 0, 0, 0)
    plain = words.numpy().astype(np.uint64)
    assert np.array_equal(uniform(words).numpy(), uniform_plain(plain))
    error = np.abs(normal(words).numpy() - normal_plain(plain))
    assert error.max() < 120 * 2.0**-24  # radii up to 5.8, of an angle with two roundings


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_first_of_the_four_normal_numbers(count):
    words = philox(3, torch.arange(100).view(20, 5), 0, 0, 0)
    assert normal(words, count).shape == (20, 5, count)
    assert torch.equal(normal(words, count), normal(words)[..., :count])


def test_normal_of_the_extreme_words_is_finite():
    extreme = torch.tensor([[0, 0, 2**32 - 1, 2**32 - 1], [2**32 - 1, 0, 0, 2**32 - 1]])
    z = normal(extreme)
    assert torch.isfinite(z).all() and z.abs().max() < 5.8


def test_uniform_is_uniform_and_below_one():
    u = uniform(philox(1, torch.arange(50_000), 0, 0, 0)).flatten()
    assert u.min() >= 0
    assert u.max() < 1
    assert uniform(torch.tensor([2**32 - 1])) < 1
    counts = torch.histc(u, bins=100, min=0, max=1)
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert chi_square < 149  # 99.9 % quantile with 99 degrees of freedom


def test_normal_has_the_moments_and_tails_of_a_normal():
    z = normal(philox(2, torch.arange(50_000), 0, 0, 0)).flatten().double()
    assert torch.isfinite(z).all()
    assert abs(z.mean()) < 4 / math.sqrt(len(z))
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / len(z))
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / len(z))
    assert abs((z.abs() > 1.96).double().mean() - 0.05) < 0.002
    pairs = z.view(-1, 4)
    assert torch.corrcoef(pairs.T).fill_diagonal_(0).abs().max() < 0.02
