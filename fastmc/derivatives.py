"""First derivatives that say so: a second one of them is an error, never a number that lacks a part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def differentiable_once(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """PyTorch's once_differentiable speaks up only where the upstream gradient requires one; a second derivative leads
    through the other inputs too, and would lack them silently."""
    guarded = once_differentiable(backward)

    def wrapper(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return guarded(ctx, upstream.detach().requires_grad_() if torch.is_grad_enabled() else upstream)

    return wrapper


def carry_back(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """``torch.autograd.backward(outputs, gradients)``, which compares shapes with the help of sympy: an import of two
    seconds in every command that trains."""
    _run(outputs, gradients, (), allow_unreachable=True, accumulate_grad=True)


def gradient_to(x: Tensor, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """``torch.autograd.grad(outputs, x, gradients)``, likewise."""
    (found,) = _run(outputs, gradients, (x,), allow_unreachable=False, accumulate_grad=False)
    return found


def _run(outputs: Sequence[Tensor], gradients: Sequence[Tensor], to: tuple[Tensor, ...], **how: bool) -> Any:
    for output, gradient in zip(outputs, gradients, strict=True):
        if output.shape != gradient.shape:
            raise ValueError(f"a gradient of shape {tuple(gradient.shape)} for an output of {tuple(output.shape)}")
    engine: Any = torch.autograd.Variable._execution_engine
    # The graph is not kept, and none is made of the way back.
    return engine.run_backward(tuple(outputs), tuple(gradients), False, False, to, **how)
