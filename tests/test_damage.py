"""Damaged and hostile files of a run: what is read is what was written, or is refused by its name, at once."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_small_store
from test_feature_cache import cache_of, computed_by, source  # noqa: F401  a fixture
from test_released import Q, theirs

from fastmc import checkpoint
from fastmc.checkpoint import CheckpointError
from fastmc.config import LogConfig
from fastmc.data.bytes.safe_pickle import load_plain
from fastmc.data.formats.npz import import_npz
from fastmc.data.formats.ntu_splits import read_missing_list
from fastmc.data.formats.parts import read_class_names
from fastmc.data.formats.pku import read_recording
from fastmc.data.formats.pyskl import import_pyskl
from fastmc.data.formats.skeleton_file import read_skeleton
from fastmc.data.packing import PrepareError
from fastmc.data.store import PackedStore, StoreError
from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.encoders.released import encoder_of, read_released
from fastmc.evaluation import EvalConfig, weights_digest
from fastmc.evaluation.classifier import Classifier
from fastmc.skeleton import Skeleton
from train.engine.record import read_metrics
from train.runs.results import save_classifier

ROOT = Path(__file__).resolve().parents[1]


class Foreign:
    """Reading it would run this module."""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """What waits for ever is an error."""

    def late(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def a_state(number: int) -> dict:
    value = float(number)
    return {
        "model": {"query.norm.running_var": torch.full((5,), 1 + value), "query.w": torch.full((7, 5), value)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg_sq": torch.full((7, 5), value)}}},
        "position": {"step": number},
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two checkpoints."""
    for step in (1, 2):
        checkpoint.save(tmp_path / "checkpoints", step, a_state(step), keep=2)
    return tmp_path / "checkpoints"


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def flips(path: Path, most: int = 100) -> Iterator[None]:
    """The file with one of its bits flipped, and another, over all of it."""
    whole = path.read_bytes()
    for bit in np.unique(np.linspace(0, 8 * len(whole) - 1, most).astype(int)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        yield
    path.write_bytes(whole)


# --- Damage


def test_a_flipped_bit_in_the_newest_checkpoint_is_seen_and_the_one_before_taken(folder, told):
    (_, older), (_, newest) = checkpoint.complete(folder)
    for _ in flips(newest / checkpoint.STATE, 150):
        told.clear()
        assert checkpoint.load_latest(folder)[0] == older
        (line,) = told.records
        assert str(newest / checkpoint.STATE) in line.getMessage()
    assert checkpoint.load_latest(folder)[0] == newest
    content = (newest / checkpoint.STATE).read_bytes()
    (newest / checkpoint.STATE).write_bytes(content[: len(content) // 2])
    assert checkpoint.load_latest(folder)[0] == older
    (older / checkpoint.STATE).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        checkpoint.load_latest(folder)


def test_a_flipped_bit_in_a_marker_never_gives_another_state(folder):
    _, (_, newest) = checkpoint.complete(folder)
    for _ in flips(newest / checkpoint.MARKER, 150):
        path, state = checkpoint.load_latest(folder)
        assert same(state, a_state(2 if path == newest else 1))


def test_a_checkpoint_of_an_older_version_has_no_sum_and_is_read_by_those_of_its_archive(folder):
    (_, older), (_, newest) = checkpoint.complete(folder)
    (newest / checkpoint.MARKER).write_text("step 2\n")
    assert checkpoint.load_latest(folder)[0] == newest
    seen = 0
    for _ in flips(newest / checkpoint.STATE, 150):
        path, state = checkpoint.load_latest(folder)
        assert same(state, a_state(2 if path == newest else 1)), "bits of padding and dates make no difference"
        seen += path == older
    assert seen > 40


def test_what_came_after_a_damaged_checkpoint_is_never_kept_instead_of_a_good_one(folder):
    (_, newest) = checkpoint.complete(folder)[-1]
    (newest / checkpoint.STATE).write_bytes(b"")
    os.rename(newest, folder / "step_000000009")
    checkpoint.save(folder, 2, a_state(2), keep=1)
    assert [step for step, _ in checkpoint.complete(folder)] == [2]
    for step in (3, 4, 5):
        checkpoint.save(folder, step, a_state(step), keep=2)
    assert [step for step, _ in checkpoint.complete(folder)] == [4, 5]
    with pytest.raises(ValueError, match="checkpoints_kept"):
        LogConfig(checkpoints_kept=1)


@pytest.fixture
def encoder() -> BiGRU:
    torch.manual_seed(0)
    return BiGRU(BiGRUConfig(encoder="1x8"), ClipShape(25, 2))


def write_classifier(folder: Path, encoder: BiGRU, **changes: float) -> Path:
    layer = torch.nn.Linear(encoder.representation_dim, 3)
    with torch.no_grad():
        layer.weight[0, 0] = changes.pop("weight", 0.5)
        layer.bias[2] = changes.pop("bias", 0.5)
    about = {"class_names": ("a", "b", "c"), "dataset": "d", "protocol": "xsub", "data": "e", "top1": 50.0, **changes}
    folder.mkdir(exist_ok=True)
    save_classifier(folder, layer, weights=weights_digest(encoder), settings=EvalConfig(), seed=0, **about)
    return folder / "classifier.pt"


def test_a_flipped_bit_in_a_classifier_or_a_released_file_is_seen_or_makes_no_difference(encoder, tmp_path):
    path = write_classifier(tmp_path, encoder)
    released = tmp_path / "cmd.pth.tar"
    model = theirs(streams=("",))
    torch.save({"epoch": 451, "state_dict": model.state_dict()}, released)
    readers: dict[Path, Callable[[], dict]] = {
        path: lambda: vars(Classifier.read(tmp_path, encoder)),
        released: lambda: dict(encoder_of(read_released(released), "joint").query),
    }
    for file, read in readers.items():
        truth, seen = {key: value.clone() if hasattr(value, "clone") else value for key, value in read().items()}, 0
        for _ in flips(file):
            try:
                assert same(read(), truth)
            except (ValueError, CheckpointError) as error:
                seen += str(file) in str(error)
        assert seen > 30


# --- Numbers that nothing of ours writes


@pytest.mark.parametrize(
    "name, change, says",
    [
        ("query.w", lambda x: x.fill_(torch.nan), r"model\.query\.w is not finite"),
        ("query.norm.running_var", lambda x: x[3:].fill_(-1), r"model\..*running_var is a variance, and negative"),
        ("query.norm.running_var", lambda x: x[3:].fill_(torch.inf), r"model\.query\.norm\.running_var is not finite"),
        ("exp_avg_sq", lambda x: x[0].fill_(-1e-9), r"optimizer\.state\.0\.exp_avg_sq is a variance, and negative"),
    ],
)
def test_a_checkpoint_that_no_run_could_have_written_is_passed_over(name, change, says, folder, told):
    state = a_state(3)
    change({**state["model"], **state["optimizer"]["state"][0]}[name])
    saved = checkpoint.save(folder, 3, state, keep=2)
    path, _ = checkpoint.load_latest(folder)
    assert path.name == "step_000000002"
    assert str(saved / checkpoint.STATE) in told.text
    shutil.rmtree(path)
    with pytest.raises(CheckpointError, match=f"state\\.pt is damaged: {says}") as caught:
        checkpoint.load_latest(folder)
    assert "train.run --restart" in str(caught.value)


def test_a_classifier_with_nan_is_refused(encoder, tmp_path):
    for changes in ({"weight": torch.nan}, {"bias": torch.inf}, {"top1": torch.nan}, {"top1": 101.0}):
        path = write_classifier(tmp_path, encoder, **changes)
        with pytest.raises(ValueError, match=f"{next(iter(changes))}.*train.evaluate linear --run") as caught:
            Classifier.read(tmp_path, encoder)
        assert str(path) in str(caught.value)


def test_a_released_checkpoint_with_a_negative_variance_is_refused(tmp_path):
    state = theirs(2).state_dict()
    state[Q + "input_norm.running_var"][3] = -1
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"negative variances: encoder_q\.input_norm\.running_var"):
        encoder_of(read_released(tmp_path / "x.pt"), "joint")


@pytest.mark.parametrize("name", ["train", "test", "crops"])
def test_kept_features_with_nan_are_computed_anew(name, source, tmp_path, told):  # noqa: F811
    """Even where the checksum is theirs."""
    cache = cache_of(source, tmp_path)
    cache.features(1)
    path, about = cache.entry / f"{name}.npy", cache.entry / "features.json"
    kept = np.load(path)
    kept[..., -1, 2] = np.nan
    np.save(path, kept)
    record = json.loads(about.read_text())
    record["arrays"][name][2] = zlib.crc32(path.read_bytes())
    about.write_text(json.dumps(record))
    found, truth = cache_of(source, tmp_path).features(1), computed_by(source, 1)
    assert torch.equal(found.train_crops, truth.train_crops) and torch.equal(found.train, truth.train)
    assert torch.equal(found.test, truth.test)
    assert f"{path} holds features that are not finite" in told.text


def test_features_that_are_not_finite_are_an_error_and_not_kept(source, tmp_path):  # noqa: F811
    with torch.no_grad():
        source.encoder.norm.running_var.fill_(-1.0)
    cache = cache_of(source, tmp_path)
    with pytest.raises(ValueError, match="features of these clips are not finite"):
        cache.features(0)
    assert not list(cache.entry.iterdir())


# --- One reader, which runs nothing, waits for nothing and believes nothing


@pytest.mark.slow
def test_tensors_are_read_and_written_in_one_place():
    for floor in ("fastmc", "train", "kernels"):
        for path in (ROOT / floor).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
            if path.name != "tensor_files.py":
                assert not calls & {"torch.load", "torch.save"}, path


@pytest.mark.parametrize("bad", ["foreign", "text", "empty", "pickle"])
def test_no_error_of_any_tensor_file_advises_to_read_it_unsafely(bad, folder, encoder, tmp_path, told):
    path = write_classifier(tmp_path, encoder)
    states = [each / checkpoint.STATE for _, each in checkpoint.complete(folder)]
    for file in (path, *states):
        if bad == "foreign":
            torch.save({"model": Foreign()}, file)
        else:
            file.write_bytes({"text": b"# Notes\n", "empty": b"", "pickle": b"\x80\x02cos\nsystem\n."}[bad])
    for state in states:
        (state.parent / checkpoint.MARKER).write_text("step 1\n")
    with pytest.raises(ValueError, match=r"classifier\.pt.*train\.evaluate linear --run") as one:
        Classifier.read(tmp_path, encoder)
    with pytest.raises(CheckpointError, match=r"state\.pt") as other:
        checkpoint.load_latest(folder)
    for says in (str(one.value), str(other.value), told.text):
        assert "weights_only" not in says and "likely succeed" not in says
        assert bad != "foreign" or "Foreign, and reading that could run any program" in says or says == told.text


def test_a_released_checkpoint_says_how_many_layers_it_has_by_those_that_are_there(tmp_path):
    state = theirs(2).state_dict()
    state[Q + "encoder.gru.weight_ih_l99999"] = torch.zeros(2)
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no BiGRU of 3x8.*unexpected: encoder_q\.encoder\.gru\.weight_ih_l9+"):
        encoder_of(read_released(tmp_path / "x.pt"), "joint")
    for n in range(2, 2000):
        state[Q + f"encoder.gru.weight_ih_l{n}"] = torch.zeros(2)
    torch.save({"epoch": 1, "state_dict": state}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="encoder_q has 2001 layers, more than 64"):
        encoder_of(read_released(tmp_path / "x.pt"), "joint")


def test_a_tensor_that_claims_more_numbers_than_its_file_has_is_refused(folder, tmp_path):
    """Its first sum, or comparison, would take 4 TB."""
    state = {"state_dict": {"encoder_q.x": torch.zeros(1).expand(1_000_000, 1_000_000)}}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt is damaged: state_dict\.encoder_q\.x claims \(1000000, 10+\)"):
        read_released(tmp_path / "x.pt")
    checkpoint.save(folder, 3, state, keep=2)
    assert checkpoint.load_latest(folder)[0].name == "step_000000002"


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_at_once(kind, folder, encoder, tmp_path, told):
    def put(path: Path) -> Path:
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
        return path

    (_, older), (_, newest) = checkpoint.complete(folder)
    put(newest / checkpoint.STATE)
    assert checkpoint.load_latest(folder)[0] == older
    assert f"state.pt is a {'named pipe' if kind == 'pipe' else kind}, not a file" in told.text
    write_classifier(tmp_path, encoder)
    put(tmp_path / "classifier.pt")
    with pytest.raises(ValueError, match="classifier"):
        Classifier.read(tmp_path, encoder)
    with pytest.raises(CheckpointError, match="not a file"):
        read_released(put(tmp_path / "cmd.pth.tar"))
    with pytest.raises((ValueError, OSError), match=r"metrics\.csv is a .*, not a file"):
        read_metrics(put(tmp_path / "metrics.csv"))
    with pytest.raises(PrepareError, match=r"set\.npz is not a readable \.npz file: .* is a .*, not a file"):
        import_npz(put(tmp_path / "set.npz"), tmp_path / "out", train="split=train")
    with pytest.raises(PrepareError, match=r"set\.pkl is no annotation file .* is a .*, not a file"):
        import_pyskl(put(tmp_path / "set.pkl"), tmp_path / "out")
    with pytest.raises(ValueError, match=r"mine\.json is no skeleton: .* is a .*, not a file"):
        Skeleton.named(put(tmp_path / "mine.json"))
    with pytest.raises(PrepareError, match="not a file"):
        read_class_names(put(tmp_path / "names.txt"), 1)
    raw = put(tmp_path / "raw")
    for read in (read_missing_list, read_skeleton, load_plain, read_recording):
        with pytest.raises(OSError, match=r"raw is a .*, not a file"):
            read(raw)
    write_small_store(tmp_path / "small", clips=3)
    put(tmp_path / "small" / "frames.npy")
    with pytest.raises(StoreError, match=r"frames\.npy is a .*, not a file"):
        PackedStore.open(tmp_path / "small")
    with pytest.raises(StoreError, match="is not a packed store"):
        PackedStore.open(put(tmp_path / "store" / "meta.json").parent)
