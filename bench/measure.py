"""Ways to do one piece of work, side by side: parity first, then times in turns, then memory."""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from bench.machine import QUIET, watch_neighbours
from bench.memory import extra_peak
from bench.parity import ParityError, by_name, compare, exact_outputs
from bench.providers import PROVIDERS, Case, Outputs, Provider, draw
from fastmc.checks import check_number
from fastmc.parallel import usable_cores
from fastmc.progress import progress_bar

FEWEST_ROUNDS = 3
REST = 0.04
"""Seconds before each timed call on a CPU: threads of libgomp that whoever ran before has left go on spinning for some
20 ms, and would take the next one's core."""


@dataclass(frozen=True)
class Timing:
    """How a case is measured."""

    rounds: int = 25
    """Times that each provider is timed, in turns with the others."""
    seconds: float = 10.0
    """A provider that would need longer for all its rounds takes part in fewer, but in 3 at least."""
    threads: int = field(default_factory=usable_cores)
    """Threads of torch, the same for all."""
    device: str = "cpu"
    """cpu or cuda."""
    memory_limit_gb: float = 10.0
    """A provider that is known to need more is left out, and the reason is printed."""

    def __post_init__(self) -> None:
        check_number("rounds", self.rounds, at_least=FEWEST_ROUNDS)
        check_number("threads", self.threads, at_least=1)


@dataclass
class Measurement:
    """What is known of one provider: times of its rounds in seconds, or the reason why there are none."""

    skipped: str | None = None
    seconds: list[float] = field(default_factory=list)
    first_call: float | None = None
    """Seconds of the first call; with the compiler's time, where there is one."""
    budget: float | None = None
    """The share of the error budget that its worst output uses."""
    extra_bytes: int | None = None
    """Extra peak memory of a call, see bench/memory.py."""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass
class Result:
    """One case measured: by provider, in the order they were given."""

    case: Case
    providers: dict[str, Measurement]
    others_busy: float | None = None
    """Cores that other processes kept busy meanwhile."""

    def ratio(self, over: str, under: str) -> tuple[float, float, float] | None:
        """See `quotient`."""
        return quotient(self.providers, over, under)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: dict[str, Any]) -> Result:
        providers = {name: Measurement(**found) for name, found in content["providers"].items()}
        return Result(Case(**content["case"]), providers, content["others_busy"])


def quotient(found: Mapping[str, Measurement], over: str, under: str) -> tuple[float, float, float] | None:
    """The quotient of two medians, and the range that their quartiles span; None if one was left out."""
    a, b = found.get(over), found.get(under)
    if a is None or b is None or a.skipped or b.skipped:
        return None
    return a.median / b.median, a.quartiles[0] / b.quartiles[1], a.quartiles[1] / b.quartiles[0]


class Turns:
    """Calls that are timed in turns, by name.

    Attributes:
        found: what is known of each.
        others_busy: cores that other processes kept busy meanwhile.
    """

    def __init__(self, timing: Timing) -> None:
        torch.set_num_threads(timing.threads)
        self.timing, self.device = timing, torch.device(timing.device)
        self.found: dict[str, Measurement] = {}
        self.others_busy: float | None = None
        self._calls: dict[str, Callable[[], Any]] = {}
        self._rounds: dict[str, int] = {}

    def enter(
        self,
        name: str,
        call: Callable[[], Any],
        *,
        check: Callable[[Any], float] | None = None,
        compiles: bool = False,
    ) -> None:
        """Call it for the first time, check what it gives, and find out how often it can be called.

        Args:
            check: from the call's outputs to the share of the error budget that they use.
            compiles: the first call may, for longer than all others together.

        Raises:
            ParityError: of the check. There is nothing to measure then.
        """
        self._calls[name] = call
        self.restore()
        outputs, seconds = self._timed(call)
        found = self.found[name] = Measurement(first_call=seconds)
        if check is not None:
            found.budget = check(outputs)
        if compiles or seconds < self.timing.seconds / FEWEST_ROUNDS:
            seconds = self._timed(call)[1]  # the first of a provider is not what the others will take
        self._rounds[name] = max(FEWEST_ROUNDS, min(self.timing.rounds, int(self.timing.seconds / seconds)))

    def restore(self) -> None:
        """What every call has to find as it was is put back here."""

    def call(self, name: str) -> None:
        """One call, to its end also on a GPU."""
        self._calls[name]()
        self._synchronize()

    def turns(self, i: int) -> list[str]:
        """Who runs in round i, in a random order; who takes part in fewer rounds does so at equal intervals."""
        total = self.timing.rounds
        names = [name for name, n in self._rounds.items() if (i + 1) * n // total > i * n // total]
        return random.Random(i).sample(names, len(names))

    def take(self, name: str) -> None:
        """Time one call."""
        self.restore()
        if self.device.type == "cpu":
            time.sleep(REST)
        self.found[name].seconds.append(self._timed(self._calls[name])[1])

    def run(self, says: str, *, progress: bool = False) -> None:
        """Time all rounds; ``says`` labels the bar."""
        turns = [name for i in range(self.timing.rounds) for name in self.turns(i)]
        with watch_neighbours() as others:
            for name in tqdm(turns, disable=not progress, **progress_bar("call", says)):
                self.take(name)
        self.others_busy = others.busy

    def ratio(self, over: str, under: str) -> tuple[float, float, float] | None:
        """See `quotient`."""
        return quotient(self.found, over, under)

    def close(self) -> None:
        """Free what only the timing needed."""

    def _timed(self, call: Callable[[], Any]) -> tuple[Any, float]:
        self._synchronize()
        start = time.perf_counter()
        outputs = call()
        self._synchronize()
        return outputs, time.perf_counter() - start

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Race(Turns):
    """Providers of a case on the same tensors in turns.

    Every call starts from the same bank and velocity, restored before the clock starts. That leaves the cache to these
    two, as far as they fit, whoever ran before.
    """

    def __init__(self, case: Case, names: Sequence[str], timing: Timing) -> None:
        """Compile, warm up, and check each of the providers against the reference.

        Raises:
            ParityError: one of them computes something else; there is nothing to measure then.
        """
        super().__init__(timing)
        self.x = draw(case).to(self.device, torch.float32)
        self._bank, self._momentum = self.x.bank.clone(), self.x.momentum.clone()
        self._truth = exact_outputs(case)
        self.result = Result(case, self.found)
        for name in names:
            self._enter(PROVIDERS[name])

    def _enter(self, provider: Provider) -> None:
        case = self.result.case
        reason = provider.unavailable(self.device) or provider.fits(case, self.timing.memory_limit_gb)
        if reason is not None:
            self.found[provider.name] = Measurement(skipped=reason)
            return

        def check(outputs: Outputs) -> float:
            return compare(provider, case, by_name(outputs, self.x, self._bank, case.work), self._truth)

        call = provider.bind(case, self.x)
        try:
            self.enter(provider.name, call, check=check if provider.gated else None, compiles=provider.compiles)
        except ParityError:
            raise
        except Exception as error:
            if not provider.compiles:
                raise
            reason = f"does not compile here: {(str(error) or repr(error)).splitlines()[0][:200]}"
            self.found[provider.name] = Measurement(skipped=reason)

    def restore(self) -> None:
        self.x.bank.copy_(self._bank)
        self.x.momentum.copy_(self._momentum)


def measure(case: Case, names: Sequence[str], timing: Timing, *, memory: bool = True, progress: bool = False) -> Result:
    """Time the providers of a case in turns, then measure the memory of each."""
    if progress:
        tqdm.write(f"{case}: checking the providers against the float64 reference", file=sys.stderr)
    race = Race(case, names, timing)
    race.run(str(case), progress=progress)
    race.result.others_busy = race.others_busy
    if memory:
        measure_memory(race.result, timing, progress=progress)
    return race.result


def measure_memory(result: Result, timing: Timing, *, progress: bool = False) -> None:
    """Fill in the extra peak memory of all providers that ran, but for the floor: its arrays were there before."""
    names = [name for name, found in result.providers.items() if not found.skipped and PROVIDERS[name].gated]
    for name in tqdm(names, disable=not progress, **progress_bar("provider", f"memory of {result.case}")):
        peak = extra_peak(name, result.case, device=timing.device, threads=timing.threads)
        result.providers[name].extra_bytes = peak["extra_bytes"]


def table(result: Result) -> str:
    """Time, memory, and ratios to the plain reference and to the floor; a reason for what was left out."""
    heads = ("median (ms)", "quartiles", "rounds", "extra MB", "x reference", "x floor", "budget used")
    rows: list[tuple[str, ...]] = [("", *heads)]
    notes = []
    for name, found in result.providers.items():
        says = PROVIDERS[name].says
        if found.skipped:
            notes.append(f"not measured: {says}: {found.skipped}")
            continue
        faster, floor = result.ratio("reference", name), result.ratio(name, "products")
        cells = [
            milliseconds(found.median),
            " to ".join(map(milliseconds, found.quartiles)),
            str(len(found.seconds)),
            "" if found.extra_bytes is None else f"{found.extra_bytes / 1e6:,.1f}",
            f"{faster[0]:.2f}" if faster else "",
            f"{floor[0]:.2f}" if floor else "",
            f"{found.budget:.0%}" if found.budget is not None else "",
        ]
        rows.append((says, *cells))
        if PROVIDERS[name].compiles:
            notes.append(f"first call of {says}, with compiling or reading that from disk: {found.first_call:.0f} s")
    notes += _disturbed(result.others_busy)
    return "\n".join([str(result.case), *aligned(rows), *notes])


def times(title: str, found: Mapping[str, Measurement], others_busy: float | None) -> str:
    """Time of each call."""
    rows: list[tuple[str, ...]] = [("", "median (ms)", "quartiles", "rounds", "budget used")]
    for name, one in found.items():
        budget = "" if one.budget is None else f"{one.budget:.0%}"
        spread = " to ".join(map(milliseconds, one.quartiles))
        rows.append((name, milliseconds(one.median), spread, str(len(one.seconds)), budget))
    return "\n".join([title, *aligned(rows), *_disturbed(others_busy)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns; the first column begins where the line does, the others end together."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]


def _disturbed(others_busy: float | None) -> list[str]:
    if others_busy is None or others_busy <= QUIET:
        return []
    return [f"disturbed: other processes used {others_busy:.2f} cores meanwhile"]


def milliseconds(seconds: float) -> str:
    """Three digits at least."""
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"
