"""The raw functions' truth: what fastmc.objective.chunked and kernels.mc must return, from the reference and
autograd."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmc.reference import bank as reference_bank
from fastmc.reference import contrast as reference

HYPER = {"lr": 2.0, "momentum_factor": 0.9, "weight_decay": 0.01}


@dataclass(frozen=True)
class Case:
    """One call. ``kind``: "mc", "unmixed" (no mixed entries), "one-hot" (InfoNCE of each view) or "alone" (of f3)."""

    f0: Tensor
    f1: Tensor
    f2: Tensor
    f3: Tensor
    bank: Tensor
    mixing: Tensor
    kind: str = "mc"
    tiled: bool = False
    temperature: float = 0.07
    bank_temperature: float = 0.03

    @classmethod
    def draw(
        cls, b: int, k: int, d: int, *, seed: int = 0, dtype: torch.dtype = torch.float64, **settings: Any
    ) -> Case:
        """Unit features, bank rows of many lengths, a coefficient per entry: the same numbers in any dtype."""
        generator = torch.Generator().manual_seed(seed)
        rows = F.normalize(torch.randn(4 * b + k, d, generator=generator), dim=1)
        lengths, mixing = 0.1 + 3 * torch.rand(k, 1, generator=generator), torch.rand(k, generator=generator)
        *features, bank = rows.split([b] * 4 + [k])
        return cls(*(t.to(dtype) for t in (*features, bank * lengths, mixing)), **settings)

    def to(self, dtype: torch.dtype) -> Case:
        names = ("f0", "f1", "f2", "f3", "bank", "mixing")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})

    @property
    def views(self) -> tuple[Tensor | None, Tensor | None, Tensor]:
        return (None, None, self.f3) if self.kind == "alone" else (self.f1, self.f2, self.f3)

    @property
    def coefficients(self) -> Tensor | None:
        return self.mixing if self.kind == "mc" else None

    @property
    def soft_target(self) -> bool:
        return self.kind in ("mc", "unmixed")

    def parts(self, f1: Tensor, f2: Tensor, f3: Tensor, bank: Tensor, temperature: float) -> Tensor:
        """(3,), differentiable."""
        mix, m0 = "tiled" if self.tiled else "own", reference.normalise(bank)
        if self.soft_target:
            setting: dict[str, Any] = {"temperature": temperature, "mix": mix}
            return torch.stack(reference.mc_loss_parts(self.f0, f1, f2, f3, bank, self.coefficients, **setting))
        losses = [reference.info_nce(f, self.f0, m0, temperature) for f in (f1, f2, f3)]
        return torch.stack(losses) * (torch.tensor([0, 0, 1]) if self.kind == "alone" else 1)


Results = dict[str, Tensor]


def forward_truth(case: Case, weights: Tensor) -> Results:
    """Parts, gradients of f1, f2, f3, and the bank's gradient of weights . parts."""
    leaves = [t.detach().requires_grad_() for t in (case.f1, case.f2, case.f3, case.bank)]
    parts = case.parts(*leaves, case.temperature)
    gradients = torch.autograd.grad(parts.sum(), leaves[:3], retain_graph=True)
    (bank,) = torch.autograd.grad(parts @ weights.to(parts), leaves[3])
    return {"parts": parts.detach(), "gradients": torch.stack(gradients), "bank": bank}


def forward_of(module: Any, case: Case, weights: Tensor, precision: str = "ieee") -> Results:
    """The same from ``module.mc_forward`` and ``module.mc_bank_gradient``."""
    setting = (case.temperature, case.tiled, case.soft_target, precision)
    parts, gradients, lse = module.mc_forward(case.f0, *case.views, case.bank, case.coefficients, *setting)
    weights = weights.to(case.bank)
    bank = module.mc_bank_gradient(*case.views, case.bank, case.coefficients, lse, weights, *setting)
    return {"parts": parts, "gradients": gradients, "bank": bank}


def velocity(case: Case) -> Tensor:
    """A momentum (K, D) to start from, of the size of the bank's rows."""
    return 0.1 * case.bank.flip(0)


def step_truth(case: Case, update: str, momentum: Tensor, cursor: int = 0) -> Results:
    """Everything that mc_step_ returns or changes."""
    found = forward_truth(case, torch.ones(3))
    m0, tau = reference.normalise(case.bank), case.bank_temperature
    similarity = case.f3 @ m0.T
    psi = reference.similarity_distribution(case.f3, case.f0, m0, tau)[:, 0]
    nearer = (case.f3 * case.f0).sum(dim=1) > similarity.amax(dim=1) + 8 * torch.finfo(case.f0.dtype).eps
    parts = found["parts"]
    stats = torch.stack([parts.sum(), *parts, nearer.sum().to(psi), psi.mean()])
    bank, momentum = case.bank.clone(), momentum.clone()
    if update == "ascent":
        mix = "tiled" if case.tiled else "own"
        features = (case.f0, case.f1, case.f2, case.f3, case.coefficients)
        bank, momentum = reference_bank.bank_step(bank, momentum, *features, temperature=tau, mix=mix, **HYPER)
    if update == "fifo":
        for feature in case.f0:
            row = cursor % len(bank)
            bank[row], momentum[row] = feature, 0
            cursor += 1
    return {
        "stats": stats, "gradients": found["gradients"], "bank": bank, "momentum": momentum,
        "cursor": torch.tensor(cursor),
    }  # fmt: skip


def step_of(
    module: Any, case: Case, update: str, momentum: Tensor, cursor: int = 0, precision: str = "ieee"
) -> Results:
    """The same from ``module.mc_step_``."""
    bank, momentum, place = case.bank.clone(), momentum.clone(), torch.tensor(cursor, device=case.bank.device)
    stats, gradients = module.mc_step_(
        bank,
        momentum,
        case.f0,
        *case.views,
        case.coefficients,
        case.temperature,
        case.bank_temperature,
        *HYPER.values(),
        case.tiled,
        case.soft_target,
        update,
        place,
        precision,
    )
    return {"stats": stats, "gradients": gradients, "bank": bank, "momentum": momentum, "cursor": place}


def assert_exact(ours: Results, truth: Results, bound: float = 1e-12) -> None:
    """Every element within ``bound`` of its output's scale; a row of the bank has its own scale."""
    assert ours.keys() == truth.keys()
    for name, want in truth.items():
        error, scale = (ours[name] - want).abs(), want.abs()
        by_row = name in ("bank", "momentum")
        scale = scale.amax(dim=1, keepdim=True) if by_row else scale.max()
        assert torch.isfinite(ours[name]).all(), f"{name} is not finite"
        assert (error <= bound * scale.clamp_min(1)).all(), f"{name}: error {error.max():.1e}"


def budget(plain: Results, truth: Results, temperature: float) -> dict[str, Tensor]:
    """What float32 may cost: twice the reference's own error in it, and 4 roundings of the largest logit, 1/tau."""
    ulps = 4 * torch.finfo(torch.float32).eps * max(1.0, 1 / temperature)
    return {n: 2 * (plain[n] - truth[n]).abs().max() + ulps * truth[n].abs().max() for n in truth}


def within(ours: Results, truth: Results, allowed: dict[str, Tensor]) -> dict[str, bool]:
    """By output, whether its largest error is within what is allowed."""
    return {name: bool((ours[name] - truth[name]).abs().max() <= allowed[name]) for name in truth}
