"""A function over many items on many processes, in order and in bounded memory."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import TypeVar


class WorkerDied(RuntimeError):
    """A worker process ended before its work was done; the message says what may be the reason."""


Item = TypeVar("Item")
Result = TypeVar("Result")

IN_FLIGHT = 8  # items per worker: enough that no worker waits for the slowest one
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """``map`` on ``workers`` processes, in this one if it is 1. Close the generator to stop early.

    Raises:
        WorkerDied: a worker ended before its work was done.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    try:
        with _pool(workers) as pool:
            waiting: deque[Future[Result]] = deque()
            for item in items:
                waiting.append(_submit(pool, function, item))
                if len(waiting) >= IN_FLIGHT * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise WorkerDied(
            "a worker process ended before its work was done: for want of memory, or since the calling script lacks "
            'if __name__ == "__main__": (workers import it); try workers=1'
        ) from error


def usable_cores() -> int:
    """The cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    before = {key: os.environ.get(key) for key in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # workers read this when they import numpy
    # Spawned, because a fork of a process that runs torch's threads can deadlock.
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_exit_with_parent)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _submit(pool: ProcessPoolExecutor, function: Callable[[Item], Result], item: Item) -> Future[Result]:
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        return pool.submit(function, item)
    # This is where workers are started. They inherit the mask: Ctrl-C is for the parent to handle.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(function, item)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _exit_with_parent() -> None:
    """Runs in a worker, which would outlive a killed parent otherwise."""

    def wait() -> None:
        parent = parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
