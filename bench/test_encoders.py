"""Graph and transformer encoders forward and back to their weights, by fastmc and as their released codes compute them:
pytest bench/test_encoders.py --benchmark-only --full."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from bench.encoders import FASTMC, PRODUCTS, RELEASED, CompareEncoder, race
from bench.measure import Timing, Turns
from bench.rows import Piece, TimeRow, rows

SETTINGS = CompareEncoder()


def prepare(name: str, timing: Timing) -> Turns:
    return race(replace(SETTINGS, encoder=name, rounds=timing.rounds, seconds=timing.seconds))


def piece(name: str) -> Piece:
    return Piece(
        f"{name} at its published size, forward and back, CPU, B = {SETTINGS.batch}, T = {SETTINGS.frames}",
        {side: side for side in (RELEASED, FASTMC, PRODUCTS)},
        partial(prepare, name),
        reference=RELEASED,
        floor=PRODUCTS,
        short=name,
        full=True,
    )


@rows(*map(piece, ("stgcn", "dstanet", "agcn")))
def test_encoder(time_row: TimeRow, piece: Piece, row: str) -> None:
    time_row(piece, row)
