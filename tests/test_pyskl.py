"""Annotation files of pyskl and mmaction2, and Kinetics-skeleton."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest
from bodies import performed

from fastmc.data.formats.kinetics import load_people, prepare_kinetics
from fastmc.data.formats.ntu_splits import NTU60_CLASS_NAMES
from fastmc.data.formats.pyskl import import_pyskl
from fastmc.data.given import Given
from fastmc.data.normalise import normalise
from fastmc.data.packing import FOREIGN_NAME, PrepareError
from fastmc.data.store import PackedStore
from fastmc.skeleton import NTU25, SKELETONS
from train.prepare import main

COCO, OPENPOSE = SKELETONS["coco17"], SKELETONS["openpose18"]
NAMES = [f"S001C00{1 + i % 3}P00{1 + i // 3}R001A00{1 + i % 4}" for i in range(9)]
SPLIT = {"xsub_train": NAMES[:6], "xsub_val": NAMES[6:], "xview_train": NAMES[:5], "xview_val": NAMES[5:]}


def annotation(n, numbers=3, bodies=1):
    clip = np.stack([performed(1 + n + b, "ntu25" if numbers == 3 else "coco17")[:20] for b in range(bodies)])
    if numbers == 3:
        return {"frame_dir": NAMES[n], "label": n % 4, "total_frames": 20, "keypoint": clip.astype(np.float16)}
    points = np.stack([900 + 200 * clip[..., 0], 500 - 200 * clip[..., 1]], axis=-1)
    scores = np.full((bodies, 20, 17), 0.75)
    return {
        "frame_dir": NAMES[n],
        "label": n % 4,
        "total_frames": 20,
        "img_shape": (1080, 1920),
        "keypoint": points.astype(np.float16),
        "keypoint_score": scores.astype(np.float16),
    }


def write(tmp_path, annotations, split=SPLIT):
    file = tmp_path / "set.pkl"
    file.write_bytes(pickle.dumps({"split": split, "annotations": annotations}))
    return file


def test_three_dimensions(tmp_path, told):
    annotations = [annotation(n) for n in range(9)]
    store = import_pyskl(write(tmp_path, annotations[::-1]), tmp_path / "out", strict=True)
    assert not told.records
    assert store.names.tolist() == sorted(NAMES) and store.skeleton == NTU25
    assert store.class_names == tuple(NTU60_CLASS_NAMES)
    assert store.protocols == ("xsub", "xview")
    for protocol, train in (("xsub", NAMES[:6]), ("xview", NAMES[:5])):
        sides = [store.names[side].tolist() for side in store.split(protocol)]
        assert sides == [sorted(train), sorted(set(NAMES) - set(train))]
    for n, name in enumerate(store.names.tolist()):
        source = annotations[NAMES.index(name)]
        assert (store.label[n], store.camera[n]) == (source["label"], int(name[7]))
        clip = source["keypoint"].astype(np.float32).transpose(1, 0, 2, 3)
        np.testing.assert_array_equal(store.clip(n), normalise(clip, NTU25))


def test_two_dimensions_with_scores(tmp_path, told):
    annotations = [annotation(n, numbers=2, bodies=3) for n in range(9)]
    for each in annotations:
        each["keypoint_score"][0] = 0.5  # the first body is left out
    store = import_pyskl(write(tmp_path, annotations), tmp_path / "out", strict=True)
    assert not told.records and (len(store), store.max_bodies, store.skeleton) == (9, 2, COCO)
    n = store.names.tolist().index(NAMES[0])
    source = annotations[0]["keypoint"].astype(np.float64)[1:].transpose(1, 0, 2, 3)
    joints, weights = Given(image=True).clip(np.concatenate([source, np.full((*source.shape[:3], 1), 0.75)], -1), COCO)
    np.testing.assert_allclose(store.clip(n), normalise(joints.astype(np.float32), COCO, weights), atol=1e-6)
    annotations[0].pop("keypoint_score")
    assert len(import_pyskl(write(tmp_path, annotations), tmp_path / "none")) == 9


def test_lists_of_other_names(tmp_path, told):
    annotations = [annotation(n) for n in range(9)]
    for n, each in enumerate(annotations):
        each["frame_dir"] = f"clip/{n}"
    names = [each["frame_dir"] for each in annotations]
    split = {"train": names[:4], "val": names[4:8], "half_train1": names[:4], "test1": names[:8]}
    store = import_pyskl(write(tmp_path, annotations, split), tmp_path / "out")
    assert store.protocols == ("split", "1")
    assert "1 clips of" in told.text and "in no list" in told.text
    assert "half_1: not all clips are in its lists" in told.text
    assert [len(side) for side in store.split("split")] == [4, 4]
    assert store.class_names == ("class 0", "class 1", "class 2", "class 3")


def test_of_pairs_of_lists_that_each_hold_some_clips_one_is_kept(tmp_path, told, capsys):
    """As hmdb51, whose three splits each leave many clips out."""
    annotations = [annotation(n) for n in range(9)]
    split = {"train1": NAMES[:4], "test1": NAMES[4:6], "train2": NAMES[3:7], "test2": NAMES[7:]}
    file = write(tmp_path, annotations, split)
    command = ["pyskl", "--file", str(file), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    says = capsys.readouterr().err
    assert "no pair of lists that hold all clips" in says
    assert "--protocol NAME keeps one pair, and the clips in it: 1, 2" in says
    assert main([*command, "--protocol", "3"]) == 1
    assert "--protocol 3 is none of the file's pairs of lists: 1, 2" in capsys.readouterr().err
    assert main([*command, "--protocol", "2"]) == 0
    store = PackedStore.open(tmp_path / "out")
    assert store.protocols == ("2",) and not told.records
    assert [store.names[side].tolist() for side in store.split("2")] == [sorted(NAMES[3:7]), sorted(NAMES[7:])]
    file = write(tmp_path, annotations, {**SPLIT, **split, "train2": NAMES})  # 2 has clips that train and test
    assert import_pyskl(file, tmp_path / "xview", protocol="xview").protocols == ("xview",)


def test_a_class_that_is_not_known_and_two_lists_that_test(tmp_path, told):
    annotations = [annotation(n) for n in range(9)]
    annotations[1]["label"], annotations[2]["label"] = -1, np.float32(2)
    split = {"train": NAMES[:5], "val": NAMES[5:7], "test": NAMES[7:]}
    store = import_pyskl(write(tmp_path, annotations, split), tmp_path / "out")
    assert "split: clips of val, test all test" in told.text
    labels = dict(zip(store.names.tolist(), store.label.tolist(), strict=True))
    assert (labels[NAMES[0]], labels[NAMES[1]], labels[NAMES[2]]) == (0, -1, 2)
    assert store.class_names == tuple(NTU60_CLASS_NAMES), "the labels that are known are those of the names"
    for each in annotations:
        each["label"] = -1
    told.clear()
    store = import_pyskl(write(tmp_path, annotations, {**split, "val": []}), tmp_path / "none")
    assert store.class_names == () and "all test" not in told.text


def broken(**changes):
    return [annotation(0), {**annotation(1), **changes}, *[annotation(n) for n in range(2, 9)]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dict of split and annotations"),
        ({"split": {}, "annotations": []}, "annotations is no list of any"),
        ({"split": [], "annotations": [annotation(0)]}, "split is no dict of lists"),
        ({"split": {}, "annotations": [annotation(0)]}, "no pair of lists that hold all clips"),
        ({"split": {"first": NAMES}, "annotations": [annotation(0)]}, "split has a list 'first'"),
        ({"split": {"train": NAMES, "val": NAMES}, "annotations": [annotation(0)]}, "both trains and tests"),
        ({"split": SPLIT, "annotations": [annotation(0)] * 2}, "two annotations have the same frame_dir"),
        ({"split": SPLIT, "annotations": broken(label=-2)}, "annotation 1: label -2 is no class index"),
        ({"split": SPLIT, "annotations": broken(label="a")}, "label 'a' is no class index"),
        ({"split": SPLIT, "annotations": broken(frame_dir=3)}, "frame_dir is 3, expected a name"),
        ({"split": SPLIT, "annotations": broken(frame_dir="a\nb")}, "control characters"),
        ({"split": SPLIT, "annotations": broken(keypoint=np.zeros((1, 5, 25)))}, r"keypoint is float64 \(1, 5, 25\)"),
        ({"split": SPLIT, "annotations": broken(keypoint=np.zeros((1, 5, 17, 2)))}, "that of the first float16"),
        ({"split": SPLIT, "annotations": broken(keypoint_score=np.zeros(3))}, r"keypoint_score is float64 \(3,\)"),
        ({"split": SPLIT, "annotations": ["a"]}, "annotation 0 is no dict of frame_dir"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(content, message, tmp_path):
    (tmp_path / "set.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(PrepareError, match=rf"set\.pkl is no annotation file .*{message}"):
        import_pyskl(tmp_path / "set.pkl", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set.pkl"]


def test_what_a_pickle_names_is_not_run(tmp_path):
    (tmp_path / "set.pkl").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(PrepareError, match=r"os\.system, which is not plain data and is never loaded"):
        import_pyskl(tmp_path / "set.pkl", tmp_path / "out")
    with pytest.raises(PrepareError, match="there is no file"):
        import_pyskl(tmp_path / "lost.pkl", tmp_path / "out")


def test_a_layout_is_named_where_the_joints_tell_none(tmp_path):
    annotations = [annotation(n) for n in range(9)]
    for each in annotations:
        each["keypoint"] = each["keypoint"][:, :, :22]
    file = write(tmp_path, annotations)
    with pytest.raises(PrepareError, match=r"22 joints, expected 25 .*--skeleton names another"):
        import_pyskl(file, tmp_path / "out")
    assert import_pyskl(file, tmp_path / "out", skeleton="smpl22").skeleton == SKELETONS["smpl22"]


def test_command_line(tmp_path, capsys):
    file = write(tmp_path, [annotation(n, numbers=2) for n in range(9)])
    assert main(["pyskl", "--file", str(file), "--out", str(tmp_path / "out"), "--min-score", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "9 clips of 60 classes" in out
    assert "xsub: 6 training clips, 3 test clips" in out and "xview: 5 training clips, 4 test clips" in out


# --- Kinetics-skeleton


def person(points, score):
    return {"pose": points.ravel().tolist(), "score": [score] * 18}


def kinetics_clip(label=3, frames=20, people=1):
    clip = performed(2, "openpose18")[:frames]
    points = np.stack([0.5 + 0.15 * clip[..., 0], 0.8 - 0.2 * clip[..., 1]], axis=-1).round(3)
    data = [
        {"frame_index": t + 1, "skeleton": [person(frame + 0.1 * k, 0.5 + 0.1 * k) for k in range(people)]}
        for t, frame in enumerate(points)
    ]
    return {"data": data, "label": f"action {label}", "label_index": label}, points


def test_of_a_frame_the_two_surest_people_are_kept_at_the_videos_width():
    content, points = kinetics_clip(people=3)
    content["data"][4]["skeleton"] = []
    joints = load_people(content["data"])
    assert joints.shape == (20, 2, 18, 3)
    np.testing.assert_allclose(joints[0, 0, :, 0], (points[0, :, 0] + 0.2) * 340 / 256)
    np.testing.assert_allclose(joints[0, :, :, 1], [points[0, :, 1] + 0.2, points[0, :, 1] + 0.1])
    np.testing.assert_allclose(joints[0, :, 0, 2], [0.7, 0.6])
    assert not joints[4].any()


def test_a_folder_is_packed(tmp_path, told):
    for part, names in (("kinetics_train", "ab"), ("kinetics_val", "c")):
        (tmp_path / "raw" / part).mkdir(parents=True)
        for name in names:
            (tmp_path / "raw" / part / f"{name}.json").write_text(json.dumps(kinetics_clip(ord(name) - ord("a"))[0]))
    (tmp_path / "raw" / "kinetics_train_label.json").write_text("{}")
    nobody = {"data": [], "label": "action 0", "label_index": 0}
    (tmp_path / "raw" / "kinetics_val" / "d.json").write_text(json.dumps(nobody))
    store = prepare_kinetics(tmp_path / "raw", tmp_path / "out", workers=1, strict=True)
    assert not told.records
    assert store.class_names == ("action 0", "action 1", "action 2") and store.skeleton == OPENPOSE
    assert [store.names[side].tolist() for side in store.split("split")] == [["a", "b"], ["c"]]
    assert [(entry["name"], entry["reason"]) for entry in store.skipped()] == [("d", "no skeleton in the file")]
    joints, weights = Given(image=True).clip(load_people(kinetics_clip()[0]["data"]), OPENPOSE)
    np.testing.assert_array_equal(store.clip(0), normalise(joints[:, :1].astype(np.float32), OPENPOSE, weights[:, :1]))


def raw_of(folder, *names):
    """A folder of such files; the n-th is of class n."""
    for n, name in enumerate(names):
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            json.dump(kinetics_clip(n)[0], file)
    return folder


def test_a_name_that_another_begins_with_comes_first(tmp_path):
    """walk-2.json sorts before walk.json, and walk before walk-2."""
    raw = raw_of(tmp_path / "raw", "train/walk.json", "train/walk-2.json", "val/run.json")
    store = prepare_kinetics(raw, tmp_path / "out", workers=1, strict=True)
    assert store.names.tolist() == ["run", "walk", "walk-2"] and store.label.tolist() == [2, 0, 1]


def test_a_file_whose_name_is_no_text_is_listed_and_left_out(tmp_path, capsys):
    """It made the store one that could not be read, or ended the preparation."""
    raw = raw_of(tmp_path / "raw", b"train/caf\xe9.json", "train/a\nb.json", "train/c.json", "val/d.json")
    assert main(["kinetics", "--raw", str(raw), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "2 × file name of another kind" in capsys.readouterr().out
    store = PackedStore.open(tmp_path / "out")
    assert store.names.tolist() == ["c", "d"]
    assert sorted((entry["name"], entry["reason"]) for entry in store.skipped()) == [
        ("a\nb", FOREIGN_NAME),
        ("caf\\udce9", FOREIGN_NAME),
    ]
    with pytest.raises(PrepareError, match="is no name"):
        prepare_kinetics(raw, tmp_path / "strict", workers=1, strict=True)


def test_words_of_folders_say_what_tests_and_no_clip_is_passed_over(tmp_path):
    trains = ("interval/a", "kinetics_train/festival/b", "test_run/train/c", "my_label", "trainval/e", "Train-1/f")
    tests = ("kinetics_val/u", "Testing/v", "validation/w", "evals/x", "testset/contest/y", "train/test2/z")
    raw = raw_of(tmp_path / "raw", *(f"{name}.json" for name in (*trains, *tests)))
    for name in ("kinetics_train_label.json", "kinetics_val_label.json"):
        (raw / name).write_text("{}")
    store = prepare_kinetics(raw, tmp_path / "out", workers=1, strict=True)
    sides = [store.names[side].tolist() for side in store.split("split")]
    assert sides == [["a", "b", "c", "e", "f", "my_label"], ["u", "v", "w", "x", "y", "z"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("label"), "lacks data, label or label_index"),
        (lambda c: c.update(label_index="x"), "label_index is 'x'"),
        (lambda c: c.update(data=3), "'data' is no list of frames"),
        (lambda c: c["data"][0].update(frame_index=0), "a frame_index is none of 1 to 32768"),
        (lambda c: c["data"][0].update(frame_index=10**9), "a frame_index is none of"),
        (lambda c: c["data"][0]["skeleton"][0].update(score=[1]), "no 36 numbers and 18 scores"),
        (lambda c: c["data"][0]["skeleton"][0].update(pose=["a"] * 36), "no 36 numbers and 18 scores"),
        (lambda c: c["data"][0]["skeleton"][0].pop("pose"), "'pose' is missing"),
    ],
)
def test_a_faulty_clip_is_left_out_with_its_name(change, message, tmp_path):
    (tmp_path / "raw").mkdir()
    content = kinetics_clip()[0]
    (tmp_path / "raw" / "a.json").write_text(json.dumps(content))
    change(content)
    (tmp_path / "raw" / "b.json").write_text(json.dumps(content))
    store = prepare_kinetics(tmp_path / "raw", tmp_path / "out", workers=1)
    (entry,) = store.skipped()
    assert (entry["name"], entry["reason"]) == ("b", "malformed file")
    assert str(tmp_path / "raw" / "b.json") in entry["detail"] and message in entry["detail"]
    with pytest.raises(PrepareError, match=r"b\.json"):
        prepare_kinetics(tmp_path / "raw", tmp_path / "strict", workers=1, strict=True)


def test_kinetics_command_line(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "clip0.json").write_text(json.dumps(kinetics_clip(label=0)[0]))
    command = ["kinetics", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 0
    assert "1 clips of 1 classes" in capsys.readouterr().out
    assert PackedStore.open(tmp_path / "out").num_frames.tolist() == [20]
