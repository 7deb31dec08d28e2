"""Views in the encoder's layout (B, T, V * M * 3): their streams, and which bodies are there."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

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
        return torch.nn.functional.pad(x[:, 1:] - x[:, :-1], (0, 0, 0, 1))
    if not skeleton.parents:
        raise ValueError(f"stream='bone' needs the parents of joint layout {skeleton.name!r}, which are unknown")
    joints = x.unflatten(2, (skeleton.num_joints, -1))
    return x - joints.index_select(2, joint_indices(skeleton.parents, x.device)).flatten(2)


# --- In PyTorch. On a CPU only the bodies and the clips that need it are worked on. A GPU would have to be asked which
# those are, and waited for, so there all are.
