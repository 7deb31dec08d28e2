"""Sizes of blocks and launches, by target and width of the features: one fixed choice, so that results repeat.

They were chosen by compiling, not by timing, at D = 128 and the default precision: 8 warps stay resident, on an H100 as
two programs; products are made once; loops hold few barriers and next to no local memory (see `python -m
bench.ledger`). What a launch sums in which order depends on them and on the class of the card (`multiprocessors`), so
bits differ between targets and classes, never between runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
import triton


@dataclass(frozen=True)
class Tiles:
    """Of one target, one padded width BLOCK_D and one precision."""

    sweep_rows: int
    """Queries of a program of the sweep."""
    sweep_entries: int
    """Bank rows of a tile of the sweep."""
    sweep_warps: int
    sweep_stages: int
    """Tiles in flight: 1 loads a tile when it is wanted, more load ahead into shared memory."""
    sweep_programs: int
    """Programs of the sweep that run at the same time on a multiprocessor."""
    sweep_fold: int
    """Sums that the sweep keeps a row in, at least 1: with more, threads exchange less and hold more."""
    bank_samples: int
    """Samples that a tile of the bank's step meets at a time."""
    bank_entries: int
    """Bank rows of a tile of the bank's step."""
    bank_warps: int
    bank_stages: int
    """Blocks of samples in flight."""


def tiles(target: str, block_d: int, precision: str, mix: str) -> Tiles:
    """For a target as :func:`current_target` names it."""
    # sweep: queries, entries, warps, stages, programs, fold; bank: samples, entries, warps, stages
    if precision == "ieee":  # multiply-adds instead of tensor cores: what is held in registers must be small
        return Tiles(16, 16, 4, 1, 8, 1, 16, 16, 4, 1)
    if block_d > 256:
        return Tiles(16, 16, 8, 1, 1, 1, 16, 16, 8, 1)
    if block_d > 128:
        return Tiles(32, 32, 8, 1, 1, 1, 32, 16, 8, 1)
    chosen = {
        "hopper": Tiles(64, 32, 4, 2, 2, 8, 32, 64, 4, 2),
        "blackwell": Tiles(64, 64, 8, 1, 1, 1, 32, 64, 8, 3),
        "ampere": Tiles(64, 64, 8, 2, 1, 1, 64, 32, 8, 2),
        "consumer": Tiles(64, 32, 8, 2, 1, 1, 64, 32, 8, 2),
        "amd": Tiles(64, 32, 8, 1, 1, 1, 16, 64, 8, 1),
    }[target]
    # Under tiled mixing, loading ahead beside the tiles of c would spill.
    return replace(chosen, bank_stages=1) if mix == "tiled" and target != "hopper" else chosen


def multiprocessors(device: torch.device) -> int:
    """Of a GPU, rounded down to a multiple of 8, so that bits repeat between its variants; an H100's 132 elsewhere."""
    return _count(device.index or 0) if device.type == "cuda" else 132 // 8 * 8


@cache
def _count(index: int) -> int:
    return max(8, torch.cuda.get_device_properties(index).multi_processor_count // 8 * 8)


def current_target() -> str:
    """What the launch that comes next is compiled for; "hopper" under the interpreter.

    ampere: sm_80 (A100). hopper: sm_90 (H100, H200). blackwell: sm_100, sm_103 (B200, B300). consumer: sm_86, sm_89,
    sm_120 and what else has 99 KiB of shared memory for a program (RTX 30, 40, 50, A10, L40). amd: any of AMD's.
    """
    if triton.knobs.runtime.interpret:
        return "hopper"
    target = triton.runtime.driver.active.get_current_target()
    if target.backend != "cuda":
        return "amd"
    return {80: "ampere", 90: "hopper", 100: "blackwell", 103: "blackwell"}.get(target.arch, "consumer")
