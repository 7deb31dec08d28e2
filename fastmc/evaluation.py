"""Evaluation of a frozen encoder: kNN and linear classification of its representations (paper section 4.2)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fastmc.augment import identity_params
from fastmc.checks import check_number
from fastmc.data.resident import PlacedStore
from fastmc.progress import progress_bar
from fastmc.views import Stream, crop_span, make_views


@dataclass(frozen=True)
class EvalConfig:
    """kNN and linear evaluation, paper section 4.2."""

    knn_k: int = 1
    """Neighbours of the kNN classifier, by cosine similarity."""
    linear_epochs: int = 80
    """Epochs of the linear classifier."""
    linear_lr: float = 0.1
    """Initial learning rate of the linear classifier."""
    linear_milestones: tuple[int, ...] = (50, 70)
    """Epochs at which that learning rate drops to a tenth."""
    linear_batch_size: int = 64
    """Clips per step of the linear classifier."""
    train_crops: int = 8
    """Random temporal crops of each training clip whose features the linear classifier draws from, one per epoch."""
    train_crop_min: float = 0.5
    """Shortest of these crops, as a share of the clip. Source: released code of this family, [0.5, 1]."""
    test_crop: float = 0.95
    """Centre crop of a test clip, as a share of it. Source: the same."""

    def __post_init__(self) -> None:
        for name in ("knn_k", "linear_epochs", "linear_batch_size", "train_crops"):
            check_number(name, getattr(self, name), at_least=1)
        for name in ("train_crop_min", "test_crop"):
            check_number(name, getattr(self, name), above=0, at_most=1)


class Represents(Protocol):
    """An encoder, as far as evaluation needs one: a module that maps inputs (B, T, F) to representations (B, H)."""

    training: bool

    def represent(self, x: Tensor) -> Tensor: ...

    def train(self, mode: bool = True) -> object: ...

    def eval(self) -> object: ...


@torch.no_grad()
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
    advance: Callable[[int], object] = lambda _: None,
) -> Tensor:
    """Representations before the head (N, H) of one temporal crop of each clip, with the encoder in evaluation mode.

    Args:
        ids: (N,) int64, which clips of the store.
        stream: what the encoder reads, joint, motion or bone.
        frames: T.
        ratio, position: (N,) share of the clip that is kept, and where: 0 at its start, 1 at its end.
        advance: told how many clips each batch had.
    """
    training = encoder.training
    encoder.eval()
    parts: list[Tensor] = []
    crops = zip(ratio.split(batch_size), position.split(batch_size), strict=True)
    with closing(store.batches(ids, batch_size)) as batches:
        for (batch, clips), (share, place) in zip(batches, crops, strict=True):
            params = identity_params(*crop_span(clips.num_frames, share, place), store.skeleton.num_joints)
            parts.append(encoder.represent(make_views(clips, params, store.skeleton, size=frames, stream=stream)[0]))
            advance(len(batch))
    encoder.train(training)
    return torch.cat(parts)


@dataclass(frozen=True)
class FrozenFeatures:
    """Features of a frozen encoder, computed once and used by every classifier.

    Attributes:
        train: (N_train, H), test: (N_test, H), of the centre crops. train_crops: (crops, N_train, H), of random crops.
        train_labels, test_labels: int64.
    """

    train: Tensor
    train_crops: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


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
) -> FrozenFeatures:
    """Encode the training clips at the centre crop and at ``crops`` random crops (by default as the config says), and
    the test clips at the centre crop. ``progress`` shows a bar."""
    crops = config.train_crops if crops is None else crops
    generator = torch.Generator().manual_seed(seed)

    def encode(ids: Tensor, ratio: Tensor, position: Tensor) -> Tensor:
        ratio, position = ratio.to(store.device), position.to(store.device)
        return represent(encoder, store, ids, stream, frames=frames, ratio=ratio, position=position, advance=bar.update)

    def centre(ids: Tensor) -> Tensor:
        return encode(ids, torch.full((len(ids),), config.test_crop), torch.full((len(ids),), 0.5))

    def random(ids: Tensor) -> Tensor:
        u = torch.rand(2, len(ids), generator=generator)
        return encode(ids, config.train_crop_min + (1 - config.train_crop_min) * u[0], u[1])

    clips = len(test_ids) + (1 + crops) * len(train_ids)
    with tqdm(total=clips, disable=not progress, **progress_bar("clip", "features")) as bar:
        test = centre(test_ids)
        train = centre(train_ids)
        views = [random(train_ids) for _ in range(crops)]
    train_crops = torch.stack(views) if views else train.new_empty(0, *train.shape)
    return FrozenFeatures(train, train_crops, store.label[train_ids], test, store.label[test_ids])


def knn_predict(train: Tensor, labels: Tensor, test: Tensor, k: int = 1, tile: int = 1024) -> Tensor:
    """Labels (N_test,) of the majority of the k most similar training features, by cosine; ties go to the label of
    the nearest among those tied.

    Args:
        train (N_train, H), labels (N_train,) int64, test (N_test, H). Memory is bounded by ``tile`` x N_train.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k must be in 1..{len(train)}, the number of training clips, got {k}")
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    predicted = []
    for queries in test.split(tile):
        nearest = labels[(queries @ train.T).topk(k, dim=1).indices]
        votes = (nearest[:, :, None] == nearest[:, None, :]).sum(dim=2)
        predicted.append(nearest.gather(1, votes.argmax(dim=1, keepdim=True))[:, 0])
    return torch.cat(predicted)


def knn_evaluate(features: FrozenFeatures, config: EvalConfig) -> dict[str, float]:
    """kNN evaluation: top-1 accuracy in percent."""
    predicted = knn_predict(features.train, features.train_labels, features.test, config.knn_k)
    return {"knn_top1": 100.0 * (predicted == features.test_labels).double().mean().item()}


def linear_evaluate(
    features: FrozenFeatures, num_classes: int, config: EvalConfig, *, seed: int = 0, progress: bool = False
) -> dict[str, float]:
    """Linear evaluation: top-1 and top-5 accuracy in percent of a linear classifier on the frozen features."""
    classifier = train_linear(features, num_classes, config, seed=seed, progress=progress)
    with torch.no_grad():
        ranked = classifier(features.test).topk(min(5, num_classes), dim=1).indices
    hit = (ranked == features.test_labels[:, None]).double()
    return {f"linear_top{k}": 100.0 * hit[:, :k].sum(dim=1).mean().item() for k in (1, 5)}


def train_linear(
    features: FrozenFeatures, num_classes: int, config: EvalConfig, *, seed: int = 0, progress: bool = False
) -> nn.Linear:
    """Train the linear classifier: SGD with momentum 0.9; each epoch sees one random crop of every training clip."""
    crops = features.train_crops if len(features.train_crops) else features.train[None]
    device, clips = crops.device, crops.shape[1]
    generator = torch.Generator().manual_seed(seed)
    classifier = nn.utils.skip_init(nn.Linear, crops.shape[2], num_classes)
    bound = crops.shape[2] ** -0.5
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    classifier = classifier.to(device)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=config.linear_lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(config.linear_milestones), gamma=0.1)
    for _ in tqdm(range(config.linear_epochs), disable=not progress, **progress_bar("epoch", "linear classifier")):
        order = torch.randperm(clips, generator=generator).to(device)
        crop = torch.randint(len(crops), (clips,), generator=generator).to(device)
        for batch in order.split(config.linear_batch_size):
            loss = F.cross_entropy(classifier(crops[crop[batch], batch]), features.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    return classifier
