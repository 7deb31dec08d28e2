"""What a step of each method costs beside one of B1, the plain contrast: timed in turns in one run.

    python -m bench.methods [--encoder-of-all bigru] [--preset tiny]

Each method trains on the same NTU-like clips in batches of the preset, with its own encoder, or all with one. A step is
timed as a run makes it: views, networks, loss, bank, optimizer. Mining is in it, where a method mines.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from bench.machine import conditions, provenance
from bench.measure import Timing, Turns, times
from bench.ntu_like import write_ntu_like
from fastmc.build import build_model
from fastmc.checks import check_ranges
from fastmc.config import Preset, preset_config
from fastmc.data.placed.resident import ResidentStore
from fastmc.methods import METHODS
from train.engine.loop import build_step

BASELINE = "b1"
BATCHES = 8
LATE = 10**6
"""Clips and epochs that the last phase of a method has seen."""


@dataclass(frozen=True)
class CompareMethods(Timing):
    """Time a step of each method in turns with B1's."""

    rounds: int = 15
    """Times that each is timed."""
    preset: Preset = "tiny"
    """Sizes of encoders, batches and banks."""
    methods: tuple[str, ...] = tuple(name for name in METHODS if name != BASELINE)
    """Beside b1."""
    encoder_of_all: str | None = None
    """Kind of encoder that all methods have; by default each its own. hico has s2s alone."""
    threads: int = 1
    """Threads of torch, the same for all."""

    def __post_init__(self) -> None:
        check_ranges(self)
        super().__post_init__()


def race(settings: CompareMethods) -> Turns:
    """A step of each method in its last phase, ready to be timed."""
    turns = Turns(settings)
    with tempfile.TemporaryDirectory() as folder:
        clips = BATCHES * preset_config(settings.preset).optim.batch_size
        store = ResidentStore(write_ntu_like(Path(folder) / "clips", clips), turns.device)
    for name in (BASELINE, *settings.methods):
        turns.enter(name, step_of(name, settings, store), compiles=True)
    return turns


def step_of(name: str, settings: CompareMethods, store: ResidentStore) -> Callable[[], object]:
    """What makes the next step of a method."""
    config = preset_config(settings.preset, method=name, backbone=settings.encoder_of_all)
    model = build_model(config, store, store.device)
    stepper = build_step(config, model, "fp32")
    batches = torch.arange(len(store)).split(len(store) // BATCHES)
    numbers, phase = itertools.count(), model.phase(LATE, LATE)

    def step() -> None:
        number = next(numbers)
        stepper.prepare(batches[number % BATCHES], number, config.optim.lr)
        stepper.advance(store.select(stepper.sample), phase=phase)

    return step


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(CompareMethods, prog="python -m bench.methods", args=args)
    turns = race(settings)
    title = f"step of preset {settings.preset}, encoder {settings.encoder_of_all or 'of its own'}"
    turns.run(title, progress=sys.stderr.isatty())
    print(times(title, turns.found, turns.others_busy))
    for name in settings.methods:
        if ratio := turns.ratio(name, BASELINE):
            print(f"{name} over {BASELINE}: {ratio[0]:.2f}x [{ratio[1]:.2f}-{ratio[2]:.2f}]")
    print(conditions(provenance(settings.device, settings.threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
