"""ST-GCN: graph convolution along the bones of a body and convolution over time, block after block.

Yan, Xiong and Lin (2018), arXiv 1801.07455; at a quarter of its width it is the encoder of CrosSCLR, AimCLR, HiCLR and
PSTL. With A_k (V, V) the parts of the graph, E_k learnt weights of its edges, and a block's input x:

    y = sum_k (A_k * E_k)^T x W_k            over joints (u -> v) and channels
    out = relu(norm(conv_9(relu(norm(y)))) + shortcut(x))

All maps are linear until the first norm, so that joints may be summed before channels are mixed: a block never has
more channels in than out, and the sum is then the smaller one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.arguments import working_dtype
from fastmc.checks import Count, Probability
from fastmc.encoders.base import ClipShape, Encoder, EncoderConfig, mlp_head, size_of
from fastmc.encoders.graphs import Partition, check_bones, neighbours
from fastmc.encoders.layers import (
    ChannelNorm,
    Temporal,
    around,
    bodies,
    dropped,
    mean_of_bodies,
    over_joints,
    rows_for,
    shortcut,
)
from fastmc.encoders.rows import Rows
from fastmc.ranks import ALONE, Alone


@dataclass(frozen=True)
class STGCNConfig(EncoderConfig):
    """ST-GCN encoder. ``16x256`` is that of CrosSCLR, AimCLR and HiCLR (0.82M parameters), ``64x256`` the original
    (3.1M)."""

    encoder: str = "16x256"
    """Channels of the first blocks x of the last one, which is the representation."""
    blocks: tuple[Count, Count, Count, Count] = (4, 3, 2, 1)
    """Blocks of one, two and four times the first width, the latter two beginning with half as many frames, and of the
    last one's."""
    partition: Partition = "spatial"
    """Parts of the graph. spatial: a joint, those farther from the root, those nearer to it. released: that as the
    released codes have it, whose second part holds most bones both ways. distance: joint and neighbours. uniform: one
    part."""
    edge_weights: bool = True
    """Learnt weights of the graph's edges, each block its own."""
    dropout: Probability = 0.0
    """Of a block's output, but the first one's, while training; released codes have 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.size

    @property
    def says(self) -> str:
        """Such as ST-GCN 16x256."""
        return f"ST-GCN {self.encoder}"

    @property
    def size(self) -> tuple[int, int]:
        """(channels of the first blocks, of the last)."""
        width, last = size_of(self.encoder, "WIDTHxLAST", "16x256")
        return width, last

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """(channels in, channels, stride) of each block."""
        width, last = self.size
        channels = [(width, 1), (2 * width, 2), (4 * width, 2), (last, 1)]
        steps = [
            (of, stride if first == 0 else 1)
            for (of, stride), count in zip(channels, self.blocks, strict=True)
            for first in range(count)
        ]
        before = [3, *(of for of, _ in steps)]
        return [(channels_in, of, stride) for channels_in, (of, stride) in zip(before, steps, strict=False)]


class GraphBlock(nn.Module):
    """(R, T, V, C) to (R, T / stride, V, C')."""

    def __init__(
        self, channels_in: int, channels: int, stride: int, graph: Tensor, *, first: bool, config: STGCNConfig
    ) -> None:
        super().__init__()
        self.mix = nn.Linear(channels_in, len(graph) * channels)
        self.edges = nn.Parameter(torch.ones_like(graph)) if config.edge_weights else None
        self.norm = ChannelNorm(channels)
        self.temporal = Temporal(channels, channels, 9, stride)
        self.norm_out = ChannelNorm(channels)
        self.first, self.dropout = first, 0.0 if first else config.dropout
        self.shortcut = None if first else shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor, graph: Tensor, rows: Rows) -> Tensor:
        y = self.along_bones(x, graph if self.edges is None else graph * self.edges)
        y = F.relu(self.norm(y, rows), inplace=True)
        y = dropped(self.norm_out(self.temporal(y), rows), self.dropout, self.training)
        return F.relu(y if self.first else y + around(self.shortcut, x, rows), inplace=True)

    def along_bones(self, x: Tensor, graph: Tensor) -> Tensor:
        """sum_k graph_k^T x W_k + b_k: joints first, since a block has no more channels in than out."""
        parts = len(graph)
        weight = self.mix.weight.unflatten(0, (parts, -1)).transpose(0, 1).flatten(1)
        bias = graph.sum(1).T @ self.mix.bias.unflatten(0, (parts, -1))
        return F.linear(over_joints(x, graph.permute(2, 0, 1).flatten(0, 1)), weight) + bias


def attention_drop(h: Tensor, ranks: Alone = ALONE, keep: float = 0.7) -> Tensor:
    """AimCLR's energy-based attention drop: what stands out is set to zero, first whole joints, then single numbers.

    Per row and channel e = (h - mean h)^2 and a = sigmoid(e / (4 (sum e / (T V - 1) + 1e-4)) + 1/2). A joint of a row
    stays if its mean a is below ``keep``, a number if its own is; what stays is divided by the share of the whole batch
    that does. Nothing is drawn, and no gradient goes through a.

    Args:
        h: (R, T, V, C). ranks: who share the batch.
    """
    with torch.no_grad():
        e = (h.to(working_dtype(h)) - h.mean((1, 2), keepdim=True, dtype=working_dtype(h))).square_()
        scale = 4 * (e.sum((1, 2), keepdim=True) / (h.shape[1] * h.shape[2] - 1) + 1e-4)
        attention = torch.sigmoid(e / scale + 0.5)
        joints = (attention.mean((1, 3), keepdim=True) < keep).to(attention.dtype)
        numbers = (attention < keep).to(attention.dtype)
        left = [joints.sum(), numbers.sum(), joints.new_full((), joints.numel()), joints.new_full((), h.numel())]
        of_joints, of_numbers, all_joints, all_numbers = ranks.sum(torch.stack(left)).unbind()
        mask = joints * (all_joints / of_joints) * numbers * (all_numbers / of_numbers)
    return h * mask.to(h.dtype)


class STGCN(Encoder):
    """Clips (n, 3, T, V, M), whose bodies are rows of their own, to the mean over frames, joints and bodies, (n, H)."""

    Config = STGCNConfig
    presets: ClassVar = {
        "small": {"encoder": "16x128", "blocks": (2, 2, 1, 1)},
        "tiny": {"encoder": "16x64", "blocks": (1, 1, 1, 1)},
    }
    layout = "graph"
    compiled = ("body", "after")
    config: STGCNConfig
    graph: Tensor

    def __init__(self, config: STGCNConfig, shape: ClipShape) -> None:
        super().__init__(config, shape)
        check_bones(shape.parents, config.says)
        self.register_buffer("graph", neighbours(shape.parents, config.partition), persistent=False)
        self.norm = ChannelNorm(3 * shape.joints)
        self.blocks = nn.ModuleList(
            GraphBlock(*layer, self.graph, first=i == 0, config=config) for i, layer in enumerate(config.layers)
        )
        self.representation_dim = config.size[1]
        self.head = mlp_head(self.representation_dim, config.feature_dim, config.head_width)

    def body(self, x: Tensor, views: int) -> Tensor:
        x, rows = self.before_pooling(x, views)
        return mean_of_bodies(x, rows, self.shape.bodies)

    def represent_and_drop(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Representations of one view (n, T, V * M * 3), (n, H) each: as `represent` has them, and with what
        `attention_drop` leaves of the last block's output."""
        clips = x.unflatten(2, (self.shape.joints, self.shape.bodies, 3)).permute(0, 4, 1, 2, 3)
        h, rows = self.before_pooling(clips, 1)
        h = rows.give(h)  # the drop counts over all bodies
        dropped_h = attention_drop(h, self.norm.ranks)
        whole, dropped = (mean_of_bodies(each, Rows(1), self.shape.bodies) for each in (h, dropped_h))
        return whole, dropped

    def before_pooling(self, x: Tensor, views: int) -> tuple[Tensor, Rows]:
        """The last block's output (R, T / 4, V, C), and which bodies its rows are."""
        rows = rows_for(self, x, views, self.config.dropout)
        x = rows.take(bodies(x))
        x = self.norm(x.flatten(2), rows).to(self.dtype).view_as(x)
        for block in self.blocks:
            x = block(x, self.graph, rows)
        return x, rows
