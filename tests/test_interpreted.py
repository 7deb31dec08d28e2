"""Runs, in processes of their own, the tests whose kernels Triton must interpret: the folder ``interpreted``, and again
those here that take ``kernels_on_cpu`` and so hold for either engine. By hand: TRITON_INTERPRET=1 pytest FILE."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu_less import INTERPRETED, needs_triton, run_interpreted

HERE = Path(__file__).parent
AGAIN = ("test_gpu_less.py",)
FILES = sorted((HERE / "interpreted").glob("test_*.py")) + [HERE / name for name in AGAIN]


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="is interpreted itself")
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_interpreted(file):
    run_interpreted(file)
