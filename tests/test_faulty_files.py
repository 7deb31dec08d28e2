"""Every writer on a disk that fails: what was there is there, nothing half-written counts, nothing is left over, and
the error says where there is no room."""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_small_store
from faulty_files import faulty
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from test_tables import filled
from test_train import command, errors
from torch import nn

from fastmc import checkpoint
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore, StoreWriter
from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.evaluation import EvalConfig, FeatureCache, FeatureSource, Predictions
from fastmc.figures import draw_attack, style
from fastmc.figures import skeletons as plotting
from fastmc.figures.attack import AttackStates
from fastmc.files import WriteError, whole_file, write_json
from fastmc.methods.a2mc import A2MC
from fastmc.skeleton import NTU25
from fastmc.tensor_files import write_tensors
from train import prepare, run
from train.embed import write_arrays
from train.engine import board, record
from train.engine.record import Metrics, read_metrics
from train.runs import results
from train.runs.report import plot_curves
from train.runs.results import Outcome, save_classifier, write_outcome
from train.tables import __main__ as table_command

pytestmark = pytest.mark.slow

NAMES = [metric.name for metric in A2MC.metrics]
ROW = dict.fromkeys(record.columns(NAMES), 0.125)


def write_checkpoint(folder: Path, version: int) -> None:
    checkpoint.save(folder, version, {"model": {"x": torch.full((999,), float(version))}}, keep=2)


def write_checkpoint_again(folder: Path, version: int) -> None:
    """Of the same step, as a run does that went back behind a damaged one."""
    checkpoint.save(folder, 7, {"model": {"x": torch.full((999,), float(version))}}, keep=2)


def read_checkpoint(folder: Path) -> int:
    x = checkpoint.load_latest(folder)[1]["model"]["x"]
    assert (x == x[0]).all()
    return int(x[0])


def write_classifier(folder: Path, version: int) -> None:
    classifier = nn.Linear(16, 3)
    nn.init.constant_(classifier.weight, version)
    nn.init.zeros_(classifier.bias)
    about = {"class_names": ("a", "b", "c"), "dataset": "d", "protocol": "xsub", "data": "e", "weights": "f"}
    save_classifier(folder, classifier, **about, top1=50.0, settings=EvalConfig(), seed=version)


def write_metrics(folder: Path, version: int) -> None:
    metrics = Metrics(folder, NAMES, epochs_done=version - 1)
    try:
        metrics.write({**ROW, "epoch": version, "step": 3 * version})
    finally:
        metrics.close()


def read_metrics_of(folder: Path) -> int:
    rows = read_metrics(folder / "metrics.csv")
    assert rows == [{**ROW, "epoch": n + 1, "step": 3 * n + 3} for n in range(len(rows))]
    for path in (folder / "tensorboard").iterdir():
        events, size = list(RawEventFileLoader(str(path)).Load()), path.stat().st_size
        assert sum(len(event) + 16 for event in events) == size, "whole records: length, its CRC, content, its CRC"
    return len(rows)


def write_the_outcome(folder: Path, version: int) -> None:
    labels = np.arange(12) % 3
    found = Predictions(labels, (labels * version % 3)[:, None], ("a", "b", "c"))
    about = {"dataset": "d", "protocol": "xsub", "data": "e", "weights": "f", "settings": {"k": 1}}
    write_outcome(Outcome("knn-xsub", "knn", seed=version, predictions=found, **about), folder, 1.0)


def write_features(folder: Path, version: int) -> None:
    """More crops, with which the file is written anew."""
    features_of(folder).features(2 * version - 1)


def features_of(folder: Path) -> FeatureCache:
    root = folder.parent / "store"
    store = PackedStore.open(root) if root.exists() else write_small_store(root)
    torch.manual_seed(0)
    encoder = BiGRU(BiGRUConfig(encoder="1x8"), ClipShape(25, 2))
    ids = map(torch.from_numpy, store.split("xsub"))
    source = FeatureSource(encoder, ResidentStore(store), *ids, "joint", EvalConfig(), frames=8, seed=3)
    return FeatureCache(folder, source, store_checksum="abc", protocol="xsub")


def read_features(folder: Path) -> None:
    cache = features_of(folder)
    kept, truth = cache.features(1), features_of(folder.parent / "elsewhere").features(1)
    assert torch.equal(kept.train_crops, truth.train_crops) and torch.equal(kept.test, truth.test)


def write_store(folder: Path, version: int) -> None:
    if version == 1:
        write_small_store(folder / "s", clips=9)
        return
    old = PackedStore.open(folder / "s")
    with StoreWriter(
        folder / "s",
        name="s",
        skeleton=NTU25,
        fps=30.0,
        class_names=["a"],
        protocols={"xsub": {"field": "subject", "train": [1, 3]}},
        overwrite=True,
    ) as writer:
        for n in range(3):
            writer.add(old.clip(n), name=f"clip {n}", label=0, subject=n)


def read_store(folder: Path) -> int:
    store = PackedStore.open(folder / "s")
    store.verify()
    return 1 if len(store) == 9 else 2


def write_figure(folder: Path, version: int) -> None:
    style.save(small_figure(version), folder, "figure")


def small_figure(version: object = 1) -> Figure:
    """Stands for all pictures: what they show makes no difference to how they are written, and takes its time."""
    figure = Figure(figsize=(1, 1))
    FigureCanvasAgg(figure)
    figure.text(0.5, 0.5, str(version)[-99:])
    return figure


def write_animation(folder: Path, version: int) -> None:
    states = AttackStates(np.zeros((4, version, 1, 25, 3)), np.ones((4, 2)) / 2, 0.5, 0.5, ("",) * 4, 0)
    draw_attack.animate_attack(states, NTU25, folder / "a.gif", seconds=0.1)


def write_curves(folder: Path, version: int) -> None:
    metrics = folder.parent / "metrics.csv"
    metrics.write_bytes(
        record._lines(list(ROW), [{**ROW, "epoch": n, "step": n} for n in range(3 * version)], head=True)
    )
    plot_curves(metrics, folder / "curves.png", A2MC.metrics, 128)


def write_clip(folder: Path, version: int) -> None:
    root = folder.parent / "store"
    store = PackedStore.open(root) if root.exists() else write_small_store(root)
    prepare._plot(store, version, folder / "clip.png")


def write_the_table(folder: Path, version: int) -> None:
    table_command._write(table_command.Settings(table=(6,), out=folder), replace(filled(), fine_print=("n" * version,)))


def write_text(folder: Path, version: int) -> None:
    write_json(folder / "report.json", {"top1": [version] * 50})


def write_export(folder: Path, version: int) -> None:
    """As train.convert does: without a zip archive. The tensors' addresses are in it."""
    with whole_file(folder / "released.pt") as unfinished:
        write_tensors(unfinished, {"state_dict": {"x": torch.full((999,), float(version))}}, zipped=False)


def write_embedding(folder: Path, version: int) -> None:
    write_arrays(folder / "features.npz", {"features": np.full((9, 16), version), "names": np.array(["a"] * 9)})


@dataclass(frozen=True)
class Writer:
    """Writes version 1, or 2 over it, to a folder; ``read`` fails where what is there is neither, whole."""

    write: Callable[[Path, int], None]
    read: Callable[[Path], object] = lambda folder: None


WRITERS = {
    "checkpoint": Writer(write_checkpoint, read_checkpoint),
    "checkpoint of the same step": Writer(write_checkpoint_again, read_checkpoint),
    "classifier": Writer(write_classifier),
    "metrics": Writer(write_metrics, read_metrics_of),
    "evaluation": Writer(write_the_outcome),
    "features": Writer(write_features, read_features),
    "store": Writer(write_store, read_store),
    "figure": Writer(write_figure),
    "animation": Writer(write_animation),
    "curves": Writer(write_curves),
    "clip": Writer(write_clip),
    "table": Writer(write_the_table),
    "report": Writer(write_text),
    "export": Writer(write_export),
    "embedding": Writer(write_embedding),
}
GROWS = ("metrics",)
"""By whole pieces: its reader says whether they are."""
SLOW = ("curves",)
"""To draw; of whose faults some are tried."""


@pytest.fixture
def quick(monkeypatch):
    """Small pictures; and events of one time, which is in their name and bytes."""
    monkeypatch.setattr(board.time, "time", lambda: 1.7e9)
    monkeypatch.setattr(results, "draw_confusion", lambda predictions, title: small_figure(predictions.ranked))
    monkeypatch.setattr(table_command, "draw", lambda filled: small_figure(filled.fine_print))
    monkeypatch.setattr(plotting, "draw_clip", lambda clip, *rest, **how: small_figure(len(clip)))
    figure = small_figure()
    monkeypatch.setattr(
        draw_attack, "_stage", lambda *rest: (figure, lambda frame: figure.texts[0].set_text(str(frame)))
    )


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(name: str, a: bytes | None, b: bytes | None) -> bool:
    if name == "released.pt" and a and b:
        x, y = (torch.load(io.BytesIO(each), weights_only=True)["state_dict"]["x"] for each in (a, b))
        return torch.equal(x, y)
    return a == b


def restore(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", WRITERS)
def test_what_was_there_survives_every_fault(name, tmp_path, quick):
    """A full disk after so many bytes; any one sync and rename that fails; and writes that take half of what they are
    given, which is no error."""
    writer, folder = WRITERS[name], tmp_path / "out"
    folder.mkdir()
    writer.write(folder, 1)
    old = content(folder)
    with faulty(folder) as disk:
        writer.write(folder, 2)
    new = content(folder)
    assert old != new and disk.written and disk.syncs, "it went through this disk"
    assert not disk.too_soon, "a power cut might leave the new name without its content"
    last = disk.written - 1
    plans: list[dict[str, int]] = [{"room": room} for room in sorted({0, 1, last // 3, 2 * last // 3, last})]
    plans += [{"good_syncs": n} for n in range(disk.syncs)] + [{"good_renames": n} for n in range(disk.renames)]
    for plan in plans[2::4] if name in SLOW else plans:
        restore(folder, old)
        with faulty(folder, **plan) as disk, pytest.raises((WriteError, prepare.PrepareError)) as caught:
            writer.write(folder, 2)
        assert disk.faults, plan
        says = str(caught.value)
        assert f"No space left on {folder}" in says if "room" in plan else os.strerror(errno.EIO) in says, (plan, says)
        assert str(folder) in says and "enforce fail" not in says
        found = content(folder)
        assert found.keys() <= old.keys() | new.keys(), (plan, "a temporary file stays")
        for file in () if name in GROWS else old.keys() | new.keys():
            whole = any(same(file, found.get(file), each.get(file)) for each in (old, new))
            assert whole, (plan, f"{file} is neither the old nor the new one")
        writer.read(folder)
    restore(folder, old)
    with faulty(folder, short=True) as disk:
        writer.write(folder, 2)
    assert disk.faults
    written = content(folder)
    assert written.keys() == new.keys() and all(same(file, written[file], new[file]) for file in new)


@pytest.mark.parametrize("share", [0.001, 0.6])
def test_a_full_disk_ends_a_run_with_one_line_and_the_same_command_goes_on(share, data_root, tmp_path, capsys):
    settings = ("--epochs", "2", "--milestones", "--probe-every", "0")
    with faulty(tmp_path / "whole") as disk:
        assert run.main(command(data_root, tmp_path / "whole", *settings)) == 0
    out = tmp_path / "run"
    errors(capsys)
    with faulty(out, room=int(share * disk.written)) as full:
        assert run.main(command(data_root, out, *settings)) == 1
    assert full.faults
    says = errors(capsys)
    saved = checkpoint.complete(out / "checkpoints")
    last = f"the last good checkpoint is {saved[-1][1]}" if saved else "there is no checkpoint yet"
    (line,) = (line for line in says.splitlines() if line.startswith("error:"))
    assert line.startswith(f"error: No space left on {out}")
    assert line.endswith(f"; {last}. Free some space, and the same command goes on")
    assert "Traceback" not in says and "enforce fail" not in says
    assert not [path for path in out.rglob("*") if ".unfinished" in path.name or path.suffix == ".tmp"]
    assert run.main(command(data_root, out, *settings)) == 0
    models = [checkpoint.load_latest(folder / "checkpoints")[1]["model"] for folder in (tmp_path / "whole", out)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert [row["epoch"] for row in read_metrics(out / "metrics.csv")] == [1, 2]
