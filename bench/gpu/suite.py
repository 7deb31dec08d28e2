"""Section b: the tests that only a GPU can run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

from bench.gpu.runner import ROOT
from bench.gpu.section import Bench

WORDS = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
VERDICT = re.compile(rf"^(?P<test>\S+::.*?) (?P<word>{WORDS})\b")
PARALLEL = re.compile(rf"^\[gw\d+\] \[ *\d+%\] (?P<word>{WORDS}) (?P<test>\S+::.*?)\s*$")
PROCESSES = 4
"""That share the GPU, where pytest-xdist is there: most of the time goes to compiling kernels on the host."""
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
    if not bench.rehearsal and find_spec("xdist") is not None:
        command += ["-n", str(PROCESSES)]
    counts: Counter[str] = Counter()
    said: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tests:
        assert tests.stdout is not None
        for line in tests.stdout:
            print(line, end="")
            said.append(line)
            if (verdict := verdict_of(line)) is not None:
                test, word = verdict
                counts[word] += 1
                bench.found.replace("Tests", [dict(counts)])
                if word in ("FAILED", "ERROR"):
                    bench.found.row("Not passed", test=test, verdict=word)
    bench.found.listing("pytest's last words", "".join(said[-(LINES if tests.returncode else 30) :]))
    assert tests.returncode == 0, f"pytest ended with {tests.returncode}"
    assert bench.rehearsal or counts["PASSED"], "no test has passed"


def verdict_of(line: str) -> tuple[str, str] | None:
    """The test and what came of it, in a line of pytest's, by one process or several; None of other lines."""
    found = VERDICT.match(line) or PARALLEL.match(line)
    return None if found is None else (found["test"], found["word"])
