"""The processes that train one model together, as far as the loop and its step know of them. So far there is one."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor


class World:
    """One process: nothing to gather, nothing to wait for. Several will be a class of the same methods.

    Attributes:
        rank: number of this process, and size: how many there are.
    """

    rank, size = 0, 1

    def part(self, order: Tensor, batch_size: int) -> Tensor:
        """This process's clips of an epoch's order (N,): of each batch of all processes a slice of ``batch_size``."""
        if self.size == 1:
            return order
        whole = len(order) // (batch_size * self.size) * batch_size * self.size
        return order[:whole].view(-1, self.size, batch_size)[:, self.rank].flatten()

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows of all processes, those of the first one first."""
        return tensor

    def mean_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes: gradients, before their norm is taken."""

    def any_(self, flag: Tensor) -> Tensor:
        """Whether () bool is true in any process, in all of them: a step that one skips is skipped by all."""
        return flag
