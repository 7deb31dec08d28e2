"""The gate of every benchmark: a provider's outputs against the reference in float64. No parity, no numbers."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from bench.providers import (
    ASCENT,
    TEMPERATURE,
    Case,
    Inputs,
    Loss,
    Mix,
    Outputs,
    Provider,
    algebraic_loss,
    ascend_,
    draw,
)
from fastmc.reference import contrast as reference

BUDGET = 16
"""Roundings of the largest logit, 1/tau, that an output may be off, in the scale of its largest element."""
LITERAL = 2**27
"""B K D up to which the truth is the plain reference. Larger cases, where it would take minutes, are held against the
algebraic form in float64, which the tests hold against the reference."""


class ParityError(AssertionError):
    """A provider computes something else."""


def compare(provider: Provider, case: Case, found: Mapping[str, Tensor], truth: Mapping[str, Tensor]) -> float:
    """The largest share of its budget that an output uses.

    An output may be off by ``BUDGET`` roundings of a logit of size 1/tau, relative to its largest element: an error
    of a logit is the same relative error of a probability.

    Raises:
        ParityError: it uses more than all of it, or is not finite; the message names the output.
    """
    worst = 0.0
    for name, exact in truth.items():
        tau = ASCENT["temperature"] if name in ("bank", "momentum") else TEMPERATURE
        allowed = BUDGET * provider.rounding / tau * float(exact.abs().max())
        error = float((found[name].double().cpu() - exact).abs().max())
        if not error <= allowed:  # a NaN is not
            raise ParityError(
                f"{provider.name} is wrong, so there are no numbers ({case}): {name} is off by {error:.2e}, "
                f"its budget is {allowed:.2e}"
            )
        worst = max(worst, error / allowed)
    return worst


def by_name(outputs: Outputs, x: Inputs, old_bank: Tensor, work: str) -> dict[str, Tensor]:
    """What a call gave. Of the bank it is the change: an error of that would be lost beside the bank itself."""
    loss, *gradients = outputs
    found = {"loss": loss} | dict(zip(("df1", "df2", "df3"), gradients, strict=True))
    if work == "step":
        found |= {"bank": x.bank.double() - old_bank.double(), "momentum": x.momentum}
    return found


def exact_outputs(case: Case) -> dict[str, Tensor]:
    """The same in float64 on the CPU, from the plain reference up to ``LITERAL``."""
    x = draw(case).to("cpu", torch.float64)
    shape = (case.mix, case.batch, case.bank, case.dim)
    loss, df1, df2, df3, _ = _exact_gradients(*shape, TEMPERATURE)
    truth = {"loss": loss, "df1": df1, "df2": df2, "df3": df3}
    if case.work == "step":
        before, gradient = x.bank.clone(), _exact_gradients(*shape, ASCENT["temperature"])[-1]
        ascend_(x.bank, x.momentum, gradient, ASCENT["lr"], ASCENT["momentum_factor"], ASCENT["weight_decay"])
        truth |= {"bank": x.bank - before, "momentum": x.momentum}
    return truth


@functools.lru_cache(maxsize=4)  # loss and step of one shape share it
def _exact_gradients(mix: Mix, batch: int, bank: int, dim: int, temperature: float) -> tuple[Tensor, ...]:
    """Loss and its gradients to f1, f2, f3 and the bank, float64.

    With own mixing a sample's loss depends on no other sample, so the mean over the batch is taken a sample at a time:
    the reference's mixed banks of a whole batch would need gigabytes.
    """
    x = draw(Case("loss", mix, batch, bank, dim)).to("cpu", torch.float64)
    function: Loss = reference.mc_loss if batch * bank * dim <= LITERAL else algebraic_loss
    at_a_time = 1 if mix == "own" and function is reference.mc_loss else batch
    leaves = [t.requires_grad_() for t in (x.f1, x.f2, x.f3, x.bank)]
    sums = [torch.zeros_like(t) for t in leaves]
    loss = torch.zeros((), dtype=torch.float64)
    for start in range(0, batch, at_a_time):
        rows = slice(start, start + at_a_time)
        f0, f1, f2, f3 = (f[rows] for f in x.features)
        value = function(f0, f1, f2, f3, x.bank, x.mixing, temperature=temperature, mix=mix) * (len(f0) / batch)
        for total, part in zip(sums, torch.autograd.grad(value, leaves), strict=True):
            total += part
        loss += value.detach()
    return loss, *sums
