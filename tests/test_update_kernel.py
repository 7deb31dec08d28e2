"""The update of both encoders as it is compiled: values, bounds and races through ttsem; machine code through ptxas."""

from __future__ import annotations

import pytest
import torch
from gpu_less import needs_triton, needs_ttsem, ttsem_session

pytest.importorskip("triton")

import update_cases as cases
from update_cases import ALIGNED, SIZES, Weights

from bench.aot import compile_launches, report
from bench.resources import Report

pytestmark = pytest.mark.usefixtures("triton_cache")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TARGETS = ("cuda:80", "cuda:86", "cuda:90", "cuda:100", "hip:gfx942")


@needs_ttsem
@pytest.mark.parametrize("cc", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("sizes", "gap"), [(ALIGNED, 32), (SIZES, 32), (SIZES, 3)])
def test_bits_are_those_of_torchs_sgd(sizes, gap, dtype, cc):
    """Compiled without the fusing of multiplications and additions that the source does not name."""
    weights = Weights.draw(sizes, dtype, gap=gap)
    group, before = weights.group(), weights.clone()
    with ttsem_session(cc) as session:
        cases.run(weights, group, scale=2.0**16)
    assert session.launches == 1
    assert not cases.different(weights, cases.plainly(before, 2.0**16))
    assert not cases.over_budget(weights, before, 2.0**16)


@needs_ttsem
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_that_is_skipped_leaves_every_bit(dtype):
    weights = Weights.draw(SIZES, dtype)
    for gradient in weights.gradient:
        gradient.fill_(torch.nan)
    group, before = weights.group(), weights.clone()
    with ttsem_session():
        cases.run(weights, group, skip=1.0)
    weights.gradient = before.gradient = [torch.zeros(())] * len(SIZES)
    assert not cases.different(weights, before)


def compiled(target: str, dtype: torch.dtype, gap: int, scale: float | None = 2.0) -> Report:
    weights = Weights.draw(ALIGNED, dtype, gap=gap, gradient_gap=gap)
    group = weights.group()
    with compile_launches(target) as launches:
        cases.run(weights, group, scale=scale)
    (launch,) = launches
    found = report(launch)
    assert found.spilled_bytes == 0, found
    assert found.counts.get("ATOM", 0) == 0
    assert target.startswith("hip") or found.resident_warps >= 32, f"{found.resident_warps} warps"
    return found


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_machine_code(target, dtype):
    """A thread's eight weights: float32 in accesses of 16 bytes, half precision in 8, nothing through shared memory."""
    found = compiled(target, dtype, gap=64)
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


@needs_triton
def test_chunks_that_begin_anywhere_have_narrow_accesses():
    """Otherwise a GPU would fault on them."""
    counts = compiled("cuda:90", torch.bfloat16, gap=3).counts
    assert counts["LDG.128"] == counts["STG.128"] == 0


@needs_triton
def test_products_are_fused_where_the_source_says_so():
    """Three a weight, and momentum * velocity beside an addition of its own."""
    assert compiled("cuda:90", torch.float32, gap=64, scale=None).counts["FFMA"] == 3 * 8
