"""Commands of this program as processes of their own, several at a time: what tables of many runs are made by."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tqdm import tqdm

from fastmc.parallel import usable_cores
from fastmc.progress import progress_bar
from train.engine.record import log
from train.engine.signals import stopped_by_signals

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

    A failed job does not keep the others from running. Ctrl-C, SIGTERM and SIGHUP stop all of them.

    Raises:
        ValueError: ``parallel`` is no number of processes.
        JobFailed: after the others are done.
    """
    if parallel < 1:
        raise ValueError(f"parallel must be at least 1, got {parallel}")
    todo = [job for job in jobs if not job.done()]
    if not todo:
        return 0
    if not hasattr(os, "fork"):
        raise ValueError("runs are started by os.fork, which this system lacks: make each by train.run, then --collect")
    parallel = min(parallel, len(todo))
    workers = _Workers(parallel, threads=max(1, usable_cores() // parallel))
    failures: list[str] = []
    with ThreadPoolExecutor(parallel) as pool, stopped_by_signals():
        try:
            for failure in tqdm(pool.map(workers.run, todo), total=len(todo), **progress_bar("run", "runs")):
                failures += [failure] if failure else []
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            workers.stop()
            raise
        finally:
            workers.close()
    if failures:
        raise JobFailed("\n".join(failures))
    return len(todo)


class _Workers:
    """Processes that run jobs, one at a time each (`train.command.worker`), in sessions of their own: Ctrl-C in the
    terminal does not reach them, and `stop` passes it on once."""

    def __init__(self, count: int, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.all = [
            subprocess.Popen(
                [sys.executable, "-m", "train.command.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,
            )
            for _ in range(count)
        ]
        self.idle: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        for worker in self.all:
            self.idle.put(worker)

    def run(self, job: Job) -> str | None:
        """Run a job to its end; what went wrong, if anything did."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text("", encoding="utf-8")
        worker = self.idle.get()
        code = self._tell(worker, job)
        self.idle.put(worker)
        if code == 0 and job.done():
            log.info("%s: done", job.name)
            return None
        end = job.log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        command = " ".join(("-m", job.module, *job.arguments))
        return f"{job.name} failed ({command}; all of its output is in {job.log}):\n{end}"

    @staticmethod
    def _tell(worker: subprocess.Popen[str], job: Job) -> int:
        """The exit code of a job; 1 where the worker has died."""
        assert worker.stdin is not None and worker.stdout is not None
        command = {"module": job.module, "arguments": job.arguments, "log": str(job.log.resolve())}
        try:
            worker.stdin.write(json.dumps(command) + "\n")
            worker.stdin.flush()
        except (BrokenPipeError, ValueError):  # it was stopped
            return 1
        return int(worker.stdout.readline() or 1)

    def stop(self) -> None:
        """End what runs, as Ctrl-C in its own terminal would; start nothing more."""
        for worker in self.all:
            assert worker.stdin is not None
            with suppress(BrokenPipeError):
                worker.stdin.close()
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGINT)

    def close(self) -> None:
        """Wait until all have ended."""
        for worker in self.all:
            assert worker.stdin is not None
            with suppress(BrokenPipeError):
                worker.stdin.close()
            worker.wait()
