"""The bodies of a batch as rows, and on a CPU one row for all that are absent.

Of most clips the second body is absent, all zero, and what a network makes of it is the same for every clip of a view:
it is computed once. Statistics of a batch count that row as often as there are such bodies, so that nothing changes but
the last bits. How many rows there are then depends on values, which a CUDA graph cannot follow, and which a GPU would
have to be waited for: there, and wherever a graph is recorded, all bodies are rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmc.backends import may_look
from fastmc.derivatives import differentiable_once


class Rows(NamedTuple):
    """Which bodies of a batch are rows; those of a view lie together.

    Attributes:
        views: of the batch.
        sizes: rows of each view, and copies: how many bodies its last row stands for, 0 if there is no such row. Empty
            where every body is a row of its own.
        chosen: (R,) int64, the body of each row. row_of: (n * M,) int64, the row of each body.
    """

    views: int
    sizes: tuple[int, ...] = ()
    copies: tuple[int, ...] = ()
    chosen: Tensor | None = None
    row_of: Tensor | None = None

    def take(self, x: Tensor) -> Tensor:
        """Of bodies (n * M, ...) those that are rows, (R, ...)."""
        return x if self.chosen is None else x.index_select(0, self.chosen)

    def give(self, x: Tensor) -> Tensor:
        """What was made of rows (R, ...), for each body (n * M, ...)."""
        return x if self.row_of is None else x.index_select(0, self.row_of)


def rows_of(x: Tensor, views: int, *, share: bool, filled: bool = False) -> Rows:
    """The rows of clips (n, 3, T, V, M).

    Args:
        share: whether absent bodies of a view may be one row. The first has the gradient of all of them then.
        filled: absent bodies may hold what is the same for all of a view, such as the value of a mask: they are those
            that equal the body with the most zeros.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if not share or recorded or not may_look(x) or x.shape[-1] == 1:
        return Rows(views)
    present = (_unlike_the_emptiest(x, views) if filled else (x != 0).flatten(1, 3).any(1)).flatten().tolist()
    if len(present) - sum(present) <= views:
        return Rows(views)
    each = len(present) // views
    chosen: list[int] = []
    row_of: list[int] = []
    sizes: list[int] = []
    copies: list[int] = []
    for first in range(0, len(present), each):
        there = [body for body in range(first, first + each) if present[body]]
        absent = [body for body in range(first, first + each) if not present[body]]
        place = {body: len(chosen) + n for n, body in enumerate(there)}
        row_of += [place.get(body, len(chosen) + len(there)) for body in range(first, first + each)]
        chosen += [*there, *absent[:1]]
        sizes.append(len(there) + bool(absent))
        copies.append(len(absent))
    return Rows(views, tuple(sizes), tuple(copies), torch.tensor(chosen), torch.tensor(row_of))


def _unlike_the_emptiest(x: Tensor, views: int) -> Tensor:
    """(n, M) bool, whether a body of (n, 3, T, V, M) differs from that of its view with the most zeros."""
    by_body = x.detach().movedim(-1, 1).flatten(0, 1).unflatten(0, (views, -1)).flatten(2)
    emptiest = (by_body != 0).sum(dim=2).argmin(dim=1)
    blank = by_body[torch.arange(views), emptiest].unsqueeze(1)
    return (by_body != blank).any(dim=2).view(len(x), -1)


def normalised(
    x: Tensor,
    rows: Rows,
    weight: Tensor,
    bias: Tensor,
    running: tuple[Tensor, Tensor],
    momentum: float,
    eps: float,
) -> Tensor:
    """Batch normalisation of shared rows (R, ..., C) by the moments of all bodies of their view, which the running ones
    follow, view by view."""
    return _Normalised.apply(x, weight, bias, rows.sizes, rows.copies, running, momentum, eps)


def moments(x: Tensor, copies: int) -> tuple[Tensor, Tensor, int]:
    """Mean, variance (over n) and n of rows (R, P, C) whose last one counts ``copies`` times: those of both parts,
    joined as Chan, Golub and LeVeque (1983) join them."""
    places = x.shape[1]
    own = len(x) - bool(copies)
    parts = [(x[:own], own * places), (x[own:], copies * places)]
    found = [(torch.batch_norm_update_stats(part.flatten(0, 1), None, None, 0.0), n) for part, n in parts if n]
    (mean, var), n = found[0]
    if len(found) == 2:
        (other, other_var), m = found[1]
        total = n + m
        apart = (other - mean) * (m / total)
        var = var * (n / total) + other_var * (m / total) + apart.square() * (n / m)
        return mean + apart, var, total
    return mean, var, n


class _Normalised(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        sizes: Sequence[int],
        copies: Sequence[int],
        running: tuple[Tensor, Tensor],
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = x.contiguous()
        y, kept = torch.empty_like(x), []
        for part, out, count in zip(x.flatten(1, -2).split(sizes), y.flatten(1, -2).split(sizes), copies, strict=True):
            mean, var, n = moments(part, count)
            kept += [mean, var]
            flat = torch.batch_norm(part.flatten(0, 1), weight, bias, mean, var, False, 0.0, eps, False)
            out.copy_(flat.view_as(out))
            running[0].lerp_(mean, momentum)
            running[1].lerp_(var * (n / max(n - 1, 1)), momentum)
        ctx.sizes, ctx.copies, ctx.eps = sizes, copies, eps
        ctx.save_for_backward(x, weight, *kept)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        x, weight, *kept = ctx.saved_tensors
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        parts = [tensor.flatten(1, -2).split(ctx.sizes) for tensor in (x, upstream.contiguous())]
        outs = dx.flatten(1, -2).split(ctx.sizes) if dx is not None else parts[0]
        dw, db = torch.zeros_like(weight), torch.zeros_like(weight)
        for part, up, out, count, mean, var in zip(*parts, outs, ctx.copies, kept[::2], kept[1::2], strict=True):
            scale = torch.rsqrt(var + ctx.eps)
            _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
                up.flatten(0, 1), part.flatten(0, 1), weight, mean, var, None, None, False, ctx.eps, [False, True, True]
            )
            dw += of_weight
            db += of_bias
            if dx is not None:
                own = len(part) - bool(count)
                n = (own + count) * part.shape[1]
                # w s (dy - (db + (x - mean) s dw) / n), as p dy + q x + r; what is shared takes q and r for each.
                p, q = weight * scale, -weight * scale * scale * of_weight / n
                r = -p * of_bias / n - q * mean
                torch.addcmul(r, part[:own], q, out=out[:own]).addcmul_(up[:own], p)
                if count:
                    torch.addcmul(r, part[own:], q, out=out[own:]).mul_(count).addcmul_(up[own:], p)
        return dx, dw, db, None, None, None, None, None
