"""What a section is given, and the process that it runs in: python -m bench.gpu.section SETTINGS.

A section has a process of its own, since an error of CUDA's stays with the process that met it. It writes its findings
to a file at every addition, so that whatever ends it leaves what it had found.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fastmc.files import write_json
from train.engine.stopping import when_orphaned

Result = TypeVar("Result")
MARGIN = 0.85
"""The share of its time after which a section begins nothing new; after all of it, it is ended."""


@dataclass(frozen=True)
class Settings:
    """Of a section's process.

    Attributes:
        module: of the section.
        seconds: after which the process is ended.
        out: folder of the report. work: a folder for what is not to stay, the same for all sections.
        result: the file of this section's findings. report: that of all sections.
    """

    module: str
    rehearsal: bool
    seconds: float
    out: str
    work: str
    result: str
    report: str

    def words(self) -> str:
        return json.dumps(asdict(self))


@dataclass
class Findings:
    """What is known so far, written to ``path`` at every addition.

    Attributes:
        numbers: a key's value, in SI units; report.py knows which are headlines.
        tables: rows by title; notes; code to be copied, by title.
    """

    path: Path
    device: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    code: dict[str, str] = field(default_factory=dict)
    error: str | None = None

    def number(self, name: str, value: float) -> None:
        self.numbers[name] = float(value)
        self.write()

    def row(self, table: str, /, **cells: Any) -> None:
        """A row of a table; names of cells with ``_`` are shown with spaces."""
        self.tables.setdefault(table, []).append(cells)
        self.write()

    def replace(self, table: str, rows: list[dict[str, Any]]) -> None:
        """All rows of a table."""
        self.tables[table] = rows
        self.write()

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.write()

    def listing(self, title: str, text: str) -> None:
        self.code[title] = text
        self.write()

    def write(self) -> None:
        write_json(self.path, {name: value for name, value in vars(self).items() if name != "path"})


class Bench:
    """Where a section runs, for how long, and what it has found.

    Attributes:
        device: cuda, or cpu in a rehearsal.
        sizes: the product's, or a rehearsal's.
    """

    def __init__(self, settings: Settings) -> None:
        import torch

        from bench.gpu.sizes import PRODUCT, REHEARSAL
        from train.run import choose_device

        self.settings, self.rehearsal = settings, settings.rehearsal
        self.sizes = REHEARSAL if settings.rehearsal else PRODUCT
        self.device = choose_device("cpu" if settings.rehearsal else "cuda")  # as a command has it
        self.out, self.work = Path(settings.out), Path(settings.work)
        self.found = Findings(Path(settings.result))
        if self.rehearsal:
            torch.set_num_threads(1)  # interpreted kernels are too small for more
        self.failures: list[str] = []
        """What `attempt` has seen fail."""
        self._ends = time.monotonic() + MARGIN * settings.seconds

    def left(self) -> float:
        """Seconds until nothing new should begin; negative after that."""
        return self._ends - time.monotonic()

    def has(self, seconds: float, what: str) -> bool:
        """Whether so much time is left; notes what is left out if not. A rehearsal has time for everything."""
        if self.left() >= (0 if self.rehearsal else seconds):
            return True
        self.found.note(f"left out for want of time: {what}")
        return False

    def attempt(self, what: str, action: Callable[..., Result], *arguments: Any) -> Result | None:
        """What the action returns, or None if it fails. A failure is written down, and counts when the section ends."""
        try:
            return action(*arguments)
        except Exception:
            self.found.listing(f"{what} failed", traceback.format_exc())
            self.failures.append(what)
            return None

    def numbers_of(self, letter: str) -> Mapping[str, float]:
        """Numbers of an earlier section; empty if there are none."""
        report = Path(self.settings.report)
        if not report.exists():
            return {}
        section = json.loads(report.read_text(encoding="utf-8"))["sections"].get(letter, {})
        return section.get("found", {}).get("numbers", {})


def device_facts() -> dict[str, Any]:
    """What PyTorch says of the card and of the libraries around it."""
    import torch

    if not torch.cuda.is_available():
        return {}
    card = torch.cuda.get_device_properties(0)
    return {
        "card": card.name,
        "compute capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory (GiB)": round(card.total_memory / 2**30, 1),
        "L2 (MB)": round(card.L2_cache_size / 1e6, 1),
        "CUDA of torch": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }


def end_with_parent() -> None:
    """Once the process that started this one has died, however that came about, end this one and all that it has
    started: else they would hold a GPU that nobody waits for."""
    if os.getpgrp() == os.getpid():
        when_orphaned(os.getppid(), lambda: os.killpg(os.getpid(), signal.SIGKILL))


def main(words: str) -> int:
    end_with_parent()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background jobs ignore it, children inherit that
    settings = Settings(**json.loads(words))
    bench = Bench(settings)
    try:
        if settings.rehearsal:  # its kernels are interpreted
            from bench.interpreter import repair

            repair()
        bench.found.device = device_facts()
        bench.found.write()
        importlib.import_module(settings.module).run(bench)
        if bench.failures:
            raise RuntimeError(f"failed: {', '.join(bench.failures)}; the tracebacks are above")
    except Exception:
        bench.found.error = traceback.format_exc()
        bench.found.write()
        print(bench.found.error, file=sys.stderr)
        return 1
    bench.found.write()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
