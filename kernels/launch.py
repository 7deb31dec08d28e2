"""The launches of a batch against a bank, in the order in which they run.

prepare   features in the form of the products, similarities c of eq. 8
sweep     the pass over the bank: partial sums and expected entries of every softmax, at one or both temperatures
combine   log-sum-exps, loss and gradients of every sample; the last program adds up the batch
bank      the second pass: the bank's gradient, or its step in place; or the first-in-first-out write
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kernels.bank import _bank_kernel, _enqueue_kernel
from kernels.combine import _combine_kernel
from kernels.prepare import _prepare_kernel
from kernels.products import parts
from kernels.sweep import PLANES, _sweep_kernel
from kernels.tiles import Tiles, current_target, multiprocessors, tiles

# What the rounding of a similarity may be, by precision: it must not decide whether the positive is on top.
MARGIN = {"bf16x3": 2.0**-15, "ieee": 2.0**-20, "bf16": 2.0**-7}


@dataclass(frozen=True)
class Prepared:
    """What `_prepare_kernel` makes of the features."""

    split: Tensor
    """(3, 1 or 2, B, D): hi and, under bf16x3, lo."""
    c: Tensor | None
    """Similarities of eq. 8: (4, B) under own, (4, B, B) under tiled mixing."""
    ticket: Tensor
    """0, as int32: programs of one `_combine_kernel` that are done."""


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
    """A batch against a bank."""

    f0: Tensor
    f1: Tensor | None
    f2: Tensor | None
    f3: Tensor
    bank: Tensor
    mixing: Tensor | None
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
        block_d = _block(f3.shape[1])
        mix = "none" if mixing is None else "tiled" if tiled else "own"
        return Plan(
            f0=f0.contiguous(),
            f1=None if f1 is None else f1.contiguous(),
            f2=None if f2 is None else f2.contiguous(),
            f3=f3.contiguous(),
            bank=bank.contiguous(),
            mixing=None if mixing is None else mixing.contiguous(),
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
        shape = {"none": None, "own": (4, batch), "tiled": (4, batch, batch)}[self.mix]
        c, ticket = shape and self.new(*shape), self.new(dtype=torch.int32)
        rows = triton.cdiv(batch, 16)
        _prepare_kernel[rows, self.last - self.first, rows if self.mix == "tiled" else 1](
            p_f1=self.f1,
            p_f2=self.f2,
            p_f3=self.f3,
            p_split=split,
            p_c=c,
            p_ticket=ticket,
            B=batch,
            FIRST=self.first,
            MIX=self.mix,
            PRECISION=self.precision,
            D=dim,
            BLOCK_B=16,
            BLOCK_D=min(128, self.block_d),
            num_warps=4,
        )
        return Prepared(split, c, ticket)

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
        programs = tile.sweep_programs * multiprocessors(self.bank.device)
        at_a_time = triton.cdiv(steps, max(1, programs // (rows * columns)))
        chunks_of_steps = triton.cdiv(steps, at_a_time)
        chunks = chunks_of_steps * columns

        sums = self.new(chunks, PLANES.value, 4, batch)
        entries = None if loss is None else self.new(chunks, 4, batch, dim)
        _sweep_kernel[rows, chunks_of_steps, columns](
            p_split=prepared.split,
            p_c=prepared.c,
            p_bank=self.bank,
            p_mixing=self.mixing,
            p_sums=sums,
            p_entries=entries,
            B=batch,
            K=size,
            period=period,
            num_steps=steps,
            scale=_scale(loss),
            bank_scale=_scale(bank),
            FIRST=self.first,
            LAST=self.last,
            MIX=self.mix,
            LOSS=loss is not None,
            BANK=bank is not None,
            PRECISION=self.precision,
            D=dim,
            BLOCK_R=block_r,
            BLOCK_K=tile.sweep_entries,
            BLOCK_D=self.block_d,
            EVEN=size % period == 0 and period % tile.sweep_entries == 0,
            FOLD=tile.sweep_fold,
            STAGES=tile.sweep_stages,
            num_warps=tile.sweep_warps,
        )
        return Partial(sums, entries, loss, bank)

    def combine(
        self, prepared: Prepared, partial: Partial, lse: Tensor, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """Of a sweep with a loss: parts (3,), or stats (6,) if it was the bank's too; and gradients (3, B, D)."""
        gradients = self.new(3, *self.f3.shape, dtype=dtype)
        stats = self.new(3 if partial.bank is None else 6)
        samples = self.new(5, len(self.f3), dtype=torch.int32)
        self._combine(partial, lse, samples, prepared.ticket, stats, gradients)
        return stats, gradients

    def log_sum_exps(self, partial: Partial) -> Tensor:
        """(4, B), to the base 2, of a sweep for the bank alone."""
        lse = self.new(4, len(self.f3))
        self._combine(partial, lse)
        return lse

    def _combine(
        self,
        partial: Partial,
        lse: Tensor,
        samples: Tensor | None = None,
        ticket: Tensor | None = None,
        stats: Tensor | None = None,
        gradients: Tensor | None = None,
    ) -> None:
        (batch, dim), chunks = self.f3.shape, len(partial.sums)
        block_c = triton.next_power_of_2(chunks)
        _combine_kernel[batch, 3](
            p_f0=self.f0,
            p_f1=self.f1,
            p_f2=self.f2,
            p_f3=self.f3,
            p_sums=partial.sums,
            p_entries=partial.entries,
            p_samples=samples,
            p_ticket=ticket,
            p_stats=stats,
            p_gradients=gradients,
            p_lse=lse,
            B=batch,
            num_chunks=chunks,
            scale=_scale(partial.loss),
            bank_scale=_scale(partial.bank),
            margin=MARGIN[self.precision],
            FIRST=self.first,
            LAST=self.last,
            OWN=self.mix == "own",
            LOSS=partial.loss is not None,
            BANK=partial.bank is not None,
            D=dim,
            BLOCK_B=min(256, triton.next_power_of_2(batch)),
            BLOCK_C=block_c,
            BLOCK_N=min(block_c, max(16, 8192 // self.block_d)),  # all of the paper's at once, in 128 registers
            BLOCK_D=self.block_d,
            num_warps=2,
        )

    def bank_gradient(self, prepared: Prepared, lse: Tensor, temperature: float, weights: Tensor) -> Tensor:
        """(K, D): of the three parts, weighted by ``weights`` (3,)."""
        gradient = torch.empty_like(self.bank)
        self._bank_pass(prepared, lse, temperature, self.bank, weights=weights, gradient=gradient)
        return gradient

    def bank_step_(self, prepared: Prepared, lse: Tensor, temperature: float, step: Step) -> None:
        self._bank_pass(prepared, lse, temperature, step.bank, step=step)

    def _bank_pass(
        self,
        prepared: Prepared,
        lse: Tensor,
        temperature: float,
        bank: Tensor,
        step: Step | None = None,
        weights: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> None:
        """A step, or the gradient by ``weights``."""
        batch, size, tile = len(self.f3), len(bank), self.tiles
        block_b = min(tile.bank_samples, _block(batch))
        _bank_kernel[(triton.cdiv(size, tile.bank_entries),)](
            p_split=prepared.split,
            p_c=prepared.c,
            p_lse=lse,
            p_bank=bank,
            p_momentum=step and step.momentum,
            p_mixing=self.mixing,
            p_parts=weights,
            p_gradient=gradient,
            p_loss=step and step.guard,
            B=batch,
            K=size,
            scale=_scale(temperature),
            factor=1 / (temperature * batch),
            lr=float(step.lr) if step else 0.0,
            momentum_factor=float(step.momentum_factor) if step else 0.0,
            weight_decay=float(step.weight_decay) if step else 0.0,
            FIRST=self.first,
            LAST=self.last,
            MIX=self.mix,
            PRECISION=self.precision,
            D=self.f3.shape[1],
            BLOCK_B=block_b,
            BLOCK_K=tile.bank_entries,
            BLOCK_D=self.block_d,
            EVEN_B=batch % block_b == 0,
            EVEN_K=size % tile.bank_entries == 0,
            STAGES=tile.bank_stages,
            num_warps=tile.bank_warps,
        )

    def enqueue_(self, bank: Tensor, momentum: Tensor, cursor: Tensor, guard: Tensor) -> None:
        """f0 over the oldest rows."""
        batch, dim = self.f3.shape
        _enqueue_kernel[(1,)](
            p_f0=self.f0,
            p_bank=bank,
            p_momentum=momentum,
            p_cursor=cursor,
            p_loss=guard,
            B=batch,
            K=len(bank),
            D=dim,
            BLOCK_B=16,
            BLOCK_D=self.block_d,
            num_warps=8,
        )


def _block(count: int) -> int:
    """The smallest block that holds so many: a power of two, and no less than a matrix product takes."""
    return max(16, triton.next_power_of_2(count))


def _scale(temperature: float | None) -> float:
    """Of similarities to logits to the base 2."""
    return 0.0 if temperature is None else float(1 / (temperature * math.log(2)))
