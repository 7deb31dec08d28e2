"""The kernels as a GPU runs them, at the size of the product, within the budgets that hold for them elsewhere."""

from __future__ import annotations

from types import SimpleNamespace

import attack_cases
import numpy as np
import on_gpu
import pytest
import torch
import update_cases
from attack_cases import HOSTILE, LOGITS, assert_logit_gradient, assert_norm_limit, assert_step
from kernel_budget import kernel_budget
from on_gpu import needs_gpu, to
from oracle import Case, step_of, velocity, within
from view_cases import assert_tables_equal, assert_views, dense_clips, drawn, lengths_of, packed_clips

pytest.importorskip("triton")

from bench import ntu_like
from fastmc.objective import chunked
from fastmc.views.draw import AugmentConfig, draw_params
from fastmc.views.make import make_views
from kernels import attack, mc

pytestmark = [needs_gpu, pytest.mark.gpu]
CPU = torch.device("cpu")
BATCH, FRAMES, JOINTS, BODIES = 64, 64, 25, 2
ENCODER = ((6144, 2048), (6144, 1024), (6144,), (2048, 2048), (128,))
"""Weights as the paper's encoder has them."""


# The loss and the bank's step


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("precision", ["bf16x3", "ieee", "bf16"])
def test_step_of_the_loss(precision, tiled):
    assert_loss(Case.draw(BATCH, 16384, 128, tiled=tiled, dtype=torch.float32), "ascent", precision)


@pytest.mark.parametrize("kind", ["unmixed", "one-hot", "alone"])
def test_steps_that_write_the_bank_first_in_first_out(kind):
    assert_loss(Case.draw(BATCH, 16384, 128, kind=kind, dtype=torch.float32), "fifo", "bf16x3")


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 31, 5), (33, 65, 17), (64, 16381, 128), (40, 1000, 512)])
def test_odd_shapes(shape):
    assert_loss(Case.draw(*shape, dtype=torch.float32), "ascent", "bf16x3")


def assert_loss(case: Case, update: str, precision: str) -> None:
    """The truth is fastmc.objective.chunked in float64, which its own tests hold to the reference."""
    wide = case.to(torch.float64)
    truth, plain = (step_of(chunked, c, update, velocity(c), 7) for c in (wide, case))
    there = to(case, on_gpu.DEVICE)
    twice = [step_of(mc, there, update, velocity(there), 7, precision) for _ in range(2)]
    ours, again = ({name: value.to(CPU) for name, value in found.items()} for found in twice)
    assert all(torch.equal(ours[name], again[name]) for name in ours), "equal inputs give equal bits"
    if precision == "bf16":  # whether a positive is on top may hang on the rounding
        truth["stats"][4] = ours["stats"][4]
    verdict = within(ours, truth, kernel_budget(plain, truth, case, precision))
    assert all(verdict.values()), verdict


# The update of both encoders


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("sizes", "gap"), [(update_cases.SIZES, 3), (update_cases.ALIGNED, 32), (ENCODER, 32)])
def test_updates_have_the_bits_of_torchs_sgd(sizes, gap, dtype):
    """Of torch.optim.SGD on a CPU, which rounds after every operator."""
    weights = update_cases.Weights.draw(sizes, dtype, gap=gap, device=on_gpu.DEVICE)
    group = weights.group()
    for scale in (None, 2.0**16):
        before = weights.clone()
        update_cases.run(weights, group, scale=scale)
        assert not update_cases.different(weights.clone(), update_cases.plainly(before, scale))
    before = weights.clone()
    update_cases.run(weights, group, skip=1.0)
    assert not update_cases.different(weights.clone(), before)


# The attack

PIECES = SimpleNamespace(
    logit_gradient=lambda logits: attack.logit_gradient(logits.to(on_gpu.DEVICE)).to(CPU),
    limited_step=lambda x, gradient, *settings: attack.limited_step(
        x.to(on_gpu.DEVICE), gradient.to(on_gpu.DEVICE), *settings
    ).to(CPU),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_step_of_the_attack(dtype):
    assert_step(PIECES, *attack_cases.draw(BATCH, FRAMES, JOINTS, BODIES, dtype), BODIES)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_gradients(hostile):
    x, gradient = attack_cases.draw(4, FRAMES, JOINTS, BODIES)
    HOSTILE[hostile](gradient)
    assert_step(PIECES, x, gradient, BODIES)


@pytest.mark.parametrize("hostile", ["huge", "from tiny to huge"])
def test_no_clip_moves_further_than_eta(hostile):
    _, gradient = attack_cases.draw(4, FRAMES, JOINTS, BODIES)
    HOSTILE[hostile](gradient)
    assert_norm_limit(PIECES, gradient, BODIES, attack_cases.LIMIT)


@pytest.mark.parametrize("name", LOGITS)
def test_gradient_of_the_logits(name):
    assert_logit_gradient(PIECES, attack_cases.logits_of(name))


# Views


def by_kernel(clips, params, skeleton, **settings):
    """`make_views` of Triton on the GPU, back on the host."""
    there = (to(clips, on_gpu.DEVICE), to(params, on_gpu.DEVICE))
    return make_views(*there, skeleton, impl="triton", **settings).to(CPU)


@pytest.fixture(scope="module")
def clips():
    """A batch with the lengths and bodies of NTU RGB+D."""
    frames, bodies = ntu_like.lengths(np.random.default_rng(0), BATCH)
    bodies = bodies.clip(max=BODIES).tolist()
    return packed_clips(lengths=frames.tolist(), max_bodies=BODIES, bodies=bodies)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stream", ["joint", "motion", "bone"])
def test_views_of_clips(clips, stream, dtype):
    params = drawn(clips, views=(0, 3), config=AugmentConfig())
    assert_views(by_kernel, clips, params, size=FRAMES, stream=stream, dtype=dtype)


def test_views_of_attacked_clips():
    clips = dense_clips(frames=FRAMES, batch=BATCH)
    assert_views(by_kernel, clips, drawn(clips, views=(1, 2)), size=FRAMES)


def test_choices(monkeypatch):
    """The kernel's table, drawn on the GPU, is PyTorch's."""

    def draw(config, frames, joints, *, sample, step, impl, **key):
        place = on_gpu.DEVICE if impl == "triton" else CPU
        step = to(step, place)
        params = draw_params(config, to(frames, place), joints, sample=to(sample, place), step=step, impl=impl, **key)
        return to(params, CPU)

    monkeypatch.setattr("view_cases.draw_params", draw)
    for step in (11, torch.tensor(2**31)):
        assert_tables_equal(AugmentConfig(), sample=torch.arange(BATCH) * 37, step=step)
        assert_tables_equal(AugmentConfig(), resized_to=FRAMES, step=step)


def test_lengths_are_those_of_the_clips(clips):
    assert int(lengths_of(clips).max()) <= 300
    assert len(clips) == BATCH
