"""One run on several ranks: the bytes that they exchange, a model of its time on GPUs, and 1 against 2 ranks here."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple
from unittest import mock

import torch
import tyro
from torch import Tensor
from torch.nn import Parameter
from triton.runtime.jit import JITFunction

from bench.aot import compile_launches
from bench.counting import PartWork, count_parts
from bench.ledger_data import ntu_like_clips
from bench.ledger_step import TrainingStep, as_on_a_gpu, model
from bench.machine import conditions, provenance
from bench.ntu_like import write_ntu_like
from bench.providers import Case
from fastmc.build import build_model
from fastmc.checks import Count, check_ranges
from fastmc.config import Preset, preset_config
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.ranks import shares
from train.engine.loop import build_step
from train.engine.ranks import Place, opened
from train.engine.world import World

OF_ALL = ("mc", "bank")
"""Parts of a step that every rank does for the whole batch; of all others it does its share."""
LATENCY = 20e-6
"""Seconds of an exchange between GPUs of a node that does not depend on its bytes. ASSUMED."""
COUNTED = 64
"""B at which Triton's kernels are counted."""
NVLINK = 450e9
"""Bytes a second that an H100 SXM sends to the others of its node at most, by NVIDIA's data sheet."""


@dataclass(frozen=True)
class RanksBench:
    """Count what ranks exchange in a step of the paper's size, and model that step on the GPUs of a node; or --time."""

    batches: tuple[Count, ...] = (64, 256, 1024)
    """B, of all ranks."""
    ranks: tuple[Count, ...] = (1, 2, 4, 8)
    """How many."""
    time: bool = False
    """Instead: measure 1 against 2 ranks of one thread each on this machine, in turns."""
    preset: Preset = "small"
    """Of what is timed."""
    rounds: Count = 7
    """Turns of each side."""
    steps: Count = 6
    """Steps of a turn."""

    def __post_init__(self) -> None:
        check_ranges(self)


class Exchange(NamedTuple):
    """Of a step: what it carries, and bytes that a rank has of its own before it."""

    carries: str
    kind: str
    """gather: each rank gives what it has to all others. sum: all get the sum."""
    bytes: int

    def sent(self, ranks: int) -> float:
        """Bytes that each rank sends, if they stand in a ring: those of a gather pass through all but one, a sum is
        first scattered and then gathered."""
        return self.bytes * (ranks - 1) * (1 if self.kind == "gather" else 2 / ranks)

    def seconds(self, ranks: int) -> float:
        return 0.0 if ranks == 1 else LATENCY + self.sent(ranks) / NVLINK


class Counted(World):
    """Rank 0 of so many, which hears from the others what it said itself, and notes what it gave."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.exchanges: list[Exchange] = []

    def stack(self, tensor: Tensor) -> Tensor:
        carries = "statistics of an input norm" if tensor.shape[1] % 2 else "features f0 to f3"
        self.exchanges.append(Exchange(carries, "gather", tensor.nbytes))
        return tensor[None].expand(self.size, *tensor.shape)

    def gradient_sum(self, weights: Sequence[Parameter]) -> Callable[[], None]:
        def note() -> None:
            numbers = sum(weight.numel() for weight in weights)
            self.exchanges.append(Exchange("gradients, in float32", "sum", 4 * numbers))

        return note


@contextmanager
def without_a_gpu() -> Iterator[None]:
    """Within, steps on tensors without memory ask for PyTorch's operators as on a GPU, and for no Triton kernel."""
    with as_on_a_gpu(), compile_launches("cuda:90"), mock.patch.object(JITFunction, "run"):
        yield


def exchanges_of(batch: int, ranks: int) -> list[Exchange]:
    """Of a step of the paper's size in bfloat16, as the engine makes it, on tensors without memory."""
    world = Counted(ranks)
    size = TrainingStep(Case(batch=batch))
    with without_a_gpu():
        stepper = size.stepper(world)
        stepper.advance(ntu_like_clips(shares(batch, ranks)[0], size.bodies, "meta"))
    return world.exchanges


class Model:
    """Of a step of the paper's size on ranks of H100s: seconds of its work, by `bench.ledger`, and its exchanges."""

    def __init__(self) -> None:
        """Counts Triton's kernels at B = 64, on the interpreter: that of other batches takes as long as clips ask."""
        self._rows = TrainingStep(Case(batch=COUNTED)).triton_rows()
        self._parts: dict[int, dict[str, float]] = {}

    def seconds(self, batch: int, ranks: int) -> tuple[float, float]:
        share = shares(batch, ranks)[0]
        own, whole = self._seconds_of_parts(share), self._seconds_of_parts(batch)
        work = sum(whole[name] if name in OF_ALL else seconds for name, seconds in own.items())
        return work, sum(exchange.seconds(ranks) for exchange in exchanges_of(batch, ranks))

    def _seconds_of_parts(self, batch: int) -> dict[str, float]:
        """Of one rank with so many clips."""
        if batch not in self._parts:
            size = TrainingStep(Case(batch=batch))
            clips = ntu_like_clips(batch, size.bodies, "meta")
            with without_a_gpu():
                step = size.stepper()
                works = count_parts(lambda: step.advance(clips))
            self._parts[batch] = {
                name: sum(model(work, self._rows_at(batch, name), size.amp).values())
                for name, work in ({name: PartWork() for name in OF_ALL} | works).items()
            }
        return self._parts[batch]

    def _rows_at(self, batch: int, name: str) -> list[dict[str, Any]]:
        """Of Triton's kernels in a part. Their work goes with the clips, but for the update's."""
        times = 1.0 if name == "optimizer" else batch / COUNTED
        costs = ("first_touch_bytes", "seconds_at_least")
        return [{cost: times * row[cost] for cost in costs} for row in self._rows.get(name, ())]


def tables(settings: RanksBench) -> str:
    """The two tables of docs/scaling.md."""
    most = max(settings.ranks)
    lines = [f"Bytes of a step in bfloat16, B = {settings.batches[0]}, {most} ranks:", ""]
    lines += ["| exchange | kind | bytes of a rank's own | sent by each rank |", "|---|---|---|---|"]
    lines += [
        f"| {e.carries} | {e.kind} | {e.bytes:,} | {e.sent(most):,.0f} |"
        for e in exchanges_of(settings.batches[0], most)
    ]
    lines += ["", "| B | ranks | clips of a rank | work | exchanges | step | clips/s | over 1 rank |", "|" + "---|" * 8]
    modelled = Model()
    for batch in settings.batches:
        alone = sum(modelled.seconds(batch, 1))
        for ranks in settings.ranks:
            work, exchanged = modelled.seconds(batch, ranks)
            step = work + exchanged
            lines.append(
                f"| {batch} | {ranks} | {shares(batch, ranks)[0]} | {1e3 * work:.2f} ms | {1e3 * exchanged:.2f} ms "
                f"| {1e3 * step:.2f} ms | {batch / step:,.0f} | {alone / step:.2f} |"
            )
    return "\n".join(lines)


# --- On this machine

BATCHES = 8
"""Batches that timed steps go through, over and over again."""


def work(preset: Preset, folder: Path, steps: int) -> None:
    """A rank: for each line of its input, so many steps; rank 0 answers with their seconds."""
    torch.set_num_threads(1)
    with opened(Place.of_environment(), "cpu", 600.0) as world:
        config = preset_config(preset)
        if world.writes:
            write_ntu_like(folder, BATCHES * config.optim.batch_size)
        world.agree(0)
        store = ResidentStore(PackedStore.open(folder), "cpu")
        stepper = build_step(config, build_model(config, store, store.device), world=world)
        batches = torch.arange(len(store)).split(config.optim.batch_size)
        number = 0
        for _ in sys.stdin:
            world.agree(0)
            start = perf_counter()
            for _ in range(steps):
                ids = world.part(batches[number % BATCHES], config.optim.batch_size)
                stepper.prepare(ids, number, config.optim.lr)
                stepper.advance(store.select(ids))
                world.agree(0, 0, 0)  # as the loop does
                number += 1
            if world.rank == 0:
                print(perf_counter() - start, flush=True)


class Side:
    """So many ranks that wait for their turns."""

    def __init__(self, ranks: int, settings: RanksBench, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "bench.ranks", "work", settings.preset, str(folder), str(settings.steps)]
        self._ranks = [
            subprocess.Popen(
                command,
                env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]

    def turn(self) -> float:
        """Seconds of a turn."""
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write("go\n")
            rank.stdin.flush()
        assert self._ranks[0].stdout is not None
        return float(self._ranks[0].stdout.readline())

    def end(self) -> None:
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.close()
            rank.wait()


@contextmanager
def sides(settings: RanksBench) -> Iterator[tuple[Side, Side]]:
    """One rank and two, ready; their first turn, which compiles, is over."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as ends:
        found = []
        for ranks in (1, 2):
            side = Side(ranks, settings, Path(folder) / f"clips{ranks}")
            ends.callback(side.end)
            side.turn()
            found.append(side)
        yield found[0], found[1]


def timed(settings: RanksBench) -> str:
    """How many times as fast two ranks are, each on a core of its own."""
    with sides(settings) as (one, two):
        turns = [(one.turn(), two.turn()) for _ in range(settings.rounds)]
    ratios = [alone / both for alone, both in turns]
    quartiles = statistics.quantiles(ratios, n=4)
    alone, both = (1e3 * statistics.median(side) / settings.steps for side in zip(*turns, strict=True))
    return (
        f"preset {settings.preset}, 1 rank {alone:.0f} ms a step, 2 ranks {both:.0f} ms, one thread each: "
        f"{statistics.median(ratios):.2f} times as fast [{quartiles[0]:.2f}-{quartiles[2]:.2f}], "
        f"{settings.rounds} turns of {settings.steps} steps\n{conditions(provenance(threads=1))}"
    )


def main(args: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if args is None else args)
    if words[:1] == ["work"]:
        work(words[1], Path(words[2]), int(words[3]))  # type: ignore[arg-type]
        return 0
    settings = tyro.cli(RanksBench, prog="python -m bench.ranks", args=args)
    print(timed(settings) if settings.time else tables(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
