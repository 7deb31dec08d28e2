"""The command line of train.run, which tyro makes from the settings of a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

import tyro

from fastmc.budget import EPOCHS, in_epochs
from fastmc.config import Config, Preset, config_of, preset_config, read_settings, to_plain
from fastmc.encoders import ENCODERS
from fastmc.reading import explain, shown
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


@dataclass(frozen=True)
class Flags(Config):
    """Settings, of which these are no flags."""

    given: tyro.conf.Suppress[tuple[str, ...]] = ()
    unfitted: tyro.conf.Suppress[dict[str, Any]] = field(default_factory=dict)


def parse(args: Sequence[str] | None = None) -> Config:
    """The command line to a Config. ValueError for a file of settings that does not fit."""
    args = _kinds_named(sys.argv[1:] if args is None else args)
    first, _ = tyro.cli(First, args=args, return_unknown_args=True, add_help=False)
    file = {} if first.config is None else read_settings(first.config)
    default = _defaults(first, file)
    default = _as_said(default, args, file, first.config)
    found = tyro.cli(
        Flags,
        prog="python -m train.run",
        description=Config.__doc__,
        args=args,
        default=Flags(**_shallow(default)),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if found.optim.steps and {"--steps", "--epochs"} <= _flags_in(args):
        raise ValueError(
            f"--steps {found.optim.steps} and --epochs {found.optim.epochs} are two budgets: give one of both"
        )
    return Config(**_shallow(found))


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


def _flags_in(args: Sequence[str]) -> set[str]:
    return {word.partition("=")[0].replace("_", "-") for word in args}


def _shallow(config: Config) -> dict[str, Any]:
    return {each.name: getattr(config, each.name) for each in fields(Config)}


def _as_said(default: Config, args: Sequence[str], file: Mapping[str, Any], path: Path | None) -> Config:
    """Settings in epochs, and a bank's size, that are given by flag or file are not fitted to the set
    (`fastmc.budget`)."""
    flags, said = _flags_in(args), _said_in(file)
    if "--epochs" in flags and "--steps" not in flags:
        default = replace(default, optim=replace(default.optim, steps=0))
    elif {"optim.steps", "optim.epochs"} <= said and default.optim.steps and "--steps" not in flags:
        raise ValueError(f"--config {path} says both optim.steps and optim.epochs: give one of both")
    named = [name for name in (EPOCHS, *in_epochs(default)) if name in said or _flag_of(name) in flags]
    default = replace(default, given=tuple(dict.fromkeys((*default.given, *named))))
    settings: Any = default.settings  # of a method that may have no bank
    sized = "--bank-size" in flags or ("settings.bank_size" in said and "settings.fit_bank" not in said)
    if sized and hasattr(settings, "fit_bank"):
        default = replace(default, settings=replace(settings, fit_bank=False))
    return default


def _flag_of(name: str) -> str:
    return "--" + name.partition(".")[2].replace("_", "-")


def _said_in(file: Mapping[str, Any]) -> set[str]:
    """Dotted names that a file of one's own gives. config.json of a run, which has everything, gives nothing: what it
    was given it says by ``given``, and if an older fastmc wrote it, it does not say."""
    groups = {group: values for group, values in file.items() if isinstance(values, Mapping)}
    if "unfitted" in file or {"optim", "settings", "log", "evaluation"} <= set(groups):
        return set()
    return {f"{group}.{name}" for group, values in groups.items() for name in values}


def _defaults(first: First, file: Mapping[str, Any]) -> Config:
    """The settings of a preset, with those of the file in their place."""
    of_file: Preset | None = file.get("preset", first.preset)
    if of_file is not None and of_file not in get_args(Preset):
        names = ", ".join(get_args(Preset))
        raise ValueError(f"--config {first.config}: preset must be one of {names}; got {shown(of_file)}")
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
        if "settings" in others:  # what is said of those of another method goes with them
            kept["given"] = [name for name in file.get("given", ()) if not name.startswith("settings.")]
            before = file.get("unfitted", {}).items()
            kept["unfitted"] = {name: pair for name, pair in before if not name.startswith("settings.")}
        return _of_older(config_of(_merged(to_plain(base), {**kept, **said}), allow), file, base)
    except NotAllowed as error:
        raise ValueError(f"{error}. Here: name it on the command line, as --method or --backbone") from None
    except Exception as error:  # it may hold anything
        raise ValueError(f"--config {first.config}: {explain(error)}") from None


def _of_older(config: Config, file: Mapping[str, Any], preset: Config) -> Config:
    """The settings; where an older fastmc wrote them, and so not what the bank was before it was fitted, that is the
    preset's."""
    now, before = (getattr(of.settings, "bank_size", None) for of in (config, preset))
    is_older = "unfitted" not in file and not _said_in(file)
    if not is_older or now == before or not getattr(config.settings, "fit_bank", False):
        return config
    return replace(config, unfitted={"settings.bank_size": [before, now]})


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, those above in the place of those below."""
    both = {k: _merged(below[k], v) for k, v in above.items() if isinstance(v, dict) and isinstance(below.get(k), dict)}
    return {**below, **above, **both}
