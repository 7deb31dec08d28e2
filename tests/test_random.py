"""Philox against an independent implementation and against its published vectors; the distributions drawn from it."""

from __future__ import annotations

import math

import pytest
import torch

from fastmc.random import normal, philox, uniform


def philox_plain(key: tuple[int, int], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 with Python integers."""
    k0, k1 = key
    c = list(counter)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k1, p0 & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return tuple(c)


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


def test_a_number_does_not_depend_on_its_neighbours():
    sample = torch.arange(50)
    together = philox(7, torch.arange(8)[None], 3, sample[:, None], 2)
    alone = torch.cat([philox(7, torch.arange(8)[None], 3, s[None, None], 2) for s in sample])
    assert torch.equal(together, alone)


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
