"""Links between the pages of the documentation lead somewhere, headings included, and what is named beside is there."""

from __future__ import annotations

import logging
import pydoc
import re
import subprocess
from functools import cache
from pathlib import Path
from unicodedata import category

import griffe
import pytest
from pages import ROOT, pages, text_of, without_blocks

import fastmc

PAGES = [*pages(), "CHANGELOG.md"]
LINK = re.compile(r"\]\(([^)\s]*)\)|\]\(<([^>]*)>\)|(?:src|href)=\"([^\"]*)\"|^\[[^]]+\]: (\S+)", re.MULTILINE)
CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
NAMED = re.compile(r"`((?:bench|docs|fastmc|kernels|tests|train)/[\w/.-]+?)(?:::[\w.]+)?(?: -k [^`]*)?`")
MENTION = re.compile(r"(?<![\w/])docs/[\w./-]*\w")


def prose_of(text: str) -> str:
    """A page without its code: what may hold links."""
    return CODE.sub("code", without_blocks(text))


def links_of(text: str) -> list[str]:
    """What the links and pictures of a page lead to, but for other sites."""
    found = ("".join(groups) for groups in LINK.findall(prose_of(text)))
    return [link for link in found if not re.match(r"https://|mailto:", link)]


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """Of the headings of a page, as GitHub and the site (mkdocs.yml) make them."""
    found: set[str] = set()
    for title in re.findall(r"^#+ +(.*?) *#*$", without_blocks(page.read_text(encoding="utf-8")), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        letters = (letter for letter in shown.lower() if category(letter) != "No")
        anchor = re.sub(r"[^\w\- ]", "", "".join(letters)).strip().replace(" ", "-")
        if anchor in found:
            raise ValueError(f"{page}: two headings {title!r}, which no link can tell apart")
        found.add(anchor)
    return frozenset(found)


def why_not(link: str, page: str) -> str | None:
    """What is wrong with a link on a page (a path in the clone), if anything is."""
    name, has_anchor, anchor = link.partition("#")
    target = (ROOT / page).parent / name if name else ROOT / page
    if not target.resolve().is_relative_to(ROOT):
        return "it leaves the clone"
    if not _is_there(target.resolve()):
        return "there is no such file"
    path = str(target.resolve().relative_to(ROOT))
    if path not in PAGES and not (path.startswith("docs/") and target.is_file()):
        return "it is no page of the site: name it between backticks"
    if has_anchor and (target.suffix != ".md" or anchor not in anchors_of(target)):
        return "there is no such heading"
    return None


def _is_there(path: Path) -> bool:
    """By its exact letters, on any file system."""
    return path == ROOT or (path.exists() and path.name in {each.name for each in path.parent.iterdir()})


def read_docstrings(package: Path) -> int:
    """Reads those of a package as the site does and says how many; griffe logs what it does not understand."""
    extensions = griffe.load_extensions(str(ROOT / "docs/docstrings.py"))
    root = griffe.load(
        package.name,
        search_paths=[package.parent],
        extensions=extensions,
        docstring_parser="google",
        allow_inspection=False,
    )

    def read(thing: griffe.Object) -> int:
        own = [each for each in thing.members.values() if isinstance(each, griffe.Object)]
        inner = sum(read(each) for each in own if each.is_class or each.is_module)
        return inner + sum(bool(each.docstring and each.docstring.parsed) for each in own)

    assert isinstance(root, griffe.Object)
    return read(root)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    anchors_of(ROOT / page)
    assert {link: reason for link in links_of(text_of(page)) if (reason := why_not(link, page))} == {}


def test_every_page_can_be_reached_from_the_first():
    """But for the API's, which the site's contents list."""
    reached, todo = set(), ["README.md"]
    while todo:
        page = todo.pop()
        if page not in reached and page in PAGES:
            reached.add(page)
            targets = ((ROOT / page).parent / link.partition("#")[0] for link in links_of(text_of(page)))
            todo += [str(t.resolve().relative_to(ROOT)) for t in targets if t.suffix == ".md"]
    assert sorted({page for page in pages() if not page.startswith("docs/api/")} - reached) == []


def test_pages_that_code_names_are_there():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no clone: nothing says what belongs to it")
    texts = [
        f for f in map(Path, listed.stdout.splitlines()) if f.suffix in {".py", ".md", ".toml", ".yml", ".txt", ""}
    ]
    named = {
        (str(file), name)
        for file in texts
        if (ROOT / file).is_file() and file.name != Path(__file__).name
        for name in MENTION.findall((ROOT / file).read_text(encoding="utf-8"))
    }
    assert ("Makefile", "docs/gpu/README.md") in named
    assert sorted((file, name) for file, name in named if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("page", pages())
def test_files_that_a_page_names_are_there(page):
    named = {name for name in NAMED.findall(without_blocks(text_of(page))) if "*" not in name}
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_the_api_page_has_every_public_name():
    named = re.findall(r"^::: fastmc\.(\w+)$", text_of("docs/api/fastmc.md"), re.MULTILINE)
    assert sorted(named) == sorted(fastmc.__all__)


@pytest.mark.parametrize("package", ["fastmc", "kernels", "train", "bench"])
def test_sections_of_docstrings_are_read_as_they_are_meant(package, caplog):
    """An item goes on with deeper lines and names a parameter: else make docs ends with an error."""
    with caplog.at_level(logging.WARNING, logger="griffe"):
        read = read_docstrings(ROOT / package)
    assert read > 50
    assert caplog.messages == []


def test_a_docstring_read_otherwise_is_noticed(tmp_path, caplog):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "__init__.py").write_text(
        'def f(a: int) -> None:\n    """F.\n\n    Raises:\n        ValueError: it is\n        odd.\n    """\n'
    )
    with caplog.at_level(logging.WARNING, logger="griffe"):
        assert read_docstrings(tmp_path / "there") == 1
    assert "Failed to get 'exception: description' pair" in caplog.text


def test_dir_completion_and_help_have_every_public_name():
    assert set(fastmc.__all__) <= set(dir(fastmc))
    text = pydoc.plaintext.document(fastmc)
    for name in fastmc.__all__:
        assert re.search(rf"^    .*\b{name}\b", fastmc.__doc__, re.MULTILINE), name
        assert getattr(fastmc, name).__doc__.split("\n")[0] in text, name


def test_the_citation_is_of_this_version_and_of_the_paper_of_the_first_page():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [fastmc.__version__]
    (title,) = re.findall(r'^    title: "(.*)"$', citation, re.MULTILINE)
    (number,) = re.findall(r"^    url: https://arxiv.org/abs/(.*)$", citation, re.MULTILINE)
    first_page = " ".join(text_of("README.md").split())
    assert title in first_page
    assert f"https://arxiv.org/abs/{number}" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_a_link_that_leads_nowhere_is_noticed():
    page = "docs/kernels.md"
    good = (
        "step.md",
        "gpu/README.md",
        "../README.md",
        "#the-kernels",
        "paper.md#equations",
        "figures/tsne.png",
    )
    assert {why_not(link, page) for link in good} == {None}
    lost = ("lost.md", "Step.md", "../lost", "lost.md#equations")
    assert {why_not(link, page) for link in lost} == {"there is no such file"}
    assert {why_not(link, page) for link in ("../tests/pages.py", "../bench", "gpu")} == {
        "it is no page of the site: name it between backticks"
    }
    assert {why_not(link, page) for link in ("../../README.md", "/README.md")} == {"it leaves the clone"}
    assert {why_not(link, page) for link in ("#lost", "paper.md#lost", "figures/tsne.png#x")} == {
        "there is no such heading"
    }


def test_links_are_found_outside_of_code():
    text = (
        '[a](b.md#c) ![d](e.png) [`f`](g.py) [![h](i.png)](j.md) <img src="k.png"> [x](https://l.org)\n[m]: n.md\n'
        "`[o](p.md)` ``[q](`r.md`)``\n\n```text\n[s](t.md)\n```\n"
    )
    assert links_of(text) == ["b.md#c", "e.png", "g.py", "i.png", "j.md", "k.png", "n.md"]


def test_anchors_are_githubs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A²MC: `a_b` & --profile N\n\n```sh\n# no heading\n```\n## [Words](x.md), more?\n")
    assert anchors_of(page) == {"amc-a_b----profile-n", "words-more"}
    page = tmp_path / "twice.md"
    page.write_text("# Words\n\n## Words!\n")
    with pytest.raises(ValueError, match="two headings 'Words!'"):
        anchors_of(page)
