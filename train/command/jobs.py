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

from train.command.devices import Device, devices_of
from train.command.picture import Picture
from train.engine.signals import stopped_by_signals

TAIL = 1500  # characters of a failed job's output that are shown


class JobFailed(RuntimeError):
    """One or more commands failed; the message names them, shows the end of their output, and where the rest is."""


@dataclass(frozen=True)
class Job:
    """``python -m module arguments``, which need not run where ``done()``. Its output goes to the file ``log``;
    ``work`` is how long it takes beside others, in any unit."""

    name: str
    module: str
    arguments: tuple[str, ...]
    log: Path
    done: Callable[[], bool]
    work: float = 0.0


def to_do(jobs: Sequence[Job]) -> list[Job]:
    """Those that are not done, the longest first: at the end no device waits long for another."""
    return sorted((job for job in jobs if not job.done()), key=lambda job: -job.work)


def run_jobs(jobs: Sequence[Job], devices: str = "auto", small: bool = False) -> int:
    """Run the jobs that are not done, one a device at a time (`train.command.devices`); how many ran.

    A failed job does not keep the others from running. Ctrl-C, SIGTERM and SIGHUP stop all of them.

    Raises:
        ValueError: ``devices`` are none, or not there.
        JobFailed: after the others are done.
    """
    todo = to_do(jobs)
    if not todo:
        return 0
    if not hasattr(os, "fork"):
        raise ValueError("runs are started by os.fork, which this system lacks: make each by train.run, then --collect")
    places = devices_of(devices, len(todo), small)
    failures: list[str] = []
    with Picture([place.name for place in places], len(todo)) as picture:
        workers = _Workers(places, picture)
        with ThreadPoolExecutor(len(places)) as pool, stopped_by_signals():
            try:
                failures += filter(None, pool.map(workers.run, todo))
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
    """A process a device that runs jobs, one at a time (`train.command.worker`), in sessions of their own: Ctrl-C in
    the terminal does not reach them, and `stop` passes it on once."""

    def __init__(self, places: Sequence[Device], picture: Picture) -> None:
        self.picture = picture
        self.stopping = False
        self.all = {place: self._start(place) for place in places}
        self.idle: SimpleQueue[Device] = SimpleQueue()
        for place in places:
            self.idle.put(place)

    @staticmethod
    def _start(place: Device) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "train.command.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=place.environment(os.environ),
            start_new_session=True,
        )

    def run(self, job: Job) -> str | None:
        """Run a job to its end; what went wrong, if anything did."""
        job.log.parent.mkdir(parents=True, exist_ok=True)
        job.log.write_text("", encoding="utf-8")
        place = self.idle.get()
        self.picture.starts(place.name, job.name, job.log)
        code = self._tell(self.all[place], job)
        is_done = code == 0 and job.done()
        self.picture.ends(place.name, "done" if is_done else "failed")
        if code is None and not self.stopping:  # the worker was killed, which is no fault of the jobs that wait
            self.all[place] = self._start(place)
        self.idle.put(place)
        if is_done:
            return None
        end = job.log.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        command = " ".join(("-m", job.module, *job.arguments))
        return f"{job.name} failed ({command}; all of its output is in {job.log}):\n{end}"

    @staticmethod
    def _tell(worker: subprocess.Popen[str], job: Job) -> int | None:
        """The exit code of a job; None where the worker has died."""
        assert worker.stdin is not None and worker.stdout is not None
        command = {"module": job.module, "arguments": job.arguments, "log": str(job.log.resolve())}
        try:
            worker.stdin.write(json.dumps(command) + "\n")
            worker.stdin.flush()
        except (BrokenPipeError, ValueError):  # it was stopped
            return None
        answer = worker.stdout.readline()
        return int(answer) if answer else None

    def stop(self) -> None:
        """End what runs, as Ctrl-C in its own terminal would; start nothing more."""
        self.stopping = True
        for worker in self.all.values():
            assert worker.stdin is not None
            with suppress(BrokenPipeError):
                worker.stdin.close()
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGINT)

    def close(self) -> None:
        """Wait until all have ended."""
        for worker in self.all.values():
            assert worker.stdin is not None
            with suppress(BrokenPipeError):
                worker.stdin.close()
            worker.wait()
