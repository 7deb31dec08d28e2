"""The numbers of a text file, all at once, in numpy.

Every byte that is not a digit is a *mark*: a blank (space, CR, LF), a sign, a dot. The order of the marks, and whether
digits stand between two of them, tell where tokens and lines are and that a token is a plain decimal, so that only the
numbers that are kept have to be converted. What is rare (an exponent) goes through `float`; what does not look like
sound numbers is `Odd`, and left to a plain reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from fastmc.reference.ntu import FLOAT32_MAX

LF, CR, SPACE, MINUS, DOT, ZERO = b"\n\r -.0"
MAX_DECIMALS = 8  # what a 64-bit word holds
POWERS_OF_TEN = 10.0 ** np.arange(MAX_DECIMALS + 1)
# Of a little-endian word the n last (highest) bytes, and of an ASCII digit the four bits that are its value.
LAST_DIGITS = np.array([0x0F0F0F0F0F0F0F0F >> 8 * (8 - n) << 8 * (8 - n) for n in range(MAX_DECIMALS + 1)], np.uint64)


@cache
def keep_freed_memory() -> None:
    """Lets glibc's malloc reuse the memory of each file's arrays; fresh pages cost a third of the reading time.

    It takes the largest block freed so far as the size up to which it keeps freed memory.
    """
    np.empty(16 << 20, np.uint8)


class Odd(Exception):
    """A file that is broken or unusual, and left to the plain reader."""


def require(condition: object) -> None:
    if not condition:
        raise Odd


@dataclass(frozen=True)
class Tokens:
    """The tokens of a file, every one of them a number, known by the blanks around them.

    text: the file, as bytes; code: the same as array; blank: index of each blank among the marks; blank_at: its place
    in the file; gap: per token the blank in front of it (index into the two arrays before; the next blank ends the
    token); line: first token of each line, and one entry more: the number of tokens.
    """

    text: bytes
    code: np.ndarray
    blank: np.ndarray
    blank_at: np.ndarray
    gap: np.ndarray
    line: np.ndarray

    @classmethod
    def of(cls, text: bytes) -> Tokens:
        code = np.frombuffer(text, np.uint8)
        mark_at = np.flatnonzero(code - ZERO > 9)  # unsigned: what is below "0" wraps around
        mark = code[mark_at]
        is_blank = mark <= SPACE
        blank = np.flatnonzero(is_blank)
        blank_at, kind = mark_at[blank], mark[blank]
        line_feed = np.flatnonzero(kind == LF)
        require(np.count_nonzero(kind == SPACE) + len(line_feed) + np.count_nonzero(kind == CR) == len(blank))
        blank_before = np.searchsorted(blank, _not_plain(mark_at, mark, is_blank), side="right") - 1
        for i in set(blank_before.tolist()):
            require(_is_number(text[blank_at[i] + 1 : blank_at[i + 1]]))
        gap = np.flatnonzero(blank_at[1:] - blank_at[:-1] > 1)
        return cls(text, code, blank, blank_at, gap, np.searchsorted(gap, line_feed))

    def texts(self, token: np.ndarray) -> list[str]:
        gap = self.gap[token]
        spans = zip(self.blank_at[gap].tolist(), self.blank_at[gap + 1].tolist(), strict=True)
        return [self.text[start + 1 : end].decode() for start, end in spans]


def _not_plain(mark_at: np.ndarray, mark: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """Indices i where marks i and i + 1 do not follow each other as among blanks and numbers `-?[0-9]*(.[0-9]+)?`."""
    touch = mark_at[1:] - mark_at[:-1] == 1
    dot = mark == DOT
    plain = blank[1:] & (blank[:-1] | ~touch)  # a number ends in a digit
    plain |= dot[1:] & ~dot[:-1]  # it has one dot
    plain |= (mark[1:] == MINUS) & blank[:-1] & touch  # its sign comes first
    return np.flatnonzero(~plain)


def _is_number(token: bytes) -> bool:
    try:
        float(token.decode("ascii"))
    except ValueError:  # UnicodeDecodeError is one
        return False
    return True


def values_of(tokens: Tokens, token: np.ndarray) -> np.ndarray:
    """float32 values of tokens, any shape.

    A *simple* token, `-?[0-9].[0-9]{0,8}`, is an integer below 10^9 over a power of ten: both are exact in float64, so
    that the one division rounds as `float` does.
    """
    code, gap = tokens.code, tokens.gap[token]
    start, end = tokens.blank_at[gap] + 1, tokens.blank_at[gap + 1]
    negative = code[start] == MINUS
    unit_at = start + negative
    decimals = end - unit_at - 2
    marks = tokens.blank[gap + 1] - tokens.blank[gap] - 1
    simple = (code[unit_at + 1] == DOT) & (marks == 1 + negative) & (decimals <= MAX_DECIMALS)

    word = np.ndarray(len(code) - 7, "<u8", tokens.text, strides=(1,))  # word i is bytes i to i + 7
    decimals[~simple] = 0
    scale = POWERS_OF_TEN[decimals]
    value = (_eight_digits(word[end - 8] & LAST_DIGITS[decimals]) + (code[unit_at] - ZERO) * scale) / scale
    value = np.copysign(value, 0.5 - negative)
    value[~simple] = [float(text) for text in tokens.texts(token[~simple])]
    require((np.abs(value) <= FLOAT32_MAX).all())
    return value.astype(np.float32)


def _eight_digits(word: np.ndarray) -> np.ndarray:
    """The integer whose decimal digits are the bytes of a word, first byte first: pairs of digits, fours, eight."""
    word = word * 10 + (word >> 8) & 0x00FF00FF00FF00FF
    word = word * 100 + (word >> 16) & 0x0000FFFF0000FFFF
    return word * 10_000 + (word >> 32) & 0x00000000FFFFFFFF
