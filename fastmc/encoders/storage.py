"""Tensors that lie side by side, so that one call reaches them all."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

ALIGNMENT = 128
"""Bytes: each tensor begins at a multiple, as wide as a GPU's line of cache and any load of a kernel."""


def share_storage(tensors: Sequence[Tensor]) -> Tensor:
    """Move tensors of one dtype and device into one flat tensor, whose parts they become; they keep names and values.

    Returns:
        The flat tensor, with zeros in the gaps between them.
    """
    unit = ALIGNMENT // tensors[0].element_size()
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.numel() // unit) * unit
    flat = tensors[0].new_zeros(end)
    for tensor, start in zip(tensors, starts, strict=True):
        mine = flat[start : start + tensor.numel()].view(tensor.shape)
        mine.copy_(tensor.detach())
        tensor.data = mine
    return flat
