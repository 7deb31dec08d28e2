"""Clips in a page: a few frames of each, in whole quanta, deflated. motion.js unpacks them."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastmc.figures.skeletons import bodies_there, pick_frames
from fastmc.skeleton import Skeleton

FRAMES = 32
QUANTUM = 0.004
"""Metres: what cannot be seen in a drawing of a body."""
LADDER = (
    *((n, 1) for n in (28, 24, 20, 16)),
    (16, 1.5),
    (16, 2),
    (12, 2),
    (8, 2),
    (8, 4),
    (6, 4),
    (4, 4),
    (3, 8),
    (2, 16),
)
"""Frames at most, and quanta in one, that are tried in turn where there is room for fewer bytes."""
SAMPLE = 128
"""Of so many clips the size of all is reckoned."""
LARGEST = 32767


def pack(
    clips: Iterable[np.ndarray],
    skeleton: Skeleton,
    *,
    frames: int = FRAMES,
    quantum: float | Sequence[float] = QUANTUM,
    centred: bool | Sequence[bool] = True,
    most_bytes: int | None = None,
) -> dict[str, Any]:
    """Clips (T, M, V, 3), metres, as the ``motion`` of a page: plain values, for JSON.

    Of each clip at most ``frames`` frames are kept, at equal intervals, first and last among them. A body whose joints
    are all zero is absent from a frame, and stays so.

    Args:
        quantum: metres, of all clips or of each; coordinates are rounded to whole ones. A clip that does not fit 16
            bits has a coarser one.
        centred: whether the middle of a clip's first frame becomes the origin, of all clips or of each.
        most_bytes: where ``data`` would be longer, there are fewer frames, and then coarser quanta.

    Raises:
        ValueError: a clip is not of this shape, with the joints of ``skeleton``.
    """
    kept = [_few_frames(_checked(clip, skeleton), frames) for clip in clips]
    tree = _outwards(skeleton)
    quanta = np.broadcast_to(np.asarray(quantum, np.float64), len(kept))
    moved = [_centre(clip) if of else clip for clip, of in zip(kept, np.broadcast_to(centred, len(kept)), strict=True)]
    packed = _pack(moved, quanta, tree)
    if most_bytes is None or len(packed["data"]) <= most_bytes:
        return packed
    for fewer, coarser in LADDER:
        if fewer >= frames:
            continue
        some = slice(None, None, -(-len(moved) // SAMPLE))
        few = [_few_frames(clip, fewer) for clip in moved[some]]
        if len(_pack(few, coarser * quanta[some], tree)["data"]) * (len(moved) / len(few)) > 1.1 * most_bytes:
            continue
        packed = _pack([_few_frames(clip, fewer) for clip in moved], coarser * quanta, tree)
        if len(packed["data"]) <= most_bytes:
            break
    return packed


def unpack(packed: dict[str, Any], joints: int) -> list[np.ndarray]:
    """The clips (F, M, V, 3) float64, metres, of what `pack` has made: what motion.js does, for tests."""
    planes = zlib.decompress(base64.b64decode(packed["data"]), wbits=-15)
    low, high = np.frombuffer(planes, np.uint8).reshape(2, -1).astype(np.uint16)
    folded = low | high << 8
    steps = (folded >> 1).astype(np.int64) ^ -(folded & 1).astype(np.int64)
    shapes = [(f, m, joints, 3) for f, m in zip(packed["frames"], packed["bodies"], strict=True)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    quanta = np.broadcast_to(packed["quantum"], len(shapes))
    clips = []
    for part, shape, quantum in zip(np.split(steps, ends[:-1]), shapes, quanta, strict=True):
        whole = part.reshape(shape)
        for child, parent in packed["tree"]:
            whole[:, :, child] += whole[:, :, parent]
        clips.append(whole.cumsum(axis=0).astype(np.int16) * quantum)
    for clip, body, first, end in packed["absent"]:
        clips[clip][first:end, body] = 0
    return clips


def _checked(clip: np.ndarray, skeleton: Skeleton) -> np.ndarray:
    if clip.ndim != 4 or clip.shape[2:] != (skeleton.num_joints, 3) or not clip.shape[0]:
        raise ValueError(f"a clip of {skeleton.name} must be (T, M, {skeleton.num_joints}, 3), got {clip.shape}")
    return clip


def _few_frames(clip: np.ndarray, frames: int) -> np.ndarray:
    return clip[pick_frames(len(clip), frames)]


def _outwards(skeleton: Skeleton) -> list[list[int]]:
    """[joint, its parent] of all that have one, each after its parent."""
    left, tree = dict(skeleton.bones), list[list[int]]()
    while left:
        free = [child for child, parent in left.items() if parent not in left]
        tree += [[child, left.pop(child)] for child in free]
    return tree


def _centre(clip: np.ndarray) -> np.ndarray:
    """The clip about the middle of its first frame with a body; what is absent stays zero."""
    there = bodies_there(clip)
    if not there.any():
        return clip
    seen = clip[there.any(axis=1).argmax()]
    points = seen[bodies_there(seen[None])[0]].reshape(-1, 3)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    return np.where(there[..., None, None], clip - middle, 0)


def _pack(clips: Sequence[np.ndarray], quanta: np.ndarray, tree: list[list[int]]) -> dict[str, Any]:
    fitted = [
        max(float(q), float(np.abs(clip).max(initial=0)) / LARGEST) for clip, q in zip(clips, quanta, strict=True)
    ]
    absent = [[number, *run] for number, clip in enumerate(clips) for run in _absences(clip)]
    steps = [_steps(clip, quantum, tree) for clip, quantum in zip(clips, fitted, strict=True)]
    folded = np.concatenate([np.zeros(0, np.uint16), *steps])
    planes = np.concatenate([folded & 0xFF, folded >> 8]).astype(np.uint8)
    deflate = zlib.compressobj(level=6, wbits=-15)
    data = deflate.compress(planes.tobytes()) + deflate.flush()
    return {
        "frames": [len(clip) for clip in clips],
        "bodies": [clip.shape[1] for clip in clips],
        "quantum": fitted[0] if len(set(fitted)) == 1 else fitted,
        "absent": absent,
        "tree": tree,
        "data": base64.b64encode(data).decode("ascii"),
    }


def _absences(clip: np.ndarray) -> list[list[int]]:
    """[body, first frame, frame after the last] of every stretch of time in which a body is absent."""
    runs = []
    for body, there in enumerate(bodies_there(clip).T):
        edges = np.flatnonzero(np.diff(np.concatenate([[True], there, [True]]).astype(np.int8)))
        runs += [[body, int(first), int(end)] for first, end in zip(edges[::2], edges[1::2], strict=True)]
    return runs


def _steps(clip: np.ndarray, quantum: float, tree: list[list[int]]) -> np.ndarray:
    """How far each joint moves from frame to frame beyond its parent, in whole quanta, flat, uint16: a fifth shorter
    when deflated than without the parent. 0, -1, 1, -2, ... are 0, 1, 2, 3, ..., so that small steps either way have a
    high byte of zero. A body that is absent stands where it was."""
    whole = np.rint(np.nan_to_num(clip) / quantum).astype(np.int32)
    there = bodies_there(clip)
    for frame in range(1, len(clip)) if not there.all() else ():
        whole[frame][~there[frame]] = whole[frame - 1][~there[frame]]
    moves = np.diff(whole, axis=0, prepend=np.zeros_like(whole[:1]))
    steps = moves.copy()
    for child, parent in tree:
        steps[:, :, child] -= moves[:, :, parent]
    steps = steps.astype(np.int16)  # wraps around, and back when it is unpacked
    return ((steps << 1) ^ (steps >> 15)).view(np.uint16).ravel()
