"""Errors that are the user's to mend: one line on stderr and exit code 1, no traceback."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from fastmc.checkpoint import CheckpointError
from fastmc.data.packing import PrepareError
from fastmc.data.store import StoreError
from fastmc.parallel import WorkerDied
from train.command.datasets import DatasetError
from train.command.debug import without_debug
from train.command.help import flowing_help
from train.command.jobs import JobFailed
from train.engine.ranks import Place, RankLost, RanksDiffer
from train.engine.record import log, start_logging
from train.engine.signals import stopped_by_signals, told
from train.engine.step import NonFiniteError

USER_ERRORS = (
    *(ValueError, OSError, DatasetError, StoreError, PrepareError, WorkerDied, NonFiniteError, CheckpointError),
    *(JobFailed, RankLost, RanksDiffer),
)


def report_error(error: BaseException) -> None:
    log.error("error: %s", error)


def run_command(
    action: Callable[[list[str]], object], args: Sequence[str] | None, *, stopped: str, shared: bool = False
) -> int:
    """Run what a command line asks for; returns the exit code. ``stopped`` is said after Ctrl-C and its like.

    Args:
        action: is given the command line, without --debug, which shows the traceback of an error.
        args: the command line; by default that of this process.
        shared: whether several ranks of torchrun may run it together. Rank 0 of them speaks.
    """
    given, debug = without_debug(args)
    start_logging()
    try:
        place = Place.of_environment()
        start_logging(quiet=place.rank > 0)
        if place.size > 1 and not shared:
            raise ValueError("torchrun is for train.run, which several ranks share; start this command without it")
        with stopped_by_signals(), flowing_help():
            action(given)
    except USER_ERRORS as error:
        if debug:
            log.error("%s", traceback.format_exc())
        report_error(error)
        return 1
    except KeyboardInterrupt as stop:
        says, code = told(stop, stopped)
        log.warning(says)
        return code
    return 0
