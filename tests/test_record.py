"""metrics.csv and TensorBoard's files: what a kill, a resume and a damage leave of them."""

from __future__ import annotations

import contextlib
import errno

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastmc.data.store import PackedStore
from fastmc.methods.a2mc import A2MC
from fastmc.methods.cpm import CPM
from train.command.parse import parse
from train.engine import board
from train.engine.loop import Pretraining
from train.engine.record import Metrics, columns, epoch_line, log, read_metrics, start_logging

STGCN = ("--encoder", "4x8", "--blocks", "1", "1", "1", "1")

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


def line_of(metrics, **row) -> str:
    usual = {**{metric.name: 0.0 for metric in metrics}, "epoch": 1, "steps_per_second": 1.0, "samples_per_second": 1.0}
    return epoch_line({**usual, **row}, metrics, 2, 0.0, 16)


def test_the_line_of_an_epoch_says_the_sum_that_the_loss_is():
    assert "loss 6.0000 = 1.000 + 2.000 + 3.000  top1" in line_of(A2MC.metrics, loss=6.0, l1=1.0, l2=2.0, l3=3.0)
    weighed = tuple(m._replace(weight=0.5) if m.name in ("l2", "l3") else m for m in A2MC.metrics)
    assert "loss 3.5000 = 1.000 + 0.5*2.000 + 0.5*3.000  top1" in line_of(weighed, loss=3.5, l1=1.0, l2=2.0, l3=3.0)


def test_the_line_of_an_epoch_says_no_sum_where_there_is_none():
    assert "loss 5.0000  KL 1.000  cos" in line_of(CPM.metrics, loss=5.0, divergence=1.0)
    said = line_of(A2MC.metrics, loss=7.0, l1=1.0, l2=2.0, l3=3.0)
    assert "loss 7.0000  L1 1.000  L2 2.000  L3 3.000  top1" in said


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [STGCN, ("--encoder", "1x8")])
@pytest.mark.parametrize("method", ["a2mc", "b1", "b2", "b3", "skeletonclr", "aimclr", "hiclr", "cpm"])
def test_the_terms_of_every_method_are_weighed_as_in_its_loss(method, backbone, data_root, tmp_path):
    usual = ("--preset", "tiny", "--method", method, "--frames", "8", "--batch-size", "8", "--bank-size", "16")
    given = ("--dataset", "small", "--data-root", str(data_root), "--protocol", "xsub", "--device", "cpu")
    words = [*given, *usual, "--backbone", "stgcn" if backbone is STGCN else "bigru", *backbone]
    run = Pretraining(parse(words), PackedStore.open(data_root / "small"), tmp_path, torch.device("cpu"))
    for _ in range(4):
        ids, clips = next(batches := run._remaining_batches())
        batches.close()
        run._advance(ids, clips)
        run.batch = 0
    row = dict(zip((metric.name for metric in run.model.metrics), run.stepper.metrics.tolist(), strict=True))
    terms = [metric for metric in run.model.metrics if metric.kind == "term" and metric.weight is not None]
    assert bool(terms) == (method not in ("skeletonclr", "cpm"))
    assert not terms or sum(m.weight * row[m.name] for m in terms) == pytest.approx(row["loss"], rel=1e-5)
    assert ("=" in line_of(run.model.metrics, **row)) == bool(terms)


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
