"""Packed against padded store, in bytes: python -m bench.store_size --help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from bench.ntu_like import CLIPS, LONGEST, lengths
from fastmc.data.store import CLIP_DTYPES, PackedStore
from train.tables.markdown import markdown

JOINTS, BODIES, FLOAT = 25, 2, 4


@dataclass(frozen=True)
class StoreSize:
    """Size of stores with real frames and bodies only, beside that of arrays padded to 300 frames and two bodies."""

    stores: tuple[Path, ...] = ()
    """Folders of packed stores, whose files are measured; beside them, NTU-60 by modelled lengths is computed."""
    seed: int = 0
    """Of the modelled lengths."""


@dataclass(frozen=True)
class Size:
    """Clips, their mean frames and mean bodies, and bytes either way."""

    name: str
    clips: int
    frames: float
    bodies: float
    packed: int
    padded: int


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(StoreSize, prog="python -m bench.store_size", args=args)
    print(table([modelled(settings.seed), *map(measured, settings.stores)]))
    return 0


def modelled(seed: int) -> Size:
    """NTU RGB+D 60 with the lengths of bench/ntu_like.py: arithmetic, nothing is written. Names are left out."""
    frames, bodies = lengths(np.random.default_rng(seed), CLIPS)
    index = CLIPS * sum(np.dtype(kind).itemsize for kind in CLIP_DTYPES.values())
    packed = int((frames * bodies).sum()) * JOINTS * 3 * FLOAT + index
    return Size("NTU-60, modelled lengths", CLIPS, frames.mean(), bodies.mean(), packed, padded_bytes(CLIPS))


def measured(path: Path) -> Size:
    """A store on disk, with all its files."""
    store = PackedStore.open(path)
    packed = sum(file.stat().st_size for file in path.iterdir())
    padded = padded_bytes(len(store), store.skeleton.num_joints)
    return Size(f"{store.name}, on disk", len(store), store.num_frames.mean(), store.num_bodies.mean(), packed, padded)


def padded_bytes(clips: int, joints: int = JOINTS) -> int:
    """(N, 3, 300, V, 2) float32, nothing else."""
    return clips * 3 * LONGEST * joints * BODIES * FLOAT


def table(sizes: Sequence[Size]) -> str:
    head = ("store", "clips", "mean frames", "mean bodies", "packed", "padded to 300 x 2", "ratio")
    return markdown(head, [_row(size) for size in sizes])


def _row(size: Size) -> tuple[str, ...]:
    means = f"{size.frames:.1f}", f"{size.bodies:.2f}"
    bytes_ = f"{size.packed / 1e6:,.1f} MB", f"{size.padded / 1e6:,.1f} MB"
    return (size.name, f"{size.clips:,}", *means, *bytes_, f"{size.padded / size.packed:.1f}")


if __name__ == "__main__":
    sys.exit(main())
