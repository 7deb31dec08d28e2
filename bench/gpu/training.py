"""Section h: a training run through the command line on data of NTU-60's size, stopped and resumed."""

from __future__ import annotations

import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.gpu.runner import ROOT, nvidia_smi
from bench.gpu.section import Bench
from bench.ntu_like import write_ntu_like
from train.engine.record import read_metrics

DATASET, RUN = "ntu-like", "run"
EPOCHS = 750
TABLE, EPOCH_TABLE = "The run", "Epochs of the run, by its log"
LOOK, LOOK_AT_MEMORY = 0.25, 3.0
"""Seconds between two looks."""
FOR_RESUMING = 0.35
"""The share of the time that is kept for the resumed run."""
TO_STOP = 60.0
"""Seconds that a run has to end in when it is told to: it ends after its step, which may be one that compiles."""
STAMP = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) epoch (\d+)/")


class Run:
    """A run of train.run, as a user starts it."""

    def __init__(self, bench: Bench, *extra: str) -> None:
        self.folder = bench.work / RUN
        self.memory = 0.0
        """Most that nvidia-smi has seen in use on the card, in bytes."""
        command = [
            *(sys.executable, "-m", "train.run", "--dataset", DATASET, "--data-root", str(bench.work)),
            *("--out", str(self.folder), "--checkpoint-minutes", "0.3", *bench.sizes.training_flags, *extra),
        ]
        self._said = bench.work / f"{RUN}.txt"
        with self._said.open("w", encoding="utf-8") as said:
            print(*command, file=said, flush=True)
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said)
        self._looked = 0.0

    def wait_until(self, reached: Callable[[], bool], seconds: float) -> bool:
        """Wait for it, and return whether it came in time.

        Raises:
            RuntimeError: the run has ended by itself.
        """
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                raise RuntimeError(f"train.run ended with {self._process.returncode}:\n{self.said()[-3000:]}")
            if reached():
                return True
            if time.monotonic() - self._looked > LOOK_AT_MEMORY:
                self._looked = time.monotonic()
                used = nvidia_smi().get("memory.used", "").partition(" ")[0]
                self.memory = max(self.memory, 2**20 * float(used) if used.isdigit() else 0.0)
            time.sleep(LOOK)
        return False

    def stop(self) -> int:
        """As Ctrl-C does; returns the exit code. RuntimeError if it does not stop."""
        self._process.send_signal(signal.SIGINT)
        try:
            return self._process.wait(TO_STOP)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"train.run did not stop within {TO_STOP:g} s") from None

    def close(self) -> None:
        """End it, if it runs, and repeat what it has said."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        print(self.said())

    def said(self) -> str:
        """On the terminal."""
        return self._said.read_text(encoding="utf-8")

    def log(self) -> str:
        """Of the run folder, by all processes that have trained in it."""
        path = self.folder / "run.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def rows(self) -> list[dict[str, Any]]:
        """Of metrics.csv, as far as there is one."""
        path = self.folder / "metrics.csv"
        try:
            return read_metrics(path) if path.exists() else []
        except (ValueError, KeyError):  # a row is being written
            return []


def prepare(bench: Bench) -> None:
    """Write the store, if an earlier section has not."""
    if (bench.work / DATASET).exists():
        return
    started, clips = time.monotonic(), bench.sizes.training_clips + bench.sizes.test_clips
    store = write_ntu_like(bench.work / DATASET, clips, test=bench.sizes.test_clips)
    bench.found.note(
        f"{clips:,} NTU-like clips, {store.frames.nbytes / 1e9:.3g} GB of frames, written in "
        f"{time.monotonic() - started:.0f} s"
    )


def run(bench: Bench) -> None:
    prepare(bench)
    bench.found.note(f"flags of the run: {' '.join(bench.sizes.training_flags)}")
    wanted = 2 if bench.rehearsal else EPOCHS
    kept_for_later = FOR_RESUMING * bench.left()
    first = Run(bench)
    try:
        first.wait_until(lambda: len(first.rows()) >= wanted, bench.left() - kept_for_later)
        code = first.stop()
        rows = first.rows()  # Not before: an epoch may end while it stops.
    finally:
        first.close()
    for line in first.said().splitlines():
        if line.startswith(("step: ", "frames: ")):
            bench.found.note(line)
    report_rates(bench, first, rows)
    if first.memory:
        bench.found.number("training_memory", first.memory)
    assert code == 130, f"train.run ended with {code} after Ctrl-C, and 130 is its code for that"
    resume(bench, len(rows))


def report_rates(bench: Bench, done: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Steps a second by the log, and by wall clock; the first epoch fills the bank and compiles."""
    for row in rows[:20]:
        bench.found.row(EPOCH_TABLE, **{name: row[name] for name in ("epoch", "step", "loss", "steps_per_second")})
    full = [row["steps_per_second"] for row in rows[1:]]
    if not full:
        bench.found.note("left out for want of time: no epoch ended after the one that fills the bank")
        return
    rate = statistics.median(full)
    steps = EPOCHS * (bench.sizes.training_clips // bench.sizes.batch)
    bench.found.number("training_steps_per_second", rate)
    bench.found.number("hours_for_750_epochs", steps / rate / 3600)
    stamps = [datetime.fromisoformat(match[1]) for match in map(STAMP.match, done.log().splitlines()) if match]
    epoch = (stamps[-1] - stamps[0]).total_seconds() / max(1, len(stamps) - 1)
    if len(stamps) > 2 and epoch:
        bench.found.number("hours_of_wall_clock", EPOCHS * epoch / 3600)
    bench.found.row(
        TABLE,
        epochs=len(rows),
        steps_per_second=rate,
        ms_a_step=1e3 / rate,
        seconds_an_epoch_by_wall_clock=epoch,
        GB_of_the_card_in_use=done.memory / 1e9 or None,
    )


def resume(bench: Bench, epochs: int) -> None:
    """The same command goes on. AssertionError if it does not, or leaves a gap or a double in the log."""
    again = Run(bench)
    try:
        went_on = again.wait_until(lambda: len(again.rows()) > epochs, bench.left())
        rows, said = again.rows(), again.said()
        again.stop()
    finally:
        again.close()
    if not went_on and "resuming from" not in said:
        bench.found.note("left out for want of time: the start of the resumed run")
        return
    found = re.findall(r"resuming from .*?(\S+) \(epoch (\d+), step (\d+)\)", said)
    assert found, "the second run does not say that it resumes"
    checkpoint, epoch, step = found[-1]
    assert [row["epoch"] for row in rows] == list(range(1, len(rows) + 1)), "epochs are missing or double in the log"
    assert int(step) > 0
    bench.found.note(f"resumed from {Path(checkpoint).name} in epoch {epoch}, after step {step}")
    if not went_on:
        bench.found.note("left out for want of time: the end of the resumed run's first epoch")
