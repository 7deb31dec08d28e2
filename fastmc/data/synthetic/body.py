"""A kinematic person: bone lengths, pose channels, and the 25 Kinect v2 joints of a pose.

A pose is one row of named numbers (`CHANNELS`). The trunk is a chain of rotations; arms and legs are two-bone chains
solved from where the wrist or ankle should be, so feet stay on the floor and every bone keeps its length.
Frames are right-handed with x to the person's left, y up, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Root x, z and lift in metres, angles in radians, hands in arm lengths from the shoulder and feet in leg lengths from
# where they stand (x outward on both sides), drop and shift of the pelvis in leg lengths.
CHANNELS = (
    *("x", "z", "lift", "yaw"),
    *("sway", "drop", "shift", "pitch"),
    *("bend", "side", "twist", "nod", "look"),
    *("rhx", "rhy", "rhz", "relbow", "lhx", "lhy", "lhz", "lelbow"),
    *("rfx", "rfy", "rfz", "lfx", "lfy", "lfz"),
)
CHANNEL = {name: i for i, name in enumerate(CHANNELS)}
_SIDEWAYS = ("x", "yaw", "sway", "side", "twist", "look")
_OTHER_SIDE = {"r": "l", "l": "r"}
_LIMB = {name for name in CHANNELS if name[1:] in ("hx", "hy", "hz", "elbow", "fx", "fy", "fz")}
MIRROR_ORDER = np.array([CHANNEL[_OTHER_SIDE[n[0]] + n[1:]] if n in _LIMB else i for i, n in enumerate(CHANNELS)])
MIRROR_SIGN = np.where(np.isin(CHANNELS, _SIDEWAYS), -1.0, 1.0)

REST = np.zeros(len(CHANNELS))
for _side in "rl":
    for _axis, _value in zip("xyz", (0.16, -0.95, 0.07), strict=True):
        REST[CHANNEL[f"{_side}h{_axis}"]] = _value

# Metres for a person of 1.75 m.
_BONES = {
    "base_mid": 0.30, "mid_chest": 0.22, "chest_neck": 0.08, "neck_head": 0.14, "shoulder": 0.17, "upper_arm": 0.28,
    "forearm": 0.25, "hand": 0.075, "tip": 0.08, "thumb": 0.055, "hip": 0.085, "thigh": 0.41, "shin": 0.39,
    "foot": 0.13,
}  # fmt: skip
_ANKLE_HEIGHT = 0.08
# Where elbows and knees point; never along a limb's usual directions, or the bend would flip.
_ELBOW_POLE = np.array([0.5, -0.5, -0.7])
_KNEE_POLE = np.array([0.12, 0.5, 1.0])
# Parent of each joint by anatomy (the hand tip and thumb both hang on the hand), for bone-length checks.
ANATOMY = (0, 0, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 1, 7, 7, 11, 11)


@dataclass(frozen=True)
class Body:
    """Bone lengths of one person in metres, and half the width of the stance."""

    bones: dict[str, float]
    stance: float

    @property
    def arm(self) -> float:
        return self.bones["upper_arm"] + self.bones["forearm"]

    @property
    def leg(self) -> float:
        return self.bones["thigh"] + self.bones["shin"]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Body:
        """A person of 1.5 to 1.95 m with proportions of their own."""
        scale = rng.uniform(1.50, 1.95) / 1.75
        limbs, trunk, width = rng.normal(1.0, (0.03, 0.03, 0.06))
        groups = {"shoulder": width, "hip": width, "base_mid": trunk, "mid_chest": trunk}
        noise = rng.normal(1.0, 0.02, len(_BONES))
        bones = {
            name: length * scale * groups.get(name, limbs) * n
            for (name, length), n in zip(_BONES.items(), noise, strict=True)
        }
        return cls(bones, stance=bones["hip"] + rng.uniform(0.0, 0.08))

    def joints(self, pose: np.ndarray) -> np.ndarray:
        """World positions (T, 25, 3) in metres of a pose sequence (T, len(CHANNELS)); the floor is y = 0."""
        c = {name: pose[:, i] for name, i in CHANNEL.items()}
        b = self.bones
        root = rotation_about("y", c["yaw"])
        pelvis = root @ rotation_about("x", c["pitch"])
        belly = pelvis @ rotation_about("x", 0.4 * c["bend"]) @ rotation_about("z", 0.5 * c["side"])
        chest = (
            belly
            @ rotation_about("x", 0.6 * c["bend"])
            @ rotation_about("z", 0.5 * c["side"])
            @ rotation_about("y", c["twist"])
        )
        head = chest @ rotation_about("y", c["look"]) @ rotation_about("x", c["nod"])

        ground = np.stack([c["x"], c["lift"], c["z"]], -1)
        height = _ANKLE_HEIGHT + self.leg * (0.985 - c["drop"]) + 0.03
        offset = np.stack([self.leg * c["sway"], height, self.leg * c["shift"]], -1)
        out = np.empty((len(pose), 25, 3))
        out[:, 0] = ground + _apply(root, offset)
        out[:, 1] = out[:, 0] + _apply(pelvis, [0.0, b["base_mid"], 0.0])
        out[:, 20] = out[:, 1] + _apply(belly, [0.0, b["mid_chest"], 0.0])
        out[:, 2] = out[:, 20] + _apply(chest, [0.0, b["chest_neck"], 0.0])
        out[:, 3] = out[:, 2] + _apply(head, _along([0.0, 1.0, 0.18], b["neck_head"]))
        for first, side, sign in ((4, "l", 1.0), (8, "r", -1.0)):
            out[:, first] = out[:, 20] + _apply(chest, _along([sign, -0.15, 0.0], b["shoulder"]))
            target = np.stack([c[side + "hx"], c[side + "hy"], c[side + "hz"]], -1) * self.arm
            self._arm(out, first, chest, target, c[side + "elbow"], sign)
        for first, side, sign in ((12, "l", 1.0), (16, "r", -1.0)):
            out[:, first] = out[:, 0] + _apply(pelvis, _along([sign, -0.35, 0.0], b["hip"]))
            foot = np.stack([c[side + "fx"], c[side + "fy"], c[side + "fz"]], -1) * self.leg
            foot = (foot + np.array([self.stance, _ANKLE_HEIGHT, 0.0])) * [sign, 1.0, 1.0]
            self._leg(out, first, root, ground + _apply(root, foot), sign)
        return out

    def _arm(
        self, out: np.ndarray, first: int, chest: np.ndarray, target: np.ndarray, swivel: np.ndarray, sign: float
    ) -> None:
        b = self.bones
        pole = np.repeat(_ELBOW_POLE[None], len(out), 0)
        pole[:, 0] += swivel
        side = np.array([sign, 1.0, 1.0])
        shoulder = out[:, first]
        wrist = shoulder + _apply(chest, target * side)
        elbow, wrist = _two_bones(shoulder, wrist, _apply(chest, pole * side), b["upper_arm"], b["forearm"])
        along = _unit(wrist - elbow)
        across = np.cross(along, _apply(chest, [sign, 0.3, 0.0]))
        tip, thumb = (21, 22) if sign > 0 else (23, 24)
        out[:, first + 1], out[:, first + 2] = elbow, wrist
        out[:, first + 3] = wrist + b["hand"] * along
        out[:, tip] = out[:, first + 3] + b["tip"] * along
        out[:, thumb] = out[:, first + 3] + b["thumb"] * _unit(0.5 * along - 0.8 * sign * across)

    def _leg(self, out: np.ndarray, first: int, root: np.ndarray, ankle: np.ndarray, sign: float) -> None:
        b = self.bones
        pole = _apply(root, _KNEE_POLE * [sign, 1.0, 1.0])
        knee, ankle = _two_bones(out[:, first], ankle, pole, b["thigh"], b["shin"])
        ahead = _unit(np.cross(ankle - knee, _apply(root, [1.0, 0.0, 0.0])))
        out[:, first + 1], out[:, first + 2] = knee, ankle
        out[:, first + 3] = ankle + b["foot"] * _unit(ahead + 0.35 * _unit(ankle - knee))


def mirror(pose: np.ndarray) -> np.ndarray:
    """The same pose sequence with left and right swapped."""
    return pose[:, MIRROR_ORDER] * MIRROR_SIGN


def rotation_about(axis: str, angle: np.ndarray) -> np.ndarray:
    """Matrices (T, 3, 3) that turn by angles (T,) in radians; about y, positive turns to the left."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    out = np.zeros((len(angle), 3, 3))
    out[:] = np.eye(3)
    out[:, i, i] = out[:, j, j] = np.cos(angle)
    out[:, j, i] = np.sin(angle)
    out[:, i, j] = -out[:, j, i]
    return out


def _apply(rotation: np.ndarray, vector: np.ndarray | list[float]) -> np.ndarray:
    return (rotation @ np.asarray(vector)[..., None])[..., 0]


def _along(direction: list[float], length: float) -> np.ndarray:
    return _unit(np.array(direction)) * length


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-9)


def _two_bones(
    start: np.ndarray, goal: np.ndarray, pole: np.ndarray, first: float, second: float
) -> tuple[np.ndarray, np.ndarray]:
    """Middle and end joint of a two-bone chain that reaches for `goal` and bends towards `pole`."""
    along = _unit(goal - start)
    reach = np.linalg.norm(goal - start, axis=-1, keepdims=True)
    reach = np.clip(reach, abs(first - second) + 0.25 * min(first, second), 0.995 * (first + second))
    bend = _unit(pole - (pole * along).sum(-1, keepdims=True) * along)
    ahead = (first**2 - second**2 + reach**2) / (2 * reach)
    beside = np.sqrt(np.maximum(first**2 - ahead**2, 0.0))
    return start + ahead * along + beside * bend, start + reach * along
