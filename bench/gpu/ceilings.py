"""Section c: what this card does at most, by a large copy and by a large product of random bfloat16 numbers."""

from __future__ import annotations

import torch

from bench.gpu.clock import Clock, Quartiles
from bench.gpu.runner import nvidia_smi
from bench.gpu.section import Bench
from bench.ledger_rows import H100

COPY, PRODUCT = "copy_bytes_per_second", "bf16_flop_per_second"


def run(bench: Bench) -> None:
    seconds = max(0.2, min(2.0, bench.left() / 4))
    for name, rate, timing in measured(bench, seconds):
        is_copy = name == COPY
        what = "copy on the device, bytes read and written" if is_copy else "bf16 product of random numbers"
        size = f"{bench.sizes.copied / 1e9:.3g} GB" if is_copy else f"{bench.sizes.product} cubed"
        sheet = H100.memory if is_copy else H100.products["bf16"]
        bench.found.row(
            "Ceilings",
            what=what,
            size=size,
            **timing.cells("ms"),
            TB_or_TFLOP_per_second=rate / 1e12,
            **{"% of an H100 SXM's data sheet": 100 * rate / sheet},
        )
        bench.found.number(name, rate)
    if clocks := nvidia_smi():
        bench.found.note(f"right after: {', '.join(f'{n} {v}' for n, v in clocks.items() if n.startswith('clocks'))}")


def of(bench: Bench) -> dict[str, float]:
    """Those that section c has found, or a short look of this process's own."""
    known = bench.numbers_of("c")
    if COPY in known and PRODUCT in known:
        return {name: known[name] for name in (COPY, PRODUCT)}
    return {name: rate for name, rate, _ in measured(bench, 0.3)}


def measured(bench: Bench, seconds: float) -> list[tuple[str, float, Quartiles]]:
    """Name, rate and time of either."""
    copy, moved = time_copy(bench, seconds)
    product, operations = time_product(bench, seconds)
    return [(COPY, moved / copy.median, copy), (PRODUCT, operations / product.median, product)]


def time_copy(bench: Bench, seconds: float) -> tuple[Quartiles, int]:
    """And the bytes read and written."""
    source = torch.empty(bench.sizes.copied // 4, device=bench.device).normal_()
    target = torch.empty_like(source)
    return Clock(bench.device).launched([lambda: target.copy_(source)], seconds), 2 * source.nbytes


def time_product(bench: Bench, seconds: float) -> tuple[Quartiles, int]:
    """And its operations. On zeros it could be faster."""
    n = bench.sizes.product
    a, b = (torch.randn(n, n, device=bench.device).bfloat16() for _ in range(2))
    return Clock(bench.device).launched([lambda: torch.mm(a, b)], seconds), 2 * n**3
