"""Whether the samples per second of a training log are those of the benchmark: python -m bench.step_log --help."""

from __future__ import annotations

import csv
import itertools
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from bench.machine import conditions, provenance
from bench.measure import Method, Turns
from bench.ntu_like import write_ntu_like
from bench.providers import Mix
from bench.step import BATCHES, OURS, Ours, StepCase, start_state
from bench.views import Clips, ViewsCase
from fastmc.config import LogConfig
from fastmc.data.store import PackedStore, StoreWriter
from train.engine.loop import Pretraining


@dataclass(frozen=True)
class CompareLog(Method):
    """Hold the samples per second of a training log against those of timed steps, as the benchmark times them. Wants a
    machine with nothing else to do.

    Steps are timed, then a run of the same step at the same size is trained, then steps are timed again. They agree if
    the quartiles of the timed steps and those of the run's epochs overlap.
    """

    out: Path = Path("runs/bench-step")
    """Folder of the run; must be empty."""
    mix: Mix = "own"
    """How a mixed bank is made."""
    batch: int = 64
    """B, clips."""
    bank: int = 16384
    """K, bank entries."""
    encoder: str = "3x256"
    """Layers x hidden units."""
    frames: int = 64
    """T of a view."""
    epochs: int = 6
    """Epochs of 8 batches; the first warms up."""

    def case(self) -> StepCase:
        return StepCase(self.mix, self.batch, self.bank, encoder=self.encoder, frames=self.frames)


def trained_rates(case: StepCase, folder: Path, epochs: int, device: torch.device) -> list[float]:
    """Samples per second by the log of a run on a full bank, of every epoch but the first."""
    config = case.config()
    config = replace(
        config,
        dataset="ntu-like",
        protocol="split",
        optim=replace(config.optim, epochs=epochs),
        log=LogConfig(probe_every=0, checkpoint_every=epochs),
    )
    pretraining = Pretraining(config, write_split_store(folder / "clips", case.batch), folder, device)
    pretraining.step = -(-case.bank // case.batch)  # the bank counts as full: steps that fill it do less
    pretraining.run()
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [float(row["samples_per_second"]) for row in csv.DictReader(file)][1:]


def write_split_store(path: Path, batch: int) -> PackedStore:
    """The clips of the benchmark for training, and one more batch that a run may be tested on."""
    source = write_ntu_like(path.with_name("all-clips"), (BATCHES + 1) * batch)
    with StoreWriter(
        path,
        name=path.name,
        skeleton=source.skeleton,
        fps=30.0,
        class_names=["motion"],
        protocols={"split": {"field": "subject", "train": [1]}},
    ) as writer:
        for n in range(len(source)):
            writer.add(source.clip(n), name=f"clip{n:06d}", label=0, subject=1 + (n >= BATCHES * batch))
    return PackedStore.open(path)


def timed_rates(case: StepCase, method: Method) -> list[float]:
    """Samples per second of single steps."""
    turns = Turns(method)
    clips = Clips(ViewsCase(case.batch, case.frames, BATCHES * case.batch), turns.device)
    config = case.config()
    ours = Ours(config, clips.packed, start_state(config, clips.packed, turns.device))
    batches = torch.arange(len(clips.packed), device=turns.device).split(case.batch)
    numbers = itertools.count()

    def call() -> object:
        number = next(numbers)
        return ours(batches[number % BATCHES], number)

    turns.enter(OURS, call, compiles=True)
    turns.run(str(case))
    return [case.batch / seconds for seconds in turns.found[OURS].seconds]


def spread(rates: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile."""
    low, middle, high = statistics.quantiles(rates, n=4, method="inclusive")
    return low, middle, high


def agree(timed: Sequence[float], logged: Sequence[float]) -> bool:
    """Whether their quartiles overlap."""
    (a, _, b), (c, _, d) = spread(timed), spread(logged)
    return a <= d and c <= b


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(CompareLog, prog="python -m bench.step_log", args=args)
    if settings.out.exists() and any(settings.out.iterdir()):
        print(f"error: out: {settings.out} is not empty", file=sys.stderr)
        return 1
    settings.out.mkdir(parents=True, exist_ok=True)
    case, device = settings.case(), torch.device(settings.device)
    timed = timed_rates(case, settings)
    logged = trained_rates(case, settings.out, settings.epochs, device)
    timed += timed_rates(case, settings)
    print(case)
    for says, rates in (("timed steps", timed), ("training log", logged)):
        low, middle, high = spread(rates)
        print(f"{says:14} {middle:8.2f} samples/s ({low:.2f} to {high:.2f}), {len(rates)} values")
    print("they agree within their spread" if agree(timed, logged) else "they do not agree")
    print(conditions(provenance(settings.device, settings.threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
