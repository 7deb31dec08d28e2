"""Runs of the trainer: what they write, how they resume, what they refuse."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_small_store
from once import made_once

import fastmc
from fastmc import checkpoint
from fastmc.config import (
    Config,
    RunFolderError,
    differences,
    from_plain,
    load_config,
    preset_config,
    to_plain,
)
from fastmc.data.placed.placement import DataConfig
from fastmc.data.placed.streamed import THREAD_NAME
from fastmc.data.store import PackedStore, StoreError, StoreWriter
from fastmc.skeleton import NTU25
from fastmc.state import RunState
from train import evaluate, figures, report, run
from train.command.datasets import DatasetError, open_dataset
from train.command.parse import parse
from train.engine.loop import Pretraining
from train.engine.record import read_metrics
from train.engine.signals import HEARD, Stopped
from train.engine.step import NonFiniteError
from train.engine.stopping import asked_to_stop
from train.export import SUFFIXES
from train.runs.folder import RunFolder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
FAST = [
    *("--dataset", "small", "--preset", "tiny", "--frames", "8", "--encoder", "1x8", "--batch-size", "8"),
    *("--bank-size", "16", "--epochs", "4", "--milestones", "3", "--warmup-epochs", "1", "--probe-every", "2"),
    *("--checkpoint-every", "1", "--linear-epochs", "3", "--linear-milestones", "2", "--train-crops", "2"),
    *("--device", "cpu"),
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


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.csv")]


def errors(capsys) -> str:
    captured = capsys.readouterr()
    return captured.out + captured.err


@contextmanager
def at_step(step: int, act: Callable[[], object]) -> Iterator[None]:
    """Within: ``act`` is called once a run has made this step."""
    advanced, done = Pretraining._advance, []

    def advance_and_act(self: Pretraining, *batch: object) -> bool:
        found = advanced(self, *batch)
        if self.step == step and not done:
            done.append(act())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pretraining, "_advance", advance_and_act)
        yield
    assert done


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory) -> Path:
    """A finished run."""

    def train(folder: Path) -> None:
        assert run.main(command(data_root, folder)) == 0

    return made_once(tmp_path_factory, "finished", train)


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """The same, to be written to."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


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
    begun = json.loads((finished / "environment.json").read_text())[0]
    assert begun["packages"]["torch"]
    if (ROOT / ".git").exists():
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert begun["commit"].removesuffix("-dirty") == head.strip()
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
@pytest.mark.quick
@pytest.mark.parametrize(
    ("method", "optimizer", "steps", "amp"),
    [
        *(("a2mc", "sgd", 7, "fp16"), ("a2mc", "adamw", 2, "fp32"), ("b1", "sgd", 1, "bf16")),
        *(("b2", "adamw", 7, "fp32"), ("b3", "sgd", 2, "fp32")),
    ],
)
def test_resume_equals_an_uninterrupted_run_bit_for_bit(method, optimizer, steps, amp, data_root, tmp_path):
    """The gradient scale of float16 included, which falls in the first steps."""
    settings = ("--method", method, "--optimizer", optimizer, "--amp", amp)
    whole, parts = (start(data_root, tmp_path / name, *settings) for name in ("whole", "parts"))
    advance(whole, 12)
    advance(parts, steps)
    path = parts.save()
    torch.manual_seed(12345)  # a new process has other random states
    again = start(data_root, tmp_path / "again", *settings)
    again.load(RunState.of_plain(torch.load(path / checkpoint.STATE, weights_only=True), path), path)
    advance(again, 12 - steps)
    for ours, theirs in zip(again.stepper.state(), whole.stepper.state(), strict=True):
        assert torch.equal(ours, theirs)
    states = [RunState.read(run.save().parent)[1].to_plain() for run in (whole, again)]
    assert states[0]["position"]["step"] == 12
    assert_same_state(*states)
    if amp == "fp16":
        assert whole.stepper.scaling.scale < 2.0**16


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
    assert [row["epoch"] for row in read_metrics(tmp_path / "killed" / "metrics.csv")] == [1, 2]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def test_a_checkpoint_of_an_older_version_after_an_epoch_s_last_batch_resumes(finished, data_root, tmp_path):
    """It says batch == batches: the epoch's row is still to be written."""
    first = start(data_root, tmp_path / "parts")
    advance(first, 3)
    assert first.batch == first.batches
    first.save()
    assert run.main(command(data_root, tmp_path / "parts")) == 0
    assert_same_state(state_of(finished)["model"], state_of(tmp_path / "parts")["model"])
    assert losses(tmp_path / "parts") == losses(finished)


def test_the_log_says_how_steps_are_computed_and_where_the_frames_are(finished):
    line = (
        "step: amp fp32 (half precision is slower on cpu), compile off (on cpu it costs more than it saves), "
        "CUDA graph off (CUDA graphs need an NVIDIA GPU, not cpu), overlap off (a second stream needs a GPU, not cpu); "
        "AdamW of torch, fused (our kernel is for sgd, not adamw)"
    )
    said = (finished / "run.log").read_text()
    assert line in said
    assert "MB of float32 on cpu, its file mapped without a copy; they take at most 50%" in said


@pytest.mark.parametrize("placement", ["pinned", "mapped"])
def test_frames_on_the_host_train_to_the_same_bits(placement, finished, data_root, tmp_path):
    """Mid-epoch resume included, from one placement to another, under a profile; the accuracies are the same too."""
    out = tmp_path / "run"
    pretraining = start(data_root, out, "--placement", placement)
    advance(pretraining, 2)
    with closing(pretraining._remaining_batches()) as batches:
        next(batches)  # fetched ahead and never trained on
        pretraining.save()
    assert run.main(command(data_root, out, "--placement", "mapped", "--profile", "3")) == 0
    assert "stay in the file, 2 batches fetched ahead as float32; --placement mapped" in (out / "run.log").read_text()
    assert (out / "profile" / "trace.json.gz").exists()
    ours, theirs = state_of(out), state_of(finished)
    assert_same_state([ours["model"], ours["optimizer"]], [theirs["model"], theirs["optimizer"]])
    reports = [json.loads((folder / "report.json").read_text()) for folder in (finished, out)]
    for key in ("random_init", "knn_top1", "linear_top1", "linear_top5"):
        assert reports[0][key] == reports[1][key]


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


def test_a_run_may_change_its_placement_and_not_its_numbers(copied, data_root, capsys):
    """Also one from before a group of settings existed."""
    free = ["--placement", "mapped", "--view-impl", "torch", "--cuda-graph", "off", "--profile", "2"]
    assert run.main(command(data_root, copied, *free, "--optimizer-impl", "torch")) == 0
    assert "finished" in errors(capsys)
    saved = json.loads((copied / "config.json").read_text())
    del saved["data"]
    (copied / "config.json").write_text(json.dumps(saved))
    assert load_config(copied).data == DataConfig()
    assert run.main(command(data_root, copied)) == 0
    assert "finished" in errors(capsys)
    for name, value in (("data.frames_dtype", "float16"), ("step.amp", "bf16")):
        flag = "--" + name.partition(".")[2].replace("_", "-")
        assert run.main(command(data_root, copied, flag, value)) == 1
        assert f"other settings ({name})" in errors(capsys)


def test_a_different_seed_gives_a_different_run(data_root, tmp_path):
    first, other = (start(data_root, tmp_path / seed, "--seed", seed) for seed in "01")
    for each in (first, other):
        advance(each, 1)
    with pytest.raises(AssertionError):
        assert_same_state(first.model.state_dict(), other.model.state_dict())


def test_everything_that_should_learns_and_nothing_else(finished, data_root):
    config = load_config(finished)
    fresh = Pretraining(config, open_dataset("small", data_root), finished, torch.device("cpu")).model
    trained = state_of(finished)["model"]
    for name, before in fresh.state_dict().items():
        assert torch.equal(before, trained[name]) == name.startswith("attack_head"), name


@pytest.mark.quick
@pytest.mark.parametrize("method", ["a2mc", "b1", "b2", "b3"])
def test_a_short_run_of_each_method_of_which_only_a2mc_learns_its_bank(method, data_root, tmp_path):
    out = tmp_path / "run"
    short = ("--epochs", "2", "--milestones", "--warmup-epochs", "0", "--probe-every", "0", "--linear-epochs", "1")
    assert run.main(command(data_root, out, "--method", method, *short)) == 0
    bank = {k: v for k, v in state_of(out)["model"].items() if k.startswith("bank.")}
    assert bool(bank["bank.momentum"].any()) == (method == "a2mc")
    unit = (bank["bank.entries"].norm(dim=1) - 1).abs().max() < 1e-5
    assert bool(unit) != (method == "a2mc")
    assert bank["bank.cursor"] >= 16, "every row has held a feature"
    rows, report = read_metrics(out / "metrics.csv"), json.loads((out / "report.json").read_text())
    assert [row["step"] for row in rows] == [3, 6] and all(row["loss"] > 0 for row in rows)
    assert (report["method"], report["steps"]) == (method, 6) and 0 <= report["linear_top1"] <= 100


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_takes_its_place(
    finished, copied, data_root, capsys
):
    """And what had been written to the metrics after it is dropped."""
    state = checkpoint.complete(copied / "checkpoints")[-1][1] / checkpoint.STATE
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    assert run.main(command(data_root, copied)) == 0
    assert f"{state} is damaged" in errors(capsys)
    assert checkpoint.complete(copied / "checkpoints")[-1][1] == state.parent
    assert_same_state(state_of(copied)["model"], state_of(finished)["model"])
    assert losses(copied) == losses(finished)
    with open(copied / "metrics.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 5


def test_non_finite_loss_reaches_neither_weights_nor_statistics_nor_bank(data_root, tmp_path):
    pretraining = start(data_root, tmp_path / "run")
    advance(pretraining, 2)
    path = pretraining.save()
    pretraining.data.frames.fill_(float("nan"))
    before = {name: value.clone() for name, value in pretraining.model.state_dict().items()}
    advance(pretraining, 1)
    with pytest.raises(NonFiniteError, match="epoch 1, step 2: loss = nan") as caught:
        pretraining._check()
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
    advance(pretraining, 1)
    with pytest.raises(NonFiniteError, match="The bank has moved; weights were left as before this step"):
        pretraining._check()
    for name, value in pretraining.model.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in ("bank.entries", "bank.momentum")), name
        assert torch.isfinite(value).all()


def forty_steps(
    data_root: Path, out: Path, *extra: str, steps: int = 40
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The losses of forty steps, or so many, summed up in each epoch, and the state after them; attacked as strongly as
    in the paper, with which the golden losses are."""
    pretraining = start(data_root, out, "--attack-norm", "0.5", *extra, "--epochs", "20")
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
    assert step_losses(sums)[1:] != pytest.approx(GOLDEN["a2mc", "adamw"][1:], rel=1e-3)


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


@pytest.mark.program
def test_killed_while_saving_the_previous_checkpoint_loads(data_root, tmp_path):
    """kill -9 in the middle of the third torch.save: the second checkpoint loads, and the same command finishes."""
    out, settings = tmp_path / "run", ("--view-impl", "torch", "--probe-every", "0")  # numba would compile again
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
        [sys.executable, "-c", program, *command(data_root, out, *settings)],
        cwd=ROOT,
        capture_output=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as in this process: sums of two threads round differently
    )
    assert done.returncode == -signal.SIGKILL
    assert list((out / "checkpoints").glob(".step_*.tmp"))
    _, state = checkpoint.load_latest(out / "checkpoints")
    assert state["position"]["epoch"] == 2
    assert run.main(command(data_root, out, *settings)) == 0
    assert not list((out / "checkpoints").glob(".step_*.tmp"))
    whole = start(data_root, tmp_path / "whole", *settings)
    advance(whole, 12)
    assert_same_state(state_of(out)["model"], whole.model.state_dict())


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


def test_what_came_to_no_checkpoint_blocks_no_corrected_command(data_root, tmp_path, monkeypatch, capsys):
    """What fails leaves nothing behind; what was killed leaves what another run may take the place of, unless there
    are results."""
    out = tmp_path / "run"

    def out_of_memory(_: object) -> None:
        raise ValueError("out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Pretraining, "run", out_of_memory)
        assert run.main(command(data_root, out)) == 1
    assert "out of memory" in errors(capsys)
    assert not out.exists()

    configs = [replace(parse(command(data_root, out, "--seed", seed)), protocol="xsub") for seed in "01"]
    with RunFolder(configs[0]).begin({}):
        (out / "notes.txt").write_text("mine")
    with RunFolder(configs[1]).begin({"second": True}):
        assert load_config(out).seed == 1
        assert json.loads((out / "environment.json").read_text()) == [{"second": True}]
        assert (out / "notes.txt").exists()
    (out / "report.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"other settings \(seed\)\. Resume it with --config .*config\.json --out"):
        RunFolder(configs[0])


def test_restart_replaces_the_run_and_nothing_else(copied, data_root):
    (copied / "notes.txt").write_text("mine")
    exports = [copied / f"encoder{suffix}" for suffix in SUFFIXES.values()]
    for file in exports:
        file.write_text("weights of the run that goes")
    report = (copied / "report.json").read_text()
    assert run.main(command(data_root, copied, "--restart", "--batch-size", "500")) == 1
    assert (copied / "report.json").read_text() == report, "a wrong setting is found before anything is deleted"
    assert run.main(command(data_root, copied, "--restart", "--seed", "3", "--epochs", "2", "--milestones")) == 0
    assert json.loads((copied / "report.json").read_text())["seed"] == 3
    assert [row["epoch"] for row in read_metrics(copied / "metrics.csv")] == [1, 2]
    assert (copied / "notes.txt").exists()
    assert not any(file.exists() for file in exports)


def test_a_finished_run_is_told_and_left_alone_and_another_evaluation_is_made(copied, data_root, monkeypatch, capsys):
    """Also one that was stopped: the report of the earlier settings must not pass for that of the new ones."""
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()}
    assert run.main(command(data_root, copied)) == 0
    assert "finished" in errors(capsys)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*") if path.is_file()} == before

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "evaluate_encoder", stop)
        assert run.main(command(data_root, copied, "--knn-k", "3")) == 130
    assert json.loads((copied / "report.json").read_text())["evaluation"]["knn_k"] == 1
    assert run.main(command(data_root, copied, "--knn-k", "3")) == 0
    assert json.loads((copied / "report.json").read_text())["evaluation"]["knn_k"] == 3
    assert load_config(copied).evaluation.knn_k == 3
    assert "epoch 1/4" not in errors(capsys).split("resuming")[1]


def test_other_labels_are_another_evaluation(copied, data_root, tmp_path, capsys):
    """Pre-training has not seen them, so the run goes on; its figures are made anew."""
    root = tmp_path / "root"
    shutil.copytree(data_root / "small", root / "small")
    before = json.loads((copied / "report.json").read_text())
    np.save(root / "small" / "label.npy", np.roll(np.load(root / "small" / "label.npy"), 1))
    assert run.main(command(root, copied)) == 0
    assert "finished; --restart" not in errors(capsys)
    after = json.loads((copied / "report.json").read_text())
    assert after["data"] != before["data"]
    assert after["steps"] == before["steps"]


def test_other_data_under_the_same_name_are_noticed(finished, tmp_path, capsys):
    write_small_store(tmp_path / "small", seed=1)
    assert run.main(command(tmp_path, finished)) == 1
    assert "was trained on other data" in errors(capsys)
    assert evaluate.main(["knn", "--run", str(finished), "--data-root", str(tmp_path)]) == 1
    assert "was trained on other data" in errors(capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol", "xset"], "xsub, xview"),
        (["--batch-size", "500"], "larger than the 24 training clips of xsub; give --batch-size 24 or less"),
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


@pytest.mark.quick
def test_wrong_flags_are_named_by_the_command_line(capsys):
    flags = "--mixing foo", "--mixing fixed:2", "--bank-size 0", "--temperature 0", "--ema 2", "--temprature 0.1"
    for flag in flags:
        with pytest.raises(SystemExit) as caught:
            run.main([*FAST, *flag.split()])
        assert caught.value.code == 2
        name = flag.split()[0].lstrip("-").replace("-", "_")
        assert ("--temperature" if name == "temprature" else name) in errors(capsys)


def without_labels(store: Path, of: Callable[[int], bool]) -> None:
    """The store, where clip n has no label if ``of(n)``."""
    labels = np.load(store / "label.npy")
    np.save(store / "label.npy", np.array([-1 if of(n) else label for n, label in enumerate(labels)], np.int32))


@pytest.mark.parametrize("lacking", ["test clip", "labelled training clip"])
def test_a_set_that_cannot_be_evaluated_is_trained_on(lacking, tmp_path, capsys):
    """The same command finds it finished; evaluations say why there are none, and what needs no class is drawn."""
    write_small_store(tmp_path / "small", subjects=(1, 3) if lacking == "test clip" else (1, 2, 3, 4))
    if lacking != "test clip":
        without_labels(tmp_path / "small", lambda n: True)
    out = tmp_path / "run"
    assert run.main(command(tmp_path, out)) == 0
    why = f"protocol = 'xsub' leaves no {lacking} in {tmp_path / 'small'}"
    assert f"not evaluated: {why}" in errors(capsys)
    report = json.loads((out / "report.json").read_text())
    assert report["not_evaluated"] == why and not {"knn_top1", "random_init"} & report.keys()
    assert not any("knn_top1" in row for row in read_metrics(out / "metrics.csv"))
    assert run.main(command(tmp_path, out)) == 0
    said = errors(capsys)
    assert "holds this run, finished" in said and f"not evaluated: {why}" in said
    for kind in ("knn", "linear", "finetune", "semi"):
        assert evaluate.main([kind, "--run", str(out)]) == 1
        assert why in errors(capsys)
    assert figures.main(["--run", str(out), "--only", "neighbours", "tsne", "--k", "2"]) == 0
    assert "tsne is left out" in errors(capsys)
    assert (out / "figures" / "neighbours.png").exists()
    assert fastmc.load(out).encode(PackedStore.open(tmp_path / "small")).isfinite().all()


def test_what_is_labelled_is_evaluated(data_root, tmp_path, capsys):
    """The other clips train, and nothing else."""
    small = shutil.copytree(data_root / "small", tmp_path / "some" / "small")
    without_labels(small, lambda n: n % 3 == 0 or n in (1, 2))  # class 0 is left with none
    out = tmp_path / "run"
    assert run.main(command(tmp_path / "some", out)) == 0
    notes = ["18 of 48 clips have no label; evaluations leave them out", "no clip has label 0 (swing 0)"]
    said, report = errors(capsys), json.loads((out / "report.json").read_text())
    for note, written in zip(notes, report["notes"], strict=True):
        assert note in said and written.startswith(note)
    store = PackedStore.open(small)
    train, test = store.labelled_split("xsub")
    found = fastmc.load(out, device="cpu").encode(store).numpy()
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    nearest = store.label[train][(found[test] @ found[train].T).argmax(axis=1)]
    assert report["knn_top1"] == pytest.approx(100 * (nearest == store.label[test]).mean())
    for kind in ("knn", "linear"):
        assert evaluate.main([kind, "--run", str(out)]) == 0
        result = json.loads((out / "evaluate" / f"{kind}-xsub.json").read_text())
        assert result["top1"] == pytest.approx(report[f"{kind}_top1"]) and result["notes"] == report["notes"]
        assert notes[0] in errors(capsys)
    assert evaluate.main(["semi", "--run", str(out), "--share", "1", "--draws", "1", "--epochs", "1"]) == 0
    most = round(len(train) / 3)
    assert f"{sum(min(most, c) for c in np.bincount(store.label[train]))} labelled clips" in errors(capsys)
    assert run.main(command(tmp_path / "some", tmp_path / "other", "--knn-k", "16")) == 1
    assert f"knn_k must be >= 1 and <= {len(train)}, got 16" in errors(capsys), (
        "before hours of training, and not after"
    )


def test_print_config_prints_json_and_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.main(["--dataset", "ntu60", "--print-config"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["preset"] == "paper"
    assert printed["settings"]["bank_size"] == 16384
    assert not list(tmp_path.iterdir())


def test_print_config_prints_what_the_run_would_have_where_the_set_is_there(data_root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["--dataset", "small", "--preset", "tiny", "--probe-every", "5", "--print-config"]
    assert run.main([*asked, "--data-root", str(data_root)]) == 0
    said = capsys.readouterr()
    printed = json.loads(said.out)
    assert (printed["optim"]["epochs"], printed["settings"]["bank_size"], printed["protocol"]) == (5000, 16, "xsub")
    assert printed["log"]["probe_every"] == 5 and "not yet fitted" not in said.err
    assert run.main([*asked, "--data-root", "nowhere"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["optim"]["epochs"] == 60 and "not yet fitted to the set" in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.quick
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


@pytest.mark.quick
def test_command_line_presets_and_overrides():
    assert parse([]).preset == "tiny"
    assert parse(["--dataset", "ntu60"]).preset == "paper"
    c = parse(["--dataset", "pku2", "--preset", "small", "--shear", "0.1", "--no-input-norm"])
    assert (c.preset, c.augment.shear, c.encoder.input_norm, c.encoder.encoder) == ("small", 0.1, False, "1x256")
    assert differences(to_plain(c), to_plain(parse(["--dataset", "pku2", "--preset", "small"]))) == [
        "augment.shear",
        "encoder.input_norm",
    ]
    with pytest.raises(ValueError, match="no setting named colour"):
        from_plain(Config, {"colour": 1})


@pytest.mark.program
def test_a_run_that_is_asked_to_stop_leaves_a_checkpoint_of_that_moment(data_root, tmp_path):
    out = tmp_path / "run"
    flags = ("--epochs", "100000", "--probe-every", "0", "--checkpoint-every", "100000", "--view-impl", "torch")
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
    assert any(line.startswith("epoch 3/") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "SIGINT: stopping after this step, with a checkpoint" in err
    path, state = checkpoint.load_latest(out / "checkpoints")
    assert f"SIGINT: stopped; the same command resumes from {path}" in err
    assert state["position"]["step"] >= 9


@pytest.mark.usefixtures("hears")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_stopped_outside_of_training_a_run_ends_with_a_line_and_promises_no_checkpoint_that_is_not(
    number, data_root, tmp_path, monkeypatch, capsys
):
    def stop(*_: object, **__: object) -> None:
        signal.raise_signal(number)

    name, code = signal.Signals(number).name, 128 + number
    with monkeypatch.context() as patched:
        patched.setattr(Pretraining, "run", stop)
        assert run.main(command(data_root, tmp_path / "run")) == code
    said = errors(capsys)
    assert f"{name}: stopped; the same command starts anew, since there is no checkpoint yet\n" in said
    assert "resumes" not in said
    with monkeypatch.context() as patched:
        patched.setattr(run, "evaluate_encoder", stop)
        assert run.main(command(data_root, tmp_path / "run")) == code
    last = checkpoint.complete(tmp_path / "run" / "checkpoints")[-1][1]
    assert f"{name}: stopped; the same command resumes from {last}\n" in errors(capsys)
    with monkeypatch.context() as patched:
        patched.setattr(evaluate, "evaluate", stop)
        assert evaluate.main(["knn", "--run", str(tmp_path / "run")]) == code
    assert f"{name}: stopped; what was written before is whole\n" in errors(capsys)


@pytest.fixture
def hears():
    """A process that was started in the background of a script ignores Ctrl-C, and so do its children."""
    before = {number: signal.getsignal(number) for number in HEARD}
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
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
        assert asked() == signal.SIGINT
        with pytest.raises(Stopped, match="SIGHUP"):
            signal.raise_signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("hears")
@pytest.mark.parametrize(("when", "number"), [(2, signal.SIGTERM), (3, signal.SIGHUP)])
def test_stopped_in_the_middle_or_at_the_end_of_an_epoch_the_run_ends_as_if_it_had_not_been(
    when, number, finished, data_root, tmp_path
):
    out = tmp_path / "parts"
    with at_step(when, lambda: signal.raise_signal(number)):
        assert run.main(command(data_root, out, "--checkpoint-every", "100")) == 128 + number
    position = state_of(out)["position"]
    assert (position["epoch"], position["batch"], position["step"]) == (*divmod(when, 3), when)
    assert run.main(command(data_root, out)) == 0
    assert_same_state(state_of(finished)["model"], state_of(out)["model"])
    assert losses(out) == losses(finished)


@pytest.mark.parametrize("terminal", [False, True])
def test_where_no_terminal_shows_a_bar_an_epoch_says_how_far_it_is(terminal, data_root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("train.engine.loop.SAYS_EVERY", -1.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert run.main(command(data_root, tmp_path / "run", "--epochs", "2", "--milestones", "1")) == 0
    line = r"epoch (\d)/2, step (\d) of 3: loss ([\d.]+) on average, .* steps/s, \d+m\d\ds to its end"
    found = re.findall(line, errors(capsys))
    wanted = ["1 1", "1 2", "2 1", "2 2"]
    assert [f"{epoch} {step}" for epoch, step, _ in found] == ([] if terminal else wanted)
    if not terminal:
        pretraining = start(data_root, tmp_path / "again", "--epochs", "2", "--milestones", "1")
        advance(pretraining, 2)
        assert float(found[1][2]) == pytest.approx(pretraining.stepper.sums[0].item() / 2, abs=1e-4)


def test_a_run_says_from_which_epoch_on_its_bank_is_full(data_root, tmp_path, caplog, monkeypatch):
    """Four epochs of three steps of eight clips."""
    monkeypatch.setattr("train.run.log", logging.getLogger("heard"))
    caplog.set_level(logging.INFO, "heard")
    said = {
        "16": "the bank is full from epoch 1 on",
        "64": "the bank of 64 is full from epoch 3 of 4 on; until then .* --bank-size 16 is full within",
        "1024": "the bank of 1024 is full never: 4 epochs are 96 clips; until then .* --bank-size 16 is full within",
    }
    for size, message in said.items():
        run.say_when_full(start(data_root, tmp_path / size, "--bank-size", size))
        assert re.match(message, caplog.messages[-1])
        assert (caplog.records[-1].levelno >= logging.WARNING) == (size != "16")
    advance(last := start(data_root, tmp_path / "64 again", "--bank-size", "64"), 8)
    assert (int(last.model.bank.cursor), last.epoch) == (64, 2), "the third epoch"
    assert last.model.phase(last.step * 8, last.epoch) == "main"


@pytest.mark.parametrize("when", [4, 6])  # in training, and at its end before the evaluation
def test_frames_that_change_under_a_run_end_it(when, data_root, tmp_path, capsys):
    shutil.copytree(data_root / "small", tmp_path / "data" / "small")
    frames = tmp_path / "data" / "small" / "frames.npy"
    asked = command(tmp_path / "data", tmp_path / "run", "--epochs", "2", "--milestones")
    with at_step(when, lambda: os.utime(frames)):
        assert run.main(asked) == 1
    assert f"{frames} was changed while it was in use" in errors(capsys)
    assert not (tmp_path / "run" / "report.json").exists()
    assert run.main(asked) == 0, "the bits are the same, and it goes on"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "meant"), [("ntu6o", "ntu60"), ("NTU60", "ntu60"), ("ntu6", "ntu60"), ("smal", "small"), ("mine", None)]
)
def test_a_data_set_that_is_nearly_named_is_suggested(name, meant, data_root):
    with pytest.raises(DatasetError, match=f"there is no dataset '{name}'") as caught:
        open_dataset(name, data_root)
    assert re.findall(r"Did you mean (\w+)\?", str(caught.value)) == ([meant] if meant else [])


@pytest.mark.parametrize("moment", ["before it looks", "while it is written"])
def test_a_second_first_run_takes_the_set_that_the_other_makes(moment, tmp_path, monkeypatch):
    """Two on a fresh machine: one ended in an error, though its data were there."""
    path = tmp_path / "synthetic"
    about = {"name": "synthetic", "skeleton": NTU25, "fps": 30, "class_names": ["a"], "protocols": {}}
    other = StoreWriter(path, **about)
    other.__enter__()
    other.add(np.ones((4, 1, 25, 3)), name="a", label=0)

    def ends(*_):
        other.__exit__(None, None, None)

    def makes(out):
        if moment == "before it looks":
            ends()
        with StoreWriter(out, **about):
            pytest.fail("it is the other's")

    monkeypatch.setattr("train.command.datasets.prepare_synthetic", makes)
    monkeypatch.setattr("fastmc.data.store.time.sleep", ends)
    assert open_dataset("synthetic", tmp_path).names.tolist() == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["synthetic"]


@pytest.mark.parametrize("command", ["evaluate", "report", "figures", "another set"])
def test_a_finished_run_makes_no_set_in_a_folder_that_is_not_there(command, finished, tmp_path, monkeypatch, capsys):
    """As where --data-root is misspelt: it made the synthetic set there, and read that."""
    copied = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "dataset": "synthetic"}))
    monkeypatch.setattr("train.command.datasets.prepare_synthetic", lambda out: pytest.fail("it makes one"))
    flags = ["--run", str(copied), "--data-root", str(tmp_path / "WRONG"), "--device", "cpu"]
    asked = {
        "evaluate": lambda: evaluate.main(["knn", *flags]),
        "report": lambda: report.main(flags),
        "figures": lambda: figures.main([*flags, "--out", str(tmp_path / "pictures")]),
        "another set": lambda: evaluate.main(["transfer", *flags, "--dataset", "synthetic"]),
    }
    assert asked[command]() == 1
    assert f"--data-root {tmp_path / 'WRONG'} is no folder; without it the run's own is read" in errors(capsys)
    assert not (tmp_path / "WRONG").exists()


def test_a_set_that_cannot_be_made_is_no_set_of_another(tmp_path, monkeypatch):
    def fails(out):
        raise StoreError("the disk is full")

    monkeypatch.setattr("train.command.datasets.prepare_synthetic", fails)
    with pytest.raises(StoreError, match="the disk is full"):
        open_dataset("synthetic", tmp_path)


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


@pytest.mark.parametrize("what", [("metrics.csv", "tensorboard", "config.json", "run.log"), (".",)])
def test_what_is_removed_under_a_run_is_made_again(what, finished, data_root, tmp_path):
    out = tmp_path / "run"
    with at_step(8, lambda: [remove(out / name) for name in what]):  # two epochs are done
        assert run.main(command(data_root, out)) == 0
    assert losses(out) == losses(finished)
    written = {"config.json", "environment.json", "metrics.csv", "run.log", "curves.png", "report.json"}
    assert {path.name for path in out.iterdir()} >= written | {"classifier.pt", "checkpoints", "tensorboard"}
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


@pytest.mark.parametrize("what", [("metrics.csv", "report.json"), ("curves.png",), ("classifier.pt",)])
def test_a_finished_run_makes_again_what_it_lacks_its_history_too(what, finished, copied, data_root):
    for name in what:
        (copied / name).unlink()
    assert run.main(command(data_root, copied)) == 0
    for name in what:
        assert (copied / name).stat().st_size == pytest.approx((finished / name).stat().st_size, rel=0.2)
    assert losses(copied) == losses(finished)
    before = {path: path.stat().st_mtime_ns for path in copied.iterdir()}
    assert run.main(command(data_root, copied)) == 0
    assert {path: path.stat().st_mtime_ns for path in copied.iterdir()} == before, "now it is only read"


def test_a_report_that_lacks_an_accuracy_is_made_again(finished, copied, data_root):
    wanted = json.loads((copied / "report.json").read_text())
    for key in ("linear_top5", "random_init"):
        report = {name: value for name, value in wanted.items() if name != key}
        (copied / "report.json").write_text(json.dumps(report))
        assert run.main(command(data_root, copied)) == 0
        assert json.loads((copied / "report.json").read_text())[key] == wanted[key]
