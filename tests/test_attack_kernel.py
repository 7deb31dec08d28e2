"""What is the attack's kernels' own: clips in parts, many bodies; launches; machine code through ptxas.

Values: tests/test_attack.py. Traffic: tests/interpreted/test_traffic.py.
"""

from __future__ import annotations

from unittest import mock

import attack_cases as cases
import pytest
import torch
from attack_cases import assert_step
from gpu_less import kernels_on_cpu, needs_compiler, needs_engine, spilled_by_triton_3_6
from machine_code import TARGETS, compiled, meta

pytest.importorskip("triton")

import triton

import kernels
from bench.counting import count_operators
from bench.resources import Report
from fastmc.methods.attack import attack
from kernels import attack as pieces
from kernels.attack import MAX_BODIES

pytestmark = [pytest.mark.compiler, pytest.mark.usefixtures("triton_cache")]


# --- Values


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


def code_of(target: str, frames: int, joints: int, bodies: int, dtype: torch.dtype = torch.float32) -> list[Report]:
    clips = meta(64, frames, joints * bodies * 3, dtype=dtype)

    def both() -> None:
        pieces.logit_gradient(meta(64, 128, dtype=dtype))
        pieces.limited_step(clips, clips, bodies, cases.LR, cases.LIMIT)

    return compiled(target, both, spilled=spilled_by_triton_3_6(16))


@needs_compiler
@pytest.mark.parametrize(
    ("target", "dtype"),
    [(target, torch.float32) for target in TARGETS] + [(target, torch.bfloat16) for target in TARGETS[::2]],
)
def test_machine_code_at_the_default_size(target, dtype):
    _, step = code_of(target, 64, 25, 2, dtype)
    load, store, wide = ("load", "store", ".x4") if target.startswith("hip") else ("LDG", "STG", ".128")
    assert step.counts[load + wide] == step.counts[load] > 0
    assert step.counts[store + wide] == step.counts[store] > 0


@needs_compiler
@pytest.mark.parametrize(
    ("target", "size"),
    [("cuda:80", (1, 25, 2)), ("cuda:80", (64, 25, 3)), ("cuda:80", (999, 20, 2)), ("hip:gfx942", (300, 25, 2))],
)
def test_other_sizes_do_not_spill(size, target):
    code_of(target, *size)
