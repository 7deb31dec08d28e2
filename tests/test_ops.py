"""The operators of torch.library: opcheck, one graph under torch.compile, and the same numbers as eager calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from oracle import Case
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import kernels
from fastmc import bank_step_, info_nce, mc_loss, mc_loss_parts, mc_step_
from fastmc.contrast_table import AIMCLR
from fastmc.objective import chunked
from fastmc.objective.bank import MemoryBank
from fastmc.objective.contrast_step import contrast_step_

IMPLS = ["torch", "triton"]
HYPER = (3.0, 0.9, 1e-4)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """impl="triton" is served by the chunked functions: here only the way to them is tested."""
    monkeypatch.setitem(sys.modules, "kernels.mc", chunked)
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: None)


def drawn(kind: str = "mc", tiled: bool = False) -> Case:
    return Case.draw(5, 23, 4, kind=kind, tiled=tiled, dtype=torch.float32)


# The operators themselves


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "impl"), [("mc", "torch"), ("alone", "triton")])
def test_opcheck_of_the_losses_and_their_gradients(kind: str, impl: str) -> None:
    case = drawn(kind)
    queries = [f.requires_grad_() for f in case.queries]
    settings = (case.table.code, case.temperature, case.tiled, "ieee", impl)
    arguments = (case.f0, queries, case.bank.requires_grad_(), case.coefficients, *settings)
    torch.library.opcheck(torch.ops.fastmc.contrast_forward.default, arguments)

    with torch.no_grad():
        _, _, lse = torch.ops.fastmc.contrast_forward(*arguments)
        constants = [f.detach() for f in queries]
        rest = (case.bank.detach(), case.coefficients, lse, torch.ones(len(queries)), *settings)
    torch.library.opcheck(torch.ops.fastmc.contrast_bank_gradient.default, (constants, *rest))


@pytest.mark.slow
def test_opcheck_of_the_steps() -> None:
    case, impl = drawn(), "triton"
    momentum = torch.zeros_like(case.bank)
    batch = (case.bank, momentum, case.f0, case.queries, case.mixing, case.table.code)
    torch.library.opcheck(torch.ops.fastmc.bank_step_.default, (*batch, 0.03, *HYPER, False, "ieee", impl))
    for update, cursor in (("ascent", None), ("fifo", torch.tensor(3)), ("none", None)):
        settings = (0.07, 0.03, *HYPER, False, update, cursor, "ieee", None, impl)
        torch.library.opcheck(torch.ops.fastmc.contrast_step_.default, (*batch, *settings))
    settings = (0.07, 0.03, *HYPER, False, "fifo", torch.tensor(3), "ieee", None, impl)
    for kind in ("alone", "crossed"):
        other = drawn(kind)
        batch = (case.bank, momentum, other.f0, other.queries, other.coefficients, other.table.code)
        torch.library.opcheck(torch.ops.fastmc.contrast_step_.default, (*batch, *settings))
    other = drawn("lifting")
    batch = (case.bank, momentum, other.f0, other.queries, None, other.table.code)
    torch.library.opcheck(torch.ops.fastmc.contrast_step_.default, (*batch, *settings[:-2], other.lifted, impl))
    other = replace(drawn("alone"), positives=3)
    batch = (case.bank, momentum, other.key, other.queries, None, other.table.code)
    torch.library.opcheck(torch.ops.fastmc.contrast_step_.default, (*batch, *settings))


def test_an_operator_is_differentiable_in_its_losses_alone() -> None:
    case = drawn()
    leaves = [t.requires_grad_() for t in (*case.views, case.bank)]
    arguments = (case.f0, leaves[:3], leaves[3], case.mixing, case.table.code, 0.07, False, "ieee", "torch")
    parts, gradients, lse = torch.ops.fastmc.contrast_forward(*arguments)
    assert parts.requires_grad and not gradients.requires_grad and not lse.requires_grad
    weights = torch.tensor([1.0, -2.0, 0.5])
    ours = torch.autograd.grad(parts @ weights, leaves)
    eager = torch.stack(mc_loss_parts(case.f0, *leaves, case.mixing, impl="torch"))
    for gradient, want in zip(ours, torch.autograd.grad(eager @ weights, leaves), strict=True):
        assert torch.equal(gradient, want)


@pytest.mark.parametrize("impl", [*IMPLS, "cpp"])
@pytest.mark.parametrize("of", ["query", "bank"])
def test_a_second_derivative_is_an_error_and_not_a_wrong_number(impl: str, of: str) -> None:
    """Also where it leads through the point and not through the upstream gradient, as a penalty on a gradient does."""
    case = drawn()
    f3, bank = case.f3.requires_grad_(), case.bank.requires_grad_()
    loss = mc_loss(case.f0, case.f1, case.f2, f3, bank, 0.3, impl=impl)
    point = f3 if of == "query" else bank
    (gradient,) = torch.autograd.grad(loss, point, create_graph=True)
    for second in (gradient.sum(), (gradient * point).sum()):
        with pytest.raises(RuntimeError, match="once_differentiable"):
            second.backward(retain_graph=True)
    operator = (case.f0, [case.f1, case.f2, f3], bank, case.mixing, case.table.code, 0.07, False, "ieee", impl)
    losses, *_ = torch.ops.fastmc.contrast_forward(*operator)
    with pytest.raises(RuntimeError, match="differentiable once only"):
        torch.autograd.grad(losses.sum(), point, create_graph=True)


def test_the_reference_has_second_derivatives() -> None:
    """By finite differences of its first one, of InfoNCE: what the MC loss takes for constant changes with f3."""
    case = Case.draw(5, 23, 4, dtype=torch.float64)
    f3 = case.f3.requires_grad_()

    def slope(f: Tensor, create_graph: bool = False) -> Tensor:
        loss = info_nce(f, case.f0, case.bank, impl="reference")
        return torch.autograd.grad(loss, f, create_graph=create_graph)[0]

    step = torch.randn_like(f3) * 1e-5
    (second,) = torch.autograd.grad((slope(f3, True) * step).sum(), f3)
    want = (slope((f3 + step).detach().requires_grad_()) - slope((f3 - step).detach().requires_grad_())) / 2
    torch.testing.assert_close(second, want, rtol=1e-5, atol=1e-10)


def test_the_bank_gradient_is_made_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("nobody asked")

    monkeypatch.setattr(chunked, "contrast_bank_gradient", refuse)
    case = drawn()
    f1 = case.f1.requires_grad_()
    mc_loss(case.f0, f1, case.f2, case.f3, case.bank, 0.3, impl="torch").backward()
    assert f1.grad is not None
    with pytest.raises(AssertionError, match="nobody asked"):
        mc_loss(case.f0, f1, case.f2, case.f3, case.bank.requires_grad_(), 0.3, impl="torch").backward()


def test_changing_the_bank_before_the_backward_pass_is_an_error() -> None:
    case = drawn()
    f1, bank = case.f1.requires_grad_(), case.bank.clone()
    loss = mc_loss(case.f0, f1, case.f2, case.f3, bank, 0.3)
    bank_step_(bank, torch.zeros_like(bank), case.f0, f1, case.f2, case.f3, 0.3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# Under torch.compile


def both_ways(function: Callable[..., list[Tensor]], *arguments: Tensor) -> list[list[Tensor]]:
    """The results of an eager and of a compiled call of copies, and their gradients; one graph, or an error."""
    backend = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    both = []
    for f in (function, torch.compile(function, backend=backend, fullgraph=True)):
        inputs = [t.detach().clone().requires_grad_(t.requires_grad) for t in arguments]
        results = f(*inputs)
        if any(t.requires_grad for t in results):
            weighted = sum(weight * value for weight, value in enumerate(results, start=1))
            results = [*results, *torch.autograd.grad(weighted, [t for t in inputs if t.requires_grad])]
        both.append(results)
    assert backend.frame_count == 1
    return both


@pytest.mark.slow
@pytest.mark.parametrize("impl", [*IMPLS, "reference"])
def test_compiled_losses_are_the_eager_ones(impl: str) -> None:
    case = drawn()
    leaves = [t.requires_grad_() for t in (*case.views, case.bank)]

    def losses(f0: Tensor, f1: Tensor, f2: Tensor, f3: Tensor, bank: Tensor, mixing: Tensor) -> list[Tensor]:
        loss = mc_loss(f0, f1, f2, f3, bank, mixing, impl=impl)
        l1, l2, l3 = mc_loss_parts(f0, f1, f2, f3, bank, 0.3, mix="tiled", impl=impl)
        return [loss, l1, l2, l3, info_nce(f3, f0, bank, impl=impl)]

    eager, compiled = both_ways(losses, case.f0, *leaves, case.mixing)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("impl", "grad"), [("torch", True), ("triton", False)])
def test_compiled_steps_are_the_eager_ones_bit_for_bit(impl: str, grad: bool) -> None:
    case = drawn()

    def steps(bank: Tensor, momentum: Tensor, cursor: Tensor, *f: Tensor) -> list[Tensor]:
        bank_step_(bank, momentum, *f, 0.3, impl=impl)
        found = mc_step_(bank, momentum, *f, case.mixing, impl=impl)
        queued = mc_step_(bank, momentum, *f, None, update="fifo", cursor=cursor, impl=impl)
        alone = mc_step_(bank, momentum, f[0], None, None, f[3], None, objective="info_nce", update="none", impl=impl)
        soft = contrast_step_(bank, momentum, f[0], f[1:], AIMCLR, update="none", impl=impl)
        results = (*found, *queued, alone.df3, alone.loss, soft.losses, *soft.gradients)
        return [bank.clone(), momentum.clone(), cursor.clone(), *(t for t in results if t is not None)]

    features = [f.requires_grad_(grad) for f in (case.f0, *case.views)]
    eager, compiled = both_ways(steps, case.bank, 0.1 * case.bank, torch.tensor(21), *features)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


def test_a_compiled_bank_keeps_its_books() -> None:
    case = drawn()
    banks = [MemoryBank(23, 4, generator=torch.Generator().manual_seed(0)) for _ in range(2)]

    def step(bank: MemoryBank, *f: Tensor) -> Tensor:
        bank.mc_step_(*f, None, update="fifo", objective="info_nce")
        return bank.mc_step_(*f, 0.3).loss

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    results = [f(bank, case.f0, *case.views) for f, bank in zip((step, compiled), banks, strict=True)]
    assert torch.equal(*results)
    for name, value in banks[0].state_dict().items():
        assert torch.equal(value, banks[1].state_dict()[name]), name


def test_autocast_does_not_reach_into_a_compiled_call() -> None:
    case = drawn()
    compiled = torch.compile(mc_loss, backend="aot_eager", fullgraph=True)
    arguments = (case.f0, *case.views, case.bank, case.mixing)
    expected = mc_loss(*arguments)
    torch._dynamo.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(compiled(*arguments), expected)
