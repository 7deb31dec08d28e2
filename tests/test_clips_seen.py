"""Which clips trained an encoder: a checkpoint keeps them, since a protocol's name outlives its split, and weights may
have been trained before the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_small_store
from test_train import command, errors, state_of

from fastmc import checkpoint
from fastmc.checkpoint import CheckpointError
from fastmc.config import load_config
from fastmc.data.store import PackedStore
from fastmc.state import RunState
from train import evaluate, run

pytestmark = pytest.mark.slow
SHORT = ("--probe-every", "0", "--linear-epochs", "1", "--linear-milestones", "--train-crops", "1")
STEPS, EPOCHS = 12, 4


def of_subjects(root: Path, train: list[int]) -> PackedStore:
    """The same clips, of which those of these subjects train."""
    path = root / "small" / "meta.json"
    meta = json.loads(path.read_text())
    meta["protocols"]["xsub"]["train"] = train
    path.write_text(json.dumps(meta))
    return PackedStore.open(root / "small")


@pytest.fixture
def root(tmp_path) -> Path:
    write_small_store(tmp_path / "data" / "small")
    return tmp_path / "data"


def words(root: Path, out: Path, *more: str) -> list[str]:
    return command(root, out, *SHORT, "--checkpoints-kept", "9", *more)


def unfinished(root: Path, out: Path, *more: str) -> list[str]:
    """The command of a run that was stopped before its last epoch."""
    assert run.main(words(root, out, *more)) == 0
    shutil.rmtree(checkpoint.place_of(out / "checkpoints", STEPS))
    (out / "report.json").unlink()
    return words(root, out, *more)


def seen_of(path: Path) -> object:
    return json.loads(path.read_text())["pretraining"]["test_clips_seen"]


def test_a_run_does_not_go_on_with_another_split(root, tmp_path, capsys):
    """Every clip that is tested since would have been trained on."""
    command = unfinished(root, tmp_path / "run")
    before = sorted((tmp_path / "run" / "checkpoints").iterdir())
    of_subjects(root, [2, 4])
    assert run.main(command) == 1
    assert "the split of the data has changed" in (said := errors(capsys))
    assert "24 clips, the protocol has 24 training clips now, 0 of them the same" in said and "--restart" in said
    assert sorted((tmp_path / "run" / "checkpoints").iterdir()) == before
    assert run.main([*command, "--restart"]) == 0
    assert seen_of(tmp_path / "run" / "report.json") == 0


def test_the_split_is_named_and_not_the_bank_that_was_fitted_to_it(root, tmp_path, capsys):
    """Settings that follow from the set are not the fault of who gave the same command again."""
    given = words(root, tmp_path / "run")
    bank = given.index("--bank-size")
    del given[bank : bank + 2]
    assert run.main(given) == 0
    assert load_config(tmp_path / "run").settings.bank_size == 16
    capsys.readouterr()
    of_subjects(root, [1])
    assert run.main(given) == 1
    assert "the split of the data has changed" in (said := errors(capsys)) and "bank_size" not in said


def test_tested_clips_that_trained_are_counted_by_clip_and_not_by_protocol(root, tmp_path, capsys):
    assert run.main(words(root, tmp_path / "run")) == 0
    store = of_subjects(root, [2, 3])
    assert evaluate.main(["knn", "--run", str(tmp_path / "run"), "--device", "cpu"]) == 0
    count = len(set(store.split("xsub")[1].tolist()) & set(state_of(tmp_path / "run")["clips"].tolist()))
    assert count > 0
    assert f"{count} of the {len(store.split('xsub')[1])} test clips of xsub were in pre-training" in "".join(
        capsys.readouterr()
    )
    assert seen_of(tmp_path / "run" / "evaluate" / "knn-xsub.json") == count


def test_clips_of_the_weights_it_started_from_count_too(root, tmp_path):
    """Through two runs, the second of which was resumed."""
    store = PackedStore.open(root / "small")
    assert run.main(words(root, tmp_path / "first", "--protocol", "xview")) == 0
    started = unfinished(root, tmp_path / "second", "--init-from", str(tmp_path / "first"))
    assert run.main(started) == 0
    assert run.main(words(root, tmp_path / "third", "--init-from", str(tmp_path / "second"))) == 0
    train, test = (set(store.split(protocol)[part].tolist()) for protocol, part in (("xview", 0), ("xsub", 1)))
    for name in ("second", "third"):
        assert seen_of(tmp_path / name / "report.json") == len(train & test) > 0
    seen = RunState.read(tmp_path / "third" / "checkpoints")[1].seen
    assert seen is not None
    assert seen[store.content_checksum].tolist() == sorted(train | set(store.split("xsub")[0].tolist()))


def forgotten(folder: Path) -> None:
    """The checkpoint of a run, as an earlier version wrote it."""
    path, plain = checkpoint.load_latest(folder / "checkpoints")
    for name in ("clips", "before"):
        plain.pop(name)
    checkpoint.save(path.parent, checkpoint.step_of(path), plain, keep=9)


def test_what_a_checkpoint_of_before_does_not_say_is_unknown_and_not_0(root, tmp_path, capsys):
    command = unfinished(root, tmp_path / "run")
    forgotten(tmp_path / "run")
    assert run.main(command) == 0, "it goes on"
    assert seen_of(tmp_path / "run" / "report.json") == "unknown"
    assert evaluate.main(["knn", "--run", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "were in pre-training is unknown" in "".join(capsys.readouterr())
    assert seen_of(tmp_path / "run" / "evaluate" / "knn-xsub.json") == "unknown"
    assert run.main(words(root, tmp_path / "next", "--init-from", str(tmp_path / "run"))) == 0
    assert seen_of(tmp_path / "next" / "report.json") == "unknown"


def test_ids_that_are_none_are_refused(root, tmp_path):
    assert run.main(words(root, tmp_path / "run", "--epochs", "1")) == 0
    plain = state_of(tmp_path / "run")
    for wrong in ({"clips": torch.zeros(2)}, {"clips": [1]}, {"before": {"a": torch.zeros(2, 2, dtype=torch.int64)}}):
        with pytest.raises(CheckpointError, match="ids of clips must be"):
            RunState.of_plain({**plain, **wrong}, tmp_path)


def test_an_evaluation_of_an_unfinished_run_says_so_in_log_file_and_name(root, tmp_path, capsys):
    command = unfinished(root, tmp_path / "run")
    capsys.readouterr()
    evaluation = ["linear", "--run", str(tmp_path / "run"), "--device", "cpu"]
    assert evaluate.main(evaluation) == 0
    assert "is not finished: these are the weights of step 9, after 3 of 4 epochs" in "".join(capsys.readouterr())
    folder = tmp_path / "run" / "evaluate"
    found = json.loads((folder / "linear-xsub-9.json").read_text())["pretraining"]
    assert (found["step"], found["epoch"], found["epochs"]) == (9, 3, EPOCHS)
    assert not (folder / "linear-xsub.json").exists() and (tmp_path / "run" / "classifier-xsub-9.pt").exists()
    assert run.main(command) == 0
    capsys.readouterr()
    assert evaluate.main(evaluation) == 0
    assert "is not finished" not in "".join(capsys.readouterr())
    found = json.loads((folder / "linear-xsub.json").read_text())["pretraining"]
    assert (found["step"], found["epoch"], found["epochs"]) == (STEPS, EPOCHS, EPOCHS)
