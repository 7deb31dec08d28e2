"""Methods and encoders of a user's own, a file each: trained, resumed, evaluated and embedded by the commands."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import assert_same_state, command, errors, losses, state_of

import fastmc
from fastmc.build import build_model
from fastmc.config import Config, config_of, load_config, to_plain
from fastmc.methods import METHODS, find_method
from fastmc.registry import NotAllowed
from train import embed, evaluate, figures, run
from train.engine.loop import Pretraining

pytestmark = pytest.mark.slow
METHOD, ENCODER = "toy:ToyMethod", "toy:ToyEncoder"
OWN = ("--method", METHOD, "--backbone", ENCODER)
ALLOW = ("--allow", METHOD, ENCODER)
SETTINGS = ("--toy-queue", "24", "--toy-width", "4", "--feature-dim", "8")
ROOT = Path(__file__).resolve().parents[1]


def toy_command(data_root: Path, out: Path, *extra: str) -> list[str]:
    """As `command`, without the flags of what is built in."""
    words = command(data_root, out, *OWN, *SETTINGS, *extra)
    for flag in ("--encoder", "--bank-size", "--feature-dim", "--reading"):
        while words.count(flag) > (flag in SETTINGS):
            at = words.index(flag)
            del words[at : at + 2]
    return words


@pytest.fixture(scope="module")
def own(data_root, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("toy") / "run"
    assert run.main(toy_command(data_root, out)) == 0
    return out


def test_all_of_it_moves_and_its_numbers_have_their_names(own, data_root):
    head = (own / "metrics.csv").read_text().splitlines()[0].split(",")
    assert head[:5] == ["epoch", "step", "loss", "agreement", "feature_std"]
    assert np.isfinite(losses(own)).all()
    assert (own / "curves.png").stat().st_size > 10_000
    config = load_config(own, ALLOW[1:])
    model = build_model(config, fastmc.load(own, device="cpu", allow=ALLOW[1:]).data, torch.device("cpu"), ALLOW[1:])
    before, after = model.state_dict(), state_of(own)["model"]
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before), "query, key, predictor, queue"


def test_it_resumes_bit_for_bit(own, data_root, tmp_path, monkeypatch):
    """Stopped by a fault of the machine in the middle of an epoch, after a checkpoint."""
    out, save = tmp_path / "run", Pretraining.save

    class Died(BaseException):
        """Nothing handles it."""

    def then_die(self: Pretraining) -> Path:
        path = save(self)
        if self.step >= 7:
            raise Died
        return path

    words = [*toy_command(data_root, out), "--checkpoint-minutes", "0"]
    monkeypatch.setattr(Pretraining, "save", then_die)
    with pytest.raises(Died):
        run.main(words)
    monkeypatch.setattr(Pretraining, "save", save)
    assert run.main(words) == 0
    ours, theirs = (state_of(folder) for folder in (out, own))
    assert_same_state(ours, theirs)
    assert losses(out) == losses(own)


def test_it_is_evaluated_drawn_and_embedded_where_the_user_allows_it(own, tmp_path, data_root):
    report = json.loads((own / "report.json").read_text())
    assert evaluate.main(["knn", "--run", str(own), "--device", "cpu", *ALLOW]) == 0
    assert json.loads((own / "evaluate" / "knn-xsub.json").read_text())["top1"] == report["knn_top1"]
    assert figures.main(["--run", str(own), "--device", "cpu", "--k", "2", *ALLOW]) == 0
    drawn = {path.name for path in (own / "figures").iterdir()}
    assert {"curves.png", "tsne.png", "neighbours.png"} <= drawn and "attack.png" not in drawn
    assert figures.main(["--run", str(own), "--only", "attack", "--device", "cpu", *ALLOW]) == 1
    out = tmp_path / "features.npz"
    store = str(data_root / "small")
    assert embed.main(["--run", str(own), "--input", store, "--out", str(out), "--device", "cpu", *ALLOW]) == 0
    assert np.load(out)["features"].shape[1] == 4 * 25


@pytest.mark.parametrize("allow", [(), (METHOD,), (ENCODER,)])
def test_what_a_run_folder_names_is_never_imported_unasked(allow, own, tmp_path, data_root, capsys):
    missing = METHOD if METHOD not in allow else ENCODER
    words = ("--allow", *allow) if allow else ()
    assert evaluate.main(["knn", "--run", str(own), "--device", "cpu", *words]) == 1
    assert f"{missing!r} is not part of fastmc" in errors(capsys)
    with pytest.raises(NotAllowed, match=re.escape(f"allow=({missing!r},)")):
        fastmc.load(own, device="cpu", allow=allow)


def test_reading_a_hostile_run_folder_runs_nothing(tmp_path, monkeypatch):
    """A module that lies on the path, and says so when it is imported."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    plain = to_plain(Config()) | {"method": "evil:Method"}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    monkeypatch.syspath_prepend(tmp_path)
    assert evaluate.main(["knn", "--run", str(tmp_path)]) == 1
    assert "evil" not in sys.modules
    with pytest.raises(SystemExit, match="imported"):
        importlib.import_module("evil")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "a2mcc",
            "method = 'a2mcc' is unknown; choose from " + ", ".join(METHODS) + ", or name your own as MODULE:CLASS",
        ),
        ("no_such_module:M", "cannot be imported: No module named 'no_such_module'; the folder of your module"),
        ("toy:Nothing", "cannot be imported: module 'toy' has no attribute 'Nothing'"),
        ("toy:ToyEncoder", r"is no subclass of fastmc\.methods\.base\.Method"),
    ],
)
def test_a_method_that_there_is_not_is_one_message(name, message, data_root, tmp_path, capsys):
    assert run.main(command(data_root, tmp_path / "run", "--method", name)) == 1
    assert re.search(message, errors(capsys))


def test_a_folder_of_another_method_is_not_trained_on(own, data_root, capsys):
    assert run.main(command(data_root, own)) == 1
    assert "holds a run of something else: method = 'toy:ToyMethod'" in errors(capsys)


@pytest.mark.parametrize("name", METHODS)
def test_settings_of_every_method_go_through_config_json(name):
    config = Config(method=name, settings=find_method(name).Config())
    assert config_of(to_plain(config)) == config


@pytest.mark.parametrize("folder", ["train", "bench"])
def test_no_command_and_no_benchmark_branches_on_a_method(folder):
    """The paper's tables name their rows, and the benchmarks of A²MC's step that method."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"""method\s*(?:==|!=|in)\s*[("'\[]""", source), path
        if folder == "train" and path.name != "published.py":
            assert not re.search(r"methods\.a2mc|\bA2MC\b", source), path
