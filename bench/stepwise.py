"""A pre-training step as earlier released codes write it: what ``train.engine.step`` is measured against beside the
plain reference.

One encoder call per view, the GRU fed one frame at a time, views in numpy by a loader's workers, the plain loss with
autograd, SGD and the key encoder's update one tensor after the other. Its mathematics are those of this project's step
with ``reading="stepwise"``.

Views 1 and 2 are of attacked clips, which no loader can have: the attack is the network's work. They are made between
the attack and the encoder, by the same numpy code.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Array, Value
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from bench.numpy_views import STYLES, Choices, collate, crop_resize, draw_choices, make_view
from bench.views import Clips
from fastmc.methods.a2mc import OF_ATTACKED
from fastmc.reference import step as reference
from fastmc.views.draw import BASIC_KEY, BASIC_QUERY, STRONG, AugmentConfig

AHEAD = 2
"""Batches that a worker makes ahead of their use: the default of PyTorch's loader."""
PATIENCE = 120.0
"""Seconds without a new batch after which a loader counts as dead."""
STYLE = STYLES["usual"]

Choose = Callable[[int, int], Choices]
"""From a clip's id and a view to what is done to it."""


class FramewiseEncoder(reference.Encoder):
    """The reference's encoder with its bidirectional GRU fed one frame at a time. It carries its state from frame to
    frame, so both of its "directions" run forward in time."""

    def represent(self, x: Tensor) -> Tensor:
        """(B, 2 * hidden), the last frame's output."""
        y, state = self.normalised(x), None
        for t in range(y.shape[1]):
            output, state = self.recurrent(y[:, t : t + 1], state)
        return output[:, 0]


def framewise_name(name: str) -> str:
    """Of a weight of `FramewiseEncoder`, given that of `fastmc.encoders.bigru.BiGRU` with ``reading="stepwise"``: the
    GRUs ``layers.2.0`` and ``layers.2.1`` are the third layer's two directions."""
    prefix, found, rest = name.partition("recurrent.layers.")
    if not found:
        return name
    layer, direction, weight = rest.split(".")
    return f"{prefix}recurrent.{weight.removesuffix('0')}{layer}{'_reverse' if direction == '1' else ''}"


class Sample(NamedTuple):
    """What a loader gives of a batch: ids (B,), and x of eq. 5, x0 and x3, each (B, T, V * M * C)."""

    ids: Tensor
    x: Tensor
    x0: Tensor
    x3: Tensor


class NumpyClips(Dataset[tuple[int, np.ndarray, np.ndarray, np.ndarray]]):
    """The clips of a benchmark by their ids, as `Sample` without its batch: padded arrays, views in numpy."""

    def __init__(self, clips: Clips, choose: Choose | None = None) -> None:
        """``choose``: by default choices are drawn anew each time."""
        self.clips, self._choose = clips, choose
        self._mirror = np.array(clips.skeleton.mirror)

    def __len__(self) -> int:
        return len(self.clips.padded)

    def __getitem__(self, clip_id: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        if self._choose is None:  # here: each worker draws for itself, from the seed that the loader gave it
            self._choose = drawing(self.clips)
        clip, size = self.clips.padded[clip_id], self.clips.case.frames
        whole = crop_resize(clip, 0, self.clips.num_frames[clip_id], size)
        x0, x3 = (
            make_view(clip, self._choose(clip_id, view), self._mirror, size, STYLE) for view in (BASIC_KEY, BASIC_QUERY)
        )
        return clip_id, whole.transpose(1, 2, 3, 0).reshape(size, -1), x0, x3


def drawing(clips: Clips) -> Choose:
    """Choices drawn anew each time, seeded by PyTorch's seed."""
    config, size, joints = AugmentConfig(), clips.case.frames, clips.skeleton.num_joints
    rng = np.random.default_rng(torch.initial_seed())

    def choose(clip_id: int, view: int) -> Choices:
        frames, resized = clips.num_frames[clip_id], view in OF_ATTACKED
        return draw_choices(rng, config, frames, joints, strong=view == STRONG, size=size, resized=resized)

    return choose


class Loader:
    """Batches of clips without end, made ahead by processes of their own.

    Attributes:
        workers: how many.
    """

    def __init__(self, clips: Clips, batches: Sequence[list[int]], workers: int) -> None:
        """``batches``: the clips' ids in each, over and over again."""
        self.workers = workers
        self._made, self._processor = Value("q", 0), Array("d", workers)
        self._taken = 0
        self._batches: Iterator[list[Any]] = iter(
            DataLoader(
                NumpyClips(clips),
                batch_sampler=itertools.cycle(batches),
                num_workers=workers,
                prefetch_factor=AHEAD,
                collate_fn=self._collate,
            )
        )

    def __next__(self) -> Sample:
        batch = next(self._batches)
        self._taken += 1
        return Sample(*batch)

    def settle(self) -> None:
        """Wait until the workers have made all that they make ahead, and rest."""
        last, since = -1, time.monotonic()
        while (made := self._made.value) < self._taken + AHEAD * self.workers:
            if made != last:
                last, since = made, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                raise RuntimeError(f"the loader's {self.workers} workers made no batch for {PATIENCE:.0f} s")
            time.sleep(0.002)

    @property
    def processor_seconds(self) -> float:
        """What its workers have used so far, up to their last batches."""
        return sum(self._processor[:])

    @property
    def seconds_per_batch(self) -> float:
        """Processor time that a batch takes a worker, on average. A run whose steps take less than this, divided by
        ``workers``, waits for its loader; here the loader rests before each step that is timed."""
        return self.processor_seconds / max(1, self._made.value)

    def close(self) -> None:
        """End the workers."""
        self._batches = iter(())

    def _collate(self, samples: list[Any]) -> list[Any]:
        batch = default_collate(samples)
        worker = get_worker_info()
        assert worker is not None
        self._processor[worker.id] = time.process_time()
        with self._made.get_lock():
            self._made.value += 1
        return batch


def numpy_attacked_views(clips: Clips, ids: Sequence[int], x_hat: Tensor, choose: Choose) -> list[Tensor]:
    """Views 1 and 2 of attacked clips (B, T, V * M * C), each of the same shape and on the same device."""
    skeleton, mirror = clips.skeleton, np.array(clips.skeleton.mirror)
    joints = x_hat.unflatten(2, (skeleton.num_joints, -1, 3)).permute(0, 4, 1, 2, 3).contiguous().cpu().numpy()
    samples = [
        [make_view(clip, choose(clip_id, view), mirror, x_hat.shape[1], STYLE) for view in OF_ATTACKED]
        for clip_id, clip in zip(ids, joints, strict=True)
    ]
    return [torch.from_numpy(views).to(x_hat.device) for views in collate(samples)]


class StepwiseStep:
    """The step and all that it changes.

    Attributes:
        query, key, bank, momentum, optimizer: as of `fastmc.reference.step`.
        loader: of the batches, and choose: of views 1 and 2, as long as a call is given no others.
    """

    def __init__(
        self,
        query: reference.Encoder,
        key: reference.Encoder,
        fc: nn.Module,
        optimizer: torch.optim.Optimizer,
        bank: Tensor,
        momentum: Tensor,
        mixing: Tensor,
        *,
        clips: Clips,
        loader: Loader,
        eps: float,
        eta: float,
        **settings: Any,
    ) -> None:
        """Arguments as of `fastmc.reference.step.pretrain_step`."""
        self.query, self.key, self.fc, self.optimizer = query, key, fc, optimizer
        self.bank, self.momentum, self.mixing = bank, momentum, mixing
        self.clips, self.loader, self.choose = clips, loader, drawing(clips)
        self._attack = {"eps": eps, "eta": eta}
        self._settings = settings

    def __call__(self) -> reference.Metrics:
        """One step on the loader's next batch, which it waits for."""
        return self.advance(next(self.loader), self.choose)

    def advance(self, batch: Sample, choose: Choose) -> reference.Metrics:
        """One step on this batch."""
        x, x0, x3 = (views.to(self.bank.device) for views in (batch.x, batch.x0, batch.x3))
        x_hat = reference.attacked(self.query, self.fc, x, self.clips.packed.max_bodies, **self._attack)
        x1, x2 = numpy_attacked_views(self.clips, batch.ids.tolist(), x_hat, choose)
        learning = (self.query, self.key, self.optimizer, self.bank, self.momentum)
        return reference.learn(*learning, x0, x1, x2, x3, self.mixing, **self._settings)
