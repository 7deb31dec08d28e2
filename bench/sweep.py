"""Time and memory against K and B: python -m bench.sweep --help. ``python -m bench.plot`` draws what it writes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from bench.machine import conditions, provenance
from bench.measure import Result, Timing, measure, table
from bench.parity import ParityError
from bench.providers import MIXES, PROVIDERS, Case, Mix, Work
from fastmc.files import write_json

RESULTS = Path(__file__).with_name("results") / "sweep.json"


@dataclass(frozen=True)
class Sweep(Timing):
    """Measure all providers over the size of the bank at one batch, and over the batch at one bank.

    What is measured is written after every case. A provider that would not fit is left out, with the reason. Takes
    about twenty minutes on two cores; python -m bench.plot draws the result.
    """

    rounds: int = 15
    """Times that each provider is timed, in turns with the others."""
    work: Work = "step"
    """loss: loss and gradients. step: that and the bank's update."""
    mixes: tuple[Mix, ...] = MIXES
    """How mixed banks are made, see fastmc.mc_loss."""
    banks: tuple[int, ...] = (1024, 4096, 16384, 65536)
    """Values of K."""
    batches: tuple[int, ...] = (32, 128, 512)
    """Values of B."""
    at_batch: int = 64
    """B while K varies."""
    at_bank: int = 16384
    """K while B varies."""
    dim: int = 128
    """D, elements of a feature."""
    providers: tuple[str, ...] = tuple(PROVIDERS)
    """Which of bench/providers.py take part."""
    memory: bool = True
    """Measure memory too."""
    out: Path = RESULTS
    """File of the results."""

    def cases(self) -> list[Case]:
        """From small to large; the size that both series share comes once."""
        sizes = {(self.at_batch, bank) for bank in self.banks} | {(batch, self.at_bank) for batch in self.batches}
        ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
        return [Case(self.work, mix, batch, bank, self.dim) for batch, bank in ordered for mix in self.mixes]


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(Sweep, prog="python -m bench.sweep", args=args)
    try:
        sweep(settings)
    except (ParityError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def sweep(settings: Sweep) -> list[Result]:
    """Measure, print and write the cases one by one."""
    machine = provenance(settings.device, settings.threads)
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    results: list[Result] = []
    for case in settings.cases():
        results.append(measure(case, settings.providers, settings, memory=settings.memory, progress=True))
        print(f"{table(results[-1])}\n", flush=True)
        method = {key: value for key, value in asdict(settings).items() if key != "out"}
        write_json(
            settings.out,
            {"machine": machine, "method": method, "results": [result.to_json() for result in results]},
        )
    print(f"{conditions(machine)}\nwritten to {settings.out}; python -m bench.plot draws it")
    return results


if __name__ == "__main__":
    sys.exit(main())
