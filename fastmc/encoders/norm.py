"""Batch normalisation with statistics of each view, and of the whole batch where several ranks share it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fastmc.arguments import working_dtype
from fastmc.ranks import ALONE, Alone, stacked


class ViewNorm(nn.BatchNorm1d):
    """Batch normalisation of (views * B, T, F) over batch and time, each view with statistics of its own: a view's
    features do not depend on which other views share the call.

    Attributes:
        ranks: who share the batch; the statistics are those of all their clips. See `share_statistics`.
    """

    ranks: Alone = ALONE

    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        if self.training and self.ranks.size > 1:
            wide = self.standardise(x.to(working_dtype(x)), views)
            return torch.addcmul(self.bias, wide, self.weight).to(x.dtype)
        normalised = [super(ViewNorm, self).forward(view.flatten(0, 1)).view_as(view) for view in x.chunk(views)]
        return torch.cat(normalised) if views > 1 else normalised[0]

    def standardise(self, x: Tensor, views: int = 1) -> Tensor:
        """The same, running statistics included, but without weight and bias."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(views)
        mean, var, momentum = self.running_mean, self.running_var, self.momentum or 0.0
        if self.ranks.size > 1:
            return self._standardise_of_all(x.unflatten(0, (views, -1))).flatten(0, 1)
        normalised = [
            F.batch_norm(view.flatten(0, 1), mean, var, training=True, momentum=momentum, eps=self.eps).view_as(view)
            for view in x.chunk(views)
        ]
        return torch.cat(normalised) if views > 1 else normalised[0]

    def _standardise_of_all(self, x: Tensor) -> Tensor:
        """x (views, B, T, F) by the moments over the rows of all ranks, which one exchange of 2 F + 1 numbers a view
        gives: (n, mean, n var) of each rank, joined as Chan, Golub and LeVeque (1983) join those of two samples."""
        var, mean = torch.var_mean(x, dim=(1, 2), correction=0)
        count = torch.full_like(mean[:, :1], x.shape[1] * x.shape[2])
        n, means, squares = stacked(self.ranks, torch.cat((count, mean, var * count), dim=1)).split(
            [1, mean.shape[1], mean.shape[1]], dim=2
        )
        total = n.sum(0)
        mean = (n * means).sum(0) / total
        var = (squares + n * (means - mean).square()).sum(0) / total
        self._follow(mean.detach(), var.detach() * (total / (total - 1)))
        return (x - mean[:, None, None]) * torch.rsqrt(var + self.eps)[:, None, None]

    @torch.no_grad()
    def _follow(self, means: Tensor, variances: Tensor) -> None:
        """Carry the running statistics on by those of each view, one after the other."""
        assert self.running_mean is not None and self.running_var is not None
        for mean, variance in zip(means, variances, strict=True):
            self.running_mean.lerp_(mean, self.momentum or 0.0)
            self.running_var.lerp_(variance, self.momentum or 0.0)


def exchanges(network: nn.Module) -> bool:
    """Whether a norm of a network takes its statistics of the clips of several ranks, which no compiler can follow."""
    return any(isinstance(part, ViewNorm) and part.ranks.size > 1 for part in network.modules())


def share_statistics(network: nn.Module, ranks: Alone) -> None:
    """From now on the norms of a network take their statistics of the clips of all ranks.

    Raises:
        ValueError: it has a batch normalisation of PyTorch's, which would take those of one rank's.
    """
    for name, part in network.named_modules():
        if isinstance(part, ViewNorm):
            part.ranks = ranks
        elif isinstance(part, _BatchNorm) and ranks.size > 1:
            raise ValueError(
                f"{name} of {type(network).__name__} is a {type(part).__name__}, whose statistics would be those of "
                "one rank's clips; make it a fastmc.encoders.norm.ViewNorm, or train on one rank"
            )
