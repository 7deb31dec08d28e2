"""The whole training step beside the plain reference's, one as earlier codes write it, its encoder calls alone and its
matrix products alone: pytest bench/test_step.py --benchmark-only."""

from __future__ import annotations

from dataclasses import replace

from bench import products
from bench.data_share import STEP
from bench.headlines import STEP_SECONDS
from bench.measure import Timing, Turns
from bench.providers import MIXES, Mix
from bench.rows import Piece, TimeRow, rows
from bench.step import ENCODER, OURS, OURS_STEPWISE, REFERENCE, STEPWISE, StepCase, StepRace
from fastmc.config import Preset, preset_config


def beside_plain_steps(mix: Mix) -> tuple[Piece, Piece]:
    """With own mixing a plain step takes a quarter of a minute, most of it for the bank."""
    case = StepCase(mix)

    def prepare(timing: Timing) -> Turns:
        return StepRace(case, replace(timing, seconds=STEP_SECONDS * timing.seconds))

    whole = {name: name for name in (REFERENCE, OURS, ENCODER)}
    stepwise = {STEPWISE: STEPWISE, OURS_STEPWISE: OURS_STEPWISE}
    first = Piece(str(case), whole, prepare, REFERENCE, floor=ENCODER, short=f"{mix} mixing", full=mix == "own")
    second = Piece(f"{case}, stepwise reading", stepwise, prepare, STEPWISE, short=first.short, full=first.full)
    return first, second


def beside_products(preset: Preset) -> Piece:
    config = preset_config(preset)

    def prepare(timing: Timing) -> Turns:
        return products.race(config, config.optim.batch_size, timing)

    title = f"training step, preset {preset}, B = {config.optim.batch_size}, T = {config.frames}"
    names = {name: name for name in (STEP, products.PRODUCTS)}
    return Piece(title, names, prepare, floor=products.PRODUCTS, short=f"preset {preset}")


@rows(*(piece for mix in MIXES for piece in beside_plain_steps(mix)))
def test_training_step(time_row: TimeRow, piece: Piece, row: str) -> None:
    time_row(piece, row)


@rows(beside_products("tiny"), beside_products("small"))
def test_training_step_over_its_products(time_row: TimeRow, piece: Piece, row: str) -> None:
    time_row(piece, row)
