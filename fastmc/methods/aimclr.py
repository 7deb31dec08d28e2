"""AimCLR: extreme augmentations that learn from the normal view's distribution, and mined neighbours.

Guo, Liu, Chen, Liu, Wang and Ding (2022), AAAI, arXiv 2112.03590. Beside SkeletonCLR's key f0 and query f1, the query
encoder gives f2 of an extreme view and f3 of the same view after attention drop. With p_i the softmax of f_i over f0
and the bank M, t = p_1 without gradient, and P the k rows of M that are nearest to any of f1, f2, f3:

    L = -mean over {0} and P of log p_1     - 1/2 sum_k t_k (log p_2,k + log p_3,k)

P is empty at first. Released: blur with gain (``--filter-gain``), an independent key encoder (``--key-init
independent``), left and right swapped without a mirror, which is what our flip does too, and rotation one way
(``--rotation one-way``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor

from fastmc.checks import Range, Whole
from fastmc.contrast_table import AIMCLR, MOST_MINED, Row, Table
from fastmc.encoders.stgcn import STGCN
from fastmc.methods.base import Setup, View
from fastmc.methods.fifo import check_mined
from fastmc.methods.skeletonclr import CROP_AND_SHEAR, PUBLISHED, SkeletonCLR, SkeletonCLRConfig, metrics_of
from fastmc.views.draw import BASIC_KEY, BASIC_QUERY, STRONG

EXTREME = {**CROP_AND_SHEAR, "rotation": "both-ways"}
WITHOUT_DROP = Table((Row(0), Row(1, target=0)))
"""Of encoders that have no attention drop, where f3 would be f2."""


@dataclass(frozen=True)
class AimCLRConfig(SkeletonCLRConfig):
    """Bank, loss and mining. The defaults are those of the released configurations."""

    in_epochs = ("mining_from",)
    mined: Annotated[int, Range(at_least=1, at_most=MOST_MINED)] = 1
    """k, rows of the bank that each query takes for further positives."""
    mining_from: Whole = 150
    """Epochs before mining begins."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_mined(self)


class AimCLR(SkeletonCLR):
    """SkeletonCLR with an extreme view, attention drop where the encoder has it (ST-GCN), and mining."""

    Config = AimCLRConfig
    presets: ClassVar = {preset: {**values, "mining_from": 30} for preset, values in SkeletonCLR.presets.items()}
    run: ClassVar = {
        "paper": {**PUBLISHED, "augment": EXTREME},
        "small": {"augment": EXTREME},
        "tiny": {"augment": EXTREME},
    }
    views: ClassVar[tuple[View, ...]] = (View(BASIC_KEY), View(BASIC_QUERY), View(STRONG, strong=True))
    metrics = metrics_of(
        "InfoNCE of the basic view: its feature is to find the key of the same clip among the bank.",
        "Of the extreme view: it is to be as similar to everything in the bank as the basic view is.",
        "The same of the third view: with attention drop (AimCLR), or with masked joints and the extreme view for its "
        "teacher (HiCLR). 0 where the encoder has no such view.",
    )
    config: AimCLRConfig

    def __init__(self, config: AimCLRConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        weights = {f"l{i}": row.weight for i, row in enumerate(self.table("main").rows, start=1)}
        self.metrics = tuple(m._replace(weight=weights.get(m.name)) if m.kind == "term" else m for m in self.metrics)

    @property
    def drops(self) -> bool:
        """Whether the encoder has attention drop."""
        return isinstance(self.query, STGCN)

    def phase(self, clips_seen: int, epoch: int) -> str:
        return "mined" if epoch >= self.config.mining_from else "main"

    def table(self, phase: str) -> Table:
        table = AIMCLR if self.drops else WITHOUT_DROP
        return table.mining(self.config.mined) if phase == "mined" else table

    def queries(self, networks: Mapping[str, Any], x: Tensor, step: Tensor | int) -> list[Tensor]:
        encoder = networks["query"]
        if not self.drops:
            return list(encoder(x.flatten(0, 1), views=2).chunk(2))
        return [encoder(x[0]), *(encoder.after(h) for h in encoder.represent_and_drop(x[1]))]
