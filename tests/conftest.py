"""What many tests share: small stores and small runs."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gpu_less import INTERPRETED

from fastmc.data.store import PackedStore, StoreWriter
from fastmc.skeleton import NTU25

INTERPRETED_TESTS = Path(__file__).resolve().parent / "interpreted"
torch.set_num_threads(1)  # the tests run in several processes
if INTERPRETED:
    from bench.interpreter import repair

    repair()


def pytest_configure(config: pytest.Config) -> None:
    """Triton decides when a kernel is declared whether it is interpreted: such tests have processes of their own."""
    folders = [Path(word.partition("::")[0]).resolve() for word in config.args]
    if not INTERPRETED and any(path.is_relative_to(INTERPRETED_TESTS) for path in folders):
        raise pytest.UsageError("these tests interpret kernels: TRITON_INTERPRET=1 python -m pytest tests/interpreted")


@pytest.fixture(autouse=True)
def the_same_numbers_each_time(request) -> None:
    """Random numbers of a test that names no seed follow from its name, and not from what ran before in its process."""
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))


def write_small_store(
    path: Path,
    clips: int = 48,
    classes: int = 3,
    seed: int = 0,
    subjects: tuple[int, ...] = (1, 2, 3, 4),
    lift: float = 0.0,
) -> PackedStore:
    """A store of clips whose class is the frequency of a swinging arm; every fifth has two bodies.
    With ``lift``, the arm is also higher by so many metres from class to class."""
    rng = np.random.default_rng(seed)
    pose = rng.normal(size=(25, 3)).astype(np.float32)
    with StoreWriter(
        path,
        name=path.name,
        skeleton=NTU25,
        fps=30.0,
        class_names=[f"swing {c}" for c in range(classes)],
        protocols={"xsub": {"field": "subject", "train": [1, 3]}, "xview": {"field": "camera", "train": [2, 3]}},
    ) as writer:
        for n in range(clips):
            label, frames, bodies = n % classes, int(rng.integers(20, 90)), 2 if n % 5 == 4 else 1
            time = np.arange(frames) / 30
            clip = np.broadcast_to(pose, (frames, bodies, 25, 3)).copy()
            clip[:, :, 4:12, 2] += np.sin(2 * np.pi * (1 + label) * time)[:, None, None] * 0.5
            clip[:, :, 4:8, 1] += lift * label
            clip += rng.normal(scale=0.01, size=clip.shape)
            writer.add(
                clip.astype(np.float32),
                name=f"clip{n:04d}",
                label=label,
                subject=subjects[n // classes % len(subjects)],
                camera=1 + n % 3,
            )
    return PackedStore.open(path)


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    """A data root that holds the store ``small``."""
    root = tmp_path_factory.mktemp("data")
    write_small_store(root / "small")
    return root


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What fastmc logs, whether a command has been at work in this process or not."""
    caplog.set_level(logging.INFO, "fastmc")
    logging.getLogger("fastmc").propagate = True
    return caplog


def exit_code(main: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Of a command, whether it was its command line that was refused or what was asked for."""
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python of this clone has run the code, with these variables beside those that are there."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="session")
def triton_cache(tmp_path_factory):
    """From here on, what Triton compiles is kept for this process's tests and begins empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@pytest.fixture
def nothing_compiled():
    """Afterwards: torch.compile gives up after some versions of one function in one process."""
    yield
    torch._dynamo.reset()
