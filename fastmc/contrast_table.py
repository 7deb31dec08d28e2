"""What a step contrasts, as data: which softmaxes over key and bank there are, and what each of them is to learn.

Reference, PyTorch and Triton take the same table; docs/kernels.md says what they make of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple


class Row(NamedTuple):
    """One softmax (eq. 2): a query over its key f0, the bank and, where it has a partner, the bank mixed with that.

    Queries and rows are counted from 0.
    """

    query: int
    mixed_with: int | None = None
    """The query whose feature the bank is mixed with (eq. 8), a constant; None: there are no mixed entries."""
    target: int | None = None
    """The row whose softmax, a constant, is the target (eq. 11); None: one-hot at the key (eq. 3). Without a key there
    is a target, which may be the row itself: then its loss is its entropy and has no gradient."""
    weight: float = 1.0
    """Of this row's loss in the loss of the step."""
    mined: int = 0
    """Of a one-hot target: it is shared alike by the key and the bank's nearest entries, so many of each query in the
    step, each entry once (the mined positives of AimCLR and HiCLR)."""
    lifted: int = 0
    """Without a key, of a row that is its own target or a target only: so many of the bank's entries, the nearest to
    the query, count as if they lay in its direction, at the similarity of its length (the mined positives of CPM)."""


MOST_MINED = 8
"""Of each query."""
MOST_POSITIVES = 8
"""Of each sample."""


@dataclass(frozen=True)
class Table:
    """The rows of a step. The first are the students: row i has the loss of query i. What follows are targets only.

    Attributes:
        measured: the query whose top-1 count and probability of the key are returned.
        unit: whether the bank's rows are scaled to unit length; if not they enter as they are, as in AS-CAL.
        key: whether f0 is an entry of the softmaxes; if not they are over the bank alone, as in CPM.
        code: the table as text, which operators of torch.library can take.

    Raises:
        ValueError: the rows are no such table; the message names the row.
    """

    rows: tuple[Row, ...]
    measured: int = 0
    unit: bool = True
    key: bool = True
    code: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "code", json.dumps([self.rows, self.measured, self.unit, self.key]))
        queries, rows = range(self.queries), range(len(self.rows))
        if self.measured not in queries:
            raise ValueError(f"measured must be one of {len(queries)} queries, got {self.measured}")
        for i, row in enumerate(self.rows):
            if row.query not in queries or (i in queries and row.query != i):
                raise ValueError(f"row {i} must have the loss of query {i}, got {row}: targets alone come last")
            if row.mixed_with not in (None, *queries) or (row.mixed_with is None) != (self.rows[0].mixed_with is None):
                raise ValueError(f"row {i} must be mixed with one of the queries, as all rows or none, got {row}")
            if row.target is not None and (
                row.target not in rows or i not in queries or (row.target == i and self.key)
            ):
                raise ValueError(f"row {i} can have no target or another row, got {row}")
            if row.target is None and i in queries and not self.key:
                raise ValueError(f"row {i} must have a target where the key is no entry, got {row}")
            if row.target is not None and row.mixed_with != self.rows[row.target].mixed_with:
                raise ValueError(f"row {i} and its target must meet the same entries, got {row}")
            if i not in queries and i not in {student.target for student in self.rows}:
                raise ValueError(f"row {i} is nobody's target, got {row}")
            if row.mined not in range(MOST_MINED + 1) or row.mined not in (0, self.mined):
                raise ValueError(f"row {i} can mine 0 to {MOST_MINED} entries, as many as others that mine, got {row}")
            if row.lifted < 0 or row.lifted not in (0, self.lifted):
                raise ValueError(f"row {i} can lift 0 or more entries, as many as others that lift, got {row}")
            if row.lifted and (self.key or not self.unit or row.mixed_with is not None):
                raise ValueError(f"row {i} can lift entries if they are the bank's alone, at unit length, got {row}")
            if row.lifted and i in queries and row.target != i:
                raise ValueError(f"row {i} can lift entries if it has no target but itself, got {row}")
            if row.mined and (row.target is not None or row.mixed_with is not None or i not in queries):
                raise ValueError(f"row {i} can mine if it has a loss, no target and no mixed entries, got {row}")

    @classmethod
    @cache
    def parse(cls, code: str) -> Table:
        """The table of a ``code``."""
        rows, *rest = json.loads(code)
        return cls(tuple(Row(*row) for row in rows), *rest)

    def mining(self, k: int = 1) -> Table:
        """The same with mined positives in the first row, k of each query."""
        return replace(self, rows=(self.rows[0]._replace(mined=k), *self.rows[1:]))

    def lifting(self, k: int) -> Table:
        """The same with k lifted entries in each row that is a target."""
        targets = {row.target for row in self.rows}
        rows = (row._replace(lifted=k) if i in targets else row for i, row in enumerate(self.rows))
        return replace(self, rows=tuple(rows))

    @property
    def queries(self) -> int:
        """How many there are."""
        return 1 + max(row.query for row in self.rows)

    @property
    def weights(self) -> list[tuple[int, float]]:
        """Those that are not 1, with their queries."""
        return [(i, row.weight) for i, row in enumerate(self.rows[: self.queries]) if row.weight != 1]

    @property
    def mixed(self) -> bool:
        """Whether the rows have mixed entries."""
        return self.rows[0].mixed_with is not None

    @property
    def plain(self) -> bool:
        """Whether each row is one-hot at the key, over key and bank."""
        return not self.mixed and not self.mined and all(row.target is None for row in self.rows)

    @property
    def mined(self) -> int:
        """How many entries each query mines; 0: no row wants them."""
        return max(row.mined for row in self.rows)

    @property
    def miners(self) -> list[int]:
        """The rows, and so the queries, that learn from mined entries."""
        return [i for i, row in enumerate(self.rows) if row.mined]

    @property
    def lifted(self) -> int:
        """How many entries a row lifts that lifts any; 0: none does."""
        return max(row.lifted for row in self.rows)

    @property
    def lifters(self) -> list[int]:
        """The rows that lift entries."""
        return [i for i, row in enumerate(self.rows) if row.lifted]

    @property
    def bank_order(self) -> range | None:
        """In which order the queries' gradients of the bank are summed up: first to last, or last to first.

        Of the targets met on the way only the last is kept, and each student must find its own. None: neither way will
        do, or rows mine, and the table has no ascent.
        """
        if self.mined:
            return None
        targets = {row.target for row in self.rows}
        for order in (range(self.queries), range(self.queries)[::-1]):
            kept: list[int | None] = [None]
            for query in order:
                if self.rows[query].target not in (None, kept[-1]):
                    break
                kept += [i for i, row in enumerate(self.rows) if row.query == query and i in targets]
            else:
                return order
        return None


A2MC = Table((Row(0, 0), Row(1, 1, target=3), Row(2, 2), Row(2, 1)), measured=2)
"""Eq. 9-11, of f1, f2, f3: the target of L_2 is f3 over the bank that is mixed with f2."""
B1 = Table((Row(0),))
"""InfoNCE (eq. 1) of one query, as in SkeletonCLR."""
B2 = Table((Row(0), Row(1), Row(2)), measured=2)
"""InfoNCE of f1, f2 and f3."""
B3 = Table((Row(0), Row(1, target=2), Row(2)), measured=2)
"""A²MC without mixed entries."""
AIMCLR = Table((Row(0), Row(1, target=0, weight=0.5), Row(2, target=0, weight=0.5)))
"""AimCLR without mined neighbours: normal view, extreme view, extreme view with attention drop; both learn from the
first."""
HICLR = Table((Row(0), Row(1, target=0, weight=0.5), Row(2, target=1, weight=0.5)))
"""HiCLR likewise: each level of augmentation learns from the one below it."""
CPM = Table((Row(0, target=1), Row(1, target=1, weight=0.0)), key=False)
"""CPM before it mines: the student's view and the target's, over the bank alone. The target is at another temperature
if its query is as many times longer; its own loss is its entropy, which the other's cannot be below. ``lifting(k)`` is
CPM that mines."""
