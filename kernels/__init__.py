"""Triton kernels and their launchers. Importing this package imports neither Triton nor a driver."""

from __future__ import annotations

from importlib.util import find_spec

import torch


def unavailable_reason() -> str | None:
    """Why the MC-loss kernels cannot run here, as the end of a sentence; None if they can."""
    if find_spec("triton") is None:
        return "Triton is not importable (on Linux with an NVIDIA GPU: pip install triton)"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    return "this version ships no MC-loss kernel yet"
