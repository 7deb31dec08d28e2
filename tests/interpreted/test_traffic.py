"""Bytes that the kernels of attack and update ask for: what they must, and no more. Those of views are beside them."""

from __future__ import annotations

import attack_cases
import pytest
import torch
import update_cases
from update_cases import ALIGNED, SIZES, Weights

from bench.ledger_step import update_row
from bench.watch import watch
from kernels import attack, update

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_attack_of_the_default_size(dtype):
    """x and the gradient read once, x_hat written once, and not a byte more."""
    x, gradient = attack_cases.draw(2, 64, 25, 2, dtype)
    with watch() as seen:
        attack.limited_step(x, gradient, 2, 0.1, 0.5)
    compulsory = 3 * x.numel() * x.element_size()
    assert seen.total.load_bytes + seen.total.store_bytes == compulsory
    assert seen.total.memory_load_bytes + seen.total.memory_store_bytes == compulsory


def test_attack_of_a_clip_in_parts(monkeypatch):
    """A second read, of what lies in the caches by then."""
    monkeypatch.setattr(attack, "TILE", 1024)
    monkeypatch.setattr(attack, "PART", 512)
    x, gradient = attack_cases.draw(2, 64, 5, 2)
    with watch() as seen:
        attack.limited_step(x, gradient, 2, 0.1, 0.5)
    size = x.numel() * x.element_size()
    assert seen.total.memory_load_bytes == 2 * size and seen.total.store_bytes == size
    assert seen.total.load_bytes == 4 * size


@pytest.mark.parametrize("dtype", DTYPES)
def test_update_reads_and_writes_a_weight_once(dtype):
    """30 bytes with copies, else 28, and a program's share of the table, the flag and the rate."""
    weights = Weights.draw(ALIGNED, dtype)
    group = weights.group()
    with watch() as seen:
        update_cases.run(weights, group, scale=2.0)
    numbers, half = sum(group.counts), dtype != torch.float32
    read, written = (14, 16) if half else (16, 12)
    row, settings = 8 * (6 if half else 4), 4 * 3
    assert seen.total.load_bytes == read * numbers + (row + settings) * group.programs
    assert seen.total.store_bytes == written * numbers
    table = row * group.programs + settings
    assert seen.total.memory_load_bytes + seen.total.memory_store_bytes == (read + written) * numbers + table
    assert group.programs == sum(-(-count // update.BLOCK) for count in group.counts)
    row = update_row(group, scaled=True)
    assert (row["load_bytes"], row["store_bytes"]) == (seen.total.load_bytes, seen.total.store_bytes)
    assert row["first_touch_bytes"] == seen.total.memory_load_bytes + seen.total.memory_store_bytes
    assert [row["kernel"]] == [launch.kernel for launch in seen.launches]


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_that_is_skipped_reads_the_flag_alone(dtype):
    weights = Weights.draw(SIZES, dtype)
    group = weights.group()
    with watch() as seen:
        update_cases.run(weights, group, skip=1.0)
    assert seen.total.store_bytes == 0 and seen.total.load_bytes == 4 * group.programs
