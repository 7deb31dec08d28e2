"""The pages of the documentation: which there are, and the fenced blocks of each."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(
    r"(?:^<!-- not run:(?P<reason>(?:(?!-->).)*)-->\n)?^```(?P<language>\w*)\n(?P<content>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
STRAY = re.compile(
    r"^ *(?:```|~~~)|^ *<!-- *not run|^ {4,}(?:\$ )?(?:python3? |make |pip |fastmc-|torchrun |import |from \w+ im)",
    re.MULTILINE,
)


class Block(NamedTuple):
    """A fenced block: its language, its content, the line of the page on which that begins, and why it is not run; None
    if it is."""

    language: str
    content: str
    line: int
    reason: str | None = None


def pages() -> list[str]:
    """README, CONTRIBUTING and all of docs/, as paths in the clone."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [str(page.relative_to(ROOT)) for page in found]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks_of(text: str, page: str = "page") -> list[Block]:
    """The fenced blocks of a page.

    Raises:
        ValueError: commands are indented instead of fenced, a fence is of another form, or a mark "not run" has no
            block below it or no reason.
    """
    stray = STRAY.search(without_blocks(text))
    if stray:
        line = text.count("\n", 0, stray.start()) + 1
        raise ValueError(f"{page}, line {line}: write code as ```sh, ```python or ```text, a mark right above it")
    blocks = []
    for match in FENCE.finditer(text):
        language, content, reason = match.group("language", "content", "reason")
        line = text.count("\n", 0, match.start("content")) + 1
        if "\n```" in f"\n{content}":
            raise ValueError(f"{page}, line {line}: a fence within a block; close the first one")
        if reason is not None and not reason.strip():
            raise ValueError(f"{page}, line {line}: say why it is not run")
        blocks.append(Block(language, content, line, reason and reason.strip()))
    return blocks


def without_blocks(text: str) -> str:
    """A page with blanks in the place of its fenced blocks, so that letters and lines keep their places."""
    return FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
