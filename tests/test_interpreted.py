"""Runs, in processes of their own, the tests whose kernels Triton must interpret: the folder ``interpreted``, and again
those here that hold for either engine, or for a step whether our kernel updates the weights or PyTorch. By hand:
TRITON_INTERPRET=1 pytest FILE."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu_less import INTERPRETED, needs_triton, run_interpreted

HERE = Path(__file__).parent
OF_THE_STEP = " or ".join(
    ("replayed", "trace", "complete", "captured", "fault", "clean", "cast_once", "somebody", "overflow", "resumed")
    + ("divided",)
)
AGAIN = {f"test_{name}.py": () for name in ("gpu_less", "views", "attack_kernel", "update_kernel")}
AGAIN |= {"test_step.py": ("-k", OF_THE_STEP)}
CALLS = [(file, ()) for file in sorted((HERE / "interpreted").glob("test_*.py"))] + [
    (HERE / name, arguments) for name, arguments in AGAIN.items()
]


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="is interpreted itself")
@pytest.mark.parametrize(("file", "arguments"), CALLS, ids=[file.stem for file, _ in CALLS])
def test_interpreted(file, arguments):
    run_interpreted(file, *arguments)
