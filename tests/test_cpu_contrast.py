"""impl="cpp": exact against the reference for every kind of call; its powers of two; the same bits for any number of
threads."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from every_pair import every_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import (
    TABLES,
    WEIGHTS,
    Case,
    assert_exact,
    check_budget,
    check_far_positives,
    check_lengths,
    forward_of,
    forward_truth,
    step_of,
    step_truth,
    velocity,
)

import kernels.cpu
from fastmc.backends import CONTRAST, Need
from fastmc.objective import cpp_passes
from kernels.cpu.contrast import exp2

KINDS = list(TABLES)
ASCENDING = [kind for kind in KINDS if TABLES[kind].bank_order is not None]
SHAPES = [(1, 1, 1), (7, 130, 5), (65, 300, 16), (130, 33, 8), (64, 2100, 8), (3, 5001, 4)]


@pytest.fixture
def threads():
    """Set PyTorch's threads, for the test alone."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --- Powers of two


@pytest.mark.parametrize("dtype, ulps", [(torch.float32, 1.5), (torch.float64, 1.5)])
def test_powers_of_two_are_right_within_a_rounding_and_a_half(dtype, ulps):
    smallest = -126 if dtype == torch.float32 else -1022
    x = torch.cat([torch.linspace(smallest, -smallest, 100_001), torch.linspace(-1, 1, 10_001)]).to(dtype)
    truth = np.exp2(x.numpy().astype(np.longdouble))
    error = np.abs(exp2(x).numpy().astype(np.longdouble) / truth - 1).max() / torch.finfo(dtype).eps
    assert error < ulps
    assert torch.equal(exp2(x.round()).double(), torch.exp2(x.round().double()))  # whole powers are exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_powers_of_what_is_too_small_or_no_number(dtype):
    smallest = -126.0 if dtype == torch.float32 else -1022.0
    found = exp2(torch.tensor([smallest, smallest - 0.01, -1e30, -math.inf, math.nan], dtype=dtype))
    assert found[0] == torch.finfo(dtype).tiny and found[1:4].tolist() == [0, 0, 0] and found[4].isnan()


# --- Against the reference


@pytest.mark.parametrize(("shape", "kind", "tiled"), every_pair(SHAPES, KINDS, [False, True]))
def test_equals_the_reference_in_float64(shape, kind, tiled):
    case = Case.draw(*shape, kind=kind, tiled=tiled)
    assert_exact(forward_of(cpp_passes, case, WEIGHTS), forward_truth(case, WEIGHTS))


@pytest.mark.parametrize(
    ("shape", "kind", "tiled", "update", "temperatures"),
    every_pair(SHAPES, ASCENDING, [False, True], ["ascent", "fifo", "none"], [(0.07, 0.03), (0.03, 0.07), (1.0, 0.01)]),
)
def test_a_step_equals_the_reference_in_float64(shape, kind, tiled, update, temperatures):
    first, second = temperatures
    case = Case.draw(*shape, kind=kind, tiled=tiled, temperature=first, bank_temperature=second)
    ours, truth = (f(case, update, velocity(case), 3) for f in (lambda *a: step_of(cpp_passes, *a), step_truth))
    assert_exact(ours, truth)


@settings(max_examples=60, deadline=None)
@given(
    b=st.integers(1, 20),
    k=st.integers(1, 600),
    d=st.integers(1, 6),
    kind=st.sampled_from(ASCENDING),
    tiled=st.booleans(),
    temperature=st.floats(0.01, 2),
)
@pytest.mark.slow
def test_any_size_gives_the_same(b, k, d, kind, tiled, temperature):
    case = Case.draw(b, k, d, kind=kind, tiled=tiled, temperature=temperature, bank_temperature=temperature)
    assert_exact(forward_of(cpp_passes, case, WEIGHTS), forward_truth(case, WEIGHTS))
    assert_exact(step_of(cpp_passes, case, "ascent", velocity(case)), step_truth(case, "ascent", velocity(case)))


@pytest.mark.parametrize(
    ("scales", "kind", "tiled"),
    every_pair([(0.01, 1.0), (0.01, 30.0), (0.07, 30.0), (0.07, 1e-3), (5.0, 1.0)], KINDS, [False, True]),
)
def test_large_and_small_logits(scales, kind, tiled):
    check_lengths(cpp_passes, scales, kind, tiled)


@pytest.mark.parametrize("kind", KINDS)
def test_positives_beyond_any_exponential(kind):
    check_far_positives(cpp_passes, kind)


@pytest.mark.parametrize(("kind", "temperature", "tiled"), every_pair(KINDS, [0.01, 0.03, 0.07, 1.0], [False, True]))
@pytest.mark.slow
def test_float32_keeps_the_error_budget(kind, temperature, tiled):
    case = Case.draw(65, 700, 128, kind=kind, tiled=tiled, temperature=temperature, dtype=torch.float32)
    check_budget(cpp_passes, case)


def test_a_row_of_zeros_and_one_twice_and_rows_that_do_not_lie_together():
    case = Case.draw(7, 45, 6)
    bank = case.bank.clone()
    bank[3], bank[5] = 0, bank[4]
    case = replace(case, bank=bank)
    truth = step_truth(case, "ascent", velocity(case))
    assert_exact(step_of(cpp_passes, case, "ascent", velocity(case)), truth)
    strided, moved = bank.new_zeros(45, 12)[:, ::2].copy_(bank), bank.new_zeros(6, 45).T.copy_(velocity(case))
    assert not strided.is_contiguous() and not moved.is_contiguous()
    step = (case.f0, case.queries, case.mixing, case.table, 0.07, 0.03, 2.0, 0.9, 0.01, False, "ascent", None, "ieee")
    cpp_passes.contrast_step_(strided, moved, *step)
    assert_exact({"bank": strided, "momentum": moved}, {name: truth[name] for name in ("bank", "momentum")})


# --- Faults and ties


@pytest.mark.parametrize(
    ("name", "value", "update", "batch"),
    every_pair(["f0", "f2", "bank"], [math.nan, math.inf], ["ascent", "fifo"], [5, 70]),
)
def test_a_loss_that_is_not_finite_leaves_everything_as_it_is(name, value, update, batch):
    case = Case.draw(batch, 300, 6)
    spoiled = getattr(case, name).clone()
    spoiled[2, 1] = value
    case = replace(case, **{name: spoiled})
    found = step_of(cpp_passes, case, update, velocity(case), 4)
    assert not found["stats"][0].isfinite()
    assert torch.equal(found["bank"].nan_to_num(7), case.bank.nan_to_num(7)) and found["cursor"] == 4
    assert torch.equal(found["momentum"].nan_to_num(7), velocity(case).nan_to_num(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tie_is_not_top1_and_all_equal_logits_are_known(dtype):
    """A collapsed encoder: the loss of 2 K + 1 equal candidates, and the probability of one of K + 1."""
    row = torch.nn.functional.normalize(torch.ones(1, 8, dtype=dtype), dim=1)
    case = Case(*(row.expand(5, 8) for _ in range(4)), row.expand(40, 8), torch.full((40,), 0.3, dtype=dtype))
    stats = step_of(cpp_passes, case, "none", velocity(case))["stats"]
    roundings = 4 * torch.finfo(dtype).eps / case.bank_temperature  # of the largest logit
    assert stats[1].item() == pytest.approx(math.log(81), rel=roundings)
    assert stats[4] == 0 and stats[5].item() == pytest.approx(1 / 41, rel=roundings)


# --- Threads, and who is taken


@pytest.mark.parametrize(("kind", "tiled"), every_pair(KINDS, [False, True]))
def test_no_bit_depends_on_the_number_of_threads(threads, kind, tiled):
    case = Case.draw(65, 5000, 16, kind=kind, tiled=tiled, dtype=torch.float32)
    update = "ascent" if kind in ASCENDING else "fifo"
    found = []
    for count in (1, 2, 3, 7, 2):
        threads(count)
        found.append(
            forward_of(cpp_passes, case, WEIGHTS) | {"step": step_of(cpp_passes, case, update, velocity(case))}
        )
    for again in found[1:]:
        steps = again.pop("step"), found[0]["step"]
        assert all(torch.equal(again[name], found[0][name]) for name in again)
        assert all(torch.equal(steps[0][name], steps[1][name]) for name in steps[0])


def test_a_cpu_takes_it_where_it_can_run(monkeypatch):
    here = Need(torch.device("cpu"))
    assert CONTRAST.choose("auto", here) == "cpp"
    assert "on a CPU" in (CONTRAST.why_not("cpp", Need(torch.device("meta"))) or "")
    monkeypatch.setattr(kernels.cpu, "unavailable_reason", lambda: "there is no C++ compiler")
    assert CONTRAST.choose("auto", here) == "torch"
    with pytest.raises(RuntimeError, match=r"there is no C\+\+ compiler"):
        CONTRAST.choose("cpp", here)
