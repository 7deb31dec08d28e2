"""What the tests in this folder share. They run where there is an NVIDIA GPU: make test-gpu."""

from __future__ import annotations

import os
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from train.run import choose_device

# cuBLAS and cuDNN give equal bits for equal calls only with a workspace of a fixed size; read before the first call.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# As a command finds it: the first one is the current device, and cuDNN's convolutions repeat.
DEVICE = choose_device("cuda") if torch.cuda.is_available() else torch.device("cuda")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs an NVIDIA GPU, and PyTorch sees none; make test-gpu runs this on one"
)


def to(value: Any, device: torch.device) -> Any:
    """Tensors, and dataclasses of them, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: to(getattr(value, f.name), device) for f in fields(value)})
    return value
