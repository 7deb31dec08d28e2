"""HiCo: a clip's frames and joints contrasted at several resolutions, across both branches, and as a whole.

Dong, Sun, Liu, Chen, Liu, Zheng and Wang (2023), AAAI, arXiv 2212.02082. With unit features q of the query and k of the
key, each with a bank M of earlier keys, and NCE of a query, its positives and the bank's rows:

    clip      NCE(q of the frames' first level; k of the frames' levels)        part: the same of the joints
    temporal  NCE(q of all frames' levels; k of all joints' levels)             spatial: the other way round
    instance  NCE(q of all levels; k of all levels)

The loss is their sum. Published are views of `AugmentConfig` as it is, which are both basic ones.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastmc.checks import Count, Positive, Probability, check_ranges
from fastmc.contrast_table import Row, Table
from fastmc.encoders.base import Encoder, mlp_head, unit
from fastmc.encoders.s2s import S2S
from fastmc.methods.base import LOSS, SPREAD, Batch, Follow, Found, Method, Metric, Setup, View
from fastmc.methods.fifo import FITTED, BankConfig, Fifo
from fastmc.objective.contrast_step import contrast_step_
from fastmc.views.draw import BASIC_KEY, BASIC_QUERY
from kernels.ranges import part


@dataclass(frozen=True)
class HiCoConfig(BankConfig):
    """Banks and loss. The defaults are those of the released script."""

    bank_size: Count = 2048
    """K, entries of the banks of temporal, spatial and instance. Those of clip and part have K for each level."""
    temperature: Positive = 0.2
    """tau of the loss."""
    ema: Probability = 0.999
    """The key encoder and its projectors follow those of the query."""
    bank_rows_written: Literal["all", "first"] = "all"
    """Rows of the clip and part banks that keys are written to. first: where a write begins is counted modulo K, as in
    the released code, so that most of the rows stay random."""

    def __post_init__(self) -> None:
        check_ranges(self)


class Features(NamedTuple):
    """Unit features: clip and part (B, G, D), those of a query of its first level alone (B, D); temporal, spatial and
    instance (B, D)."""

    clip: Tensor
    part: Tensor
    temporal: Tensor
    spatial: Tensor
    instance: Tensor


TERMS = {
    "clip": "Frames against frames, level by level: a clip's features over time are to find those of its other view.",
    "part": "Joints against joints, level by level: the same of a clip's features over the body.",
    "temporal": "All levels of the frames are to find the joints' of the same clip's other view.",
    "spatial": "All levels of the joints are to find the frames' of the same clip's other view.",
    "instance": "Everything of a clip at once is to find everything of its other view.",
}
"""The parts of the loss, in plain words, in the order of `Features`."""


class Projectors(nn.Module):
    """Those beside the encoder's head, which gives the instance: a clip's and a part's level, and a branch's."""

    def __init__(self, width: int, levels: int, feature_dim: int) -> None:
        super().__init__()
        self.levels = levels
        self.clip, self.part = (mlp_head(width, feature_dim) for _ in range(2))
        self.temporal, self.spatial = (mlp_head(levels * width, feature_dim, width) for _ in range(2))

    def forward(self, h: Tensor, levels: int) -> dict[str, Tensor]:
        """Clip and part (n, levels, D), of the first so many, temporal and spatial (n, D), of a representation (n, 2 *
        self.levels * width)."""
        frames, joints = h.chunk(2, dim=1)
        of_frames, of_joints = (branch.unflatten(1, (self.levels, -1))[:, :levels] for branch in (frames, joints))
        return {
            "clip": unit(self.clip(of_frames)),
            "part": unit(self.part(of_joints)),
            "temporal": unit(self.temporal(frames)),
            "spatial": unit(self.spatial(joints)),
        }


AGAINST = {"clip": "clip", "part": "part", "temporal": "spatial", "spatial": "temporal", "instance": "instance"}
"""Of the query, in the order of `Features`: whose key and bank it meets."""
NCE = Table((Row(0),), unit=False)
"""The rows of the banks enter as they are, at unit length."""


def hico_losses(
    query: Features, key: Features, bank: Mapping[str, Tensor], temperature: float, **how: Any
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The five terms (5,), averaged over the clips, in the order of `Features`, and the gradients of their sum to the
    query's features. ``bank``: rows by the names of `Features`; ``how``: implementation and precision of each step."""
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    for name, other in AGAINST.items():
        rows = bank[other]
        found = contrast_step_(
            rows,
            rows,  # a momentum: nothing is updated
            getattr(key, other),
            [getattr(query, name)],
            NCE,
            temperature=temperature,
            bank_temperature=temperature,
            update="none",
            **how,
        )
        losses.append(found.loss)
        gradients += found.gradients
    return torch.stack(losses), tuple(gradients)


class HiCo(Method):
    """Query and key, each an encoder with five projectors, and a bank for each of these.

    The head of the encoder is the instance's projector. With an encoder other than S2S a ValueError.
    """

    Config = HiCoConfig
    presets = FITTED
    backbone: ClassVar[str] = "s2s"
    run: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "paper": {
            "root": {"frames": 64},
            "encoder": {"dropout": 0.1, "head_width": 512},
            "optim": {
                "optimizer": "sgd",
                "lr": 0.01,
                "weight_decay": 1e-4,
                "batch_size": 64,
                "epochs": 451,
                "milestones": (351,),
            },
        },
        "small": {"encoder": {"head_width": 256}},
        "tiny": {"encoder": {"head_width": 128}},
    }
    views = (View(BASIC_KEY), View(BASIC_QUERY))
    metrics = (
        LOSS,
        *(Metric(f"l_{name}", f"L {name}", name, "term", help=tells) for name, tells in TERMS.items()),
        SPREAD,
    )
    config: HiCoConfig
    bank: Mapping[str, Fifo]

    def __init__(self, config: HiCoConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        query = setup.new_encoder()
        if not isinstance(query, S2S):
            raise ValueError(f"method hico contrasts levels that {setup.encoder.says} has not; give --encoder s2s")
        levels, dim = query.config.levels, query.config.feature_dim
        self.query, self.projectors = query, Projectors(query.config.width, levels, dim)
        for network in (self.query, self.projectors):  # every matrix, as released; the convolution's too
            for weight in network.parameters():
                if weight.dim() > 1:
                    nn.init.xavier_uniform_(weight)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.key_projectors = copy.deepcopy(self.projectors).requires_grad_(False)
        rows, restart = levels * config.bank_size, config.bank_size if config.bank_rows_written == "first" else None
        bank = {
            name: Fifo(rows, dim, restart) if name in ("clip", "part") else Fifo(config.bank_size, dim)
            for name in Features._fields
        }
        self.bank = nn.ModuleDict(bank)  # type: ignore[assignment]

    def learners(self) -> dict[str, nn.Module]:
        return {"query": self.query, "projectors": self.projectors}

    def followers(self) -> dict[str, tuple[nn.Module, Follow]]:
        return {
            "key": (self.key, Follow("query", self.config.ema)),
            "key_projectors": (self.key_projectors, Follow("projectors", self.config.ema)),
        }

    def step(self, batch: Batch, networks: Mapping[str, Any], phase: str) -> Found:
        with part("augment"):
            of_key, of_query = batch.make(*self.views)
        with part("key"), torch.no_grad():
            key = features(networks["key"], networks["key_projectors"], of_key, self.projectors.levels)
        with part("query"):
            query = features(networks["query"], networks["projectors"], of_query, 1)
        query = query._replace(clip=query.clip[:, 0], part=query.part[:, 0])
        bank = {name: bank.entries for name, bank in self.bank.items()}
        features_of_all = batch.gather(*query, *key)
        query, key = Features(*features_of_all[:5]), Features(*features_of_all[5:])
        with part("mc"):
            how = {"impl": self.setup.impl, "precision": self.setup.precision}
            terms, gradients = hico_losses(query, key, bank, self.config.temperature, **how)
        loss = terms.sum()
        writes = [self.bank[name].writes(k.flatten(0, -2)) for name, k in zip(Features._fields, key, strict=True)]
        return Found(loss, tuple(query), gradients, (loss, terms, query.instance.detach()), tuple(chain(*writes)))

    def measure(self, seen: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        loss, terms, instance = seen
        return torch.cat((loss[None], terms, instance.std(dim=0, correction=0).mean()[None]))


def features(encoder: Encoder, projectors: Projectors, x: Tensor, levels: int) -> Features:
    """Those of clips (B, T, V * M * 3), of clip and part the first so many levels."""
    h = encoder.represent(x)
    return Features(**projectors(h, levels), instance=encoder.after(h))
