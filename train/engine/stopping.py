"""How a process that trains is asked to end: by Ctrl-C, by a signal, or by the death of whoever started it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from train.engine.record import log
from train.engine.signals import HEARD, Stopped

LOOK = 1.0
"""Seconds between two looks at whether a parent is still there."""


ECHO = 3.0
"""Seconds in which torchrun, which hears Ctrl-C and the end of a job as its processes do, hands it on to them."""


@contextmanager
def asked_to_stop(echo: float = 0.0) -> Iterator[Callable[[], int]]:
    """Within: a function that gives the signal by which this process was asked to end (Ctrl-C, SIGTERM, SIGHUP), and 0
    before. Who hears of it in time can finish what must not be cut, and then raise `Stopped`. A second one raises it
    at once, unless it comes within ``echo`` seconds of the first; what is ignored stays ignored.

    Outside of the main thread, where Python hears no signal, nobody ever asks.
    """
    asked: list[int] = []
    first_at = 0.0

    def asked_by() -> int:
        return asked[0] if asked else 0

    if threading.current_thread() is not threading.main_thread():
        yield asked_by
        return

    def hear(number: int, _: object) -> None:
        nonlocal first_at
        if asked and time.monotonic() - first_at < echo:
            return
        asked.append(number)
        if len(asked) > 1:
            raise Stopped(number)
        first_at = time.monotonic()
        name = signal.Signals(number).name
        log.warning("%s: stopping after this step, with a checkpoint; once more stops at once", name)

    before = {n: signal.getsignal(n) for n in HEARD if signal.getsignal(n) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, hear)
    try:
        yield asked_by
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is hear:  # and not deaf meanwhile
                signal.signal(number, handler)


def stop_without(parent: int) -> None:
    """From now on this process is sent SIGINT when ``parent``, who started it, has died, however that came about."""
    when_orphaned(parent, lambda: os.kill(os.getpid(), signal.SIGINT))


def when_orphaned(parent: int, act: Callable[[], None]) -> None:
    """From now on ``act`` is called, in a thread, once this process's ``parent`` has died, however that came about."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        act()

    threading.Thread(target=watch, name="fastmc-parent", daemon=True).start()
