"""Kills the program at random moments and compares what it ends with, bit for bit: make soak MINUTES=10.

A preparation, a training run or an evaluation is started in a fork of this process, which has its imports behind it,
and killed with SIGKILL after a random time; the same command is given again, and killed again, a few times, and then
left to its end. What is on disk has to be what a command leaves that nobody has killed: stores, checkpoints, metrics,
reports and kept features, but for times; and no temporary file may stay behind. Prints a count by stage. The folder of
a round that failed is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from test_train import FAST, assert_same_state, state_of

from fastmc.data.store import PackedStore
from fastmc.figures import style  # noqa: F401  a fork has it, and matplotlib, behind it
from train import evaluate, prepare, run
from train.engine.record import read_metrics

TIMES = {"seconds", "steps_per_second", "samples_per_second", "wall_seconds"}
MOST_KILLS = 6
"""Of one round; it is left alone after them."""


@dataclass(frozen=True)
class Stage:
    """A command that is killed.

    Attributes:
        arguments: for a folder of its own.
        compare: raises if what the command has left in one folder is not what it left in another.
        before: puts into a folder what the command needs.
    """

    name: str
    main: Callable[[list[str]], int]
    arguments: Callable[[Path], list[str]]
    compare: Callable[[Path, Path], None]
    before: Callable[[Path], None] = lambda folder: None


@dataclass
class Counts:
    rounds: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        rows = [f"{name}: {self.kills[name]} kills in {count} rounds" for name, count in self.rounds.items()]
        total = f"{sum(self.kills.values())} kills in {sum(self.rounds.values())} rounds, {len(self.failed)} failed"
        return "\n".join([*rows, total, *self.failed])


def stages(work: Path) -> list[Stage]:
    """Preparation of synthetic files, training on them, and an evaluation of that run."""
    data, trained = work / "reference" / "prepare", work / "reference" / "train"

    def train(folder: Path) -> list[str]:
        root = ["--data-root", str(data), "--out", str(folder / "run")]
        often = ["--checkpoint-minutes", "0", "--probe-every", "1"]
        return [*FAST, *root, *often, "--dataset", "small", "--batch-size", "16", "--bank-size", "32", "--epochs", "3"]

    def linear(folder: Path) -> list[str]:
        few = ["--linear-epochs", "4", "--train-crops", "4", "--test-crop", "0.9"]
        return ["linear", "--run", str(folder / "run"), "--device", "cpu", *few]

    def make_small(folder: Path) -> list[str]:
        size = ["--subjects", "2", "--replications", "1", "--workers", "1"]
        return ["synthetic", "--out", str(folder / "small"), *size]

    return [
        Stage("prepare", prepare.main, make_small, same_store),
        Stage("train", run.main, train, same_run),
        Stage("evaluate", evaluate.main, linear, same_run, lambda folder: copy_run(trained / "run", folder / "run")),
    ]


def copy_run(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("features", "evaluate", ".lock"))


def same_store(ours: Path, theirs: Path) -> None:
    a, b = (folder / "small" for folder in (ours, theirs))
    PackedStore.open(a).verify()
    assert sorted(p.name for p in a.iterdir()) == sorted(p.name for p in b.iterdir())
    for path in b.iterdir():
        if path.suffix in (".npy", ".json"):
            assert path.read_bytes() == (a / path.name).read_bytes(), path.name
    no_leftovers(ours)


def same_run(ours: Path, theirs: Path) -> None:
    a, b = ours / "run", theirs / "run"
    assert_same_state(state_of(a), state_of(b))
    rows = [[without_times(row) for row in read_metrics(folder / "metrics.csv")] for folder in (a, b)]
    assert rows[0] == rows[1], "metrics.csv"
    files = sorted(path.relative_to(b) for path in b.rglob("*.json") if path.name != "environment.json")
    assert files == sorted(path.relative_to(a) for path in a.rglob("*.json") if path.name != "environment.json")
    for name in files:
        found = [without_times(json.loads((folder / name).read_text())) for folder in (a, b)]
        for one in found:
            one.pop("out", None)
        assert found[0] == found[1], name
    arrays = sorted(path.relative_to(b) for path in b.rglob("features/*/*.npy"))
    assert arrays == sorted(path.relative_to(a) for path in a.rglob("features/*/*.npy"))
    for name in arrays:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    no_leftovers(ours)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in TIMES}
    return value


def no_leftovers(folder: Path) -> None:
    left = [path for path in folder.rglob("*") if ".tmp" in path.name or path.name.startswith(".unfinished")]
    assert not left, f"left behind: {left}"


def start(main: Callable[[list[str]], int], arguments: Sequence[str], output: Path) -> int:
    """The command in a fork of this process; its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(output, "a", encoding="utf-8") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        code = main(list(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def soak_once(stage: Stage, folder: Path, reference: Path, seconds: float, chance: random.Random) -> int:
    """Kill, and give the same command again, until it ends; how often it was killed. AssertionError if it ends with
    something else than the reference."""
    folder.mkdir(parents=True)
    stage.before(folder)
    for kills in range(MOST_KILLS + 1):
        child = start(stage.main, stage.arguments(folder), folder / "output.txt")
        deadline = time.monotonic() + (chance.uniform(0, seconds) if kills < MOST_KILLS else 600)
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
            time.sleep(0.002)
        if ended[0]:
            # Killed between the end of its work and its own end, it has nothing left to do.
            said = (folder / "output.txt").read_text()[-200:]
            is_there = kills and "already holds a store" in said
            code = os.waitstatus_to_exitcode(ended[1])
            assert code == 0 or is_there, f"it failed after {kills} kills, see {folder}/output.txt"
            break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert kills < MOST_KILLS, f"it hangs, see {folder}/output.txt"
    stage.compare(folder, reference)
    return kills


def soak(minutes: float, seed: int, work: Path) -> Counts:
    """Rounds of all stages in turn for so long."""
    torch.set_num_threads(1)  # a fork has no other threads
    counts, chance, began = Counts(), random.Random(seed), time.monotonic()
    durations = {}
    for stage in (all_stages := stages(work)):
        reference = work / "reference" / stage.name
        reference.mkdir(parents=True)
        stage.before(reference)
        started = time.monotonic()
        assert finish(start(stage.main, stage.arguments(reference), reference / "output.txt")) == 0, reference
        durations[stage.name] = time.monotonic() - started
    number = 0
    while time.monotonic() - began < 60 * minutes:
        stage = all_stages[number % len(all_stages)]
        folder = work / f"{number:06d}-{stage.name}"
        number += 1
        counts.rounds[stage.name] += 1
        try:
            reference = work / "reference" / stage.name
            counts.kills[stage.name] += soak_once(stage, folder, reference, 1.1 * durations[stage.name], chance)
        except Exception as error:
            counts.failed.append(f"{stage.name} in {folder}: {str(error) or repr(error)}")
        else:
            shutil.rmtree(folder)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="how long (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--work", type=Path, help="folder to work in; by default a temporary one")
    asked = parser.parse_args()
    work = asked.work or Path(tempfile.mkdtemp(prefix="fastmc-soak-"))
    counts = soak(asked.minutes, asked.seed, work)
    print(counts)
    if not counts.failed:
        shutil.rmtree(work)
    return len(counts.failed) > 0


if __name__ == "__main__":
    sys.exit(main())
