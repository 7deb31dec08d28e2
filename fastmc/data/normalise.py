"""From a raw NTU clip to the clip that is stored: which bodies, and in which frame of reference.

Read before this was written: the NTU pipelines of CTR-GCN (`get_raw_denoised_data.py`, `seq_transformation.py`) and of
2s-AGCN (`preprocess.py`), which most of the field uses. The docstrings say what is followed and what is not.
"""

from __future__ import annotations

import numpy as np

from fastmc.reference.ntu import RawBody, RawClip
from fastmc.skeleton import ROLES, Skeleton

SHORT_BODY = 11  # frames; a body seen no longer than this is noise
WIDE_FRAME = 0.8  # extent in x over extent in y; a wider body is furniture more often than a person
WIDE_BODY = 0.69754  # share of wide frames from which on a body is noise
MIN_LENGTH = 1e-4  # metres; a shorter bone gives no direction


def choose_bodies(raw: RawClip) -> np.ndarray:
    """The one or two people of a clip: (T, M, 25, 3) float32, metres in camera space, M = 1 or 2.

    As CTR-GCN does it:
        - where a clip has several bodies, those seen in at most 11 frames and those wider than 0.8 of their height in
          at least 69.754 % of their frames are noise;
        - the others are taken by descending motion (variance of the positions, over joints and frames, summed over
          x, y, z; over the frames that are not too wide where that is less). The first one opens slot 1; each next one
          continues slot 1 where its time, first to last frame, is free there, else slot 2, else it is dropped;
        - frames in which neither slot was seen are dropped.
    Where it differs: a rule that would remove every body keeps the best one (there: an error, or the last one of the
    file); frames are counted in the file's time (there: a body's later frames move up over its gaps); a body is unseen
    where it is all zero; "free" means free of other bodies (there: outside of the slot's first to last frame, give or
    take one); and gaps hold the last frame seen (there: zeros).

    Body 1 is present in every frame: it holds its first pose before it is seen and its last one after. Body 2 holds
    its last pose within the time it spans, and is exactly zero outside of it.

    Raises:
        ValueError: "missing skeleton", where no frame holds a body.
    """
    bodies = [body for body in map(_without_zero_frames, raw.bodies.values()) if len(body.frames)]
    if not bodies:
        raise ValueError(f"missing skeleton: none of the {raw.num_frames} frames holds a body")
    bodies = _denoise(bodies)
    if len(bodies) == 1:
        return bodies[0].joints[:, None]
    joints, seen = _fill_slots(_without_empty_frames(bodies))
    kept = seen.any(axis=0)
    slots = [_hold(joints[m, kept], seen[m, kept]) for m in range(2) if seen[m].any()]
    if len(slots) == 2:
        times = np.flatnonzero(seen[1, kept])
        slots[1][: times[0]] = 0
        slots[1][times[-1] + 1 :] = 0
    return np.stack(slots, axis=1)


def _without_zero_frames(body: RawBody) -> RawBody:
    nonzero = body.joints.any(axis=(1, 2))
    return body if nonzero.all() else RawBody(body.frames[nonzero], body.joints[nonzero])


def _without_empty_frames(bodies: list[RawBody]) -> list[RawBody]:
    """The bodies in a time that counts the frames with a body only: a file of few bytes may have a million others."""
    times = np.unique(np.concatenate([body.frames for body in bodies]))
    return [RawBody(np.searchsorted(times, body.frames), body.joints) for body in bodies]


def _denoise(bodies: list[RawBody]) -> list[RawBody]:
    """The bodies that are not noise, by descending motion; never none."""
    bodies = [body for body in bodies if len(body.frames) > SHORT_BODY] or [max(bodies, key=lambda b: len(b.frames))]
    if len(bodies) == 1:
        return bodies
    wide = [_wide_frames(body.joints) for body in bodies]
    share = [float(frames.mean()) for frames in wide]
    kept = [i for i, value in enumerate(share) if value < WIDE_BODY] or [int(np.argmin(share))]
    kept.sort(key=lambda i: -_motion(bodies[i].joints, wide[i]))
    return [bodies[i] for i in kept]


def _wide_frames(joints: np.ndarray) -> np.ndarray:
    """(n, V, 3) -> (n,) bool."""
    x, y, _ = np.ptp(_contiguous_axes(joints), axis=2)
    return x > WIDE_FRAME * y


def _motion(joints: np.ndarray, wide: np.ndarray) -> float:
    candidates = [joints] if wide.all() or not wide.any() else [joints, joints[~wide]]
    return min(_contiguous_axes(each).reshape(3, -1).var(axis=1).sum() for each in candidates)


def _contiguous_axes(joints: np.ndarray) -> np.ndarray:
    """(n, V, 3) -> (3, n, V) float64; numpy reduces many times faster along an axis whose values are neighbours."""
    return np.ascontiguousarray(np.moveaxis(joints, 2, 0), np.float64)


def _fill_slots(bodies: list[RawBody]) -> tuple[np.ndarray, np.ndarray]:
    """Joints (2, T, V, 3) and the frames seen (2, T) of the two slots."""
    num_frames = 1 + int(max(body.frames[-1] for body in bodies))
    joints = np.zeros((2, num_frames, *bodies[0].joints.shape[1:]), np.float32)
    seen, taken = np.zeros((2, 2, num_frames), bool)
    for body in bodies:
        span = slice(body.frames[0], body.frames[-1] + 1)
        free = [m for m in range(2) if not taken[m, span].any()]
        if free:
            joints[free[0], body.frames] = body.joints
            seen[free[0], body.frames] = taken[free[0], span] = True
    return joints, seen


def _hold(joints: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """(T, V, 3): every frame is the last one seen so far, or the first one seen."""
    source = np.maximum.accumulate(np.where(seen, np.arange(len(seen)), seen.argmax()))
    return joints[source]


def normalise(clip: np.ndarray, skeleton: Skeleton, weights: np.ndarray | None = None) -> np.ndarray:
    """Moves a clip (T, M, V, 3) into the frame of reference of its first body: same shape, float32, metres.

    One rigid motion for all frames and bodies, taken from the first frame in which body 1 is seen: its spine joint
    becomes the origin, hip to spine points along +z, and right to left shoulder has no y and points to +x. Distances
    and handedness are kept. All-zero (absent) bodies stay exactly zero. Where a bone of that frame has no length, the
    next frame serves.

    Args:
        weights: (T, M, V) or None: how sure each joint is. A place that is the mean of joints is weighted by it, and a
            frame serves only where each of the four has some weight.

    The field: CTR-GCN moves the origin like this and does not rotate. 2s-AGCN rotates, also once per clip, but
    moves every frame's spine to the origin (which removes the walking), points *left to right* shoulder along +x
    (half a turn about z from here), and gets there by a second rotation that tilts the spine off z wherever spine and
    shoulders are not perpendicular; here the spine stays on z.

    Raises:
        ValueError: the skeleton's joints of reference are unknown, the shape does not fit, no frame gives a frame of
            reference, or coordinates overflow in it.
    """
    if not skeleton.has_frame:
        raise ValueError(
            f"skeleton {skeleton.name!r} has no frame of reference: view normalisation needs the indices of hip, "
            "spine, left_shoulder and right_shoulder"
        )
    if clip.ndim != 4 or clip.shape[2:] != (skeleton.num_joints, 3):
        raise ValueError(f"clip must be (T, M, {skeleton.num_joints}, 3) for {skeleton.name!r}, got {clip.shape}")
    present = (clip != 0).any(axis=(2, 3))
    positions = clip.astype(np.float64)
    sure = None if weights is None else weights.astype(np.float64)[present[:, 0], 0]
    origin, axes = _reference_frame(positions[present[:, 0], 0], skeleton, sure)
    moved = ((positions - origin).reshape(-1, 3) @ axes.T).reshape(clip.shape)
    with np.errstate(over="ignore"):
        result = np.where(present[:, :, None, None], moved, 0).astype(np.float32)
    if not np.isfinite(result).all():
        raise ValueError("coordinates are too large: in the frame of reference, float32 cannot hold them")
    return result


def _reference_frame(body: np.ndarray, skeleton: Skeleton, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Origin (3,) and axes (3, 3; rows x, y, z) from the first of a body's frames (n, V, 3) that has them."""
    for n, frame in enumerate(body):
        sure = None if weights is None else weights[n]
        if sure is not None and not all(skeleton.seen(role, sure) for role in ROLES):
            continue
        hip, spine, left, right = (skeleton.place(role, frame, sure) for role in ROLES)
        up, side = spine - hip, left - right
        height = np.linalg.norm(up)
        if height < MIN_LENGTH:
            continue
        z = up / height
        across = side - (side @ z) * z  # Gram-Schmidt: the axes stay orthogonal, so the motion stays rigid
        width = np.linalg.norm(across)
        if width < MIN_LENGTH:
            continue
        x = across / width
        return spine, np.array([x, np.cross(z, x), z])
    raise ValueError(
        "no frame of body 1 gives a frame of reference: hip and spine, or the shoulders, coincide in all of them"
        if len(body)
        else "missing skeleton: body 1 is zero in every frame"
    )
