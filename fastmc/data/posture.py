"""Where the joints of people lie, by what they are called: above each other, and before or behind each other."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from fastmc.data.given import body_height
from fastmc.skeleton import Skeleton

FLAT = 1e-4  # extent of an image along its third axis, over the largest one: what rounding leaves
LEVELS = (  # of what joints are called, the highest first
    r"head|nose|eye|(?<!for)ear(?!m)|mouth",
    r"shoulder|neck|thorax|chest|collar|clavicle",
    r"hip|pelvis|spine base|upper.?leg|up.?leg|thigh|femur",
    r"knee|lower.?leg|calf|shin|tibia|(left|right).?leg$",
    r"ankle|foot|heel|toe",
)
KNEE, TOE = re.compile(LEVELS[3]), re.compile(r"toe|foot.?index|\bball")
PAIRS = 12  # of joints one above the other, at least, to tell an order from chance
BENT = 0.15  # of a leg's length; knees of straighter legs point anywhere


def height_of(frames: np.ndarray) -> float:
    """Median over frames (n, V, 3)."""
    return body_height(frames[:, None], np.asarray(frames[:, None].any(axis=-1)))


def flat_axis(frames: np.ndarray) -> int | None:
    """Along which joints (n, V, 3) do not differ, as those of an image do not; None where there is no such axis."""
    extents = np.ptp(frames, axis=(0, 1))
    axis = int(extents.argmin())
    return axis if extents[axis] <= FLAT * extents.max() else None


def tumbled(bodies: Sequence[np.ndarray], layout: Skeleton, flat: int) -> float:
    """Median over bodies (n, V, 3) of an image of the share of pairs, such as a head and a knee, of which the wrong one
    is above: both along the picture and along each body's spine, since people bend and lie down. 0 where the names say
    too little."""
    pairs = one_above_the_other(layout)
    if len(pairs) < PAIRS or not layout.has_frame:
        return 0.0
    shares = [min(share_below(body, pairs, up) for up in (picture_up(flat), _spine(body, layout))) for body in bodies]
    return float(np.median(shares))


def one_above_the_other(layout: Skeleton) -> np.ndarray:
    """(pairs, 2): joints of which the first is higher in whoever stands, by their names."""
    names = [name.lower() for name in layout.joint_names]
    level = [next((n for n, words in enumerate(LEVELS) if re.search(words, name)), None) for name in names]
    known = [(joint, n) for joint, n in enumerate(level) if n is not None]
    return np.array([(a, b) for a, high in known for b, low in known if high < low])


def share_below(body: np.ndarray, pairs: np.ndarray, up: np.ndarray) -> float:
    """Of pairs of joints those whose first one is the lower by more than a twentieth of the body (n, V, 3)."""
    along = (body * up).sum(axis=2)
    place = np.median(along - along.mean(axis=1, keepdims=True), axis=0)
    return float(np.mean(place[pairs[:, 0]] < place[pairs[:, 1]] - 0.05 * height_of(body)))


def picture_up(flat: int) -> np.ndarray:
    """y is up in an image, z once it is moved into the frame of its body."""
    return np.eye(3)[1 if flat == 2 else 2]


def _spine(body: np.ndarray, layout: Skeleton) -> np.ndarray:
    """(n, 1, 3), of length 1: from hip to spine."""
    return _unit(layout.place("spine", body) - layout.place("hip", body))[:, None]


def toes_forwards(body: np.ndarray, layout: Skeleton) -> float | None:
    """Cosine of where toes point, frames (n, V, 3) and feet taken together, and forwards: right to left shoulder times
    up. None where the layout has no toes, by its names, or they have no length."""
    names = [name.lower() for name in layout.joint_names]
    feet = [
        (joint, up)
        for joint, up in enumerate(layout.parents)
        if (TOE.search(names[joint]) or ("foot" in names[joint] and "ankle" in names[up])) and not TOE.search(names[up])
    ]
    return _along_forwards([body[:, toe] - body[:, ankle] for toe, ankle in feet], body, layout)


def knees_forwards(body: np.ndarray, layout: Skeleton) -> float | None:
    """The same of how far knees lie off the line from hip to ankle, in frames in which a leg is bent."""
    names = [name.lower() for name in layout.joint_names]
    off = []
    for ankle, knee in enumerate(layout.parents):
        hip = layout.parents[knee]
        if KNEE.search(names[knee]) and not KNEE.search(names[ankle]) and len({ankle, knee, hip}) == 3:
            thigh, leg = body[:, knee] - body[:, hip], body[:, ankle] - body[:, hip]
            line = _unit(leg)
            bend = thigh - (thigh * line).sum(axis=1, keepdims=True) * line
            length = np.linalg.norm(thigh, axis=1) + np.linalg.norm(leg - thigh, axis=1)
            off.append(np.where((np.linalg.norm(bend, axis=1) > BENT * length)[:, None], bend, 0))
    return _along_forwards(off, body, layout)


def _along_forwards(vectors: Sequence[np.ndarray], body: np.ndarray, layout: Skeleton) -> float | None:
    left, right = (layout.place(f"{side}_shoulder", body) for side in ("left", "right"))
    forwards = _unit(np.cross(left - right, (left + right) / 2 - layout.place("hip", body)))
    length = sum(float(np.linalg.norm(vector, axis=1).sum()) for vector in vectors)
    if not length > 0:
        return None
    return sum(float((vector * forwards).sum()) for vector in vectors) / length


def _unit(vectors: np.ndarray) -> np.ndarray:
    """(n, 3), of length 1, or zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
