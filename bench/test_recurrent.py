"""The recurrent net's passes of a training step on a CPU, by fastmc and by nn.GRU:
pytest bench/test_recurrent.py --benchmark-only."""

from __future__ import annotations

from dataclasses import replace

from bench.measure import Timing, Turns
from bench.recurrent import FASTMC, PASSES, PRODUCTS, PYTORCH, CompareGRU, race
from bench.rows import Piece, TimeRow, rows

SETTINGS = CompareGRU()


def prepare(timing: Timing) -> Turns:
    return race(replace(SETTINGS, rounds=timing.rounds, seconds=timing.seconds))


def piece(name: str, says: str) -> Piece:
    return Piece(
        f"GRU of the {name} pass ({says}), CPU, {SETTINGS.encoder}, B = {SETTINGS.batch}, T = {SETTINGS.frames}",
        {side: f"{name}, {side}" for side in (PYTORCH, FASTMC, PRODUCTS)},
        prepare,
        reference=PYTORCH,
        floor=PRODUCTS,
        short=f"{name} pass",
    )


@rows(*(piece(name, says) for name, says in PASSES.items()))
def test_recurrent_net(time_row: TimeRow, piece: Piece, row: str) -> None:
    time_row(piece, row)
