"""HiCLR: views of growing strength, each of which learns from the one below it.

Zhang, Lin and Liu (2023), AAAI, arXiv 2211.13466. f0 and f1 are of SkeletonCLR's views, f2 of an extreme one as AimCLR
has it, f3 of another extreme one in which some joints of each frame are masked by one learnt number. With p_i and P as
in `fastmc.methods.aimclr`, and t_i = p_i without gradient:

    L = -mean over {0} and P of log p_1     - 1/2 sum_k (t_1,k log p_2,k + t_2,k log p_3,k)

The mask is drawn anew at every step, and is the same for all clips, bodies and coordinates. Published runs use nothing
else of the strong set, whose edges that come and go and style mixing are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastmc.checks import Probability
from fastmc.contrast_table import HICLR, Table
from fastmc.methods.aimclr import AimCLR, AimCLRConfig
from fastmc.methods.base import Setup, View
from fastmc.random import philox, uniform
from fastmc.views.draw import BASIC_KEY, BASIC_QUERY, STRONG

MASKED = 4
"""The number of the view behind A²MC's four."""


@dataclass(frozen=True)
class HiCLRConfig(AimCLRConfig):
    """Bank, loss, mining and mask. The defaults are those of the released configurations."""

    masked_share: Probability = 0.1
    """Of a frame's joints, rounded down: so many are masked."""


class JointMask(nn.Module):
    """The number that stands for a masked coordinate; 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, masked: Tensor) -> Tensor:
        """Clips (B, T, V * M * 3), with the joints ``masked`` (T, V) bool of all bodies replaced."""
        frames, joints = masked.shape
        by_joint = x.unflatten(2, (joints, -1))
        return torch.where(masked.view(frames, joints, 1), self.value.to(x.dtype), by_joint).flatten(2)


class HiCLR(AimCLR):
    """AimCLR with another third view in place of attention drop, and targets along a chain."""

    Config = HiCLRConfig
    views: ClassVar[tuple[View, ...]] = (
        View(BASIC_KEY),
        View(BASIC_QUERY),
        View(STRONG, strong=True),
        View(MASKED, strong=True),
    )
    config: HiCLRConfig

    def __init__(self, config: HiCLRConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.mask = JointMask()
        self.query.sums_absent = True  # all that a mask's gradient goes to is its one value

    def learners(self) -> dict[str, nn.Module]:
        return {"query": self.query, "mask": self.mask}

    def table(self, phase: str) -> Table:
        return HICLR.mining(self.config.mined) if phase == "mined" else HICLR

    def queries(self, networks: Mapping[str, Any], x: Tensor, step: Tensor | int) -> list[Tensor]:
        joints = self.setup.skeleton.num_joints
        masked = masked_joints(
            x.shape[2], joints, int(self.config.masked_share * joints), self.setup.seed, step, x.device
        )
        x = torch.cat((x[0], x[1], networks["mask"](x[2], masked)))
        return list(networks["query"](x, views=3).chunk(3))


def masked_joints(frames: int, joints: int, count: int, seed: int, step: Tensor | int, device: torch.device) -> Tensor:
    """(frames, joints) bool, ``count`` of each frame's joints at random, by numbers of (seed, step) alone."""
    blocks = torch.arange(-(-frames * joints // 4), device=device)
    words = philox(seed, blocks, step, 0xFFFFFFFF, MASKED)  # of no clip's id, so that no view has them
    u = uniform(words).flatten()[: frames * joints].view(frames, joints)
    chosen = u.topk(count, dim=1, largest=False).indices
    return torch.zeros(frames, joints, dtype=torch.bool, device=device).scatter(1, chosen, True)
