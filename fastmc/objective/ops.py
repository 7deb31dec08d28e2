"""The fused functions as PyTorch sees them: operators of torch.library under torch.compile, plain calls otherwise.

``impl`` is "torch" (:mod:`fastmc.objective.chunked`), "cpp" (:mod:`fastmc.objective.cpp_passes`) or "triton"
(kernels.mc). All have the functions named here, with the same arguments but ``impl``, and with a table where an
operator has the table's code. An operator is one node of a compiled graph; its dispatch costs some 60 us per eager
call, more than the kernels take, so eager calls go straight to the implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmc.backends import CONTRAST
from fastmc.contrast_table import Table
from fastmc.derivatives import differentiable_once


def contrast_losses(
    f0: Tensor, queries: Sequence[Tensor], bank: Tensor, mixing: Tensor | None, table: Table, *settings: Any
) -> Tensor:
    """The losses (q,) of a table without weights, differentiable in queries and bank; as :func:`contrast_forward`."""
    if torch.compiler.is_compiling():
        losses, _, _ = torch.ops.fastmc.contrast_forward(f0, queries, bank, mixing, table.code, *settings)
        return losses
    return _Losses.apply(f0, bank, mixing, table, settings, *queries)


def update_(name: str, bank: Tensor, momentum: Tensor, f0: Tensor, *arguments: Any) -> Any:
    """:func:`bank_step_` or :func:`contrast_step_`, by name and with its arguments. The features must be constants."""
    queries, mixing, table, *settings, impl = arguments
    with torch.no_grad():
        if torch.compiler.is_compiling():
            operator = getattr(torch.ops.fastmc, name)
            return operator(bank, momentum, f0, queries, mixing, table.code, *settings, impl)
        results = CONTRAST.call(impl, name, bank.device, bank, momentum, f0, queries, mixing, table, *settings)
    # A kernel's stores are unknown to autograd: a graph that holds the bank as it was must not go on with the new one.
    if not bank.is_inference():
        torch.autograd.graph.increment_version([bank, momentum])
    return results


@torch.library.custom_op("fastmc::contrast_forward", mutates_args=())
def contrast_forward(
    f0: Tensor,
    queries: Sequence[Tensor],
    bank: Tensor,
    mixing: Tensor | None,
    table: str,
    temperature: float,
    tiled: bool,
    precision: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`fastmc.objective.chunked.contrast_forward`; queries and bank get their gradients from the first result."""
    settings = (Table.parse(table), temperature, tiled, precision)
    return CONTRAST.call(impl, "contrast_forward", bank.device, f0, queries, bank, mixing, *settings)


@torch.library.custom_op("fastmc::contrast_bank_gradient", mutates_args=())
def contrast_bank_gradient(
    queries: Sequence[Tensor],
    bank: Tensor,
    mixing: Tensor | None,
    lse: Tensor,
    weights: Tensor,
    table: str,
    temperature: float,
    tiled: bool,
    precision: str,
    impl: str,
) -> Tensor:
    """:func:`fastmc.objective.chunked.contrast_bank_gradient`."""
    settings = (Table.parse(table), temperature, tiled, precision)
    return CONTRAST.call(impl, "contrast_bank_gradient", bank.device, queries, bank, mixing, lse, weights, *settings)


@torch.library.custom_op("fastmc::bank_step_", mutates_args=("bank", "momentum"))
def bank_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    queries: Sequence[Tensor],
    mixing: Tensor | None,
    table: str,
    temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    precision: str,
    impl: str,
) -> None:
    """:func:`fastmc.objective.chunked.bank_step_`."""
    settings = (Table.parse(table), temperature, lr, momentum_factor, weight_decay, tiled, precision)
    CONTRAST.call(impl, "bank_step_", bank.device, bank, momentum, f0, queries, mixing, *settings)


@torch.library.custom_op("fastmc::contrast_step_", mutates_args=("bank", "momentum", "cursor"))
def contrast_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    queries: Sequence[Tensor],
    mixing: Tensor | None,
    table: str,
    temperature: float,
    bank_temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    update: str,
    cursor: Tensor | None,
    precision: str,
    lifted: Tensor | None,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """:func:`fastmc.objective.chunked.contrast_step_`."""
    hyper = (temperature, bank_temperature, lr, momentum_factor, weight_decay)
    settings = (Table.parse(table), *hyper, tiled, update, cursor, precision, lifted)
    return CONTRAST.call(impl, "contrast_step_", bank.device, bank, momentum, f0, queries, mixing, *settings)


# Shapes and dtypes of the results, for tracing: those of the bank, since half precision is widened.


@contrast_forward.register_fake
def _(
    f0: Tensor, queries: Sequence[Tensor], bank: Tensor, mixing: Any, table: str, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    count, rows = len(queries), len(Table.parse(table).rows)
    return bank.new_empty(count), bank.new_empty(count, *f0.shape), bank.new_empty(rows, len(f0))


@contrast_bank_gradient.register_fake
def _(queries: Sequence[Tensor], bank: Tensor, *settings: Any) -> Tensor:
    return torch.empty_like(bank, memory_format=torch.contiguous_format)


@bank_step_.register_fake
def _(*arguments: Any) -> None:
    return None


@contrast_step_.register_fake
def _(bank: Tensor, momentum: Tensor, f0: Tensor, queries: Sequence[Tensor], *settings: Any) -> tuple[Tensor, Tensor]:
    return bank.new_empty(max(6, len(queries) + 3)), queries[0].new_empty(len(queries), *queries[0].shape)


# Gradients, once for the operator and once for the eager call. Those of the queries came with the losses; that of the
# bank is made if it is asked for.


def _of_queries(upstream: Tensor, gradients: Tensor, queries: Sequence[Tensor]) -> list[Tensor]:
    scaled = gradients * upstream.view(-1, 1, 1)
    return [g.to(f.dtype) for g, f in zip(scaled, queries, strict=True)]


class _Losses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        f0: Tensor,
        bank: Tensor,
        mixing: Tensor | None,
        table: Table,
        settings: tuple[Any, ...],
        *queries: Tensor,
    ) -> Tensor:
        ctx.impl, ctx.settings = settings[-1], (table, *settings[:-1])
        results = CONTRAST.call(ctx.impl, "contrast_forward", bank.device, f0, queries, bank, mixing, *ctx.settings)
        losses, gradients, lse = results
        ctx.save_for_backward(bank, mixing, gradients, lse, *queries)
        return losses

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        bank, mixing, gradients, lse, *queries = ctx.saved_tensors
        of_bank = None
        if ctx.needs_input_grad[1]:
            arguments = (queries, bank, mixing, lse, upstream.contiguous(), *ctx.settings)
            of_bank = CONTRAST.call(ctx.impl, "contrast_bank_gradient", bank.device, *arguments)
        return None, of_bank, None, None, None, *_of_queries(upstream, gradients, queries)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, queries, bank, mixing, *ctx.settings = inputs
    _, gradients, lse = output
    ctx.save_for_backward(bank, mixing, gradients, lse, *queries)
    ctx.mark_non_differentiable(gradients, lse)


def _backward(ctx: Any, upstream: Tensor, *unused: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # of create_graph=True: a second derivative would lack what the queries have in it
        raise RuntimeError("fastmc::contrast_forward is differentiable once only; give impl='reference' for more")
    bank, mixing, gradients, lse, *queries = ctx.saved_tensors
    of_bank = None
    if ctx.needs_input_grad[2]:
        arguments = (queries, bank, mixing, lse, upstream.contiguous(), *ctx.settings)
        of_bank = torch.ops.fastmc.contrast_bank_gradient(*arguments)
    return None, _of_queries(upstream, gradients, queries), of_bank, None, *[None] * len(ctx.settings)


contrast_forward.register_autograd(_backward, setup_context=_setup_context)
