"""The same work by every provider: what is measured, and against what.

Work ``loss`` is the MC loss with its gradients to f1, f2, f3; ``step`` is that and the bank's ascent (eq. 7) at its own
temperature. ``bind`` ties a provider to tensors; the call it gives returns (loss, df1, df2, df3) and, for ``step``,
changes bank and momentum in place.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

import fastmc
from fastmc.backends import CONTRAST, Need
from fastmc.objective.bank import mixing_coefficients
from fastmc.reference import bank as reference_bank
from fastmc.reference import contrast as reference
from kernels import cpu

Work = Literal["loss", "step"]
Mix = Literal["own", "tiled"]
MIXES: tuple[Mix, ...] = ("own", "tiled")
Outputs = tuple[Tensor, ...]
Call = Callable[[], Outputs]
Loss = Callable[..., Tensor]
Ascend = Callable[..., None]

TEMPERATURE = 0.07
ASCENT: dict[str, Any] = {"temperature": 0.03, "lr": 3.0, "momentum_factor": 0.9, "weight_decay": 1e-4}


@dataclass(frozen=True)
class Case:
    """One piece of work; by default the product's: section 4.2 of the paper."""

    work: Work = "step"
    """loss: loss and gradients of f1, f2, f3. step: that and the update of the bank."""
    mix: Mix = "own"
    """How a mixed bank is made, see fastmc.mc_loss."""
    batch: int = 64
    """B, samples."""
    bank: int = 16384
    """K, bank entries."""
    dim: int = 128
    """D, elements of a feature."""

    def __post_init__(self) -> None:
        for name in ("batch", "bank", "dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def __str__(self) -> str:
        return f"{self.work}, {self.mix} mixing, B = {self.batch}, K = {self.bank:,}, D = {self.dim}"


@dataclass(frozen=True)
class Inputs:
    """f0..f3 (B, D) unit rows, bank and momentum (K, D), mixing (K,): what a call reads and, for a step, changes."""

    f0: Tensor
    f1: Tensor
    f2: Tensor
    f3: Tensor
    bank: Tensor
    momentum: Tensor
    mixing: Tensor

    @property
    def features(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.f0, self.f1, self.f2, self.f3

    def to(self, device: torch.device | str, dtype: torch.dtype) -> Inputs:
        """A copy that shares nothing with these."""
        return Inputs(**{name: tensor.to(device, dtype, copy=True) for name, tensor in vars(self).items()})


def draw(case: Case, seed: int = 0) -> Inputs:
    """Float32 numbers on the CPU as a run meets them: views of one clip are alike, no bank row has unit length, and
    the velocity is of the size of a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    key = F.normalize(noise(case.batch, case.dim), dim=1)
    f1, f2, f3 = (F.normalize(key + noise(*key.shape) / math.sqrt(case.dim), dim=1) for _ in range(3))
    bank = F.normalize(noise(case.bank, case.dim), dim=1) * (0.5 + torch.rand(case.bank, 1, generator=generator))
    momentum = noise(case.bank, case.dim) / case.bank
    return Inputs(key, f1, f2, f3, bank, momentum, mixing_coefficients(case.bank))


def algebraic_loss(
    f0: Tensor,
    f1: Tensor,
    f2: Tensor,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor,
    *,
    temperature: float,
    mix: str,
) -> Tensor:
    """The MC loss as good PyTorch writes it: no mixed bank, gradients by autograd; memory O(BK).

    u.(lambda v + (1 - lambda) m_i) = lambda u.v + (1 - lambda) u.m_i, so the product of the features with the plain
    bank holds every logit.
    """
    p1, p2, p3 = ((f * f0).sum(dim=1, keepdim=True) for f in (f1, f2, f3))
    s1, s2, s3 = (torch.cat([f1, f2, f3]) @ F.normalize(bank, dim=1, eps=1e-12).T).chunk(3)

    def logits(positive: Tensor, plain: Tensor, u: Tensor, v: Tensor) -> Tensor:
        if mix == "own":
            crossed = (u * v.detach()).sum(dim=1, keepdim=True)
        else:
            repeats = math.ceil(len(bank) / len(v))
            crossed = (u @ v.detach().T).repeat(1, repeats)[:, : len(bank)]
        return torch.cat([positive, plain, mixing * crossed + (1 - mixing) * plain], dim=1) / temperature

    with torch.no_grad():
        target = logits(p3, s3, f3, f2).softmax(dim=1)
    l1 = -logits(p1, s1, f1, f1).log_softmax(dim=1)[:, 0].mean()
    l2 = -(target * logits(p2, s2, f2, f2).log_softmax(dim=1)).sum(dim=1).mean()
    l3 = -logits(p3, s3, f3, f3).log_softmax(dim=1)[:, 0].mean()
    return l1 + l2 + l3


def ascend_(bank: Tensor, momentum: Tensor, gradient: Tensor, lr: float, factor: float, decay: float) -> None:
    """Eq. 7 from the gradient dL/dbank, in place."""
    momentum.mul_(factor).sub_(gradient).add_(bank, alpha=decay)
    bank.sub_(momentum, alpha=lr)


def autograd_step_(loss: Loss, ascend: Ascend, x: Inputs, mix: str) -> None:
    """The bank's step with the gradient that autograd finds through ``loss``."""
    leaf = x.bank.detach().requires_grad_()
    value = loss(*x.features, leaf, x.mixing, temperature=ASCENT["temperature"], mix=mix)
    (gradient,) = torch.autograd.grad(value, leaf)
    ascend(x.bank, x.momentum, gradient, ASCENT["lr"], ASCENT["momentum_factor"], ASCENT["weight_decay"])


def loss_and_gradients(loss: Loss, x: Inputs, mix: str) -> Outputs:
    """Loss and df1, df2, df3, by autograd."""
    queries = [f.detach().requires_grad_() for f in (x.f1, x.f2, x.f3)]
    value = loss(x.f0, *queries, x.bank, x.mixing, temperature=TEMPERATURE, mix=mix)
    return value.detach(), *torch.autograd.grad(value, queries)


def _bind_reference(case: Case, x: Inputs) -> Call:
    def call() -> Outputs:
        outputs = loss_and_gradients(reference.mc_loss, x, case.mix)
        if case.work == "step":
            new = reference_bank.bank_step(x.bank, x.momentum, *x.features, x.mixing, **ASCENT, mix=case.mix)
            x.bank.copy_(new[0])
            x.momentum.copy_(new[1])
        return outputs

    return call


def _bind_algebraic(case: Case, x: Inputs, loss: Loss = algebraic_loss, ascend: Ascend = ascend_) -> Call:
    def call() -> Outputs:
        outputs = loss_and_gradients(loss, x, case.mix)
        if case.work == "step":
            autograd_step_(loss, ascend, x, case.mix)
        return outputs

    return call


def _bind_compiled(case: Case, x: Inputs) -> Call:
    torch._dynamo.reset()  # else the shapes of earlier cases count against the limit of recompilations
    return _bind_algebraic(case, x, torch.compile(algebraic_loss, dynamic=False), torch.compile(ascend_, dynamic=False))


def _bind_fastmc(impl: str) -> Callable[[Case, Inputs], Call]:
    def loss(*args: Any, **settings: Any) -> Tensor:
        return fastmc.mc_loss(*args, **settings, impl=impl)

    def bind(case: Case, x: Inputs) -> Call:
        if case.work == "loss":
            return lambda: loss_and_gradients(loss, x, case.mix)
        settings = {**ASCENT, "temperature": TEMPERATURE, "bank_temperature": ASCENT["temperature"]}

        def call() -> Outputs:
            out = fastmc.mc_step_(x.bank, x.momentum, *x.features, x.mixing, **settings, mix=case.mix, impl=impl)
            return (out.loss, *(gradient for gradient in (out.df1, out.df2, out.df3) if gradient is not None))

        return call

    return bind


def _bind_cpp(case: Case, x: Inputs) -> Call:
    """As a training step on a CPU calls it."""
    return cpu.one_thread_for_operators()(_bind_fastmc("cpp")(case, x))


def _bind_products(case: Case, x: Inputs) -> Call:
    """S^T = m F^T, then G m and, for a step, G^T F, with S in the place of G and F = [f1; f2; f3].

    The arrays of 3BK elements lie as (K, 3B): of the forms that torch offers, MKL is fastest at this one.
    """
    m, stacked = x.bank, torch.cat([x.f1, x.f2, x.f3])
    transposed = stacked.T.contiguous()
    s = m.new_zeros(case.bank, len(stacked))
    keys, rows = torch.zeros_like(stacked), torch.zeros_like(m)

    def call() -> Outputs:
        torch.mm(m, transposed, out=s)
        torch.mm(s.T, m, out=keys)
        if case.work == "step":
            torch.mm(s, stacked, out=rows)
        return s, keys, rows

    return call


def _always(device: torch.device) -> str | None:
    return None


def _mixed_banks(case: Case) -> int:
    """The doubled bank of every view, per sample or once, and one gradient of that size; as measured."""
    return 7 * case.batch * case.bank * case.dim if case.mix == "own" else 17 * case.bank * case.dim


def _few(case: Case) -> int:
    return 0


def _why_not_compiled(device: torch.device) -> str | None:
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++"))):
        return "torch.compile needs a C++ compiler for a CPU, and none is here"
    return None


def _why_not(impl: str) -> Callable[[torch.device], str | None]:
    def why_not(device: torch.device) -> str | None:
        if impl == "triton" and device.type != "cuda":
            return "the Triton kernels are for a GPU; on a CPU they can only be interpreted"
        return CONTRAST.why_not(impl, Need(device))

    return why_not


@dataclass(frozen=True)
class Provider:
    """One way to do the work, what it needs, and how exact it has to be."""

    name: str
    says: str
    bind: Callable[[Case, Inputs], Call]
    unavailable: Callable[[torch.device], str | None] = _always
    """Why it cannot run there, as the end of a sentence; None if it can."""
    peak_elements: Callable[[Case], int] = _few
    """Estimate of the float32 numbers that are alive at the peak of a call, where they are many: decides what fits."""
    rounding: float = torch.finfo(torch.float32).eps
    """Relative rounding of its products."""
    gated: bool = True
    """Its outputs are those of the work. The floor has none to check."""
    compiles: bool = False
    """Its first call compiles; that time is reported apart."""

    def fits(self, case: Case, limit_gb: float) -> str | None:
        """Why a call would exceed the limit of memory; None if it does not."""
        needed = 4e-9 * self.peak_elements(case)
        return None if needed <= limit_gb else f"needs about {needed:.0f} GB, the limit is {limit_gb:g} GB"


# Two bfloat16 mantissas of 8 bits, a bit for the product that is left out: bf16x3, the default precision.
SPLIT_ROUNDING = 2.0**-15

PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("reference", "plain reference, autograd", _bind_reference, peak_elements=_mixed_banks),
        Provider("algebraic", "algebraic PyTorch, autograd", _bind_algebraic),
        Provider("compiled", "the same under torch.compile", _bind_compiled, _why_not_compiled, compiles=True),
        Provider("torch", 'fastmc, impl="torch"', _bind_fastmc("torch")),
        Provider("cpp", 'fastmc, impl="cpp"', _bind_cpp, _why_not("cpp")),
        Provider(
            "triton", 'fastmc, impl="triton"', _bind_fastmc("triton"), _why_not("triton"), rounding=SPLIT_ROUNDING
        ),
        Provider("products", "the matrix products alone", _bind_products, gated=False),
    )
}


def fast_provider(device: torch.device | str) -> str:
    """What ``impl="auto"`` takes there: the provider that headlines are about."""
    return CONTRAST.choose("auto", Need(torch.device(device)))
