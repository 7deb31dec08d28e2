"""One pre-training step (section 3, figure 2): the equations in their order, one clip and one view at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.reference import augment
from fastmc.reference.attack import attack
from fastmc.reference.bank import bank_step
from fastmc.reference.contrast import info_nce, mc_loss_parts, normalise, similarity_distribution
from fastmc.reference.ema import ema_

Choices = Mapping[str, Any]
"""What is done to one clip for one view: the arguments of `fastmc.reference.augment.view`, size and mirror aside."""
Metrics = dict[str, Tensor]
"""Scalars, means over the batch: loss, l1, l2, l3 (eq. 9-11), top1 (the share of samples whose positive is nearer to f3
than every bank entry), positive_probability (psi(f3, f0) of eq. 2 at the bank's temperature), and feature_std (the mean
standard deviation of the elements of f3)."""


class Encoder(nn.Module):
    """Clips (B, T, F), F = V * M * 3, to unit features (B, D): input normalisation, bidirectional GRU, projection head.

    Its weights have the names of those of `fastmc.encoders.bigru.Encoder`.
    """

    def __init__(self, input_size: int, hidden: int, layers: int, feature_dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(input_size)
        self.recurrent = nn.GRU(input_size, hidden, layers, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, feature_dim))

    def represent(self, x: Tensor) -> Tensor:
        """(B, 2 * hidden), the final states of both directions."""
        _, final = self.recurrent(self.normalised(x))
        return torch.cat([final[-2], final[-1]], dim=1)

    def normalised(self, x: Tensor) -> Tensor:
        """Every channel over batch and time."""
        return self.norm(x.flatten(0, 1)).view_as(x)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.head(self.represent(x)), dim=1)


def pretrain_step(
    query: Encoder,
    key: Encoder,
    fc: nn.Module,
    optimizer: torch.optim.Optimizer,
    bank: Tensor,
    momentum: Tensor,
    clips: Sequence[Tensor],
    choices: Sequence[Sequence[Choices]],
    mixing: Tensor | float | None,
    *,
    size: int,
    mirror: Sequence[int],
    eps: float = 0.1,
    eta: float = 0.5,
    **settings: Any,
) -> Metrics:
    """One step of A²MC. It changes query (by ``optimizer``, which holds its parameters), key, bank and momentum.

    Args:
        fc: the fixed random layer of eq. 5.
        bank, momentum: (K, D).
        clips: B clips (T_n, M, V, 3), metres; a body that a clip lacks is zero.
        choices: of views 0..3, for each of the clips. Views 1 and 2 are cropped from attacked clips of ``size`` frames.
        mixing: lambda of eq. 8.
        size: T. mirror: of the skeleton's joints.
        eps, eta: of the attack (eq. 6).
        settings: of `learn`.
    """
    x0, x3 = (make_view(clips, choices[view], size, mirror) for view in (0, 3))
    x_hat = attacked(query, fc, torch.stack([layout(whole(clip, size)) for clip in clips]), clips[0].shape[1], eps, eta)
    x1, x2 = (make_view(as_clips(x_hat, clips[0].shape[1]), choices[view], size, mirror) for view in (1, 2))
    return learn(query, key, optimizer, bank, momentum, x0, x1, x2, x3, mixing, **settings)


def make_view(clips: Sequence[Tensor], choices: Sequence[Choices], size: int, mirror: Sequence[int]) -> Tensor:
    """The same view of each clip, (B, size, V * M * 3)."""
    pairs = zip(clips, choices, strict=True)
    return torch.stack([layout(augment.view(clip, size=size, mirror=mirror, **chosen)) for clip, chosen in pairs])


def whole(clip: Tensor, size: int) -> Tensor:
    """x of eq. 5: a clip (T_n, M, V, 3) resized to ``size`` frames."""
    return augment.temporal_crop_resize(clip, 0, len(clip), size)


def layout(clip: Tensor) -> Tensor:
    """(T, M, V, 3) as the encoder reads it: (T, V * M * 3)."""
    return clip.transpose(1, 2).flatten(1)


def as_clips(x: Tensor, bodies: int) -> list[Tensor]:
    """The inverse of `layout`, for B clips (B, T, V * M * 3)."""
    return list(x.unflatten(2, (-1, bodies, 3)).transpose(2, 3))


def attacked(query: Encoder, fc: nn.Module, x: Tensor, bodies: int, eps: float, eta: float) -> Tensor:
    """x_hat of eq. 6, (B, T, V * M * 3) as x. The encoder is fixed: it normalises by its running statistics, so that
    clips do not influence each other."""
    joints = x.unflatten(2, (-1, bodies, 3))
    present = (joints != 0).any(dim=4, keepdim=True).any(dim=2, keepdim=True).expand_as(joints).flatten(2)
    query.norm.eval()
    x_hat = attack(x, query.represent, fc, eps=eps, eta=eta, present=present)
    query.norm.train()
    return x_hat


def learn(
    query: Encoder,
    key: Encoder,
    optimizer: torch.optim.Optimizer,
    bank: Tensor,
    momentum: Tensor,
    x0: Tensor,
    x1: Tensor,
    x2: Tensor,
    x3: Tensor,
    mixing: Tensor | float | None,
    *,
    temperature: float = 0.07,
    bank_temperature: float = 0.03,
    bank_lr: float = 3.0,
    bank_momentum: float = 0.9,
    bank_weight_decay: float = 1e-4,
    ema: float = 0.999,
    mix: str = "own",
) -> Metrics:
    """From four views (B, T, V * M * 3) to new weights: features, MC loss, query encoder, key encoder, bank.

    Each view has statistics of its own, in this order: the running statistics of the input norm depend on it.
    """
    f3, f1, f2 = query(x3), query(x1), query(x2)
    with torch.no_grad():
        f0 = key(x0)
    losses = mc_loss_parts(f0, f1, f2, f3, bank, mixing, temperature=temperature, mix=mix)
    found = metrics(losses, f0, f3, bank, bank_temperature)
    descend(losses[0] + losses[1] + losses[2], optimizer)
    ema_(key, query, ema)
    bank[:], momentum[:] = bank_step(
        bank,
        momentum,
        f0,
        f1,
        f2,
        f3,
        mixing,
        temperature=bank_temperature,
        lr=bank_lr,
        momentum_factor=bank_momentum,
        weight_decay=bank_weight_decay,
        mix=mix,
    )
    return found


def filling_step(
    query: Encoder,
    key: Encoder,
    optimizer: torch.optim.Optimizer,
    bank: Tensor,
    clips: Sequence[Tensor],
    choices: Sequence[Sequence[Choices]],
    written: int,
    *,
    size: int,
    mirror: Sequence[int],
    temperature: float = 0.07,
    bank_temperature: float = 0.03,
    ema: float = 0.999,
) -> Metrics:
    """A step while the bank is not full: InfoNCE (eq. 1) of x3 against x0, whose features go to the bank's next rows.

    Arguments as of `pretrain_step`; written: features that the bank was given so far.
    """
    x0, x3 = (make_view(clips, choices[view], size, mirror) for view in (0, 3))
    f3 = query(x3)
    with torch.no_grad():
        f0 = key(x0)
    loss = info_nce(f3, f0, normalise(bank), temperature)
    found = metrics((torch.zeros_like(loss), torch.zeros_like(loss), loss), f0, f3, bank, bank_temperature)
    descend(loss, optimizer)
    ema_(key, query, ema)
    for n, f in enumerate(f0):
        bank[(written + n) % len(bank)] = f
    return found


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def metrics(losses: Sequence[Tensor], f0: Tensor, f3: Tensor, bank: Tensor, bank_temperature: float) -> Metrics:
    """Of L_1, L_2, L_3, the features (B, D), and the bank (K, D) as it was when the loss was taken."""
    l1, l2, l3 = (loss.detach() for loss in losses)
    m0 = normalise(bank)
    return {
        "loss": l1 + l2 + l3,
        "l1": l1,
        "l2": l2,
        "l3": l3,
        "top1": ((f3 * f0).sum(dim=1) > (f3 @ m0.T).amax(dim=1)).to(l3.dtype).mean(),
        "positive_probability": similarity_distribution(f3, f0, m0, bank_temperature)[:, 0].mean(),
        "feature_std": f3.std(dim=0, correction=0).mean(),
    }
