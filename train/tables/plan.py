"""Which runs and evaluations a table needs, and what they came to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from fastmc.budget import fitted
from fastmc.config import Config, to_plain
from fastmc.data.store import PackedStore
from fastmc.evaluation import FinetuneConfig
from train.command.datasets import open_dataset
from train.command.evaluation_settings import Semi
from train.command.jobs import Job
from train.command.parse import parse
from train.command.work import work_of
from train.runs.folder import NOT_EVALUATED, PAGE, RunFolder, default_folder, is_finished, name_of, read_json
from train.runs.published import DATASETS, OURS, Column, Row, Table, Variant

# Flags of train.run that differ from run to run, with what says them here.
VARYING = {
    "--dataset": "--dataset",
    "--protocol": "--protocols",
    "--method": "a row of the table",
    "--stream": "a row of the table",
    "--seed": "--seeds",
    "--out": "--runs",
    "--device": "--devices",
    "--restart": "nothing: delete the run's folder",
    "--print-config": "nothing",
}
OF_AN_ENCODER = ("--encoder", "--backbone", "--reading")
"""Flags that say which encoder: rows of encoders of another kind go without."""

Cell = tuple[Row, Column, int]  # a row and a column of ours, and a seed


@dataclass(frozen=True)
class Plan:
    """The runs of a table: folders, commands and results.

    Attributes:
        flags: of train.run, the same for all runs.
        seeds: of each cell.
        runs: folder of the run folders, named as train.run names them.
        target: data set that table 5 fine-tunes on; its first protocol.
        logs: folder of what the commands print.
        also: encoders of other kinds whose rows are wanted too. methods: rivals that are.
    """

    flags: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Path
    target: str
    logs: Path
    also: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    _data: dict[tuple[str, str], str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _training_clips: dict[tuple[str, str], int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for flag in self.flags:
            name = flag.partition("=")[0]
            if name in VARYING:
                raise ValueError(f"{name} differs from run to run; here it is said by {VARYING[name]}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds = {', '.join(map(str, self.seeds)) or 'none'}: give one or more different seeds")

    def store(self, dataset: str) -> PackedStore:
        """The packed store, made if it can be; DatasetError says how to get one that is not there."""
        return open_dataset(dataset, _parsed((*self.flags, "--dataset", dataset)).data_root)

    def data(self, dataset: str, protocol: str) -> str:
        """Digest of the clips and labels that results must be of: a store may have been made anew since."""
        if (dataset, protocol) not in self._data:
            self._data[dataset, protocol] = self.store(dataset).split_digest(protocol)
        return self._data[dataset, protocol]

    def training_clips(self, dataset: str, protocol: str) -> int:
        """How many clips a protocol trains on."""
        if (dataset, protocol) not in self._training_clips:
            self._training_clips[dataset, protocol] = len(self.store(dataset).split(protocol)[0])
        return self._training_clips[dataset, protocol]

    def columns(self, table: Table, datasets: Sequence[str], protocols: Sequence[str] = ()) -> tuple[Column, ...]:
        """Columns of our own beside the published ones: for a published set those protocols that were published, for
        another one all that the store has, or just its first where the table has one protocol only. A published set
        that the table has not is passed over; ValueError if it has none of them."""
        published = [(column.dataset, column.protocol) for column in table.columns]
        several = len({protocol for _, protocol in published}) > 1
        measures = dict.fromkeys(column.measure for column in table.columns)
        found = []
        for dataset in datasets:
            there = self.store(dataset).protocols
            own = dict.fromkeys(p for d, p in published if d == dataset) if dataset in DATASETS else there
            chosen = list(protocols or own)[: None if several or protocols else 1]
            absent = [protocol for protocol in chosen if protocol not in there]
            if absent:
                raise ValueError(f"{dataset} has no protocol {', '.join(absent)}; there are: {', '.join(there)}")
            found += [Column(dataset, protocol, measure) for protocol in chosen for measure in measures]
        if not found:
            names = ", ".join(datasets)
            raise ValueError(f"table {table.number} has no column for {names}; name another --dataset, or --protocols")
        return tuple(found)

    def config(self, column: Column, variant: Variant, stream: str, seed: int) -> Config:
        """Settings of one run, its folder included."""
        flags = (*self._flags_of(variant), "--dataset", column.dataset, "--protocol", column.protocol)
        config = _parsed((*flags, "--method", variant.method, "--stream", stream, "--seed", str(seed)))
        config = fitted(config, self.training_clips(column.dataset, column.protocol))
        return replace(config, out=self.runs / default_folder(config).name)

    def _flags_of(self, variant: Variant) -> tuple[str, ...]:
        """Those of all runs; for an encoder of another kind without the size and the reading of the usual one."""
        names = {word.partition("=")[0] for word in self.flags}
        own = variant.is_rival and "--backbone" not in names
        if variant.backbone is None and not own:
            return self.flags
        kept, flags = [], iter(self.flags)
        for word in flags:
            name, is_one, _ = word.partition("=")
            if name in OF_AN_ENCODER:
                if not is_one:
                    next(flags, None)
            else:
                kept.append(word)
        return tuple(kept) if variant.backbone is None else (*kept, "--backbone", variant.backbone)

    def configs(self, column: Column, variant: Variant, seed: int) -> list[Config]:
        return [self.config(column, variant, stream, seed) for stream in variant.streams]

    def cells(self, table: Table, columns: Sequence[Column]) -> Iterator[Cell]:
        """Every (row, column, seed) of ours."""
        for row, column, seed in product(table.rows, columns, self.seeds):
            if self.wants(row):
                yield row, column, seed

    def wants(self, row: Row) -> bool:
        """Whether a row is one of ours, and of an encoder and a method that are wanted."""
        variant = row.variant
        if variant is None or variant.backbone not in (None, *self.also):
            return False
        return not variant.is_rival or variant.method in self.methods

    def training_jobs(self, cells: Sequence[Cell]) -> list[Job]:
        """The runs to train, each once, those of the first seed first.

        Raises:
            RunFolderError: a folder holds a run with other settings.
        """
        configs: dict[Path, tuple[Config, tuple[str, ...]]] = {}
        for row, column, seed in sorted(cells, key=lambda cell: cell[2]):
            assert row.variant is not None
            for config in self.configs(column, row.variant, seed):
                assert config.out is not None
                configs[config.out] = config, self._flags_of(row.variant)
        return [self._training_job(*each) for each in configs.values()]

    def _is_finished(self, config: Config) -> bool:
        assert config.protocol is not None
        return is_finished(config, self.data(config.dataset, config.protocol), _remedy(config))

    def _training_job(self, config: Config, flags: tuple[str, ...]) -> Job:
        assert config.out is not None
        RunFolder(config, _remedy(config))  # an error now, not after hours
        arguments = (
            *flags,
            *("--dataset", config.dataset, "--protocol", str(config.protocol), "--method", config.method),
            *("--stream", config.stream, "--seed", str(config.seed), "--out", str(config.out)),
        )
        name = config.out.name
        work = work_of(config, self.training_clips(config.dataset, str(config.protocol)))
        return Job(name, "train.run", arguments, self.logs / f"{name}.log", lambda: self._is_finished(config), work)

    def evaluation_jobs(self, cells: Sequence[Cell]) -> list[Job]:
        """The evaluations that a training run does not make itself, each once."""
        jobs: dict[str, Job] = {}
        for row, column, seed in cells:
            assert row.variant is not None
            job = self._evaluation_job(column, row.variant, seed)
            if job is not None:
                jobs[job.name] = job
        return list(jobs.values())

    def _evaluation_job(self, column: Column, variant: Variant, seed: int) -> Job | None:
        configs = self.configs(column, variant, seed)
        folders = [str(config.out) for config in configs]
        options: tuple[str, ...] = ()
        if len(configs) > 1:
            kind = "ensemble"
        elif column.measure in ("semi1", "semi10"):
            kind, options = "semi", ("--share", "0.01", "0.1")
        elif column.measure == "transfer":
            kind, options = "transfer", ("--dataset", self.target)
        else:
            return None
        config = configs[0]
        columns = [column]
        if kind == "semi":
            columns = [replace(column, measure=measure) for measure in ("semi1", "semi10")]
        name = f"{kind}-{Path(folders[0]).name}"
        common = ("--device", config.device, "--data-root", str(config.data_root))
        own = tuple(kind for kind in (config.method, config.backbone) if ":" in kind)
        allow = ("--allow", *own) if own else ()  # which the command that trains it names itself
        return Job(
            name,
            "train.evaluate",
            (kind, "--run", *folders, *options, *common, *allow),
            self.logs / f"{name}.log",
            lambda: all(self.outcome(each, variant, seed) for each in columns),
        )

    def result(self, column: Column, variant: Variant, seed: int) -> Path:
        """The file that holds a cell's figure."""
        config = self.configs(column, variant, seed)[0]
        assert config.out is not None
        if len(variant.streams) > 1:
            return config.out / "evaluate" / f"ensemble-{config.protocol}.json"
        if column.measure == "transfer":
            return (
                config.out / "evaluate" / f"transfer-{name_of(self.target)}-{self.store(self.target).protocols[0]}.json"
            )
        if column.measure in ("semi1", "semi10"):
            return config.out / "evaluate" / f"{column.measure}-{config.protocol}.json"
        return config.out / "report.json"

    def outcome(self, column: Column, variant: Variant, seed: int) -> dict[str, Any] | None:
        """The content of that file; None if it is not there, older than the runs, or of other data or settings than a
        table's.

        Raises:
            RunFolderError: a folder holds a run with other settings.
        """
        configs, path = self.configs(column, variant, seed), self.result(column, variant, seed)
        found = read_json(path) if all(map(self._is_finished, configs)) else None
        if found is None or path.name == "report.json":
            return None if found and NOT_EVALUATED in found else found
        if column.measure == "transfer":
            data = self.data(self.target, self.store(self.target).protocols[0])
        else:
            data = self.data(column.dataset, column.protocol)
        if found.get("data") != data:
            return None
        reports = [config.out / "report.json" for config in configs if config.out]
        if not _is_of(path, found, reports):
            return None
        if len(configs) == 1:
            own = configs[0].evaluation  # whose crops train.evaluate takes over
            tuning = FinetuneConfig(train_crop_min=own.train_crop_min, test_crop=own.test_crop)
            asked: dict[str, Any] = {"evaluation": to_plain(tuning)}
            asked |= {"draws": Semi.draws} if column.measure in ("semi1", "semi10") else {}
        else:
            asked = {
                "evaluation": to_plain(configs[0].evaluation),
                "fusion_weights": dict.fromkeys(variant.streams, 1.0),
            }
            if [Path(run).name for run in found["runs"]] != [report.parent.name for report in reports]:
                return None
        return found if asked.items() <= found.items() else None

    def values(self, row: Row, column: Column) -> list[float]:
        """Percent, by seed; those that are not there yet are left out."""
        assert row.variant is not None
        found = [self.outcome(column, row.variant, seed) for seed in self.seeds]
        key = {"linear": "linear_top1", "knn": "knn_top1"}.get(column.measure, "top1")
        return [result["top1"] if "kind" in result else result[key] for result in found if result]

    def untrained(self, column: Column) -> list[float]:
        """The same evaluation of the encoder before training, where a run makes it."""
        key = {"linear": "linear_top1", "knn": "knn_top1"}.get(column.measure)
        found = [self.outcome(column, OURS, seed) for seed in self.seeds] if key else []
        return [result["random_init"][key] for result in found if result]

    def pages(self, cells: Sequence[Cell]) -> list[Path]:
        """The pages that the runs have left, each once."""
        configs = (config for row, c, seed in cells if row.variant for config in self.configs(c, row.variant, seed))
        found = dict.fromkeys(config.out / PAGE for config in configs if config.out is not None)
        return [page for page in found if page.exists()]

    def wall_seconds(self, cells: Sequence[Cell]) -> tuple[int, float]:
        """How many runs there are, and their wall time as they report it, added up."""
        folders = {config.out for row, c, seed in cells if row.variant for config in self.configs(c, row.variant, seed)}
        reports = [report for folder in folders if folder and (report := read_json(folder / "report.json"))]
        return len(reports), sum(report["wall_seconds"] for report in reports)


def _is_of(path: Path, found: dict[str, Any], reports: Sequence[Path]) -> bool:
    """Whether the evaluation in a file is of the weights that the runs with these reports have now, by the digests of
    weights that all of them hold: a copy of a folder keeps no times. A report that an older fastmc wrote has none, and
    must not be younger."""
    weights = [(read_json(report) or {}).get("weights") for report in reports]
    if None in weights:
        return all(path.stat().st_mtime_ns > report.stat().st_mtime_ns for report in reports)
    return found.get("weights") == (weights if len(weights) > 1 else weights[0])


def _remedy(config: Config) -> str:
    return f"Name another folder with --runs, or delete {config.out}"


@cache
def _parsed(flags: tuple[str, ...]) -> Config:
    """Every cell is asked for its settings several times, and a command line takes 25 ms to read."""
    return parse(flags)
