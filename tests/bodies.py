"""People who move as people do, in any joint layout: those of the synthetic set, without a camera."""

from __future__ import annotations

from functools import cache

import numpy as np

from fastmc.data.synthetic.perform import perform
from fastmc.skeleton import NTU25, SKELETONS

OTHER_NAMES = {  # of joints that NTU RGB+D lacks, the nearest one, and how far from it
    **dict.fromkeys(("nose", "neck", "mouth", "eye", "eye inner", "eye outer", "ear"), "head"),
    "mid hip": "spine base",
    "pelvis": "spine base",
    "hip centre": "spine base",
    "thorax": "spine shoulder",
    "spine": "spine mid",
    "spine 1": "spine mid",
    "spine 2": "spine mid",
    "spine 3": "spine shoulder",
    "collar": "spine shoulder",
    "shoulder centre": "spine shoulder",
    "big toe": "foot",
    "small toe": "foot",
    "heel": "ankle",
    "foot index": "foot",
    "pinky": "hand",
    "index": "hand tip",
    "thumb": "thumb",
}


@cache
def performed(action: int = 1, layout: str = "ntu25", subject: int = 1) -> np.ndarray:
    """(T, V, 3), metres, y up: the first body of an action."""
    return in_layout(perform(0, subject, action, 1).bodies[0], layout)


def in_layout(body: np.ndarray, layout: str) -> np.ndarray:
    """A body (T, 25, 3) of NTU's joints with those of another layout, each the nearest one that there is."""
    if layout == "ntu25":
        return body
    return np.stack([_joint(body, name) for name in SKELETONS[layout].joint_names], axis=1)


def _joint(body: np.ndarray, name: str) -> np.ndarray:
    if name in NTU25.joint_names:
        return body[:, NTU25.joint_names.index(name)]
    side = next((side for side in ("left", "right") if side in name), "")
    part = name.replace(side, "").strip() if side else name
    known = OTHER_NAMES[part]
    sided = f"{side} {known}" if f"{side} {known}" in NTU25.joint_names else known
    outwards = body[:, NTU25.left_shoulder] - body[:, NTU25.right_shoulder]
    offset = {"left": 0.1, "right": -0.1}.get(side, 0.0) * (1 + len(part) / 20)
    return body[:, NTU25.joint_names.index(sided)] + offset * outwards
