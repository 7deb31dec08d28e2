"""Other sizes of tiles than kernels/tiles.py has for this card, checked and timed; and what it should have, as code.

``python -m bench.gpu.candidates JOB`` compiles some of them, so that cores of the host work side by side while the GPU
is measured: a launch then finds its kernel in Triton's cache.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch

from bench.counting import step_arguments
from bench.gpu.clock import Call, Clock
from bench.gpu.section import Bench
from bench.gpu.sizes import Sizes
from bench.gpu.smoke import off, outputs
from bench.parity import BUDGET
from bench.providers import ASCENT, MIXES, SPLIT_ROUNDING, Mix, draw
from fastmc.objective import chunked
from fastmc.parallel import usable_cores

TABLE, LISTING = "Tiles: time of loss and bank step, cold, as a graph", "For kernels/tiles.py"
Changes = Mapping[str, int]
TODAY: Changes = MappingProxyType({})
SWEEP: tuple[Changes, ...] = (
    {"sweep_rows": 64, "sweep_entries": 32, "sweep_warps": 4, "sweep_stages": 2},
    {"sweep_rows": 128, "sweep_entries": 32, "sweep_warps": 8, "sweep_stages": 3},
    {"sweep_rows": 64, "sweep_entries": 64, "sweep_warps": 4, "sweep_stages": 2},
    {"sweep_rows": 128, "sweep_entries": 64, "sweep_warps": 8, "sweep_stages": 2},
    {"sweep_rows": 64, "sweep_entries": 32, "sweep_warps": 4, "sweep_stages": 3},
    {"sweep_programs": 1},
    {"sweep_programs": 3},
)
"""Of the sweep, in place of today's choice."""
BANK: tuple[Changes, ...] = (
    {"bank_samples": 32, "bank_entries": 128, "bank_warps": 8, "bank_stages": 3},
    {"bank_samples": 32, "bank_entries": 64, "bank_warps": 4, "bank_stages": 2},
    {"bank_samples": 32, "bank_entries": 64, "bank_warps": 8, "bank_stages": 3},
    {"bank_samples": 64, "bank_entries": 64, "bank_warps": 8, "bank_stages": 2},
    {"bank_samples": 16, "bank_entries": 128, "bank_warps": 8, "bank_stages": 3},
    {"bank_samples": 64, "bank_entries": 32, "bank_warps": 4, "bank_stages": 2},
)
"""Of the bank's step."""
IN_TURN: tuple[tuple[str, Changes], ...] = tuple(
    (part, changes)
    for pair in itertools.zip_longest(SWEEP, BANK)
    for part, changes in zip(("sweep", "bank"), pair, strict=True)
    if changes is not None
)
REHEARSED = (("sweep", SWEEP[0]), ("bank", BANK[0]))
NOISE = 0.02
"""By what share of its time a candidate has to be faster."""
SPARE = 4
"""Cores that compiling leaves to what is measured meanwhile."""


def run(bench: Bench, clock: Clock, precision: str, ahead: Ahead | None) -> None:
    """Own mixing first. A candidate that does not compile or is wrong is a row that says so."""
    if ahead is not None:
        bench.found.note(ahead.wait(0.35 * bench.left()))
    lines: list[str] = []
    for mix in MIXES:
        least: dict[str, float] = {}
        best: dict[str, Changes] = {}
        with chosen(TODAY) as today:
            outputs(_step(), bench.sizes.case(mix), precision, bench.device)
        others = [one for one in (REHEARSED if bench.rehearsal else IN_TURN) if not is_in(one[1], today)]
        for part, changes in (("all", TODAY), *others):
            if not bench.has(4, f"tiles under {mix} mixing: {dict(changes) or 'of today'}"):
                continue
            seconds = attempt(bench, clock, mix, precision, part, changes)
            if changes == TODAY:
                least = dict.fromkeys(("sweep", "bank"), seconds or float("inf"))
            elif seconds is not None and seconds < (1 - NOISE) * least.get(part, 0.0):
                least[part], best[part] = seconds, changes
        if least:
            together = {name: value for changes in best.values() for name, value in changes.items()}
            if together:
                attempt(bench, clock, mix, precision, "the best of either", together)
            with chosen(together) as made:
                check(bench, mix, precision)
            lines += [f"# {mix} mixing, {precision}: {together or 'as today'}", *map(repr, dict.fromkeys(made))]
            bench.found.listing(LISTING, "\n".join(lines))


def is_in(changes: Changes, made: Sequence[Any]) -> bool:
    """Whether all choices that were made have these values."""
    return all(getattr(one, name, None) == value for one in made for name, value in changes.items())


def attempt(bench: Bench, clock: Clock, mix: Mix, precision: str, part: str, changes: Changes) -> float | None:
    """Seconds of a step with these changes, in a row of the table; None if it cannot run or is wrong."""
    row: dict[str, Any] = {"mixing": mix, "part": part, "changes": str(dict(changes)) if changes else "today's choice"}
    try:
        with chosen(changes):
            check(bench, mix, precision)
            calls = step_calls(bench.sizes, mix, precision, bench.device, bench.sizes.input_sets)
            timing = clock.replayed(calls, min(0.4, max(0.05, bench.left() / 60)))
    except Exception as error:
        words = (str(error) or repr(error)).splitlines()[0][:160]
        bench.found.row(TABLE, **row, us=None, quartiles=f"{type(error).__name__}: {words}")
        return None
    bench.found.row(TABLE, **row, **timing.cells())
    return timing.median


def step_calls(sizes: Sizes, mix: Mix, precision: str, device: torch.device, sets: int) -> list[Call]:
    """The same step on so many sets of inputs: each is cold, if together they exceed the L2."""
    case, step = sizes.case(mix), _step()

    def call_on(seed: int) -> Call:
        arguments: dict[str, Any] = step_arguments(draw(case, seed).to(device, torch.float32), case, precision)
        return lambda: step(**arguments)

    return [call_on(seed) for seed in range(sets)]


def _step() -> Callable[..., Any]:
    from kernels.mc import contrast_step_  # here, since importing it decides how Triton runs

    return contrast_step_


def check(bench: Bench, mix: Mix, precision: str) -> None:
    """AssertionError if the step is off by more than the gate of bench/parity.py allows."""
    case = bench.sizes.case(mix)
    key = (case, bench.device)
    if key not in _truths:
        truth = outputs(chunked.contrast_step_, case, "ieee", bench.device, torch.float64)
        _truths[key] = {name: value.cpu() for name, value in truth.items()}
    found = outputs(_step(), case, precision, bench.device)
    for name, exact in _truths[key].items():
        allowed = BUDGET * SPLIT_ROUNDING / ASCENT["temperature"] * float(exact.abs().max())
        error = off(found[name], exact)
        assert error <= allowed, f"{name} is off by {error:.1e}, allowed are {allowed:.1e}"


_truths: dict[Any, dict[str, torch.Tensor]] = {}


@contextmanager
def chosen(changes: Changes) -> Iterator[list[Any]]:
    """Within: the tables' choice with these changes, wherever a module of the kernels asks for it. Gives the choices
    that were made.

    Raises:
        TypeError: a change names no field of `kernels.tiles.Tiles`.
    """
    from kernels import mc, tiles  # here, since importing it decides how Triton runs

    assert mc
    original, made = tiles.tiles, []

    def patched(*arguments: Any, **named: Any) -> Any:
        made.append(replace(original(*arguments, **named), **changes))
        return made[-1]

    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("kernels.") and getattr(module, "tiles", None) is original:
                stack.enter_context(mock.patch.object(module, "tiles", patched))
        yield made
    assert changes == TODAY or made, "nobody has asked for the size of tiles: the candidates were not tried"


# --- Compiled ahead


class Ahead:
    """Compiles all candidates for this card, in processes on the cores of the host."""

    def __init__(self, sizes: Sizes, precision: str) -> None:
        major, minor = torch.cuda.get_device_capability()
        jobs = [(mix, dict(changes)) for mix in MIXES for changes in (*SWEEP, *BANK)]
        workers = max(1, min(len(jobs), usable_cores() - SPARE))
        self._started = time.monotonic()
        self._processes = [
            subprocess.Popen([sys.executable, "-m", "bench.gpu.candidates", job(sizes, precision, target, part)])
            for target in (f"cuda:{major}{minor}",)
            for part in (jobs[i::workers] for i in range(workers))
        ]

    def wait(self, seconds: float) -> str:
        """So long at most, then end them; says how far they came."""
        ends = time.monotonic() + seconds
        while any(process.poll() is None for process in self._processes) and time.monotonic() < ends:
            time.sleep(0.1)
        unfinished = [process for process in self._processes if process.poll() is None]
        for process in unfinished:
            process.kill()
            process.wait()
        took = time.monotonic() - self._started
        return (
            f"candidates compiled ahead by {len(self._processes)} processes, {len(unfinished)} cut after {took:.0f} s"
        )


def job(sizes: Sizes, precision: str, target: str, candidates: Sequence[tuple[Mix, dict[str, int]]]) -> str:
    """The argument of `main`."""
    size = {"batch": sizes.batch, "bank": sizes.bank, "dim": sizes.dim}
    return json.dumps({"size": size, "precision": precision, "target": target, "candidates": candidates})


def main(words: str) -> int:
    """Compile the candidates of a job; one that does not compile is left to the process that would launch it."""
    from bench.aot import compile_launches
    from bench.ledger_mc import McStep

    asked = json.loads(words)
    sizes, compiled = Sizes(**asked["size"]), 0
    for mix, changes in asked["candidates"]:
        try:
            with compile_launches(asked["target"]) as launches, chosen(changes):
                McStep(sizes.case(mix), asked["precision"]).launch("meta")
            compiled += len(launches)
        except Exception as error:
            print(f"{mix}, {changes}: {error!r}", file=sys.stderr)
    return compiled


if __name__ == "__main__":
    os.environ.pop("TRITON_INTERPRET", None)
    main(sys.argv[1])
