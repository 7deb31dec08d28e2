"""An array of numbers from a MATLAB file (versions 5 to 7.2).

Written since `scipy.io.loadmat` can end the process with a segmentation fault where a file is damaged, and one bad file
must not end a preparation. The format: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

HEADER = 128  # bytes; the last four are version and byte order
MATRIX, COMPRESSED = 14, 15
NUMBERS = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}  # by element type
NUMERIC_CLASSES = range(6, 16)  # double, single, and the integers
COMPLEX = 0x800
MAX_NUMBERS = 1 << 22  # of the array, as what it becomes: 32 MB in float64, 70,000 frames of 20 joints
MAX_SIZE = 9 * MAX_NUMBERS  # bytes of a variable; a small file may say that it is large


def read_numbers(content: bytes, name: str) -> np.ndarray:
    """The real array ``name`` of a MATLAB file, as float64 in MATLAB's axes.

    Raises:
        ValueError: the file is damaged or of another kind, lacks the variable, or that is no array of real numbers.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if order is None:
        raise ValueError("is no readable .mat file: its header is not that of MATLAB 5 or later")
    if struct.unpack(f"{order}H", content[HEADER - 4 : HEADER - 2])[0] != 0x100:
        raise ValueError("is no readable .mat file: version 7.3 is HDF5; save it again with -v7")
    try:
        for kind, data in _elements(memoryview(content)[HEADER:], order):
            if kind == COMPRESSED:
                kind, data = next(_elements(_inflated(data), order))
            if kind == MATRIX:
                array = _array(_elements(data, order), name, order)
                if array is not None:
                    return array
    except (StopIteration, struct.error, zlib.error) as error:
        raise ValueError(f"is no readable .mat file: it is damaged or truncated ({error})") from error
    raise ValueError(f"has no variable {name!r}")


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, content) of one element after the other; small ones have both in eight bytes."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        start = at + 8
        if kind >> 16:
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if start + size > len(data):
            raise ValueError(f"is no readable .mat file: truncated, {start + size - len(data)} bytes are missing")
        yield kind, data[start : start + size]
        at += 8 if start < at + 8 else 8 + size + (0 if kind == COMPRESSED else -size % 8)


def _inflated(data: memoryview) -> memoryview:
    inflate = zlib.decompressobj()
    content = inflate.decompress(data, MAX_SIZE)
    if not inflate.eof:
        raise ValueError("is no readable .mat file: a compressed variable is truncated or too large")
    return memoryview(content)


def _array(parts: Iterator[tuple[int, memoryview]], name: str, order: str) -> np.ndarray | None:
    """The array of a matrix element; None if it has another name."""
    (_, flags), (_, shape), (_, its_name) = next(parts), next(parts), next(parts)
    if bytes(its_name) != name.encode():
        return None
    (word,) = struct.unpack_from(f"{order}I", flags)
    if word & 0xFF not in NUMERIC_CLASSES or word & COMPLEX:
        raise ValueError(f"{name!r} is no array of real numbers")
    kind, values = next(parts)
    dtype = np.dtype(order + NUMBERS[kind]) if kind in NUMBERS else None
    axes = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    if dtype is None or min(axes, default=-1) < 0 or math.prod(axes) * dtype.itemsize != len(values):
        raise ValueError(f"is no readable .mat file: {name!r} {axes} is damaged, it has {len(values)} bytes")
    if math.prod(axes) > MAX_NUMBERS:
        raise ValueError(f"{name!r} holds {math.prod(axes):,} numbers, expected {MAX_NUMBERS:,} at most")
    return np.frombuffer(values, dtype).astype(np.float64).reshape(axes, order="F")
