"""The attack's kernels by value, interpreted: odd shapes, hostile input, the whole attack, counted traffic.

Bounds, races between programs and memory that nobody stored are checked on the way (``kernels_on_cpu``).
"""

from __future__ import annotations

import attack_cases as cases
import pytest
import torch
from attack_cases import FINITE, HOSTILE, LOGITS, assert_logit_gradient, assert_norm_limit, assert_step
from gpu_less import kernels_on_cpu

from bench.watch import watch
from fastmc.methods.attack import attack
from kernels import attack as pieces
from kernels.attack import MAX_BODIES, limited_step


@pytest.mark.parametrize("bodies", [1, 2, 3])
@pytest.mark.parametrize("joints", [1, 20, 25])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_step(frames, joints, bodies):
    with kernels_on_cpu():
        assert_step(pieces, *cases.draw(4, frames, joints, bodies), bodies)


@pytest.mark.parametrize("bodies", [17, MAX_BODIES])
def test_as_many_bodies_as_a_word_has_bits(bodies):
    with kernels_on_cpu():
        assert_step(pieces, *cases.draw(3, 3, 1, bodies), bodies)


@pytest.mark.parametrize("frames", [17, 33])
def test_a_clip_in_parts(frames, monkeypatch):
    monkeypatch.setattr(pieces, "TILE", 1024)
    monkeypatch.setattr(pieces, "PART", 512)
    with kernels_on_cpu():
        assert_step(pieces, *cases.draw(4, frames, 5, 2), 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_step_in_half_precision(dtype):
    x, gradient = cases.draw(4, 7, 5, 2, dtype)
    with kernels_on_cpu():
        assert_step(pieces, x, gradient, 2)
        assert_step(pieces, x, gradient.float(), 2)
        assert_step(pieces, x.float(), gradient, 2)


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("bodies", [1, 2])
def test_hostile_gradients(hostile, bodies):
    x, gradient = cases.draw(4, 6, 5, bodies)
    HOSTILE[hostile](gradient)
    with kernels_on_cpu():
        assert_step(pieces, x, gradient, bodies)


@pytest.mark.parametrize("limit", [1e-3, 0.5, 2.0, 1e3])
@pytest.mark.parametrize("hostile", [None, *FINITE])
def test_no_clip_moves_further_than_eta(hostile, limit):
    _, gradient = cases.draw(4, 16, 5, 2)
    if hostile is not None:
        HOSTILE[hostile](gradient)
    with kernels_on_cpu():
        found = assert_norm_limit(pieces, gradient, 2, limit)
    if hostile in ("zero", "zero in one clip"):
        assert found[0] == 0
    if hostile == "huge":
        assert (found > 0.99 * min(limit, 0.1 * 480**0.5)).all()


@pytest.mark.parametrize("name", LOGITS)
def test_logit_gradient(name):
    with kernels_on_cpu():
        assert_logit_gradient(pieces, cases.logits_of(name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logit_gradient_in_half_precision(dtype):
    with kernels_on_cpu():
        assert_logit_gradient(pieces, cases.logits_of("unit").to(dtype))


def test_a_clip_that_is_not_finite_is_alone_in_it():
    x, gradient = cases.draw(4, 6, 5, 2)
    logits = cases.logits_of("unit")
    with kernels_on_cpu():
        clean, clean_logits = limited_step(x, gradient, 2, 0.1, 0.5), pieces.logit_gradient(logits)
        gradient[2, 1, 0] = float("nan")
        logits[2, 1] = float("inf")
        spoilt, spoilt_logits = limited_step(x, gradient, 2, 0.1, 0.5), pieces.logit_gradient(logits)
    others = torch.tensor([0, 1, 3])
    assert torch.equal(spoilt[others], clean[others]) and spoilt[2].isnan().any()
    assert torch.equal(spoilt_logits[others], clean_logits[others]) and spoilt_logits[2].isnan().all()


def test_each_clip_is_attacked_alone():
    x, gradient = cases.draw(4, 6, 5, 2)
    with kernels_on_cpu():
        together = limited_step(x, gradient, 2, 0.1, 0.5)
        alone = torch.cat([limited_step(x[n : n + 1], gradient[n : n + 1], 2, 0.1, 0.5) for n in range(4)])
    assert torch.equal(together, alone)


def test_clips_and_gradients_with_gaps():
    x, gradient = cases.draw(4, 6, 5, 2)
    wide = torch.cat([x, x], dim=2)[..., :30]
    turned = gradient.transpose(0, 2).contiguous().transpose(0, 2)
    with kernels_on_cpu():
        assert torch.equal(limited_step(wide, turned, 2, 0.1, 0.5), limited_step(x, gradient, 2, 0.1, 0.5))


def test_the_whole_attack_against_the_reference():
    """Of a net whose gradient is nowhere near 0, where a rounding of it would decide rho: g is one number times
    weights of 1 to 2, so that rho is 0.1 sign(g) before the limit."""
    x, _ = cases.draw(4, 6, 5, 2)
    generator = torch.Generator().manual_seed(0)
    weights = (1 + torch.rand(x.shape[1:], generator=generator)) * torch.rand(x.shape[1:], generator=generator).sub(
        0.5
    ).sign()
    classes = torch.linspace(-1, 1, 16)

    def classify(x):
        return (x * weights.to(x.dtype)).sum(dim=(1, 2))[:, None] * classes.to(x.dtype)

    want = attack(x.double(), classify, bodies=2, impl="reference")
    with kernels_on_cpu() as seen:
        got = attack(x, classify, bodies=2, impl="triton")
    assert [launch.kernel for launch in seen.launches] == ["_logit_gradient_kernel", "_limited_step_kernel"]
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    assert (got != x).any(dim=(1, 2)).all()


def test_more_bodies_than_the_kernels_take_are_refused():
    x = torch.zeros(1, 2, 3 * (MAX_BODIES + 1))
    with pytest.raises(ValueError, match=f"at most {MAX_BODIES} bodies"):
        attack(x, lambda x: x.flatten(1), bodies=MAX_BODIES + 1, impl="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traffic_of_the_default_size_is_the_compulsory_one(dtype):
    """x and the gradient read once, x_hat written once, and not a byte more."""
    x, gradient = cases.draw(2, 64, 25, 2, dtype)
    with watch() as seen:
        limited_step(x, gradient, 2, 0.1, 0.5)
    compulsory = 3 * x.numel() * x.element_size()
    assert seen.total.load_bytes + seen.total.store_bytes == compulsory
    assert seen.total.memory_load_bytes + seen.total.memory_store_bytes == compulsory


def test_traffic_of_a_clip_in_parts(monkeypatch):
    """A second read, of what lies in the caches by then."""
    monkeypatch.setattr(pieces, "TILE", 1024)
    monkeypatch.setattr(pieces, "PART", 512)
    x, gradient = cases.draw(2, 64, 5, 2)
    with watch() as seen:
        limited_step(x, gradient, 2, 0.1, 0.5)
    size = x.numel() * x.element_size()
    assert seen.total.memory_load_bytes == 2 * size and seen.total.store_bytes == size
    assert seen.total.load_bytes == 4 * size


def test_traffic_of_the_logits():
    logits = cases.logits_of("unit")
    with watch() as seen:
        pieces.logit_gradient(logits)
    assert seen.total.load_bytes == seen.total.store_bytes == logits.numel() * 4
