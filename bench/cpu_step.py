"""What two choices save a step on a CPU, each step whole: python -m bench.cpu_step --help."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import tyro

from bench.data_share import BATCHES
from bench.machine import conditions, provenance
from bench.measure import aligned
from bench.memory import ROOT
from bench.ntu_like import write_ntu_like
from bench.step import Ours
from fastmc.checks import check_number
from fastmc.config import Preset, preset_config
from fastmc.data.placed.resident import ResidentStore
from fastmc.encoders.bigru import BiGRU
from fastmc.parallel import usable_cores
from train.engine.host_memory import keep_freed_memory

Way = Literal["fastmc", "freed memory given back", "norm applied apart"]
WAYS: tuple[Way, ...] = ("fastmc", "freed memory given back", "norm applied apart")
CLOSE = 1e-4  # relative difference of the losses after the first round


@dataclass(frozen=True)
class CpuStep:
    """Time a whole training step as it is, with malloc as it is by default (`train.engine.host_memory`), and with the
    input norm's weight and bias applied to the input instead of the first layer's weights (`fastmc.encoders.bigru`).

    Each way runs in a process of its own, and the processes take turns. Their losses must agree.
    """

    preset: Preset = "tiny"
    """Settings of the step."""
    rounds: int = 9
    """Turns of each way."""
    steps: int = 20
    """Steps a turn."""
    threads: int = field(default_factory=usable_cores)
    """Threads of torch."""
    only: Way | None = None
    """Only serve this way: a line of input is a turn, a line of output its seconds and the last loss."""

    def __post_init__(self) -> None:
        for name in ("rounds", "steps", "threads"):
            check_number(name, getattr(self, name), at_least=1)


def turn_of(settings: CpuStep, way: Way) -> Callable[[], tuple[float, float]]:
    """A turn of this way in this process: seconds a step, and the loss of the last one."""
    torch.set_num_threads(settings.threads)
    if way != "freed memory given back":
        keep_freed_memory()
    if way == "norm applied apart":
        BiGRU._folds = lambda self, x: False  # type: ignore[method-assign]
    config = preset_config(settings.preset, "synthetic")
    batch = config.optim.batch_size
    with tempfile.TemporaryDirectory() as folder:
        store = ResidentStore(write_ntu_like(Path(folder) / "clips", BATCHES * batch), torch.device("cpu"))
    ours = Ours(replace(config, device="cpu"), store)
    batches, numbers = torch.arange(len(store)).split(batch), itertools.count()

    def turn() -> tuple[float, float]:
        started = time.perf_counter()
        for step in itertools.islice(numbers, settings.steps):
            metrics = ours(batches[step % BATCHES], step)
        return (time.perf_counter() - started) / settings.steps, float(metrics["loss"])

    return turn


def serve(settings: CpuStep, way: Way) -> None:
    turn = turn_of(settings, way)
    for _ in sys.stdin:
        print(json.dumps(turn()), flush=True)


def measure(settings: CpuStep) -> dict[Way, list[float]]:
    """Seconds a step of each way, by turn; the first turn, which warms up, is left out.

    Raises:
        RuntimeError: the losses differ, or a process has died.
    """
    flags = [part for name in ("preset", "steps", "threads") for part in (f"--{name}", str(getattr(settings, name)))]
    command = [sys.executable, "-m", "bench.cpu_step", *flags, "--only"]
    servers = {
        way: subprocess.Popen([*command, way], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for way in WAYS
    }
    seconds: dict[Way, list[float]] = {way: [] for way in WAYS}
    try:
        for number in range(settings.rounds + 1):
            losses = []
            for way, server in servers.items():
                took, loss = _ask(server)
                losses.append(loss)
                seconds[way] += [took] if number else []
            if number == 0 and max(losses) - min(losses) > CLOSE * abs(losses[0]):
                raise RuntimeError(f"the losses are {losses}, so there are no numbers")
    finally:
        for server in servers.values():
            server.kill()
            server.wait()
    return seconds


def _ask(server: subprocess.Popen[str]) -> tuple[float, float]:
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write("\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        raise RuntimeError("a measuring process has died; what it said is above")
    took, loss = json.loads(answer)
    return took, loss


def table(seconds: dict[Way, list[float]]) -> str:
    """Median and quartiles of each way, and its ratio to ours, turn by turn."""
    rows = [("", "ms a step", "over fastmc")]
    for way, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds["fastmc"], strict=True)]
        rows.append((way, _spread([1e3 * s for s in own], 1), _spread(ratios, 2)))
    return "\n".join(aligned(rows))


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"{middle:.{digits}f} [{low:.{digits}f}-{high:.{digits}f}]"


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(CpuStep, prog="python -m bench.cpu_step", args=args)
    if settings.only is not None:
        serve(settings, settings.only)
        return 0
    print(f"a step of preset {settings.preset}, {settings.rounds} turns of {settings.steps} steps")
    print(table(measure(settings)))
    print(conditions(provenance("cpu", settings.threads)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
