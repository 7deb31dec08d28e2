"""HCN: convolutions over frames, then over joints as if they were channels, of positions and of their motion.

Li, Zhong, Xie and Pu (2018), IJCAI, as ISC uses it (Thoker, Doughty and Snoek 2021). Each body is a picture of its own;
of several bodies the largest of each number is taken. It has no batch norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.checks import Probability
from fastmc.encoders.base import ClipShape, Encoder, EncoderConfig, mlp_head, size_of
from fastmc.encoders.layers import rows_for

HALVINGS = 4


@dataclass(frozen=True)
class HCNConfig(EncoderConfig):
    """HCN encoder. ``64`` is that of ISC (0.52M parameters, 17.3M more in its head)."""

    encoder: str = "64"
    """Channels of the first convolution; the last one has four times as many."""
    dropout: Probability = 0.0
    """Of whole channels, after three of the convolutions, while training; released codes have 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 2:
            raise ValueError(f"encoder must be an even WIDTH, such as 64, got {self.encoder!r}")

    @property
    def says(self) -> str:
        """Such as HCN 64."""
        return f"HCN {self.encoder}"

    @property
    def width(self) -> int:
        """Channels of the first convolution."""
        return size_of(self.encoder, "WIDTH", "64")[0]


class Branch(nn.Module):
    """Bodies (R, 3, T, V) to (R, C, T / 4, T / 4): the second convolution has as many channels as there are frames, and
    they become the second axis of a picture whose channels are the joints."""

    def __init__(self, shape: ClipShape, width: int) -> None:
        super().__init__()
        self.point = nn.Conv2d(3, width, 1)
        self.frames = nn.Conv2d(width, shape.frames, (3, 1), padding=(1, 0))
        self.joints = nn.Conv2d(shape.joints, width // 2, 3, padding=1)
        self.picture = nn.Conv2d(width // 2, width, 3, padding=1)

    def forward(self, x: Tensor, dropout: float) -> Tensor:
        x = self.frames(F.relu(self.point(x), inplace=True)).permute(0, 3, 2, 1)
        x = F.max_pool2d(self.joints(x.contiguous()), 2)
        return F.max_pool2d(F.dropout2d(self.picture(x), dropout, dropout > 0), 2)


def stretched(x: Tensor) -> Tensor:
    """(R, C, T - 1, V) to (R, C, T, V): ``F.interpolate`` of the frames, bilinear. Its gradient on a GPU adds up in
    whichever order, so that no run would repeat another bit for bit."""
    frames = x.shape[2] + 1
    later = 1 - (torch.arange(frames, dtype=x.dtype, device=x.device) + 0.5) / frames  # the share of the later frame
    return torch.lerp(torch.cat((x[:, :, :1], x), 2), torch.cat((x, x[:, :, -1:]), 2), later[:, None])


class HCN(Encoder):
    """Clips (n, 3, T, V, M), all of the T frames that it is made for, to (n, 4 C (T / 16)^2)."""

    Config = HCNConfig
    presets: ClassVar = {"small": {"encoder": "32"}, "tiny": {"encoder": "16"}}
    layout = "graph"
    compiled = ("body", "after")
    config: HCNConfig

    def __init__(self, config: HCNConfig, shape: ClipShape) -> None:
        super().__init__(config, shape)
        side = shape.frames >> HALVINGS
        if not side:
            raise ValueError(f"HCN halves its {shape.frames} frames four times; give --frames 16 or more")
        width = config.width
        self.positions, self.motion = Branch(shape, width), Branch(shape, width)
        self.joined = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.last = nn.Conv2d(2 * width, 4 * width, 3, padding=1)
        self.representation_dim = 4 * width * side * side
        self.head = mlp_head(self.representation_dim, config.feature_dim, config.head_width)

    def body(self, x: Tensor, views: int) -> Tensor:
        if x.shape[2] != self.shape.frames:
            raise ValueError(f"x has {x.shape[2]} frames, and HCN was made for {self.shape.frames}; give --frames")
        rows = rows_for(self, x, views, self.config.dropout)
        x = rows.take(x.permute(0, 4, 1, 2, 3).flatten(0, 1))
        share = self.config.dropout if self.training else 0.0
        motion = stretched(x[:, :, 1:] - x[:, :, :-1])  # in float32 where the rest is rounded
        branches = (self.positions(x.to(self.dtype), share), self.motion(motion.to(self.dtype), share))
        x = torch.cat(branches, dim=1)
        for convolution in (self.joined, self.last):
            x = F.max_pool2d(F.dropout2d(F.relu(convolution(x), inplace=True), share, share > 0), 2)
        return rows.give(x.flatten(1)).unflatten(0, (-1, self.shape.bodies)).amax(1)
