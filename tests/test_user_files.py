"""Files as users have them (../shared/cases): what each becomes, or the one line that says why not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastmc.data.formats.skeleton_file import read_skeleton
from fastmc.data.store import PackedStore
from fastmc.reference import ntu as reference
from train.prepare import main

MAKE = Path(__file__).parents[2] / "shared" / "cases" / "make.py"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.skipif(not MAKE.exists(), reason=f"needs {MAKE}, which the repository does not ship"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, str(MAKE), str(folder)], check=True, capture_output=True)
    return folder


def prepare(out: Path, *arguments: object) -> PackedStore:
    assert main([*map(str, arguments), "--out", str(out)]) == 0
    return PackedStore.open(out)


@pytest.mark.parametrize("kind", ["float_labels.pkl", "numpy_labels.npy", "windows_pickle.pkl"])
def test_labels_of_arrays(cases, tmp_path, kind):
    folder, suffix = cases / f"npy_{kind[:-4]}", kind[-4:]
    pairs = [(f"--{part}", folder / f"{f}_data.npy", folder / f"{f}_label{suffix}") for part, f in
             (("train", "train"), ("test", "val"))]  # fmt: skip
    store = prepare(tmp_path / "out", "npy", *pairs[0], *pairs[1])
    assert store.names.tolist() == [f"S001C001P00{p}R001A00{a}" for p in (1, 3) for a in (1, 2, 3, 4)]
    assert store.label.tolist() == [0, 1, 2, 3] * 2
    assert store.protocols == ("split", "xsub", "xview")
    assert store.split("xsub")[0].tolist() == [0, 1, 2, 3]


def of_npz(cases, tmp_path, name, *train) -> PackedStore:
    return prepare(tmp_path / "out", "npz", "--file", cases / "npz" / f"{name}.npz", "--skeleton", "ntu25", *train)


@pytest.mark.parametrize(
    ("name", "train", "labels", "said"),
    [
        ("no_labels", (), [-1] * 6, "6 clips without labels"),
        ("some_labels", ("--train", "split=train"), [0, -1, -1, 1, -1, -1], "4 of 6 clips have no label"),
        ("no_test_part", ("--train", "split=train"), [0, 1, 2] * 2, "leaves no test clip in"),
        ("no_class_zero", ("--train", "split=train"), [1, 2, 3] * 2, "no clip has label 0 (class 0); do the labels"),
        (
            "class_only_in_test",
            ("--train", "split=train"),
            [0, 1, 0, 0, 1, 2],
            "split: classes without a labelled training clip (class 2): 1 of 3 test clips count as errors",
        ),
    ],
)
def test_labels_of_npz(cases, tmp_path, capsys, name, train, labels, said):
    store = of_npz(cases, tmp_path, name, *train)
    assert store.label.tolist() == labels
    assert said in capsys.readouterr().out
    assert np.array_equal(store.num_frames, [30] * 6)


def test_a_pickle_is_no_npz(cases, tmp_path, capsys):
    assert main(["npz", "--file", str(cases / "npz" / "a_pickle.npz"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "a_pickle.npz is not a readable .npz file: it holds Python objects, which are never loaded" in said
    assert "unsafe" not in said and "allow_pickle" not in said


@pytest.mark.parametrize("reader", [read_skeleton, reference.read_skeleton])
def test_skeleton_texts_are_read_alike(cases, reader):
    clips = [reader(cases / "skeleton_text" / f"S001C001P001R001A00{n}.skeleton") for n in (1, 2, 3)]
    for clip in clips:
        (body,) = clip.bodies.values()
        assert body.joints.shape == (5, 25, 3)
        np.testing.assert_array_equal(body.joints, next(iter(clips[0].bodies.values())).joints)
    np.testing.assert_allclose(body.joints[0, 3], [0, 0.75, 3])  # the head of make.py's person


def test_files_of_txt2npy(cases, tmp_path):
    store = prepare(tmp_path / "out", "ntu60", "--raw", cases / "txt2npy", "--workers", "1")
    assert store.names.tolist() == ["S001C001P001R001A001", "S001C002P001R001A002"]
    assert store.num_frames.tolist() == [30, 30] and store.label.tolist() == [0, 1]


def test_clips_of_three_numbers_a_joint(cases, tmp_path, capsys):
    """Read where they name themselves no part of a split; where a split is wanted, refused with what they are."""
    folder = cases / "pku_three_numbers"
    (file,) = folder.iterdir()
    (body,) = read_skeleton(file).bodies.values()
    assert body.joints.shape == (20, 25, 3)
    assert main(["pku1", "--raw", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "clips that others have cut from PKU-MMD (F002V001C008L001.skeleton)" in capsys.readouterr().err


def test_text_of_nw_ucla(cases, tmp_path):
    store = prepare(tmp_path / "out", "nwucla", "--raw", cases / "nw_ucla_text", "--workers", "1")
    assert (store.names.tolist(), store.num_frames.tolist()) == (["a01_s01_e00_v01"], [5])
