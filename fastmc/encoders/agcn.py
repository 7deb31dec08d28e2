"""AGCN: graph convolution whose graph is learnt, and adapted to each clip by attention between joints.

Shi, Zhang, Cheng and Lu (2019), CVPR (2s-AGCN), as ISC uses it (Thoker, Doughty and Snoek 2021). With the fixed parts
A_k of the graph, learnt B_k, and linear maps q_k, k_k to c channels of a block's input x:

    C_k = softmax_u(sum_tc q_k[u] k_k[v] / (c T))              what joint v takes of joint u
    y = relu(norm(sum_k (A_k + B_k + C_k)^T x W_k) + res(x))   over joints (u -> v) and channels
    out = relu(norm(conv_9(y)) + res(x))                       without the last term in the first block
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.checks import Count
from fastmc.encoders.base import ClipShape, Encoder, EncoderConfig, mlp_head, size_of
from fastmc.encoders.graphs import check_bones, directions
from fastmc.encoders.layers import (
    ChannelNorm,
    Temporal,
    around,
    mean_of_bodies,
    over_joints,
    rows_for,
    shortcut,
)
from fastmc.encoders.rows import Rows

START = 1e-6
"""Of the learnt graph, and of the scale of the norm after the graph convolution: a block begins as its shortcut."""


@dataclass(frozen=True)
class AGCNConfig(EncoderConfig):
    """AGCN encoder. ``64`` is that of ISC (3.45M parameters)."""

    encoder: str = "64"
    """Channels of the first blocks; the representation has four times as many."""
    blocks: tuple[Count, Count, Count] = (4, 3, 3)
    """Blocks of one, two and four times the first width; the latter two begin with half as many frames."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % 4:
            raise ValueError(f"encoder must be a WIDTH that 4 divides, such as 64, got {self.encoder!r}")

    @property
    def says(self) -> str:
        """Such as AGCN 64."""
        return f"AGCN {self.encoder}"

    @property
    def width(self) -> int:
        """Channels of the first blocks."""
        return size_of(self.encoder, "WIDTH", "64")[0]

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """(channels in, channels, stride) of each block."""
        found, before = [], 3
        for step, count in enumerate(self.blocks):
            for first in range(count):
                found.append((before, self.width * 2**step, 2 if step and not first else 1))
                before = self.width * 2**step
        return found


class AdaptiveGraph(nn.Module):
    """(R, T, V, C) to (R, T, V, C')."""

    def __init__(self, channels_in: int, channels: int, graph: Tensor) -> None:
        super().__init__()
        parts = len(graph)
        self.learnt = nn.Parameter(torch.full_like(graph, START))
        self.ask = nn.Linear(channels_in, 2 * parts * (channels // 4))
        self.mix = nn.Linear(channels_in, parts * channels)
        self.norm = ChannelNorm(channels)
        nn.init.constant_(self.norm.weight, START)
        self.shortcut = shortcut(channels_in, channels)

    def forward(self, x: Tensor, graph: Tensor, rows: Rows) -> Tensor:
        parts = len(graph)
        maps = (self.adapted(x, parts) + (graph + self.learnt)).permute(0, 3, 1, 2).flatten(1, 2)
        weight = self.mix.weight.unflatten(0, (parts, -1)).transpose(0, 1).flatten(1)
        y = F.linear(over_joints(x, maps), weight, self.mix.bias.unflatten(0, (parts, -1)).sum(0))
        return F.relu(self.norm(y, rows) + around(self.shortcut, x, rows), inplace=True)

    def adapted(self, x: Tensor, parts: int) -> Tensor:
        """C (R, parts, V, V), [u, v]: what joint v takes of joint u."""
        count, frames, joints, _ = x.shape
        asked = self.ask(x).view(count, frames, joints, 2, parts, -1).permute(3, 0, 4, 2, 1, 5)
        q, k = asked.reshape(2, count, parts, joints, -1)
        return torch.softmax(q @ k.transpose(2, 3) / q.shape[3], dim=2)


class AGCNBlock(nn.Module):
    """(R, T, V, C) to (R, T / stride, V, C')."""

    def __init__(self, channels_in: int, channels: int, stride: int, graph: Tensor, *, first: bool) -> None:
        super().__init__()
        self.space = AdaptiveGraph(channels_in, channels, graph)
        self.temporal = Temporal(channels, channels, 9, stride)
        self.norm = ChannelNorm(channels)
        self.first = first
        self.shortcut = None if first else shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor, graph: Tensor, rows: Rows) -> Tensor:
        y = self.norm(self.temporal(self.space(x, graph, rows)), rows)
        return F.relu(y if self.first else y + around(self.shortcut, x, rows), inplace=True)


class AGCN(Encoder):
    """Clips (n, 3, T, V, M) to the mean over frames, joints and bodies, (n, H). The input norm has other channels for
    each body; from there on bodies are rows."""

    Config = AGCNConfig
    presets: ClassVar = {
        "small": {"encoder": "32", "blocks": (1, 1, 2)},
        "tiny": {"encoder": "16", "blocks": (1, 1, 1)},
    }
    layout = "graph"
    compiled = ("body", "after")
    config: AGCNConfig
    graph: Tensor

    def __init__(self, config: AGCNConfig, shape: ClipShape) -> None:
        super().__init__(config, shape)
        check_bones(shape.parents, config.says)
        self.register_buffer("graph", directions(shape.parents), persistent=False)
        self.norm = ChannelNorm(shape.width)
        self.blocks = nn.ModuleList(
            AGCNBlock(*layer, self.graph, first=i == 0) for i, layer in enumerate(config.layers)
        )
        self.representation_dim = config.layers[-1][1]
        self.head = mlp_head(self.representation_dim, config.feature_dim, config.head_width)

    def body(self, x: Tensor, views: int) -> Tensor:
        rows = rows_for(self, x, views)
        x = x.permute(0, 2, 4, 3, 1)
        x = self.norm(x.flatten(2), Rows(views)).to(self.dtype).view(x.shape)
        x = rows.take(x.transpose(1, 2).flatten(0, 1))
        for block in self.blocks:
            x = block(x, self.graph, rows)
        return mean_of_bodies(x, rows, self.shape.bodies)
