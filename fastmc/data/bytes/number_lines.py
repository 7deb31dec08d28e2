"""Text files of numbers, the same number of them in every line, read at the speed of `.skeleton` files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastmc.data.bytes.decimals import Odd, Tokens, keep_freed_memory, require, values_of
from fastmc.files import read_bytes
from fastmc.reference.ntu import FLOAT32_MAX, SkeletonFileError, certain

PADDING = b" " * 8  # a number is read as the eight bytes before its end, the first number of a file too
SHOWN = 40  # characters of what is no number


def read_number_lines(path: str | Path, numbers: int, content: bytes | None = None) -> np.ndarray:
    """The numbers (lines, ``numbers``) of a file, float32, each rounded as `float` and then float32 round it.

    Lines may end in LF or CRLF, blanks may surround the numbers, and blank lines may end the file. A byte-order mark is
    passed over, and decimal commas are read where the file has no point.

    Args:
        path: the file.
        content: its bytes, where they have been read already.

    Raises:
        SkeletonFileError: names the line: another count of numbers, or one that is not finite in float32.
        OSError: the file cannot be read.
    """
    content = certain(read_bytes(Path(path)) if content is None else content)
    keep_freed_memory()
    try:
        return _read_at_once(content, numbers)
    except Odd:
        return _read_plainly(path, content, numbers)


def _read_at_once(content: bytes, numbers: int) -> np.ndarray:
    tokens = Tokens.of(b"%b\n%b\n" % (PADDING, content))
    width = np.diff(tokens.line)
    rows = np.flatnonzero(width)[-1:] + 1  # blank lines may end the file
    require(len(rows) and (width[: rows[0]] == numbers).all())
    return values_of(tokens, np.arange(tokens.line[-1]).reshape(-1, numbers))


def _read_plainly(path: str | Path, content: bytes, numbers: int) -> np.ndarray:
    """Line by line; its word is final."""
    if not content.strip():
        raise SkeletonFileError(path, 1, f"found the end of the file, expected {numbers} numbers")
    lines = content.rstrip().split(b"\n")
    values = np.empty((len(lines), numbers))
    for number, line in enumerate(lines, 1):
        tokens = line.split()
        if len(tokens) != numbers:
            raise SkeletonFileError(path, number, f"found {len(tokens)} numbers, expected {numbers}")
        for column, token in enumerate(tokens):
            values[number - 1, column] = _finite(path, number, token)
    return values.astype(np.float32)


def _finite(path: str | Path, line: int, token: bytes) -> float:
    try:
        value = float(token)
    except ValueError:
        value = np.nan
    if not abs(value) <= FLOAT32_MAX:  # NaN compares false
        raise SkeletonFileError(path, line, f"found {token[:SHOWN].decode('latin-1')!r}, expected a finite number")
    return value
