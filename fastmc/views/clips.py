"""What views are made of, and what of: clips, and the streams of their coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Stream = Literal["joint", "motion", "bone"]
ViewImpl = Literal["auto", "triton", "numba", "torch", "reference"]
STREAMS = ("joint", "motion", "bone")


@dataclass(frozen=True)
class PackedClips:
    """B clips inside a packed array of frames (no padding).

    Attributes:
        frames: (R, V, 3) float32, float16 or bfloat16, metres; frame t of body m of clip n is row
            ``start[n] + t * num_bodies[n] + m``.
        start, num_frames, num_bodies: (B,) int64.
        max_bodies: M, the bodies of every view; a body that a clip lacks is zero.
    """

    frames: Tensor
    start: Tensor
    num_frames: Tensor
    num_bodies: Tensor
    max_bodies: int

    def __len__(self) -> int:
        return self.start.shape[0]


@dataclass(frozen=True)
class DenseClips:
    """B clips of equal length in the encoder's layout, such as attacked ones.

    Attributes:
        x: (B, T', V * M * 3) joint coordinates, contiguous.
        num_bodies: (B,) int64; bodies from there on are zero.
        max_bodies: M.
    """

    x: Tensor
    num_bodies: Tensor
    max_bodies: int

    def __len__(self) -> int:
        return self.x.shape[0]
