"""The four views of a batch by fastmc and by a loader's worker in numpy, clip by clip, side by side.

    pytest bench/test_views.py --benchmark-only [--device cuda]

Sides take turns in one process; numpy must first come to fastmc's own views: no parity, no numbers. pytest-benchmark's
own table shows fastmc; the table above it shows both.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.machine import conditions, provenance, watch_neighbours
from bench.measure import Timing, times
from bench.numpy_views import STYLES
from bench.views import FASTMC, ViewsCase, race


def test_product_size(benchmark: Any, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    timing, case = Timing(device=request.config.getoption("--device")), ViewsCase()
    turns = race(case, timing)
    rounds = iter(range(timing.rounds))

    def others() -> None:
        for name in turns.turns(next(rounds)):
            if name != FASTMC:
                turns.take(name)

    with watch_neighbours() as neighbours:
        benchmark.pedantic(turns.call, args=(FASTMC,), setup=others, rounds=timing.rounds)
    turns.found[FASTMC].seconds = list(benchmark.stats.stats.data)
    for style in STYLES:
        ratio = turns.ratio(f"numpy, {style}", FASTMC)
        benchmark.extra_info[f"vs_{style}_numpy"] = ratio and ratio[0]
    with capsys.disabled():
        print(f"\n{times(str(case), turns.found, neighbours.busy)}")
        print(conditions(provenance(timing.device, timing.threads)))
