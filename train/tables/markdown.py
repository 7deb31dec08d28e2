"""Markdown tables, for reports and docs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a row of headings."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def link(name: str, path: Path, folder: Path) -> str:
    """A link to a file from a text in ``folder``, under this name."""
    shown = "".join(f"\\{letter}" if letter in "[]\\" else letter for letter in name)
    return f"[{shown}]({quote(Path(os.path.relpath(path, folder)).as_posix())})"
