"""What the numbers of an array are, where they are not metres: another unit, or places in an image and their scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from fastmc.checks import check_number
from fastmc.skeleton import Skeleton

HEIGHT = 1.7  # metres
LOWEST = float(np.finfo(np.float32).tiny)  # what is lower has no height: bodies in one point, and what rounding left
BY_HEIGHT = "height"
MIN_SCORE = 0.1  # detectors give what they do not see less than this, as a rule


@dataclass(frozen=True)
class Given:
    """What the numbers of clips are.

    Attributes:
        image: they are (x, y) or (x, y, score) of an image, y downwards.
        scale: times this they are metres; ``"height"``, or None of an image: the first body that has a height is made
            `HEIGHT` tall.
        min_score: joints of an image with a lower score are not there.

    Raises:
        ValueError: a number is out of its range.
    """

    image: bool = False
    scale: float | str | None = None
    min_score: float = MIN_SCORE

    def __post_init__(self) -> None:
        check_number("min_score", self.min_score, at_least=0)
        if self.scale not in (None, BY_HEIGHT):
            try:
                object.__setattr__(self, "scale", float(self.scale))
            except ValueError:
                raise ValueError(f"scale is {self.scale!r}; give a number, or {BY_HEIGHT}") from None
            check_number("scale", self.scale, above=0)  # type: ignore[arg-type]

    @property
    def numbers(self) -> tuple[int, ...]:
        """How many numbers a joint may have."""
        return (2, 3) if self.image else (3,)

    def clip(self, joints: np.ndarray, skeleton: Skeleton) -> tuple[np.ndarray, np.ndarray | None]:
        """A clip (T, M, V, 2 or 3) as one in metres, float (T, M, V, 3), and the weights (T, M, V) of its joints.

        Of an image z is 0 and y points up. A joint that is not there (a low score, NaN, or x = y = 0) keeps the last
        place where it was seen, or the next, as a body over gaps; one never seen lies on the joint that it hangs on. A
        body without any joint is zero. Of what is no image there are no weights.
        """
        if not self.image and self.scale is None:
            return joints, None
        seen, factor = self._seen(joints), self._factor([joints])
        joints = joints.astype(np.float64)  # a product in half precision is off by millimetres
        if not self.image:
            return joints * factor, None
        points, scores = joints[..., :2], joints[..., 2:]
        weights = np.where(seen, scores[..., 0] if scores.size else 1.0, 0.0)
        placed = np.zeros((*points.shape[:3], 3))
        for body in range(points.shape[1]):
            placed[:, body, :, :2] = _held(points[:, body], seen[:, body], skeleton) * (1, -1)
        return placed * factor, weights

    def of_recording(self, parts: Iterable[np.ndarray]) -> Given:
        """The same with one factor for all windows of a recording, which is given in parts (T, M, V, 2 or 3).

        With a factor for each window a person would grow while they bend.
        """
        return replace(self, scale=self._factor(parts)) if self.image or self.scale is not None else self

    def _factor(self, parts: Iterable[np.ndarray]) -> float:
        if isinstance(self.scale, float):
            return self.scale
        places = slice(0, 2 if self.image else 3)
        extents = [_extents(part[..., places].astype(np.float64), self._seen(part)) for part in parts]
        heights = [_median(body) for body in np.concatenate(extents).T]
        return next((HEIGHT / height for height in heights if LOWEST < height < np.inf), 1.0)

    def _seen(self, joints: np.ndarray) -> np.ndarray:
        """(T, M, V): which joints are there."""
        if not self.image:
            return _there(joints)
        seen = np.isfinite(joints).all(axis=-1) & _there(joints[..., :2])
        return seen & (joints[..., 2] >= self.min_score) if joints.shape[-1] > 2 else seen


METRES = Given()


def body_height(joints: np.ndarray, seen: np.ndarray) -> float:
    """Median over frames and bodies of the largest extent, along an axis, of the joints (T, M, V, 3) that are seen
    (T, M, V); 0 where none is."""
    return _median(_extents(joints, seen))


def _extents(joints: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(T, M): of each frame and body the largest extent along an axis; -inf where no joint is seen."""
    low, high = (np.where(seen[..., None], joints, far) for far in (np.inf, -np.inf))
    with np.errstate(invalid="ignore"):
        return np.asarray((high.max(axis=2) - low.min(axis=2)).max(axis=-1))


def _median(extents: np.ndarray) -> float:
    """The lower one, of those that were seen."""
    seen = extents[extents > -np.inf]
    return float(np.quantile(seen, 0.5, method="lower")) if seen.size else 0.0


def _there(joints: np.ndarray) -> np.ndarray:
    """Which of the joints (..., C) are not zero, as what is absent is."""
    return np.asarray(joints.any(axis=-1))


def _held(points: np.ndarray, seen: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    """Points (T, V, 2) of a body, each where it was last seen (T, V), or will be first."""
    if not seen.any():
        return np.zeros_like(points)
    last = np.maximum.accumulate(np.where(seen, np.arange(len(seen))[:, None], -1), axis=0)
    source = np.where(last < 0, seen.argmax(axis=0), last)
    held = np.take_along_axis(np.where(seen[..., None], points, 0), source[..., None], axis=0)
    ever = np.asarray(seen.any(axis=0))
    middle = held[:, ever].mean(axis=1)
    for joint in np.flatnonzero(~ever):
        above = int(joint)
        for _ in skeleton.parents:
            above = above if ever[above] else skeleton.parents[above]
        held[:, joint] = held[:, above] if ever[above] else middle
    return held
