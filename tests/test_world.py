"""How the clips of an epoch are shared between processes."""

from __future__ import annotations

import pytest
import torch

from train.engine.world import World


class One(World):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def test_one_process_has_all_clips_in_their_order():
    order = torch.randperm(11)
    assert World().part(order, 4) is order


@pytest.mark.parametrize(("clips", "size"), [(24, 2), (25, 3), (11, 4)])
def test_batches_of_all_processes_are_those_of_one_with_larger_batches(clips, size):
    """Together they make the steps that one process makes with batches of all, without the last short one."""
    order = torch.randperm(clips)
    parts = [One(rank, size).part(order, 2).split(2) for rank in range(size)]
    together = [torch.cat(step) for step in zip(*parts, strict=True)]
    whole = [batch for batch in order.split(2 * size) if len(batch) == 2 * size]
    assert len(together) == len(whole) == clips // (2 * size)
    assert all(torch.equal(a, b) for a, b in zip(together, whole, strict=True))
