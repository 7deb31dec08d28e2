"""What encoders of bodies in space and time share: their layout, normalisation, convolution over time, shortcut.

Between layers a body is one row (R, T, V, C), channels last: products over channels, along bones and over frames then
read memory in order. Rows of a view lie together, so that statistics can be taken of each view on its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.encoders.base import Encoder
from fastmc.encoders.norm import ViewNorm, exchanges
from fastmc.encoders.rows import Rows, normalised, rows_of


class ChannelNorm(ViewNorm):
    """`ViewNorm` of rows (R, ..., C) over all but channels, in the dtype of its input."""

    def forward(self, x: Tensor, rows: Rows) -> Tensor:  # type: ignore[override]
        if not self.training:  # views do not matter, and an exporter shall see no number of them
            running = self.running_mean, self.running_var
            return F.batch_norm(x.flatten(0, -2), *running, self.weight, self.bias, eps=self.eps).view_as(x)
        if rows.chosen is None:
            return super().forward(x.flatten(1, -2), rows.views).view_as(x)
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        self.num_batches_tracked.add_(rows.views)
        running = self.running_mean, self.running_var
        return normalised(x, rows, self.weight, self.bias, running, self.momentum or 0.0, self.eps)


def rows_for(encoder: Encoder, x: Tensor, views: int, dropout: float = 0.0) -> Rows:
    """The rows of clips (n, 3, T, V, M). Absent bodies are not one row (`fastmc.encoders.rows`) where each has noise of
    its own, where the gradient of each may be wanted, where statistics are those of several ranks, or in half
    precision."""
    weight = next(encoder.head.parameters())
    noisy = encoder.training and dropout > 0
    wanted = x.requires_grad and weight.requires_grad and not encoder.sums_absent
    share = not exchanges(encoder) and not noisy and x.dtype == weight.dtype and not wanted
    return rows_of(x, views, share=share, filled=encoder.sums_absent and encoder.training)


def bodies(x: Tensor) -> Tensor:
    """Clips (n, 3, T, V, M) as bodies (n * M, T, V, 3), those of a clip one after the other."""
    return x.permute(0, 4, 2, 3, 1).flatten(0, 1)


def mean_of_bodies(x: Tensor, rows: Rows, count: int) -> Tensor:
    """Rows (R, T, V, C) to the mean over frames and joints, then over the ``count`` bodies of a clip, (n, C)."""
    return rows.give(x.mean((1, 2))).unflatten(0, (-1, count)).mean(1)


def over_joints(x: Tensor, maps: Tensor) -> Tensor:
    """Weighted sums over the joints of each frame of (R, T, V, C), K to a joint: (R, T, V, K * C).

    Args:
        maps: (V * K, V), or (R, V * K, V) of each row: what each of a joint's sums takes of each joint.
    """
    rows, frames, joints, _ = x.shape
    # An expanded bmm: matmul would fold the frames into columns, which copies x and the sums.
    maps = maps.expand(rows, *maps.shape[-2:])[:, None].expand(-1, frames, -1, -1).flatten(0, 1)
    return torch.bmm(maps, x.flatten(0, 1)).view(rows, frames, joints, -1)


class Temporal(nn.Conv2d):
    """A convolution over the frames of (R, T, V, C), each joint on its own, of an odd number of frames, padded."""

    def __init__(self, channels_in: int, channels: int, taps: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels, (taps, 1), (stride, 1), (taps // 2, 0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


class Pointwise(nn.Module):
    """A linear map of channels and its normalisation, of every ``stride``-th frame: the shortcut around a block."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.map, self.norm = nn.Linear(channels_in, channels), ChannelNorm(channels)

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        return self.norm(self.map(x[:, :: self.stride]), rows)


def shortcut(channels_in: int, channels: int, stride: int = 1) -> Pointwise | None:
    """Around a block: None for the input itself, where the shape stays."""
    return None if channels_in == channels and stride == 1 else Pointwise(channels_in, channels, stride)


def around(part: nn.Module | None, x: Tensor, rows: Rows) -> Tensor:
    """What a `shortcut` gives of x."""
    return x if part is None else part(x, rows)


def dropped(x: Tensor, share: float, training: bool) -> Tensor:
    """Dropout; x itself, and no random number drawn, where nothing is to be dropped."""
    return F.dropout(x, share) if training and share > 0 else x
