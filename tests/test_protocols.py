"""python -m train.evaluate, every protocol end to end on small stores, and the files it leaves."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import statistics
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import exit_code, write_small_store
from once import made_once
from test_train import FAST, errors

import fastmc
from fastmc import checkpoint
from fastmc.data.store import PackedStore, StoreWriter
from fastmc.evaluation import (
    EvalConfig,
    FinetuneConfig,
    features,
    frozen_features,
    labelled_sample,
    represent,
    weights_digest,
)
from fastmc.evaluation import finetune as finetune_encoder
from fastmc.evaluation.classifier import Classifier
from fastmc.evaluation.finetune import batches_of_sizes
from fastmc.ranks import shares
from fastmc.skeleton import KINECT20, NTU25
from train import evaluate, run
from train.evaluate import load_run
from train.runs import evaluations as protocols
from train.runs.load import Run
from train.runs.results import save_classifier, saved_classifier

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
QUICK = ("--epochs", "2", "--milestones", "1", "--device", "cpu")
OF_QUICK = "-epochs2-milestones1"  # in the names of the files


def train(data_root: Path, out: Path, *flags: str) -> Path:
    assert run.main([*FAST, "--data-root", str(data_root), "--out", str(out), *flags, "--probe-every", "0"]) == 0
    return out


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory) -> dict[str, Path]:
    """A finished run of each stream."""
    streams = ("joint", "motion", "bone")

    def make(out: Path) -> None:
        for s in streams:
            train(data_root, out / s, "--stream", s, "--epochs", "1", "--milestones", "1")

    out = made_once(tmp_path_factory, "streams", make)
    return {s: out / s for s in streams}


@pytest.fixture
def streams(trained, tmp_path) -> dict[str, Path]:
    """The same, to be written to."""
    return {stream: Path(shutil.copytree(folder, tmp_path / stream)) for stream, folder in trained.items()}


@pytest.fixture
def finished(streams) -> Path:
    return streams["joint"]


def result(folder: Path, name: str) -> dict:
    return json.loads((folder / "evaluate" / f"{name}.json").read_text())


def check_files(folder: Path, name: str) -> dict:
    """All four files, and that they agree; the content of the JSON."""
    out, found = folder / "evaluate", result(folder, name)
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = "".join(ElementTree.parse(out / f"{name}.svg").getroot().itertext())
    assert f"top-1 {found['top1']:.1f} %" in text and "swing 1" in text
    with open(out / f"{name}.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    clips, correct = (sum(int(row[key]) for row in rows) for key in ("clips", "correct"))
    assert found["top1"] == pytest.approx(100 * correct / clips)
    for row in rows:
        share = 100 * int(row["correct"]) / int(row["clips"])
        assert float(row["accuracy"]) == pytest.approx(share, abs=1e-4)
        assert found["per_class"][row["class"]] == pytest.approx(share)
    assert found["wall_seconds"] > 0
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    return found


def query_of(folder: Path) -> Run:
    return load_run(folder, CPU)


def test_knn_and_linear_encode_once_and_leave_their_files(finished, monkeypatch, capsys):
    """And those of the trained encoder not at all: the training run has kept them."""
    report, computed, real = json.loads((finished / "report.json").read_text()), [], features.represent

    def counted(encoder, *arguments, **options):
        computed.append(id(encoder))
        return real(encoder, *arguments, **options)

    monkeypatch.setattr(features, "represent", counted)
    assert evaluate.main(["linear", "--run", str(finished), "--device", "cpu"]) == 0
    assert "features: computed and kept" in capsys.readouterr().out
    assert len(set(computed)) == 1, "only those of the untrained encoder"
    computed.clear()
    assert evaluate.main(["knn", "--run", str(finished), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.count("features: from cache") == 2, "of the trained and of the untrained encoder"
    assert not computed
    linear, knn = check_files(finished, "linear-xsub"), check_files(finished, "knn-xsub")
    assert (linear["top1"], linear["top5"]) == (report["linear_top1"], report["linear_top5"])
    assert knn["top1"] == report["knn_top1"] and "top5" not in knn
    assert linear["random_init"] == {f"top{k}": report["random_init"][f"linear_top{k}"] for k in (1, 5)}
    assert knn["random_init"] == {"top1": report["random_init"]["knn_top1"]}
    assert (knn["kind"], knn["dataset"], knn["protocol"], knn["seed"]) == ("knn", "small", "xsub", 0)
    assert linear["weights"] == knn["weights"] == weights_digest(query_of(finished).model.query)
    assert linear["evaluation"]["linear_epochs"] == 3


def test_without_the_cache_nothing_is_read_or_kept(finished, capsys):
    """The same from frames that stay in their file."""
    shutil.rmtree(finished / "features")
    flags = ("--device", "cpu", "--no-cache", "--placement", "mapped")
    assert evaluate.main(["knn", "--run", str(finished), *flags]) == 0
    assert not (finished / "features").exists()
    assert "fetched ahead" in capsys.readouterr().out
    assert result(finished, "knn-xsub")["top1"] == json.loads((finished / "report.json").read_text())["knn_top1"]


def test_a_training_run_leaves_its_classifier(finished):
    report = json.loads((finished / "report.json").read_text())
    there = query_of(finished)
    kept = Classifier.read(finished, there.model.query)
    assert (kept.dataset, kept.protocol, kept.class_names) == ("small", "xsub", there.store.class_names)
    assert kept.top1 == report["linear_top1"]
    train_ids, test_ids = there.split()
    f = frozen_features(
        there.model.query, there.placed, train_ids, test_ids, "joint", there.config.evaluation, frames=8, crops=0
    )
    predicted = (f.test @ kept.weight.T + kept.bias).argmax(dim=1)
    assert 100 * (predicted == f.test_labels).double().mean().item() == pytest.approx(kept.top1)


def test_results_and_classifiers_are_kept_by_protocol_and_settings(finished, capsys):
    """And it is said how many test clips of another protocol were in pre-training."""
    command = lambda *words: evaluate.main([*words, "--run", str(finished), "--device", "cpu"])  # noqa: E731
    assert command("knn") == 0
    capsys.readouterr()
    before, nearest = (finished / "classifier.pt").read_bytes(), result(finished, "knn-xsub")
    pretraining = {"dataset": "small", "protocol": "xsub", "test_clips_seen": 0, "checkpoint": "last"}
    pretraining |= {"step": 3, "epoch": 1, "epochs": 1}
    assert nearest["pretraining"] == pretraining

    assert command("knn", "--knn-k", "5") == 0
    assert "were in pre-training" not in "".join(capsys.readouterr())
    assert result(finished, "knn-xsub-knn_k5")["evaluation"]["knn_k"] == 5
    assert result(finished, "knn-xsub") == nearest

    assert command("linear", "--protocol", "xview", "--linear-epochs", "2") == 0
    store = query_of(finished).store
    test = store.split("xview")[1]
    seen = len(set(test.tolist()) & set(store.split("xsub")[0].tolist()))
    assert 0 < seen < len(test)
    said = "".join(capsys.readouterr())
    assert f"{seen} of the {len(test)} test clips of xview were in pre-training, on xsub" in said
    found = result(finished, "linear-xview-linear_epochs2")
    assert found["pretraining"] == {**pretraining, "test_clips_seen": seen}
    assert (finished / "classifier.pt").read_bytes() == before
    kept = finished / "classifier-xview-linear_epochs2.pt"
    assert f"the classifier is {kept}" in said
    after = torch.load(kept, weights_only=True)
    assert (after["protocol"], after["top1"]) == ("xview", found["top1"])
    assert fastmc.load(finished, device="cpu", classifier=kept).classifier.protocol == "xview"
    assert fastmc.load(finished, device="cpu").classifier.protocol == "xsub"


def test_a_run_without_its_own_classifier_names_the_others(tmp_path):
    (tmp_path / "classifier-xview.pt").touch()
    with pytest.raises(ValueError, match=r"no trained classifier \(classifier.pt\); give --classifier .*-xview"):
        Classifier.read(tmp_path, None)


def test_sample_of_labels_is_balanced_and_does_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(5), [100, 100, 100, 97, 3]))
    names = [f"clip{n}" for n in rng.permutation(len(labels))]
    few = labelled_sample(labels, names, 0.1, 5, key="0")
    assert Counter(labels[few].tolist()) == {0: 8, 1: 8, 2: 8, 3: 8, 4: 3}, (
        "round(0.1 * 400 / 5), all of the rare class"
    )
    assert few.tolist() == sorted(set(few.tolist()))
    order = rng.permutation(len(labels))
    shuffled = labelled_sample(labels[order], [names[n] for n in order], 0.1, 5, key="0")
    assert sorted(names[order[n]] for n in shuffled) == sorted(names[n] for n in few)
    assert labelled_sample(labels, names, 0.1, 5, key="1").tolist() != few.tolist()
    assert set(few) < set(labelled_sample(labels, names, 0.3, 5, key="0")), "the smaller is a part of the larger"
    assert Counter(labels[labelled_sample(labels, names, 1e-4, 5, key="0")].tolist()) == dict.fromkeys(range(5), 1)
    assert len(labelled_sample(labels, names, 1.0, 5, key="0")) == 80 * 4 + 3


def test_sample_of_labels_is_the_same_on_every_machine():
    """As it was when this was written, which is the order of a published hash of key and name."""
    names = [f"S001C001P{n:03d}R001A001" for n in range(12)]
    chosen = labelled_sample(np.arange(12) % 3, names, 0.5, 3, key="7").tolist()
    assert chosen == [3, 4, 8, 9, 10, 11]
    rank = {n: hashlib.blake2b(b"7/" + names[n].encode()).hexdigest() for n in range(12)}
    for label in range(3):
        members = [n for n in range(12) if n % 3 == label]
        assert [n for n in chosen if n in members] == sorted(sorted(members, key=rank.get)[:2])


@pytest.fixture(scope="module")
def separable(tmp_path_factory) -> Path:
    """A store whose classes differ in how high an arm is."""
    root = tmp_path_factory.mktemp("separable")
    write_small_store(root / "lifted", clips=60, lift=1.0)
    return root


def test_finetuning_learns_what_can_be_told_apart(separable, tmp_path):
    told = ("--dataset", "lifted", "--epochs", "1", "--milestones", "1", "--no-keep-features")
    folder = train(separable, tmp_path / "run", *told)
    assert (folder / "classifier.pt").exists() and not (folder / "features").exists()
    before = checkpoint.load_latest(folder / "checkpoints")[1]["model"]
    flags = ("--epochs", "40", "--milestones", "30", "--lr", "0.05", "--batch-size", "16", "--device", "cpu")
    assert evaluate.main(["finetune", "--run", str(folder), *flags]) == 0
    found = check_files(folder, "finetune-xsub-epochs40-lr0.05-milestones30-batch_size16")
    assert found["top1"] == found["top5"] == 100.0
    assert found["evaluation"]["lr"] == 0.05 and found["evaluation"]["weight_decay"] == 0.0
    after = checkpoint.load_latest(folder / "checkpoints")[1]["model"]
    assert all(torch.equal(before[name], after[name]) for name in before), "the checkpoint is left as it was"


@pytest.mark.parametrize(("clips", "batch"), [(4033, 64), (10, 3), (9, 4), (7, 7), (8, 7), (1, 64)])
def test_no_batch_of_fine_tuning_is_smaller_than_the_others_by_more_than_a_clip(clips, batch):
    """A last batch of one clip would have no statistics."""
    sizes = shares(clips, -(-clips // batch))
    order = torch.arange(clips).flip(0)
    store = SimpleNamespace(batches=lambda ids, size: ((part, None) for part in ids.split(size)))
    found = [ids for ids, _ in batches_of_sizes(store, order, sizes)]
    assert torch.equal(torch.cat(found), order)
    lengths = {len(ids) for ids in found}
    assert max(lengths) <= batch and max(lengths) - min(lengths) <= 1 and len(found) == -(-clips // batch)


def finetune_once(there: Run, seed: int = 0, **settings):
    config = FinetuneConfig(**{"epochs": 2, "milestones": (1,), "batch_size": 8, **settings})
    return finetune_encoder(there.model.query, there.placed, there.split()[0], 3, "joint", config, frames=8, seed=seed)


def test_finetuning_trains_a_copy_and_repeats_bit_for_bit(finished):
    there = query_of(finished)
    digest, state = weights_digest(there.model.query), torch.get_rng_state()
    encoder, classifier = finetune_once(there)
    assert weights_digest(there.model.query) == digest, "the frozen encoder stays"
    frozen, tuned = there.model.query.state_dict(), encoder.state_dict()
    changed = {name.split(".")[0] for name in frozen if not torch.equal(frozen[name], tuned[name])}
    assert changed == {"norm", "recurrent"}, "all that representations depend on, and not the head"
    again, same = finetune_once(there)
    assert weights_digest(encoder) == weights_digest(again) and weights_digest(classifier) == weights_digest(same)
    assert torch.equal(torch.get_rng_state(), state), "the global random state is left alone"
    other, _ = finetune_once(there, seed=1)
    assert weights_digest(other) != weights_digest(encoder)


def test_first_step_of_finetuning_is_sgd_on_all_clips(finished):
    """One step on one batch, against a plain one: whole clips, as crops of at least 1 of them."""
    there = query_of(finished)
    ids = there.split()[0]
    encoder, classifier = finetune_once(there, epochs=1, batch_size=len(ids), train_crop_min=1.0, lr=0.1)
    plain = query_of(finished).model.query.train()
    ones = torch.ones(len(ids))
    generator = torch.Generator().manual_seed(0)
    bound = plain.representation_dim**-0.5
    for shape in ((3, plain.representation_dim), (3,)):
        torch.empty(shape).uniform_(-bound, bound, generator=generator)
    weight = torch.nn.Parameter(torch.empty(3, plain.representation_dim).normal_(std=0.01, generator=generator))
    whole = represent_with_gradient(plain, there, ids, ones)
    loss = torch.nn.functional.cross_entropy(whole @ weight.T, there.placed.label[ids])
    loss.backward()
    torch.testing.assert_close(classifier.weight, weight - 0.1 * weight.grad, rtol=1e-4, atol=1e-6)
    for (name, got), parameter in zip(encoder.named_parameters(), plain.parameters(), strict=True):
        step = torch.zeros_like(parameter) if parameter.grad is None else 0.1 * parameter.grad
        torch.testing.assert_close(got, parameter - step, rtol=1e-4, atol=1e-6, msg=name)


def represent_with_gradient(encoder, there: Run, ids: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    from fastmc.views.make import whole_clips

    return encoder.represent(whole_clips(there.placed.select(ids), there.store.skeleton, 8))


def test_semi_draws_balanced_labels_and_tells_the_spread(finished, monkeypatch, capsys):
    seen = []

    def spy(*args, **kwargs):
        seen.append(args[2].tolist())
        return finetune_encoder(*args, **kwargs)

    monkeypatch.setattr("train.runs.evaluations.finetune", spy)
    arguments = ["semi", "--run", str(finished), "--share", "0.01", "0.5", "--draws", "3", *QUICK]
    assert evaluate.main(arguments) == 0
    there = query_of(finished)
    train_ids = set(there.split()[0].tolist())
    assert len(seen) == 6
    for ids in seen:
        assert set(ids) <= train_ids, "no test clip is learnt from"
    few, many = seen[:3], seen[3:]
    assert [Counter(there.store.label[ids].tolist()) for ids in few] == [{0: 1, 1: 1, 2: 1}] * 3, "one of each at least"
    assert [Counter(there.store.label[ids].tolist()) for ids in many] == [{0: 4, 1: 4, 2: 4}] * 3
    assert len({tuple(ids) for ids in many}) == 3, "each draw is another one"
    one, half = (check_files(finished, f"semi{share}-xsub{OF_QUICK}-draws3") for share in (1, 50))
    assert (one["share"], one["draws"], one["labelled"]) == (0.01, 3, 3)
    assert (half["share"], half["kind"], half["labelled"]) == (0.5, "semi", 12)
    for found in (one, half):
        assert len(found["top1_draws"]) == 3
        assert found["top1"] == pytest.approx(statistics.fmean(found["top1_draws"]))
        assert found["top1_std"] == pytest.approx(statistics.stdev(found["top1_draws"]))
    assert f"standard deviation of top-1 {half['top1_std']:.2f} over 3 draws" in capsys.readouterr().out
    seen.clear()
    assert evaluate.main(arguments) == 0
    assert seen == [*few, *many]
    assert result(finished, f"semi50-xsub{OF_QUICK}-draws3")["top1_draws"] == half["top1_draws"]


def write_store(path: Path, skeleton=NTU25, bodies: int = 1, clips: int = 24) -> PackedStore:
    rng = np.random.default_rng(1)
    names = [f"swing {n}" for n in range(2)]
    rule = {"half": {"field": "subject", "train": [1]}, "other": {"field": "camera", "train": [1]}}
    with StoreWriter(path, name=path.name, skeleton=skeleton, fps=30.0, class_names=names, protocols=rule) as writer:
        for n in range(clips):
            clip = rng.normal(size=(20 + n, bodies, skeleton.num_joints, 3))
            writer.add(clip, name=f"c{n:03d}", label=n % 2, subject=1 + n // 2 % 2, camera=1 + n // 4 % 2)
    return PackedStore.open(path)


@pytest.mark.parametrize("own_data", [True, False])
def test_transfer_to_clips_of_fewer_bodies(own_data, data_root, finished, tmp_path):
    store = write_store(tmp_path / "data" / "target")
    assert store.max_bodies == 1
    if own_data:
        shutil.copytree(data_root / "small", tmp_path / "data" / "small")
    before = {p: p.read_bytes() for p in (finished / "checkpoints").rglob("*") if p.is_file()}
    protocol = "other" if own_data else "half"
    flags = ["--run", str(finished), "--dataset", "target", "--data-root", str(tmp_path / "data"), *QUICK]
    assert evaluate.main(["transfer", *flags, *(("--protocol", protocol) if own_data else ())]) == 0
    found = check_files(finished, f"transfer-target-{protocol}{OF_QUICK}")
    assert (found["kind"], found["dataset"], found["protocol"]) == ("transfer", "target", protocol)
    assert found["per_class"].keys() == {"swing 0", "swing 1"}
    assert {p: p.read_bytes() for p in (finished / "checkpoints").rglob("*") if p.is_file()} == before


def test_bodies_that_clips_lack_are_zero(data_root, finished, tmp_path):
    from train.runs.load import load_for

    write_store(tmp_path / "target")
    there = load_for("target", finished, CPU, tmp_path)
    ids, one = torch.tensor([2]), torch.ones(1)
    clip = torch.from_numpy(there.store.clip(2).copy())
    padded = torch.cat((clip, torch.zeros_like(clip)), dim=1)  # (T, 2, V, 3)
    x = torch.nn.functional.interpolate(padded.flatten(1).T[None], size=8, mode="linear")[0].T.unflatten(1, (2, 25, 3))
    want = there.model.query.eval().represent(x.transpose(1, 2).flatten(1)[None])
    got = represent(there.model.query, there.placed, ids, "joint", frames=8, ratio=one, position=one)
    torch.testing.assert_close(got, want.detach(), atol=1e-5, rtol=0)


def test_transfer_refuses_clips_that_the_encoder_cannot_read(finished, tmp_path, capsys):
    write_store(tmp_path / "kinect", skeleton=KINECT20)
    write_store(tmp_path / "crowd", bodies=3)
    arguments = ["transfer", "--run", str(finished), "--data-root", str(tmp_path), *QUICK, "--dataset"]
    assert evaluate.main([*arguments, "kinect"]) == 1
    assert "another skeleton (kinect20, 20 joints) than the encoder reads (ntu25, 25 joints)" in errors(capsys)
    assert evaluate.main([*arguments, "crowd"]) == 1
    assert "clips of 3 bodies, the encoder reads 2" in errors(capsys)
    assert evaluate.main([*arguments, "nowhere"]) == 1
    assert "there is no dataset 'nowhere'" in errors(capsys)
    assert not (finished / "evaluate").exists()


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def test_ensemble_is_the_sum_of_the_probabilities(streams):
    weights = (0.6, 0.4, 2.5)
    folders = [str(folder) for folder in streams.values()]
    flags = ("--weights", *map(str, weights), "--device", "cpu")
    assert evaluate.main(["ensemble", "--run", *folders, *flags]) == 0
    found = check_files(streams["joint"], "ensemble-xsub-weights0.6+0.4+2.5")
    total, alone = 0, {}
    for weight, (stream, folder) in zip(weights, streams.items(), strict=True):
        there = query_of(folder)
        ids = there.split()[1]
        kept = torch.load(folder / "classifier.pt", weights_only=True)
        half = torch.full((len(ids),), 0.5)
        ratio = torch.full((len(ids),), 0.95)
        h = represent(there.model.query, there.placed, ids, stream, frames=8, ratio=ratio, position=half)
        p = softmax(h.double().numpy() @ kept["weight"].double().numpy().T + kept["bias"].double().numpy())
        total = total + weight * p
        labels = there.store.label[ids.numpy()]
        alone[stream] = 100 * (p.argmax(axis=1) == labels).mean()
    assert found["top1"] == pytest.approx(100 * (total.argmax(axis=1) == labels).mean())
    assert found["streams"] == pytest.approx(alone)
    assert found["streams"]["bone"] == json.loads((streams["bone"] / "report.json").read_text())["linear_top1"]
    assert found["runs"] == folders and len(found["weights"]) == 3
    assert list(found["fusion_weights"].values()) == list(weights)


def test_ensemble_trains_the_classifiers_that_are_not_there(streams):
    first, second = streams["joint"], streams["motion"]
    kept = torch.load(first / "classifier.pt", weights_only=True)
    (first / "classifier.pt").unlink()
    (second / "classifier.pt").write_bytes(b"broken")
    assert evaluate.main(["ensemble", "--run", str(first), "--run", str(second), "--device", "cpu"]) == 0
    again = torch.load(first / "classifier.pt", weights_only=True)
    assert torch.equal(kept["weight"], again["weight"]), "the same one"
    report = json.loads((second / "report.json").read_text())
    found = result(first, "ensemble-joint+motion-xsub")
    assert found["streams"]["motion"] == report["linear_top1"]
    assert list(found["fusion_weights"].values()) == [1.0, 1.0], "by default"
    assert evaluate.main(["ensemble", "--run", str(first), str(second), "--protocol", "xview", "--device", "cpu"]) == 0
    assert result(first, "ensemble-joint+motion-xview")["protocol"] == "xview"
    assert torch.load(second / "classifier-xview.pt", weights_only=True)["protocol"] == "xview"


def test_ensemble_refuses_runs_that_do_not_fit(streams, separable, tmp_path, capsys):
    joint, motion = str(streams["joint"]), str(streams["motion"])

    def refused(*arguments: str) -> str:
        assert exit_code(evaluate.main, ["ensemble", "--device", "cpu", *arguments])
        return errors(capsys)

    assert "needs two or more runs" in refused("--run", joint)
    assert "of the streams joint, joint; name one run of each" in refused("--run", joint, joint)
    assert "weights are 3, one for each of the 2 runs" in refused("--run", joint, motion, "--weights", "1", "1", "1")
    assert "weights are all 0" in refused("--run", joint, motion, "--weights", "0", "0")
    assert "weights must be a finite number, got nan" in refused("--run", joint, motion, "--weights", "1", "nan")
    assert "of the streams joint, joint" in refused(f"--run={joint}", f"--run={joint}")
    plain = json.loads((streams["motion"] / "config.json").read_text())
    for setting, value in (("dataset", "lifted"), ("protocol", "xview")):
        (streams["motion"] / "config.json").write_text(json.dumps({**plain, setting: value}))
        values = {"dataset": "lifted, small", "protocol": "xsub, xview"}[setting]
        assert f"of different {setting}s ({values})" in refused("--run", joint, motion)
    assert not (streams["joint"] / "evaluate").exists()


def test_wrong_arguments_are_one_line(finished, tmp_path, capsys):
    for kind in ("knn", "linear", "finetune", "semi"):
        assert evaluate.main([kind, "--run", str(finished), "--protocol", "xset"]) == 1
        assert "has no protocol 'xset'; there are: xsub, xview" in errors(capsys)
    assert evaluate.main(["knn", "--run", str(finished), "--data-root", str(tmp_path)]) == 1
    assert "there is no dataset 'small'" in errors(capsys)
    shutil.rmtree(finished / "checkpoints")
    for kind in ("knn", "linear", "finetune", "semi"):
        assert evaluate.main([kind, "--run", str(finished)]) == 1
        assert "no complete checkpoint" in errors(capsys)
    assert not (finished / "evaluate").exists()
    assert evaluate.main(["knn", "--run", str(tmp_path)]) == 1
    assert "config.json" in errors(capsys)


def test_a_protocol_without_test_clips_is_an_error(data_root, finished, tmp_path, capsys):
    store = shutil.copytree(data_root / "small", tmp_path / "small")
    meta = json.loads((store / "meta.json").read_text())
    meta["protocols"]["xview"]["train"] = [1, 2, 3]
    (store / "meta.json").write_text(json.dumps(meta))
    arguments = ["knn", "--run", str(finished), "--data-root", str(tmp_path), "--protocol", "xview"]
    assert evaluate.main(arguments) == 1
    assert "protocol = 'xview' leaves no test clip" in errors(capsys)


def test_old_settings_are_read(finished):
    """A config.json of before there was one of these settings."""
    path = finished / "config.json"
    plain = json.loads(path.read_text())
    plain["evaluation"] = {"knn_k": 2}
    path.write_text(json.dumps(plain))
    settings = evaluate.parse(["knn", "--run", str(finished)])
    assert (settings.knn_k, settings.test_crop, settings.cache) == (2, 0.95, True)


def test_a_classifier_is_used_again_only_where_all_of_its_making_is_the_same(tmp_path):
    """A split may be changed without a change of the frames: clips that trained a classifier would then test it."""
    made = {"protocol": "xsub", "data": "d", "weights": "w", "settings": EvalConfig(), "seed": 0}
    classifier = torch.nn.Linear(3, 2)
    save_classifier(tmp_path, classifier, class_names=("a", "b"), dataset="small", top1=50.0, **made)
    again = saved_classifier(tmp_path, **made)
    assert torch.equal(again.weight, classifier.weight)
    assert saved_classifier(tmp_path, **{**made, "settings": EvalConfig(knn_k=7)}) is not None, "it has no neighbours"
    for changed in made:
        other = {"seed": 1, "settings": EvalConfig(linear_epochs=3)}.get(changed, "other")
        assert saved_classifier(tmp_path, **{**made, changed: other}) is None


def test_what_cannot_be_is_said_before_anything_is_computed(finished, monkeypatch, capsys):
    monkeypatch.setattr(features, "represent", None)
    for arguments, message in (
        (["knn", "--knn-k", "1000"], "knn_k must be >= 1 and <= 24, got 1000"),
        (["linear", "--linear-lr", "-1"], "linear_lr must be > 0, got -1.0"),
    ):
        try:
            code = evaluate.main([*arguments, "--run", str(finished), "--device", "cpu"])
        except SystemExit as error:  # of tyro, for what a dataclass refuses
            code = error.code
        assert code
        assert message in errors(capsys)


def test_fine_tuning_that_diverges_is_an_error(finished, capsys):
    arguments = ["finetune", "--run", str(finished), "--epochs", "3", "--lr", "1e30", "--device", "cpu"]
    assert evaluate.main(arguments) == 1
    assert re.search(r"finetune: the loss is (nan|inf) after epoch \d; a smaller lr may help", errors(capsys))
    assert not list((finished / "evaluate").glob("finetune*"))


def test_no_two_seeds_share_a_draw_of_labelled_clips(finished, monkeypatch):
    there, keys = query_of(finished), []

    def sample(*_, key, **__):
        keys.append(key)
        return np.arange(8)

    monkeypatch.setattr(protocols, "labelled_sample", sample)
    monkeypatch.setattr(protocols, "finetune", lambda *_, **__: (there.model.query, torch.nn.Linear(16, 3)))
    for seed in (0, 1, 2):
        run_of_seed = replace(there, config=replace(there.config, protocol="xsub", seed=seed))
        protocols.evaluate_semi(run_of_seed, FinetuneConfig(), 0.1, draws=5)
    assert len(keys) == len(set(keys)) == 15


def test_split_digest_is_of_what_is_learnt_and_tested(tmp_path):
    store = write_small_store(tmp_path / "small")
    digests = [store.split_digest(protocol) for protocol in ("xsub", "xview")]
    label, num_frames = store.label.copy(), store.num_frames.copy()
    label[[0, 1]] = label[[1, 0]]
    num_frames[0] -= 1
    names = {**store.meta, "class_names": ["a", *store.class_names[1:]]}
    for change in ({"label": label}, {"num_frames": num_frames}, {"meta": names}, {"subject": store.subject + 1}):
        digests.append(replace(store, **change).split_digest("xsub"))
    assert len(set(digests)) == len(digests)
    assert replace(store, camera=store.camera + 1).split_digest("xsub") == digests[0]
    assert write_small_store(tmp_path / "again").split_digest("xsub") == digests[0]
