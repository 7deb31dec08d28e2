"""Frozen features: representations, before the head, of temporal crops of a store's clips."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from fastmc.data.placed.resident import PlacedStore
from fastmc.encoders.amp import tensor_cores
from fastmc.encoders.base import ClipShape
from fastmc.evaluation.config import EvalConfig
from fastmc.progress import progress_bar
from fastmc.ranks import ALONE, Alone, rows_of_all, shares
from fastmc.views.clips import Stream
from fastmc.views.make import crops_of

Advance = Callable[[int], object]


class Represents(Protocol):
    """An encoder, as far as evaluation needs one: a module that maps inputs (B, T, F) to representations (B, H). Where
    it has a ``shape`` with a joint to subtract, that is done before."""

    training: bool

    def represent(self, x: Tensor) -> Tensor: ...

    def train(self, mode: bool = True) -> object: ...

    def eval(self) -> object: ...


@torch.no_grad()
@tensor_cores(False)
def represent(
    encoder: Represents,
    store: PlacedStore,
    ids: Tensor,
    stream: Stream,
    *,
    frames: int,
    ratio: Tensor,
    position: Tensor,
    batch_size: int = 256,
    advance: Advance = lambda _: None,
    ranks: Alone = ALONE,
) -> Tensor:
    """Representations before the head (N, H) of one temporal crop of each clip, with the encoder in evaluation mode.

    Several ranks take whole batches each, of the clips that one would have in them: the bits are the same.

    Args:
        ids: (N,) int64, which clips of the store.
        stream: what the encoder reads, joint, motion or bone.
        frames: T.
        ratio, position: (N,) share of the clip that is kept, and where: 0 at its start, 1 at its end.
        advance: told how many clips each batch had.
        ranks: who share the clips out; each gets the features of all.
    """
    batches_of_each = shares(-(-len(ids) // batch_size), ranks.size)
    ends = [min(batch_size * sum(batches_of_each[: rank + 1]), len(ids)) for rank in range(ranks.size)]
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    own = slice(ends[ranks.rank] - counts[ranks.rank], ends[ranks.rank])
    if not counts[ranks.rank]:  # it takes a batch to know how wide features are
        own = slice(0, min(batch_size, len(ids)))
    found = _represented(encoder, store, ids[own], stream, frames, ratio[own], position[own], batch_size, advance)
    features = rows_of_all(ranks, found[: counts[ranks.rank]], counts)
    if len(features) > len(found):  # by the other ranks
        advance(len(features) - len(found))
    return features


def _represented(
    encoder: Represents,
    store: PlacedStore,
    ids: Tensor,
    stream: Stream,
    frames: int,
    ratio: Tensor,
    position: Tensor,
    batch_size: int,
    advance: Advance,
) -> Tensor:
    """As `represent`, by this process alone."""
    training = encoder.training
    encoder.eval()
    features, done = None, 0
    shape: ClipShape | None = getattr(encoder, "shape", None)
    centre = None if shape is None else shape.centre_joint
    crops = zip(ratio.split(batch_size), position.split(batch_size), strict=True)
    with closing(store.batches(ids, batch_size)) as batches:
        for (batch, clips), (share, place) in zip(batches, crops, strict=True):
            found = encoder.represent(crops_of(clips, share, place, store.skeleton, frames, stream, centre))
            if features is None:  # whole from the start: what stays between the batches' arrays would break up the heap
                features = found.new_empty(len(ids), found.shape[1])
            features[done : done + len(batch)] = found
            done += len(batch)
            advance(len(batch))
    encoder.train(training)
    assert features is not None
    return features


def check_labels(name: str, labels: Tensor) -> None:
    """ValueError if a clip has no label: what is evaluated has one."""
    unknown = int((labels < 0).sum())
    if unknown:
        raise ValueError(
            f"{name}: {unknown} of {len(labels)} clips have no label (-1); take those of store.labelled_split(protocol)"
        )


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of a frozen encoder, computed once and used by every classifier.

    Attributes:
        train: (N_train, H), test: (N_test, H), of the centre crops. train_crops: (crops, N_train, H), of random crops.
        train_labels, test_labels: int64, from 0.

    Raises:
        ValueError: a clip has no label.
    """

    train: Tensor
    train_crops: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def __post_init__(self) -> None:
        check_labels("train_labels", self.train_labels)
        check_labels("test_labels", self.test_labels)


@dataclass(frozen=True)
class FeatureSource:
    """An encoder, and the clips and crops that it encodes. No feature depends on which others are asked for.

    Attributes:
        train_ids, test_ids: int64, clips of the store, on its device.
        frames: T.
        seed: of the random crops.
        ranks: who share the clips out.
    """

    encoder: Represents
    store: PlacedStore
    train_ids: Tensor
    test_ids: Tensor
    stream: Stream
    config: EvalConfig
    frames: int
    seed: int = 0
    ranks: Alone = ALONE

    @property
    def train_labels(self) -> Tensor:
        return self.store.label[self.train_ids]

    @property
    def test_labels(self) -> Tensor:
        return self.store.label[self.test_ids]

    def train(self, advance: Advance = lambda _: None) -> Tensor:
        """(N_train, H) of the centre crops."""
        return self._centre(self.train_ids, advance)

    def test(self, advance: Advance = lambda _: None) -> Tensor:
        """(N_test, H) of the centre crops."""
        return self._centre(self.test_ids, advance)

    def crop(self, number: int, advance: Advance = lambda _: None) -> Tensor:
        """(N_train, H) of random crop ``number``, from 0."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(number + 1):
            u = torch.rand(2, len(self.train_ids), generator=generator)
        shortest = self.config.train_crop_min
        return self._encode(self.train_ids, shortest + (1 - shortest) * u[0], u[1], advance)

    def _centre(self, ids: Tensor, advance: Advance) -> Tensor:
        return self._encode(ids, torch.full((len(ids),), self.config.test_crop), torch.full((len(ids),), 0.5), advance)

    def _encode(self, ids: Tensor, ratio: Tensor, position: Tensor, advance: Advance) -> Tensor:
        ratio, position = ratio.to(self.store.device), position.to(self.store.device)
        return represent(
            self.encoder,
            self.store,
            ids,
            self.stream,
            frames=self.frames,
            ratio=ratio,
            position=position,
            advance=advance,
            ranks=self.ranks,
        )


def frozen_features(
    encoder: Represents,
    store: PlacedStore,
    train_ids: Tensor,
    test_ids: Tensor,
    stream: Stream,
    config: EvalConfig,
    *,
    frames: int,
    crops: int | None = None,
    seed: int = 0,
    progress: bool = False,
    ranks: Alone = ALONE,
) -> FrozenFeatures:
    """Encode the training clips at the centre crop and at ``crops`` random crops (by default as the config says), and
    the test clips at the centre crop. ``progress`` shows a bar; ``ranks`` share the clips out."""
    source = FeatureSource(encoder, store, train_ids, test_ids, stream, config, frames, seed, ranks)
    return compute_features(source, config.train_crops if crops is None else crops, progress=progress)


def compute_features(source: FeatureSource, crops: int, *, progress: bool = False) -> FrozenFeatures:
    """All features of a source, with ``crops`` random crops, in memory."""
    clips = len(source.test_ids) + (1 + crops) * len(source.train_ids)
    with tqdm(total=clips, disable=not progress, **progress_bar("clip", "features")) as bar:
        test = source.test(bar.update)
        train = source.train(bar.update)
        train_crops = train.new_empty(crops, *train.shape)
        for number in range(crops):
            train_crops[number] = source.crop(number, bar.update)
    return FrozenFeatures(train, train_crops, source.train_labels, test, source.test_labels)
