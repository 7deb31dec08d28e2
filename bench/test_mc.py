"""Loss, gradients and bank step by every provider, at the product's size: pytest bench/test_mc.py --benchmark-only."""

from __future__ import annotations

from bench.measure import Race, Timing, Turns
from bench.providers import MIXES, PROVIDERS, Case, Mix, Work
from bench.rows import Piece, TimeRow, rows

WORK: dict[Work, str] = {"step": "loss, gradients and bank step", "loss": "loss and gradients alone"}


def piece(work: Work, mix: Mix) -> Piece:
    case = Case(work, mix)

    def prepare(timing: Timing) -> Turns:
        return Race(case, tuple(PROVIDERS), timing)

    return Piece(
        f"{WORK[work]}, {mix} mixing, B = {case.batch}, K = {case.bank:,}, D = {case.dim}",
        {provider.says: name for name, provider in PROVIDERS.items()},
        prepare,
        reference=PROVIDERS["reference"].says,
        floor=PROVIDERS["products"].says,
        short=f"{mix} mixing",
        full=work == "loss",
    )


@rows(*(piece("step", mix) for mix in MIXES))
def test_loss_and_bank_step(time_row: TimeRow, piece: Piece, row: str) -> None:
    time_row(piece, row)


@rows(*(piece("loss", mix) for mix in MIXES))
def test_loss_alone(time_row: TimeRow, piece: Piece, row: str) -> None:
    time_row(piece, row)
