"""What a training step spends on data: the batch, its random choices and its views, beside the whole step."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from bench.measure import Timing, Turns
from bench.ntu_like import write_ntu_like
from bench.step import Ours, make_data
from fastmc.config import Config
from fastmc.data.placed.resident import ResidentStore

STEP, DATA = "whole step", "its data"
BATCHES = 8


def race(config: Config, batch: int, timing: Timing) -> Turns:
    """A step of this config and its data part, each on the next batch of NTU-like clips, ready to be timed."""
    turns = Turns(timing)
    with tempfile.TemporaryDirectory() as folder:
        store = ResidentStore(write_ntu_like(Path(folder) / "clips", BATCHES * batch), turns.device)
    ours = Ours(replace(config, optim=replace(config.optim, batch_size=batch)), store)
    batches = torch.arange(len(store), device=turns.device).split(batch)
    steps = itertools.count()

    def whole_step() -> object:
        step = next(steps)
        return ours(batches[step % BATCHES], step)

    def its_data() -> object:
        step = next(steps)
        return make_data(ours.model, store, batches[step % BATCHES], step)

    turns.enter(STEP, whole_step, compiles=True)
    turns.enter(DATA, its_data, compiles=True)
    return turns
