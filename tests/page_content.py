"""The content of pages, for tests: people of sticks that walk, wave, clap and bow, and two runs that have seen them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmc.figures.skeletons import _side, front_of
from fastmc.page.motion import pack
from fastmc.skeleton import NTU25, Skeleton

CLASSES = ("walk", "wave one hand", "clap hands", "bow", "kick", "walk towards each other")
FPS = 30

# Metres: across (left is +), up, forward.
REST = {
    "spine base": (0, 0.95, 0), "spine mid": (0, 1.2, 0), "neck": (0, 1.5, 0), "head": (0, 1.66, 0.02),
    "spine shoulder": (0, 1.42, 0),
    "left shoulder": (0.19, 1.4, 0), "left elbow": (0.25, 1.13, -0.02), "left wrist": (0.27, 0.9, 0.04),
    "left hand": (0.27, 0.82, 0.06), "left hand tip": (0.27, 0.74, 0.08), "left thumb": (0.24, 0.8, 0.1),
    "left hip": (0.1, 0.93, 0), "left knee": (0.11, 0.5, 0.02), "left ankle": (0.11, 0.09, -0.02),
    "left foot": (0.13, 0.03, 0.12),
}  # fmt: skip


def rest_pose() -> np.ndarray:
    """(25, 3): a person who stands, of `REST` and its mirror image."""
    pose = np.zeros((NTU25.num_joints, 3))
    for name, place in REST.items():
        pose[NTU25.index(name)] = place
        if name.startswith("left "):
            pose[NTU25.index(name.replace("left", "right"))] = np.multiply(place, (-1, 1, 1))
    return pose


def turned(pose: np.ndarray, joints: list[str], about: str, angle: np.ndarray, plane: tuple[int, int]) -> np.ndarray:
    """Poses (T, 25, 3) whose ``joints`` are turned about another by angles (T,) in the plane of two axes."""
    at = [NTU25.index(joint) for joint in joints]
    centre = pose[:, [NTU25.index(about)]]
    arm = pose[:, at] - centre
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first, second = plane
    moved = arm.copy()
    moved[..., first] = cos * arm[..., first] - sin * arm[..., second]
    moved[..., second] = sin * arm[..., first] + cos * arm[..., second]
    pose = pose.copy()
    pose[:, at] = centre + moved
    return pose


def limb(side: str, first: str) -> list[str]:
    """What hangs on a joint of one side, outwards."""
    arm, leg = ["elbow", "wrist", "hand", "hand tip", "thumb"], ["knee", "ankle", "foot"]
    chain = arm if first == "shoulder" or first in arm else leg
    return [f"{side} {joint}" for joint in chain[chain.index(first) + 1 if first in chain else 0 :]]


def person(action: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """(T, 25, 3): somebody does it, in a way of their own."""
    time = np.arange(frames) / FPS
    pose = np.broadcast_to(rest_pose(), (frames, 25, 3))
    beat = np.sin(2 * np.pi * (rng.uniform(0.8, 1.2) * time + rng.uniform()))
    size = rng.uniform(0.8, 1.2)
    if action.startswith("walk"):
        for side, sign in (("left", 1), ("right", -1)):
            pose = turned(pose, limb(side, "shoulder"), f"{side} shoulder", 0.5 * size * sign * beat, (2, 1))
            pose = turned(pose, limb(side, "hip"), f"{side} hip", -0.5 * size * sign * beat, (2, 1))
            knee = 0.4 * np.maximum(sign * np.roll(beat, 6), 0)
            pose = turned(pose, limb(side, "knee"), f"{side} knee", knee, (2, 1))
        pose = pose + np.stack([0 * time, 0.03 * np.abs(beat), 0.7 * size * (time - time.mean())], axis=1)[:, None]
    elif action.startswith("wave"):
        raise_ = np.minimum(3 * time, 1)
        pose = turned(pose, limb("right", "shoulder"), "right shoulder", -2.2 * raise_, (0, 1))
        pose = turned(pose, limb("right", "elbow"), "right elbow", 0.7 * size * beat * raise_ - 0.4, (0, 1))
    elif action.startswith("clap"):
        for side, sign in (("left", 1), ("right", -1)):
            pose = turned(pose, limb(side, "shoulder"), f"{side} shoulder", np.full(frames, 1.1), (2, 1))
            pose = turned(pose, limb(side, "elbow"), f"{side} elbow", sign * (0.4 + 0.3 * beat), (0, 2))
    elif action == "bow":
        low = np.sin(np.pi * np.clip(time / time[-1] * 1.2 - 0.1, 0, 1)) ** 2
        upper = [name for name in NTU25.joint_names if not any(word in name for word in ("hip", "knee", "ankle", "foot"))]
        pose = turned(pose, [n for n in upper if n != "spine base"], "spine base", -1.1 * size * low, (2, 1))
    else:
        pose = turned(pose, limb("right", "hip"), "right hip", 0.9 * size * np.maximum(beat, 0), (2, 1))
    return pose + rng.normal(scale=0.004, size=(1, 25, 3)) + rng.normal(scale=0.003, size=pose.shape)


def clip_of(action: str, rng: np.random.Generator) -> np.ndarray:
    """(T, M, 25, 3) float32: one person, or two of whom the second comes a little later."""
    frames = int(rng.integers(45, 110))
    first = person(action, frames, rng)
    if "each other" not in action:
        return first[:, None].astype(np.float32)
    second = person(action, frames, rng) * (-1, 1, -1) + (0.5, 0, 0.6)
    second[: frames // 6] = 0
    return np.stack([first - (0.3, 0, 0.6), second], axis=1).astype(np.float32)


def skeleton_content(skeleton: Skeleton, clip: np.ndarray) -> dict[str, Any]:
    front = front_of(clip, skeleton)
    return {
        "name": skeleton.name,
        "joints": list(skeleton.joint_names),
        "bones": [list(bone) for bone in skeleton.bones],
        "sides": [_side(name) for name in skeleton.joint_names],
        "front": {"across": front.across, "up": front.up, "signs": list(front.signs)},
    }
