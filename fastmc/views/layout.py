"""Views in the encoder's layout (B, T, V * M * 3): their streams, and which bodies are there."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmc.arguments import check_choice
from fastmc.skeleton import Skeleton
from fastmc.views.clips import STREAMS, Stream


@functools.lru_cache(maxsize=16)
def joint_indices(joints: tuple[int, ...], device: torch.device) -> Tensor:
    """As an int64 tensor, made once per device: to copy it at every step would wait for a GPU."""
    return torch.tensor(joints, device=device)


def present_bodies(x: Tensor) -> Tensor:
    """(..., V, M, 3) to the bool mask (..., 1, M, 1) of the bodies that are there (not all zero)."""
    return (x != 0).any(dim=-1, keepdim=True).any(dim=-3, keepdim=True)


def to_stream(x: Tensor, stream: Stream, skeleton: Skeleton) -> Tensor:
    """Joint coordinates (B, T, V * M * 3) in the encoder's layout to an input stream of the same shape, differentiable.

    joint: as is. motion: next frame minus this one, the last is zero. bone: joint minus its parent.
    """
    check_choice("stream", stream, STREAMS)
    if stream == "joint":
        return x
    if stream == "motion":
        return F.pad(x[:, 1:] - x[:, :-1], (0, 0, 0, 1))
    if not skeleton.parents:
        raise ValueError(f"stream='bone' needs the parents of joint layout {skeleton.name!r}, which are unknown")
    joints = x.unflatten(2, (skeleton.num_joints, -1))
    return x - _OfParents.apply(joints, skeleton.parents).flatten(2)


class _OfParents(torch.autograd.Function):
    """joints (B, T, V, C) to those of each joint's parent.

    Several joints have one parent. PyTorch's own gradient adds theirs up in whichever order a GPU comes to them; here a
    joint takes those of its children in the order of their numbers.
    """

    @staticmethod
    def forward(ctx: Any, joints: Tensor, parents: tuple[int, ...]) -> Tensor:
        ctx.parents = parents
        return joints.index_select(2, joint_indices(parents, joints.device))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        joints = len(ctx.parents)
        children = joint_indices(_children(ctx.parents), upstream.device)
        with_none = F.pad(upstream, (0, 0, 0, 1))  # zeros, in the place of a child that there is not
        return with_none.index_select(2, children).unflatten(2, (joints, -1)).sum(3), None


@functools.lru_cache(maxsize=16)
def _children(parents: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of the joints that hang on each joint, filled up to as many for all with the number that no joint has."""
    of_each = [[child for child, parent in enumerate(parents) if parent == joint] for joint in range(len(parents))]
    most = max(map(len, of_each))
    return tuple(number for own in of_each for number in (*own, *[len(parents)] * (most - len(own))))


# --- In PyTorch. On a CPU only the bodies and the clips that need it are worked on. A GPU would have to be asked which
# those are, and waited for, so there all are.
