"""Section e: loss and bank step by every provider, for both mixings and several banks: time and peak memory.

Each is timed as replays of a graph, where none waits for the host, and launch by launch; a provider's outputs are held
to the algebraic form in float64 first, which the tests hold to the plain reference.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from bench.gpu.clock import Call, Clock, Quartiles
from bench.gpu.section import Bench
from bench.memory import extra_device_bytes
from bench.parity import by_name, compare
from bench.providers import MIXES, PROVIDERS, Case, Inputs, Mix, Provider, draw

TABLE = "Loss and bank step"
NAMES, COMPILED = ("triton", "algebraic", "torch", "reference"), "compiled"
COMPILING = 40.0
"""Seconds that the first call of the compiled one is given: it comes last, and only for the product's bank."""


def run(bench: Bench) -> None:
    clock, sizes = Clock(bench.device), bench.sizes
    for bank in sizes.banks:
        times: dict[tuple[str, str], float] = {}
        for mix in MIXES:
            for name in NAMES:
                if bench.has(3, what := f"{PROVIDERS[name].says}, {mix} mixing, K = {bank:,}"):
                    times |= bench.attempt(what, measure, bench, clock, PROVIDERS[name], mix, bank) or {}
        if bank == sizes.bank and {("triton", "own"), ("reference", "own")} <= times.keys():
            bench.found.number("mc_vs_reference", times["reference", "own"] / times["triton", "own"])
    for mix in MIXES if not bench.rehearsal else ():
        if bench.has(COMPILING, what := f"{PROVIDERS[COMPILED].says}, {mix} mixing"):
            bench.attempt(what, measure, bench, clock, PROVIDERS[COMPILED], mix, sizes.bank)


def measure(bench: Bench, clock: Clock, provider: Provider, mix: Mix, bank: int) -> dict[tuple[str, str], float]:
    """A row of the table; seconds by (provider, mixing)."""
    case = bench.sizes.case(mix, bank)
    row: dict[str, Any] = {"K": f"{bank:,}", "mixing": mix, "provider": provider.says}
    free = torch.cuda.mem_get_info()[0] / 1e9 if clock.on_gpu else 4.0
    # The kernels are interpreted in a rehearsal, which a provider refuses on a CPU.
    reason = (provider.unavailable(bench.device) if clock.on_gpu else None) or provider.fits(case, 0.7 * free)
    if reason is not None:
        bench.found.row(TABLE, **row, note=f"left out: {reason}")
        return {}
    x = draw(case).to(bench.device, torch.float32)
    before = x.bank.clone()
    call = provider.bind(case, x)
    share = compare(provider, case, by_name(call(), x, before, case.work), exact(case, bench.device))
    seconds = max(0.05, min(1.0, bench.left() / 60))
    launched = clock.launched([call], seconds)
    replayed, note = replays(clock, call, seconds)
    best = replayed or launched
    bench.found.row(
        TABLE,
        **row,
        us_as_a_graph=None if replayed is None else 1e6 * replayed.median,
        us_launch_by_launch=1e6 * launched.median,
        quartiles=best.cells()["quartiles"],
        extra_MB=extra_device_bytes(call) / 1e6 if clock.on_gpu else None,
        **{"% of the error budget": 100 * share},
        note=note,
    )
    del x, before, call
    gc.collect()
    if clock.on_gpu:
        torch.cuda.empty_cache()
    return {(provider.name, mix): best.median}


def replays(clock: Clock, call: Call, seconds: float) -> tuple[Quartiles | None, str]:
    """Time as a graph, or none and why it cannot be captured."""
    try:
        return clock.replayed([call], seconds), ""
    except RuntimeError as error:
        return None, f"cannot be captured: {str(error).splitlines()[0][:120]}"


def exact(case: Case, device: torch.device) -> dict[str, torch.Tensor]:
    """Outputs by the algebraic form in float64, on the CPU."""
    x: Inputs = draw(case).to(device, torch.float64)
    before = x.bank.clone()
    outputs = PROVIDERS["algebraic"].bind(case, x)()
    return {name: value.cpu() for name, value in by_name(outputs, x, before, case.work).items()}
