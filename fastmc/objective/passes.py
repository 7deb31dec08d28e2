"""Passes over the whole bank, of one block of samples each: by PyTorch's operators, chunk by chunk.

`fastmc.objective.chunked` makes losses, gradients and steps of what a pass gives; `fastmc.objective.cpp_passes` has the
same passes in C++.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from fastmc.objective.attention import BIT, Block, Contrast, Keys, Metrics, Mined, Scratch, Sums, shaped


class Ascending(NamedTuple):
    """Eq. 7 with its numbers; ``velocity`` is changed as the bank is."""

    velocity: Tensor
    lr: float
    momentum_factor: float
    weight_decay: float


class OfOthers(Protocol):
    """Sums over every candidate but f0, as `fastmc.objective.attention.Sums` has them."""

    block: Block
    shift: Tensor | None

    def exponential(self, similarity: Tensor) -> Tensor: ...

    def others(self) -> Tensor: ...


class KeysOfOthers(OfOthers, Protocol):
    """As `fastmc.objective.attention.Keys`."""

    def keys_of_others(self) -> Tensor: ...


class Measured(Protocol):
    """As `fastmc.objective.attention.Metrics`."""

    def nearest(self) -> Tensor: ...

    def lse(self) -> Tensor: ...


class Swept(NamedTuple):
    """``keys`` at the block's temperature; ``sums`` of the weights that were kept, and the metrics, at the second;
    ``mined`` as from `fastmc.objective.attention.Mined`, of a table that mines."""

    keys: KeysOfOthers
    sums: OfOthers
    metrics: Measured
    mined: Tensor | None


class Passes:
    """Over the bank of a contrast."""

    def __init__(self, contrast: Contrast) -> None:
        self.contrast = contrast
        self._scratch = Scratch(contrast)

    def kept(self) -> Tensor:
        """Memory for the weights of a block, until their sums are known: 17 MB at the product size."""
        contrast = self.contrast
        return contrast.bank.new_empty(len(contrast.bank) * contrast.rows_per_sample * contrast.block_size)

    def largest_logit(self, block: Block, positive: Tensor) -> Tensor:
        """(r, n) exact maximum over all candidates, for a shift."""
        largest = block.per_row(positive) / (block.temperature * BIT)
        for chunk in self.contrast.chunks():
            logits = self._logits(block, self._scratch.rows(chunk), chunk)
            torch.maximum(largest, logits.view(-1, block.r, block.n).amax(dim=0), out=largest)
        return largest

    def sweep(
        self, block: Block, second_temperature: float, *, keys: bool, metrics: bool, kept: Tensor | None
    ) -> Swept:
        """What the block finds in the bank: as far as ``keys`` and ``metrics`` say, and the rest only where its weights
        are to be ``kept``."""
        first, second = Keys(block, block.temperature), Sums(block, second_temperature)
        measured = Metrics(block, second_temperature)
        mined = Mined(block, self.contrast.table.mined) if self.contrast.table.mined else None
        ratio, of = block.temperature / second_temperature, self.contrast.table.measured
        for chunk in self.contrast.chunks():
            m = self._scratch.rows(chunk)
            logits = self._logits(block, m, chunk)
            if mined is not None:
                mined.add(logits, chunk.start)
            if keys:
                e = self._exponentials(logits)
                first.add(e)
                first.add_weights(block.weights(e, chunk), m)
            if kept is not None:
                e = self._exponentials(logits, ratio)
                second.add(e)
                block.weights(e, chunk, out=self._of_chunk(kept, block, chunk))
                measured.add(logits[:, of], e[:, of])
            elif metrics:
                measured.add(logits[:, of].mul_(ratio))
        return Swept(first, second, measured, None if mined is None else mined.entries())

    def ascend_(
        self,
        block: Block,
        kept: Tensor,
        scale: Tensor,
        queries: Tensor,
        gradient: Tensor,
        ascending: Ascending,
        allowed: Tensor | None,
    ) -> None:
        """The block's part of the bank's gradient from its weights; with the last block comes the step.

        Args:
            kept: is spoiled.
            scale, queries: see `Block.pull_`.
            gradient: (K, D), that of earlier blocks, or as many rows as a chunk has where there is but one block.
            allowed: a scalar; where it is False, everything is left as it is.
        """
        for chunk in self.contrast.chunks():
            whole = len(gradient) == len(self.contrast.bank)
            part = gradient[chunk] if whole else gradient[: chunk.stop - chunk.start]
            block.pull_(part, self._of_chunk(kept, block, chunk), scale, queries, add=not block.is_first)
            if block.is_last:
                self._step_(chunk, part, ascending, allowed)

    def bank_gradient_(self, block: Block, scale: Tensor, queries: Tensor, gradient: Tensor) -> None:
        """The block's part of the bank's gradient (K, D), of weights at its own temperature."""
        for chunk in self.contrast.chunks():
            e = self._exponentials(self._logits(block, self._scratch.rows(chunk), chunk))
            block.pull_(gradient[chunk], block.weights(e, chunk), scale, queries, add=not block.is_first)
            if block.is_last:
                self._scratch.through_normalisation_(gradient[chunk], chunk)

    def _logits(self, block: Block, m: Tensor, chunk: slice) -> Tensor:
        return block.logits(m, chunk, self._scratch.logits(len(m), block.columns, block.n))

    def _exponentials(self, logits: Tensor, factor: float = 1) -> Tensor:
        """exp of logits (k, columns, n) times a factor; the logits are multiplied in place."""
        if factor != 1:
            logits *= factor
        return torch.exp2(logits, out=self._scratch.exponentials(*logits.shape))

    def _of_chunk(self, kept: Tensor, block: Block, chunk: slice) -> Tensor:
        """Where the weights (k, r, n) of a chunk are."""
        return shaped(kept, len(self.contrast.bank), block.r, block.n)[chunk]

    def _step_(self, chunk: slice, gradient: Tensor, ascending: Ascending, allowed: Tensor | None) -> None:
        """From the gradient to the unit rows of a chunk."""
        rows, velocity = self.contrast.bank[chunk], ascending.velocity[chunk]
        along = self._scratch.along(gradient, chunk).add_(ascending.weight_decay)
        moved = velocity if allowed is None else velocity.clone()
        inverse = self._scratch.inverse[chunk]
        moved.mul_(ascending.momentum_factor).addcmul_(gradient, inverse, value=-1).addcmul_(rows, along)
        if allowed is None:
            rows.sub_(moved, alpha=ascending.lr)
            return
        velocity.copy_(torch.where(allowed, moved, velocity))
        rows.copy_(torch.where(allowed, rows - ascending.lr * moved, rows))
