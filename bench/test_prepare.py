"""Preparation of NTU clips, one thread: the fast reader against the plain one, on the same files in turns.

    pytest bench/test_prepare.py --benchmark-only

The files are written like the camera's software writes them (seven significant digits, 70 to 119 frames, two of the
eight with two bodies). Both readers have to give the same bits first; no parity, no numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmc.data.formats.skeleton_file import RawClip, read_skeleton
from fastmc.data.normalise import choose_bodies, normalise
from fastmc.reference import ntu as reference
from fastmc.skeleton import NTU25

ROUNDS = 15
Reader = Callable[[Path], RawClip]


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


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("skeletons")
    paths = [folder / f"S001C001P001R001A{i + 1:03d}.skeleton" for i in range(8)]
    for i, path in enumerate(paths):
        path.write_bytes(clip_text(rng, 70 + 7 * i, 2 if i % 4 == 3 else 1).encode())
    return paths


def read(path: Path, reader: Reader) -> RawClip:
    return reader(path)


def prepare(path: Path, reader: Reader) -> np.ndarray:
    return normalise(choose_bodies(reader(path)), NTU25)


def assert_same(files: list[Path]) -> None:
    for path in files:
        fast, plain = read_skeleton(path), reference.read_skeleton(path)
        assert (fast.num_frames, list(fast.bodies)) == (plain.num_frames, list(plain.bodies))
        for body_id, body in plain.bodies.items():
            assert fast.bodies[body_id].frames.tolist() == body.frames.tolist()
            assert fast.bodies[body_id].joints.tobytes() == body.joints.tobytes()


@pytest.mark.parametrize("work", [read, prepare])
def test_files_per_second(
    benchmark: Any, capsys: pytest.CaptureFixture[str], files: list[Path], work: Callable[[Path, Reader], Any]
) -> None:
    assert_same(files)
    plain_seconds = []

    def run_plain() -> None:  # before each round of the fast reader
        start = time.perf_counter()
        for path in files:
            work(path, reference.read_skeleton)
        plain_seconds.append(time.perf_counter() - start)

    def run_fast() -> None:
        for path in files:
            work(path, read_skeleton)

    benchmark.pedantic(run_fast, setup=run_plain, rounds=ROUNDS, warmup_rounds=2)
    fast, plain = (len(files) / seconds for seconds in (benchmark.stats.stats.median, np.median(plain_seconds)))
    size = sum(path.stat().st_size for path in files) / len(files) / 1e6
    benchmark.extra_info |= {"fast_files_per_s": fast, "plain_files_per_s": float(plain), "ratio": float(fast / plain)}
    with capsys.disabled():
        print(
            f"\n{work.__name__}: {fast:.0f} files/s, plain reader {plain:.0f} files/s, ratio {fast / plain:.1f} "
            f"(medians of {ROUNDS} rounds, {len(files)} files of {size:.2f} MB, one thread)"
        )
