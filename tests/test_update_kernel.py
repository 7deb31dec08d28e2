"""The update of both encoders: values, bounds and races; machine code through ptxas.

Values are PyTorch's SGD bit for bit and float64's within roundings. Traffic: tests/interpreted/test_traffic.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from every_pair import every_pair
from gpu_less import INTERPRETED, kernels_on_cpu, needs_compiler, needs_engine
from machine_code import TARGETS, compiled

pytest.importorskip("triton")

import update_cases as cases
from update_cases import ALIGNED, SIZES, Weights

from bench.resources import Report
from kernels import update
from kernels.update import UpdateGroup

pytestmark = [pytest.mark.compiler, pytest.mark.usefixtures("triton_cache")]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@needs_engine
@pytest.mark.parametrize(
    ("sizes", "gap", "dtype"), every_pair([SIZES, ALIGNED, SIZES[:1], SIZES[1:2]], [1, 3, 32], DTYPES)
)
def test_bits_are_those_of_torchs_sgd(sizes, gap, dtype):
    """Also compiled, without the fusing of multiplications and additions that the source does not name."""
    weights = Weights.draw(sizes, dtype, gap=gap)
    group = weights.group()
    for cc in (80, 90):
        before = weights.clone()
        with kernels_on_cpu(cc):
            cases.run(weights, group, scale=2.0**16)
        assert not cases.different(weights, cases.plainly(before, 2.0**16))
        assert not cases.over_budget(weights, before, 2.0**16)


@needs_engine
def test_the_gaps_between_weights_are_left_alone():
    weights = Weights.draw(SIZES, torch.bfloat16, gap=5)
    with kernels_on_cpu():
        cases.run(weights, weights.group())
    for role in (weights.query, weights.key, weights.query_copy, weights.key_copy, weights.gradient):
        gaps = torch.ones(role[0].untyped_storage().nbytes() // role[0].element_size(), dtype=torch.bool)
        for tensor in role:
            gaps[tensor.storage_offset() : tensor.storage_offset() + tensor.numel()] = False
        whole = role[0].as_strided((len(gaps),), (1,), 0)
        assert gaps.sum() > 25 and (whole[gaps] == 9).all()


@needs_engine
@pytest.mark.parametrize(("scale", "dtype"), [(1.0, torch.float32), *((3.0, dtype) for dtype in DTYPES)])
def test_a_scale_divides_the_gradients(scale, dtype):
    """A power of 2 exactly, as `train.engine.step.GradientScale` has it."""
    weights = Weights.draw(SIZES, dtype)
    group, before = weights.group(), weights.clone()
    with kernels_on_cpu():
        cases.run(weights, group, scale=scale)
    assert not cases.over_budget(weights, before, scale)
    if math.log2(scale).is_integer():
        assert not cases.different(weights, cases.plainly(before, scale))


@needs_engine
def test_a_key_that_follows_the_query_of_before_is_noticed():
    """A mutation: eq. 4 takes the query's weights after the step."""
    weights = Weights.draw(SIZES)
    group, before = weights.group(), weights.clone()
    with kernels_on_cpu():
        cases.run(weights, group)
    for key, query, old in zip(before.key, before.query, weights.key, strict=True):
        old.copy_(key).add_(key - query, alpha=-(1 - cases.ALPHA))
    assert "key" in cases.over_budget(weights, before)
    assert cases.different(weights, cases.plainly(before)) == ["key"]


@needs_engine
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_their_own_storages_are_collected_first(dtype):
    """And every time those of that step: they lie elsewhere at each."""
    weights = Weights.draw(SIZES, dtype)
    group = weights.group()
    for i in range(3):
        generator = torch.Generator().manual_seed(i)
        weights.gradient = [torch.randn(size, generator=generator).to(dtype) for size in SIZES]
        before = weights.clone()
        with kernels_on_cpu() as engine:
            cases.run(weights, group)
        assert (len(engine.launches) if INTERPRETED else engine.launches) == 1
        assert not cases.different(weights, cases.plainly(before))


@needs_engine
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_layout_of_gradients_is_learnt_once_and_never_while_capturing(dtype, monkeypatch):
    weights = Weights.draw(ALIGNED, dtype, gap=8, gradient_gap=128)
    group = weights.group()
    tables = group._tables
    own = len(tables)
    for capturing, learnt in ((True, own), (False, own + 1), (True, own + 1), (False, own + 1)):
        monkeypatch.setattr(update, "is_being_captured", lambda tensor, now=capturing: now)
        before = weights.clone()
        with kernels_on_cpu():
            cases.run(weights, group)
        assert not cases.different(weights, cases.plainly(before))
        assert len(tables) == learnt


def test_weights_that_share_no_storage_are_an_error():
    apart = [torch.zeros(3), torch.zeros(3)]
    together = list(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="share a storage"):
        UpdateGroup(together, apart)
    with pytest.raises(ValueError, match="contiguous"):
        UpdateGroup([torch.zeros(3, 4).t()], [torch.zeros(4, 3)])


def test_weights_that_have_moved_are_an_error():
    """Otherwise what they have left would be updated."""
    weights = Weights.draw(SIZES)
    parameters = [torch.nn.Parameter(weight) for weight in weights.key]
    weights.key = parameters
    group = weights.group()
    parameters[1].data = parameters[1].data.clone()
    with pytest.raises(RuntimeError, match="moved since"):
        cases.run(weights, group)


@needs_engine
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_that_is_skipped_leaves_every_bit(dtype):
    weights = Weights.draw(SIZES, dtype)
    for gradient in weights.gradient:
        gradient.fill_(torch.nan)
    for copies in (weights.query_copy, weights.key_copy):
        for copy in copies or ():
            copy.fill_(5.0)  # not what a rounding of the weights would be
    group, before = weights.group(), weights.clone()
    with kernels_on_cpu():
        cases.run(weights, group, skip=1.0)
    weights.gradient = before.gradient = [torch.zeros(())] * len(SIZES)
    assert not cases.different(weights, before)


# --- Machine code


def code_of(target: str, dtype: torch.dtype, gap: int, scale: float | None = 2.0) -> Report:
    weights = Weights.draw(ALIGNED, dtype, gap=gap, gradient_gap=gap)
    group = weights.group()
    (found,) = compiled(target, lambda: cases.run(weights, group, scale=scale), warps=32)
    return found


@needs_compiler
@pytest.mark.parametrize(
    ("target", "dtype"),
    [(target, torch.float32) for target in TARGETS] + [(target, torch.bfloat16) for target in TARGETS[::2]],
)
def test_machine_code(target, dtype):
    """A thread's eight weights: float32 in accesses of 16 bytes, half precision in 8, nothing through shared memory."""
    found = code_of(target, dtype, gap=64)
    half = dtype != torch.float32
    load, store, wide = ("load", "store", ".x4") if target.startswith("hip") else ("LDG", "STG", ".128")
    # gfx942 has four warps of 64 lanes for each eight of 32, at one size of program
    accesses = 1 if target.startswith("hip") else 2
    assert found.counts[store + wide] == 3 * accesses
    assert found.counts[store] == (5 if half else 3) * accesses
    assert found.counts[load + wide] >= (3 if half else 4) * accesses
    assert found.shared_bytes == 0
    if not target.startswith("hip"):
        of_table = 6 if half else 4
        assert found.counts[load] == (4 * accesses) + of_table + 3, "and flag, rate, scale"
        assert found.counts["BAR"] == 0


@needs_compiler
def test_chunks_that_begin_anywhere_have_narrow_accesses():
    """Otherwise a GPU would fault on them."""
    counts = code_of("cuda:90", torch.bfloat16, gap=3).counts
    assert counts["LDG.128"] == counts["STG.128"] == 0


@needs_compiler
def test_products_are_fused_where_the_source_says_so():
    """Three a weight, and momentum * velocity beside an addition of its own."""
    assert code_of("cuda:90", torch.float32, gap=64, scale=None).counts["FFMA"] == 3 * 8
