"""What a run may begin with and leave beside: settings of a file, given weights, its best checkpoint, W&B."""

from __future__ import annotations

import importlib.machinery
import json
import logging
import shutil
import signal
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_small_store
from once import made_once
from test_train import advance, assert_same_state, at_step, command, errors, losses, start, state_of

import fastmc
from fastmc import checkpoint
from fastmc.build import build_model
from fastmc.config import differences, load_config, preset_config, to_plain
from fastmc.data.store import StoreWriter
from fastmc.evaluation import weights_digest
from fastmc.skeleton import KINECT20, NTU25, Skeleton
from train import evaluate, run
from train.command.parse import parse
from train.engine.initial import read_weights, start_from
from train.engine.loop import Pretraining
from train.runs.folder import default_folder

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(data_root, tmp_path_factory) -> Path:
    """A finished run, which is only read."""

    def train(folder: Path) -> None:
        assert run.main(command(data_root, folder)) == 0

    return made_once(tmp_path_factory, "finished", train)


def test_a_run_starts_from_the_encoder_that_comes_along():
    layout = types.SimpleNamespace(skeleton=NTU25, max_bodies=2)
    model = build_model(parse(["--encoder", "2x128"]), layout, torch.device("cpu"))
    level, said = start_from(read_weights(Path("small-v1"), "joint"), model)
    assert level == logging.INFO and "of the encoder are those of" in said and "small-v1.safetensors" in said
    weights = fastmc.load("small-v1", device="cpu").encoder.state_dict()
    for encoder in (model.query, model.key):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in encoder.state_dict().items())


def test_settings_of_a_file_are_overridden_by_flags(finished, data_root, tmp_path, capsys):
    """Of a run, whose method's own settings go where another method is named; and some of one's own."""
    saved = load_config(finished)
    file = str(finished / "config.json")
    assert run.main(["--config", file, "--out", str(finished)]) == 0, "it needs no other flag"
    assert "finished; --restart" in errors(capsys)
    again = parse(["--config", file, "--shear", "0.3", "--dataset", "other"])
    assert differences(to_plain(again), to_plain(saved)) == ["augment.shear", "config", "dataset"]
    other = parse(["--config", file, "--method", "b1"])
    assert (other.encoder, other.settings) == (saved.encoder, preset_config("tiny", method="b1").settings)

    own = tmp_path / "own.json"
    own.write_text(json.dumps({"dataset": "ntu60", "preset": "small", "optim": {"lr": 0.5}, "print_config": True}))
    mine, small = parse(["--config", str(own)]), preset_config("small", "ntu60")
    assert mine == replace(small, optim=replace(small.optim, lr=0.5), config=own)
    own.write_text(json.dumps(to_plain(small)))
    assert parse(["--config", str(own)]) == replace(small, config=own), "as --print-config prints it"


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ({"optim": {"lt": 1}}, [], "own.json: OptimConfig has no setting named lt"),
        ({"optim": {"lr": -1}}, [], "own.json: lr must be > 0"),
        ({"preset": "small"}, ["--preset", "tiny"], "is of preset small: leave out --preset tiny, or it"),
        ({"method": "os:path"}, [], "Here: name it on the command line, as --method or --backbone"),
        ({"optim": []}, [], "own.json cannot be read: optim holds [], expected a JSON object"),
        ({"optim": 5}, [], "own.json cannot be read: optim holds 5, expected a JSON object"),
        ({"contrast": 5}, [], "own.json cannot be read: contrast holds 5, expected a JSON object"),
        ({"optim": {"milestones": 5}}, [], "own.json: milestones cannot be 5"),
        ({"encoder": {"encoder": 5}}, [], "own.json: encoder cannot be 5"),
        ({"log": {"wandb": 5}}, [], "own.json: wandb cannot be 5"),
        ({"preset": "huge"}, [], "own.json: preset must be one of paper, small, tiny; got 'huge'"),
        ({"dataset": 5}, [], "own.json: "),
        ([1], [], "own.json cannot be read: it holds"),
        (None, [], "own.json cannot be read"),
    ],
)
def test_a_file_of_settings_that_does_not_fit_is_an_error(content, flags, message, tmp_path, capsys):
    if content is not None:
        (tmp_path / "own.json").write_text(json.dumps(content))
    assert run.main(["--config", str(tmp_path / "own.json"), *flags]) == 1
    assert message in errors(capsys)


def test_the_usual_folder_of_a_set_that_is_named_by_its_path_is_where_the_others_are(tmp_path):
    """And not beside the store, whose folder may be read alone."""
    names = {default_folder(parse(["--dataset", name])) for name in (str(tmp_path / "mine"), "../data/mine", "mine")}
    assert names == {Path("runs") / "mine-None-a2mc-joint-paper-seed0"}


def test_the_best_of_no_probes_is_refused_or_warned_of(data_root, tmp_path, capsys):
    """Nothing would be kept of a run of days."""
    assert run.main(command(data_root, tmp_path / "run", "--keep-best", "--probe-every", "0")) == 1
    assert "probe_every = 0 makes none" in errors(capsys) and not (tmp_path / "run").exists()
    write_small_store(tmp_path / "small", subjects=(1, 3))
    out = tmp_path / "run"
    assert run.main(command(tmp_path, out, "--keep-best", "--epochs", "1")) == 0
    assert "--keep-best keeps nothing, since there is no probe: " in (out / "run.log").read_text()


def write_random_store(path: Path, skeleton: Skeleton) -> None:
    rng, rule = np.random.default_rng(0), {"xsub": {"field": "subject", "train": [1]}}
    with StoreWriter(
        path, name=path.name, skeleton=skeleton, fps=30.0, class_names=["a", "b"], protocols=rule
    ) as writer:
        for n in range(24):
            clip = rng.normal(size=(20, 2, skeleton.num_joints, 3)).astype(np.float32)
            writer.add(clip, name=f"c{n:03d}", label=n % 2, subject=1 + n // 2 % 2, camera=1)


@pytest.fixture(scope="module")
def probed(data_root, tmp_path_factory) -> Path:
    """A finished run that has kept its best checkpoint: the probe of epochs 1 to 4 finds 30, 60, 60, 50 % right."""

    def train(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            found = iter((30.0, 60.0, 60.0, 50.0))
            patch.setattr(Pretraining, "probe", lambda _: next(found))
            assert run.main(command(data_root, folder, "--probe-every", "1", "--keep-best")) == 0

    return made_once(tmp_path_factory, "probed", train)


def test_the_best_checkpoint_of_the_probe_is_kept_and_evaluated(probed, finished, data_root, tmp_path, capsys):
    """The first of two that are equal; its weights are those that the run had then."""
    best = probed / "checkpoints" / "best"
    assert [step for step, _ in checkpoint.complete(best)] == [6]
    assert [step for step, _ in checkpoint.complete(probed / "checkpoints")] == [9, 12]
    then = start(data_root, tmp_path / "then")
    advance(then, 6)
    encoders = {which: fastmc.load(probed, device="cpu", checkpoint=which).encoder for which in ("best", 6, 9, "last")}
    want = then.model.query.state_dict()
    for which, encoder in encoders.items():
        same = all(torch.equal(tensor, want[name]) for name, tensor in encoder.state_dict().items())
        assert same == (which in ("best", 6)), which
    for which in ("best", "6"):
        assert evaluate.main(["knn", "--run", str(probed), "--device", "cpu", "--checkpoint", which]) == 0
        result = json.loads((probed / "evaluate" / f"knn-xsub-{which}.json").read_text())
        assert result["pretraining"]["checkpoint"] == which
        assert result["weights"] == weights_digest(then.model.query)
    for folder, which, message in (
        (finished, "best", "holds no best checkpoint; python -m train.run --keep-best keeps one"),
        (probed, "7", "holds no checkpoint 7; give last, best or a step: 6, 9, 12"),
        (probed, "bst", "holds no checkpoint bst"),
    ):
        assert evaluate.main(["knn", "--run", str(folder), "--device", "cpu", "--checkpoint", which]) == 1
        assert message in errors(capsys)


def test_a_run_starts_from_the_weights_of_another(finished, data_root, tmp_path, capsys):
    """Of its folder or of one of its checkpoints; its key encoder too. A run that resumes has weights of its own."""
    state = checkpoint.complete(finished / "checkpoints")[-1][1]
    want = {name: tensor for name, tensor in state_of(finished)["model"].items() if name.startswith("query.")}
    for n, source in enumerate((finished, state, state / checkpoint.STATE)):
        fresh = start(data_root, tmp_path / str(n), "--init-from", str(source), "--seed", "1")
        assert_same_state({k: v for k, v in fresh.model.state_dict().items() if k.startswith("query.")}, want)
        assert_same_state(fresh.model.key.state_dict(), fresh.model.query.state_dict())
        assert int(fresh.model.bank.cursor) == 0
    copy = Path(shutil.copytree(finished, tmp_path / "source"))
    again = ["--init-from", str(copy), "--epochs", "2", "--milestones", "1"]
    assert run.main(command(data_root, tmp_path / "run", *again)) == 0
    count = len(want)
    assert f"initial weights: {count} of {count} tensors of the encoder are those of {copy}" in errors(capsys)
    assert "initial weights" in (tmp_path / "run" / "run.log").read_text()
    assert load_config(tmp_path / "run").init_from == copy
    shutil.rmtree(copy)
    assert run.main(command(data_root, tmp_path / "run", *again)) == 0, "they are not needed any more"


def test_of_another_skeleton_or_size_what_fits_is_taken_and_the_rest_is_said(finished, tmp_path, capsys):
    """Joints of another order too, whose tensors have the same shapes."""
    source = state_of(finished)["model"]
    renamed = replace(NTU25, name="renamed", joint_names=NTU25.joint_names[::-1])
    of_joints = {f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
    of_joints |= {name[6:] for name in source if name.startswith("query.") and "weight_ih_l0" in name}
    assert len(of_joints) == 6
    for skeleton in (renamed, KINECT20):
        root = tmp_path / skeleton.name
        write_random_store(root / "small", skeleton)
        fresh = start(root, root / "run", "--init-from", str(finished), "--seed", "1")
        found = fresh.model.query.state_dict()
        level, says = fresh.initial
        assert level == logging.WARNING
        assert f"{len(found) - 6} of {len(found)} tensors" in says and says.endswith("norm.running_var and 2 more")
        for name, tensor in found.items():
            there = source[f"query.{name}"]
            is_taken = tensor.shape == there.shape and torch.equal(tensor, there)
            assert is_taken == (name not in of_joints) or name == "norm.bias", name
    with pytest.raises(checkpoint.CheckpointError, match="none of its weights fits BiGRU 1x16"):
        start(root, root / "none", "--init-from", str(finished), "--encoder", "1x16", "--feature-dim", "4")
    assert run.main(command(root, tmp_path / "absent", "--init-from", str(tmp_path / "nowhere"))) == 1
    assert "nowhere does not exist; name a run folder or a checkpoint" in errors(capsys)


def test_a_project_of_weights_and_biases_gets_settings_and_metrics(finished, data_root, tmp_path, monkeypatch, capsys):
    """One that is not installed is told before anything is written; a run that resumes sends its history."""
    with monkeypatch.context() as patched:
        patched.setattr("train.engine.wandb.find_spec", lambda _: None)
        assert run.main(command(data_root, tmp_path / "run", "--wandb", "skeletons")) == 1
    assert "--wandb skeletons needs Weights & Biases, which is not there: pip install wandb" in errors(capsys)
    assert not (tmp_path / "run").exists()

    sent: list[tuple] = []
    fake = types.ModuleType("wandb")
    fake.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    fake.init = lambda **about: sent.append(("init", about)) or fake
    fake.log = lambda numbers, step: sent.append((step, numbers))
    fake.finish = lambda: sent.append(("finish",))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with at_step(6, lambda: signal.raise_signal(signal.SIGTERM)):
        assert run.main(command(data_root, tmp_path / "run", "--wandb", "skeletons")) == 143
    assert run.main(command(data_root, tmp_path / "run", "--wandb", "skeletons")) == 0
    assert [each[0] for each in sent] == ["init", 3, 6, "finish", "init", 3, 6, 9, 12, "finish"]
    about = sent[0][1]
    assert (about["project"], about["name"], about["config"]["optim"]["epochs"]) == ("skeletons", "run", 4)
    assert [numbers["loss"] for _, numbers in sent[-5:-1]] == losses(finished)
