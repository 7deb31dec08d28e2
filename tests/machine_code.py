"""What holds for the machine code of every kernel, by target."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.aot import Launch, compile_launches, report
from bench.resources import Report

SHARED_KIB = {"cuda:80": 163, "cuda:86": 99, "cuda:90": 227, "cuda:100": 227, "hip:gfx942": 64}
TARGETS = tuple(SHARED_KIB)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


def compiled(
    target: str,
    call: Callable[[], object],
    *,
    spilled: int | None = 0,
    warps: int = 8,
    adds_up: Callable[[Launch], bool] = lambda launch: False,
) -> list[Report]:
    """Of what ``call`` launches: spills at most so many bytes a thread (None: any), resides with so many warps at
    least, fits into shared memory, and has atomics just where programs add up."""
    with compile_launches(target) as launches:
        call()
    found = [report(one) for one in launches]
    for one, r in zip(launches, found, strict=True):
        assert r.shared_bytes <= SHARED_KIB[target] * 1024, f"{r.name}: {r.shared_bytes} bytes of shared memory"
        assert target.startswith("hip") or r.resident_warps >= warps, f"{r.name}: {r.resident_warps} warps"
        assert (r.counts.get("ATOM", 0) > 0) == adds_up(one), f"{r.name}: {r.counts.get('ATOM')} atomics"
        if spilled is not None:
            assert r.spilled_bytes <= spilled, f"{r.name}: {r.spilled_bytes} bytes spilled"
            assert (r.local_bytes > 0) == (r.spilled_bytes > 0), f"{r.name}: {r.local_bytes} bytes of local memory"
    return found
