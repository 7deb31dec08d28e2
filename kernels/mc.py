"""The MC loss (eq. 8-11) and the bank's step (eq. 7) by kernels. Nothing is validated here.

Arguments and results are those of `fastmc.objective.chunked`, which does the same in PyTorch; the launches are in
`kernels.launch`. The bank is float32, the features are float32 or half precision, all on one device. A step is four
launches, and nothing of size B K is allocated. Partial sums take O(B D) a program of the sweep; there are about
as many programs as run at a time, under tiled mixing at least B / 32, so O(B^2 D).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from kernels import launching_on
from kernels.launch import Plan, Step
from kernels.ranges import part


def mc_forward(
    f0: Tensor,
    f1: Tensor | None,
    f2: Tensor | None,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor | None,
    temperature: float,
    tiled: bool,
    soft_target: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Parts (3,) and their gradients with respect to the features (3, B, D), zeros for absent views; and what
    :func:`mc_bank_gradient` needs of this pass (4, B), in a form of these kernels' own."""
    plan = Plan.of(f0, f1, f2, f3, bank, mixing, tiled, soft_target, precision)
    prepared = plan.prepare()
    partial = plan.sweep(prepared, loss=temperature)
    lse = torch.zeros(4, len(f3), dtype=torch.float32, device=bank.device)
    parts, gradients = plan.combine(prepared, partial, lse)
    return parts, gradients, lse


def mc_bank_gradient(
    f1: Tensor | None,
    f2: Tensor | None,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor | None,
    lse: Tensor,
    weights: Tensor,
    temperature: float,
    tiled: bool,
    soft_target: bool,
    precision: str,
) -> Tensor:
    """sum_v weights[v] dL_v/dbank (K, D), from the ``lse`` of :func:`mc_forward` at the same temperature."""
    plan = Plan.of(f3, f1, f2, f3, bank, mixing, tiled, soft_target, precision)
    return plan.bank_gradient(plan.prepare(), lse, temperature, weights)


def bank_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    f1: Tensor,
    f2: Tensor,
    f3: Tensor,
    mixing: Tensor | None,
    temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    precision: str,
) -> None:
    """Eq. 7, in place; four launches."""
    plan = Plan.of(f0, f1, f2, f3, bank, mixing, tiled, True, precision)
    prepared = plan.prepare()
    lse = plan.log_sum_exps(plan.sweep(prepared, bank=temperature))
    with part("bank"), launching_on(bank.device, "bank"), contiguous(bank, momentum) as (w, v):
        plan.bank_step_(prepared, lse, temperature, Step(w, v, lr, momentum_factor, weight_decay))


def mc_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    f1: Tensor | None,
    f2: Tensor | None,
    f3: Tensor,
    mixing: Tensor | None,
    temperature: float,
    bank_temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    soft_target: bool,
    update: str,
    cursor: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """stats (6,) = loss, L1, L2, L3, top-1 count, mean probability of the positive; gradients (3, B, D). The bank
    steps ("ascent"), takes f0 ("fifo") or stays ("none"); it stays in any case where the loss is not finite."""
    plan = Plan.of(f0, f1, f2, f3, bank, mixing, tiled, soft_target, precision)
    prepared = plan.prepare()
    lse = plan.new(4, len(f3))
    partial = plan.sweep(prepared, loss=temperature, bank=bank_temperature)
    stats, gradients = plan.combine(prepared, partial, lse, dtype=f3.dtype)
    if update == "none":
        return stats, gradients
    with part("bank"), launching_on(bank.device, "bank"), contiguous(bank, momentum) as (w, v):
        if update == "ascent":
            step = Step(w, v, lr, momentum_factor, weight_decay, guard=stats)
            plan.bank_step_(prepared, lse, bank_temperature, step)
        else:
            assert cursor is not None
            plan.enqueue_(w, v, cursor, stats)
    return stats, gradients


@contextmanager
def contiguous(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The tensors, or contiguous copies that are written back: the kernels change rows that follow one another."""
    inner = [t.contiguous() for t in tensors]
    yield inner
    for tensor, copy in zip(tensors, inner, strict=True):
        if copy is not tensor:
            tensor.copy_(copy)
