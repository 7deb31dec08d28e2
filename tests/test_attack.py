"""The attack of the training step against the reference, and what it must keep."""

from __future__ import annotations

import pytest
import torch

from fastmc.attack import AttackConfig, AttackHead, attack, attack_loss
from fastmc.augment import present_bodies, to_encoder_layout
from fastmc.encoder import Encoder, EncoderConfig
from fastmc.reference import attack as reference


@pytest.fixture
def setting():
    torch.manual_seed(0)
    x = torch.randn(5, 8, 2, 25, 3)
    x[1, :, 1] = 0  # a clip of one body
    x[2, :3, 1] = 0  # a body that comes late
    encoder = Encoder(EncoderConfig(encoder="1x16"), 150).eval()
    return x, encoder, AttackHead(32, 128)


def classify_with(encoder, head):
    return lambda x: head(encoder.represent(to_encoder_layout(x)))


def test_equals_reference(setting):
    x, encoder, head = setting
    got = attack(x, classify_with(encoder, head), AttackConfig())
    want = reference.attack(
        x.double(),
        lambda x: encoder.double().represent(to_encoder_layout(x)),
        head.double(),
        eps=0.1,
        eta=0.5,
        present=present_bodies(x),
    )
    # Adam's first step is a sign wherever |g| >> 1e-8; elsewhere float32 gradients decide, so compare what dominates.
    error = (got - want).abs().flatten(1)
    assert (error < 1e-5).float().mean() > 0.99
    assert error.max() < 2e-3


def test_norm_limit_zeros_and_constancy(setting):
    x, encoder, head = setting
    for eta in (0.5, 1e-3, 1e3):
        rho = attack(x, classify_with(encoder, head), AttackConfig(attack_norm=eta)) - x
        assert (rho.flatten(1).norm(dim=1) <= eta * (1 + 1e-4)).all()
        assert (rho[~present_bodies(x).expand_as(x)] == 0).all()
        assert not rho.requires_grad
    assert all(p.grad is None for p in encoder.parameters())


def test_each_clip_is_attacked_alone(setting):
    x, encoder, head = setting
    together = attack(x, classify_with(encoder, head), AttackConfig())
    alone = torch.cat([attack(clip[None], classify_with(encoder, head), AttackConfig()) for clip in x])
    assert ((together - alone).abs() < 1e-5).float().mean() > 0.99


def test_moves_towards_the_uniform_distribution(setting):
    x, encoder, head = setting
    classify = classify_with(encoder, head)
    head.weight.data *= 20  # a peaked distribution to begin with
    # A step short enough for the gradient to tell the truth; nothing promises a descent for a long one.
    after = attack_loss(classify(attack(x, classify, AttackConfig(attack_norm=0.02))))
    assert (after < attack_loss(classify(x))).all()


def test_zero_gradient_leaves_the_clip(setting):
    x, *_ = setting
    got = attack(x, lambda x: 0.0 * x.flatten(1)[:, :128], AttackConfig())
    assert torch.equal(got, x)


def test_works_under_no_grad(setting):
    x, encoder, head = setting
    with torch.no_grad():
        assert not torch.equal(attack(x, classify_with(encoder, head), AttackConfig()), x)


@pytest.mark.parametrize("name", ["attack_lr", "attack_norm", "attack_classes"])
def test_config_refuses_nonsense(name):
    with pytest.raises(ValueError, match=name):
        AttackConfig(**{name: 0})
