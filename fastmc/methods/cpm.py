"""CPM: the distribution of a clip's similarities to a queue of others matched to that of its other view.

Zhang, Hou, Zhang and Li (2022), ECCV, arXiv 2208.03497. There is no code of the authors, and this follows second-hand
accounts of the text. With the encoder h, projector g and predictor p, unit f1 = p(g(h(x))) of one view, unit f0 =
g(h(x')) of the other, without gradient, and the queue M of earlier f0:

    P_s = softmax(f1 M^T / tau_s),  P_t = softmax(f0 M^T / tau_t)
    L = -sum P_t log P_s,  the gradient of KL(P_t || P_s)

Later the k rows nearest to f0 are taken for positives: their similarity to f0 counts as 1 in P_t. Both stages are
tables of the fused contrast, to which f0 is as many times longer as its temperature is lower. Which rows are nearest is
found before it, by a product and torch.topk of one chunk of the queue after the other.

Said by these accounts: one encoder for both branches, the predictor on the student's alone, matching of distributions,
mining in a second stage, crop and shear. Recalled or inferred, so chosen here: no column for the clip's own key;
tau_t below tau_s, and the values of both; K, k, the epoch at which mining begins, and the schedule, which are those of
SkeletonCLR and its kin; the lifted target in the place of the first one; the encoder of 64 channels, and widths of
512, which give the 3.4M parameters of the tables; that no norm is in g and p. Both orders of the views are taken, which
costs no further pass of the encoder; the queue takes f0 of one view, so that K rows are of K clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from fastmc.checks import Count, Positive, Whole, check_ranges
from fastmc.contrast_table import CPM as TABLE
from fastmc.encoders.base import mlp_head, unit
from fastmc.methods.base import LOSS, SPREAD, Batch, Found, Method, Metric, Setup, View
from fastmc.methods.fifo import BankConfig, Fifo, check_mined
from fastmc.methods.skeletonclr import CROP_AND_SHEAR, PUBLISHED
from fastmc.objective.contrast_step import contrast_step_
from fastmc.views.draw import BASIC_KEY, BASIC_QUERY
from kernels.ranges import part


@dataclass(frozen=True)
class CPMConfig(BankConfig):
    """Queue, loss and mining. The defaults fit the family: none of the paper's could be verified."""

    in_epochs = ("mining_from",)

    bank_size: Count = 65536
    """K, entries of the contextual queue."""
    temperature: Positive = 0.1
    """tau of the student's distribution."""
    target_temperature: Positive = 0.05
    """tau of the target's, lower, so that it is sharper."""
    mined: Count = 100
    """k, rows of the queue that are taken for positives of a clip."""
    mining_from: Whole = 150
    """Epochs before mining begins; it waits for a full queue in any case."""
    predictor_width: Count = 512
    """Numbers between the two layers of the predictor."""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_mined(self)


class CPM(Method):
    """An encoder, whose head is the projector, a predictor, and the queue of targets."""

    Config = CPMConfig
    presets: ClassVar = {
        "small": {"bank_size": 4096, "fit_bank": True, "mined": 16, "mining_from": 30},
        "tiny": {"bank_size": 1024, "fit_bank": True, "mined": 8, "mining_from": 30},
    }
    backbone: ClassVar[str] = "stgcn"
    run: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "paper": {
            **PUBLISHED,
            "encoder": {"encoder": "64x256", "head_width": 512},
        },
        "small": {"augment": CROP_AND_SHEAR},
        "tiny": {"augment": CROP_AND_SHEAR},
    }
    views = (View(BASIC_KEY), View(BASIC_QUERY))
    metrics = (
        LOSS,
        Metric(
            *("divergence", "KL(target, student)", "KL", "term"),
            help="How far the student's similarities to the queue are from those of the target, the other view: the "
            "part of the loss that can be learnt away.",
            weight=None,
        ),
        Metric(
            *("agreement", "cosine of the pair", "cos", "share"),
            help="How similar the features of two views of one clip are: their cosine, 1 where they are equal.",
        ),
        SPREAD,
    )
    config: CPMConfig

    def __init__(self, config: CPMConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        dim = setup.encoder.feature_dim
        self.query = setup.new_encoder()
        self.predictor = mlp_head(dim, dim, config.predictor_width)
        self.bank = Fifo(config.bank_size, dim)

    def learners(self) -> dict[str, nn.Module]:
        return {"query": self.query, "predictor": self.predictor}

    def phase(self, clips_seen: int, epoch: int) -> str:
        """fill: the queue is not yet full. Its loss is that of main, in which the random rows that are left serve as
        any other directions do; they are never mined."""
        if clips_seen < self.config.bank_size:
            return "fill"
        return "mined" if epoch >= self.config.mining_from else "main"

    def step(self, batch: Batch, networks: Mapping[str, Any], phase: str) -> Found:
        config, encoder = self.config, networks["query"]
        with part("augment"):
            x = batch.make(*self.views)
        with part("query"):
            projected = encoder.head(encoder.represent(x.flatten(0, 1), views=2))
            f1 = unit(networks["predictor"](projected))
        f0 = unit(projected.detach())
        first, second, *students = batch.gather(*f0.chunk(2), *f1.chunk(2))
        target, student, bank = torch.cat((second, first)), torch.cat(students), self.bank.entries
        with part("mc"):
            found = contrast_step_(
                bank,
                bank,  # a momentum: nothing is updated
                target,
                [student.detach(), target * (config.temperature / config.target_temperature)],
                TABLE.lifting(config.mined) if phase == "mined" else TABLE,
                temperature=config.temperature,
                bank_temperature=config.temperature,
                update="none",
                impl=self.setup.impl,
                precision=self.setup.precision,
            )
        seen = {
            "loss": found.loss,
            "divergence": found.losses[0] - found.losses[1],
            "agreement": (student.detach() * target).sum(dim=1).mean(),
            "feature_std": first.std(dim=0, correction=0).mean(),
        }
        return Found(found.loss, (student,), found.gradients[:1], seen, self.bank.writes(first))
