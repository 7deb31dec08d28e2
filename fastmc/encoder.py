"""The skeleton encoder: input normalisation, a GRU in both readings of fastmc.recurrent, a projection head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.arguments import working_dtype
from fastmc.checks import Count, check_ranges
from fastmc.recurrent import SequenceGRU, StepwiseGRU

Reading = Literal["sequence", "stepwise"]


@dataclass(frozen=True)
class EncoderConfig:
    """BiGRU encoder. ``3x1024`` is what the works that the paper follows use (45M parameters in the GRU), ``3x512`` has
    11.5M, near the 10.0M of the paper's table."""

    encoder: str = "3x1024"
    """Layers x hidden units per direction."""
    reading: Reading = "sequence"
    """sequence: a bidirectional GRU over the clip, the feature joins both final states. stepwise: as earlier released
    codes compute it, two GRUs per layer that both run forward in time."""
    input_norm: bool = True
    """Batch normalisation of the input channels, with statistics per view."""
    feature_dim: Count = 128
    """D, the size of the contrastive features."""

    def __post_init__(self) -> None:
        check_ranges(self)
        _ = self.size

    @property
    def size(self) -> tuple[int, int]:
        """(layers, hidden)."""
        layers, _, hidden = self.encoder.partition("x")
        if not (layers.isdigit() and hidden.isdigit() and int(layers) and int(hidden)):
            raise ValueError(f"encoder must be LAYERSxHIDDEN, such as 3x1024, got {self.encoder!r}")
        return int(layers), int(hidden)


class ViewNorm(nn.BatchNorm1d):
    """Batch normalisation of (views * B, T, F) over batch and time, each view with statistics of its own: a view's
    features do not depend on which other views share the call."""

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        normalised = [super(ViewNorm, self).forward(view.flatten(0, 1)).view_as(view) for view in x.chunk(views)]
        return torch.cat(normalised) if views > 1 else normalised[0]

    def standardise(self, x: Tensor, views: int = 1) -> Tensor:
        """The same, running statistics included, but without weight and bias."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(views)
        mean, var, momentum = self.running_mean, self.running_var, self.momentum or 0.0
        normalised = [
            F.batch_norm(view.flatten(0, 1), mean, var, training=True, momentum=momentum, eps=self.eps).view_as(view)
            for view in x.chunk(views)
        ]
        return torch.cat(normalised) if views > 1 else normalised[0]


class Encoder(nn.Module):
    """Skeleton clips (B, T, F), F = V * M * 3, to unit features f (B, D)."""

    def __init__(self, config: EncoderConfig, input_size: int) -> None:
        super().__init__()
        layers, hidden = config.size
        self.input_size = input_size
        self.norm = ViewNorm(input_size) if config.input_norm else None
        recurrent = SequenceGRU if config.reading == "sequence" else StepwiseGRU
        self.recurrent = recurrent(input_size, hidden, layers)
        self.representation_dim = 2 * hidden
        self.head = nn.Sequential(
            nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(inplace=True), nn.Linear(2 * hidden, config.feature_dim)
        )

    def represent(self, x: Tensor, views: int = 1) -> Tensor:
        """Representation before the head (views * B, 2 * hidden): what kNN and the linear classifier see.

        Args:
            x: (views * B, T, F), the views one after the other.
            views: how many views the batch holds; each is normalised on its own.

        Raises:
            ValueError: x has another shape, or is no whole number of views.
        """
        if x.dim() != 3 or x.shape[-1] != self.input_size:
            raise ValueError(f"x must be (B, T, {self.input_size}), got {tuple(x.shape)}")
        if views < 1 or len(x) % views:
            raise ValueError(f"views = {views} does not divide the batch of {len(x)}")
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

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        """Unit features (views * B, D), in float32 at least."""
        return self.after(self.represent(x, views))

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

    def after(self, h: Tensor) -> Tensor:
        """Representations (n, 2 * hidden) to unit features (n, D); lengths are taken in float32 at least."""
        f = self.head(h)
        return F.normalize(f.to(working_dtype(f)), dim=-1)

    def _for_recurrent(self, x: Tensor) -> Tensor:
        """x (B, T, F) in the recurrent net's dtype; for cuDNN its memory holds frames first, in the same pass."""
        if x.device.type == "cpu":
            return x.to(self.dtype)
        return x.transpose(0, 1).to(self.dtype, memory_format=torch.contiguous_format).contiguous().transpose(0, 1)

    @property
    def dtype(self) -> torch.dtype:
        """What the recurrent net and the head compute in."""
        return next(self.head.parameters()).dtype

    def compile_around(self, backend: str = "inductor") -> None:
        """Compile what surrounds the recurrent call. Each function is one graph, or an error."""
        for name in ("before", "standardised", "before_fixed", "after"):
            function = getattr(type(self), name).__get__(self)
            setattr(self, name, torch.compile(function, fullgraph=True, dynamic=False, backend=backend))
