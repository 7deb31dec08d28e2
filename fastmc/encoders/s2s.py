"""The encoder of HiCo: a clip as a sequence of frames and as a sequence of joints, each at several resolutions.

Dong, Sun, Liu, Chen, Liu, Zheng and Wang (2023), AAAI, arXiv 2212.02082. In each branch tokens are embedded; at each
level a sequence-to-sequence net reads them all, and the largest of each number over the tokens is the level's part of
the representation; then the tokens before the net are halved.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastmc.checks import Count, Probability
from fastmc.encoders.base import ClipShape, Encoder, EncoderConfig, mlp_head, size_of
from fastmc.encoders.layers import dropped
from fastmc.encoders.recurrent import on_gpu

TAPS = 5


@dataclass(frozen=True)
class S2SConfig(EncoderConfig):
    """HiCo encoder. ``512`` is the released one (3.9M parameters, 4,096 numbers)."""

    encoder: str = "512"
    """Width of the tokens."""
    levels: Count = 4
    """Resolutions of each branch."""
    sequence: Literal["transformer", "gru", "lstm"] = "transformer"
    """Net that reads the tokens: a transformer layer without a code of places, or one layer of a net in both
    directions."""
    heads: Count = 4
    """Of the transformer's attention."""
    dropout: Probability = 0.0
    """Of the transformer, while training; released codes have 0.1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (2 * self.heads):
            raise ValueError(f"encoder must be a WIDTH that twice the heads divide, got {self.encoder!r}")

    @property
    def says(self) -> str:
        """Such as S2S 512."""
        return f"S2S {self.encoder}, {self.sequence}"

    @property
    def width(self) -> int:
        """Of the tokens."""
        return size_of(self.encoder, "WIDTH", "512")[0]


class Halving(nn.Module):
    """Tokens (n, L, D) to (n, L // 2, D): each channel's convolution over 5 tokens, the larger of each two."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, TAPS, padding=TAPS // 2, groups=width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.convolution(x.transpose(1, 2)).transpose(1, 2)))
        return F.max_pool1d(x.transpose(1, 2), 2).transpose(1, 2)


def _repeatable(q: Tensor) -> AbstractContextManager[object]:
    """Within: the gradient of attention has the same bits each time. The fused kernels of a GPU add up that of the
    queries in whichever order; of so few tokens the plain products cost little more."""
    return sdpa_kernel(SDPBackend.MATH) if on_gpu(q) and q.requires_grad else nullcontext()


class TransformerLayer(nn.Module):
    """nn.TransformerEncoderLayer of tokens (n, L, D), norms last, by operators that exporters know and that have the
    same derivative in training and in evaluation."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.share = heads, dropout
        self.asked, self.answer = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        for layer in (self.asked, self.answer, self.wide, self.narrow):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.asked(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        share = self.share if self.training else 0.0
        with _repeatable(q):
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=share).transpose(1, 2).flatten(2)
        x = self.norm(x + dropped(self.answer(y), share, self.training))
        y = self.narrow(dropped(F.relu(self.wide(x)), share, self.training))
        return self.norm_out(x + dropped(y, share, self.training))


class Branch(nn.Module):
    """Tokens (n, L, numbers) to (n, levels * D)."""

    def __init__(self, numbers: int, config: S2SConfig) -> None:
        super().__init__()
        width, self.levels = config.width, config.levels
        self.embedding = nn.Sequential(
            nn.Linear(numbers, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width)
        )
        self.halving = Halving(width)
        self.sequence: nn.Module
        if config.sequence == "transformer":
            self.sequence = TransformerLayer(width, config.heads, config.dropout)
        else:
            net = nn.GRU if config.sequence == "gru" else nn.LSTM
            self.sequence = net(width, width // 2, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x, found = self.embedding(tokens), []
        for level in range(self.levels):
            x = self.halving(x) if level else x
            y = self.sequence(x)
            found.append((y[0] if isinstance(y, tuple) else y).amax(1))
        return torch.cat(found, dim=1)


class S2S(Encoder):
    """Clips (n, 3, T, V, M), all of the T frames that it is made for, to (n, 2 * levels * D): the levels of the frames'
    branch, then those of the joints'."""

    Config = S2SConfig
    presets: ClassVar = {"small": {"encoder": "256"}, "tiny": {"encoder": "128", "levels": 2}}
    layout = "graph"
    compiled = ("after",)
    config: S2SConfig

    def __init__(self, config: S2SConfig, shape: ClipShape) -> None:
        super().__init__(config, shape)
        tokens = min(shape.frames, shape.joints * shape.bodies)
        if tokens >> (config.levels - 1) == 0:
            raise ValueError(f"levels = {config.levels} halve {tokens} tokens to none; give fewer, or more --frames")
        self.of_frames, self.of_joints = Branch(shape.width, config), Branch(3 * shape.frames, config)
        self.representation_dim = 2 * config.levels * config.width
        self.head = mlp_head(self.representation_dim, config.feature_dim, config.head_width)

    def body(self, x: Tensor, views: int) -> Tensor:
        if x.shape[2] != self.shape.frames:
            raise ValueError(f"x has {x.shape[2]} frames, and S2S was made for {self.shape.frames}; give --frames")
        x = x.to(self.dtype)
        frames, joints = x.permute(0, 2, 4, 3, 1).flatten(2), x.permute(0, 4, 3, 2, 1).flatten(1, 2).flatten(2)
        return torch.cat((self.of_frames(frames), self.of_joints(joints)), dim=1)
