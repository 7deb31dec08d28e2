"""The order in which an epoch visits the clips: a function of (seed, epoch) that every device computes alike."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmc.random import philox

ORDER_STREAM = 1 << 31  # last counter word of these draws; a view's is its number, 0..3, so the two never meet


def epoch_order(ids: Tensor, seed: int, epoch: int) -> Tensor:
    """A permutation of ``ids`` (N,), drawn on their device.

    The clip at place n gets a 63-bit key from the Philox block of (seed; n, epoch, 0, ORDER_STREAM), and the keys are
    sorted; clips of equal keys, if there ever are any, keep their order. Nothing waits for the device.

    Args:
        seed: the 64-bit Philox key. epoch: the number of the epoch, in [0, 2^32).
    """
    words = philox(seed, torch.arange(len(ids), device=ids.device), epoch, 0, ORDER_STREAM)
    keys = (words[:, 0] << 31) | (words[:, 1] >> 1)
    return ids[keys.argsort(stable=True)]


def batches_of(order: Tensor, size: int) -> tuple[Tensor, ...]:
    """The order in pieces of ``size``, the last one perhaps shorter. An empty order has none; split would make one."""
    return order.split(size) if len(order) else ()
