"""First derivatives that say so: a second one of them is an error, never a number that lacks a part."""

from __future__ import annotations

from collections.abc import Callable
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
