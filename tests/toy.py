"""A method and an encoder as a user would write them, outside of the package: `tests/test_plugins.py`."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.checks import Count, Positive, Probability, check_ranges
from fastmc.encoders.base import ClipShape, Encoder, EncoderConfig, mlp_head
from fastmc.methods.base import LOSS, SPREAD, Batch, Follow, Found, Method, MethodConfig, Metric, Setup, View


@dataclass(frozen=True)
class ToyConfig(MethodConfig):
    """A predictor of the key's features, with a queue of them for negatives."""

    toy_queue: Count = 64
    """Rows of the queue."""
    toy_temperature: Positive = 0.2
    """Of the softmax."""
    toy_ema: Probability = 0.9
    """Of the key encoder."""

    def __post_init__(self) -> None:
        check_ranges(self)


class ToyMethod(Method):
    Config = ToyConfig
    presets: ClassVar = {"tiny": {"toy_queue": 32}}
    views = (View(0), View(5, strong=True))
    metrics = (LOSS, Metric("agreement", "cosine of the pair", "cos", "share"), SPREAD)
    config: ToyConfig

    def __init__(self, config: ToyConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self.query = setup.new_encoder()
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.predictor = nn.Linear(setup.encoder.feature_dim, setup.encoder.feature_dim)
        self.register_buffer("queue", F.normalize(torch.randn(config.toy_queue, setup.encoder.feature_dim), dim=1))

    def learners(self) -> dict[str, nn.Module]:
        return {"query": self.query, "predictor": self.predictor}

    def followers(self) -> dict[str, tuple[nn.Module, Follow]]:
        return {"key": (self.key, Follow("query", self.config.toy_ema))}

    def step(self, batch: Batch, networks: dict[str, nn.Module], phase: str) -> Found:
        x = batch.make(self.views[0])[0], batch.make(self.views[1])[0]
        with torch.no_grad():
            keys = networks["key"](x[0])
        keys, f = batch.gather(keys, F.normalize(networks["predictor"](networks["query"](x[1])), dim=1))
        logits = torch.cat([f @ keys.T, f @ self.queue.T], dim=1) / self.config.toy_temperature
        loss = F.cross_entropy(logits, torch.arange(len(f), device=f.device))
        queue = torch.cat([keys, self.queue])[: len(self.queue)]
        agreement, std = (f * keys).sum(1).mean().detach(), f.detach().std(0).mean()
        return Found(
            loss, (), None, {"loss": loss.detach(), "agreement": agreement, "feature_std": std}, ((self.queue, queue),)
        )


@dataclass(frozen=True)
class ToyEncoderConfig(EncoderConfig):
    toy_width: Count = 16
    """Channels of the convolution."""


class ToyEncoder(Encoder):
    """A convolution over the frames of each body's joints, averaged."""

    Config = ToyEncoderConfig
    layout = "graph"

    def __init__(self, config: ToyEncoderConfig, shape: ClipShape) -> None:
        super().__init__(config, shape)
        self.convolution = nn.Conv2d(3, config.toy_width, (5, 1), padding=(2, 0))
        self.representation_dim = config.toy_width * shape.joints
        self.head = mlp_head(self.representation_dim, config.feature_dim, config.head_width)

    def body(self, x: Tensor, views: int) -> Tensor:
        n, _, t, v, m = x.shape
        h = self.convolution(x.permute(0, 4, 1, 2, 3).reshape(n * m, 3, t, v)).relu()
        return h.mean(dim=2).unflatten(0, (n, m)).mean(dim=1).flatten(1)
