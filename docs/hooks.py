"""How mkdocs makes the site of a clone in which no page is written twice: README.md is its first page, and two more
pages lie beside docs/."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

CLONE = Path(__file__).resolve().parents[1]
BESIDE = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
"""Pages outside of docs/, and their places among the site's sources."""
LINK = re.compile(
    r"""^```.*?^```$ | `[^`\n]+`           # code, in which nothing is a link
    | \]\( (?P<link>[^)\s]+) \)            # of Markdown
    | (?:src|href)=" (?P<file>[^"]+) "     # of HTML, which mkdocs leaves alone""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for path, place in BESIDE.items():
        files.append(File.generated(config, place, content=(CLONE / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the clone as links of the site."""
    here = page.file.src_uri
    paths = {place: path for path, place in BESIDE.items()}
    folder = posixpath.dirname(paths.get(here, f"docs/{here}"))

    def moved(match: re.Match[str]) -> str:
        link = match["link"] or match["file"] or ""
        name, mark, anchor = link.partition("#")
        if not name or ":" in name:
            return match[0]
        target = posixpath.normpath(posixpath.join(folder, name))
        place = posixpath.relpath(BESIDE.get(target, target.removeprefix("docs/")), posixpath.dirname(here) or ".")
        if match["file"] and place.endswith(".md"):
            place = place.removesuffix("md") + "html"
        return match[0].replace(link, place + mark + anchor)

    return LINK.sub(moved, markdown)
