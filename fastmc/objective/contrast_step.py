"""One step of the contrast: losses, their gradients, metrics and the bank's update, together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from fastmc.contrast_table import B1, B2, MOST_POSITIVES, Table
from fastmc.objective.chunked import enqueue_, nearest_rows
from fastmc.objective.loss import mc_table
from fastmc.objective.ops import update_
from fastmc.reference import bank as reference_bank
from fastmc.reference import contrast as reference

OBJECTIVES = ("mc", "info_nce")
UPDATES = ("ascent", "fifo", "none")


class ContrastStep(NamedTuple):
    """What a step found, before it changed the bank; tensors on the features' device, so nothing waits for them.

    Attributes:
        loss: the sum of the losses, weighted as the table says, a scalar.
        losses: (q,) of the queries, averaged over the batch, without their weights.
        gradients: (B, D) of ``loss`` for each query, in its dtype.
        top1_count: samples whose positive is nearer to the measured query than every bank entry (a tie does not
            count), a scalar.
        positive_probability: psi(f, f0) of eq. 2 of the measured query f at the bank's temperature, averaged over the
            batch, a scalar.
    """

    loss: Tensor
    losses: Tensor
    gradients: tuple[Tensor, ...]
    top1_count: Tensor
    positive_probability: Tensor


class MCStep(NamedTuple):
    """What a step of the paper's found, as :class:`ContrastStep`, by the names of eq. 9.

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
        RuntimeError: ``impl`` cannot run; the message says why.
    """
    given = {"f0": f0, "f3": f3} if f1 is None and f2 is None else {"f0": f0, "f1": f1, "f2": f2, "f3": f3}
    features = cast("dict[str, Tensor]", given)  # the check finds one that is None
    _check_objective(objective, update, len(features), mixing)
    table = mc_table(mixing) if objective == "mc" else B2 if len(features) == 4 else B1
    hyper = (temperature, bank_temperature, lr, momentum_factor, weight_decay)
    settings = (hyper, mix, update, cursor, impl, precision)
    stats, gradients = _step_(bank, momentum, features, table, mixing, *settings)
    *hard, df3 = gradients
    df1, df2 = hard or (None, None)
    loss, *found = stats.unbind()
    if not hard:  # its loss, the metrics, two zeros
        found = [*found[3:], *found[:3]]
    l1, l2, l3, top1_count, positive_probability = found
    return MCStep(loss, l1, l2, l3, df1, df2, df3, top1_count, positive_probability)


def contrast_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    queries: Sequence[Tensor],
    table: Table,
    mixing: Tensor | float | None = None,
    *,
    temperature: float = 0.07,
    bank_temperature: float = 0.03,
    lr: float = 3.0,
    momentum_factor: float = 0.9,
    weight_decay: float = 1e-4,
    mix: str = "own",
    update: str = "fifo",
    cursor: Tensor | None = None,
    impl: str = "auto",
    precision: str = "bf16x3",
) -> ContrastStep:
    """One step of any table of rows: what :func:`mc_step_` is for the paper's methods.

    A similarity is a dot product, of the bank's rows as they are where the table is not ``unit``. There rows and
    features may have any length.

    Args:
        f0: (B, D) key features, unit rows, whose entry is the positive of every row; in a table without a key it is no
            entry, but what "fifo" writes and the metrics are of. Or (B, G, D), 1 to 8 positives of each sample, for a
            table without mixed rows, targets and mined entries: the loss is -log of the share that all G have of the
            softmax together, as in HiCo; the probability is theirs, and the nearest is on top.
        queries: (B, D) each, unit rows, constants as f0; messages call them f1, f2 and so on.
        table: which softmaxes there are and what they learn, such as :data:`fastmc.contrast_table.AIMCLR`.
        mixing: lambda of eq. 8, for a table whose rows are mixed, and only for one.
        update: ``"ascent"`` climbs the loss, weighted as the table says, at ``bank_temperature``; ``"fifo"`` writes B G
            rows, all those of a sample before the next sample's.

    The bank, its momentum and the rest are as for :func:`mc_step_`.

    Raises:
        ValueError: an invalid input; the message names the argument.
        RuntimeError: ``impl`` cannot run; the message says why.
    """
    features = {"f0": f0} | {f"f{number}": f for number, f in enumerate(queries, start=1)}
    hyper = (temperature, bank_temperature, lr, momentum_factor, weight_decay)
    settings = (hyper, mix, update, cursor, impl, precision)
    stats, gradients = _step_(bank, momentum, features, table, mixing, *settings)
    behind = 1 + len(gradients)
    return ContrastStep(stats[0], stats[1:behind], gradients, stats[behind], stats[behind + 1])


def _step_(
    bank: Tensor,
    momentum: Tensor,
    features: Mapping[str, Tensor],
    table: Table,
    mixing: Tensor | float | None,
    hyper: tuple[float, float, float, float, float],
    mix: str,
    update: str,
    cursor: Tensor | None,
    impl: str,
    precision: str,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Stats as from the fused functions, and the gradient of each query in its dtype; ``features`` begin with f0."""
    temperature, bank_temperature, *ascent = hyper
    check_contrast(_with_one_key(features), bank, temperature)
    check_number("bank_temperature", bank_temperature, above=0)
    check_mixing(mixing, bank, mix)
    check_update(bank, momentum, *ascent)
    check_choice("precision", precision, PRECISIONS)
    _check_table(table, features["f0"], len(features) - 1, mixing, update, cursor, bank)
    impl = CONTRAST.choose(impl, Need(bank.device, bank.dtype, bank.shape[1]))

    f0, *queries = convert_features(impl, [f.detach() for f in features.values()], bank.dtype)
    if f0.dim() == 3 and f0.shape[1] == 1:
        f0 = f0.squeeze(1)
    coefficients = mixing_vector(mixing, bank, bank.dtype)
    if impl == "reference":
        with torch.autocast(bank.device.type, enabled=False):
            settings = (*hyper, mix, update, cursor)
            stats, gradients = _reference_step_(bank, momentum, f0, queries, coefficients, table, *settings)
    else:
        lifted = _lifted(table, queries, bank) if table.lifted else None
        fused = (*hyper, mix == "tiled", update, cursor, precision, lifted, impl)
        stats, gradients = update_("contrast_step_", bank, momentum, f0, queries, coefficients, table, *fused)
    _, *given = features.values()
    return stats, tuple(g.to(f.dtype) for f, g in zip(given, gradients, strict=True))


def _lifted(table: Table, queries: Sequence[Tensor], bank: Tensor) -> Tensor:
    """(l, B, k): the entries that each of the table's l lifting rows lifts. Found by PyTorch for all implementations: a
    row of the kernels' sweep can keep no more than a few."""
    lifters = (queries[table.rows[i].query].to(bank.dtype) for i in table.lifters)
    with torch.no_grad(), torch.autocast(bank.device.type, enabled=False):
        return torch.stack([nearest_rows(f, bank, table.lifted) for f in lifters])


def _check_objective(objective: str, update: str, views: int, mixing: Tensor | float | None) -> None:
    check_choice("objective", objective, OBJECTIVES)
    check_choice("update", update, UPDATES)
    if objective == "mc" and views < 4:
        raise ValueError("f1 and f2 must be given: only objective 'info_nce' can do without")
    if objective == "info_nce" and mixing is not None:
        raise ValueError("mixing must be None for objective 'info_nce', whose bank has no mixed entries")
    if objective == "info_nce" and update == "ascent":
        raise ValueError("update 'ascent' is that of the MC loss (eq. 7): it needs objective 'mc'")


def _with_one_key(features: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The features, but of several positives f0 (B, G, D) the first, (B, D)."""
    f0 = features["f0"]
    if not isinstance(f0, Tensor) or f0.dim() != 3:
        return features
    if f0.shape[1] not in range(1, MOST_POSITIVES + 1):
        raise ValueError(f"f0 must be (B, D), or (B, G, D) with G of 1 to {MOST_POSITIVES}, got {tuple(f0.shape)}")
    return {**features, "f0": f0[:, 0]}


def _check_table(
    table: Table,
    f0: Tensor,
    queries: int,
    mixing: Tensor | float | None,
    update: str,
    cursor: Tensor | None,
    bank: Tensor,
) -> None:
    check_choice("update", update, UPDATES)
    if not isinstance(table, Table):
        raise ValueError(f"table must be a Table, got {table!r}")
    if table.queries != queries:
        raise ValueError(f"table has rows of {table.queries} queries, and {queries} are given")
    if table.mixed and mixing is None:
        raise ValueError("mixing must be given: the rows of table are mixed")
    if mixing is not None and not table.mixed:
        raise ValueError("mixing must be None: no row of table is mixed")
    if f0.dim() == 3 and not table.plain:
        raise ValueError(
            f"f0 must be (B, D) for a table with mixed rows, targets or mined entries, got {tuple(f0.shape)}"
        )
    if table.mined > len(bank):
        raise ValueError(f"table mines {table.mined} rows of bank for each query, and bank has {len(bank)}")
    if table.lifted > len(bank):
        raise ValueError(f"table lifts {table.lifted} rows of bank for each query, and bank has {len(bank)}")
    if update == "ascent" and not table.unit:
        raise ValueError("table must scale the rows of bank to unit length for update 'ascent'")
    if update == "ascent" and not table.key:
        raise ValueError("table must have the key for update 'ascent'")
    if update == "ascent" and table.mined:
        raise ValueError("table must not mine for update 'ascent'")
    if update == "ascent" and table.bank_order is None:
        raise ValueError("table must not have targets that interleave for update 'ascent', see Table.bank_order")
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
    queries: list[Tensor],
    mixing: Tensor | None,
    table: Table,
    temperature: float,
    bank_temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    mix: str,
    update: str,
    cursor: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Stats (max(6, q + 3),) and gradients (q, B, D) as from the fused functions."""

    def losses_of(queries: list[Tensor], m: Tensor, tau: float) -> Tensor:
        return reference.contrast_losses(f0, queries, m, table, mixing, temperature=tau, mix=mix)

    def loss_of_bank(m: Tensor) -> Tensor:
        return reference.contrast_loss(losses_of(queries, m, bank_temperature), table)

    leaves = [f.clone().requires_grad_() for f in queries]
    with torch.enable_grad():
        losses = losses_of(leaves, bank.detach(), temperature)
        loss = reference.contrast_loss(losses, table)
        gradients = torch.stack(torch.autograd.grad(loss, leaves))
    metrics = _reference_metrics(queries[table.measured], f0, bank, table.unit, bank_temperature)
    found = [loss.detach(), *losses.detach(), *metrics]
    allowed = torch.isfinite(found[0])
    if update == "fifo" and cursor is not None:
        enqueue_(bank, momentum, f0.flatten(0, -2), cursor, allowed)
    if update == "ascent":
        settings = {"lr": lr, "momentum_factor": momentum_factor, "weight_decay": weight_decay}
        new_bank, new_momentum = reference_bank.ascend(bank, momentum, loss_of_bank, **settings)
        bank.copy_(torch.where(allowed, new_bank, bank))
        momentum.copy_(torch.where(allowed, new_momentum, momentum))
    return torch.stack([*found, *[torch.zeros_like(allowed, dtype=bank.dtype)] * (6 - len(found))]), gradients


def _reference_metrics(f: Tensor, f0: Tensor, bank: Tensor, unit: bool, temperature: float) -> tuple[Tensor, Tensor]:
    """Top-1 count and mean positive probability of f (B, D) against the bank (K, D) at ``unit`` length or its own."""
    m0 = reference.normalise(bank) if unit else bank
    psi = reference.similarity_distribution(f, f0, m0, temperature)
    positives = f0.unsqueeze(1) if f0.dim() == 2 else f0
    # Of a similarity of unit rows, or of rows as long as query and positive: it must not decide a tie.
    rounding: float | Tensor = 8 * torch.finfo(f.dtype).eps
    if not unit:
        rounding = rounding * f.norm(dim=1) * positives.norm(dim=2).amax(dim=1)
    nearest = (f.unsqueeze(1) * positives).sum(dim=2).amax(dim=1)
    top1 = nearest > (f @ m0.T).amax(dim=1) + rounding
    return top1.sum().to(psi.dtype), psi[:, : positives.shape[1]].sum(dim=1).mean()
