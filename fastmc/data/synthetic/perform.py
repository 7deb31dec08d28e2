"""One performance of an action by one subject: style, timing, and the true joints in the room."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from fastmc.data.synthetic.actions import ACTIONS, pose_row
from fastmc.data.synthetic.body import CHANNEL, CHANNELS, REST, Body, mirror, rotation_about

FPS = 30.0
MIN_FRAMES, MAX_FRAMES = 36, 90
# Streams of random numbers; a clip's numbers never depend on which other clips are written.
SUBJECT, PERFORMANCE, SETUP, FILM = range(4)
_PARTNER = 100_000

_SWAY = {
    "sway": 0.02, "shift": 0.015, "bend": 0.03, "side": 0.03, "twist": 0.06, "nod": 0.06, "look": 0.12,
    "rhx": 0.03, "rhy": 0.03, "rhz": 0.04, "lhx": 0.03, "lhy": 0.03, "lhz": 0.04,
}  # fmt: skip
# Where an arm that has nothing to do may rest: hand target and elbow swivel.
_IDLE_ARMS = (
    (0.24, -0.55, 0.12, 0.6),  # on the hip
    (-0.15, -0.6, 0.4, 0.0),  # on the belly
    (-0.05, -0.85, -0.25, 0.2),  # behind the back
    (0.1, -0.5, 0.55, 0.0),  # bent, as if it held something
)
_POSTURE = {
    "bend": 0.07, "pitch": 0.03, "nod": 0.10, "side": 0.03, "twist": 0.05, "shift": 0.02,
    "rhx": 0.06, "rhz": 0.08, "lhx": 0.06, "lhz": 0.08, "relbow": 0.3, "lelbow": 0.3, "rfz": 0.04, "lfz": 0.04,
}  # fmt: skip


def stream(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(key))


def _channel_row(values: dict[str, float]) -> np.ndarray:
    row = np.zeros(len(CHANNELS))
    for name, value in values.items():
        row[CHANNEL[name]] = value
    return row


@dataclass(frozen=True)
class Persona:
    """What stays the same over all of one subject's performances."""

    body: Body
    tempo: float
    amplitude: float
    smoothness: float
    sway: float
    left_handed: float
    posture: np.ndarray
    hanging: float

    @classmethod
    @cache
    def of(cls, seed: int, subject: int) -> Persona:
        rng = stream(seed, SUBJECT, subject)
        # A third of the people use either hand; the others nearly always the right one.
        left_handed = rng.uniform(0.3, 0.8) if rng.random() < 0.4 else 0.1
        return cls(
            body=Body.draw(rng),
            tempo=float(rng.uniform(0.75, 1.3)),
            amplitude=float(rng.uniform(0.8, 1.1)),
            smoothness=float(rng.uniform(0.05, 0.1)),
            sway=float(rng.uniform(0.5, 1.5)),
            left_handed=left_handed,
            posture=_channel_row(_POSTURE) * rng.normal(size=len(CHANNELS)),
            hanging=float(rng.uniform(0.5, 1.0)),
        )


@dataclass(frozen=True)
class Performance:
    """True joints of everyone in the room: `bodies` of (T, 25, 3) metres; the floor is y = 0, camera 2 is at +z.

    The action itself fills the frames from `onset` to `end`.
    """

    bodies: tuple[np.ndarray, ...]
    onset: int
    end: int

    @property
    def num_frames(self) -> int:
        return len(self.bodies[0])


def perform(seed: int, subject: int, action: int, replication: int) -> Performance:
    """The performance named by its key; `action` is 1-based as in file names."""
    rng = stream(seed, PERFORMANCE, subject, action, replication)
    what = ACTIONS[action - 1]
    script = what.script(rng)
    lead = Persona.of(seed, subject)
    partner = Persona.of(seed, _PARTNER + subject)
    tempo = float(np.clip(lead.tempo * rng.lognormal(0.0, 0.12), 0.6, 1.6))
    times = _timing(rng, np.array([key[0] for key in script]) * tempo)
    mirrored = rng.random() < lead.left_handed
    heading = float(np.clip(rng.normal(0.0, 0.26), -0.52, 0.52))
    spot = rng.uniform(-0.25, 0.25, 2)
    bodies = []
    for i, persona in enumerate((lead, partner)[: what.num_bodies]):
        rest = _rest(rng, persona)
        keys = np.stack([pose_row(key[1 + i], rest) for key in script])  # type: ignore[arg-type]
        pose = _pose_track(rng, persona, rest, keys, times)
        joints = persona.body.joints(mirror(pose) if mirrored else pose)
        if what.distance:
            # The two face each other, so camera 2 sees them from the side.
            turn, place = (np.pi / 2, -0.5) if i == 0 else (-np.pi / 2, 0.5)
            turn += rng.normal(0.0, 0.08)
            joints = _place(joints, turn, [place * what.distance * rng.uniform(0.95, 1.05), 0.0])
        bodies.append(_place(joints, heading, spot))
    return Performance(tuple(bodies), int(times[1] * FPS), int(times[-2] * FPS))


def _timing(rng: np.random.Generator, seconds: np.ndarray) -> np.ndarray:
    """Times in seconds of the start, the onset of the action, its keys, and the end of the clip.

    The action lies anywhere in the clip, between idle times of any length that fits.
    """
    seconds = seconds * rng.lognormal(0.0, 0.12, len(seconds))
    seconds *= min(1.0, 0.85 * MAX_FRAMES / FPS / seconds.sum())
    spare = MAX_FRAMES / FPS - seconds.sum()
    idle = max(spare * rng.uniform(0.2, 1.0), MIN_FRAMES / FPS - seconds.sum())
    before = idle * rng.uniform(0.1, 0.9)
    return np.cumsum(np.concatenate([[0.0, before], seconds, [idle - before]]))


def _rest(rng: np.random.Generator, persona: Persona) -> np.ndarray:
    """The pose (C,) to which this performance returns: each arm hangs or rests somewhere."""
    rest = REST.copy()
    for side in "rl":
        if rng.random() >= persona.hanging:
            arm = _IDLE_ARMS[rng.integers(len(_IDLE_ARMS))]
            rest[[CHANNEL[side + name] for name in ("hx", "hy", "hz", "elbow")]] = arm
    return rest


def _pose_track(
    rng: np.random.Generator, persona: Persona, rest: np.ndarray, keys: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """Pose sequence (T, C): the keys in this person's style, smoothed, with posture and sway on top."""
    keys = rest + (keys - rest) * _amplitudes(rng, persona, keys)
    first = keys[0] if times[2] == times[1] else rest
    keys = np.concatenate([first[None], first[None], keys, keys[-1:]])
    frames = np.arange(int(times[-1] * FPS)) / FPS
    track = np.stack([np.interp(frames, times, column) for column in keys.T], -1)
    track += _settling(rng, frames, times)
    track += _fidget(rng, frames, 0.0, times[1]) + _fidget(rng, frames, times[-2], times[-1])
    track = _smooth(track, persona.smoothness * rng.uniform(0.8, 1.2) * FPS)
    posture = persona.posture + 0.6 * _channel_row(_POSTURE) * rng.normal(size=len(CHANNELS))
    return track + posture + persona.sway * _channel_row(_SWAY) * _drift(rng, len(track))


def _settling(rng: np.random.Generator, frames: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Offsets (T, C) of turning and stepping: people are found elsewhere, facing elsewhere, and settle before they act.

    So the first frame, on which view normalisation rests, says little about the direction of the action.
    """
    out = np.zeros((len(frames), len(CHANNELS)))
    begin = times[1] * rng.uniform(0.2, 0.9)
    knots = [begin, times[1] + 0.15, times[-2], times[-1]]
    for name, before, after in (("yaw", 0.55, 0.25), ("x", 0.1, 0.05), ("z", 0.1, 0.05)):
        ends = np.clip(rng.normal(0.0, (before, after)), -2 * before, 2 * before)
        out[:, CHANNEL[name]] = np.interp(frames, knots, [ends[0], 0.0, 0.0, ends[1]])
    return out


def _fidget(rng: np.random.Generator, frames: np.ndarray, begin: float, end: float) -> np.ndarray:
    """Offsets (T, C) of a small gesture that means nothing, in idle time that is long enough for it."""
    out = np.zeros((len(frames), len(CHANNELS)))
    if end - begin < 0.6 or rng.random() < 0.4:
        return out
    side = "rl"[rng.integers(2)]
    length = rng.uniform(0.5, min(1.2, end - begin))
    start = rng.uniform(begin, end - length)
    shape = np.interp(frames, [start, start + 0.4 * length, start + 0.7 * length, start + length], [0, 1, 1, 0])
    for name, size in (("hx", 0.15), ("hy", 0.35), ("hz", 0.35)):
        out[:, CHANNEL[side + name]] = shape * size * rng.uniform(-0.3, 1.0)
    out[:, CHANNEL["sway"]] = shape * rng.normal(0.0, 0.06)
    out[:, CHANNEL["look"]] = shape * rng.normal(0.0, 0.3)
    return out


def _amplitudes(rng: np.random.Generator, persona: Persona, keys: np.ndarray) -> np.ndarray:
    """Scale of each key's move away from rest; turning and sitting reach their goal whatever the style."""
    scale = persona.amplitude * rng.normal(1.0, 0.06) * rng.normal(1.0, 0.05, (len(keys), 1))
    scale = np.repeat(np.clip(scale, 0.75, 1.2), len(CHANNELS), 1)
    scale[:, [CHANNEL["yaw"], CHANNEL["drop"], CHANNEL["shift"]]] = 1.0
    return scale


def _smooth(track: np.ndarray, sigma: float) -> np.ndarray:
    radius = int(3 * sigma) + 1
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(track, ((radius, radius), (0, 0)), mode="edge")
    return np.stack([np.convolve(column, kernel, mode="valid") for column in padded.T], -1)


def _drift(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Slow wandering (T, C) of about unit size: three sines a channel."""
    frequency = rng.uniform(0.15, 0.9, (3, 1, len(CHANNELS)))
    phase = rng.uniform(0.0, 2 * np.pi, (3, 1, len(CHANNELS)))
    time = np.arange(frames)[None, :, None] / FPS
    return np.sin(2 * np.pi * frequency * time + phase).sum(0) * 0.8


def _place(joints: np.ndarray, turn: float, spot: np.ndarray | list[float]) -> np.ndarray:
    """Turns about the vertical axis (left for positive angles), then moves by (x, z)."""
    rotation = rotation_about("y", np.array([turn]))[0]
    return joints @ rotation.T + [spot[0], 0.0, spot[1]]
