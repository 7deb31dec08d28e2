"""A training process that steps when it is told to: what bench/contention.py starts, in one checkout or in several.

    PYTHONPATH=CHECKOUT python -P bench/stepping.py tiny

It makes the steps of that checkout as a run of this preset has them by default. Each line of its input is a number of
seconds: it steps so long and answers with a `Stint` as JSON.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from bench.ntu_like import write_ntu_like
from bench.step import Ours
from fastmc.config import Preset, preset_config
from fastmc.data.placed.resident import ResidentStore
from train.run import choose_device

BATCHES = 8
"""Batches that the steps go through, over and over again."""


class Stint(NamedTuple):
    """Steps, and the seconds that they took."""

    steps: int
    seconds: float
    processor: float
    """Seconds of all threads together."""
    overhead: float
    """Processor seconds of the step that goes before, while what has slept wakes up."""


def main(preset: Preset, orders: Iterable[str]) -> None:
    step = training(preset)
    step()
    print("ready", flush=True)
    for order in orders:
        print(json.dumps(work(step, float(order))), flush=True)


def training(preset: Preset) -> Callable[[], object]:
    """What makes the next step, on NTU-like clips."""
    device, config = choose_device("cpu"), preset_config(preset)
    batch = config.optim.batch_size
    with tempfile.TemporaryDirectory() as folder:
        store = ResidentStore(write_ntu_like(Path(folder) / "clips", BATCHES * batch), device)
    ours, batches = Ours(config, store), torch.arange(len(store)).split(batch)
    numbers = iter(range(sys.maxsize))

    def step() -> object:
        number = next(numbers)
        return ours(batches[number % BATCHES], number)

    return step


def work(step: Callable[[], object], seconds: float) -> Stint:
    """Steps until the seconds are over, and one at least."""
    slept = time.process_time()
    step()
    used, start, steps = time.process_time(), time.perf_counter(), 0
    while True:
        step()
        steps += 1
        passed = time.perf_counter() - start
        if passed >= seconds:
            return Stint(steps, passed, time.process_time() - used, used - slept)


if __name__ == "__main__":
    main(sys.argv[1], sys.stdin)  # type: ignore[arg-type]
