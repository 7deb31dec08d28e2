"""Section i: the profiler's trace of some steps, launch by launch, so that parts have names, and as one graph."""

from __future__ import annotations

import shutil

from bench.gpu.section import Bench
from bench.gpu.training import Run, prepare
from train.engine.profiling import OPERATORS, TRACE

LARGEST = 15e6
"""Bytes of a trace that is kept."""
WAYS = (("off", "trace.json.gz"), ("on", "trace-of-graph.json.gz"))


def run(bench: Bench) -> None:
    """Of the run of section h, if it is there."""
    prepare(bench)
    for graph, name in WAYS[:1] if bench.rehearsal else WAYS:
        if bench.has(15, f"a trace with --cuda-graph {graph}"):
            record(bench, graph, name)


def record(bench: Bench, graph: str, name: str) -> None:
    """AssertionError if no trace was written in time."""
    recorded = Run(bench, "--profile", str(bench.sizes.profiled), "--cuda-graph", graph)
    profile = recorded.folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    try:
        in_time = recorded.wait_until(lambda: "\nprofiled " in recorded.said(), bench.left())
        recorded.stop()
    finally:
        recorded.close()
    assert in_time, "no trace was written in time"
    parts, _, operators = (profile / OPERATORS).read_text(encoding="utf-8").partition("\n\n")
    bench.found.listing(f"Parts, --cuda-graph {graph}", parts)
    bench.found.listing(f"Operators, --cuda-graph {graph}", "\n".join(_narrow(operators)))
    size = (profile / TRACE).stat().st_size
    if size > LARGEST:
        bench.found.note(f"the trace with --cuda-graph {graph} has {size / 1e6:.0f} MB and was left out")
        return
    shutil.copyfile(profile / TRACE, bench.out / name)
    bench.found.note(f"{name}: {bench.sizes.profiled} steps, {size / 1e6:.2g} MB; open it in https://ui.perfetto.dev")


def _narrow(table: str, rows: int = 25) -> list[str]:
    """The first rows, without the columns at their end."""
    return [line[:240].rstrip() for line in table.splitlines()[:rows]]
