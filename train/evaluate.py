"""Evaluate a pre-trained encoder: python -m train.evaluate knn|linear --run DIR."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from fastmc.data.resident import ResidentStore
from fastmc.evaluation import EvalConfig
from fastmc.model import A2MC
from train import checkpoint
from train.config import Config, from_plain
from train.datasets import open_dataset
from train.loop import build_model
from train.record import log, start_logging
from train.report import evaluate_encoder, report_table, write_json
from train.run import USER_ERRORS, choose_device


@dataclass(frozen=True)
class _Evaluation:
    run: Path
    """Run folder, as made by python -m train.run."""
    protocol: str | None = None
    """Split to evaluate on, such as xview; by default the run's own."""
    data_root: Path | None = None
    """Folder of the packed stores; by default the run's own."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    evaluation: Annotated[EvalConfig, tyro.conf.arg(name="")] = field(default_factory=EvalConfig)


@dataclass(frozen=True)
class Knn(_Evaluation):
    """Nearest-neighbour classification of the frozen representations (cosine similarity).

    Example: python -m train.evaluate knn --run runs/demo
    """


@dataclass(frozen=True)
class Linear(_Evaluation):
    """A linear classifier on the frozen representations: 80 epochs, 0.1, then 0.01 at 50 and 0.001 at 70.

    Example: python -m train.evaluate linear --run runs/demo --train-crops 16
    """


def load_run(folder: Path, device: torch.device) -> tuple[Config, A2MC, ResidentStore, Any]:
    """Config, trained model, resident store and packed store of a run folder.

    Raises:
        ValueError: the folder is no run. CheckpointError: it holds no complete checkpoint.
    """
    saved = folder / "config.json"
    if not saved.is_file():
        raise ValueError(f"run = {folder} is no run folder (it has no config.json); python -m train.run makes one")
    config: Config = from_plain(Config, json.loads(saved.read_text()))
    _, state = checkpoint.load_latest(folder / "checkpoints", device)
    store = open_dataset(config.dataset, config.data_root)
    model = build_model(config, store, device)
    model.load_state_dict(state["model"])
    return config, model, ResidentStore(store, device), store


def evaluate(kind: str, settings: _Evaluation) -> dict[str, Any]:
    """Run one evaluation and write it to DIR/evaluate_KIND.json."""
    device = choose_device(settings.device)
    config, model, resident, store = load_run(settings.run, device)
    config = replace(config, evaluation=settings.evaluation, protocol=settings.protocol or config.protocol)
    assert config.protocol is not None
    log.info("%s evaluation of %s on %s %s", kind, settings.run, config.dataset, config.protocol)

    def accuracy(m: A2MC) -> dict[str, float]:
        return evaluate_encoder(
            m, store, resident, config.protocol or "", config, classifiers=(kind,), progress=sys.stderr.isatty()
        )

    result: dict[str, Any] = {"dataset": config.dataset, "protocol": config.protocol, "seed": config.seed}
    result |= accuracy(model)
    result["random_init"] = accuracy(build_model(config, store, device))
    write_json(settings.run / f"evaluate_{kind}.json", result)
    log.info("%s", report_table(result))
    return result


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    start_logging()
    settings = tyro.cli(
        Annotated[Knn, tyro.conf.subcommand("knn")] | Annotated[Linear, tyro.conf.subcommand("linear")],
        prog="python -m train.evaluate",
        args=args,
    )
    try:
        evaluate("knn" if isinstance(settings, Knn) else "linear", settings)
    except USER_ERRORS as error:
        log.error("error: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
