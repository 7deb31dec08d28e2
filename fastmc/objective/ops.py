"""The fused functions as PyTorch sees them: operators of torch.library under torch.compile, plain calls otherwise.

``impl`` is "torch" (:mod:`fastmc.objective.chunked`) or "triton" (kernels.mc). Both have the functions named here, with
the same arguments but ``impl``. An operator is one node of a compiled graph; its dispatch costs some 60 us per eager
call, more than the kernels take, so eager calls go straight to the implementation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastmc.backends import CONTRAST


def contrast_parts(*arguments: Any) -> Tensor:
    """(L_1, L_2, L_3) as one tensor (3,), differentiable in f1, f2, f3 and bank; arguments of :func:`mc_forward`."""
    if torch.compiler.is_compiling():
        parts, _, _ = torch.ops.fastmc.mc_forward(*arguments)
        return parts
    return _Parts.apply(*arguments)


def update_(name: str, *arguments: Any) -> Any:
    """:func:`bank_step_` or :func:`mc_step_`, by name and with its arguments. The features must be constants."""
    with torch.no_grad():
        if torch.compiler.is_compiling():
            return getattr(torch.ops.fastmc, name)(*arguments)
        *values, impl = arguments
        results = CONTRAST.call(impl, name, values[0].device, *values)
    # A kernel's stores are unknown to autograd: a graph that holds the bank as it was must not go on with the new one.
    bank, momentum = values[:2]
    if not bank.is_inference():
        torch.autograd.graph.increment_version([bank, momentum])
    return results


@torch.library.custom_op("fastmc::mc_forward", mutates_args=())
def mc_forward(
    f0: Tensor,
    f1: Tensor | None,
    f2: Tensor | None,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor | None,
    temperature: float,
    tiled: bool,
    soft_target: bool,
    precision: str,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`fastmc.objective.chunked.mc_forward`; f1, f2, f3 and bank get their gradients from the first result."""
    settings = (temperature, tiled, soft_target, precision)
    return CONTRAST.call(impl, "mc_forward", bank.device, f0, f1, f2, f3, bank, mixing, *settings)


@torch.library.custom_op("fastmc::mc_bank_gradient", mutates_args=())
def mc_bank_gradient(
    f1: Tensor | None,
    f2: Tensor | None,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor | None,
    lse: Tensor,
    weights: Tensor,
    temperature: float,
    tiled: bool,
    soft_target: bool,
    precision: str,
    impl: str,
) -> Tensor:
    """:func:`fastmc.objective.chunked.mc_bank_gradient`."""
    settings = (temperature, tiled, soft_target, precision)
    return CONTRAST.call(impl, "mc_bank_gradient", bank.device, f1, f2, f3, bank, mixing, lse, weights, *settings)


@torch.library.custom_op("fastmc::bank_step_", mutates_args=("bank", "momentum"))
def bank_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    f1: Tensor,
    f2: Tensor,
    f3: Tensor,
    mixing: Tensor | None,
    temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    precision: str,
    impl: str,
) -> None:
    """:func:`fastmc.objective.chunked.bank_step_`."""
    settings = (temperature, lr, momentum_factor, weight_decay, tiled, precision)
    CONTRAST.call(impl, "bank_step_", bank.device, bank, momentum, f0, f1, f2, f3, mixing, *settings)


@torch.library.custom_op("fastmc::mc_step_", mutates_args=("bank", "momentum", "cursor"))
def mc_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    f1: Tensor | None,
    f2: Tensor | None,
    f3: Tensor,
    mixing: Tensor | None,
    temperature: float,
    bank_temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    soft_target: bool,
    update: str,
    cursor: Tensor | None,
    precision: str,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """:func:`fastmc.objective.chunked.mc_step_`."""
    hyper = (temperature, bank_temperature, lr, momentum_factor, weight_decay)
    settings = (tiled, soft_target, update, cursor, precision)
    return CONTRAST.call(impl, "mc_step_", bank.device, bank, momentum, f0, f1, f2, f3, mixing, *hyper, *settings)


# Shapes and dtypes of the results, for tracing: those of the bank, since half precision is widened.


@mc_forward.register_fake
def _(f0: Tensor, f1: Any, f2: Any, f3: Tensor, bank: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    return bank.new_empty(3), bank.new_empty(3, *f3.shape), bank.new_empty(4, len(f3))


@mc_bank_gradient.register_fake
def _(f1: Any, f2: Any, f3: Tensor, bank: Tensor, *settings: Any) -> Tensor:
    return torch.empty_like(bank, memory_format=torch.contiguous_format)


@bank_step_.register_fake
def _(*arguments: Any) -> None:
    return None


@mc_step_.register_fake
def _(
    bank: Tensor, momentum: Tensor, f0: Tensor, f1: Any, f2: Any, f3: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    return bank.new_empty(6), f3.new_empty(3, *f3.shape)


# Gradients, once for the operator and once for the eager call. The gradients of f1, f2 and f3 came with the losses;
# that of the bank is made if it is asked for.


def _keep(ctx: Any, arguments: tuple[Any, ...], results: tuple[Tensor, Tensor, Tensor]) -> None:
    _, f1, f2, f3, bank, mixing, *settings = arguments
    _, gradients, lse = results
    ctx.settings = settings
    ctx.save_for_backward(f1, f2, f3, bank, mixing, gradients, lse)


def _gradients(ctx: Any, upstream: Tensor, bank_gradient: Any) -> tuple[Any, ...]:
    f1, f2, f3, bank, mixing, gradients, lse = ctx.saved_tensors
    scaled = gradients * upstream.view(3, 1, 1)
    views = [None if f is None else scaled[i].to(f.dtype) for i, f in enumerate((f1, f2, f3))]
    of_bank = None
    if ctx.needs_input_grad[4]:
        of_bank = bank_gradient(f1, f2, f3, bank, mixing, lse, upstream, *ctx.settings)
    return None, *views, of_bank, *[None] * (1 + len(ctx.settings))


class _Parts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *values, impl = arguments
        results = CONTRAST.call(impl, "mc_forward", values[0].device, *values)
        _keep(ctx, arguments, results)
        return results[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        def bank_gradient(*arguments: Any) -> Tensor:
            *values, impl = arguments
            return CONTRAST.call(impl, "mc_bank_gradient", upstream.device, *values)

        return _gradients(ctx, upstream.contiguous(), bank_gradient)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _keep(ctx, inputs, output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, upstream: Tensor, *unused: Any) -> tuple[Any, ...]:
    return _gradients(ctx, upstream.contiguous(), torch.ops.fastmc.mc_bank_gradient)


mc_forward.register_autograd(_backward, setup_context=_setup_context)
