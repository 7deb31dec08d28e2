"""The MC loss (eq. 8-11) and the bank's step (eq. 7) as sequences of kernel launches. Nothing is validated here.

    prepare   features in the form of the products, similarities c of eq. 8
    sweep     one pass over the bank: partial sums and expected entries of every softmax, at both temperatures
    combine   log-sum-exps, loss and gradients of every sample
    reduce    means over the batch
    bank      second pass: the bank's gradient, and its step in place

Arguments and results are those of `fastmc.chunked`, which does the same in PyTorch. Tensors are contiguous float32 on
one device; a step is five launches and allocates its results and O(B D) partial sums a program, nothing of size B K.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from kernels import MAX_DIM
from kernels.bank import _bank_kernel, _enqueue_kernel
from kernels.combine import _combine_kernel, _reduce_kernel
from kernels.prepare import _prepare_kernel
from kernels.sweep import PLANES, _sweep_kernel
from kernels.tiles import Tiles, current_target, tiles

if triton.knobs.runtime.interpret:
    from kernels.interpreter import repair

    repair()

# What the rounding of a similarity may be, by precision: it must not decide whether the positive is on top.
MARGIN = {"bf16x3": 2.0**-15, "ieee": 2.0**-20, "bf16": 2.0**-7}


def mc_forward(
    f0: Tensor,
    f1: Tensor | None,
    f2: Tensor | None,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor | None,
    temperature: float,
    tiled: bool,
    soft_target: bool,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Parts (3,), their gradients with respect to the features (3, B, D), and what :func:`mc_bank_gradient` needs of
    this pass, (4, B). Absent views have zeros."""
    plan = Plan.of(f0, f1, f2, f3, bank, mixing, tiled, soft_target, precision)
    prepared = plan.prepare()
    stats, gradients, lse = plan.sweep(prepared, loss=temperature, bank=None)
    assert stats is not None and gradients is not None
    return stats, gradients, lse


def mc_bank_gradient(
    f1: Tensor | None,
    f2: Tensor | None,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor | None,
    lse: Tensor,
    weights: Tensor,
    temperature: float,
    tiled: bool,
    soft_target: bool,
    precision: str,
) -> Tensor:
    """sum_v weights[v] dL_v/dbank (K, D), from the ``lse`` of :func:`mc_forward` at the same temperature."""
    plan = Plan.of(f3, f1, f2, f3, bank, mixing, tiled, soft_target, precision)
    gradient = torch.empty_like(plan.bank)
    plan.bank_pass(plan.prepare(), lse, temperature, gradient=gradient, parts=weights)
    return gradient


def bank_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    f1: Tensor,
    f2: Tensor,
    f3: Tensor,
    mixing: Tensor | None,
    temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    precision: str,
) -> None:
    """Eq. 7, in place; four launches."""
    plan = Plan.of(f0, f1, f2, f3, bank, mixing, tiled, True, precision)
    prepared = plan.prepare()
    _, _, lse = plan.sweep(prepared, loss=None, bank=temperature)
    with contiguous(bank, momentum) as (w, v):
        plan.bank_pass(prepared, lse, temperature, update=Update(w, v, lr, momentum_factor, weight_decay))


def mc_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    f1: Tensor | None,
    f2: Tensor | None,
    f3: Tensor,
    mixing: Tensor | None,
    temperature: float,
    bank_temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    soft_target: bool,
    update: str,
    cursor: Tensor | None,
    precision: str,
) -> tuple[Tensor, Tensor]:
    """stats (6,) = loss, L1, L2, L3, top-1 count, mean probability of the positive; gradients (3, B, D). The bank
    steps ("ascent"), takes f0 ("fifo") or stays ("none"); it stays in any case where the loss is not finite."""
    plan = Plan.of(f0, f1, f2, f3, bank, mixing, tiled, soft_target, precision)
    prepared = plan.prepare()
    stats, gradients, lse = plan.sweep(prepared, loss=temperature, bank=bank_temperature)
    assert stats is not None and gradients is not None
    if update == "none":
        return stats, gradients
    with contiguous(bank, momentum) as (w, v):
        if update == "ascent":
            change = Update(w, v, lr, momentum_factor, weight_decay, guard=stats)
            plan.bank_pass(prepared, lse, bank_temperature, update=change)
        else:
            assert cursor is not None
            plan.enqueue(w, v, cursor, stats)
    return stats, gradients


@contextmanager
def contiguous(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """The tensors, or contiguous copies that are written back: the kernels change rows that follow one another."""
    inner = [t.contiguous() for t in tensors]
    yield inner
    for tensor, copy in zip(tensors, inner, strict=True):
        if copy is not tensor:
            tensor.copy_(copy)


@dataclass(frozen=True)
class Update:
    """A step of eq. 7, in place."""

    bank: Tensor
    momentum: Tensor
    lr: float
    momentum_factor: float
    weight_decay: float
    guard: Tensor | None = None
    """Nothing is written unless its first element is finite."""


@dataclass(frozen=True)
class Prepared:
    """What `_prepare_kernel` makes of the features."""

    split: Tensor
    """(3, 1 or 2, B, D): hi and, under bf16x3, lo."""
    c: Tensor
    """Similarities of eq. 8: (4, B), or (4, B, B) under tiled mixing."""


@dataclass(frozen=True)
class Plan:
    """A batch against a bank, and the launches for it."""

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
        if f3.shape[1] > MAX_DIM:
            raise ValueError(f"the kernels take D <= {MAX_DIM}, got {f3.shape[1]}; impl='torch' takes any")
        alone = f1 is None or f2 is None
        f0, f3 = f0.contiguous(), f3.contiguous()
        block_d = max(16, triton.next_power_of_2(f3.shape[1]))
        return Plan(
            f0=f0,
            f1=f3 if f1 is None else f1.contiguous(),  # in the place of an absent tensor: any, since none is read
            f2=f3 if f2 is None else f2.contiguous(),
            f3=f3,
            bank=bank.contiguous(),
            mixing=bank if mixing is None else mixing.contiguous(),
            mix="none" if mixing is None else "tiled" if tiled else "own",
            first=2 if alone else 0,
            last=4 if soft_target and not alone else 3,
            precision=precision,
            block_d=block_d,
            tiles=tiles(current_target(), block_d, precision),
        )

    @property
    def settings(self) -> dict[str, object]:
        return {"PRECISION": self.precision, "D": self.f3.shape[1], "BLOCK_D": self.block_d}

    def prepare(self) -> Prepared:
        batch, dim = self.f3.shape
        parts, dtype = (1, torch.float32) if self.precision == "ieee" else (2, torch.bfloat16)
        parts = 2 if self.precision == "bf16x3" else 1
        split = torch.empty(3, parts, batch, dim, dtype=dtype, device=self.f3.device)
        c = self.f3.new_empty(4, batch, batch) if self.mix == "tiled" else self.f3.new_empty(4, batch)
        rows = triton.cdiv(batch, 16)
        grid = (rows, self.last - self.first, rows if self.mix == "tiled" else 1)
        _prepare_kernel[grid](
            self.f1, self.f2, self.f3, split, c, batch,
            FIRST=self.first, MIX=self.mix, PRECISION=self.precision, D=dim, BLOCK_B=16,
            BLOCK_D=min(128, self.block_d), num_warps=4,
        )  # fmt: skip
        return Prepared(split, c)

    def sweep(
        self, prepared: Prepared, *, loss: float | None, bank: float | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Stats (with metrics under both temperatures), gradients (None without a loss), and log-sum-exps."""
        (batch, dim), size, tile = self.f3.shape, len(self.bank), self.tiles
        new = self.f3.new_empty
        block_r = min(tile.sweep_rows, max(16, triton.next_power_of_2((self.last - self.first) * batch)))
        rows = triton.cdiv((self.last - self.first) * batch, block_r)
        period = tile.sweep_entries
        if self.mix == "tiled":
            period = batch * max(1, tile.sweep_entries // batch)
        columns, steps = triton.cdiv(period, tile.sweep_entries), triton.cdiv(size, period)
        parts = triton.cdiv(steps, triton.cdiv(steps, max(1, tile.programs // (rows * columns))))
        chunks = parts * columns

        sums = new(chunks, PLANES.value, 4, batch)
        entries = new(chunks, 4, batch, dim) if loss else sums
        scales = {"scale": _scale(loss), "bank_scale": _scale(bank)}
        flags = {"FIRST": self.first, "LOSS": loss is not None, "BANK": bank is not None}
        _sweep_kernel[(rows, parts, columns)](
            prepared.split, prepared.c, self.bank, self.mixing, sums, entries, batch, size, period, steps, **scales,
            **flags, LAST=self.last, MIX=self.mix, BLOCK_R=block_r, BLOCK_K=tile.sweep_entries,
            STAGES=tile.sweep_stages, num_warps=tile.sweep_warps, **self.settings,
        )  # fmt: skip

        absent = torch.zeros if self.first or self.last < 4 else torch.empty
        lse = absent(4, batch, device=sums.device)
        samples = new(5, batch) if loss else sums
        gradients = absent(3, batch, dim, device=sums.device) if loss else None
        _combine_kernel[(batch, 3 - self.first)](
            self.f0, self.f1, self.f2, self.f3, sums, entries, samples, sums if gradients is None else gradients, lse,
            batch, chunks, **scales, **flags, margin=MARGIN[self.precision], SOFT=self.last == 4,
            OWN=self.mix == "own", D=dim, BLOCK_C=triton.next_power_of_2(chunks), BLOCK_D=self.block_d, num_warps=4,
        )  # fmt: skip
        if gradients is None:
            return None, None, lse
        metrics = bank is not None
        stats = new(6 if metrics else 3)
        block_b = min(1024, triton.next_power_of_2(batch))
        _reduce_kernel[(1,)](samples, stats, batch, FIRST=self.first, METRICS=metrics, BLOCK_B=block_b, num_warps=4)
        return stats, gradients, lse

    def bank_pass(
        self,
        prepared: Prepared,
        lse: Tensor,
        temperature: float,
        *,
        update: Update | None = None,
        gradient: Tensor | None = None,
        parts: Tensor | None = None,
    ) -> None:
        """The bank's gradient at this temperature: as an ``update``, or in ``gradient``, weighted by ``parts``."""
        batch, size, tile = len(self.f3), len(self.bank), self.tiles
        u = update or Update(self.bank, self.bank, 0.0, 0.0, 0.0)
        unused = self.bank
        _bank_kernel[(triton.cdiv(size, tile.bank_entries),)](
            prepared.split, prepared.c, lse, u.bank, u.momentum, unused if gradient is None else gradient, self.mixing,
            unused if parts is None else parts, unused if u.guard is None else u.guard, batch, size,
            _scale(temperature), 1 / (temperature * batch), u.lr, u.momentum_factor, u.weight_decay, FIRST=self.first,
            SOFT=self.last == 4, MIX=self.mix, UPDATE=update is not None, GUARDED=u.guard is not None,
            BLOCK_B=min(tile.bank_samples, max(16, triton.next_power_of_2(batch))), BLOCK_K=tile.bank_entries,
            STAGES=tile.bank_stages, num_warps=tile.bank_warps, **self.settings,
        )  # fmt: skip

    def enqueue(self, bank: Tensor, momentum: Tensor, cursor: Tensor, guard: Tensor) -> None:
        """f0 over the oldest rows, in place."""
        (batch, dim), size = self.f3.shape, len(bank)
        _enqueue_kernel[(1,)](
            self.f0, bank, momentum, cursor, guard, batch, size, D=dim, BLOCK_B=16, BLOCK_D=self.block_d, num_warps=8
        )


def _scale(temperature: float | None) -> float:
    """Of similarities to logits to the base 2."""
    return 0.0 if temperature is None else 1 / (temperature * math.log(2))
