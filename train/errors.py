"""Errors that are the user's to mend: one line on stderr and exit code 1, no traceback."""

from __future__ import annotations

from fastmc.data.parallel import WorkerDied
from fastmc.data.prepare import PrepareError
from fastmc.data.store import StoreError
from train.checkpoint import CheckpointError
from train.datasets import DatasetError
from train.record import log
from train.step import NonFiniteError

USER_ERRORS = (ValueError, OSError, DatasetError, StoreError, PrepareError, WorkerDied, NonFiniteError, CheckpointError)


def report_error(error: BaseException) -> None:
    log.error("error: %s", error)
