"""Fused updates as operators: the bits of torch.optim's optimizers, their state, and nothing imported for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_train import command

from fastmc.optim import SGD, AdamW, Fused, dropped

KINDS: dict[str, tuple[Callable[..., Fused], Callable[..., Any], dict[str, Any]]] = {
    "sgd": (SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "plain": (SGD, torch.optim.SGD, {"weight_decay": 1.0, "maximize": True}),
    "adamw": (AdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
}


def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 7), (7,), (1,))]


def give_gradients(found: list[torch.nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for weight in found:
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_bits_are_those_of_the_fused_optimizer(kind):
    """Of weights and state, with a rate that changes, a weight that has no gradient at first, and back and forth by the
    state's dictionary."""
    cls, plain, settings = KINDS[kind]
    mine, theirs = weights(), weights()
    ours, truth = cls(mine, 0.1, **settings), plain(theirs, lr=0.1, fused=True, **settings)
    for step in range(6):
        for found in (mine, theirs):
            give_gradients(found, step)
            if step < 2 and kind != "sgd":  # a velocity that is there before the first gradient is none of torch's
                found[1].grad = None
        for optimizer in (ours, truth):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True)), step
        if step == 3:
            old = ours.state_dict()
            truth.load_state_dict({"state": old["state"], "param_groups": truth.state_dict()["param_groups"]})
            ours = cls(mine, 0.1, **settings)
            ours.load_state_dict(truth.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_found_inf_leaves_all_as_it_was_and_a_scale_divides(kind):
    cls, _, settings = KINDS[kind]
    mine, theirs = weights(), weights()
    ours, plain = cls(mine, 0.1, **settings), cls(theirs, 0.1, **settings)
    ours.found_inf, ours.grad_scale = torch.zeros(()), torch.tensor(8.0)
    for step in range(2):
        give_gradients(mine, step)
        give_gradients(theirs, step)
        for weight in mine:
            weight.grad *= 8
        ours.step()
        plain.step()
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    kept = [tensor.clone() for tensor in (*mine, *(t for slots in ours.state.values() for t in slots.values()))]
    ours.found_inf.fill_(1)
    mine[0].grad.fill_(torch.nan)
    ours.step()
    assert all(
        torch.equal(a, b)
        for a, b in zip(kept, (*mine, *(t for slots in ours.state.values() for t in slots.values())), strict=True)
    )
    ours.zero_grad()
    ours.step()
    assert all(weight.grad is None for weight in mine)


@pytest.mark.parametrize("milestones", [(), (2,), (1, 4), (4, 1), (3, 3)])
def test_the_rate_drops_as_by_a_schedule_of_torch(milestones):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(milestones), gamma=0.1)
    for epoch in range(6):
        assert dropped(3.0, milestones, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-15)
        optimizer.step()
        schedule.step()


@pytest.mark.program
def test_a_run_imports_no_compiler(data_root, tmp_path):
    """Which torch.optim does, and torch.autograd.backward where it is given gradients: seconds of every command."""
    code = f"""
import sys
from train import run
code = run.main({command(data_root, tmp_path / "run")!r})
sys.exit(code or 7 * any(name in sys.modules for name in ("torch._dynamo", "sympy")))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, (ran.returncode, ran.stderr)
