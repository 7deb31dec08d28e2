"""A preset's budget on the set at hand: steps become epochs, and the bank no larger than the set.

Presets for CPUs say how many steps they take, since on a small set sixty epochs are too few to learn anything: 431
clips in batches of 32 are 13 steps an epoch. Their epochs are a shape, which is stretched: drops of the learning rate,
warm-up, probes, checkpoints and a method's own phases keep their share of the run; the phases do so too where --epochs
says how long it is, since they would begin after the end of a short one. What was asked for by name is in epochs of the
run itself, and stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from math import ceil
from typing import Any

from fastmc.config import STEPS, Config

EPOCHS = "optim.epochs"
STRETCHED = ("optim.milestones", "optim.warmup_epochs", "log.probe_every", "log.checkpoint_every")


def in_epochs(config: Config) -> tuple[str, ...]:
    """Dotted names of the settings that are stretched with the epochs, unless they were given."""
    return (*STRETCHED, *phases(config))


def phases(config: Config) -> tuple[str, ...]:
    """Those of them that are a method's own."""
    return tuple(f"settings.{name}" for name in config.settings.in_epochs)


def fitted(config: Config, clips: int) -> Config:
    """The settings for a training set of so many clips; of settings that are fitted already, the same, and for another
    set what they were before is fitted to that.

    Only what a preset has chosen changes: what ``given`` names stays, the schedule of the learning rate where
    ``optim.steps`` is 0, as the flag --epochs has it, and a bank that is not to fit. What has changed since it was
    fitted was given, too.

    Raises:
        ValueError: the epochs are no longer those that followed from the steps: one of both has to go.
    """
    shape = _unfitted(config)
    of_set = shape.settings.fitted(clips)
    own = (f"settings.{field.name}" for field in fields(of_set))
    found = {name: value for name in own if (value := _value(of_set, name)) != _value(shape.settings, name)}
    optim = shape.optim
    if optim.steps:
        found[EPOCHS] = epochs = ceil(optim.steps / max(1, clips // optim.batch_size))
        stretch, names = epochs / optim.epochs, in_epochs(shape)
    elif EPOCHS in shape.given and shape.preset in STEPS:
        stretch, names = optim.epochs / shape.preset_optim.epochs, phases(shape)
    else:
        stretch, names = 1.0, ()
    for name in names:
        if name not in shape.given:
            found[name] = _stretched(name, _value(_group(shape, name), name), stretch)
    record = {name: [_plain(_value(_group(shape, name), name)), _plain(value)] for name, value in found.items()}
    return replace(_with(shape, found), unfitted=record)


def _unfitted(config: Config) -> Config:
    """The settings before they were fitted; those that somebody has changed since are added to what was given."""
    before, given = {}, dict.fromkeys(config.given)
    in_force = config.unfitted if config.optim.steps else {}
    of_method = {name: pair for name, pair in config.unfitted.items() if name not in (EPOCHS, *STRETCHED)}
    for name, (old, new) in {**in_force, **of_method}.items():
        if not hasattr(_group(config, name), name.partition(".")[2]):  # of another method
            continue
        now = _value(_group(config, name), name)
        if _plain(now) == new:
            before[name] = tuple(old) if isinstance(old, list) else old
        elif name == EPOCHS and config.optim.steps:
            raise ValueError(
                f"optim.steps = {config.optim.steps} makes {new} epochs, and optim.epochs = {now} was set beside it: "
                "give one of both, and steps = 0 for a budget in epochs"
            )
        else:
            given[name] = None
    return replace(_with(config, before), given=tuple(given), unfitted={})


def _stretched(name: str, value: Any, stretch: float) -> Any:
    if name == "optim.milestones":
        return tuple(max(1, round(stretch * epoch)) for epoch in value)
    if name == "optim.warmup_epochs":
        return stretch * value
    if name.startswith("log."):  # 0 is none, and must not become it
        return value and max(1, round(stretch * value))
    return round(stretch * value)


def _group(config: Config, name: str) -> Any:
    return getattr(config, name.partition(".")[0], None)


def _value(group: Any, name: str) -> Any:
    return getattr(group, name.partition(".")[2])


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value


def _with(config: Config, values: Mapping[str, Any]) -> Config:
    """The settings with these in their place, by dotted names."""
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, _, field = name.partition(".")
        groups.setdefault(group, {})[field] = value
    return replace(config, **{group: replace(getattr(config, group), **own) for group, own in groups.items()})
