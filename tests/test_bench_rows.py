"""pytest bench/ --benchmark-only: that each way is a row with the times that were measured side by side."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.machine import ROOT
from bench.providers import PROVIDERS

pytestmark = pytest.mark.program
BENCHMARK = '''
from bench.conftest import *
from bench.measure import Measurement, Turns
from bench.parity import ParityError
from bench.rows import Piece, TimeRow, rows

ROWS = {name: name for name in ("plain way", "fast way", "on a GPU", "floor")}


class Measured(Turns):
    """Turns that have been taken."""

    def run(self, says, *, progress=False):
        print("turns taken")
        self.found |= {
            "plain way": Measurement(seconds=[8.0, 12.0, 10.0]),
            "fast way": Measurement(seconds=[2.0, 2.5, 1.5], budget=0.25),
            "on a GPU": Measurement(skipped="there is none"),
            "floor": Measurement(seconds=[1.0, 1.0, 1.0]),
        }
        self.others_busy = 0.75


def differs(timing):
    print("compared")
    raise ParityError("the fast way computes something else")


@rows(
    Piece("sums", ROWS, Measured, "plain way", "floor", "sums"),
    Piece("long sums", ROWS, Measured, "plain way", "floor", "long", full=True),
)
def test_sums(time_row: TimeRow, piece: Piece, row: str) -> None:
    time_row(piece, row)


@rows(Piece("wrong sums", {"a": "a", "b": "b"}, differs))
def test_wrong(time_row: TimeRow, piece: Piece, row: str) -> None:
    time_row(piece, row)
'''


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


def test_rows_closing_table_and_comparison_across_commits(tmp_path):
    (tmp_path / "conftest.py").write_text("from bench.conftest import *\n")
    (tmp_path / "test_it.py").write_text(BENCHMARK)
    for name in ("before", "after"):
        done = run(tmp_path, "pytest", ".", "--benchmark-only", f"--benchmark-json={name}.json")
        said = done.stdout
        assert done.returncode == 1, said + done.stderr
    counted = "2 failed, 3 passed, 1 skipped, 4 deselected"
    assert counted in said
    assert said.count("turns taken") == 1, "a piece is measured once, for all of its rows"
    assert said.count("compared\n") == 1 and said.count("ParityError: the fast way computes something else") >= 2

    found = {one["name"]: one for one in json.loads((tmp_path / "after.json").read_text())["benchmarks"]}
    assert list(found) == [f"test_sums[sums: {row}]" for row in ("plain way", "fast way", "floor")]
    fast = found["test_sums[sums: fast way]"]
    assert fast["stats"]["data"] == pytest.approx([2.0, 2.5, 1.5]) and fast["group"] == "sums"
    info = fast["extra_info"]
    assert info["speedup_over_reference"] == 5.0 and info["share_of_floor"] == 0.5
    assert info["speedup_range"] == pytest.approx([9 / 2.25, 11 / 1.75])
    assert info["disturbed"] is True and info["others_busy"] == 0.75 and info["budget_used"] == 0.25

    table = said.partition("side by side, in turns")[2]
    assert "sums  (DISTURBED: other programs used 0.75 cores meanwhile)" in table
    assert "5.00 [4.00-6.29]" in table and "50%" in table and "25% of its budget" in table
    assert "not measured: on a GPU: there is none" in table and "left out: long sums: give --full" in table

    compared = run(tmp_path, "pytest_benchmark", "compare", "before.json", "after.json", "--group-by=name").stdout
    assert compared.count("test_sums[sums: fast way]") >= 2, compared


def test_the_users_command_collects_every_provider():
    done = run(ROOT, "pytest", "bench/", "--benchmark-only", "--collect-only", "-qq", "--full", "--color=no")
    counts = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    assert counts.keys() == {path.relative_to(ROOT).as_posix() for path in (ROOT / "bench").glob("test_*.py")}
    assert int(counts["bench/test_mc.py"]) == 4 * len(PROVIDERS), "two mixings, with the bank's step and without"
