"""The paper's encoder: input normalisation, a bidirectional GRU in either reading, and a projection head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmc.encoders.base import ClipShape, Encoder, EncoderConfig, mlp_head, size_of
from fastmc.encoders.norm import ViewNorm
from fastmc.encoders.recurrent import SequenceGRU, StepwiseGRU

Reading = Literal["sequence", "stepwise"]


@dataclass(frozen=True)
class BiGRUConfig(EncoderConfig):
    """BiGRU encoder. ``3x1024`` is what the works that the paper follows use (45M parameters in the GRU), ``3x512`` has
    11.5M, near the 10.0M of the paper's table."""

    encoder: str = "3x1024"
    """Layers x hidden units per direction."""
    reading: Reading = "sequence"
    """sequence: a bidirectional GRU over the clip, the feature joins both final states. stepwise: as earlier released
    codes compute it, two GRUs per layer that both run forward in time."""
    input_norm: bool = True
    """Batch normalisation of the input channels, with statistics per view."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.size

    @property
    def says(self) -> str:
        """Such as BiGRU 3x1024."""
        return f"BiGRU {self.encoder}"

    @property
    def size(self) -> tuple[int, int]:
        """(layers, hidden)."""
        layers, hidden = size_of(self.encoder, "LAYERSxHIDDEN", "3x1024")
        return layers, hidden


class BiGRU(Encoder):
    """Skeleton clips (B, T, F), F = V * M * 3, to unit features f (B, D); H is twice the hidden units."""

    Config = BiGRUConfig
    presets: ClassVar = {"small": {"encoder": "1x256"}, "tiny": {"encoder": "1x128"}}
    in_float32 = ("norm",)
    compiled = ("before", "standardised", "before_fixed", "after")

    def __init__(self, config: BiGRUConfig, shape: ClipShape) -> None:
        super().__init__(config, shape)
        layers, hidden = config.size
        self.norm = ViewNorm(shape.width) if config.input_norm else None
        recurrent = SequenceGRU if config.reading == "sequence" else StepwiseGRU
        self.recurrent = recurrent(shape.width, hidden, layers)
        self.representation_dim = 2 * hidden
        self.head = mlp_head(self.representation_dim, config.feature_dim, config.head_width)

    def body(self, x: Tensor, views: int) -> Tensor:
        """Representations (n, 2 * hidden): the final states of both directions."""
        by_batch = self.norm is not None and self.norm.training
        if by_batch and self._folds(x):
            assert self.norm is not None
            return self.recurrent(self.standardised(x, views), (self.norm.weight, self.norm.bias))
        # One eager call: torch.compile would unroll it over time, and cuDNN's single call is faster.
        return self.recurrent(self.before(x, views) if by_batch else self.before_fixed(x))

    def _folds(self, x: Tensor) -> bool:
        """Whether the input norm's weight and bias go into the first layer's weights: on a CPU, for inputs that need no
        gradient. Theirs then follow from that of the weights: a tiny step is 1.06 times as fast."""
        assert self.norm is not None
        return x.device.type == "cpu" and not x.requires_grad and x.dtype == self.dtype == self.norm.weight.dtype

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Within: normalise by the running statistics, which do not change, so that clips do not influence each other.

        The recurrent net's weights are constants, so that a gradient of the input costs none of theirs. Only the input
        norm is put into evaluation mode: cuDNN refuses the backward of a recurrent net that is.
        """
        training, learning = self.training, [p for p in self.recurrent.parameters() if p.requires_grad]
        self.train()
        if self.norm is not None:
            self.norm.eval()
        self.recurrent.requires_grad_(False)
        try:
            yield
        finally:
            self.train(training)
            for parameter in learning:
                parameter.requires_grad_()

    @property
    def has_own_threads(self) -> bool:
        return self.recurrent.chosen(next(self.recurrent.parameters())) == "cpp"

    # What surrounds the recurrent call, in functions that torch.compile takes whole

    def before(self, x: Tensor, views: int) -> Tensor:
        """x normalised by each view's own statistics, in the recurrent net's dtype."""
        assert self.norm is not None
        return self._for_recurrent(self.norm(x, views))

    def standardised(self, x: Tensor, views: int) -> Tensor:
        """x as `before` gives it, without the input norm's weight and bias."""
        assert self.norm is not None
        return self.norm.standardise(x, views)

    def before_fixed(self, x: Tensor) -> Tensor:
        """x normalised by the running statistics, whose layer gets no gradient, in the recurrent net's dtype."""
        norm = self.norm
        if norm is None:
            return self._for_recurrent(x)
        weight, bias = norm.weight.detach(), norm.bias.detach()
        x = F.batch_norm(x.flatten(0, 1), norm.running_mean, norm.running_var, weight, bias, eps=norm.eps).view_as(x)
        return self._for_recurrent(x)

    def _for_recurrent(self, x: Tensor) -> Tensor:
        """x (B, T, F) in the recurrent net's dtype; for cuDNN its memory holds frames first, in the same pass."""
        if x.device.type == "cpu":
            return x.to(self.dtype)
        return x.transpose(0, 1).to(self.dtype, memory_format=torch.contiguous_format).contiguous().transpose(0, 1)

    def _exchanges(self, name: str) -> bool:
        return name != "before_fixed" and super()._exchanges(name)
