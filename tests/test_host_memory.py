"""Freed memory is kept: fresh pages are counted, not seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from train.engine import host_memory

ROOT = Path(__file__).resolve().parents[1]
COUNT = """
import resource, sys
from train.engine.host_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for round in range(20):
    before = faults()
    bytearray(40_000_000)
print(faults() - before)
"""


@pytest.mark.program
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_large_arrays_are_made_of_pages_that_are_there_already():
    def pages(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", COUNT, how], cwd=ROOT, capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert pages("leave") > 10  # 9,766 of 4 kB, or 20 huge ones
    assert pages("keep") <= 2


def test_elsewhere_nothing_is_done(monkeypatch):
    monkeypatch.setattr(host_memory.sys, "platform", "darwin")
    assert not host_memory.keep_freed_memory()
