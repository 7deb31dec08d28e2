"""The reference against arithmetic that can be followed by hand: scalars, loops, closed forms, finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc.reference import contrast
from fastmc.reference.ema import ema_

MIXES = ["own", "tiled"]
Features = tuple[Tensor, Tensor, Tensor, Tensor]


def unit_rows(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def problem(b: int, k: int, d: int, seed: int = 0) -> tuple[Features, Tensor, Tensor]:
    """Features f0..f3, raw bank rows of many lengths, one mixing coefficient per entry."""
    f0, f1, f2, f3 = (unit_rows(b, d, seed=seed * 10 + i) for i in range(4))
    generator = torch.Generator().manual_seed(seed + 99)
    lengths = 0.1 + 3 * torch.rand(k, 1, generator=generator, dtype=torch.float64)
    bank = unit_rows(k, d, seed=seed * 10 + 5) * lengths
    return (f0, f1, f2, f3), bank, torch.rand(k, generator=generator, dtype=torch.float64)


def dot(u: list[float], v: list[float]) -> float:
    return sum(a * b for a, b in zip(u, v, strict=True))


def scalar_psi(logits: list[float], temperature: float) -> list[float]:
    top = max(logits)
    weights = [math.exp((x - top) / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


Rows = list[list[float]]


def scalar_parts(features: list[Rows], bank: Rows, mixing: list[float] | None, tau: float, mix: str) -> list[float]:
    """Eq. 8-11 in plain Python on nested lists, one sample and one bank entry at a time."""
    f0, f1, f2, f3 = features
    parts = [0.0, 0.0, 0.0]
    m0 = [[x / math.sqrt(dot(row, row)) for x in row] for row in bank]

    def doubled(f: Rows, n: int) -> Rows:
        if mixing is None:
            return m0
        mixed = []
        for i, row in enumerate(m0):
            source = f[n] if mix == "own" else f[i % len(f)]
            mixed.append([mixing[i] * a + (1 - mixing[i]) * b for a, b in zip(source, row, strict=True)])
        return m0 + mixed

    for n in range(len(f0)):
        m01, m02, m03 = doubled(f1, n), doubled(f2, n), doubled(f3, n)
        psi1 = scalar_psi([dot(f1[n], v) for v in [f0[n], *m01]], tau)
        psi2 = scalar_psi([dot(f2[n], v) for v in [f0[n], *m02]], tau)
        psi3 = scalar_psi([dot(f3[n], v) for v in [f0[n], *m03]], tau)
        target = scalar_psi([dot(f3[n], v) for v in [f0[n], *m02]], tau)
        parts[0] -= math.log(psi1[0]) / len(f0)
        parts[1] -= sum(t * math.log(p) for t, p in zip(target, psi2, strict=True)) / len(f0)
        parts[2] -= math.log(psi3[0]) / len(f0)
    return parts


# One sample, two entries, two dimensions, multiplied out on paper:
#   m_1 = (1, 0) and m_2 = (.6, .8) after normalising, lambda = .25 and .5
#   M_1 = (.9, .2), (.6, .8)    M_2 = (.95, -.15), (.7, .1)    M_3 = (.75, .25), (.3, .9)
F0, F1, F2, F3 = (torch.tensor([row], dtype=torch.float64) for row in ([1.0, 0.0], [0.6, 0.8], [0.8, -0.6], [0.0, 1.0]))
BANK = torch.tensor([[2.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
MIXING, TAU = torch.tensor([0.25, 0.5], dtype=torch.float64), 0.5
HAND_LOGITS = {  # u with f0, m_1, m_2, then with the mixed entries
    "f1 on M01": [0.6, 0.6, 1.0, 0.7, 1.0],
    "f2 on M02": [0.8, 0.8, 0.0, 0.85, 0.5],
    "f3 on M02": [0.0, 0.0, 0.8, -0.15, 0.1],
    "f3 on M03": [0.0, 0.0, 0.8, 0.25, 0.9],
}


@pytest.mark.parametrize("mix", MIXES)  # with one sample, both are the same
def test_parts_equal_a_case_multiplied_out_by_hand(mix: str) -> None:
    psi = {name: scalar_psi(logits, TAU) for name, logits in HAND_LOGITS.items()}
    l1 = -math.log(psi["f1 on M01"][0])
    l2 = -sum(t * math.log(p) for t, p in zip(psi["f3 on M02"], psi["f2 on M02"], strict=True))
    l3 = -math.log(psi["f3 on M03"][0])

    parts = contrast.mc_loss_parts(F0, F1, F2, F3, BANK, MIXING, temperature=TAU, mix=mix)
    assert [p.item() for p in parts] == pytest.approx([l1, l2, l3], rel=1e-14)
    loss = contrast.mc_loss(F0, F1, F2, F3, BANK, MIXING, temperature=TAU, mix=mix)
    assert loss.item() == pytest.approx(l1 + l2 + l3, rel=1e-14)


def test_parts_without_mixing_use_the_plain_half_only() -> None:
    psi = {name: scalar_psi(logits[:3], TAU) for name, logits in HAND_LOGITS.items()}
    expected = [
        -math.log(psi["f1 on M01"][0]),
        -sum(t * math.log(p) for t, p in zip(psi["f3 on M02"], psi["f2 on M02"], strict=True)),
        -math.log(psi["f3 on M03"][0]),
    ]
    parts = contrast.mc_loss_parts(F0, F1, F2, F3, BANK, None, temperature=TAU)
    assert [p.item() for p in parts] == pytest.approx(expected, rel=1e-14)


def test_mixed_bank_by_hand() -> None:
    f = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    m0 = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    mixing = torch.tensor([0.5, 0.25, 0.0])
    own = contrast.mixed_bank(f, m0, mixing, "own")
    tiled = contrast.mixed_bank(f, m0, mixing, "tiled")
    torch.testing.assert_close(own[0], torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.6, 0.8]]))
    torch.testing.assert_close(own[1], torch.tensor([[0.0, 1.0], [0.75, 0.25], [0.6, 0.8]]))
    torch.testing.assert_close(tiled, torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.6, 0.8]]))
    torch.testing.assert_close(contrast.mixed_bank(f, m0, 1.0, "tiled"), f[[0, 1, 0]])


@settings(max_examples=30, deadline=None)
@given(
    b=st.integers(1, 5),
    k=st.integers(1, 9),
    d=st.integers(1, 6),
    temperature=st.floats(0.02, 2),
    mix=st.sampled_from(MIXES),
    mixing=st.sampled_from(["vector", "number", "none"]),
    seed=st.integers(0, 1000),
)
def test_parts_equal_scalar_loops(b: int, k: int, d: int, temperature: float, mix: str, mixing: str, seed: int) -> None:
    features, bank, vector = problem(b, k, d, seed)
    coefficients: Tensor | float | None = None
    if mixing != "none":
        coefficients = vector if mixing == "vector" else 0.3
    as_list = {"vector": vector.tolist(), "number": [0.3] * k, "none": None}[mixing]
    expected = scalar_parts([f.tolist() for f in features], bank.tolist(), as_list, temperature, mix)
    parts = contrast.mc_loss_parts(*features, bank, coefficients, temperature=temperature, mix=mix)
    assert [p.item() for p in parts] == pytest.approx(expected, rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("k", [1, 7, 64])
def test_equal_logits_give_the_log_of_the_number_of_candidates(mix: str, k: int) -> None:
    f = unit_rows(1, 8, seed=0).expand(5, 8)
    bank = 2.5 * f[:1].expand(k, 8)
    doubled = contrast.mc_loss_parts(f, f, f, f, bank, 0.3, temperature=0.07, mix=mix)
    plain = contrast.mc_loss_parts(f, f, f, f, bank, None, temperature=0.07)
    assert [p.item() for p in doubled] == pytest.approx([math.log(2 * k + 1)] * 3, rel=1e-12)
    assert [p.item() for p in plain] == pytest.approx([math.log(k + 1)] * 3, rel=1e-12)
    assert contrast.info_nce(f, f, contrast.normalise(bank), 0.07).item() == pytest.approx(math.log(k + 1), rel=1e-12)


def test_equation_1_equals_equation_3_and_cross_entropy() -> None:
    (f0, f3, *_), bank, _ = problem(6, 11, 4)
    m = contrast.normalise(bank)
    tau = 0.2
    positive, negatives = (f3 * f0).sum(1) / tau, f3 @ m.T / tau
    equation_1 = -(positive.exp() / (positive.exp() + negatives.exp().sum(1))).log().mean()
    library = F.cross_entropy(torch.cat([positive[:, None], negatives], dim=1), torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(contrast.info_nce(f3, f0, m, tau), equation_1, rtol=1e-13, atol=0)
    torch.testing.assert_close(contrast.info_nce(f3, f0, m, tau), library, rtol=1e-13, atol=0)


def test_similarity_distribution_is_a_distribution_and_takes_one_bank_or_one_per_sample() -> None:
    (u, v, *_), bank, _ = problem(4, 9, 3)
    psi = contrast.similarity_distribution(u, v, bank, 0.1)
    assert psi.shape == (4, 10)
    assert (psi > 0).all()
    torch.testing.assert_close(psi.sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(psi, contrast.similarity_distribution(u, v, bank.expand(4, 9, 3), 0.1))


# The loss holds constants (the target, the feature inside a mixed bank), so its gradient is not its derivative. The
# derivative is that of the same loss with its constants frozen, which is written out here and differentiated both ways.


def loss_with_frozen_constants(
    f0: Tensor, constants: tuple[Tensor, ...], target: Tensor, f1: Tensor, f2: Tensor, f3: Tensor, bank: Tensor,
    mixing: Tensor | float | None, tau: float, mix: str,
) -> Tensor:  # fmt: skip
    m0 = contrast.normalise(bank)
    m01, m02, m03 = (
        m0 if mixing is None else contrast.union(m0, contrast.mixed_bank(c, m0, mixing, mix)) for c in constants
    )
    prediction = contrast.log_similarity_distribution(f2, f0, m02, tau)
    l2 = contrast.cross_entropy(target, prediction)
    return contrast.info_nce(f1, f0, m01, tau) + l2 + contrast.info_nce(f3, f0, m03, tau)


@pytest.mark.parametrize("mixing", ["vector", "none"])
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 5, 4)])
def test_gradients_are_the_finite_differences_with_the_constants_frozen(
    shape: tuple[int, int, int], mix: str, mixing: str
) -> None:
    features, bank, vector = problem(*shape)
    coefficients = vector if mixing == "vector" else None
    tau = 0.3
    f0, f1, f2, f3 = features
    constants = (f1.clone(), f2.clone(), f3.clone())
    m0 = contrast.normalise(bank)
    m02 = m0 if coefficients is None else contrast.union(m0, contrast.mixed_bank(f2, m0, coefficients, mix))
    target = contrast.similarity_distribution(f3, f0, m02, tau)

    def frozen(f1: Tensor, f2: Tensor, f3: Tensor, bank: Tensor) -> Tensor:
        return loss_with_frozen_constants(f0, constants, target, f1, f2, f3, bank, coefficients, tau, mix)

    inputs = (f1, f2, f3, bank)
    for tensor in inputs:
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(frozen, inputs, eps=1e-6, atol=1e-7, rtol=1e-6)

    expected = torch.autograd.grad(frozen(*inputs), inputs)
    loss = contrast.mc_loss(f0, f1, f2, f3, bank, coefficients, temperature=tau, mix=mix)
    for ours, theirs in zip(torch.autograd.grad(loss, inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_that_the_constants_are_frozen_makes_a_difference() -> None:
    """The check above would notice a leak: without detaching, the gradients of f2 and f3 are others."""
    (f0, f1, f2, f3), bank, mixing = problem(3, 5, 4)
    inputs = (f2.requires_grad_(), f3.requires_grad_())

    def l2(feature: Tensor, target_feature: Tensor) -> Tensor:
        m0 = contrast.normalise(bank)
        m02 = contrast.union(m0, mixing[:, None] * feature[:, None] + (1 - mixing[:, None]) * m0)
        log_psi = contrast.log_similarity_distribution(feature, f0, m02, 0.3)
        return contrast.cross_entropy(contrast.similarity_distribution(target_feature, f0, m02, 0.3), log_psi)

    leaked = torch.autograd.grad(l2(*inputs), inputs)
    _, part, _ = contrast.mc_loss_parts(f0, f1, f2, f3, bank, mixing, temperature=0.3)
    torch.testing.assert_close(part, l2(*inputs))
    ours = torch.autograd.grad(part, inputs, allow_unused=True)
    assert ours[1] is None
    assert (ours[0] - leaked[0]).abs().max() > 1e-3
    assert leaked[1].abs().max() > 1e-3


def test_no_gradient_reaches_f0_or_the_mixing() -> None:
    features, bank, mixing = problem(3, 5, 4)
    for tensor in (*features, bank, mixing):
        tensor.requires_grad_()
    contrast.mc_loss(*features, bank, mixing, temperature=0.1).backward()
    assert features[0].grad is None and mixing.grad is None
    assert all(t.grad is not None for t in (*features[1:], bank))


@pytest.mark.parametrize("mix", MIXES)
def test_only_the_direction_of_a_bank_row_matters(mix: str) -> None:
    features, bank, mixing = problem(4, 9, 5)
    bank.requires_grad_()
    loss = contrast.mc_loss(*features, bank, mixing, temperature=0.1, mix=mix)
    scaled = contrast.mc_loss(*features, bank * (1 + torch.arange(9)[:, None]), mixing, temperature=0.1, mix=mix)
    torch.testing.assert_close(loss, scaled, rtol=1e-13, atol=0)
    (gradient,) = torch.autograd.grad(loss, bank)
    assert (gradient * bank).sum(1).abs().max() < 1e-14


def test_zero_bank_row_counts_as_similarity_zero() -> None:
    (f0, f1, *_), bank, _ = problem(2, 3, 4)
    bank[1] = 0
    psi = contrast.log_similarity_distribution(f1, f0, contrast.normalise(bank), 0.5)
    expected = -(f1 * f0).sum(1) / 0.5
    torch.testing.assert_close(psi[:, 2] - psi[:, 0], expected)


def test_ema_by_hand() -> None:
    key, query = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        key.weight.copy_(torch.tensor([[1.0, 2.0]]))
        key.bias.fill_(3.0)
        query.weight.copy_(torch.tensor([[5.0, -2.0]]))
        query.bias.fill_(7.0)
    ema_(key, query, alpha=0.75)
    torch.testing.assert_close(key.weight.detach(), torch.tensor([[2.0, 1.0]]))
    torch.testing.assert_close(key.bias.detach(), torch.tensor([4.0]))
    torch.testing.assert_close(query.weight.detach(), torch.tensor([[5.0, -2.0]]))
    with pytest.raises(ValueError):
        ema_(key, nn.Linear(2, 1, bias=False))
