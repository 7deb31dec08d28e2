"""Gradients that are given go back as by torch.autograd, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastmc.derivatives import carry_back, gradient_to


def outputs_of(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return x @ w, (x @ w).tanh()[:, :2]


def test_given_gradients_go_back_as_by_autograd():
    generator = torch.Generator().manual_seed(0)
    x, w, g1, g2 = (torch.randn(shape, generator=generator) for shape in ((5, 4), (4, 3), (5, 3), (5, 2)))
    found = []
    for carry in (torch.autograd.backward, carry_back):
        leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
        carry(outputs_of(*leaves), (g1, g2))
        found.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    leaf = x.clone().requires_grad_()
    only = gradient_to(leaf, outputs_of(leaf, w), (g1, g2))
    assert torch.equal(only, found[0][0]) and leaf.grad is None


def test_a_gradient_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"a gradient of shape \(3,\) for an output of \(2, 3\)"):
        carry_back([torch.ones(2, 3, requires_grad=True)], [torch.ones(3)])
