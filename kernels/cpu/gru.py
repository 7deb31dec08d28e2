"""One layer of a GRU of two directions, forwards and backwards, on a CPU's threads: gru.cpp, which has the layouts.

The mathematics, and the order of the weights, are those of `fastmc.encoders.recurrent`. float32 and float64.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import cpu, launching_on

SHARE = 32
"""Clips of a share: few, so that a batch makes many units, and enough that the sums of weight gradients, which each has
for itself, cost little."""
WIDE = 512
"""Hidden units from which on a share is twice as large: sums of weight gradients then take much memory."""
BLOCK_ROWS = 256
"""Frames times clips of a block of steps: products of that many rows are at full speed, and fit the cache."""

_SIZES = ("batch", "frames", "hidden", "parts", "width", "share", "block_rows", "reverse", "last", "threads")
_POINTERS = ("prepared", "gates", "states", "final", "upstream", "dx", "sums")


class _Layer(ctypes.Structure):
    """struct Layer of gru.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        ("x", ctypes.c_void_p),
        ("weights", ctypes.c_void_p * 8),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("gradients", ctypes.c_void_p * 8),
    )


class Place(NamedTuple):
    """Where a layer stands.

    Attributes:
        batch, frames: B and T.
        first: its x is (B, T, F), not the states of the layer below.
        last: its result is the final states (B, 2H), not the states of all frames (2, B * (T + 1), H).
        reverse: its second direction runs backwards in time.
    """

    batch: int
    frames: int
    first: bool
    last: bool
    reverse: bool


class Kept(NamedTuple):
    """What the way back needs of the way forward: gates and states of all frames."""

    gates: Tensor
    states: Tensor


def forward(x: Tensor, weights: Sequence[Tensor], place: Place, *, keep: bool) -> tuple[Tensor, Kept | None]:
    """The layer's result, and what `backward` needs if it is to be kept. Tensors are contiguous; ``weights`` are
    (W_i, W_h, b_i, b_h) of both directions."""
    batch, frames, hidden = place.batch, place.frames, weights[1].shape[1]
    gates = x.new_empty(2, batch * frames, 4 * hidden) if keep else None
    states = x.new_empty(2, batch * (frames + 1), hidden) if keep or not place.last else None
    final = x.new_empty(batch, 2 * hidden) if place.last else None
    prepared = x.new_empty(2, _size(weights))
    _call("forward", x, weights, place, gates=gates, states=states, final=final, prepared=prepared)
    result = final if place.last else states
    assert result is not None
    return result, None if gates is None or states is None else Kept(gates, states)


def backward(
    upstream: Tensor, x: Tensor, weights: Sequence[Tensor], kept: Kept, place: Place, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of x and of the eight weights, of those that are ``wanted``, from that of `forward`'s result."""
    if not place.batch:
        return [torch.zeros_like(t) if asked else None for t, asked in zip((x, *weights), wanted, strict=True)]
    hidden = weights[1].shape[1]
    dx = x.new_empty(2, *x.shape) if wanted[0] else None  # one of each direction; their sum comes to lie in the first
    gradients = [torch.empty_like(w) if asked else None for w, asked in zip(weights, wanted[1:], strict=True)]
    units = 2 * -(-place.batch // _share(hidden))
    sums = x.new_empty(units, _size(weights)) if any(wanted[1:]) else None
    prepared = x.new_empty(2, 3 * hidden, hidden)
    found = {"gates": kept.gates, "states": kept.states, "upstream": upstream, "prepared": prepared}
    _call("backward", x, weights, place, gradients, dx=dx, sums=sums, **found)
    return [None if dx is None else dx[0], *gradients]


def gates(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmoid and tanh of x, float32, as the layer computes them."""
    found = torch.empty_like(x), torch.empty_like(x)
    cpu.library().fastmc_gru_gates(_at(x), ctypes.c_int64(x.numel()), *map(_at, found))
    return found


def _share(hidden: int) -> int:
    return SHARE if hidden < WIDE else 2 * SHARE


def _size(weights: Sequence[Tensor]) -> int:
    """Elements of one direction's weights, with one bias more."""
    w_i, w_h, b_i, _ = weights[:4]
    return w_i.numel() + w_h.numel() + b_i.numel() * 4 // 3


def _call(
    way: str,
    x: Tensor,
    weights: Sequence[Tensor],
    place: Place,
    gradients: Sequence[Tensor | None] = (None,) * 8,
    **others: Tensor | None,
) -> None:
    hidden, columns = weights[1].shape[1], weights[0].shape[1]
    parts = 1 if place.first else 2
    layer = _Layer(
        batch=place.batch,
        frames=place.frames,
        hidden=hidden,
        parts=parts,
        width=columns // parts,
        share=_share(hidden),
        block_rows=BLOCK_ROWS,
        reverse=place.reverse,
        last=place.last,
        threads=cpu.threads(),
        x=_at(x),
        weights=(ctypes.c_void_p * 8)(*map(_at, weights)),
        gradients=(ctypes.c_void_p * 8)(*map(_at, gradients)),
        **{name: _at(tensor) for name, tensor in others.items()},
    )
    function = getattr(cpu.library(), f"fastmc_gru_{way}_{str(x.dtype).removeprefix('torch.')}")
    with launching_on(x.device, f"gru_{way}"):
        function(ctypes.byref(layer))


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    if tensor is not None and not tensor.is_contiguous():
        raise ValueError(f"a tensor's elements must lie in one piece; strides are {tensor.stride()}")
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
