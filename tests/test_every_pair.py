"""The rows of tests/every_pair.py: any two values meet, in fewer rows than the product has."""

from __future__ import annotations

from itertools import combinations

import pytest
from every_pair import every_pair


@pytest.mark.parametrize("sizes", [(2, 3), (3, 3, 3, 3, 2), (2, 4, 5, 2), (1, 1, 7)])
def test_any_two_values_meet(sizes):
    rows = every_pair(*map(range, sizes))
    for i, j in combinations(range(len(sizes)), 2):
        assert {(row[i], row[j]) for row in rows} == {(a, b) for a in range(sizes[i]) for b in range(sizes[j])}
    assert len(rows) == len(set(rows)) <= 2 * max(a * b for a, b in combinations(sizes, 2))
