"""Encoders forward and back to their weights, by fastmc and, where that is another way, as their released codes do:
pytest bench/test_encoders.py --benchmark-only --full."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import get_args

from bench.encoders import FASTMC, PRODUCTS, RELEASED, CompareEncoder, Kind, race
from bench.measure import Timing, Turns
from bench.plain_encoders import KINDS
from bench.rows import Piece, TimeRow, rows
from fastmc.encoders import find_encoder

SETTINGS = CompareEncoder()


def prepare(name: Kind, timing: Timing) -> Turns:
    return race(replace(SETTINGS, encoder=name, rounds=timing.rounds, seconds=timing.seconds))


def piece(name: Kind) -> Piece:
    sides = (RELEASED,) if find_encoder(name) in KINDS else ()
    return Piece(
        f"{name} at its published size, forward and back, CPU, B = {SETTINGS.batch}, T = {SETTINGS.frames}",
        {side: side for side in (*sides, FASTMC, PRODUCTS)},
        partial(prepare, name),
        reference=sides[0] if sides else None,
        floor=PRODUCTS,
        short=name,
        full=True,
    )


@rows(*map(piece, get_args(Kind)))
def test_encoder(time_row: TimeRow, piece: Piece, row: str) -> None:
    time_row(piece, row)
