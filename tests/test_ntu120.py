"""NTU RGB+D 120, and what is said where a data set is missing."""

from __future__ import annotations

import pytest
from test_prepare import clip_name, write_raw

from fastmc.data import packing
from fastmc.data.formats.ntu_splits import (
    NTU60_CLASS_NAMES,
    NTU60_PROTOCOLS,
    NTU60_TRAIN_SUBJECTS,
    NTU120_CLASS_NAMES,
    NTU120_CLIPS,
    NTU120_PROTOCOLS,
    NTU120_TRAIN_SUBJECTS,
)
from fastmc.data.store import PackedStore
from train.command.datasets import HOW_TO_GET, DatasetError, open_dataset
from train.prepare import main

NAMES = [clip_name(setup=t, subject=s, action=a) for t in (1, 18, 32) for s in (3, 38, 45, 106) for a in (1, 61, 120)]


@pytest.fixture
def raw(tmp_path):
    """The files of two archives, in folders of their own."""
    (tmp_path / "raw").mkdir()
    write_raw(tmp_path / "raw" / "nturgb+d_skeletons", [name for name in NAMES if name < "S018"])
    write_raw(tmp_path / "raw" / "nturgb+d_skeletons120", [name for name in NAMES if name >= "S018"])
    return tmp_path / "raw"


def prepare(raw, out, *flags):
    return main(["ntu120", "--raw", str(raw), "--out", str(out), "--workers", "1", *flags])


def test_published_lists():
    assert len(set(NTU120_CLASS_NAMES)) == len(NTU120_CLASS_NAMES) == 120
    assert len(set(NTU60_CLASS_NAMES)) == len(NTU60_CLASS_NAMES) == 60
    assert NTU120_CLASS_NAMES[:60] == NTU60_CLASS_NAMES
    published = {1: "drink water", 8: "sit down", 9: "stand up", 23: "hand waving", 43: "falling down"}
    published |= {50: "punch/slap", 58: "shaking hands", 59: "walking towards", 60: "walking apart"}  # A050 on: of two
    published |= {61: "put on headphone", 71: "make OK sign", 80: "squat down", 95: "capitulate", 105: "blow nose"}
    published |= {106: "hit with object", 112: "high-five", 120: "rock-paper-scissors"}  # A106 on: of two
    assert {number: NTU120_CLASS_NAMES[number - 1] for number in published} == published
    test_subjects = {3, 6, 7, 10, 11, 12, 20, 21, 22, 23, 24, 26, 29, 30, 32, 33, 36, 37, 39, 40}
    assert set(NTU60_TRAIN_SUBJECTS) == set(range(1, 41)) - test_subjects
    assert NTU60_PROTOCOLS["xsub"] == {"field": "subject", "train": list(NTU60_TRAIN_SUBJECTS)}
    assert NTU60_PROTOCOLS["xview"] == {"field": "camera", "train": [2, 3]}
    assert NTU120_TRAIN_SUBJECTS[:20] == NTU60_TRAIN_SUBJECTS
    test_subjects = {41, 42, 43, 44, 48, 51, *range(60, 70), 71, 72, 73, 75, 76, 77, 79, 87, 88, 90, 96, 99, 101, 102}
    assert set(NTU120_TRAIN_SUBJECTS[20:]) == set(range(41, 107)) - test_subjects - {104, 105, 106}
    assert len(NTU120_TRAIN_SUBJECTS) == 53  # half of the 106
    assert NTU120_PROTOCOLS["xsub"] == {"field": "subject", "train": list(NTU120_TRAIN_SUBJECTS)}
    assert NTU120_PROTOCOLS["xset"] == {"field": "setup", "train": [2 * n for n in range(1, 17)]}
    assert NTU120_CLIPS == 113_945


def test_store_of_both_archives(raw, tmp_path, capsys):
    assert prepare(raw, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "36 clips of 120 classes" in printed
    assert "the complete set, without the files published as missing, has 113,945 clips" in printed
    store = PackedStore.open(tmp_path / "out")
    assert (store.name, store.protocols) == ("ntu120", ("xsub", "xset"))
    assert store.names.tolist() == sorted(NAMES)
    assert set(store.label) == {0, 60, 119}
    for protocol, field, train in (("xsub", "subject", {38, 45}), ("xset", "setup", {18, 32})):
        train_clips, test_clips = store.split(protocol)
        assert set(getattr(store, field)[train_clips]) == train
        assert not set(getattr(store, field)[test_clips]) & train
        assert len(train_clips) + len(test_clips) == len(NAMES)


def test_published_and_foreign_clips_are_left_out(raw, tmp_path, capsys):
    write_raw(raw, [clip_name(setup=33), clip_name(setup=32, subject=107), clip_name(setup=32, action=121)])
    (tmp_path / "missing.txt").write_text(f"{NAMES[0]}\n{NAMES[-1]}\n")
    assert prepare(raw, tmp_path / "out", "--strict", "--missing", str(tmp_path / "missing.txt")) == 0
    assert PackedStore.open(tmp_path / "out").meta["counts"]["skipped"] == {packing.OTHER_SET: 3, packing.PUBLISHED: 2}


def test_folder_without_files_says_what_to_get(tmp_path, capsys):
    assert prepare(tmp_path, tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert "holds no file *.skeleton" in message
    assert "nturgbd_skeletons_s018_to_s032.zip" in message
    assert "114,480 of them in both" in message


NEEDED = {
    "ntu60": ("https://rose1.ntu.edu.sg", "nturgbd_skeletons_s001_to_s017.zip"),
    "ntu120": ("https://rose1.ntu.edu.sg", "nturgbd_skeletons_s001_to_s017.zip and nturgbd_skeletons_s018_to_s032.zip"),
    "pku1": ("STRUCT group, Peking University", "Skeleton.7z", "Label_PKUMMD.7z", "cross-subject.txt", "0002-L.txt"),
    "pku2": ("STRUCT group", "Skeleton_v2.7z", "Label_PKUMMD_v2.7z", "cross_subject_v2.txt", "A01N01-L.txt"),
    "nwucla": ("https://wangjiangb.github.io", "all_sqe.zip", "a01_s01_e00_v01.json"),
    "utd-mhad": ("https://personal.utdallas.edu/~kehtar/UTD-MHAD.html", "Skeleton.zip", "a1_s1_t1_skeleton.mat"),
}


@pytest.mark.parametrize("name", HOW_TO_GET)
def test_missing_dataset_says_what_to_get_and_what_to_run(tmp_path, name, capsys):
    with pytest.raises(DatasetError) as caught:
        open_dataset(name, tmp_path / "big disk")
    message = str(caught.value)
    path = tmp_path / "big disk" / name
    assert message.startswith(f"there is no dataset {name!r}: {path} does not exist.")
    assert f"python -m train.prepare {name} --raw FOLDER --out '{path}'" in message
    assert all(needed in message for needed in NEEDED[name])
    assert message.count("\n") < 10
    with pytest.raises(SystemExit) as ended:  # and that command exists
        main([name, "--help"])
    assert ended.value.code == 0
    assert "--raw" in capsys.readouterr().out
