"""A clip whose coordinates are out of range is left out with its reason, and never ends a preparation."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from scipy.io import savemat

from fastmc.data.clips import MAX_COORDINATE, TOO_FAR, FaultyClip, placed_clip
from fastmc.data.formats.ctrgcn import import_ctrgcn
from fastmc.data.formats.npz import import_npz
from fastmc.data.formats.ntu import prepare_ntu
from fastmc.data.formats.nw_ucla import prepare_nw_ucla
from fastmc.data.formats.pku import prepare_pku
from fastmc.data.formats.stgcn import import_stgcn
from fastmc.data.formats.utd_mhad import prepare_utd_mhad
from fastmc.data.normalise import normalise
from fastmc.data.packing import PrepareError
from fastmc.skeleton import KINECT20, NTU25
from tests.fuzz.formats import people
from train.prepare import main


def arrays_of(clips):
    """(N, 3, T, V, M) float32."""
    return np.stack([clip.transpose(3, 0, 2, 1) for clip in clips]).astype(np.float32)


def ntu(folder, clips):
    for n, clip in enumerate(clips):
        lines = [str(len(clip))]
        for frame in clip:
            lines += ["1", "72057594037931101 0 1 1 1 1 0 0.02 0.05 2", "25"]
            lines += [" ".join(map(repr, joint.tolist())) + " 0 0 0 0 0 0 0 0 2" for joint in frame[0]]
        (folder / f"S001C001P00{n + 1}R001A001.skeleton").write_text("\n".join(lines) + "\n")
    return prepare_ntu, (folder,), {"workers": 1}


def pku(folder, clips):
    frames = np.zeros((sum(map(len, clips)), 2, 25, 3))
    frames[:, :1] = np.concatenate(clips)
    text = "".join(" ".join(map(repr, frame.ravel().tolist())) + "\n" for frame in frames)
    (folder / "data").mkdir()
    (folder / "data" / "A01N01-L.txt").write_text(text)
    (folder / "label").mkdir()
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
        savemat(folder / f"a1_s1_t{n + 1}_skeleton.mat", {"d_skel": clip[:, 0].transpose(1, 2, 0)})
    return prepare_utd_mhad, (folder,), {"workers": 1}


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


def ctrgcn(folder, clips):
    file, one_hot = folder / "set.npz", np.eye(len(clips))
    x = arrays_of(clips)
    np.savez(file, x_train=x, y_train=one_hot, x_test=x, y_test=one_hot)
    return import_ctrgcn, (file,), {}


FORMATS = {f.__name__: f for f in (ntu, pku, npz, ctrgcn, npy, utd_mhad, nwucla)}
FAULTY = {
    "the largest float32": lambda clip: np.where(clip == clip.max(), 3.4e38, clip),
    "all of them": lambda clip: clip * 1e38,
    "10 km": lambda clip: clip * (1e4 / np.abs(clip).max()),
    "200 m once normalised": lambda clip: clip * (200 / np.abs(clip).max()),
}


@pytest.mark.parametrize("faulty", FAULTY)
@pytest.mark.parametrize("name", FORMATS)
def test_such_clips_are_left_out_and_the_others_are_packed(name, faulty, tmp_path):
    (tmp_path / "raw").mkdir()
    layout = KINECT20 if name in ("utd_mhad", "nwucla") else NTU25
    clips = [people(layout, 4, seed=n) for n in range(5)]
    clips[1], clips[2] = FAULTY[faulty](clips[1]), FAULTY[faulty](clips[2])
    prepare, arguments, options = FORMATS[name](tmp_path / "raw", clips)
    store = prepare(*arguments, tmp_path / "out", **options)
    parts = 2 if name in ("ctrgcn", "npy") else 1
    assert len(store) == 3 * parts
    assert np.abs(store.frames).max() <= MAX_COORDINATE
    skipped = store.skipped()
    assert [entry["reason"] for entry in skipped] == [TOO_FAR] * 2 * parts
    places = ["clip 1: ", "clip 2: "] if name == "npz" else [str(tmp_path)] * len(skipped)
    assert all(place in entry["detail"] for place, entry in zip(places, skipped, strict=True))
    assert all("a coordinate of " in entry["detail"] for entry in skipped)
    with pytest.raises(PrepareError, match=r"a coordinate of .*without --strict"):
        prepare(*arguments, tmp_path / "strict", strict=True, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_the_bound_can_be_chosen(name, tmp_path):
    (tmp_path / "raw").mkdir()
    layout = KINECT20 if name in ("utd_mhad", "nwucla") else NTU25
    clips = [people(layout, 4, seed=n) * 1000 for n in range(3)]
    prepare, arguments, options = FORMATS[name](tmp_path / "raw", clips)
    with pytest.raises(PrepareError, match=r"coordinates out of range.*expected at most 100 \(--max-coordinate\)"):
        prepare(*arguments, tmp_path / "out", **options)
    assert len(prepare(*arguments, tmp_path / "out", max_coordinate=1e4, **options)) >= 3
    with pytest.raises(PrepareError, match="max_coordinate must be"):
        prepare(*arguments, tmp_path / "none", max_coordinate=float("nan"), **options)


def test_before_normalisation_the_place_does_not_count(tmp_path):
    clip = people(NTU25, 4).astype(np.float32)
    assert np.abs(placed_clip(clip + np.float32(5000), NTU25)).max() < 2
    with pytest.raises(FaultyClip, match=r"a coordinate of 2e\+04 m in frame 0, expected at most 10000"):
        placed_clip(clip + np.float32(20_000), NTU25)
    with pytest.raises(FaultyClip, match=r"a coordinate of 5e\+03 m in frame 0, expected at most 100"):
        placed_clip(np.full((1, 1, 25, 3), np.float32(5000)), None)


def test_an_overflow_of_the_rotation_is_an_error():
    clip = people(NTU25, 4).astype(np.float32)
    corners = np.stack(np.meshgrid(*[[-3.4e38, 3.4e38]] * 3), axis=-1).reshape(8, 3)
    clip[2, 0, 12:20] = corners
    with pytest.raises(ValueError, match="float32 cannot hold them"):
        normalise(clip, NTU25)


def test_command_line(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    ntu(tmp_path / "raw", [people(NTU25, 4), people(NTU25, 4) * 1e5])
    command = ["ntu60", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "1 × coordinates out of range" in out and "S001C001P002R001A001.skeleton: a coordinate of" in out
    assert main([*command, "--overwrite", "--strict"]) == 1
    assert main([*command, "--overwrite", "--max-coordinate", "1e6", "--strict"]) == 0
