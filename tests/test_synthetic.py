"""The synthetic data set: true geometry, camera faults, file format, determinism, and how hard it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastmc.data.formats.skeleton_file import RawClip, parse_name, read_skeleton
from fastmc.data.normalise import choose_bodies, normalise
from fastmc.data.synthetic import CLASS_NAMES, write_synthetic
from fastmc.data.synthetic.actions import ACTIONS
from fastmc.data.synthetic.body import ANATOMY
from fastmc.data.synthetic.kinect import film
from fastmc.data.synthetic.perform import MAX_FRAMES, MIN_FRAMES, perform
from fastmc.skeleton import NTU25

pytestmark = pytest.mark.slow

SEED = 3
NUM_ACTIONS = len(CLASS_NAMES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    write_synthetic(folder, subjects=4, cameras=2, seed=SEED, workers=1)
    return folder


@pytest.fixture(scope="module")
def clips(folder: Path) -> dict[str, RawClip]:
    return {path.stem: read_skeleton(path) for path in sorted(folder.iterdir())}


def bone_lengths(joints: np.ndarray) -> np.ndarray:
    bones = [(child, parent) for child, parent in enumerate(ANATOMY) if child != parent]
    children, parents = np.array(bones).T
    return np.linalg.norm(joints[:, children] - joints[:, parents], axis=-1)


def resized(clip: np.ndarray, frames: int = 32) -> np.ndarray:
    """(T, M, V, 3) -> (frames * 2 * V * 3,), linear in time, an absent second body zero."""
    clip = np.concatenate([clip, np.zeros_like(clip)], axis=1)[:, :2]
    time = np.linspace(0, len(clip) - 1, frames)
    columns = clip.reshape(len(clip), -1).T
    return np.stack([np.interp(time, np.arange(len(clip)), column) for column in columns]).ravel()


@pytest.mark.parametrize("action", range(1, NUM_ACTIONS + 1, 4))
def test_true_bodies_are_rigid_smooth_and_on_the_floor(action: int) -> None:
    performance = perform(SEED, 1, action, 1)
    assert len(performance.bodies) == ACTIONS[action - 1].num_bodies
    assert MIN_FRAMES - 1 <= performance.num_frames <= MAX_FRAMES
    assert 0 <= performance.onset < performance.end <= performance.num_frames
    for joints in performance.bodies:
        lengths = bone_lengths(joints)
        assert np.ptp(lengths, axis=0).max() < 1e-9
        step = np.linalg.norm(np.diff(joints, axis=0), axis=-1)
        assert step.max() < 0.5  # 15 m/s; a flipped knee or elbow would jump
        assert joints[..., 1].min() > -0.1
        feet = joints[:, [14, 18], 1].min(axis=1)
        assert np.median(feet) < 0.2


def test_files_are_named_and_read_as_ntu(folder: Path, clips: dict[str, RawClip]) -> None:
    names = [parse_name(stem) for stem in clips]
    assert len(names) == 4 * NUM_ACTIONS * 2
    assert {(n.performer, n.camera, n.action) for n in names} == {
        (p, c, a) for p in range(1, 5) for c in (1, 2) for a in range(1, NUM_ACTIONS + 1)
    }
    assert {n.setup for n in names} == {1, 2}
    for clip in clips.values():
        assert MIN_FRAMES - 1 <= clip.num_frames <= MAX_FRAMES
        depth = np.concatenate([body.joints[:, 0, 2] for body in clip.bodies.values()])
        assert depth.min() > 1.2 and depth.max() < 5.5


def test_file_reads_back_what_was_filmed(clips: dict[str, RawClip]) -> None:
    frames, tracks = film(SEED, 1, 2, (1, 19, 1))
    clip = clips["S001C002P001R001A019"]
    assert clip.num_frames == frames and len(clip.bodies) == len(tracks) >= 2
    for body, track in zip(clip.bodies.values(), sorted(tracks, key=lambda t: t.frames[0]), strict=True):
        assert np.array_equal(body.frames, track.frames)
        assert np.abs(body.joints - track.joints).max() < 1e-5


def test_files_depend_on_seed_and_name_only(folder: Path, tmp_path: Path) -> None:
    kept = write_synthetic(tmp_path / "part", subjects=[4, 2], actions=[20, 1], cameras=2, seed=SEED, workers=1)
    assert len(kept) == 8 and kept == sorted(kept)
    for path in kept:
        assert path.read_bytes() == (folder / path.name).read_bytes()
    other = write_synthetic(tmp_path / "other", subjects=[2], actions=[1], cameras=1, seed=SEED + 1, workers=1)
    assert other[0].read_bytes() != (folder / other[0].name).read_bytes()
    again = write_synthetic(tmp_path / "again", subjects=[2], actions=[1], cameras=1, replications=2, workers=1)
    assert again[0].read_bytes() != again[1].read_bytes()


def test_no_two_bodies_of_a_file_share_an_id() -> None:
    """Subject 50's partner draws the number of subject 50 in this performance, which no reader would take."""
    _, tracks = film(0, 2, 1, (50, 22, 1))
    ids = [track.identity for track in tracks]
    assert len(tracks) == 2 and ids[1] == ids[0] + 1


@pytest.mark.parametrize(
    "bad", [{"subjects": 0}, {"actions": [NUM_ACTIONS + 1]}, {"cameras": 4}, {"replications": 0}, {"seed": -1}]
)
def test_arguments_out_of_range_are_refused(tmp_path: Path, bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        write_synthetic(tmp_path / "none", **bad)  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


def test_raw_coordinates_do_not_solve_cross_subject(clips: dict[str, RawClip]) -> None:
    """Nearest neighbour on raw coordinates is far above chance, so there is signal, and far from perfect."""
    features = np.stack([resized(normalise(choose_bodies(clip), NTU25)) for clip in clips.values()])
    names = [parse_name(name) for name in clips]
    label = np.array([name.action for name in names])
    train = np.array([name.performer % 2 == 1 for name in names])
    squares = (features[train] ** 2).sum(-1)
    distance = squares - 2 * features[~train] @ features[train].T  # up to a constant in each row
    accuracy = np.mean(label[train][distance.argmin(1)] == label[~train])
    assert 4 / NUM_ACTIONS < accuracy < 0.7
