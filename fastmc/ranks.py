"""The processes (ranks) that train one model together, as far as the library knows of them: rows and sums of all.

`Alone` is one process; `train.engine.ranks` has several, by the same methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Alone:
    """One process: its rows are all rows.

    Attributes:
        rank: number of this process, and size: how many there are.
    """

    rank, size = 0, 1

    def stack(self, tensor: Tensor) -> Tensor:
        """(size, ...) the tensors of all ranks, which are of one shape and dtype; no gradient goes through it."""
        return tensor[None]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks; no gradient goes through it."""
        return tensor

    def __deepcopy__(self, memo: dict[int, Any]) -> Alone:
        """Itself: a network that is copied stays among the same ranks."""
        return self


ALONE = Alone()


def shares(count: int, size: int) -> tuple[int, ...]:
    """How many of ``count`` rows each of ``size`` ranks takes, as torch.tensor_split cuts them."""
    each, more = divmod(count, size)
    return tuple(each + (rank < more) for rank in range(size))


def rows_of_all(ranks: Alone, tensor: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all ranks, (sum(counts), ...), those of the first one first; no gradient goes through it.

    Args:
        tensor: (counts[rank], ...), this rank's rows.
        counts: how many rows each rank has. All send as many as the most of them.
    """
    if ranks.size == 1:
        return tensor
    padded = tensor
    if len(tensor) < max(counts):
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
    return torch.cat([part[:count] for part, count in zip(ranks.stack(padded), counts, strict=True)])


def gathered(ranks: Alone, tensors: Sequence[Tensor], counts: Sequence[int]) -> tuple[Tensor, ...]:
    """As `rows_of_all`, of several tensors of one dtype in one exchange, for a loss that every rank computes of them.

    Backwards each rank takes its own rows: the loss of all ranks is one and the same, not a sum over them.
    """
    return tuple(tensors) if ranks.size == 1 else _Gathered.apply(ranks, counts, *tensors)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Alone, counts: Sequence[int], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        first = sum(counts[: ranks.rank])
        ctx.own = slice(first, first + counts[ranks.rank])
        flat = [tensor.detach().flatten(1) if tensor.dim() > 1 else tensor.detach()[:, None] for tensor in tensors]
        rows = rows_of_all(ranks, torch.cat(flat, dim=1), counts)
        parts = rows.split([part.shape[1] for part in flat], dim=1)
        return tuple(
            part.reshape(-1, *tensor.shape[1:]).contiguous() for part, tensor in zip(parts, tensors, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        return None, None, *(None if gradient is None else gradient[ctx.own] for gradient in upstream)


def stacked(ranks: Alone, tensor: Tensor) -> Tensor:
    """As `Alone.stack`, for numbers that each rank goes on to use for its own rows, such as the parts of a mean.

    Backwards the gradients of all ranks are summed: what one rank gave is in the results of all.
    """
    return _Stacked.apply(ranks, tensor)


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks: Alone, tensor: Tensor) -> Tensor:
        ctx.ranks = ranks
        return ranks.stack(tensor.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return None, ctx.ranks.sum(upstream)[ctx.ranks.rank]
