"""NW-UCLA: from JSON files in its format, which these tests write, to a store."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from conftest import assert_left_out

from fastmc.data import packing
from fastmc.data.formats.nw_ucla import HOW_TO_GET_NWUCLA, NWUCLA_CLASSES, prepare_nw_ucla
from fastmc.data.normalise import normalise
from fastmc.data.packing import PrepareError
from fastmc.data.store import PackedStore, StoreError
from fastmc.skeleton import KINECT20
from train.command.datasets import DatasetError, open_dataset
from train.prepare import main


def joints(seed=0, frames=4):
    """(T, 20, 3): a body upright in front of the camera, whose joints shake."""
    rng = np.random.default_rng(seed)
    rest = rng.normal(0, 0.3, (20, 3)) + (0, 0, 3)
    rest[KINECT20.spine] = rest[KINECT20.hip] + (0, 0.3, 0)
    rest[KINECT20.left_shoulder] = rest[KINECT20.right_shoulder] + (0.4, 0, 0)
    return rest + rng.normal(0, 0.01, (frames, 20, 3))


def clip_name(action=1, subject=1, repetition=0, view=1):
    return f"a{action:02}_s{subject:02}_e{repetition:02}_v{view:02}"


def text(skeletons):
    return json.dumps({"file_name": "any", "skeletons": skeletons, "label": 1})


def write(folder, name, skeletons):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(text(skeletons))


NAMES = [clip_name(action=a, subject=s, view=v) for a in (1, 8, 12) for s in (1, 10) for v in (1, 2, 3)]


@pytest.fixture
def raw(tmp_path):
    for seed, name in enumerate(NAMES):
        write(tmp_path / "raw", name, joints(seed, 3 + seed).tolist())
    return tmp_path / "raw"


def test_store_holds_the_clips(raw, tmp_path):
    store = prepare_nw_ucla(raw, tmp_path / "out", workers=1)
    assert (store.name, store.skeleton, store.fps, store.max_bodies) == ("nwucla", KINECT20, 30.0, 1)
    assert store.names.tolist() == sorted(NAMES)
    for n, name in enumerate(store.names):
        values = joints(NAMES.index(name), 3 + NAMES.index(name)).astype(np.float32)
        np.testing.assert_array_equal(store.clip(n), normalise(values[:, None], KINECT20))
        action, subject, repetition, view = (int(part[1:]) for part in name.split("_"))
        assert (store.subject[n], store.camera[n], store.replication[n]) == (subject, view, repetition)
        assert store.class_names[store.label[n]] == NWUCLA_CLASSES[action]
    assert store.skipped() == []


def test_views_1_and_2_train_and_view_3_tests(raw, tmp_path):
    store = prepare_nw_ucla(raw, tmp_path / "out", workers=1)
    assert store.protocols == ("xview",)
    train, test = store.split("xview")
    assert set(store.camera[train]) == {1, 2}
    assert set(store.camera[test]) == {3}


def test_actions_7_and_10_do_not_exist(raw, tmp_path):
    assert list(NWUCLA_CLASSES) == [1, 2, 3, 4, 5, 6, 8, 9, 11, 12]
    others = [clip_name(action=7), clip_name(action=10), clip_name(subject=11), clip_name(view=4), clip_name(view=0)]
    for name in others:
        write(raw, name, joints().tolist())
    store = prepare_nw_ucla(raw, tmp_path / "out", strict=True, workers=1)
    assert store.class_names == tuple(NWUCLA_CLASSES.values())
    assert store.label.max() == 9
    assert sorted(entry["name"] for entry in store.skipped()) == sorted(others)
    assert {entry["reason"] for entry in store.skipped()} == {packing.OTHER_SET}


def test_coordinates_may_be_kept(raw, tmp_path):
    store = prepare_nw_ucla(raw, tmp_path / "out", normalise=False, workers=1)
    n = store.names.tolist().index(NAMES[2])
    np.testing.assert_array_equal(store.clip(n)[:, 0], joints(2, 5).astype(np.float32))
    assert store.meta["normalisation"] == "none"
    assert prepare_nw_ucla(raw, tmp_path / "b", workers=1).meta["normalisation"] == packing.NORMALISATION


def test_same_store_for_any_number_of_workers(raw, tmp_path):
    (raw / f"{clip_name(action=2)}.json").write_text("{")
    for workers in (1, 2):
        prepare_nw_ucla(raw, tmp_path / str(workers), workers=workers)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / w).iterdir()} for w in "12")
    assert one == two


def nan():
    values = joints()
    values[2, 5, 1] = np.nan
    return values.tolist()


def ragged():
    values = joints().tolist()
    del values[1][7]
    return values


def coinciding():
    return np.ones((3, 20, 3)).tolist()


GOOD = clip_name(action=2)
FAULTY = {
    "foreign name": ("a02_s01_v01", text(joints().tolist()), packing.FOREIGN_NAME, "such as a01_s01_e00_v01.json"),
    "truncated": (GOOD, text(joints().tolist())[:-300], packing.MALFORMED, "v01.json: is no JSON"),
    "empty file": (GOOD, "", packing.MALFORMED, "is no JSON"),
    "not UTF-8": (GOOD, b"\xff\xfe\x00\xd8", packing.MALFORMED, "is no JSON"),
    "deeply nested": (GOOD, "[" * 100_000, packing.MALFORMED, "is no JSON"),
    "no key": (GOOD, json.dumps({"joints": []}), packing.MALFORMED, "has no key 'skeletons'"),
    "a list": (GOOD, json.dumps(joints().tolist()), packing.MALFORMED, "has no key 'skeletons'"),
    "no frame": (GOOD, text([]), packing.MALFORMED, r"holds joints \(0,\), expected \(T, 20, 3\)"),
    "25 joints": (GOOD, text(np.ones((4, 25, 3)).tolist()), packing.MALFORMED, r"holds joints \(4, 25, 3\)"),
    "2D joints": (GOOD, text(np.ones((4, 20, 2)).tolist()), packing.MALFORMED, r"holds joints \(4, 20, 2\)"),
    "ragged": (GOOD, text(ragged()), packing.MALFORMED, "is no table of numbers"),
    "words": (GOOD, text([[["a", 1, 2]] * 20]), packing.MALFORMED, "is no table of numbers"),
    "null": (GOOD, text([[[None, 1, 2]] * 20]), packing.MALFORMED, "it holds what is no number"),
    "numbers as words": (GOOD, text([[["1", "2", "3"]] * 20]), packing.MALFORMED, "it holds what is no number"),
    "truth values": (GOOD, text([[[True, False, True]] * 20]), packing.MALFORMED, "it holds what is no number"),
    "NaN": (GOOD, text(nan()), packing.MALFORMED, "NaN or infinite coordinates, first in frame 2"),
    "beyond float32": (GOOD, text([[[1e39, 1, 2]] * 20]), packing.MALFORMED, "NaN or infinite coordinates"),
    "huge integer": (GOOD, text([[[10**400, 1, 2]] * 20]), packing.MALFORMED, "is no table of numbers"),
    "no frame of reference": (GOOD, text(coinciding()), packing.MALFORMED, "no frame of body 1 gives a frame of"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_faulty_file_is_left_out_with_its_reason(raw, fault):
    name, content, reason, detail = FAULTY[fault]
    (raw / f"{name}.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_left_out(prepare_nw_ucla, raw, name, reason, detail, clips=len(NAMES))


def test_a_clip_without_a_body_is_no_fault(raw, tmp_path):
    write(raw, GOOD, np.zeros((3, 20, 3)).tolist())
    store = prepare_nw_ucla(raw, tmp_path / "out", strict=True, workers=1)
    assert store.meta["counts"]["skipped"] == {packing.NO_BODY: 1}


def test_files_are_found_at_any_depth_and_only_once(raw, tmp_path):
    write(raw / "more", NAMES[0], joints(9).tolist())
    write(raw / "more", GOOD, joints(9).tolist())
    (raw / f"._{NAMES[0]}.json").write_bytes(b"\x00\x05\x16\x07")  # as archives made on a Mac hold
    store = prepare_nw_ucla(raw, tmp_path / "out", workers=1)
    assert len(store) == len(NAMES) + 1
    assert [(entry["name"], entry["reason"]) for entry in store.skipped()] == [(NAMES[0], packing.DUPLICATE)]


def test_nothing_usable_is_an_error(tmp_path):
    (tmp_path / "raw").mkdir()
    with pytest.raises(PrepareError, match=r"raw holds no file \*\.json\.\nNW-UCLA is not ours(.|\n)*all_sqe\.zip"):
        prepare_nw_ucla(tmp_path / "raw", tmp_path / "out")
    with pytest.raises(PrepareError, match="nowhere is not a folder"):
        prepare_nw_ucla(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "raw" / f"{GOOD}.json").write_text("")
    with pytest.raises(PrepareError, match=r"none of the 1 files under .* is usable \(1 malformed file\)"):
        prepare_nw_ucla(tmp_path / "raw", tmp_path / "out", workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_command_line(raw, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["nwucla", "--raw", str(raw), "--out", out, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "xview: 12 training clips, 6 test clips" in printed
    assert "the complete set has 1,484 clips" in printed
    assert main(["nwucla", "--raw", str(raw), "--out", out]) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main(["nwucla", "--raw", str(raw), "--out", out, "--workers", "1", "--no-normalise", "--overwrite"]) == 0
    assert PackedStore.open(out).meta["normalisation"] == "none"
    with pytest.raises(StoreError):
        prepare_nw_ucla(raw, out)
    assert "warning" not in printed
    assert main(["nwucla", "--raw", str(tmp_path / "nowhere")]) == 1
    assert HOW_TO_GET_NWUCLA in capsys.readouterr().err


def test_other_units_are_noticed(tmp_path, capsys):
    for name in NAMES:
        write(tmp_path / "raw", name, (joints() * 1000).tolist())
    command = ["nwucla", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 1
    assert re.search(r"18 coordinates out of range.*at most 100 \(--max-coordinate\)", capsys.readouterr().err)
    assert main([*command, "--max-coordinate", "1e5"]) == 0
    assert re.search(r"shoulders are \d{3} apart \(median\): these .* not seem to be metres", capsys.readouterr().out)


def test_missing_data_set_says_how_to_get_it(tmp_path):
    with pytest.raises(DatasetError, match=r"all_sqe\.zip(.|\n)*train\.prepare nwucla --raw FOLDER --out "):
        open_dataset("nwucla", tmp_path)
