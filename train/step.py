"""One pre-training step: views, features, loss, backward, optimizer, key encoder, bank."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastmc.augment import PackedClips
from fastmc.model import A2MC, Features


class NonFiniteError(RuntimeError):
    """The loss or a gradient is not finite. Weights, statistics and bank are as they were before the step."""


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


def pretrain_step(
    model: A2MC, optimizer: torch.optim.Optimizer, clips: PackedClips, sample: Tensor, step: int, *, filling: bool
) -> StepMetrics:
    """Advance query encoder, key encoder and bank by one batch.

    Args:
        clips: the batch; sample: (B,) int64, its clip ids.
        step: number of this step, which keys its random choices.
        filling: the bank is not yet full of f0: a plain InfoNCE step that writes f0 to it.

    Raises:
        NonFiniteError: before anything is changed.
    """
    model.train()
    hard_positives = model.contrast.method != "b1" and not filling
    mixing = None if filling else model.mixing(step)

    statistics = [buffer.clone() for buffer in _norm_buffers(model)]
    f = model.features(clips, sample, step, hard_positives=hard_positives)
    l1, l2, l3 = model.loss_parts(f, mixing)
    loss = l1 + l2 + l3
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    fault = _non_finite(model, loss, (l1, l2, l3))
    if fault:
        for buffer, before in zip(_norm_buffers(model), statistics, strict=True):
            buffer.copy_(before)
        raise NonFiniteError(f"step {step}: {fault}")

    top1, positive_probability = model.contrast_metrics(f)
    optimizer.step()
    model.update_key_()
    model.update_bank_(f, mixing, learn=model.contrast.learns_bank and not filling)
    return StepMetrics(loss.detach(), l1.detach(), l2.detach(), l3.detach(), top1, positive_probability, feature_std(f))


def feature_std(f: Features) -> Tensor:
    return f.f3.detach().std(dim=0, correction=0).mean()


def _norm_buffers(model: A2MC) -> list[Tensor]:
    """Running statistics of the input norms, the one thing that a forward pass changes."""
    return [*model.query.buffers(), *model.key.buffers()]


def _non_finite(model: A2MC, loss: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> str | None:
    """What is wrong if loss or gradient are not finite. The step's one wait for the device."""
    gradients = [p.grad for p in model.query.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if bool(torch.isfinite(loss) & torch.isfinite(norm)):
        return None
    values = ", ".join(f"{name} = {part.item():g}" for name, part in zip(("L1", "L2", "L3"), parts, strict=True))
    return f"loss = {loss.item():g} ({values}), gradient norm = {norm.item():g}"
