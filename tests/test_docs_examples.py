"""The examples of the documentation do what it says: shell and Python blocks run in order, and print what follows."""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("embedding.md",)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language, its content, and the line of the page on which that begins."""

    language: str
    content: str
    line: int


def blocks_of(page: str) -> list[Block]:
    return [Block(m[1], m[2], page.count("\n", 0, m.start(2)) + 1) for m in FENCE.finditer(page)]


def run_page(page: str, name: str, folder: Path) -> int:
    """Run the blocks of a page in ``folder``, which has to be the current one; returns how many claims it makes.

    A text block claims to be all that the block before it prints on standard output; ``...`` stands for anything.
    """
    printed, claims, namespace = None, 0, {"__name__": "__main__"}
    for language, content, line in blocks_of(page):
        where = f"{name}, line {line}"
        if language == "sh":
            printed = run_shell(content, folder, where)
        elif language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * (line - 1) + content, name, "exec"), namespace)
            printed = out.getvalue()
        else:
            assert language == "text", f"{where}: a block of {language} is not run; write sh, python or text"
            assert printed is not None, f"{where}: no block before it prints anything"
            if not doctest.OutputChecker().check_output(content, printed, doctest.ELLIPSIS):
                pytest.fail(f"{where}: the page says\n{content}\nand the example prints\n{printed}")
            printed, claims = None, claims + 1
    return claims


def run_shell(script: str, folder: Path, where: str) -> str:
    """Standard output of a script whose ``python`` is this one and finds this clone; a command that fails ends it."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    python = tools / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["sh", "-e"],
        input=script,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_print_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_page((ROOT / "docs" / page).read_text(encoding="utf-8"), page, tmp_path) >= 3


def page_of(*blocks: tuple[str, str]) -> str:
    return "\n".join(f"Words.\n\n```{language}\n{content}\n```\n" for language, content in blocks)


def test_a_page_is_read_to_its_last_block():
    page = page_of(("sh", "one\ntwo"), ("python", "three"))
    assert blocks_of(page) == [Block("sh", "one\ntwo\n", 4), Block("python", "three\n", 11)]


def test_blocks_share_their_folder_and_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = [("python", "x = 41"), ("sh", "python -c 'print(1)' > one; cat one"), ("text", "1")]
    assert (
        run_page(page_of(*blocks, ("python", "print(x + int(open('one').read()))"), ("text", "42")), "p", tmp_path) == 2
    )


@pytest.mark.parametrize(
    "blocks, message",
    [
        ([("python", "print(1 + 1)"), ("text", "3")], r"p, line 10: the page says\n3\n\nand the example prints\n2"),
        ([("python", "print(1)\nprint(2)"), ("text", "1")], "the page says"),
        ([("sh", "echo here"), ("text", "h...m")], "the page says"),
        ([("sh", "false\necho on"), ("text", "on")], "p, line 4: exit code 1"),
        ([("text", "what?")], "no block before it"),
        ([("ruby", "puts 1")], "a block of ruby is not run"),
    ],
)
def test_a_page_that_errs_is_found_out(blocks, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        run_page(page_of(*blocks), "p", tmp_path)
