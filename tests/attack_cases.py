"""What the two pieces of the attack are held against, whoever computes them: clips, gradients, truth and budgets.

``pieces`` below is `fastmc.methods.attack` or `kernels.attack`: a module with logit_gradient and limited_step.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from fastmc.reference import attack as reference

LR, LIMIT = 0.1, 0.5  # epsilon and eta of section 4.2

# Roundings, each at most U of the value, or twice that where a GPU's approximate instruction is off by an ulp.
U = 2.0**-24
DIVISION, ROOT, EXPONENTIAL = 4, 2, 4
SUM = 32 + 5 + 4 + 8  # additions that an element goes through: in a thread, a warp, 16 warps, and parts of a long clip
LENGTH = (SUM + 1) / 2 + ROOT  # the root halves what the squares and their sum are off by
SCALE = LENGTH + DIVISION + 2  # and the two settings are float32 too
RHO = SCALE + DIVISION + 3  # of an element: |g| + 1e-8, 1e-8 itself, their division, the product
NORM = SCALE + 1  # of the whole: its direction cancels out


def draw(
    batch: int, frames: int, joints: int, bodies: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """x and a gradient, (batch, frames, joints * bodies * 3). The second clip has one body, the third lacks its last
    body in the first half, the fourth lacks all in its first frame; the others have some joints in the origin."""
    generator = torch.Generator().manual_seed(frames + joints)
    x = torch.randn(batch, frames, joints, bodies, 3, generator=generator)
    gradient = torch.randn(x.shape, generator=generator) * 10.0 ** torch.randint(-12, 2, x.shape, generator=generator)
    x[:1, :, 0] = 0
    x[1:2, :, :, 1:] = 0
    x[2:3, : (frames + 1) // 2, :, -1] = 0
    x[3:4, 0] = 0
    return x.flatten(2).to(dtype), gradient.flatten(2).to(dtype)


def present(x: Tensor, bodies: int) -> Tensor:
    """Bool (B, T, V * bodies * 3), said with loops."""
    there = torch.zeros(*x.shape[:2], x.shape[2] // (3 * bodies), bodies, 3, dtype=torch.bool)
    by_body = x.view(there.shape)
    for body in range(bodies):
        for frame in range(x.shape[1]):
            here = (by_body[:, frame, :, body] != 0).flatten(1).any(dim=1)
            there[:, frame, :, body] = here[:, None, None]
    return there.view(x.shape)


def true_rho(x: Tensor, gradient: Tensor, bodies: int, lr: float = LR, limit: float = LIMIT) -> Tensor:
    """By torch.optim.Adam and the reference's norm limit, in float64."""
    rho = torch.zeros_like(x, dtype=torch.float64).requires_grad_()
    rho.grad = torch.where(present(x, bodies), gradient.double(), 0.0)
    torch.optim.Adam([rho], lr=lr, eps=1e-8).step()
    return reference.limit_norm(rho.detach(), limit)


def step_budget(x: Tensor, rho: Tensor) -> Tensor:
    """How far float32 may be from x + rho: its roundings of rho, one of the sum, one to the dtype of x. A GPU may take
    gradients below 2^-126 as 0, which Adam's 1e-8 divides."""
    attacked = (x.double() + rho).abs() * (1 + 2 * RHO * U)
    return RHO * U * rho.abs() + U * attacked + to_dtype(attacked, x.dtype) + 2.0**-126 / 1e-8


def to_dtype(value: Tensor, dtype: torch.dtype) -> Tensor:
    """What a float32 result of that magnitude loses when it is rounded to ``dtype``."""
    if dtype == torch.float32:
        return torch.zeros_like(value)
    info = torch.finfo(dtype)
    return value.abs().clamp_min(info.smallest_normal) * (info.eps / 2)


def step_errors(x: Tensor, gradient: Tensor, bodies: int, attacked: Tensor, **settings: float) -> list[int]:
    """Indices of the elements of ``attacked`` that are over budget, or finite where the truth is not."""
    rho = true_rho(x, gradient, bodies, **settings)
    within = ((attacked.double() - (x.double() + rho)).abs() <= step_budget(x, rho)) | (rho.isnan() & attacked.isnan())
    return torch.nonzero(~within.flatten()).flatten().tolist()


def assert_step(pieces: ModuleType, x: Tensor, gradient: Tensor, bodies: int, **settings: float) -> Tensor:
    """x_hat of the pieces, within the budget; missing bodies untouched, in the dtype of x."""
    attacked = pieces.limited_step(x, gradient, bodies, settings.get("lr", LR), settings.get("limit", LIMIT))
    assert attacked.dtype == x.dtype and attacked.shape == x.shape
    assert not step_errors(x, gradient, bodies, attacked, **settings)
    assert (attacked[~present(x, bodies)] == 0).all()
    return attacked


def one_element(gradient: Tensor) -> None:
    value = gradient[:, 0, 0].clone()
    gradient.zero_()
    gradient[:, 0, 0] = value


def not_finite(gradient: Tensor) -> None:
    gradient[0, 0, 0] = float("nan")
    gradient[1, 0, -1] = float("inf")  # of the body that the second clip lacks, where there are several
    gradient[2, -1, -1] = -float("inf")


HOSTILE: dict[str, Callable[[Tensor], object]] = {
    "zero": lambda g: g.zero_(),
    "zero in one clip": lambda g: g[0].zero_(),
    "one element": one_element,
    "huge": lambda g: g.copy_(g.sign() * 3e38),
    "below what float32 keeps normal": lambda g: g.copy_(g.sign() * 1e-40),
    "as small as Adam's epsilon": lambda g: g.copy_(g.sign() * 1e-8),
    "from tiny to huge": lambda g: g.copy_(g.sign() * torch.logspace(-44, 38, g.shape[-1])),
    "not finite": not_finite,
}
FINITE = [name for name in HOSTILE if name != "not finite"]


def norms(x: Tensor, attacked: Tensor) -> Tensor:
    """||x_hat - x|| of every clip, in float64."""
    return (attacked.double() - x.double()).flatten(1).norm(dim=1)


def assert_norm_limit(pieces: ModuleType, gradient: Tensor, bodies: int, limit: float) -> Tensor:
    """||rho|| <= eta of every clip, and norms (B,). Of clips so near the origin that x + rho rounds nothing of rho away
    (2^-100 of its largest element); the budget of roundings is ``NORM``, some 34 ulp and so 2e-6 eta."""
    x = torch.full_like(gradient, 2.0**-126)
    found = norms(x, pieces.limited_step(x, gradient, bodies, LR, limit))
    assert (found <= limit * (1 + NORM * U)).all(), found / limit - 1
    return found


def logits_of(name: str) -> Tensor:
    """(B, C) in float32."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 128, generator=generator)
    return {
        "unit": logits,
        "nearly uniform": logits * 1e-3,
        "uniform": torch.zeros(3, 16),
        "peaked": logits * 30,
        "one of them takes all": torch.eye(4, 32) * 1e4,
        "huge": logits * 1e37,
        "two classes": logits[:, :2].contiguous(),
        "one class": logits[:, :1].contiguous(),
        "classes no power of two": logits[:, :77],
        "many classes": torch.randn(2, 3000, generator=generator),
    }[name]


LOGITS = ("unit", "nearly uniform", "uniform", "peaked", "one of them takes all", "huge", "two classes", "one class",
          "classes no power of two", "many classes")  # fmt: skip


def true_logit_gradient(logits: Tensor) -> Tensor:
    """By autograd through the reference's loss, in float64."""
    leaf = logits.double().requires_grad_()
    reference.attack_loss(leaf, lambda x: x, lambda x: x).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def logit_budget(logits: Tensor) -> Tensor:
    """Roundings of 2/C p (p - s), s = sum p^2, to first order: what p is off by, in it and in s, and the products."""
    below = logits.double().max(dim=1, keepdim=True).values - logits.double()
    p = (-below).exp()
    p = p / p.sum(dim=1, keepdim=True)
    s = p.square().sum(dim=1, keepdim=True)
    p_error = 3 * below + EXPONENTIAL + SUM + DIVISION  # in U of p: the difference and log2(e) before the exponential
    p_error = p * (p_error + (p * p_error).sum(dim=1, keepdim=True))
    s_error = 2 * (p * p_error).sum(dim=1, keepdim=True) + SUM * s
    centred = (p - s).abs()
    error = p_error * centred + p * (p_error + s_error) + 3 * p * centred
    scale = 2 / logits.shape[1]
    return scale * error * U + to_dtype(scale * p * centred, logits.dtype) + 2.0**-120


def assert_logit_gradient(pieces: ModuleType, logits: Tensor) -> None:
    found, truth = pieces.logit_gradient(logits), true_logit_gradient(logits)
    assert found.dtype == logits.dtype and found.shape == logits.shape
    assert ((found.double() - truth).abs() <= logit_budget(logits)).all()
