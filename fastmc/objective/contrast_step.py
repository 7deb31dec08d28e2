"""One step of the contrast: losses, their gradients, metrics and the bank's update, together."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

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
from fastmc.checks import check_number
from fastmc.objective.chunked import enqueue_
from fastmc.objective.loss import reference_parts
from fastmc.objective.ops import update_
from fastmc.reference import bank as reference_bank
from fastmc.reference import contrast as reference

OBJECTIVES = ("mc", "info_nce")
UPDATES = ("ascent", "fifo", "none")


class MCStep(NamedTuple):
    """What a step found, before it changed the bank; tensors on the features' device, so nothing waits for them.

    Attributes:
        loss: L = L_1 + L_2 + L_3, a scalar as the next three.
        l1, l2, l3: its parts, zero for a view that is absent.
        df1, df2, df3: (B, D) gradients of the loss, in the features' dtype; None for a view that is absent.
        top1_count: samples whose positive is nearer to f3 than every bank entry (a tie does not count), a scalar.
        positive_probability: psi(f3, f0) of eq. 2 at the bank's temperature, averaged over the batch, a scalar.
    """

    loss: Tensor
    l1: Tensor
    l2: Tensor
    l3: Tensor
    df1: Tensor | None
    df2: Tensor | None
    df3: Tensor
    top1_count: Tensor
    positive_probability: Tensor


def mc_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    f1: Tensor | None,
    f2: Tensor | None,
    f3: Tensor,
    mixing: Tensor | float | None,
    *,
    temperature: float = 0.07,
    bank_temperature: float = 0.03,
    lr: float = 3.0,
    momentum_factor: float = 0.9,
    weight_decay: float = 1e-4,
    mix: str = "own",
    objective: str = "mc",
    update: str = "ascent",
    cursor: Tensor | None = None,
    impl: str = "auto",
    precision: str = "bf16x3",
) -> MCStep:
    """Loss, gradients and metrics at the bank as it is, then the bank's update in place: all that training needs.

    Everything comes from one sweep over the bank, and nothing waits for a GPU. The features are constants; carry the
    gradients on with ``torch.autograd.backward([f1, f2, f3], [step.df1, step.df2, step.df3])``. If the loss is not
    finite, bank, momentum and cursor stay as they are.

    In a collapsed encoder all similarities are equal: the top-1 count is then 0 and the probability 1/(K + 1).

    Args:
        bank, momentum, lr, momentum_factor, weight_decay: as for :func:`fastmc.objective.bank.bank_step_`.
        f0, f1, f2, f3, mixing, mix, impl, precision: as for :func:`fastmc.objective.loss.mc_loss`.
        temperature: tau of the loss and its gradients.
        bank_temperature: tau of the ascent and of ``positive_probability``.
        objective: ``"mc"``, or ``"info_nce"`` for InfoNCE of each view (eq. 1; no mixing; f1 and f2 may be None).
        update: ``"ascent"`` is eq. 7, for objective "mc"; ``"fifo"`` writes f0 over the oldest rows as
            :meth:`fastmc.objective.bank.MemoryBank.enqueue_` does; ``"none"`` changes nothing.
        cursor: int64 scalar beside the bank, features written so far, so that the next goes to row cursor mod K;
            "fifo" needs it and advances it by B.

    Raises:
        ValueError: an invalid input; the message names the argument.
        RuntimeError: ``impl="triton"`` cannot run; the message says why.
    """
    given = {"f0": f0, "f3": f3} if f1 is None and f2 is None else {"f0": f0, "f1": f1, "f2": f2, "f3": f3}
    features = cast("dict[str, Tensor]", given)  # the check finds one that is None
    check_contrast(features, bank, temperature)
    check_number("bank_temperature", bank_temperature, above=0)
    check_mixing(mixing, bank, mix)
    check_update(bank, momentum, lr, momentum_factor, weight_decay)
    check_choice("precision", precision, PRECISIONS)
    _check_kind(objective, update, len(features), mixing, cursor, bank)
    impl = CONTRAST.choose(impl, Need(bank.device, bank.dtype, bank.shape[1]))

    k0, *views = convert_features(impl, [f.detach() for f in features.values()], bank.dtype)
    coefficients = mixing_vector(mixing, bank, bank.dtype)
    hyper = (temperature, bank_temperature, lr, momentum_factor, weight_decay)
    if impl == "reference":
        with torch.autocast(bank.device.type, enabled=False):
            settings = (*hyper, mix, objective, update, cursor)
            stats, gradients = _reference_step_(bank, momentum, k0, views, coefficients, *settings)
    else:
        k1, k2, k3 = [None] * (3 - len(views)) + views
        fused = (*hyper, mix == "tiled", objective == "mc", update, cursor, precision, impl)
        stats, gradients = update_("mc_step_", bank, momentum, k0, k1, k2, k3, coefficients, *fused)
    loss, l1, l2, l3, top1_count, positive_probability = stats.unbind()
    df1, df2, df3 = (None if f is None else g.to(f.dtype) for f, g in zip((f1, f2, f3), gradients, strict=True))
    assert df3 is not None
    return MCStep(loss, l1, l2, l3, df1, df2, df3, top1_count, positive_probability)


def _check_kind(
    objective: str, update: str, views: int, mixing: Tensor | float | None, cursor: Tensor | None, bank: Tensor
) -> None:
    check_choice("objective", objective, OBJECTIVES)
    check_choice("update", update, UPDATES)
    if objective == "mc" and views < 4:
        raise ValueError("f1 and f2 must be given: only objective 'info_nce' can do without")
    if objective == "info_nce" and mixing is not None:
        raise ValueError("mixing must be None for objective 'info_nce', whose bank has no mixed entries")
    if objective == "info_nce" and update == "ascent":
        raise ValueError("update 'ascent' is that of the MC loss (eq. 7): it needs objective 'mc'")
    if update == "fifo" and not _is_cursor(cursor, bank):
        raise ValueError(f"cursor must be an int64 scalar tensor on {bank.device} for update 'fifo', got {cursor!r}")


def _is_cursor(cursor: Tensor | None, bank: Tensor) -> bool:
    if not isinstance(cursor, Tensor):
        return False
    return cursor.shape == () and cursor.dtype == torch.int64 and cursor.device == bank.device


@torch.no_grad()
def _reference_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    views: list[Tensor],
    mixing: Tensor | None,
    temperature: float,
    bank_temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    mix: str,
    objective: str,
    update: str,
    cursor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Stats (6,) and gradients (3, B, D) as from the fused functions; ``views`` are f1, f2 and f3, or f3 alone."""
    leaves = [f.clone().requires_grad_() for f in views]
    with torch.enable_grad():
        settings = (f0, leaves, bank.detach(), mixing, temperature, mix)
        losses = reference_parts(*settings, soft_target=objective == "mc")
        found = torch.autograd.grad(losses.sum(), leaves)
    losses, gradients = losses.detach(), bank.new_zeros(3, *f0.shape)
    gradients[-len(views) :] = torch.stack(found)
    metrics = _reference_metrics(views[-1], f0, reference.normalise(bank), bank_temperature)
    allowed = torch.isfinite(losses.sum())
    if update == "fifo" and cursor is not None:
        enqueue_(bank, momentum, f0, cursor, allowed)
    if update == "ascent":
        f1, f2, f3 = views
        new_bank, new_momentum = reference_bank.bank_step(
            bank,
            momentum,
            f0,
            f1,
            f2,
            f3,
            mixing,
            temperature=bank_temperature,
            lr=lr,
            momentum_factor=momentum_factor,
            weight_decay=weight_decay,
            mix=mix,
        )
        bank.copy_(torch.where(allowed, new_bank, bank))
        momentum.copy_(torch.where(allowed, new_momentum, momentum))
    return torch.stack([losses.sum(), *losses, *metrics]), gradients


def _reference_metrics(f: Tensor, f0: Tensor, m0: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Top-1 count and mean positive probability of f (B, D) against the unit bank m0 (K, D)."""
    psi = reference.similarity_distribution(f, f0, m0, temperature)
    rounding = 8 * torch.finfo(f.dtype).eps  # of a similarity of unit rows: it must not decide a tie
    top1 = (f * f0).sum(dim=1) > (f @ m0.T).amax(dim=1) + rounding
    return top1.sum().to(psi.dtype), psi[:, 0].mean()
