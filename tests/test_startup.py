"""A command that only says how it is used waits for nothing that it does not need for that."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys

import pytest

from bench.machine import ROOT

COMMANDS = ("run", "prepare", "evaluate", "embed", "export", "figures", "look", "report", "tables", "convert")
SLOW = {"matplotlib", "sklearn", "scipy", "tensorboard", "numba", "triton", "sympy"}


def imported_by_help(command: str) -> set[str]:
    """Modules, as the interpreter lists them."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: " in done.stdout
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("command", [*(f"train.{name}" for name in COMMANDS), "fastmc.doctor"])
@pytest.mark.program
def test_help_imports_nothing_slow(command):
    found = imported_by_help(command)
    assert "argparse" in found  # the list is one
    assert not found & {*SLOW, "torch._dynamo", "torch._inductor"}


@pytest.mark.program
@pytest.mark.parametrize("command", ["train.run", "train.embed"])
def test_paragraphs_of_help_flow(command):
    """No line of a description ends where the first word of the next one had had room, as lines of a source do."""
    narrow = {**os.environ, "COLUMNS": "80"}
    shown = subprocess.check_output([sys.executable, "-m", command, "--help"], cwd=ROOT, text=True, env=narrow)
    rows = [re.fullmatch(r"│ {12,28}(\S.*?) *│", row) for row in shown.splitlines()]
    texts = [row and row[1] for row in rows]
    pairs = [(first, second) for first, second in itertools.pairwise(texts) if first and second]
    room = max(len(text) for text in texts if text)
    assert len(pairs) > 5
    assert [pair for pair in pairs if len(pair[0]) + 1 + len(pair[1].split()[0]) <= room - 1] == []


@pytest.mark.program
def test_preparing_data_takes_no_torch():
    assert "torch" not in imported_by_help("train.prepare")
