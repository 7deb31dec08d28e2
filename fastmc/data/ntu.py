"""NTU RGB+D `.skeleton` files: their names and their content.

`read_skeleton` works on the whole file at once, in numpy. Every byte that is not a digit is a *mark*: a blank (space,
CR, LF), a sign, a dot. The order of the marks, and whether digits stand between two of them, tell where tokens and
lines are and that a token is a plain decimal, so that only the numbers that are kept have to be converted. What is rare
(an exponent) goes through `float`; what does not look like a sound file goes to the plain reader, whose word is final.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastmc.reference.ntu import BODY_FIELDS, FLOAT32_MAX, JOINT_FIELDS, NUM_JOINTS, RawBody, RawClip, SkeletonFileError
from fastmc.reference.ntu import read_skeleton as read_plainly

__all__ = ["ClipName", "RawBody", "RawClip", "SkeletonFileError", "parse_name", "read_skeleton"]

LF, CR, SPACE, MINUS, DOT, ZERO = b"\n\r -.0"
BODY_LINES = 2 + NUM_JOINTS  # the body's own, its number of joints, its joints
MAX_DECIMALS = 8  # what a 64-bit word holds
POWERS_OF_TEN = 10.0 ** np.arange(MAX_DECIMALS + 1)
# Of a little-endian word the n last (highest) bytes, and of an ASCII digit the four bits that are its value.
LAST_DIGITS = np.array([0x0F0F0F0F0F0F0F0F >> 8 * (8 - n) << 8 * (8 - n) for n in range(MAX_DECIMALS + 1)], np.uint64)


class ClipName(NamedTuple):
    """The numbers of a clip's name, 1-based as in the name."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int


def parse_name(name: str | Path) -> ClipName:
    """The numbers of a name like `S001C002P003R002A013`, with or without folder and `.skeleton`; else ValueError."""
    match = re.fullmatch(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})(\.skeleton)?", Path(name).name, re.ASCII)
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
    that are not kept must be numbers, though not finite ones: a point may lie outside of the colour image.

    Args:
        path: the file.
        content: its bytes, where they have been read already.

    Raises:
        SkeletonFileError: names the line, what was found and what was expected: a wrong number of lines, fields or
            joints, something that is not a number, a position that is not finite in float32, or a body ID twice in
            one frame (the sensor's IDs are unique; two bodies under one could not be told apart over time).
        OSError: the file cannot be read.
    """
    _keep_freed_memory()
    try:
        return _read_at_once(Path(path).read_bytes() if content is None else content)
    except _Odd:
        return read_plainly(path)


@cache
def _keep_freed_memory() -> None:
    """Lets glibc's malloc reuse the memory of each file's arrays; fresh pages cost a third of the reading time.

    It takes the largest block freed so far as the size up to which it keeps freed memory.
    """
    np.empty(16 << 20, np.uint8)


class _Odd(Exception):
    """A file that is broken or unusual, and left to the plain reader."""


def _require(condition: object) -> None:
    if not condition:
        raise _Odd


def _read_at_once(content: bytes) -> RawClip:
    tokens = _Tokens.of(b"\n%b\n" % content)
    num_frames, frame, body, joint = _lay_out(tokens)
    positions = _positions(tokens, joint[:, :, None] + np.arange(3))
    return RawClip(num_frames, _by_id(tokens.texts(body), frame, positions))


@dataclass(frozen=True)
class _Tokens:
    """The tokens of a file, every one of them a number, known by the blanks around them.

    text: the file, as bytes; code: the same as array; blank: index of each blank among the marks; blank_at: its place
    in the file; gap: per token the blank in front of it (index into the two arrays before; the next blank ends the
    token); line: first token of each line, and one entry more: the number of tokens.
    """

    text: bytes
    code: np.ndarray
    blank: np.ndarray
    blank_at: np.ndarray
    gap: np.ndarray
    line: np.ndarray

    @classmethod
    def of(cls, text: bytes) -> _Tokens:
        code = np.frombuffer(text, np.uint8)
        mark_at = np.flatnonzero(code - ZERO > 9)  # unsigned: what is below "0" wraps around
        mark = code[mark_at]
        is_blank = mark <= SPACE
        blank = np.flatnonzero(is_blank)
        blank_at, kind = mark_at[blank], mark[blank]
        line_feed = np.flatnonzero(kind == LF)
        _require(np.count_nonzero(kind == SPACE) + len(line_feed) + np.count_nonzero(kind == CR) == len(blank))
        blank_before = np.searchsorted(blank, _not_plain(mark_at, mark, is_blank), side="right") - 1
        for i in set(blank_before.tolist()):
            _require(_is_number(text[blank_at[i] + 1 : blank_at[i + 1]]))
        gap = np.flatnonzero(blank_at[1:] - blank_at[:-1] > 1)
        return cls(text, code, blank, blank_at, gap, np.searchsorted(gap, line_feed))

    def texts(self, token: np.ndarray) -> list[str]:
        gap = self.gap[token]
        spans = zip(self.blank_at[gap].tolist(), self.blank_at[gap + 1].tolist(), strict=True)
        return [self.text[start + 1 : end].decode() for start, end in spans]


def _not_plain(mark_at: np.ndarray, mark: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """Indices i where marks i and i + 1 do not follow each other as among blanks and numbers `-?[0-9]*(.[0-9]+)?`."""
    touch = mark_at[1:] - mark_at[:-1] == 1
    dot = mark == DOT
    plain = blank[1:] & (blank[:-1] | ~touch)  # a number ends in a digit
    plain |= dot[1:] & ~dot[:-1]  # it has one dot
    plain |= (mark[1:] == MINUS) & blank[:-1] & touch  # its sign comes first
    return np.flatnonzero(~plain)


def _is_number(token: bytes) -> bool:
    try:
        float(token.decode("ascii"))
    except ValueError:  # UnicodeDecodeError is one
        return False
    return True


def _lay_out(tokens: _Tokens) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Number of frames; per body its frame (B,), the token of its ID (B,) and the first ones of its joints (B, 25)."""
    line = tokens.line[: np.searchsorted(tokens.line, tokens.line[-1]) + 1]  # blank lines may end the file
    width = line[1:] - line[:-1]
    body = np.flatnonzero(width == len(BODY_FIELDS))
    _require(len(body) and body[-1] + BODY_LINES <= len(width))
    block = body[:, None] + np.arange(BODY_LINES)
    _require((width[block[:, 1]] == 1).all() and (width[block[:, 2:]] == len(JOINT_FIELDS)).all())
    _require(set(tokens.texts(line[block[:, 1]])) <= {str(NUM_JOINTS)})

    is_count = np.ones(len(width), bool)
    is_count[block] = False
    count_line = np.flatnonzero(is_count)
    _require(len(count_line) and (width[count_line] == 1).all())
    counts = tokens.texts(line[count_line])
    _require(all(count.isdigit() and len(count) < 10 for count in counts))
    num_frames, *num_bodies = map(int, counts)
    _require(num_frames == len(num_bodies))
    next_count = np.cumsum([1, *(1 + BODY_LINES * bodies for bodies in num_bodies)])
    _require(np.array_equal(next_count, [*count_line[1:].tolist(), len(width)]))
    first = line[block]
    return num_frames, np.repeat(np.arange(num_frames), num_bodies), first[:, 0], first[:, 2:]


def _positions(tokens: _Tokens, token: np.ndarray) -> np.ndarray:
    """float32 values of tokens, any shape.

    A *simple* token, `-?[0-9].[0-9]{0,8}`, is an integer below 10^9 over a power of ten: both are exact in float64, so
    that the one division rounds as `float` does.
    """
    code, gap = tokens.code, tokens.gap[token]
    start, end = tokens.blank_at[gap] + 1, tokens.blank_at[gap + 1]
    negative = code[start] == MINUS
    unit_at = start + negative
    decimals = end - unit_at - 2
    marks = tokens.blank[gap + 1] - tokens.blank[gap] - 1
    simple = (code[unit_at + 1] == DOT) & (marks == 1 + negative) & (decimals <= MAX_DECIMALS)

    word = np.ndarray(len(code) - 7, "<u8", tokens.text, strides=(1,))  # word i is bytes i to i + 7
    decimals[~simple] = 0
    scale = POWERS_OF_TEN[decimals]
    value = (_eight_digits(word[end - 8] & LAST_DIGITS[decimals]) + (code[unit_at] - ZERO) * scale) / scale
    value = np.copysign(value, 0.5 - negative)
    value[~simple] = [float(text) for text in tokens.texts(token[~simple])]
    _require((np.abs(value) <= FLOAT32_MAX).all())
    return value.astype(np.float32)


def _eight_digits(word: np.ndarray) -> np.ndarray:
    """The integer whose decimal digits are the bytes of a word, first byte first: pairs of digits, fours, eight."""
    word = word * 10 + (word >> 8) & 0x00FF00FF00FF00FF
    word = word * 100 + (word >> 16) & 0x0000FFFF0000FFFF
    return word * 10_000 + (word >> 32) & 0x00000000FFFFFFFF


def _by_id(ids: list[str], frame: np.ndarray, positions: np.ndarray) -> dict[str, RawBody]:
    """Bodies of single frames, in the file's order, joined under their IDs."""
    members: dict[str, list[int]] = {}
    for i, body_id in enumerate(ids):
        members.setdefault(body_id, []).append(i)
    bodies = {body_id: RawBody(frame[of_id], positions[of_id]) for body_id, of_id in members.items()}
    _require(all((body.frames[1:] > body.frames[:-1]).all() for body in bodies.values()))
    return bodies
