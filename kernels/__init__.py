"""Triton kernels and their launchers. Importing this package imports neither Triton nor a driver.

mc.py       the launchers: what the library calls
prepare.py  sweep.py  combine.py  bank.py     one step of the MC loss each, in this order
products.py rows.py                           what they share: split products, blocks of rows
tiles.py    sizes of blocks by target
interpreter.py                                repairs Triton's interpreter, for machines without a GPU
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

MAX_DIM = 512
"""The widest features whose blocks fit a program."""


def unavailable_reason(device: torch.device) -> str | None:
    """Why the kernels cannot run for tensors on ``device``, as the end of a sentence; None if they can."""
    if find_spec("triton") is None:
        return "Triton is not importable (on Linux with an NVIDIA GPU: pip install triton)"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "the tensors are on the CPU, not on a GPU (TRITON_INTERPRET=1 in the environment interprets the kernels)"
    if device.type != "cuda":
        return f"the tensors are on {device}, not on a GPU"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return (
            f"{torch.cuda.get_device_name(device)} has no bfloat16 tensor cores (compute capability 8.0 or later has)"
        )
    return None
