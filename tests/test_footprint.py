"""bench.footprint: the parts of a run, and the arrays that it knows of."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bench.machine import ROOT
from bench.memory import CLEAR_REFS
from bench.ntu_like import write_ntu_like

pytestmark = pytest.mark.skipif(not CLEAR_REFS.exists(), reason="resident memory is read as Linux offers it")

CODE = """
import json, sys
from pathlib import Path
from bench.footprint import Footprint, Parts, measure
parts = Parts()
known = measure(Footprint(preset="tiny", steps=4, probes=2, linear_epochs=1), Path(sys.argv[1]), parts)
print(json.dumps([known, parts.found, parts.text()]))
"""


@pytest.mark.program
def test_a_run_is_gone_through_part_by_part(tmp_path):
    store = write_ntu_like(tmp_path / "clips", 96, test=16)
    command = [sys.executable, "-c", CODE, str(tmp_path / "clips")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    known, found, text = json.loads(done.stdout.splitlines()[-1])
    assert known["frames"] == store.frames.nbytes
    assert known["bank and its velocity"] == 2 * 4 * 1024 * 128
    assert known["query encoder"] == known["key encoder"] > 0
    names = [name for name, _ in found]
    assert names[:4] == [
        "Python and PyTorch",
        "store opened",
        "frames placed, model, optimizer, bank",
        "first step, with what it compiles",
    ]
    assert names[4:8] == ["steps 2 to 2", "steps 3 to 3", "steps 4 to 4", "steps 5 to 5"]
    assert names[8:] == ["checkpoint", "kNN probe 1", "kNN probe 2", "1 steps more", "kNN and linear evaluation"]
    for _, (own, files, peak) in found:
        assert 0 < own < peak and 0 < files < peak
    lines = text.splitlines()
    assert len(lines) == 1 + len(found) and lines[1].split()[-4] == f"{found[0][1][0] / 1e6:,.0f}"
