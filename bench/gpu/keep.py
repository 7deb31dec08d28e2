"""Where the results of a GPU are kept: docs/gpu, by card, versions and commit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from bench.gpu.runner import PAGE, REPORT, read


def keep(out: Path, folder: Path) -> list[Path]:
    """Copy the report of ``out`` to ``folder``; returns the new files.

    Raises:
        ValueError: there is none, or it is that of a rehearsal.
    """
    identity = read(out)["identity"]
    if identity["rehearsal"]:
        raise ValueError(f"out: {out} holds a rehearsal, whose numbers mean nothing; only those of a GPU are kept")
    card = re.sub(r"[^a-z0-9]+", "-", identity["card"].lower()).strip("-")
    versions = f"torch{identity['torch'].partition('+')[0]}-triton{identity['triton']}"
    name = f"{card}_{versions}_{identity['commit']}{'-dirty' if identity['dirty'] else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for source in (PAGE, REPORT):
        kept.append(folder / f"{name}{Path(source).suffix}")
        shutil.copyfile(out / source, kept[-1])
    return kept
