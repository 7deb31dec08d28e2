"""Commands of this program as processes of their own, several at a time: what tables of many runs are made by."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from fastmc.data.parallel import usable_cores
from fastmc.progress import progress_bar
from train.record import log

TAIL = 1500  # characters of a failed job's output that are shown


class JobFailed(RuntimeError):
    """One or more commands failed; the message names them, shows the end of their output, and where the rest is."""


@dataclass(frozen=True)
class Job:
    """``python -m module arguments``, which need not run where ``done()``. Its output goes to the file ``log``."""

    name: str
    module: str
    arguments: tuple[str, ...]
    log: Path
    done: Callable[[], bool]


def run_jobs(jobs: Sequence[Job], parallel: int = 1) -> int:
    """Run the jobs that are not done, ``parallel`` at a time, each with an equal share of the cores (OMP_NUM_THREADS is
    set to it); how many ran.

    A failed job does not keep the others from running. Ctrl-C stops all of them.

    Raises:
        ValueError: ``parallel`` is no number of processes.
        JobFailed: after the others are done.
    """
    if parallel < 1:
        raise ValueError(f"parallel must be at least 1, got {parallel}")
    todo = [job for job in jobs if not job.done()]
    if not todo:
        return 0
    running = _Running(threads=max(1, usable_cores() // min(parallel, len(todo))))
    failures: list[str] = []
    with ThreadPoolExecutor(parallel) as pool:
        try:
            for failure in tqdm(pool.map(running.run, todo), total=len(todo), **progress_bar("run", "runs")):
                failures += [failure] if failure else []
        except BaseException:
            running.stop()
            raise
    if failures:
        raise JobFailed("\n".join(failures))
    return len(todo)


class _Running:
    """The processes that are at work."""

    def __init__(self, threads: int) -> None:
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.processes: set[subprocess.Popen] = set()
        self.lock, self.stopped = threading.Lock(), False

    def run(self, job: Job) -> str | None:
        """Run a job to its end; what went wrong, if anything did."""
        command = [sys.executable, "-m", job.module, *job.arguments]
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "w", encoding="utf-8") as output:
            with self.lock:
                if self.stopped:
                    return None
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=self.environment)
                self.processes.add(process)
            code = process.wait()
            with self.lock:
                self.processes.discard(process)
        if code == 0 and job.done():
            log.info("%s: done", job.name)
            return None
        end = job.log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        return f"{job.name} failed ({' '.join(command[1:])}; all of its output is in {job.log}):\n{end}"

    def stop(self) -> None:
        """End what runs, as Ctrl-C in its own terminal would; start nothing more."""
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.send_signal(signal.SIGINT)
