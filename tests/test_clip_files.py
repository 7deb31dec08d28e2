"""NW-UCLA and UTD-MHAD, a file a clip of 20 joints: from files in their formats, written here, to a store."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest
from format_cases import assert_all_left_out
from scipy.io import savemat

from fastmc.data import packing
from fastmc.data.formats.nw_ucla import HOW_TO_GET_NWUCLA, NWUCLA_CLASSES, prepare_nw_ucla
from fastmc.data.formats.utd_mhad import HOW_TO_GET_UTD, UTD_CLASS_NAMES, prepare_utd_mhad
from fastmc.data.normalise import normalise
from fastmc.data.packing import PrepareError
from fastmc.skeleton import KINECT20
from tests.fuzz.formats import people
from train.prepare import main

ORDER = (  # of the joints in a file of UTD-MHAD
    "head", "shoulder centre", "spine", "hip centre",
    "left shoulder", "left elbow", "left wrist", "left hand",
    "right shoulder", "right elbow", "right wrist", "right hand",
    "left hip", "left knee", "left ankle", "left foot",
    "right hip", "right knee", "right ankle", "right foot",
)  # fmt: skip


def joints(seed=0, frames=4):
    """(T, 20, 3) in the order of KINECT20."""
    return people(KINECT20, frames, seed=seed)[:, 0]


def nw_ucla(skeletons):
    """The bytes of a file."""
    return json.dumps({"file_name": "any", "skeletons": skeletons, "label": 1}).encode()


def utd_mhad(values, key="d_skel", compressed=True):
    """The bytes of a file of joints (T, 20, 3), or of anything else."""
    if isinstance(values, np.ndarray) and values.ndim == 3 and values.shape[1:] == (20, 3):
        values = np.stack([values[:, KINECT20.joint_names.index(name)].T for name in ORDER])
    content = io.BytesIO()
    savemat(content, {key: values}, do_compression=compressed)
    return content.getvalue()


def write(folder, names, content):
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        (folder / name).write_bytes(content(joints(seed, 2 + seed)))
    return folder


NW = [f"a{a:02}_s{s:02}_e00_v{v:02}.json" for a in (1, 8, 12) for s in (1, 10) for v in (1, 2, 3)]
UTD = [f"a{a}_s{s}_t1_skeleton.mat" for a in (1, 27) for s in (1, 2, 7, 8)]


@pytest.fixture
def nw_files(tmp_path):
    return write(tmp_path / "raw", NW, lambda values: nw_ucla(values.tolist()))


@pytest.fixture
def utd_files(tmp_path):
    return write(tmp_path / "raw", UTD, lambda values: utd_mhad(values, compressed=len(values) % 2 == 0))


def test_store_of_nw_ucla(nw_files, tmp_path):
    store = prepare_nw_ucla(nw_files, tmp_path / "out", workers=1)
    assert (store.name, store.skeleton, store.fps, store.max_bodies) == ("nwucla", KINECT20, 30.0, 1)
    assert store.names.tolist() == sorted(name.removesuffix(".json") for name in NW)
    for n, name in enumerate(store.names):
        seed = NW.index(f"{name}.json")
        values = joints(seed, 2 + seed).astype(np.float32)
        np.testing.assert_array_equal(store.clip(n), normalise(values[:, None], KINECT20))
        action, subject, repetition, view = (int(part[1:]) for part in name.split("_"))
        assert (store.subject[n], store.camera[n], store.replication[n]) == (subject, view, repetition)
        assert store.class_names[store.label[n]] == NWUCLA_CLASSES[action]
    assert list(NWUCLA_CLASSES) == [1, 2, 3, 4, 5, 6, 8, 9, 11, 12]
    train, test = store.split("xview")
    assert store.protocols == ("xview",)
    assert (set(store.camera[train]), set(store.camera[test])) == ({1, 2}, {3})
    assert store.skipped() == []


def test_store_of_utd_mhad_in_the_order_of_kinect20(utd_files, tmp_path):
    single = joints(50, 1)  # a single frame has lost its last axis
    content = np.stack([single[0, KINECT20.joint_names.index(name)] for name in ORDER])
    (utd_files / "a3_s1_t1_skeleton.mat").write_bytes(utd_mhad(content))
    for other in ("inertial", "depth"):  # other recordings of the set are passed over
        (utd_files / f"a1_s1_t1_{other}.mat").write_bytes(utd_mhad(np.ones((50, 6)), key="d_iner"))
    store = prepare_utd_mhad(utd_files, tmp_path / "out", strict=True, workers=1)
    plain = prepare_utd_mhad(utd_files, tmp_path / "plain", normalise=False, workers=1)
    assert (store.name, store.skeleton, store.fps, store.max_bodies) == ("utd-mhad", KINECT20, 30.0, 1)
    assert store.names.tolist() == sorted(name.removesuffix(".mat") for name in [*UTD, "a3_s1_t1_skeleton.mat"])
    for n, name in enumerate(store.names):
        seed = UTD.index(f"{name}.mat") if f"{name}.mat" in UTD else None
        values = (single if seed is None else joints(seed, 2 + seed)).astype(np.float32)[:, None]
        np.testing.assert_array_equal(plain.clip(n), values)
        np.testing.assert_array_equal(store.clip(n), normalise(values, KINECT20))
        action, subject, repetition = (int(part[1:]) for part in name.split("_")[:3])
        assert (store.label[n], store.subject[n], store.replication[n]) == (action - 1, subject, repetition)
    train, test = store.split("xsub")
    assert (set(store.subject[train]), set(store.subject[test])) == ({1, 7}, {2, 8})
    assert store.meta["protocols"]["xsub"]["train"] == [1, 3, 5, 7]
    assert store.skipped() == []
    assert len(set(UTD_CLASS_NAMES)) == 27
    numbers = {1: "right arm swipe to the left", 7: "basketball shoot", 22: "jogging in place", 24: "sit to stand"}
    assert {number: UTD_CLASS_NAMES[number - 1] for number in numbers} == numbers


def spoilt(frame, value):
    values = joints()
    values[frame, 5, 1] = value
    return values


def ragged():
    values = joints().tolist()
    del values[1][7]
    return values


GOOD = joints()
ONES = np.ones((4, 20, 3))
NO_FRAME = "no frame of body 1 gives a frame of"
V73 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n".ljust(64, b"\0")
FAULTY = {
    "nw_ucla": (
        (nw_ucla(GOOD.tolist())[:-300], r"v01.json: is no JSON"),
        (b"", "is no JSON"),
        (b"\xff\xfe\x00\xd8", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"joints": []}', "has no key 'skeletons'"),
        (json.dumps(GOOD.tolist()).encode(), "has no key 'skeletons'"),
        (nw_ucla([]), r"holds joints \(0,\), expected \(T, 20, 3\)"),
        (nw_ucla(np.ones((4, 25, 3)).tolist()), r"holds joints \(4, 25, 3\)"),
        (nw_ucla(ragged()), "is no table of numbers"),
        (nw_ucla([[["a", 1, 2]] * 20]), "is no table of numbers"),
        (nw_ucla([[[None, 1, 2]] * 20]), "it holds what is no number"),
        (nw_ucla([[["1", "2", "3"]] * 20]), "it holds what is no number"),
        (nw_ucla([[[True, False, True]] * 20]), "it holds what is no number"),
        (nw_ucla(spoilt(2, np.nan).tolist()), "NaN or infinite coordinates, first in frame 2"),
        (nw_ucla([[[1e39, 1, 2]] * 20]), "NaN or infinite coordinates"),
        (nw_ucla([[[10**400, 1, 2]] * 20]), "is no table of numbers"),
        (nw_ucla(ONES.tolist()), NO_FRAME),
    ),
    "utd_mhad": (
        (utd_mhad(GOOD, compressed=False)[:-500], "skeleton.mat: is no rea"),
        (utd_mhad(GOOD)[:-500], "is no readable .mat file"),
        (utd_mhad(GOOD)[:90], "header is not that of MATLAB 5"),
        (b"", "is no readable .mat file"),
        (b"1 2 3\n" * 50, "is no readable .mat file"),
        (V73, "is no readable .mat file"),
        (utd_mhad(GOOD, key="skel"), "has no variable 'd_skel'"),
        (utd_mhad(GOOD[:0]), r"holds joints \(0, 20, 3\)"),
        (utd_mhad(np.ones((25, 3, 4))), r"'d_skel' is \(25, 3, 4\), expected"),
        (utd_mhad("abc"), "'d_skel' is no array of real numbers"),
        (utd_mhad(np.array([[1, "a"]], object)), "'d_skel' is no array of real numbers"),
        (utd_mhad(ONES * 1j), "'d_skel' is no array of real numbers"),
        (utd_mhad(spoilt(3, np.nan)), "NaN or infinite coordinates, first in frame 3"),
        (utd_mhad(ONES), NO_FRAME),
    ),
}
"""Content of a file, and what is said of it."""


@pytest.mark.parametrize(
    ("prepare", "names", "good", "foreign"),
    [(prepare_nw_ucla, NW, "a02_s01_e{:02}_v01.json", "a02_s01_v01.json"),
     (prepare_utd_mhad, UTD, "a3_s1_t{}_skeleton.mat", "a1_s1_skeleton.mat")],
)  # fmt: skip
def test_faulty_files_are_left_out_with_their_reasons(prepare, names, good, foreign, request):
    kind = prepare.__name__.removeprefix("prepare_")
    raw = request.getfixturevalue("nw_files" if kind == "nw_ucla" else "utd_files")
    faults = {}
    for n, (content, says) in enumerate(FAULTY[kind], start=1):
        (raw / good.format(n)).write_bytes(content)
        faults[(raw / good.format(n)).stem] = (packing.MALFORMED, says)
    (raw / foreign).write_bytes((raw / names[0]).read_bytes())
    faults[foreign.rpartition(".")[0]] = (packing.FOREIGN_NAME, f"such as {names[0].replace('a12', 'a01')}")
    assert_all_left_out(prepare, raw, faults, clips=len(names))


def test_what_is_no_fault_passes_a_strict_preparation(nw_files, tmp_path):
    """Actions, subjects and views of other sets; a clip without a body; a second file of a name, at any depth."""
    others = ["a07_s01_e00_v01", "a10_s01_e00_v01", "a02_s11_e00_v01", "a02_s01_e00_v04", "a02_s01_e00_v00"]
    for name in others:
        (nw_files / f"{name}.json").write_bytes(nw_ucla(GOOD.tolist()))
    (nw_files / "a02_s01_e01_v01.json").write_bytes(nw_ucla((0 * GOOD).tolist()))
    (nw_files / f"._{NW[0]}").write_bytes(b"\x00\x05\x16\x07")  # as archives made on a Mac hold
    store = prepare_nw_ucla(nw_files, tmp_path / "out", strict=True, workers=1)
    assert store.meta["counts"]["skipped"] == {packing.OTHER_SET: len(others), packing.NO_BODY: 1}
    for name in (NW[0], "a02_s01_e00_v01.json"):
        (nw_files / "more").mkdir(exist_ok=True)
        (nw_files / "more" / name).write_bytes(nw_ucla(GOOD.tolist()))
    store = prepare_nw_ucla(nw_files, tmp_path / "deep", workers=1)
    assert store.meta["counts"]["skipped"][packing.DUPLICATE] == 1 and len(store) == len(NW) + 1


def test_other_sets_of_utd_mhad_pass_a_strict_preparation(utd_files, tmp_path):
    (utd_files / "a3_s1_t1_skeleton.mat").write_bytes(utd_mhad(0 * GOOD))
    for name in ("a28_s1_t1", "a3_s9_t1", "a0_s1_t1"):
        (utd_files / f"{name}_skeleton.mat").write_bytes(utd_mhad(GOOD))
    store = prepare_utd_mhad(utd_files, tmp_path / "out", strict=True, workers=1)
    assert store.meta["counts"]["skipped"] == {packing.OTHER_SET: 3, packing.NO_BODY: 1}


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(
        PrepareError, match=r"raw holds no file \*\.json or a.*\.txt\.\nNW-UCLA is not ours(.|\n)*all_sqe\.zip"
    ):
        prepare_nw_ucla(tmp_path / "raw", tmp_path / "out")
    with pytest.raises(PrepareError, match="nowhere is not a folder"):
        prepare_nw_ucla(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "raw" / NW[0]).write_text("")
    with pytest.raises(PrepareError, match=r"none of the 1 files under .* is usable \(1 malformed file\)"):
        prepare_nw_ucla(tmp_path / "raw", tmp_path / "out", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_command_line(nw_files, tmp_path, capsys):
    command = ["--raw", str(nw_files), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(["nwucla", *command]) == 0
    printed = capsys.readouterr().out
    assert "xview: 12 training clips, 6 test clips" in printed and printed.count("warning") == 1
    assert "warning: the complete set has 1,484 clips; accuracies on fewer" in printed
    assert main(["nwucla", "--raw", str(tmp_path / "nowhere")]) == 1
    assert HOW_TO_GET_NWUCLA in capsys.readouterr().err
    write(nw_files, UTD, utd_mhad)
    assert main(["utd-mhad", *command, "--overwrite", "--no-normalise"]) == 0
    printed = capsys.readouterr().out
    assert "xsub: 4 training clips, 4 test clips" in printed and "the complete set has 861 clips" in printed
    assert main(["utd-mhad", "--raw", str(tmp_path / "nowhere")]) == 1
    assert HOW_TO_GET_UTD in capsys.readouterr().err


def test_other_units_are_noticed(tmp_path, capsys, told):
    write(tmp_path / "raw", NW, lambda values: nw_ucla((values * 1000).tolist()))
    command = ["nwucla", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 1
    assert re.search(r"18 coordinates out of range.*at most 100 \(--max-coordinate\)", capsys.readouterr().err)
    assert main([*command, "--max-coordinate", "1e5"]) == 0
    assert re.search(r"bodies are \d{3,4} tall \(median\).* this looks like millimetres", told.text)


def ucla_text(values):
    """A frame's number, a blank line, and a line a joint, as the set's own files have them."""
    frames = ["\n".join(f"{x!r},{y!r},{z!r},2" for x, y, z in frame) for frame in values.tolist()]
    return "\n".join(f"{60 + n}\n\n{frame}" for n, frame in enumerate(frames)).encode()


def test_the_text_of_nw_ucla_is_read_as_its_json(nw_files, tmp_path):
    names = [name.replace("json", "txt") for name in NW]
    texts = write(tmp_path / "texts", names, ucla_text)
    ours, theirs = (prepare_nw_ucla(folder, tmp_path / folder.name[0], workers=1) for folder in (nw_files, texts))
    assert ours.names.tolist() == theirs.names.tolist()
    np.testing.assert_array_equal(ours.frames, theirs.frames)
    content = (texts / names[0]).read_bytes()
    for damaged, fault in (
        (content[: content.rindex(b"\n")], "lines, expected 21 a frame"),
        (content.replace(b",2\n", b"\n", 1), "other lines than a frame's number and 20 of x,y,z,state"),
        (content.replace(b",2\n", b",\n", 1), "could not convert string to float"),
    ):
        (texts / names[0]).write_bytes(damaged)
        with pytest.raises(PrepareError, match=fault):
            prepare_nw_ucla(texts, tmp_path / "strict", strict=True, workers=1)
