"""The numbers that the authors' codes give for small inputs, ../shared/golden: read, and put into encoders of ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmc.encoders.base import Encoder
from fastmc.encoders.released_names import released_state

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason=f"needs {GOLDEN}, which the repository does not ship")


def golden(name: str) -> dict[str, Tensor]:
    """Tensors by their keys, in the dtype of the file."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def part_of(found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries whose keys begin so, in names with dots, without the beginning."""
    return {k.removeprefix(prefix).replace("/", "."): v for k, v in found.items() if k.startswith(prefix)}


def fill(encoder: Encoder, theirs: Mapping[str, Tensor]) -> Encoder:
    """The encoder, in float64, with these weights; its head is left as it was drawn."""
    encoder.double()
    given = released_state(encoder, theirs)
    left = encoder.load_state_dict(given, strict=False)
    missing = [name for name in left.missing_keys if not name.startswith("head.") and "num_batches" not in name]
    assert not missing and not left.unexpected_keys, (missing, left.unexpected_keys)
    return encoder


def near(found: Tensor, wanted: Tensor, share: float) -> float:
    """The largest deviation as a share of the largest number, which it asserts to be below ``share``."""
    found, wanted = found.detach(), wanted.to(found.dtype).view_as(found)
    off = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))
    assert off <= share, f"off by {off:.1e} of the largest, {share:.0e} is allowed"
    return off
