"""The attack of section 3.2: one Adam step on the skeletons towards a uniform class distribution (eq. 5, 6).

Two functions surround the encoder's two passes: :func:`logit_gradient`, where the backward pass begins, and
:func:`limited_step`, which turns the gradient into the attacked clips. `kernels.attack` has both as one launch each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastmc.arguments import working_dtype
from fastmc.backends import ATTACK, Need
from fastmc.derivatives import gradient_to
from fastmc.reference import attack as reference
from fastmc.views.layout import present_bodies

ADAM_EPSILON = 1e-8  # torch.optim.Adam's
Classify = Callable[[Tensor], Tensor]


class AttackHead(nn.Linear):
    """The fixed random layer FC of eq. 5: representations (B, H) to C logits. It is never trained."""

    def __init__(self, representation_dim: int, classes: int) -> None:
        super().__init__(representation_dim, classes)
        self.requires_grad_(False)


def attack(
    x: Tensor, classify: Classify, *, bodies: int, lr: float = 0.1, limit: float = 0.5, impl: str = "auto"
) -> Tensor:
    """Eq. 6: the attacked clips x_hat = x + rho.

    The first step of Adam from a zero state is -epsilon * g / (|g| + 1e-8), then rho is scaled to norm at most eta.
    Clips do not influence each other as long as ``classify`` treats them one by one: see `Encoder.fixed`. A gradient
    that is not finite spoils its own clip.

    Only the gradient with respect to x is computed, even where the weights that ``classify`` uses require theirs:
    autograd leaves out what does not lead to x, and asks cuDNN for that output alone.

    Args:
        x: joint coordinates in encoder layout (B, T, V * M * 3); a missing body, all zero in a frame, stays zero and
            its gradient counts nowhere.
        classify: clips (B, T, V * M * 3) to class logits (B, C), differentiable.
        bodies: M.
        lr: epsilon of eq. 6, the learning rate. limit: eta, the largest norm of a clip's rho, metres.
        impl: "auto", "triton", "torch" or "reference": who computes what surrounds ``classify``.

    Returns:
        A constant (B, T, V * M * 3) in the dtype of x.

    Raises:
        ValueError: x has another shape, or more bodies than the kernels take.
        RuntimeError: ``impl`` cannot run.
    """
    if x.dim() != 3 or bodies < 1 or x.shape[-1] % (3 * bodies):
        raise ValueError(f"x must be (B, T, V * {bodies} * 3), got {tuple(x.shape)}")
    impl = ATTACK.choose(impl, Need(x.device, x.dtype))
    x = x.detach()
    if impl == "reference":
        by_body = _by_body(x, bodies)
        present = present_bodies(by_body).expand_as(by_body).flatten(2)
        return reference.attack(x, classify, lambda logits: logits, eps=lr, eta=limit, present=present)
    with torch.enable_grad():
        variable = x.detach().requires_grad_()
        logits = classify(variable)
    of_logits = ATTACK.call(impl, "logit_gradient", x.device, logits.detach())
    gradient = gradient_to(variable, [logits], [of_logits])
    return ATTACK.call(impl, "limited_step", x.device, x, gradient, bodies, lr, limit)


def logit_gradient(logits: Tensor) -> Tensor:
    """dL_at/dlogits (B, C) of the summed losses of eq. 5: 2/C p (p - |p|^2) with p = softmax(logits), since
    dL_at/dp = 2/C (p - 1/C) and the softmax takes the mean under p off it."""
    p = logits.to(working_dtype(logits)).softmax(dim=-1)
    centred = p - p.square().sum(dim=-1, keepdim=True)
    return centred.mul_(p).mul_(2 / p.shape[-1]).to(logits.dtype)


def limited_step(x: Tensor, gradient: Tensor, bodies: int, lr: float, limit: float) -> Tensor:
    """x_hat (B, T, V * M * 3) of eq. 6 from the gradient of the loss; arguments as in :func:`attack`.

    A length that is no number limits nothing, as in the reference: its clip is spoilt in any case.
    """
    gradient = gradient.to(working_dtype(x, gradient))
    direction = gradient.abs().add_(ADAM_EPSILON)
    torch.div(gradient, direction, out=direction)
    # Filled, since a product would keep what is not finite; in runs of M * 3, which a CPU does faster than runs of 3.
    missing = ~present_bodies(_by_body(x, bodies)).expand(-1, -1, -1, -1, 3).flatten(3)
    direction.unflatten(2, (-1, bodies * 3)).masked_fill_(missing, 0)
    # Frames first: float32 partial sums stay short.
    length = torch.linalg.vector_norm(direction, dim=2).norm(dim=1)
    scale = torch.where(lr * length > limit, limit / length, lr)
    return torch.addcmul(x.to(direction.dtype), direction, scale[:, None, None], value=-1).to(x.dtype)


def _by_body(x: Tensor, bodies: int) -> Tensor:
    """(B, T, V * M * 3) as (B, T, V, M, 3)."""
    return x.unflatten(2, (-1, bodies, 3))
