"""Contrast with a bank (eq. 1-3, 8-11) and the bank's step (eq. 7) by kernels. Nothing is validated here.

Arguments and results are those of `fastmc.objective.chunked`, which does the same in PyTorch; the launches are in
`kernels.launch`. The bank is float32, the features are float32 or half precision, all on one device. A step is four
launches, and nothing of size B K is allocated. Partial sums take O(B D) a program of the sweep; there are about
as many programs as run at a time, under tiled mixing at least B / 32, so O(B^2 D).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from kernels import launching_on
from kernels.launch import Plan, Step, Table
from kernels.ranges import part


def contrast_forward(
    f0: Tensor,
    queries: Sequence[Tensor],
    bank: Tensor,
    mixing: Tensor | None,
    table: Table,
    temperature: float,
    tiled: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (queries,), the gradients of the table's (queries, B, D), and what :func:`contrast_bank_gradient` needs of
    this pass (rows, B), in a form of these kernels' own."""
    plan = Plan.of(f0, queries, bank, mixing, table, tiled, precision)
    prepared = plan.prepare()
    partial = plan.sweep(prepared, loss=temperature)
    lse = plan.new(len(table.rows), len(f0))
    losses, gradients = plan.combine(prepared, partial, lse)
    return losses, gradients, lse


def contrast_bank_gradient(
    queries: Sequence[Tensor],
    bank: Tensor,
    mixing: Tensor | None,
    lse: Tensor,
    weights: Tensor,
    table: Table,
    temperature: float,
    tiled: bool,
    precision: str,
) -> Tensor:
    """Of sum_q weights[q] L_q, further weighted as the table says, (K, D); from the ``lse`` of
    :func:`contrast_forward` at the same temperature."""
    plan = Plan.of(queries[0], queries, bank, mixing, table, tiled, precision)
    gradient = plan.new(*bank.shape)
    plan.bank_pass_(plan.prepare(), lse, temperature, weights=weights, gradient=gradient)
    return gradient


def bank_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    queries: Sequence[Tensor],
    mixing: Tensor | None,
    table: Table,
    temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    precision: str,
) -> None:
    """Eq. 7, in place; four launches."""
    plan = Plan.of(f0, queries, bank, mixing, table, tiled, precision)
    prepared = plan.prepare()
    lse = plan.log_sum_exps(plan.sweep(prepared, bank=temperature))
    with part("bank"), launching_on(bank.device, "bank"), contiguous(bank, momentum) as (w, v):
        plan.bank_pass_(prepared, lse, temperature, Step(w, v, lr, momentum_factor, weight_decay))


def contrast_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    queries: Sequence[Tensor],
    mixing: Tensor | None,
    table: Table,
    temperature: float,
    bank_temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    update: str,
    cursor: Tensor | None,
    precision: str,
    lifted: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Of f0 (B, D), or (B, G, D) with several positives of each sample.

    stats (max(6, queries + 3),) = loss, those of the queries, top-1 count, mean probability of the positive, zeros;
    gradients (queries, B, D). The bank steps ("ascent"), takes f0 ("fifo") or stays ("none"); it stays in any case
    where the loss is not finite. ``lifted`` (l, B, k) int64: entries of the bank, of a table that lifts them."""
    plan = Plan.of(f0, queries, bank, mixing, table, tiled, precision)
    prepared = plan.prepare()
    lse = plan.new(len(table.rows), len(f0))
    partial = plan.sweep(prepared, loss=temperature, bank=bank_temperature)
    stats, gradients = plan.combine(prepared, partial, lse, dtype=queries[0].dtype, lifted=lifted)
    if update == "none":
        return stats, gradients
    with part("bank"), launching_on(bank.device, "bank"), contiguous(bank, momentum) as (w, v):
        if update == "ascent":
            step = Step(w, v, lr, momentum_factor, weight_decay, guard=stats)
            plan.bank_pass_(prepared, lse, bank_temperature, step)
        else:
            assert cursor is not None
            plan.enqueue_(w, v, cursor, stats)
    return stats, gradients


@contextmanager
def contiguous(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The tensors, or contiguous copies that are written back: the kernels change rows that follow one another."""
    inner = [t.contiguous() for t in tensors]
    yield inner
    for tensor, copy in zip(tensors, inner, strict=True):
        if copy is not tensor:
            tensor.copy_(copy)
