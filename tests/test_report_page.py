"""The page of runs: what it holds against the runs' data and plain computations, what is kept, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import exit_code, write_small_store
from tiny_runs import ETA, OF_EACH, TINY, tiny_runs

from fastmc.config import config_of, load_config, to_plain
from fastmc.evaluation import represent
from fastmc.evaluation.raw import Coordinates
from fastmc.figures import tsne
from fastmc.figures.attack import distribution, entropy
from fastmc.files import WriteError
from fastmc.methods.a2mc import A2MC
from fastmc.methods.base import Batch
from fastmc.page.motion import unpack
from fastmc.tensor_files import read_tensors, write_tensors
from train import report, run
from train.engine.loop import Pretraining
from train.engine.record import read_metrics
from train.runs import measured, page, page_runs
from train.runs.folder import ACCURACIES
from train.runs.load import Run, load_run

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
JOINTS = 25


@pytest.fixture(scope="session")
def runs(data_root, tmp_path_factory) -> dict[str, Path]:
    return tiny_runs(tmp_path_factory, data_root)


@pytest.fixture(scope="session")
def loaded(runs) -> Run:
    return load_run(runs["a2mc"], CPU)


@pytest.fixture
def copied(runs, tmp_path) -> Path:
    """A run to be written to."""
    return Path(shutil.copytree(runs["a2mc"], tmp_path / "copied"))


def content_of(path: Path) -> dict[str, Any]:
    """What a page holds."""
    (found,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(found)


def without_its_making(content: dict[str, Any]) -> dict[str, Any]:
    """Without when and by which command it was made, and where its run lies."""
    others = {name: value for name, value in content.items() if name not in ("made", "by", "title", "groups")}
    runs = [{k: v for k, v in r.items() if k not in ("label", "folder", "command")} for r in others["runs"]]
    return {**others, "runs": runs}


def made(*arguments: str | Path, out: Path) -> dict[str, Any]:
    """The content of the page that the command makes."""
    assert report.main([*map(str, arguments), "--out", str(out)]) == 0
    return content_of(out)


@pytest.fixture(scope="session")
def own(runs) -> dict[str, Any]:
    """The content of the page that a run has left."""
    return content_of(runs["a2mc"] / "report.html")


def features(loaded: Run, ids: np.ndarray) -> torch.Tensor:
    """Unit features (N, H) float64 of the centre crops."""
    share = torch.full((len(ids),), loaded.config.evaluation.test_crop)
    where = {"ratio": share, "position": torch.full_like(share, 0.5)}
    query = loaded.model.representation
    h = represent(query, loaded.placed, torch.from_numpy(ids), "joint", frames=loaded.config.frames, **where)
    return torch.nn.functional.normalize(h.double(), dim=1)


# --- One run


def test_a_page_says_what_report_json_says(runs, own):
    said = json.loads((runs["a2mc"] / "report.json").read_text())
    (of_run,) = own["runs"]
    assert own["kind"] == "report" and own["accuracies"]["rows"] == list(ACCURACIES.values())
    assert of_run["trained"] == [said[key] for key in ACCURACIES]
    assert of_run["untrained"] == [said["random_init"][key] for key in ACCURACIES]
    found = of_run["predictions"]
    hits = sum(a == b for a, b in zip(found["true"], found["predicted"], strict=True))
    assert 100 * (hits / len(found["true"])) == said["linear_top1"]
    facts = dict(of_run["facts"])
    assert facts["method"] == "a2mc" and facts["length"] == "2 epochs, 6 steps" and facts["seed"] == "0"
    assert facts["clips"] == "24 training clips, 24 test clips, 3 classes"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", facts["began"])
    settings = dict(of_run["settings"])
    assert settings["settings.attack_norm"] == str(ETA) and settings["optim.milestones"] == "2"
    assert not {"out", "restart"} & settings.keys()
    assert own["by"].endswith("python -m train.run") and own["notes"] == [] and own["differences"] == []


def test_the_clips_of_a_page_are_the_store_s(loaded, own):
    store, columns = loaded.store, own["clips"]
    ids = np.searchsorted(store.names, columns["name"])
    assert store.names[ids].tolist() == columns["name"]
    assert columns["class"] == store.label[ids].tolist() and own["classes"] == list(store.class_names)
    assert columns["seconds"] == pytest.approx((store.num_frames[ids] / store.fps).tolist(), abs=1e-3)
    _, test = store.split("xsub")
    assert columns["test"] == np.isin(ids, test).astype(int).tolist() and set(test) <= set(ids)
    assert own["fields"] == ["subject", "camera"] and columns["camera"] == store.camera[ids].tolist()
    for clip, moved in zip(ids, unpack(own["motion"], JOINTS), strict=True):
        last = store.clip(clip)[-1, 0] - store.clip(clip)[0, 0]
        np.testing.assert_allclose(moved[-1, 0] - moved[0, 0], last, atol=0.01)


def test_curves_are_the_metrics_and_every_line_is_explained(runs, own):
    rows = read_metrics(runs["a2mc"] / "metrics.csv")
    panels = {panel["title"]: panel for panel in own["runs"][0]["panels"]}
    assert list(panels)[:2] == ["loss (nats)", "share (%)"] and len(panels) == 5
    lines = {line["name"]: line for panel in panels.values() for line in panel["lines"]}
    assert all(line["help"] and line["x"] == [1, 2] for line in lines.values())
    for label, name, scale in (
        ("L", "loss", 1),
        ("L2", "l2", 1),
        ("probability of the positive", "positive_probability", 100),
    ):
        assert lines[label]["y"] == pytest.approx([scale * row[name] for row in rows])
    assert lines["kNN probe"]["y"] == [row["knn_top1"] for row in rows]
    assert lines["learning rate"]["y"] == [row["lr"] for row in rows]
    assert panels["std of feature elements"]["mark"]["y"] == load_config(runs["a2mc"]).encoder.feature_dim ** -0.5
    assert own["runs"][0]["bank_full"] == pytest.approx(2 / 3), "16 of 16 after two of three steps"


def test_a_panel_without_a_point_says_why_and_one_without_a_line_is_none(runs):
    of_run = page_runs.read_run(runs["a2mc"], "a")
    without = [{name: value for name, value in row.items() if name != "knn_top1"} for row in of_run.history.rows]
    history = dataclasses.replace(of_run.history, rows=without, metrics=[])
    for every, why in ((0, "Not measured: it was switched off (--probe-every 0)."), (10, None)):
        config = dataclasses.replace(of_run.config, log=dataclasses.replace(of_run.config.log, probe_every=every))
        changed = dataclasses.replace(of_run, history=history, config=config)
        (found,) = page.content_of([changed], "")["runs"]
        assert [panel["title"] for panel in found["panels"]] == ["kNN probe, top-1 (%)", "learning rate"]
        assert [(panel["why"], panel["lines"][0]["x"]) for panel in found["panels"]] == [(why, []), (None, [1, 2])]


def test_the_map_has_all_test_clips_and_their_nearest_training_clips(loaded, own):
    train, test = loaded.store.split("xsub")
    found = own["runs"][0]["map"]
    names = np.array(own["clips"]["name"])
    assert names[found["clip"]].tolist() == loaded.store.names[test].tolist()
    assert len(found["x"]) == len(found["y"]) == len(test) and np.ptp(found["x"]) > 0
    cosines, order = (features(loaded, test) @ features(loaded, train).T).sort(dim=1, descending=True, stable=True)
    assert names[found["neighbours"]].tolist() == loaded.store.names[train[order[:, :5].numpy()]].tolist()
    np.testing.assert_allclose(found["cosines"], cosines[:, :5], atol=1e-4)
    others = (features(loaded, test) @ features(loaded, test).T).fill_diagonal_(-2).argmax(dim=1).numpy()
    knn = 100 * (loaded.store.label[test][others] == loaded.store.label[test]).mean()
    assert f"t-SNE of 24 clips, perplexity {23 / 3:.3g}; 1-NN {knn:.1f} %" in found["words"]
    assert own["runs"][0]["predictions"]["clip"] == found["clip"]


def test_the_raw_row_is_the_nearest_neighbour_of_coordinates(loaded, own):
    with_raw = dataclasses.replace(loaded, model=type("Raw", (), {"representation": Coordinates()})())
    train, test = loaded.store.split("xsub")
    nearest = (features(with_raw, test) @ features(with_raw, train).T).argmax(dim=1).numpy()
    want = 100 * (loaded.store.label[train[nearest]] == loaded.store.label[test]).mean()
    knn, linear, of_five = own["runs"][0]["raw"]
    assert knn == pytest.approx(want) and 0 < linear <= of_five == 100


def test_the_attack_is_the_run_s_at_lengths_of_its_own(loaded, own):
    attack = own["runs"][0]["attack"]
    store, frames = loaded.store, loaded.config.frames
    clips = [int(np.searchsorted(store.names, own["clips"]["name"][each["clip"]])) for each in attack["clips"]]
    assert len(set(clips)) == 6 and set(clips) <= set(store.split("xsub")[1])
    assert np.bincount(store.label[clips]).tolist() == [2, 2, 2], "of all classes"
    batch = batch_of(loaded, clips)
    x = batch.whole()
    motions = unpack(attack["motion"], JOINTS)
    for whole, rho, own_x, entry in zip(motions[::2], motions[1::2], x, attack["clips"], strict=True):
        assert rho.shape == whole.shape == (frames, loaded.placed.max_bodies, JOINTS, 3)
        first = own_x.unflatten(1, (JOINTS, -1, 3))[:, :, 0].numpy()
        np.testing.assert_allclose(whole[:, 0] - whole[0, 0, 0], first - first[0, 0], atol=0.01)
        assert np.linalg.norm(rho) == pytest.approx(1, abs=0.01)
        assert entry["steps"] == [share * ETA for share in (0, 0.25, 0.5, 1, 2, 4)]
        assert all(0 < nats <= np.log(128) + 1e-6 for nats in entry["entropy"]) and len(set(entry["entropy"])) > 1
    assert isinstance(loaded.model, A2MC)
    for step, of in ((0, x), (3, loaded.model.attacked(batch))):
        want = entropy(distribution(loaded.model, of).numpy())
        np.testing.assert_allclose([each["entropy"][step] for each in attack["clips"]], want, atol=2e-4)
    assert [each["own"] for each in attack["clips"]] == pytest.approx([ETA] * 6, abs=1e-4)
    assert f"takes one step of length {ETA} m" in attack["says"] and attack["classes"] == 128


def batch_of(loaded: Run, clips: list[int]) -> Batch:
    ids = torch.tensor(clips)
    return Batch(loaded.model.setup, A2MC.views, loaded.placed.select(ids), ids, 0)


def test_a_method_without_an_attack_has_a_page_without_one(runs):
    (of_run,) = content_of(runs["b1"] / "report.html")["runs"]
    assert "attack" not in of_run and of_run["map"] and of_run["predictions"]


def test_parts_of_a_step_stand_behind_what_they_lie_in(runs, copied, tmp_path):
    assert content_of(copied / "report.html")["runs"][0]["time"] is None
    (copied / "profile").mkdir()

    def part(name: str, within: str | None) -> dict[str, Any]:
        return {"name": name, "times": 1, "cpu": 2.0, "gpu": None, "within": within}

    parts = [part("attack", None), part("key", None), part("query", "attack"), part("mc", "query")]
    (copied / "profile" / "parts.json").write_text(json.dumps({"steps": 7, "parts": parts}))
    time = made("--run", copied, out=tmp_path / "a.html")["runs"][0]["time"]
    assert [each["name"] for each in time["parts"]] == ["attack", "query", "mc", "key"]
    assert "7 recorded steps" in time["says"]


# --- What is kept


def test_a_page_is_made_again_of_what_is_kept_alone(copied, own, tmp_path, monkeypatch):
    for module, name in ((page_runs, "measure"), (page_runs, "load_run"), (page_runs, "evaluated_again")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    again = made("--run", copied, out=tmp_path / "again.html")
    assert without_its_making(again) == without_its_making(own)
    assert again["by"].endswith(f"python -m train.report --run {copied} --out {tmp_path / 'again.html'}")
    before = (copied / "report.html").stat().st_mtime_ns
    assert report.main(["--run", str(copied)]) == 0, "by default it is the run's own page"
    assert (copied / "report.html").stat().st_mtime_ns > before


def spoil(path: Path, how: str) -> None:
    """page.pt, damaged or of something else."""
    if how == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "gone":
        path.unlink()
    else:
        saved = read_tensors(path)
        if how == "other weights":
            saved["made"]["weights"] = "0" * 32
        elif how == "other data":
            saved["made"]["data"] = "0" * 32
        elif how == "attack of fewer clips":
            saved["measured"]["attack"]["clips"] = saved["measured"]["attack"]["clips"][:-1]
        else:
            saved["measured"]["map"]["neighbours"][0, 0] = 10**6
        saved["measured"]["map"]["points"] += 1
        write_tensors(path, saved)


@pytest.mark.parametrize(
    "how", ["flipped", "gone", "other weights", "other data", "clips that are not there", "attack of fewer clips"]
)
def test_what_is_damaged_or_of_something_else_is_measured_anew(how, copied, own, tmp_path, capsys):
    spoil(copied / "page.pt", how)
    assert without_its_making(made("--run", copied, out=tmp_path / "a.html")) == without_its_making(own)
    damaged = f"{copied / 'page.pt'} cannot be used, and is made anew" in capsys.readouterr().err
    assert damaged == (how in ("flipped", "clips that are not there", "attack of fewer clips"))
    made("--run", copied, out=tmp_path / "a.html")
    assert "measuring" not in capsys.readouterr().out, "and kept"


def test_without_checkpoints_what_is_kept_serves(copied, own, tmp_path):
    shutil.rmtree(copied / "checkpoints")
    assert without_its_making(made("--run", copied, out=tmp_path / "a.html")) == without_its_making(own)
    (copied / "page.pt").unlink()
    found = made("--run", copied, out=tmp_path / "a.html")
    (note,) = found["notes"]
    assert note.startswith("Its clips are not shown: what is shown with them was not kept, and cannot be measured: ")
    assert "clips" not in found and "map" not in found["runs"][0]
    assert found["runs"][0]["panels"] == own["runs"][0]["panels"] and found["runs"][0]["trained"]


def test_a_run_of_an_earlier_version_gets_its_page(copied, own, tmp_path, monkeypatch):
    """It has neither page nor what belongs to it; its classifier and features are those of its evaluation."""
    for name in ("page.pt", "report.html"):
        (copied / name).unlink()
    monkeypatch.setattr("train.runs.evaluations.train_linear", lambda *_, **__: pytest.fail("a classifier was trained"))
    assert without_its_making(made("--run", copied, out=tmp_path / "a.html")) == without_its_making(own)


def test_a_run_whose_clips_are_gone_or_others_has_its_curves(copied, own, tmp_path):
    found = made("--run", copied, "--data-root", tmp_path, out=tmp_path / "a.html")
    assert found["notes"][0].startswith("Its clips are not shown: there is no dataset 'small'")
    write_small_store(tmp_path / "small", seed=9)
    found = made("--run", copied, "--data-root", tmp_path, out=tmp_path / "a.html")
    assert "are not the ones that it was evaluated on" in found["notes"][0]
    assert "skeleton" not in found and found["runs"][0]["panels"] == own["runs"][0]["panels"]


def test_a_run_that_is_not_finished_has_its_curves(copied, tmp_path):
    (copied / "report.json").unlink()
    found = made("--run", copied, out=tmp_path / "a.html")
    assert found["notes"] == ["Not finished: there is no report.json yet."]
    assert found["runs"][0]["trained"] == [None] * 3 and len(found["runs"][0]["panels"]) == 5


def test_beside_one_that_is_not_finished_a_run_has_its_clips(runs, copied, own, tmp_path):
    (copied / "report.json").unlink()
    found = made("--run", runs["a2mc"], copied, out=tmp_path / "a.html")
    assert not any("different data" in note for note in found["notes"])
    assert found["clips"]["name"] == own["clips"]["name"] and ["map" in each for each in found["runs"]] == [True, False]


# --- Several runs


def test_seeds_are_put_together_and_what_differs_is_told(runs, own, tmp_path):
    folders = [runs[name] for name in OF_EACH]
    found = made("--run", *folders[:2], "--run", folders[2], out=tmp_path / "several.html")
    assert [r["label"] for r in found["runs"]] == ["a2mc, seed 0", "b1, seed 0", "a2mc, seed 1"]
    assert found["groups"] == [{"label": "a2mc", "runs": [0, 2]}, {"label": "b1", "runs": [1]}]
    assert found["title"] == "a2mc and b1 on small"
    assert found["differences"] == [
        {"setting": "method", "values": ["a2mc", "b1", "a2mc"]},
        {"setting": "seed", "values": ["0", "0", "1"]},
    ]
    assert [r["raw"] for r in found["runs"]] == [own["runs"][0]["raw"]] * 3
    names = found["clips"]["name"]
    for alone, together in zip(folders, found["runs"], strict=True):
        by_itself = content_of(alone / "report.html")
        (its,) = by_itself["runs"]
        assert (its["panels"], its["trained"]) == (together["panels"], together["trained"])
        assert (its["map"]["x"], its["map"]["cosines"]) == (together["map"]["x"], together["map"]["cosines"])
        of_page = [[names[i] for i in row] for row in together["map"]["neighbours"]]
        assert of_page == [[by_itself["clips"]["name"][i] for i in row] for row in its["map"]["neighbours"]]
    assert ["attack" in r for r in found["runs"]] == [True, False, True]


def test_groups_are_told_apart_by_settings_or_by_a_run_of_theirs(runs, loaded):
    plain = to_plain(loaded.config)

    def of(label: str, **changes: Any) -> page_runs.PageRun:
        of_run = page_runs.read_run(runs["a2mc"], label)
        return dataclasses.replace(of_run, config=config_of({**plain, **changes}))

    assert page.groups_of([of("a"), of("b", seed=3)]) == [{"label": "a2mc", "runs": [0, 1]}]
    assert page.groups_of([of("a"), of("b", frames=8)])[1] == {"label": "frames 8", "runs": [1]}
    many = {
        "frames": 8,
        "stream": "bone",
        "protocol": "xview",
        "preset": "paper",
        "optim": {**plain["optim"], "epochs": 9},
    }
    assert [group["label"] for group in page.groups_of([of("a"), of("b", **many)])] == ["a", "b"]
    many["dataset"] = "other"
    assert [group["label"] for group in page.groups_of([of("a"), of("b", **many)])] == ["small", "other"]
    assert page.groups_of([of("a"), of("b", device="cuda")])[0]["runs"] == [0, 1], "what computes the same"


def test_runs_of_methods_with_other_settings_are_told_apart(runs, tmp_path):
    """A setting that only one of them has is none of the other's."""
    plain = to_plain(load_config(runs["a2mc"]))
    other = {**plain, "method": "cpm", "settings": {"bank_size": 16}}
    labels = page.labels_by_settings([plain, {**plain, "seed": 1}])
    assert labels == ["seed 0", "seed 1"]
    assert page.setting(other, "settings.attack_norm") == "–" and page.setting(plain, "settings.attack_norm") == str(
        ETA
    )
    assert "settings.attack_norm" in page.changed_settings([plain, other])


def test_of_different_data_curves_and_accuracies_are_compared(runs, tmp_path, own):
    write_small_store(tmp_path / "data" / "other", seed=5)
    arguments = ("--data-root", str(tmp_path / "data"), "--out", str(tmp_path / "run"))
    assert run.main([*TINY, "--dataset", "other", *arguments]) == 0
    found = made("--run", runs["a2mc"], tmp_path / "run", out=tmp_path / "a.html")
    assert any("different data" in note for note in found["notes"])
    assert not {"clips", "motion", "skeleton"} & found.keys()
    assert all(not {"map", "predictions", "attack"} & each.keys() for each in found["runs"])
    assert found["runs"][0]["panels"] == own["runs"][0]["panels"] and found["runs"][1]["trained"][0] is not None
    assert found["runs"][0]["raw"] == own["runs"][0]["raw"] != found["runs"][1]["raw"]
    assert found["title"] == "2 runs on small and other"


# --- Sets without labels, large ones, small ones


def test_without_labels_a_page_shows_what_needs_none(tmp_path):
    write_small_store(tmp_path / "small")
    labels = np.load(tmp_path / "small" / "label.npy")
    np.save(tmp_path / "small" / "label.npy", np.full_like(labels, -1))
    assert run.main([*TINY, "--data-root", str(tmp_path), "--out", str(tmp_path / "run")]) == 0
    for found in (
        content_of(tmp_path / "run" / "report.html"),
        made("--run", tmp_path / "run", out=tmp_path / "a.html"),
    ):
        (of_run,) = found["runs"]
        assert of_run["trained"] == of_run["untrained"] == [None] * 3 and of_run["raw"] is None
        assert not {"map", "predictions"} & of_run.keys() and len(of_run["attack"]["clips"]) == 6
        assert set(found["clips"]["class"]) == {-1} and found["notes"][0].startswith("Not evaluated: protocol = 'xsub'")


def test_of_many_test_clips_some_are_shown_and_all_are_counted(copied, own, tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "SHOWN", 5)
    monkeypatch.setattr(measured, "RAW_BYTES", 10)
    (copied / "page.pt").unlink()
    found = made("--run", copied, out=tmp_path / "a.html")
    (of_run,) = found["runs"]
    assert found["notes"][0].startswith("5 of 24 test clips are shown, drawn by chance (seed 0)")
    assert found["notes"][1].startswith("Raw coordinates are not evaluated: with 1 crops of 24 training clips")
    assert of_run["raw"] is None
    assert sum(found["clips"]["test"]) == 5 == len(of_run["map"]["clip"]) and len(found["clips"]["name"]) <= 5 + 25
    predictions = of_run["predictions"]
    assert {**predictions, "clip": 0} == {**own["runs"][0]["predictions"], "clip": 0}
    shown = [clip for clip in predictions["clip"] if clip != -1]
    assert shown == of_run["map"]["clip"]
    names = np.array(found["clips"]["name"])[shown]
    whole = own["runs"][0]["map"]
    everywhere = {
        own["clips"]["name"][clip]: near for clip, near in zip(whole["clip"], whole["neighbours"], strict=True)
    }
    for name, near in zip(names, of_run["map"]["neighbours"], strict=True):
        assert [found["clips"]["name"][i] for i in near] == [own["clips"]["name"][i] for i in everywhere[name]]


def test_too_few_test_clips_have_no_map(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(tsne, "FEWEST", 25)
    (copied / "page.pt").unlink()
    found = made("--run", copied, out=tmp_path / "a.html")
    assert found["notes"] == ["There is no map: 24 test clips are too few for a t-SNE."]
    assert "map" not in found["runs"][0] and found["runs"][0]["predictions"]


@pytest.mark.parametrize(
    ("changes", "want", "where"),
    [
        ({}, [70.8, 80.0, None], "tables 1 and 3"),
        ({"stream": "bone"}, [None, 78.3, None], "table 2"),
        ({"method": "b1"}, [None, 75.6, None], "table 6"),
        ({"protocol": "xview"}, [85.4, 87.9, None], "tables 1 and 3"),
        ({"dataset": "small"}, None, None),
        ({"backbone": "stgcn", "encoder": {}}, None, None),
    ],
)
def test_what_was_published_stands_beside_it(changes, want, where, runs, loaded):
    plain = {**to_plain(loaded.config), "dataset": "ntu60", **changes}
    of_run = dataclasses.replace(page_runs.read_run(runs["a2mc"], "a"), config=config_of(plain))
    values, source = page._published(of_run)
    assert values == want
    assert source is None if where is None else f"the paper's {where}," in source


# --- What goes wrong


def test_a_run_that_is_stopped_before_its_page_makes_it_the_next_time(data_root, own, tmp_path, monkeypatch, capsys):
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    command = [*TINY, "--data-root", str(data_root), "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patched:
        patched.setattr(run, "write_run_page", stop)
        assert run.main(command) == 130
    assert (tmp_path / "run" / "report.json").exists() and not (tmp_path / "run" / "report.html").exists()
    monkeypatch.setattr(Pretraining, "_advance", lambda *_: pytest.fail("it trains again"))
    assert run.main(command) == 0
    assert without_its_making(content_of(tmp_path / "run" / "report.html"))["runs"][0]["map"] == own["runs"][0]["map"]
    kept = (tmp_path / "run" / "report.html").stat().st_mtime_ns
    assert run.main(command) == 0 and (tmp_path / "run" / "report.html").stat().st_mtime_ns == kept
    with monkeypatch.context() as patched:  # of another evaluation: the page of the first must not pass for its
        patched.setattr(run, "write_run_page", stop)
        assert run.main([*command, "--knn-k", "3"]) == 130
    assert not (tmp_path / "run" / "report.html").exists()


def test_a_disk_that_is_full_for_the_page_leaves_the_report(data_root, tmp_path, monkeypatch, capsys):
    def full(path: Path, *_: Any) -> int:
        raise WriteError(path, OSError(28, "No space left on device"))

    monkeypatch.setattr(page, "write_page", full)
    assert run.main([*TINY, "--data-root", str(data_root), "--out", str(tmp_path / "run")]) == 1
    assert "No space left on" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "report.json").read_text())["linear_top1"] >= 0


def test_wrong_arguments_are_named(runs, tmp_path, capsys):
    one, other = str(runs["a2mc"]), str(runs["b1"])
    (tmp_path / "notes.txt").write_text("mine")
    shutil.copytree(one, tmp_path / "damaged")
    (tmp_path / "damaged" / "metrics.csv").write_text("epoch,step\n1,x\n")
    for arguments, said in {
        (): "--run is missing: name a run folder",
        ("--run", str(tmp_path)): f"{tmp_path} is no run folder",
        ("--run", str(tmp_path / "none")): f"{tmp_path / 'none'} is no run folder (it does not exist)",
        ("--run", one, other, "--run", one): f"--run {one} is named twice",
        ("--run", one, other): "--out is missing: name the file for a page of several runs",
        ("--run", one, "--out", str(tmp_path)): f"--out {tmp_path} is a folder",
        ("--run", one, "--out", str(tmp_path / "notes.txt")): "is no name of a page",
        ("--run", one, "--out", str(tmp_path / "page.pdf")): f"browsers want {tmp_path / 'page.pdf'}.html",
        ("--run", one, "--out", str(tmp_path / "notes.txt" / "a.html")): "is, or lies in, a file",
        ("--run", str(tmp_path / "damaged"), "--out", str(tmp_path / "a.html")): "metrics.csv is damaged: row 1",
        ("--run", one, "--device", "tpu"): "device = 'tpu' cannot be used",
    }.items():
        assert exit_code(report.main, list(arguments)) == 1
        assert said in capsys.readouterr().err, arguments
    assert (tmp_path / "notes.txt").read_text() == "mine" and not (tmp_path / "a.html").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("report.json", {"linear_top1": [1]}),
        ("report.json", {"random_init": 5}),
        ("report.json", {"notes": [{}]}),
        ("report.json", {"evaluation": {"knn_k": "x"}}),
        ("report.json", {"evaluation": {"colour": 1}}),
        ("report.json", {"data": None}),
        ("environment.json", [5]),
        ("environment.json", [{"packages": "all"}]),
        ("profile/parts.json", {}),
        ("profile/parts.json", {"steps": 1, "parts": [{"name": "key"}]}),
        (
            "profile/parts.json",
            {"steps": 1, "parts": [{"name": "x", "times": 1, "cpu": 1, "gpu": None, "within": None}]},
        ),
        (
            "profile/parts.json",
            {"steps": 1, "parts": [{"name": "mc", "times": 1, "cpu": "", "gpu": 0, "within": "key"}]},
        ),
    ],
)
def test_files_of_a_run_that_hold_something_else_are_named(name, content, copied, tmp_path, capsys):
    (copied / "profile").mkdir()
    whole = json.loads((copied / name).read_text()) if name == "report.json" else None
    (copied / name).write_text(json.dumps(content if whole is None else {**whole, **content}))
    assert report.main(["--run", str(copied), "--out", str(tmp_path / "a.html")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {copied / name} is damaged: ") and "Traceback" not in said
    assert said.count("\n") == 1


def test_parts_that_lie_in_one_another_end(copied, tmp_path):
    (copied / "profile").mkdir()
    around = {"attack": None, "key": "attack", "mc": "key"}
    parts = [{"name": n, "times": 1, "cpu": 1.0, "gpu": 2.0, "within": w} for n, w in around.items()]
    parts.append({**parts[1], "within": "mc"})
    (copied / "profile" / "parts.json").write_text(json.dumps({"steps": 1, "parts": parts}))
    time = made("--run", copied, out=tmp_path / "a.html")["runs"][0]["time"]
    assert [each["name"] for each in time["parts"]] == ["attack", "key", "mc"] and "host and GPU" in time["says"]


def test_what_a_run_s_names_hold_is_text(copied, tmp_path):
    """A run folder of a stranger: a class that ends the element, and a note that does."""
    evil = "</script><script>alert(1)</script>"
    said = json.loads((copied / "report.json").read_text())
    (copied / "report.json").write_text(json.dumps({**said, "notes": [evil]}))
    found = made("--run", copied, out=tmp_path / "a.html")
    assert found["notes"] == [evil]
    text, usual = (tmp_path / "a.html").read_text(), (copied / "report.html").read_text()
    assert evil not in text and text.count("</script>") == usual.count("</script>")


def test_more_runs_than_one_can_be_named_either_way():
    assert (
        report.parse(["--run", "a", "b", "--run", "c"]).runs
        == report.parse(["--run", "a", "--run", "b", "--run", "c"]).runs
        == (Path("a"), Path("b"), Path("c"))
    )
