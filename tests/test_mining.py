"""Mined positives: AimCLR's own numbers, the formula, and every implementation against the reference; equal ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from every_pair import every_pair
from golden import golden, near, needs_golden
from gpu_less import needs_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_budget import kernels_see
from oracle import (
    CUTS,
    MINING,
    MODULES,
    SHAPES,
    Case,
    assert_step,
    check_step_budget,
    check_step_lengths,
    cut,
    step_of,
    velocity,
)
from torch import Tensor
from torch.nn import functional as F

from fastmc.contrast_table import AIMCLR
from fastmc.objective import chunked, cpp_passes
from fastmc.objective.contrast_step import contrast_step_
from fastmc.reference import contrast as reference

IMPLS = ["reference", "torch", "cpp"]


def mask(rows: Tensor, size: int) -> Tensor:
    """(B, K) of row numbers (B, n)."""
    return torch.zeros(len(rows), size, dtype=torch.bool).scatter_(1, rows, True)


# --- By numbers and formula


@needs_golden
@pytest.mark.parametrize("impl", IMPLS)
def test_aimclrs_own_numbers(impl):
    theirs = golden("AimCLR_loss_nnm1")
    f0, *queries = (theirs[f"unit_f{i}"] for i in range(4))
    bank, table = theirs["bank"], AIMCLR.mining(int(theirs["topk"]))
    temperature = float(theirs["temperature"])
    step = contrast_step_(
        bank, torch.zeros_like(bank), f0, queries, table, temperature=temperature, update="none", impl=impl
    )
    near(step.loss, theirs["loss"], 1e-9)
    for i, ours in enumerate(step.gradients, start=1):
        near(ours, theirs[f"grad_unit_f{i}"], 1e-9)
    wanted = theirs["positive_mask"][:, 1:].bool()
    if impl == "reference":
        assert torch.equal(reference.nearest(queries, reference.normalise(bank), 1), wanted)
    else:
        module = chunked if impl == "torch" else cpp_passes
        assert torch.equal(mask(module.mined_rows(queries, bank, 1), len(bank)), wanted)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("k", [1, 3])
def test_by_its_formula(k, impl):
    """-(log p_1,0 + sum over P of log p_1,k) / (1 + |P|), sample by sample, with a set for P."""
    case = Case.draw(9, 45, 6)
    case = replace(case, f2=F.normalize(case.f1 + 0.1 * case.f2, dim=1))  # which finds much of what f1 finds
    f1, candidates = case.f1.clone().requires_grad_(), F.normalize(case.bank, dim=1)
    log_p = (torch.cat([(f1 * case.f0).sum(dim=1, keepdim=True), f1 @ candidates.T], dim=1) / 0.07).log_softmax(dim=1)
    losses, sizes = [], set()
    for n in range(9):
        mined = {int(i) for f in case.queries for i in (candidates @ f[n]).topk(k).indices}
        losses.append(-(log_p[n, 0] + sum(log_p[n, 1 + i] for i in mined)) / (1 + len(mined)))
        sizes.add(len(mined))
    assert len(sizes) > 1 and max(sizes) < 3 * k + 1 and min(sizes) < 3 * k  # queries share some
    torch.stack(losses).mean().backward()
    step = contrast_step_(
        case.bank, torch.zeros_like(case.bank), case.f0, case.queries, AIMCLR.mining(k), update="none", impl=impl
    )
    torch.testing.assert_close(step.losses[0], torch.stack(losses).mean().detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(step.gradients[0], f1.grad, rtol=1e-11, atol=1e-15)
    soft = contrast_step_(
        case.bank, torch.zeros_like(case.bank), case.f0, case.queries, AIMCLR, update="none", impl=impl
    )
    assert torch.equal(step.losses[1:], soft.losses[1:])  # their target is row 0's softmax as before
    assert all(map(torch.equal, step.gradients[1:], soft.gradients[1:]))


# --- PyTorch and C++ against the reference


@pytest.mark.parametrize(
    ("module", "shape", "kind", "looking"), every_pair(MODULES, SHAPES, list(MINING), [True, False])
)
def test_a_step_equals_the_reference_in_float64(module, shape, kind, looking):
    with cut(looking):
        assert_step(module, Case.draw(*shape, kind=kind))


@settings(max_examples=30, deadline=None)
@given(b=st.integers(1, 20), k=st.integers(3, 40), kind=st.sampled_from(list(MINING)), **CUTS)
def test_any_cut_into_blocks_and_chunks_gives_the_same(b, k, kind, samples, entries, looking):
    with cut(looking, samples, entries):
        assert_step(chunked, Case.draw(b, k, 5, kind=kind))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("lengths", [(0.01, 1.0), (0.01, 30.0), (5.0, 1e-3)])
def test_large_and_small_logits(lengths, module):
    check_step_lengths(module, lengths, Case.draw(7, 45, 6, kind="mining three"))


@pytest.mark.parametrize(("module", "kind", "temperature"), every_pair(MODULES, list(MINING), [0.03, 0.07, 1.0]))
def test_float32_keeps_the_error_budget(module, kind, temperature):
    case = Case.draw(65, 700, 128, kind=kind, temperature=temperature, dtype=torch.float32)
    without = check_step_budget(module, case, min(temperature, case.bank_temperature), kind="hiclr")
    assert not without["gradients"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_mined_rows_are_the_nearest(k, module, dtype):
    case = Case.draw(70, 5000, 16, dtype=dtype)
    wanted = [(f @ F.normalize(case.bank, dim=1).T).topk(k, dim=1).indices for f in case.queries]
    assert torch.equal(module.mined_rows(case.queries, case.bank, k), torch.cat(wanted, dim=1))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("k", [1, 3, 8])
def test_of_equal_rows_the_lowest_are_mined(k, module):
    """Similarities that are 0, 1 or -1 exactly, many of each, in every chunk."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    bank = 2 * axes[torch.randint(8, (5000,), generator=generator)]
    queries = [axes[torch.randint(8, (70,), generator=generator)] for _ in range(3)]
    wanted = [(f @ bank.T / 2).sort(dim=1, descending=True, stable=True).indices[:, :k] for f in queries]
    found = module.mined_rows(queries, bank, k)
    assert torch.equal(found, torch.cat(wanted, dim=1))
    assert torch.equal(mask(found, 5000), reference.nearest(queries, bank / 2, k))
    assert torch.equal(module.mined_rows([axes], axes[:1].expand(9, 4), k), torch.arange(k).expand(8, k))


@pytest.mark.parametrize("name", ["f0", "f1", "f3", "bank"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("impl", IMPLS)
def test_a_loss_that_is_not_finite_leaves_the_bank_alone(impl, value, name):
    case = Case.draw(5, 30, 6)
    spoiled = getattr(case, name).clone()
    spoiled[2] = value  # of a query, all of a sample's similarities
    case = replace(case, **{name: spoiled})
    bank, momentum, cursor = case.bank.clone(), velocity(case), torch.tensor(4)
    step = contrast_step_(bank, momentum, case.f0, case.queries, AIMCLR.mining(3), cursor=cursor, impl=impl)
    assert not step.loss.isfinite()
    assert torch.equal(bank.nan_to_num(7), case.bank.nan_to_num(7)) and cursor == 4
    assert torch.equal(momentum.nan_to_num(7), velocity(case).nan_to_num(7))


def test_no_bit_depends_on_the_number_of_threads():
    case, before = Case.draw(65, 5000, 16, kind="mining three", dtype=torch.float32), torch.get_num_threads()
    found = []
    for count in (1, 3, 2):
        torch.set_num_threads(count)
        found.append(step_of(cpp_passes, case, "fifo", velocity(case)))
    torch.set_num_threads(before)
    assert all(torch.equal(again[name], found[0][name]) for again in found for name in again)


# --- What the comparison sees


def unit(mined: Tensor, bank: Tensor) -> Tensor:
    return F.normalize(bank[mined], dim=2)


MISTAKES = {
    "entries count as often as they are found": lambda mined, bank, _: (
        unit(mined, bank).sum(dim=1) / (1 + mined.shape[1]),
        torch.full((len(mined),), mined.shape[1] / (1 + mined.shape[1])).to(bank),
    ),
    "only the first query mines": lambda mined, bank, _: SPREAD(mined[:, :3], bank),
    "rows have their own length": lambda mined, bank, _: (
        SPREAD(mined, bank)[0] * bank[mined].norm(dim=2).mean(dim=1, keepdim=True), SPREAD(mined, bank)[1]
    ),
    "the next row": lambda mined, bank, _: SPREAD((mined + 1) % len(bank), bank),
    "the key has no share": lambda mined, bank, _: tuple(
        x / SPREAD(mined, bank)[1].mean() for x in SPREAD(mined, bank)
    ),
}  # fmt: skip
SPREAD = chunked._spread


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_notices_a_mistake(mistake, monkeypatch):
    case = Case.draw(7, 45, 6, kind="mining three")
    assert_step(chunked, case)
    monkeypatch.setattr(chunked, "_spread", MISTAKES[mistake])
    with pytest.raises(AssertionError, match="error"):
        assert_step(chunked, case)


# --- Triton


@needs_engine
@pytest.mark.compiler
@pytest.mark.parametrize(
    ("shape", "kind", "precision"),
    [
        ((7, 70, 17), "mining", "bf16x3"),
        ((33, 130, 40), "mining three", "bf16x3"),
        ((5, 3, 8), "mining three", "ieee"),
        ((20, 200, 24), "two mine", "ieee"),
    ],
)
def test_the_kernels_keep_the_error_budget(shape, kind, precision):
    case = Case.draw(*shape, kind=kind, dtype=torch.float32)
    other = replace(case, kind="mining" if kind == "mining three" else "mining three")
    (seen,) = kernels_see(case, "fifo", precision, other)
    assert shape[1] < 9 or not seen["gradients"]


@needs_engine
@pytest.mark.compiler
@pytest.mark.parametrize(("kind", "multiprocessors"), [("mining", 1), ("mining", 128), ("mining three", 1)])
def test_the_kernels_mine_the_lowest_of_equal_rows(kind, multiprocessors, monkeypatch):
    """Two by two, rows are equally near to a feature; they lie in several tiles of a program, or of several."""
    from kernels import launch

    monkeypatch.setattr(launch, "multiprocessors", lambda device: multiprocessors)
    axes = torch.eye(8)
    pairs = torch.cat([0.6 * axes[:4] + 0.8 * axes[4:], 0.6 * axes[:4] - 0.8 * axes[4:]])
    bank = pairs[torch.randperm(160, generator=torch.Generator().manual_seed(0)) % 8]
    f = axes[torch.arange(6) % 4]
    case = Case(f.roll(1, 0), f, f, f.flip(0), bank, torch.zeros(160), kind=kind)
    (last_first,) = kernels_see(case, "fifo", "bf16x3", replace(case, bank=bank.flip(0)))
    assert not last_first["gradients"]
