"""A preset's budget on the set at hand: steps become epochs, and the bank no larger than the set.

Presets for CPUs say how many steps they take, since on a small set sixty epochs are too few to learn anything: 431
clips in batches of 32 are 13 steps an epoch. Their epochs are a shape, which is stretched: drops of the learning rate,
warm-up, probes, checkpoints and a method's own phases keep their share of the run.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

from fastmc.config import Config


def fitted(config: Config, clips: int) -> Config:
    """The settings for a training set of so many clips; of settings that are fitted already, the same.

    Only what a preset has chosen changes: a schedule in epochs stays where ``optim.steps`` is 0, as the flag --epochs
    has it, and a bank that is not to fit stays too.
    """
    config = replace(config, settings=config.settings.fitted(clips))
    optim = config.optim
    if not optim.steps:
        return config
    epochs = ceil(optim.steps / max(1, clips // optim.batch_size))
    stretch = epochs / optim.epochs
    milestones = tuple(max(1, round(stretch * epoch)) for epoch in optim.milestones)
    log = replace(
        config.log,
        probe_every=config.log.probe_every and max(1, round(stretch * config.log.probe_every)),
        checkpoint_every=max(1, round(stretch * config.log.checkpoint_every)),
    )
    optim = replace(optim, epochs=epochs, milestones=milestones, warmup_epochs=stretch * optim.warmup_epochs)
    in_epochs: Any = {name: round(stretch * getattr(config.settings, name)) for name in config.settings.in_epochs}
    return replace(config, optim=optim, log=log, settings=replace(config.settings, **in_epochs))
