"""The signals that ask a process to end, told apart as the shell does: exit code 128 + n."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

HEARD = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C, the end of a job, and the end of a terminal, which Windows does not have."""


class Stopped(KeyboardInterrupt):
    """This process was asked to end by signal ``number``."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def told(stop: KeyboardInterrupt, says: str) -> tuple[str, int]:
    """The one line of a command that was asked to end, with the notes that ``stop`` has collected, and its exit
    code."""
    number = stop.number if isinstance(stop, Stopped) else signal.SIGINT
    return "; ".join([f"{signal.Signals(number).name}: {says}", *getattr(stop, "__notes__", [])]), 128 + number


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within: SIGTERM and SIGHUP raise `Stopped`, as Ctrl-C raises KeyboardInterrupt, so that what was begun is tidied
    up. What is ignored stays ignored: nohup goes on. Outside of the main thread Python hears no signal."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    in_main = threading.current_thread() is threading.main_thread()
    heard = [n for n in HEARD if in_main and signal.getsignal(n) is signal.SIG_DFL]
    for number in heard:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in heard:
            if signal.getsignal(number) is stop:
                signal.signal(number, signal.SIG_DFL)


def deaf_to(number: int) -> None:
    """From now on this process, which is about to end, ignores the signal."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, signal.SIG_IGN)
