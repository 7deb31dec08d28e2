"""The launches of a batch against a bank, in the order in which they run.

prepare   features in the form of the products, similarities c of eq. 8
sweep     the pass over the bank: partial sums and expected entries of every softmax, at one or both temperatures
combine   log-sum-exps, loss and gradients of every sample, then means over the batch
bank      the second pass: the bank's gradient, or its step in place; or the first-in-first-out write
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kernels.bank import _bank_kernel, _enqueue_kernel
from kernels.combine import _combine_kernel, _reduce_kernel
from kernels.prepare import _prepare_kernel
from kernels.products import parts
from kernels.sweep import PLANES, _sweep_kernel
from kernels.tiles import Tiles, current_target, tiles

# What the rounding of a similarity may be, by precision: it must not decide whether the positive is on top.
MARGIN = {"bf16x3": 2.0**-15, "ieee": 2.0**-20, "bf16": 2.0**-7}


@dataclass(frozen=True)
class Prepared:
    """What `_prepare_kernel` makes of the features."""

    split: Tensor
    """(3, 1 or 2, B, D): hi and, under bf16x3, lo."""
    c: Tensor
    """Similarities of eq. 8: (4, B), or (4, B, B) under tiled mixing."""


@dataclass(frozen=True)
class Partial:
    """What `_sweep_kernel` has summed of every chunk of the bank."""

    sums: Tensor
    """(chunks, PLANES, 4, B)"""
    entries: Tensor | None
    """(chunks, 4, B, D), with a loss."""
    loss: float | None
    """Temperature of the loss, if there is one."""
    bank: float | None
    """Temperature of the bank's step, if there is one."""


@dataclass(frozen=True)
class Step:
    """Eq. 7 in place: what changes, and how. bank and momentum are contiguous."""

    bank: Tensor
    momentum: Tensor
    lr: float
    momentum_factor: float
    weight_decay: float
    guard: Tensor | None = None
    """Nothing is written unless its first element is finite."""


@dataclass(frozen=True)
class Plan:
    """A batch against a bank. Absent tensors have another in their place, which no kernel reads."""

    f0: Tensor
    f1: Tensor
    f2: Tensor
    f3: Tensor
    bank: Tensor
    mixing: Tensor
    mix: str
    first: int
    """Distributions (`kernels.sweep`) first to last - 1 are there."""
    last: int
    precision: str
    block_d: int
    tiles: Tiles

    @staticmethod
    def of(
        f0: Tensor,
        f1: Tensor | None,
        f2: Tensor | None,
        f3: Tensor,
        bank: Tensor,
        mixing: Tensor | None,
        tiled: bool,
        soft_target: bool,
        precision: str,
    ) -> Plan:
        alone = f1 is None or f2 is None
        f3 = f3.contiguous()
        block_d = _block(f3.shape[1])
        mix = "none" if mixing is None else "tiled" if tiled else "own"
        return Plan(
            f0=f0.contiguous(),
            f1=f3 if f1 is None else f1.contiguous(),
            f2=f3 if f2 is None else f2.contiguous(),
            f3=f3,
            bank=bank.contiguous(),
            mixing=bank if mixing is None else mixing.contiguous(),
            mix=mix,
            first=2 if alone else 0,
            last=4 if soft_target and not alone else 3,
            precision=precision,
            block_d=block_d,
            tiles=tiles(current_target(), block_d, precision, mix),
        )

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.bank.device)

    def prepare(self) -> Prepared:
        batch, dim = self.f3.shape
        dtype = torch.float32 if self.precision == "ieee" else torch.bfloat16
        split = self.new(3, parts(self.precision), batch, dim, dtype=dtype)
        c = self.new(4, batch, batch) if self.mix == "tiled" else self.new(4, batch)
        rows = triton.cdiv(batch, 16)
        grid = (rows, self.last - self.first, rows if self.mix == "tiled" else 1)
        _prepare_kernel[grid](
            self.f1, self.f2, self.f3, split, c, batch,
            FIRST=self.first, MIX=self.mix, PRECISION=self.precision, D=dim, BLOCK_B=16,
            BLOCK_D=min(128, self.block_d), num_warps=4,
        )  # fmt: skip
        return Prepared(split, c)

    def sweep(self, prepared: Prepared, *, loss: float | None = None, bank: float | None = None) -> Partial:
        """At the temperatures of loss and bank."""
        (batch, dim), size, tile = self.f3.shape, len(self.bank), self.tiles
        queries = (self.last - self.first) * batch
        block_r = min(tile.sweep_rows, _block(queries))
        rows, period = triton.cdiv(queries, block_r), tile.sweep_entries
        if self.mix == "tiled":
            period = batch * max(1, period // batch)
        columns, steps = triton.cdiv(period, tile.sweep_entries), triton.cdiv(size, period)
        # As many programs as run at a time, each with the same number of tiles but for the last.
        at_a_time = triton.cdiv(steps, max(1, tile.programs // (rows * columns)))
        chunks_of_steps = triton.cdiv(steps, at_a_time)
        chunks = chunks_of_steps * columns

        sums = self.new(chunks, PLANES.value, 4, batch)
        entries = None if loss is None else self.new(chunks, 4, batch, dim)
        _sweep_kernel[(rows, chunks_of_steps, columns)](
            prepared.split, prepared.c, self.bank, self.mixing, sums, sums if entries is None else entries, batch,
            size, period, steps, _scale(loss), _scale(bank), FIRST=self.first, LAST=self.last, MIX=self.mix,
            LOSS=loss is not None, BANK=bank is not None, PRECISION=self.precision, D=dim, BLOCK_R=block_r,
            BLOCK_K=tile.sweep_entries, BLOCK_D=self.block_d, STAGES=tile.sweep_stages, num_warps=tile.sweep_warps,
        )  # fmt: skip
        return Partial(sums, entries, loss, bank)

    def combine(self, partial: Partial, lse: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Of a sweep with a loss: parts (3,), or stats (6,) if it was the bank's too; and gradients (3, B, D)."""
        batch, dim = self.f3.shape
        samples, gradients = self.new(5, batch), self.new(3, batch, dim, dtype=dtype)
        self._combine(partial, lse, samples, gradients)
        metrics = partial.bank is not None
        stats = self.new(6 if metrics else 3)
        block_b = min(1024, triton.next_power_of_2(batch))
        _reduce_kernel[(1,)](samples, stats, batch, FIRST=self.first, METRICS=metrics, BLOCK_B=block_b, num_warps=4)
        return stats, gradients

    def log_sum_exps(self, partial: Partial) -> Tensor:
        """(4, B), to the base 2, of a sweep for the bank alone."""
        lse = self.new(4, len(self.f3))
        self._combine(partial, lse, lse, lse)
        return lse

    def _combine(self, partial: Partial, lse: Tensor, samples: Tensor, gradients: Tensor) -> None:
        (batch, dim), chunks = self.f3.shape, len(partial.sums)
        entries = partial.sums if partial.entries is None else partial.entries
        _combine_kernel[(batch, 3)](
            self.f0, self.f1, self.f2, self.f3, partial.sums, entries, samples, gradients, lse, batch, chunks,
            _scale(partial.loss), _scale(partial.bank), MARGIN[self.precision], FIRST=self.first, LAST=self.last,
            OWN=self.mix == "own", LOSS=partial.loss is not None, BANK=partial.bank is not None, D=dim,
            BLOCK_C=triton.next_power_of_2(chunks), BLOCK_D=self.block_d, num_warps=4,
        )  # fmt: skip

    def bank_gradient(self, prepared: Prepared, lse: Tensor, temperature: float, weights: Tensor) -> Tensor:
        """(K, D): of the three parts, weighted by ``weights`` (3,)."""
        gradient = torch.empty_like(self.bank)
        self._bank_pass(prepared, lse, temperature, Step(self.bank, gradient, 0.0, 0.0, 0.0), weights)
        return gradient

    def bank_step_(self, prepared: Prepared, lse: Tensor, temperature: float, step: Step) -> None:
        self._bank_pass(prepared, lse, temperature, step, None)

    def _bank_pass(
        self, prepared: Prepared, lse: Tensor, temperature: float, step: Step, weights: Tensor | None
    ) -> None:
        """With ``weights``, only their gradient is written, to the place of the momentum."""
        batch, size, tile = len(self.f3), len(self.bank), self.tiles
        _bank_kernel[(triton.cdiv(size, tile.bank_entries),)](
            prepared.split, prepared.c, lse, step.bank, step.momentum, self.mixing, lse if weights is None else weights,
            lse if step.guard is None else step.guard, batch, size, _scale(temperature), 1 / (temperature * batch),
            float(step.lr), float(step.momentum_factor), float(step.weight_decay), FIRST=self.first, LAST=self.last,
            MIX=self.mix, UPDATE=weights is None, GUARDED=step.guard is not None, PRECISION=self.precision,
            D=self.f3.shape[1], BLOCK_B=min(tile.bank_samples, _block(batch)),
            BLOCK_K=tile.bank_entries, BLOCK_D=self.block_d, STAGES=tile.bank_stages, num_warps=tile.bank_warps,
        )  # fmt: skip

    def enqueue_(self, bank: Tensor, momentum: Tensor, cursor: Tensor, guard: Tensor) -> None:
        """f0 over the oldest rows."""
        batch, dim = self.f3.shape
        _enqueue_kernel[(1,)](
            self.f0, bank, momentum, cursor, guard, batch, len(bank), D=dim, BLOCK_B=16, BLOCK_D=self.block_d,
            num_warps=8,
        )  # fmt: skip


def _block(count: int) -> int:
    """The smallest block that holds so many: a power of two, and no less than a matrix product takes."""
    return max(16, triton.next_power_of_2(count))


def _scale(temperature: float | None) -> float:
    """Of similarities to logits to the base 2."""
    return 0.0 if temperature is None else float(1 / (temperature * math.log(2)))
