"""How a queue of runs is shown: on a terminal a line a device, elsewhere a line where a run starts or ends."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from train.engine.record import duration, log

EACH = 1.0
"""Seconds between two looks at what runs."""
TAIL = 4096  # bytes of a run's output among which its last line is looked for


class Picture:
    """What runs where. Used as a context; any thread may tell it what happens.

    Args:
        devices: names, a line each.
        total: number of runs.
    """

    def __init__(self, devices: Sequence[str], total: int) -> None:
        self.total, self.ended_so_far = total, 0
        self.running: dict[str, tuple[str, Path, float]] = {}
        self.change = threading.Lock()
        self.over = threading.Event()
        self.bars: dict[str, Any] = {}
        self.watching: threading.Thread | None = None
        if sys.stderr.isatty():
            line = {"bar_format": "{desc}", "leave": False, "file": sys.stderr}
            self.bars = {name: tqdm(position=n, **line) for n, name in enumerate(["", *devices])}
            self.watching = threading.Thread(target=self._watch, name="fastmc-picture", daemon=True)

    def __enter__(self) -> Picture:
        if self.watching is not None:
            self.watching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.watching is not None:
            self.watching.join()
        for bar in reversed(self.bars.values()):
            bar.close()

    def starts(self, device: str, name: str, output: Path) -> None:
        with self.change:
            self.running[device] = (name, output, time.monotonic())
        if not self.bars:
            log.info("%s: starts on %s", name, device)

    def ends(self, device: str, outcome: str) -> None:
        with self.change:
            name, _, since = self.running.pop(device)
            self.ended_so_far += 1
            count = self.ended_so_far
        log.info("%s: %s after %s (%d of %d)", name, outcome, duration(time.monotonic() - since), count, self.total)

    def _watch(self) -> None:
        while not self.over.wait(EACH):
            self.draw()

    def draw(self) -> None:
        """Every line as it is now."""
        with self.change:
            running, ended = dict(self.running), self.ended_so_far
        width = shutil.get_terminal_size().columns - 1
        for device, bar in self.bars.items():
            if not device:
                text = f"{ended} of {self.total} runs have ended, {len(running)} run"
            elif device in running:
                name, output, since = running[device]
                text = f"{device}  {name}  {duration(time.monotonic() - since)}  {last_line(output)}"
            else:
                text = f"{device}  -"
            bar.set_description_str(text[:width])


def last_line(output: Path) -> str:
    """The last line of a file that grows, '' of one that has none."""
    with suppress(OSError), output.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
        return next((line.rpartition("\r")[2].strip() for line in reversed(lines) if line.strip()), "")
    return ""
