"""The memory bank: its ascent against torch.optim.SGD, its queue against a list, its coefficients."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from every_pair import every_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from test_loss import Recorder
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.objective import chunked
from fastmc.objective.bank import COEFFICIENTS, MemoryBank, bank_step_, mixing_coefficients
from fastmc.objective.loss import mc_loss

MIXES = ["own", "tiled"]
IMPLS = ["torch", "reference"]
Batch = dict[str, Any]  # keyword arguments


def draw_bank(k: int, d: int, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(k, d, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def draw_features(b: int, k: int, d: int, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Batch:
    """What a step needs besides the bank: unit features and one coefficient per entry."""
    generator = torch.Generator().manual_seed(seed + 1)
    arguments: Batch = {
        name: F.normalize(torch.randn(b, d, generator=generator, dtype=dtype), dim=1)
        for name in ("f0", "f1", "f2", "f3")
    }
    arguments["mixing"] = torch.rand(k, generator=generator, dtype=dtype)
    return arguments


@pytest.mark.parametrize(
    ("shape", "hyper", "mix", "impl"),
    every_pair([(1, 1, 2), (7, 130, 5)], [(3.0, 0.9, 1e-4), (0.5, 0.0, 0.1), (0.1, 0.5, 0.0)], MIXES, IMPLS),
)
def test_steps_are_those_of_torch_sgd_on_minus_the_loss(
    shape: tuple[int, int, int], hyper: tuple[float, float, float], mix: str, impl: str
) -> None:
    b, k, d = shape
    lr, momentum_factor, weight_decay = hyper
    parameter = nn.Parameter(draw_bank(k, d))
    sgd = torch.optim.SGD([parameter], lr=lr, momentum=momentum_factor, weight_decay=weight_decay)
    bank, momentum = draw_bank(k, d), torch.zeros(k, d, dtype=torch.float64)
    for step in range(3):
        batch = draw_features(b, k, d, seed=10 * step)
        sgd.zero_grad()
        (-mc_loss(**batch, bank=parameter, temperature=0.03, mix=mix, impl="reference")).backward()
        sgd.step()
        hypers: Batch = {"lr": lr, "momentum_factor": momentum_factor, "weight_decay": weight_decay}
        bank_step_(bank, momentum, **batch, **hypers, mix=mix, impl=impl)
        torch.testing.assert_close(bank, parameter.detach(), rtol=1e-10, atol=1e-12)
        if momentum_factor:
            velocity = sgd.state[parameter]["momentum_buffer"]
            torch.testing.assert_close(momentum, velocity, rtol=1e-10, atol=1e-12)


INVALID = [
    ("f1", torch.zeros(3, 4)),
    ("bank", torch.zeros(20, 5, dtype=torch.float16)),
    ("momentum", torch.zeros(20, 4)),
    ("momentum", torch.zeros(20, 5, dtype=torch.float64)),
    ("momentum", torch.zeros(20, 5, device="meta")),
    ("momentum", None),
    ("mixing", torch.zeros(19)),
    ("temperature", 0.0),
    ("lr", -1.0),
    ("lr", math.nan),
    ("momentum_factor", 1.1),
    ("weight_decay", -1e-4),
    ("mix", "mine"),
    ("impl", "cuda"),
]


@pytest.mark.parametrize("name,value", INVALID)
def test_invalid_input_is_an_error_that_names_the_argument_and_changes_nothing(name: str, value: Any) -> None:
    bank, momentum = draw_bank(20, 5, dtype=torch.float32), torch.zeros(20, 5)
    arguments = {"bank": bank, "momentum": momentum, **draw_features(3, 20, 5, dtype=torch.float32), name: value}
    before = bank.clone()
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        bank_step_(**arguments)
    assert torch.equal(bank, before) and not momentum.any()


# The queue


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 12), batches=st.lists(st.integers(1, 30), max_size=8))
def test_the_queue_is_that_of_a_list(size: int, batches: list[int]) -> None:
    bank = MemoryBank(size, 2, generator=torch.Generator().manual_seed(0))
    rows, written = bank.entries.tolist(), 0
    for b in batches:
        features = torch.arange(written, written + b, dtype=torch.float32)[:, None].expand(b, 2)
        for feature in features.tolist():
            rows[written % size] = feature
            written += 1
        bank.enqueue_(features)
        assert bank.entries.tolist() == rows
        assert bank.cursor.item() == written
        assert bank.filled.item() == min(written, size)
        assert bank.is_full is (written >= size)


def test_an_entry_that_is_replaced_starts_at_rest() -> None:
    bank = MemoryBank(5, 3)
    bank.momentum.fill_(1)
    bank.enqueue_(torch.ones(2, 3, requires_grad=True))
    assert bank.momentum.sum(dim=1).tolist() == [0, 0, 3, 3, 3]
    assert not bank.entries.requires_grad, "it keeps no graph"


@pytest.mark.parametrize("f0", [torch.zeros(2, 4), torch.zeros(3), torch.zeros(0, 3), torch.zeros(2, 3, device="meta")])
def test_the_queue_refuses_what_is_no_batch_of_features(f0: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\bf0\b"):
        MemoryBank(5, 3).enqueue_(f0)


def test_a_new_bank_holds_unit_rows_that_its_generator_decides() -> None:
    first, again, other = (MemoryBank(64, 7, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    torch.testing.assert_close(first.entries.norm(dim=1), torch.ones(64))
    assert torch.equal(first.entries, again.entries) and not torch.equal(first.entries, other.entries)
    assert not first.momentum.any() and not first.is_full
    assert not list(first.parameters())


@pytest.mark.parametrize("name,arguments", [("size", (0, 3)), ("dim", (3, 0)), ("size", (2.5, 3))])
def test_a_bank_of_no_size_is_an_error_that_names_the_argument(name: str, arguments: Any) -> None:
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        MemoryBank(*arguments)


def test_a_loaded_bank_continues_bit_for_bit() -> None:
    bank = MemoryBank(20, 5)
    bank.enqueue_(draw_bank(7, 5, dtype=torch.float32))
    bank.step_(**draw_features(3, 20, 5, dtype=torch.float32))
    resumed = MemoryBank(20, 5)
    resumed.load_state_dict(copy.deepcopy(bank.state_dict()))
    for one in (bank, resumed):
        one.step_(**draw_features(3, 20, 5, dtype=torch.float32, seed=4))
        one.enqueue_(draw_bank(7, 5, dtype=torch.float32, seed=3))
    for name, tensor in bank.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_step_passes_on_every_setting() -> None:
    chosen: Batch = {"temperature": 0.1, "lr": 2.0, "momentum_factor": 0.5, "weight_decay": 0.1, "mix": "tiled"}
    bank = MemoryBank(20, 5)
    batch = draw_features(3, 20, 5, dtype=torch.float32)
    for changed in ({}, *({name: value} for name, value in chosen.items())):
        expected, velocity = bank.entries.clone(), bank.momentum.clone()
        bank_step_(expected, velocity, **batch, **changed, impl="torch")
        bank.step_(**batch, **changed, impl="torch")
        assert torch.equal(bank.entries, expected) and torch.equal(bank.momentum, velocity), changed


def test_only_is_full_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "may_look", lambda tensor: False)  # as on a GPU
    bank, batch = MemoryBank(20, 5), draw_features(3, 20, 5, dtype=torch.float32)
    batch["mixing"] = 0.3
    with Recorder() as ran:
        bank.enqueue_(batch["f0"])
        bank.step_(**batch, impl="torch")
        bank.mc_step_(**batch, impl="torch")
        batch["mixing"] = None
        bank.mc_step_(**batch, update="fifo", impl="torch")
    assert not ran.operators & {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select"}
    with Recorder() as ran:
        assert not bank.is_full
    assert ran.operators & {"_local_scalar_dense", "is_nonzero"}


# Mixing coefficients


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 200))
def test_cycle_is_four_equal_groups(size: int) -> None:
    values = [round(v, 6) for v in mixing_coefficients(size, "cycle").tolist()]
    counts = [values.count(c) for c in COEFFICIENTS]
    assert sum(counts) == size and max(counts) - min(counts) <= 1
    assert values == sorted(values, reverse=True), "the groups are contiguous"


def test_fixed_is_one_coefficient() -> None:
    torch.testing.assert_close(mixing_coefficients(5, "fixed:0.3"), torch.full((5,), 0.3))


def test_draw_takes_one_of_the_four_per_call_as_its_generator_says() -> None:
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    draws = [[mixing_coefficients(6, "draw", generator=g) for _ in range(64)] for g in generators]
    assert all(torch.equal(a, b) for a, b in zip(*draws, strict=True))
    assert all(len(set(draw.tolist())) == 1 and draw.is_contiguous() for draw in draws[0])
    assert {round(draw[0].item(), 6) for draw in draws[0]} == set(COEFFICIENTS)


@pytest.mark.parametrize("policy", ["fixed", "fixed:", "fixed:1.1", "fixed:-0.1", "fixed:nan", "random", "cycle:0.3"])
def test_an_unknown_policy_is_an_error_that_lists_the_known_ones(policy: str) -> None:
    with pytest.raises(ValueError, match=r"policy must be 'cycle', 'draw' or 'fixed:"):
        mixing_coefficients(5, policy)


def test_other_errors_name_their_argument() -> None:
    with pytest.raises(ValueError, match=r"\bgenerator\b"):
        mixing_coefficients(5, "draw")
    with pytest.raises(ValueError, match=r"\bsize\b"):
        mixing_coefficients(0)
