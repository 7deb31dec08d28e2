"""The numpy pipeline that views are measured against, its gate, the modelled lengths, and the sizes of stores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bench import data_share, numpy_views, store_size
from bench.measure import Timing
from bench.ntu_like import CLIPS, lengths, motion, padded, write_ntu_like
from bench.numpy_views import STYLES, Choices, Strong, draw_choices, make_view
from bench.parity import ParityError
from bench.views import Batch, Clips, ViewsCase, compare
from fastmc.config import preset_config
from fastmc.methods import base
from fastmc.reference import augment as reference
from fastmc.skeleton import NTU25
from fastmc.views.draw import STRONG, AugmentConfig, draw_params

CASE = ViewsCase(batch=24, frames=20, clips=40)
SHEAR = np.array([[1, 0.3, -0.5], [0.2, 1, 0.9], [-0.7, 0.1, 1]], np.float32)
ANGLES = np.array([0.5, 0.02, -0.01])
MIRROR = np.array(NTU25.mirror)


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    clips = Clips(CASE, torch.device("cpu"))
    return [Batch(clips, number) for number in range(2)]


def clip_of(rng: np.random.Generator, frames: int) -> np.ndarray:
    return np.ascontiguousarray(motion(rng, frames, 2).transpose(3, 0, 2, 1))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [6, 20])
def test_a_numpy_view_is_the_reference_one_transform_after_the_other(style, size):
    """A sheared and a jittered view of a clip whose second body is missing at its end, with all of the strong part."""
    rng = np.random.default_rng(3)
    clip = clip_of(rng, 50)
    noise = rng.normal(size=(3, size, 25, 2)).astype(np.float32)
    strong = Strong(True, numpy_views.rotation_matrix(ANGLES), 0.01 * noise, 1.3, 2)
    x = torch.from_numpy(clip).double().permute(1, 3, 2, 0)  # (T, M, V, 3)
    assert (x[:, 1] == 0).all(dim=2).any() and (x[:, 1] != 0).any()
    original = reference.temporal_crop_resize(x, 3, 47, size)
    sheared = reference.pose_augmentation(original, torch.from_numpy(SHEAR).double())
    joints = np.array([4, 7, 20])
    jittered = reference.joint_jittering(original, joints.tolist(), torch.from_numpy(SHEAR).double())
    for basic, shear, which in ((sheared, SHEAR, joints[:0]), (jittered, None, joints)):
        y = reference.rotate(reference.spatial_flip(basic, NTU25.mirror), ANGLES.tolist())
        y = reference.gaussian_noise(y, torch.from_numpy(noise).double().permute(1, 3, 2, 0), 0.01)
        y = reference.restore_missing(reference.axis_mask(reference.gaussian_filter(y, 1.3), 2), original)
        for choice, expected in ((None, basic), (strong, y)):
            choices = Choices(3, 47, shear, which, SHEAR, choice)
            found = make_view(clip, choices, MIRROR, size, STYLES[style])
            assert found.dtype == np.float32 and found.shape == (size, 25 * 2 * 3)
            assert np.abs(found - expected.transpose(1, 2).flatten(1).numpy()).max() < 5e-6


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("impl", ["auto", "torch"])
def test_the_same_views_pass_the_gate(batches, style, impl):
    assert 0 < compare(batches, style, STYLES[style], impl) < 0.5


def spoilt(name: str, wrong: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Replace a function of the numpy pipeline by one that is given the right one first."""
    right = getattr(numpy_views, name)
    return lambda monkeypatch: monkeypatch.setattr(numpy_views, name, lambda *args: wrong(right, *args))


def other_strong(**changes: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return spoilt("make_strong", lambda right, clip, strong, *rest: right(clip, replace(strong, **changes), *rest))


def later(right: Callable[..., Any], clip: np.ndarray, start: int, length: int, size: int) -> np.ndarray:
    return right(clip, start + 1, length - 1, size)


def nan_somewhere(right: Callable[..., Any], *args: Any) -> np.ndarray:
    clip = right(*args)
    clip[0, 3, 4, 0] = np.nan
    return clip


WRONG = {
    "crop": spoilt("crop_resize", later),
    "jittered joints": spoilt("jitter_joints", lambda right, clip, joints, *rest: right(clip, joints[1:], *rest)),
    "rotation": other_strong(rotation=np.eye(3, dtype=np.float32)),
    "filter": other_strong(sigma=None),
    "not a number": spoilt("crop_resize", nan_somewhere),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_gate_notices(batches, name, monkeypatch):
    WRONG[name](monkeypatch)
    with pytest.raises(ParityError, match="numpy, usual does not make the same views, so there are no numbers"):
        compare(batches, "numpy, usual", STYLES["usual"])


def test_the_gate_notices_missing_bodies_that_are_not_zero(batches, monkeypatch):
    monkeypatch.setattr(numpy_views.np, "any", lambda x, axis: np.ones(np.delete(x.shape, axis), bool))
    with pytest.raises(ParityError, match="view 2"):
        compare(batches, "numpy, usual", STYLES["usual"])


@pytest.mark.parametrize(("frames", "resized"), [(40, True), (250, False)])
def test_numpy_draws_what_fastmc_draws(frames, resized):
    """Means over many clips of all that is drawn, on both sides."""
    config, clips = AugmentConfig(), 2000
    rng = np.random.default_rng(0)
    drawn = [draw_choices(rng, config, frames, 25, strong=True, size=64, resized=resized) for _ in range(clips)]
    num_frames, sample = torch.full((clips,), frames), torch.arange(clips)
    resized_to = 64 if resized else None
    table = draw_params(
        config, num_frames, 25, views=(STRONG,), seed=0, step=0, sample=sample, resized_to=resized_to, impl="torch"
    )
    strong = [choices.strong for choices in drawn]
    pairs = {
        "crop_start": [c.start for c in drawn],
        "crop_length": [c.length for c in drawn],
        "flip": [s.flip for s in strong],
        "noise_std": [0 if s.noise is None else config.noise_std for s in strong],
        "filter_sigma": [s.sigma or 0 for s in strong],
        "axis_scale": [1 - (s.axis is not None) / 3 for s in strong],
        "jittered": [len(c.joints) / 25 for c in drawn],
    }
    for name, values in pairs.items():
        expected, found = table.column(name).double().flatten(), np.array(values, float)
        error = (found.std() + expected.std().item()) / np.sqrt(clips)
        assert abs(found.mean() - expected.mean().item()) < 4 * error + 1e-9, name
    shears = (np.eye(3) if c.shear is None else c.shear for c in drawn)
    maps = np.array([s.rotation @ shear for s, shear in zip(strong, shears, strict=True)])
    expected_maps = table.column("pose")[0].numpy()
    assert np.abs(maps.mean(axis=0) - expected_maps.mean(axis=0)).max() < 0.05
    assert np.abs(maps.std(axis=0) - expected_maps.std(axis=0)).max() < 0.05
    largest = max(np.abs(s.noise).max() for s in strong[:50] if s.noise is not None)
    assert 3 * config.noise_std < largest < 7 * config.noise_std


def test_lengths_are_like_those_of_ntu():
    frames, bodies = lengths(np.random.default_rng(0), CLIPS)
    assert (frames.min(), frames.max()) == (30, 300)
    assert 80 < frames.mean() < 85
    assert set(bodies.tolist()) == {1, 2} and (bodies == 2).mean() == pytest.approx(11 / 60, abs=0.01)


def test_padded_clips_hold_the_store_and_zeros(tmp_path):
    store = write_ntu_like(tmp_path / "clips", 6)
    clips = padded(store)
    assert clips.shape == (6, 3, 300, 25, 2) and clips.dtype == np.float32
    for n in range(6):
        frames, bodies = int(store.num_frames[n]), int(store.num_bodies[n])
        np.testing.assert_array_equal(clips[n, :, :frames, :, :bodies].transpose(1, 3, 2, 0), store.clip(n))
        assert np.count_nonzero(clips[n]) == np.count_nonzero(store.clip(n))


def test_sizes_of_stores(tmp_path, capsys):
    store = write_ntu_like(tmp_path / "clips", 7)
    found = store_size.measured(tmp_path / "clips")
    assert found.padded == 7 * 180_000 and found.clips == 7
    rows = int((store.num_frames * store.num_bodies).sum())
    assert 0 < found.packed - rows * 300 < 10_000  # index, names, headers, meta.json
    modelled = store_size.modelled(seed=0)
    assert modelled.padded == 56_578 * 180_000
    assert modelled.packed == pytest.approx(56_578 * modelled.frames * modelled.bodies * 300, rel=0.01)
    assert store_size.main(["--stores", str(tmp_path / "clips")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| NTU-60, modelled lengths | 56,578 | ")
    assert lines[3].startswith("| ntu-like, on disk | 7 | ")


def test_the_data_part_is_what_a_step_does_with_data(monkeypatch):
    """The same launches of the same choices, of sources of the same kind; and nothing else."""
    seen: list[tuple[Any, ...]] = []

    def recorded(module: Any, name: str, what: Callable[..., tuple[Any, ...]]) -> None:
        right = getattr(module, name)

        def call(*args: Any, **settings: Any) -> Any:
            seen.append((name, *what(*args)))
            return right(*args, **settings)

        monkeypatch.setattr(module, name, call)

    recorded(base, "make_views", lambda source, params, _: (type(source), params.views, params.table.tolist()))
    recorded(base, "whole_clips", lambda clips, _, size: (len(clips), size))
    monkeypatch.setattr(data_share.itertools, "count", lambda: iter([5] * 4))
    turns = data_share.race(preset_config("tiny"), 3, Timing(rounds=3, threads=1))
    assert list(turns.found) == [data_share.STEP, data_share.DATA] and len(seen) == 12
    assert sorted(seen[:3], key=str) == sorted(seen[6:9], key=str)
