"""What numba compiles: parameters against those of PyTorch, threads, processes. Its views: tests/test_views.py."""

from __future__ import annotations

import logging
import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from view_cases import (
    FEW,
    OF_RIVALS,
    dense_clips,
    drawn,
    excess,
    mutated,
    packed_clips,
    plain,
    truth,
)

from fastmc import backends
from fastmc.backends import VIEWS as OPERATION
from fastmc.backends import Need
from fastmc.random import normal, philox
from fastmc.skeleton import NTU25
from fastmc.views.draw import COLUMNS, MASK, AugmentConfig, ViewParams, draw_params
from fastmc.views.make import make_views

pytest.importorskip("numba")
from fastmc.views import numba_views as views_numba

ROOT = Path(__file__).resolve().parents[1]
COMPILED = partial(make_views, impl="numba")
ROUNDED = ("filter_sigma", "pose", "jitter")
EXACT = tuple(name for name in (*COLUMNS, *MASK) if name not in ROUNDED)


@pytest.fixture
def threads() -> Iterator[None]:
    """The number of threads may be changed."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- Views against the truth


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("FILTER_TAPS", 13),
        ("NOISE_COUNTER", (1 << 16) + 1),
        ("COLUMN_STARTS", views_numba.COLUMN_STARTS._replace(jitter=views_numba.COLUMN_STARTS.pose)),
    ],
)
def test_the_budget_notices_a_wrong_computation(name, wrong, monkeypatch):
    clips, params = mutated()
    monkeypatch.setattr(views_numba, name, wrong)
    assert (excess(COMPILED(clips, params, NTU25), *truth(clips, params, NTU25)) > 1).any()


# --- Properties of views


@pytest.mark.usefixtures("threads")
def test_views_do_not_depend_on_threads():
    """Bit for bit, the choices among them."""
    clips, found = packed_clips(lengths=FEW * 4), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(COMPILED(clips, drawn(clips, impl="numba"), NTU25))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_tensors_with_gaps_and_gradients_are_taken():
    clips = dense_clips()
    params = drawn(clips)
    wide = torch.stack([clips.x, torch.full_like(clips.x, torch.nan)], dim=-1).requires_grad_()
    gaps = replace(clips, x=wide[..., 0], num_bodies=torch.stack([clips.num_bodies] * 2, dim=1)[:, 0])
    spread = replace(params, sample=torch.stack([params.sample] * 2, dim=1)[:, 1])
    got = COMPILED(gaps, spread, NTU25)
    assert torch.equal(got, COMPILED(clips, params, NTU25)) and not got.requires_grad


@pytest.mark.parametrize(("column", "value"), [("crop_start", -1), ("crop_length", 1e9), ("crop_length", torch.nan)])
def test_a_crop_outside_of_the_frames_is_refused(column, value):
    """By the implementation too, for `make_views` was not asked here: it never reads memory that is not the clips'."""
    clips = packed_clips(lengths=FEW)
    params = plain(clips)
    params.column(column)[:] = value
    clips.start[0] = 0
    with pytest.raises(IndexError, match="a crop reaches out of the array of frames"):
        views_numba.make_views(clips, params, NTU25, "joint", torch.empty(1, len(clips), 64, 150))


# --- Threads and processes


@pytest.mark.usefixtures("threads")
def test_two_callers_at_once():
    torch.set_num_threads(2)
    clips = packed_clips(lengths=FEW * 4)
    params = [drawn(clips, step=step) for step in range(8)]
    want = [COMPILED(clips, one, NTU25) for one in params]
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda one: COMPILED(clips, one, NTU25), params * 4))
    assert all(torch.equal(a, b) for a, b in zip(found, want * 4, strict=True))


@pytest.mark.program
@pytest.mark.usefixtures("threads")
def test_a_forked_process_has_threads_of_its_own():
    torch.set_num_threads(2)
    clips = packed_clips(lengths=FEW * 4)
    params = drawn(clips, impl="numba")
    want = COMPILED(clips, params, NTU25)

    def child() -> None:  # without operators of PyTorch's that go parallel: those hang here, after the parent's
        again = COMPILED(clips, drawn(clips, impl="numba"), NTU25)
        helped = any(thread.name.startswith("fastmc-views") for thread in threading.enumerate())
        sys.exit(0 if helped and np.array_equal(again.numpy(), want.numpy()) else 3)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(timeout=60)
    process.kill()
    assert process.exitcode == 0


def test_one_thread_means_no_other(monkeypatch):
    assert torch.get_num_threads() == 1
    monkeypatch.setattr(views_numba, "_pool", None)
    clips = packed_clips(lengths=FEW * 4)
    COMPILED(clips, plain(clips), NTU25)


@pytest.mark.usefixtures("threads")
def test_an_error_of_a_helper_is_raised():
    torch.set_num_threads(2)
    entered = []

    def work(first: int, last: int) -> None:
        entered.append(first)
        while len(entered) < 2:  # until the other thread is in as well
            pass
        if first > 0:
            raise IndexError("of the helper or of the caller")

    with pytest.raises(IndexError, match="of the helper"):
        views_numba._in_parallel(work, 2 * views_numba.PART)


# --- Random numbers


@pytest.mark.parametrize(("seed", "first"), [(0, 0), (2**63 - 3, 1 << 16), (0xFEDCBA9876543210, 2**32 - 100)])
def test_philox_bit_for_bit(seed, first):
    for step, sample, view in ((0, 0, 0), (2**31 - 1, 5, 3), (7, 2**32 - 1, 2**32 - 1)):
        key, got = views_numba._Key.of(seed, step), np.empty((4, 100), np.uint32)
        views_numba._philox_blocks(key, *map(np.uint64, (first, 1, sample, view)), got)
        want = philox(seed, torch.arange(first, first + 100), step, sample, view)
        assert np.array_equal(got.T, want.numpy())


@pytest.mark.slow
def test_normal_numbers():
    """Of uniform numbers near 0, 1/2 and 1. Any of the two may lie within four roundings of the exact one."""
    for upper in (0, 1 << 20, 1 << 23, 15 << 20):
        word = torch.arange(upper, upper + (1 << 20)) << 8
        words = torch.stack([word, word.flip(0), word, word.roll(1)], dim=1)
        got = np.empty((3, len(word)), np.float32)
        views_numba._normals(words.T.contiguous().numpy().astype(np.uint32), got)
        u = (words >> 8).double() * 2.0**-24
        radius, angle = torch.sqrt(-2 * torch.log(1 - u[:, ::2])), 2 * torch.pi * u[:, 1::2]
        x, y = radius * torch.cos(angle), radius * torch.sin(angle)
        want = torch.stack([x[:, 0], y[:, 0], x[:, 1]])
        budget = 4 * 2.0**-24 * torch.stack([radius[:, 0], radius[:, 0], radius[:, 1]])
        error = (torch.from_numpy(got).double() - want).abs()
        assert (error <= budget).all(), float((error / budget).nan_to_num(0).max())
    assert normal(words[:1], 3).shape == got.T[:1].shape


# --- Parameters


CONFIGS = {
    "default": AugmentConfig(),
    "others": AugmentConfig(
        crop_ratio_min=0.37,
        crop_frames_min=5,
        shear=0.3,
        jitter_joints=4,
        flip_probability=0.2,
        rotation_degrees=170.0,
        rotation_minor_degrees=13.0,
        noise_std=0.3,
        noise_probability=0.9,
        filter_sigma_min=0.7,
        filter_sigma_max=3.1,
        filter_probability=0.8,
        axis_mask_probability=0.1,
    ),
    "of rivals": OF_RIVALS,
    "always": AugmentConfig(
        flip_probability=1, noise_probability=1, filter_probability=1, axis_mask_probability=1, crop_ratio_min=1
    ),
}


def both(config: AugmentConfig, frames: Tensor, joints: int = 25, **key: object) -> tuple[ViewParams, ViewParams]:
    """The parameters by numba and by PyTorch."""
    settings = {"views": (0, 1, 2, 3), "seed": 0, "step": 1, "sample": torch.arange(len(frames)), "size": 64, **key}
    return tuple(draw_params(config, frames, joints, **settings, impl=impl) for impl in ("numba", "torch"))


def assert_same(got: ViewParams, want: ViewParams) -> None:
    """Integers and choices are equal; maps and sigma are up to some roundings of numbers of at most 3."""
    assert got.table.shape == want.table.shape
    for name in EXACT:
        assert torch.equal(got.column(name), want.column(name)), name
    for name in ROUNDED:
        torch.testing.assert_close(got.column(name), want.column(name), rtol=0, atol=3 * 4 * 2.0**-24)
    assert (got.seed, got.views) == (want.seed, want.views)


@pytest.mark.parametrize("resized_to", [None, 64, 7])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_tables_are_those_of_pytorch(config, resized_to):
    lengths = torch.randint(1, 400, (2000,), generator=torch.Generator().manual_seed(0))
    lengths[:4] = torch.tensor([1, 2, 2**23 + 1, 2**24 - 1])
    assert_same(*both(config, lengths, resized_to=resized_to))


@pytest.mark.parametrize("joints", [1, 11, 33])
def test_tables_of_other_layouts(joints):
    assert_same(*both(AugmentConfig(), torch.full((300,), 80), joints))


@pytest.mark.parametrize(("seed", "views"), [(1, (2,)), (2**63 - 3, (1, 2)), (1, (0, 3)), (2**63 - 3, (3, 2, 2))])
def test_tables_of_other_keys(seed, views):
    frames = torch.full((50,), 100)
    sample = torch.arange(100).flip(0)[::2] * 40_000_000
    assert_same(*both(AugmentConfig(), frames, seed=seed, views=views, step=torch.tensor(2**31), sample=sample))


def test_equal_numbers_are_ranked_as_in_pytorch():
    """Of 24 bits, some are equal in a million rows; here many are."""
    u = np.float32([0.5, 0.25, 0.5, 0.5, 0.25])
    assert [views_numba._rank(u, v) for v in range(5)] == [2, 0, 3, 4, 1]


# --- Who serves a call


def test_auto_takes_numba_on_a_cpu_and_for_float32_alone(monkeypatch):
    cpu = torch.device("cpu")
    assert OPERATION.choose("auto", Need(cpu, torch.float32)) == "numba"
    assert OPERATION.choose("auto", Need(cpu, torch.float16)) == "torch"
    assert OPERATION.choose("auto", Need(torch.device("meta"), torch.float32)) == "torch"
    assert OPERATION.choose("torch", Need(cpu, torch.float32)) == "torch"
    with pytest.raises(
        RuntimeError, match="impl='numba' cannot run: it makes views on a CPU and the clips are on cuda"
    ):
        OPERATION.choose("numba", Need(torch.device("cuda"), torch.float32))
    with pytest.raises(ValueError, match="impl must be one of auto, triton, numba, torch, reference; got 'jax'"):
        OPERATION.choose("jax", Need(cpu, torch.float32))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert OPERATION.choose("auto", Need(cpu, torch.float32)) == "torch"
    monkeypatch.undo()
    monkeypatch.setattr(backends, "numba_problem", lambda: "it is broken")
    assert OPERATION.choose("auto", Need(cpu, torch.float32)) == "torch"
    with pytest.raises(RuntimeError, match="impl='numba' cannot run: it is broken"):
        OPERATION.choose("numba", Need(cpu, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frames_in_half_precision_are_torchs(dtype):
    clips = packed_clips(lengths=FEW, dtype=dtype)
    params = drawn(clips)
    assert torch.equal(make_views(clips, params, NTU25), make_views(clips, params, NTU25, impl="torch"))
    with pytest.raises(RuntimeError, match="impl='numba' cannot run: it takes frames in float32 and these are torch"):
        COMPILED(clips, params, NTU25)


VIEWS = """
from view_cases import drawn, make_views, packed_clips, NTU25
clips = packed_clips(lengths=(5, 70))
x, y = (make_views(clips, drawn(clips, impl=impl), NTU25, impl=impl) for impl in ("auto", "torch"))
print((x == y).all().item(), flush=True)
make_views(clips, drawn(clips), NTU25, impl="numba")
"""


@pytest.mark.slow
@pytest.mark.program
def test_without_numba_pytorch_makes_views():
    program = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\nsys.modules['numba'] = None\n{VIEWS}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "True", done.stderr
    assert done.returncode == 1
    assert "RuntimeError: impl='numba' cannot run: numba cannot be imported" in done.stderr


def test_a_numba_that_must_not_compile_is_none(monkeypatch):
    monkeypatch.setattr("numba.config.DISABLE_JIT", True)
    assert backends.numba_problem.__wrapped__() == "the environment variable NUMBA_DISABLE_JIT is set"


def test_what_cannot_be_kept_on_disk_is_compiled_all_the_same(caplog):
    """Code from a string, for instance, has no folder to keep it in."""
    scope: dict[str, object] = {}
    exec("def double(x):\n    x[0] *= 2", scope)
    double, x = views_numba._compiled(scope["double"]), np.ones(1)
    with caplog.at_level(logging.INFO, logger="fastmc"):
        views_numba._noted(double, x)
        views_numba._noted(double, x)
    assert x[0] == 4
    assert len(caplog.messages) == 1, "a compilation is worth a line, a call is not"
    assert caplog.messages[0].startswith("compiled double of views for this CPU in ")
    assert "memory alone" in caplog.messages[0]
