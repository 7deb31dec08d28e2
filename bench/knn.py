"""kNN of a large set, in tiles and by one matrix: python -m bench.knn --help."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F

from bench.measure import aligned
from bench.memory import ROOT, extra_resident_bytes
from fastmc.evaluation import knn_predict
from fastmc.parallel import usable_cores

CLASSES = 60
Way = Literal["tiles", "matrix"]


@dataclass(frozen=True)
class Knn:
    """Nearest neighbours of random features, the size of NTU-60: time and extra peak memory of both ways.

    Example: python -m bench.knn --train 10000 --test 4000

    First the predictions are checked to be the same. Each way is measured in processes of its own.
    """

    train: int = 40_000
    """Training clips."""
    test: int = 16_000
    """Test clips."""
    dim: int = 2048
    """H, numbers of a feature."""
    k: int = 1
    """Neighbours."""
    rounds: int = 1
    """Timed calls of each way, in turns; the fastest counts."""
    threads: int = field(default_factory=usable_cores)
    """Threads of torch."""
    memory_of: Way | None = None
    """Only measure the extra memory of this way, here, and print it in bytes."""


def one_matrix(train: Tensor, labels: Tensor, test: Tensor, k: int) -> Tensor:
    """The plain way: all similarities at once, (N_test, N_train)."""
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    nearest = labels[(test @ train.T).topk(k, dim=1).indices]
    votes = (nearest[:, :, None] == nearest[:, None, :]).sum(dim=2)
    return nearest.gather(1, votes.argmax(dim=1, keepdim=True))[:, 0]


WAYS: dict[Way, Callable[[Tensor, Tensor, Tensor, int], Tensor]] = {"tiles": knn_predict, "matrix": one_matrix}


def draw(settings: Knn) -> tuple[Tensor, Tensor, Tensor]:
    """train (N, H), labels (N,), test (n, H)."""
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(settings.train, settings.dim, generator=generator)
    labels = torch.randint(CLASSES, (settings.train,), generator=generator)
    return train, labels, torch.randn(settings.test, settings.dim, generator=generator)


def extra_memory(way: Way, settings: Knn) -> int:
    """Extra peak memory of one call in a fresh process, bytes."""
    names = ("train", "test", "dim", "k", "threads")
    flags = [part for name in names for part in (f"--{name}", str(getattr(settings, name)))]
    command = [sys.executable, "-m", "bench.knn", *flags, "--memory-of", way]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _memory_here(settings: Knn, way: Way) -> int:
    train, labels, test = draw(settings)
    small = train[: 4 * settings.k]
    WAYS[way](small, labels[: len(small)], test[:4], settings.k)  # loads libraries and starts threads
    return extra_resident_bytes(lambda: WAYS[way](train, labels, test, settings.k))


def measure(settings: Knn) -> str:
    """A table; RuntimeError where the predictions differ."""
    arrays = draw(settings)
    seconds: dict[Way, list[float]] = {way: [] for way in WAYS}
    found: dict[Way, Tensor] = {}
    for _ in range(settings.rounds):
        for way, call in WAYS.items():
            started = time.perf_counter()
            found[way] = call(*arrays, settings.k)
            seconds[way].append(time.perf_counter() - started)
    different = int((found["tiles"] != found["matrix"]).sum())
    if different:
        raise RuntimeError(f"{different} of {settings.test} predictions differ; there is nothing to measure then")
    del arrays
    rows = [("", "seconds", "GFLOP/s", "extra peak MB")]
    work = 2e-9 * settings.train * settings.test * settings.dim
    for way in WAYS:
        best = min(seconds[way])
        memory = extra_memory(way, settings) / 1e6
        rows.append((way, f"{best:.1f}", f"{work / best:.0f}", f"{memory:,.1f}"))
    size = f"{settings.train:,} x {settings.test:,} x {settings.dim:,}, k = {settings.k}, {settings.threads} threads"
    return "\n".join([f"kNN of {size}; predictions are equal", *aligned(rows)])


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    settings = tyro.cli(Knn, prog="python -m bench.knn", args=args)
    torch.set_num_threads(settings.threads)
    if settings.memory_of is not None:
        print(json.dumps(_memory_here(settings, settings.memory_of)))
    else:
        print(measure(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
