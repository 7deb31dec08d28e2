"""What a step costs a GPU, counted and compiled without one: python -m bench.ledger --help."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import tyro

from bench import ledger_data, ledger_mc, ledger_step
from bench.aot import TARGETS
from bench.counting import StepSize
from bench.ledger_data import DataStep, ViewDtype
from bench.ledger_mc import McStep
from bench.ledger_step import Amp, TrainingStep
from fastmc.arguments import PRECISIONS, check_choice
from fastmc.views.clips import Stream

RENDER = {"mc": ledger_mc.render, "data": ledger_data.render, "step": ledger_step.render}
OF_OTHERS = {
    "mc": ("frames", "bodies", "dtype", "stream", "encoder", "amp"),
    "data": ("mix", "bank", "dim", "precision", "encoder", "amp"),
    "step": ("dtype", "stream"),
}
"""Flags that do not concern a piece."""


@dataclass(frozen=True)
class Ledger(StepSize):
    """Count and compile the kernels of a piece of a step, and set a lower bound to its time on an H100.

    Bytes, operations and exponentials are counted while Triton's interpreter runs the kernels; registers, spills,
    shared memory and instructions are read off the machine code of an ahead-of-time compile. Needs no GPU; takes about
    a minute. Examples: python -m bench.ledger --mix tiled --target cuda:80; python -m bench.ledger --piece data
    """

    piece: Literal["mc", "data", "step"] = "mc"
    """mc: the MC loss and the bank's ascent. data: views and attack, all but the encoders' passes. step: all of a
    training step, by its parts."""
    precision: str = "bf16x3"
    """Products of the kernels: bf16x3, ieee or bf16. Not for piece data, as --mix, --bank and --dim."""
    frames: int = 64
    """T, frames of a view. Not for piece mc."""
    bodies: int = 2
    """M, bodies of a view. Not for piece mc."""
    encoder: str = "3x1024"
    """Layers x hidden units of the BiGRU. Piece step."""
    amp: Amp = "bf16"
    """What the encoders compute in. Piece step."""
    dtype: ViewDtype = "float32"
    """Of the views. Piece data."""
    stream: Stream = "joint"
    """Of the views. Piece data."""
    target: str = "cuda:90"
    """What is compiled for. Counts are those of the launches for cuda:90."""
    plain: bool = True
    """Count the same in plain PyTorch beside it."""
    json: bool = False
    """Print JSON instead of the tables of docs/kernels.md."""

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("target", self.target, TARGETS)
        for flag in fields(self):
            if flag.name in OF_OTHERS[self.piece] and getattr(self, flag.name) != flag.default:
                raise ValueError(f"--{flag.name} has no meaning for --piece {self.piece}")

    @property
    def step(self) -> McStep | DataStep | TrainingStep:
        if self.piece == "mc":
            return McStep(self.case, self.precision)
        if self.piece == "step":
            return TrainingStep(self.case, self.precision, self.frames, self.bodies, self.encoder, self.amp)
        return DataStep(self.batch, self.frames, self.bodies, self.dtype, self.stream)


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(Ledger, prog="python -m bench.ledger", args=args)
    try:
        found = measure(settings)
    except (ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1) if settings.json else render(found))
    return 0


def measure(settings: Ledger) -> dict[str, Any]:
    """Counts and machine code of every launch, their sums, the plain forms, and the model."""
    step = settings.step
    print("counting on the interpreter, compiling ahead of time ...", file=sys.stderr)
    return {"piece": settings.piece} | step.measure(settings.target, settings.plain)


def render(found: dict[str, Any]) -> str:
    """The ledger as markdown."""
    return RENDER[found["piece"]](found)


if __name__ == "__main__":
    sys.exit(main())
