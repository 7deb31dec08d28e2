"""Equations 5 and 6: the targeted semantic attack."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Net = Callable[[Tensor], Tensor]


def attack_loss(x: Tensor, encoder: Net, fc: Net) -> Tensor:
    """L_at = MSE(f_a - 1/C) (eq. 5) of every sequence, (B,); f_a = softmax(FC(encoder(x))) is (B, C).

    The mean runs over the C classes of one sequence, never over the batch.
    """
    f_a = torch.softmax(fc(encoder(x)), dim=1)
    return (f_a - 1 / f_a.shape[1]).square().mean(dim=1)


def attack(
    x: Tensor, encoder: Net, fc: Net, *, eps: float = 0.1, eta: float = 0.5, present: Tensor | None = None
) -> Tensor:
    """x_hat = x + rho, rho = eps Phi(dL_at/dx, x), |rho|_2 <= eta per sequence (eq. 6).

    Phi is one step of torch.optim.Adam from a zero state, so before the scaling an element of rho is
    -eps g / (|g| + 1e-8). The losses are summed over the batch: a mean would shrink g by 1/B, and Adam's 1e-8 would
    then make a sequence's rho depend on how many others are attacked with it.

    Args:
        x: (B, ...) sequences, in metres.
        encoder: maps x to (B, D); its parameters get no gradient.
        fc: the fixed random layer, (B, D) to (B, C).
        eps: step size, metres.
        eta: largest L2 norm of one sequence's perturbation; a shorter rho is not scaled up.
        present: bool, broadcastable to x; False where a body is missing. Such joints stay exactly what they are.

    Returns:
        x_hat, the shape of x, without gradient.
    """
    x = x.detach()
    rho = torch.zeros_like(x).requires_grad_()
    adam = torch.optim.Adam([rho], lr=eps, eps=1e-8)
    with torch.enable_grad():
        (rho.grad,) = torch.autograd.grad(attack_loss(x + rho, encoder, fc).sum(), rho)
    if present is not None:
        rho.grad = rho.grad * present
    adam.step()
    return x + limit_norm(rho.detach(), eta)


def limit_norm(rho: Tensor, eta: float) -> Tensor:
    """rho (B, ...), with every sequence that is longer than eta scaled down to an L2 norm of eta."""
    norm = rho.flatten(1).norm(dim=1).view(-1, *[1] * (rho.dim() - 1))
    return rho * torch.where(norm > eta, eta / norm, 1.0)
