"""Updates of weights, which a flag on the device can call off: SGD, eq. 4 and the working copies in one pass by a
kernel of our own, or a multi-tensor call for the networks that learn and one for each that follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

import kernels
from fastmc.config import OptimConfig
from fastmc.encoders.amp import WorkingCopy, gradient_of
from fastmc.encoders.storage import share_storage
from fastmc.optim import SGD, AdamW, Fused

MOMENTUM = 0.9
"""Of SGD, paper section 4.2."""


class Following(NamedTuple):
    """A network that follows one that learns, at the rate alpha of eq. 4."""

    follower: WorkingCopy
    learner: WorkingCopy
    alpha: float


def updates(
    config: OptimConfig,
    learners: Sequence[WorkingCopy],
    pairs: Sequence[Following],
    skip: Tensor,
    scale: Tensor | None = None,
) -> tuple[LearnerUpdate | WholeUpdate, list[FollowerUpdate]]:
    """What updates the networks that learn, and those that follow; none beside what does both.

    Args:
        skip: () float32 beside the weights, 1 to leave weights and state as they are, 0 to update them.
        scale: () float32, by which the gradients have to be divided; None for 1.

    Raises:
        ValueError: the config asks for an implementation that cannot serve.
    """
    weights = [weight for copy in learners for weight in copy.masters]
    in_pairs = [id(pair.learner) for pair in pairs] == [id(copy) for copy in learners]
    alone = None if in_pairs and len({pair.alpha for pair in pairs}) == 1 else "it takes pairs of query and key encoder"
    impl, why = choose_impl(config, weights[0].device, scaled=scale is not None, no_pairs=alone)
    if impl == "triton":
        return WholeUpdate(config, pairs, skip, scale, why=why), []
    follow = [FollowerUpdate(follower.masters, learner.masters, alpha, skip) for follower, learner, alpha in pairs]
    return LearnerUpdate(config, weights, skip, scale, impl=impl, why=why), follow


def choose_impl(
    config: OptimConfig, device: torch.device, *, scaled: bool, no_pairs: str | None = None
) -> tuple[str, str]:
    """triton, torch or apex, and why. ``no_pairs``: why the networks are none for triton. ValueError if what was asked
    for cannot serve."""
    asked = config.optimizer_impl
    if asked == "auto":
        reason = no_pairs or no_triton_reason(config, device)
        return ("triton", "with the key encoder, in one pass") if reason is None else ("torch", reason)
    reason = None
    if asked == "triton":
        reason = no_pairs or no_triton_reason(config, device)
    if asked == "apex":
        reason = no_apex_reason(config, device, scaled=scaled)
    if reason is not None:
        raise ValueError(f"optimizer_impl = {asked!r} is impossible: {reason}. Give --optimizer-impl auto")
    return asked, f"--optimizer-impl {asked}"


def no_triton_reason(config: OptimConfig, device: torch.device) -> str | None:
    """Why our kernel does not serve, as a note; None if it does."""
    if config.optimizer != "sgd":
        return f"our kernel is for sgd, not {config.optimizer}"
    return kernels.unavailable_reason(device)


def build_optimizer(config: OptimConfig, parameters: Iterable[Parameter]) -> Fused:
    """PyTorch's fused optimizer of these parameters; the learning rate is the caller's to set."""
    if config.optimizer == "sgd":
        return SGD(parameters, config.lr, momentum=MOMENTUM, weight_decay=config.weight_decay)
    return AdamW(parameters, config.lr, weight_decay=config.weight_decay)


class LearnerUpdate:
    """The optimizer of the networks that learn.

    Attributes:
        optimizer: PyTorch's fused operators, or apex's.
        says: which, and why, for the log.
        lr: () float32 on the weights' device, read at every step. apex takes a number of the host instead, see `baked`.
        scale: () float32, by which the gradients have to be divided; None for 1.
        refreshes: whether a step leaves the working copies up to date.
    """

    refreshes = False

    def __init__(
        self,
        config: OptimConfig,
        parameters: Iterable[Parameter],
        skip: Tensor,
        scale: Tensor | None = None,
        *,
        impl: str = "torch",
        why: str = "asked for",
    ) -> None:
        """``skip`` and ``scale`` as of `updates`. ``impl``: torch or apex, and ``why``."""
        weights = list(parameters)
        self.lr = torch.full((), config.lr, device=weights[0].device)
        self.skip, self.scale = skip, scale
        self._apex = impl == "apex"
        self.optimizer: Any
        if self._apex:
            self.optimizer = _apex_sgd(config, weights)
            self.says = f"FusedSGD of apex ({why})"
        else:
            self.optimizer = build_optimizer(config, weights)
            self.says = f"{type(self.optimizer).__name__} of torch, fused ({why})"
            # The fused kernels read the learning rate, and GradScaler's two tensors, from ours.
            self.optimizer.param_groups[0]["lr"] = self.lr
            self.optimizer.found_inf, self.optimizer.grad_scale = skip, scale

    def set_lr(self, lr: float) -> None:
        """Without waiting for the device."""
        if self._apex:
            self.optimizer.param_groups[0]["lr"] = lr
        self.lr.fill_(lr)

    @property
    def baked(self) -> tuple[float, ...]:
        """Numbers of the host that the next step would hand to its kernels: a captured graph keeps them."""
        return (self.optimizer.param_groups[0]["lr"],) if self._apex else ()

    def step(self) -> None:
        """Update the weights by their gradients, if they are not to be skipped."""
        if self._apex:
            self.optimizer._dummy_overflow_buf.copy_(self.skip)
        self.optimizer.step()

    def tensors(self) -> list[Tensor]:
        """What a step changes beside the weights."""
        return [value for slots in self.optimizer.state.values() for value in slots.values()]

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The state by weight; learning rate and the rest are this run's own."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["state"], "param_groups": groups})


def no_apex_reason(config: OptimConfig, device: torch.device, *, scaled: bool) -> str | None:
    """Why apex's FusedSGD does not serve, as a note; None if it does. PyPI's package of that name is another one."""
    if config.optimizer != "sgd":
        return f"apex is for sgd, not {config.optimizer}"
    if device.type != "cuda":
        return f"apex needs a GPU, not {device.type}"
    if scaled:
        return "apex does not take a gradient scale from the device"
    if config.warmup_epochs > 0:
        return "apex takes the learning rate from the host, and a warm-up changes it at every step"
    try:
        import amp_C  # noqa: F401
        from apex.optimizers import FusedSGD  # noqa: F401
    except ImportError as error:
        return f"NVIDIA's apex is not installed: {error}"
    return None


def _apex_sgd(config: OptimConfig, weights: list[Parameter]) -> torch.optim.Optimizer:
    from apex.optimizers import FusedSGD

    sgd: torch.optim.Optimizer = FusedSGD(weights, lr=config.lr, momentum=MOMENTUM, weight_decay=config.weight_decay)
    for weight in weights:  # its own first step would leave garbage there if it were called off
        sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
    return sgd


class FollowerUpdate:
    """Eq. 4, theta_k = alpha theta_k + (1 - alpha) theta_q, in one call that can be called off.

    That is a step of gradient descent on |theta_k - theta_q|^2 / 2 at the rate 1 - alpha, so it is PyTorch's fused SGD:
    the "gradients" are theta_q itself, taken with a minus, and the weight decay of 1 adds theta_k.
    """

    def __init__(
        self,
        follower: Iterable[Parameter],
        learner: Iterable[Parameter],
        alpha: float,
        skip: Tensor,
    ) -> None:
        """``skip`` as of `LearnerUpdate`."""
        mine = list(follower)
        self._sgd = SGD(mine, 1 - alpha, weight_decay=1.0, maximize=True)
        self._sgd.found_inf = skip
        for key, query in zip(mine, learner, strict=True):
            key.grad = query.detach()

    def step(self) -> None:
        """Follow, if it is not to be skipped."""
        self._sgd.step()


class WholeUpdate:
    """SGD of query encoders, eq. 4 of their key encoders, and the working copies of both, by `kernels.update`: a launch
    for each group of weights that lie in the same storages.

    Its bits are those of torch.optim.SGD in float32, operator by operator. PyTorch's fused kernel for GPUs keeps double
    precision within a statement, and so differs in the last one.

    Attributes:
        optimizer: holds the velocities under the names that a checkpoint has them by; does nothing itself.
        groups: what one launch each updates.
        lr, scale, says: as of `LearnerUpdate`.
    """

    baked: tuple[float, ...] = ()
    refreshes = True

    def __init__(
        self,
        config: OptimConfig,
        pairs: Sequence[Following],
        skip: Tensor,
        scale: Tensor | None = None,
        *,
        why: str = "asked for",
    ) -> None:
        """As of `updates`. Moves weights that have a storage of their own together."""
        from kernels.update import WIDE, UpdateGroup

        # Of each weight: query, key, and where there are any their copies
        rows: list[tuple[Parameter, ...]] = [
            (master, follower) if working is master else (master, follower, working, computing)
            for pair in pairs
            for (master, working), (follower, computing) in zip(pair.learner.pairs, pair.follower.pairs, strict=True)
        ]
        self._move_together(rows)
        by_place: dict[Any, list[tuple[Parameter, ...]]] = {}
        for row in rows:
            storages = (weight.untyped_storage()._cdata for weight in row)
            by_place.setdefault((row[0].numel() % WIDE == 0, *storages), []).append(row)
        self.groups = [UpdateGroup(*zip(*same, strict=True)) for same in by_place.values()]
        self._working = [[row[2] if len(row) > 2 else row[0] for row in same] for same in by_place.values()]
        self._copies = [weight.detach() for row in rows for weight in row[2:]]

        weights = [row[0] for row in rows]
        self._device = weights[0].device
        self.lr = torch.full((), config.lr, device=self._device)
        self.skip, self.scale = skip, scale
        self._settings = {"momentum": MOMENTUM, "weight_decay": config.weight_decay, "alpha": pairs[0].alpha}
        state = {
            row[0]: {"momentum_buffer": velocity}
            for same, group in zip(by_place.values(), self.groups, strict=True)
            for row, velocity in zip(same, group.velocity, strict=True)
        }
        self.optimizer = SGD(weights, config.lr, momentum=MOMENTUM, weight_decay=config.weight_decay, state=state)
        self.says = f"SGD of fastmc.kernels ({why})"

    @staticmethod
    def _move_together(rows: list[tuple[Parameter, ...]]) -> None:
        """Weights of each role that have a storage of their own. cuDNN's lie in one already, in its order."""
        for role in range(4):
            weights = [row[role] for row in rows if len(row) > role]
            lone = [w for w in weights if w.untyped_storage().nbytes() == w.numel() * w.element_size()]
            if lone:
                share_storage(lone)

    def set_lr(self, lr: float) -> None:
        """Without waiting for the device."""
        self.lr.fill_(lr)

    @torch.no_grad()
    def step(self) -> None:
        """Update weights and copies by the gradients, unless they are to be skipped, and drop these."""
        unscale = None if self.scale is None else self.scale.reciprocal()
        with kernels.launching_on(self._device, "update"):
            for group, working in zip(self.groups, self._working, strict=True):
                gradients = [gradient_of(weight) for weight in working]
                group.step(gradients, skip=self.skip, lr=self.lr, unscale=unscale, **self._settings)
        for weight in (weight for working in self._working for weight in working):
            weight.grad = None

    def tensors(self) -> list[Tensor]:
        """What a step changes beside the weights: velocities and copies."""
        return [*(slots["momentum_buffer"] for slots in self.optimizer.state.values()), *self._copies]

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The state by weight, in place; learning rate and the rest are this run's own."""
        self.optimizer.load_state_dict(state)
