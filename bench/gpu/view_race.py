"""Section g: the four views of a batch by the kernels, by PyTorch, and by a loader's worker in numpy."""

from __future__ import annotations

from bench.gpu.section import Bench
from bench.measure import Timing
from bench.views import FASTMC, ViewsCase, race
from fastmc.parallel import usable_cores

TABLE = "Four views of a batch, random choices drawn within the time"


def run(bench: Bench) -> None:
    """All come to the same views first: no parity, no numbers. One after the other waits for the device."""
    sizes = bench.sizes
    seconds = 0.2 if bench.rehearsal else max(1.0, min(4.0, bench.left() / 6))
    threads = 1 if bench.rehearsal else usable_cores()
    timing = Timing(rounds=3 if bench.rehearsal else 25, seconds=seconds, threads=threads, device=bench.device.type)
    turns = race(ViewsCase(sizes.batch, sizes.frames, sizes.clips), timing)
    turns.run("views")
    for name, found in turns.found.items():
        low, high = found.quartiles
        bench.found.row(
            TABLE,
            by=name,
            ms=1e3 * found.median,
            quartiles=f"{1e3 * low:.4g} to {1e3 * high:.4g}",
            **{"% of the error budget": None if found.budget is None else 100 * found.budget},
            over_the_kernels=found.median / turns.found[FASTMC].median,
        )
    plain = min(found.median for name, found in turns.found.items() if name.startswith("numpy"))
    bench.found.number("views_vs_numpy", plain / turns.found[FASTMC].median)
    bench.found.note(
        f"numpy: one worker, the faster of two styles. {usable_cores()} cores are here; so many workers, never in each "
        f"other's way, would take {1e3 * plain / usable_cores():.3g} ms a batch"
    )
