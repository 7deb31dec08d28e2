"""What an encoder of skeleton clips is to the rest: settings, layout of its input, a representation, and a head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.arguments import working_dtype
from fastmc.checks import Count, Whole, check_ranges
from fastmc.encoders.norm import exchanges


class ClipShape(NamedTuple):
    """What an encoder is built for: clips of T frames of M bodies of V joints, and the joints that these hang on.

    ``parents``: V indices, a root is its own parent; empty where the bones are unknown. ``centre_joint``: the joint
    that has been subtracted from all of its body, which whoever makes clips does; None for none.
    """

    joints: int
    bodies: int
    frames: int = 64
    parents: tuple[int, ...] = ()
    centre_joint: int | None = None

    @property
    def width(self) -> int:
        """Numbers of a frame, V * M * 3."""
        return self.joints * self.bodies * 3


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Settings that every encoder has; its own class adds those of its kind. Each becomes a flag of train.run."""

    feature_dim: Count = 128
    """D, the size of the contrastive features."""
    head_width: Whole = 0
    """Numbers between the two layers of the projection head; 0: as many as the representation has."""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def says(self) -> str:
        """Kind and size of the encoder, for people."""
        return type(self).__name__.removesuffix("Config")


class Encoder(nn.Module):
    """An encoder: clips to a representation h, and by its head to unit features f.

    A new kind is one file with a subclass: ``__init__`` builds it and sets ``representation_dim`` and `mlp_head`, and
    ``body`` computes. Its clips come as ``layout`` says: "sequence", (n, T, V * M * 3) with the coordinates of a joint
    next to each other and the bodies of a joint before the next joint; or "graph", (n, 3, T, V, M).

    Attributes:
        Config: class of its settings. presets: by preset, what of these differs from their defaults.
        in_float32: names of the parts that stay in float32 in mixed precision. Batch norms do in any case.
        compiled: names of the functions that torch.compile takes, each whole; none by default.
        sums_absent: of a gradient to clips, only its sum over the absent bodies of a view is wanted. Their bodies may
            then be one row of the network while weights learn too, and are absent where they are the view's emptiest.
        shape: of the clips. representation_dim: H, what kNN and the linear classifier see.
        head: h (n, H) to features (n, D) before they get unit length; a method may set another one.
    """

    Config: ClassVar[type[EncoderConfig]] = EncoderConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    layout: ClassVar[Literal["sequence", "graph"]] = "sequence"
    in_float32: ClassVar[tuple[str, ...]] = ()
    compiled: ClassVar[tuple[str, ...]] = ()
    sums_absent: bool = False
    representation_dim: int
    head: nn.Module

    def __init__(self, config: EncoderConfig, shape: ClipShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape

    def body(self, x: Tensor, views: int) -> Tensor:
        """Representations (n, H) of clips in this encoder's layout: ``views`` views of n / views clips, one after the
        other; what takes statistics of a batch has to take them of each view on its own."""
        raise NotImplementedError(f"{type(self).__name__} has no body")

    def represent(self, x: Tensor, views: int = 1) -> Tensor:
        """Representation before the head (n, H): what kNN and the linear classifier see.

        Args:
            x: (n, T, V * M * 3), the views one after the other.
            views: how many views the batch holds.

        Raises:
            ValueError: x has another shape, or is no whole number of views.
        """
        if x.dim() != 3 or x.shape[-1] != self.shape.width:
            raise ValueError(f"x must be (B, T, {self.shape.width}), got {tuple(x.shape)}")
        if views < 1 or len(x) % views:
            raise ValueError(f"views = {views} does not divide the batch of {len(x)}")
        if self.layout == "graph":
            x = x.unflatten(2, (self.shape.joints, self.shape.bodies, 3)).permute(0, 4, 1, 2, 3)
        return self.body(x, views)

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        """Unit features (n, D), in float32 at least."""
        return self.after(self.represent(x, views))

    def after(self, h: Tensor) -> Tensor:
        """Representations (n, H) to unit features (n, D); lengths are taken in float32 at least."""
        return unit(self.head(h))

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Within: clips do not influence each other, no statistic changes, and no weight asks for a gradient."""
        training, learning = self.training, [p for p in self.parameters() if p.requires_grad]
        self.eval().requires_grad_(False)
        for part in self.modules():
            if isinstance(part, nn.RNNBase):  # cuDNN refuses the backward of one in evaluation mode
                part.train()
        try:
            yield
        finally:
            self.train(training)
            for parameter in learning:
                parameter.requires_grad_()

    def compile_around(self, backend: str = "inductor") -> list[str]:
        """Compile what of the encoder torch.compile may enter. Each function is one graph, or an error.

        Returns:
            Those of ``compiled`` that stay as they are, since norms within exchange statistics with other ranks.
        """
        left = [name for name in self.compiled if self._exchanges(name)]
        for name in self.compiled:
            if name not in left:
                function = getattr(type(self), name).__get__(self)
                setattr(self, name, torch.compile(function, fullgraph=True, dynamic=False, backend=backend))
        return left

    def _exchanges(self, name: str) -> bool:
        """Whether norms within this function of ``compiled`` do: of `after` those of the head, of others the rest."""
        if name == "after":
            return exchanges(self.head)
        return any(exchanges(part) for path, part in self.named_children() if path != "head")

    @property
    def has_own_threads(self) -> bool:
        """Whether its large parts are kernels of `kernels.cpu`, so that PyTorch's operators need but one thread."""
        return False

    @property
    def dtype(self) -> torch.dtype:
        """What the encoder computes in, but for its parts in float32."""
        return next(self.head.parameters()).dtype


def size_of(text: str, form: str, example: str) -> tuple[int, ...]:
    """The numbers of ``--encoder``, such as (3, 1024) of 3x1024; ValueError unless it has the form, such as
    LAYERSxHIDDEN, with numbers from 1."""
    words = text.split("x")
    if len(words) != len(form.split("x")) or not all(word.isdigit() and int(word) for word in words):
        raise ValueError(f"encoder must be {form}, such as {example}, got {text!r}")
    return tuple(map(int, words))


def mlp_head(representation_dim: int, feature_dim: int, width: int = 0) -> nn.Sequential:
    """The projection head of this family: H to ``width``, ReLU, to D; a width of 0 is H."""
    width = width or representation_dim
    return nn.Sequential(nn.Linear(representation_dim, width), nn.ReLU(inplace=True), nn.Linear(width, feature_dim))


def unit(f: Tensor) -> Tensor:
    """Features (..., D) of unit length, in float32 at least."""
    return F.normalize(f.to(working_dtype(f)), dim=-1)
