"""Section b: the tests that only a GPU can run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

from bench.gpu.runner import ROOT
from bench.gpu.section import Bench

VERDICT = re.compile(r"^(\S+::.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)")
LINES = 400
"""Of pytest's last words, which hold the failures."""
REHEARSED = "tests/gpu/test_gpu_profiling.py"
"""All of tests/gpu is left out without a GPU; one file shows that."""


def run(bench: Bench) -> None:
    """AssertionError if one fails, or if on a GPU none passes."""
    command = [
        *(sys.executable, "-m", "pytest", REHEARSED if bench.rehearsal else "tests/gpu"),
        *("-vv", "-rs", "--tb=short", "-p", "no:cacheprovider", "--durations=10", "--color=no"),
    ]
    counts: Counter[str] = Counter()
    said: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tests:
        assert tests.stdout is not None
        for line in tests.stdout:
            print(line, end="")
            said.append(line)
            verdict = VERDICT.match(line)
            if verdict:
                counts[verdict[2]] += 1
                bench.found.replace("Tests", [dict(counts)])
                if verdict[2] in ("FAILED", "ERROR"):
                    bench.found.row("Not passed", test=verdict[1], verdict=verdict[2])
    bench.found.listing("pytest's last words", "".join(said[-(LINES if tests.returncode else 30) :]))
    assert tests.returncode == 0, f"pytest ended with {tests.returncode}"
    assert bench.rehearsal or counts["PASSED"], "no test has passed"
