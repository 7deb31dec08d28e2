"""Updates of the two encoders' weights: one multi-tensor call each, which a flag on the device can call off."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from train.config import OptimConfig


def build_optimizer(config: OptimConfig, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
    """PyTorch's fused optimizer of these parameters; the learning rate is the caller's to set."""
    weights = list(parameters)
    optimizer: torch.optim.Optimizer
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(weights, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay, fused=True)
        allocate_state(optimizer, "momentum_buffer")
    else:
        on_gpu = weights[0].device.type == "cuda"  # where AdamW refuses to be captured unless it was told before
        optimizer = torch.optim.AdamW(
            weights, lr=config.lr, weight_decay=config.weight_decay, fused=True, capturable=on_gpu
        )
        allocate_state(optimizer, "exp_avg", "exp_avg_sq", counts="step")
    return optimizer


def allocate_state(optimizer: torch.optim.Optimizer, *names: str, counts: str | None = None) -> None:
    """Zeros for each weight, by the names that the optimizer looks for. Left to itself it allocates them in its first
    step; SGD even without setting them, so that a first step that is called off would leave garbage there."""
    for weight in optimizer.param_groups[0]["params"]:
        if counts is not None:
            optimizer.state[weight][counts] = torch.zeros((), device=weight.device)
        for name in names:
            optimizer.state[weight][name] = torch.zeros_like(weight)


class QueryUpdate:
    """The optimizer of the query encoder.

    Attributes:
        optimizer: PyTorch's or apex's.
        says: which, and why, for the log.
        lr: () float32 on the weights' device, read at every step. apex takes a number of the host instead, see `baked`.
        scale: () float32, by which the gradients have to be divided; None for 1.
    """

    def __init__(
        self, config: OptimConfig, parameters: Iterable[Parameter], skip: Tensor, scale: Tensor | None = None
    ) -> None:
        """``skip``: () float32 beside the weights, 1 to leave weights and state as they are, 0 to update them."""
        weights = list(parameters)
        device = weights[0].device
        self.lr = torch.full((), config.lr, device=device)
        self.skip, self.scale = skip, scale
        reason = no_apex_reason(config, device, scaled=scale is not None)
        self._apex = reason is None
        if self._apex:
            self.optimizer = _apex_sgd(config, weights)
            self.says = "FusedSGD of apex"
        else:
            self.optimizer = build_optimizer(config, weights)
            self.says = f"{type(self.optimizer).__name__} of torch, fused ({reason})"
            self._point_to_device()

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
            self.optimizer._dummy_overflow_buf.copy_(self.skip)  # type: ignore[attr-defined]
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
        if not self._apex:
            self._point_to_device()

    def _point_to_device(self) -> None:
        """Have the fused kernels read the learning rate, and GradScaler's two tensors, from ours."""
        self.optimizer.param_groups[0]["lr"] = self.lr
        self.optimizer.found_inf, self.optimizer.grad_scale = self.skip, self.scale  # type: ignore[attr-defined]


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

    sgd = FusedSGD(weights, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    allocate_state(sgd, "momentum_buffer")
    return sgd


class KeyUpdate:
    """Eq. 4, theta_k = alpha theta_k + (1 - alpha) theta_q, in one call that can be called off.

    That is a step of gradient descent on |theta_k - theta_q|^2 / 2 at the rate 1 - alpha, so it is PyTorch's fused SGD:
    the "gradients" are theta_q itself, taken with a minus, and the weight decay of 1 adds theta_k.
    """

    def __init__(self, key: Iterable[Parameter], query: Iterable[Parameter], alpha: float, skip: Tensor) -> None:
        """``skip`` as of `QueryUpdate`."""
        keys = list(key)
        self._sgd = torch.optim.SGD(keys, lr=1 - alpha, weight_decay=1.0, maximize=True, fused=True)
        self._sgd.found_inf = skip  # type: ignore[attr-defined]
        for mine, theirs in zip(keys, query, strict=True):
            mine.grad = theirs.detach()

    def step(self) -> None:
        """Follow the query encoder, if it is not to be skipped."""
        self._sgd.step()
