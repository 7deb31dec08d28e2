"""AS-CAL: an LSTM contrasted with its own momentum copy, by features of any length.

Rao, Xu, Hu, Cheng and Hu (2021), Information Sciences, arXiv 2008.00188. Both views have a joint subtracted, are
reversed in time or not, and sheared. With f the mean state of the LSTM, which is the representation itself and not
scaled to unit length, and M the bank of earlier f0:

    L = -log softmax([f1 f0, f1 M] / tau)_0

Published are the first 150 frames of a clip as they are, with padding; here whole clips are resized, as for all
methods.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from math import sqrt
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.arguments import working_dtype
from fastmc.checks import Count, Positive, Probability, check_ranges
from fastmc.methods.base import LOSS, Batch, Follow, Found, Method, Metric, Setup, View
from fastmc.methods.fifo import FITTED, BankConfig, Fifo
from fastmc.views.draw import BASIC_KEY, BASIC_QUERY
from kernels.ranges import part

RECIPE = {
    "crop_ratio_min": 1.0,
    "jitter_probability": 0.0,
    "shear": 1.0,
    "reverse_probability": 0.5,
    "centre_joint": 1,
}


@dataclass(frozen=True)
class ASCALConfig(BankConfig):
    """Bank and loss. The defaults are those of the released script."""

    bank_size: Count = 16384
    """K, entries of the bank."""
    temperature: Positive = 0.06
    """tau of the loss."""
    ema: Probability = 0.999
    """The key encoder follows the query encoder."""
    first_epoch: Literal["trains", "fills"] = "trains"
    """fills: the first epoch only fills the bank, as in the released code."""

    def __post_init__(self) -> None:
        check_ranges(self)


def ascal_losses(f1: Tensor, f0: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """The loss of each clip (B,): plain dot products of f1 with f0, a constant, and the rows of the bank.

    Plain PyTorch: (B, K) is 2 MB at the published sizes.

    Args:
        f1, f0: (B, H). bank: (K, H).
    """
    positive = (f1 * f0).sum(1, keepdim=True)
    logits = torch.cat((positive, f1 @ bank.T), dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(f1), dtype=torch.int64, device=f1.device), reduction="none")


class ASCAL(Method):
    """Query and key encoder without a head, and a bank first in, first out.

    The encoder's head is not used; it stays as it was drawn, but for weight decay.
    """

    Config = ASCALConfig
    presets = FITTED
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
    views = (View(BASIC_KEY), View(BASIC_QUERY))
    metrics = (
        LOSS,
        Metric("top1", "contrastive top-1 of f₁", "top1", "share", ".0%"),
        Metric("positive_probability", "probability of the positive", "p+", "share"),
        # No length is fixed: this is no spread that 1/sqrt(D) could be held against.
        Metric("deviation", "std of representation elements", "std", "share", ".4f"),
    )
    brief = frozenset({"fill"})
    config: ASCALConfig

    def __init__(self, config: ASCALConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.query = setup.new_encoder()
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        width = self.query.representation_dim
        self.bank = Fifo(config.bank_size, width)
        bound = sqrt(3 / width)
        self.bank.entries.uniform_(-bound, bound)

    def followers(self) -> dict[str, tuple[nn.Module, Follow]]:
        return {"key": (self.key, Follow("query", self.config.ema))}

    def phase(self, clips_seen: int, epoch: int) -> str:
        """fill: the bank takes keys in, and nothing learns."""
        return "fill" if self.config.first_epoch == "fills" and epoch == 0 else "main"

    def step(self, batch: Batch, networks: Mapping[str, Any], phase: str) -> Found:
        with part("augment"):
            x = batch.make(*self.views)
        with part("key"), torch.no_grad():
            f0 = networks["key"].represent(x[0])
        with part("query"):
            f1 = networks["query"].represent(x[1])
        f0, f1 = (f.to(working_dtype(f)) for f in (f0, f1))
        # Clips do not see each other: each rank has the losses of its own, and the keys of all go to the bank.
        losses = ascal_losses(f1, f0, self.bank.entries, self.config.temperature)
        nearest = (f1.detach() @ self.bank.entries.T).amax(1)
        is_first = (f1.detach() * f0).sum(1) > nearest
        losses, is_first, f0, f1 = batch.gather(losses, is_first.to(losses.dtype), f0, f1.detach())
        loss = losses.mean()
        seen = {"loss": loss.detach(), "top1": is_first.mean()}
        seen |= {"positive_probability": (-losses.detach()).exp().mean(), "deviation": f1.std(0, correction=0).mean()}
        return Found(loss, (), None, seen, tuple(chain(self.bank.writes(f0))), learns=phase != "fill")
