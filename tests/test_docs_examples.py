"""Every block of README, CONTRIBUTING and docs/ does what it says: shell and Python run in the order of their page, and
print what follows. What cannot run here says why, right above it, and is one that its command would take.

The blocks of a page run in a folder of its own, which holds a short finished run, ``runs/demo``, with its store
``data/synthetic``.
"""

from __future__ import annotations

import contextlib
import doctest
import fcntl
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from dry_run import calls_of, check_call, check_python
from pages import ROOT, Block, blocks_of, pages, text_of, without_blocks
from warm_python import warm_python

pytestmark = [pytest.mark.slow, pytest.mark.program]

LANGUAGES = ("sh", "python", "text")
DEMO = """
python -m train.prepare synthetic --out data/synthetic --subjects 4 --replications 1
python -m train.run --dataset synthetic --preset tiny --out runs/demo --epochs 4 --bank-size 256
"""
OF_A_PRESET = re.compile(r"train\.run (?=[^#\n]*--preset tiny)(?![^#\n]*--(?:epochs|steps))")
"""A run of as many steps as its preset says, which takes minutes: here it takes a few."""
COMMAND = re.compile(r"`((?:python -m|make|fastmc-\w+|pip install) [^`]*)`")


@pytest.fixture(scope="session")
def tools() -> Iterator[Path]:
    """A folder with the ``python`` of the examples."""
    with warm_python() as folder:
        yield folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory, tools) -> Path:
    """A folder with runs/demo, made once however many processes test."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    with open(shared / "demo.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "demo").exists():
            (shared / "making").mkdir()
            run_shell(DEMO, shared / "making", tools, "the demo")
            (shared / "making").rename(shared / "demo")
    return shared / "demo"


def run_page(blocks: Sequence[Block], name: str, folder: Path, tools: Path) -> int:
    """Run the blocks of a page in ``folder``, which has to be the current one; returns how many claims it makes.

    A text block claims to be all that the block before it prints on standard output; ``...`` stands for anything.
    """
    printed, claims, namespace = None, 0, {"__name__": "__main__"}
    for language, content, line, reason in blocks:
        where = f"{name}, line {line}"
        if reason is not None:
            printed = None
        elif language == "sh":
            printed = run_shell(content, folder, tools, where)
        elif language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile("\n" * (line - 1) + content, name, "exec"), namespace)
            printed = out.getvalue()
        elif language == "text":
            assert printed is not None, f"{where}: no block before it prints anything"
            if not doctest.OutputChecker().check_output(content, printed, doctest.ELLIPSIS):
                pytest.fail(f"{where}: the page says\n{content}\nand the example prints\n{printed}")
            printed, claims = None, claims + 1
    return claims


def run_shell(script: str, folder: Path, tools: Path, where: str) -> str:
    """Standard output of a script whose ``python`` finds this clone, with one thread; a command that fails ends it."""
    done = subprocess.run(
        ["sh", "-e", "-c", OF_A_PRESET.sub("train.run --steps 60 ", script)],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{where}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", pages())
def test_the_examples_of_a_page_print_what_it_says(page, tmp_path, tools, request, monkeypatch):
    blocks = blocks_of(text_of(page), page)
    runs = [block for block in blocks if block.reason is None]
    if any(block.language != "text" for block in runs):
        shutil.copytree(request.getfixturevalue("demo"), tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    claims = run_page(blocks, page, tmp_path, tools)
    assert claims == sum(block.language == "text" for block in runs)


def test_the_page_on_embedding_runs_as_a_whole():
    blocks = blocks_of(text_of("docs/embedding.md"))
    assert [block.reason for block in blocks if block.reason] == []
    assert sum(block.language == "text" for block in blocks) >= 8


@pytest.mark.parametrize("page", pages())
def test_what_is_not_run_could_be_called(page, tmp_path):
    for block in blocks_of(text_of(page), page):
        check_block(block, page, tmp_path)
    for command in commands_in_prose(text_of(page)):
        check_block(Block("sh", command, 0, "prose"), f"{page}, `{command}`", tmp_path)


def check_block(block: Block, page: str, folder: Path) -> None:
    """ValueError unless the block is of a language that is known and, where it is not run, could be called so."""
    where = f"{page}, line {block.line}"
    if block.language not in LANGUAGES:
        raise ValueError(f"{where}: a block of {block.language} is not run; write sh, python or text")
    if block.reason is None:
        return
    try:
        if block.language == "sh":
            for call in calls_of(block.content, folder):
                check_call(call)
        elif block.language == "python":
            check_python(block.content)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{where}: {error}") from None


def commands_in_prose(text: str) -> list[str]:
    """Commands between backticks, of Python those with flags; what has places to fill in is none."""
    found = (re.sub(r"\s+", " ", command) for command in COMMAND.findall(without_blocks(text)))
    whole = (command for command in found if not re.search(r"[\[(|<]|\.\.\.", command))
    return [command for command in whole if "--" in command or command.startswith("make")]


# --- What these tests would find


def page_of(*blocks: tuple[str, str]) -> str:
    return "\n".join(f"Words.\n\n```{language}\n{content}\n```\n" for language, content in blocks)


def test_a_page_is_read_to_its_last_block():
    page = page_of(("sh", "one\ntwo"), ("python", "three")) + "\n<!-- not run: it\nlasts -->\n```text\nfour\n```\n"
    assert blocks_of(page) == [
        Block("sh", "one\ntwo\n", 4),
        Block("python", "three\n", 11),
        Block("text", "four\n", 17, "it\nlasts"),
    ]


@pytest.mark.parametrize(
    "page, message",
    [
        ("\n<!-- not run: -->\n```sh\nls\n```\n", "line 4: say why"),
        ("\n<!-- not run: why -->\n\n```sh\nls\n```\n", "line 2: write code as"),
        ("<!-- not run -->\n```sh\nls\n```\n", "line 1: write code as"),
        ("- a list\n\n  ```sh\n  ls\n  ```\n", "line 3: write code as"),
        ("~~~sh\nls\n~~~\n", "line 1: write code as"),
        ("``` sh\nls\n```\n", "line 1: write code as"),
        ("Words.\n\n    python -m train.run\n", "line 3: write code as"),
        ("```sh\nls\n\n```python\n1\n```\n", "line 2: a fence within a block"),
    ],
)
def test_code_that_would_not_be_seen_is_refused(page, message):
    with pytest.raises(ValueError, match=f"page, {message}"):
        blocks_of(page)


def test_blocks_share_their_folder_and_their_names(tmp_path, tools, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = page_of(
        ("python", "x = 41"),
        ("sh", "python -c 'print(1)' > one; cat one"),
        ("text", "1"),
        ("python", "print(x + int(open('one').read()))"),
        ("text", "42"),
    )
    assert run_page(blocks_of(page), "p", tmp_path, tools) == 2


@pytest.mark.parametrize(
    "blocks, message",
    [
        ([("python", "print(1 + 1)"), ("text", "3")], r"p, line 10: the page says\n3\n\nand the example prints\n2"),
        ([("python", "print(1)\nprint(2)"), ("text", "1")], "the page says"),
        ([("sh", "echo here"), ("text", "h...m")], "the page says"),
        ([("sh", "false\necho on"), ("text", "on")], "p, line 4: exit code 1"),
        ([("sh", "python -m train.run --datasets synthetic")], "p, line 4: exit code 2"),
        ([("text", "what?")], "no block before it"),
    ],
)
def test_a_page_that_errs_is_found_out(blocks, message, tmp_path, tools, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        run_page(blocks_of(page_of(*blocks)), "p", tmp_path, tools)


def test_a_claim_after_a_block_that_is_not_run_is_none(tmp_path, tools):
    page = page_of(("python", "print(1)")) + "<!-- not run: why -->\n" + page_of(("sh", "ls"), ("text", "1"))[8:]
    assert [block.reason for block in blocks_of(page)] == [None, "why", None]
    with pytest.raises(AssertionError, match="no block before it"):
        run_page(blocks_of(page), "p", tmp_path, tools)


@pytest.mark.parametrize(
    "language, content",
    [
        (
            "sh",
            "cd fastmc && make demo PIP_FLAGS=x && python -m train.run --dataset ntu60 \\\n  --preset small  # a note",
        ),
        ("sh", ". .venv/bin/activate && python -m fastmc.doctor"),
        ("sh", "for seed in 0 1 2; do python -m train.run --dataset ntu60 --seed $seed & done; wait"),
        ("sh", "torchrun --nproc-per-node 4 -m train.run --dataset ntu60 > log.txt"),
        ("sh", "python -m train.evaluate transfer --run DIR --dataset pku2; python -m train.convert load --help"),
        ("sh", "python -m train.tables --table 1 3 --dataset ntu60 --preset small; python -m bench.gpu --rehearse"),
        ("sh", "fastmc-tables --table 6 --dataset ntu60; fastmc-doctor; python -m fastmc.doctor;"),
        ("sh", "pip install -e '.[dev,gpu]'"),
        ("sh", "pytest bench/test_mc.py --benchmark-only; python tests/soak.py; python -m tests.fuzz.run --minutes 3"),
        ("python", "import fastmc\nfrom fastmc.views import make\nfastmc.load('x').anything"),
        ("text", "anything"),
    ],
)
def test_what_could_be_called_passes(language, content, tmp_path):
    check_block(Block(language, content, 1, "why"), "p", tmp_path)
    assert not list(tmp_path.glob("runs"))


@pytest.mark.parametrize(
    "language, content, message",
    [
        ("ruby", "puts 1", "a block of ruby is not run"),
        ("", "ls", "a block of  is not run"),
        ("sh", "python -m train.lost", "python -m train.lost is no command"),
        ("sh", "python -m train.engine.loop", "python -m train.engine.loop is no command"),
        ("sh", "ls && python -m train.run --dataset ntu60 --lost 3", "exit code 2 before"),
        ("sh", "OMP_NUM_THREADS=2 nohup python3 -m train.run --epochs few > log &\nwait", "exit code 2 before"),
        ("sh", "for i in 1 2; do python -m train.prepare ntu60 --raw a --lost $i; done", "exit code 2 before"),
        ("sh", "python -m train.tables --table 6 --dataset ntu60 --lost", "exit code 2 before"),
        ("sh", "python -m train.evaluate semi --run DIR --knn-k 3", "exit code 2 before"),
        ("sh", "torchrun -m bench.accuracy --seeds 0 --out x --epoch 3", "exit code 2 before"),
        ("sh", "python -m tests.fuzz.run --lost", "exit code 2 before"),
        ("sh", "python -m fastmc.doctor --lost", "python -m fastmc.doctor --lost: exit code 2"),
        ("sh", "fastmc-train --lost", "exit code 2 before"),
        ("sh", "fastmc-lost", "there is no fastmc-lost"),
        ("sh", "git clone x && cd x && make lost", "the Makefile has no lost"),
        ("sh", "make demo LOST=1", "the Makefile has no LOST"),
        ("sh", "python tests/lost.py", "there is no tests/lost.py"),
        ("sh", "pytest bench/lost.py::test -k x", "there is no bench/lost.py"),
        ("sh", "python -m pytest tests/lost.py", "there is no tests/lost.py"),
        ("sh", "pip install '.[lost]'", "there is no extra lost"),
        ("sh", "for x in", "syntax error"),
        ("python", "x = (", "was never closed"),
        ("python", "from fastmc import lost", "there is no fastmc.lost"),
        ("python", "import fastmc\nfastmc.lost()", "there is no fastmc.lost"),
        ("python", "import fastmc.lost", "there is no fastmc.lost"),
    ],
)
def test_what_could_not_be_called_is_found_out(language, content, message, tmp_path):
    with pytest.raises(ValueError, match=f"p, line 1: .*{re.escape(message)}"):
        check_block(Block(language, content, 1, "why"), "p", tmp_path)


def test_commands_in_prose_are_those_that_are_whole():
    text = (
        "`make docs` and `python -m train.run\n--seed 1`, `python -m train.x --a|--b`\n\n```sh\npython -m x --y\n```\n"
    )
    assert commands_in_prose(text) == ["make docs", "python -m train.run --seed 1"]
