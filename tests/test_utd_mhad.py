"""UTD-MHAD: from MATLAB files in its format, which these tests write, to a store."""

from __future__ import annotations

import io

import numpy as np
import pytest
from conftest import assert_left_out
from scipy.io import savemat

from fastmc.data import packing
from fastmc.data.formats.utd_mhad import HOW_TO_GET_UTD, UTD_CLASS_NAMES, prepare_utd_mhad
from fastmc.data.normalise import normalise
from fastmc.skeleton import KINECT20
from train.command.datasets import DatasetError, open_dataset
from train.prepare import main

ORDER = (  # of the joints in a file
    "head", "shoulder centre", "spine", "hip centre",
    "left shoulder", "left elbow", "left wrist", "left hand",
    "right shoulder", "right elbow", "right wrist", "right hand",
    "left hip", "left knee", "left ankle", "left foot",
    "right hip", "right knee", "right ankle", "right foot",
)  # fmt: skip


def body(seed=0, frames=4):
    """{joint: (T, 3)}: a body upright in front of the camera, whose joints shake."""
    rng = np.random.default_rng(seed)
    rest = {name: rng.normal(0, 0.3, 3) + (0, 0, 3) for name in ORDER}
    rest["spine"] = rest["hip centre"] + (0, 0.3, 0)
    rest["left shoulder"] = rest["right shoulder"] + (0.4, 0, 0)
    return {name: place + rng.normal(0, 0.01, (frames, 3)) for name, place in rest.items()}


def skeleton(joints):
    """(20, 3, T) as the set's files hold it."""
    return np.stack([joints[name].T for name in ORDER])


def clip(joints):
    """(T, 1, 20, 3) in the order of KINECT20."""
    return np.stack([joints[name] for name in KINECT20.joint_names], axis=1)[:, None].astype(np.float32)


def mat(values, key="d_skel", compressed=True):
    content = io.BytesIO()
    savemat(content, {key: values}, do_compression=compressed)
    return content.getvalue()


def write(folder, name, values, **options):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.mat").write_bytes(mat(values, **options))


def clip_name(action=1, subject=1, repetition=1):
    return f"a{action}_s{subject}_t{repetition}_skeleton"


NAMES = [clip_name(action=a, subject=s) for a in (1, 2, 10, 27) for s in (1, 2, 7, 8)]


@pytest.fixture
def raw(tmp_path):
    for seed, name in enumerate(NAMES):
        write(tmp_path / "raw", name, skeleton(body(seed, 2 + seed)), compressed=seed % 2 == 0)
    return tmp_path / "raw"


def test_store_holds_the_clips_in_the_order_of_kinect20(raw, tmp_path):
    store = prepare_utd_mhad(raw, tmp_path / "out", workers=1)
    assert (store.name, store.skeleton, store.fps, store.max_bodies) == ("utd-mhad", KINECT20, 30.0, 1)
    assert store.names.tolist() == sorted(NAMES)
    for n, name in enumerate(store.names):
        seed = NAMES.index(name)
        np.testing.assert_array_equal(store.clip(n), normalise(clip(body(seed, 2 + seed)), KINECT20))
        action, subject, repetition = (int(part[1:]) for part in name.split("_")[:3])
        assert (store.label[n], store.subject[n], store.replication[n]) == (action - 1, subject, repetition)
    assert store.skipped() == []


def test_odd_subjects_train(raw, tmp_path):
    store = prepare_utd_mhad(raw, tmp_path / "out", workers=1)
    train, test = store.split("xsub")
    assert set(store.subject[train]) == {1, 7}
    assert set(store.subject[test]) == {2, 8}
    assert store.meta["protocols"]["xsub"]["train"] == [1, 3, 5, 7]


def test_published_names():
    assert len(set(UTD_CLASS_NAMES)) == 27
    numbers = {1: "right arm swipe to the left", 7: "basketball shoot", 22: "jogging in place", 24: "sit to stand"}
    for number, name in numbers.items():
        assert UTD_CLASS_NAMES[number - 1] == name


def test_coordinates_may_be_kept(raw, tmp_path):
    store = prepare_utd_mhad(raw, tmp_path / "out", normalise=False, workers=1)
    n = store.names.tolist().index(NAMES[5])
    np.testing.assert_array_equal(store.clip(n), clip(body(5, 7)))
    assert store.meta["normalisation"] == "none"


def test_a_single_frame_has_lost_its_last_axis(raw, tmp_path):
    name = clip_name(action=3)
    write(raw, name, skeleton(body(50, 1))[:, :, 0])
    store = prepare_utd_mhad(raw, tmp_path / "out", strict=True, normalise=False, workers=1)
    np.testing.assert_array_equal(store.clip(store.names.tolist().index(name)), clip(body(50, 1)))


def test_other_recordings_of_the_set_are_passed_over(raw, tmp_path):
    write(raw, "a1_s1_t1_inertial", np.ones((50, 6)), key="d_iner")
    write(raw, "a1_s1_t1_depth", np.ones((2, 2, 5)), key="d_depth")
    assert len(prepare_utd_mhad(raw, tmp_path / "out", strict=True, workers=1)) == len(NAMES)


def test_same_store_for_any_number_of_workers(raw, tmp_path):
    (raw / f"{clip_name(action=5)}.mat").write_bytes(b"")
    for workers in (1, 2):
        prepare_utd_mhad(raw, tmp_path / str(workers), workers=workers)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / w).iterdir()} for w in "12")
    assert one == two


def nan():
    values = skeleton(body())
    values[4, 1, 3] = np.nan
    return values


GOOD = clip_name(action=3)
V73 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n".ljust(64, b"\0")
FAULTY = {
    "foreign name": ("a1_s1_skeleton", mat(skeleton(body())), packing.FOREIGN_NAME, "such as a1_s1_t1_skeleton.mat"),
    "truncated": (
        GOOD,
        mat(skeleton(body()), compressed=False)[:-500],
        packing.MALFORMED,
        "t1_skeleton.mat: is no rea",
    ),
    "truncated and compressed": (GOOD, mat(skeleton(body()))[:-500], packing.MALFORMED, "is no readable .mat file"),
    "cut in its header": (GOOD, mat(skeleton(body()))[:90], packing.MALFORMED, "header is not that of MATLAB 5"),
    "empty file": (GOOD, b"", packing.MALFORMED, "is no readable .mat file"),
    "text": (GOOD, b"1 2 3\n" * 50, packing.MALFORMED, "is no readable .mat file"),
    "version 7.3": (GOOD, V73, packing.MALFORMED, "is no readable .mat file"),
    "no variable": (GOOD, mat(skeleton(body()), key="skel"), packing.MALFORMED, "has no variable 'd_skel'"),
    "no frame": (GOOD, mat(np.zeros((20, 3, 0))), packing.MALFORMED, r"holds joints \(0, 20, 3\)"),
    "25 joints": (GOOD, mat(np.ones((25, 3, 4))), packing.MALFORMED, r"'d_skel' is \(25, 3, 4\), expected"),
    "other axes": (GOOD, mat(np.ones((4, 20, 3))), packing.MALFORMED, r"'d_skel' is \(4, 20, 3\), expected"),
    "text variable": (GOOD, mat("abc"), packing.MALFORMED, "'d_skel' is no array of real numbers"),
    "cells": (GOOD, mat(np.array([[1, "a"]], object)), packing.MALFORMED, "'d_skel' is no array of real numbers"),
    "complex": (GOOD, mat(np.ones((20, 3, 4)) * 1j), packing.MALFORMED, "'d_skel' is no array of real numbers"),
    "NaN": (GOOD, mat(nan()), packing.MALFORMED, "NaN or infinite coordinates, first in frame 3"),
    "no frame of reference": (GOOD, mat(np.ones((20, 3, 4))), packing.MALFORMED, "no frame of body 1 gives"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_file_is_left_out_with_its_reason(raw, fault):
    name, content, reason, detail = FAULTY[fault]
    (raw / f"{name}.mat").write_bytes(content)
    assert_left_out(prepare_utd_mhad, raw, name, reason, detail, clips=len(NAMES))


def test_what_is_no_fault_passes_a_strict_preparation(raw, tmp_path):
    write(raw, GOOD, np.zeros((20, 3, 4)))
    for name in (clip_name(action=28), clip_name(subject=9), clip_name(action=0)):
        write(raw, name, skeleton(body()))
    store = prepare_utd_mhad(raw, tmp_path / "out", strict=True, workers=1)
    assert store.meta["counts"]["skipped"] == {packing.OTHER_SET: 3, packing.NO_BODY: 1}


def test_command_line(raw, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["utd-mhad", "--raw", str(raw), "--out", out, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "xsub: 8 training clips, 8 test clips" in printed
    assert "the complete set has 861 clips" in printed
    assert main(["utd-mhad", "--raw", str(tmp_path / "nowhere")]) == 1
    assert HOW_TO_GET_UTD in capsys.readouterr().err


def test_missing_data_set_says_how_to_get_it(tmp_path):
    with pytest.raises(DatasetError, match=r"Skeleton\.zip(.|\n)*train\.prepare utd-mhad --raw FOLDER --out "):
        open_dataset("utd-mhad", tmp_path)
