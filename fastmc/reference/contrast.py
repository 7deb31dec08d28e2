"""Contrast: equations 1-3 (InfoNCE) and 8-11 (mixed banks and the MC loss), and the losses of any table of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmc.contrast_table import Table


def normalise(bank: Tensor) -> Tensor:
    """M_0 (K, D): the bank's raw rows (K, D) scaled to unit length."""
    return F.normalize(bank, dim=1, eps=1e-12)


def log_similarity_distribution(u: Tensor, v: Tensor, m: Tensor, temperature: float) -> Tensor:
    """log psi (eq. 2): (B, 1 + K), column 0 is psi(u, v), column i is psi(u, m_i).

    u and v are (B, D); the bank m is (K, D), shared by all samples, or (B, K, D), one per sample. Of several positives
    v (B, G, D) each has a column, and they come first: (B, G + K).
    """
    positive = (u * v).sum(dim=1, keepdim=True) if v.dim() == 2 else (v @ u.unsqueeze(2)).squeeze(2)
    negatives = (m @ u.unsqueeze(2)).squeeze(2)
    return torch.log_softmax(torch.cat([positive, negatives], dim=1) / temperature, dim=1)


def log_distribution_over_bank(u: Tensor, m: Tensor, temperature: float) -> Tensor:
    """The same without a positive: (B, K), the softmax of u over the bank m alone."""
    return torch.log_softmax((m @ u.unsqueeze(2)).squeeze(2) / temperature, dim=1)


def log_distribution_with_positives(u: Tensor, m: Tensor, k: int, temperature: float) -> Tensor:
    """That with the k entries that are nearest to u as similar to it as one of its own direction."""
    similar = torch.where(nearest([u], m, k), u.norm(dim=1, keepdim=True), (m @ u.unsqueeze(2)).squeeze(2))
    return torch.log_softmax(similar / temperature, dim=1)


def similarity_distribution(u: Tensor, v: Tensor, m: Tensor, temperature: float) -> Tensor:
    """psi (eq. 2): (B, 1 + K); each row sums to 1."""
    return log_similarity_distribution(u, v, m, temperature).exp()


def cross_entropy(target: Tensor, log_prediction: Tensor) -> Tensor:
    """-sum_i target_i log prediction_i, averaged over the batch: the form that eq. 3, 10 and 11 share."""
    return -(target * log_prediction).sum(dim=1).mean()


def several_positives(u: Tensor, v: Tensor, m: Tensor, temperature: float) -> Tensor:
    """-log of the sum of psi over all positives v (B, G, D) of u (B, D), averaged over the batch; m is (K, D)."""
    return -log_similarity_distribution(u, v, m, temperature)[:, : v.shape[1]].logsumexp(dim=1).mean()


def one_hot(log_prediction: Tensor) -> Tensor:
    """The distribution that is 1 at the positive (column 0) and 0 at every bank entry."""
    target = torch.zeros_like(log_prediction)
    target[:, 0] = 1
    return target


def nearest(queries: Sequence[Tensor], m0: Tensor, k: int) -> Tensor:
    """P (B, K): whether an entry is among the k nearest to any of a sample's queries (B, D); of equals the first."""
    mined = torch.zeros(len(queries[0]), len(m0), dtype=torch.bool, device=m0.device)
    for f in queries:
        order = (f @ m0.T).sort(dim=1, descending=True, stable=True).indices
        mined.scatter_(1, order[:, :k], True)
    return mined


def spread(log_prediction: Tensor, mined: Tensor) -> Tensor:
    """The distribution that is the same at the positive and at each mined entry (B, K), and 0 at every other."""
    target = one_hot(log_prediction)
    target[:, 1:] = mined
    return target / target.sum(dim=1, keepdim=True)


def info_nce(f3: Tensor, f0: Tensor, m: Tensor, temperature: float) -> Tensor:
    """L_in (eq. 1, in the form of eq. 3), averaged over the batch; f0 is a constant, m is used as it is."""
    log_psi = log_similarity_distribution(f3, f0.detach(), m, temperature)
    return cross_entropy(one_hot(log_psi), log_psi)


def mixed_bank(f: Tensor, m0: Tensor, mixing: Tensor | float, mix: str = "own") -> Tensor:
    """M_* = {lambda f_* + (1 - lambda) m_0i} (eq. 8), entries not normalised again; f (B, D) is a constant.

    ``mix="own"`` gives every sample the bank mixed with its own feature, (B, K, D); ``"tiled"`` gives one bank
    (K, D) whose entry i is mixed with the feature of sample i mod B.
    """
    f = f.detach()
    coefficient = torch.as_tensor(mixing, dtype=m0.dtype, device=m0.device).detach().expand(len(m0)).unsqueeze(1)
    if mix == "own":
        return coefficient * f.unsqueeze(1) + (1 - coefficient) * m0
    return coefficient * f[torch.arange(len(m0), device=m0.device) % len(f)] + (1 - coefficient) * m0


def union(m0: Tensor, m: Tensor) -> Tensor:
    """M_0 and M_*, one after the other (2K entries): the doubled bank of eq. 10 and 11."""
    return torch.cat([m0.expand_as(m), m], dim=-2)


def mc_loss_parts(
    f0: Tensor,
    f1: Tensor,
    f2: Tensor,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor | float | None,
    *,
    temperature: float,
    mix: str = "own",
) -> tuple[Tensor, Tensor, Tensor]:
    """(L_1, L_2, L_3) of eq. 9-11, each averaged over the batch.

    f0..f3 are (B, D), bank (K, D) raw rows. Without mixing (None) the banks are M_0 alone. Constants, which pass no
    gradient: f0, the feature inside a mixed bank, and the target distribution of L_2.
    """
    f0 = f0.detach()
    m0 = normalise(bank)
    m01, m02, m03 = (m0 if mixing is None else union(m0, mixed_bank(f, m0, mixing, mix)) for f in (f1, f2, f3))
    l1 = info_nce(f1, f0, m01, temperature)
    l3 = info_nce(f3, f0, m03, temperature)
    target = similarity_distribution(f3, f0, m02, temperature).detach()
    l2 = cross_entropy(target, log_similarity_distribution(f2, f0, m02, temperature))
    return l1, l2, l3


def mc_loss(
    f0: Tensor,
    f1: Tensor,
    f2: Tensor,
    f3: Tensor,
    bank: Tensor,
    mixing: Tensor | float | None,
    *,
    temperature: float,
    mix: str = "own",
) -> Tensor:
    """L = L_1 + L_2 + L_3 (eq. 9)."""
    l1, l2, l3 = mc_loss_parts(f0, f1, f2, f3, bank, mixing, temperature=temperature, mix=mix)
    return l1 + l2 + l3


def contrast_losses(
    f0: Tensor,
    queries: Sequence[Tensor],
    bank: Tensor,
    table: Table,
    mixing: Tensor | float | None,
    *,
    temperature: float,
    mix: str = "own",
) -> Tensor:
    """The losses (q,) of a table's students, each averaged over the batch and not yet weighted.

    f0 and the queries are (B, D), bank (K, D) raw rows; of a table of plain one-hot rows f0 may be several positives
    (B, G, D). Constants are those of :func:`mc_loss_parts`, which is this of the table of A²MC.
    """
    f0, m0 = f0.detach(), normalise(bank) if table.unit else bank
    if f0.dim() == 3:
        return torch.stack([several_positives(f, f0, m0, temperature) for f in queries])
    log_psi = []
    for row in table.rows:
        m = m0
        if row.mixed_with is not None and mixing is not None:
            m = union(m0, mixed_bank(queries[row.mixed_with], m0, mixing, mix))
        if table.key:
            log_psi.append(log_similarity_distribution(queries[row.query], f0, m, temperature))
        elif row.lifted:
            log_psi.append(log_distribution_with_positives(queries[row.query], m, row.lifted, temperature))
        else:
            log_psi.append(log_distribution_over_bank(queries[row.query], m, temperature))
    losses = []
    for row, prediction in zip(table.rows, log_psi[: len(queries)], strict=False):
        target = one_hot(prediction) if row.target is None else log_psi[row.target].exp().detach()
        if row.mined:
            target = spread(prediction, nearest(queries, m0, row.mined))
        losses.append(cross_entropy(target, prediction))
        if not table.key:  # what is not finite in f0 must not reach the bank, so the loss shows it
            losses[-1] = losses[-1] + 0 * f0.sum()
    return torch.stack(losses)


def contrast_loss(losses: Tensor, table: Table) -> Tensor:
    """The loss of the step: the sum of these losses, weighted as the table says."""
    return torch.stack([row.weight * loss for row, loss in zip(table.rows, losses, strict=False)]).sum()
