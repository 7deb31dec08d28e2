"""Fusion of several streams by their scores."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmc.checks import check_number


def fuse(scores: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Weighted sum (N, C) of the streams' class probabilities: the 3-stream row of paper table 2.

    The field sums the scores of classifiers that were trained apart: 2s-AGCN with equal weights, AimCLR's released code
    with 0.6 for joint and bone and 0.4 for motion, both before the softmax. Probabilities are summed here, so that no
    stream counts more only because its classifier has larger weights.

    Args:
        scores: S of (N, C), before the softmax.
        weights: S numbers from 0, not all 0; by default all 1.

    Raises:
        ValueError: the weights are not S such numbers, or the shapes differ.
    """
    weights = [1.0] * len(scores) if weights is None else weights
    check_weights(weights, len(scores))
    if len({tuple(s.shape) for s in scores}) != 1:
        raise ValueError(f"scores differ in shape: {[tuple(s.shape) for s in scores]}")
    return torch.stack([w * s.softmax(dim=1) for w, s in zip(weights, scores, strict=True)]).sum(dim=0)


def check_weights(weights: Sequence[float], runs: int) -> None:
    """ValueError unless there is a weight from 0 for each of the runs, and one above."""
    if len(weights) != runs:
        raise ValueError(f"weights are {len(weights)}, one for each of the {runs} runs is needed")
    for weight in weights:
        check_number("weights", weight, at_least=0)
    if not any(weights):
        raise ValueError("weights are all 0, which leaves nothing of any run")
