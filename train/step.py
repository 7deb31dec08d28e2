"""One pre-training step: views, features, loss, backward, optimizer, key encoder, bank."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastmc.model import A2MC, Features
from fastmc.step import MCStep
from fastmc.views import PackedClips


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


def pretrain_step(
    model: A2MC, optimizer: torch.optim.Optimizer, clips: PackedClips, sample: Tensor, step: int, *, filling: bool
) -> StepMetrics:
    """Advance query encoder, key encoder and bank by one batch.

    Args:
        clips: the batch; sample: (B,) int64, its clip ids.
        step: number of this step, which keys its random choices.
        filling: the bank is not yet full of f0: a plain InfoNCE step that writes f0 to it.

    Raises:
        NonFiniteError: see there for what is unchanged.
    """
    model.train()
    hard_positives = model.contrast.method != "b1" and not filling
    mixing = None if filling else model.mixing(step)

    statistics = [buffer.clone() for buffer in _norm_buffers(model)]
    f = model.features(clips, sample, step, hard_positives=hard_positives)
    found = model.contrast_step_(f, mixing, filling=filling)
    optimizer.zero_grad(set_to_none=True)
    _backward(f, found)
    fault = _non_finite(model, found)
    if fault:
        for buffer, before in zip(_norm_buffers(model), statistics, strict=True):
            buffer.copy_(before)
        raise NonFiniteError(f"step {step}: {fault}")

    optimizer.step()
    model.update_key_()
    top1 = found.top1_count / len(f.f3)
    return StepMetrics(found.loss, found.l1, found.l2, found.l3, top1, found.positive_probability, feature_std(f))


def _backward(f: Features, found: MCStep) -> None:
    """Carry the gradients of the features into the query encoder."""
    pairs = ((f.f1, found.df1), (f.f2, found.df2), (f.f3, found.df3))
    features, gradients = zip(*((x, g) for x, g in pairs if x is not None), strict=True)
    torch.autograd.backward(features, gradients)


def feature_std(f: Features) -> Tensor:
    return f.f3.detach().std(dim=0, correction=0).mean()


def _norm_buffers(model: A2MC) -> list[Tensor]:
    """Running statistics of the input norms, the one thing that a forward pass changes."""
    return [*model.query.buffers(), *model.key.buffers()]


def _non_finite(model: A2MC, found: MCStep) -> str | None:
    """What is wrong if loss or gradient are not finite. The step's one wait for the device."""
    gradients = [p.grad for p in model.query.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    if bool(torch.isfinite(found.loss) & torch.isfinite(norm)):
        return None
    values = ", ".join(f"{name} = {value.item():g}" for name, value in zip(("L1", "L2", "L3"), found[1:4], strict=True))
    left = "The bank has moved; weights" if torch.isfinite(found.loss) else "Weights and bank"
    values = f"loss = {found.loss.item():g} ({values}), gradient norm = {norm.item():g}"
    return f"{values}. {left} were left as before this step"
