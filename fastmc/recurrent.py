"""The recurrent net of the encoder, in both readings of a bidirectional GRU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StepwiseGRU(nn.Module):
    """Per layer two GRUs, both forward in time, their outputs joined: what feeding a bidirectional GRU one frame at a
    time and carrying its state computes."""

    def __init__(self, input_size: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.GRU(input_size if layer == 0 else 2 * hidden, hidden, batch_first=True) for _ in range(2))
            for layer in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, F) to the final states of the last layer (B, 2 * hidden)."""
        for pair in self.layers:
            assert isinstance(pair, nn.ModuleList)
            x = torch.cat([gru(x)[0] for gru in pair], dim=-1)
        return x[:, -1]


class SequenceGRU(nn.GRU):
    """A bidirectional GRU whose output is the final states of both directions."""

    def __init__(self, input_size: int, hidden: int, layers: int) -> None:
        super().__init__(input_size, hidden, layers, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, T, F) to (B, 2 * hidden)."""
        _, final = super().forward(x)
        return torch.cat((final[-2], final[-1]), dim=-1)
