"""A²MC, and the rows of the paper's table 6 that lead to it: query and key encoder, attack, bank and loss (figure
2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastmc.checks import Count, NotNegative, Positive, Probability, Whole, check_ranges
from fastmc.encoders.base import Encoder
from fastmc.methods.attack import AttackHead, attack
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
from fastmc.objective.bank import MemoryBank, mixing_coefficients
from fastmc.objective.contrast_step import MCStep
from fastmc.random import keyed_generator
from fastmc.views.draw import BASIC_KEY, BASIC_QUERY, STRONG, WEAK
from fastmc.views.layout import to_stream
from kernels.ranges import part

OF_CLIPS, OF_ATTACKED = (BASIC_KEY, BASIC_QUERY), (WEAK, STRONG)
X0, X3 = (View(number) for number in OF_CLIPS)
X1, X2 = (View(number, strong=number == STRONG, of="given") for number in OF_ATTACKED)

TERMS = (
    "InfoNCE of the attacked, weakly augmented view: its feature is to find the key of the same clip among the bank. "
    "0 while the bank fills, and without the attack.",
    "Of the attacked, strongly augmented view: it is to be as similar to everything in the bank as the basic view is "
    "(MC loss), or to find the key itself (b2). 0 while the bank fills, and without the attack.",
    "InfoNCE of the basic view: its feature is to find the key of the same clip among the bank.",
)
"""The parts of the loss, in plain words."""


@dataclass(frozen=True)
class A2MCConfig(BankConfig):
    """Bank, loss and attack. The defaults are those of paper section 4.2."""

    in_epochs = ("mixing_from",)
    bank_size: Count = 16384
    """K, entries of the bank."""
    temperature: Positive = 0.07
    """tau of the loss."""
    bank_temperature: Positive = 0.03
    """The lower temperature of the bank's own gradient."""
    bank_lr: NotNegative = 3.0
    """beta, the learning rate of the bank (eq. 7)."""
    bank_momentum: Probability = 0.9
    """Momentum of the bank's ascent."""
    bank_weight_decay: NotNegative = 1e-4
    """Weight decay of the bank."""
    mixing: str = "cycle"
    """Mixing coefficients lambda of eq. 8. cycle: a quarter of the entries each at 0.4, 0.3, 0.2, 0.1; fixed:0.3, say;
    draw: one of the four for all entries, drawn anew at every step."""
    mixing_from: Whole = 0
    """Epochs before entries are mixed; until then the MC loss is over the bank alone, which learns."""
    mix: Literal["own", "tiled"] = "own"
    """own: each sample's bank is mixed with its own feature, as eq. 8 reads; tiled: entry i with that of sample
    i mod B, as released codes of this family do."""
    ema: Probability = 0.999
    """alpha of eq. 4: the key encoder follows the query encoder."""
    attack_lr: Positive = 0.1
    """epsilon, the learning rate of the one Adam step."""
    attack_norm: Positive = 0.5
    """eta, the largest L2 norm of the perturbation of a clip, metres."""
    attack_classes: Count = 128
    """C, the outputs of the fixed random fully-connected layer."""

    @property
    def says(self) -> str:
        return super().says + (f", mixed from epoch {self.mixing_from + 1} on" if self.mixing_from else "")

    def __post_init__(self) -> None:
        check_ranges(self)
        try:
            mixing_coefficients(1, self.mixing, generator=torch.Generator())
        except ValueError as error:
            raise ValueError(f"mixing: {error}") from None


class Features(NamedTuple):
    """Unit features f0..f3, each (B, D), of the four views; f1 and f2 are None where the method has no such view."""

    f0: Tensor
    f1: Tensor | None
    f2: Tensor | None
    f3: Tensor

    def gathered(self, batch: Batch) -> Features:
        """Those of the clips of all ranks."""
        there = {name: f for name, f in self._asdict().items() if f is not None}
        return self._replace(**dict(zip(there, batch.gather(*there.values()), strict=True)))


class A2MC(Method):
    """The whole method: views x1 and x2 of attacked clips, MC loss, mixed and learned bank.

    Attributes:
        query, key: the encoders theta_q and theta_k.
        bank: M_0.
        attack_head: the fixed FC of eq. 5.
        coefficients: lambda of eq. 8, (K,).
        attacks, objective, mixes, learns_bank: what the rows of table 6 differ in.
    """

    Config = A2MCConfig
    # Found by trying on UTD-MHAD and MSR-Action3D: docs/results.md.
    presets: ClassVar = {preset: {**values, "attack_norm": 2.0} for preset, values in FITTED.items()}
    # Each launch writes two neighbours, and the queries are neighbours too.
    views = (X0, X3, X1, X2)
    metrics = (
        LOSS,
        *(Metric(f"l{i}", f"L{i}", f"L{i}", "term", help=tells) for i, tells in enumerate(TERMS, start=1)),
        top1_of("f₃"),
        POSITIVE,
        SPREAD,
    )
    attacks, objective, mixes, learns_bank = True, "mc", True, True

    config: A2MCConfig
    coefficients: Tensor

    def __init__(self, config: A2MCConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.query = setup.new_encoder()
        self.attack_head = AttackHead(self.query.representation_dim, config.attack_classes)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        generator = torch.Generator().manual_seed(setup.seed)
        self.bank = MemoryBank(config.bank_size, setup.encoder.feature_dim, generator=generator)
        policy = mixing_coefficients(config.bank_size, config.mixing, generator=generator)
        self.register_buffer("coefficients", policy, persistent=False)

    @property
    def overlaps(self) -> bool:  # type: ignore[override]
        """The key encoder computes beside the attack."""
        return self.attacks

    def followers(self) -> dict[str, tuple[nn.Module, Follow]]:
        return {"key": (self.key, Follow("query", self.config.ema))}

    def phase(self, clips_seen: int, epoch: int) -> str:
        """fill: the bank is not yet full of f0, so a step is plain InfoNCE that writes f0 to it. unmixed: entries are
        not mixed yet."""
        if clips_seen < self.config.bank_size:
            return "fill"
        return "unmixed" if self.mixes and epoch < self.config.mixing_from else "main"

    def prepare(self, step: int) -> None:
        """The coefficients, where they are drawn anew at every step."""
        if self.config.mixing == "draw":
            generator = keyed_generator(self.setup.seed, step)
            # A number, not a vector: it goes with the launch, and nothing is copied to the device.
            self.coefficients.fill_(mixing_coefficients(1, "draw", generator=generator).item())

    def step(self, batch: Batch, networks: Mapping[str, Encoder], phase: str) -> Found:
        filling = phase == "fill"
        f = self.features(batch, networks["query"], networks["key"], attacks=self.attacks and not filling)
        f = f.gathered(batch)
        f = f._replace(f0=batch.guard(f.f0))
        found = self.contrast_step_(f, self.mixing if phase == "main" else None, filling=filling)
        pairs = ((f.f1, found.df1), (f.f2, found.df2), (f.f3, found.df3))
        outputs, gradients = zip(*((x, g) for x, g in pairs if x is not None), strict=True)
        return Found(found.loss, outputs, gradients, (found, f.f3.detach()))

    def measure(self, seen: tuple[MCStep, Tensor]) -> Tensor:
        found, f3 = seen
        losses = torch.stack((found.loss, found.l1, found.l2, found.l3))
        std = f3.std(dim=0, correction=0).mean()
        return torch.cat((losses, torch.stack((found.top1_count / len(f3), found.positive_probability, std))))

    def restored(self) -> list[Tensor]:
        """The running statistics of the input norms: the bank is left alone where the loss is not finite, and where a
        gradient overflows alone it has made its update rightly."""
        return [*self.query.buffers(), *self.key.buffers()]

    def features(self, batch: Batch, query: Encoder, key: Encoder, *, attacks: bool) -> Features:
        """f0..f3 of a batch; f1 and f2 (attack-augmentation, section 3.2) only where it ``attacks``."""
        queries = batch.x[1:] if attacks else batch.x[1:2]
        with part("augment"):
            x0, _ = batch.make(X0, X3)
        # The key encoder does not depend on the attack. Without one there is nothing to compute beside it.
        with batch.beside(attacks), part("key"), torch.no_grad():
            f0 = key(x0)
        if attacks:
            with part("attack"):
                attacked = self.attacked(batch, query)
            with part("augment"):
                batch.make(X1, X2, of=attacked)
            batch.join()
        with part("query"):
            f3, *hard = query(queries.flatten(0, 1), views=len(queries)).chunk(len(queries))
        f1, f2 = hard if attacks else (None, None)
        return Features(f0, f1, f2, f3)

    def attacked(self, batch: Batch, query: Encoder | None = None) -> Tensor:
        """x_hat of eq. 6, joint coordinates (B, T, V * M * 3): the whole clips resized to T frames, then attacked.

        ``query``: what computes in place of the query encoder.
        """
        encoder, setup = query or self.query, self.setup

        def classify(x: Tensor) -> Tensor:
            h = encoder.represent(to_stream(x, setup.stream, setup.skeleton))
            return self.attack_head(h.to(self.attack_head.weight.dtype))

        x = batch.whole()
        with encoder.fixed():
            return attack(
                x,
                classify,
                bodies=setup.max_bodies,
                lr=self.config.attack_lr,
                limit=self.config.attack_norm,
                impl=setup.impl,
            )

    @property
    def mixing(self) -> Tensor | None:
        """The coefficients lambda (K,) as they are now; None where the method does not mix."""
        return self.coefficients if self.mixes else None

    def contrast_step_(self, f: Features, mixing: Tensor | None, *, filling: bool) -> MCStep:
        """Loss of this method with its gradients and metrics, then the bank's update.

        A bank that does not learn yet (``filling``) or ever takes f0 in, first in, first out.
        """
        c = self.config
        with part("mc"):
            return self.bank.mc_step_(
                f.f0,
                f.f1,
                f.f2,
                f.f3,
                mixing,
                temperature=c.temperature,
                bank_temperature=c.bank_temperature,
                lr=c.bank_lr,
                momentum_factor=c.bank_momentum,
                weight_decay=c.bank_weight_decay,
                mix=c.mix,
                objective="info_nce" if filling else self.objective,
                update="ascent" if self.learns_bank and not filling else "fifo",
                impl=self.setup.impl,
                precision=self.setup.precision,
            )


class B3(A2MC):
    """Table 6: the MC loss, without mixing, on a bank that takes f0 in first in, first out."""

    mixes = learns_bank = False


class B2(B3):
    """Table 6: InfoNCE of x3 and of the attacked views x1 and x2."""

    objective = "info_nce"


class B1(B2):
    """Table 6: InfoNCE of x3 alone, which is the loss of SkeletonCLR."""

    attacks = False
