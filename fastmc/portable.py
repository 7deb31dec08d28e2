"""A trained encoder as one module from clips as they were recorded to features, for exporters such as torch.onnx.

It computes what `fastmc.embedding.Embedder.encode` does: the frame of reference of the training data, the crop, the
resizing, the stream, and the encoder, by operators that exporters know. All numbers of clips and frames are read from
the input, so that one graph serves batches and clips of every size; but the clips of one batch are of one length.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from fastmc.data.normalise import MIN_LENGTH
from fastmc.embedding import Embedder
from fastmc.encoders.base import Encoder
from fastmc.encoders.recurrent import RecurrentNet
from fastmc.skeleton import ROLES, Skeleton
from fastmc.views.clips import Stream


class PortableEncoder(nn.Module):
    """Clips (B, T, M, V, 3) float32 in metres to features (B, H), float32.

    A body that is absent is zero; M is that of the training data. A clip in which the first body that is there never
    gives a frame of reference, for which `Embedder.encode` has an error, gives NaN.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        config, data = embedder.config, embedder.data
        self.frame = ToBodyFrame(data.skeleton) if embedder.moves("the clips") else None
        centre = embedder.encoder.shape.centre_joint
        self.crop = CropAndResize(config.frames, config.evaluation.test_crop, centre)
        self.stream = AsStream(config.stream, data.skeleton)
        self.encoder = portable(embedder.encoder)

    def forward(self, clips: Tensor) -> Tensor:
        x = present_first(clips)
        x = x if self.frame is None else self.frame(x)
        x = self.stream(self.crop(x))
        return self.encoder.represent(x.transpose(2, 3).flatten(2))


def portable(encoder: Encoder) -> Encoder:
    """A copy on the CPU whose recurrent nets are PyTorch's own."""
    found = copy.deepcopy(encoder).cpu().eval()
    for net in found.modules():
        if isinstance(net, RecurrentNet):
            net.impl = "nn.GRU"
    return found


class ToBodyFrame(nn.Module):
    """`fastmc.data.normalise.normalise`, for a batch."""

    def __init__(self, skeleton: Skeleton) -> None:
        super().__init__()
        joints = np.eye(skeleton.num_joints)  # so that each place comes out as its share of every joint
        shares = np.stack([skeleton.place(role, joints) for role in ROLES])
        self.register_buffer("shares", torch.from_numpy(shares), persistent=False)
        self.shares: Tensor

    def forward(self, clips: Tensor) -> Tensor:
        """(B, T, M, V, 3) to the same, float32."""
        x = clips.double()
        present = (clips != 0).flatten(3).any(3)
        hip, spine, left, right = torch.einsum("rv,btvc->rbtc", self.shares, x[:, :, 0]).unbind()
        up, side = spine - hip, left - right
        height = length(up)
        z = up / height
        across = side - (side * z).sum(2, keepdim=True) * z
        width = length(across)
        serves = present[:, :, 0] & (height >= MIN_LENGTH).squeeze(2) & (width >= MIN_LENGTH).squeeze(2)
        place = first(serves)
        z, side, origin = (at(a, place) for a in (z, across / width, spine))
        axes = torch.stack([side, torch.linalg.cross(z, side), z], dim=1)
        moved = (x - origin[:, None, None, None]) @ axes.transpose(1, 2)[:, None, None]
        moved = torch.where(serves.any(1)[:, None, None, None, None], moved, torch.nan)
        return torch.where(present[..., None, None], moved, 0.0).float()


class CropAndResize(nn.Module):
    """`fastmc.views.make.crops_of` of the joint stream: the middle of a clip, resized linearly to ``size`` frames,
    and a ``centre`` joint subtracted where there is one."""

    def __init__(self, size: int, ratio: float, centre: int | None = None) -> None:
        super().__init__()
        self.size, self.ratio, self.centre = size, ratio, centre

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, M, V, 3) to (B, size, M, V, 3)."""
        frames = torch.ones_like(x[0, :, 0, 0, 0]).sum()  # not x.shape[1], which an exporter could take for a constant
        kept = (frames * self.ratio).floor().clamp_min(1)
        start = ((frames - kept + 1) * 0.5).floor().minimum(frames - kept)
        i = torch.arange(self.size, dtype=torch.float64, device=x.device)
        place = ((i + 0.5) * (kept / self.size).double() - 0.5).clamp_min(0).minimum(kept.double() - 1)
        before = place.floor()
        after = (before + 1).minimum(kept.double() - 1)
        share = (place - before).float()[:, None, None, None]
        index = (start.double() + before).long(), (start.double() + after).long()
        x = x.index_select(1, index[0]) * (1 - share) + x.index_select(1, index[1]) * share
        return x if self.centre is None else x - x[:, :, :, self.centre : self.centre + 1]


class AsStream(nn.Module):
    """Joint coordinates as a stream of them."""

    def __init__(self, stream: Stream, skeleton: Skeleton) -> None:
        super().__init__()
        self.stream = stream
        self.register_buffer("parents", torch.tensor(skeleton.parents), persistent=False)
        self.parents: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, M, V, 3) to the same."""
        if self.stream == "motion":
            return torch.cat([x[:, 1:] - x[:, :-1], torch.zeros_like(x[:, :1])], dim=1)
        return x - x.index_select(3, self.parents) if self.stream == "bone" else x


def present_first(clips: Tensor) -> Tensor:
    """(B, T, M, V, 3) to the same, the bodies that are zero throughout a clip behind those that are not: as
    `Embedder.encode` leaves them out, whatever their place."""
    bodies = clips.shape[2]
    if bodies == 1:
        return clips
    absent = (clips == 0).flatten(3).all(3).all(1)
    rank = absent * bodies + torch.arange(bodies, device=clips.device)  # of two alike the first comes first
    order = rank.topk(bodies, dim=1, largest=False).indices
    return clips.gather(2, order[:, None, :, None, None].expand_as(clips))


def length(vectors: Tensor) -> Tensor:
    """(B, T, 3) to (B, T, 1)."""
    return (vectors * vectors).sum(2, keepdim=True).sqrt()


def first(found: Tensor) -> Tensor:
    """(B, T) bool to the first True of each row, (B,), 0 where there is none. Of equal values argmax may take any."""
    frames = found.shape[1]
    rank = torch.arange(frames, 0, -1, device=found.device)
    return (found * rank).argmax(1)


def at(values: Tensor, place: Tensor) -> Tensor:
    """(B, T, 3) at one frame of each clip, (B, 3)."""
    return values.gather(1, place[:, None, None].expand(-1, 1, 3)).squeeze(1)
