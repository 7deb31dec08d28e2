"""A bank of earlier features that a method's own loss reads, first in, first out, and the settings of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.checks import Count
from fastmc.methods.base import MethodConfig
from fastmc.objective.chunked import next_rows

FITTED: Mapping[str, Mapping[str, Any]] = {
    "small": {"bank_size": 4096, "fit_bank": True, "ema": 0.99},
    "tiny": {"bank_size": 1024, "fit_bank": True, "ema": 0.99},
}
"""Of presets whose sets and runs are small, for methods with a key encoder."""


@dataclass(frozen=True)
class BankConfig(MethodConfig):
    """Settings of a method with a bank."""

    bank_size: Count = 16384
    """K, entries of the bank."""
    fit_bank: bool = False
    """K is no larger than the training set: the power of two below its size. A larger bank would be filled by several
    keys of each clip, the very one's that it is to tell apart among them. So it is in presets small and tiny, unless
    --bank-size is given, or a --config file of your own says bank_size."""

    @property
    def says(self) -> str:
        return f"bank {self.bank_size}"

    def fitted(self, clips: int) -> Self:
        if not self.fit_bank or clips >= self.bank_size:
            return self
        return replace(self, bank_size=1 << max(0, clips.bit_length() - 1))


def check_mined(config: Any) -> None:
    """ValueError where a method would mine more rows of its bank than there are. ``config`` has mined and bank_size."""
    if config.mined > config.bank_size:
        raise ValueError(
            f"mined = {config.mined} is more than the {config.bank_size} rows of the bank; give a smaller --mined, or "
            "a larger --bank-size"
        )


class Fifo(nn.Module):
    """Rows that are replaced in turn; `fastmc.objective.bank.MemoryBank` is one that learns.

    Attributes:
        entries: (R, D) float32; random unit rows at first.
        cursor: int64 scalar, where the next write begins.
    """

    entries: Tensor
    cursor: Tensor

    def __init__(self, rows: int, dim: int, restart: int | None = None) -> None:
        """``rows`` is R and ``dim`` D. ``restart``: a write begins below this row, though it may end behind it; by
        default R, so that each row has its turn."""
        super().__init__()
        self.restart = restart or rows
        self.register_buffer("entries", F.normalize(torch.randn(rows, dim), dim=1))
        self.register_buffer("cursor", torch.zeros((), dtype=torch.int64))

    def writes(self, new: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """For `Found.writes`: the buffers, and what they become once ``new`` (n, D) is written from the cursor on, in
        its order; of more than R rows the last R stay. Nothing changes here, and nothing waits for the device."""
        size, count = len(self.entries), len(new)
        kept = new.detach()[-size:].to(self.entries.dtype)
        entries = self.entries.index_copy(0, next_rows(self.cursor, count, size), kept)
        return (self.entries, entries), (self.cursor, (self.cursor + count) % self.restart)

    def extra_repr(self) -> str:
        return f"rows={len(self.entries)}, dim={self.entries.shape[1]}"
