"""What the coordinates themselves are worth: the row that every encoder has to be better than."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastmc.data.placed.resident import PlacedStore
from fastmc.evaluation.config import EvalConfig
from fastmc.evaluation.features import frozen_features
from fastmc.evaluation.knn import knn_evaluate
from fastmc.evaluation.linear import linear_evaluate


class Coordinates(nn.Module):
    """In the place of an encoder: the normalised coordinates themselves, (B, T, F) to (B, T * F)."""

    def represent(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def raw_accuracy(
    placed: PlacedStore, train: Tensor, test: Tensor, classes: int, config: EvalConfig, frames: int
) -> dict[str, float]:
    """The evaluation of an encoder, percent, of raw coordinates: knn_top1, linear_top1 and linear_top5.

    Args:
        train, test: int64, clips that have a label. frames: T, to which clips are resized.
    """
    features = frozen_features(Coordinates(), placed, train, test, "joint", config, frames=frames)
    return knn_evaluate(features, config) | linear_evaluate(features, classes, config)


def raw_bytes(placed: PlacedStore, train: Tensor, test: Tensor, config: EvalConfig, frames: int) -> int:
    """The memory that its features take."""
    clips = len(test) + (1 + config.train_crops) * len(train)
    return clips * frames * placed.skeleton.num_joints * placed.max_bodies * 3 * torch.float32.itemsize
