"""A packed store placed whole on a device, from which batches are selected by index."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastmc.augment import PackedClips
from fastmc.data.store import PackedStore


class ResidentStore:
    """The frames of a store and the index of its clips, as tensors on one device.

    Attributes:
        frames: (R, V, 3) float32; see `PackedClips`.
        start, num_frames, num_bodies, label: (N,) int64.
    """

    def __init__(self, store: PackedStore, device: torch.device | str = "cpu") -> None:
        self.max_bodies = store.max_bodies
        self.skeleton = store.skeleton
        self.frames = torch.from_numpy(np.array(store.frames)).to(device)
        columns = (store.start, store.num_frames, store.num_bodies, store.label)
        self.start, self.num_frames, self.num_bodies, self.label = (
            torch.from_numpy(np.array(column, dtype=np.int64)).to(device) for column in columns
        )

    def __len__(self) -> int:
        return len(self.start)

    @property
    def device(self) -> torch.device:
        return self.frames.device

    def select(self, ids: Tensor) -> PackedClips:
        """The clips with these indices (B,) int64."""
        return PackedClips(self.frames, self.start[ids], self.num_frames[ids], self.num_bodies[ids], self.max_bodies)
