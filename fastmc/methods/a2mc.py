"""A²MC: query and key encoder, attack, bank and loss, put together for one pre-training step (paper figure 2)."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastmc.checks import Count, NotNegative, Positive, Probability, check_ranges
from fastmc.encoders.bigru import Encoder, EncoderConfig
from fastmc.methods.attack import AttackConfig, AttackHead, attack
from fastmc.methods.streams import Beside
from fastmc.objective.bank import MemoryBank, mixing_coefficients
from fastmc.objective.contrast_step import MCStep
from fastmc.random import keyed_generator
from fastmc.skeleton import Skeleton
from fastmc.views.clips import DenseClips, PackedClips, Stream, ViewImpl
from fastmc.views.draw import BASIC_KEY, BASIC_QUERY, STRONG, WEAK, AugmentConfig, draw_params
from fastmc.views.make import make_views, to_stream, whole_clips
from kernels.ranges import part

Method = Literal["a2mc", "b1", "b2", "b3"]
OF_CLIPS, OF_ATTACKED = (BASIC_KEY, BASIC_QUERY), (WEAK, STRONG)


@dataclass(frozen=True)
class ContrastConfig:
    """Loss and bank. The defaults are those of paper section 4.2."""

    method: Method = "a2mc"
    """Row of table 6. b1: x0, x3, InfoNCE, FIFO bank; b2: + attack and views x1, x2; b3: + MC loss; a2mc: + mixing
    and the learned bank."""
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
    mix: Literal["own", "tiled"] = "own"
    """own: each sample's bank is mixed with its own feature, as eq. 8 reads; tiled: entry i with that of sample
    i mod B, as released codes of this family do."""
    ema: Probability = 0.999
    """alpha of eq. 4: the key encoder follows the query encoder."""
    impl: Literal["auto", "triton", "torch", "reference"] = "auto"
    """Implementation of loss, bank step and attack. auto: triton where it can run, torch elsewhere."""
    precision: Literal["bf16x3", "ieee", "bf16"] = "bf16x3"
    """Products of triton's loss and bank step. bf16x3: operands as sums of two bfloat16 numbers, about 16 bits; ieee:
    float32, slower; bf16: rounded to bfloat16, which moves probabilities by percents."""

    def __post_init__(self) -> None:
        check_ranges(self)
        try:
            mixing_coefficients(1, self.mixing, generator=torch.Generator())
        except ValueError as error:
            raise ValueError(f"mixing: {error}") from None

    @property
    def attacks(self) -> bool:
        """Whether there are views x1 and x2, of attacked clips."""
        return self.method != "b1"

    @property
    def learns_bank(self) -> bool:
        return self.method == "a2mc"


class Features(NamedTuple):
    """Unit features f0..f3, each (B, D), of the four views; f1 and f2 are None where the method has no such view."""

    f0: Tensor
    f1: Tensor | None
    f2: Tensor | None
    f3: Tensor


class A2MC(nn.Module):
    """Everything that a pre-training run learns or keeps.

    Attributes:
        query, key: the encoders theta_q and theta_k.
        bank: M_0.
        attack_head: the fixed FC of eq. 5.
        coefficients: lambda of eq. 8, (K,).
    """

    coefficients: Tensor

    def __init__(
        self,
        skeleton: Skeleton,
        max_bodies: int,
        *,
        encoder: EncoderConfig,
        augment: AugmentConfig,
        attack: AttackConfig,
        contrast: ContrastConfig,
        stream: Stream = "joint",
        frames: int = 64,
        seed: int = 0,
        view_impl: ViewImpl = "auto",
    ) -> None:
        super().__init__()
        self.skeleton, self.max_bodies, self.stream, self.frames, self.seed = skeleton, max_bodies, stream, frames, seed
        self.augment_config, self.attack_config, self.contrast = augment, attack, contrast
        self.view_impl = view_impl
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query = Encoder(encoder, input_size=skeleton.num_joints * max_bodies * 3)
            self.attack_head = AttackHead(self.query.representation_dim, attack.attack_classes)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.bank = MemoryBank(contrast.bank_size, encoder.feature_dim, generator=generator)
        policy = mixing_coefficients(contrast.bank_size, contrast.mixing, generator=generator)
        self.register_buffer("coefficients", policy, persistent=False)

    def views(
        self,
        clips: PackedClips,
        sample: Tensor,
        step: Tensor | int,
        views: tuple[int, ...],
        *,
        attacked: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """Views (W, B, T, V * M * 3) of each clip, by their numbers 0..3, in this run's stream.

        Args:
            sample: (B,) int64, the clips' ids.
            step: as in `features`.
            attacked: (B, T, V * M * 3), the attacked clips, if the views are to be made of them.
            out: where to write them.
        """
        params = draw_params(
            self.augment_config,
            clips.num_frames,
            self.skeleton.num_joints,
            views=views,
            seed=self.seed,
            step=step,
            sample=sample,
            resized_to=None if attacked is None else self.frames,
            impl=self.view_impl,
        )
        source = clips if attacked is None else DenseClips(attacked, clips.num_bodies, clips.max_bodies)
        size, impl = self.frames, self.view_impl
        return make_views(source, params, self.skeleton, size=size, stream=self.stream, out=out, impl=impl)

    def room_for_views(self, batch: int) -> Tensor:
        """Uninitialised memory (4, B, T, V * M * 3) for the views of a batch, float32 beside the model: x0, x3, then
        x1, x2, so that each launch writes two neighbours, and the queries are neighbours too."""
        width = self.skeleton.num_joints * self.max_bodies * 3
        return torch.empty(4, batch, self.frames, width, device=self.coefficients.device)

    def attacked(self, clips: PackedClips, query: Encoder | None = None) -> Tensor:
        """x_hat of eq. 6, joint coordinates (B, T, V * M * 3): the whole clips resized to T frames, then attacked.

        ``query``: what computes in place of the query encoder.
        """
        encoder = query or self.query

        def classify(x: Tensor) -> Tensor:
            h = encoder.represent(to_stream(x, self.stream, self.skeleton))
            return self.attack_head(h.to(self.attack_head.weight.dtype))

        x = whole_clips(clips, self.skeleton, self.frames, impl=self.view_impl)
        with encoder.fixed():
            return attack(x, classify, self.attack_config, bodies=self.max_bodies, impl=self.contrast.impl)

    def features(
        self,
        clips: PackedClips,
        sample: Tensor,
        step: Tensor | int,
        *,
        hard_positives: bool,
        encoders: tuple[Encoder, Encoder] | None = None,
        out: Tensor | None = None,
        beside: Beside | None = None,
    ) -> Features:
        """f0..f3 of a batch; f1 and f2 (attack-augmentation, section 3.2) only with ``hard_positives``.

        Args:
            sample: (B,) int64, the clips' ids.
            step: its number, which keys the random choices; an int, or () int64.
            encoders: what computes in place of query and key encoder, see `fastmc.encoders.amp`.
            out: `room_for_views`, where the views are written.
            beside: where the key encoder computes while the clips are attacked; it does not depend on that.
        """
        query, key = encoders or (self.query, self.key)
        x = self.room_for_views(len(sample)) if out is None else out
        queries = x[1:] if hard_positives else x[1:2]
        with part("augment"):
            self.views(clips, sample, step, OF_CLIPS, out=x[:2])
        with beside or nullcontext(), part("key"), torch.no_grad():
            f0 = key(x[0])
        if hard_positives:
            with part("attack"):
                attacked = self.attacked(clips, query)
            with part("augment"):
                self.views(clips, sample, step, OF_ATTACKED, attacked=attacked, out=x[2:])
        if beside is not None:
            beside.join()
        with part("query"):
            f3, *hard = query(queries.flatten(0, 1), views=len(queries)).chunk(len(queries))
        f1, f2 = hard if hard_positives else (None, None)
        return Features(f0, f1, f2, f3)

    def draw_mixing_(self, step: int) -> None:
        """The coefficients of this step, where they are drawn anew at every step."""
        if self.contrast.mixing == "draw":
            generator = keyed_generator(self.seed, step)
            # A number, not a vector: it goes with the launch, and nothing is copied to the device.
            self.coefficients.fill_(mixing_coefficients(1, "draw", generator=generator).item())

    @property
    def mixing(self) -> Tensor | None:
        """The coefficients lambda (K,) as they are now; None where the method does not mix."""
        return self.coefficients if self.contrast.method == "a2mc" else None

    def contrast_step_(self, f: Features, mixing: Tensor | None, *, filling: bool) -> MCStep:
        """Loss of this run's method with its gradients and metrics, then the bank's update.

        A bank that does not learn yet (``filling``) or ever takes f0 in, first in, first out.
        """
        c = self.contrast
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
                objective="mc" if c.method in ("b3", "a2mc") and not filling else "info_nce",
                update="ascent" if c.learns_bank and not filling else "fifo",
                impl=c.impl,
                precision=c.precision,
            )
