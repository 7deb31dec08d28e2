"""The curves of a run for Weights & Biases, where that is installed and asked for."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastmc.config import Config, to_plain
from train.engine.record import scalars


def check_wandb(config: Config) -> None:
    """ValueError if it is asked for and not installed."""
    if config.log.wandb and find_spec("wandb") is None:
        raise ValueError(f"--wandb {config.log.wandb} needs Weights & Biases, which is not there: pip install wandb")


def open_wandb(config: Config, folder: Path, rows: Sequence[dict[str, Any]]) -> Any:
    """A run of the project that the config names, with the history of ``rows``; None where it names none. A run that
    resumes begins a new one there, in a group of the folder's name."""
    if not config.log.wandb:
        return None
    wandb = importlib.import_module("wandb")
    about = {"name": folder.name, "group": folder.name, "dir": str(folder), "config": to_plain(config)}
    sent = wandb.init(project=config.log.wandb, **about)
    for row in rows:
        sent.log(scalars(row), step=row["step"])
    return sent
