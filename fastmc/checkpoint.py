"""Checkpoints: a folder per step, written beside and renamed, so that a crash at any moment leaves the last one whole.

A checkpoint holds all that a run continues from: both encoders, bank and its momentum, attack head, optimizer, the
position in the epoch with the epoch's sums, and the config. No random state: what is drawn follows from seed and step.
Its marker, which is written last, has the sum of the state; where that differs, the checkpoint before is taken.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastmc.files import FULL, Sum, WriteError, read_text, sync_folder, whole_file, writing
from fastmc.tensor_files import TensorFileError, check_values, read_tensors, write_tensors

log = logging.getLogger("fastmc")
STATE, MARKER, BEST = "state.pt", "COMPLETE", "best"
_NAME = re.compile(r"step_(\d{9})")
# The second line is missing where an older fastmc wrote it.
_MARKER = re.compile(r"step \d+\n(?:state\.pt crc32 ([0-9a-f]{8}) bytes (\d{1,15})\n)?")


class CheckpointError(RuntimeError):
    """A checkpoint is missing or unreadable; the message names the folder and the remedy."""


def save(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write checkpoint ``step`` below ``folder``; of those before it keep the newest, ``keep`` with it, and none of
    those after it, which a run that goes on from here cannot have read.

    Raises:
        WriteError: it cannot be written; then all that were there are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _tidy(folder)
    unfinished, final = folder / f".step_{step:09d}.tmp", place_of(folder, step)
    try:
        with writing(final):
            unfinished.mkdir()
            crc, size = write_tensors(unfinished / STATE, state)
            with whole_file(unfinished / MARKER) as marker:
                marker.write_text(f"step {step}\n{STATE} crc32 {crc:08x} bytes {size}\n")
            _take_the_place_of(final, unfinished)
            sync_folder(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    there = complete(folder)
    before, after = ([path for number, path in there if (number > step) is late] for late in (False, True))
    for path in before[:-keep] + after:
        shutil.rmtree(path)
    return final


def place_of(folder: Path, step: int) -> Path:
    """Of the checkpoint of this step below ``folder``."""
    return folder / f"step_{step:09d}"


def complete(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)) and (p / MARKER).is_file()]
    return sorted(found)


def step_of(path: Path) -> int | None:
    """The step of a checkpoint's folder, by its name; None if it has another name."""
    named = _NAME.fullmatch(path.name)
    return int(named[1]) if named else None


def load_latest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The newest checkpoint that is whole, on the CPU; CheckpointError if there is none."""
    checkpoints = complete(folder)
    failures = []
    for _, path in reversed(checkpoints):
        try:
            return path, _read(path)
        except TensorFileError as error:
            failures.append(str(error))
            log.warning("%s; the checkpoint is passed over", error)
    if failures:
        remedy = f"python -m train.run --restart with the settings of {folder.parent / 'config.json'} trains anew"
        raise CheckpointError("\n".join([f"no checkpoint can be read; {remedy}", *failures]))
    raise CheckpointError(
        f"{folder} holds no complete checkpoint; train one with python -m train.run --out {folder.parent}"
    )


def load(folder: Path, which: str = "last") -> tuple[Path, dict[str, Any]]:
    """The checkpoint below ``folder`` that is named: last, best (of the probe, kept by --keep-best), or a step.

    Raises:
        CheckpointError: it is not there, or cannot be read.
    """
    if which == "last":
        return load_latest(folder)
    best, there = complete(folder / BEST), dict(complete(folder))
    if which == BEST and not best:
        raise CheckpointError(f"{folder} holds no best checkpoint; python -m train.run --keep-best keeps one")
    path = best[-1][1] if which == BEST else {**dict(best), **there}.get(int(which) if which.isdecimal() else -1)
    if path is None:
        steps = ", ".join(map(str, sorted({**dict(best), **there})))
        raise CheckpointError(
            f"{folder} holds no checkpoint {which}; give last, best or a step: {steps or 'it has none'}"
        )
    try:
        return path, _read(path)
    except TensorFileError as error:
        raise CheckpointError(str(error)) from error


@contextmanager
def saying_where_a_run_goes_on(folder: Path) -> Iterator[None]:
    """Within: an error of a full disk names the newest checkpoint below ``folder`` too, from which a run resumes; so
    does a note of a KeyboardInterrupt."""
    try:
        yield
    except KeyboardInterrupt as stop:
        saved = complete(folder)
        goes_on = f"resumes from {saved[-1][1]}" if saved else "starts anew, since there is no checkpoint yet"
        stop.add_note(f"the same command {goes_on}")
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        saved = complete(folder)
        last = f"the last good checkpoint is {saved[-1][1]}" if saved else "there is no checkpoint yet"
        what = error if isinstance(error, WriteError) else f"No space left on {error.filename or folder.parent}"
        raise OSError(f"{what}; {last}. Free some space, and the same command goes on") from error


def _read(path: Path) -> dict[str, Any]:
    """The state of a checkpoint; TensorFileError where it is not what was written, or could not have been."""
    try:
        marker = _MARKER.fullmatch(read_text(path / MARKER))
    except (OSError, UnicodeDecodeError) as error:
        raise TensorFileError(f"{path / MARKER} cannot be read: {error}") from error
    if marker is None:
        raise TensorFileError(f"{path / MARKER} is damaged: it is no marker of a checkpoint")
    expected = None if marker[1] is None else Sum(int(marker[1], 16), int(marker[2]))
    state = read_tensors(path / STATE, expected=expected)
    if not isinstance(state, dict):
        raise TensorFileError(f"{path / STATE} is damaged: it holds a {type(state).__name__}, no state of a run")
    check_values(state, path / STATE)
    return state


def _take_the_place_of(final: Path, unfinished: Path) -> None:
    """Rename to ``final``, of which what was there is gone afterwards, and is back after an error."""
    replaced = final.with_name(f".{final.name}.old")
    if final.exists():
        os.rename(final, replaced)
    try:
        os.rename(unfinished, final)
    except OSError:
        if replaced.exists():
            os.rename(replaced, final)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Undo what a process left that was killed while it saved."""
    for path in folder.glob(".step_*.tmp"):
        shutil.rmtree(path)
    for path in folder.glob(".step_*.old"):
        final = folder / path.stem.removeprefix(".")
        if final.exists():
            shutil.rmtree(path)
        else:
            os.rename(path, final)
