"""docs/promises.md names tests that exist: each of its files, and a test for every word of a pattern for -k."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "promises.md").read_text(encoding="utf-8")
NAMED = re.findall(r'`(?:tests/)?(test_\w+\.py|soak\.py|fuzz|interpreted|gpu)(?: -k (?:"([^"]+)"|(\w+)))?`', PAGE)


def names_of_tests(file: str) -> list[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]


def test_every_name_on_the_page_is_read():
    assert len(NAMED) == len(re.findall(r"`(?:tests/|test_)[^`]*`", PAGE)) > 20


@pytest.mark.parametrize(("file", "pattern"), [(file, quoted or bare) for file, quoted, bare in NAMED])
def test_what_a_promise_names_is_there(file, pattern):
    assert (TESTS / file).exists()
    for word in pattern.split(" or ") if pattern else ():
        assert any(word in name for name in names_of_tests(file)), f"{file}: -k {word} selects no test"
