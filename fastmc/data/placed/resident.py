"""A packed store made ready for training: clips taken by index, their frames whole on the device.

`PlacedStore` is what trainer and evaluation see; `ResidentStore` is the placement to prefer, and
``fastmc.data.placed.streamed`` has the one for frames that the device has no room for. ``fastmc.data.placed.placement``
chooses.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator

import numpy as np
import torch
from torch import Tensor

from fastmc.data.placed.order import batches_of
from fastmc.data.store import PackedStore
from fastmc.views.clips import PackedClips

CHUNK_ROWS = 1 << 14  # 5 MB of 25 joints


class PlacedStore(ABC):
    """The clips of a packed store: an index on the device, and frames that are there when a batch is asked for.

    Attributes:
        start, num_frames, num_bodies, label: (N,) int64, on the device of the batches.
        dtype: float32, float16 or bfloat16, of the frames of every batch.
        rounding_error: metres, the largest that ``dtype`` made anywhere in the frames; 0 for float32.
    """

    rounding_error: float

    def __init__(self, store: PackedStore, device: torch.device | str, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.max_bodies = store.max_bodies
        self.skeleton = store.skeleton
        columns = (store.start, store.num_frames, store.num_bodies, store.label)
        self.start, self.num_frames, self.num_bodies, self.label = (
            torch.from_numpy(np.array(column, dtype=np.int64)).to(device) for column in columns
        )

    def __len__(self) -> int:
        return len(self.start)

    @property
    def device(self) -> torch.device:
        return self.start.device

    @abstractmethod
    def select(self, ids: Tensor) -> PackedClips:
        """The clips with these indices (B,) int64, their frames on the device."""

    @abstractmethod
    def batches(self, order: Tensor, size: int) -> Generator[tuple[Tensor, PackedClips]]:
        """The clips of ``order`` (n,) int64 in batches of ``size``: (ids (B,), clips). The last may be shorter.

        Close the generator (``contextlib.closing``) where the loop over it may end early.
        """


class ResidentStore(PlacedStore):
    """The frames (R, V, 3) whole on one device; see `PackedClips`. A batch is a view of them by index, no copy.

    On the CPU, float32 frames are the store's file itself, memory-mapped: a write to them stays in this process.
    """

    def __init__(
        self, store: PackedStore, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(store, device, dtype)
        if self.device.type == "cpu" and dtype == torch.float32:
            self.frames, self.rounding_error = _map_privately(store), 0.0
        else:
            self.frames, self.rounding_error = copy_frames(store.frames, dtype, self.device)

    def select(self, ids: Tensor) -> PackedClips:
        return PackedClips(self.frames, self.start[ids], self.num_frames[ids], self.num_bodies[ids], self.max_bodies)

    def batches(self, order: Tensor, size: int) -> Generator[tuple[Tensor, PackedClips]]:
        for ids in batches_of(order, size):
            yield ids, self.select(ids)


def _map_privately(store: PackedStore) -> Tensor:
    """The frames as a copy-on-write map of their file. The system may refuse one that is larger than its memory."""
    return torch.from_numpy(np.load(store.path / "frames.npy", mmap_mode="c"))


def map_frames(frames: np.ndarray) -> Tensor:
    """A read-only memory map as a tensor, no copy. A write to it would kill the process: keep it to yourself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writ")  # nobody here writes to it
        return torch.from_numpy(frames)


def copy_frames(
    frames: np.ndarray,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    pin: bool = False,
    chunk_rows: int = CHUNK_ROWS,
) -> tuple[Tensor, float]:
    """Frames (R, V, 3) float32 copied to a device in ``dtype``, and the rounding error as `rounding_error`.

    A chunk at a time is read and rounded, on the CPU for every device, so that all hold the same bits and no second
    copy of the frames ever exists. ``pin``: into page-locked memory.
    """
    out = torch.empty(frames.shape, dtype=dtype, device=device, pin_memory=pin)
    worst = 0.0
    for first in range(0, len(frames), chunk_rows):
        chunk = map_frames(frames[first : first + chunk_rows])
        rounded, error = _round(chunk, dtype)
        out[first : first + chunk_rows] = rounded
        worst = max(worst, error)
    return out, worst


def rounding_error(frames: np.ndarray, dtype: torch.dtype, *, chunk_rows: int = CHUNK_ROWS) -> float:
    """max |x - dtype(x)| over the frames (R, V, 3) float32, metres, from one pass over them in chunks; 0 for float32,
    without reading. ValueError if a coordinate is too large for ``dtype``."""
    if dtype == torch.float32:
        return 0.0
    chunks = (frames[first : first + chunk_rows] for first in range(0, len(frames), chunk_rows))
    return max(_round(map_frames(chunk), dtype)[1] for chunk in chunks)


def _round(chunk: Tensor, dtype: torch.dtype) -> tuple[Tensor, float]:
    """A float32 chunk in ``dtype``, and the largest error of that."""
    if dtype == torch.float32:
        return chunk, 0.0
    rounded = chunk.to(dtype)
    error = float((rounded.float() - chunk).abs().max())  # the difference of a number and its rounding is exact
    if not np.isfinite(error):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"frames_dtype = {name!r} cannot hold coordinates of {float(chunk.abs().max()):g} m; "
            "give --frames-dtype float32"
        )
    return rounded, error
