"""What the kernels' split products may cost, beyond what float32 costs the reference, and a step that keeps it."""

from __future__ import annotations

import torch
from gpu_less import kernels_on_cpu
from oracle import Case, Results, step_of, step_truth, velocity, within

# Error of a similarity of unit rows. bf16x3: hi keeps 8 bits and lo the next 8, so either operand is off by at most
# 2^-18 of itself, and the product lo.lo that is left out is no larger. bf16: either operand is off by 2^-9.
SIMILARITY_ERROR = {"ieee": 0.0, "bf16x3": 3 * 2.0**-18, "bf16": 2.0**-8}


def kernel_budget(plain: Results, truth: Results, case: Case, precision: str) -> dict[str, torch.Tensor]:
    """|kernel - truth| <= 2 |reference in float32 - truth| + eps, by output. eps is the error of the largest logit, by
    the products and by 4 float32 roundings, times the output's scale: an error of a logit is a relative one of its
    probability. A gradient is a difference of two mean entries over tau B, and has at least their scale."""
    temperature = min(case.temperature, case.bank_temperature)
    norm = max(float(f.norm(dim=1).max()) for f in (case.f0, case.f1, case.f2, case.f3))
    longest = 1.0 if case.table.unit else float(case.bank.norm(dim=1).max())
    logit = max(1.0, norm * max(norm, longest) / temperature)
    eps = logit * (SIMILARITY_ERROR[precision] + 4 * torch.finfo(torch.float32).eps)
    scale = {name: value.abs().max() for name, value in truth.items()}
    largest = case.f0.abs().max() if case.table.unit else torch.maximum(case.f0.abs().max(), case.bank.abs().max())
    entry = largest / (case.temperature * len(case.f0))
    scale["gradients"] = torch.maximum(scale["gradients"], entry)
    return {n: 2 * (plain[n] - truth[n]).abs().max() + eps * scale[n] for n in truth}


def kernels_step(case: Case, update: str, precision: str) -> Results:
    """A step by the kernels, on the CPU."""
    from kernels import mc

    with kernels_on_cpu():
        return step_of(mc, case, update, velocity(case), 3, precision)


def kernels_see(case: Case, update: str, precision: str, *others: Case) -> list[dict[str, bool]]:
    """The kernels' step keeps the budget. By output, whether the reference's step of each other case does too."""
    truth, plain = (step_truth(c, update, velocity(c), 3) for c in (case.to(torch.float64), case))
    allowed = kernel_budget(plain, truth, case, precision)
    verdict = within(kernels_step(case, update, precision), truth, allowed)
    assert all(verdict.values()), verdict
    wide = [other.to(torch.float64) for other in others]
    return [within(step_truth(c, update, velocity(case).double(), 3), truth, allowed) for c in wide]
