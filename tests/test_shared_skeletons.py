"""Files as real users have them, of ../shared/cases: skeletons, units and layouts that are said for what they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bodies import performed
from test_embedding import command, make_run, write_clips

from fastmc.data.normalise import normalise
from fastmc.data.packing import NORMALISATION
from fastmc.data.store import PackedStore
from fastmc.skeleton import NTU25
from train.prepare import main

MAKE = Path(__file__).parents[2] / "shared" / "cases" / "make.py"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.program,
    pytest.mark.skipif(not MAKE.exists(), reason=f"needs {MAKE}, which the repository does not ship"),
]


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    subprocess.run([sys.executable, MAKE, folder], check=True, capture_output=True, timeout=300)
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("npy_bones", "joint 21 (spine shoulder), on which all others hang, is zero everywhere: this looks like bones"),
        ("npy_motion", "this looks like motion (next frame minus this one) in place of joints"),
    ],
)
def test_bones_and_motion_in_place_of_joints(name, message, cases, tmp_path, told, capsys):
    parts = ((f"--{side}", *(str(cases / name / f"{part}_{kind}") for kind in ("data.npy", "label.pkl"))) for side, part
             in (("train", "train"), ("test", "val")))  # fmt: skip
    arguments = ["npy", *(word for part in parts for word in part), "--no-normalise"]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    assert message in told.text
    assert main([*arguments, "--out", str(tmp_path / "b"), "--strict"]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "b").exists()


def npz(cases, name, out, *extra):
    file = str(cases / "npz" / f"{name}.npz")
    return main(["npz", "--file", file, "--out", str(out), "--train", "split=train", *extra])


@pytest.mark.parametrize(
    ("name", "layout", "message", "remedy"),
    [
        ("millimetres", "ntu25", "this looks like millimetres; --scale 0.001", ("--scale", "0.001")),
        ("pixels", "ntu25", "this looks like pixels, not like metres; --image", ("--scale", "height")),
        (
            "coco17_xy_score",
            "coco17",
            "this looks like (x, y, score) of an image, not like metres; --image",
            ("--image",),
        ),
    ],
)
def test_other_units(name, layout, message, remedy, cases, tmp_path, told, capsys):
    assert npz(cases, name, tmp_path / "a", "--skeleton", layout, "--max-coordinate", "1e4") == 0
    assert message in told.text
    assert npz(cases, name, tmp_path / "b", "--skeleton", layout, "--max-coordinate", "1e4", "--strict") == 1
    assert message in capsys.readouterr().err
    told.clear()
    assert npz(cases, name, tmp_path / "c", "--skeleton", layout, *remedy) == 0
    store = PackedStore.open(tmp_path / "c")
    assert len(store) == 6 and np.abs(store.frames).max() < 4
    assert "not like metres" not in told.text and "millimetres" not in told.text


@pytest.fixture
def run(tmp_path):
    clips = [normalise(performed(1 + n)[:, None].astype(np.float32), NTU25) for n in range(8)]
    clips.append(np.repeat(clips[0], 2, axis=1))
    return make_run(tmp_path / "run", write_clips(tmp_path / "ntu", clips, normalisation=NORMALISATION))


def test_body_25_in_place_of_ntu_s_joints(run, cases, tmp_path, capsys):
    file = cases / "arrays" / "body25_pixels.npy"
    assert command(run, tmp_path / "a.npz", file, extra=("--max-coordinate", "1e4")) == 0
    err = capsys.readouterr().err
    assert "this looks like pixels, not like metres; --image" in err and "--skeleton body25" in err
    for extra in ((), ("--strict",)):
        assert command(run, tmp_path / "b.npz", file, extra=extra) == 1
        err = capsys.readouterr().err
        assert "m once normalised in frame 0, expected at most 100 (--max-coordinate)" in err
    assert command(run, tmp_path / "c.npz", file, extra=("--image",)) == 0
    err = capsys.readouterr().err
    assert "joints do not seem to be those of 'ntu25'" in err


def test_axes_that_may_be_others(run, cases, tmp_path, capsys):
    assert command(run, tmp_path / "a.npz", cases / "arrays" / "bodies_first.npy") == 1
    assert "is it (M, T, V, 3)? Then give clip.transpose(1, 0, 2, 3)" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "layout"), [("ntu60_3danno", "ntu25"), ("ntu60_hrnet", "coco17")])
def test_annotations_of_pyskl(name, layout, cases, tmp_path, capsys):
    file = str(cases / "pyskl" / f"{name}.pkl")
    assert main(["pyskl", "--file", file, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "9 clips" in out
    assert "xsub: 6 training clips, 3 test clips" in out and "xview: 5 training clips, 4 test clips" in out
    store = PackedStore.open(tmp_path / "out")
    assert store.skeleton.name == layout and set(store.num_frames.tolist()) == {30}


def test_kinetics(cases, tmp_path, capsys):
    assert main(["kinetics", "--raw", str(cases / "kinetics"), "--out", str(tmp_path / "out")]) == 0
    assert "1 clips of 1 classes" in capsys.readouterr().out
    store = PackedStore.open(tmp_path / "out")
    assert (store.num_frames.tolist(), store.class_names) == ([20], ("abseiling",))
