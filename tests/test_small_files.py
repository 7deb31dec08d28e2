"""A small file takes little memory, whatever it says of itself."""

from __future__ import annotations

import io
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest

from fastmc.data.bytes.matlab import read_numbers
from fastmc.data.bytes.safe_pickle import SafePickleError, load_plain
from fastmc.data.formats.ctrgcn import import_ctrgcn
from fastmc.data.formats.npz import import_npz
from fastmc.data.formats.skeleton_file import RawBody, RawClip
from fastmc.data.formats.stgcn import import_stgcn
from fastmc.data.normalise import choose_bodies
from fastmc.data.packing import PrepareError
from fastmc.data.store import StoreWriter
from fastmc.skeleton import NTU25
from tests.fuzz.formats import npy_bytes, people

pytestmark = pytest.mark.slow


def peak_of(function, *arguments):
    """Result or error of a call, and the most bytes that it had at once."""
    tracemalloc.start()
    try:
        result = function(*arguments)
    except Exception as error:
        result = error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return result, peak


TEXT = b"X" + struct.pack("<I", 500_000) + b"a" * 500_000
CALLS = {
    "texts of Python 2": b"c_codecs\nencode\nq\x00" + TEXT + b"q\x01]" + b"h\x00h\x01\x85Ra" * 1000,
    "arrays of one text": (
        b"cnumpy\ndtype\nX\x02\x00\x00\x00u1K\x00K\x01\x87Rq\x00cnumpy.core.numeric\n_frombuffer\nq\x02"
        + TEXT
        + b"q\x01J\x20\xa1\x07\x00\x85q\x03X\x01\x00\x00\x00Cq\x04]"
        + b"h\x02(h\x01h\x00h\x03h\x04tRa" * 1000
    ),
}
PICKLES = {
    "memo number of 4 bytes": (b"\x80\x02Nr\xff\xff\xff\x07.", "it numbers what it holds up to 134217727, in 9 bytes"),
    "memo number as text": (b"Np134217727\n.", "it numbers what it holds up to 134217727"),
    "sets": (b"\x80\x04(" + b"\x8f" * 1_000_000 + b"l.", "it holds a set"),
    "bytes that are not there": (b"\x80\x05\x8e" + struct.pack("<Q", 1 << 31) + b"a.", "not a readable pickle"),
    "bytearray that is not there": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 31) + b"a.", "not a readable pickle"),
    **{name: (b"\x80\x02" + calls + b".", "it makes much more of its texts") for name, calls in CALLS.items()},
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(name, tmp_path):
    content, message = PICKLES[name]
    file = tmp_path / "label.pkl"
    file.write_bytes(content)
    error, peak = peak_of(load_plain, file)
    assert isinstance(error, SafePickleError) and message in str(error)
    assert peak < 24 * len(content) + (4 << 20)


def test_a_pickle_of_many_clips_is_read(tmp_path):
    value = ([f"S001C001P001R001A{n:06}.skeleton" for n in range(5_000)], list(np.arange(5_000) % 60))
    for protocol in (2, 4):
        file = tmp_path / f"{protocol}.pkl"
        file.write_bytes(pickle.dumps(value, protocol))
        names, labels = load_plain(file)
        assert names == value[0] and list(map(int, labels)) == list(map(int, value[1]))


def test_a_swapped_array_is_not_read_as_labels(tmp_path):
    with open(tmp_path / "data.npy", "wb") as file:
        file.truncate(1 << 33)
    error, peak = peak_of(load_plain, tmp_path / "data.npy")
    assert "no file of names and labels" in str(error) and peak < 1 << 20


def mat(numbers):
    """A compressed file that holds so many zeros, a byte each."""
    data = b"".join(
        struct.pack("<II", kind, len(part)) + part + bytes(-len(part) % 8)
        for kind, part in ((6, struct.pack("<II", 6, 0)), (5, struct.pack("<2i", 1, numbers)), (1, b"x"))
    )
    packer = zlib.compressobj()
    head = struct.pack("<II", 14, len(data) + 8 + numbers) + data + struct.pack("<II", 1, numbers)
    zeros = (packer.compress(bytes(1 << 20)) for _ in range(numbers >> 20))
    packed = packer.compress(head) + b"".join(zeros) + packer.flush()
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed


def test_matlab_files():
    megabytes = 64
    content = mat(megabytes << 20)
    assert len(content) < 300_000
    error, peak = peak_of(read_numbers, content, "x")
    assert isinstance(error, ValueError)
    assert "numbers, expected 4,194,304 at most" in str(error) or "too large" in str(error)
    assert peak < 200 << 20
    numbers, _ = peak_of(read_numbers, mat(1 << 20), "x")
    assert numbers.shape == (1, 1 << 20)


LONG = "n" * 3_000_000


def test_names_of_a_label_file(tmp_path):
    x = np.stack([people(NTU25, 2).transpose(3, 0, 2, 1)] * 12).astype(np.float32)
    for part in ("train", "test"):
        (tmp_path / f"{part}.npy").write_bytes(npy_bytes(x))
        names = [f"{part}{n}" for n in range(11)]
        (tmp_path / f"{part}.pkl").write_bytes(pickle.dumps(([*names, LONG], [0] * 12)))
    pairs = [(tmp_path / f"{part}.npy", tmp_path / f"{part}.pkl") for part in ("train", "test")]
    error, peak = peak_of(import_stgcn, *pairs, tmp_path / "out")
    assert isinstance(error, PrepareError)
    assert "train.pkl, clip 11: 'nnn" in str(error) and "3,000,000 bytes, expected 255 at most" in str(error)
    assert len(str(error)) < 1000
    assert peak < 60 << 20


def test_names_of_an_npz_file(tmp_path):
    x = np.stack([people(NTU25, 2).transpose(3, 0, 2, 1)] * 3).astype(np.float32)
    keys = {"num_frames": [2] * 3, "label": [0] * 3, "split": np.array(["a", "b", "a"]), "ntu25_index": np.arange(25)}
    file = tmp_path / "set.npz"
    np.savez_compressed(file, x=x, name=np.array(["a", "b", "n" * 256]), **keys)
    with pytest.raises(PrepareError, match="256 bytes, expected 255 at most"):
        import_npz(file, tmp_path / "out", train="split=a")
    np.savez_compressed(file, x=x, name=np.array(["a", "b", "n" * 255]), **keys)
    assert len(import_npz(file, tmp_path / "out", train="split=a")) == 3


def test_names_of_a_store(tmp_path):
    about = {"name": "s", "skeleton": NTU25, "fps": 30, "class_names": ["x"]}
    about["protocols"] = {"xsub": {"field": "subject", "train": [1]}}
    for name in ("", "n" * 256, "é" * 128, "a\0", "a\nb", "\ud800"):
        with pytest.raises(ValueError, match="name"), StoreWriter(tmp_path / "out", **about) as writer:
            writer.add(people(NTU25, 2), name=name, label=0)


def test_a_clip_of_empty_frames():
    frames = np.array([*range(6), *range(4_999_990, 4_999_996)])
    joints = people(NTU25, 12, 2).astype(np.float32)
    raw = RawClip(5_000_000, {str(m): RawBody(frames + m, joints[:, m]) for m in range(2)})
    clip, peak = peak_of(choose_bodies, raw)
    assert clip.shape == (14, 2, 25, 3) and peak < 4 << 20


def test_labels_of_more_clips_than_there_are(tmp_path):
    file = tmp_path / "set.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("train", "test"):
            x = people(NTU25, 2)[None].transpose(0, 4, 1, 3, 2).astype(np.float32)
            archive.writestr(f"x_{part}.npy", npy_bytes(x))
            archive.writestr(f"y_{part}.npy", npy_bytes(np.zeros(5_000_000, np.uint8)))
    error, peak = peak_of(import_ctrgcn, file, tmp_path / "out")
    assert "x_train has 1 clips, y_train 5000000 labels" in str(error)
    assert peak < 4 << 20


@pytest.mark.parametrize("shape", [(2, 1 << 24, 150), (1 << 24, 2, 150)])
def test_rows_longer_and_more_than_any_clip(shape, tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    file = tmp_path / "set.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in ("train", "test"):
            with archive.open(f"x_{part}.npy", "w") as member:
                member.write(header.getvalue())
                for _ in range(64):
                    member.write(bytes(1 << 20))
            archive.writestr(f"y_{part}.npy", npy_bytes(np.zeros(shape[0], np.uint8)))
    error, peak = peak_of(import_ctrgcn, file, tmp_path / "out")
    assert isinstance(error, PrepareError) and "at most" in str(error)
    assert peak < 8 << 20
