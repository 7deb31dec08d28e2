"""The layers of `fastmc.encoders.recurrent` by the C++ kernels of `kernels.cpu.gru`.

Each is one node of autograd's graph, and one piece of work for the threads of `kernels.cpu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastmc.derivatives import differentiable_once
from kernels.cpu import gru


def final_states(x: Tensor, layers: Sequence[Sequence[Tensor]], *, reverse: bool) -> Tensor:
    """(B, T, F) to the last layer's final states (B, 2H); ``layers`` holds (W_i, W_h, b_i, b_h) of both directions."""
    (batch, frames, _), end = x.shape, len(layers) - 1
    x = x.contiguous()
    for i, weights in enumerate(layers):
        place = gru.Place(batch, frames, first=i == 0, last=i == end, reverse=reverse)
        weights = [weight.contiguous() for weight in weights]
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
            x = _Layer.apply(x, place, *weights)
        else:
            x, _ = gru.forward(x.detach(), weights, place, keep=False)
    return x


class _Layer(torch.autograd.Function):
    """A layer, and the gradients of what requires one, no others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: gru.Place, *weights: Tensor) -> Tensor:
        result, kept = gru.forward(x, weights, place, keep=True)
        assert kept is not None
        ctx.place = place
        ctx.save_for_backward(x, *weights, *kept)
        return result

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        x, *weights, gates, states = ctx.saved_tensors
        wants_x, _, *wanted = ctx.needs_input_grad
        kept = gru.Kept(gates, states)
        dx, *sums = gru.backward(upstream.contiguous(), x, weights, kept, ctx.place, [wants_x, *wanted])
        return dx, None, *sums
