"""The command line of train.run, which tyro makes from the settings of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from fastmc.config import Config, Preset, preset_config


def parse(args: Sequence[str] | None = None) -> Config:
    """The command line to a Config. What sets the other flags, or their defaults, is read first."""

    @dataclass
    class First:
        preset: Preset | None = None
        dataset: str = Config.dataset
        method: str = Config.method
        backbone: str = Config.backbone

    first, _ = tyro.cli(First, args=args, return_unknown_args=True, add_help=False)
    preset = first.preset or ("tiny" if first.dataset == "synthetic" else "paper")
    named = (first.method, first.backbone)
    default = preset_config(preset, first.dataset, *named, allow=named)
    return tyro.cli(Config, prog="python -m train.run", args=args, default=default, config=(tyro.conf.OmitArgPrefixes,))
