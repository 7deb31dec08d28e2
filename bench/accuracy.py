"""Accuracy of methods over seeds, as a table: python -m bench.accuracy --help.

Runs are ordinary run folders of ``train.run``: an interrupted call resumes, and a finished run is only read.
"""

from __future__ import annotations

import itertools
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro

from bench.supervised import Known
from fastmc.budget import fitted
from fastmc.config import Config, Preset
from fastmc.data.placed.placement import place_store
from fastmc.data.store import PackedStore
from fastmc.evaluation.raw import raw_accuracy
from train.command.datasets import open_dataset
from train.command.errors import run_command
from train.command.jobs import Job
from train.command.launch import Launch, Launched
from train.command.parse import parse
from train.command.work import work_of
from train.engine.record import log
from train.runs.folder import is_finished, name_of
from train.runs.report import ACCURACIES
from train.tables.markdown import markdown

SUPERVISED = "supervised"


@dataclass(frozen=True)
class Accuracy:
    """Pre-train every method on every set from every seed, evaluate, and write a page of tables.

    All other flags are those of train.run, the same for all runs.
    Beside them stand raw coordinates and the untrained encoder, and with --supervised the encoder trained with labels.
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
    variants: tuple[str, ...] = ()
    """A further row of each method for each: flags of train.run without their dashes, such as bank-lr=0.3, or several
    as one word, "bank-lr=0.3 no-input-norm"."""
    supervised: bool = False
    """A row for what the encoder reaches with labels, in as many steps (bench.supervised)."""
    launch: Launched = field(default_factory=Launch)
    collect: bool = False
    """Run nothing: make the page of the runs that are there."""


def main(args: Sequence[str] | None = None) -> int:
    def command(args: Sequence[str]) -> None:
        _measure(*tyro.cli(Accuracy, prog="python -m bench.accuracy", args=args, return_unknown_args=True))

    return run_command(command, args, stopped="stopped; the same command goes on from the runs that are there")


def _measure(settings: Accuracy, flags: Sequence[str]) -> None:
    instead = {f"--{name}": f"--{name}s" for name in ("method", "seed", "dataset", "preset", "device")}
    if taken := instead.keys() & set(flags):
        raise ValueError(
            f"{', '.join(taken)} differs from run to run: give {', '.join(map(instead.__getitem__, taken))}"
        )
    data = {name: Data.of(name, flags) for name in settings.datasets}
    tables = {name: _rows(settings, flags, each) for name, each in data.items()}
    runs = [run for rows in tables.values() for row in rows for run in row.runs]
    if settings.collect:
        log.info("%d of %d runs are there", sum(run.job.done() for run in runs), len(runs))
    else:
        jobs = [run.job for run in sorted(runs, key=lambda run: settings.seeds.index(run.seed))]
        if not settings.launch.make([jobs], settings.out, small=set(settings.presets) == {"tiny"}):
            return
    page = "\n\n".join(_section(settings, flags, data[name], rows) for name, rows in tables.items())
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "accuracy.md").write_text(page + "\n", encoding="utf-8")
    print(page)


class Data(NamedTuple):
    """A set under a protocol; its store is made once, before the runs ask for it side by side."""

    name: str
    store: PackedStore
    protocol: str
    digest: str
    training_clips: int

    @classmethod
    def of(cls, name: str, flags: Sequence[str]) -> Data:
        config = parse(("--dataset", name, *flags))
        store = open_dataset(config.dataset, config.data_root)
        protocol = config.protocol or store.protocols[0]
        return cls(name, store, protocol, store.split_digest(protocol), len(store.split(protocol)[0]))

    def config(self, arguments: Sequence[str]) -> Config:
        """The settings of a command line of train.run on this set."""
        return fitted(replace(parse(arguments), protocol=self.protocol), self.training_clips)


class Run(NamedTuple):
    """One of a row's runs, by its seed: how it is made, and how what it found is read."""

    seed: int
    job: Job
    read: Callable[[], dict[str, Any]]


class Row(NamedTuple):
    """Runs that differ in their seed alone."""

    preset: str
    name: str
    runs: list[Run]

    def found(self) -> list[dict[str, Any]]:
        """Of the runs that are there."""
        return [run.read() for run in self.runs if run.job.done()]


def _rows(settings: Accuracy, flags: Sequence[str], data: Data) -> list[Row]:
    rows = []
    for preset in settings.presets:
        of_preset = ("--dataset", data.name, "--preset", preset)
        for method, variant in itertools.product(settings.methods, ("", *settings.variants)):
            name = f"{method} {variant}".strip()
            common = (*of_preset, "--method", method, *flags, *_flags(variant))
            kind = settings.out / name_of(data.name) / re.sub(r"[^\w.:]+", "-", f"{preset}-{name}")
            rows.append(Row(preset, name, [_run(data, common, kind, seed) for seed in settings.seeds]))
        if settings.supervised:
            folder = settings.out / name_of(data.name)
            runs = [_supervised_run(data, (*of_preset, *flags), folder, seed) for seed in settings.seeds]
            rows.append(Row(preset, SUPERVISED, runs))
    return rows


def _flags(variant: str) -> list[str]:
    """--name value of each name=value; a name alone is a switch."""
    return [part for word in variant.split() for part in f"--{word}".split("=", 1)]


def _run(data: Data, common: Sequence[str], kind: Path, seed: int) -> Run:
    folder = kind.with_name(f"{kind.name}-seed{seed}")
    arguments = (*common, "--seed", str(seed), "--out", str(folder))
    config = data.config(arguments)
    job = Job(
        f"{data.name} {folder.name}",
        "train.run",
        arguments,
        folder.with_name(f"{folder.name}.log"),
        lambda: is_finished(config, data.digest),
        work_of(config, data.training_clips),
    )
    return Run(seed, job, lambda: read_report(folder))


def _supervised_run(data: Data, common: Sequence[str], folder: Path, seed: int) -> Run:
    config = data.config((*common, "--seed", str(seed)))
    known = Known(folder, config, data.digest)
    job = Job(
        f"{data.name} {known.path.stem}",
        "bench.supervised",
        (*common, "--seeds", str(seed), "--keep", str(folder)),
        known.path.with_suffix(".log"),
        lambda: known.read() is not None,
        work_of(config, data.training_clips) / 2,  # two views forth and back
    )
    return Run(seed, job, lambda: {"linear_top1": known.read()})


def _section(settings: Accuracy, flags: Sequence[str], data: Data, rows: Sequence[Row]) -> str:
    """The table of a set, below what it is, of the runs that are there."""
    store, protocol = data.store, data.protocol
    train, test = store.split(protocol)
    config = data.config(("--dataset", data.name, "--preset", settings.presets[0], *flags))
    found: dict[str, list[dict[str, float]]] = {"raw coordinates": [raw_accuracy_of(store, config)]}
    for preset in settings.presets:
        ours = {row.name: row.found() for row in rows if row.preset == preset}
        most = max((each for name, each in ours.items() if name != SUPERVISED), key=len)  # of equally many the first
        found[f"{preset}, untrained"] = [report["random_init"] for report in most]
        found |= {f"{preset}, {name}": each for name, each in ours.items()}
    title = (
        f"{store.name} {protocol}: {len(train):,} training clips, {len(test):,} test clips, {store.num_classes} classes"
    )
    return f"{title}\n\n{make_table(found)}"


def read_report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def raw_accuracy_of(store: PackedStore, config: Config) -> dict[str, float]:
    """The evaluation of an encoder, percent, of raw coordinates at the run's number of frames."""
    placed, _ = place_store(store, "cpu", config.data)
    train, test = map(torch.from_numpy, store.labelled_split(config.protocol or store.protocols[0]))
    return raw_accuracy(placed, train, test, store.num_classes, config.evaluation, config.frames)


def make_table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Mean over the seeds and, in brackets, the single values, percent; by row."""
    cells = [(name, *(_cell([r.get(key) for r in results]) for key in ACCURACIES)) for name, results in found.items()]
    return markdown(("method", *ACCURACIES.values()), cells)


def _cell(values: Sequence[float | None]) -> str:
    if not values:
        return "not run"
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    singles = f" ({', '.join(f'{v:.1f}' for v in known)})" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.1f}{singles}"


if __name__ == "__main__":
    sys.exit(main())
