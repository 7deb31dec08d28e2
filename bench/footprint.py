"""Memory of a whole run, part by part: python -m bench.footprint --help. bench/memory.py has that of a single call."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from bench.measure import aligned
from bench.memory import CLEAR_REFS, RESET_PEAK, STATUS

CLASSES = 60
PARTS_OF_STEPS = 4


@dataclass(frozen=True)
class Footprint:
    """What a run on a CPU has in memory while it goes through its parts, on clips with the lengths of NTU RGB+D 60.

    Every part is a row: the memory of this process after it, and the most that there was meanwhile, by the system's
    count of pages that are resident. Pages of files, such as the store's, are counted apart: the system takes them back
    when it needs them. The steps come in four equal parts, so that what grows from step to step is seen.
    """

    clips: int = 40_000
    """N: 40,091 train in xsub of NTU-60."""
    test: int = 4_000
    """Of them, for testing."""
    preset: str = "tiny"
    """tiny, small or paper: of the run."""
    steps: int = 400
    """Steps of training. A run's epoch has as many as its batches go into the clips."""
    probes: int = 3
    """kNN probes, one after the other."""
    linear_epochs: int = 1
    """Epochs of the linear classifier at the end, which has the features of 8 crops of every clip; 0 for none."""
    store: Path | None = None
    """A store to use; by default one is made of smooth random motion, and removed."""


class Resident(NamedTuple):
    """Bytes of this process: of memory of its own, of files, and the most of both together since the last `reset`."""

    own: int
    files: int
    peak: int


def resident() -> Resident:
    fields = dict(line.split(":") for line in STATUS.read_text(encoding="ascii").splitlines())
    own, files, peak = (1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssFile", "VmHWM"))
    return Resident(own, files, peak)


class Parts:
    """The parts that were gone through, each with what is resident after it."""

    def __init__(self) -> None:
        self.found: list[tuple[str, Resident]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Within: this part."""
        gc.collect()
        CLEAR_REFS.write_text(RESET_PEAK)
        yield
        self.found.append((name, resident()))

    def text(self) -> str:
        rows: list[tuple[str, ...]] = [("MB after each part", "own", "of that new", "files", "peak")]
        before = 0
        for name, now in self.found:
            cells = (now.own, now.own - before, now.files, now.peak)
            rows.append((name, *(f"{x / 1e6:,.0f}" for x in cells)))
            before = now.own
        return "\n".join(aligned(rows))


def measure(settings: Footprint, store_path: Path, parts: Parts) -> dict[str, int]:
    """Go through a run's parts; returns the bytes of the arrays that are known to be there."""
    with parts.part("Python and PyTorch"):
        from fastmc.data.store import PackedStore
        from train.command.parse import parse
        from train.engine.loop import Pretraining
        from train.run import choose_device
        from train.runs.report import evaluate_encoder
    with parts.part("store opened"):
        store = PackedStore.open(store_path)
    run_folder = store_path.parent / "run"
    flags = ["--preset", settings.preset, "--linear-epochs", str(settings.linear_epochs or 1)]
    config = replace(parse(flags), protocol=store.protocols[0], out=run_folder)
    with parts.part("frames placed, model, optimizer, bank"):
        pretraining = Pretraining(config, store, run_folder, choose_device("cpu"))
    steps = _forever(pretraining)
    with parts.part("first step, with what it compiles"):
        next(steps)
    for n in range(PARTS_OF_STEPS):
        share = settings.steps // PARTS_OF_STEPS
        with parts.part(f"steps {n * share + 2} to {(n + 1) * share + 1}"):
            for _ in range(share):
                next(steps)
    with parts.part("checkpoint"):
        pretraining.save()
    for n in range(settings.probes):
        with parts.part(f"kNN probe {n + 1}"):
            pretraining.probe()
    with parts.part(f"{settings.steps // PARTS_OF_STEPS} steps more"):
        for _ in range(settings.steps // PARTS_OF_STEPS):
            next(steps)
    if settings.linear_epochs:
        with parts.part("kNN and linear evaluation"):
            evaluate_encoder(pretraining.model, store, pretraining.data, config)
    return known_bytes(pretraining)


def _forever(pretraining: Any) -> Iterator[None]:
    """A step at a time."""
    while True:
        for ids, clips in pretraining._remaining_batches():
            pretraining._advance(ids, clips)
            yield
        pretraining._start_epoch(pretraining.epoch + 1)


def known_bytes(pretraining: Any) -> dict[str, int]:
    """Of the arrays of a run, by part."""

    def total(tensors: Any) -> int:
        return sum(t.nbytes for t in tensors)

    model, slots = pretraining.model, pretraining.stepper.update.optimizer.state.values()
    found = {
        "query encoder": total([*model.query.parameters(), *model.query.buffers()]),
        "key encoder": total([*model.key.parameters(), *model.key.buffers()]),
        "bank and its velocity": total([model.bank.entries, model.bank.momentum]),
        "optimizer": total(value for slot in slots for value in slot.values() if hasattr(value, "nbytes")),
    }
    frames = getattr(pretraining.data, "frames", None)
    return found if frames is None else {"frames": total([frames]), **found}


def run(settings: Footprint, say: Callable[[str], None] = print) -> None:
    parts = Parts()
    with tempfile.TemporaryDirectory() as folder:
        path = settings.store or _written(Path(folder) / "clips", settings)
        known = measure(settings, path, parts)
    say(f"preset {settings.preset}, {settings.clips:,} clips")
    say(parts.text())
    say("arrays in MB: " + ", ".join(f"{name} {size / 1e6:,.1f}" for name, size in known.items()))


def _written(path: Path, settings: Footprint) -> Path:
    """A store, written by a process of its own: what it takes is no part of a run."""
    write = f"write_ntu_like({str(path)!r}, {settings.clips}, test={settings.test})"
    subprocess.run([sys.executable, "-c", f"from bench.ntu_like import write_ntu_like; {write}"], check=True)
    return path


def main(args: Sequence[str] | None = None) -> int:
    run(tyro.cli(Footprint, prog="python -m bench.footprint", args=args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
