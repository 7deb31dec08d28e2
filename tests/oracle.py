"""The raw functions' truth: what fastmc.objective.chunked and kernels.mc must return, from the reference and
autograd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fastmc.contrast_table import A2MC, AIMCLR, B1, B2, B3, HICLR, Row, Table
from fastmc.objective import attention, chunked, cpp_passes
from fastmc.reference import bank as reference_bank
from fastmc.reference import contrast as reference

CROSSED = Table(
    (Row(0, 1), Row(1, 1, target=0, weight=0.5), Row(2, 3, target=4, weight=2.0), Row(3, 3, target=4), Row(1, 3)),
    measured=1,
)
"""Of four queries: partners other than themselves, weights, a row that is both student and target, two students of one
target."""
TABLES = {
    "mc": A2MC, "unmixed": B3, "one-hot": B2, "alone": B1, "aimclr": AIMCLR, "hiclr": HICLR, "crossed": CROSSED,
}  # fmt: skip
MINING = {
    "mining": AIMCLR.mining(),
    "mining three": HICLR.mining(3),
    "two mine": Table((Row(0, target=1), Row(1, weight=0.5, mined=2), Row(2, mined=2)), measured=1),
}
"""Tables without an ascent, so only :func:`step_of` takes them."""
DOTS = {
    "dots": replace(B2, unit=False),
    "dots of one": replace(B1, unit=False),
    "mixed dots": replace(A2MC, unit=False),
    "dots of aimclr": replace(AIMCLR, unit=False),
    "mining dots": replace(HICLR.mining(3), unit=False),
}
"""Of these too: the bank's rows enter as they are."""
MATCHING = {
    "matching": Table((Row(0, target=2), Row(1, target=2, weight=0.5), Row(2, target=2, weight=0.0)), 1, key=False),
    "matching dots": Table((Row(0, target=1), Row(1, target=0), Row(2, target=2)), 2, unit=False, key=False),
    "mixed matching": Table((Row(0, 0, 3), Row(1, 1, 1), Row(2, 2, 2, 2.0), Row(1, 0)), key=False),
}
"""Of these too: the key is no entry."""
LIFTING = {
    "lifting": MATCHING["matching"].lifting(3),
    "lifting one": Table((Row(0, target=2), Row(1, target=1, weight=2.0), Row(2, target=2)), key=False).lifting(1),
    "lifting apart": Table(
        (Row(0, target=4), Row(1, target=3), Row(2, target=0), Row(2, lifted=3), Row(0, lifted=3)), key=False
    ),
}
"""Of these too: entries of a target lie in its direction."""
MODULES = [chunked, cpp_passes]
SHAPES = [(1, 3, 1), (7, 130, 5), (65, 300, 16), (130, 33, 8), (64, 2100, 8), (3, 5001, 4)]
CUTS: dict[str, Any] = {"samples": st.integers(1, 9), "entries": st.integers(1, 20), "looking": st.booleans()}
"""Any :func:`cut`."""
WEIGHTS = torch.tensor([0.5, -2.0, 3.0, -0.7])
"""Upstream gradients of the losses."""
HYPER = {"lr": 2.0, "momentum_factor": 0.9, "weight_decay": 0.01}


@dataclass(frozen=True)
class Case:
    """One call. ``kind``: "mc", "unmixed" (no mixed entries), "one-hot" (InfoNCE of each view), "alone" (of f3), or
    another of TABLES, MINING, DOTS, MATCHING or LIFTING."""

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
    positives: int = 1

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
    def table(self) -> Table:
        return (TABLES | MINING | DOTS | MATCHING | LIFTING)[self.kind]

    @property
    def queries(self) -> list[Tensor]:
        if self.table.queries == 1:
            return [self.f3]
        return [self.f1, self.f2, self.f3, *([self.f1.flip(0)] if self.kind == "crossed" else [])]

    @property
    def key(self) -> Tensor:
        """f0, or (B, G, D) of so many positives."""
        return self.f0 if self.positives == 1 else torch.stack([self.f0.roll(g, 1) for g in range(self.positives)], 1)

    @property
    def lifted(self) -> Tensor | None:
        """(l, B, k) as the raw functions take them, by a stable sort."""
        if not self.table.lifted:
            return None
        m0, queries = reference.normalise(self.bank) if self.table.unit else self.bank, self.queries
        similar = torch.stack([queries[self.table.rows[i].query] @ m0.T for i in self.table.lifters])
        return similar.sort(dim=2, descending=True, stable=True).indices[:, :, : self.table.lifted]

    @property
    def coefficients(self) -> Tensor | None:
        return self.mixing if self.table.mixed else None

    def parts(self, queries: list[Tensor], bank: Tensor, temperature: float) -> Tensor:
        """(q,), differentiable: by the paper's equations where it has them."""
        setting: dict[str, Any] = {"temperature": temperature, "mix": "tiled" if self.tiled else "own"}
        if self.kind in ("mc", "unmixed"):
            return torch.stack(reference.mc_loss_parts(self.f0, *queries, bank, self.coefficients, **setting))
        if self.kind in ("one-hot", "alone") and self.positives == 1:
            m0 = reference.normalise(bank)
            return torch.stack([reference.info_nce(f, self.f0, m0, temperature) for f in queries])
        return reference.contrast_losses(self.key, queries, bank, self.table, self.coefficients, **setting)


Results = dict[str, Tensor]


def forward_truth(case: Case, weights: Tensor) -> Results:
    """Parts; the gradients of the queries, and the bank's of weights . parts, with parts weighted as in the table."""
    *leaves, bank = (t.detach().requires_grad_() for t in (*case.queries, case.bank))
    parts = case.parts(leaves, bank, case.temperature)
    loss = reference.contrast_loss(parts, case.table)
    gradients = torch.autograd.grad(loss, leaves, retain_graph=True)
    weighted = reference.contrast_loss(parts * weights[: len(parts)].to(parts), case.table)
    (bank,) = torch.autograd.grad(weighted, bank)
    return {"parts": parts.detach(), "gradients": torch.stack(gradients), "bank": bank}


def forward_of(module: Any, case: Case, weights: Tensor, precision: str = "ieee") -> Results:
    """The same from ``module.contrast_forward`` and ``module.contrast_bank_gradient``."""
    setting = (case.table, case.temperature, case.tiled, precision)
    parts, gradients, lse = module.contrast_forward(case.f0, case.queries, case.bank, case.coefficients, *setting)
    weights = weights[: len(parts)].to(case.bank)
    bank = module.contrast_bank_gradient(case.queries, case.bank, case.coefficients, lse, weights, *setting)
    return {"parts": parts, "gradients": gradients, "bank": bank}


def velocity(case: Case) -> Tensor:
    """A momentum (K, D) to start from, of the size of the bank's rows."""
    return 0.1 * case.bank.flip(0)


def step_truth(case: Case, update: str, momentum: Tensor, cursor: int = 0) -> Results:
    """Everything that contrast_step_ returns or changes."""
    found = forward_truth(case, torch.ones(4))
    m0, tau = reference.normalise(case.bank) if case.table.unit else case.bank, case.bank_temperature
    measured = case.queries[case.table.measured]
    similarity = measured @ m0.T
    psi = reference.similarity_distribution(measured, case.key, m0, tau)[:, : case.positives].sum(dim=1)
    keys = case.key.view(len(case.f0), -1, case.f0.shape[1])
    nearest = (measured.unsqueeze(1) * keys).sum(dim=2).amax(dim=1)
    scale = 1 if case.table.unit else measured.norm(dim=1) * keys.norm(dim=2).amax(dim=1)
    nearer = nearest > similarity.amax(dim=1) + 8 * torch.finfo(case.f0.dtype).eps * scale
    parts = found["parts"]
    loss = reference.contrast_loss(parts, case.table)
    stats = torch.stack([loss, *parts, nearer.sum().to(psi), psi.mean()])
    stats = F.pad(stats, (0, max(0, 6 - len(stats))))
    bank, momentum = case.bank.clone(), momentum.clone()
    if update == "ascent":

        def loss_of(bank: Tensor) -> Tensor:
            return reference.contrast_loss(case.parts(case.queries, bank, tau), case.table)

        bank, momentum = reference_bank.ascend(bank, momentum, loss_of, **HYPER)
    if update == "fifo":
        for feature in keys.flatten(0, 1):
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
    """The same from ``module.contrast_step_``."""
    bank, momentum, place = case.bank.clone(), momentum.clone(), torch.tensor(cursor, device=case.bank.device)
    stats, gradients = module.contrast_step_(
        bank,
        momentum,
        case.key,
        case.queries,
        case.coefficients,
        case.table,
        case.temperature,
        case.bank_temperature,
        *HYPER.values(),
        case.tiled,
        update,
        place,
        precision,
        case.lifted,
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


def assert_step(module: Any, case: Case, update: str = "fifo", bound: float = 1e-12) -> None:
    """A step of the case is exact, as :func:`assert_exact` has it."""
    ours, truth = step_of(module, case, update, velocity(case), 3), step_truth(case, update, velocity(case), 3)
    assert_exact(ours, truth, bound)


@contextmanager
def cut(looking: bool, samples: int = attention.SAMPLES, entries: int = attention.ENTRIES) -> Iterator[None]:
    """Within: blocks of so many samples, chunks of so many entries. ``looking``: whether values may decide, as on a
    CPU, or must not, as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SAMPLES", samples)
        patch.setattr(attention, "ENTRIES", entries)
        patch.setattr(chunked, "may_look", lambda tensor: looking)
        yield


def budget(plain: Results, truth: Results, temperature: float) -> dict[str, Tensor]:
    """What float32 may cost: twice the reference's own error in it, and 4 roundings of the largest logit, 1/tau."""
    ulps = 4 * torch.finfo(torch.float32).eps * max(1.0, 1 / temperature)
    return {n: 2 * (plain[n] - truth[n]).abs().max() + ulps * truth[n].abs().max() for n in truth}


def within(ours: Results, truth: Results, allowed: dict[str, Tensor]) -> dict[str, bool]:
    """By output, whether its largest error is within what is allowed."""
    return {name: bool((ours[name] - truth[name]).abs().max() <= allowed[name]) for name in truth}


def check_step_lengths(module: Any, lengths: tuple[float, float], case: Case) -> None:
    """A step at the first, a temperature, of features that are the second times longer, is exact too."""
    temperature, length = lengths
    case = replace(case, temperature=temperature)
    case = replace(case, **{name: length * getattr(case, name) for name in ("f0", "f1", "f2", "f3")})
    assert_step(module, case, "fifo", 1e-12 * max(1.0, length**2 / temperature / 100))  # as in check_lengths


def check_step_budget(module: Any, case: Case, coldest: float, **other: Any) -> dict[str, bool]:
    """A step in float32 keeps its budget at the ``coldest`` of its temperatures. By output, whether that of another
    case does, which differs as said."""
    truth, plain = (step_truth(c, "fifo", velocity(c)) for c in (case.to(torch.float64), case))
    allowed = budget(plain, truth, coldest)
    verdict = within(step_of(module, case, "fifo", velocity(case)), truth, allowed)
    assert all(verdict.values()), verdict
    return within(step_of(module, replace(case, **other), "none", velocity(case)), truth, allowed)


def matching_losses(
    f1: Tensor, f0: Tensor, bank: Tensor, *, temperature: float, target_temperature: float, mined: int = 0
) -> tuple[Tensor, Tensor]:
    """CPM's: cross-entropy of each student f1 to its target f0, and the entropy of the target (n,), of unit rows. The
    ``mined`` rows of the bank that are nearest to f0 have similarity 1 in the target."""
    similar = f0 @ bank.T
    similar = similar.scatter(1, similar.topk(mined, dim=1).indices, 1.0)
    target, student = (similar / target_temperature).log_softmax(1), (f1 @ bank.T / temperature).log_softmax(1)
    return -(target.exp() * student).sum(1), -(target.exp() * target).sum(1)


def check_lengths(module: Any, lengths: tuple[float, float], kind: str, tiled: bool) -> None:
    """Features so much longer than 1, at a temperature, are exact too."""
    temperature, length = lengths
    case = Case.draw(7, 45, 6, kind=kind, tiled=tiled, temperature=temperature)
    case = replace(case, **{name: length * getattr(case, name) for name in ("f0", "f1", "f2", "f3")})
    bound = 1e-12 * max(1.0, length**2 / temperature / 100)  # a rounding of a logit is one of its probability
    assert_exact(forward_of(module, case, WEIGHTS), forward_truth(case, WEIGHTS), bound)


def check_far_positives(module: Any, kind: str) -> None:
    """Positives beyond any exponential are exact too."""
    case = Case.draw(7, 45, 6, kind=kind)
    case = replace(case, f0=torch.linspace(-1000, 1000, 7).double().unsqueeze(1) * case.f0)
    assert_exact(forward_of(module, case, WEIGHTS), forward_truth(case, WEIGHTS), 1e-10)


def check_budget(module: Any, case: Case) -> None:
    """float32 keeps its budget, and an output with one wrong element does not."""
    truth, plain = forward_truth(case.to(torch.float64), WEIGHTS), forward_truth(case, WEIGHTS)
    allowed = budget(plain, truth, case.temperature)
    ours = forward_of(module, case, WEIGHTS)
    verdict = within(ours, truth, allowed)
    assert all(verdict.values()), verdict
    for name in truth:  # the budget is one that can be exceeded
        wrong = ours[name].clone()
        wrong.view(-1)[wrong.abs().argmax()] *= 1.01
        assert not within({**ours, name: wrong}, truth, allowed)[name], name
