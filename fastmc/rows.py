"""The MC loss as attention: rows of queries against the bank, in plain PyTorch operators.

A row is a query u with a softmax over its positive f0, the bank m_i and the mixed entries of eq. 8,
lambda_i v + (1 - lambda_i) m_i. Its logits need two similarities, s_i = u . m_i and c = u . v, since u times a mixed
entry is lambda_i c + (1 - lambda_i) s_i; its gradient is (expected key - f0) / tau. The rows are f1 on M_01, f2 on
M_02, f3 on M_03, and the target of L_2, f3 on M_02; InfoNCE is f3 alone, without mixed entries.

The bank comes in chunks and the batch in blocks, so that nothing larger than a block's rows by a chunk is made here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

SAMPLES = 64
"""Most samples of a block."""
ENTRIES = 2048
"""Bank entries of a chunk on a CPU: its logits stay in the cache."""
ENTRIES_ON_GPU = 16384
"""The same on a GPU, where few launches matter more."""
EPS = 1e-12
"""Shortest length that a row of the bank is divided by, as in torch.nn.functional.normalize."""


@dataclass(frozen=True)
class Contrast:
    """Queries against a bank: ``queries`` is (q, B, D), f1, f2 and f3 or f3 alone. One dtype and device throughout."""

    queries: Tensor
    bank: Tensor
    mixing: Tensor | None
    tiled: bool
    soft_target: bool

    @classmethod
    def of(
        cls,
        f1: Tensor | None,
        f2: Tensor | None,
        f3: Tensor,
        bank: Tensor,
        mixing: Tensor | None,
        tiled: bool,
        soft: bool,
    ) -> Contrast:
        if f1 is None or f2 is None:
            return cls(f3.unsqueeze(0), bank, mixing, tiled, False)
        return cls(torch.stack([f1, f2, f3]), bank, mixing, tiled, soft)

    @property
    def batch(self) -> int:
        return self.queries.shape[1]

    @property
    def rows_per_sample(self) -> int:
        """One for each query, and one for the target if mixing sets it apart from the row of f3."""
        return len(self.queries) + (self.soft_target and self.mixing is not None)

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

    ``lengths`` (K, 1) are those of the bank's rows once :meth:`unit_rows` has met them.
    """

    def __init__(self, contrast: Contrast) -> None:
        self.bank = contrast.bank
        q, r, n = len(contrast.queries), contrast.rows_per_sample, contrast.block_size
        k, d = contrast.chunk_size, contrast.bank.shape[1]
        self._plain = self.bank.new_empty(q * n * k)
        self._mixed = self.bank.new_empty(r * n * k if contrast.mixing is not None else 0)
        self._weights = self.bank.new_empty(r * n * k)
        self._unit = self.bank.new_empty(k, d)
        self.lengths = self.bank.new_empty(len(self.bank), 1)

    def plain(self, *shape: int) -> Tensor:
        return shaped(self._plain, *shape)

    def mixed(self, *shape: int) -> Tensor:
        return shaped(self._mixed, *shape)

    def weights(self, *shape: int) -> Tensor:
        return shaped(self._weights, *shape)

    def unit_rows(self, chunk: slice) -> Tensor:
        """Normalised rows m (k, D) of the bank."""
        raw = self.bank[chunk]
        lengths = torch.linalg.vector_norm(raw, dim=1, keepdim=True, out=self.lengths[chunk])
        return torch.div(raw, lengths.clamp(min=EPS), out=self._unit[: len(raw)])

    def through_normalisation_(self, gradient: Tensor, chunk: slice) -> None:
        """From dL/dm (k, D) at the unit rows m = w / max(|w|, EPS) to dL/dw, in place."""
        raw, lengths = self.bank[chunk], self.lengths[chunk]
        shortest = lengths.clamp(min=EPS)
        along = torch.linalg.vecdot(gradient, raw).unsqueeze(1).div_(shortest).div_(shortest)
        along *= lengths >= EPS  # where the length is clamped, it is a constant
        gradient.addcmul_(raw, along, value=-1).div_(shortest)


def shaped(buffer: Tensor, *shape: int) -> Tensor:
    """The beginning of a flat buffer, contiguous in this shape."""
    return buffer[: math.prod(shape)].view(shape)


class Block:
    """The rows of some samples: r rows per sample, in the order f1, f2, f3, target.

    Attributes:
        u: (q, n, D) queries; the target's row shares the last one. q <= r.
        v: what the mixed entries are mixed with, (r, n, D), or for tiled (r, tile, D).
        c: (r, n, 1), or for tiled (r, n, k) as a chunk meets it: similarity of each row's query and v.
        target: index of the target's row, None if L_2 is one-hot.
    """

    def __init__(self, contrast: Contrast, samples: slice, scratch: Scratch) -> None:
        self.contrast, self.samples, self.scratch = contrast, samples, scratch
        self.u = contrast.queries[:, samples].contiguous()
        self.q, self.n, self.d = self.u.shape
        self.r = contrast.rows_per_sample
        self.target = self.r - 1 if contrast.soft_target else None
        self.mixing = contrast.mixing
        self.rest = None if self.mixing is None else 1 - self.mixing
        if self.mixing is not None:
            self.v, self.c = self._partners()

    def positive(self, f0: Tensor) -> Tensor:
        """(q, n) similarities with the rows of f0 (B, D)."""
        return (self.u * f0[self.samples]).sum(dim=2)

    def per_row(self, x: Tensor) -> Tensor:
        """(q, ...) of the queries as (r, ...) of the rows."""
        return torch.cat([x, x[-1:]]) if self.r > self.q else x

    def _partners(self) -> tuple[Tensor, Tensor]:
        contrast, u = self.contrast, self.per_row(self.u)
        v = contrast.queries if self.r == self.q else torch.cat([contrast.queries, contrast.queries[1:2]])
        if not contrast.tiled:
            v = v[:, self.samples]
            return v, (u * v).sum(dim=2, keepdim=True)
        v = v[:, : contrast.tile]
        return v, (u @ v.mT).repeat(1, 1, math.ceil(contrast.chunk_size / contrast.tile))

    def plain_logits(self, m: Tensor, temperature: float) -> Tensor:
        """(q, n, k) against unit rows m (k, D) of the bank."""
        logits = self.scratch.plain(self.q, self.n, len(m))
        torch.mm(self.u.view(-1, self.d) / temperature, m.T, out=logits.view(-1, len(m)))
        return logits

    def mixed_logits(self, plain: Tensor, chunk: slice, temperature: float) -> Tensor | None:
        """(r, n, k) against the mixed entries; ``plain`` at the same temperature."""
        if self.mixing is None:
            return None
        k = plain.shape[2]
        c, mixing = self.c[..., :k] / temperature, self.mixing[chunk]
        logits = self.scratch.mixed(self.r, self.n, k)
        torch.lerp(plain, c[: self.q], mixing, out=logits[: self.q])
        if self.r > self.q:
            torch.lerp(plain[-1], c[-1], mixing, out=logits[-1])
        return logits

    def plain_weights(self, plain: Tensor, shift: Tensor | None, out: Tensor) -> Tensor:
        """e_a (r, n, k), the exponentials of the logits against the plain bank, less ``shift`` (r, n, 1)."""
        if shift is None:
            torch.exp(plain, out=out[: self.q])
            if self.r > self.q:
                out[-1].copy_(out[-2])
            return out
        torch.sub(plain, shift[: self.q], out=out[: self.q])
        if self.r > self.q:
            torch.sub(plain[-1], shift[-1], out=out[-1])
        return out.exp_()

    def add_mixed_(
        self, weights: Tensor, plain: Tensor, chunk: slice, temperature: float, shift: Tensor | None
    ) -> Tensor | None:
        """Make e_a the weights W = e_a + (1 - lambda) e_b of the bank's rows. Returns e_b, of the mixed entries."""
        mixed = self.mixed_logits(plain, chunk, temperature)
        if mixed is None or self.rest is None:
            return None
        if shift is not None:
            mixed.sub_(shift)
        weights.addcmul_(mixed.exp_(), self.rest[chunk])
        return mixed

    def largest_logit(self, positive: Tensor, temperature: float) -> Tensor:
        """(r, n, 1) exact maximum over all candidates, from a pass over the bank of its own."""
        largest = self.per_row(positive / temperature).unsqueeze(2)
        for chunk in self.contrast.chunks():
            plain = self.plain_logits(self.scratch.unit_rows(chunk), temperature)
            largest = torch.maximum(largest, self.per_row(plain.amax(dim=2, keepdim=True)))
            mixed = self.mixed_logits(plain, chunk, temperature)
            if mixed is not None:
                largest = torch.maximum(largest, mixed.amax(dim=2, keepdim=True))
        return largest

    def pull_queries(self, scale: Tensor, weights: Tensor | None, temperature: float) -> Tensor:
        """(q n, D) features for :meth:`pull_`; ``scale`` (r, n, 1) turns its weights into softmaxes."""
        factor = scale[: self.q] / (temperature * self.contrast.batch)
        if self.target is not None:
            factor = factor.clone()
            factor[1] = 1 / (temperature * self.contrast.batch)  # pull_ scales the weights of L_2 itself
        if weights is not None:
            factor = factor * weights[-self.q :].view(-1, 1, 1)
        return (self.u * factor).view(-1, self.d)

    def pull_(self, gradient: Tensor, w: Tensor, scale: Tensor, queries: Tensor, *, add: bool) -> None:
        """gradient (k, D) of the loss to the unit rows of a chunk, or added to it; spoils the weights w (r, n, k)."""
        if self.target is not None:
            w[1].mul_(scale[1]).addcmul_(w[self.target], scale[self.target], value=-1)
        k = w.shape[2]
        torch.addmm(gradient, w[: self.q].view(-1, k).T, queries, beta=float(add), out=gradient)


class Metrics:
    """How f3 does against the plain bank, of one block: logits at the bank's temperature."""

    def __init__(self, block: Block) -> None:
        self.nearest = block.u.new_full((block.n,), -math.inf)
        self.lse = block.u.new_full((block.n,), -math.inf)

    def add(self, logits: Tensor, exponentials: Tensor | None) -> None:
        """Take in the logits (n, k) of a chunk; their exponentials too if they are at hand without a shift."""
        torch.maximum(self.nearest, logits.amax(dim=1), out=self.nearest)
        lse = logits.logsumexp(dim=1) if exponentials is None else exponentials.sum(dim=1).log()
        torch.logaddexp(self.lse, lse, out=self.lse)


class Sums:
    """Sums over the bank of every row's exponentials at one temperature; with ``keys`` also of what they weigh."""

    def __init__(
        self,
        block: Block,
        temperature: float,
        shift: Tensor | None,
        *,
        keys: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        self.block, self.temperature, self.shift, self.metrics = block, temperature, shift, metrics
        self.folds = keys and block.contrast.tiled
        new = block.u.new_zeros
        self.plain = new(block.r, block.n)  # sum of W
        self.share = new(block.r, block.n, block.contrast.tile if self.folds else 1)  # sum of lambda e_b, by v
        self.keys = new(block.r * block.n, block.d) if keys else None  # sum of W m

    def add(self, logits: Tensor, m: Tensor, chunk: slice, out: Tensor) -> None:
        """Take in a chunk of plain logits (q, n, k); its weights W (r, n, k) are left in ``out``."""
        block = self.block
        w = block.plain_weights(logits, self.shift, out)
        if self.metrics is not None:
            self.metrics.add(logits[-1], w[block.q - 1] if self.shift is None else None)
        mixed = block.add_mixed_(w, logits, chunk, self.temperature, self.shift)
        self.plain += w.sum(dim=2)
        if self.keys is not None:
            self.keys.addmm_(w.view(-1, len(m)), m)
        if mixed is None or block.mixing is None:
            return
        mixing = block.mixing[chunk]
        if self.folds:
            _fold_(self.share, mixed.mul_(mixing))
        else:
            self.share.view(-1).addmv_(mixed.view(-1, len(m)), mixing)

    def exponential(self, similarity: Tensor) -> Tensor:
        """(r, n) exponentials, less the shift, of one candidate's similarities (q, n)."""
        logits = self.block.per_row(similarity / self.temperature)
        return (logits if self.shift is None else logits - self.shift.squeeze(2)).exp()

    def others(self) -> Tensor:
        """(r, n): the sum over all candidates but f0."""
        return self.plain + self.share.sum(dim=2)

    def keys_of_others(self) -> Tensor:
        """(r, n, D): the sum of every candidate but f0, each times its exponential."""
        assert self.keys is not None
        block = self.block
        keys = self.keys.view(block.r, block.n, block.d)
        if block.mixing is None:
            return keys
        return keys + (self.share @ block.v if self.folds else self.share * block.v)


def _fold_(total: Tensor, x: Tensor) -> None:
    """Add the columns of x (r, n, k) to those of total (r, n, tile), column i to i mod tile."""
    tile = total.shape[2]
    whole = x.shape[2] // tile * tile
    if whole:
        total += x[..., :whole].unflatten(2, (-1, tile)).sum(dim=2)
    total[..., : x.shape[2] - whole] += x[..., whole:]
