"""docs/paper.md: every function, test, flag, default and link that it names is there."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from fastmc.config import to_plain
from train import evaluate
from train.command.parse import parse

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
SPANS = sorted(set(re.findall(r"`([^`]+)`", PAGE)))
NAMES = [span for span in SPANS if "::" in span]
FLAGS = [span for span in SPANS if re.match(r"(\w+ )?--", span)]
ALTERNATIVES = ("--method b1", "--method b2", "--method b3")
"""Not the defaults."""


@cache
def names_in(path: Path) -> set[str]:
    """Functions, classes and constants of a file, and methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{method.name}" for method in inner if isinstance(method, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def exists(name: str) -> bool:
    path, _, inner = name.partition("::")
    return (ROOT / path).is_file() and inner in names_in(ROOT / path)


def test_what_is_named_is_there():
    assert [name for name in NAMES if not exists(name)] == []


def test_a_name_that_is_not_there_is_noticed():
    assert not exists("fastmc/objective/loss.py::mc_lost")
    assert not exists("fastmc/lost.py::mc_loss")
    assert not exists("fastmc/objective/attention.py::Block.lost")


def test_every_span_is_of_a_kind_that_is_checked():
    rest = set(SPANS) - set(NAMES) - set(FLAGS)
    assert {span for span in rest if not (ROOT / span).is_file()} == set()
    assert len(NAMES) > 70
    assert len(FLAGS) > 40


@pytest.fixture(scope="module")
def paper_run(tmp_path_factory) -> Path:
    """A run folder of preset paper, as far as evaluations look at it before they begin."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps(to_plain(parse(["--preset", "paper"]))))
    return folder


def settings_of(start: str, flags: str, run: Path) -> object:
    """What a command takes flags for that follow ``start``: nothing, a data set, or an evaluation of train.evaluate."""
    if start and not start.startswith("--"):
        needed = ["--dataset", "pku2"] if start == "transfer" else []
        return evaluate.parse([start, "--run", str(run), *needed, *flags.split()])
    return parse(["--preset", "paper", *start.split(), *flags.split()])


@pytest.mark.parametrize("start", ["", "--dataset pku2", "semi", "transfer"])
def test_flags_are_there_with_their_defaults(start, paper_run):
    found = [re.fullmatch(r"((?:\w+|--dataset \w+)?) ?(--.*)", span).groups() for span in FLAGS]
    assert {each for each, _ in found} == {"", "--dataset pku2", "semi", "transfer"}
    flags = " ".join(flags for each, flags in found if each == start and flags not in ALTERNATIVES)
    assert settings_of(start, flags, paper_run) == settings_of(start, "", paper_run)


@pytest.mark.parametrize("flags", ALTERNATIVES)
def test_alternatives_are_there(flags, paper_run):
    assert settings_of("", flags, paper_run) != settings_of("", "", paper_run)


def test_an_option_that_is_not_there_is_noticed(paper_run):
    with pytest.raises(SystemExit):
        settings_of("", "--lost 3", paper_run)
    with pytest.raises(SystemExit):
        settings_of("semi", "--lost 3", paper_run)


def anchors_of(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", PAGE)
    assert links
    for page, anchor in links:
        assert (ROOT / "docs" / page).is_file()
        assert not anchor or anchor in anchors_of(ROOT / "docs" / page)
    assert "Size of the encoder" in (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")


def test_no_equation_is_left_out():
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)][:11] == list(range(1, 12))
