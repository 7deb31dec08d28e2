"""Joint layouts: names, bones, left-right pairs and the joints that fix a body's pose in space."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Skeleton:
    """A joint layout of V joints.

    Attributes:
        name: identifier, e.g. ``"ntu25"``.
        joint_names: V names, in array order.
        parents: V parent indices; a root is its own parent. Empty where the bones are unknown.
        hip, spine, left_shoulder, right_shoulder: indices of the joints that define the body's frame
            (hip to spine points up, right to left shoulder points to the side); -1 where unknown.
        mirror: V indices, the permutation that swaps left and right (an involution).
    """

    name: str
    joint_names: tuple[str, ...]
    parents: tuple[int, ...] = ()
    hip: int = -1
    spine: int = -1
    left_shoulder: int = -1
    right_shoulder: int = -1
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
        for role in ("hip", "spine", "left_shoulder", "right_shoulder"):
            if not -1 <= getattr(self, role) < joints:
                raise ValueError(f"{role} = {getattr(self, role)} is not a joint of this layout of {joints}")

    @property
    def num_joints(self) -> int:
        return len(self.joint_names)

    @property
    def has_frame(self) -> bool:
        """Whether the four joints that view normalisation needs are known."""
        return min(self.hip, self.spine, self.left_shoulder, self.right_shoulder) >= 0

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(child, parent) pairs, roots left out."""
        return tuple((child, parent) for child, parent in enumerate(self.parents) if child != parent)

    def index(self, joint: int | str) -> int:
        """Index of a joint given by index or by name; ValueError lists the names."""
        if isinstance(joint, int) or joint.lstrip("-").isdigit():
            index = int(joint)
            if not 0 <= index < self.num_joints:
                raise ValueError(f"joint {index} is outside of 0..{self.num_joints - 1}")
            return index
        if joint not in self.joint_names:
            raise ValueError(f"no joint named {joint!r}; there are: {', '.join(self.joint_names)}")
        return self.joint_names.index(joint)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "name": self.name,
            "joint_names": list(self.joint_names),
            "parents": list(self.parents),
            "hip": self.hip,
            "spine": self.spine,
            "left_shoulder": self.left_shoulder,
            "right_shoulder": self.right_shoulder,
            "mirror": list(self.mirror),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Skeleton:
        typed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**typed)


def mirror_from_names(names: Sequence[str]) -> tuple[int, ...]:
    """Left-right permutation guessed from joint names ("left hand" and "right hand" swap); identity elsewhere."""
    swap = {"left": "right", "right": "left"}
    position = {name.lower(): i for i, name in enumerate(names)}
    partner = [re.sub("left|right", lambda m: swap[m.group()], name.lower()) for name in names]
    mirror = [position.get(other, i) for i, other in enumerate(partner)]
    return tuple(j if mirror[j] == i else i for i, j in enumerate(mirror))


# fmt: off
NTU25 = Skeleton(  # Kinect v2
    name="ntu25",
    joint_names=(
        "spine base", "spine mid", "neck", "head",
        "left shoulder", "left elbow", "left wrist", "left hand",
        "right shoulder", "right elbow", "right wrist", "right hand",
        "left hip", "left knee", "left ankle", "left foot",
        "right hip", "right knee", "right ankle", "right foot",
        "spine shoulder", "left hand tip", "left thumb", "right hand tip", "right thumb",
    ),
    # As the field's bone list pairs them: a hand tip hangs on its thumb, and the thumb on the hand.
    parents=(1, 20, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18, 20, 22, 7, 24, 11),
    hip=0, spine=1, left_shoulder=4, right_shoulder=8,
)

KINECT20 = Skeleton(  # Kinect v1
    name="kinect20",
    joint_names=(
        "hip centre", "spine", "shoulder centre", "head",
        "left shoulder", "left elbow", "left wrist", "left hand",
        "right shoulder", "right elbow", "right wrist", "right hand",
        "left hip", "left knee", "left ankle", "left foot",
        "right hip", "right knee", "right ankle", "right foot",
    ),
    parents=(0, 0, 1, 2, 2, 4, 5, 6, 2, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18),
    hip=0, spine=1, left_shoulder=4, right_shoulder=8,
)
# fmt: on

SKELETONS = {skeleton.name: skeleton for skeleton in (NTU25, KINECT20)}
