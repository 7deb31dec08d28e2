"""The rows of ``pytest bench/ --benchmark-only``: one for each way to do a piece of work.

A piece is measured whole before its first row: all ways are compared, then timed in turns, since on a real machine two
measurements that follow each other see two machines. pytest-benchmark is then told those times, by a clock that repeats
them, so that its tables, its JSON and its ``compare`` work on what was measured side by side.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest

from bench.machine import QUIET
from bench.measure import Measurement, Timing, Turns, aligned, milliseconds, quotient

Prepare = Callable[[Timing], Turns]
"""Makes all ways ready to be timed, after it has compared them: no parity, no numbers."""


@dataclass(frozen=True)
class Piece:
    """A piece of work that several ways do.

    Attributes:
        title: the heading of its group.
        rows: for each way, what a reader calls it, and its name in the race. A race may serve several pieces.
        reference, floor: rows whose times the others' are divided by.
        short: what tells it from the other pieces of its test.
        full: takes so long that it is measured with ``--full`` only.
    """

    title: str
    rows: Mapping[str, str]
    prepare: Prepare
    reference: str | None = None
    floor: str | None = None
    short: str = ""
    full: bool = False

    def ratio(self, found: Mapping[str, Measurement], over: str | None, under: str | None) -> tuple[float, ...] | None:
        """The quotient of two rows' medians with the range of their quartiles; None if one was not measured."""
        return None if over is None or under is None else quotient(found, self.rows[over], self.rows[under])


TimeRow = Callable[[Piece, str], None]
"""The fixture ``time_row`` of conftest.py: fills in a row."""


class Replay:
    """A clock for pytest-benchmark, which reads it before and after each round: it goes on by times that are known."""

    __name__ = "measured side by side"  # in pytest-benchmark's JSON

    def __init__(self) -> None:
        self._seconds: Iterator[float] = iter(())
        self._now, self._in_round = 0.0, False

    def load(self, seconds: Iterable[float]) -> None:
        """Of the rounds to come."""
        self._seconds, self._in_round = iter(seconds), False

    def __call__(self) -> float:
        if self._in_round:
            self._now += next(self._seconds)
        self._in_round = not self._in_round
        return self._now


REPLAY = Replay()
CLOCK = pytest.mark.benchmark(timer=REPLAY)


def rows(*pieces: Piece) -> pytest.MarkDecorator:
    """Parametrizes a test with ``piece`` and ``row``."""
    return pytest.mark.parametrize(
        ("piece", "row"),
        [
            pytest.param(piece, row, id=f"{piece.short}: {row}" if piece.short else row, marks=CLOCK)
            for piece in pieces
            for row in piece.rows
        ],
    )


@dataclass
class Session:
    """What one run of pytest has measured."""

    timing: Timing
    shown: list[Piece] = field(default_factory=list)
    """Pieces, in the order of their first row."""
    left_out: list[str] = field(default_factory=list)
    """Titles of pieces that wait for ``--full``."""
    _races: dict[Prepare, Turns | Exception] = field(default_factory=dict)

    def race(self, piece: Piece) -> Turns:
        """That of a piece, measured at its first use; what it raised then is raised again."""
        if piece.prepare not in self._races:
            try:
                self._races[piece.prepare] = self._measured(piece)
            except Exception as error:
                self._races[piece.prepare] = error
        race = self._races[piece.prepare]
        if isinstance(race, Exception):
            raise race
        if piece not in self.shown:
            self.shown.append(piece)
        return race

    def _measured(self, piece: Piece) -> Turns:
        print(f"\n{piece.title}: all ways are compared, then timed in turns", file=sys.stderr)
        with closing(piece.prepare(self.timing)) as race:
            race.run(piece.title, progress=sys.stderr.isatty())
        return race

    def text(self) -> Sequence[str]:
        """The closing table, piece by piece."""
        lines: list[str] = []
        for piece in self.shown:
            lines += [*_table(piece, self.race(piece)), ""]
        return lines + [f"left out: {title}: give --full" for title in self.left_out]

    def time(self, benchmark: Any, piece: Piece, row: str) -> None:
        """Fill in one row of pytest-benchmark's.

        Raises:
            pytest.skip.Exception: this way is not measured here; with the reason.
        """
        race = self.race(piece)
        found = race.found[piece.rows[row]]
        if found.skipped:
            pytest.skip(f"not measured: {found.skipped}")
        REPLAY.load(found.seconds)
        benchmark.group = piece.title
        benchmark.pedantic(lambda: None, rounds=len(found.seconds))
        faster = piece.ratio(race.found, piece.reference, row)
        of_floor = piece.ratio(race.found, piece.floor, row)
        benchmark.extra_info |= {
            "speedup_over_reference": faster and faster[0],
            "speedup_range": faster and list(faster[1:]),
            "share_of_floor": of_floor and of_floor[0],
            "reference": piece.reference,
            "floor": piece.floor,
            "budget_used": found.budget,
            "others_busy": race.others_busy,
            "disturbed": _disturbed(race),
        }


def _disturbed(race: Turns) -> bool:
    return race.others_busy is not None and race.others_busy > QUIET


def _table(piece: Piece, race: Turns) -> list[str]:
    """Rows are disturbed together: they took turns."""
    heads = ["median (ms)", "quartiles", "rounds", f"x {piece.reference}" if piece.reference else "", "", "error"]
    heads[4] = f"share of {piece.floor}" if piece.floor else ""
    lines: list[list[str]] = [["", *heads]]
    notes = []
    for row, name in piece.rows.items():
        found = race.found[name]
        if found.skipped:
            notes.append(f"  not measured: {row}: {found.skipped}")
            continue
        faster, of_floor = (piece.ratio(race.found, over, row) for over in (piece.reference, piece.floor))
        lines.append(
            [
                f"  {row}",
                milliseconds(found.median),
                " to ".join(map(milliseconds, found.quartiles)),
                str(len(found.seconds)),
                f"{faster[0]:.2f} [{faster[1]:.2f}-{faster[2]:.2f}]" if faster else "",
                f"{of_floor[0]:.0%}" if of_floor else "",
                "" if found.budget is None else f"{found.budget:.0%} of its budget",
            ]
        )
    kept = [i for i in range(len(lines[0])) if i == 0 or any(line[i] for line in lines)]
    lines = [[line[i] for i in kept] for line in lines]
    mark = f"  (DISTURBED: other programs used {race.others_busy:.2f} cores meanwhile)" if _disturbed(race) else ""
    return [f"{piece.title}{mark}", *aligned(lines), *notes]
