"""metrics.csv and TensorBoard's files: what a kill, a resume and a damage leave of them."""

from __future__ import annotations

import contextlib
import errno

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastmc.methods.a2mc import A2MC
from train.engine import board
from train.engine.record import Metrics, columns, log, read_metrics, start_logging

NAMES = [metric.name for metric in A2MC.metrics]
COLUMNS = columns(NAMES)


def write(folder, epochs: range, done: int) -> None:
    metrics = Metrics(folder, NAMES, epochs_done=done)
    for epoch in epochs:
        metrics.write({**dict.fromkeys(COLUMNS, epoch / 4), "epoch": epoch, "step": 3 * epoch})
    metrics.close()


def test_after_a_resume_every_epoch_is_there_once(tmp_path, monkeypatch):
    """Epochs 3 and 4 were trained and their checkpoint was not written; they come again."""
    seconds = iter(range(1_700_000_000, 1_800_000_000))
    monkeypatch.setattr(board.time, "time", lambda: float(next(seconds)))
    write(tmp_path, range(1, 5), done=0)
    write(tmp_path, range(3, 7), done=2)
    assert [row["epoch"] for row in read_metrics(tmp_path / "metrics.csv")] == [1, 2, 3, 4, 5, 6]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == set(COLUMNS) - {"epoch", "step"}
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3 * e, e / 4) for e in range(1, 7)]


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE])
def test_a_terminal_that_is_gone_does_not_end_a_run(number, monkeypatch):
    """It is being stopped by SIGHUP, and still has its checkpoint to write; a pipe that nobody reads ends it."""

    def gone(*_: object, **__: object) -> None:
        raise OSError(number, "gone")

    start_logging()
    monkeypatch.setattr("train.engine.record.tqdm.write", gone)
    with pytest.raises(OSError, match="gone") if number == errno.EPIPE else contextlib.nullcontext():
        log.warning("SIGHUP: stopping after this step")


def test_a_last_row_of_the_metrics_without_its_end_is_left_out(tmp_path):
    """A kill may leave it, and 1 is not 12."""
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,loss\r\n11,33,2.5\r\n1")
    assert read_metrics(path) == [{"epoch": 11, "step": 33, "loss": 2.5}]
    path.write_text("epoch,step,loss\r\n11,33,2.5\r\n12,36,1.2")
    assert [row["epoch"] for row in read_metrics(path)] == [11]
    path.write_text("epoch,step,loss\r\n11,x,2.5\r\n")
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged"):
        read_metrics(path)
