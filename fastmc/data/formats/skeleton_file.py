"""NTU RGB+D `.skeleton` files: their names and their content.

`read_skeleton` works on the whole file at once (`fastmc.data.bytes.decimals`); what does not look like a sound file
goes to the plain reader, whose word is final.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmc.data.bytes.decimals import Odd, Tokens, keep_freed_memory, require, values_of
from fastmc.files import read_bytes
from fastmc.reference.ntu import (
    BODY_FIELDS,
    JOINT_FIELDS,
    NUM_JOINTS,
    RawBody,
    RawClip,
    SkeletonFileError,
    certain,
)
from fastmc.reference.ntu import read_skeleton as read_plainly

__all__ = ["ClipName", "RawBody", "RawClip", "SkeletonFileError", "parse_name", "read_skeleton"]

BODY_LINES = 2 + NUM_JOINTS  # the body's own, its number of joints, its joints


class ClipName(NamedTuple):
    """The numbers of a clip's name, 1-based as in the name."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int


def parse_name(name: str | Path) -> ClipName:
    """The numbers of a name like `S001C002P003R002A013`, with or without folder and `.skeleton`; else ValueError."""
    match = re.fullmatch(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})(\.skeleton(\.npy)?)?", Path(name).name, re.ASCII)
    if match is None:
        raise ValueError(
            f"{str(name)!r} is not the name of an NTU RGB+D clip: expected SsssCcccPpppRrrrAaaa with three digits each "
            "(setup, camera, performer, replication, action), such as S001C002P003R002A013.skeleton"
        )
    clip = ClipName(*map(int, match.groups()[:5]))
    if 0 in clip or clip.camera > 3:
        raise ValueError(f"{str(name)!r} is not the name of an NTU RGB+D clip: numbers start at 1, cameras end at 3")
    return clip


def read_skeleton(path: str | Path, content: bytes | None = None) -> RawClip:
    """Reads a `.skeleton` file: all bodies of all frames, positions x, y, z in metres in camera space.

    The same values, bit for bit, and the same errors as `fastmc.reference.ntu.read_skeleton`. Lines may end in LF or
    CRLF, blanks may follow a line and blank lines the last one; a frame may hold no body or any number of them. Numbers
    that are not kept must be numbers, though not finite ones: a point may lie outside of the colour image. A joint may
    have x, y, z alone. A byte-order mark is passed over, and decimal commas are read where the file has no point.

    Args:
        path: the file.
        content: its bytes, where they have been read already.

    Raises:
        SkeletonFileError: names the line, what was found and what was expected: a wrong number of lines, fields or
            joints, something that is not a number, a position that is not finite in float32, or a body ID twice in
            one frame (the sensor's IDs are unique; two bodies under one could not be told apart over time).
        OSError: the file cannot be read.
    """
    keep_freed_memory()
    try:
        return _read_at_once(certain(read_bytes(Path(path)) if content is None else content))
    except Odd:
        return read_plainly(path)


def _read_at_once(content: bytes) -> RawClip:
    tokens = Tokens.of(b"\n%b\n" % content)
    num_frames, frame, body, joint = _lay_out(tokens)
    positions = values_of(tokens, joint[:, :, None] + np.arange(3))
    return RawClip(num_frames, _by_id(tokens.texts(body), frame, positions))


def _lay_out(tokens: Tokens) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Number of frames; per body its frame (B,), the token of its ID (B,) and the first ones of its joints (B, 25)."""
    line = tokens.line[: np.searchsorted(tokens.line, tokens.line[-1]) + 1]  # blank lines may end the file
    width = line[1:] - line[:-1]
    body = np.flatnonzero(width == len(BODY_FIELDS))
    require(len(body) and body[-1] + BODY_LINES <= len(width))
    block = body[:, None] + np.arange(BODY_LINES)
    require((width[block[:, 1]] == 1).all() and (width[block[:, 2:]] == len(JOINT_FIELDS)).all())
    require(set(tokens.texts(line[block[:, 1]])) <= {str(NUM_JOINTS)})

    is_count = np.ones(len(width), bool)
    is_count[block] = False
    count_line = np.flatnonzero(is_count)
    require(len(count_line) and (width[count_line] == 1).all())
    counts = tokens.texts(line[count_line])
    require(all(count.isdigit() and len(count) < 10 for count in counts))
    num_frames, *num_bodies = map(int, counts)
    require(num_frames == len(num_bodies))
    next_count = np.cumsum([1, *(1 + BODY_LINES * bodies for bodies in num_bodies)])
    require(np.array_equal(next_count, [*count_line[1:].tolist(), len(width)]))
    first = line[block]
    return num_frames, np.repeat(np.arange(num_frames), num_bodies), first[:, 0], first[:, 2:]


def _by_id(ids: list[str], frame: np.ndarray, positions: np.ndarray) -> dict[str, RawBody]:
    """Bodies of single frames, in the file's order, joined under their IDs."""
    members: dict[str, list[int]] = {}
    for i, body_id in enumerate(ids):
        members.setdefault(body_id, []).append(i)
    bodies = {body_id: RawBody(frame[of_id], positions[of_id]) for body_id, of_id in members.items()}
    require(all((body.frames[1:] > body.frames[:-1]).all() for body in bodies.values()))
    return bodies
