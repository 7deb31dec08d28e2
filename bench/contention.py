"""Training beside other programs: python -m bench.contention --help."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tqdm import tqdm

from bench.machine import QUIET, ROOT, conditions, provenance, watch_neighbours
from bench.measure import FEWEST_ROUNDS, Measurement, aligned, quotient
from bench.stepping import Stint
from fastmc.checks import check_number
from fastmc.config import Preset
from fastmc.progress import progress_bar

IDLE, ONE_BUSY, TWO_BUSY = "idle", "one busy core", "two busy cores"
LOADS = {IDLE: 0, ONE_BUSY: 1, TWO_BUSY: 2}
"""Processes that never wait, each on a core of its own."""
NEVER_WAITS = (sys.executable, "-S", "-c", "while True: pass")
STEPPING = Path(__file__).with_name("stepping.py")
HERE = "this checkout"


@dataclass(frozen=True)
class Contention:
    """Steps a second of a training process: alone, beside one core that another process keeps busy, and beside two.

    All loads take turns in one run, in a random order. Wants a machine with nothing else to do, and marks what was
    disturbed. The process has the threads that a run would have; OMP_NUM_THREADS is handed on.
    """

    preset: Preset = "tiny"
    """Of the run that steps."""
    seconds: float = 3.0
    """Time of a turn; one step at least."""
    rounds: int = 7
    """Turns of each load."""
    against: Path | None = None
    """Another checkout, whose training process takes its turns beside the one of this."""
    progress: bool = True
    """A bar on stderr."""

    def __post_init__(self) -> None:
        check_number("rounds", self.rounds, at_least=FEWEST_ROUNDS)

    @property
    def checkouts(self) -> dict[str, Path]:
        return {HERE: ROOT} | ({} if self.against is None else {str(self.against): self.against.resolve()})


@dataclass
class Loads:
    """What is known of one checkout, by load.

    Attributes:
        found: seconds a step, of each turn.
        processor: processor seconds a step, all threads together, of each turn.
        others: cores that were busy for neither the training process nor the load, of each turn.
    """

    found: dict[str, Measurement] = field(default_factory=lambda: {load: Measurement() for load in LOADS})
    processor: dict[str, list[float]] = field(default_factory=lambda: {load: [] for load in LOADS})
    others: dict[str, list[float]] = field(default_factory=lambda: {load: [] for load in LOADS})

    def take(self, load: str, stint: Stint, others: float) -> None:
        """A turn, and the cores that others have used."""
        self.found[load].seconds.append(stint.seconds / stint.steps)
        self.processor[load].append(stint.processor / stint.steps)
        self.others[load].append(others)

    def others_busy(self, load: str) -> float:
        """The median turn's."""
        return statistics.median(self.others[load])

    def ratio(self, over: str, under: str) -> tuple[float, float, float] | None:
        """See `bench.measure.quotient`; of idle over a load, the share of its speed that is left."""
        return quotient(self.found, over, under)


class Training:
    """A training process of a checkout, which waits between its turns."""

    def __init__(self, checkout: Path, preset: Preset) -> None:
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        command = [sys.executable, "-P", str(STEPPING), preset]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, cwd=checkout, env=environment, **pipes)  # type: ignore[call-overload]
        self._answer()

    def work(self, seconds: float) -> Stint:
        """Let it step."""
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return Stint(*json.loads(self._answer()))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the training process has ended with code {self._process.wait()}")
        return line


@contextmanager
def busy(processes: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Within: so many cores are busy, each with a process of its own, one of these."""
    cores = sorted(os.sched_getaffinity(0))
    started = [subprocess.Popen(NEVER_WAITS) for _ in range(processes)]
    try:
        for n, process in enumerate(started):
            os.sched_setaffinity(process.pid, {cores[n % len(cores)]})
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def measure(settings: Contention) -> dict[str, Loads]:
    """By checkout."""
    found = {name: Loads() for name in settings.checkouts}
    with ExitStack() as stack:
        runs = {}
        for name, checkout in settings.checkouts.items():
            runs[name] = Training(checkout, settings.preset)
            stack.callback(runs[name].close)
        pairs = [(name, load) for load in LOADS for name in found]
        turns = [turn for i in range(settings.rounds) for turn in random.Random(i).sample(pairs, len(pairs))]
        for name, load in tqdm(turns, disable=not settings.progress, **progress_bar("turn", "training beside others")):
            found[name].take(load, *take_turn(runs[name], LOADS[load], settings.seconds))
    return found


def take_turn(run: Training, processes: int, seconds: float) -> tuple[Stint, float]:
    """What it came to, and the cores that others used: the time of the load is ours once its processes have ended."""
    start = time.perf_counter()
    with watch_neighbours() as neighbours, busy(processes):
        stint = run.work(seconds)
    ours = (stint.processor + stint.overhead) / (time.perf_counter() - start)
    return stint, max(0.0, (neighbours.busy or 0.0) - ours)


def text(settings: Contention, found: Mapping[str, Loads]) -> str:
    """A table; with two checkouts also how much faster this one is."""
    heads = ("steps a second", "quartiles", "of idle", "processor s a step", "others' cores")
    rows: list[tuple[str, ...]] = [("", *heads)]
    disturbed = []
    for name, loads in found.items():
        for load, one in loads.found.items():
            share, others = loads.ratio(IDLE, load), loads.others_busy(load)
            cells = [
                f"{1 / one.median:.2f}",
                " to ".join(f"{1 / seconds:.2f}" for seconds in reversed(one.quartiles)),
                f"{share[0]:.0%}" if share else "",
                f"{statistics.median(loads.processor[load]):.3f}",
                f"{others:.2f}",
            ]
            rows.append((f"{name}, {load}", *cells))
            if others > QUIET:
                disturbed.append(f"disturbed: {name}, {load}: others used {others:.2f} cores meanwhile")
    title = f"preset {settings.preset}, medians of {settings.rounds} turns of {settings.seconds:g} s"
    return "\n".join([title, *aligned(rows), *_faster(found), *disturbed])


def _faster(found: Mapping[str, Loads]) -> list[str]:
    lines = []
    for name in list(found)[1:]:
        for load in LOADS:
            both = {HERE: found[HERE].found[load], name: found[name].found[load]}
            ratio = quotient(both, name, HERE)
            assert ratio is not None
            lines.append(f"{load}: {ratio[0]:.2f}x as fast as {name} [{ratio[1]:.2f}-{ratio[2]:.2f}]")
    return lines


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(Contention, prog="python -m bench.contention", args=args)
    found = measure(settings)
    print("\n".join([text(settings, found), conditions(provenance())]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
