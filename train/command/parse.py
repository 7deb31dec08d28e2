"""The command line of train.run, which tyro makes from the settings of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from fastmc.config import Config, Preset, config_of, preset_config, read_settings, to_plain
from fastmc.encoders import ENCODERS
from fastmc.registry import NotAllowed

OF_A_CLASS = {"settings": "method", "encoder": "backbone"}
"""Groups of settings, and the setting that names the class they belong to."""


@dataclass
class First:
    """What sets the other flags, or their defaults."""

    preset: Preset | None = None
    dataset: str | None = None
    method: str | None = None
    backbone: str | None = None
    config: Path | None = None


def parse(args: Sequence[str] | None = None) -> Config:
    """The command line to a Config. ValueError for a file of settings that does not fit."""
    args = _kinds_named(sys.argv[1:] if args is None else args)
    first, _ = tyro.cli(First, args=args, return_unknown_args=True, add_help=False)
    default = _defaults(first, {} if first.config is None else read_settings(first.config))
    default = _as_said(default, args)
    return tyro.cli(Config, prog="python -m train.run", args=args, default=default, config=(tyro.conf.OmitArgPrefixes,))


def _kinds_named(args: Sequence[str]) -> list[str]:
    """The words, with ``--encoder stgcn:16x256`` and ``--encoder stgcn`` as ``--backbone stgcn`` and its size."""
    words: list[str] = []
    for n, word in enumerate(args):
        flag, _, value = word.partition("=")
        if args[n - 1 : n] == ["--encoder"]:
            flag, value = "--encoder", word
        name, _, size = value.partition(":")
        if flag != "--encoder" or name not in ENCODERS:
            words.append(word)
            continue
        if words[-1:] == ["--encoder"]:
            words.pop()
        words += ["--backbone", name, *(["--encoder", size] if size else [])]
    return words


def _as_said(default: Config, args: Sequence[str]) -> Config:
    """A schedule in epochs, and a bank's size, that are given are not fitted to the set (`fastmc.budget`)."""
    given = {word.partition("=")[0].replace("_", "-") for word in args}
    if "--steps" not in given and given & {"--epochs", "--milestones"}:
        default = replace(default, optim=replace(default.optim, steps=0))
    settings: Any = default.settings  # of a method that may have no bank
    if "--bank-size" in given and hasattr(settings, "fit_bank"):
        default = replace(default, settings=replace(settings, fit_bank=False))
    return default


def _defaults(first: First, file: Mapping[str, Any]) -> Config:
    """The settings of a preset, with those of the file in their place."""
    of_file: Preset | None = file.get("preset", first.preset)
    if first.preset not in (None, of_file):
        raise ValueError(f"--config {first.config} is of preset {of_file}: leave out --preset {first.preset}, or it")
    named = {"dataset": first.dataset, "method": first.method, "backbone": first.backbone}
    given = {name: value for name, value in named.items() if value is not None}
    default = {"dataset": Config.dataset, "method": Config.method, "backbone": None}  # the method's own
    chosen = {name: given.get(name, file.get(name, default[name])) for name in named}
    allow = tuple(given[name] for name in OF_A_CLASS.values() if name in given)  # and not what the file names
    others = {part for part, name in OF_A_CLASS.items() if chosen[name] != file.get(name, chosen[name])}
    kept = {name: value for name, value in file.items() if name not in others}
    preset: Preset = of_file or ("tiny" if chosen["dataset"] == "synthetic" else "paper")
    if not file:
        return preset_config(preset, **chosen, allow=allow)
    try:
        base = preset_config(preset, **chosen, allow=allow)
        said = {name: value for name, value in chosen.items() if value is not None}
        return config_of(_merged(to_plain(base), {**kept, **said}), allow)
    except NotAllowed as error:
        raise ValueError(f"{error}. Here: name it on the command line, as --method or --backbone") from None
    except (ValueError, TypeError, AttributeError) as error:  # it may hold anything
        raise ValueError(f"--config {first.config}: {error}") from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, those above in the place of those below."""
    both = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}
