"""What views are made of, and what of: clips, and the streams of their coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastmc.backends import may_look
from fastmc.checks import check_number

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

    Raises:
        ValueError: a shape, dtype or device does not fit; or, on a CPU, a clip has no frame, no body or more than M, or
            lies outside of the frames. A GPU would be waited for: there the numbers must be right.
    """

    frames: Tensor
    start: Tensor
    num_frames: Tensor
    num_bodies: Tensor
    max_bodies: int

    def __post_init__(self) -> None:
        _check_coordinates("frames", self.frames, "(R, V, 3)")
        if self.frames.shape[2] != 3:
            raise ValueError(f"frames must be (R, V, 3), got {tuple(self.frames.shape)}")
        for name in ("start", "num_frames", "num_bodies"):
            _check_integers(name, getattr(self, name), len(self), self.frames.device)
        _check_bodies(self.num_bodies, self.max_bodies)
        if _may_judge(self.num_frames):
            end = self.start + self.num_frames * self.num_bodies
            _all(self.num_frames >= 1, "num_frames", self.num_frames, "of clip {} must be 1 at least")
            _all(
                (self.start >= 0) & (end <= len(self.frames)),
                "start",
                self.start,
                f"of clip {{}} puts it outside of the {len(self.frames)} rows of frames",
            )

    @property
    def num_joints(self) -> int:
        return self.frames.shape[1]

    def __len__(self) -> int:
        return self.start.shape[0]


@dataclass(frozen=True)
class DenseClips:
    """B clips of equal length in the encoder's layout, such as attacked ones.

    Attributes:
        x: (B, T', V * M * 3) joint coordinates, contiguous.
        num_bodies: (B,) int64; bodies from there on are zero.
        max_bodies: M.

    Raises:
        ValueError: as of `PackedClips`.
    """

    x: Tensor
    num_bodies: Tensor
    max_bodies: int

    def __post_init__(self) -> None:
        _check_coordinates("x", self.x, "(B, T', V * M * 3)")
        _check_integers("num_bodies", self.num_bodies, len(self), self.x.device)
        _check_bodies(self.num_bodies, self.max_bodies)
        if self.x.shape[2] % (self.max_bodies * 3):
            raise ValueError(f"x must be (B, T', V * M * 3) with M = {self.max_bodies}, got {tuple(self.x.shape)}")

    @property
    def num_frames(self) -> int:
        return self.x.shape[1]

    @property
    def num_joints(self) -> int:
        return self.x.shape[2] // (self.max_bodies * 3)

    def __len__(self) -> int:
        return self.x.shape[0]


def _may_judge(values: Tensor) -> bool:
    """Whether values may be looked at: not on a GPU, which would be waited for, nor while a graph is traced."""
    return may_look(values) and not torch.compiler.is_compiling()


def _all(good: Tensor, name: str, values: Tensor, fault: str) -> None:
    """ValueError with the first value (B,) that is not good; ``fault`` has a place for its clip."""
    if not good.all():
        clip = int((~good).nonzero()[0, 0])
        raise ValueError(f"{name} {values[clip].item()} " + fault.format(clip))


def _check_coordinates(name: str, tensor: object, axes: str) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor {axes}, got {type(tensor).__name__}")
    if tensor.dim() != 3 or not tensor.is_floating_point():
        raise ValueError(f"{name} must be floats {axes}, got {tensor.dtype} {tuple(tensor.shape)}")


def _check_integers(name: str, tensor: object, clips: int, device: torch.device) -> None:
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor ({clips},) of integers, got {type(tensor).__name__}")
    if tensor.shape != (clips,) or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise ValueError(f"{name} must be ({clips},) integers, one a clip, got {tensor.dtype} {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, the coordinates are on {device}: they must be on one device")


def _check_bodies(num_bodies: Tensor, max_bodies: int) -> None:
    check_number("max_bodies", max_bodies, at_least=1)
    if _may_judge(num_bodies):
        good = (num_bodies >= 1) & (num_bodies <= max_bodies)
        _all(good, "num_bodies", num_bodies, f"of clip {{}} must be 1 to max_bodies = {max_bodies}")
