"""impl="cpp": the algebra of `fastmc.objective.chunked` with passes in C++ (kernels/cpu/contrast.cpp).

A pass is one piece of work for all threads: they meet at its end, and nowhere else. Exponentials, sums and weights of a
row are made in one go, in cache, where PyTorch's operators go through megabytes for each.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastmc.objective import chunked
from fastmc.objective.attention import BIT, Block, Contrast, Softmax
from fastmc.objective.passes import Ascending, Passes, Swept
from kernels.cpu import contrast as cpu


class FusedSums(Softmax):
    """Sums (r, n) that are there."""

    def __init__(self, block: Block, temperature: float, sums: Tensor) -> None:
        super().__init__(block, temperature)
        self._sums = sums

    def others(self) -> Tensor:
        return self._sums


class FusedKeys(FusedSums):
    """Also the sums of the candidates, each times its exponential."""

    def __init__(self, block: Block, found: cpu.Found) -> None:
        super().__init__(block, block.temperature, found.sums)
        self._found = found

    def keys_of_others(self) -> Tensor:
        block, keys, share = self.block, self._found.keys, self._found.share
        if block.mixing is None:
            return keys
        return keys + (share @ block.v if block.contrast.tiled else share * block.v)


class FusedMetrics:
    """How the measured query does against the plain bank, at the bank's temperature."""

    def __init__(self, block: Block, temperature: float, found: cpu.Found) -> None:
        shift = 0 if block.shift is None else block.shift[block.contrast.table.measured]
        self._nearest = (found.nearest + shift) * (block.temperature / temperature * BIT)
        self._total = found.total

    def nearest(self) -> Tensor:
        return self._nearest

    def lse(self) -> Tensor:
        return self._nearest + self._total.log()


class FusedPasses(Passes):
    """In C++."""

    def __init__(self, contrast: Contrast) -> None:
        self.contrast = contrast
        self._bank = contrast.bank.contiguous()

    def largest_logit(self, block: Block, positive: Tensor) -> Tensor:
        logits = block.per_row(positive) / (block.temperature * BIT)
        return torch.maximum(logits, cpu.largest(self._rows(block)))

    def sweep(
        self, block: Block, second_temperature: float, *, keys: bool, metrics: bool, kept: Tensor | None
    ) -> Swept:
        found = cpu.sweep(self._rows(block), block.temperature / second_temperature, first=keys, kept=kept)
        return Swept(
            FusedKeys(block, found),
            FusedSums(block, second_temperature, found.second),
            FusedMetrics(block, second_temperature, found),
            found.mined.transpose(0, 1).flatten(1) if self.contrast.table.mined else None,
        )

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
        assert allowed is None or not block.is_last  # on a CPU values are looked at before a step
        velocity = ascending.velocity.contiguous()
        step = cpu.Step(velocity, *ascending[1:]) if block.is_last else None
        whole = gradient if len(gradient) == len(self._bank) else None
        self._pull(block, scale, queries, kept, whole, step)
        if block.is_last:
            for ours, given in ((self._bank, self.contrast.bank), (velocity, ascending.velocity)):
                if ours is not given:
                    given.copy_(ours)

    def bank_gradient_(self, block: Block, scale: Tensor, queries: Tensor, gradient: Tensor) -> None:
        self._pull(block, scale, queries, None, gradient, None)

    def _pull(
        self,
        block: Block,
        scale: Tensor,
        queries: Tensor,
        kept: Tensor | None,
        gradient: Tensor | None,
        step: cpu.Step | None,
    ) -> None:
        queries = queries.view(block.q, block.n, block.d)
        ends = {"add": not block.is_first, "finish": block.is_last}
        cpu.pull_(self._rows(block), queries, scale.contiguous(), block.soft, kept, gradient, step, **ends)

    def _rows(self, block: Block) -> cpu.Rows:
        table = self.contrast.table
        mixed = block.mixing is not None
        return cpu.Rows(
            self._bank,
            block.queries,
            block.mixing.contiguous() if block.mixing is not None else None,
            block.crossed.permute(1, 2, 0).contiguous() if mixed else None,
            None if block.shift is None else block.shift.contiguous(),
            [*range(block.p), *(query for _, query in block.apart)],
            block.p,
            block.n,
            table.measured,
            block.q,
            table.mined,
            table.unit,
        )


contrast_forward = partial(chunked.contrast_forward, passes=FusedPasses)
contrast_bank_gradient = partial(chunked.contrast_bank_gradient, passes=FusedPasses)
bank_step_ = partial(chunked.bank_step_, passes=FusedPasses)
contrast_step_ = partial(chunked.contrast_step_, passes=FusedPasses)
mined_rows = partial(chunked.mined_rows, passes=FusedPasses)
