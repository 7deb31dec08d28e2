"""The attack's kernels: values, bounds and races; traffic; machine code through ptxas.

Values come compiled, through ttsem, and once more interpreted, by tests/test_interpreted.py, where traffic is counted.
Memory that nobody stored is noticed on the way (``kernels_on_cpu``).
"""

from __future__ import annotations

from unittest import mock

import attack_cases as cases
import pytest
import torch
from attack_cases import FINITE, HOSTILE, LOGITS, assert_logit_gradient, assert_norm_limit, assert_step
from every_pair import every_pair
from gpu_less import INTERPRETED, kernels_on_cpu, needs_compiler, needs_engine, spilled_by_triton_3_6

pytest.importorskip("triton")

import triton

import kernels
from bench.aot import compile_launches, report
from bench.counting import count_operators
from bench.resources import Report
from bench.watch import watch
from fastmc.methods.attack import attack
from kernels import attack as pieces
from kernels.attack import MAX_BODIES, limited_step

pytestmark = pytest.mark.usefixtures("triton_cache")
needs_interpreter = pytest.mark.skipif(not INTERPRETED, reason="traffic is counted while kernels are interpreted")
FULL = {"frames": 64, "joints": 25, "bodies": 2}


# --- Values


@needs_engine
@pytest.mark.parametrize(
    ("frames", "joints", "bodies"), every_pair([1, 2, 5], [1, 20, 25], [1, 2, 3]) + [(64, 25, 2), (200, 25, 2)]
)
def test_step(frames, joints, bodies):
    with kernels_on_cpu():
        assert_step(pieces, *cases.draw(4, frames, joints, bodies), bodies)


@needs_engine
def test_step_on_an_older_chip():
    with kernels_on_cpu(80):
        assert_step(pieces, *cases.draw(4, 7, 20, 2), 2)


@needs_engine
@pytest.mark.parametrize("bodies", [17, MAX_BODIES])
def test_as_many_bodies_as_a_word_has_bits(bodies):
    with kernels_on_cpu():
        assert_step(pieces, *cases.draw(3, 3, 1, bodies), bodies)


@needs_engine
@pytest.mark.parametrize("frames", [17, 33])
def test_a_clip_in_parts(frames, monkeypatch):
    monkeypatch.setattr(pieces, "TILE", 1024)
    monkeypatch.setattr(pieces, "PART", 512)
    with kernels_on_cpu():
        assert_step(pieces, *cases.draw(4, frames, 5, 2), 2)


@needs_engine
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_step_in_half_precision(dtype):
    x, gradient = cases.draw(4, 7, 5, 2, dtype)
    with kernels_on_cpu():
        assert_step(pieces, x, gradient, 2)
        assert_step(pieces, x, gradient.float(), 2)
        assert_step(pieces, x.float(), gradient, 2)


@needs_engine
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_gradients(hostile):
    for bodies in (1, 2):
        x, gradient = cases.draw(4, 6, 5, bodies)
        HOSTILE[hostile](gradient)
        with kernels_on_cpu():
            assert_step(pieces, x, gradient, bodies)


@needs_engine
@pytest.mark.parametrize(
    ("hostile", "limit"), [(None, 1e-3), (None, 0.5), (None, 2.0), (None, 1e3)] + [(name, 0.5) for name in FINITE]
)
def test_no_clip_moves_further_than_eta(hostile, limit):
    _, gradient = cases.draw(4, 16, 5, 2)
    if hostile is not None:
        HOSTILE[hostile](gradient)
    with kernels_on_cpu():
        found = assert_norm_limit(pieces, gradient, 2, limit)
    if hostile in ("zero", "zero in one clip"):
        assert found[0] == 0
    if hostile == "huge":
        assert (found > 0.99 * limit).all()


@needs_engine
@pytest.mark.parametrize("hostile", ["from tiny to huge", "huge"])
def test_no_clip_of_the_full_size_moves_further_than_eta(hostile):
    _, gradient = cases.draw(2, 200, 25, 2)
    HOSTILE[hostile](gradient)
    with kernels_on_cpu():
        assert_norm_limit(pieces, gradient, 2, cases.LIMIT)


@needs_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logit_gradient(dtype):
    with kernels_on_cpu():
        for name in LOGITS if dtype == torch.float32 else ["unit"]:
            assert_logit_gradient(pieces, cases.logits_of(name).to(dtype))


@needs_engine
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


@needs_engine
def test_each_clip_is_attacked_alone():
    x, gradient = cases.draw(4, 6, 5, 2)
    with kernels_on_cpu():
        together = limited_step(x, gradient, 2, 0.1, 0.5)
        alone = torch.cat([limited_step(x[n : n + 1], gradient[n : n + 1], 2, 0.1, 0.5) for n in range(4)])
    assert torch.equal(together, alone)


@needs_engine
def test_clips_and_gradients_with_gaps():
    x, gradient = cases.draw(4, 6, 5, 2)
    wide = torch.cat([x, x], dim=2)[..., :30]
    turned = gradient.transpose(0, 2).contiguous().transpose(0, 2)
    with kernels_on_cpu():
        assert torch.equal(limited_step(wide, turned, 2, 0.1, 0.5), limited_step(x, gradient, 2, 0.1, 0.5))


@needs_engine
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
    with kernels_on_cpu(), mock.patch("kernels.unavailable_reason", return_value=None):
        got = attack(x, classify, bodies=2, impl="triton")
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    assert (got != x).any(dim=(1, 2)).all()


@needs_engine
def test_more_bodies_than_the_kernels_take_are_refused():
    x = torch.zeros(1, 2, 3 * (MAX_BODIES + 1))
    with (
        kernels_on_cpu(),
        mock.patch("kernels.unavailable_reason", return_value=None),
        pytest.raises(ValueError, match=f"at most {MAX_BODIES} bodies"),
    ):
        attack(x, lambda x: x.flatten(1), bodies=MAX_BODIES + 1, impl="triton")


# --- Traffic


@needs_interpreter
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_traffic_of_the_default_size_is_the_compulsory_one(dtype):
    """x and the gradient read once, x_hat written once, and not a byte more."""
    x, gradient = cases.draw(2, 64, 25, 2, dtype)
    with watch() as seen:
        limited_step(x, gradient, 2, 0.1, 0.5)
    compulsory = 3 * x.numel() * x.element_size()
    assert seen.total.load_bytes + seen.total.store_bytes == compulsory
    assert seen.total.memory_load_bytes + seen.total.memory_store_bytes == compulsory


@needs_interpreter
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


@needs_interpreter
def test_traffic_of_the_logits():
    logits = cases.logits_of("unit")
    with watch() as seen:
        pieces.logit_gradient(logits)
    assert seen.total.load_bytes == seen.total.store_bytes == logits.numel() * 4


# --- Launches and machine code


@needs_compiler
def test_two_launches_around_the_encoder_and_nothing_else(monkeypatch):
    launched = []
    monkeypatch.setattr(triton.JITFunction, "run", lambda self, *_, **__: launched.append(self.__name__))
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: None)
    x, _ = cases.draw(4, 7, 25, 2)
    weights = torch.randn(7 * 150, 16)
    counts = count_operators(lambda: attack(x, lambda x: x.flatten(1) @ weights, bodies=2, impl="triton"))
    assert launched == ["_logit_gradient_kernel", "_limited_step_kernel"]
    assert counts["launches"] == 2  # the product and its gradient, which stand for the encoder


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def compiled(target: str, frames: int, joints: int, bodies: int, dtype: torch.dtype = torch.float32) -> list[Report]:
    clips = meta(64, frames, joints * bodies * 3, dtype=dtype)
    with compile_launches(target) as launches:
        pieces.logit_gradient(meta(64, 128, dtype=dtype))
        pieces.limited_step(clips, clips, bodies, cases.LR, cases.LIMIT)
    found = [report(one) for one in launches]
    for r in found:
        assert r.spilled_bytes <= spilled_by_triton_3_6(16), r
        assert target.startswith("hip") or r.resident_warps >= 8, f"{r.name}: {r.resident_warps} warps"
        assert r.counts.get("ATOM", 0) == 0
    return found


TARGETS = ("cuda:80", "cuda:86", "cuda:90", "cuda:100", "hip:gfx942")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", TARGETS)
def test_machine_code_at_the_default_size(target, dtype):
    _, step = compiled(target, **FULL, dtype=dtype)
    load, store, wide = ("load", "store", ".x4") if target.startswith("hip") else ("LDG", "STG", ".128")
    assert step.counts[load + wide] == step.counts[load] > 0
    assert step.counts[store + wide] == step.counts[store] > 0


@needs_compiler
@pytest.mark.parametrize(
    ("target", "size"),
    [("cuda:80", size) for size in ((1, 25, 2), (64, 20, 1), (64, 25, 3), (300, 25, 2), (999, 20, 2))]
    + [(target, (300, 25, 2)) for target in TARGETS[1:]],
)
def test_other_sizes_do_not_spill(size, target):
    compiled(target, *size)
