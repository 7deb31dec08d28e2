"""What is done: each action is a script of key poses, drawn anew for every performance.

A key is (seconds to get there, pose of the first person[, pose of the second]). A pose names only the channels that
leave the rest pose; `rh`, `lh`, `rf`, `lf` take three numbers, `hands` sets both hands. One-handed actions are
written for the right hand; a left-handed performance mirrors the whole script.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmc.data.synthetic.body import CHANNEL, REST

Pose = Mapping[str, Any]  # values are numbers or triples of them
Key = tuple[float, Pose] | tuple[float, Pose, Pose]
Script = list[Key]

MOUTH = (-0.24, 0.20, 0.36)
SITTING: Pose = {"drop": 0.47, "shift": -0.48, "pitch": 0.08, "bend": 0.1, "hands": (-0.02, -0.62, 0.52)}


@dataclass(frozen=True)
class Action:
    """`distance` is how far the two people stand apart at first, in metres; 0 for one person."""

    name: str
    script: Callable[[np.random.Generator], Script]
    distance: float = 0.0

    @property
    def num_bodies(self) -> int:
        return 2 if self.distance else 1


def pose_row(pose: Pose, rest: np.ndarray = REST) -> np.ndarray:
    """Channel values (len(CHANNELS),) of a pose; `rest` fills in what the pose doesn't name."""
    row = rest.copy()
    for name, value in pose.items():
        if isinstance(value, tuple):
            limbs = ("rh", "lh") if name == "hands" else (name,)
            for limb in limbs:
                for axis, number in zip("xyz", value, strict=True):
                    row[CHANNEL[limb + axis]] = number
        else:
            row[CHANNEL[name]] = value
    return row


def _free_hands(rng: np.random.Generator, poses: Script, probability: float = 0.4) -> Script:
    """For actions that the legs or the trunk do: some people leave their arms as they were."""
    if rng.random() >= probability:
        return poses
    return [(key[0], {name: value for name, value in key[1].items() if name != "hands"}) for key in poses]


def _cycles(rng: np.random.Generator, low: int, high: int, keys: Script) -> Script:
    return keys * int(rng.integers(low, high + 1))


def _drink(rng: np.random.Generator) -> Script:
    sip = rng.uniform(0.4, 0.8)
    return [
        (0.35, {"rh": (-0.05, -0.45, 0.6), "nod": 0.15}),
        (0.45, {"rh": MOUTH, "relbow": 0.3}),
        (sip, {"rh": (-0.24, 0.27, 0.33), "relbow": 0.5, "nod": -0.35, "bend": -0.05}),
        (0.45, {"rh": (-0.05, -0.45, 0.6)}),
        (0.35, {}),
    ]


def _wave(rng: np.random.Generator) -> Script:
    swing: Script = [(0.2, {"rh": (0.72, 0.5, 0.2)}), (0.2, {"rh": (0.02, 0.62, 0.3)})]
    return [(0.4, {"rh": (0.3, 0.6, 0.3)}), *_cycles(rng, 2, 4, swing), (0.5, {})]


def _clap(rng: np.random.Generator) -> Script:
    beat: Script = [(0.17, {"hands": (-0.3, -0.02, 0.62)}), (0.17, {"hands": (0.35, -0.08, 0.65)})]
    return [(0.35, {"hands": (0.1, -0.15, 0.6)}), *_cycles(rng, 3, 4, beat), (0.4, {})]


def _raise_arms(rng: np.random.Generator) -> Script:
    up: Pose = {"hands": (0.12, 0.97, 0.06), "nod": -0.15}
    side: Pose = {"hands": (0.95, 0.05, 0.1)}
    return [(0.35, side), (0.35, up), (rng.uniform(0.2, 0.6), up), (0.35, side), (0.35, {})]


def _punch(rng: np.random.Generator) -> Script:
    guard: Pose = {"hands": (-0.1, -0.12, 0.42), "rf": (0.0, 0.0, -0.25), "lf": (0.0, 0.0, 0.15), "drop": 0.04}
    hit: Pose = {**guard, "rh": (-0.2, 0.0, 0.97), "twist": 0.6, "bend": 0.15, "shift": 0.1}
    jab: Script = [(0.14, hit), (0.05, hit), (0.18, guard)]
    return [(0.35, guard), *_cycles(rng, 2, 3, jab), (0.4, {})]


def _kick_poses() -> tuple[Pose, Pose]:
    back: Pose = {"rf": (0.0, 0.25, -0.5), "bend": 0.15, "hands": (0.35, -0.75, 0.1), "sway": 0.08}
    strike: Pose = {"rf": (0.0, 0.85, 0.95), "pitch": -0.35, "bend": 0.1, "hands": (0.6, -0.6, 0.0), "sway": 0.08}
    return back, strike


def _kick(rng: np.random.Generator) -> Script:
    back, strike = _kick_poses()
    return _free_hands(rng, [*_cycles(rng, 1, 2, [(0.3, back), (0.2, strike), (0.08, strike), (0.35, {})]), (0.1, {})])


def _squat(rng: np.random.Generator) -> Script:
    low: Pose = {"drop": 0.45, "shift": -0.14, "pitch": 0.25, "bend": 0.35, "hands": (0.0, 0.0, 0.9), "nod": -0.2}
    down: Script = [(0.5, low), (rng.uniform(0.05, 0.25), low), (0.5, {})]
    return _free_hands(rng, [*_cycles(rng, 1, 2, down), (0.1, {})])


def _leaning() -> Pose:
    return {"drop": 0.25, "shift": -0.2, "pitch": 0.4, "bend": 0.5, "hands": (0.05, -0.75, 0.45)}


def _sit_down(rng: np.random.Generator) -> Script:
    return _free_hands(rng, [(0.5, _leaning()), (0.4, SITTING), (rng.uniform(0.2, 0.6), SITTING)])


def _stand_up(rng: np.random.Generator) -> Script:
    return _free_hands(rng, [(0.0, SITTING), (rng.uniform(0.2, 0.6), SITTING), (0.4, _leaning()), (0.5, {}), (0.1, {})])


def _jump(rng: np.random.Generator) -> Script:
    crouch: Pose = {"drop": 0.22, "pitch": 0.2, "bend": 0.3, "hands": (0.2, -0.75, -0.45)}
    height = rng.uniform(0.25, 0.4)
    air: Pose = {"lift": height, "hands": (0.2, 0.55, 0.6), "rf": (0.0, 0.05, 0.0), "lf": (0.0, 0.05, 0.0)}
    land: Pose = {"drop": 0.18, "pitch": 0.1, "bend": 0.2, "hands": (0.25, -0.6, 0.4)}
    hop: Script = [(0.4, crouch), (0.2, air), (0.06, air), (0.2, land), (0.3, {})]
    return _free_hands(rng, [*_cycles(rng, 1, 2, hop), (0.1, {})], 0.4)


def _bow(rng: np.random.Generator) -> Script:
    down: Pose = {"pitch": 0.55, "bend": 0.65, "nod": 0.3, "hands": (0.05, -0.95, 0.15), "shift": -0.1}
    return _free_hands(rng, [(0.6, down), (rng.uniform(0.2, 0.7), down), (0.6, {})])


def _throw(rng: np.random.Generator) -> Script:
    cocked: Pose = {
        "rh": (0.45, 0.4, -0.35), "lh": (0.1, -0.3, 0.6), "twist": -0.55, "bend": -0.12,
        "rf": (0.0, 0.0, -0.2), "lf": (0.0, 0.0, 0.2), "shift": -0.06,
    }  # fmt: skip
    thrown: Pose = {
        "rh": (-0.1, 0.25, 0.93), "lh": (0.25, -0.8, -0.2), "twist": 0.45, "bend": 0.25,
        "rf": (0.0, 0.05, -0.25), "lf": (0.0, 0.0, 0.25), "shift": 0.12,
    }  # fmt: skip
    through: Pose = {**thrown, "rh": (-0.45, -0.6, 0.5), "bend": 0.45, "twist": 0.6}
    return [(0.5, cocked), (rng.uniform(0.1, 0.25), cocked), (0.16, thrown), (0.2, through), (0.5, {})]


def _pick_up(rng: np.random.Generator) -> Script:
    low: Pose = {
        "drop": 0.3, "shift": -0.12, "pitch": 0.55, "bend": 0.75, "rh": (-0.05, -0.85, 0.4), "nod": 0.1, "side": 0.12,
        "lh": (0.1, -0.7, 0.35),
    }  # fmt: skip
    held: Pose = {"rh": (-0.1, -0.45, 0.5), "nod": 0.3}
    return [(0.55, low), (rng.uniform(0.1, 0.35), low), (0.55, held), (0.3, held), (0.35, {})]


def _circle_arms(rng: np.random.Generator) -> Script:
    turn: Script = []
    for angle in np.arange(1, 9) * np.pi / 4 + np.pi:
        turn.append((0.09, {"hands": (0.35, 0.85 * float(np.cos(angle)), -0.85 * float(np.sin(angle)))}))
    return [(0.15, {}), *_cycles(rng, 2, 3, turn), (0.15, {})]


def _step(side: str, lift: float, ahead: float, swing: float) -> Pose:
    """Mid-step: the foot of `side` in the air and the opposite hand in front."""
    other = "l" if side == "r" else "r"
    lean = 0.05 if side == "r" else -0.05
    return {
        side + "f": (0.0, lift, ahead),
        other + "h": (0.12, -0.9 + 0.5 * swing, 0.1 + 0.6 * swing),
        side + "h": (0.18, -0.9, -0.35 * swing),
        "sway": lean,
    }


def _march(rng: np.random.Generator) -> Script:
    lift = rng.uniform(0.35, 0.48)
    right, left = _step("r", lift, 0.22, 0.8), _step("l", lift, 0.22, 0.8)
    pair: Script = [(0.18, right), (0.06, right), (0.14, {}), (0.18, left), (0.06, left), (0.14, {})]
    return _cycles(rng, 2, 3, pair)


def _point(rng: np.random.Generator) -> Script:
    aim: Pose = {"rh": (0.15, rng.uniform(0.0, 0.2), 0.97), "twist": 0.2, "bend": 0.05}
    return [(0.45, aim), (rng.uniform(0.6, 1.2), aim), (0.45, {})]


def _cross_arms(rng: np.random.Generator) -> Script:
    crossed: Pose = {"hands": (-0.55, -0.3, 0.4), "relbow": 0.3, "lelbow": 0.3, "bend": 0.05}
    return [(0.45, crossed), (rng.uniform(0.7, 1.2), crossed), (0.45, {})]


def _turn_around(rng: np.random.Generator) -> Script:
    sign = 1.0 if rng.random() < 0.5 else -1.0
    keys: Script = []
    for i in range(4):
        pose = _step("rl"[i % 2], 0.08, 0.05, 0.15)
        keys += [(0.2, {**pose, "yaw": sign * np.pi * (i + 0.6) / 4}), (0.13, {"yaw": sign * np.pi * (i + 1) / 4})]
    return [*keys, (0.15, {"yaw": sign * np.pi})]


def _handshake(rng: np.random.Generator) -> Script:
    def grip(y: float) -> Pose:
        return {"rh": (-0.2, y, 0.78), "z": 0.12, "bend": 0.06, "rf": (0.0, 0.0, 0.12)}

    shake: Script = [(0.15, grip(-0.18), grip(-0.18)), (0.15, grip(-0.42), grip(-0.42))]
    return [(0.5, grip(-0.3), grip(-0.3)), *_cycles(rng, 2, 4, shake), (0.5, {}, {})]


def _push(rng: np.random.Generator) -> Script:
    ready: Pose = {"hands": (-0.05, -0.12, 0.38), "rf": (0.0, 0.0, -0.2), "shift": -0.05}
    shove: Pose = {"hands": (-0.1, 0.0, 0.97), "bend": 0.25, "shift": 0.15, "z": 0.1, "rf": (0.0, 0.0, -0.3)}
    reel: Pose = {"z": -0.45, "bend": -0.2, "pitch": -0.12, "hands": (0.4, -0.6, 0.4), "rf": (0.0, 0.05, -0.3)}
    back: Pose = {"z": -0.5}
    return [(0.4, ready, {}), (0.2, shove, {}), (0.25, shove, reel), (0.4, {}, back), (rng.uniform(0.1, 0.3), {}, back)]


def _hug(rng: np.random.Generator) -> Script:
    open_: Pose = {"hands": (0.5, -0.1, 0.75), "z": 0.2, "rf": (0.0, 0.08, 0.15)}
    hold: Pose = {"hands": (-0.2, 0.0, 0.6), "relbow": 0.7, "lelbow": 0.7, "z": 0.42, "bend": 0.12, "side": 0.12}
    for_ = rng.uniform(0.5, 1.0)
    return [(0.45, open_, open_), (0.4, hold, hold), (for_, hold, hold), (0.35, open_, open_), (0.45, {}, {})]


def _kick_other(rng: np.random.Generator) -> Script:
    back, strike = _kick_poses()
    hurt: Pose = {"z": -0.25, "bend": 0.45, "drop": 0.1, "hands": (-0.15, -0.55, 0.4), "nod": 0.2}
    hold = rng.uniform(0.1, 0.4)
    return [
        (0.35, back, {}),
        (0.2, strike, {}),
        (0.08, strike, {}),
        (0.25, {}, hurt),
        (hold, {}, hurt),
        (0.4, {}, {"z": -0.25}),
    ]


def _gait(start: float, stop: float, steps: int, yaw: float = 0.0) -> list[tuple[float, Pose]]:
    keys: list[tuple[float, Pose]] = []
    for i in range(steps):
        pose = _step("rl"[i % 2], 0.1, 0.12, 0.5)
        middle, end = (start + (stop - start) * (i + part) / steps for part in (0.6, 1.0))
        keys += [(0.22, {**pose, "z": middle, "yaw": yaw}), (0.14, {"z": end, "yaw": yaw})]
    return keys


def _walk_towards(rng: np.random.Generator) -> Script:
    gait = _gait(0.0, rng.uniform(0.5, 0.65), int(rng.integers(3, 5)))
    last = gait[-1][1]
    return [*((seconds, pose, pose) for seconds, pose in gait), (0.2, last, last)]


def _walk_apart(rng: np.random.Generator) -> Script:
    turn = [(0.25, {**_step("r", 0.08, 0.0, 0.2), "yaw": 1.8}), (0.2, {"yaw": np.pi})]
    keys = [*turn, *_gait(0.0, -rng.uniform(0.5, 0.65), 3, np.pi)]
    last = keys[-1][1]
    return [*((seconds, pose, pose) for seconds, pose in keys), (0.2, last, last)]


ACTIONS = (
    Action("drink", _drink),
    Action("wave", _wave),
    Action("clap", _clap),
    Action("raise both arms", _raise_arms),
    Action("punch", _punch),
    Action("kick", _kick),
    Action("squat", _squat),
    Action("sit down", _sit_down),
    Action("stand up", _stand_up),
    Action("jump", _jump),
    Action("bow", _bow),
    Action("throw", _throw),
    Action("pick up", _pick_up),
    Action("circle both arms", _circle_arms),
    Action("march in place", _march),
    Action("point", _point),
    Action("cross arms", _cross_arms),
    Action("turn around", _turn_around),
    Action("shake hands", _handshake, distance=1.15),
    Action("push the other", _push, distance=0.85),
    Action("hug", _hug, distance=1.15),
    Action("kick the other", _kick_other, distance=0.95),
    Action("walk towards each other", _walk_towards, distance=1.9),
    Action("walk apart", _walk_apart, distance=0.8),
)
CLASS_NAMES = tuple(action.name for action in ACTIONS)
