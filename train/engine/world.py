"""The processes (ranks) that train one model together, as far as the loop and its step know of them: one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor
from torch.nn import Parameter

from fastmc.ranks import Alone, shares

Found = TypeVar("Found")


class World(Alone):
    """One process: nothing to gather, nothing to wait for. `train.engine.ranks.Ranks` is several, by the same methods.

    Attributes:
        device: name of the device that this process was given; None for the one of the settings.
    """

    device: str | None = None

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def part(self, order: Tensor, batch_size: int) -> Tensor:
        """This process's clips of an order (N,) of whole batches: of each batch of ``batch_size``, all ranks' clips
        together, its share as `fastmc.ranks.shares` counts them."""
        if self.size == 1:
            return order
        counts = shares(batch_size, self.size)
        first = sum(counts[: self.rank])
        return order.view(-1, batch_size)[:, first : first + counts[self.rank]].flatten()

    def gradient_sum(self, weights: Sequence[Parameter]) -> Callable[[], None]:
        """What replaces the gradient of each of these weights by the sum over all ranks, whenever it is called."""
        return lambda: None

    def agree(self, *numbers: int) -> tuple[int, ...]:
        """The largest of each number over all ranks: what the hosts decide, they decide together."""
        return numbers

    def first(self, action: Callable[[], Found]) -> Found:
        """The result of an action that rank 0 has done before the others begin with it, since it may write files."""
        return action()

    def check_same(self, facts: Mapping[str, Any]) -> None:
        """ValueError if a rank has other facts than rank 0; it names rank and fact."""

    def check_equal(self, tensors: Mapping[str, Tensor], when: str) -> None:
        """RanksDiffer if the bits of a tensor differ over the ranks; it names tensor and rank."""

    def no_graph_reason(self) -> str | None:
        """Why its exchanges cannot be part of a CUDA graph, as a sentence; None if they can."""
        return None

    @property
    def says(self) -> str | None:
        """A line for the log; None where there is nothing to say."""
        return None
