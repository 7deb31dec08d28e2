"""Runs of the trainer: what they write, how they resume, what they refuse."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_small_store

from fastmc import checkpoint
from fastmc.config import (
    Config,
    LogConfig,
    RunFolderError,
    differences,
    from_plain,
    load_config,
    preset_config,
    to_plain,
)
from fastmc.data.placed.placement import DataConfig
from fastmc.data.placed.streamed import THREAD_NAME
from fastmc.data.store import PackedStore
from fastmc.state import RunState
from train import evaluate, run
from train.command.datasets import DatasetError, open_dataset
from train.command.parse import parse
from train.engine.loop import Pretraining
from train.engine.record import read_metrics
from train.engine.step import NonFiniteError
from train.engine.stopping import asked_to_stop
from train.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
FAST = [
    *("--dataset", "small", "--preset", "tiny", "--frames", "8", "--encoder", "1x8", "--batch-size", "8"),
    *("--bank-size", "16", "--epochs", "4", "--milestones", "3", "--warmup-epochs", "1", "--probe-every", "2"),
    *(
        "--checkpoint-every",
        "1",
        "--linear-epochs",
        "3",
        "--linear-milestones",
        "2",
        "--train-crops",
        "2",
        "--device",
        "cpu",
    ),
]


def command(data_root: Path, out: Path, *extra: str) -> list[str]:
    return [*FAST, "--data-root", str(data_root), "--out", str(out), *extra]


def state_of(folder: Path) -> dict:
    return checkpoint.load_latest(folder / "checkpoints")[1]


def assert_same_state(a: object, b: object, where: str = "") -> None:
    """Bit-equal, recursively; times differ."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key not in ("seconds", "wall_seconds", "steps_per_second", "samples_per_second", "out", "config"):
                assert_same_state(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_state(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    assert run.main(command(data_root, out)) == 0
    return out


def test_run_folder_holds_what_it_promises(finished):
    report = json.loads((finished / "report.json").read_text())
    for key in ("knn_top1", "linear_top1", "linear_top5", "wall_seconds"):
        assert isinstance(report[key], float)
    assert report["random_init"].keys() == {"knn_top1", "linear_top1", "linear_top5"}
    assert (report["dataset"], report["protocol"], report["method"], report["seed"]) == ("small", "xsub", "a2mc", 0)
    rows = read_metrics(finished / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert ["knn_top1" in row for row in rows] == [False, True, False, True]
    for row in rows:
        assert row["loss"] == pytest.approx(row["l1"] + row["l2"] + row["l3"], rel=1e-5)
        assert row["samples_per_second"] == pytest.approx(8 * row["steps_per_second"])
    saved = json.loads((finished / "config.json").read_text())
    assert to_plain(load_config(finished)).items() >= saved.items()
    assert saved["optim"]["epochs"] == 4
    assert json.loads((finished / "environment.json").read_text())[0]["packages"]["torch"]
    assert (finished / "curves.png").stat().st_size > 10_000
    assert list((finished / "tensorboard").iterdir())
    assert "epoch 4/4" in (finished / "run.log").read_text()
    assert len(checkpoint.complete(finished / "checkpoints")) == 2


def test_untrained_accuracy_is_that_of_the_initial_weights(finished, data_root):
    report = json.loads((finished / "report.json").read_text())
    config = load_config(finished)
    store = open_dataset("small", data_root)
    pretraining = Pretraining(config, store, finished, torch.device("cpu"))
    assert pretraining.probe() == report["random_init"]["knn_top1"]


def start(data_root: Path, out: Path, *extra: str) -> Pretraining:
    """A run that has begun in ``out`` and made no step."""
    config = replace(parse(command(data_root, out, *extra)), protocol="xsub")
    with RunFolder(config).begin({}):
        return Pretraining(config, open_dataset("small", data_root), out, torch.device("cpu"))


def advance(pretraining: Pretraining, steps: int) -> None:
    """Steps of a run, over the end of an epoch if need be; no checkpoint is written."""
    for _ in range(steps):
        if pretraining.batch == pretraining.batches:
            pretraining._start_epoch(pretraining.epoch + 1)
        with closing(pretraining._remaining_batches()) as batches:
            pretraining._advance(*next(batches))


# Two steps fill the bank; seven end inside of the third epoch, with a bank in motion.
@pytest.mark.parametrize(
    ("method", "optimizer", "steps"),
    [("a2mc", "sgd", 7), ("a2mc", "adamw", 2), ("b1", "sgd", 1), ("b2", "adamw", 7), ("b3", "sgd", 2)],
)
def test_resume_equals_an_uninterrupted_run_bit_for_bit(method, optimizer, steps, data_root, tmp_path):
    settings = ("--method", method, "--optimizer", optimizer, "--probe-every", "3")
    assert run.main(command(data_root, tmp_path / "whole", *settings)) == 0

    first = start(data_root, tmp_path / "parts", *settings)
    advance(first, steps)
    first.save()
    torch.manual_seed(12345)  # a new process has other random states
    assert run.main(command(data_root, tmp_path / "parts", *settings)) == 0

    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert whole["position"]["step"] == 12
    random = whole.pop("random"), parts.pop("random")
    del whole["metrics"], parts["metrics"]  # see below
    assert all(r["cpu"].numel() for r in random)
    assert_same_state(whole, parts)
    timing = ("seconds", "steps_per_second", "samples_per_second")
    whole_rows, parts_rows = (read_metrics(tmp_path / part / "metrics.csv") for part in ("whole", "parts"))
    first_row = steps // 3  # the rows of the epochs before were never written by the part that was cut off
    for a, b in zip(whole_rows[first_row:], parts_rows, strict=True):
        assert {k: v for k, v in a.items() if k not in timing} == {k: v for k, v in b.items() if k not in timing}
    reports = [json.loads((tmp_path / part / "report.json").read_text()) for part in ("whole", "parts")]
    assert reports[0]["linear_top1"] == reports[1]["linear_top1"]


class Killed(BaseException):
    """As a signal that nobody can catch."""


@pytest.mark.parametrize(
    ("placement", "batch_size"), [("mapped", 8), ("device", 24)]
)  # batches: three an epoch, and one
def test_a_run_that_is_killed_after_any_of_its_checkpoints_resumes(
    placement, batch_size, data_root, tmp_path, monkeypatch
):
    """At every batch of an epoch, the last included; weights have the same bits, and the metrics a row an epoch."""
    settings = ("--placement", placement, "--batch-size", str(batch_size), "--bank-size", "24", "--epochs", "2")
    settings += ("--milestones", "--warmup-epochs", "0", "--checkpoint-minutes", "0", "--checkpoint-every", "100")
    assert run.main(command(data_root, tmp_path / "whole", *settings)) == 0
    save, positions = Pretraining.save, []

    def save_and_die(self: Pretraining) -> None:
        save(self)
        positions.append((self.epoch, self.batch))
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "save", save_and_die)
        while not positions or positions[-1][0] < 2:
            with pytest.raises(Killed):
                run.main(command(data_root, tmp_path / "killed", *settings))
    batches = 24 // batch_size
    assert positions == [divmod(step, batches) for step in range(1, 2 * batches + 1)], (
        "never after an epoch's last batch"
    )
    assert run.main(command(data_root, tmp_path / "killed", *settings)) == 0
    whole, killed = state_of(tmp_path / "whole"), state_of(tmp_path / "killed")
    assert_same_state(whole["model"], killed["model"])
    rows = [read_metrics(tmp_path / name / "metrics.csv") for name in ("whole", "killed")]
    assert [row["epoch"] for row in rows[1]] == [1, 2]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


def test_a_checkpoint_of_an_older_version_after_an_epoch_s_last_batch_resumes(data_root, tmp_path):
    """It says batch == batches: the epoch's row is still to be written."""
    assert run.main(command(data_root, tmp_path / "whole")) == 0
    first = start(data_root, tmp_path / "parts")
    advance(first, 3)
    assert first.batch == first.batches
    first.save()
    assert run.main(command(data_root, tmp_path / "parts")) == 0
    assert_same_state(state_of(tmp_path / "whole")["model"], state_of(tmp_path / "parts")["model"])
    rows = [read_metrics(tmp_path / name / "metrics.csv") for name in ("whole", "parts")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_resume_in_half_precision_is_bit_for_bit_too(amp, data_root, tmp_path):
    """The gradient scale of float16 included, which falls in the first steps."""
    settings = ("--amp", amp, "--probe-every", "0", "--optimizer", "sgd")
    whole, parts = (start(data_root, tmp_path / name, *settings) for name in ("whole", "parts"))
    advance(whole, 8)
    advance(parts, 4)
    again = start(data_root, tmp_path / "again", *settings)
    path = parts.save()
    again.load(RunState.of_plain(torch.load(path / checkpoint.STATE, weights_only=True), path), path)
    advance(again, 4)
    for ours, theirs in zip(again.stepper.state(), whole.stepper.state(), strict=True):
        assert torch.equal(ours, theirs)
    if amp == "fp16":
        assert whole.stepper.scaling.scale < 2.0**16


def test_the_log_says_how_steps_are_computed_and_profile_writes_its_files(finished, data_root, tmp_path):
    line = (
        "step: amp fp32 (half precision is slower on cpu), compile off (on cpu it costs more than it saves), "
        "CUDA graph off (CUDA graphs need an NVIDIA GPU, not cpu), overlap off (a second stream needs a GPU, not cpu); "
        "AdamW of torch, fused (our kernel is for sgd, not adamw)"
    )
    assert line in (finished / "run.log").read_text()
    out = tmp_path / "run"
    assert run.main(command(data_root, out, "--profile", "3")) == 0
    assert (out / "profile" / "trace.json.gz").exists()
    assert_same_state(state_of(finished)["model"], state_of(out)["model"])


@pytest.mark.parametrize("placement", ["pinned", "mapped"])
def test_frames_on_the_host_train_to_the_same_bits(placement, finished, data_root, tmp_path):
    """Mid-epoch resume included, from one placement to another; the accuracies are the same too."""
    out = tmp_path / "run"
    pretraining = start(data_root, out, "--placement", placement)
    advance(pretraining, 2)
    with closing(pretraining._remaining_batches()) as batches:
        next(batches)  # fetched ahead and never trained on
        pretraining.save()
    assert run.main(command(data_root, out, "--placement", "mapped")) == 0
    assert_same_state(state_of(finished)["model"], state_of(out)["model"])
    assert_same_state(state_of(finished)["optimizer"], state_of(out)["optimizer"])
    reports = [json.loads((folder / "report.json").read_text()) for folder in (finished, out)]
    assert reports[0]["random_init"] == reports[1]["random_init"]
    for key in ("knn_top1", "linear_top1", "linear_top5"):
        assert reports[0][key] == reports[1][key]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_frames_train_to_the_same_bits_in_every_placement(dtype, data_root, tmp_path):
    """Over the end of the epoch that fills the bank; they are not the bits of float32."""
    states = []
    for placement in ("device", "pinned", "mapped"):
        half = start(data_root, tmp_path / placement, "--placement", placement, "--frames-dtype", dtype)
        advance(half, 5)
        states.append(half.model.state_dict())
    assert all(torch.isfinite(value).all() for value in states[0].values())
    assert_same_state(states[0], states[1])
    assert_same_state(states[0], states[2])
    exact = start(data_root, tmp_path / "exact")
    advance(exact, 5)
    with pytest.raises(AssertionError):
        assert_same_state(states[0], exact.model.state_dict())


@pytest.mark.parametrize("batch_size", [1, 5, 24])
def test_any_batch_size_trains_and_the_last_short_batch_is_dropped(batch_size, data_root, tmp_path):
    pretraining = start(data_root, tmp_path / "run", "--batch-size", str(batch_size), "--placement", "mapped")
    clips = len(pretraining.train_ids)
    assert clips == 24
    with closing(pretraining._remaining_batches()) as batches:
        seen = [ids for ids, _ in batches]
    assert [len(ids) for ids in seen] == [batch_size] * (clips // batch_size)
    assert len(torch.cat(seen).unique()) == clips // batch_size * batch_size
    advance(pretraining, clips // batch_size + 1)
    assert (pretraining.epoch, pretraining.batch) == (1, 1)


def test_an_error_in_a_step_ends_the_thread_that_fetches(data_root, tmp_path, monkeypatch):
    pretraining = start(data_root, tmp_path / "run", "--placement", "mapped")
    pretraining.model.query.requires_grad_(True)
    with torch.no_grad():
        next(pretraining.model.query.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteError) as caught:  # kept: its traceback keeps the loop's frame, and what that holds
        pretraining.run()
    assert caught.value.__traceback__ is not None
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def test_the_log_says_where_the_frames_are(finished, data_root, tmp_path):
    assert (
        "MB of float32 on cpu, its file mapped without a copy; they take at most 50%"
        in (finished / "run.log").read_text()
    )
    out = tmp_path / "run"
    assert run.main(command(data_root, out, "--placement", "mapped", "--epochs", "1", "--linear-epochs", "1")) == 0
    assert "stay in the file, 2 batches fetched ahead as float32; --placement mapped" in (out / "run.log").read_text()


def test_a_run_may_change_its_placement_and_not_its_numbers(finished, data_root, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    for free in (
        ("--placement", "mapped"),
        ("--view-impl", "torch"),
        ("--cuda-graph", "off"),
        ("--profile", "2"),
        ("--optimizer-impl", "torch"),
    ):
        assert run.main(command(data_root, out, *free)) == 0
        assert "finished" in errors(capsys)
    assert run.main(command(data_root, out, "--frames-dtype", "float16")) == 1
    assert "other settings (data.frames_dtype)" in errors(capsys)
    assert run.main(command(data_root, out, "--amp", "bf16")) == 1
    assert "other settings (step.amp)" in errors(capsys)


def test_a_run_from_before_a_group_of_settings_existed_resumes(finished, data_root, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    saved = json.loads((out / "config.json").read_text())
    del saved["data"]
    (out / "config.json").write_text(json.dumps(saved))
    assert load_config(out).data == DataConfig()
    assert run.main(command(data_root, out)) == 0
    assert "finished" in errors(capsys)
    assert run.main(command(data_root, out, "--frames-dtype", "bfloat16")) == 1
    assert "data.frames_dtype" in errors(capsys)


def test_a_different_seed_gives_a_different_run(finished, data_root, tmp_path):
    assert run.main(command(data_root, tmp_path / "other", "--seed", "1")) == 0
    with pytest.raises(AssertionError):
        assert_same_state(state_of(finished)["model"], state_of(tmp_path / "other")["model"])


def test_everything_that_should_learns_and_nothing_else(finished, data_root):
    config = load_config(finished)
    fresh = Pretraining(config, open_dataset("small", data_root), finished, torch.device("cpu")).model
    trained = state_of(finished)["model"]
    for name, before in fresh.state_dict().items():
        assert torch.equal(before, trained[name]) == name.startswith("attack_head"), name


@pytest.mark.parametrize(("method", "moves"), [("a2mc", True), ("b3", False)])
def test_only_a2mc_learns_its_bank(method, moves, data_root, tmp_path):
    assert run.main(command(data_root, tmp_path / "run", "--method", method)) == 0
    bank = {k: v for k, v in state_of(tmp_path / "run")["model"].items() if k.startswith("bank.")}
    assert bool(bank["bank.momentum"].any()) == moves
    unit = (bank["bank.entries"].norm(dim=1) - 1).abs().max() < 1e-5
    assert bool(unit) != moves
    assert bank["bank.cursor"] >= 16, "every row has held a feature"


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_implementations_train_alike(impl, finished, data_root, tmp_path):
    assert run.main(command(data_root, tmp_path / "run", "--impl", impl, "--epochs", "2")) == 0
    assert run.main(command(data_root, tmp_path / "auto", "--epochs", "2")) == 0
    for a, b in zip(*(read_metrics(tmp_path / name / "metrics.csv") for name in ("run", "auto")), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_metrics_written_after_the_last_checkpoint_are_dropped_on_resume(data_root, tmp_path):
    out = tmp_path / "run"
    assert run.main(command(data_root, out)) == 0
    newest = checkpoint.complete(out / "checkpoints")[-1][1]
    (newest / checkpoint.MARKER).unlink()  # as if it had never been finished
    assert run.main(command(data_root, out)) == 0
    assert [row["epoch"] for row in read_metrics(out / "metrics.csv")] == [1, 2, 3, 4]
    with open(out / "metrics.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 5


def test_non_finite_loss_reaches_neither_weights_nor_statistics_nor_bank(data_root, tmp_path):
    pretraining = start(data_root, tmp_path / "run")
    advance(pretraining, 2)
    path = pretraining.save()
    pretraining.data.frames.fill_(float("nan"))
    before = {name: value.clone() for name, value in pretraining.model.state_dict().items()}
    with pytest.raises(NonFiniteError, match="epoch 1, step 2: loss = nan") as caught:
        advance(pretraining, 1)
    assert str(path) in str(caught.value)
    assert "Weights and bank were left as before this step." in str(caught.value)
    for name, value in pretraining.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model = checkpoint.load_latest(tmp_path / "run" / "checkpoints")[1]["model"]
    assert all(torch.isfinite(value).all() for value in model.values())


def test_a_gradient_that_overflows_in_the_encoder_reaches_neither_weights_nor_statistics(data_root, tmp_path):
    """The loss is finite, so the bank has made its own finite update: the one thing that changes, and it is said."""
    pretraining = start(data_root, tmp_path / "run")
    advance(pretraining, 2)
    before = {name: value.clone() for name, value in pretraining.model.state_dict().items()}
    next(pretraining.model.query.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(NonFiniteError, match="The bank has moved; weights were left as before this step"):
        advance(pretraining, 1)
    for name, value in pretraining.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in ("bank.entries", "bank.momentum")), name
        assert torch.isfinite(value).all()


def forty_steps(
    data_root: Path, out: Path, *extra: str, steps: int = 40
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The losses of forty steps, or so many, summed up in each epoch, and the state after them."""
    pretraining = start(data_root, out, *extra, "--epochs", "20")
    losses = []
    for _ in range(steps):
        advance(pretraining, 1)
        losses.append(pretraining.stepper.sums[0].clone())
    return torch.stack(losses), pretraining.model.state_dict()


def largest_difference(ours: dict[str, torch.Tensor], truth: dict[str, torch.Tensor], part: str) -> float:
    """Of the tensors under ``part``, relative to the largest element of each."""
    values = [(ours[n].double(), t.double()) for n, t in truth.items() if n.startswith(part)]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-2)).item() for a, b in values)


# Losses of steps 0, 3, 9, 19, 29 and 39, from before the step was rebuilt for devices (commit 534b53a).
GOLDEN_STEPS = (0, 3, 9, 19, 29, 39)
GOLDEN = {
    ("a2mc", "sgd"): (0.05936, 7.5874, 8.37377, 9.61892, 8.43676, 6.94869),
    ("a2mc", "adamw"): (0.05936, 7.52938, 8.08433, 9.70898, 8.56703, 7.22258),
    ("b1", "sgd"): (0.05936, 3.18938, 4.1539, 4.92411, 3.21981, 3.41362),
    ("b1", "adamw"): (0.05936, 3.21229, 4.11018, 4.81827, 3.28738, 3.29369),
    ("b2", "sgd"): (0.05936, 10.2024, 10.69006, 13.6945, 10.36998, 8.60694),
    ("b2", "adamw"): (0.05936, 10.21415, 10.55735, 13.7744, 10.44027, 8.9512),
    ("b3", "sgd"): (0.05936, 11.59633, 10.96817, 12.41442, 10.03464, 9.06205),
    ("b3", "adamw"): (0.05936, 11.56846, 10.83116, 12.37329, 10.1199, 9.10533),
}


def step_losses(sums: torch.Tensor) -> list[float]:
    """From the losses summed up in each epoch of three steps."""
    before = torch.cat([sums.new_zeros(1), sums[:-1]])
    before[::3] = 0
    return (sums - before)[list(GOLDEN_STEPS)].tolist()


@pytest.mark.parametrize(("method", "optimizer"), GOLDEN)
def test_golden_losses(method, optimizer, data_root, tmp_path):
    sums, _ = forty_steps(data_root, tmp_path / "run", "--method", method, "--optimizer", optimizer)
    assert step_losses(sums) == pytest.approx(GOLDEN[method, optimizer], rel=1e-4)


def test_golden_losses_notice_a_small_change(data_root, tmp_path):
    sums, _ = forty_steps(data_root, tmp_path / "run", "--temperature", "0.0707")
    assert step_losses(sums)[1:] != pytest.approx(GOLDEN["a2mc", "sgd"][1:], rel=1e-3)


@pytest.mark.parametrize(("method", "bank_bound"), [("a2mc", 1e-3), ("b2", 1e-5)])
def test_forty_steps_of_torch_are_those_of_the_reference(method, bank_bound, data_root, tmp_path):
    """Both in float32. A learned bank lets roundings grow, at a rate of 3 and a temperature of 0.03."""
    want_loss, want = forty_steps(data_root, tmp_path / "reference", "--method", method, "--impl", "reference")
    loss, model = forty_steps(data_root, tmp_path / "torch", "--method", method, "--impl", "torch")
    bounds = {"query": 1e-4, "key": 1e-4, "bank": bank_bound}
    torch.testing.assert_close(loss, want_loss, rtol=3e-5, atol=0)
    for part, bound in bounds.items():
        assert largest_difference(model, want, part) < bound, part

    # The budget is one that can be exceeded: a temperature off by a hundredth.
    mutant = ("--method", method, "--impl", "torch", "--temperature", "0.0707")
    loss, model = forty_steps(data_root, tmp_path / "mutant", *mutant)
    assert not torch.allclose(loss, want_loss, rtol=3e-5, atol=0)
    for part, bound in bounds.items():
        assert largest_difference(model, want, part) > bound, part


def test_a_state_that_is_not_finite_is_never_saved(data_root, tmp_path):
    pretraining = start(data_root, tmp_path / "run")
    advance(pretraining, 3)
    good = pretraining.save()
    for tensor in (pretraining.model.bank.entries, next(pretraining.model.query.parameters())):
        before = tensor.detach().clone()
        tensor.data[0] = float("inf")
        with pytest.raises(NonFiniteError, match="not finite after step 3"):
            pretraining.save()
        tensor.data.copy_(before)
    assert checkpoint.load_latest(tmp_path / "run" / "checkpoints")[0] == good


def test_a_bank_that_explodes_stops_the_run_with_a_good_checkpoint_left(data_root, tmp_path, capsys):
    out = tmp_path / "run"
    assert run.main(command(data_root, out, "--bank-lr", "1e38", "--bank-temperature", "0.001")) == 1
    assert "not finite" in errors(capsys) or "loss = nan" in errors(capsys)
    for _, path in checkpoint.complete(out / "checkpoints"):
        model = torch.load(path / checkpoint.STATE, weights_only=True)["model"]
        assert all(torch.isfinite(value).all() for value in model.values())


def test_killed_while_saving_the_previous_checkpoint_loads(data_root, tmp_path):
    """kill -9 in the middle of the third torch.save: the second checkpoint loads, and the same command finishes."""
    out = tmp_path / "run"
    program = textwrap.dedent(
        """
        import os, signal, sys, torch
        from train import run
        real, calls = torch.save, []
        def save(state, file, **how):
            calls.append(0)
            if len(calls) == 3:
                file.write(b"half a checkpoint"); file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            real(state, file, **how)
        torch.save = save
        sys.exit(run.main(sys.argv[1:]))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command(data_root, out)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in this process: sums of two threads round differently
    )
    assert done.returncode == -signal.SIGKILL
    assert list((out / "checkpoints").glob(".step_*.tmp"))
    _, state = checkpoint.load_latest(out / "checkpoints")
    assert state["position"]["epoch"] == 2
    assert run.main(command(data_root, out)) == 0
    assert not list((out / "checkpoints").glob(".step_*.tmp"))
    assert run.main(command(data_root, tmp_path / "whole")) == 0
    assert_same_state(state_of(out)["model"], state_of(tmp_path / "whole")["model"])


def test_a_damaged_checkpoint_falls_back_to_the_one_before(finished, tmp_path, caplog):
    folder = tmp_path / "checkpoints"
    shutil.copytree(finished / "checkpoints", folder)
    (_, older), (_, newest) = checkpoint.complete(folder)
    content = (newest / checkpoint.STATE).read_bytes()
    (newest / checkpoint.STATE).write_bytes(content[: len(content) // 2])
    assert checkpoint.load_latest(folder)[0] == older
    (older / checkpoint.STATE).write_bytes(b"")
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint can be read"):
        checkpoint.load_latest(folder)


def test_checkpoints_are_kept_and_dropped_as_asked(tmp_path):
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, {"step": step}, keep=2)
    assert [step for step, _ in checkpoint.complete(tmp_path)] == [4, 5]
    assert checkpoint.load_latest(tmp_path)[1] == {"step": 5}
    with pytest.raises(ValueError, match="checkpoints_kept"):
        LogConfig(checkpoints_kept=1)


def errors(capsys) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_another_run_in_the_folder_is_an_error(finished, data_root, capsys):
    assert run.main(command(data_root, finished, "--shear", "0.3")) == 1
    message = errors(capsys)
    assert "augment.shear" in message
    assert "--restart" in message


def test_a_folder_that_is_no_run_is_an_error(data_root, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("mine")
    assert run.main(command(data_root, tmp_path)) == 1
    assert "no run of fastmc" in errors(capsys)
    assert run.main(command(data_root, tmp_path, "--restart")) == 1, "not even --restart deletes what is not ours"
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert run.main(command(data_root, tmp_path, "--restart")) == 1
    assert "config.json is damaged or not of fastmc" in errors(capsys)
    assert (tmp_path / "thesis.txt").exists()


def test_restart_replaces_the_run_and_nothing_else(data_root, tmp_path, capsys):
    out = tmp_path / "run"
    assert run.main(command(data_root, out)) == 0
    (out / "notes.txt").write_text("mine")
    report = (out / "report.json").read_text()
    assert run.main(command(data_root, out, "--restart", "--batch-size", "500")) == 1
    assert (out / "report.json").read_text() == report, "a wrong setting is found before anything is deleted"
    assert run.main(command(data_root, out, "--restart", "--seed", "3")) == 0
    assert json.loads((out / "report.json").read_text())["seed"] == 3
    assert [row["epoch"] for row in read_metrics(out / "metrics.csv")] == [1, 2, 3, 4]
    assert (out / "notes.txt").exists()


def test_a_finished_run_is_told_and_left_alone(data_root, tmp_path, capsys):
    out = tmp_path / "run"
    assert run.main(command(data_root, out)) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert run.main(command(data_root, out)) == 0
    assert "finished" in errors(capsys)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert run.main(command(data_root, out, "--knn-k", "3")) == 0, "another evaluation is made, without training"
    assert load_config(out).evaluation.knn_k == 3
    assert "epoch 1/4" not in errors(capsys).split("resuming")[1]


def test_an_evaluation_that_was_stopped_is_made_by_the_same_command(data_root, tmp_path, monkeypatch):
    """The report of the earlier settings must not pass for that of the new ones."""
    out = tmp_path / "run"
    assert run.main(command(data_root, out)) == 0

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "evaluate_encoder", stop)
        assert run.main(command(data_root, out, "--knn-k", "3")) == 130
    assert json.loads((out / "report.json").read_text())["evaluation"]["knn_k"] == 1
    assert run.main(command(data_root, out, "--knn-k", "3")) == 0
    assert json.loads((out / "report.json").read_text())["evaluation"]["knn_k"] == 3


def test_other_labels_are_another_evaluation(data_root, tmp_path, capsys):
    """Pre-training has not seen them, so the run goes on; its figures are made anew."""
    root, out = tmp_path / "root", tmp_path / "run"
    shutil.copytree(data_root / "small", root / "small")
    assert run.main(command(root, out)) == 0
    before = json.loads((out / "report.json").read_text())
    np.save(root / "small" / "label.npy", np.roll(np.load(root / "small" / "label.npy"), 1))
    assert run.main(command(root, out)) == 0
    assert "finished; --restart" not in errors(capsys)
    after = json.loads((out / "report.json").read_text())
    assert after["data"] != before["data"]
    assert after["steps"] == before["steps"]


def test_a_damaged_report_is_named(data_root, tmp_path, capsys):
    out = tmp_path / "run"
    assert run.main(command(data_root, out)) == 0
    (out / "report.json").write_text("")
    assert run.main(command(data_root, out)) == 1
    assert f"{out / 'report.json'} is damaged" in errors(capsys)


def test_other_data_under_the_same_name_are_noticed(data_root, tmp_path, capsys):
    write_small_store(tmp_path / "other" / "small", seed=1)
    out = tmp_path / "run"
    assert run.main(command(data_root, out)) == 0
    assert run.main(command(tmp_path / "other", out)) == 1
    assert "was trained on other data" in errors(capsys)
    assert evaluate.main(["knn", "--run", str(out), "--data-root", str(tmp_path / "other")]) == 1
    assert "was trained on other data" in errors(capsys)


def test_two_processes_do_not_share_a_folder(data_root, tmp_path, capsys):
    config = replace(parse(command(data_root, tmp_path / "run")), protocol="xsub")
    with RunFolder(config).begin({}):
        assert run.main(command(data_root, tmp_path / "run")) == 1
        assert "another process trains" in errors(capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol", "xset"], "xsub, xview"),
        (["--batch-size", "500"], "batch_size = 500"),
        (["--device", "tpu9"], "device = 'tpu9'"),
        (["--impl", "triton"], "impl = 'triton' cannot run on cpu"),
        (["--view-impl", "triton"], "view_impl: impl='triton' cannot run: the tensors are on the CPU"),
        (
            ["--view-impl", "numba", "--frames-dtype", "float16"],
            "view_impl: impl='numba' cannot run: it takes frames in",
        ),
        (["--stream", "bone", "--dataset", "nowhere"], "there is no dataset 'nowhere'"),
        (["--amp", "tf32"], "amp = 'tf32' needs an NVIDIA GPU, not cpu; give --amp fp32"),
        (["--optimizer-impl", "triton"], "optimizer_impl = 'triton' is impossible: our kernel is for sgd, not adamw"),
        (["--optimizer-impl", "apex"], "optimizer_impl = 'apex' is impossible: apex is for sgd, not adamw"),
        (["--cuda-graph", "on"], "cuda_graph = 'on' is impossible: CUDA graphs need an NVIDIA GPU"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_written(flags, message, data_root, tmp_path, capsys):
    assert run.main(command(data_root, tmp_path / "run", *flags)) == 1
    assert message in errors(capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flag",
    ["--mixing foo", "--mixing fixed:2", "--bank-size 0", "--temperature 0", "--ema 2", "--seed -1", "--shear -1"],
)
def test_values_out_of_range_are_named_by_the_command_line(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parse([*FAST, *flag.split()])
    assert caught.value.code == 2
    assert flag.split()[0].lstrip("-").replace("-", "_") in errors(capsys)


def test_a_protocol_without_test_clips_is_an_error(tmp_path, capsys):
    write_small_store(tmp_path / "small", subjects=(1, 3))
    assert run.main(command(tmp_path, tmp_path / "run")) == 1
    assert "leaves no test clip" in errors(capsys)


def test_unknown_flag_is_an_error_that_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as caught:
        run.main(["--temprature", "0.1"])
    assert caught.value.code == 2
    assert "--temperature" in errors(capsys)


def test_missing_dataset_says_what_to_do(tmp_path):
    with pytest.raises(DatasetError, match=r"ROSE Lab(.|\n)*python -m train.prepare ntu60"):
        open_dataset("ntu60", tmp_path)
    with pytest.raises(DatasetError, match="train\\.prepare npz"):
        open_dataset("mine", tmp_path)


def test_print_config_prints_json_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main(["--dataset", "ntu60", "--print-config"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["preset"] == "paper"
    assert printed["settings"]["bank_size"] == 16384
    assert not list(tmp_path.iterdir())


def test_paper_preset_is_section_4_2():
    c = preset_config("paper", "ntu60")
    assert (c.optim.lr, c.optim.epochs, c.optim.milestones, c.optim.optimizer) == (0.01, 750, (350,), "sgd")
    assert (c.optim.batch_size, c.optim.weight_decay, c.frames) == (64, 1e-4, 64)
    k = c.settings
    assert (k.bank_size, k.temperature, k.ema, k.bank_lr, k.bank_temperature) == (16384, 0.07, 0.999, 3.0, 0.03)
    assert (k.attack_lr, k.attack_norm) == (0.1, 0.5)
    assert (c.evaluation.linear_epochs, c.evaluation.linear_lr, c.evaluation.linear_milestones) == (80, 0.1, (50, 70))
    pku = preset_config("paper", "pku2").optim
    assert (pku.epochs, pku.milestones) == (1000, (800,))
    assert [c.optim.lr_at(e) for e in (0, 349, 350, 749)] == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_command_line_presets_and_overrides():
    assert parse([]).preset == "tiny"
    assert parse(["--dataset", "ntu60"]).preset == "paper"
    c = parse(["--dataset", "pku2", "--preset", "small", "--shear", "0.1", "--no-input-norm"])
    assert (c.preset, c.augment.shear, c.encoder.input_norm, c.encoder.encoder) == ("small", 0.1, False, "2x256")
    assert differences(to_plain(c), to_plain(parse(["--dataset", "pku2", "--preset", "small"]))) == [
        "augment.shear",
        "encoder.input_norm",
    ]
    with pytest.raises(ValueError, match="no setting named colour"):
        from_plain(Config, {"colour": 1})


def test_evaluate_command(finished, capsys):
    report = json.loads((finished / "report.json").read_text())
    assert evaluate.main(["knn", "--run", str(finished), "--device", "cpu"]) == 0
    results = finished / "evaluate"
    again = json.loads((results / "knn-xsub.json").read_text())
    assert again["top1"] == report["knn_top1"]
    assert again["random_init"] == {"top1": report["random_init"]["knn_top1"]}
    assert evaluate.main(["linear", "--run", str(finished)]) == 0
    again = json.loads((results / "linear-xsub.json").read_text())
    assert again["top1"] == report["linear_top1"], "by default with the run's own settings"
    assert again["evaluation"]["linear_epochs"] == 3
    assert evaluate.main(["knn", "--run", str(finished), "--placement", "mapped", "--no-cache"]) == 0
    assert json.loads((results / "knn-xsub.json").read_text())["top1"] == report["knn_top1"]
    assert "fetched ahead" in errors(capsys)
    assert evaluate.main(["linear", "--run", str(finished), "--protocol", "xview", "--linear-epochs", "2"]) == 0
    assert json.loads((results / "linear-xview.json").read_text())["protocol"] == "xview"


def test_evaluate_refuses_what_is_no_run(tmp_path, finished, capsys):
    assert evaluate.main(["knn", "--run", str(tmp_path)]) == 1
    assert "config.json" in errors(capsys)
    (tmp_path / "config.json").write_text((finished / "config.json").read_text())
    assert evaluate.main(["knn", "--run", str(tmp_path)]) == 1
    assert "no complete checkpoint" in errors(capsys)
    assert evaluate.main(["knn", "--run", str(finished), "--data-root", str(tmp_path)]) == 1
    assert "there is no dataset 'small'" in errors(capsys)
    assert evaluate.main(["knn", "--run", str(finished), "--knn-k", "10000"]) == 1
    assert "k must be" in errors(capsys)
    with pytest.raises(SystemExit):
        evaluate.main(["knn", "--run", str(finished), "--knn-k", "0"])
    assert "knn_k must be >= 1, got 0" in errors(capsys)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_of_that_moment(number, data_root, tmp_path):
    out = tmp_path / "run"
    flags = ("--epochs", "100000", "--probe-every", "0", "--checkpoint-every", "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "train.run", *command(data_root, out, *flags)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"{number.name}: stopping after this step, with a checkpoint" in err
    assert "resumes" in err
    assert checkpoint.load_latest(out / "checkpoints")[1]["position"]["step"] >= 9


@pytest.fixture
def hears():
    """A process that was started in the background of a script ignores Ctrl-C, and so do its children."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_what_is_ignored_stays_ignored(hears):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with asked_to_stop() as asked:
        signal.raise_signal(signal.SIGINT)
        assert not asked()
        signal.raise_signal(signal.SIGTERM)
        assert asked()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("hears")
def test_asked_twice_it_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with asked_to_stop() as asked:
        assert not asked()
        signal.raise_signal(signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("hears")
@pytest.mark.parametrize("last", [False, True])
def test_stopped_in_the_middle_or_at_the_end_of_an_epoch_the_run_ends_as_if_it_had_not_been(last, data_root, tmp_path):
    assert run.main(command(data_root, tmp_path / "whole")) == 0
    advanced, when = Pretraining._advance, 3 if last else 2

    def advance_and_ask(self: Pretraining, *batch: object) -> bool:
        found = advanced(self, *batch)
        if self.step == when:
            signal.raise_signal(signal.SIGTERM)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "_advance", advance_and_ask)
        assert run.main(command(data_root, tmp_path / "parts", "--checkpoint-every", "100")) == 130
    position = state_of(tmp_path / "parts")["position"]
    assert (position["epoch"], position["batch"], position["step"]) == ((1, 0, 3) if last else (0, 2, 2))
    assert run.main(command(data_root, tmp_path / "parts")) == 0
    assert_same_state(state_of(tmp_path / "whole")["model"], state_of(tmp_path / "parts")["model"])
    rows = [read_metrics(tmp_path / name / "metrics.csv") for name in ("whole", "parts")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]


@pytest.mark.parametrize("when", ["training", "evaluation"])
def test_frames_that_change_under_a_run_end_it(when, data_root, tmp_path, capsys):
    shutil.copytree(data_root / "small", tmp_path / "data" / "small")
    frames, advanced, said = tmp_path / "data" / "small" / "frames.npy", Pretraining._advance, []

    def advance_and_touch(self: Pretraining, *batch: object) -> bool:
        found = advanced(self, *batch)
        if self.step == (4 if when == "training" else 12) and not said:
            said.append(self.step)
            os.utime(frames)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "_advance", advance_and_touch)
        assert run.main(command(tmp_path / "data", tmp_path / "run")) == 1
    assert f"{frames} was changed while it was in use" in errors(capsys)
    assert said and not (tmp_path / "run" / "report.json").exists()
    assert run.main(command(tmp_path / "data", tmp_path / "run")) == 0, "the bits are the same, and it goes on"


@pytest.mark.parametrize(("flags", "code"), [((), 1), (("--verify", "on"), 1), (("--verify", "off"), 0)])
def test_damaged_frames_are_not_trained_on(flags, code, data_root, tmp_path, capsys):
    store = shutil.copytree(data_root / "small", tmp_path / "data" / "small")
    frames = np.load(store / "frames.npy", mmap_mode="r+")
    frames[0, 0, 0] += 1
    frames.flush()
    assert run.main(command(tmp_path / "data", tmp_path / "run", "--epochs", "1", *flags)) == code
    assert code == 0 or "is not what was written to it" in errors(capsys)


def test_a_large_set_is_verified_where_that_is_asked_for(data_root, monkeypatch):
    seen = []
    monkeypatch.setattr(PackedStore, "verify", lambda self: seen.append(self.name))
    monkeypatch.setattr("train.command.datasets.VERIFIED_BYTES", 10)
    open_dataset("small", data_root)
    assert not seen
    open_dataset("small", data_root, "on")
    assert seen == ["small"]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.csv")]


@pytest.mark.parametrize("what", ["metrics.csv", "tensorboard", "config.json", "run.log", "."])
def test_what_is_removed_under_a_run_is_made_again(what, finished, data_root, tmp_path):
    out, advanced, removed = tmp_path / "run", Pretraining._advance, []

    def advance_and_remove(self: Pretraining, *batch: object) -> bool:
        if self.step == 7 and not removed:  # two epochs are done
            removed.append(out / what)
            shutil.rmtree(removed[0]) if removed[0].is_dir() else removed[0].unlink()
        return advanced(self, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "_advance", advance_and_remove)
        assert run.main(command(data_root, out)) == 0
    assert removed
    assert losses(out) == losses(finished)
    written = {
        "config.json",
        "environment.json",
        "metrics.csv",
        "run.log",
        "curves.png",
        "report.json",
        "classifier.pt",
    }
    assert {path.name for path in out.iterdir()} >= written | {"checkpoints", "tensorboard"}
    assert "epoch 4/4" in (out / "run.log").read_text()
    assert sum(path.stat().st_size for path in (out / "tensorboard").iterdir()) > 500
    assert run.main(command(data_root, out)) == 0, "it is a run, finished"


def test_a_folder_that_was_removed_under_a_run_is_locked_again(data_root, tmp_path):
    config = replace(parse(command(data_root, tmp_path / "run")), protocol="xsub")
    folder = RunFolder(config)
    with folder.begin({}):
        shutil.rmtree(folder.path)
        folder.make_again()
        folder.make_again()
        with pytest.raises(RunFolderError, match="another process trains in"), RunFolder(config).begin({}):
            pass
    with RunFolder(config).begin({}):
        pass


def test_a_history_that_was_removed_between_two_calls_is_in_the_checkpoint(finished, data_root, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "metrics.csv").unlink()
    (out / "report.json").unlink()
    assert run.main(command(data_root, out)) == 0
    assert losses(out) == losses(finished)


@pytest.mark.parametrize("what", ["metrics.csv", "curves.png", "classifier.pt"])
def test_a_finished_run_makes_again_what_it_lacks(what, finished, data_root, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    (out / what).unlink()
    assert run.main(command(data_root, out)) == 0
    assert (out / what).stat().st_size == pytest.approx((finished / what).stat().st_size, rel=0.2)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run.main(command(data_root, out)) == 0
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before, "now it is only read"


@pytest.mark.parametrize("key", ["linear_top5", "random_init"])
def test_a_report_that_lacks_an_accuracy_is_made_again(key, finished, data_root, tmp_path):
    out = shutil.copytree(finished, tmp_path / "run")
    report = json.loads((out / "report.json").read_text())
    wanted = report.pop(key)
    (out / "report.json").write_text(json.dumps(report))
    assert run.main(command(data_root, out)) == 0
    assert json.loads((out / "report.json").read_text())[key] == wanted
