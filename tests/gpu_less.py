"""Run Triton kernels in tests on a machine without a GPU.

Three engines, and what each is for:

- ``ttsem_session()``: compiles a launch to Triton's IR and executes that on the CPU: the right rounding everywhere,
  faults for out-of-bounds accesses and races. In any test process.
- the interpreter (``bench.watch``): counts and checks. Triton decides at ``@triton.jit`` whether a kernel is
  interpreted, so it needs a process of its own: ``run_interpreted(test_file)``, as tests/test_interpreted.py does.
- ``bench.aot.compile_launches``: compiles to the machine code of a GPU, and runs nothing. In any test process.

``kernels_on_cpu()`` is whichever of the first two this process has.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _without_ttsem() -> str:
    """Why ttsem cannot run here, or nothing."""
    if INTERPRETED:
        return "kernels are interpreted here, ttsem compiles them"
    if find_spec("triton") is None or find_spec("ttsem") is None:
        return "ttsem is not installed (make test installs it)"
    if Version(version("triton")) < Version("3.7"):
        return "ttsem needs triton 3.7"
    return ""


def spilled_by_triton_3_6(most: int) -> int:
    """Bytes a thread, stores and loads together, that this Triton may spill where 3.7 has to spill none: 3.6 needs some
    registers more for the same kernel."""
    return most if Version(version("triton")) < Version("3.7") else 0


needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
needs_compiler = pytest.mark.skipif(
    find_spec("triton") is None or INTERPRETED, reason="Triton is not installed, or interprets kernels here"
)
needs_ttsem = pytest.mark.skipif(bool(_without_ttsem()), reason=_without_ttsem() or "runs")
needs_engine = pytest.mark.skipif(not INTERPRETED and bool(_without_ttsem()), reason=_without_ttsem() or "runs")


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that torch.empty and its kin hand out holds NaN, so that what a kernel never stores is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # the switch that fills fresh memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@contextlib.contextmanager
def ttsem_session(cc: int = 90) -> Iterator[Any]:
    """Launches inside run through ttsem, as for compute capability ``cc``; the launchers get CPU tensors.

    Fails if nothing was launched, and if a launch was too large for its races to be checked. Tensors should own their
    storage (bounds are the storage's) and hold distinct values (a store of the value already there counts as no race).
    """
    import triton
    from ttsem import mlir, sanitize
    from ttsem._fakedriver import unstub_torch_cuda

    # It has MLIR print in generic notation, once per process; a compile for AMD in between resets LLVM's options.
    mlir._generic_printing_enabled[0] = False

    driver = triton.runtime.driver
    active = driver._active
    try:
        with poisoned_memory(), sanitize.session(cc=cc, cuda_is_cpu=False) as session:
            yield session
    finally:  # the session leaves its stand-ins for the driver and for torch.cuda behind
        driver._active = active
        unstub_torch_cuda()
    assert session.launches > 0, "no kernel was launched"
    assert session.races_unchecked == 0, "a launch is too large for ttsem to check its races"


@contextlib.contextmanager
def kernels_on_cpu(cc: int = 90) -> Iterator[Any]:
    """Launches inside run on the CPU, checked for bounds and races, by the engine that this process has."""
    if not INTERPRETED:
        with ttsem_session(cc) as session:
            yield session
        return
    from bench.watch import watch

    with poisoned_memory(), watch() as seen:
        yield seen
    assert seen.launches, "no kernel was launched"


def run_interpreted(file: Path, *arguments: str) -> None:
    """pytest on one file, in a process whose kernels are interpreted; its failure is the caller's, with its report."""
    ours = ("PYTEST_", "TRITON_", "OMP_")  # an outer xdist worker's identity must not leak
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rs", str(file), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{file.name} interpreted:\n{done.stdout}\n{done.stderr}", pytrace=False)
