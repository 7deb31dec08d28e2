"""SkeletonCLR: MoCo v2 on skeletons, the baseline of this family, and what AimCLR and HiCLR build on.

Li, Wang, Ni, Wang, Zhang and Yang (2021), CVPR, arXiv 2104.14683. Two views of a clip, each a window of the mirrored
clip and a shear; with unit features f1 of the query, f0 of the key and the bank M of earlier f0:

    L = -log softmax([f1 f0, f1 M] / tau)_0
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.checks import Count, Positive, Probability, check_ranges
from fastmc.contrast_table import B1, Table
from fastmc.encoders.base import Encoder
from fastmc.methods.base import (
    LOSS,
    POSITIVE,
    SPREAD,
    Batch,
    Follow,
    Found,
    Method,
    Metric,
    Setup,
    View,
    top1_of,
)
from fastmc.methods.fifo import FITTED, BankConfig
from fastmc.objective.bank import MemoryBank
from fastmc.objective.contrast_step import ContrastStep, contrast_step_
from fastmc.views.draw import BASIC_KEY, BASIC_QUERY
from kernels.ranges import part

CROP_AND_SHEAR = {"crop_ratio_min": 1.0, "crop_padding": 1 / 6, "jitter_probability": 0.0, "shear": 0.5}
"""The basic augmentation of this family."""
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "root": {"frames": 50},
    "augment": CROP_AND_SHEAR,
    "encoder": {"dropout": 0.5},
    "optim": {
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 1e-4,
        "batch_size": 128,
        "epochs": 300,
        "milestones": (250,),
    },
}


@dataclass(frozen=True)
class SkeletonCLRConfig(BankConfig):
    """Bank and loss. The defaults are those of the released configurations."""

    bank_size: Count = 32768
    """K, entries of the bank."""
    temperature: Positive = 0.07
    """tau of the loss."""
    ema: Probability = 0.999
    """The key encoder follows the query encoder."""
    key_init: Literal["copied", "independent"] = "copied"
    """Weights that the key encoder starts with: the query encoder's, or random ones of its own, as in the released
    codes."""

    def __post_init__(self) -> None:
        check_ranges(self)


def metrics_of(*terms: str) -> tuple[Metric, ...]:
    """The numbers of a step, the losses of as many queries among them as are told here, in plain words."""
    of_queries = (Metric(f"l{i}", f"L{i}", f"L{i}", "term", help=tells) for i, tells in enumerate(terms, start=1))
    return (LOSS, *of_queries, top1_of("f₁"), POSITIVE, SPREAD)


class SkeletonCLR(Method):
    """Query and key encoder, and a bank first in, first out.

    A subclass says which further views there are, what their features are (`queries`, `features`), and what these learn
    (`table`).

    Attributes:
        query, key: the encoders. bank: M.
    """

    Config = SkeletonCLRConfig
    presets = FITTED
    backbone = "stgcn"
    run: ClassVar = {"paper": PUBLISHED, "small": {"augment": CROP_AND_SHEAR}, "tiny": {"augment": CROP_AND_SHEAR}}
    views: ClassVar[tuple[View, ...]] = (View(BASIC_KEY), View(BASIC_QUERY))
    metrics = metrics_of()
    config: SkeletonCLRConfig

    def __init__(self, config: SkeletonCLRConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.query = setup.new_encoder()
        key = copy.deepcopy(self.query) if config.key_init == "copied" else setup.new_encoder()
        self.key = key.requires_grad_(False)
        generator = torch.Generator().manual_seed(setup.seed)
        self.bank = MemoryBank(config.bank_size, self.feature_dim, generator=generator)

    @property
    def feature_dim(self) -> int:
        """D of the features that are contrasted."""
        return self.setup.encoder.feature_dim

    def followers(self) -> dict[str, tuple[nn.Module, Follow]]:
        return {"key": (self.key, Follow("query", self.config.ema))}

    def table(self, phase: str) -> Table:
        """What the queries learn in this phase."""
        return B1

    def queries(self, networks: Mapping[str, Any], x: Tensor, step: Tensor | int) -> list[Tensor]:
        """Features (B, D) of the views behind the key's, x (views - 1, B, T, V * M * 3)."""
        return [self.features(networks["query"], x[0])]

    def features(self, encoder: Encoder, x: Tensor) -> Tensor:
        """Features (B, D) of clips (B, T, V * M * 3), of unit length."""
        return encoder(x)

    def step(self, batch: Batch, networks: Mapping[str, Any], phase: str) -> Found:
        with part("augment"):
            x = batch.make(*self.views)
        with part("key"), torch.no_grad():
            f0 = self.features(networks["key"], x[0])
        with part("query"):
            queries = self.queries(networks, x[1:], batch.step)
        f0, *queries = batch.gather(f0, *queries)
        with part("mc"):
            found = contrast_step_(
                self.bank.entries,
                self.bank.momentum,
                batch.guard(f0),
                [f.detach() for f in queries],
                self.table(phase),
                temperature=self.config.temperature,
                bank_temperature=self.config.temperature,
                cursor=self.bank.cursor,
                impl=self.setup.impl,
                precision=self.setup.precision,
            )
        return Found(found.loss, tuple(queries), found.gradients, (found, queries[0].detach()))

    def measure(self, seen: tuple[ContrastStep, Tensor]) -> Tensor:
        found, f1 = seen
        std = f1.std(dim=0, correction=0).mean()
        shares = torch.stack((found.top1_count / len(f1), found.positive_probability, std))
        terms = len(self.metrics) - 1 - len(shares)  # 0 of a query that the encoder has not
        losses = F.pad(found.losses[:terms], (0, terms - len(found.losses[:terms])))
        return torch.cat((found.loss[None], losses, shares))

    def restored(self) -> list[Tensor]:
        """The running statistics of the norms: the bank is left alone where the loss is not finite."""
        return [*self.query.buffers(), *self.key.buffers()]
