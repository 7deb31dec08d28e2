"""A disk with faults, under all that Python writes: it is full after so many bytes, writes less than it was asked to,
fails to sync, or fails to rename.

What C++ opens by name does not pass through it; a test that counts no fault fails.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NEVER = 1 << 62


@dataclass
class Disk:
    """What a disk has done below a folder, and at which point it fails.

    Attributes:
        room: bytes that it takes before it is full.
        short: write half of what is asked for, which is no error: the rest is asked for again.
        good_syncs, good_renames: that succeed before one fails.
        written, syncs, renames: so far. faults: how often it failed, or wrote less.
        unsynced: inodes that may lose what was written to them in a power cut. too_soon: files that were renamed, alone
            or with their folder, while theirs was among them.
    """

    folder: Path
    room: int = NEVER
    short: bool = False
    good_syncs: int = NEVER
    good_renames: int = NEVER
    written: int = 0
    syncs: int = 0
    renames: int = 0
    faults: int = 0
    unsynced: set[int] = field(default_factory=set)
    too_soon: list[str] = field(default_factory=list)

    def holds(self, path: object) -> bool:
        if not isinstance(path, (str, Path)):
            return False
        return Path(path).absolute().is_relative_to(self.folder)

    def fail(self, number: int) -> None:
        self.faults += 1
        raise OSError(number, os.strerror(number))


class _Raw(io.FileIO):
    """A file on such a disk."""

    disk: Disk

    def write(self, content) -> int:  # type: ignore[no-untyped-def,override]
        disk, flat = self.disk, memoryview(content).cast("B")
        if self.disk.short and len(flat) > 1:
            disk.faults += 1
            flat = flat[: len(flat) // 2]
        if len(flat) and disk.written >= disk.room:
            disk.fail(errno.ENOSPC)
        done = super().write(flat[: disk.room - disk.written])
        disk.written += done
        disk.unsynced.add(os.fstat(self.fileno()).st_ino)
        return done


@contextmanager
def faulty(folder: Path, **faults: int | bool) -> Iterator[Disk]:
    """Within: all that is written below ``folder`` is on such a disk. Files that are open already are not."""
    disk = Disk(folder.absolute(), **faults)  # type: ignore[arg-type]
    real_open, real_sync, rename, replace = open, os.fsync, os.rename, os.replace

    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *rest, **more):
        if not disk.holds(file) or not set(mode) & set("wax+"):
            return real_open(file, mode, buffering, encoding, errors, newline, *rest, **more)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""))
        raw.disk = disk
        if buffering == 0:
            return raw
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

    def sync(handle):
        disk.syncs += 1
        if disk.syncs > disk.good_syncs:
            disk.fail(errno.EIO)
        disk.unsynced.discard(os.fstat(handle).st_ino)
        real_sync(handle)

    def renaming(real):
        def move(source, target, **how):
            if disk.holds(target):
                disk.renames += 1
                if disk.renames == disk.good_renames + 1:  # one: what is moved back after it, is
                    disk.fail(errno.EIO)
                files = [path for path in (Path(source), *Path(source).rglob("*")) if path.is_file()]
                disk.too_soon += [str(path) for path in files if path.stat().st_ino in disk.unsynced]
            real(source, target, **how)

        return move

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", opened)
        patch.setattr(io, "open", opened)
        patch.setattr(os, "fsync", sync)
        patch.setattr(os, "rename", renaming(rename))
        patch.setattr(os, "replace", renaming(replace))
        yield disk
