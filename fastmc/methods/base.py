"""What a pre-training method is to the engine: views, networks, losses, and the names of its numbers.

A method is one file with a subclass of `Method` and a frozen dataclass of its settings. It says what it needs and
computes the losses of a step; views, mixed precision, faults, gradient scale, optimizer, key encoders, CUDA graphs,
metrics and checkpoints are the engine's (`train.engine`), for every method alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from fastmc.encoders.base import ClipShape, Encoder, EncoderConfig
from fastmc.methods.streams import Beside
from fastmc.ranks import ALONE, Alone, gathered, shares
from fastmc.skeleton import Skeleton
from fastmc.views.clips import DenseClips, PackedClips, Stream
from fastmc.views.draw import AugmentConfig, ViewParams, draw_params
from fastmc.views.make import make_views, whole_clips

Impl = Literal["auto", "triton", "cpp", "torch", "reference"]
Precision = Literal["bf16x3", "ieee", "bf16"]


@dataclass(frozen=True)
class MethodConfig:
    """Settings of a method; each becomes a flag of train.run. A method has a subclass of it.

    Attributes:
        in_epochs: names of those that are epochs of pre-training: they keep their share of a run whose budget is in
            steps, or that --epochs makes shorter or longer than the preset's.
    """

    in_epochs: ClassVar[tuple[str, ...]] = ()

    @property
    def says(self) -> str:
        """What beside the encoder matters to a reader of the log, such as the size of a bank."""
        return ""

    def fitted(self, clips: int) -> Self:
        """The settings for a training set of so many clips, where they leave something to it."""
        return self


@dataclass(frozen=True)
class Setup:
    """What a method is built for: the clips, the encoder, and who computes.

    Attributes:
        kind: class of the encoder, and ``encoder`` its settings.
        impl, precision: of loss, bank step and attack. view_impl: of the views. `fastmc.build` has them resolved.
    """

    skeleton: Skeleton
    max_bodies: int
    kind: type[Encoder]
    encoder: EncoderConfig
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    frames: int = 64
    stream: Stream = "joint"
    seed: int = 0
    impl: str = "auto"
    precision: Precision = "bf16x3"
    view_impl: str = "auto"

    @property
    def shape(self) -> ClipShape:
        bones, centre = self.skeleton.parents, self.augment.centre_joint
        return ClipShape(self.skeleton.num_joints, self.max_bodies, self.frames, bones, centre)

    def new_encoder(self) -> Encoder:
        """An encoder of this kind with fresh weights."""
        return self.kind(self.encoder, self.shape)


class View(NamedTuple):
    """A view of each clip of a batch.

    Attributes:
        number: keys its random numbers; no two views of a method share one.
        strong: whether it gets the strong augmentation, else the basic one.
        of: whether it is made of the clips, or of what the method gives instead, such as attacked clips.
        stream: joint, motion or bone; None for that of the run.
        recipe: strength of its augmentations; None for the run's.
    """

    number: int
    strong: bool = False
    of: Literal["clips", "given"] = "clips"
    stream: Stream | None = None
    recipe: AugmentConfig | None = None


class Batch:
    """The clips of one step, and their views as a method asks for them.

    Attributes:
        x: (W, B, T, V * M * 3), a place for each view in the order of ``views``; filled by `make`.
        gathers: whether `gather` was called.

    Where several ranks train together, these are the clips of one of them, and B is how many it has: a loss, a bank and
    the step's numbers are of what `gather` gives.
    """

    def __init__(
        self,
        setup: Setup,
        views: tuple[View, ...],
        clips: PackedClips,
        sample: Tensor,
        step: Tensor | int,
        *,
        x: Tensor | None = None,
        stopped: Tensor | None = None,
        beside: Beside | None = None,
        ranks: Alone = ALONE,
        clips_of_all: int | None = None,
    ) -> None:
        """
        Args:
            sample: (B,) int64, the clips' ids, and step: the step's number, int or () int64; they key the choices.
            x: where views are written; fresh memory by default.
            stopped: () bool, see `guard`. beside: a second stream of the GPU, see `beside`.
            ranks: who share the batch, and clips_of_all: how many clips all have; by default these.
        """
        self.setup, self.views, self.clips, self.sample, self.step = setup, views, clips, sample, step
        self.x = room_for_views(setup, len(views), len(sample), sample.device) if x is None else x
        self._stopped, self._beside = stopped, beside
        self._ranks, self._counts = ranks, shares(clips_of_all or len(sample), ranks.size)
        self.gathers = False

    def params(self, *views: View) -> ViewParams:
        """The random choices of these views, which are of one source and recipe."""
        kinds = {(view.of, view.stream, view.recipe) for view in views}
        assert len(kinds) == 1, f"views of several kinds cannot be made at once: {kinds}"
        return draw_params(
            views[0].recipe or self.setup.augment,
            self.clips.num_frames,
            self.setup.skeleton.num_joints,
            views=tuple(view.number for view in views),
            strong=tuple(view.number for view in views if view.strong),
            seed=self.setup.seed,
            step=self.step,
            sample=self.sample,
            size=self.setup.frames,
            resized_to=self.setup.frames if views[0].of == "given" else None,
            impl=self.setup.view_impl,
        )

    def make(self, *views: View, of: Tensor | None = None) -> Tensor:
        """Make views (n, B, T, V * M * 3) that are neighbours in ``views`` and of one kind, in one launch.

        ``of``: joint coordinates (B, T, V * M * 3) that they are made of, where they are not of the clips.
        """
        first = self.views.index(views[0])
        assert self.views[first : first + len(views)] == views, "views that are made at once must be neighbours"
        assert (of is None) == (views[0].of == "clips"), "of: coordinates for views of what is given, and for no other"
        source = self.clips if of is None else DenseClips(of, self.clips.num_bodies, self.clips.max_bodies)
        setup, out = self.setup, self.x[first : first + len(views)]
        stream = views[0].stream or setup.stream
        how: dict[str, Any] = {"size": setup.frames, "stream": stream, "out": out, "impl": setup.view_impl}
        return make_views(source, self.params(*views), setup.skeleton, **how)

    def whole(self) -> Tensor:
        """The whole clips, resized to T frames: joint coordinates (B, T, V * M * 3)."""
        how: dict[str, Any] = {"centre": self.setup.augment.centre_joint, "impl": self.setup.view_impl}
        return whole_clips(self.clips, self.setup.skeleton, self.setup.frames, **how)

    def gather(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The rows of all ranks, (B of all, ...) each, in the order that one process would have them in: features, or
        losses clip by clip. On one rank the tensors themselves.

        A call is one exchange, and the same on every rank. Every rank computes the same loss of the same bits, so that
        backwards each takes its own rows of the gradient; the engine sums the gradients of weights over the ranks.

        Args:
            tensors: (B, ...) each, of one dtype.
        """
        self.gathers = True
        return gathered(self._ranks, tensors, self._counts)

    def guard(self, keys: Tensor) -> Tensor:
        """The tensor, or NaN after a fault. A method whose kernels write a bank must compute its loss from a guarded
        tensor: nothing may change between a fault and its discovery, and what is NaN changes nothing."""
        return keys if self._stopped is None else torch.where(self._stopped, torch.nan, keys)

    def beside(self, wanted: bool = True) -> AbstractContextManager[None]:
        """Within, if ``wanted``: work that may run beside what is given to the device after it, until `join`."""
        return self._beside if wanted and self._beside is not None else nullcontext()

    def join(self) -> None:
        """What is computed from now on may use what was computed within `beside`."""
        if self._beside is not None:
            self._beside.join()


class Found(NamedTuple):
    """What a method found in a step.

    Attributes:
        loss: () float32; a step whose loss is not finite is undone.
        outputs: tensors of the networks' results. gradients: those of the loss to them; None to have autograd go back
            from the loss itself.
        seen: what `Method.measure` makes the step's numbers of.
        writes: buffers, each with what it becomes after the backward pass, unless the step is undone.
        learns: whether the networks are updated, those that follow too; not in a phase that only fills a bank.
    """

    loss: Tensor
    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...] | None
    seen: Any
    writes: tuple[tuple[Tensor, Tensor], ...] = ()
    learns: bool = True


class Follow(NamedTuple):
    """A network that follows another one: theta = alpha theta + (1 - alpha) theta_of after every step (eq. 4)."""

    of: str
    alpha: float


class Metric(NamedTuple):
    """A number of each step, averaged over an epoch.

    Attributes:
        name: its column in metrics.csv and its name in TensorBoard. label: in a picture. short: in a line of the log.
        kind: loss, in nats; term, a part of it; share, of 1; or spread, a standard deviation of features, which is
            1/sqrt(D) unless they collapse.
        spec: how it is written in the log. help: what it tells, in plain words, for who sees its curve.
        weight: of a term: what it is multiplied by in the sum that is the loss; None where it is no summand.
    """

    name: str
    label: str
    short: str
    kind: Literal["loss", "term", "share", "spread"]
    spec: str = ".3f"
    help: str = ""
    weight: float | None = 1.0


LOSS = Metric(
    *("loss", "L", "loss", "loss", ".4f"),
    help="What training makes small, in nats. It jumps where the bank becomes full and where entries begin to be mixed "
    "or mined; its level says nothing by itself, for it grows with the bank.",
)
SPREAD = Metric(
    *("feature_std", "std of feature elements", "std", "spread", ".4f"),
    help="How far the features of a batch lie apart: the standard deviation of their elements. At 1/√D they use the "
    "whole sphere; near 0 all clips have the same feature, which is called collapse.",
)
POSITIVE = Metric(
    *("positive_probability", "probability of the positive", "p+", "share"),
    help="How sure the encoder is of which feature belongs to the same clip, among those of all clips in the bank: the "
    "mean probability of the right one, 1 at best.",
)


def top1_of(query: str) -> Metric:
    """How often the query of this name finds its positive."""
    return Metric(
        *("top1", f"contrastive top-1 of {query}", "top1", "share", ".0%"),
        help=f"How often the feature {query} of a clip's view is more similar to the other view of the same clip than "
        "to every entry of the bank.",
    )


class Method(nn.Module):
    """A method in training: everything that a run learns or keeps is in its parameters and buffers.

    A subclass builds its networks in ``__init__`` (the random state is set before) and defines `step`.

    Attributes:
        Config: class of its settings. presets: by preset, what of these differs from their defaults.
        backbone: kind of its encoder, where --backbone does not say another one.
        run: by preset, what differs in other settings of the run: by group ("augment", "optim", "encoder"), or by
            "root" for those of no group. Those of the encoder are for its own kind.
        views: in the order in which they lie in memory.
        metrics: the loss first. `measure` gives them.
        evaluated: name of the encoder whose representation is evaluated, an attribute of the method.
        brief: phases that are too short to be captured as a CUDA graph.
        overlaps: whether a step has work for a second stream of a GPU.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    backbone: ClassVar[str] = "bigru"
    run: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {}
    views: ClassVar[tuple[View, ...]] = ()
    metrics: tuple[Metric, ...] = (LOSS,)
    evaluated: ClassVar[str] = "query"
    brief: ClassVar[frozenset[str]] = frozenset({"fill"})
    overlaps: ClassVar[bool] = False

    def __init__(self, config: MethodConfig, setup: Setup) -> None:
        super().__init__()
        self.config, self.setup = config, setup

    def learners(self) -> dict[str, nn.Module]:
        """The networks that the optimizer updates, by name; encoders and heads beside them."""
        return {self.evaluated: self.representation}

    def followers(self) -> dict[str, tuple[nn.Module, Follow]]:
        """The networks that follow others, by name; their parameters need no gradient."""
        return {}

    def phase(self, clips_seen: int, epoch: int) -> str:
        """The phase of a step, before which this run has seen so many clips and completed so many epochs. On a GPU the
        first step of a phase is captured as a graph, and that of the phase before is dropped."""
        return "main"

    def first_step_after_filling(self, clips: int, batches: int, steps: int) -> int | None:
        """The first of ``steps`` steps, from 0, that is of no brief phase, where a step has so many clips and an epoch
        so many batches; None if all are."""
        return next((n for n in range(steps) if self.phase(n * clips, n // batches) not in self.brief), None)

    def prepare(self, step: int) -> None:
        """Before a step, on the host: write what changes from step to step and no device can know, without waiting."""

    def step(self, batch: Batch, networks: Mapping[str, Any], phase: str) -> Found:
        """The losses of one step, and where its gradients begin.

        ``networks``: what computes in place of `learners` and `followers`, under their names. Nothing here may wait for
        the device or depend on its values. Buffers may change, at once or by `Found.writes`; see `restored`. The loss
        is that of the clips of all ranks: see `Batch.gather`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step")

    def measure(self, seen: Any) -> Tensor:
        """The numbers of a step (len(metrics),) float32, from what `step` gave as ``seen``: by default a mapping of
        their names to scalars. torch.compile takes it whole."""
        return torch.stack([seen[metric.name].float() for metric in self.metrics])

    def restored(self) -> list[Tensor]:
        """The buffers that the engine sets back when a step is undone: all, by default. What the method's own kernels
        leave alone where the loss is not finite need not be among them."""
        return list(self.buffers())

    @property
    def representation(self) -> Encoder:
        """The encoder that is evaluated."""
        return getattr(self, self.evaluated)


def room_for_views(setup: Setup, views: int, batch: int, device: torch.device) -> Tensor:
    """Uninitialised memory (W, B, T, V * M * 3) float32 for the views of a batch."""
    return torch.empty(views, batch, setup.frames, setup.shape.width, device=device)
