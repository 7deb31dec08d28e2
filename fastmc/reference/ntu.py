"""NTU RGB+D `.skeleton` files read line by line, as the field reads them: the truth for
`fastmc.data.formats.skeleton_file`.

Every number of a file is converted and every line is judged, so this reader is also where error messages come from.
"""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NUM_JOINTS = 25
# fmt: off
BODY_FIELDS = (
    "body ID", "clipped edges", "left hand confidence", "left hand state", "right hand confidence", "right hand state",
    "restricted", "lean x", "lean y", "tracking state",
)
JOINT_FIELDS = (
    "x", "y", "z", "depth x", "depth y", "colour x", "colour y",
    "orientation w", "orientation x", "orientation y", "orientation z", "tracking state",
)
# fmt: on
WINDOWS_NAN = re.compile(r"-?(1\.#(IND|INF|QNAN|SNAN)\d*|nan\((ind|snan)\))")
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class RawBody:
    """One body ID of a clip: frames (n,) int64, 0-based and ascending, and joints (n, 25, 3) float32, metres."""

    frames: np.ndarray
    joints: np.ndarray


@dataclass(frozen=True)
class RawClip:
    """A clip as recorded: its number of frames, empty ones included, and its bodies by ID in order of appearance."""

    num_frames: int
    bodies: dict[str, RawBody]


class SkeletonFileError(ValueError):
    """A `.skeleton` file that cannot be read: `path`, the 1-based `line`, and `reason` (found and expected)."""

    def __init__(self, path: str | Path, line: int, reason: str) -> None:
        super().__init__(path, line, reason)  # all three, so that the error survives pickling between processes
        self.path, self.line, self.reason = Path(path), line, reason

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}: {self.reason}"


def read_skeleton(path: str | Path) -> RawClip:
    """Reads a file line by line; the rules are those of `fastmc.data.formats.skeleton_file.read_skeleton`."""
    lines = _Lines(Path(path))
    num_frames = lines.count("the number of frames")
    seen: dict[str, tuple[list[int], list[list[dict[str, float]]]]] = {}
    for frame in range(num_frames):
        for _ in range(lines.count(f"the number of bodies of frame {frame + 1} of {num_frames}")):
            body = lines.fields(len(BODY_FIELDS), "body")
            frames, joints = seen.setdefault(body[0], ([], []))
            if frames and frames[-1] == frame:
                raise lines.error(f"body ID {body[0]} is in frame {frame + 1} twice, expected once")
            lines.numbers(BODY_FIELDS, body)
            num_joints = lines.count("the number of joints")
            if num_joints != NUM_JOINTS:
                raise lines.error(f"found {num_joints} joints, expected {NUM_JOINTS}")
            if not any(joints for _, joints in seen.values()):
                lines.judge_width()
            frames.append(frame)
            joints.append([lines.joint() for _ in range(NUM_JOINTS)])
    lines.end(num_frames)
    return RawClip(num_frames, {body_id: _raw_body(*body) for body_id, body in seen.items()})


def certain(content: bytes) -> bytes:
    """The text of a file as the field writes it, where it means the same beyond doubt: without a byte-order mark, and
    with decimal points where it has decimal commas and no point at all."""
    content = content.removeprefix(codecs.BOM_UTF8)
    return content.replace(b",", b".") if b"." not in content else content


def _raw_body(frames: list[int], joints: list[list[dict[str, float]]]) -> RawBody:
    positions = [[(joint["x"], joint["y"], joint["z"]) for joint in body] for body in joints]
    return RawBody(np.array(frames, np.int64), np.array(positions, np.float64).astype(np.float32))


class _Lines:
    """The lines of a file, taken one by one; `number` is that of the line taken last."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0
        self.joint_fields: tuple[str, ...] = JOINT_FIELDS
        content = certain(path.read_bytes())
        try:
            self.lines = content.decode("ascii").rstrip().split("\n")
        except UnicodeDecodeError as error:
            self.number = content.count(b"\n", 0, error.start) + 1
            raise self.error(f"found the byte 0x{content[error.start]:02x}, expected ASCII text") from None

    def error(self, reason: str) -> SkeletonFileError:
        return SkeletonFileError(self.path, self.number, reason)

    def take(self, expected: str) -> list[str]:
        self.number += 1
        fields = self.lines[self.number - 1].split() if self.number <= len(self.lines) else []
        if not fields:
            found = "an empty line" if self.number < len(self.lines) else "the end of the file"
            raise self.error(f"found {found}, expected {expected}")
        return fields

    def count(self, expected: str) -> int:
        fields = self.take(expected)
        if len(fields) != 1 or not fields[0].isdigit() or len(fields[0]) > 9:
            raise self.error(f"found {_shown(' '.join(fields))}, expected {expected}")
        return int(fields[0])

    def fields(self, number: int, kind: str) -> list[str]:
        fields = self.take(f"the {number} numbers of a {kind}")
        if len(fields) != number:
            raise self.error(f"found {len(fields)} fields, expected the {number} numbers of a {kind}")
        return fields

    def numbers(self, names: Sequence[str], fields: Sequence[str]) -> dict[str, float]:
        try:
            return {name: _number(field) for name, field in zip(names, fields, strict=True)}
        except ValueError:
            name, field = next(pair for pair in zip(names, fields, strict=True) if not _is_number(pair[1]))
            raise self.error(f"found {_shown(field)}, expected a number ({name})") from None

    def joint(self) -> dict[str, float]:
        joint = self.numbers(self.joint_fields, self.fields(len(self.joint_fields), "joint"))
        for name in ("x", "y", "z"):
            if not abs(joint[name]) <= FLOAT32_MAX:  # NaN compares false
                raise self.error(f"found {name} = {joint[name]}, expected a finite position in metres")
        return joint

    def judge_width(self) -> None:
        """The first joint tells whether joints have x, y, z alone. A later one of three numbers is one cut off."""
        if self.number < len(self.lines) and len(self.lines[self.number].split()) == 3:
            self.joint_fields = JOINT_FIELDS[:3]

    def end(self, num_frames: int) -> None:
        if self.number < len(self.lines):
            self.number += 1
            found = _shown(self.lines[self.number - 1].strip())
            raise self.error(f"found {found}, expected the end of the file after {num_frames} frames")


def _number(text: str) -> float:
    """Of a field; ValueError if it is none. C's library of Windows writes what is no number as -1.#IND, and so on."""
    return math.nan if WINDOWS_NAN.fullmatch(text) else float(text)


def _is_number(text: str) -> bool:
    try:
        _number(text)
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
