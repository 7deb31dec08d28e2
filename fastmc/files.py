"""Files that are whole or not there, whatever happens while they are written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_json(path: Path, content: Any) -> None:
    """Write beside, then rename: a reader never sees half a file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


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
