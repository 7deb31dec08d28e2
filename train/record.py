"""What a run writes while it goes on: metrics.csv, TensorBoard, run.log and one line an epoch."""

from __future__ import annotations

import csv
import logging
import sys
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fastmc.files import whole_file
from fastmc.reading import reading

log = logging.getLogger("fastmc")

COLUMNS = (
    "epoch",
    "step",
    "loss",
    "l1",
    "l2",
    "l3",
    "top1",
    "positive_probability",
    "feature_std",
    "lr",
    "steps_per_second",
    "samples_per_second",
    "seconds",
    "knn_top1",
)


class _BarFriendlyHandler(logging.StreamHandler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr if record.levelno >= logging.WARNING else sys.stdout)


def start_logging(path: Path | None = None) -> None:
    """Log to the terminal, and to a file where one is named."""
    log.setLevel(logging.INFO)
    log.propagate = False
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    terminal = _BarFriendlyHandler()
    terminal.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(terminal)
    if path is not None:
        file = logging.FileHandler(path)
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
        log.addHandler(file)


class Metrics:
    """The rows of metrics.csv, one an epoch, and the same numbers for TensorBoard."""

    def __init__(self, folder: Path, epochs_done: int) -> None:
        """Rows of later epochs, left by a run that was stopped after its last checkpoint, are dropped."""
        self.path = folder / "metrics.csv"
        rows = [row for row in read_metrics(self.path) if row["epoch"] <= epochs_done] if self.path.exists() else []
        # A crash here must not lose the history.
        with whole_file(self.path) as kept, open(kept, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        self._file = open(self.path, "a", newline="", encoding="utf-8")  # noqa: SIM115  closed by close()
        self._writer = csv.DictWriter(self._file, COLUMNS)
        purge = int(rows[-1]["step"]) + 1 if rows else 0
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def write(self, row: dict[str, Any]) -> None:
        self._writer.writerow(row)
        self._file.flush()
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of metrics.csv with numbers as numbers; a quantity that was not measured in an epoch is left out.

    Raises:
        ValueError: names the row that is none.
        OSError: the file cannot be read.
    """
    rows: list[dict[str, Any]] = []
    with open(path, newline="", encoding="utf-8") as file, reading(f"{path} is damaged", ValueError):
        lines = csv.DictReader(file)
        while True:
            with reading(f"row {len(rows) + 1}", ValueError, passing=(StopIteration,)):
                try:
                    line = next(lines)
                except StopIteration:
                    return rows
                rows.append(_as_numbers(line))


def _as_numbers(line: dict[str, str | None]) -> dict[str, Any]:
    numbers: dict[str, Any] = {name: float(value) for name, value in line.items() if value not in ("", None)}
    return {**numbers, "epoch": int(numbers["epoch"]), "step": int(numbers["step"])}


def epoch_line(row: dict[str, Any], epochs: int, eta_seconds: float, feature_dim: int) -> str:
    """One epoch in one line. The std of features is shown against 1/sqrt(D), its value without collapse."""
    probe = f"  kNN {row['knn_top1']:.1f}%" if "knn_top1" in row else ""
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.4f} = {row['l1']:.3f} + {row['l2']:.3f} + {row['l3']:.3f}  "
        f"top1 {100 * row['top1']:.0f}%  p+ {row['positive_probability']:.3f}  "
        f"std {row['feature_std']:.4f}/{feature_dim**-0.5:.4f}  "
        f"{row['steps_per_second']:.3g} steps/s  {row['samples_per_second']:.0f} samples/s  "
        f"ETA {duration(eta_seconds)}{probe}"
    )


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
