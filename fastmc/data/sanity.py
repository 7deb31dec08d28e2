"""Whether clips look like bodies of their joint layout in metres, and what they look like if they do not.

Every way in asks it: `fastmc.data.packing`, the readers of arrays, train.embed and `Embedder.encode`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fastmc.data.posture import (
    PAIRS,
    flat_axis,
    height_of,
    knees_forwards,
    one_above_the_other,
    picture_up,
    share_below,
    toes_forwards,
    tumbled,
)
from fastmc.skeleton import SKELETONS, Skeleton

SAMPLE = 32  # clips that are looked at, and at most twice that
FRAMES = 12  # of each
TALL = (0.3, 3.0)  # metres, of people and a large margin
SHOULDERS = (0.1, 1.0)
UNITS = ((30, 100, "inches", "0.0254"), (100, 300, "centimetres", "0.01"), (300, 3000, "millimetres", "0.001"))
UNEQUAL = 0.15  # difference of a left and a right bone over their sum; of people a tenth of that
STILL = 0.5  # how far joints are from the body's middle on average, over how much that changes
SLIGHT = 0.6  # metres: no part of a body moves further than that between frames, relative to another
FOLDED, SPRAWLED = 1.8, 2.5  # longest way along the bones over the height, of bones for joints, of joints in disorder
TUMBLED = 0.05  # share of pairs that lie the other way round; none of people before a camera, 0.07 of other layouts
UPSIDE_DOWN = 0.9
BACKWARDS = -0.3  # cosine of toes and forwards; of recorded people it was never below -0.03, mirrored or not
BENT_CLIPS, BENT_BACK = 4, -0.5
IMAGE_LAYOUTS = ("coco17", "openpose18", "body25")
HOW = "(train.prepare npz and npy, train.embed)"
log = logging.getLogger("fastmc")


class Sanity:
    """Sees clips on their way in, keeps some frames of some of them, and says what they look like."""

    def __init__(self, layout: Skeleton) -> None:
        self.layout = layout
        self._kept: list[np.ndarray] = []
        self._seen, self._every = 0, 1

    def see(self, clip: np.ndarray) -> None:
        """A clip (T, M, V, 3), before or after it is moved into its frame of reference."""
        if self._seen % self._every == 0:
            self._kept.append(_some_frames(clip))
            if len(self._kept) == 2 * SAMPLE:
                self._kept = self._kept[::2]
                self._every *= 2
        self._seen += 1

    def finding(self) -> str:
        """What is wrong, first of all, and what mends it; empty where all is well."""
        bodies = [body.astype(np.float64) for body in self._kept if len(body)]
        if not bodies:
            return ""
        frames, layout = np.concatenate(bodies), self.layout
        return (
            _image(frames, layout)
            or _motion(bodies)
            or _units(frames)
            or _zero_joints(frames, layout)
            or _order(bodies, layout)
            or _upside_down(bodies, layout)
            or _mirrored(bodies, layout)
        )

    def hint(self) -> str:
        """What is wrong as the end of another message; empty where all is well."""
        return f"; {found}" if (found := self.finding()) else ""

    def tell(self, strict: bool, error: Callable[[str], Exception]) -> list[str]:
        """Warn of what is wrong, and return it; in a strict run raise it."""
        found = self.finding()
        if found and strict:
            raise error(f"{found}; without --strict this is a warning")
        if found:
            log.warning("warning: %s", found)
        return [found] if found else []


def _some_frames(clip: np.ndarray) -> np.ndarray:
    """Frames (n, V, 3) of the first body that is there, without those that are not finite."""
    present = clip.any(axis=(0, 2, 3))
    body = clip[:, present.argmax()]
    body = body[body.any(axis=(1, 2)) & np.isfinite(body).all(axis=(1, 2))]
    return body[np.unique(np.linspace(0, len(body) - 1, FRAMES).astype(int))] if len(body) else body


def _image(frames: np.ndarray, layout: Skeleton) -> str:
    low, high = frames.min(axis=(0, 1)), frames.max(axis=(0, 1))
    within = 0 <= low[2] <= high[2] <= 1
    large = max(high[:2] - low[:2]) > TALL[1] and height_of(frames) > TALL[1]
    units = ""
    if large and within:
        what = "(x, y, score) of an image" if high[2] > 0 else "(x, y, 0) of an image"
        seen = f"x and y reach {high[:2].max():.4g}, the third number {high[2]:.3g}"
    elif large and min(low[:2]) >= 0:
        what, seen = "pixels", f"x and y lie between {low[:2].min():.4g} and {high[:2].max():.4g}, none is negative"
        units = "; of three lengths --scale FACTOR makes metres"
    elif within and high[2] > 0 and np.abs(frames[..., :2]).max() <= 1:
        what, seen = (
            "(x, y, score) of an image, as shares of its size",
            "x and y are 1 at most, the third number lies between 0 and 1",
        )
    else:
        return ""
    others = [name for name in _of_as_many_joints(layout) if name in IMAGE_LAYOUTS]
    hint = f"; its {layout.num_joints} joints may be those of {others[0]}: --skeleton {others[0]}" if others else ""
    return (
        f"{seen}: this looks like {what}, not like metres; --image {HOW}, or "
        f"encode(given=fastmc.Given(image=True)), makes bodies of (x, y) and (x, y, score){units}{hint}"
    )


def _motion(bodies: list[np.ndarray]) -> str:
    ratios = []
    for body in bodies:
        inner = body - body.mean(axis=1, keepdims=True)
        change = np.linalg.norm(inner.std(axis=0), axis=1)
        if len(body) >= 8 and change.any():
            ratios.append(np.median(np.linalg.norm(inner.mean(axis=0), axis=1) / np.maximum(change, 1e-12)))
    if not ratios or np.median(ratios) > STILL or height_of(np.concatenate(bodies)) > SLIGHT:
        return ""
    return (
        "joints keep no place in the body, they change around zero: this looks like motion (next frame minus this one) "
        "in place of joints; give the joints, --stream motion makes that of them"
    )


def _zero_joints(frames: np.ndarray, layout: Skeleton) -> str:
    zero = np.flatnonzero(~frames.any(axis=(0, 2)))
    centre = [getattr(layout, role) for role in ("hip", "spine")]
    for joint in zero:
        if (
            layout.parents
            and layout.parents[joint] == joint
            and (joint not in centre or _way_over_height(frames, layout) > FOLDED)
        ):
            return (
                f"joint {joint + 1} ({layout.joint_names[joint]}), on which all others hang, is zero everywhere: this "
                "looks like bones (a joint minus the one it hangs on) in place of joints; give the joints, --stream "
                "bone makes those of them"
            )
    lost = [f"{joint + 1} ({layout.joint_names[joint]})" for joint in zero if joint not in centre]
    if not lost:
        return ""
    return (
        f"joint {', '.join(lost)} is zero everywhere: it was not recorded, or the joints are others than those of "
        f"{layout.name!r}; leave it out and name the others with --skeleton {HOW}"
    )


def _way_over_height(frames: np.ndarray, layout: Skeleton) -> float:
    """The longest way from a joint to its root along the bones (median lengths), over the body's height: about 1 of
    people, 0 where no bones are known."""
    if not layout.parents:
        return 0.0
    length = _bone_lengths(frames, layout)
    ways = [sum(length[joint] for joint in _way_up(start, layout.parents)) for start in range(layout.num_joints)]
    return float(max(ways) / max(height_of(frames), 1e-12))


def _bone_lengths(frames: np.ndarray, layout: Skeleton) -> np.ndarray:
    """(V,): of each joint's bone the median over frames (n, V, 3), one of those that are there."""
    lengths = np.linalg.norm(frames - frames[:, list(layout.parents)], axis=2)
    return np.quantile(lengths, 0.5, axis=0, method="lower")


def _way_up(joint: int, parents: tuple[int, ...]) -> Iterator[int]:
    for _ in parents:
        yield joint
        if parents[joint] == joint:
            return
        joint = parents[joint]


def _units(frames: np.ndarray) -> str:
    height = height_of(frames)
    if TALL[0] <= height <= TALL[1]:
        return ""
    for low, high, unit, factor in UNITS:
        if low <= height < high:
            remedy = f"{unit}; --scale {factor} {HOW}, or fastmc.Given(scale={factor}), makes metres of them"
            break
    else:
        remedy = f"another unit; --scale FACTOR {HOW} makes metres of them, --scale height bodies of 1.7 m"
    return f"bodies are {height:.4g} tall (median), people are 1.7 m: this looks like {remedy}"


def _order(bodies: Sequence[np.ndarray], layout: Skeleton) -> str:
    """Joints of another layout: left and right bones differ, bones are long, shoulders are no shoulders, or, of an
    image, where a bone may point at who looks, heads, hips and feet are not above each other either."""
    frames = np.concatenate(bodies)
    flat = flat_axis(frames)
    unequal, signs = unequal_sides(frames, layout), []
    if unequal > UNEQUAL:
        signs.append(f"left and right bones differ by {200 * unequal:.0f} % (median)")
    if (long := _way_over_height(frames, layout)) > SPRAWLED:
        signs.append(f"the way along the bones is {long:.1f} times the height of a body")
    others = [SKELETONS[name] for name in _of_as_many_joints(layout)]
    better = [other for other in others if unequal_sides(frames, other) < unequal / 2]
    if flat is not None:
        better = [other for other in better if tumbled(bodies, other, flat) <= TUMBLED]
        if not (signs or better) or tumbled(bodies, layout, flat) <= TUMBLED:
            return ""
        signs.append("heads, hips and feet do not lie one above the other")
    elif layout.has_frame and TALL[0] <= height_of(frames) <= TALL[1]:
        width = shoulder_width(frames, layout)
        if not SHOULDERS[0] < width < SHOULDERS[1]:
            signs.append(f"shoulders are {width:.3g} m apart (median)")
    if not signs:
        return ""
    what = f"of {better[0].name}: --skeleton {better[0].name}" if better else "in another order: --skeleton names it"
    return f"{' and '.join(signs)}: joints do not seem to be those of {layout.name!r}, but {what} {HOW}"


def _upside_down(bodies: Sequence[np.ndarray], layout: Skeleton) -> str:
    frames, pairs = np.concatenate(bodies), one_above_the_other(layout)
    flat = flat_axis(frames)
    if flat is None or len(pairs) < PAIRS:
        return ""
    if np.median([share_below(body, pairs, picture_up(flat)) for body in bodies]) < UPSIDE_DOWN:
        return ""
    return (
        "heads lie below feet in the image: its y seems to point up, and --image (fastmc.Given(image=True)) takes y "
        "downwards, which mirrors these people; negate their y first"
    )


def _mirrored(bodies: Sequence[np.ndarray], layout: Skeleton) -> str:
    """Whether left, up and forwards are those of a mirrored body: forwards is where toes point, and bent knees."""
    if not layout.has_frame or not layout.parents or flat_axis(np.concatenate(bodies)) is not None:
        return ""
    toes = [cosine for body in bodies if (cosine := toes_forwards(body, layout)) is not None]
    knees = [cosine for body in bodies if (cosine := knees_forwards(body, layout)) is not None]
    if toes and np.median(toes) < BACKWARDS:
        what = "feet point"
    elif not toes and len(knees) >= BENT_CLIPS and np.median(knees) < BENT_BACK:
        what = "knees bend"
    else:
        return ""
    return (
        f"{what} backwards: this looks like people in a mirror, as left-handed axes (Unity, Unreal) give; negate one "
        "axis of all clips, such as clip[..., 0] *= -1, before anything else, or exchange left and right in the names "
        "of joints where those are wrong"
    )


def unequal_sides(frames: np.ndarray, layout: Skeleton) -> float:
    """Median over pairs of bones of |left - right| / (left + right), of lengths in frames (n, V, 3); 0 where no pair is
    known."""
    if not layout.parents or not layout.has_sides:
        return 0.0
    length = _bone_lengths(frames, layout)
    pairs = [(joint, other) for joint, other in enumerate(layout.mirror) if joint < other and length[joint] > 0]
    return float(np.median([abs(length[a] - length[b]) / (length[a] + length[b]) for a, b in pairs])) if pairs else 0.0


def shoulder_width(frames: np.ndarray, layout: Skeleton) -> float:
    """Median over frames (n, V, 3)."""
    across = layout.place("left_shoulder", frames) - layout.place("right_shoulder", frames)
    return float(np.quantile(np.linalg.norm(across, axis=1), 0.5, method="lower"))


def _of_as_many_joints(layout: Skeleton) -> list[str]:
    return [name for name, s in SKELETONS.items() if s.num_joints == layout.num_joints and name != layout.name]
