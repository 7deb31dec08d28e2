"""mc_step_: loss, gradients, metrics and update in one call, for every implementation, method and misfortune."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from every_pair import every_pair
from oracle import HYPER, Case, assert_exact, budget, step_of, step_truth, velocity, within
from test_loss import HOSTILE, WAITING, Recorder
from torch import Tensor, nn
from torch.nn import functional as F

import fastmc
from fastmc.contrast_table import A2MC, B1, B2, B3
from fastmc.objective import attention as rows
from fastmc.objective import chunked
from fastmc.objective.bank import MemoryBank
from fastmc.objective.contrast_step import MCStep, contrast_step_, mc_step_

IMPLS = ["torch", "reference"]
# The calls of the trainer: A²MC, B3, B2, B1 and filling, and a look without an update; then other tables.
CALLS = [
    ("mc", "ascent"), ("unmixed", "fifo"), ("one-hot", "fifo"), ("alone", "fifo"), ("mc", "none"),
    ("aimclr", "fifo"), ("hiclr", "fifo"), ("aimclr", "ascent"), ("hiclr", "ascent"), ("crossed", "ascent"),
]  # fmt: skip


def public(impl: str) -> Any:
    """mc_step_ or, of other tables than the paper's, contrast_step_, with the arguments and results of a raw one, so
    that one truth serves all."""

    def raw(bank, momentum, f0, queries, mixing, table, temperature, bank_temperature, *rest):
        lr, momentum_factor, weight_decay, tiled, update, cursor, precision, _lifted = rest
        settings = {
            "temperature": temperature, "bank_temperature": bank_temperature, "lr": lr,
            "momentum_factor": momentum_factor, "weight_decay": weight_decay, "mix": "tiled" if tiled else "own",
            "update": update, "cursor": cursor, "impl": impl, "precision": precision,
        }  # fmt: skip
        if table not in (A2MC, B1, B2, B3):
            found = contrast_step_(bank, momentum, f0, queries, table, mixing, **settings)
            stats = (found.loss, *found.losses, found.top1_count, found.positive_probability)
            return F.pad(torch.stack(stats), (0, max(0, 6 - len(stats)))), torch.stack(found.gradients)
        f1, f2, f3 = [None] * (3 - len(queries)) + list(queries)
        objective = "mc" if table in (A2MC, B3) else "info_nce"
        step = mc_step_(bank, momentum, f0, f1, f2, f3, mixing, objective=objective, **settings)
        parts, metrics = [step.l1, step.l2, step.l3], [step.top1_count, step.positive_probability]
        if f1 is None:
            assert step.df1 is None and step.df2 is None
            return torch.stack([step.loss, step.l3, *metrics, step.l1, step.l2]), step.df3.unsqueeze(0)
        return torch.stack([step.loss, *parts, *metrics]), torch.stack([step.df1, step.df2, step.df3])

    return SimpleNamespace(contrast_step_=raw)


@pytest.mark.parametrize(
    ("impl", "shape", "call", "tiled"),
    every_pair(IMPLS, [(1, 1, 2), (7, 130, 5), (65, 300, 16), (130, 33, 8)], CALLS, [False, True]),
)
def test_equals_the_reference_in_float64(impl, shape, call, tiled):
    kind, update = call
    case = Case.draw(*shape, kind=kind, tiled=tiled)
    truth = step_truth(case, update, velocity(case), cursor=shape[1] - 1)
    assert_exact(step_of(public(impl), case, update, velocity(case), cursor=shape[1] - 1), truth)


@pytest.mark.parametrize(
    ("call", "temperatures", "tiled", "bounded"),
    every_pair(CALLS, [(0.07, 0.03), (0.05, 0.05), (1.0, 0.01)], [False, True], [True, False]),
)
def test_two_temperatures_from_one_sweep_in_small_pieces(call, temperatures, tiled, bounded, monkeypatch):
    monkeypatch.setattr(rows, "SAMPLES", 4)
    monkeypatch.setattr(rows, "ENTRIES", 16)
    monkeypatch.setattr(chunked, "may_look", lambda tensor: bounded)
    (kind, update), (tau, bank_tau) = call, temperatures
    case = Case.draw(7, 45, 6, kind=kind, tiled=tiled, temperature=tau, bank_temperature=bank_tau)
    assert_exact(step_of(chunked, case, update, velocity(case)), step_truth(case, update, velocity(case)))


@pytest.mark.parametrize(("impl", "spoil", "tiled"), every_pair(IMPLS, HOSTILE, [False, True]))
def test_hostile_input(impl, spoil, tiled):
    case = Case.draw(7, 45, 6, tiled=tiled)
    names = ("f0", "f1", "f2", "f3", "bank", "mixing")
    arguments = {name: getattr(case, name).clone() for name in names}
    spoil(arguments)
    case = replace(case, **arguments)
    bound = 1e-11 * max(1.0, float(case.f1.norm(dim=1).max()) ** 2)
    ours, truth = (step(case, "ascent", torch.zeros(45, 6).double()) for step in (
        lambda *a: step_of(public(impl), *a), step_truth
    ))  # fmt: skip
    # A tie of the positive and an entry may be decided by a rounding of the reference's own two products.
    if spoil.__name__ != "entry_equal_to_a_feature":
        assert ours["stats"][4] == truth["stats"][4]
    ours["stats"][4] = truth["stats"][4]
    assert_exact(ours, truth, bound)


@pytest.mark.parametrize(("call", "tiled"), list(zip(CALLS, [False, True] * 5, strict=True)))
def test_float32_keeps_the_error_budget(call, tiled):
    kind, update = call
    case = Case.draw(33, 400, 64, kind=kind, tiled=tiled, dtype=torch.float32)
    wide = case.to(torch.float64)
    truth, plain = (step_truth(c, update, velocity(c)) for c in (wide, case))
    allowed = budget(plain, truth, case.bank_temperature)
    ours = step_of(public("torch"), case, update, velocity(case))
    verdict = within(ours, truth, allowed)
    assert all(verdict.values()), verdict
    for name in truth:  # the budget is one that can be exceeded
        wrong = ours[name].clone()
        wrong.view(-1)[wrong.abs().argmax()] += max(0.01 * wrong.abs().max(), 1)
        assert not within({**ours, name: wrong}, truth, allowed)[name], name


def test_the_comparison_notices_one_wrong_element():
    case = Case.draw(7, 45, 6)
    truth = step_truth(case, "ascent", velocity(case))
    for name in ("stats", "gradients", "bank", "momentum"):
        ours = step_of(chunked, case, "ascent", velocity(case))
        ours[name].view(-1)[-1] += 1e-11 * max(1.0, truth[name].abs().max().item())
        with pytest.raises(AssertionError, match=name):
            assert_exact(ours, truth)


def test_it_is_the_separate_functions_together():
    case = Case.draw(7, 45, 6)
    leaves = [f.clone().requires_grad_() for f in (case.f1, case.f2, case.f3)]
    loss = fastmc.mc_loss(case.f0, *leaves, case.bank, case.mixing)
    loss.backward()
    bank, momentum = case.bank.clone(), velocity(case)
    fastmc.bank_step_(bank, momentum, case.f0, *case.views, case.mixing)
    together, also = case.bank.clone(), velocity(case)
    step = fastmc.mc_step_(together, also, case.f0, *case.views, case.mixing)
    torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-13, atol=0)
    for gradient, leaf in zip((step.df1, step.df2, step.df3), leaves, strict=True):
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(together, bank, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(also, momentum, rtol=1e-12, atol=1e-12)


# What is not finite


@pytest.mark.parametrize(
    ("impl", "bounded", "value", "name", "update"),
    every_pair(IMPLS, [True, False], [math.nan, math.inf], ["f0", "f2", "bank", "momentum"], ["ascent", "fifo"]),
)
def test_a_loss_that_is_not_finite_changes_nothing(impl, bounded, value, name, update, monkeypatch):
    monkeypatch.setattr(chunked, "may_look", lambda tensor: bounded)
    monkeypatch.setattr(rows, "SAMPLES", 3)  # the fault is in the first of several blocks
    case = Case.draw(7, 45, 6, kind="mc" if update == "ascent" else "one-hot")
    momentum = velocity(case)
    spoiled = momentum if name == "momentum" else getattr(case, name)
    spoiled[0, 1] = value
    bank = MemoryBank(45, 6)
    bank.entries, bank.momentum = case.bank.clone(), momentum.clone()
    step = bank.mc_step_(case.f0, *case.views, case.coefficients, update=update, impl=impl,
                         objective="mc" if update == "ascent" else "info_nce")  # fmt: skip
    if name == "momentum":  # no part of the loss
        assert torch.isfinite(step.loss)
        return
    assert not torch.isfinite(step.loss)
    assert torch.equal(bank.entries.nan_to_num(7), case.bank.nan_to_num(7))
    assert torch.equal(bank.momentum, momentum)
    assert bank.cursor == 0 and bank.filled == 0


# Metrics


@pytest.mark.parametrize("impl", IMPLS)
def test_metrics_by_hand(impl):
    f0 = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    f3 = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    bank = torch.tensor([[0.0, 3.0]])
    step = look(f0, f3, bank, impl, bank_temperature=0.5)
    assert step.top1_count.item() == 1
    expected = (math.exp(2) / (math.exp(2) + 1) + 1 / (1 + math.exp(2))) / 2
    assert step.positive_probability.item() == pytest.approx(expected)


def look(f0: Tensor, f3: Tensor, bank: Tensor, impl: str, **settings: Any) -> MCStep:
    chosen = {"objective": "info_nce", "update": "none", "impl": impl, **settings}
    return mc_step_(bank, torch.zeros_like(bank), f0, None, None, f3, None, **chosen)


@pytest.mark.parametrize("d", [1, 8, 128])
@pytest.mark.parametrize("impl", IMPLS)
def test_metrics_of_a_collapsed_encoder(impl, d):
    for seed in range(8):  # whatever the direction rounds to
        generator = torch.Generator().manual_seed(seed)
        f = nn.functional.normalize(torch.randn(1, d, generator=generator), dim=1).expand(5, d)
        step = look(f, f, 3 * f[:1].expand(99, d), impl)
        assert step.top1_count.item() == 0, "a tie does not count"
        assert step.positive_probability.item() == pytest.approx(1 / 100, rel=1e-4)
        assert step.loss.item() == pytest.approx(math.log(100), rel=1e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_probability_survives_logits_beyond_any_exponential(impl):
    f = torch.eye(2)[:1]
    for f0, expected in ((1000 * f, 1.0), (-1000 * f, 0.0)):
        assert look(f0, f, f, impl).positive_probability.item() == expected


# In place, no more, no less


@pytest.mark.parametrize("impl", IMPLS)
def test_only_bank_momentum_and_cursor_change(impl):
    case = Case.draw(7, 45, 6)
    bank, momentum, cursor = nn.Parameter(case.bank.clone()), velocity(case), torch.tensor(3)
    features = [f.clone().requires_grad_() for f in (case.f0, *case.views)]
    mixing = case.mixing.clone()
    pointers = [t.data_ptr() for t in (bank, momentum, cursor)]
    for update, views in (("ascent", features), ("none", features), ("fifo", features)):
        before = bank.detach().clone()
        step = mc_step_(bank, momentum, *views, mixing, update=update, cursor=cursor, impl=impl)
        assert torch.equal(bank, before) == (update == "none")
        assert not any(t.requires_grad for t in step)
    assert [t.data_ptr() for t in (bank, momentum, cursor)] == pointers
    assert cursor.item() == 10 and bank.requires_grad and bank.grad is None
    for feature, before in zip(features, (case.f0, *case.views), strict=True):
        assert torch.equal(feature, before) and feature.grad is None
    assert torch.equal(mixing, case.mixing)


def test_a_bank_that_is_not_contiguous():
    case = Case.draw(7, 45, 6)
    plain, wide = case.bank.clone(), case.bank.repeat_interleave(2, dim=1)[:, ::2]
    momentum, other = velocity(case), velocity(case).T.contiguous().T
    for bank, v in ((plain, momentum), (wide, other)):
        mc_step_(bank, v, case.f0, *case.views, case.mixing)
    torch.testing.assert_close(wide, plain, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other, momentum, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("impl", IMPLS)
def test_narrow_features_are_widened_and_autocast_stays_outside(impl):
    case = Case.draw(7, 45, 6, dtype=torch.float32)
    narrow = [f.bfloat16() for f in (case.f0, *case.views)]
    results = []
    for features, autocast in (([f.float() for f in narrow], False), (narrow, True)):
        bank, momentum = case.bank.clone(), velocity(case)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            step = mc_step_(bank, momentum, *features, case.mixing, impl=impl)
            fastmc.bank_step_(bank, momentum, *features, case.mixing, impl=impl)
        results.append((bank, momentum, step.loss, step.df1.bfloat16()))
        assert step.df1.dtype == features[1].dtype and step.loss.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("update", "kind"), [("ascent", "mc"), ("fifo", "one-hot"), ("fifo", "alone")])
def test_nothing_waits_for_the_device_and_nothing_large_is_made(update, kind, monkeypatch):
    monkeypatch.setattr(chunked, "may_look", lambda tensor: False)  # as on a GPU
    monkeypatch.setattr(rows, "ENTRIES", 50)
    b, k, d = 150, 500, 16
    case = Case.draw(b, k, d, kind=kind)
    with Recorder() as recorder:
        step_of(chunked, case, update, velocity(case))
    assert not recorder.operators & WAITING
    stored = 4 * 50 * k if update == "ascent" else 0  # weights of a block of 50 samples
    assert recorder.largest <= max(stored, k * d, 3 * b * d)


def peak_memory(work: Callable[[], object]) -> float:
    """MB by which this process grows while it works, at most."""
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still resident would hide what is used again
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew at what is resident
    before = resident(status, "VmRSS")
    work()
    return resident(status, "VmHWM") - before


def resident(status: Path, name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+) kB", status.read_text())[1]) / 1000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux")
def test_peak_memory_at_the_product_size():
    case = Case.draw(64, 16384, 128, dtype=torch.float32)
    momentum = velocity(case)
    arguments = (case.bank, momentum, case.f0, *case.views, case.mixing)
    assert peak_memory(lambda: mc_step_(*arguments, impl="torch")) < 40
    assert peak_memory(lambda: torch.ones(15_000_000)) > 50, "the measurement sees what is made"


# Bank and arguments


def test_the_bank_counts_what_was_written():
    case = Case.draw(7, 20, 6, dtype=torch.float32)
    bank = MemoryBank(20, 6)
    entries = bank.entries.clone()
    for written in (7, 14, 20, 20):
        bank.mc_step_(case.f0, None, None, case.f3, None, update="fifo", objective="info_nce")
        assert bank.filled.item() == min(written, 20) and bank.is_full == (written >= 20)
    assert bank.cursor.item() == 28
    queue = MemoryBank(20, 6)
    queue.entries.copy_(entries)
    for _ in range(4):
        queue.enqueue_(case.f0)
    for name, value in bank.state_dict().items():
        assert torch.equal(value, queue.state_dict()[name]), name
    bank.mc_step_(case.f0, *case.views, 0.3)
    assert bank.cursor.item() == 28 and bank.momentum.any()


def test_every_setting_reaches_the_step():
    case = Case.draw(7, 45, 6)
    chosen: dict[str, Any] = {
        "temperature": 0.1, "bank_temperature": 0.05, "lr": 2.0, "momentum_factor": 0.5, "weight_decay": 0.1,
        "mix": "tiled", "update": "none",
    }  # fmt: skip
    results = []
    for changed in ({}, *({name: value} for name, value in chosen.items())):
        bank, momentum = case.bank.clone(), velocity(case)
        step = mc_step_(bank, momentum, case.f0, *case.views, case.mixing, **changed)
        results.append(torch.cat([step.loss[None], step.positive_probability[None], bank[0], momentum[0]]))
    assert all(not torch.equal(results[0], other) for other in results[1:])


INVALID = [
    ("f1", torch.zeros(3, 4), {}),
    ("f1", None, {}),
    ("f2", None, {"objective": "info_nce", "mixing": None, "update": "none"}),
    ("f1", None, {"f2": None, "mixing": None}),
    ("f3", None, {}),
    ("momentum", torch.zeros(20, 4), {}),
    ("mixing", 1.5, {}),
    ("mixing", 0.3, {"objective": "info_nce", "update": "none"}),
    ("temperature", 0.0, {}),
    ("bank_temperature", -1.0, {}),
    ("lr", math.nan, {}),
    ("objective", "moco", {}),
    ("update", "lifo", {}),
    ("update", "ascent", {"objective": "info_nce", "mixing": None}),
    ("cursor", None, {"update": "fifo"}),
    ("cursor", 3, {"update": "fifo"}),
    ("cursor", torch.zeros(1, dtype=torch.int64), {"update": "fifo"}),
    ("cursor", torch.tensor(3.0), {"update": "fifo"}),
    ("cursor", torch.zeros((), dtype=torch.int64, device="meta"), {"update": "fifo"}),
    ("precision", "fp8", {}),
]


@pytest.mark.parametrize(("name", "value", "others"), INVALID)
def test_invalid_input_is_an_error_that_names_the_argument_and_changes_nothing(name, value, others):
    case = Case.draw(3, 20, 5, dtype=torch.float32)
    bank, momentum = case.bank.clone(), torch.zeros(20, 5)
    features = {"f0": case.f0, "f1": case.f1, "f2": case.f2, "f3": case.f3}
    arguments = {"bank": bank, "momentum": momentum, **features, "mixing": case.mixing, **others, name: value}
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        mc_step_(**arguments)
    assert torch.equal(bank, case.bank) and not momentum.any()


def test_defaults_are_those_of_the_paper():
    case = Case.draw(3, 20, 5)
    results = []
    paper = {"temperature": 0.07, "bank_temperature": 0.03, "lr": 3.0, "momentum_factor": 0.9, "weight_decay": 1e-4}
    assert paper.keys() > HYPER.keys()
    for settings in ({}, paper):
        bank, momentum = case.bank.clone(), velocity(case)
        mc_step_(bank, momentum, case.f0, *case.views, case.mixing, **settings)
        results.append(bank)
    assert torch.equal(*results)
