"""Equation 7: the bank climbs the loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastmc.reference.contrast import mc_loss


def bank_step(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    f1: Tensor,
    f2: Tensor,
    f3: Tensor,
    mixing: Tensor | float | None,
    *,
    temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    mix: str = "own",
) -> tuple[Tensor, Tensor]:
    """M_0 <- M_0 + beta dL/dM_0 (eq. 7) as one step of torch.optim.SGD on -L; returns the new (bank, momentum).

    bank and momentum (K, D) are not changed; a first step starts from a momentum of zeros. The gradient passes
    through the normalisation of the rows; weight decay and momentum act on the raw rows.
    """
    f0, f1, f2, f3 = f0.detach(), f1.detach(), f2.detach(), f3.detach()

    def loss(m: Tensor) -> Tensor:
        return mc_loss(f0, f1, f2, f3, m, mixing, temperature=temperature, mix=mix)

    return ascend(bank, momentum, loss, lr=lr, momentum_factor=momentum_factor, weight_decay=weight_decay)


def ascend(
    bank: Tensor,
    momentum: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
) -> tuple[Tensor, Tensor]:
    """The step of :func:`bank_step` on any ``loss`` of the raw bank."""
    m = torch.nn.Parameter(bank.detach().clone())
    optimizer = torch.optim.SGD([m], lr=lr, momentum=momentum_factor, weight_decay=weight_decay)
    optimizer.state[m]["momentum_buffer"] = momentum.detach().clone()
    with torch.enable_grad():
        (m.grad,) = torch.autograd.grad(-loss(m), m)
    optimizer.step()
    if momentum_factor == 0:  # SGD then keeps no velocity, but what it descended along is known
        return m.detach(), m.grad + weight_decay * bank.detach()
    return m.detach(), optimizer.state[m]["momentum_buffer"]
