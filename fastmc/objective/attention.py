"""Contrast as attention: rows of queries against the bank, in plain PyTorch operators.

A row of a table (`fastmc.contrast_table`) is a query u with a softmax over its positive f0, the bank m_i and
the mixed entries of eq. 8, lambda_i v + (1 - lambda_i) m_i. Its logits need two similarities, s_i = u . m_i and c = u .
v, since u times a mixed entry is lambda_i c + (1 - lambda_i) s_i; its gradient is (expected key - f0) / tau.

The bank comes in chunks and the batch in blocks, so that nothing larger than a block's rows by a chunk is made here.
Every array of that size lies as (k, columns, n): k entries of a chunk, n samples of a block, and as columns first the
plain logits of its queries, then the mixed ones of its rows. So one operator works on all of them at once.

Logits are in bits, divided by log 2: exp2 takes half the time of exp on a CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from fastmc.contrast_table import Table

SAMPLES = 64
"""Most samples of a block."""
ENTRIES = 2048
"""Bank entries of a chunk on a CPU: its logits stay in the cache."""
ENTRIES_ON_GPU = 16384
"""The same on a GPU, where few launches matter more."""
EPS = 1e-12
"""Shortest length that a row of the bank is divided by, as in torch.nn.functional.normalize."""
BIT = math.log(2)
"""A logit of one bit."""


@dataclass(frozen=True)
class Contrast:
    """Queries (q, B, D) against a bank. One dtype and device throughout."""

    queries: Tensor
    bank: Tensor
    mixing: Tensor | None
    table: Table
    tiled: bool

    @property
    def batch(self) -> int:
        return self.queries.shape[1]

    @property
    def rows_per_sample(self) -> int:
        """Those of the table."""
        return len(self.table.rows)

    @property
    def tile(self) -> int:
        """Period of the features that tiled entries are mixed with."""
        return min(self.batch, len(self.bank))

    @property
    def chunk_size(self) -> int:
        entries = ENTRIES_ON_GPU if self.bank.is_cuda else ENTRIES
        if self.tiled:  # every chunk begins with sample 0
            entries = max(1, entries // self.tile) * self.tile
        return min(entries, len(self.bank))

    def chunks(self) -> list[slice]:
        size, end = self.chunk_size, len(self.bank)
        return [slice(start, min(start + size, end)) for start in range(0, end, size)]

    @property
    def block_size(self) -> int:
        """Samples of the largest block."""
        return math.ceil(self.batch / math.ceil(self.batch / SAMPLES))

    def blocks(self) -> list[slice]:
        """Samples in blocks that differ by one at most."""
        count = math.ceil(self.batch / SAMPLES)
        ends = [self.batch * i // count for i in range(count + 1)]
        return [slice(start, end) for start, end in pairwise(ends)]


class Scratch:
    """Memory that every chunk of a call shares: fresh megabytes cost more than the operators that fill them.

    ``inverse`` (K, 1) is 1 / max(|w|, EPS) of the bank's rows w.
    """

    def __init__(self, contrast: Contrast) -> None:
        self.bank = bank = contrast.bank
        self._scaled = contrast.table.unit
        rows = contrast.rows_per_sample * contrast.block_size * contrast.chunk_size
        columns = rows if contrast.mixing is None else 2 * rows
        self._logits, self._exponentials = bank.new_empty(columns), bank.new_empty(columns)
        self._unit = bank.new_empty(contrast.chunk_size, bank.shape[1])
        lengths = torch.linalg.vector_norm(bank, dim=1, keepdim=True)
        self.inverse = 1 / lengths.clamp(min=EPS)
        # Of the derivative of 1 / max(|w|, EPS), -w / |w|^3: nothing where the length is clamped.
        self._inverse_square = self.inverse.square().mul_(lengths >= EPS)

    def logits(self, *shape: int) -> Tensor:
        return shaped(self._logits, *shape)

    def exponentials(self, *shape: int) -> Tensor:
        return shaped(self._exponentials, *shape)

    def rows(self, chunk: slice) -> Tensor:
        """Rows m (k, D) of the bank, normalised unless the table has them as they are."""
        raw = self.bank[chunk]
        if not self._scaled:
            return raw
        return torch.mul(raw, self.inverse[chunk], out=self._unit[: len(raw)])

    def along(self, gradient: Tensor, chunk: slice) -> Tensor:
        """(k, 1), the a of dL/dw = inverse dL/dm - a w, from dL/dm (k, D) at the unit rows m = w inverse."""
        product = torch.mul(gradient, self.bank[chunk], out=self._unit[: len(gradient)])
        return product.sum(dim=1, keepdim=True).mul_(self._inverse_square[chunk]).mul_(self.inverse[chunk])

    def through_normalisation_(self, gradient: Tensor, chunk: slice) -> None:
        """From dL/dm (k, D) to dL/dw, in place."""
        along = self.along(gradient, chunk)
        gradient.mul_(self.inverse[chunk]).addcmul_(self.bank[chunk], along, value=-1)


class Positive(NamedTuple):
    """What a softmax has of the positives of a block: the one, or what stands for several.

    Attributes:
        similarity: (q, n), such that its exponential is that of the one, or the sum of all; key: the one (n, D), or
        their mean (q, n, D) with these exponentials as weights. nearest: (q, n), the largest similarity.
    """

    similarity: Tensor
    key: Tensor
    nearest: Tensor


def shaped(buffer: Tensor, *shape: int) -> Tensor:
    """The beginning of a flat buffer, contiguous in this shape."""
    return buffer[: math.prod(shape)].view(shape)


class Block:
    """The rows of some samples: r rows per sample, those of the table.

    Mixed rows of one query share its plain column unless a shift sets them apart: there are p = q or p = r plain
    columns.

    Attributes:
        u: (q, n, D) queries. q <= r.
        v: what the mixed entries are mixed with, (r, n, D), or for tiled (r, tile, D).
        columns: p, and r for the mixed logits if there are any.
        apart: rows without a plain column of their own, and the query whose column it is.
        soft: rows with a row as their target, and that, in an order in which no target comes before its students.
        queries: (p n, D) and crossed (1 or tile, r, n): what makes logits, plain ones and those of v.
        shift: (r, n), bits that each row's logits are lessened by, or None.
    """

    def __init__(self, contrast: Contrast, samples: slice, temperature: float, *, shifted: bool) -> None:
        self.contrast, self.samples, self.temperature = contrast, samples, temperature
        self.u = contrast.queries[:, samples].contiguous()
        self.q, self.n, self.d = self.u.shape
        self.r = contrast.rows_per_sample
        self.p = self.r if shifted or contrast.mixing is None else self.q
        rows = contrast.table.rows
        self.apart = [(i, rows[i].query) for i in range(self.p, self.r)]
        order = contrast.table.bank_order or range(self.q)
        self.soft = [(i, target) for i in reversed(order) if (target := rows[i].target) is not None]
        self.shift: Tensor | None = None
        self.queries = (self.per_row(self.u)[: self.p] / (temperature * BIT)).view(-1, self.d)
        self.mixing = contrast.mixing
        self.columns = self.p
        if self.mixing is not None:
            self.columns += self.r
            self.rest = (1 - self.mixing).view(-1, 1, 1)
            self.v, crossed = self._partners()
            self.crossed = crossed / (temperature * BIT)

    @property
    def is_first(self) -> bool:
        return self.samples.start == 0

    @property
    def is_last(self) -> bool:
        return self.samples.stop == self.contrast.batch

    def positive(self, f0: Tensor, temperature: float) -> Positive:
        """Of f0 (B, D), or several (B, G, D) of each sample, in a softmax at this temperature."""
        f0 = f0[self.samples]
        if f0.dim() == 2:
            similarity = (self.u * f0).sum(dim=2)
            return Positive(similarity, f0, similarity)
        similarities = (f0 @ self.u.permute(1, 2, 0)).permute(2, 0, 1)
        logits = similarities / temperature
        key = (logits.softmax(dim=2).transpose(0, 1) @ f0).transpose(0, 1)
        return Positive(logits.logsumexp(dim=2) * temperature, key, similarities.amax(dim=2))

    def per_row(self, x: Tensor) -> Tensor:
        """(q, ...) of the queries or (p, ...) of the plain columns as (r, ...) of the rows."""
        if len(x) == self.r:
            return x
        return torch.cat([x, *(x[row.query].unsqueeze(0) for row in self.contrast.table.rows[len(x) :])])

    def _partners(self) -> tuple[Tensor, Tensor]:
        """v, and its similarity c with each row's query: (1, r, n), or for tiled (tile, r, n)."""
        contrast, u = self.contrast, self.per_row(self.u)
        partners = [row.mixed_with for row in contrast.table.rows]
        v = torch.stack([contrast.queries[i] for i in partners if i is not None])
        if not contrast.tiled:
            v = v[:, self.samples]
            return v, (u * v).sum(dim=2).unsqueeze(0)
        v = v[:, : contrast.tile]
        return v, (u @ v.mT).permute(2, 0, 1)

    @cached_property
    def _crossed_entries(self) -> Tensor:
        """``crossed`` of every entry of a chunk, or (1, r, n)."""
        contrast = self.contrast
        times = math.ceil(contrast.chunk_size / contrast.tile) if contrast.tiled else 1
        return self.crossed.repeat(times, 1, 1)

    def logits(self, m: Tensor, chunk: slice, out: Tensor) -> Tensor:
        """(k, columns, n) of a chunk with unit rows m (k, D), less the shift, in ``out``."""
        k, logits = len(m), out
        plain, mixed = logits.tensor_split((self.p,), dim=1)
        torch.mm(m, self.queries.T, out=plain.view(k, -1))
        if self.mixing is not None:
            crossed, mixing = self._crossed_entries[:k], self.mixing[chunk].view(-1, 1, 1)
            torch.lerp(plain, crossed[:, : self.p], mixing, out=mixed[:, : self.p])
            for row, query in self.apart:
                torch.lerp(plain[:, query], crossed[:, row], mixing.squeeze(2), out=mixed[:, row])
        if self.shift is not None:
            logits.view(k, -1, self.r, self.n).sub_(self.shift)
        return logits

    def weights(self, e: Tensor, chunk: slice, out: Tensor | None = None) -> Tensor:
        """W = e_a + (1 - lambda) e_b (k, r, n) of the bank's rows; without ``out`` in the place of e_b."""
        if self.mixing is None:
            return e if out is None else out.copy_(e)
        plain, mixed = e.tensor_split((self.p,), dim=1)
        out, rest = mixed if out is None else out, self.rest[chunk]
        torch.addcmul(plain, mixed[:, : self.p], rest, out=out[:, : self.p])
        for row, query in self.apart:
            torch.addcmul(plain[:, query], mixed[:, row], rest.squeeze(2), out=out[:, row])
        return out

    def pull_queries(self, scale: Tensor, weights: Tensor | None, temperature: float) -> Tensor:
        """(q n, D) features for :meth:`pull_`; ``scale`` (r, n) turns its weights into softmaxes."""
        assert not self.contrast.table.mined, "a table that mines has no ascent"
        factor = scale[: self.q] / (temperature * self.contrast.batch)
        for student, _ in self.soft:
            factor[student] = 1 / (temperature * self.contrast.batch)  # pull_ scales these weights itself
        for i, weight in self.contrast.table.weights:
            factor[i] *= weight
        if weights is not None:
            factor *= weights.unsqueeze(1)
        return (self.u * factor.unsqueeze(2)).view(-1, self.d)

    def pull_(self, gradient: Tensor, w: Tensor, scale: Tensor, queries: Tensor, *, add: bool) -> None:
        """gradient (k, D) of the loss to the unit rows of a chunk, or added to it; spoils the weights w (k, r, n)."""
        for i, target in self.soft:
            w[:, i].mul_(scale[i]).addcmul_(w[:, target], scale[target], value=-1)
        torch.addmm(gradient, w[:, : self.q].view(len(w), -1), queries, beta=float(add), out=gradient)


class Metrics:
    """How the measured query does against the plain bank, of one block, at the bank's temperature."""

    def __init__(self, block: Block, temperature: float) -> None:
        measured = block.contrast.table.measured
        self._shift = None if block.shift is None else block.shift[measured] * (block.temperature / temperature)
        self._nearest = block.u.new_full((block.n,), -math.inf)
        self._total, self._lse = torch.zeros_like(self._nearest), self._nearest.clone()

    def add(self, logits: Tensor, exponentials: Tensor | None = None) -> None:
        """Take in the logits (k, n) of a chunk, less the shift; their exponentials too if they are at hand."""
        torch.maximum(self._nearest, logits.amax(dim=0), out=self._nearest)
        if self._shift is None:
            self._total += (logits.exp2() if exponentials is None else exponentials).sum(dim=0)
        else:  # which may be the mixed entries', and leave nothing of these exponentials
            torch.logaddexp(self._lse, logits.mul(BIT).logsumexp(dim=0), out=self._lse)

    def nearest(self) -> Tensor:
        """(n,) logits of the nearest entries."""
        return self._nearest * BIT if self._shift is None else (self._nearest + self._shift) * BIT

    def lse(self) -> Tensor:
        """(n,) log-sum-exps of the plain logits."""
        return self._total.log() if self._shift is None else self._lse + self._shift * BIT


class Mined:
    """The bank's entries that are nearest to each query of a block, ``k`` of each; of equals the first."""

    def __init__(self, block: Block, k: int) -> None:
        self._q, self._k = block.q, k
        self._logits = block.u.new_empty(0, block.q, block.n)
        self._entries = torch.empty(0, block.q, block.n, dtype=torch.int64, device=block.u.device)

    def add(self, logits: Tensor, start: int) -> None:
        """Take in the logits (k, columns, n) of a chunk, which begins at this entry."""
        found, places = _largest(logits[:, : self._q], self._k)
        entries = torch.cat([self._entries, places + start])
        self._logits, places = _largest(torch.cat([self._logits, found]), self._k)
        self._entries = entries.gather(0, places)

    def entries(self) -> Tensor:
        """(n, q k), int64: query after query, each one's nearest first."""
        return self._entries.permute(2, 1, 0).flatten(1)


class Softmax:
    """The exponentials of a block's logits at one temperature."""

    def __init__(self, block: Block, temperature: float) -> None:
        self.block, self.temperature = block, temperature
        self.shift = None if block.shift is None else block.shift * (block.temperature / temperature)

    def exponential(self, similarity: Tensor) -> Tensor:
        """(r, n) exponentials, less the shift, of one candidate's similarities (q, n)."""
        logits = self.block.per_row(similarity) / (self.temperature * BIT)
        return (logits if self.shift is None else logits - self.shift).exp2()


class Sums(Softmax):
    """Sums over the bank of every column's exponentials."""

    def __init__(self, block: Block, temperature: float, period: int = 1) -> None:
        """With a period there is one sum for the entries 0, period, 2 period, ..., and so on for 1, 2, ..."""
        super().__init__(block, temperature)
        self._columns = block.u.new_zeros(period, block.columns, block.n)

    def add(self, e: Tensor) -> None:
        """Take in the exponentials (k, columns, n) of a chunk."""
        _fold_(self._columns, e)

    def others(self) -> Tensor:
        """(r, n): the sum over all candidates but f0."""
        return self._rows().sum(dim=2)

    def _rows(self) -> Tensor:
        """(r, n, period)."""
        plain, mixed = self._columns.permute(1, 2, 0).tensor_split((self.block.p,))
        plain = self.block.per_row(plain)
        return plain if self.block.mixing is None else plain + mixed


class Keys(Sums):
    """Also the sum of the candidates, each times its exponential."""

    def __init__(self, block: Block, temperature: float) -> None:
        period = block.contrast.tile if block.contrast.tiled else 1  # of v
        super().__init__(block, temperature, period)
        self._weights = block.u.new_zeros(period, block.r, block.n)  # sum of W
        self._keys = block.u.new_zeros(block.r * block.n, block.d)  # sum of W m

    def add_weights(self, w: Tensor, m: Tensor) -> None:
        """Take in the weights W (k, r, n) of the unit rows m (k, D) of a chunk."""
        _fold_(self._weights, w)
        self._keys.addmm_(w.view(len(m), -1).T, m)

    def keys_of_others(self) -> Tensor:
        """(r, n, D): the sum of every candidate but f0, each times its exponential."""
        block = self.block
        keys = self._keys.view(block.r, block.n, block.d)
        if block.mixing is None:
            return keys
        share = self._rows() - self._weights.permute(1, 2, 0)  # of v: lambda e_b = e_a + e_b - W
        return keys + (share @ block.v if block.contrast.tiled else share * block.v)


def _fold_(total: Tensor, x: Tensor) -> None:
    """Add the entries of x (k, ...) to those of total (period, ...), i to i mod period."""
    rest = len(x) % len(total)
    if rest < len(x):
        total += x[: len(x) - rest].unflatten(0, (-1, len(total))).sum(dim=0)
    if rest:
        total[:rest] += x[-rest:]


def _largest(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of x (entries, ...), or all if there are no more, and their places; of equals the first, which
    torch.topk does not promise."""
    values: list[Tensor] = []
    places: list[Tensor] = []
    for _ in range(min(k, len(x))):
        if places:
            x = x.scatter(0, places[-1], -math.inf)
        value, place = x.max(dim=0, keepdim=True)
        values.append(value)
        places.append(place)
    return torch.cat(values), torch.cat(places)
