"""What the update of both encoders is held against, whoever runs the kernel: weights, PyTorch's optimizer, a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.update import UpdateGroup

SIZES = ((3, 5), (1,), (2048,), (2049,), (7, 643))
"""One chunk and less, a chunk and one, several; multiples of no vector."""
ALIGNED = ((64, 40), (4096,), (8,), (12, 256))
MOMENTUM, WEIGHT_DECAY, ALPHA, LR = 0.9, 0.01, 0.95, 0.1
U = 2.0**-24


@dataclass
class Weights:
    """By tensor: of the query encoder, their velocities, of the key encoder; gradients; copies in half precision."""

    query: list[Tensor]
    velocity: list[Tensor]
    key: list[Tensor]
    gradient: list[Tensor]
    query_copy: list[Tensor] | None
    key_copy: list[Tensor] | None

    @staticmethod
    def draw(
        sizes: Sequence[tuple[int, ...]],
        dtype: torch.dtype = torch.float32,
        *,
        gap: int = 32,
        gradient_gap: int = 64,
        device: torch.device | str = "cpu",
    ) -> Weights:
        """``dtype``: of gradients and, unless it is float32, of copies. Storages have gaps of so many elements, and
        roles lie in different orders."""
        generator = torch.Generator().manual_seed(len(sizes))
        query, velocity, key, gradient = (
            [torch.randn(size, generator=generator).to(device) for size in sizes] for _ in range(4)
        )
        copies = None if dtype == torch.float32 else [weight.to(dtype) for weight in query]
        return Weights(
            laid_out(query, gap),
            velocity,
            laid_out(key, gap, backwards=True),
            laid_out([one.to(dtype) for one in gradient], gradient_gap),
            copies and laid_out(copies, 2 * gap),
            copies and laid_out([weight.to(dtype) for weight in key], gap),
        )

    def group(self) -> UpdateGroup:
        """On these weights, with these velocities."""
        group = UpdateGroup(self.query, self.key, self.query_copy, self.key_copy)
        for ours, value in zip(group.velocity, self.velocity, strict=True):
            ours.copy_(value)
        self.velocity = group.velocity
        return group

    def clone(self) -> Weights:
        """On the CPU."""
        return Weights(*([t.cpu().clone() for t in role] if role else None for role in vars(self).values()))

    def copies_of(self, dtype: torch.dtype) -> Weights:
        """Query, key, velocities and gradients in another dtype, without copies in half precision."""
        wide = [[t.to(dtype) for t in role] for role in (self.query, self.velocity, self.key, self.gradient)]
        return Weights(*wide, None, None)


def laid_out(tensors: Sequence[Tensor], gap: int, *, backwards: bool = False) -> list[Tensor]:
    """In one storage, each behind ``gap`` elements and at a multiple of ``gap``."""
    order = list(range(len(tensors)))[:: -1 if backwards else 1]
    starts, end = {}, 0
    for i in order:
        starts[i] = end + gap
        end = starts[i] + -(-tensors[i].numel() // gap) * gap
    storage = torch.full((end,), 9.0, dtype=tensors[0].dtype, device=tensors[0].device)
    pieces = [storage[starts[i] : starts[i] + t.numel()].view(t.shape) for i, t in enumerate(tensors)]
    for piece, tensor in zip(pieces, tensors, strict=True):
        piece.copy_(tensor)
    return pieces


def run(weights: Weights, group: UpdateGroup, *, skip: float = 0.0, scale: float | None = None) -> None:
    """A step of ours, in place."""
    number = weights.gradient[0].new_tensor
    group.step(
        weights.gradient,
        skip=number(skip, dtype=torch.float32),
        lr=number(LR, dtype=torch.float32),
        unscale=None if scale is None else number(scale, dtype=torch.float32).reciprocal(),
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        alpha=ALPHA,
    )


def plainly(weights: Weights, scale: float | None = None) -> Weights:
    """The same by PyTorch, tensor by tensor, in the dtype of the weights."""
    found, dtype = weights.clone(), weights.query[0].dtype
    parameters = [torch.nn.Parameter(weight) for weight in found.query]
    sgd = torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY, foreach=False)
    for parameter, velocity, gradient in zip(parameters, found.velocity, found.gradient, strict=True):
        parameter.grad = gradient.to(dtype) / (1 if scale is None else scale)
        sgd.state[parameter]["momentum_buffer"] = velocity
    sgd.step()
    for key, parameter in zip(found.key, parameters, strict=True):
        key.add_(key - parameter.detach(), alpha=-(1 - ALPHA))
    for copies, masters in ((found.query_copy, found.query), (found.key_copy, found.key)):
        for copy, master in zip(copies or (), masters, strict=False):
            copy.copy_(master)
    return found


def different(ours: Weights, theirs: Weights) -> list[str]:
    """Roles whose bits differ."""
    return [
        role
        for role, tensors in vars(ours).items()
        if tensors and not all(torch.equal(a, b) for a, b in zip(tensors, getattr(theirs, role), strict=True))
    ]


def over_budget(ours: Weights, before: Weights, scale: float | None = None) -> list[str]:
    """Roles that are further from float64 than the roundings of each operation can be."""
    old, truth = before.copies_of(torch.float64), plainly(before.copies_of(torch.float64), scale)
    found = []
    for i in range(len(old.query)):
        summands = old.gradient[i].abs() / (scale or 1) + WEIGHT_DECAY * old.query[i].abs() + old.velocity[i].abs()
        budget = {"velocity": 4 * U * summands, "query": 2 * U * (old.query[i].abs() + LR * 4 * summands)}
        budget["key"] = budget["query"] + 4 * U * (old.key[i].abs() + old.query[i].abs() + LR * summands)
        for role, most in budget.items():
            error = (getattr(ours, role)[i].double() - getattr(truth, role)[i]).abs()
            found += [role] if not (error <= most).all() else []
    return found
