"""Equation 4: the key encoder follows the query encoder."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def ema_(theta_k: nn.Module, theta_q: nn.Module, alpha: float = 0.999) -> None:
    """theta_k <- alpha theta_k + (1 - alpha) theta_q (eq. 4), in place, for the parameters of two equal modules.

    Buffers (the running statistics of a batch norm) are not parameters and stay what they are.
    """
    for k, q in zip(theta_k.parameters(), theta_q.parameters(), strict=True):
        k.copy_(alpha * k + (1 - alpha) * q)
