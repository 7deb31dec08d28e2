"""The four views of a batch, by fastmc and by a loader's worker in numpy, one clip after the other:
pytest bench/test_views.py --benchmark-only."""

from __future__ import annotations

from bench.measure import Timing, Turns
from bench.rows import Piece, TimeRow, rows
from bench.views import FASTMC, TORCH, ViewsCase, race

NUMPY = "numpy, usual"
CASE = ViewsCase()


def prepare(timing: Timing) -> Turns:
    return race(CASE, timing)


VIEWS = Piece(str(CASE), {name: name for name in (NUMPY, "numpy, tuned", TORCH, FASTMC)}, prepare, reference=NUMPY)


@rows(VIEWS)
def test_four_views(time_row: TimeRow, piece: Piece, row: str) -> None:
    time_row(piece, row)
