"""The attack's kernels as they are compiled: values, bounds and races through ttsem; machine code through ptxas."""

from __future__ import annotations

import attack_cases as cases
import pytest
import torch
from attack_cases import HOSTILE, LOGITS, assert_logit_gradient, assert_norm_limit, assert_step
from gpu_less import needs_triton, needs_ttsem, spilled_by_triton_3_6, ttsem_session

pytest.importorskip("triton")

import triton

import kernels
from bench.aot import compile_launches, report
from bench.counting import count_operators
from bench.resources import Report
from fastmc.attack import AttackConfig, attack
from kernels import attack as pieces

pytestmark = pytest.mark.usefixtures("triton_cache")
FULL = {"frames": 64, "joints": 25, "bodies": 2}


@needs_ttsem
@pytest.mark.parametrize("cc", [80, 90])
@pytest.mark.parametrize(
    ("frames", "joints", "bodies"), [(1, 25, 2), (7, 25, 1), (7, 20, 2), (5, 25, 3), (64, 25, 2), (200, 25, 2)]
)
def test_step(frames, joints, bodies, cc):
    with ttsem_session(cc) as session:
        assert_step(pieces, *cases.draw(4, frames, joints, bodies), bodies)
    assert session.launches == 1


@needs_ttsem
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_step_in_half_precision(dtype):
    x, gradient = cases.draw(4, 7, 25, 2, dtype)
    with ttsem_session():
        assert_step(pieces, x, gradient, 2)
        assert_step(pieces, x, gradient.float(), 2)
        assert_step(pieces, x.float(), gradient, 2)


@needs_ttsem
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_gradients(hostile):
    x, gradient = cases.draw(4, 7, 25, 2)
    HOSTILE[hostile](gradient)
    with ttsem_session():
        assert_step(pieces, x, gradient, 2)


@needs_ttsem
@pytest.mark.parametrize("frames", [64, 200])
@pytest.mark.parametrize("hostile", ["zero", "one element", "huge", "from tiny to huge"])
def test_no_clip_moves_further_than_eta(hostile, frames):
    _, gradient = cases.draw(2, frames, 25, 2)
    HOSTILE[hostile](gradient)
    with ttsem_session():
        found = assert_norm_limit(pieces, gradient, 2, cases.LIMIT)
    if hostile == "zero":
        assert (found == 0).all()
    if hostile == "huge":
        assert (found > 0.99 * cases.LIMIT).all()


@needs_ttsem
@pytest.mark.parametrize("name", LOGITS)
def test_logit_gradient(name):
    logits = cases.logits_of(name)
    with ttsem_session() as session:
        assert_logit_gradient(pieces, logits)
    assert session.launches == 1


@needs_triton
def test_two_launches_around_the_encoder_and_nothing_else(monkeypatch):
    launched = []
    monkeypatch.setattr(triton.JITFunction, "run", lambda self, *_, **__: launched.append(self.__name__))
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: None)
    x, _ = cases.draw(4, 7, 25, 2)
    weights = torch.randn(7 * 150, 16)
    counts = count_operators(
        lambda: attack(x, lambda x: x.flatten(1) @ weights, AttackConfig(), bodies=2, impl="triton")
    )
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


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("target", TARGETS)
def test_machine_code_at_the_default_size(target, dtype):
    _, step = compiled(target, **FULL, dtype=dtype)
    load, store, wide = ("load", "store", ".x4") if target.startswith("hip") else ("LDG", "STG", ".128")
    assert step.counts[load + wide] == step.counts[load] > 0
    assert step.counts[store + wide] == step.counts[store] > 0


@needs_triton
@pytest.mark.parametrize(
    ("target", "size"),
    [("cuda:80", size) for size in ((1, 25, 2), (64, 20, 1), (64, 25, 3), (300, 25, 2), (999, 20, 2))]
    + [(target, (300, 25, 2)) for target in TARGETS[1:]],
)
def test_other_sizes_do_not_spill(size, target):
    compiled(target, *size)
