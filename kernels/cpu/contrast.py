"""Passes over the bank for loss, gradients and bank step, as kernels/cpu/contrast.cpp makes them.

All tensors are contiguous, on the CPU, and of one dtype, float32 or float64. K entries of the bank, D elements; n
samples, with r rows each, of which some share one of p plain columns of logits (`fastmc.objective.attention.Block`).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.cpu import library, threads

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_SCALARS = {torch.float32: ctypes.c_float, torch.float64: ctypes.c_double}


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, _POINTER) for name in ("bank", "queries", "mixing", "crossed", "shift", "column")),
        *((name, _SIZE) for name in ("bank_size", "dim", "samples", "columns", "rows", "tile", "measured")),
        *((name, _SIZE) for name in ("students", "mined", "unit")),
    ]


@cache
def _pull_structure(scalar: type) -> type[ctypes.Structure]:
    class _Pull(ctypes.Structure):
        _fields_ = [
            *((name, _POINTER) for name in ("queries", "scale", "soft")),
            *((name, _SIZE) for name in ("softs", "students")),
            ("gradient", _POINTER),
            *((name, _SIZE) for name in ("add", "finish")),
            *((name, _POINTER) for name in ("bank", "velocity")),
            *((name, scalar) for name in ("lr", "momentum_factor", "weight_decay")),
        ]

    return _Pull


@dataclass
class Rows:
    """Rows of a block against the bank.

    Attributes:
        bank: (K, D) raw rows. queries: (p n, D), divided by temperature and log 2. mixing: (K,), or None.
        crossed: (r, n, tile) logits of what the bank is mixed with, or None. shift: (r, n) bits, or None.
        column: each row's plain column. measured: the column whose nearest entries are looked for.
        students: the first columns, of which ``mined`` nearest entries each are wanted.
        unit: whether rows of the bank are scaled to unit length.
    """

    bank: Tensor
    queries: Tensor
    mixing: Tensor | None
    crossed: Tensor | None
    shift: Tensor | None
    column: Sequence[int]
    columns: int
    samples: int
    measured: int
    students: int
    mined: int
    unit: bool
    _block: _Block = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._columns = (ctypes.c_int64 * len(self.column))(*self.column)
        tensors = (self.bank, self.queries, self.mixing, self.crossed, self.shift)
        self._block = _Block(
            *map(_address, tensors),
            ctypes.addressof(self._columns),
            *self.bank.shape,
            self.samples,
            self.columns,
            len(self.column),
            1 if self.crossed is None else self.crossed.shape[2],
            self.measured,
            self.students,
            self.mined,
            self.unit,
        )

    def call(self, name: str, *arguments: Any) -> int:
        """The function of this name and dtype on this block."""
        function = getattr(library(), f"fastmc_{name}_{'f32' if self.bank.dtype == torch.float32 else 'f64'}")
        return function(ctypes.byref(self._block), *arguments)


class Found(NamedTuple):
    """Of a sweep. sums, share and keys are of the first temperature, and empty where they were not asked for.

    Attributes:
        sums: (r, n) of all exponentials; share (r, n, tile): of lambda e_b, by the tile that an entry is mixed with;
        keys (r, n, D): of the unit rows, each times its weight W.
        second: (r, n) of the exponentials at the second temperature; empty where no weights were kept.
        nearest: (n,) the largest logits of the measured column, of the first temperature and less the shift.
        total: (n,) the sums of 2^(factor (logits - nearest)).
        mined: (students, n, mined), int64, the nearest entries of each student, nearest first, of equals the first.
    """

    sums: Tensor
    share: Tensor
    keys: Tensor
    second: Tensor
    nearest: Tensor
    total: Tensor
    mined: Tensor


def largest(rows: Rows) -> Tensor:
    """(r, n): the largest of a row's logits in the bank; what is not a number is passed on."""
    result = rows.bank.new_empty(len(rows.column), rows.samples)
    rows.call("largest", _pointer(result), threads())
    return result


def sweep(rows: Rows, factor: float, *, first: bool, kept: Tensor | None) -> Found:
    """One pass.

    Args:
        factor: makes logits those of the second temperature.
        kept: K r n elements, for the weights at the second temperature, which :func:`pull_` takes.
    """
    r, n, dim = len(rows.column), rows.samples, rows.bank.shape[1]
    of_first = [(r, n), (r, n, rows._block.tile), (r, n, dim)] if first else [(0,)] * 3
    shapes: list[tuple[int, ...]] = [*of_first, (r, n) if kept is not None else (0,), (n,), (n,)]
    sizes = [math.prod(shape) for shape in shapes]
    result = rows.bank.new_empty(sum(sizes))
    scalar = _SCALARS[rows.bank.dtype](factor)
    mined = torch.empty(rows.students, n, rows.mined, dtype=torch.int64)
    rows.call("sweep", int(first), scalar, _pointer(kept), _pointer(result), _pointer(mined), threads())
    parts = (part.view(shape) for part, shape in zip(result.split(sizes), shapes, strict=True))
    return Found._make([*parts, mined])


class Step(NamedTuple):
    """v = momentum_factor v - dL/dbank + weight_decay bank; bank = bank - lr v."""

    velocity: Tensor
    lr: float
    momentum_factor: float
    weight_decay: float


def pull_(
    rows: Rows,
    queries: Tensor,
    scale: Tensor,
    soft: Sequence[tuple[int, int]],
    kept: Tensor | None,
    gradient: Tensor | None,
    step: Step | None,
    *,
    add: bool,
    finish: bool,
) -> None:
    """The gradient of the bank, and the step that follows from it.

    Args:
        queries: (q, n, D), each with what its gradient is multiplied by.
        scale: (r, n), which turns the weights of a row with a target, and of the target, into softmaxes.
        soft: such rows and their targets, in an order in which no target comes before its students.
        kept: the weights of a sweep, which are spoiled; None: they are made here, at the block's own temperature.
        gradient: (K, D), or None where nobody wants it: then there must be a step. With ``add`` it is added to.
        finish: the gradient of the unit rows is complete and is carried on to the raw ones; then comes the step.
    """
    pairs = list(chain.from_iterable(soft))
    flat = (ctypes.c_int64 * len(pairs))(*pairs)
    how = _pull_structure(_SCALARS[rows.bank.dtype])(
        queries.data_ptr(),
        scale.data_ptr(),
        ctypes.addressof(flat),
        len(soft),
        len(queries),
        _address(gradient),
        int(add),
        int(finish),
        None if step is None else rows.bank.data_ptr(),
        None if step is None else step.velocity.data_ptr(),
        *((0.0, 0.0, 0.0) if step is None else step[1:]),
    )
    rows.call("pull", ctypes.byref(how), _pointer(kept), threads())


def exp2(x: Tensor) -> Tensor:
    """2^x as the passes compute it: for tests."""
    y = torch.empty_like(x)
    name = "fastmc_exp2_f32" if x.dtype == torch.float32 else "fastmc_exp2_f64"
    getattr(library(), name)(_pointer(x), _pointer(y), _SIZE(x.numel()))
    return y


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return _POINTER(_address(tensor))
