"""The memory bank M_0: filled first-in-first-out, then learned by gradient ascent on the loss (eq. 7)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.arguments import (
    PRECISIONS,
    check_choice,
    check_contrast,
    check_mixing,
    check_update,
    convert_features,
    mixing_vector,
)
from fastmc.backends import CONTRAST, Need
from fastmc.objective.chunked import enqueue_
from fastmc.objective.contrast_step import MCStep, mc_step_
from fastmc.objective.loss import mc_table
from fastmc.objective.ops import update_
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
    precision: str = "bf16x3",
) -> None:
    """One ascent step of the bank on the MC loss (eq. 7), in place; the features are constants.

    With g = dL/dbank at this temperature: v = momentum_factor v - g + weight_decay bank; bank = bank - lr v. That is
    ``torch.optim.SGD([bank], lr, momentum_factor, weight_decay=weight_decay)`` on -L, from a velocity of zeros.

    Args:
        bank: (K, D) raw entries, float32 or float64; changed in place.
        momentum: (K, D) velocity v, shape, dtype and device of bank; changed in place.
        f0, f1, f2, f3, mixing, mix, impl, precision: as for :func:`fastmc.objective.loss.mc_loss`.
        temperature: tau of this step's loss, > 0.
        lr: beta of eq. 7, >= 0.
        momentum_factor: in [0, 1].
        weight_decay: >= 0.

    Raises:
        ValueError: an invalid input; the message names the argument.
        RuntimeError: ``impl`` cannot run; the message says why.
    """
    features = {"f0": f0, "f1": f1, "f2": f2, "f3": f3}
    check_contrast(features, bank, temperature)
    check_mixing(mixing, bank, mix)
    check_update(bank, momentum, lr, momentum_factor, weight_decay)
    check_choice("precision", precision, PRECISIONS)
    impl = CONTRAST.choose(impl, Need(bank.device, bank.dtype, bank.shape[1]))
    f0, f1, f2, f3 = convert_features(impl, [f.detach() for f in features.values()], bank.dtype)
    coefficients = mixing_vector(mixing, bank, bank.dtype)
    if impl != "reference":
        settings = (temperature, lr, momentum_factor, weight_decay, mix == "tiled", precision, impl)
        update_("bank_step_", bank, momentum, f0, [f1, f2, f3], coefficients, mc_table(mixing), *settings)
        return
    with torch.no_grad(), torch.autocast(bank.device.type, enabled=False):
        new_bank, new_momentum = reference.bank_step(
            bank,
            momentum,
            f0,
            f1,
            f2,
            f3,
            coefficients,
            temperature=temperature,
            lr=lr,
            momentum_factor=momentum_factor,
            weight_decay=weight_decay,
            mix=mix,
        )
        bank.copy_(new_bank)
        momentum.copy_(new_momentum)


class MemoryBank(nn.Module):
    """K entries of D elements and their velocity; all of its state is in buffers, so a checkpoint carries it.

    Attributes:
        entries: (K, D) raw rows of M_0; random unit rows at first.
        momentum: (K, D) velocity of the ascent, zeros at first.
        cursor: int64 scalar, features written first-in-first-out so far; the next goes to row cursor mod K.
    """

    entries: Tensor
    momentum: Tensor
    cursor: Tensor

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

    @property
    def size(self) -> int:
        """K."""
        return len(self.entries)

    @property
    def filled(self) -> Tensor:
        """How many rows hold features, an int64 scalar."""
        return self.cursor.clamp(max=self.size)

    @property
    def is_full(self) -> bool:
        """Whether every row holds a feature. Waits for the device: ask while filling, not in every step."""
        return bool(self.cursor >= self.size)

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
        enqueue_(self.entries, self.momentum, f0.detach(), self.cursor, torch.ones_like(self.cursor, dtype=torch.bool))

    def step_(
        self, f0: Tensor, f1: Tensor, f2: Tensor, f3: Tensor, mixing: Tensor | float | None, **settings: Any
    ) -> None:
        """:func:`bank_step_` on this bank; ``settings`` are its keyword arguments."""
        bank_step_(self.entries, self.momentum, f0, f1, f2, f3, mixing, **settings)

    @torch.no_grad()
    def mc_step_(
        self,
        f0: Tensor,
        f1: Tensor | None,
        f2: Tensor | None,
        f3: Tensor,
        mixing: Tensor | float | None,
        *,
        update: str = "ascent",
        **settings: Any,
    ) -> MCStep:
        """:func:`fastmc.objective.contrast_step.mc_step_` on this bank and its cursor; ``settings`` are its other
        keyword arguments."""
        return mc_step_(
            self.entries, self.momentum, f0, f1, f2, f3, mixing, update=update, cursor=self.cursor, **settings
        )

    def extra_repr(self) -> str:
        return f"size={self.size}, dim={self.entries.shape[1]}"


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
