"""Sizes of blocks and launches, by target and width of the features: one fixed choice, so that results repeat.

They were chosen by compiling, not by timing: at D = 128 and the default precision nothing spills on sm_80 and sm_90,
and 8 warps stay resident (`python -m bench.ledger` shows it). What a launch sums in which order depends on them, so
bits differ between targets, never between runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton


@dataclass(frozen=True)
class Tiles:
    """Of one target, one padded width BLOCK_D and one precision."""

    sweep_rows: int
    """Queries of a program of the sweep."""
    sweep_entries: int
    """Bank rows of a tile of the sweep."""
    sweep_warps: int
    programs: int
    """Programs of the sweep that run at the same time on the chip that the target stands for."""
    bank_samples: int
    """Samples that a tile of the bank's step meets at a time."""
    bank_entries: int
    """Bank rows of a tile of the bank's step."""
    bank_warps: int


def tiles(target: str, block_d: int, precision: str) -> Tiles:
    """For target ``"hopper"`` (sm_90 and later), ``"ampere"`` (sm_80 and others) or ``"amd"``."""
    if precision == "ieee":  # multiply-adds instead of tensor cores: what is held in registers must be small
        return Tiles(16, 16, 4, 1024, 16, 16, 4)
    if target == "hopper":
        if block_d <= 128:
            return Tiles(128, 32, 8, 128, 32, 64, 8)
        return Tiles(64, 16, 8, 128, 16, 32, 8)
    return Tiles(64, 32, 8, 104, 16, 64, 8) if block_d <= 128 else Tiles(32, 16, 8, 104, 16, 16, 8)


def current_target() -> str:
    """What the launch that comes next is compiled for; under the interpreter, "hopper"."""
    if triton.knobs.runtime.interpret:
        return "hopper"
    target = triton.runtime.driver.active.get_current_target()
    if target.backend != "cuda":
        return "amd"
    return "hopper" if target.arch >= 90 else "ampere"
