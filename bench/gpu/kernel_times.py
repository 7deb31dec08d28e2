"""Section d: time of every kernel at the product's size, what share of its ceiling that is, and other sizes of tiles.

A kernel's own time comes from PyTorch's profiler, over launches that go through sets of inputs which together exceed
the L2. Loss and bank step as a whole are timed as replays of a graph, on one set of inputs (warm) and on all (cold:
what a training step meets, whose recurrent nets have moved gigabytes since the last one). Bytes and operations are
those of the ledger, counted on a core of the host meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from threading import Thread
from typing import Any

import torch

from bench.gpu import candidates, ceilings
from bench.gpu.clock import Call, Clock, Quartiles, kernel_seconds
from bench.gpu.section import Bench, Result
from bench.gpu.smoke import check_step, update_of
from bench.ledger_data import THINGS, DataStep
from bench.ledger_mc import McStep, compulsory
from bench.ledger_rows import H100, count_rows
from bench.providers import MIXES, Mix
from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.skeleton import NTU25

PRECISION = "bf16x3"
STEP, DATA = "Loss and bank step, all launches", "Views, choices and attack"
KERNELS, CEILING = "Kernels alone", "Shares of their ceilings"


@dataclass(frozen=True)
class Counted:
    """The launches of a step around its encoders, for the ledger: first the loss and the bank step, then the data's."""

    mc: McStep
    data: DataStep

    def launch(self, device: str) -> None:
        self.mc.launch(device)
        self.data.launch(device)


def run(bench: Bench) -> None:
    clock, sizes = Clock(bench.device), bench.sizes
    data = DataStep(sizes.batch, sizes.frames, sizes.bodies, "float32", "joint")
    counts = in_background(count_rows, Counted(McStep(sizes.case(), PRECISION), data), PRECISION)
    ahead = candidates.Ahead(sizes, PRECISION) if clock.on_gpu else None
    most = ceilings.of(bench)
    measured: dict[str, tuple[float, float]] = {}
    for mix in MIXES:
        measured |= bench.attempt(f"loss and bank step, {mix} mixing", time_step, bench, clock, mix, most) or {}
    measured |= bench.attempt(DATA, time_data, bench, clock, data) or {}
    bench.attempt("update of the weights", time_update, bench, clock, most)
    bench.attempt("other tiles", candidates.run, bench, clock, PRECISION, ahead)
    bench.attempt(CEILING, shares, bench, counts, measured, most)


def in_background(action: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """In a thread that nobody waits for, not even the end of the process."""
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(action(*arguments))
        except Exception as error:
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


def least(moved: float, flops: float, exponentials: float, most: Mapping[str, float]) -> tuple[float, str]:
    """Seconds that so much takes on this card at least, and what bounds it."""
    bounds = {
        "copy": moved / most[ceilings.COPY],
        "bf16 product": flops / most[ceilings.PRODUCT],
        "exponentials, 16 a clock and multiprocessor of an H100": exponentials / H100.exponentials,
    }
    bound = max(bounds, key=lambda kind: bounds[kind])
    return bounds[bound], bound


def time_step(bench: Bench, clock: Clock, mix: Mix, most: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Seconds and launches of its kernels; of own mixing only, which is what the ledger counts here."""
    case, seconds = bench.sizes.case(mix), min(2.0, bench.left() / 20)
    check_step(bench, mix, PRECISION)  # no parity, no numbers
    calls = candidates.step_calls(bench.sizes, mix, PRECISION, bench.device, bench.sizes.input_sets)
    ways: tuple[tuple[str, Callable[..., Quartiles], Sequence[Call]], ...] = (
        (f"as a graph, {len(calls)} sets of inputs (cold)", clock.replayed, calls),
        ("as a graph, one set (warm)", clock.replayed, calls[:1]),
        ("launch by launch, one set", clock.launched, calls[:1]),
    )
    for way, time_it, of in ways:
        timing = time_it(of, seconds)
        bench.found.row(STEP, mixing=mix, way=way, **timing.cells())
        if way.endswith("(cold)") and mix == "own":
            bench.found.number("mc_seconds", timing.median)
            needed = compulsory(case)
            floor, _ = least(needed["bytes"], 3 * needed["flops"], needed["exponentials"], most)
            bench.found.number("mc_of_ceiling", floor / timing.median)
    return kernels_of(bench, calls, mix) if clock.on_gpu else {}


def kernels_of(bench: Bench, calls: Sequence[Call], what: str) -> dict[str, tuple[float, float]]:
    """Rows of the kernels that the calls launch."""
    found = kernel_seconds(calls, rounds=10)
    for name, (seconds, launches) in found.items():
        bench.found.row(KERNELS, of=what, kernel=name, us=1e6 * seconds, launches_a_call=launches)
    return found if what != "tiled" else {}


def time_data(bench: Bench, clock: Clock, data: DataStep) -> dict[str, tuple[float, float]]:
    """Seconds of what the ledger's piece "data" makes, by its name there."""
    measured: dict[str, tuple[float, float]] = {}
    things = iter(zip(THINGS, data.compulsory(), strict=True))

    def each(call: Call) -> Any:
        made, needed = next(things)
        result = call()
        timing = clock.best([call], min(0.5, bench.left() / 40))
        own = kernel_seconds([call], rounds=20) if clock.on_gpu else {}
        alone = sum(seconds * launches for seconds, launches in own.values()) or timing.median
        cells = {"kernel": ", ".join(own), "us_of_the_kernel_alone": 1e6 * alone, "MB_it_must_move": needed / 1e6}
        bench.found.row(DATA, makes=made, **timing.cells(), **cells)
        measured[made] = (alone, 1.0)
        return result

    data.make(bench.device.type, "triton", each)
    return measured


def time_update(bench: Bench, clock: Clock, most: Mapping[str, float]) -> None:
    """SGD, eq. 4 and the copies, of all weights of the recurrent nets: they are read and written once."""
    config, shape = BiGRUConfig(bench.sizes.encoder), ClipShape(NTU25.num_joints, bench.sizes.bodies)
    with torch.device("meta"):
        shapes = [weight.shape for weight in BiGRU(config, shape).recurrent.parameters()]
    call, tensors = update_of(shapes, bench.device)
    timing = clock.best([call], min(1.0, bench.left() / 40))
    read = sum(w.nbytes for name, same in tensors.items() if not name.endswith("copy") for w in same)
    written = sum(w.nbytes for name, same in tensors.items() if name != "gradient" for w in same)
    floor, bound = least(read + written, 0.0, 0.0, most)
    bench.found.row(
        CEILING,
        what="_update_kernel",
        MB=(read + written) / 1e6,
        us_at_least=1e6 * floor,
        bound_by=bound,
        us=1e6 * timing.median,
        **{"% of the ceiling": 100 * floor / timing.median},
    )


def shares(
    bench: Bench,
    counts: Future[list[dict[str, Any]]],
    measured: Mapping[str, tuple[float, float]],
    most: Mapping[str, float],
) -> None:
    """Each launch beside the least time that its counted bytes, products and exponentials leave it on this card."""
    try:
        rows = counts.result(timeout=max(1.0, bench.left()))
    except NotYet:
        bench.found.note("left out for want of time: counting bytes and operations, hence shares of the ceilings")
        return
    names = [row["kernel"] for row in rows[: len(rows) - len(THINGS)]] + list(THINGS)
    for row, name in zip(rows, names, strict=True):
        floor, bound = least(row["first_touch_bytes"], row["flops"], row["exponentials"], most)
        seconds = measured.get(name, (None, 0))[0]
        bench.found.row(
            CEILING,
            what=name,
            programs=row["programs"],
            MB=row["first_touch_bytes"] / 1e6,
            GFLOP=row["flops"] / 1e9,
            us_at_least=1e6 * floor,
            bound_by=bound,
            us=None if seconds is None else 1e6 * seconds,
            **{"% of the ceiling": None if seconds is None else 100 * floor / seconds},
        )
