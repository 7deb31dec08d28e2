"""How mkdocs makes the site of a clone in which no page is written twice: README.md is its first page, and what a page
links to outside of docs/ comes with it, pages as they are, code and folders as pages that show them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

CLONE = Path(__file__).resolve().parents[1]
FRONT = "README.md"
BESIDE = (FRONT, "CONTRIBUTING.md", "CHANGELOG.md")
"""Pages of the site that lie beside docs/."""
LANGUAGES = {".py": "python", ".toml": "toml", ".cff": "yaml", ".yml": "yaml"}
LINK = re.compile(
    r"""^```.*?^```$ | `[^`\n]+`                           # code, in which nothing is a link
    | (?P<start>\]\() (?P<to>[^)\s]+) (?P<end>\))          # of Markdown
    | (?P<html>(?:src|href)=") (?P<file>[^"]+) (?P<mark>")  # of HTML, which mkdocs leaves alone""",
    re.MULTILINE | re.DOTALL | re.VERBOSE,
)


def place(path: str) -> str:
    """Where a file of the clone lies among the site's sources."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == FRONT:
        return "index.md"
    return path if path.endswith(".md") else f"code/{path}.md"


def content(path: str) -> str:
    """The page that shows a file or folder outside of docs/."""
    here = CLONE / path
    if path.endswith(".md"):
        return here.read_text(encoding="utf-8")
    shown = (
        here.read_text(encoding="utf-8") if here.is_file() else "".join(f"{p.name}\n" for p in sorted(here.iterdir()))
    )
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n````{LANGUAGES.get(here.suffix, 'text')}\n{shown}````\n"


def target(link: str, page: str) -> str | None:
    """The file or folder of the clone that a link on a page (a path in the clone) leads to; None of any other link."""
    name = link.partition("#")[0]
    return None if not name or ":" in name else posixpath.normpath(posixpath.join(posixpath.dirname(page), name))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    there = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    todo = [*there, *BESIDE]
    for path in todo:  # it grows on the way
        if path not in there:
            files.append(File.generated(config, place(path), content=content(path)))
        text = (CLONE / path).read_text(encoding="utf-8") if path.endswith(".md") else ""
        linked = {target(match["to"] or match["file"] or "", path) for match in LINK.finditer(text)}
        todo += sorted(t for t in linked if t and not t.startswith("docs/") and (CLONE / t).exists() and t not in todo)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the clone as links of the site."""
    here = page.file.src_uri
    path = next((path for path in BESIDE if place(path) == here), f"docs/{here}")

    def moved(match: re.Match[str]) -> str:
        link = match["to"] or match["file"] or ""
        to = target(link, path)
        if to is None:
            return match[0]
        new = posixpath.relpath(place(to), posixpath.dirname(here) or ".") + link[len(link.partition("#")[0]) :]
        return match["start"] + new + match["end"] if match["to"] else match["html"] + page_of_html(new) + match["mark"]

    return markdown if here.startswith("code/") else LINK.sub(moved, markdown)


def page_of_html(link: str) -> str:
    return re.sub(r"\.md(?=#|$)", ".html", link)
