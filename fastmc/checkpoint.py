"""Checkpoints: a folder per step, written beside and renamed, so that a crash at any moment leaves the last one whole.

A checkpoint holds all that a run continues from: both encoders, bank and its momentum, attack head, optimizer, random
states, the position in the epoch with the epoch's sums, and the config. It is read with ``weights_only=True``.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from fastmc.files import sync_folder

log = logging.getLogger("fastmc")
STATE, MARKER = "state.pt", "COMPLETE"
_NAME = re.compile(r"step_(\d{9})")


class CheckpointError(RuntimeError):
    """A checkpoint is missing or unreadable; the message names the folder and the remedy."""


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write checkpoint ``step`` below ``folder`` and drop all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(folder)
    unfinished, final = folder / f".step_{step:09d}.tmp", folder / f"step_{step:09d}"
    unfinished.mkdir()
    with open(unfinished / STATE, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    (unfinished / MARKER).write_text(f"step {step}\n")
    sync_folder(unfinished)
    if final.exists():
        shutil.rmtree(final)
    os.replace(unfinished, final)
    sync_folder(folder)
    for _, old in complete(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def complete(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)) and (p / MARKER).is_file()]
    return sorted(found)


def load_latest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that can be read, on the CPU; CheckpointError if there is none."""
    checkpoints = complete(folder)
    failures = []
    for _, path in reversed(checkpoints):
        try:
            return path, torch.load(path / STATE, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises many kinds for a damaged file
            failures.append(f"{path}: {error}")
            log.warning("%s cannot be read and is passed over (%s)", path, error)
    if failures:
        raise CheckpointError("no checkpoint can be read:\n" + "\n".join(failures))
    raise CheckpointError(
        f"{folder} holds no complete checkpoint; train one with python -m train.run --out {folder.parent}"
    )


def _remove_unfinished(folder: Path) -> None:
    for path in folder.glob(".step_*.tmp"):
        shutil.rmtree(path)
