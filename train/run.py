"""Pre-train and evaluate: python -m train.run --dataset NAME. Teaches itself with --help."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastmc.data.prepare import PrepareError
from fastmc.data.resident import ResidentStore
from fastmc.data.store import PackedStore, StoreError
from train import checkpoint
from train.config import Config, differences, parse, to_plain
from train.datasets import DatasetError, open_dataset
from train.loop import Pretraining, build_model
from train.record import duration, log, start_logging
from train.report import environment, evaluate_encoder, plot_curves, report_table, write_json
from train.step import NonFiniteError

# What may differ between a run and its resumption without changing what it computes.
FREE_SETTINGS = ("data_root", "device", "out", "print_config", "restart", "contrast.impl", "log.", "evaluation.")
USER_ERRORS = (ValueError, DatasetError, StoreError, PrepareError, NonFiniteError, checkpoint.CheckpointError)


class RunFolderError(ValueError):
    """The run folder holds something that this command must not continue or overwrite."""


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    try:
        config = parse(args)
        if config.print_config:
            print(json.dumps(to_plain(config), indent=2))
            return 0
        run(config)
    except USER_ERRORS as error:
        log.error("error: %s", error) if log.handlers else print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command resumes from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def run(config: Config) -> dict[str, Any]:
    """Train (or resume) and evaluate; returns the content of report.json."""
    device = choose_device(config.device)
    store = open_dataset(config.dataset, config.data_root)
    protocol = config.protocol or store.protocols[0]
    store.split(protocol)
    config = replace(config, protocol=protocol)
    config = replace(config, out=config.out or default_folder(config))
    folder = prepare_folder(config)
    start_logging(folder / "run.log")
    write_json(folder / "environment.json", environment(device))
    return _train_and_report(config, store, folder, device)


def _train_and_report(config: Config, store: PackedStore, folder: Path, device: torch.device) -> dict[str, Any]:
    protocol = config.protocol
    assert protocol is not None
    pretraining = Pretraining(config, store, protocol, folder, device)
    if checkpoint.complete(pretraining.checkpoints):
        path, state = checkpoint.load_latest(pretraining.checkpoints, device)
        pretraining.load(state)
        if pretraining.finished and (folder / "report.json").exists():
            report = json.loads((folder / "report.json").read_text())
            log.info("%s holds this run, finished; --restart runs it again\n%s", folder, report_table(report))
            return report
        log.info("resuming from %s (epoch %d, step %d)", path, pretraining.epoch + 1, pretraining.step)
    log.info(start_line(config, store, pretraining))
    pretraining.run()
    plot_curves(folder / "metrics.csv", folder / "curves.png", config.encoder.feature_dim, title=folder.name)
    log.info("evaluating the frozen encoder, pre-trained and untrained: kNN and linear")
    report = {
        "dataset": config.dataset,
        "dataset_checksum": store.checksum,
        "protocol": protocol,
        "method": config.contrast.method,
        "stream": config.stream,
        "preset": config.preset,
        "seed": config.seed,
        "epochs": config.optim.epochs,
        "steps": pretraining.step,
        **evaluate_encoder(pretraining.model, store, pretraining.data, protocol, config, progress=sys.stderr.isatty()),
        "random_init": untrained_accuracy(config, store, pretraining.data, protocol, device),
        "wall_seconds": round(pretraining.wall_seconds, 1),
    }
    write_json(folder / "report.json", report)
    log.info("%s", report_table(report))
    log.info("report, curves, metrics and checkpoints are in %s (%s)", folder, duration(report["wall_seconds"]))
    return report


def untrained_accuracy(
    config: Config, store: PackedStore, resident: ResidentStore, protocol: str, device: torch.device
) -> dict[str, float]:
    """The same evaluation of the encoder as it was before training."""
    return evaluate_encoder(build_model(config, store, device), store, resident, protocol, config)


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device = {name!r} cannot be used: {error}. Try --device cpu, or python -m fastmc.doctor"
        ) from None
    return device


def default_folder(config: Config) -> Path:
    parts = (
        config.dataset,
        config.protocol,
        config.contrast.method,
        config.stream,
        config.preset,
        f"seed{config.seed}",
    )
    return Path("runs") / "-".join(str(part) for part in parts)


def prepare_folder(config: Config) -> Path:
    """Make the run folder, or check that what is in it is this run.

    Raises:
        RunFolderError: it holds another run, or files that are no run at all.
    """
    folder = config.out
    assert folder is not None
    saved = folder / "config.json"
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"out = {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not saved.is_file():
            raise RunFolderError(f"out = {folder} holds files that are no run of fastmc; name another folder")
        if config.restart:
            shutil.rmtree(folder)
        else:
            check_same_run(json.loads(saved.read_text()), config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(saved, to_plain(config))
    return folder


def check_same_run(saved: dict[str, Any], config: Config, folder: Path) -> None:
    """RunFolderError if the settings that a run was started with would change."""
    changed = [name for name in differences(saved, to_plain(config)) if not name.startswith(FREE_SETTINGS)]
    if changed:
        raise RunFolderError(
            f"{folder} holds a run with other settings ({', '.join(changed)}). Resume it with the settings in its "
            "config.json, name another folder with --out, or replace it with --restart"
        )


def start_line(config: Config, store: PackedStore, pretraining: Pretraining) -> str:
    layers, hidden = config.encoder.size
    parameters = sum(p.numel() for p in pretraining.model.query.parameters())
    return (
        f"{config.contrast.method} on {store.name} {config.protocol} ({len(pretraining.train_ids)} training clips, "
        f"{len(pretraining.test_ids)} test clips), {config.stream} stream, BiGRU {layers}x{hidden} "
        f"({parameters / 1e6:.1f}M parameters), bank {config.contrast.bank_size}, {config.optim.epochs} epochs of "
        f"{pretraining.batches} steps, {config.optim.optimizer} at {config.optim.lr:g}, {pretraining.device}"
    )


if __name__ == "__main__":
    sys.exit(main())
