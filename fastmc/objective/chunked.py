"""impl="torch": loss, gradients, metrics and bank step in plain PyTorch operators, from one sweep over the bank.

Sums of unnormalised exponentials give everything of eq. 1-3 and 9-11 but the bank's own gradient (eq. 7): that needs
the finished sums at its own temperature, so the weights of a block of samples are stored until they are known. Memory
is O(64 K) for any B; autograd records nothing; only a CPU's values are looked at, so a GPU is never waited for.

These functions validate nothing. All tensors are of one dtype, float32 or float64, and on one device. A float32
product on a GPU follows torch's matmul precision; TF32's error (about 1e-3 of a similarity, divided by tau) is the
caller's choice. ``precision`` belongs to other implementations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmc.backends import may_look
from fastmc.contrast_table import Row, Table
from fastmc.objective.attention import BIT, ENTRIES, ENTRIES_ON_GPU, EPS, Block, Contrast, Positive
from fastmc.objective.passes import Ascending, KeysOfOthers, OfOthers, Passes, Swept
from kernels.ranges import part


def contrast_forward(
    f0: Tensor,
    queries: Sequence[Tensor],
    bank: Tensor,
    mixing: Tensor | None,
    table: Table,
    temperature: float,
    tiled: bool,
    precision: str,
    passes: type[Passes] = Passes,
) -> tuple[Tensor, Tensor, Tensor]:
    """The losses of the table with their gradients.

    Args:
        f0, queries: (B, D) each.
        bank: (K, D) raw rows; mixing: lambda (K,), or None if the table has no mixed entries.
        tiled: entry i is mixed with the feature of sample i mod B, not with each sample's own.

    Returns:
        losses (q,); gradients (q, B, D) of their sum, weighted as the table says, to the queries; lse (r, B), the
        log-sum-exps of the table's rows.
    """
    contrast = Contrast(torch.stack(list(queries)), bank, mixing, table, tiled)
    results = Results(contrast, temperature)
    _sweep(passes(contrast), f0, temperature, None, results, None)
    return results.losses, results.gradients, results.lse


def contrast_bank_gradient(
    queries: Sequence[Tensor],
    bank: Tensor,
    mixing: Tensor | None,
    lse: Tensor,
    weights: Tensor,
    table: Table,
    temperature: float,
    tiled: bool,
    precision: str,
    passes: type[Passes] = Passes,
) -> Tensor:
    """The (K, D) gradient of sum_q weights[q] L_q, further weighted as the table says.

    ``lse`` is what :func:`contrast_forward` gave, weights are (q,).
    """
    contrast = Contrast(torch.stack(list(queries)), bank, mixing, table, tiled)
    over = passes(contrast)
    gradient = torch.empty_like(bank, memory_format=torch.contiguous_format)
    bounded = _logits_are_bounded(queries[0], contrast, temperature) and bool(
        lse.abs().max() <= _largest_logit(lse.dtype)
    )
    for samples in contrast.blocks():
        block = Block(contrast, samples, temperature, shifted=not bounded)
        lse_of_rows = lse[:, samples]
        if not bounded:
            block.shift = lse_of_rows / BIT  # exponentials of logits - lse are softmaxes
        scale = (-lse_of_rows).exp() if bounded else torch.ones_like(lse_of_rows)
        over.bank_gradient_(block, scale, block.pull_queries(scale, weights, temperature), gradient)
    return gradient


def bank_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    queries: Sequence[Tensor],
    mixing: Tensor | None,
    table: Table,
    temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    precision: str,
    passes: type[Passes] = Passes,
) -> None:
    """Eq. 7 in place: v = momentum_factor v - dL/dbank + weight_decay bank; bank = bank - lr v. v is ``momentum``."""
    contrast = Contrast(torch.stack(list(queries)), bank, mixing, table, tiled)
    over = passes(contrast)
    ascent = Ascent(over, temperature, Ascending(momentum, lr, momentum_factor, weight_decay))
    _sweep(over, f0, temperature, temperature, None, ascent)


def contrast_step_(
    bank: Tensor,
    momentum: Tensor,
    f0: Tensor,
    queries: Sequence[Tensor],
    mixing: Tensor | None,
    table: Table,
    temperature: float,
    bank_temperature: float,
    lr: float,
    momentum_factor: float,
    weight_decay: float,
    tiled: bool,
    update: str,
    cursor: Tensor | None,
    precision: str,
    lifted: Tensor | None = None,
    passes: type[Passes] = Passes,
) -> tuple[Tensor, Tensor]:
    """Losses, their gradients and metrics, all at the old bank; then the bank's update in place.

    f0 is (B, D), or (B, G, D) with several positives of each sample, of a table of plain one-hot rows.

    ``update`` is "ascent" (:func:`bank_step_` on the loss at ``bank_temperature``), "fifo" (:func:`enqueue_` of f0 at
    ``cursor``) or "none". If the loss is not finite, bank, momentum and cursor stay as they are. ``lifted``: of a table
    that lifts entries, which (l, B, k), as from :func:`nearest_rows` of the query of each of its l rows.

    Returns:
        stats (max(6, q + 3),): loss, the queries' own, the number of samples whose positive is nearer to the measured
        query f than every bank entry, psi(f, f0) of eq. 2 at ``bank_temperature``, averaged, and zeros; gradients
        (q, B, D) as from :func:`contrast_forward`.
    """
    contrast = Contrast(torch.stack(list(queries)), bank, mixing, table, tiled)
    results, over = Results(contrast, temperature, lifted), passes(contrast)
    ascent = None
    if update == "ascent":
        ascent = Ascent(over, bank_temperature, Ascending(momentum, lr, momentum_factor, weight_decay))
    _sweep(over, f0, temperature, bank_temperature, results, ascent)
    if update == "fifo":
        assert cursor is not None
        with part("bank"):
            enqueue_(bank, momentum, f0.flatten(0, -2), cursor, results.finite())
    return results.stats(f0, bank_temperature), results.gradients


def mined_rows(queries: Sequence[Tensor], bank: Tensor, k: int, passes: type[Passes] = Passes) -> Tensor:
    """The k rows of the bank (K, D) that are nearest to each query (B, D): (B, q k), int64, query after query.

    Each query's nearest row comes first, of equal ones the lower. They are the mined positives of a table with these
    queries, which counts a row once where several queries have it.
    """
    table = Table(tuple(Row(i) for i in range(len(queries)))).mining(k)
    contrast = Contrast(torch.stack(list(queries)), bank, None, table, False)
    over, found = passes(contrast), []
    for samples in contrast.blocks():
        block = Block(contrast, samples, 1.0, shifted=False)
        found.append(over.sweep(block, 1.0, keys=False, metrics=False, kept=None).mined)
    return torch.cat([entries for entries in found if entries is not None])


def nearest_rows(f: Tensor, bank: Tensor, k: int) -> Tensor:
    """The k rows of the bank (K, D) that are nearest to each feature (B, D), all at unit length: (B, k), int64, in
    any order. Of rows that are equally near the lower are taken, which torch.topk alone does not promise.

    No array (B, K) is made: the bank comes in chunks. K is below 2^24, so that float32 has the row's number.
    """
    size = ENTRIES_ON_GPU if bank.is_cuda else ENTRIES
    similar, rows = f.new_empty(len(f), 0), torch.empty(len(f), 0, dtype=torch.int64, device=f.device)
    for start, m in zip(range(0, len(bank), size), bank.split(size), strict=True):
        of_chunk = f @ F.normalize(m, dim=1, eps=EPS).T
        places = _nearest_places(of_chunk, torch.arange(len(m), device=f.device), k)
        similar = torch.cat([similar, of_chunk.gather(1, places)], dim=1)
        rows = torch.cat([rows, places + start], dim=1)
        places = _nearest_places(similar, rows, k)
        similar, rows = similar.gather(1, places), rows.gather(1, places)
    return rows


def _nearest_places(similar: Tensor, rows: Tensor, k: int) -> Tensor:
    """Where the k largest of each sample's similarities (B, n) are, or all of them; of equal ones those of the lower
    ``rows``, (n,) or (B, n)."""
    k = min(k, similar.shape[1])
    values, places = similar.topk(k, dim=1, sorted=False)
    least = values.amin(dim=1, keepdim=True)
    if may_look(similar) and not torch.compiler.is_compiling() and not ((similar >= least).sum(dim=1) > k).any():
        return places
    rank = torch.where(similar == least, -rows.to(torch.float32), -math.inf).masked_fill(similar > least, math.inf)
    return rank.topk(k, dim=1, sorted=False).indices


def enqueue_(bank: Tensor, momentum: Tensor, f0: Tensor, cursor: Tensor, allowed: Tensor) -> None:
    """Write f0 (B, D) over the rows from ``cursor`` mod K on, round the end; of more than K features the last K stay.

    A replaced row starts at rest: its velocity is zeroed. ``cursor`` (int64 scalar) moves on by B. Nothing changes
    where the scalar ``allowed`` is False.
    """
    kept = f0[-len(bank) :].to(bank.dtype)
    rows = next_rows(cursor, len(f0), len(bank))
    bank.index_copy_(0, rows, torch.where(allowed, kept, bank[rows]))
    momentum.index_copy_(0, rows, torch.where(allowed, 0, momentum[rows]))
    cursor.add_(len(f0) * allowed)


def next_rows(cursor: Tensor, count: int, size: int) -> Tensor:
    """int64: the rows of a bank of this size that ``count`` features go to from ``cursor`` on, round the end; of more
    than there are rows, those of the last."""
    kept = min(count, size)
    return (cursor + (count - kept) + torch.arange(kept, device=cursor.device)) % size


def _sweep(
    passes: Passes,
    f0: Tensor,
    temperature: float,
    bank_temperature: float | None,
    results: Results | None,
    ascent: Ascent | None,
) -> None:
    """One pass over the bank for each block: ``results`` at the first temperature, metrics and ascent at the second."""
    contrast, second_temperature = passes.contrast, bank_temperature or temperature
    bounded = _logits_are_bounded(f0, contrast, min(temperature, second_temperature))
    for samples in contrast.blocks():
        block = Block(contrast, samples, temperature, shifted=not bounded)
        positive, second = (block.positive(f0, tau) for tau in (temperature, second_temperature))
        if not contrast.table.key:  # is no candidate; what is not finite in f0 stays to be seen
            positive = positive._replace(similarity=0 * positive.similarity - math.inf)
        if not bounded:
            block.shift = passes.largest_logit(block, positive.similarity)
            for i in contrast.table.lifters:
                lifted = block.u[contrast.table.rows[i].query].norm(dim=1) / (temperature * BIT)
                block.shift[i] = torch.maximum(block.shift[i], lifted)
        keys, metrics, kept = results is not None, bank_temperature is not None, None if ascent is None else ascent.kept
        found = passes.sweep(block, second_temperature, keys=keys, metrics=metrics, kept=kept)
        if results is not None:
            results.collect(found, positive, second)
        if ascent is not None:
            with part("bank"):
                ascent.pull_(found.sums, second.similarity, None if results is None else results.finite())


class Results:
    """What a call returns, gathered block by block."""

    def __init__(self, contrast: Contrast, temperature: float, lifted: Tensor | None = None) -> None:
        self.contrast, self.temperature, self.lifted = contrast, temperature, lifted
        bank, batch = contrast.bank, contrast.batch
        self.losses = bank.new_zeros(len(contrast.queries))
        self.gradients = torch.empty_like(contrast.queries)
        self.lse = bank.new_empty(contrast.rows_per_sample, batch)
        # Of the measured query: its positive, the nearest of several, and what Metrics has.
        self.positive, self.nearest_positive = bank.new_empty(batch), bank.new_empty(batch)
        self.nearest, self.plain_lse = bank.new_empty(batch), bank.new_empty(batch)

    def collect(self, found: Swept, of_positive: Positive, second: Positive) -> None:
        """Take in a block that has met the whole bank, with its positives at the first and second temperature."""
        sums, metrics = found.keys, found.metrics
        block, contrast, tau = sums.block, self.contrast, self.temperature
        (positive, f0, _), keys = of_positive, sums.keys_of_others()
        others, e_positive = sums.others(), sums.exponential(positive)
        beyond = torch.zeros_like(others) if self.lifted is None else self._lift(sums, others, keys)
        total = others + e_positive
        lse = total.log() if sums.shift is None else total.log() + sums.shift * BIT
        keys = keys / total.unsqueeze(2)
        if contrast.table.key:
            # Without the cancellation of lse - positive and of (expected key) - f0 where the positive has won.
            odds = others / e_positive
            losses = torch.where(odds.isfinite(), odds.log1p(), lse - block.per_row(positive) / tau)
            pull = keys - (others / total).unsqueeze(2) * f0
        else:
            losses, pull = lse.clone(), keys
        pulls = pull[: block.q].clone()  # a student may be a target too
        for i, t in block.soft:
            losses[i] -= ((block.u[i] * pull[t]).sum(dim=1) + beyond[i] / total[i]) / tau
            # The difference of the two pulls; f0 enters with that of the positives' probabilities, which may be close.
            p, p_t = e_positive[i] / total[i], e_positive[t] / total[t]
            excess = torch.where(p < 0.5, p - p_t, others[t] / total[t] - others[i] / total[i])
            pulls[i] = keys[i] - keys[t] + excess.unsqueeze(1) * f0
        if found.mined is not None:
            aim, share = _spread(found.mined, contrast.bank, contrast.table.unit)
            for i in contrast.table.miners:
                losses[i] -= ((block.u[i] * aim).sum(dim=1) - share * positive[i]) / tau
                pulls[i] += share.unsqueeze(1) * f0 - aim
        self.losses += losses[: block.q].sum(dim=1) / contrast.batch
        for i, weight in contrast.table.weights:
            pulls[i] *= weight
        self.gradients[:, block.samples] = pulls / (tau * contrast.batch)
        self.positive[block.samples] = second.similarity[contrast.table.measured]
        self.nearest_positive[block.samples] = second.nearest[contrast.table.measured]
        self.nearest[block.samples], self.plain_lse[block.samples] = metrics.nearest(), metrics.lse()
        self.lse[:, block.samples] = lse

    def _lift(self, sums: KeysOfOthers, others: Tensor, keys: Tensor) -> Tensor:
        """Add to the sums (r, n) and to the keys (r, n, D) what lifted entries have more than their own exponentials.

        Returns:
            (r, n): by how much they were lifted, each times its exponential. It is what the expected similarity of a
            row to itself has beyond its query's to the expected entry.
        """
        assert self.lifted is not None
        contrast, block = self.contrast, sums.block
        beyond = torch.zeros_like(others)
        for i, mined in zip(contrast.table.lifters, self.lifted[:, block.samples], strict=True):
            u, m = block.u[contrast.table.rows[i].query], F.normalize(contrast.bank[mined], dim=2, eps=EPS)
            shift = 0 if sums.shift is None else sums.shift[i].unsqueeze(1)
            similar, length = (m @ u.unsqueeze(2)).squeeze(2), u.norm(dim=1, keepdim=True)
            new, old = ((x / (self.temperature * BIT) - shift).exp2() for x in (length, similar))
            others[i] += (new - old).sum(dim=1)
            keys[i] += ((new - old).unsqueeze(1) @ m).squeeze(1)
            beyond[i] = (new * (length - similar)).sum(dim=1)
        return beyond

    @property
    def loss(self) -> Tensor:
        weighted = self.losses.clone()
        for i, weight in self.contrast.table.weights:
            weighted[i] *= weight
        return weighted.sum()

    def finite(self) -> Tensor:
        """Whether the loss is, a scalar on the device."""
        return torch.isfinite(self.loss)

    def stats(self, f0: Tensor, bank_temperature: float) -> Tensor:
        """As :func:`contrast_step_` returns them."""
        # Of a similarity of unit rows, or of rows as long as query and positive: it must not decide a tie.
        rounding: float | Tensor = 8 * torch.finfo(self.positive.dtype).eps
        if not self.contrast.table.unit:
            measured = self.contrast.queries[self.contrast.table.measured]
            rounding = rounding * measured.norm(dim=1) * f0.norm(dim=-1).view(len(f0), -1).amax(dim=1)
        top1 = self.nearest_positive > self.nearest * bank_temperature + rounding
        odds = self.plain_lse - self.positive / bank_temperature
        found = [self.loss, *self.losses, top1.sum(), torch.sigmoid(-odds).mean()]
        return torch.stack([*found, *[torch.zeros_like(self.loss)] * (6 - len(found))])


class Ascent:
    """Eq. 7 at one temperature. The weights of a block wait here, unnormalised, until their sums are known."""

    def __init__(self, passes: Passes, temperature: float, ascending: Ascending) -> None:
        self._passes, self._temperature, self._ascending = passes, temperature, ascending
        self.kept = passes.kept()
        contrast, bank = passes.contrast, passes.contrast.bank
        whole = len(contrast.blocks()) > 1  # then the gradient of every chunk waits for the last block
        self._gradient = bank.new_empty(len(bank) if whole else contrast.chunk_size, bank.shape[1])

    def pull_(self, sums: OfOthers, positive: Tensor, allowed: Tensor | None) -> None:
        """Take in a block whose weights are kept and whose sums are complete. The last one makes the step.

        The step leaves everything as it is where the scalar ``allowed`` is False.
        """
        block = sums.block
        if block.is_last and allowed is not None and may_look(allowed):
            if not allowed:
                return
            allowed = None
        scale = 1 / (sums.others() + sums.exponential(positive))
        queries = block.pull_queries(scale, None, self._temperature)
        self._passes.ascend_(block, self.kept, scale, queries, self._gradient, self._ascending, allowed)


def _spread(mined: Tensor, bank: Tensor, unit: bool = True) -> tuple[Tensor, Tensor]:
    """Of a target that is shared alike by f0 and the rows ``mined`` (n, entries) of the bank, each once: the sum (n, D)
    of these rows, at ``unit`` length or their own, times their probability; and the probability (n,) of all of them."""
    mined, _ = mined.sort(dim=1)
    new = mined.diff(dim=1, prepend=mined.new_full((len(mined), 1), -1)) != 0
    weight = new / (1 + new.sum(dim=1, keepdim=True)).to(bank)
    rows = F.normalize(bank[mined], dim=2, eps=EPS) if unit else bank[mined]
    return (weight.unsqueeze(2) * rows).sum(dim=1), weight.sum(dim=1)


def _logits_are_bounded(f0: Tensor, contrast: Contrast, temperature: float) -> bool:
    """Whether exponentials of the logits are known to need no shift: neither they nor their sums overflow or vanish."""
    if not may_look(f0):
        return False
    longest = torch.maximum(contrast.queries.norm(dim=2).max(), f0.norm(dim=-1).max())
    if not contrast.table.unit:
        longest = torch.maximum(longest, contrast.bank.norm(dim=1).max())
    return bool(longest * longest.clamp(min=1) / temperature <= _largest_logit(f0.dtype))


def _largest_logit(dtype: torch.dtype) -> float:
    return 0.66 * math.log(torch.finfo(dtype).max)
