"""The MC loss and its step by every provider, at the product's size, side by side.

    pytest bench/test_mc.py --benchmark-only [--sweep] [--device cuda]

Each case is one process and one thread count; providers take turns, and each must equal the float64 reference first:
no parity, no numbers. pytest-benchmark's own table shows fastmc; the tables above it show everybody. How memory is
measured is said in bench/memory.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.machine import conditions, provenance, watch_neighbours
from bench.measure import Race, Timing, measure_memory, table
from bench.providers import MIXES, PROVIDERS, Case, Mix, Work, fast_provider
from bench.sweep import Sweep, sweep


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("work", ["step", "loss"])
def test_product_size(
    benchmark: Any, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, work: Work, mix: Mix
) -> None:
    timing = Timing(device=request.config.getoption("--device"))
    fast = fast_provider(timing.device)
    race = Race(Case(work, mix), tuple(PROVIDERS), timing)
    found = race.result.providers[fast]
    rounds = iter(range(timing.rounds))

    def others_then_restore() -> None:
        for name in race.turns(next(rounds)):
            if name != fast:
                race.take(name)
        race.restore()

    with watch_neighbours() as others:
        benchmark.pedantic(race.call, args=(fast,), setup=others_then_restore, rounds=timing.rounds)
    found.seconds = list(benchmark.stats.stats.data)
    race.result.others_busy = others.busy
    if work == "step":  # the memory of the loss alone is no more than this
        measure_memory(race.result, timing)
    for name in ("reference", "algebraic", "compiled"):
        ratio = race.result.ratio(name, fast)
        benchmark.extra_info[f"vs_{name}"] = ratio and ratio[0]
    with capsys.disabled():
        print(f"\n{table(race.result)}\n{conditions(provenance(timing.device, timing.threads))}")


def test_sweep(benchmark: Any, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    """Writes bench/results/sweep.json for python -m bench.plot."""
    if not request.config.getoption("--sweep"):
        pytest.skip("the sweep takes some twenty minutes: --sweep")
    with capsys.disabled():
        benchmark.pedantic(sweep, args=(Sweep(device=request.config.getoption("--device")),), rounds=1)
