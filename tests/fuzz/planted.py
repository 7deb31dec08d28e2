"""Readers that are wrong on purpose, in every way that fuzzing must notice."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from tests.fuzz.formats import Format


def _seeds() -> list[dict[str, bytes]]:
    return [{"a.txt": b"1 2 3\n"}]


def _sound(folder: Path) -> bool:
    return (folder / "a.txt").is_file() and (folder / "a.txt").read_bytes() == b"1 2 3\n"


def _exception(folder: Path, out: Path) -> None:
    if not _sound(folder):
        raise KeyError("name")


def _nameless(folder: Path, out: Path) -> None:
    if not _sound(folder):
        raise ValueError("something is wrong")


def _memory(folder: Path, out: Path) -> None:
    if not _sound(folder):
        np.ones(400 << 20, np.uint8)


def _hang(folder: Path, out: Path) -> None:
    if not _sound(folder):
        time.sleep(1000)


def _death(folder: Path, out: Path) -> None:
    if not _sound(folder):
        os.abort()


PLANTED = {
    f"planted-{read.__name__.strip('_')}": Format(_seeds, read)
    for read in (_exception, _nameless, _memory, _hang, _death)
}
