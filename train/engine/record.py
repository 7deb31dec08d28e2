"""What a run writes while it goes on: metrics.csv, TensorBoard, run.log and one line an epoch."""

from __future__ import annotations

import csv
import errno
import io
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fastmc.files import GrowingFile, read_text, whole_file
from fastmc.methods.base import Metric
from fastmc.reading import reading

log = logging.getLogger("fastmc")


def columns(names: Iterable[str]) -> list[str]:
    """Of metrics.csv, where these are the numbers of a method's steps."""
    return ["epoch", "step", *names, "lr", "steps_per_second", "samples_per_second", "seconds", "knn_top1"]


class _LogFile(WatchedFileHandler):
    """A file that is begun anew where it was removed, and whose disk may be full: that is said once, on the terminal,
    and the rest is not written."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(FileNotFoundError):  # its folder was removed too, and is made again with the next row
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        why = sys.exc_info()[1]
        log.removeHandler(self)
        with suppress(OSError):
            self.close()
        log.warning("%s ends here: %s", self.baseFilename, why)


class _BarFriendlyHandler(logging.StreamHandler):
    """Writes above a progress bar instead of through it, and to nobody once its terminal is gone."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr if record.levelno >= logging.WARNING else sys.stdout)
        except OSError as error:
            if error.errno != errno.EIO:
                raise


def start_logging(path: Path | None = None, *, quiet: bool = False) -> None:
    """Log to the terminal, unless ``quiet``, and to a file where one is named."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    terminal = logging.NullHandler() if quiet else _BarFriendlyHandler()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(terminal)
    if path is not None:
        file = _LogFile(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)


class Rows:
    """The numbers of each epoch, of a process that writes nothing.

    Attributes:
        rows: of all epochs so far.
    """

    def __init__(self, epochs_done: int, rows: list[dict[str, Any]]) -> None:
        """Rows of later epochs, left by a run that was stopped after its last checkpoint, are dropped."""
        self.rows = [row for row in rows if row["epoch"] <= epochs_done]

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def close(self) -> None:
        """Nothing is open."""


class Metrics(Rows):
    """The rows of metrics.csv, one an epoch, and the same numbers for TensorBoard; a row is whole or not there. Files
    that were removed under a run are made again, with all rows."""

    def __init__(
        self, folder: Path, names: Iterable[str], epochs_done: int, rows: list[dict[str, Any]] | None = None
    ) -> None:
        """``names``: of the numbers of a method's steps.

        ``rows``: of the epochs that are done; by default those of the file.
        """
        self.path, self._columns = folder / "metrics.csv", columns(names)
        if rows is None:
            rows = read_metrics(self.path) if self.path.exists() else []
        super().__init__(epochs_done, rows)
        self._begin()

    def _begin(self, anew: bool = False) -> None:
        """``anew``: TensorBoard's file gets all rows too."""
        from train.engine.board import Board  # here, so that nothing else waits for tensorboard

        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A crash here must not lose the history.
        with whole_file(self.path) as kept:
            kept.write_bytes(_lines(self._columns, self.rows, head=True))
        self._file = GrowingFile(self.path)
        first = int(self.rows[-1]["step"]) + 1 if self.rows and not anew else 0
        self._board = Board(self.path.with_name("tensorboard"), first_step=first)
        for row in self.rows if anew else ():
            self._board.write(scalars(row), row["step"])

    def write(self, row: dict[str, Any]) -> None:
        """WriteError if it is not on disk afterwards."""
        if not (self._file.is_there and self._board.is_there):
            log.warning("%s or TensorBoard's files were removed; they are made again", self.path)
            self.close()
            self._begin(anew=True)
        super().write(row)
        self._file.append(_lines(self._columns, [row]))
        self._board.write(scalars(row), row["step"])

    def close(self) -> None:
        self._file.close()
        self._board.close()


def scalars(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row that are measured."""
    return {name: value for name, value in row.items() if name not in ("epoch", "step")}


def _lines(columns: Sequence[str], rows: list[dict[str, Any]], head: bool = False) -> bytes:
    """Rows as lines of metrics.csv."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if head:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.csv with numbers as numbers; a quantity that was not measured in an epoch is left out, and so is
    a last line without its end, of which a kill left a part.

    Raises:
        ValueError: it is damaged; names the row that is none.
        OSError: the file cannot be read.
    """
    rows: list[dict[str, Any]] = []
    remedy = "delete it, and the run goes on without its history"
    with reading(f"{path} is damaged", ValueError, remedy=remedy, passing=(OSError,)):
        lines = read_text(path).splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
        table = csv.DictReader(lines)
        while True:
            with reading(f"row {len(rows) + 1}", ValueError, passing=(StopIteration,)):
                try:
                    line = next(table)
                except StopIteration:
                    return rows
                rows.append(_as_numbers(line))


def _as_numbers(line: dict[str, str | None]) -> dict[str, Any]:
    numbers: dict[str, Any] = {name: float(value) for name, value in line.items() if value not in ("", None)}
    return {**numbers, "epoch": int(numbers["epoch"]), "step": int(numbers["step"])}


ROUNDING = 1e-3
"""Of a loss, by which it may differ from the sum of its terms: they are written with three digits."""


def epoch_line(
    row: Mapping[str, Any], metrics: Sequence[Metric], epochs: int, eta_seconds: float, feature_dim: int
) -> str:
    """One epoch in one line. The loss is shown as the sum that it is, where it is one; a standard deviation of features
    against 1/sqrt(D), its value without collapse."""

    def written(metric: Metric) -> str:
        return f"{row[metric.name]:{metric.spec}}" + (f"/{feature_dim**-0.5:.4f}" if metric.kind == "spread" else "")

    summands = {metric: metric.weight for metric in metrics if metric.kind == "term" and metric.weight is not None}
    total, whole = (sum(weight * row[metric.name] for metric, weight in summands.items()), row[metrics[0].name])
    if abs(total - whole) > ROUNDING * max(1.0, abs(whole)):  # a phase of the method's, or a method of one's own
        summands = {}
    terms = " + ".join(written(m) if weight == 1 else f"{weight:g}*{written(m)}" for m, weight in summands.items())
    loss, *others = (f"{metric.short} {written(metric)}" for metric in metrics if metric not in summands)
    words = [f"epoch {row['epoch']}/{epochs}", f"{loss} = {terms}" if terms else loss, *others]
    words += [f"{row['steps_per_second']:.3g} steps/s", f"{row['samples_per_second']:.0f} samples/s"]
    words += [f"ETA {duration(eta_seconds)}", *([f"kNN {row['knn_top1']:.1f}%"] if "knn_top1" in row else [])]
    return "  ".join(words)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
