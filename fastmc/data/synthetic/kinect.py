"""What three Kinect cameras make of a performance: views, tracking faults, and NTU's `.skeleton` text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from fastmc.data.synthetic.body import ANATOMY, rotation_about
from fastmc.data.synthetic.perform import FILM, MIN_FRAMES, SETUP, Performance, perform, stream

_FIRST_ID = 72057594037931101
_LEFT_ARM, _RIGHT_ARM = [5, 6, 7, 21, 22], [9, 10, 11, 23, 24]
_LEFT_LEG, _RIGHT_LEG = [13, 14, 15], [17, 18, 19]
_LEAVES = [3, 15, 19, 21, 22, 23, 24]
_SHAKY = np.ones(25)
_SHAKY[[6, 7, 10, 11, 14, 18]] = 1.8
_SHAKY[[15, 19, 21, 22, 23, 24]] = 2.6
_INFERRED, _TRACKED = 1, 2


@dataclass(frozen=True)
class Camera:
    """Pose of a camera: `rotation` takes room axes to camera axes (x to the sensor's left, y up, z ahead)."""

    rotation: np.ndarray
    position: np.ndarray

    def view(self, joints: np.ndarray) -> np.ndarray:
        return (joints - self.position) @ self.rotation.T


@dataclass
class Track:
    """One tracked body: joints (n, 25, 3) in camera space, tracking states (n, 25), frames (n,) and its ID."""

    joints: np.ndarray
    states: np.ndarray
    frames: np.ndarray
    identity: int


@cache
def camera_of(seed: int, setup: int, camera: int) -> Camera:
    """Cameras 1, 2, 3 stand at about -45, 0 and +45 degrees, at the setup's heights and distances."""
    rng = stream(seed, SETUP, setup, camera)
    azimuth = np.deg2rad((camera - 2) * 45.0 + rng.normal(0.0, 3.0))
    distance, height = rng.uniform(2.9, 3.5), rng.uniform(0.9, 2.0)
    position = np.array([distance * np.sin(azimuth), height, distance * np.cos(azimuth)])
    ahead = np.array([0.0, rng.uniform(0.8, 1.0), 0.0]) - position
    ahead /= np.linalg.norm(ahead)
    left = np.cross([0.0, 1.0, 0.0], ahead)
    left /= np.linalg.norm(left)
    return Camera(np.stack([left, np.cross(ahead, left), ahead]), position)


def film(seed: int, setup: int, camera: int, key: tuple[int, int, int]) -> tuple[int, list[Track]]:
    """Number of frames and tracked bodies of performance `key` (subject, action, replication) as one camera has it."""
    rng = stream(seed, FILM, camera, *key)
    performance = perform(seed, *key)
    first, last = _recorded(rng, performance)
    lens = camera_of(seed, setup, camera)
    tracks: list[Track] = []
    for body in performance.bodies:
        joints, states = _faulty(rng, lens.view(body)[first:last])
        identity = _FIRST_ID + int(rng.integers(0, 4000))
        tracks.append(Track(joints, states, np.arange(last - first), identity))
    tracks = _drop_outs(rng, tracks)
    if rng.random() < 0.06:
        tracks.append(_ghost(rng, tracks[0], last - first))
    return last - first, _told_apart(tracks)


def _told_apart(tracks: list[Track]) -> list[Track]:
    """IDs are drawn one by one, so that two of a clip may be the same number; the later one takes the next free."""
    out: list[Track] = []
    for track in tracks:
        identity, taken = track.identity, {other.identity for other in out}
        while identity in taken:
            identity += 1
        out.append(replace(track, identity=identity))
    return out


def _recorded(rng: np.random.Generator, performance: Performance) -> tuple[int, int]:
    """Cameras find and lose the body at different moments of the idle time, so views aren't aligned in time."""
    spare = max(0, performance.num_frames - MIN_FRAMES)
    first = int(rng.integers(0, min(performance.onset, spare // 2, 25) + 1))
    after = performance.num_frames - performance.end
    return first, performance.num_frames - int(rng.integers(0, max(0, min(after, spare // 2, 20)) + 1))


def _faulty(rng: np.random.Generator, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds view-dependent bias, occlusion and jitter to camera-space joints (T, 25, 3)."""
    side_on = _side_on(joints)
    out = _misfound(rng, _flatten(rng, joints, side_on))
    states = np.full(joints.shape[:2], _TRACKED)
    far = float(np.median(side_on))
    _shade(rng, out, far)
    _occlude(rng, out, states, far)
    size = 0.0045 * rng.uniform(0.6, 1.8) * (1.0 + 1.5 * np.abs(side_on))[:, None] * _SHAKY
    size = size * np.where(states == _INFERRED, 2.0, 1.0)
    noise = rng.normal(size=joints.shape)
    # Kinect's filter leaves noise that is partly correlated from frame to frame.
    noise[1:] = 0.8 * noise[1:] + 0.6 * noise[:-1]
    return out + size[..., None] * noise, states


def _misfound(rng: np.random.Generator, joints: np.ndarray) -> np.ndarray:
    """A body that has just been found is first taken to stand and face a little elsewhere; within a few frames the
    tracker settles. View normalisation rests on these frames, so views of one performance disagree after it."""
    fade = np.exp(-np.arange(len(joints)) / rng.uniform(1.5, 4.0))[:, None]
    turn, roll, tilt = fade.T * np.clip(rng.normal(0.0, (0.6, 0.16, 0.16)), -1.2, 1.2)[:, None]
    shift = fade * rng.normal(0.0, 0.08, 3)
    base = joints[:, :1]
    rotation = rotation_about("y", turn) @ rotation_about("z", roll) @ rotation_about("x", tilt)
    return base + (joints - base) @ rotation.swapaxes(1, 2) + shift[:, None]


def _shade(rng: np.random.Generator, joints: np.ndarray, side_on: float) -> None:
    """The far arm and leg of a body seen side-on are drawn towards the trunk and the near leg throughout; in place."""
    arm, anchor, leg, near_leg = _far_side(side_on)
    weight = abs(side_on) * rng.uniform(0.1, 0.4)
    trunk = 0.6 * joints[:, anchor : anchor + 1] + 0.4 * joints[:, 1:2]
    joints[:, arm] += weight * (trunk - joints[:, arm])
    joints[:, leg] += 0.6 * weight * (joints[:, near_leg] - joints[:, leg])


def _far_side(side_on: float) -> tuple[list[int], int, list[int], list[int]]:
    """Joints of the far arm, its shoulder, and joints of the far and the near leg."""
    if side_on > 0:
        return _LEFT_ARM, 4, _LEFT_LEG, _RIGHT_LEG
    return _RIGHT_ARM, 8, _RIGHT_LEG, _LEFT_LEG


def _side_on(joints: np.ndarray) -> np.ndarray:
    """(T,) in -1..1: 0 for a body that faces the camera, positive where its left side is the far one."""
    across = joints[:, 4] - joints[:, 8]
    return across[:, 2] / np.maximum(np.linalg.norm(across, axis=-1), 1e-6)


def _flatten(rng: np.random.Generator, joints: np.ndarray, side_on: np.ndarray) -> np.ndarray:
    """A depth camera sees surfaces: it misjudges depth along the line of sight, more so for bodies seen side-on."""
    base = joints[:, :1]
    squeeze = 1.0 - rng.uniform(0.0, 0.45) * np.abs(side_on)[:, None]
    skew = rng.normal(0.0, 0.1)
    out = joints.copy()
    relative = joints - base
    out[..., 2] = base[..., 2] + relative[..., 2] * squeeze + skew * relative[..., 0]
    return out


def _occlude(rng: np.random.Generator, joints: np.ndarray, states: np.ndarray, side_on: float) -> None:
    """Pulls the far arm or leg to a wrong place near the trunk or the near leg for a while, in place."""
    frames = len(joints)
    arm, anchor, leg, near_leg = _far_side(side_on)
    for _ in range(rng.poisson(0.2 + 1.2 * abs(side_on))):
        length = int(rng.integers(4, 16))
        start = int(rng.integers(0, max(1, frames - length)))
        when = slice(start, start + length)
        ramp = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1))[: frames - start]
        weight = np.clip(ramp / 3.0, 0.0, 1.0)[:, None, None] * rng.uniform(0.5, 0.95)
        if rng.random() < 0.65:
            limb = arm
            wrong = joints[when, anchor : anchor + 1] * 0.5 + joints[when, 0:1] * 0.5 + rng.normal(0.0, 0.08, 3)
        else:
            limb = leg
            wrong = joints[when][:, near_leg] + rng.normal(0.0, 0.04, 3)
        joints[when, limb] += weight * (wrong - joints[when][:, limb])
        states[when, limb] = _INFERRED


def _drop_outs(rng: np.random.Generator, tracks: list[Track]) -> list[Track]:
    """Some bodies are lost for a few frames; half of them come back under a new ID."""
    out: list[Track] = []
    for track in tracks:
        if rng.random() >= 0.12:
            out.append(track)
            continue
        lost = int(rng.integers(1, 7))
        at = int(rng.integers(12, len(track.frames) - lost - 12)) if len(track.frames) > 30 + lost else 0
        before, after = slice(0, at), slice(at + lost, None)
        if at and rng.random() < 0.5:
            out.append(_cut(track, before, track.identity))
            out.append(_cut(track, after, track.identity + int(rng.integers(1, 300))))
        else:
            out.append(_cut(track, np.r_[0:at, at + lost : len(track.frames)], track.identity))
    return out


def _cut(track: Track, keep: slice | np.ndarray, identity: int) -> Track:
    return Track(track.joints[keep], track.states[keep], track.frames[keep], identity)


def _ghost(rng: np.random.Generator, track: Track, frames: int) -> Track:
    """A body that isn't there: a few frames of a crumpled skeleton on some piece of furniture."""
    length = int(rng.integers(3, 10))
    start = int(rng.integers(0, frames - length))
    shape = rng.normal(0.0, 1.0, (25, 3)) * [0.35, 0.08, 0.15]
    place = track.joints[0, 0] + [rng.choice([-1.0, 1.0]) * rng.uniform(0.7, 1.1), -0.4, rng.uniform(-0.3, 0.6)]
    joints = place + shape + rng.normal(0.0, 0.03, (length, 25, 3))
    states = np.full((length, 25), _INFERRED)
    return Track(joints, states, np.arange(start, start + length), track.identity + 5000)


_JOINT_LINE = "%.5f %.5f %.5f %.3f %.3f %.2f %.2f %.4f %.4f %.4f %.4f %d"
_BODY = "%d %d %d %d %d %d 0 %.6f %.6f 2\n25\n" + "\n".join([_JOINT_LINE] * 25) + "\n"


def skeleton_text(rng: np.random.Generator, frames: int, tracks: list[Track]) -> str:
    """NTU's `.skeleton` text of a clip."""
    per_frame: list[list[str]] = [[] for _ in range(frames)]
    for track in tracks:
        numbers = _fields(track).reshape(len(track.frames), -1).tolist()
        hands = rng.integers(0, 2, (len(track.frames), 4)).tolist()
        trunk = track.joints[:, 20] - track.joints[:, 0]
        lean = np.clip(trunk[:, [0, 2]] * [1.0, -1.0] / 0.5, -1.0, 1.0).tolist()
        for frame, hand, tilt, row in zip(track.frames.tolist(), hands, lean, numbers, strict=True):
            per_frame[frame].append(_BODY % (track.identity, 0, *hand, *tilt, *row))
    lines = [f"{frames}\n"]
    for bodies in per_frame:
        lines.append(f"{len(bodies)}\n")
        lines.extend(bodies)
    return "".join(lines)


def _fields(track: Track) -> np.ndarray:
    """The 12 numbers of each joint (n, 25, 12): position, depth and colour pixel, orientation, tracking state."""
    out = np.empty((*track.joints.shape[:2], 12))
    x, y, z = np.moveaxis(track.joints, -1, 0)
    out[..., :3] = track.joints
    out[..., 3], out[..., 4] = 365.0 * x / z + 256.0, 212.0 - 365.0 * y / z
    out[..., 5], out[..., 6] = 1081.0 * x / z + 978.0, 567.0 - 1081.0 * y / z
    out[..., 7:11] = _orientation(track.joints)
    out[..., 11] = track.states
    return out


def _orientation(joints: np.ndarray) -> np.ndarray:
    """Quaternions (n, 25, 4), w first, that turn the y axis onto the bone; zeros at the ends of limbs, as Kinect."""
    bone = joints - joints[:, list(ANATOMY)]
    bone[:, 0] = joints[:, 1] - joints[:, 0]
    bone /= np.maximum(np.linalg.norm(bone, axis=-1, keepdims=True), 1e-9)
    out = np.stack([1.0 + bone[..., 1], bone[..., 2], np.zeros_like(bone[..., 0]), -bone[..., 0]], -1)
    out /= np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-9)
    out[:, _LEAVES] = 0.0
    return out
