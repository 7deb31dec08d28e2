"""Training and test arrays in one .npz file, in the layout of CTR-GCN."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from padded_clips import padded, unpadded

from fastmc.data.formats.ctrgcn import import_ctrgcn
from fastmc.data.formats.npz import import_npz
from fastmc.data.formats.ntu_splits import NTU60_CLASS_NAMES, NTU120_CLASS_NAMES
from fastmc.data.packing import PrepareError
from fastmc.data.store import PackedStore
from fastmc.skeleton import KINECT20, NTU25
from train.prepare import main


def flat(x):
    """(N, T, M*V*3), as CTR-GCN writes its arrays."""
    return x.transpose(0, 2, 4, 3, 1).reshape(len(x), x.shape[2], -1)


def one_hot(labels, classes=60):
    return np.eye(classes)[labels]


def arrays(**changes):
    values = {
        "x_train": flat(padded()),
        "y_train": one_hot([59, 0, 3, 3]),
        "x_test": flat(padded(3, seed=1)),
        "y_test": one_hot([1, 2, 58]),
        **changes,
    }
    return {key: value for key, value in values.items() if value is not None}


def save_npz(folder, compressed=False, **changes):
    (np.savez_compressed if compressed else np.savez)(folder / "NTU60_CS.npz", **arrays(**changes))
    return folder / "NTU60_CS.npz"


FORMS = {
    "as written": {},
    "compressed": {"compressed": True},
    "float64": {"x_train": flat(padded()).astype(np.float64)},
    "five axes": {"x_train": padded(), "x_test": padded(3, seed=1)},
    "other lengths": {"x_test": flat(padded(3, seed=1))[:, :5]},
    "integer labels": {"y_train": np.array([59, 0, 3, 3]), "y_test": np.array([1, 2, 58], np.uint8)},
    "a column of whole floats": {"y_train": np.array([[59.0], [0], [3], [3]]), "y_test": np.array([1.0, 2, 58])},
    "boolean labels": {"y_train": one_hot([59, 0, 3, 3]).astype(bool), "y_test": one_hot([1, 2, 58]).astype(bool)},
}


@pytest.mark.parametrize("form", FORMS)
def test_clips_come_without_padding(tmp_path, form):
    store = import_ctrgcn(save_npz(tmp_path, **FORMS[form]), tmp_path / "out", normalise=False)
    assert (store.name, store.skeleton, store.protocols) == ("out", NTU25, ("split",))
    assert store.names.tolist() == ["test-0", "test-1", "test-2", "train-0", "train-1", "train-2", "train-3"]
    assert store.label.tolist() == [1, 2, 58, 59, 0, 3, 3]
    assert store.split("split")[0].tolist() == [3, 4, 5, 6]
    for first, x in ((0, padded(3, seed=1)), (3, padded())):
        for row in range(len(x)):
            np.testing.assert_array_equal(store.clip(first + row), unpadded(x, row))
    assert store.class_names == NTU60_CLASS_NAMES


@pytest.mark.parametrize("joints, bodies", [(25, 1), (20, 2), (20, 1)])
def test_other_joints_and_bodies(tmp_path, joints, bodies):
    x = padded(joints=joints, bodies=bodies)
    store = import_ctrgcn(save_npz(tmp_path, x_train=flat(x), x_test=flat(x[:3])), tmp_path / "out", normalise=False)
    assert store.skeleton == (NTU25 if joints == 25 else KINECT20)
    np.testing.assert_array_equal(store.clip(6), unpadded(x, 3))


def test_class_names(tmp_path):
    hot = {"y_train": one_hot([3, 0, 1, 1], 120), "y_test": one_hot([1, 2, 119], 120)}
    assert import_ctrgcn(save_npz(tmp_path, **hot), tmp_path / "a").class_names == tuple(NTU120_CLASS_NAMES)
    few = {"y_train": np.array([3, 0, 1, 1]), "y_test": np.array([1, 2, 4])}
    file = save_npz(tmp_path, **few)
    assert import_ctrgcn(file, tmp_path / "b").class_names == tuple(f"class {n}" for n in range(5))
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\ne\n")
    assert import_ctrgcn(file, tmp_path / "c", class_names=tmp_path / "names.txt").class_names == tuple("abcde")
    x = padded(joints=20)
    file = save_npz(tmp_path, x_train=flat(x), x_test=flat(x[:3]))  # 60 classes, but not NTU's joints
    assert import_ctrgcn(file, tmp_path / "d").class_names[59] == "class 59"


def test_faulty_clips_are_left_out_and_listed(tmp_path):
    x = padded()
    x[1, 0, 1, 3, 0] = np.inf
    x[2] = 0
    file = save_npz(tmp_path, x_train=flat(x))
    store, not_finite = import_ctrgcn(file, tmp_path / "out"), "NaN or infinite coordinates"
    assert [tuple(entry.values()) for entry in store.skipped()] == [
        ("train-1", not_finite, f"{file}, x_train, clip 1: {not_finite}, first in frame 1"),
        ("train-2", "all coordinates are zero", f"{file}, x_train, clip 2: all coordinates are zero"),
    ]
    with pytest.raises(PrepareError, match=r"x_train, clip 1 \(train-1\): NaN or infinite"):
        import_ctrgcn(file, tmp_path / "strict", strict=True)
    with pytest.raises(PrepareError, match="no usable clip is left to test on"):
        import_ctrgcn(save_npz(tmp_path, x_test=flat(padded(3)) * 0), tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["NTU60_CS.npz", "out"]


def twice(labels):
    hot = one_hot(labels)
    hot[1, 7] = 1
    return hot


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "lacks x_test; it holds x_train, y_train, y_test .arrays x, num_frames"),
        ({"y_train": None, "y_test": None}, "lacks y_train, y_test"),
        (
            {"x_train": flat(padded(joints=24))},
            r"x_train holds 144 numbers a frame, expected 150 \(M = 2, V = 25\),",
        ),
        ({"x_train": padded(joints=24)}, "x_train has 24 joints, expected 25"),
        (
            {"x_train": padded(bodies=3), "x_test": padded(3, bodies=3)},
            "x_train holds 3 bodies a clip; --max-bodies 2 keeps",
        ),
        ({"x_train": flat(padded(joints=20))}, "x_train and x_test differ in joints or bodies"),
        ({"x_train": flat(padded())[0]}, r"x_train is float32 \(8, 150\), expected floats \(N, T, M\*V\*3\)"),
        ({"x_train": flat(padded()).astype(int)}, "x_train is int64"),
        ({"x_train": padded()[:, :2]}, r"x_train is float32 \(4, 2, 8, 25, 2\)"),
        ({"x_train": flat(padded())[:0]}, r"x_train is float32 \(0, 8, 150\), which holds nothing"),
        ({"x_train": np.asfortranarray(flat(padded()))}, "x_train is stored column by column"),
        ({"x_train": np.array([{}] * 4)}, "'x_train' is an object array, which is never loaded"),
        ({"x_train": flat(padded())[:3]}, "x_train has 3 clips, y_train 4 labels"),
        ({"y_train": np.array([{}] * 4)}, "'y_train' is an object array"),
        ({"y_train": twice([59, 0, 3, 3])}, "row 1 of y_train is not one-hot: 2 values are not zero"),
        ({"y_train": one_hot([59, 0, 3, 3]) * 0}, "row 0 of y_train is not one-hot: 0 values"),
        ({"y_train": one_hot([59, 0, 3, 3]) * np.nan}, "row 0 of y_train is not one-hot"),
        (
            {"y_train": one_hot([1, 5, 59, 3]) * 7},
            "row 0 of y_train is not one-hot: 1 values are not zero, one must",
        ),
        ({"y_train": np.array([1.5, 0, 3, 3])}, "label 1.5 in row 0 of y_train"),
        ({"y_train": np.array([1, 0, -3, 3])}, "label -3 in row 2 of y_train"),
        ({"y_train": np.array(["a"] * 4)}, "y_train is <U1"),
        ({"y_train": np.array([1, 0, 3, 3])}, "y_train and y_test differ in their form"),
        ({"y_train": one_hot([1, 0, 3, 3], 61)}, "y_train and y_test differ in their form or their number of classes"),
    ],
)
def test_faulty_arrays(tmp_path, changes, message):
    with pytest.raises(PrepareError, match=message):
        import_ctrgcn(save_npz(tmp_path, **changes), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["NTU60_CS.npz"]


def member(array):
    """The bytes of a .npy file."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def save_members(file, **members):
    with zipfile.ZipFile(file, "w") as archive:
        for key, value in arrays().items():
            archive.writestr(f"{key}.npy", members.get(key, member(value)))
    return file


def test_damaged_and_truncated_files(tmp_path):
    unreadable, x, y = "is not a readable .npz file", member(arrays()["x_train"]), member(arrays()["y_test"])
    for members, message in (
        ({"x_train": x[:-40]}, "is truncated: x_train ends in row 3 of 4"),
        ({"x_test": member(arrays()["x_test"])[: -8 * 600 - 1]}, "is truncated: x_test ends in row 1 of 3"),
        ({"y_test": y[:-1]}, "is truncated: y_test ends in row 2 of 3"),
        ({"x_train": x[:30]}, unreadable),
        ({"x_train": b""}, unreadable),
        ({"x_train": b"1 2 3"}, unreadable),
        ({"x_train": b"\x93NUMPY\x09\x00" + bytes(40)}, r"x_train is written in version \(9, 0\)"),
    ):
        file = save_members(tmp_path / "NTU60_CS.npz", **members)
        with pytest.raises(PrepareError, match=message):
            import_ctrgcn(file, tmp_path / "out")
    whole = file.read_bytes()
    for content in (b"", b"PK\x03\x04 truncated", pickle.dumps([1]), whole[:-3000], whole[:-100]):
        file.write_bytes(content)
        with pytest.raises(PrepareError, match=unreadable):
            import_ctrgcn(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["NTU60_CS.npz"]
    with pytest.raises(PrepareError, match=r"there is no file .*none\.npz; give --file(.|\n)*CTR-GCN writes it"):
        import_ctrgcn(tmp_path / "none.npz", tmp_path / "out")


@pytest.mark.parametrize("compressed", [False, True])
def test_changed_bytes_are_found(tmp_path, compressed):
    file = save_npz(tmp_path, compressed=compressed)
    content = bytearray(file.read_bytes())
    start = content.index(b"x_train.npy")
    content[start + 1000] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(PrepareError, match=r"is not a readable \.npz file"):
        import_ctrgcn(file, tmp_path / "out", normalise=False)
    assert [path.name for path in tmp_path.iterdir()] == ["NTU60_CS.npz"]


def test_command_line(tmp_path, capsys):
    file = save_npz(tmp_path)
    command = ["ctrgcn", "--file", str(file), "--out", str(tmp_path / "out"), "--protocol", "xsub"]
    assert main(command) == 0
    assert "xsub: 4 training clips, 3 test clips" in capsys.readouterr().out
    assert main([*command, "--overwrite", "--no-normalise", "--name", "ntu60-cs"]) == 0
    store = PackedStore.open(tmp_path / "out")
    assert (store.name, store.meta["normalisation"]) == ("ntu60-cs", "none")
    assert main(["npz", "--file", str(file), "--out", str(tmp_path / "b"), "--train", "split=train"]) == 1
    assert f"python -m train.prepare ctrgcn --file {file}" in capsys.readouterr().err
    with pytest.raises(PrepareError, match="has the layout of CTR-GCN"):
        import_npz(file, tmp_path / "b", train="split=train")


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_are_never_whole_in_memory(tmp_path, compressed):
    x = np.random.default_rng(0).standard_normal((120, 3, 100, 25, 2)).astype(np.float32)  # 7.2 MB
    labels = {"y_train": np.zeros(len(x), int), "y_test": np.zeros(1, int)}
    file = save_npz(tmp_path, compressed, x_train=flat(x), x_test=flat(x[:1]), **labels)
    size = x.nbytes
    del x
    tracemalloc.start()
    try:
        store = import_ctrgcn(file, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(store) == 121
    assert peak < size / 2


def test_a_second_body_that_is_the_first_again_is_left_out(tmp_path):
    """As CTR-GCN's code for NTU-120 writes clips of one person."""
    x = padded()
    copied = x.copy()
    copied[::2, ..., 1] = copied[::2, ..., 0]  # every other clip of `padded` has one body
    store = import_ctrgcn(save_npz(tmp_path, x_train=flat(copied)), tmp_path / "out")
    plain = import_ctrgcn(save_npz(tmp_path, x_train=flat(x)), tmp_path / "plain")
    assert store.num_bodies.tolist() == plain.num_bodies.tolist() == [1, 2, 1, 1, 2, 1, 2]
    assert store.content_checksum == plain.content_checksum
    assert (store.meta["copied_bodies_cut"], plain.meta["copied_bodies_cut"]) == (2, 0)
