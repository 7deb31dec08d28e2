"""The synthetic data set: true geometry, camera faults, file format, determinism, and how hard it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastmc.data.formats.skeleton_file import RawClip, parse_name, read_skeleton
from fastmc.data.normalise import choose_bodies, normalise
from fastmc.data.synthetic import CLASS_NAMES, write_synthetic
from fastmc.data.synthetic.actions import ACTIONS
from fastmc.data.synthetic.body import ANATOMY, REST
from fastmc.data.synthetic.kinect import camera_of, film
from fastmc.data.synthetic.perform import MAX_FRAMES, MIN_FRAMES, Persona, perform
from fastmc.skeleton import NTU25

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


def test_cameras_see_a_facing_body_as_kinect_does() -> None:
    joints = Persona.of(SEED, 1).body.joints(REST[None])
    for number, azimuth in ((1, -45.0), (2, 0.0), (3, 45.0)):
        camera = camera_of(SEED, 1, number)
        assert np.allclose(camera.rotation @ camera.rotation.T, np.eye(3))
        assert np.linalg.det(camera.rotation) == pytest.approx(1.0)
        assert abs(np.rad2deg(np.arctan2(camera.position[0], camera.position[2])) - azimuth) < 12
        seen = camera.view(joints)[0]
        assert 2.0 < seen[0, 2] < 4.5
        assert seen[3, 1] > seen[14, 1]
        assert seen[4, 0] < seen[8, 0]  # the sensor's left is the right side of whoever faces it


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


def test_text_has_the_fields_of_ntu(folder: Path) -> None:
    lines = next(folder.glob("*C002*A001.skeleton")).read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if len(line.split()) == 10)
    body = lines[at].split()
    assert body[0].startswith("720575940379") and body[-1] == "2" and lines[at + 1] == "25"
    joints = np.array([line.split() for line in lines[at + 2 : at + 27]], float)
    assert joints.shape == (25, 12)
    assert set(joints[:, 11]) <= {1.0, 2.0}
    norm = np.linalg.norm(joints[:, 7:11], axis=1)
    assert np.all((np.abs(norm - 1) < 1e-3) | (norm == 0))
    assert np.abs(joints[:, 3] - (256 + 365 * joints[:, 0] / joints[:, 2])).max() < 0.01


def test_file_reads_back_what_was_filmed(clips: dict[str, RawClip]) -> None:
    frames, tracks = film(SEED, 1, 2, (1, 19, 1))
    clip = clips["S001C002P001R001A019"]
    assert clip.num_frames == frames and len(clip.bodies) == len(tracks) >= 2
    for body, track in zip(clip.bodies.values(), sorted(tracks, key=lambda t: t.frames[0]), strict=True):
        assert np.array_equal(body.frames, track.frames)
        assert np.abs(body.joints - track.joints).max() < 1e-5


def test_faults_are_there(folder: Path, clips: dict[str, RawClip]) -> None:
    expected = {name: ACTIONS[parse_name(name).action - 1].num_bodies for name in clips}
    extra = [name for name, clip in clips.items() if len(clip.bodies) > expected[name]]
    assert 0.02 < len(extra) / len(clips) < 0.3  # ghosts and bodies found again under a new ID
    covered = {
        name: np.unique(np.concatenate([b.frames for b in clip.bodies.values()])) for name, clip in clips.items()
    }
    empty = [name for name, frames in covered.items() if len(frames) < clips[name].num_frames]
    assert 0.01 < len(empty) / len(clips) < 0.3
    ghosts = [b for clip in clips.values() for b in clip.bodies.values() if len(b.frames) < 10]
    assert ghosts
    windows = [b"\r\n" in path.read_bytes()[:20] for path in folder.iterdir()]
    assert 0.05 < np.mean(windows) < 0.5


def test_files_depend_on_seed_and_name_only(folder: Path, tmp_path: Path) -> None:
    kept = write_synthetic(tmp_path / "part", subjects=[4, 2], actions=[20, 1], cameras=2, seed=SEED, workers=1)
    assert len(kept) == 8 and kept == sorted(kept)
    for path in kept:
        assert path.read_bytes() == (folder / path.name).read_bytes()
    other = write_synthetic(tmp_path / "other", subjects=[2], actions=[1], cameras=1, seed=SEED + 1, workers=1)
    assert other[0].read_bytes() != (folder / other[0].name).read_bytes()
    again = write_synthetic(tmp_path / "again", subjects=[2], actions=[1], cameras=1, replications=2, workers=1)
    assert again[0].read_bytes() != again[1].read_bytes()


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
