"""Other sizes of tiles than kernels/tiles.py has for this card, checked and timed; and what it should have, as code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from unittest import mock

import torch

from bench.counting import step_arguments
from bench.gpu.clock import Call, Clock
from bench.gpu.section import Bench
from bench.gpu.smoke import off, outputs
from bench.parity import BUDGET
from bench.providers import ASCENT, MIXES, SPLIT_ROUNDING, Mix, draw
from fastmc import chunked

TABLE, LISTING = "Tiles: time of loss and bank step", "For kernels/tiles.py"
Changes = Mapping[str, int]
SWEEP: tuple[Changes, ...] = (
    {"sweep_rows": 64, "sweep_warps": 4, "programs": 256},
    {"sweep_rows": 64, "sweep_warps": 4, "programs": 264, "sweep_stages": 2},
    {"sweep_rows": 128, "sweep_entries": 64},
    {"sweep_rows": 64, "sweep_entries": 64, "sweep_warps": 4, "programs": 256},
    {"sweep_rows": 128, "sweep_stages": 2},
    {"sweep_rows": 64, "sweep_warps": 8},
    {"programs": 64},
)
"""Of the sweep, as differences from today's choice; most promising first."""
BANK: tuple[Changes, ...] = (
    {"bank_entries": 128, "bank_samples": 32, "bank_warps": 8},
    {"bank_entries": 64, "bank_samples": 32, "bank_warps": 4},
    {"bank_entries": 64, "bank_samples": 64, "bank_warps": 8},
    {"bank_entries": 128, "bank_samples": 16, "bank_warps": 8},
    {"bank_entries": 64, "bank_samples": 32, "bank_warps": 4, "bank_stages": 2},
    {"bank_entries": 32, "bank_samples": 64, "bank_warps": 4},
)
"""Of the bank's step."""
TODAY: Changes = MappingProxyType({})


def run(bench: Bench, clock: Clock, precision: str) -> None:
    """Own mixing first. A candidate that does not compile or is wrong is a row that says so."""
    lines = []
    for mix in MIXES:
        best: dict[str, int] = {}
        for part, tried in (("sweep", SWEEP), ("bank", BANK)):
            fastest, least = TODAY, float("inf")
            for changes in (TODAY, *(tried[:1] if bench.rehearsal else tried)):
                if not bench.has(8, f"tiles of the {part}, {mix} mixing: {dict(changes) or 'today'}"):
                    break
                seconds = attempt(bench, clock, mix, precision, part, changes)
                if seconds is not None and seconds < least:
                    fastest, least = changes, seconds
            best |= fastest
        if best:
            attempt(bench, clock, mix, precision, "both", best)
        with chosen(best) as made:
            check(bench, mix, precision)
        lines += [f"# {mix} mixing, {precision}: {best or 'as today'}", *map(repr, dict.fromkeys(made))]
        bench.found.listing(LISTING, "\n".join(lines))


def attempt(bench: Bench, clock: Clock, mix: Mix, precision: str, part: str, changes: Changes) -> float | None:
    """Seconds of a step with these changes, in a row of the table; None if it cannot run or is wrong."""
    row: dict[str, Any] = {"mixing": mix, "part": part, "changes": str(dict(changes)) if changes else "today's choice"}
    try:
        with chosen(changes):
            check(bench, mix, precision)
            timing = clock.replayed(_calls(bench, mix, precision), min(0.4, max(0.05, bench.left() / 60)))
    except Exception as error:
        words = (str(error) or repr(error)).splitlines()[0][:160]
        bench.found.row(TABLE, **row, us=None, quartiles=f"{type(error).__name__}: {words}")
        return None
    bench.found.row(TABLE, **row, **timing.cells())
    return timing.median


def _step() -> Callable[..., Any]:
    from kernels.mc import mc_step_  # here, since importing it decides how Triton runs

    return mc_step_


def _calls(bench: Bench, mix: Mix, precision: str) -> list[Call]:
    """Steps on sets of inputs of their own: cold."""
    case, step = bench.sizes.case(mix), _step()

    def call_on(seed: int) -> Call:
        arguments: dict[str, Any] = step_arguments(draw(case, seed).to(bench.device, torch.float32), case, precision)
        return lambda: step(**arguments)

    return [call_on(seed) for seed in range(bench.sizes.input_sets)]


def check(bench: Bench, mix: Mix, precision: str) -> None:
    """AssertionError if the step is off by more than the gate of bench/parity.py allows."""
    case = bench.sizes.case(mix)
    key = (case, bench.device)
    if key not in _truths:
        _truths[key] = outputs(chunked.mc_step_, case, "ieee", bench.device, torch.float64)
    found = outputs(_step(), case, precision, bench.device)
    for name, exact in _truths[key].items():
        exact = exact.cpu()
        allowed = BUDGET * SPLIT_ROUNDING / ASCENT["temperature"] * float(exact.abs().max())
        error = off(found[name], exact)
        assert error <= allowed, f"{name} is off by {error:.1e}, allowed are {allowed:.1e}"


_truths: dict[Any, Any] = {}


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
