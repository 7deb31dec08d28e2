"""The attack of section 3.2: one Adam step on the skeletons towards a uniform class distribution (eq. 5, 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastmc.augment import present_bodies
from fastmc.checks import check_number

ADAM_EPSILON = 1e-8  # torch.optim.Adam's


@dataclass(frozen=True)
class AttackConfig:
    """Settings of paper section 4.2."""

    attack_lr: float = 0.1
    """epsilon, the learning rate of the one Adam step."""
    attack_norm: float = 0.5
    """eta, the largest L2 norm of the perturbation of a clip, metres."""
    attack_classes: int = 128
    """C, the outputs of the fixed random fully-connected layer."""

    def __post_init__(self) -> None:
        for name in ("attack_lr", "attack_norm", "attack_classes"):
            check_number(name, getattr(self, name), above=0)


class AttackHead(nn.Linear):
    """The fixed random layer FC of eq. 5: representations (B, H) to C logits. It is never trained."""

    def __init__(self, representation_dim: int, classes: int) -> None:
        super().__init__(representation_dim, classes)
        self.requires_grad_(False)


def attack_loss(logits: Tensor) -> Tensor:
    """Eq. 5: MSE of softmax(logits) and 1/C, per clip: (B, C) to (B,)."""
    return (logits.softmax(dim=-1) - 1.0 / logits.shape[-1]).square().mean(dim=-1)


def attack(x: Tensor, classify: Callable[[Tensor], Tensor], config: AttackConfig) -> Tensor:
    """Eq. 6: the attacked clips x + rho.

    The first step of Adam from a zero state is -epsilon * g / (|g| + 1e-8), then rho is scaled to norm at most eta.
    Clips do not influence each other as long as ``classify`` treats them one by one: see `Encoder.fixed`.

    Args:
        x: joint coordinates (B, T, M, V, 3); a missing body is zero and stays zero.
        classify: clips (B, T, M, V, 3) to class logits (B, C), differentiable.

    Returns:
        A constant (B, T, M, V, 3).
    """
    clean = x.detach()
    with torch.enable_grad():
        variable = clean.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(attack_loss(classify(variable)).sum(), variable)
    gradient = gradient * present_bodies(clean)
    rho = -config.attack_lr * gradient / (gradient.abs() + ADAM_EPSILON)
    norm = rho.flatten(1).norm(dim=1).clamp_min(config.attack_norm)
    return clean + rho * (config.attack_norm / norm)[:, None, None, None, None]
