"""A set of clips in the files of every format that is read, and the call that reads it."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from fastmc.data.formats.ctrgcn import import_ctrgcn
from fastmc.data.formats.npz import import_npz
from fastmc.data.formats.ntu import prepare_ntu
from fastmc.data.formats.nw_ucla import prepare_nw_ucla
from fastmc.data.formats.pku import prepare_pku
from fastmc.data.formats.pyskl import import_pyskl
from fastmc.data.formats.stgcn import import_stgcn
from fastmc.data.formats.utd_mhad import prepare_utd_mhad
from fastmc.data.packing import PrepareError
from fastmc.data.store import PackedStore
from fastmc.skeleton import KINECT20, NTU25


def ntu(folder, clips):
    for n, clip in enumerate(clips):
        lines = [str(len(clip))]
        for frame in clip:
            lines.append(str(len(frame)))
            for body, joints in enumerate(frame):
                lines += [f"7205759403793110{body} 0 1 1 1 1 0 0.02 0.05 2", "25"]
                lines += [" ".join(map(repr, joint.tolist())) + " 0 0 0 0 0 0 0 0 2" for joint in joints]
        (folder / f"S001C001P00{n + 1}R001A001.skeleton").write_text("\n".join(lines) + "\n")
    return prepare_ntu, (folder,), {"workers": 1}


def pku(folder, clips):
    frames = np.zeros((sum(map(len, clips)), 2, 25, 3))
    frames[:, : clips[0].shape[1]] = np.concatenate(clips)
    text = "".join(" ".join(map(repr, frame.ravel().tolist())) + "\n" for frame in frames)
    for name in ("data", "label"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "data" / "A01N01-L.txt").write_text(text)
    labels = "".join(f"8,{1 + n * len(clip)},{(n + 1) * len(clip)},2\n" for n, clip in enumerate(clips))
    (folder / "label" / "A01N01-L.txt").write_text(labels)
    (folder / "cross_subject_v2.txt").write_text("Training:\nA01N01-L\nValidation:\nA01N02-R\n")
    return prepare_pku, (folder,), {"workers": 1}


def nwucla(folder, clips):
    for n, clip in enumerate(clips):
        (folder / f"a01_s01_e0{n}_v01.json").write_text(json.dumps({"skeletons": clip[:, 0].tolist()}))
    return prepare_nw_ucla, (folder,), {"workers": 1}


def utd_mhad(folder, clips):
    for n, clip in enumerate(clips):
        savemat(folder / f"a1_s{n + 1}_t1_skeleton.mat", {"d_skel": clip[:, 0].transpose(1, 2, 0)})
    return prepare_utd_mhad, (folder,), {"workers": 1}


def arrays_of(clips):
    """(N, 3, T, V, M) float32."""
    return np.stack([clip.transpose(3, 0, 2, 1) for clip in clips]).astype(np.float32)


def npz(folder, clips):
    lengths = [len(clip) for clip in clips]
    split = np.array(["train", "test"] * len(clips))[: len(clips)]
    file = folder / "set.npz"
    np.savez(file, x=arrays_of(clips), num_frames=lengths, label=np.arange(len(clips)), split=split)
    return import_npz, (file,), {"train": "split=train", "skeleton": "ntu25"}


def npy(folder, clips):
    pairs = []
    for part in ("train", "test"):
        data, label = folder / f"{part}.npy", folder / f"{part}.pkl"
        np.save(data, arrays_of(clips))
        label.write_bytes(pickle.dumps(([f"{part}{n}" for n in range(len(clips))], [0] * len(clips))))
        pairs.append((data, label))
    return import_stgcn, tuple(pairs), {}


def pyskl(folder, clips):
    names = [f"clip{n}" for n in range(len(clips))]
    annotations = [
        {"frame_dir": name, "label": n, "keypoint": clip.transpose(1, 0, 2, 3).astype(np.float32)}
        for n, (name, clip) in enumerate(zip(names, clips, strict=True))
    ]
    file = folder / "set.pkl"
    file.write_bytes(pickle.dumps({"split": {"train": names[::2], "val": names[1::2]}, "annotations": annotations}))
    return import_pyskl, (file,), {}


def ctrgcn(folder, clips):
    file, one_hot = folder / "set.npz", np.eye(len(clips))
    x = arrays_of(clips)
    np.savez(file, x_train=x, y_train=one_hot, x_test=x, y_test=one_hot)
    return import_ctrgcn, (file,), {}


FORMATS = {f.__name__: f for f in (ntu, pku, npz, ctrgcn, npy, pyskl, utd_mhad, nwucla)}
"""(folder, clips (T, M, V, 3), M = 1 but for ntu, pku and arrays) to (what reads them, its arguments, its options)."""
FILES = ("ntu", "pku", "utd_mhad", "nwucla")
"""Of many files, which workers read."""
ARRAYS = ("npz", "ctrgcn", "npy", "pyskl")


def layout_of(name):
    return KINECT20 if name in ("utd_mhad", "nwucla") else NTU25


def assert_all_left_out(
    prepare: Callable[..., PackedStore], raw: Path, faults: dict[str, tuple[str, str]], clips: int
) -> None:
    """Faulty clips, {name: (reason, pattern of the detail)}, are left out with their reasons; a strict preparation
    stops at the first of them and leaves nothing."""
    store = prepare(raw, raw.parent / "out", workers=1)
    assert len(store) == clips
    entries = {entry["name"]: entry for entry in store.skipped()}
    assert entries.keys() == faults.keys()
    for name, (reason, detail) in faults.items():
        assert entries[name]["reason"] == reason, name
        assert re.search(detail, entries[name]["detail"]), f"{name}: {entries[name]['detail']} is not {detail}"
    with pytest.raises(PrepareError) as stopped:
        prepare(raw, raw.parent / "strict", strict=True, workers=1)
    assert any(re.search(detail, str(stopped.value)) for _, detail in faults.values())
    assert sorted(path.name for path in raw.parent.iterdir()) == ["out", "raw"]
