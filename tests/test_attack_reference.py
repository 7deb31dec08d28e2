"""The targeted semantic attack (eq. 5, 6)."""

from __future__ import annotations

import pytest
import torch
from every_pair import every_pair
from torch import Tensor, nn

from fastmc.reference.attack import attack, attack_loss, limit_norm

B, T, M, V = 6, 8, 2, 5
NUM_CLASSES = 16


class MeanEncoder(nn.Module):
    """(B, T, M, V, 3) to (B, 12): a per-frame layer, a nonlinearity, a mean over time."""

    def __init__(self, dtype: torch.dtype, scale: float) -> None:
        super().__init__()
        self.layer = nn.Linear(M * V * 3, 12, dtype=dtype)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x.flatten(2)) * self.scale).mean(dim=1)


def setup(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, MeanEncoder, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(B, T, M, V, 3, dtype=dtype)
        return x, MeanEncoder(dtype, scale), nn.Linear(12, NUM_CLASSES, dtype=dtype)


def norms(rho: Tensor) -> Tensor:
    return rho.flatten(1).norm(dim=1)


def test_attack_loss_by_hand() -> None:
    x = torch.tensor([[0.0, 0.0], [0.0, 3.0]], dtype=torch.float64).log1p()  # softmax gives 1/2, 1/2 and 1/5, 4/5
    loss = attack_loss(x, nn.Identity(), nn.Identity())
    torch.testing.assert_close(loss, torch.tensor([0.0, (0.3**2 + 0.3**2) / 2], dtype=torch.float64))


def test_attack_is_the_first_step_of_adam_scaled_to_eta() -> None:
    x, encoder, fc = setup()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(attack_loss(x, encoder, fc).sum(), x)
    step = -0.1 * gradient / (gradient.abs() + 1e-8)
    unlimited = attack(x, encoder, fc, eps=0.1, eta=1e6) - x
    torch.testing.assert_close(unlimited, step, rtol=1e-9, atol=1e-14)
    assert (norms(step) > 0.5).all()
    scaled = step * (0.5 / norms(step)).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(attack(x, encoder, fc, eps=0.1, eta=0.5) - x, scaled, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(
    ("eta", "dtype", "scale"), every_pair([1e-3, 0.5, 2.0], [torch.float32, torch.float64], [1e-3, 1.0, 1e3])
)
def test_no_sequence_moves_further_than_eta(eta: float, dtype: torch.dtype, scale: float) -> None:
    x, encoder, fc = setup(dtype, scale)
    rho = attack(torch.zeros_like(x), encoder, fc, eta=eta)  # around zero, x + rho rounds nothing away
    assert torch.isfinite(rho).all()
    assert (norms(rho.double()) <= eta * (1 + 4 * torch.finfo(dtype).eps)).all()
    assert (norms(rho) > 0).all()


def test_limit_norm_leaves_short_ones_alone() -> None:
    rho = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    torch.testing.assert_close(limit_norm(rho, 1.0), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    torch.testing.assert_close(limit_norm(rho, 0.0), torch.zeros(3, 2))


def test_zero_gradient_gives_zero_perturbation() -> None:
    x, encoder, fc = setup()
    with torch.no_grad():
        fc.weight.zero_()
        fc.bias.zero_()  # f_a is uniform whatever x is
    assert torch.equal(attack(x, encoder, fc), x)


def test_sequences_are_attacked_independently_of_the_batch() -> None:
    x, encoder, fc = setup()
    together = attack(x, encoder, fc)
    alone = torch.cat([attack(one, encoder, fc) for one in x.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-14)


def test_missing_bodies_stay_exactly_where_they_are() -> None:
    x, encoder, fc = setup()
    present = torch.ones(B, T, M, 1, 1, dtype=torch.bool)
    present[::2, :, 1] = False  # one person only
    present[1, 3:] = False  # frames without anybody
    x = x * present
    x_hat = attack(x, encoder, fc, present=present)
    missing = ~present.expand_as(x)
    assert (x_hat[missing] == 0).all()
    assert (attack(x, encoder, fc)[missing] != 0).any(), "without the mask they would move"
    # What remains spends the whole of eta, so the limit applies after the mask.
    torch.testing.assert_close(norms(x_hat - x), torch.full((B,), 0.5, dtype=torch.float64))


def test_attack_leaves_no_trace_on_the_networks_or_on_x() -> None:
    x, encoder, fc = setup()
    x.requires_grad_()
    before = x.detach().clone()
    with torch.no_grad():
        x_hat = attack(x, encoder, fc)
    assert not x_hat.requires_grad and x.grad is None and torch.equal(x, before)
    assert all(p.grad is None for p in (*encoder.parameters(), *fc.parameters()))
