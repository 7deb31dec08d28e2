"""The four views of a batch: fastmc against a loader's worker, one clip at a time in numpy (bench/numpy_views.py).

Both sides draw their random choices within the time that is taken. Views 1 and 2 are of attacked clips, which both are
given: the attack is the network's work. First numpy is given fastmc's own choices and has to come to the same views.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.measure import Timing, Turns
from bench.ntu_like import padded, write_ntu_like
from bench.numpy_views import STYLES, Choices, Strong, Style, collate, draw_choices, make_view
from bench.parity import BUDGET, ParityError
from fastmc.data.placed.resident import ResidentStore
from fastmc.methods.a2mc import OF_ATTACKED, OF_CLIPS
from fastmc.random import normal, philox
from fastmc.views.clips import DenseClips
from fastmc.views.draw import NOISE_COUNTER, STRONG, AugmentConfig, ViewParams, draw_params
from fastmc.views.make import make_views

SEED = 0
FASTMC, TORCH = "fastmc", 'fastmc, impl="torch"'
BATCHES = 4
"""Batches that are compared first, and that are timed in turn."""


@dataclass(frozen=True)
class ViewsCase:
    """By default the product's: section 4.2 of the paper."""

    batch: int = 64
    """B, clips."""
    frames: int = 64
    """T of a view."""
    clips: int = 512
    """N, clips that batches are drawn from: NTU-like lengths, see bench/ntu_like.py."""

    def __str__(self) -> str:
        return f"four views, B = {self.batch}, T = {self.frames}, of {self.clips} NTU-like clips"


class Clips:
    """The same clips for both: ``packed`` on the device, and ``padded`` (N, 3, 300, V, M) float32 in memory."""

    def __init__(self, case: ViewsCase, device: torch.device) -> None:
        self.case, self.device = case, device
        with tempfile.TemporaryDirectory() as folder:
            store = write_ntu_like(Path(folder) / "clips", case.clips)
            self.packed = ResidentStore(store, device)
            self.padded = padded(store)
        self.skeleton = self.packed.skeleton
        self.num_frames = self.packed.num_frames.tolist()


class Batch:
    """One batch, drawn by ``number``.

    Attributes:
        ids: (B,) int64 on the device. attacked: what stands for their attacked clips, (B, T, V * M * 3);
        padded_attacked: the same for numpy, (B, 3, T, V, M).
    """

    def __init__(self, clips: Clips, number: int) -> None:
        self.clips, case = clips, clips.case
        generator = torch.Generator().manual_seed(number)
        ids = torch.randperm(case.clips, generator=generator)[: case.batch]
        self.ids = ids.to(clips.device)
        frame = np.arange(case.frames)
        self.padded_attacked = np.stack([clips.padded[n][:, frame % clips.num_frames[n]] for n in ids.tolist()])
        dense = torch.from_numpy(self.padded_attacked).permute(0, 2, 3, 4, 1).flatten(2)
        self.attacked = dense.contiguous().to(clips.device)


def fast_views(batch: Batch, step: int, impl: str = "auto") -> list[tuple[ViewParams, Tensor]]:
    """Views 0 and 3, then 1 and 2: two of (2, B, T, V * M * 3), each with the choices that made it."""
    skeleton, size = batch.clips.skeleton, batch.clips.case.frames
    clips = batch.clips.packed.select(batch.ids)
    attacked = DenseClips(batch.attacked, clips.num_bodies, clips.max_bodies)
    found = []
    for views, source, resized_to in ((OF_CLIPS, clips, None), (OF_ATTACKED, attacked, size)):
        params = draw_params(
            AugmentConfig(),
            clips.num_frames,
            skeleton.num_joints,
            views=views,
            seed=SEED,
            step=step,
            sample=batch.ids,
            resized_to=resized_to,
            impl=impl,
        )
        found.append((params, make_views(source, params, skeleton, size=size, impl=impl)))
    return found


Chooser = Callable[[int, int, int], Choices]
"""From a clip's place in the batch, its id and a view to what is done to it."""


def numpy_views(batch: Batch, choose: Chooser, style: Style) -> list[Tensor]:
    """Views 0 to 3 of a batch, each (B, T, V * M * 3), on the device."""
    clips, samples = batch.clips, []
    mirror, size = np.array(clips.skeleton.mirror), clips.case.frames
    for n, clip_id in enumerate(batch.ids.tolist()):
        clip, attacked = clips.padded[clip_id], batch.padded_attacked[n]
        sources = ((view, attacked if view in OF_ATTACKED else clip) for view in range(4))
        samples.append([make_view(source, choose(n, clip_id, view), mirror, size, style) for view, source in sources])
    return [torch.from_numpy(views).to(clips.device) for views in collate(samples)]


def drawing(clips: Clips, rng: np.random.Generator) -> Chooser:
    """Choices drawn anew each time."""
    config, size, joints = AugmentConfig(), clips.case.frames, clips.skeleton.num_joints

    def choose(n: int, clip_id: int, view: int) -> Choices:
        frames, resized = clips.num_frames[clip_id], view in OF_ATTACKED
        return draw_choices(rng, config, frames, joints, strong=view == STRONG, size=size, resized=resized)

    return choose


def given(params: Sequence[ViewParams], size: int) -> Chooser:
    """fastmc's choices."""
    place = {view: (one, w) for one in params for w, view in enumerate(one.views)}
    return lambda n, clip_id, view: choices_of(*place[view], n, size)


def choices_of(params: ViewParams, w: int, n: int, size: int) -> Choices:
    """What one row of a table says.

    The table has one matrix for shear or jitter and the rotation after it. Here they are apart again. Where a clip is
    sheared, any rotation R will do, if the shear becomes R^T times the matrix: numpy has to multiply both.
    """
    row = {name: params.column(name)[w, n].cpu().numpy() for name in ("pose", "jitter", "jittered", "axis_scale")}
    start, length, flip, std, sigma = (
        float(params.column(name)[w, n]) for name in ("crop_start", "crop_length", "flip", "noise_std", "filter_sigma")
    )
    joints, strong, rotation = row["jittered"].nonzero()[0], None, np.eye(3, dtype=np.float32)
    if params.views[w] == STRONG:
        rotation = row["pose"] if len(joints) else np.array([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]], np.float32)
        masked = (row["axis_scale"] == 0).nonzero()[0]
        strong = Strong(
            flip=flip > 0,
            rotation=rotation,
            noise=np.float32(std) * noise_of(params, w, n, size) if std > 0 else None,
            sigma=sigma if sigma > 0 else None,
            axis=int(masked[0]) if len(masked) else None,
        )
    shear = None if len(joints) else rotation.T @ row["pose"]
    return Choices(int(start), int(length), shear, joints, rotation.T @ row["jitter"], strong)


def noise_of(params: ViewParams, w: int, n: int, size: int) -> np.ndarray:
    """The standard normal numbers (3, T, V, M) that belong to a view of a clip."""
    block = NOISE_COUNTER + torch.arange(size * params.num_joints * 2)
    words = philox(params.seed, block, int(params.step), int(params.sample[n]), params.views[w])
    return normal(words)[:, :3].view(size, params.num_joints, 2, 3).permute(3, 0, 1, 2).numpy()


def compare(batches: Sequence[Batch], name: str, style: Style, impl: str = "auto") -> float:
    """The largest share of its budget that the difference of numpy and fastmc uses. The budget are
    `bench.parity.BUDGET` roundings of the largest coordinate.

    Raises:
        ParityError: it uses more than all of it.
    """
    worst = 0.0
    for number, batch in enumerate(batches):
        found = fast_views(batch, number, impl)
        fast = dict(zip((*OF_CLIPS, *OF_ATTACKED), torch.cat([views for _, views in found]), strict=True))
        choose = given([params for params, _ in found], batch.clips.case.frames)
        for view, plain in enumerate(numpy_views(batch, choose, style)):
            allowed = BUDGET * torch.finfo(torch.float32).eps * float(plain.abs().max())
            error = float((fast[view] - plain).abs().max())
            if not error <= allowed:  # a NaN is not
                raise ParityError(
                    f"{name} does not make the same views, so there are no numbers ({batch.clips.case}): view {view} "
                    f"is off by {error:.2e} m, the budget is {allowed:.2e} m"
                )
            worst = max(worst, error / allowed)
    return worst


def race(case: ViewsCase, timing: Timing) -> Turns:
    """fastmc and all styles of numpy, compared and ready to be timed."""
    turns = Turns(timing)
    clips = Clips(case, turns.device)
    batches = [Batch(clips, number) for number in range(BATCHES)]
    turns.enter(FASTMC, _fast(batches, "auto"), compiles=True)
    turns.enter(TORCH, _fast(batches, "torch"), check=lambda _: compare(batches, TORCH, STYLES["tuned"], "torch"))
    for style, written in STYLES.items():
        # Of the style rather than of what was made here, whose choices are numpy's own.
        check = partial(_check, batches, f"numpy, {style}", written)
        turns.enter(f"numpy, {style}", _plain(batches, written), check=check)
    return turns


def _fast(batches: Sequence[Batch], impl: str) -> Callable[[], object]:
    steps = itertools.count()

    def call() -> object:
        step = next(steps)
        return fast_views(batches[step % len(batches)], step, impl)

    return call


def _plain(batches: Sequence[Batch], style: Style) -> Callable[[], object]:
    choose, upcoming = drawing(batches[0].clips, np.random.default_rng(SEED)), itertools.cycle(batches)
    return lambda: numpy_views(next(upcoming), choose, style)


def _check(batches: Sequence[Batch], name: str, style: Style, outputs: object) -> float:
    return compare(batches, name, style)
