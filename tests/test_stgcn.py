"""Arrays with label pickles, in the layout of ST-GCN and the codes after it."""

from __future__ import annotations

import os
import pickle
import re
import tracemalloc

import numpy as np
import pytest
from padded_clips import FRAMES, padded, unpadded

from fastmc.data.clips import used_frames
from fastmc.data.formats.ntu_splits import NTU60_CLASS_NAMES, NTU60_PROTOCOLS, NTU120_CLASS_NAMES, NTU120_PROTOCOLS
from fastmc.data.formats.stgcn import import_stgcn
from fastmc.data.packing import PrepareError
from fastmc.data.store import PackedStore
from fastmc.skeleton import KINECT20, NTU25
from train.prepare import main

NAMES = {
    "train": [f"S001C00{c}P001R001A0{a:02}.skeleton" for a, c in ((60, 3), (2, 2), (7, 2), (9, 1))],
    "test": [f"S001C00{c}P003R002A0{a:02}.skeleton" for a, c in ((60, 1), (1, 2), (7, 3))],
}


def save_part(folder, part, x, names=None, labels=None, pickled=None):
    """(data file, label file) of a part."""
    names = NAMES[part] if names is None else names
    labels = [int(name[17:20]) - 1 for name in NAMES[part]] if labels is None else labels
    data, label = folder / f"{part}_data_joint.npy", folder / f"{part}_label.pkl"
    np.save(data, x)
    label.write_bytes(pickle.dumps((names, labels)) if pickled is None else pickled)
    return data, label


def save_both(folder, **changes):
    train = {"x": padded(), **changes}
    return save_part(folder, "train", **train), save_part(folder, "test", padded(3, seed=1))


def test_clips_come_without_padding(tmp_path):
    store = import_stgcn(*save_both(tmp_path), tmp_path / "out", normalise=False)
    assert (store.name, store.skeleton, store.fps) == ("out", NTU25, 30.0)
    assert store.names.tolist() == sorted(name[:20] for part in NAMES.values() for name in part)
    for part, x in (("train", padded()), ("test", padded(3, seed=1))):
        for row, name in enumerate(NAMES[part]):
            n = store.names.tolist().index(name[:20])
            np.testing.assert_array_equal(store.clip(n), unpadded(x, row))
            assert store.part[n] == ("train", "test").index(part)
            numbers = [int(number) for number in re.findall(r"\d+", name)]
            fields = [store.setup[n], store.camera[n], store.subject[n], store.replication[n], store.label[n] + 1]
            assert fields == numbers
    assert store.class_names == NTU60_CLASS_NAMES
    assert (store.meta["normalisation"], store.meta["repeats_cut"]) == ("none", 0)


def test_protocols_by_file_and_by_names(tmp_path):
    store = import_stgcn(*save_both(tmp_path), tmp_path / "a")
    assert store.protocols == ("split", "xsub", "xview")
    trains = {name[:20] for name in NAMES["train"]}
    for protocol in ("split", "xsub"):  # performer 1 trains, 3 tests
        train, test = store.split(protocol)
        assert set(store.names[train]) == trains
        assert len(train) + len(test) == 7
    assert set(store.camera[store.split("xview")[0]]) == {2, 3}
    assert store.meta["protocols"]["xview"] == NTU60_PROTOCOLS["xview"]
    store = import_stgcn(*save_both(tmp_path), tmp_path / "b", protocol="xsub")
    assert store.protocols == ("xsub", "xview")
    assert store.meta["protocols"]["xsub"] == {"field": "part", "train": [0], "values": ["train", "test"]}


def test_names_of_ntu120(tmp_path):
    train = save_part(tmp_path, "train", padded(1), ["S018C001P008R001A061"], [60])
    test = save_part(tmp_path, "test", padded(1), ["S019C001P045R001A120"], [119])
    store = import_stgcn(train, test, tmp_path / "out")
    assert store.class_names == tuple(NTU120_CLASS_NAMES)
    assert store.protocols == ("split", *NTU120_PROTOCOLS)


def test_labels_of_their_own(tmp_path):
    store = import_stgcn(*save_both(tmp_path, labels=[0, 1, 2, 3]), tmp_path / "a")
    assert store.class_names[:2] == ("class 0", "class 1")
    (tmp_path / "names.txt").write_text("\n".join(f"name {n}" for n in range(60)) + "\n\n")
    store = import_stgcn(*save_both(tmp_path), tmp_path / "b", class_names=tmp_path / "names.txt", name="own")
    assert (store.class_names[59], store.name) == ("name 59", "own")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(PrepareError, match=r"names\.txt holds 2 class names, the labels need 60"):
        import_stgcn(*save_both(tmp_path), tmp_path / "c", class_names=tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("one\n\ntwo\n" + "more\n" * 60)  # each was one off from there on
    with pytest.raises(PrepareError, match=r"names\.txt, line 2 is blank: it stands for class 1"):
        import_stgcn(*save_both(tmp_path), tmp_path / "c", class_names=tmp_path / "names.txt")
    with pytest.raises(PrepareError, match="cannot read class names"):
        import_stgcn(*save_both(tmp_path), tmp_path / "c", class_names=tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["a", "b", "c", "d"], np.array([3, 1, 0, 2])),
        (np.array(["a", "b", "c", "d"]), [np.int64(3), np.int32(1), 0, 2]),
        ((b"a", b"b", b"c", b"d"), (3, 1, 0, 2)),
        ([10, 11, 12, 13], [3, 1, 0, 2]),
        (["a", "b\r", "c", "d\n"], [3.0, np.float32(1), 0.0, 2.0]),
        (["a", "b", "c", "d"], np.array([[3], [1], [0], [2]])),
    ],
)
def test_other_names_and_forms_of_labels(tmp_path, names, labels):
    train = save_part(tmp_path, "train", padded(), names, labels)
    store = import_stgcn(train, save_part(tmp_path, "test", padded(1), ["z"], [0]), tmp_path / "out")
    texts = [name.decode() if isinstance(name, bytes) else str(name).strip() for name in names]
    assert store.names.tolist() == [*texts, "z"]
    assert store.label.tolist() == [3, 1, 0, 2, 0]
    assert set(store.subject) == {-1}
    assert store.protocols == ("split",)
    assert store.class_names == ("class 0", "class 1", "class 2", "class 3")


@pytest.mark.parametrize("labels", [np.array([3, 1, 0, 2]), np.array([[3.0], [1], [0], [2]])])
def test_labels_alone_in_an_array(tmp_path, labels):
    (data, pickled), test = save_both(tmp_path)
    np.save(tmp_path / "train_label.npy", labels)
    store = import_stgcn((data, tmp_path / "train_label.npy"), test, tmp_path / "named")
    given = dict(zip(store.names.tolist(), store.label.tolist(), strict=True))
    assert [given[name[:20]] for name in NAMES["train"]] == [3, 1, 0, 2], "names of the pickle, labels of the array"
    assert store.protocols == ("split", "xsub", "xview")
    pickled.unlink()
    store = import_stgcn((data, tmp_path / "train_label.npy"), test, tmp_path / "numbered")
    assert [store.label[store.names.tolist().index(str(n))] for n in range(4)] == [3, 1, 0, 2]
    assert store.protocols == ("split",)
    np.save(tmp_path / "train_label.npy", np.eye(4))
    with pytest.raises(PrepareError, match=r"train_label\.npy is not a label file: expected labels \(N,\) or \(N, 1\)"):
        import_stgcn((data, tmp_path / "train_label.npy"), test, tmp_path / "out")


def test_names_that_both_files_count_anew(tmp_path):
    train = save_part(tmp_path, "train", padded(), ["0", "1", "2", "3"], [0] * 4)
    store = import_stgcn(train, save_part(tmp_path, "test", padded(2), ["0", "1"], [0] * 2), tmp_path / "out")
    assert store.names.tolist() == ["test-0", "test-1", "train-0", "train-1", "train-2", "train-3"]
    assert store.split("split")[0].tolist() == [2, 3, 4, 5]


def test_of_20_joints_and_one_body_and_of_others(tmp_path):
    def both(**shape):
        return save_part(tmp_path, "train", padded(**shape)), save_part(tmp_path, "test", padded(3, **shape))

    store = import_stgcn(*both(joints=20, bodies=1), tmp_path / "out")
    assert (store.skeleton, store.max_bodies) == (KINECT20, 1)
    for shape, message in (({"joints": 18}, "has 18 joints, expected 25 .ntu25. or 20"), ({"bodies": 3}, "3 bodies")):
        with pytest.raises(PrepareError, match=message):
            import_stgcn(*both(**shape), tmp_path / "none")


@pytest.mark.parametrize("own", [2, 7])
def test_clips_padded_by_repetition_are_cut_to_their_first_period(tmp_path, own):
    """As 2s-AGCN pads: each body repeats its own frames until T is full; here the second one has one frame less."""
    x = padded(seed=3)
    frames = np.random.default_rng(4).standard_normal((2, 3, own, 25)).astype(np.float32)
    for t in range(FRAMES):
        x[2, :, t, :, 0] = frames[0, :, t % own]
        x[2, :, t, :, 1] = frames[1, :, t % max(1, own - 1)]
    store = import_stgcn(*save_both(tmp_path, x=x), tmp_path / "out", normalise=False)
    clip = store.clip(store.names.tolist().index(NAMES["train"][2][:20]))
    np.testing.assert_array_equal(clip, x[2, :, :own].transpose(1, 3, 2, 0))
    assert store.meta["repeats_cut"] == 1


def test_frames_of_a_clip():
    clip = np.random.default_rng(0).standard_normal((6, 2, 25, 3))
    assert used_frames(clip) == 6
    clip[4:, 0] = 0  # the second body stays
    assert used_frames(clip) == 6
    clip[4:] = 0
    clip[:2] = 0  # time before the first body is seen
    assert used_frames(clip) == 4
    held = np.concatenate([clip[2:4], clip[3:4], clip[3:4]])
    assert used_frames(held) == 4  # a pose that is held is no repetition
    almost = np.concatenate([clip[2:4]] * 3)
    assert used_frames(almost) == 2
    almost[5, 0, 7, 1] += 1e-9
    assert used_frames(almost) == 6
    assert used_frames(np.repeat(clip[2:3, :1], 50, axis=0)) == 50, "a body that stands still keeps its frames"
    clip = np.random.default_rng(0).standard_normal((8, 2, 25, 3)).astype(np.float32)
    clip[:2, 0] = clip[6:, 0] = 0
    assert used_frames(clip) == 8, "a body that is not there at first is no repetition"


def test_faulty_clips_are_left_out_and_listed(tmp_path):
    x = padded()
    x[1, 0, 1, 3, 0] = np.nan
    x[2] = 0
    x[3] = 1  # one point
    files = save_both(tmp_path, x=x)
    store = import_stgcn(*files, tmp_path / "out")
    data, not_finite = files[0][0], "NaN or infinite coordinates"
    coincide = "no frame of body 1 gives a frame of reference: hip and spine, or the shoulders, coincide in all of them"
    assert [tuple(entry.values()) for entry in store.skipped()] == [
        (NAMES["train"][3][:20], "no frame of reference", f"{data}, clip 3: {coincide}"),
        (NAMES["train"][1][:20], "NaN or infinite coordinates", f"{data}, clip 1: {not_finite}, first in frame 1"),
        (NAMES["train"][2][:20], "all coordinates are zero", f"{data}, clip 2: all coordinates are zero"),
    ]
    with pytest.raises(PrepareError, match=r"joint\.npy, clip 3 \(S001C001P001R001A009\): no frame of body 1"):
        import_stgcn(*files, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict").exists()
    x[0] = 0
    with pytest.raises(PrepareError, match=r"no usable clip is left to train on \(2 all coordinates are zero; 1 "):
        import_stgcn(*save_both(tmp_path, x=x), tmp_path / "none")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch ran",)


LABELS = [59, 1, 6, 8]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": padded(joints=24)}, "differ in joints and bodies"),
        ({"x": padded()[..., 0]}, r"is float32 \(4, 3, 8, 25\), expected floats \(N, 3, T, V, M\)"),
        ({"x": padded()[:, :2]}, r"is float32 \(4, 2, 8, 25, 2\)"),
        ({"x": padded().astype(int)}, r"is int64 \(4, 3, 8, 25, 2\)"),
        ({"x": padded()[:0]}, r"is float32 \(0, 3, 8, 25, 2\)"),
        ({"x": np.array([{}] * 4)}, "is not a readable .npy file"),
        ({"names": NAMES["train"][:3]}, r"label\.pkl holds 3 names and 4 labels, .*joint\.npy 4 clips"),
        ({"names": [*NAMES["train"][:3], NAMES["train"][0]]}, "2 clips are named 'S001C003P001R001A060'"),
        ({"names": [*NAMES["train"][:3], NAMES["test"][0]]}, "S001C001P003R002A060 and 0 more clips are in both"),
        ({"names": [*NAMES["train"][:3], ""]}, "'' of clip 3 is no name"),
        ({"names": LABELS, "labels": NAMES["train"]}, "label 'S001C003P001R001A060.skeleton' of clip 0 is no class"),
        ({"labels": [59, 1, -6, 8]}, "label -6 of clip 2 is no class index"),
        ({"labels": [59, 1, 6.5, 8]}, "label 6.5 of clip 2"),
        ({"labels": [59, 1, 10_000, 8]}, "label 10000 of clip 2"),
        ({"labels": np.eye(4)}, "is not a label file: expected a pair of sequences"),
        ({"pickled": pickle.dumps(LABELS)}, "expected a pair of sequences"),
        ({"pickled": pickle.dumps({"names": [], "labels": []})}, "expected a pair of sequences"),
        ({"pickled": b""}, "is not a label file: not a readable pickle"),
        ({"pickled": pickle.dumps((NAMES["train"], LABELS))[:-9]}, "is not a label file: not a readable pickle"),
        ({"pickled": pickle.dumps((NAMES["train"], Malicious()))}, r"it holds (posix|nt)\.system, which is not plain"),
    ],
)
def test_faulty_files(tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    files = save_both(tmp_path, **changes)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(PrepareError, match=message):
        import_stgcn(*files, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before  # no store, and nothing ran


def test_files_that_are_broken_missing_or_swapped(tmp_path):
    train, test = save_both(tmp_path)
    with pytest.raises(PrepareError, match=r"--train: .*label\.pkl is not a readable \.npy file \(the array comes"):
        import_stgcn(train[::-1], test, tmp_path / "out")
    with pytest.raises(PrepareError, match=r"--test: there is no file .*none\.npy; give the paths"):
        import_stgcn(train, (tmp_path / "none.npy", test[1]), tmp_path / "out")
    with pytest.raises(PrepareError, match=r"there is no file .*none\.pkl; the labels of"):
        import_stgcn(train, (test[0], tmp_path / "none.pkl"), tmp_path / "out")
    np.savez(tmp_path / "both.npz", x=padded())
    with pytest.raises(PrepareError, match=r"both\.npz is a \.npz file"):
        import_stgcn((tmp_path / "both.npz", train[1]), test, tmp_path / "out")
    content = train[0].read_bytes()
    for damaged in (content[:-4], content[:50], b"", content.replace(b"}", b" ", 1)):  # the header loses its end
        train[0].write_bytes(damaged)
        with pytest.raises(PrepareError, match=r"--train: .*joint\.npy is not a readable \.npy file"):
            import_stgcn(train, test, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_line(tmp_path, capsys):
    x = padded()
    x[2] = x[2][:, np.arange(FRAMES) % 3]
    train, test = save_both(tmp_path, x=x)
    command = ["npy", "--train", *map(str, train), "--test", *map(str, test), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "split: 4 training clips, 3 test clips" in printed
    assert "note: 1 clips were padded by repetition" in printed
    assert main(command) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--no-normalise", "--protocol", "mine", "--name", "agcn"]) == 0
    store = PackedStore.open(tmp_path / "out")
    assert (store.name, store.protocols[0], store.meta["normalisation"]) == ("agcn", "mine", "none")


def test_arrays_are_never_whole_in_memory(tmp_path):
    x = np.random.default_rng(0).standard_normal((120, 3, 100, 25, 2)).astype(np.float32)  # 7.2 MB
    names = [f"{n:03}" for n in range(len(x))]
    train = save_part(tmp_path, "train", x, names, [0] * len(x))
    test = save_part(tmp_path, "test", x[:1], ["x"], [0])
    size = x.nbytes
    del x
    tracemalloc.start()
    try:
        store = import_stgcn(train, test, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(store) == 121
    assert peak < size / 2


@pytest.mark.parametrize("protocol", ["xsub", "xview"])
def test_files_that_are_not_the_split_that_they_are_called(tmp_path, protocol):
    train, test = save_both(tmp_path)
    if protocol == "xsub":
        train, test = test, train
    with pytest.raises(PrepareError, match=rf"is in .*, but {protocol} as published has it to .* on; exchange"):
        import_stgcn(train, test, tmp_path / "out", protocol=protocol)
    assert len(import_stgcn(train, test, tmp_path / "out", protocol="mine")) == 7


def test_labels_that_count_from_1_are_told(tmp_path, capsys):
    labels = {part: [int(name[17:20]) for name in names] for part, names in NAMES.items()}
    train = save_part(tmp_path, "train", padded(), labels=labels["train"])
    test = save_part(tmp_path, "test", padded(3, seed=1), labels=labels["test"])
    assert main(["npy", "--train", *map(str, train), "--test", *map(str, test), "--out", str(tmp_path / "out")]) == 0
    assert "warning: no clip has label 0 (class 0); do the labels count from 1?" in capsys.readouterr().out
    assert len(PackedStore.open(tmp_path / "out").class_names) == 61
