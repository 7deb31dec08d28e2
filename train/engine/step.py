"""One pre-training step of any method: its losses, backward, optimizer, the networks that follow others.

`PretrainStep.advance` only gives the device work: whatever changes from step to step is read from tensors there, and
nothing comes back. So the host never waits, and the whole step can be one CUDA graph (`train.engine.graph`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fastmc.config import OptimConfig
from fastmc.derivatives import carry_back
from fastmc.encoders.amp import AMP, WorkingCopy, gradient_of, tensor_cores
from fastmc.encoders.base import Encoder
from fastmc.encoders.norm import share_statistics
from fastmc.encoders.storage import share_storage
from fastmc.methods.base import Batch, Found, Method, room_for_views
from fastmc.methods.streams import Beside
from fastmc.random import key_default_generators
from fastmc.ranks import shares
from fastmc.state import RunState
from fastmc.views.clips import PackedClips
from kernels import cpu
from kernels.ranges import part
from train.engine.optimizer import Following, updates
from train.engine.world import World


class NonFiniteError(RuntimeError):
    """The loss or the gradient of the weights is not finite. All is as it was before the step.

    But for what a method's own kernels have updated, such as a learned bank, where the loss is finite and only the
    gradient overflowed on its way back: the message says so.
    """


STOPPED, STEP, NORM = range(3)
"""Of `PretrainStep.fault`, before the step's numbers."""


class PretrainStep:
    """Advances all that a method learns or keeps by one batch.

    A step whose loss or gradient is not finite changes no weight and no statistic, and neither does any step after it:
    the fault stays on the device until `check` reads it. With a gradient scale (float16), a gradient that overflows
    alone costs one step and halves the scale.

    Attributes:
        sample: (B,) int64, the batch's clip ids, of which this process has its share where there are several; and
            counter: () int64, the step's number. Inputs, as the learning rate and what the method prepares; `prepare`
            writes them.
        metrics: (n,) float32, the numbers of the last step, by the method's ``metrics``. sums: float64, of all steps
            since they were last set to zero.
        fault: float64, of the step that stopped the run: 1, the step's number, norm of its gradient, its numbers.
        copies: what computes in place of the method's networks, by name.
        update: what changes the weights that learn. followers: what changes those that follow, where the former does
            not do it all.
    """

    def __init__(
        self,
        model: Method,
        optim: OptimConfig,
        batch_size: int,
        *,
        amp: str = "fp32",
        overlap: bool = False,
        world: World | None = None,
    ) -> None:
        """Allocates all that outlives a step.

        Args:
            batch_size: clips of a step, of all processes together.
            amp: what networks compute in, a key of `fastmc.encoders.amp.AMP`; gradients of float16 are scaled.
            overlap: a second stream of the GPU is there for the method's work.
            world: the processes that train together; by default this one.

        Raises:
            ValueError: there are fewer clips than processes, or a norm of a network cannot be shared by them.
        """
        self.model, self.world = model, world or World()
        self._clips_of_all, batch_size = batch_size, shares(batch_size, self.world.size)[self.world.rank]
        if self._clips_of_all < self.world.size:
            raise ValueError(
                f"batch_size = {self._clips_of_all} is less than one clip for each of {self.world.size} ranks; give "
                f"--batch-size {self.world.size} or more, or torchrun fewer of them"
            )
        dtype, self._tensor_cores = AMP[amp]
        device = next(model.parameters()).device
        numbers = len(model.metrics)
        self._beside = Beside(device) if overlap else None
        self.sample = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self.counter = torch.zeros((), dtype=torch.int64, device=device)
        self.metrics = torch.zeros(numbers, device=device)
        self.sums = torch.zeros(numbers, dtype=torch.float64, device=device)
        self.fault = torch.zeros(NORM + 1 + numbers, dtype=torch.float64, device=device)
        self.scaling = GradientScale(device) if dtype == torch.float16 else None
        self._skip = torch.zeros((), device=device)
        self._views = room_for_views(model.setup, len(model.views), batch_size, device)
        self._learners = {name: WorkingCopy(net, dtype) for name, net in model.learners().items()}
        followers = {name: (WorkingCopy(net, dtype), follow) for name, (net, follow) in model.followers().items()}
        self.copies = {**self._learners, **{name: copy for name, (copy, _) in followers.items()}}
        for network in (model, *self.networks.values()):
            share_statistics(network, self.world)
        self._working = [working for copy in self._learners.values() for _, working in copy.pairs]
        self._sum_gradients = self.world.gradient_sum(self._working)
        encoders = [net for net in self.networks.values() if isinstance(net, Encoder)]
        self._has_own_threads = bool(encoders) and all(encoder.has_own_threads for encoder in encoders)
        restored = model.restored()
        self._has_a_bank = len(restored) < len(list(model.buffers()))  # that its own kernels update
        self._statistics = [share_storage(same) for same in _by_dtype(restored)]
        self._before = [torch.empty_like(flat) for flat in self._statistics]
        pairs = [Following(copy, self._learners[follow.of], follow.alpha) for copy, follow in followers.values()]
        scale = None if self.scaling is None else self.scaling.scale
        self.update, self.followers = updates(optim, list(self._learners.values()), pairs, self._skip, scale)
        self._judge: Callable[..., tuple[Tensor, Tensor, Tensor]] = judge

    @property
    def networks(self) -> dict[str, Any]:
        """What computes in place of the model's networks, by name."""
        return {name: copy.network for name, copy in self.copies.items()}

    def compile_around(self, backend: str = "inductor") -> list[str]:
        """Compile what of the encoders may be, and the verdict. The loss, the attack's arithmetic and the views are
        single operators already. Returns the functions of encoders that are left as `Encoder.compile_around` says."""
        encoders = [network for network in self.networks.values() if isinstance(network, Encoder)]
        left = {name for encoder in encoders for name in encoder.compile_around(backend)}
        self._judge = torch.compile(judge, fullgraph=True, dynamic=False, backend=backend)
        return sorted(left)

    def prepare(self, sample: Tensor, step: int, lr: float) -> None:
        """Write the inputs of the next step, without waiting for the device.

        What networks draw by themselves, such as dropout, comes from PyTorch's default generators, which begin anew
        here: it depends on seed, step and rank alone, and not on the steps that this process has made before.

        Args:
            sample: (B,) int64 on the device, the batch's clip ids.
            step: its number; keys the random choices.
            lr: learning rate.

        Raises:
            ValueError: the batch has another size than the step was made for.
        """
        if sample.shape != self.sample.shape:
            raise ValueError(f"sample must be ({len(self.sample)},), got {tuple(sample.shape)}")
        self.sample.copy_(sample)
        self.counter.fill_(step)
        self.update.set_lr(lr)
        key_default_generators(self.counter.device, self.model.setup.seed, step, self.world.rank)
        self.model.prepare(step)
        for copy in self.copies.values():
            if self.update.refreshes and copy.is_stale:  # a state was loaded: the step before left them up to date
                copy.refresh()

    def advance(self, clips: PackedClips, *, phase: str = "main") -> None:
        """One step on the clips that ``sample`` names, in this phase of the method."""
        threads = cpu.one_thread_for_operators() if self._has_own_threads else nullcontext()
        with tensor_cores(self._tensor_cores), threads:
            self._advance(clips, phase)

    def _advance(self, clips: PackedClips, phase: str) -> None:
        self.model.train()
        for before, now in zip(self._before, self._statistics, strict=True):
            before.copy_(now)
        for copy in self.copies.values():
            copy.network.train()
            if not self.update.refreshes:
                copy.refresh()

        batch = Batch(
            self.model.setup,
            self.model.views,
            clips,
            self.sample,
            self.counter,
            x=self._views,
            stopped=self.fault[STOPPED] > 0,
            beside=self._beside,
            ranks=self.world,
            clips_of_all=self._clips_of_all,
        )
        found = self.model.step(batch, self.networks, phase)
        if self.world.size > 1 and not batch.gathers:
            raise ValueError(
                f"{type(self.model).__name__} cannot be trained on several ranks: its step never calls Batch.gather, "
                "so its loss is of one rank's clips; see docs/methods.md"
            )
        with part("backward"):
            norm = self._backward(found)

        with part("optimizer"):
            self._conclude(found, norm)
            if found.learns:
                self.update.step()
            if self.scaling is not None:  # not before: the gradients of this step have the scale of before
                self.scaling.update_(self._skip)
        if self.followers and found.learns:
            with part("ema"):
                for follower in self.followers:
                    follower.step()

    def check(self) -> None:
        """Wait for the device, and raise what it has found.

        Raises:
            NonFiniteError: of the first step that was not finite; see there for what is unchanged.
        """
        fault = self.fault.tolist()
        if fault[STOPPED]:
            raise NonFiniteError(self._says(fault))

    def _says(self, fault: list[float]) -> str:
        loss, *others = zip(self.model.metrics, fault[NORM + 1 :], strict=True)
        terms = ", ".join(f"{metric.label} = {value:g}" for metric, value in others if metric.kind == "term")
        left = "Weights and bank" if self._has_a_bank else "Weights and statistics"
        if self._has_a_bank and math.isfinite(loss[1]):
            left = "The bank has moved; weights"
        return (
            f"step {fault[STEP]:.0f}: loss = {loss[1]:g}{f' ({terms})' if terms else ''}, "
            f"gradient norm = {fault[NORM]:g}. {left} were left as before this step"
        )

    def state(self) -> list[Tensor]:
        """All tensors that a step changes and that outlive it; those of its inputs are not among them."""
        kept = [*self.model.state_dict().values(), *self.update.tensors(), self.sums, self.metrics, self.fault]
        return kept if self.scaling is None else [*kept, self.scaling.state]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model, as `RunState` has it."""
        state = {"optimizer": self.update.state_dict(), "sums": self.sums}
        return state if self.scaling is None else state | {"scaling": self.scaling.state}

    def load_state_dict(self, state: RunState) -> None:
        """The inverse, in place."""
        self.update.load_state_dict(state.optimizer)
        self.sums.copy_(state.sums)
        if self.scaling is not None and state.scaling is not None:
            self.scaling.state.copy_(state.scaling)

    def _backward(self, found: Found) -> Tensor:
        """Carry the gradients into the networks that learn; returns their norm ()."""
        for copy in self._learners.values():
            for pair in copy.pairs:
                for weight in pair:
                    weight.grad = None
        outputs, gradients = found.outputs, found.gradients
        if gradients is None:
            outputs, gradients = (found.loss,), (torch.ones_like(found.loss),)
        if self.scaling is not None:
            gradients = tuple(g * self.scaling.scale for g in gradients)
        carry_back(outputs, gradients)
        for weight in self._working:  # of what this phase does not use
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        self._sum_gradients()
        norm = norm_of([gradient_of(weight) for weight in self._working])
        if not self.update.refreshes:
            for copy in self._learners.values():
                copy.collect_()
        return norm if self.scaling is None else norm / self.scaling.scale

    @torch.no_grad()
    def _conclude(self, found: Found, norm: Tensor) -> None:
        """The step's numbers, and what becomes of a step that is not finite."""
        smallest = None if self.scaling is None else self.scaling.at_its_smallest
        skip, metrics, fault = self._judge(self.model.measure, found.seen, norm, self.counter, self.fault, smallest)
        self._skip.copy_(skip)
        self.metrics.copy_(metrics)
        self.fault.copy_(fault)
        self.sums.add_(metrics)
        for before, now in zip(self._before, self._statistics, strict=True):
            torch.where(skip, before, now, out=now)
        for buffer, value in found.writes:
            buffer.copy_(torch.where(skip, buffer, value))


def norm_of(gradients: list[Tensor]) -> Tensor:
    """() float32, of gradients of any dtypes as they come."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for gradient in gradients:
        by_dtype.setdefault(gradient.dtype, []).append(gradient)
    norms = [norm for same in by_dtype.values() for norm in torch._foreach_norm(same, 2, torch.float32)]
    return torch.linalg.vector_norm(torch.stack(norms))


def judge(
    measure: Callable[[Any], Tensor],
    seen: Any,
    norm: Tensor,
    counter: Tensor,
    fault: Tensor,
    scale_at_its_smallest: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What a step has come to: whether it must be skipped () bool, its numbers, and the fault that stops the run.

    Args:
        measure: `Method.measure`, and ``seen`` what it takes.
        norm: () of the gradient.
        fault: as it was before the step.
        scale_at_its_smallest: () bool, that the gradient scale cannot become smaller. None where there is no scale: a
            gradient that is not finite stops the run then.
    """
    metrics = measure(seen)
    has_loss, has_gradient = torch.isfinite(metrics[0]), torch.isfinite(norm)
    is_good, stopped = has_loss & has_gradient, fault[STOPPED] != 0
    goes_on = is_good if scale_at_its_smallest is None else has_loss & (has_gradient | ~scale_at_its_smallest)
    values = torch.cat((torch.ones_like(fault[:1]), counter.view(1), norm.view(1), metrics))
    return ~is_good | stopped, metrics, torch.where(goes_on | stopped, fault, values)


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
        self._copied.record(torch.cuda.current_stream(self._fault.device))  # not of the current device's
        return seen


def _by_dtype(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Tensors of one dtype together, for `share_storage`."""
    kinds = {tensor.dtype for tensor in tensors}
    return [[tensor for tensor in tensors if tensor.dtype == dtype] for dtype in sorted(kinds, key=str)]
