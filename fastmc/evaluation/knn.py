"""k nearest neighbours by cosine similarity, in tiles of both sides: no array grows with their product."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmc.data.placed.resident import map_frames
from fastmc.evaluation.config import EvalConfig
from fastmc.evaluation.features import FrozenFeatures, check_labels

TILE, TRAIN_TILE = 1024, 4096
Rows = Tensor | np.ndarray


def knn_predict(
    train: Rows, labels: Tensor, test: Rows, k: int = 1, tile: int = TILE, train_tile: int = TRAIN_TILE
) -> Tensor:
    """Labels (N_test,) of the majority of the k most similar training features, by cosine; ties go to the label of
    the nearest among those tied, and of equally similar features the first in the set is the nearer.

    Beside its arguments and the k neighbours of each test clip it needs memory for ``tile`` x ``train_tile``
    similarities, for ``tile`` x (k + classes) votes and for ``tile`` + ``train_tile`` normalised features, whatever the
    sizes of the sets.

    Args:
        train: (N_train, H), tensor or numpy array, which may be memory-mapped. labels: (N_train,) int64. test:
            (N_test, H). The work is done where ``labels`` are.

    Raises:
        ValueError: k is not in 1..N_train, or a training clip has no label.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k must be in 1..{len(train)}, the number of training clips, got {k}")
    check_labels("labels", labels)
    nearest, _ = nearest_neighbours(train, test, k, tile, train_tile, labels.device)
    classes = int(labels.max()) + 1
    return torch.cat([_majority(labels[some], classes) for some in nearest.split(tile)])


def nearest_neighbours(
    train: Rows, test: Rows, k: int, tile: int = TILE, train_tile: int = TRAIN_TILE, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Indices (N_test, k) int64 of the k training features most similar to each test feature, nearest first, and their
    cosines (N_test, k)."""
    dtype = _unit_rows(test, 0, 1, device).dtype
    similarity = torch.full((len(test), k), -torch.inf, dtype=dtype, device=device)
    index = torch.zeros(len(test), k, dtype=torch.int64, device=device)
    for first in range(0, len(train), train_tile):  # outside, since these tiles are the larger ones to normalise
        candidates = _unit_rows(train, first, train_tile, device)
        for start in range(0, len(test), tile):
            own = slice(start, start + tile)
            found, place = _largest(_unit_rows(test, start, tile, device) @ candidates.T, k)
            # The earlier ones come first, so that a stable sort keeps them in front of equally similar ones.
            both = torch.cat((similarity[own], found), dim=1)
            order = both.argsort(dim=1, descending=True, stable=True)[:, :k]
            similarity[own] = both.gather(1, order)
            index[own] = torch.cat((index[own], place + first), dim=1).gather(1, order)
    return index, similarity


def _unit_rows(rows: Rows, first: int, count: int, device: torch.device | str) -> Tensor:
    """A tile of features, in device memory, of length one."""
    part = rows[first : first + count]
    part = map_frames(part) if isinstance(part, np.ndarray) else part
    return F.normalize(part.to(device), dim=1)


def _largest(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (n, m), or all m if they are fewer, and where they are: largest first, of equal ones
    the first. torch.topk alone takes any of equal ones."""
    k = min(k, similarity.shape[1])
    if k == 1:
        return similarity.max(dim=1, keepdim=True)
    value, place = similarity.topk(k, dim=1)
    place = place.sort(dim=1).values
    order = similarity.gather(1, place).argsort(dim=1, descending=True, stable=True)
    place = place.gather(1, order)
    tied = ((similarity >= value[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]  # the last place has several claimants
    if len(tied):
        place[tied] = similarity[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
    return similarity.gather(1, place), place


def _majority(nearest: Tensor, classes: int) -> Tensor:
    """The most frequent label of each row (n, k), nearest first; of equally frequent ones that of the nearest."""
    counts = nearest.new_zeros(len(nearest), classes).scatter_add_(1, nearest, torch.ones_like(nearest))
    votes = counts.gather(1, nearest)
    return nearest.gather(1, votes.argmax(dim=1, keepdim=True))[:, 0]


def knn_evaluate(features: FrozenFeatures, config: EvalConfig) -> dict[str, float]:
    """kNN evaluation: top-1 accuracy in percent."""
    predicted = knn_predict(features.train, features.train_labels, features.test, config.knn_k)
    return {"knn_top1": 100.0 * (predicted == features.test_labels).double().mean().item()}
