"""Preparation of NTU clips, one thread, by the fast reader and by the plain one, on the same files:
pytest bench/test_prepare.py --benchmark-only.

The files are written like the camera's software writes them (seven significant digits, 70 to 119 frames, two of the
eight with two bodies). Both readers have to give the same bits first; no parity, no numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bench.measure import Timing, Turns
from bench.parity import ParityError
from bench.rows import Piece, TimeRow, rows
from fastmc.data.formats.skeleton_file import RawClip, read_skeleton
from fastmc.data.normalise import choose_bodies, normalise
from fastmc.reference import ntu as reference
from fastmc.skeleton import NTU25

Reader = Callable[[Path], RawClip]
PLAIN, FAST = "line by line", "fastmc"
READERS: dict[str, Reader] = {PLAIN: reference.read_skeleton, FAST: read_skeleton}


def body_lines(rng: np.random.Generator, body_id: int, joints: np.ndarray) -> list[str]:
    """One body of one frame; joints (25, 3) in metres, as the depth camera sees them."""
    x, y, z = joints.T
    depth, colour = (256 + 365 * x / z, 212 - 365 * y / z), (960 + 1060 * x / z, 540 - 1060 * y / z)
    rows = np.stack([x, y, z, *depth, *colour, *rng.uniform(-1, 1, (4, 25))], axis=1)
    lean = " ".join(f"{value:.7g}" for value in rng.uniform(-0.2, 0.2, 2))
    lines = [f"{body_id} 0 1 1 1 1 0 {lean} 2", "25"]
    return lines + [" ".join(f"{value:.7g}" for value in row) + " 2" for row in rows.tolist()]


def clip_text(rng: np.random.Generator, num_frames: int, num_bodies: int) -> str:
    joints = rng.normal([0.2, 0, 3.5], [0.25, 0.5, 0.1], (num_bodies, 25, 3))
    lines = [str(num_frames)]
    for _ in range(num_frames):
        joints += rng.normal(size=joints.shape) * 0.01
        lines.append(str(num_bodies))
        for m in range(num_bodies):
            lines += body_lines(rng, 72057594037931101 + m, joints[m])
    return "\r\n".join(lines) + "\r\n"


def write_files(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"S001C001P001R001A{i + 1:03d}.skeleton" for i in range(8)]
    for i, path in enumerate(paths):
        path.write_bytes(clip_text(rng, 70 + 7 * i, 2 if i % 4 == 3 else 1).encode())
    return paths


class OnFiles(Turns):
    """Both readers on the same files, which are there until it is closed."""

    def __init__(self, timing: Timing, work: Callable[[Path, Reader], object]) -> None:
        super().__init__(timing)
        self._folder = tempfile.TemporaryDirectory()
        paths = write_files(Path(self._folder.name))
        check_same(paths)

        def call(reader: Reader) -> list[object]:
            return [work(path, reader) for path in paths]

        for name, reader in READERS.items():
            self.enter(name, partial(call, reader))

    def close(self) -> None:
        self._folder.cleanup()


def read(path: Path, reader: Reader) -> RawClip:
    return reader(path)


def prepare(path: Path, reader: Reader) -> np.ndarray:
    return normalise(choose_bodies(reader(path)), NTU25)


def check_same(paths: list[Path]) -> None:
    """ParityError unless both give the same bits."""
    for path in paths:
        fast, plain = read_skeleton(path), reference.read_skeleton(path)
        same = (fast.num_frames, list(fast.bodies)) == (plain.num_frames, list(plain.bodies)) and all(
            fast.bodies[body_id].frames.tolist() == body.frames.tolist()
            and fast.bodies[body_id].joints.tobytes() == body.joints.tobytes()
            for body_id, body in plain.bodies.items()
        )
        if not same:
            raise ParityError(f"the two readers do not read the same from {path.name}, so there are no numbers")


def piece(short: str, work: Callable[[Path, Reader], object]) -> Piece:
    names = {name: name for name in READERS}
    return Piece(f"eight .skeleton files: {short}", names, partial(OnFiles, work=work), reference=PLAIN, short=short)


@rows(piece("read", read), piece("read, bodies chosen, normalised", prepare))
def test_skeleton_files(time_row: TimeRow, piece: Piece, row: str) -> None:
    time_row(piece, row)
