"""The whole training step against the plain reference's, one as earlier codes write it, and its encoder calls alone.

    pytest bench/test_step.py --benchmark-only [--device cuda]

Sides take turns in one process, after all have made the same step: no parity, no numbers. pytest-benchmark's own table
shows fastmc; the table above it shows everybody. With own mixing the two other steps take half a minute each.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest

from bench.headlines import STEP_SECONDS
from bench.machine import conditions, provenance
from bench.measure import Timing
from bench.providers import MIXES, Mix
from bench.step import ENCODER, OURS, OURS_STEPWISE, REFERENCE, STEPWISE, StepCase, StepRace, text

RATIOS = {
    "vs_reference": (REFERENCE, OURS),
    "stepwise_vs_earlier_codes": (STEPWISE, OURS_STEPWISE),
    "vs_earlier_codes": (STEPWISE, OURS),
    "vs_encoder": (OURS, ENCODER),
}


@pytest.mark.parametrize("mix", MIXES)
def test_product_size(
    benchmark: Any, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest, mix: Mix
) -> None:
    timing = Timing(device=request.config.getoption("--device"))
    timing = Timing(seconds=STEP_SECONDS * timing.seconds, device=timing.device)
    with closing(StepRace(StepCase(mix), timing, encoder_calls=mix == "own")) as race:
        rounds = iter(range(timing.rounds))

        def others() -> None:
            for name in race.turns(next(rounds)):
                if name != OURS:
                    race.take(name)
            race.restore()

        with race.watch() as neighbours:
            benchmark.pedantic(race.call, args=(OURS,), setup=others, rounds=timing.rounds)
        race.found[OURS].seconds = list(benchmark.stats.stats.data)
        race.others_busy = neighbours.busy
    for key, (over, under) in RATIOS.items():
        ratio = race.ratio(over, under)
        benchmark.extra_info[key] = ratio and ratio[0]
    with capsys.disabled():
        print(f"\n{text(race)}\n{conditions(provenance(timing.device, timing.threads))}")
