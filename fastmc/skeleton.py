"""Joint layouts: names, bones, left-right pairs and the joints that fix a body's pose in space."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastmc.files import read_text
from fastmc.layouts import LAYOUTS

Role = int | tuple[int, ...]
ROLES = ("hip", "spine", "left_shoulder", "right_shoulder")


@dataclass(frozen=True)
class Skeleton:
    """A joint layout of V joints.

    Attributes:
        name: identifier, e.g. ``"ntu25"``.
        joint_names: V names, in array order.
        parents: V parent indices; a root is its own parent. Empty where the bones are unknown.
        hip, spine, left_shoulder, right_shoulder: the places that define the body's frame (hip to spine points up,
            right to left shoulder points to the side): a joint, or several whose mean it is; -1 where unknown.
        mirror: V indices, the permutation that swaps left and right (an involution).
    """

    name: str
    joint_names: tuple[str, ...]
    parents: tuple[int, ...] = ()
    hip: Role = -1
    spine: Role = -1
    left_shoulder: Role = -1
    right_shoulder: Role = -1
    mirror: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        joints = self.num_joints
        if not self.mirror:
            object.__setattr__(self, "mirror", mirror_from_names(self.joint_names))
        for label, indices in (("parents", self.parents), ("mirror", self.mirror)):
            if indices and (len(indices) != joints or not all(0 <= i < joints for i in indices)):
                raise ValueError(f"{label} must hold {joints} joint indices in [0, {joints}), got {list(indices)}")
        if any(self.mirror[i] != j for j, i in enumerate(self.mirror)):
            raise ValueError("mirror must be its own inverse")
        check_tree(self.parents, self.joint_names)
        for role in ROLES:
            given = getattr(self, role)
            several = isinstance(given, tuple)
            if not (all(0 <= joint < joints for joint in given) and given if several else -1 <= given < joints):
                raise ValueError(f"{role} = {given} is not a joint of this layout of {joints}")

    @property
    def num_joints(self) -> int:
        return len(self.joint_names)

    @property
    def has_frame(self) -> bool:
        """Whether the four joints that view normalisation needs are known."""
        return all(getattr(self, role) != -1 for role in ROLES)

    @property
    def has_sides(self) -> bool:
        """Whether any joint swaps with another when a body is mirrored."""
        return self.mirror != tuple(range(self.num_joints))

    def place(self, role: str, joints: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Where ``hip``, ``spine`` or a shoulder is: joints (..., V, 3) to (..., 3).

        The mean of several joints is weighted by ``weights`` (..., V), which must not be zero for all of them.
        """
        given = getattr(self, role)
        if isinstance(given, int):
            return joints[..., given, :]
        chosen = joints[..., given, :]
        if weights is None:
            return chosen.mean(axis=-2)
        share = weights[..., given]
        return (chosen * share[..., None]).sum(axis=-2) / share.sum(axis=-1)[..., None]

    def seen(self, role: str, weights: np.ndarray) -> bool:
        """Whether any joint of a role has a weight, of weights (V,)."""
        return bool(np.any(weights[np.atleast_1d(getattr(self, role))] > 0))

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) pairs, roots left out."""
        return tuple((child, parent) for child, parent in enumerate(self.parents) if child != parent)

    def index(self, joint: int | str) -> int:
        """Index of a joint given by name or by index, which digits are where no joint is named so; ValueError lists the
        names."""
        if isinstance(joint, str) and (joint in self.joint_names or not joint.removeprefix("-").isdecimal()):
            return self._named(joint)
        index = int(joint)
        if not 0 <= index < self.num_joints:
            raise ValueError(f"joint {index} is outside of 0..{self.num_joints - 1}")
        return index

    def _named(self, joint: str) -> int:
        if joint not in self.joint_names:
            raise ValueError(f"no joint named {joint!r}; there are: {', '.join(self.joint_names)}")
        return self.joint_names.index(joint)

    def role(self, text: int | str) -> Role:
        """A joint, or several as ``left hip + right hip``; ValueError as `index`."""
        if isinstance(text, int) or text in self.joint_names or "+" not in text:
            return self.index(text)
        return tuple(self.index(part.strip()) for part in text.split("+"))

    def in_words(self, role: str) -> str:
        """The joints of a role, as `role` takes them; "unknown" where they are."""
        given = getattr(self, role)
        return "unknown" if given == -1 else " + ".join(self.joint_names[joint] for joint in np.atleast_1d(given))

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "name": self.name,
            "joint_names": list(self.joint_names),
            "parents": list(self.parents),
            **{role: list(at) if isinstance(at := getattr(self, role), tuple) else at for role in ROLES},
            "mirror": list(self.mirror),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Skeleton:
        typed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**typed)

    @classmethod
    def named(cls, name: str | Path) -> Skeleton:
        """A layout by its name (``coco17``), or that of a JSON file (``mine.json``); ValueError lists the names."""
        if str(name) in SKELETONS:
            return SKELETONS[str(name)]
        if Path(name).suffix != ".json":
            raise ValueError(
                f"there is no skeleton {str(name)!r}; choose from {', '.join(SKELETONS)}, or name a .json file"
            )
        return cls.from_json(name)

    @classmethod
    def from_json(cls, path: str | Path) -> Skeleton:
        """The layout of a JSON file, as `from_plain` takes it; ValueError names the file and the fault."""
        try:
            return cls.from_plain(Path(path).stem, json.loads(read_text(Path(path))))
        except (ValueError, RecursionError, OSError) as error:
            raise ValueError(f"{path} is no skeleton: {error}") from error

    @classmethod
    def from_plain(cls, name: str, values: Mapping[str, Any]) -> Skeleton:
        """A layout of plain values, such as those of `fastmc.layouts`.

        Args:
            values: ``joints``, an object of V names, each with the name of the joint that it hangs on, null for a root
                (or a list of names, where bones are unknown); ``hip``, ``spine``, ``left_shoulder`` and
                ``right_shoulder``, where known: a joint or a mean (``left hip + right hip``); and ``pairs`` of names
                that swap when a body is mirrored, where left and right in the names do not say it. In the place of a
                name may stand an index, a whole number. A text is a name, even one of digits.

        Raises:
            ValueError: it is no such object, a name is unknown or given twice, or the bones make no tree.
        """
        unknown = sorted(set(values) - {"joints", "pairs", *ROLES}) if isinstance(values, Mapping) else ["no object"]
        if unknown or "joints" not in values:
            raise ValueError(
                f"expected joints, {', '.join(ROLES)} and perhaps pairs; got {', '.join(unknown) or 'no joints'}"
            )
        joints = values["joints"]
        if not isinstance(joints, list | dict) or not joints or not all(isinstance(joint, str) for joint in joints):
            raise ValueError("joints is no list of names, and no object of names and parents")
        if len(set(joints)) < len(joints):
            raise ValueError("a name is given to two joints")
        plain = cls(name, tuple(joints))
        parents: tuple[int, ...] = ()
        if isinstance(joints, dict):
            parents = tuple(j if up is None else _joint_of(up, plain) for j, up in enumerate(joints.values()))
            check_tree(parents, plain.joint_names)  # here, so that it is told before a role that is not there
        roles: dict[str, Any] = {role: _role_of(values[role], plain) for role in ROLES if role in values}
        return cls(name, plain.joint_names, parents, **roles, mirror=_mirror_of(values.get("pairs"), plain))


def numbered(joints: int) -> tuple[str, ...]:
    """The names of joints that nobody has named; two layouts of them may be of different joints."""
    return tuple(f"joint {joint}" for joint in range(joints))


def check_tree(parents: Sequence[int], names: Sequence[str] = ()) -> None:
    """ValueError unless each joint reaches a root along its parents: what walks there would never end.

    Args:
        parents: V indices of joints; a root is its own parent.
        names: of the joints, for the message; by default their numbers.
    """
    sound: set[int] = set()
    for joint in range(len(parents)):
        way: set[int] = set()
        at = joint
        while at not in sound and parents[at] != at:
            if at in way:
                name = names[joint] if names else f"joint {joint}"
                raise ValueError(f"the bones make a circle: {name} hangs on no root")
            way.add(at)
            at = parents[at]
        sound |= way


def _joint_of(value: Any, layout: Skeleton) -> int:
    """Of plain values: a text is a name, even one of digits, which JSON writes as it would an index."""
    if type(value) is int:
        return layout.index(value)
    return layout._named(str(value))


def _role_of(value: Any, layout: Skeleton) -> Role:
    if not isinstance(value, str) or value in layout.joint_names or "+" not in value:
        return _joint_of(value, layout)
    return tuple(_joint_of(part.strip(), layout) for part in value.split("+"))


def _mirror_of(pairs: Any, layout: Skeleton) -> tuple[int, ...]:
    if pairs is None:
        return layout.mirror
    mirror = list(range(layout.num_joints))
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError("pairs is no list of [left, right]")
    for left, right in ([_joint_of(joint, layout) for joint in pair] for pair in pairs):
        mirror[left], mirror[right] = right, left
    return tuple(mirror)


def mirror_from_names(names: Sequence[str]) -> tuple[int, ...]:
    """Left-right permutation guessed from joint names ("left hand" and "right hand" swap); identity elsewhere."""
    swap = {"left": "right", "right": "left"}
    position = {name.lower(): i for i, name in enumerate(names)}
    partner = [re.sub("left|right", lambda m: swap[m.group()], name.lower()) for name in names]
    mirror = [position.get(other, i) for i, other in enumerate(partner)]
    return tuple(j if mirror[j] == i else i for i, j in enumerate(mirror))


SKELETONS = {name: Skeleton.from_plain(name, values) for name, values in LAYOUTS.items()}
NTU25, KINECT20 = SKELETONS["ntu25"], SKELETONS["kinect20"]
