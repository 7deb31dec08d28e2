"""Kernels are interpreted in a process of their own: Triton decides that when a kernel is declared."""

from __future__ import annotations

import pytest
from gpu_less import INTERPRETED


def pytest_configure() -> None:
    if not INTERPRETED:
        raise pytest.UsageError("these tests interpret kernels: TRITON_INTERPRET=1 python -m pytest tests/interpreted")
