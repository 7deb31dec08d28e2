"""One pre-training step: views, features, loss, backward, optimizer, key encoder, bank.

`PretrainStep.advance` only gives the device work: whatever changes from step to step is read from tensors there, and
nothing comes back. So the host never waits, and the whole step can be one CUDA graph (`train.engine.graph`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmc.encoders.amp import AMP, WorkingCopy, gradient_of, tensor_cores
from fastmc.encoders.storage import share_storage
from fastmc.methods.a2mc import A2MC, Features
from fastmc.methods.streams import Beside
from fastmc.objective.contrast_step import MCStep
from fastmc.views.clips import PackedClips
from kernels.ranges import part
from train.command.config import OptimConfig
from train.engine.optimizer import encoder_updates


class NonFiniteError(RuntimeError):
    """The loss or the encoder's gradient is not finite. Weights and statistics are as they were before the step.

    So is the bank, unless the loss is finite and only the gradient overflowed on its way through the encoder: the bank
    has then made its own update of this step, and the message says so.
    """


class StepMetrics(NamedTuple):
    """What a step tells, as a tensor on the device so that nothing waits for it. Means over the batch."""

    loss: Tensor
    l1: Tensor
    l2: Tensor
    l3: Tensor
    top1: Tensor
    """Contrastive top-1 of f3: its positive is nearer than every bank entry."""
    positive_probability: Tensor
    """The positive's probability at the bank's temperature."""
    feature_std: Tensor
    """Mean standard deviation of the elements of f3; 1/sqrt(D) for spread features, 0 for collapsed ones."""


class Fault(NamedTuple):
    """The step that stopped a run, as numbers on the device."""

    stopped: float
    step: float
    loss: float
    l1: float
    l2: float
    l3: float
    gradient_norm: float


class PretrainStep:
    """Advances query encoder, key encoder and bank by one batch.

    A step whose loss or gradient is not finite changes no weight and no statistic, and neither does any step after it:
    the fault stays on the device until `check` reads it. With a gradient scale (float16), a gradient that overflows
    alone costs one step and halves the scale.

    Attributes:
        sample: (B,) int64, the batch's clip ids, and counter: () int64, the step's number. Inputs, as the learning rate
            and the mixing coefficients; `prepare` writes them.
        sums: float64, of the metrics by `StepMetrics`, over all steps since they were last set to zero.
        query_update, key_update: what changes the encoders' weights. The latter is None where the former does it all.
    """

    def __init__(
        self, model: A2MC, optim: OptimConfig, batch_size: int, *, amp: str = "fp32", overlap: bool = False
    ) -> None:
        """Allocates all that outlives a step.

        Args:
            amp: what recurrent nets and heads compute in, a key of `fastmc.encoders.amp.AMP`; gradients of float16 are
            scaled.
            overlap: the key encoder computes beside the attack, on a second stream of the GPU.
        """
        self.model = model
        dtype, self._tensor_cores = AMP[amp]
        device = model.coefficients.device
        self._beside = Beside(device) if overlap else None
        self.sample = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.counter = torch.zeros((), dtype=torch.int64, device=device)
        self.metrics = torch.zeros(len(StepMetrics._fields), device=device)
        self.sums = torch.zeros(len(StepMetrics._fields), dtype=torch.float64, device=device)
        self.fault = torch.zeros(len(Fault._fields), dtype=torch.float64, device=device)
        self.scaling = GradientScale(device) if dtype == torch.float16 else None
        self._skip = torch.zeros((), device=device)
        self._views = model.room_for_views(batch_size)
        self._query, self._key = WorkingCopy(model.query, dtype), WorkingCopy(model.key, dtype)
        self._statistics = [share_storage(same) for same in _norm_statistics(model)]
        self._before = [torch.empty_like(flat) for flat in self._statistics]
        scale = None if self.scaling is None else self.scaling.scale
        self.query_update, self.key_update = encoder_updates(
            optim, self._query, self._key, model.contrast.ema, self._skip, scale
        )
        self._judge: Callable[..., tuple[Tensor, Tensor, Tensor]] = judge

    def compile_around(self, backend: str = "inductor") -> None:
        """Compile what surrounds the recurrent calls, and the verdict. The loss, the attack's arithmetic and the views
        are single operators already."""
        for copy in (self._query, self._key):
            copy.encoder.compile_around(backend)
        self._judge = torch.compile(judge, fullgraph=True, dynamic=False, backend=backend)

    def prepare(self, sample: Tensor, step: int, lr: float) -> None:
        """Write the inputs of the next step, without waiting for the device.

        Args:
            sample: (B,) int64 on the device, the batch's clip ids.
            step: its number; keys the random choices.
            lr: learning rate of the query encoder.

        Raises:
            ValueError: the batch has another size than the step was made for.
        """
        if sample.shape != self.sample.shape:
            raise ValueError(f"sample must be ({len(self.sample)},), got {tuple(sample.shape)}")
        self.sample.copy_(sample)
        self.counter.fill_(step)
        self.query_update.set_lr(lr)
        self.model.draw_mixing_(step)
        for copy in (self._query, self._key):
            if self.key_update is None and copy.is_stale:  # a state was loaded: the step before left them up to date
                copy.refresh()

    def advance(self, clips: PackedClips, *, filling: bool) -> None:
        """One step on the clips that ``sample`` names.

        ``filling``: the bank is not yet full of f0, so this is a plain InfoNCE step that writes f0 to it.
        """
        with tensor_cores(self._tensor_cores):
            self._advance(clips, filling)

    def _advance(self, clips: PackedClips, filling: bool) -> None:
        model = self.model
        model.train()
        for before, now in zip(self._before, self._statistics, strict=True):
            before.copy_(now)
        for copy in (self._query, self._key):
            copy.encoder.train()
            if self.key_update is not None:
                copy.refresh()

        attacks = model.contrast.attacks and not filling
        f = model.features(
            clips,
            self.sample,
            self.counter,
            hard_positives=attacks,
            encoders=(self._query.encoder, self._key.encoder),
            out=self._views,
            beside=self._beside if attacks else None,
        )
        # After a fault nothing may change: this makes the loss NaN, and what is NaN changes nothing.
        stopped = self.fault[0] > 0
        f = f._replace(f0=torch.where(stopped, torch.nan, f.f0))
        found = model.contrast_step_(f, None if filling else model.mixing, filling=filling)
        with part("backward"):
            norm = self._backward(f, found)

        with part("optimizer"):
            self._conclude(f, found, norm)
            self.query_update.step()
            if self.scaling is not None:  # not before: the gradients of this step have the scale of before
                self.scaling.update_(self._skip)
        if self.key_update is not None:
            with part("ema"):
                self.key_update.step()

    def check(self) -> None:
        """Wait for the device, and raise what it has found.

        Raises:
            NonFiniteError: of the first step that was not finite; see there for what is unchanged.
        """
        fault = Fault(*self.fault.tolist())
        if fault.stopped:
            raise NonFiniteError(_says(fault))

    def state(self) -> list[Tensor]:
        """All tensors that a step changes and that outlive it; those of its inputs are not among them."""
        kept = [*self.model.state_dict().values(), *self.query_update.tensors(), self.sums, self.metrics, self.fault]
        return kept if self.scaling is None else [*kept, self.scaling.state]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model."""
        state = {"optimizer": self.query_update.state_dict(), "sums": self.sums}
        return state if self.scaling is None else state | {"scaling": self.scaling.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse, in place."""
        self.query_update.load_state_dict(state["optimizer"])
        self.sums.copy_(state["sums"])
        if self.scaling is not None and "scaling" in state:
            self.scaling.state.copy_(state["scaling"])

    def _backward(self, f: Features, found: MCStep) -> Tensor:
        """Carry the gradients of the features into the query encoder; returns their norm ()."""
        weights = [working for _, working in self._query.pairs]
        for weight in (*weights, *self.model.query.parameters()):
            weight.grad = None
        pairs = ((f.f1, found.df1), (f.f2, found.df2), (f.f3, found.df3))
        features, gradients = zip(*((x, g) for x, g in pairs if x is not None), strict=True)
        if self.scaling is not None:
            gradients = tuple(g * self.scaling.scale for g in gradients)
        torch.autograd.backward(features, gradients)
        norm = norm_of([gradient_of(weight) for weight in weights])
        if self.key_update is not None:
            self._query.collect_()
        return norm if self.scaling is None else norm / self.scaling.scale

    @torch.no_grad()
    def _conclude(self, f: Features, found: MCStep, norm: Tensor) -> None:
        """Metrics, and what becomes of a step that is not finite."""
        smallest = None if self.scaling is None else self.scaling.at_its_smallest
        skip, metrics, fault = self._judge(found, f.f3.detach(), norm, self.counter, self.fault, smallest)
        self._skip.copy_(skip)
        self.metrics.copy_(metrics)
        self.fault.copy_(fault)
        self.sums.add_(metrics)
        for before, now in zip(self._before, self._statistics, strict=True):
            torch.where(skip, before, now, out=now)


def norm_of(gradients: list[Tensor]) -> Tensor:
    """() float32, of gradients of any dtypes as they come."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    norms = [norm for same in by_dtype.values() for norm in torch._foreach_norm(same, 2, torch.float32)]
    return torch.linalg.vector_norm(torch.stack(norms))


def judge(
    found: MCStep, f3: Tensor, norm: Tensor, counter: Tensor, fault: Tensor, scale_at_its_smallest: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """What a step has come to: whether it must be skipped () bool, its metrics, and the fault that stops the run.

    Args:
        norm: () of the query encoder's gradient.
        fault: as it was before the step.
        scale_at_its_smallest: () bool, that the gradient scale cannot become smaller. None where there is no scale: a
            gradient that is not finite stops the run then.
    """
    no_loss, no_gradient = ~torch.isfinite(found.loss), ~torch.isfinite(norm)
    stops = no_loss | (no_gradient if scale_at_its_smallest is None else no_gradient & scale_at_its_smallest)
    losses = torch.stack((found.loss, found.l1, found.l2, found.l3))
    std = f3.std(dim=0, correction=0).mean()
    metrics = torch.cat((losses, torch.stack((found.top1_count / len(f3), found.positive_probability, std))))
    values = torch.cat((torch.ones_like(fault[:1]), counter.view(1), losses, norm.view(1)))
    return no_loss | no_gradient, metrics, torch.where(stops & (fault[0] == 0), values, fault)


class GradientScale:
    """The factor on gradients that keeps those of float16 from vanishing, as torch.amp.GradScaler does it: halved when
    they overflow, doubled after 2000 steps without that; all on the device.

    Attributes:
        state: (2,) float32, the scale and the steps since it last changed.
        scale: () float32, a view of it.
    """

    GROWTH_INTERVAL, SMALLEST = 2000, 1.0

    def __init__(self, device: torch.device) -> None:
        self.state = torch.zeros(2, device=device)
        self.scale, self._steps = self.state.unbind()
        self.scale.fill_(2.0**16)

    @property
    def at_its_smallest(self) -> Tensor:
        """() bool."""
        return self.scale <= self.SMALLEST

    def update_(self, overflow: Tensor) -> None:
        """After a step: ``overflow`` () is 1 if its gradient was not finite, else 0."""
        steps = (self._steps + 1) * (1 - overflow)
        grows = steps >= self.GROWTH_INTERVAL
        factor = torch.where(grows, 2.0, 1 - 0.5 * overflow)
        self.scale.copy_((self.scale * factor).clamp(min=self.SMALLEST))
        self._steps.copy_(torch.where(grows, 0.0, steps))


class FaultWatch:
    """Looks for a fault after each step, without keeping a GPU waiting: there it is seen some steps later."""

    EVERY = 50
    """Steps between two looks at a GPU."""

    def __init__(self, step: PretrainStep) -> None:
        self._fault = step.fault
        self._on_gpu = step.fault.device.type == "cuda"
        self._steps = 0
        if self._on_gpu:
            self._copy = torch.zeros((), dtype=torch.float64, pin_memory=True)
            self._copied = torch.cuda.Event()

    def sees_a_fault(self) -> bool:
        """To be asked after each step."""
        if not self._on_gpu:
            return bool(self._fault[0])
        self._steps += 1
        if self._steps % self.EVERY:
            return False
        seen = self._copied.query() and bool(self._copy)  # of the look before
        self._copy.copy_(self._fault[0], non_blocking=True)
        self._copied.record()
        return seen


def _norm_statistics(model: A2MC) -> list[list[Tensor]]:
    """Running statistics of the input norms, the one thing that a forward pass changes, by dtype."""
    buffers = [*model.query.buffers(), *model.key.buffers()]
    kinds = {buffer.dtype for buffer in buffers}
    return [[buffer for buffer in buffers if buffer.dtype == dtype] for dtype in sorted(kinds, key=str)]


def _says(fault: Fault) -> str:
    left = "The bank has moved; weights" if math.isfinite(fault.loss) else "Weights and bank"
    parts = f"L1 = {fault.l1:g}, L2 = {fault.l2:g}, L3 = {fault.l3:g}"
    return (
        f"step {fault.step:.0f}: loss = {fault.loss:g} ({parts}), gradient norm = {fault.gradient_norm:g}. "
        f"{left} were left as before this step"
    )
