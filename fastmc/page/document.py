"""The page as a file: its content, its style and its programs in one HTML document that loads nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastmc.files import read_text, whole_file

ASSETS = Path(__file__).parent
ECHARTS = "vendor/echarts-6.1.0.min.js"
ECHARTS_SHA256 = "b66b25aeb4df84e33199dc21694014d336d222cbd9deb0e5a7c14bd6aa0d0fd0"
"""Of dist/echarts.min.js of npm's echarts@6.1.0, which lies here byte for byte, with its licence."""
SCRIPTS = (ECHARTS, "dom.js", "motion.js", "player.js", "shelf.js", "charts.js")
OF_KIND = {
    "report": (
        *("accuracies.js", "choice.js", "embedding.js", "map.js", "confusions.js"),
        *("curves.js", "attack.js", "settings.js", "report.js"),
    ),
    "store": ("remarks.js", "gallery.js", "counts.js", "views.js", "store.js"),
}
A_CLIP = 40
"""Bytes that a clip takes beside its ``data``, at most: its frames, bodies, quantum and an absence."""

PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>
{style}
</style>
</head>
<body>
<noscript>This page draws and plays with JavaScript, which is switched off here.</noscript>
<main id="page"></main>
<script type="application/json" id="content">{content}</script>
{scripts}
</body>
</html>
"""


def write_page(path: Path, content: Mapping[str, Any], motion: Mapping[str, Any] | None = None) -> int:
    """Write one HTML file that shows the content, and return its size in bytes.

    It opens from disk and loads nothing. All that is in ``content`` is text to it, whoever wrote it: it is data and
    not markup in the file, and the file's policy lets no other programs run than those of this folder.

    Args:
        content: plain values, for JSON; ``kind`` is ``report`` or ``store``. What is not a finite number becomes null.
        motion: the clips of ``content``, as `fastmc.page.motion.pack` gives them.
    """
    page = document(content if motion is None else {**content, "motion": motion})
    with whole_file(path) as unfinished:
        unfinished.write_bytes(page)
    return len(page)


def room_for_motion(content: Mapping[str, Any], largest: int) -> int:
    """Bytes that a page of ``largest`` bytes has left for the ``data`` of its clips: ``most_bytes`` of `pack`."""
    clips = len(content["clips"]["name"])
    return largest - len(document({**content, "motion": None})) - A_CLIP * clips


def document(content: Mapping[str, Any]) -> bytes:
    """The page."""
    programs = [read_text(ASSETS / name) for name in (*SCRIPTS, *OF_KIND[content["kind"]], "page.js")]
    return PAGE.format(
        policy=policy(programs),
        title=html.escape(str(content["title"])),
        style=read_text(ASSETS / "page.css"),
        content=as_json(content),
        scripts="\n".join(f'<script type="module">{program}</script>' for program in programs),
    ).encode("utf-8", "replace")


def policy(programs: list[str]) -> str:
    """What a browser may do with the page: run these programs and nothing else, and load nothing."""
    sums = [base64.b64encode(hashlib.sha256(program.encode()).digest()).decode() for program in programs]
    allowed = " ".join(f"'sha256-{each}'" for each in sums)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def as_json(content: Any) -> str:
    """JSON that can stand within a script element: in ASCII, and without a character that means something there."""
    try:
        text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    except ValueError:  # a loss that is not a number: rare, so the content is walked through only then
        text = json.dumps(_finite(content), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
