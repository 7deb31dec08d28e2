"""What the kernels' products cost in accuracy, by precision: python -m bench.precision --help."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor

from bench.counting import StepSize, step_arguments
from bench.providers import Case, draw
from fastmc.arguments import PRECISIONS
from fastmc.objective import chunked
from train.tables.markdown import markdown


@dataclass(frozen=True)
class Precision(StepSize):
    """Errors of one step of the MC loss against float64, for every precision of the kernels, on the interpreter.

    The error of an output is its largest one, relative to the output's largest element; of bank and momentum, that of
    their change. Takes some minutes at the paper's size, most of them for ieee, whose tiles are small.
    """

    precisions: tuple[str, ...] = PRECISIONS
    """Which ones."""


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(Precision, prog="python -m bench.precision", args=args)
    if os.environ.get("TRITON_INTERPRET") != "1":  # Triton decides once, on import
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        arguments = sys.argv[1:] if args is None else args
        return subprocess.run(
            [sys.executable, "-m", "bench.precision", *arguments], env=environment, check=False
        ).returncode
    from bench.interpreter import repair
    from kernels.mc import contrast_step_

    repair()

    case = settings.case
    truth = outputs(chunked.contrast_step_, case, torch.float64, "ieee")
    rows = [("PyTorch, float32", outputs(chunked.contrast_step_, case, torch.float32, "ieee"))]
    rows += [(f"kernels, {name}", outputs(contrast_step_, case, torch.float32, name)) for name in settings.precisions]
    print(f"{case}; largest error of each output, relative to its largest element\n")
    cells = [(name, *(f"{error(found[key], truth[key]):.1e}" for key in truth)) for name, found in rows]
    print(markdown(("products", *truth), cells))
    return 0


def outputs(
    step: Callable[..., tuple[Tensor, Tensor]], case: Case, dtype: torch.dtype, precision: str
) -> dict[str, Tensor]:
    """Loss, gradients, and the change of bank and momentum."""
    x = draw(case).to("cpu", dtype)
    before = x.bank.clone(), x.momentum.clone()
    arguments: dict[str, Any] = step_arguments(x, case, precision)
    stats, gradients = step(**arguments)
    return {
        "loss": stats[:1],
        "df1": gradients[0],
        "df2": gradients[1],
        "df3": gradients[2],
        "bank's change": x.bank - before[0],
        "momentum's change": x.momentum - before[1],
    }


def error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).abs().max() / truth.abs().max())


if __name__ == "__main__":
    sys.exit(main())
