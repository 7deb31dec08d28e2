"""The command line: python -m bench.gpu --help."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from bench.gpu.keep import keep
from bench.gpu.report import REHEARSED, headlines
from bench.gpu.runner import LOG, PAGE, REPORT, Runner
from bench.gpu.sections import SECTIONS
from bench.machine import provenance
from fastmc.checks import Positive, check_ranges

LETTERS = "".join(section.letter for section in SECTIONS)


@dataclass(frozen=True)
class Command:
    """Check and measure everything that a GPU has to show of this project, in order of worth.

    A section runs in a process of its own and is ended when its share of the time is up; what one leaves of its time
    goes to those after it. Everything found is written the moment it is there. The same command goes on where an
    earlier one was stopped: sections that are done are not run again.

    The folder holds at most 8 files, in no more than 2 folders: report.md to read, report.json, log.txt, a trace. None
    but the trace is large, and that is left out if it is over 15 MB.

    On a machine without a GPU: python -m bench.gpu --rehearse --out runs/rehearsal
    """

    out: Path = Path("runs/gpu")
    """Folder of the report."""
    minutes: Positive = 8.0
    """All sections together."""
    only: tuple[str, ...] = ()
    """Letters of sections: a versions and smoke tests, b tests/gpu, c ceilings, d kernels, e loss and bank step,
    f whole step, g views, h training, i trace. By default all."""
    again: bool = False
    """Run again what is done."""
    rehearse: bool = False
    """The same code on a CPU, at tiny sizes with interpreted kernels. Its numbers mean nothing."""
    commit: str | None = None
    """Which commit this is, where git cannot tell."""
    keep: Path | None = None
    """Run nothing; copy the report of --out to this folder, named by card, versions and commit: docs/gpu."""

    def __post_init__(self) -> None:
        check_ranges(self)
        unknown = [letter for letter in self.only if letter not in LETTERS or len(letter) != 1]
        if unknown:
            raise ValueError(f"only: there is no section {', '.join(unknown)}; there are {', '.join(LETTERS)}")


def main(args: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        command = tyro.cli(Command, prog="python -m bench.gpu", args=args)
        return run(command)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(command: Command) -> int:
    if command.keep is not None:
        for path in keep(command.out, command.keep):
            print(path)
        return 0
    if not command.rehearse and not torch.cuda.is_available():
        raise ValueError("PyTorch sees no NVIDIA GPU, and nothing else can be measured; --rehearse tries the code here")
    chosen = [section for section in SECTIONS if not command.only or section.letter in command.only]
    if command.commit is None and provenance()["commit"] is None:
        print("git cannot tell which commit this is; --commit HASH puts it into the report", file=sys.stderr)
    runner = Runner(
        command.out, chosen, rehearsal=command.rehearse, again=command.again, commit=command.commit, say=_say
    )
    try:
        code = runner.run(command.minutes)
    except KeyboardInterrupt:
        print(f"stopped; {command.out / PAGE} has what was found, and the same command goes on", file=sys.stderr)
        return 130
    print(f"\n{REHEARSED}\n" if command.rehearse else "")
    print("\n".join(f"{what}: {value}" for what, value in headlines(runner.state["sections"])))
    print(f"{PAGE}, {REPORT} and {LOG} are in {command.out}")
    return code


def _say(text: str) -> None:
    print(text, flush=True)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
