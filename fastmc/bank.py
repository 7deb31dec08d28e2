"""The memory bank M_0: filled first-in-first-out, then learned by gradient ascent on the loss (eq. 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.checks import check_number
from fastmc.loss import check_contrast, check_mixing, choose, mc_loss, working_dtype
from fastmc.reference import bank as reference

COEFFICIENTS = (0.4, 0.3, 0.2, 0.1)
"""The paper's mixing coefficients lambda (section 4.2)."""


def bank_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    f1: Tensor,
    f2: Tensor,
    f3: Tensor,
    mixing: Tensor | float | None,
    *,
    temperature: float = 0.03,
    lr: float = 3.0,
    momentum_factor: float = 0.9,
    weight_decay: float = 1e-4,
    mix: str = "own",
    impl: str = "auto",
) -> None:
    """One ascent step of the bank on the MC loss (eq. 7), in place; the features are constants.

    With g = dL/dbank at this temperature: v = momentum_factor v - g + weight_decay bank; bank = bank - lr v. That is
    ``torch.optim.SGD([bank], lr, momentum_factor, weight_decay=weight_decay)`` on -L, from a velocity of zeros.

    Args:
        bank: (K, D) raw entries, float32 or float64; changed in place.
        momentum: (K, D) velocity v, shape, dtype and device of bank; changed in place.
        f0, f1, f2, f3, mixing, mix, impl: as for :func:`fastmc.loss.mc_loss`.
        temperature: tau of this step's loss, > 0.
        lr: beta of eq. 7, >= 0.
        momentum_factor: in [0, 1].
        weight_decay: >= 0.

    Raises:
        ValueError: an invalid input; the message names the argument.
        RuntimeError: ``impl="triton"`` cannot run; the message says why.
    """
    features = {"f0": f0, "f1": f1, "f2": f2, "f3": f3}
    check_contrast(features, bank, temperature)
    check_mixing(mixing, bank, mix)
    _check_update(bank, momentum, lr, momentum_factor, weight_decay)
    step = choose(_BANK_STEP, impl, bank.device)
    if isinstance(mixing, Tensor):
        mixing = mixing.detach().to(bank.dtype)
    constants = [f.detach().to(bank.dtype) for f in features.values()]
    with torch.no_grad(), torch.autocast(bank.device.type, enabled=False):
        step(
            bank,
            momentum,
            *constants,
            mixing,
            temperature=temperature,
            lr=lr,
            momentum_factor=momentum_factor,
            weight_decay=weight_decay,
            mix=mix,
        )


def _torch_bank_step_(
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
    mix: str,
) -> None:
    with torch.enable_grad():
        m = bank.detach().requires_grad_()
        loss = mc_loss(f0, f1, f2, f3, m, mixing, temperature=temperature, mix=mix, impl="torch")
        (gradient,) = torch.autograd.grad(loss, m)
    momentum.mul_(momentum_factor).sub_(gradient).add_(bank, alpha=weight_decay)
    bank.sub_(momentum, alpha=lr)


def _reference_bank_step_(bank: Tensor, momentum: Tensor, *batch: Any, **settings: Any) -> None:
    new_bank, new_momentum = reference.bank_step(bank, momentum, *batch, **settings)
    bank.copy_(new_bank)
    momentum.copy_(new_momentum)


# A fused implementation enters this table under "triton".
_BANK_STEP: dict[str, Callable[..., None]] = {"torch": _torch_bank_step_, "reference": _reference_bank_step_}


def _check_update(bank: Tensor, momentum: Tensor, lr: float, momentum_factor: float, weight_decay: float) -> None:
    if bank.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"bank must be float32 or float64, got {bank.dtype}: its updates are below half precision")
    for what in ("shape", "dtype", "device"):
        ours, theirs = getattr(momentum, what, None), getattr(bank, what)
        if ours != theirs:
            raise ValueError(f"momentum must have the bank's {what}, {theirs}; got {ours}")
    check_number("lr", lr, at_least=0)
    check_number("momentum_factor", momentum_factor, at_least=0, at_most=1)
    check_number("weight_decay", weight_decay, at_least=0)


class MemoryBank(nn.Module):
    """K entries of D elements and their velocity; all of its state is in buffers, so a checkpoint carries it.

    Attributes:
        entries: (K, D) raw rows of M_0; random unit rows at first.
        momentum: (K, D) velocity of the ascent, zeros at first.
        cursor: int64 scalar, the row that the next feature is written to.
        filled: int64 scalar, how many rows hold features, at most K.
    """

    entries: Tensor
    momentum: Tensor
    cursor: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int, *, generator: torch.Generator | None = None) -> None:
        """``size`` is K, ``dim`` is D; the entries are drawn on the CPU, so one seed gives one bank on any device."""
        super().__init__()
        for name, value in (("size", size), ("dim", dim)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
        entries = F.normalize(torch.randn(size, dim, generator=generator), dim=1)
        self.register_buffer("entries", entries)
        self.register_buffer("momentum", torch.zeros_like(entries))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @property
    def size(self) -> int:
        """K."""
        return len(self.entries)

    @property
    def is_full(self) -> bool:
        """Whether every row holds a feature. Waits for the device: ask while filling, not in every step."""
        return bool(self.filled == self.size)

    @torch.no_grad()
    def enqueue_(self, f0: Tensor) -> None:
        """Write f0 (B, D) over the oldest rows; of more than K features the last K stay. No host sync.

        A replaced row starts at rest: its velocity is zeroed. B need not divide K.

        Raises:
            ValueError: f0 is not (B, D) with B >= 1, or lies on another device.
        """
        if f0.dim() != 2 or len(f0) < 1 or f0.shape[1] != self.entries.shape[1]:
            raise ValueError(f"f0 must be (B, {self.entries.shape[1]}) with B >= 1, got {tuple(f0.shape)}")
        if f0.device != self.entries.device:
            raise ValueError(f"f0 is on {f0.device}, the bank is on {self.entries.device}")
        batch = len(f0)
        kept = f0.detach()[-self.size :].to(self.entries.dtype)
        skipped = batch - len(kept)
        rows = (self.cursor + skipped + torch.arange(len(kept), device=f0.device)) % self.size
        self.entries.index_copy_(0, rows, kept)
        self.momentum.index_fill_(0, rows, 0)
        self.cursor.add_(batch).remainder_(self.size)
        self.filled.add_(batch).clamp_(max=self.size)

    def step_(
        self, f0: Tensor, f1: Tensor, f2: Tensor, f3: Tensor, mixing: Tensor | float | None, **settings: Any
    ) -> None:
        """:func:`bank_step_` on this bank; ``settings`` are its keyword arguments."""
        bank_step_(self.entries, self.momentum, f0, f1, f2, f3, mixing, **settings)

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.entries.shape[1]}"


class ContrastMetrics(NamedTuple):
    """Means over a batch, scalars on the features' device."""

    top1: Tensor
    """Share of samples whose positive is more similar than every bank entry (a tie does not count)."""
    positive_probability: Tensor
    """psi(f, f0) of eq. 2."""


@torch.no_grad()
def contrast_metrics(f: Tensor, f0: Tensor, bank: Tensor, *, temperature: float = 0.07) -> ContrastMetrics:
    """How well f (B, D) finds its positive f0 (B, D) among the K entries of bank (K, D). No host sync.

    In a collapsed encoder all similarities are equal: top1 is then 0 and the probability 1/(K + 1).

    Raises:
        ValueError: an invalid input; the message names the argument.
    """
    check_contrast({"f": f, "f0": f0}, bank, temperature)
    dtype = working_dtype(f, f0, bank)
    f, f0, bank = f.to(dtype), f0.to(dtype), bank.to(dtype)
    with torch.autocast(bank.device.type, enabled=False):
        positive = (f * f0).sum(dim=1, keepdim=True)
        plain = f @ F.normalize(bank, dim=1, eps=1e-12).T
        psi = (torch.cat([positive, plain], dim=1) / temperature).softmax(dim=1)
    rounding = 8 * torch.finfo(dtype).eps  # of a similarity of unit rows: it must not decide a tie
    top1 = (positive[:, 0] > plain.amax(dim=1) + rounding).to(dtype)
    return ContrastMetrics(top1.mean(), psi[:, 0].mean())


def mixing_coefficients(
    size: int,
    policy: str = "cycle",
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """lambda of eq. 8 for each of ``size`` bank entries: (size,) float32.

    Policies:
        ``"cycle"``: four contiguous groups of entries, equal but for rounding, with 0.4, 0.3, 0.2 and 0.1. (Groups by
            i mod 4 would tie each sample to one coefficient under tiled mixing, where entry i meets sample i mod B.)
        ``"fixed:<lambda>"``, e.g. ``"fixed:0.3"``: one coefficient for all entries, in [0, 1].
        ``"draw"``: one of the four for all entries, drawn from ``generator``; call it once per step.

    Raises:
        ValueError: an unknown policy, or ``"draw"`` without a generator.
    """
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be an integer >= 1, got {size!r}")
    if policy == "cycle":
        return torch.tensor(COEFFICIENTS, device=device)[torch.arange(size, device=device) * len(COEFFICIENTS) // size]
    if policy == "draw":
        if generator is None:
            raise ValueError("generator: policy 'draw' needs one, so that a run can be repeated")
        drawn = torch.randint(len(COEFFICIENTS), (1,), generator=generator, device=generator.device)
        coefficients = torch.tensor(COEFFICIENTS, device=generator.device)
        return coefficients[drawn].to(device or generator.device).expand(size).contiguous()
    return torch.full((size,), _fixed_coefficient(policy), device=device)


def _fixed_coefficient(policy: str) -> float:
    name, _, value = policy.partition(":")
    try:
        coefficient = float(value)
    except ValueError:
        coefficient = -1.0
    if name != "fixed" or not 0 <= coefficient <= 1:
        raise ValueError(f"policy must be 'cycle', 'draw' or 'fixed:<lambda in [0, 1]>', got {policy!r}")
    return coefficient
