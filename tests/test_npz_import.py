"""Import of skeleton sets that are given as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fastmc.data.formats.npz import import_npz
from fastmc.data.packing import PrepareError
from fastmc.data.report import describe, label_notes, why_not_evaluated
from fastmc.data.store import PackedStore
from fastmc.skeleton import KINECT20, NTU25
from train.command.readers import say_published
from train.prepare import main

HDM05 = Path(__file__).parents[2] / "shared" / "data" / "hdm05_11.npz"


def arrays(clips=6, frames=5, joints=25, bodies=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((clips, 3, frames, joints, bodies)).astype(np.float32)
    num_frames = np.arange(clips) % frames + 1
    for n in range(clips):
        x[n, :, num_frames[n] :] = 0
        x[n, ..., 1 + n % 2 :] = 0
    return {
        "x": x,
        "num_frames": num_frames,
        "label": np.arange(clips) % 3,
        "subject": np.arange(clips) % 3 + 1,
        "split": np.where(np.arange(clips) < 4, "train", "test"),
    }


def save(tmp_path, **changes):
    values = {**arrays(), **changes}
    np.savez(tmp_path / "set.npz", **{key: value for key, value in values.items() if value is not None})
    return tmp_path / "set.npz"


def load(file, out, train="split=train", skeleton="ntu25", **options):
    return import_npz(file, out, train=train, skeleton=skeleton, **options)


def test_clips_come_without_padding(tmp_path):
    values = arrays()
    store = load(save(tmp_path), tmp_path / "toy", normalise=False)
    assert (store.name, store.skeleton, store.fps) == ("toy", NTU25, 30.0)
    assert store.class_names == ("class 0", "class 1", "class 2")
    for n, x in enumerate(values["x"]):
        frames, bodies = values["num_frames"][n], 1 + n % 2
        np.testing.assert_array_equal(store.clip(n), x[:, :frames, :, :bodies].transpose(1, 3, 2, 0))
    assert store.label.tolist() == values["label"].tolist()
    assert store.subject.tolist() == values["subject"].tolist()
    assert store.camera.tolist() == [-1] * 6


def test_split_by_strings_and_by_ids(tmp_path):
    file = save(tmp_path)
    store = load(file, tmp_path / "a")
    train, test = store.split("split")
    assert (train.tolist(), test.tolist()) == ([0, 1, 2, 3], [4, 5])
    assert store.meta["protocols"]["split"]["values"] == ["test", "train"]
    store = load(file, tmp_path / "b", train="subject=3,1")
    assert store.subject[store.split("subject")[0]].tolist() == [1, 3, 1, 3]
    assert store.meta["protocols"] == {"subject": {"field": "subject", "train": [1, 3]}}


def test_clips_are_sorted_by_name(tmp_path):
    names = np.array(["f", "b", "d", "a", "c", "e"])
    file = save(tmp_path, name=names)
    store = load(file, tmp_path / "a", normalise=False)
    assert store.names.tolist() == sorted(names)
    for n, name in enumerate(store.names):
        source = names.tolist().index(name)
        assert store.label[n] == arrays()["label"][source]
        assert store.clip(n)[0, 0, 0].tolist() == arrays()["x"][source, :, 0, 0, 0].tolist()
    assert store.names[store.split("split")[0]].tolist() == ["a", "b", "d", "f"]


def test_names_of_classes_joints_and_bones_of_the_file(tmp_path):
    file = save(
        tmp_path,
        **arrays(joints=4, bodies=1),
        class_names=np.array(["sit", "stand", "lie"]),
        joint_names=np.array(["hip", "chest", "left arm", "right arm"]),
        parents=np.array([-1, 0, 1, 1]),
        fps=np.float32(120),
    )
    roles = {"hip": "hip", "spine": "1", "left_shoulder": "left arm", "right_shoulder": 3}
    store = load(file, tmp_path / "a", skeleton=None, roles=roles, name="arms")
    assert (store.name, store.fps, store.class_names) == ("arms", 120.0, ("sit", "stand", "lie"))
    assert store.skeleton.bones == ((1, 0), (2, 1), (3, 1))
    assert store.skeleton.mirror == (0, 1, 3, 2)
    first = store.clip(0)[0, 0]
    np.testing.assert_allclose(first[1], 0, atol=1e-6)  # the spine is the origin
    np.testing.assert_allclose(first[0, :2], 0, atol=1e-6)  # and the hip is below it
    assert first[0, 2] < 0


def test_joints_in_ntu_order(tmp_path):
    index = np.random.default_rng(1).permutation(31)[:25]
    file = save(tmp_path, **arrays(joints=31), ntu25_index=index)
    plain = load(file, tmp_path / "a", skeleton="file", normalise=False)
    assert plain.skeleton.num_joints == 31
    store = load(file, tmp_path / "b", skeleton=None, normalise=False)
    assert store.skeleton == NTU25
    np.testing.assert_array_equal(store.frames, plain.frames[:, index])


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        (None, [-1] * 6),
        (np.array([0, 1, 2, 0, 1, 2.0]), [0, 1, 2, 0, 1, 2]),
        (np.array([0, 1, 2, 0, 1, 2])[:, None], [0, 1, 2, 0, 1, 2]),
        (np.array([0, -1, 2, 0, -1, -1]), [0, -1, 2, 0, -1, -1]),
    ],
)
def test_labels_are_class_indices_or_unknown(tmp_path, label, wanted):
    store = load(save(tmp_path, label=label), tmp_path / "out")
    assert store.label.tolist() == wanted
    assert store.class_names == tuple(f"class {c}" for c in range(max(wanted) + 1))
    train, test = store.labelled_split("split")
    assert [wanted[n] for n in (*train, *test)] == [label for label in wanted if label >= 0]


ODD_LABELS = {
    "no class 0": (
        [1, 2, 1, 2, 1, 2],
        ["no clip has label 0 (class 0); do the labels count from 1? Then the names are one off"],
    ),
    "a class that only tests": (
        [0, 1, 0, 1, 2, 1],
        [
            "split: classes without a labelled training clip (class 2): 1 of 2 test clips count as errors, "
            "whatever the encoder"
        ],
    ),
    "one class to train on": (
        [1, 1, 1, 1, 1, 0],
        [
            "split: classes without a labelled training clip (class 0): 1 of 2 test clips count as errors, "
            "whatever the encoder",
            "split: all labelled training clips are of one class (class 1), which is then said of every test clip; "
            "its accuracies tell nothing of the encoder",
        ],
    ),
    "some without": ([0, -1, 1, -1, 0, 1], ["2 of 6 clips have no label; evaluations leave them out"]),
    "none": ([-1] * 6, []),
    "nothing odd": ([0, 1, 2, 0, 1, 2], []),
}


@pytest.mark.parametrize("odd", ODD_LABELS)
def test_odd_labels_are_told(tmp_path, odd):
    labels, notes = ODD_LABELS[odd]
    store = load(save(tmp_path, label=np.array(labels)), tmp_path / "out")
    assert label_notes(store, "split") == notes
    said = describe(store)
    assert all(f"warning: {note}" in said for note in notes)
    assert ("no label" in said.split("class ")[-1]) == (-1 in labels)
    assert why_not_evaluated(store, "split") == (
        f"protocol = 'split' leaves no labelled training clip in {store.path}" if odd == "none" else None
    )


@pytest.mark.parametrize(
    ("clips", "said"), [(100, ""), (95, "note: it has 100 clips"), (89, "warning: it has 100 clips; ")]
)
def test_fewer_clips_than_published_are_told(clips, said, capsys):
    say_published(range(clips), "it", 100)
    printed = capsys.readouterr().out.strip()
    assert printed.startswith(said) and bool(printed) == bool(said)


def test_all_clips_may_train(tmp_path):
    store = load(save(tmp_path), tmp_path / "a", train=None)
    assert (store.protocols, store.part.tolist()) == (("all",), [0] * 6)
    assert [len(side) for side in store.split("all")] == [6, 0]
    store = load(save(tmp_path), tmp_path / "b", train="subject=1,2,3")
    assert [len(side) for side in store.split("subject")] == [6, 0]


def test_texts_of_files_from_windows_end_without_cr(tmp_path):
    names = np.array([f"{letter}\r" for letter in "abcdef"])
    store = load(save(tmp_path, name=names, split=np.array(["train\r"] * 4 + ["test\r"] * 2)), tmp_path / "out")
    assert store.names.tolist() == list("abcdef")
    assert len(store.split("split")[0]) == 4


def test_kinect20(tmp_path):
    store = load(save(tmp_path, **arrays(joints=20, bodies=1)), tmp_path / "a", skeleton="kinect20")
    assert (store.skeleton, store.max_bodies) == (KINECT20, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": None}, "lacks x; it holds num_frames, label"),
        ({"label": None, "num_frames": None}, "lacks num_frames; it holds x, subject, split"),
        (
            {"x": np.zeros((6, 5, 25, 3), np.float32)},
            r"x is float32 \(6, 5, 25, 3\), expected floats \(N, 3, T, V, M\): clips, xyz, frames, joints, bodies; "
            r"make that of \(N, T, V, 3\) by x\.transpose\(0, 3, 1, 2\)\[\.\.\., None\]$",
        ),
        ({"x": np.zeros((6, 5, 1, 25, 3), np.float32)}, r"of \(N, T, M, V, 3\) by x\.transpose\(0, 4, 1, 3, 2\)$"),
        ({"x": np.zeros((6, 3, 5, 25), np.float32)}, r"of \(N, 3, T, V\) by x\[\.\.\., None\]$"),
        ({"x": np.zeros((5, 25, 3), np.float32)}, r"of one clip \(T, V, 3\) by x\.transpose\(2, 0, 1\)\[None, \.\.\."),
        ({"x": np.zeros((6, 3, 5, 25, 1), int)}, "x is int64"),
        ({"label": np.zeros(5, int)}, r"label is int64 \(5,\), expected 6 integers"),
        ({"label": np.full(6, 0.5)}, "label 0.5 of clip 0 is no class index"),
        ({"label": np.zeros(6, bool)}, "label is bool"),
        ({"label": np.array([0, 1, -2, 0, 1, 2])}, "label -2 of clip 2 is no class index"),
        ({"class_names": np.array(["sit", "stand"])}, "label 2 has no name: class_names holds 2"),
        ({"name": np.array(["a"] * 6)}, "'a' belongs to 6 clips"),
        ({"subject": np.array(["mm"] * 6)}, "subject is <U2"),
        ({"parents": np.arange(24)}, r"parents is int64 \(24,\), expected 25 integers"),
        ({"ntu25_index": np.arange(25) + 1}, "outside of the 25 joints"),
        ({"fps": np.array([30, 30])}, r"fps is \[30 30\], expected one positive number"),
        ({"fps": np.float32(np.nan)}, "fps is nan"),
        ({"split": np.array([{}] * 6)}, "'split': it holds Python objects, which are never loaded; save plain numbers"),
        ({"subject": np.array([1, 2, 3, 1, 2, 2**31])}, "subject 2147483648 of clip 5"),
        ({"subject": np.array([1, -2, 3, 1, 2, 3])}, "subject -2 of clip 1"),
        ({"label": np.array([0, 1, 2, 0, 1, 2**33])}, "label 8589934592 of clip 5"),
        ({"label": np.array([0, 1, 2, 0, 1, 20230])}, "label 20230 of clip 5 is no class index"),
        ({"x": np.ones((6, 3, 5, 25, 4), np.float32)}, "x holds 4 bodies a clip"),
    ],
)
def test_faulty_arrays(tmp_path, changes, message):
    with pytest.raises(PrepareError, match=message):
        load(save(tmp_path, **changes), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "split"}, "not of the form KEY=V1,V2"),
        ({"train": "split="}, "not of the form KEY=V1,V2"),
        ({"train": "actor=1"}, "no key 'actor' with one value a clip; there are: label, subject, split"),
        ({"train": "x=1"}, "no key 'x'"),
        ({"train": "split=train,val"}, "split is never val; its values are test, train"),
        ({"skeleton": "kinect20"}, "x has 25 joints, --skeleton kinect20 has 20"),
        ({"skeleton": "kinect21"}, "there is no skeleton 'kinect21'; choose from ntu25, kinect20, coco17"),
        ({"skeleton": None}, "give --hip, --spine"),
        ({"roles": {"hip": "tail"}}, "no joint named 'tail'; there are: spine base"),
        ({"roles": {"hip": "25"}}, r"joint 25 is outside of 0\.\.24"),
    ],
)
def test_faulty_options(tmp_path, options, message):
    with pytest.raises(PrepareError, match=message):
        load(save(tmp_path), tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def faulty_clips():
    values = arrays()
    values["num_frames"][0], values["num_frames"][1] = 0, 6
    values["x"][2, 0, 0, 3, 0] = np.nan
    values["x"][3] = 0
    values["split"][4] = "train"
    return values


def test_the_first_bodies_that_are_there_are_kept(tmp_path, capsys):
    values = arrays(bodies=4)
    values["x"] = np.random.default_rng(0).standard_normal(values["x"].shape).astype(np.float32)
    values["x"][2, ..., 0] = 0
    file = save(tmp_path, **values)
    with pytest.raises(PrepareError, match="x holds 4 bodies a clip; --max-bodies 2 keeps the first two"):
        load(file, tmp_path / "out")
    for most in (1, 2):
        store = load(file, tmp_path / str(most), normalise=False, max_bodies=most)
        for n, x in enumerate(values["x"]):
            first = slice(1, 1 + most) if n == 2 else slice(most)
            np.testing.assert_array_equal(
                store.clip(n), x[:, : values["num_frames"][n], :, first].transpose(1, 3, 2, 0)
            )
        assert store.meta["bodies_cut"] == 6
    for most in (0, 3):
        with pytest.raises(PrepareError, match=f"max_bodies must be >= 1 and <= 2, got {most}"):
            load(file, tmp_path / "out", max_bodies=most)
    command = ["npz", "--file", str(file), "--out", str(tmp_path / "c"), "--skeleton", "ntu25", "--max-bodies", "1"]
    assert main(command) == 0
    assert "note: 6 clips had more bodies than --max-bodies" in capsys.readouterr().out


def test_faulty_clips_are_left_out_and_listed(tmp_path):
    store = load(save(tmp_path, **faulty_clips()), tmp_path / "out")
    assert store.names.tolist() == ["4", "5"]
    assert [tuple(entry.values()) for entry in store.skipped()] == [
        ("0", "num_frames out of range", "clip 0: num_frames is 0, expected 1 to 5"),
        ("1", "num_frames out of range", "clip 1: num_frames is 6, expected 1 to 5"),
        ("2", "NaN or infinite coordinates", "clip 2: NaN or infinite coordinates, first in frame 0"),
        ("3", "all coordinates are zero", "clip 3: all coordinates are zero"),
    ]
    with pytest.raises(PrepareError, match=r"clip 0 \(0\): num_frames is 0"):
        load(tmp_path / "set.npz", tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()


def test_a_side_without_usable_clips_is_an_error(tmp_path):
    values = arrays()
    values["num_frames"][4:] = 0
    with pytest.raises(PrepareError, match=r"left to test on \(2 num_frames"):
        load(save(tmp_path, **values), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["set.npz"]


def test_nan_in_the_padding_is_no_fault(tmp_path):
    values = arrays()
    values["x"][0, :, 3:] = np.nan
    assert len(load(save(tmp_path, **values), tmp_path / "out")) == 6


def test_missing_damaged_and_single_array_files(tmp_path):
    with pytest.raises(PrepareError, match="there is no file"):
        load(tmp_path / "set.npz", tmp_path / "out")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(PrepareError, match="holds one array"):
        load(tmp_path / "x.npy", tmp_path / "out")
    file = save(tmp_path)
    for content in (b"", b"PK\x03\x04 truncated", b"\x80\x04K\x01.", file.read_bytes()[:-3000]):
        file.write_bytes(content)
        with pytest.raises(PrepareError, match=r"set\.npz is not a readable \.npz file"):
            load(file, tmp_path / "out")


def test_command_line(tmp_path, capsys):
    file = save(tmp_path, **arrays(joints=4))
    command = ["npz", "--file", str(file), "--out", str(tmp_path / "toy"), "--train", "split=train"]
    assert main(command) == 1
    assert "error: normalisation needs to know four joints" in capsys.readouterr().err
    assert main([*command, "--hip", "0", "--spine", "1", "--left-shoulder", "2", "--right-shoulder", "3"]) == 0
    assert "split: 4 training clips, 2 test clips" in capsys.readouterr().out
    assert main([*command, "--no-normalise", "--overwrite"]) == 0
    assert PackedStore.open(tmp_path / "toy").meta["normalisation"] == "none"


@pytest.mark.shared
@pytest.mark.skipif(not HDM05.exists(), reason=f"needs {HDM05}, which the repository does not ship")
def test_hdm05(tmp_path):
    store = import_npz(HDM05, tmp_path / "hdm05", train="split=train", strict=True)
    assert (len(store), store.num_classes, store.max_bodies, store.skeleton) == (287, 11, 1, NTU25)
    with np.load(HDM05) as source:
        order = np.argsort(source["name"])
        assert store.names.tolist() == source["name"][order].tolist()
        assert store.num_frames.tolist() == source["num_frames"][order].tolist()
        train = source["split"][order] == "train"
    assert store.split("split")[0].tolist() == np.flatnonzero(train).tolist()
    for n in range(len(store)):
        first = store.clip(n)[0, 0]
        assert abs(first[NTU25.spine]).max() < 1e-6
        assert first[NTU25.hip, 2] < 0
        assert first[NTU25.left_shoulder, 0] > first[NTU25.right_shoulder, 0]


def test_strings_stored_as_bytes_are_text(tmp_path):
    split = np.array(["train"] * 4 + ["test"] * 2).astype("S5")
    store = load(save(tmp_path, split=split, class_names=np.array([b"a", b"b", b"c"])), tmp_path / "toy")
    assert store.class_names == ("a", "b", "c")
    assert len(store.split("split")[0]) == 4
