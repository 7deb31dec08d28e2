"""Clips that come as bare arrays: what can be wrong with one, and the clip that is stored."""

from __future__ import annotations

import numpy as np

from fastmc.data.normalise import normalise
from fastmc.skeleton import KINECT20, NTU25, Skeleton

NOT_FINITE = "NaN or infinite coordinates"
ALL_ZERO = "all coordinates are zero"
NO_FRAME = "no frame of reference"
TOO_FAR = "coordinates out of range"

# Metres, of what is stored: a room is ten. What is larger is damage, another unit, or a faulty sensor.
MAX_COORDINATE = 100.0
RAW_MARGIN = 100  # how many times that a coordinate may be before normalisation, which takes the place out of it

LAYOUTS = {layout.num_joints: layout for layout in (NTU25, KINECT20)}


class FaultyClip(ValueError):
    """A clip cannot be used: ``reason`` is a category, the message says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@np.errstate(over="ignore", invalid="ignore")  # what is not finite is found, and is no warning
def usable_clip(
    clip: np.ndarray,
    layout: Skeleton | None,
    max_coordinate: float = MAX_COORDINATE,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """A clip without the bodies that are zero in all of its frames.

    Args:
        clip: (T, M, V, 3), metres.
        layout: brings the clip to its frame of reference (`normalise`); None keeps the coordinates.
        max_coordinate: as in `placed_clip`.
        weights: (T, M, V) of the joints, as `normalise` takes them.

    Returns:
        float32 (T, bodies that are there, V, 3).

    Raises:
        FaultyClip: coordinates are not finite (in float32), out of range or all zero, or give no frame of reference.
    """
    clip = clip.astype(np.float32)
    if not np.isfinite(clip).all():
        frame = int(np.flatnonzero(~np.isfinite(clip).all(axis=(1, 2, 3)))[0])
        raise FaultyClip(NOT_FINITE, f"{NOT_FINITE}, first in frame {frame}")
    present = clip.any(axis=(0, 2, 3))
    if not present.any():
        raise FaultyClip(ALL_ZERO, ALL_ZERO)
    return placed_clip(clip[:, present], layout, max_coordinate, None if weights is None else weights[:, present])


def placed_clip(
    clip: np.ndarray,
    layout: Skeleton | None,
    max_coordinate: float = MAX_COORDINATE,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """A clip (T, M, V, 3) in its frame of reference (`normalise`), or as it is where ``layout`` is None, whose
    coordinates are known to be in range.

    Args:
        max_coordinate: metres, of the result; before it is moved, a coordinate may be `RAW_MARGIN` times that.

    Raises:
        FaultyClip: a coordinate is out of range, before or after, or there is no frame of reference.
    """
    _check_range(clip, RAW_MARGIN * max_coordinate, "")
    try:
        placed = normalise(clip, layout, weights) if layout else clip
    except ValueError as error:
        raise FaultyClip(NO_FRAME, str(error)) from error
    _check_range(placed, max_coordinate, " once normalised" if layout else "")
    return placed


def _check_range(clip: np.ndarray, limit: float, when: str) -> None:
    if np.abs(clip).max() <= limit:  # NaN compares false
        return
    frame = int(np.flatnonzero(~(np.abs(clip) <= limit).all(axis=(1, 2, 3)))[0])
    value = float(np.abs(clip[frame]).max())
    raise FaultyClip(
        TOO_FAR, f"a coordinate of {value:.3g} m{when} in frame {frame}, expected at most {limit:g} (--max-coordinate)"
    )


def distinct_bodies(clip: np.ndarray) -> np.ndarray:
    """A clip (T, M, V, 3) without bodies that are the first one, bit for bit, in all frames: some codes fill the place
    of an absent body so."""
    copies = [m for m in range(1, clip.shape[1]) if np.array_equal(clip[:, m], clip[:, 0])]
    return np.delete(clip, copies, axis=1) if copies else clip


@np.errstate(invalid="ignore")
def used_frames(clip: np.ndarray) -> int:
    """How many frames of a padded clip (T, M, V, 3) are its own.

    - Zeros after the last frame with a body are padding. Zeros before and between are kept: they are time.
    - A clip that fills all T frames may have been repeated from its start until it did (2s-AGCN and the codes that use
      its files do so). It counts up to the first frame from which on its first body repeats itself, bit for bit, to
      the end. The second body, which those codes repeat at a period of its own, is cut at the same frame.

    Raises:
        FaultyClip: all coordinates are zero.
    """
    seen = np.flatnonzero(clip.any(axis=(1, 2, 3)))
    if not len(seen):
        raise FaultyClip(ALL_ZERO, ALL_ZERO)
    frames = int(seen[-1]) + 1
    return _period(clip[:, clip.any(axis=(0, 2, 3)).argmax()]) if frames == len(clip) else frames


def _period(body: np.ndarray) -> int:
    """The least p > 1 for which frame t is frame t - p for all t from p on; T where no frame is repeated, or all are
    the same, since a body may stand still, or where the first has no body, since absence repeats itself."""
    if not body[0].any():
        return len(body)
    like_first = np.flatnonzero((body == body[0]).all(axis=(1, 2)))
    if len(like_first) == len(body):
        return len(body)
    return next((int(p) for p in like_first if p > 1 and np.array_equal(body[p:], body[:-p])), len(body))
