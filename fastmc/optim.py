"""SGD and AdamW by PyTorch's fused operators, without `torch.optim`.

An optimizer of `torch.optim` imports torch._dynamo, some seconds of every command that trains, to keep itself out of
what is compiled. Nothing here is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

State = dict[Parameter, dict[str, Tensor]]


class Fused:
    """Weights on one device and of one dtype, and the state of their updates, under the names that `torch.optim` has.

    Attributes:
        param_groups: one, with "params", "lr" (a number, or a () tensor where the weights are) and the other settings.
        state: by weight, its tensors; all there from the start.
        found_inf: () float32, 1 to leave weights and state as they are; None for 0.
        grad_scale: () float32, by which the gradients are divided; None for 1.
    """

    slots: tuple[str, ...] = ()
    """Tensors like the weight that its state has."""
    counts: bool = False
    """Whether the state has the number of steps, "step"."""

    def __init__(self, weights: Iterable[Parameter], lr: float, state: State | None = None, **settings: Any) -> None:
        """``state``: tensors that serve as it; by default fresh zeros."""
        mine = list(weights)
        self.param_groups: list[dict[str, Any]] = [{"params": mine, "lr": lr, **settings}]
        self.state: State = {w: self._new_state(w) for w in mine} if state is None else state
        self.found_inf: Tensor | None = None
        self.grad_scale: Tensor | None = None

    def _new_state(self, weight: Parameter) -> dict[str, Tensor]:
        count = {"step": torch.zeros((), device=weight.device)} if self.counts else {}
        return count | {name: torch.zeros_like(weight, requires_grad=False) for name in self.slots}

    @torch.no_grad()
    def step(self) -> None:
        """Update the weights that have a gradient."""
        group = dict(self.param_groups[0])
        weights = [weight for weight in group.pop("params") if weight.grad is not None]
        if not weights:
            return
        states = {name: [self.state[w][name] for w in weights] for name in self.state[weights[0]]}
        gradients = [weight.grad for weight in weights]
        self._update(weights, gradients, states, **group, grad_scale=self.grad_scale, found_inf=self.found_inf)

    def _update(self, weights: list[Any], gradients: list[Any], states: dict[str, list[Tensor]], **how: Any) -> None:
        raise NotImplementedError

    def zero_grad(self) -> None:
        for weight in self.param_groups[0]["params"]:
            weight.grad = None

    def state_dict(self) -> dict[str, Any]:
        """As of `torch.optim`: weights by their numbers."""
        weights = self.param_groups[0]["params"]
        group = {**self.param_groups[0], "params": list(range(len(weights)))}
        return {"state": {i: dict(self.state[w]) for i, w in enumerate(weights)}, "param_groups": [group]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The tensors of a `state_dict`, in place; learning rate and the other settings stay."""
        for index, weight in enumerate(self.param_groups[0]["params"]):
            for name, value in self.state[weight].items():
                value.copy_(state["state"][index][name])


class SGD(Fused):
    """Stochastic gradient descent with momentum: v <- mu v + g + lambda theta, theta <- theta - lr v."""

    slots: tuple[str, ...] = ("momentum_buffer",)

    def __init__(
        self,
        weights: Iterable[Parameter],
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        state: State | None = None,
    ) -> None:
        if not momentum:
            self.slots = ()
        super().__init__(weights, lr, state, momentum=momentum, weight_decay=weight_decay, maximize=maximize)

    def _update(self, weights: list[Any], gradients: list[Any], states: dict[str, list[Tensor]], **how: Any) -> None:
        velocities = states.get("momentum_buffer", [])
        torch._fused_sgd_(weights, gradients, velocities, dampening=0.0, nesterov=False, is_first_step=False, **how)


class AdamW(Fused):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), beta = (0.9, 0.999)."""

    slots, counts = ("exp_avg", "exp_avg_sq"), True

    def __init__(self, weights: Iterable[Parameter], lr: float, *, weight_decay: float) -> None:
        super().__init__(weights, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=weight_decay)

    def _update(self, weights: list[Any], gradients: list[Any], states: dict[str, list[Tensor]], **how: Any) -> None:
        counts = states["step"]
        torch._foreach_add_(counts, 1)
        moments = (states["exp_avg"], states["exp_avg_sq"])
        torch._fused_adamw_(weights, gradients, *moments, [], counts, amsgrad=False, maximize=False, **how)
        if self.found_inf is not None:
            torch._foreach_sub_(counts, [self.found_inf] * len(counts))


def dropped(lr: float, milestones: Sequence[int], epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: a tenth from each milestone on."""
    for _ in range(bisect_right(sorted(milestones), epoch)):
        lr *= 0.1
    return lr
