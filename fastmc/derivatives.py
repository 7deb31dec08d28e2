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


def with_gradients(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """A zero () whose gradients to ``outputs`` are these: ``with_gradients(y, g).backward()`` is
    ``torch.autograd.backward(y, g)``, but for two seconds: PyTorch compares the shapes of gradients that it is given
    with the help of sympy, which the first comparison imports."""
    for output, gradient in zip(outputs, gradients, strict=True):
        if output.shape != gradient.shape:
            raise ValueError(f"a gradient of shape {tuple(gradient.shape)} for an output of {tuple(output.shape)}")
    return _WithGradients.apply(len(outputs), *outputs, *gradients)


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, count: int, *given: Tensor) -> Tensor:
        ctx.save_for_backward(*given[count:])
        return given[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Any, ...]:
        gradients = ctx.saved_tensors
        return None, *gradients, *(None for _ in gradients)
