"""Graphs over the joints of any layout, as matrices: made from the parents, whose root is the centre of the body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fastmc.skeleton import check_tree

Partition = Literal["spatial", "released", "distance", "uniform"]


def depths(parents: Sequence[int]) -> list[int]:
    """Bones between each joint and the root that it hangs on."""
    found = []
    for joint in range(len(parents)):
        depth = 0
        while parents[joint] != joint:
            joint, depth = parents[joint], depth + 1
        found.append(depth)
    return found


def neighbours(parents: Sequence[int], partition: Partition) -> Tensor:
    """The graph of bones and self loops in parts, each joint's weights summing to 1 over all: (K, V, V) float32.

    Entry [k, u, v] is what joint v takes from joint u. Yan, Xiong and Lin (2018), section 3.3: "uniform" is one part;
    "distance" has the joint itself and its neighbours; "spatial" has the joint itself, those farther from the root and
    those nearer to it. "released" is "spatial" as their code computes it, which knows distances of up to one bone: all
    joints beyond are equally far, and go to the second part whichever way they lie.

    Args:
        parents: V parent indices, a root is its own parent.
    """
    joints = len(parents)
    linked = torch.eye(joints)
    for child, parent in enumerate(parents):
        linked[child, parent] = linked[parent, child] = 1
    linked /= linked.sum(0)
    if partition == "uniform":
        return linked[None]
    itself = torch.eye(joints, dtype=torch.bool)
    if partition == "distance":
        parts = [itself, ~itself]
    else:
        depth = torch.tensor(depths(parents))
        if partition == "released":
            depth = depth.clamp(max=2)
        source, target = depth[:, None], depth[None]
        parts = [itself, ~itself & (source >= target), ~itself & (source < target)]
    return torch.stack([linked * part for part in parts])


def directions(parents: Sequence[int]) -> Tensor:
    """Self loops, bones inward and bones outward, (3, V, V) float32: the graph of Shi et al. (2019), 2s-AGCN.

    Entry [k, u, v] is what joint v takes from joint u; the weights of a joint sum to 1 in each part, or are none.
    """
    joints = len(parents)
    inward = torch.zeros(joints, joints)
    for child, parent in enumerate(parents):
        if child != parent:
            inward[parent, child] = 1
    parts = torch.stack((torch.eye(joints), inward, inward.T))
    return parts / parts.sum(1, keepdim=True).clamp(min=1)


def check_bones(parents: Sequence[int], encoder: str) -> None:
    """ValueError where the bones of a layout are unknown, or make a circle, along which `depths` would not end."""
    if not parents:
        raise ValueError(
            f"{encoder} computes along bones, and this layout does not say which there are; give its joints with their "
            "parents (docs/own-data.md), or take --backbone bigru, lstm or dstanet"
        )
    check_tree(parents)
