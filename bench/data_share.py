"""What a training step spends on data: the batch, its random choices and its views, beside the whole step."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from bench.measure import Timing, Turns
from bench.ntu_like import write_ntu_like
from bench.step import Ours
from fastmc.data.resident import PlacedStore, ResidentStore
from fastmc.model import A2MC, OF_ATTACKED, OF_CLIPS
from fastmc.views import whole_clips
from train.config import Config

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


@torch.no_grad()
def make_data(model: A2MC, store: PlacedStore, ids: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """All that a step does before an encoder sees anything: x of eq. 5, (B, T, V * M * 3), and the four views
    (4, B, T, V * M * 3), of which 1 and 2 are made of x as if it had been attacked."""
    clips = store.select(ids)
    x = whole_clips(clips, model.skeleton, model.frames)
    views = torch.empty(4, *x.shape, device=x.device)
    model.views(clips, ids, step, OF_CLIPS, out=views[:2])
    model.views(clips, ids, step, OF_ATTACKED, attacked=x, out=views[2:])
    return x, views
