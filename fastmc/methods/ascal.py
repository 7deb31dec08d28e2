"""AS-CAL: an LSTM contrasted with its own momentum copy, by features of any length.

Rao, Xu, Hu, Cheng and Hu (2021), Information Sciences, arXiv 2008.00188. Both views have a joint subtracted, are
reversed in time or not, and sheared. With f the mean state of the LSTM, which is the representation itself and not
scaled to unit length, and M the bank of earlier f0:

    L = -log softmax([f1 f0, f1 M] / tau)_0

Published are the first 150 frames of a clip as they are, with padding; here whole clips are resized, as for all
methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fastmc.arguments import working_dtype
from fastmc.checks import Count, Positive
from fastmc.contrast_table import Row, Table
from fastmc.encoders.base import Encoder
from fastmc.methods.base import Batch, Found, Metric, Setup
from fastmc.methods.skeletonclr import SkeletonCLR, SkeletonCLRConfig, metrics_of

RECIPE = {
    "crop_ratio_min": 1.0,
    "jitter_probability": 0.0,
    "shear": 1.0,
    "reverse_probability": 0.5,
    "centre_joint": 1,
}
ANY_LENGTH = Table((Row(0),), unit=False)
"""SkeletonCLR's, of features and rows that are not scaled."""


@dataclass(frozen=True)
class ASCALConfig(SkeletonCLRConfig):
    """Bank and loss. The defaults are those of the released script."""

    bank_size: Count = 16384
    """K, entries of the bank."""
    temperature: Positive = 0.06
    """tau of the loss."""
    first_epoch: Literal["trains", "fills"] = "trains"
    """fills: the first epoch only fills the bank, as in the released code."""


class ASCAL(SkeletonCLR):
    """SkeletonCLR's contrast of representations, whose head is not used: it stays as it was drawn, but for weight
    decay."""

    Config = ASCALConfig
    backbone = "lstm"
    run: ClassVar = {
        "paper": {
            "root": {"frames": 150},
            "augment": RECIPE,
            "optim": {
                "optimizer": "sgd",
                "lr": 0.01,
                "weight_decay": 1e-4,
                "batch_size": 32,
                "epochs": 60,
                "milestones": (30,),
            },
        },
        "small": {"augment": RECIPE},
        "tiny": {"augment": RECIPE},
    }
    # No length is fixed: there is no spread that 1/sqrt(D) could be held against.
    metrics = (
        *metrics_of()[:-1],
        Metric(
            *("deviation", "std of representation elements", "std", "share", ".4f"),
            help="How far the representations of a batch lie apart: the standard deviation of their elements, which "
            "have no fixed length. Near 0 all clips have the same, which is called collapse.",
        ),
    )
    config: ASCALConfig

    def __init__(self, config: ASCALConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        bound = sqrt(3 / self.feature_dim)
        generator = torch.Generator().manual_seed(setup.seed)
        self.bank.entries.uniform_(-bound, bound, generator=generator)

    @property
    def feature_dim(self) -> int:
        return self.query.representation_dim

    def phase(self, clips_seen: int, epoch: int) -> str:
        """fill: the bank takes keys in, and nothing learns."""
        return "fill" if self.config.first_epoch == "fills" and epoch == 0 else "main"

    def table(self, phase: str) -> Table:
        return ANY_LENGTH

    def features(self, encoder: Encoder, x: Tensor) -> Tensor:
        h = encoder.represent(x)
        return h.to(working_dtype(h))

    def step(self, batch: Batch, networks: Mapping[str, Any], phase: str) -> Found:
        return super().step(batch, networks, phase)._replace(learns=phase != "fill")
