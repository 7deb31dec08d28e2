"""Files: whole or not there, whatever happens while they are written; found in folders; and what reading one raises."""

from __future__ import annotations

import json
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What reading a damaged or foreign .npy or .npz file raises. tokenize reads the header of an array.
UNREADABLE_ARRAY = (
    *(OSError, ValueError, EOFError, NotImplementedError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, SyntaxError),
)


def write_json(path: Path, content: Any) -> None:
    """Write a file that readers never see half of."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, which becomes ``path`` at the end and is removed after an error."""
    unfinished = path.with_name(f".unfinished-{path.name}")  # the suffix stays: writers go by it
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def make_folder_of(file: Path) -> None:
    """Make the folder that ``file`` is to be written to, if need be; ValueError if it cannot be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{file} cannot be written: {file.parent} is, or lies in, a file; name another") from None


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Files of this name at any depth, by name and then path; none if there is no such folder.

    Archives made on a Mac hold a hidden companion ``._NAME`` of every file, which is passed over.
    """
    found = folder.rglob(pattern) if folder.is_dir() else []
    return sorted((path for path in found if not path.name.startswith("._")), key=lambda path: (path.name, path))


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk: a rename that is not may be undone by a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
