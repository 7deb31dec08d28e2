"""Mixed precision: an encoder's recurrent net and head in a low precision, beside the float32 weights that learn.

A working copy is refreshed once per step and called as often as the step likes; autocast would cast the recurrent net's
weights, and lay them out for cuDNN, at every call. Input norm, unit length, loss, bank, optimizer and key encoder's
update stay in float32.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from fastmc.encoder import Encoder


class WorkingCopy:
    """What computes in place of an encoder.

    Attributes:
        encoder: to be called. Its input norm is the master's own, statistics and gradients included; its recurrent net
            and head hold the master's weights as they were at the last `refresh`. In float32 all its parts are the
            master's own; it is another object, so that what is compiled for a step serves no call of other shapes.
    """

    def __init__(self, master: Encoder, dtype: torch.dtype) -> None:
        """Copies the weights, and allocates the gradients that `collect_` fills. ``dtype``: of net and head."""
        self.encoder = copy.copy(master)
        self._masters: list[Tensor] = []
        self._copies: list[Tensor] = []
        if dtype == master.dtype:
            return
        self.encoder = copy.deepcopy(master)
        self.encoder.norm = master.norm
        self.encoder.recurrent.to(dtype)
        self.encoder.head.to(dtype)
        for part in ("recurrent", "head"):
            self._masters += getattr(master, part).parameters()
            self._copies += getattr(self.encoder, part).parameters()
        self._gradients = [torch.empty_like(p) for p in self._masters]

    @torch.no_grad()
    def refresh(self) -> None:
        """Begin a step: round the master's weights, in one call for all of them."""
        self.encoder.train()
        if self._copies:
            torch._foreach_copy_(self._copies, self._masters)

    @torch.no_grad()
    def collect_(self) -> None:
        """Widen the gradients of a backward pass into those of the master, in one call; no master keeps older ones."""
        if not self._copies:
            return
        torch._foreach_copy_(self._gradients, [_gradient(p) for p in self._copies])
        for master, gradient, working in zip(self._masters, self._gradients, self._copies, strict=True):
            master.grad, working.grad = gradient, None


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None, "a backward pass has reached every weight"
    return weight.grad
