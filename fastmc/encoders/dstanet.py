"""DSTA-Net: attention between the joints of a body, with one map for all of its frames, and convolution over time.

Shi, Zhang, Cheng and Lu (2020), ACCV. A block's input x (C channels), with q_h, k_h linear maps of x + P, P a code of
the joint's place, G_h learnt maps and a_h learnt scales:

    S_h = a_h tanh(sum_tc q_h k_h / (c T)) + G_h        (V x V), no softmax and no value map
    y = norm([S_h^T x for all heads] W)                  over joints
    y = leaky(res(x) + norm(leaky(res(x) + y) W'))
    out = leaky(res(y) + norm(conv_7(y)))                or attention over the frames in the place of conv_7

A shortcut (res) is the input itself where width and frames stay, else a linear map and a norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.checks import Count
from fastmc.encoders.base import ClipShape, Encoder, EncoderConfig, mlp_head, size_of
from fastmc.encoders.layers import (
    ChannelNorm,
    Pointwise,
    Temporal,
    around,
    bodies,
    mean_of_bodies,
    over_joints,
    rows_for,
)
from fastmc.encoders.rows import Rows

TAPS, SLOPE = 7, 0.1


@dataclass(frozen=True)
class DSTANetConfig(EncoderConfig):
    """DSTA-Net encoder. ``64`` is the released one for NTU (3.8M parameters)."""

    encoder: str = "64"
    """Channels of the first blocks; the representation has four times as many, by the default --blocks."""
    blocks: tuple[Count, ...] = (2, 2, 4)
    """Blocks of the first width, of twice it, of four times it and so on; all but the first begin with half as many
    frames."""
    heads: Count = 3
    """Maps of each attention."""
    over_time: Literal["convolution", "attention", "learnt-attention"] = "convolution"
    """convolution: over 7 frames, as the released settings for NTU have it. attention: between frames, as the paper
    has it. learnt-attention: that with a learnt map beside, of the run's number of frames."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks:
            raise ValueError("blocks must name at least one number, such as 2 2 4")
        if self.width % 4:
            raise ValueError(f"encoder must be a WIDTH that 4 divides, such as 64, got {self.encoder!r}")

    @property
    def says(self) -> str:
        """Such as DSTA-Net 64."""
        return f"DSTA-Net {self.encoder}"

    @property
    def width(self) -> int:
        """Channels of the first blocks."""
        return size_of(self.encoder, "WIDTH", "64")[0]

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """(channels in, channels, stride) of each block."""
        found, before = [], self.width
        for step, count in enumerate(self.blocks):
            for first in range(count):
                found.append((before, self.width * 2**step, 2 if step and not first else 1))
                before = self.width * 2**step
        return found


def places(count: int, channels: int) -> Tensor:
    """Sines and cosines of each place at falling frequencies, (count, channels): Vaswani et al. (2017)."""
    frequency = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    angle = torch.arange(count)[:, None] * frequency
    return torch.stack((angle.sin(), angle.cos()), dim=2).flatten(1)[:, :channels]


class Attention(nn.Module):
    """Between places, which are joints (with one map for all frames) or frames (with one for all joints)."""

    def __init__(self, channels_in: int, channels: int, width: int, count: int, heads: int, *, learnt: str) -> None:
        super().__init__()
        self.heads = heads
        self.ask = nn.Linear(channels_in, 2 * heads * width)
        self.scale = nn.Parameter(torch.ones(1, heads, 1, 1))
        start = torch.full((count, count), 1 / count) if learnt == "even" else torch.eye(count)
        self.learnt = nn.Parameter(start.expand(1, heads, -1, -1).clone()) if learnt else None
        self.out = Pointwise(heads * channels_in, channels)
        self.register_buffer("places", places(count, channels_in), persistent=False)
        self.places: Tensor

    def queries_and_keys(self, x: Tensor, dim: int) -> Tensor:
        """(2, R, heads, places, numbers) of x (R, T, V, C), whose places are those of ``dim``; what a place asks for is
        added to the linear map of x, which saves x + P."""
        count = x.shape[0]
        bias = F.linear(self.places[: x.shape[dim]], self.ask.weight, self.ask.bias)
        bias = bias if dim == 2 else bias[:, None]
        asked = (F.linear(x, self.ask.weight) + bias).unflatten(3, (2, self.heads, -1))
        order = (3, 0, 4, 2, 1, 5) if dim == 2 else (3, 0, 4, 1, 2, 5)
        return asked.permute(order).reshape(2, count, self.heads, x.shape[dim], -1)

    def maps(self, x: Tensor, dim: int) -> Tensor:
        """(R, heads, from, to)."""
        q, k = self.queries_and_keys(x, dim)
        found = torch.tanh(q @ k.transpose(2, 3) / q.shape[3]) * self.scale
        return found if self.learnt is None else found + self.learnt


class SpaceAttention(Attention):
    """(R, T, V, C) to (R, T, V, C'), between joints."""

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        return self.out(over_joints(x, self.maps(x, 2).permute(0, 3, 1, 2).flatten(1, 2)), rows)


class TimeAttention(Attention):
    """(R, T, V, C) to (R, T, V, C'), between frames."""

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        count, frames, joints, channels = x.shape
        taken = torch.bmm(self.maps(x, 1).transpose(2, 3).flatten(1, 2), x.flatten(2))
        taken = taken.view(count, self.heads, frames, joints, channels).permute(0, 2, 3, 1, 4)
        return self.out(taken.flatten(3), rows)


class Block(nn.Module):
    """(R, T, V, C) to (R, T / stride, V, C')."""

    def __init__(self, channels_in: int, channels: int, stride: int, shape: ClipShape, config: DSTANetConfig) -> None:
        super().__init__()
        width, changes = channels // 4, channels_in != channels or stride != 1
        self.space = SpaceAttention(channels_in, channels, width, shape.joints, config.heads, learnt="even")
        self.space_forward = Pointwise(channels, channels)
        self.around_space = shortcuts(channels_in, channels, (1, 1), changes)
        self.time = None
        if config.over_time == "convolution":
            self.temporal, self.temporal_norm = Temporal(channels, channels, TAPS, stride), ChannelNorm(channels)
            self.around_time = shortcuts(channels, channels, (None, stride), changes)
        else:
            learnt = "itself" if config.over_time == "learnt-attention" else ""
            self.time = TimeAttention(channels, channels, width, shape.frames, config.heads, learnt=learnt)
            self.time_forward = Pointwise(channels, channels, stride)
            self.around_time = shortcuts(channels, channels, (1, stride), changes)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        first, second = self.around_space
        y = leaky(self.space(x, rows) + around(first, x, rows))
        y = leaky(self.space_forward(y, rows) + around(second, x, rows))
        first, second = self.around_time
        if self.time is None:
            return leaky(self.temporal_norm(self.temporal(y), rows) + around(second, y, rows))
        z = leaky(self.time(y, rows) + around(first, y, rows))
        return leaky(self.time_forward(z, rows) + around(second, y, rows))


def shortcuts(channels_in: int, channels: int, strides: tuple[int | None, int], changes: bool) -> nn.ModuleList:
    """The two shortcuts around an attention and what follows it; None for the input itself, and for what is not
    used."""
    parts = [Pointwise(channels_in, channels, stride) if changes and stride else None for stride in strides]
    return nn.ModuleList(parts)  # type: ignore[arg-type]


def leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE, inplace=True)


class DSTANet(Encoder):
    """Clips (n, 3, T, V, M), whose bodies are rows of their own, to the mean over frames, joints and bodies, (n, H)."""

    Config = DSTANetConfig
    presets: ClassVar = {
        "small": {"encoder": "32", "blocks": (1, 1, 2)},
        "tiny": {"encoder": "16", "blocks": (1, 1, 1)},
    }
    layout = "graph"
    compiled = ("body", "after")
    config: DSTANetConfig

    def __init__(self, config: DSTANetConfig, shape: ClipShape) -> None:
        super().__init__(config, shape)
        self.entry = Pointwise(3, config.width)
        frames, blocks = shape.frames, []
        for channels_in, channels, stride in config.layers:
            blocks.append(Block(channels_in, channels, stride, shape._replace(frames=frames), config))
            frames = -(-frames // stride)
        self.blocks = nn.ModuleList(blocks)
        self.representation_dim = config.layers[-1][1]
        self.head = mlp_head(self.representation_dim, config.feature_dim, config.head_width)

    def body(self, x: Tensor, views: int) -> Tensor:
        if self.config.over_time != "convolution" and x.shape[2] > self.shape.frames:
            raise ValueError(
                f"x has {x.shape[2]} frames, and the attention over time was made for {self.shape.frames}; "
                "give --frames"
            )
        rows = rows_for(self, x, views)
        x = leaky(self.entry(rows.take(bodies(x)).to(self.dtype), rows))
        for block in self.blocks:
            x = block(x, rows)
        return mean_of_bodies(x, rows, self.shape.bodies)
