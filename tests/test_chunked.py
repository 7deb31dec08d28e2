"""The chunked implementation: exact against the reference for every kind of call, cut of the bank and shift."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from every_pair import every_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    CUTS,
    TABLES,
    WEIGHTS,
    Case,
    assert_exact,
    check_budget,
    check_far_positives,
    check_lengths,
    cut,
    forward_of,
    forward_truth,
)

from fastmc.contrast_table import A2MC, B1
from fastmc.objective import attention as rows
from fastmc.objective import chunked
from fastmc.objective.attention import BIT, Block, Contrast
from fastmc.objective.passes import Passes

KINDS = list(TABLES)


@pytest.mark.parametrize(
    ("shape", "kind", "tiled", "looking"),
    every_pair([(1, 1, 1), (7, 130, 5), (130, 33, 8), (64, 2100, 8)], KINDS, [False, True], [False, True]),
)
def test_equals_the_reference_in_float64(shape, kind, tiled, looking):
    case = Case.draw(*shape, kind=kind, tiled=tiled)
    with cut(looking):
        assert_exact(forward_of(chunked, case, WEIGHTS), forward_truth(case, WEIGHTS))


@settings(max_examples=30, deadline=None)
@given(
    b=st.integers(1, 20),
    k=st.integers(1, 40),
    d=st.integers(1, 6),
    kind=st.sampled_from(KINDS),
    tiled=st.booleans(),
    temperature=st.floats(0.01, 2),
    **CUTS,
)
def test_any_cut_into_blocks_and_chunks_gives_the_same(b, k, d, samples, entries, kind, tiled, temperature, looking):
    case = Case.draw(b, k, d, kind=kind, tiled=tiled, temperature=temperature)
    with cut(looking, samples, entries):
        assert_exact(forward_of(chunked, case, WEIGHTS), forward_truth(case, WEIGHTS))


@pytest.mark.parametrize(
    ("scales", "kind", "tiled"),
    every_pair([(0.01, 1.0), (0.01, 30.0), (0.07, 1e-3), (5.0, 1.0)], ["mc", "one-hot", "crossed"], [False, True]),
)
def test_large_and_small_logits(scales, kind, tiled):
    check_lengths(chunked, scales, kind, tiled)


@pytest.mark.parametrize("kind", KINDS)
def test_positives_beyond_any_exponential(kind):
    check_far_positives(chunked, kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shift_is_left_out_exactly_while_nothing_can_overflow(dtype):
    largest = 0.66 * math.log(torch.finfo(dtype).max)
    for tau, bounded in ((1.001 / largest, True), (0.999 / largest, False), (float("nan"), False)):
        case = Case.draw(3, 5, 4, dtype=dtype)
        contrast = Contrast(torch.stack(case.queries), case.bank, case.mixing, A2MC, False)
        assert chunked._logits_are_bounded(case.f0, contrast, tau) is bounded
    # At that limit the worst there is, opposite and equal features, is still exact.
    unit = torch.eye(4, dtype=dtype)[:1].expand(2, 4)
    bank = torch.cat([unit, -unit] * 500)
    for f0 in (unit, -unit):
        case = Case(f0, unit, -unit, unit, bank, torch.full((2000,), 0.5, dtype=dtype), temperature=1.001 / largest)
        ours, truth = forward_of(chunked, case, WEIGHTS), forward_truth(case.to(torch.float64), WEIGHTS)
        for name, want in truth.items():
            torch.testing.assert_close(ours[name].double(), want, rtol=2e-5, atol=2e-5 * want.abs().max().item())


@pytest.mark.parametrize(
    ("kind", "temperature", "tiled"), every_pair(["mc", "one-hot", "crossed"], [0.01, 0.07, 1.0], [False, True])
)
def test_float32_keeps_the_error_budget(kind, temperature, tiled):
    """Other tables: tests/test_mc_step.py."""
    case = Case.draw(33, 400, 64, kind=kind, tiled=tiled, temperature=temperature, dtype=torch.float32)
    check_budget(chunked, case)


MUTANTS: dict[str, Callable[[Case], dict]] = {
    "views swapped": lambda c: {"f1": c.f2, "f2": c.f1},
    "mixing complemented": lambda c: {"mixing": 1 - c.mixing},
    "one bank row off": lambda c: {"bank": c.bank.roll(1, 0)},
    "other positives": lambda c: {"f0": c.f0.roll(1, 0)},
    "other mix": lambda c: {"tiled": True},
    "hard target": lambda c: {"kind": "one-hot"},
    "temperature off by 1e-9": lambda c: {"temperature": 0.07 * (1 + 1e-9)},
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_comparison_notices_a_wrong_implementation(mutant):
    case = Case.draw(7, 45, 6)
    truth = forward_truth(case, WEIGHTS)
    with pytest.raises(AssertionError, match="error"):
        assert_exact(forward_of(chunked, replace(case, **MUTANTS[mutant](case)), WEIGHTS), truth)


def test_the_log_sum_exps_are_those_of_the_rows():
    case = Case.draw(5, 30, 6)
    _, _, lse = chunked.contrast_forward(case.f0, case.queries, case.bank, case.mixing, A2MC, 0.07, False, "ieee")
    m0 = torch.nn.functional.normalize(case.bank, dim=1)
    for row, u, v in ((0, case.f1, case.f1), (1, case.f2, case.f2), (2, case.f3, case.f3), (3, case.f3, case.f2)):
        mixed = case.mixing * (u * v).sum(dim=1, keepdim=True) + (1 - case.mixing) * (u @ m0.T)
        logits = torch.cat([(u * case.f0).sum(dim=1, keepdim=True), u @ m0.T, mixed], dim=1) / 0.07
        torch.testing.assert_close(lse[row], logits.logsumexp(dim=1), rtol=1e-13, atol=0)


def test_two_calls_are_equal_bit_for_bit():
    case = Case.draw(65, 2100, 16, dtype=torch.float32)
    first, again = (forward_of(chunked, case, WEIGHTS) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@settings(deadline=None)
@given(batch=st.integers(1, 500), bank=st.integers(1, 20000), tiled=st.booleans())
def test_blocks_and_chunks_cover_everything_once(batch, bank, tiled):
    contrast = Contrast(torch.empty(1, batch, 1), torch.empty(bank, 1), None, B1, tiled)
    for pieces, end, largest in (
        (contrast.blocks(), batch, contrast.block_size),
        (contrast.chunks(), bank, contrast.chunk_size),
    ):
        assert pieces[0].start == 0 and pieces[-1].stop == end
        assert all(a.stop == b.start for a, b in pairwise(pieces))
        assert max(p.stop - p.start for p in pieces) == largest
    assert contrast.block_size <= rows.SAMPLES
    assert contrast.chunk_size <= (max(rows.ENTRIES, batch) if tiled else rows.ENTRIES)
    if tiled:
        assert all(chunk.start % min(batch, bank) == 0 for chunk in contrast.chunks())


def test_the_largest_logit_is_exact():
    case = Case.draw(5, 30, 6)
    contrast = Contrast(torch.stack(case.queries), case.bank, case.mixing, A2MC, False)
    block = Block(contrast, slice(0, 5), 0.07, shifted=True)
    m0 = torch.nn.functional.normalize(case.bank, dim=1)
    plain = (case.f3 @ m0.T) / 0.07
    mixed = case.mixing * ((case.f3 * case.f2).sum(dim=1, keepdim=True) / 0.07) + (1 - case.mixing) * plain
    positive = (case.f3 * case.f0).sum(dim=1, keepdim=True) / 0.07
    want = torch.cat([positive, plain, mixed], dim=1).amax(dim=1)
    similarity = block.positive(case.f0, 0.07).similarity
    torch.testing.assert_close(BIT * Passes(contrast).largest_logit(block, similarity)[3], want, rtol=1e-13, atol=0)
