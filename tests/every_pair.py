"""Fewer cases than the product of all choices, in which any two values still meet."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def every_pair(*choices: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows of one value of each of ``choices``: any two values of different choices stand in one row at least.

    Greedy and the same at every call: the next row is the first one with the most pairs that are still missing.
    """
    rows = list(product(*map(range, map(len, choices))))
    pairs = {row: set(combinations(enumerate(row), 2)) for row in rows}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(pairs[row] & missing))
        missing -= pairs[best]
        chosen.append(tuple(values[i] for values, i in zip(choices, best, strict=True)))
    return chosen
