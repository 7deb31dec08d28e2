"""Accuracy of methods over seeds, as a table: python -m bench.accuracy --help.

Runs are ordinary run folders of ``train.run``: an interrupted call resumes, and a finished run is only read.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch import Tensor, nn

from fastmc.budget import fitted
from fastmc.config import Config
from fastmc.data.placed.placement import place_store
from fastmc.data.store import PackedStore
from fastmc.evaluation import frozen_features, knn_evaluate, linear_evaluate
from train.command.datasets import open_dataset
from train.command.errors import USER_ERRORS
from train.command.jobs import Job, run_jobs
from train.command.parse import parse
from train.runs.folder import is_finished
from train.runs.report import ACCURACIES
from train.tables.markdown import markdown


@dataclass(frozen=True)
class Accuracy:
    """Pre-train every method from every seed, evaluate, and print mean and spread as a markdown table.

    All other flags are those of train.run, the same for all runs.
    Example: python -m bench.accuracy --out runs/order --methods b1 a2mc --dataset synthetic --preset tiny
    """

    out: Path = Path("runs/accuracy")
    """Folder of the runs; the table goes to accuracy.md in it."""
    methods: tuple[str, ...] = ("b1", "b2", "b3", "a2mc")
    """Rows."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each row."""
    parallel: int = 1
    """Runs at a time. Each gets an equal share of the cores."""


def main(args: Sequence[str] | None = None) -> int:
    settings, flags = tyro.cli(Accuracy, prog="python -m bench.accuracy", args=args, return_unknown_args=True)
    try:
        return _measure(settings, flags)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _measure(settings: Accuracy, flags: Sequence[str]) -> int:
    taken = {"--method", "--seed"} & set(flags)
    if taken:
        raise ValueError(f"{', '.join(taken)} differs from run to run: give --methods and --seeds")
    config = parse(flags)
    store = open_dataset(config.dataset, config.data_root)  # made once, before the runs ask for it side by side
    protocol = config.protocol or store.protocols[0]
    config = replace(config, protocol=protocol)
    data, clips = store.split_digest(protocol), len(store.split(protocol)[0])
    pairs = [(method, seed) for seed in settings.seeds for method in settings.methods]
    run_jobs([_job(settings, flags, protocol, data, clips, *pair) for pair in pairs], settings.parallel)
    reports = {
        pair: json.loads((_folder(settings, *pair) / "report.json").read_text(encoding="utf-8")) for pair in pairs
    }
    table = make_table(settings.methods, settings.seeds, reports, raw_accuracy(store, config))
    (settings.out / "accuracy.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    return 0


def _folder(settings: Accuracy, method: str, seed: int) -> Path:
    return settings.out / f"{method}-seed{seed}"


def _job(settings: Accuracy, flags: Sequence[str], protocol: str, data: str, clips: int, method: str, seed: int) -> Job:
    folder = _folder(settings, method, seed)
    arguments = (*flags, "--method", method, "--seed", str(seed), "--out", str(folder))
    config = fitted(replace(parse(arguments), protocol=protocol), clips)
    return Job(folder.name, "train.run", arguments, folder.with_suffix(".log"), lambda: is_finished(config, data))


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


def make_table(methods: Sequence[str], seeds: Sequence[int], reports: dict, raw: dict[str, float]) -> str:
    """Mean over the seeds and, in brackets, the single values, percent."""
    rows = {"raw coordinates": [raw], "untrained": [reports[methods[0], seed]["random_init"] for seed in seeds]}
    rows |= {method: [reports[method, seed] for seed in seeds] for method in methods}
    cells = [(name, *(_cell([r[key] for r in results]) for key in ACCURACIES)) for name, results in rows.items()]
    return markdown(("method", *ACCURACIES.values()), cells)


def _cell(values: Sequence[float]) -> str:
    singles = f" ({', '.join(f'{v:.1f}' for v in values)})" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{singles}"


if __name__ == "__main__":
    sys.exit(main())
