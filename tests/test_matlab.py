"""MATLAB files, against what scipy writes; scipy reads damaged ones with a segmentation fault, this reader does not."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from scipy.io import savemat

from fastmc.data.bytes.matlab import read_numbers


def mat(compressed=False, **variables):
    content = io.BytesIO()
    savemat(content, variables, do_compression=compressed)
    return content.getvalue()


VALUES = np.random.default_rng(0).standard_normal((20, 3, 5))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">f8"])
def test_arrays_as_scipy_writes_them(dtype, compressed):
    values = (VALUES * 9).astype(dtype) if "u" not in dtype else np.abs(VALUES * 9).astype(dtype)
    content = mat(compressed, text="abc", s={"a": 1}, cells=np.array([1, "a"], object), x=values, y=np.eye(2), z=3.0)
    read = read_numbers(content, "x")
    assert read.dtype == np.float64
    np.testing.assert_array_equal(read, values.astype(np.float64))
    np.testing.assert_array_equal(read_numbers(content, "y"), np.eye(2))
    np.testing.assert_array_equal(read_numbers(content, "z"), [[3.0]])


def big_endian(values):
    """A file as MATLAB wrote them on other processors, with the doubles stored as bytes, as it does where they fit."""

    def element(kind, data):
        return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)

    flags, shape = struct.pack(">II", 6, 0), struct.pack(f">{values.ndim}i", *values.shape)
    small = struct.pack(">HH", 1, 1) + b"x\0\0\0"  # size and type in one word: the name
    data = element(6, flags) + element(5, shape) + small + element(2, values.astype("u1").tobytes(order="F"))
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI" + element(14, data)


def test_big_endian_and_compact_files():
    values = np.arange(24).reshape(2, 3, 4)
    np.testing.assert_array_equal(read_numbers(big_endian(values), "x"), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (mat(y=1.0), "has no variable 'x'"),
        (mat(x="abc"), "'x' is no array of real numbers"),
        (mat(x=np.ones(3) * 1j), "'x' is no array of real numbers"),
        (mat(x={"a": 1}), "'x' is no array of real numbers"),
        (mat(x=VALUES)[:-1], "truncated, 1 bytes are missing"),
        (mat(x=VALUES)[:130], "damaged or truncated"),
        (mat(True, x=VALUES)[:-9], "truncated, 9 bytes are missing"),
        (mat(x=VALUES)[:128], "has no variable 'x'"),
        (mat(x=VALUES)[:100], "header is not that of MATLAB 5"),
        (b"", "header is not that of MATLAB 5"),
        (mat(x=VALUES)[:124] + b"\x00\x02IM" + bytes(400), "version 7.3 is HDF5"),
        (mat(x=VALUES)[:128] + struct.pack("<II", 15, 12) + b"no zlib data", "damaged or truncated"),
        (mat(x=VALUES)[:128] + struct.pack("<II", 15, 8) + zlib.compress(b"")[:8], "damaged or truncated"),
        (mat(x=VALUES).replace(struct.pack("<3i", 20, 3, 5), struct.pack("<3i", 20, 3, 6)), r"\(20, 3, 6\) is damaged"),
        (mat(x=VALUES).replace(struct.pack("<3i", 20, 3, 5), struct.pack("<3i", -20, -3, 5)), "is damaged"),
    ],
    ids=range(15),  # savemat writes the time, and the name of a test must not hold it
)
def test_damaged_and_other_files(content, message):
    with pytest.raises(ValueError, match=message):
        read_numbers(content, "x")


def test_random_damage_is_an_error_or_other_numbers():
    draw = random.Random(0)
    refused = 0
    for compressed in (False, True):
        whole = mat(compressed, x=VALUES)
        for _ in range(1000):
            content = bytearray(whole)
            content[draw.randrange(120, min(len(whole), 250))] = draw.randrange(256)
            try:
                assert read_numbers(bytes(content), "x").dtype == np.float64
            except ValueError:
                refused += 1
    assert refused > 1000
