"""The launches of a batch against a bank, in the order in which they run.

prepare   features in the form of the products, similarities c of eq. 8
sweep     the pass over the bank: partial sums and expected entries of every softmax, at one or both temperatures
combine   log-sum-exps, loss and gradients of every sample; the last program adds up the batch
bank      the second pass: the bank's gradient, or its step in place; or the first-in-first-out write
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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


class Table(Protocol):
    """`fastmc.contrast_table.Table`, which says what the rows are."""

    @property
    def rows(self) -> tuple[tuple[int, int | None, int | None, float, int, int], ...]: ...
    @property
    def measured(self) -> int: ...
    @property
    def unit(self) -> bool: ...
    @property
    def key(self) -> bool: ...
    @property
    def mined(self) -> int: ...
    @property
    def bank_order(self) -> range | None: ...


@dataclass(frozen=True)
class Prepared:
    """What `_prepare_kernel` makes of the features."""

    split: Tensor
    """(queries, 1 or 2, B, D): hi and, under bf16x3, lo."""
    c: Tensor | None
    """Similarities of eq. 8: (R, B) under own, (R, B, B) under tiled mixing."""
    ticket: Tensor
    """0, as int32: programs of one `_combine_kernel` that are done."""


@dataclass(frozen=True)
class Partial:
    """What `_sweep_kernel` has summed of every chunk of the bank."""

    sums: Tensor
    """(chunks, PLANES, R, B)"""
    entries: Tensor | None
    """(chunks, R, B, D), with a loss."""
    mined: Tensor | None
    """(chunks, mined, 2, R, B), as int32, of a table that mines."""
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
    queries: tuple[Tensor, ...]
    bank: Tensor
    mixing: Tensor | None
    table: Table
    mix: str
    precision: str
    block_d: int
    tiles: Tiles

    @staticmethod
    def of(
        f0: Tensor,
        queries: Sequence[Tensor],
        bank: Tensor,
        mixing: Tensor | None,
        table: Table,
        tiled: bool,
        precision: str,
    ) -> Plan:
        block_d = _block(f0.shape[-1])
        mix = "none" if mixing is None else "tiled" if tiled else "own"
        return Plan(
            f0=f0.contiguous(),
            queries=tuple(f.contiguous() for f in queries),
            bank=bank.contiguous(),
            mixing=None if mixing is None else mixing.contiguous(),
            table=table,
            mix=mix,
            precision=precision,
            block_d=block_d,
            tiles=tiles(current_target(), block_d, precision, mix),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(B, D)"""
        batch, dim = self.queries[0].shape
        return batch, dim

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.bank.device)

    def prepare(self) -> Prepared:
        (batch, dim), count = self.shape, len(self.table.rows)
        dtype = torch.float32 if self.precision == "ieee" else torch.bfloat16
        split = self.new(len(self.queries), parts(self.precision), batch, dim, dtype=dtype)
        shape = {"none": None, "own": (count, batch), "tiled": (count, batch, batch)}[self.mix]
        c, ticket = shape and self.new(*shape), self.new(dtype=torch.int32)
        rows = triton.cdiv(batch, 16)
        _prepare_kernel[rows, count, rows if self.mix == "tiled" else 1](
            p_queries=self.queries,
            p_split=split,
            p_c=c,
            p_ticket=ticket,
            B=batch,
            TABLE=self.table.rows,
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
        (batch, dim), size, tile, count = self.shape, len(self.bank), self.tiles, len(self.table.rows)
        block_r = min(tile.sweep_rows, _block(count * batch))
        rows, period = triton.cdiv(count * batch, block_r), tile.sweep_entries
        if self.mix == "tiled":
            period = batch * max(1, period // batch)
        columns, steps = triton.cdiv(period, tile.sweep_entries), triton.cdiv(size, period)
        # As many programs as run at a time, each with the same number of tiles but for the last.
        programs = tile.sweep_programs * multiprocessors(self.bank.device)
        at_a_time = triton.cdiv(steps, max(1, programs // (rows * columns)))
        chunks_of_steps = triton.cdiv(steps, at_a_time)
        chunks = chunks_of_steps * columns

        sums = self.new(chunks, PLANES.value, count, batch)
        entries = None if loss is None else self.new(chunks, count, batch, dim)
        most = self.table.mined
        mined = self.new(chunks, most, 2, count, batch, dtype=torch.int32) if most else None
        _sweep_kernel[rows, chunks_of_steps, columns](
            p_split=prepared.split,
            p_c=prepared.c,
            p_bank=self.bank,
            p_mixing=self.mixing,
            p_sums=sums,
            p_entries=entries,
            p_mined=mined,
            B=batch,
            K=size,
            period=period,
            num_steps=steps,
            scale=_scale(loss),
            bank_scale=_scale(bank),
            TABLE=self.table.rows,
            MIX=self.mix,
            UNIT=self.table.unit,
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
        return Partial(sums, entries, mined, loss, bank)

    def combine(
        self,
        prepared: Prepared,
        partial: Partial,
        lse: Tensor,
        dtype: torch.dtype = torch.float32,
        lifted: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Of a sweep with a loss: losses (queries,), or stats if it was the bank's too; gradients (queries, B, D)."""
        count = len(self.queries)
        gradients = self.new(count, *self.shape, dtype=dtype)
        stats = self.new(count if partial.bank is None else max(6, count + 3))
        samples = self.new(count + 2, len(self.f0), dtype=torch.int32)
        self._combine(partial, lse, samples, prepared.ticket, stats, gradients, lifted)
        return stats, gradients

    def log_sum_exps(self, partial: Partial) -> Tensor:
        """(R, B), to the base 2, of a sweep for the bank alone."""
        lse = self.new(len(self.table.rows), len(self.f0))
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
        lifted: Tensor | None = None,
    ) -> None:
        (batch, dim), chunks, count = self.shape, len(partial.sums), len(self.queries)
        block_c = triton.next_power_of_2(chunks)
        _combine_kernel[batch, count](
            p_f0=self.f0,
            p_queries=self.queries,
            p_sums=partial.sums,
            p_mined=partial.mined,
            p_lifted=None if lifted is None else lifted.contiguous(),
            p_bank=None if partial.mined is None and lifted is None else self.bank,
            p_entries=partial.entries,
            p_samples=samples,
            p_ticket=ticket,
            p_stats=stats,
            p_gradients=gradients,
            p_lse=lse,
            B=batch,
            K=None if partial.mined is None else len(self.bank),
            num_chunks=chunks,
            scale=_scale(partial.loss),
            bank_scale=_scale(partial.bank),
            margin=MARGIN[self.precision],
            TABLE=self.table.rows,
            MEASURED=self.table.measured,
            UNIT=self.table.unit,
            KEY=self.table.key,
            POSITIVES=1 if self.f0.dim() == 2 else self.f0.shape[1],
            OWN=self.mix == "own",
            LOSS=partial.loss is not None,
            BANK=partial.bank is not None,
            D=dim,
            BLOCK_S=max(8, triton.next_power_of_2(count + 2)),
            BLOCK_B=min(256, triton.next_power_of_2(batch)),
            BLOCK_C=block_c,
            BLOCK_N=min(block_c, max(16, 8192 // self.block_d)),  # all of the paper's at once, in 128 registers
            BLOCK_D=self.block_d,
            num_warps=2,
        )

    def bank_pass_(
        self,
        prepared: Prepared,
        lse: Tensor,
        temperature: float,
        step: Step | None = None,
        weights: Tensor | None = None,
        gradient: Tensor | None = None,
    ) -> None:
        """A step; or, to ``gradient`` (K, D), that of the losses weighted by ``weights`` (queries,)."""
        batch, size, tile, order = len(self.f0), len(self.bank), self.tiles, self.table.bank_order
        assert order is not None and self.table.unit and self.table.key, "the table has no ascent"
        block_b = min(tile.bank_samples, _block(batch))
        _bank_kernel[(triton.cdiv(size, tile.bank_entries),)](
            p_split=prepared.split,
            p_c=prepared.c,
            p_lse=lse,
            p_bank=step.bank if step else self.bank,
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
            TABLE=self.table.rows,
            BACKWARDS=order.step < 0,
            MIX=self.mix,
            PRECISION=self.precision,
            D=self.shape[1],
            BLOCK_B=block_b,
            BLOCK_K=tile.bank_entries,
            BLOCK_D=self.block_d,
            EVEN_B=batch % block_b == 0,
            EVEN_K=size % tile.bank_entries == 0,
            STAGES=tile.bank_stages,
            num_warps=tile.bank_warps,
        )

    def enqueue_(self, bank: Tensor, momentum: Tensor, cursor: Tensor, guard: Tensor) -> None:
        """f0 over the oldest rows, all positives of a sample before the next sample's."""
        dim = self.f0.shape[-1]
        batch = self.f0.numel() // dim
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
