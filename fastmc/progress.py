"""Progress bars: lively on a terminal, a line in a while in a log file."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(unit: str, what: str | None = None) -> dict[str, Any]:
    """Options for tqdm that count ``unit`` of ``what``."""
    lively = sys.stderr.isatty()
    return {"unit": unit, "desc": what, "mininterval": 0.2 if lively else 30.0, "dynamic_ncols": True, "leave": False}
