"""Evaluate a pre-trained encoder: python -m train.evaluate knn|linear --run DIR."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from fastmc.data.placement import Placement, place_store
from fastmc.data.resident import PlacedStore
from fastmc.data.store import PackedStore
from fastmc.evaluation import EvalConfig
from fastmc.files import write_json
from fastmc.model import A2MC
from train import checkpoint
from train.config import Config, to_plain
from train.datasets import open_dataset
from train.errors import USER_ERRORS, report_error
from train.folder import load_config
from train.loop import build_model, check_dataset
from train.record import log, start_logging
from train.report import evaluate_encoder, report_table
from train.run import choose_device

DEFAULTS = EvalConfig()


@dataclass(frozen=True)
class Evaluation:
    run: Path
    """Run folder, as made by python -m train.run."""
    protocol: str | None = None
    """Split to evaluate on, such as xview; by default the run's own."""
    data_root: Path | None = None
    """Folder of the packed stores; by default the run's own."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    placement: Placement = "auto"
    """Where the frames are kept: device, pinned, mapped, or auto; see python -m train.run --help."""


@dataclass(frozen=True)
class Knn(Evaluation):
    """Nearest-neighbour classification of the frozen representations, by cosine similarity.

    Example: python -m train.evaluate knn --run runs/demo
    """

    knn_k: int = DEFAULTS.knn_k
    """Neighbours."""
    test_crop: float = DEFAULTS.test_crop
    """Centre crop of every clip, as a share of it."""


@dataclass(frozen=True)
class Linear(Evaluation):
    """A linear classifier on the frozen representations: 80 epochs, 0.1, then 0.01 at 50 and 0.001 at 70.

    Example: python -m train.evaluate linear --run runs/demo --train-crops 16
    """

    linear_epochs: int = DEFAULTS.linear_epochs
    """Epochs of the classifier."""
    linear_lr: float = DEFAULTS.linear_lr
    """Its initial learning rate."""
    linear_milestones: tuple[int, ...] = DEFAULTS.linear_milestones
    """Epochs at which that drops to a tenth."""
    linear_batch_size: int = DEFAULTS.linear_batch_size
    """Clips per step."""
    train_crops: int = DEFAULTS.train_crops
    """Random temporal crops of each training clip to draw from, one per epoch."""
    train_crop_min: float = DEFAULTS.train_crop_min
    """Shortest of these crops, as a share of the clip."""
    test_crop: float = DEFAULTS.test_crop
    """Centre crop of a test clip, as a share of it."""


def parse(args: Sequence[str] | None = None) -> Knn | Linear:
    """The command line; settings that are not given are those of the run."""

    @dataclass
    class First:
        run: Path | None = None

    first, _ = tyro.cli(First, args=args, return_unknown_args=True, add_help=False)
    own = dataclasses.asdict(load_config(first.run).evaluation) if first.run is not None else {}

    def default(kind: type) -> Any:
        fields = {f.name for f in dataclasses.fields(kind)}
        run = tyro.MISSING if first.run is None else first.run
        return kind(run=run, **{k: v for k, v in own.items() if k in fields})

    return tyro.cli(
        Annotated[Knn, tyro.conf.subcommand("knn", default=default(Knn))]
        | Annotated[Linear, tyro.conf.subcommand("linear", default=default(Linear))],
        prog="python -m train.evaluate",
        args=args,
    )


def load_run(
    folder: Path, device: torch.device, data_root: Path | None = None, placement: Placement = "auto"
) -> tuple[Config, A2MC, PlacedStore, PackedStore]:
    """Config, trained model, placed store and packed store of a run folder.

    Raises:
        ValueError: the placement does not fit.
        RunFolderError: the folder is no run. CheckpointError: it holds no checkpoint, or one of other data.
        DatasetError: the data are not there.
    """
    config = load_config(folder)
    path, state = checkpoint.load_latest(folder / "checkpoints")
    store = open_dataset(config.dataset, data_root or config.data_root)
    check_dataset(state, store.content_checksum, path)
    model = build_model(config, store, device)
    model.load_state_dict(state["model"])
    placed, where = place_store(store, device, replace(config.data, placement=placement))
    log.info(where)
    return config, model, placed, store


def evaluate(settings: Knn | Linear) -> dict[str, Any]:
    """Run one evaluation and write it to DIR/evaluate_KIND.json."""
    kind = "knn" if isinstance(settings, Knn) else "linear"
    device = choose_device(settings.device)
    config, model, placed, store = load_run(settings.run, device, settings.data_root, settings.placement)
    chosen = {f.name: getattr(settings, f.name) for f in dataclasses.fields(EvalConfig) if hasattr(settings, f.name)}
    evaluation = replace(config.evaluation, **chosen)
    config = replace(config, evaluation=evaluation, protocol=settings.protocol or config.protocol)
    log.info("%s evaluation of %s on %s %s", kind, settings.run, config.dataset, config.protocol)

    def accuracy(m: A2MC) -> dict[str, float]:
        return evaluate_encoder(m, store, placed, config, classifiers=(kind,), progress=sys.stderr.isatty())

    result: dict[str, Any] = {"dataset": config.dataset, "protocol": config.protocol, "seed": config.seed}
    result |= accuracy(model)
    result["random_init"] = accuracy(build_model(config, store, device))
    result["evaluation"] = {name: to_plain(evaluation)[name] for name in chosen}
    write_json(settings.run / f"evaluate_{kind}.json", result)
    log.info("%s", report_table(result))
    return result


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    start_logging()
    try:
        evaluate(parse(args))
    except USER_ERRORS as error:
        report_error(error)
        return 1
    except KeyboardInterrupt:
        log.warning("stopped; nothing was written")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
