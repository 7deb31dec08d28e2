"""Accuracy of methods over seeds, as a table: python -m bench.accuracy --help.

Runs are ordinary run folders of ``train.run``: an interrupted call resumes, and a finished run is only read.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor, nn

from fastmc.budget import fitted
from fastmc.config import Config, Preset
from fastmc.data.placed.placement import place_store
from fastmc.data.store import PackedStore
from fastmc.evaluation import frozen_features, knn_evaluate, linear_evaluate
from train.command.datasets import open_dataset
from train.command.errors import USER_ERRORS
from train.command.jobs import Job
from train.command.launch import Launch, Launched
from train.command.parse import parse
from train.command.work import work_of
from train.engine.record import log, start_logging
from train.runs.folder import is_finished
from train.runs.report import ACCURACIES
from train.tables.markdown import markdown


@dataclass(frozen=True)
class Accuracy:
    """Pre-train every method on every set from every seed, evaluate, and write a page of tables.

    All other flags are those of train.run, the same for all runs.
    Example: python -m bench.accuracy --out runs/order --methods b1 a2mc --datasets synthetic hdm05 --presets tiny
    """

    out: Path = Path("runs/accuracy")
    """Folder of the runs; the page goes to accuracy.md in it."""
    datasets: tuple[str, ...] = ("synthetic",)
    """A table each: names of packed stores."""
    presets: tuple[Preset, ...] = ("tiny",)
    """Each with a row a method."""
    methods: tuple[str, ...] = ("b1", "b2", "b3", "a2mc")
    """Rows."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each row."""
    launch: Launched = field(default_factory=Launch)
    collect: bool = False
    """Run nothing: make the page of the runs that are there."""


class Row(NamedTuple):
    """Runs that differ in their seed alone."""

    dataset: str
    preset: str
    method: str

    def folder(self, settings: Accuracy, seed: int) -> Path:
        return settings.out / self.dataset / f"{self.preset}-{self.method}-seed{seed}"

    def folders(self, settings: Accuracy) -> list[Path]:
        return [self.folder(settings, seed) for seed in settings.seeds]

    def flags(self) -> tuple[str, ...]:
        return ("--dataset", self.dataset, "--preset", self.preset, "--method", self.method)


def main(args: Sequence[str] | None = None) -> int:
    settings, flags = tyro.cli(Accuracy, prog="python -m bench.accuracy", args=args, return_unknown_args=True)
    start_logging()
    try:
        return _measure(settings, flags)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _measure(settings: Accuracy, flags: Sequence[str]) -> int:
    instead = {f"--{name}": f"--{name}s" for name in ("method", "seed", "dataset", "preset", "device")}
    if taken := instead.keys() & set(flags):
        raise ValueError(
            f"{', '.join(taken)} differs from run to run: give {', '.join(map(instead.__getitem__, taken))}"
        )
    rows = [Row(*row) for row in itertools.product(settings.datasets, settings.presets, settings.methods)]
    of_sets = {name: [row for row in rows if row.dataset == name] for name in settings.datasets}
    data = {name: Data.of(flags, ours[0]) for name, ours in of_sets.items()}
    runs = {
        row.folder(settings, seed): _job(settings, flags, row, seed, data[row.dataset])
        for seed in settings.seeds
        for row in rows
    }
    if settings.collect:
        runs = {folder: job for folder, job in runs.items() if job.done()}
        log.info("%d of %d runs are there", len(runs), len(settings.seeds) * len(rows))
    elif not settings.launch.make([list(runs.values())], settings.out, small=set(settings.presets) == {"tiny"}):
        return 0
    page = "\n\n".join(_section(settings, flags, ours, data[name], runs) for name, ours in of_sets.items())
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "accuracy.md").write_text(page + "\n", encoding="utf-8")
    print(page)
    return 0


class Data(NamedTuple):
    """A set under a protocol; its store is made once, before the runs ask for it side by side."""

    store: PackedStore
    protocol: str
    digest: str
    training_clips: int

    @classmethod
    def of(cls, flags: Sequence[str], row: Row) -> Data:
        config = parse((*row.flags(), *flags))
        store = open_dataset(config.dataset, config.data_root)
        protocol = config.protocol or store.protocols[0]
        return cls(store, protocol, store.split_digest(protocol), len(store.split(protocol)[0]))


def _job(settings: Accuracy, flags: Sequence[str], row: Row, seed: int, data: Data) -> Job:
    folder = row.folder(settings, seed)
    arguments = (*row.flags(), *flags, "--seed", str(seed), "--out", str(folder))
    config = fitted(replace(parse(arguments), protocol=data.protocol), data.training_clips)
    log = folder.with_suffix(".log")
    name = f"{row.dataset} {folder.name}"
    work = work_of(config, data.training_clips)
    return Job(name, "train.run", arguments, log, lambda: is_finished(config, data.digest), work)


def _section(settings: Accuracy, flags: Sequence[str], ours: Sequence[Row], data: Data, there: Collection[Path]) -> str:
    """The table of a set, below what it is, of the run folders that are ``there``."""
    store, protocol = data.store, data.protocol
    train, test = store.split(protocol)
    config = replace(parse((*ours[0].flags(), *flags)), protocol=protocol)
    found: dict[str, list[dict[str, float]]] = {"raw coordinates": [raw_accuracy(store, config)]}
    for preset in settings.presets:
        reports = {
            row.method: [read_report(each) for each in row.folders(settings) if each in there]
            for row in ours
            if row.preset == preset
        }
        most = max(reports.values(), key=len)  # of equally many the first
        found[f"{preset}, untrained"] = [report["random_init"] for report in most]
        found |= {f"{preset}, {method}": each for method, each in reports.items()}
    title = (
        f"{store.name} {protocol}: {len(train):,} training clips, {len(test):,} test clips, {store.num_classes} classes"
    )
    return f"{title}\n\n{make_table(found)}"


def read_report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


class Coordinates(nn.Module):
    """In the place of an encoder: the normalised coordinates themselves, (B, T, F) to (B, T * F)."""

    def represent(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def raw_accuracy(store: PackedStore, config: Config) -> dict[str, float]:
    """The evaluation of an encoder, percent, of raw coordinates at the run's number of frames."""
    placed, _ = place_store(store, "cpu", config.data)
    train, test = (torch.from_numpy(ids) for ids in store.split(config.protocol or store.protocols[0]))
    features = frozen_features(
        Coordinates(),
        placed,
        train,
        test,
        "joint",
        config.evaluation,
        frames=config.frames,
    )
    linear = linear_evaluate(features, store.num_classes, config.evaluation)
    return knn_evaluate(features, config.evaluation) | linear


def make_table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Mean over the seeds and, in brackets, the single values, percent; by row."""
    cells = [(name, *(_cell([r[key] for r in results]) for key in ACCURACIES)) for name, results in found.items()]
    return markdown(("method", *ACCURACIES.values()), cells)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "not run"
    singles = f" ({', '.join(f'{v:.1f}' for v in values)})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{singles}"


if __name__ == "__main__":
    sys.exit(main())
