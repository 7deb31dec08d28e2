"""After the pass over the bank: log-sum-exps, loss and the features' gradients from the partial sums, in a fixed order.

With E the expected entry of a row (its positive f0 and all plain and mixed entries, weighted by the softmax):

    L = lse - f.f0 / tau          dL/df = (E - f0) / tau           of a one-hot target
    L = lse - f.E_target / tau    dL/df = (E - E_target) / tau     of another row

where both rows share their entries, so that the target's expected logit is f.E_target / tau. Every part is a mean over
the batch. The share of f0 in E is kept apart, E = E_bank + (1 - rest) f0 with rest the bank's share of the
softmax: E - f0 = E_bank - rest f0 does not cancel where the positive has nearly all of it. A one-hot target that is
shared with c mined entries is an E_target too: these entries, each times 1 / (1 + c), and rest = c / (1 + c).

Several positives of a sample, whose exponentials are summed inside the log, are to a softmax like one: its exponential
is their sum, and its entry their mean with these as weights. Where f0 is no entry, E = E_bank, and L = lse -
f.E_target / tau as above.

Entries that a row of this kind lifts are few, and known: their exponentials rise to that of the query's length, and the
sums with them. Of a row that is its own target, E.f / tau is then not all of the expected logit.

The program that finishes last adds up the batch. Programs count themselves by a ticket, an atomic sum that is 0 at
first: `kernels.prepare` has set it, two launches before, in memory of this call. So there is nothing to reset, and
nothing that two streams or two replays of a graph could share. Who comes last does not touch the sums, which have one
order. Three things make the others' numbers seen by it. They are written and read by atomics alone, which act in the L2
cache and never in an SM's own, where a number could be stale. The ticket releases what its program wrote, all of it,
since a barrier of the program's threads stands before. And it acquires, before the last one reads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.prepare import (
    LIFTED,
    MINED,
    MIXED_WITH,
    QUERY,
    TARGET,
    entry,
    look_up,
    most_lifted,
    most_mined,
    select_query,
    students,
    weighted,
)
from kernels.rows import inverse_norms, load_rows, store_rows
from kernels.sweep import BANK_PLAIN, BANK_SUM, LOSS_SHARE, LOSS_SUM, NOTHING, PLANES, TOP, TOP_PLAIN

LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _load_plane(p_sums, PLANE: tl.constexpr, row, o_c, N, num_chunks, other):
    """One number of a row from the chunks ``o_c`` (int64)."""
    return tl.load(p_sums + (o_c * PLANES + PLANE) * N + row, mask=o_c < num_chunks, other=other)


@triton.jit
def _log_sum_exp(
    p_sums, TOP_PLANE: tl.constexpr, SUM_PLANE: tl.constexpr, row, positive, scale, N, num_chunks, BLOCK_C: tl.constexpr
):
    """Of a row's logits, to the base 2, and the bank's share of the softmax; from these two planes of p_sums."""
    o_c = tl.arange(0, BLOCK_C).to(tl.int64)
    tops = _load_plane(p_sums, TOP_PLANE, row, o_c, N, num_chunks, NOTHING)
    sums = _load_plane(p_sums, SUM_PLANE, row, o_c, N, num_chunks, 0.0)
    top = tl.maximum(tl.max(tops, axis=0), positive)
    bank = tl.sum(sums * tl.exp2((tops - top) * scale), axis=0)
    total = bank + tl.exp2((positive - top) * scale)
    return top * scale + tl.log2(total), bank / total


@triton.jit
def _expected_entry(
    p_sums, p_entries, row, b_v, lse, scale, N, num_chunks, OWN: tl.constexpr, D: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """E_bank of a row, (1, BLOCK_D)."""
    expected = tl.zeros([1, BLOCK_D], tl.float32)
    for i_first in range(0, num_chunks, BLOCK_N):
        o_c = (i_first + tl.arange(0, BLOCK_N)).to(tl.int64)
        weights = tl.exp2(_load_plane(p_sums, TOP, row, o_c, N, num_chunks, NOTHING) * scale - lse)
        entries = load_rows(p_entries, o_c * N + row, o_c < num_chunks, D, BLOCK_D)
        expected += tl.sum(entries * weights[:, None], axis=0)[None, :]
        if OWN:
            shares = _load_plane(p_sums, LOSS_SHARE, row, o_c, N, num_chunks, 0.0)
            expected += tl.sum(shares * weights, axis=0) * b_v
    return expected


@triton.jit
def _softmax(
    p_sums, p_entries, p_lse, row, b_v, positive, bank_positive, scale, bank_scale, N, num_chunks,
    OWN: tl.constexpr, LOSS: tl.constexpr, BANK: tl.constexpr, STORE: tl.constexpr, D: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of a row, at the loss's temperature: log-sum-exp to the base 2, the bank's share of the softmax, and E_bank
    (1, BLOCK_D). With STORE, what the bank's pass needs of it is stored."""
    lse = 0.0
    rest = 0.0
    expected = tl.zeros([1, BLOCK_D], tl.float32)
    if LOSS:
        lse, rest = _log_sum_exp(p_sums, TOP, LOSS_SUM, row, positive, scale, N, num_chunks, BLOCK_C)
        expected = _expected_entry(p_sums, p_entries, row, b_v, lse, scale, N, num_chunks, OWN, D, BLOCK_N, BLOCK_D)
    if STORE:
        kept = lse
        if BANK:
            kept, _rest = _log_sum_exp(p_sums, TOP, BANK_SUM, row, bank_positive, bank_scale, N, num_chunks, BLOCK_C)
        tl.store(p_lse + row, kept)
    return lse, rest, expected


@triton.jit
def _of_several(similarities, b_keys, scale):
    """What stands for several positives (places, BLOCK_D) in a softmax: the similarity whose exponential is the sum of
    theirs, and their mean (1, BLOCK_D) with these exponentials as weights. Similarities of none are -inf."""
    nearest = tl.max(similarities, axis=0)
    weights = tl.exp2((similarities - nearest) * scale)
    total = tl.sum(weights, axis=0)
    return nearest + tl.log2(total) / scale, tl.sum(b_keys * (weights / total)[:, None], axis=0)[None, :]


@triton.jit
def _none(positive):
    """The similarity of no entry; what is not finite in f0 stays to be seen."""
    return positive * 0.0 - float("inf")


@triton.constexpr_function
def _all_mined(table):
    """How many entries all queries mine, rounded up to a power of two."""
    return triton.next_power_of_2(students(table) * most_mined(table))


@triton.jit
def _shared_target(
    p_mined, p_bank, i_b, B, K, num_chunks, TABLE: tl.constexpr, UNIT: tl.constexpr, D: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of a sample's one-hot target that is shared with mined entries: E_bank (1, BLOCK_D) and the bank's share. Nearer
    entries come first, of equals the first in the bank, and none twice."""
    MOST: tl.constexpr = most_mined(TABLE)
    N = len(TABLE) * B
    o_rank = tl.arange(0, triton.next_power_of_2(MOST))[:, None]
    o_c = tl.arange(0, BLOCK_C).to(tl.int64)[None, :]
    mask = (o_rank < MOST) & (o_c < num_chunks)
    o_mined = tl.arange(0, _all_mined(TABLE))
    mined = o_mined * 0 + K
    for i_query in range(students(TABLE)):
        p_rank = p_mined + (o_c * MOST + o_rank) * 2 * N + i_query * B + i_b
        nearest = tl.where(mask, tl.load(p_rank, mask=mask, other=0).to(tl.float32, bitcast=True), NOTHING)
        entries = tl.load(p_rank + N, mask=mask, other=0)
        for i_rank in range(MOST):
            found = tl.min(tl.where(nearest == tl.max(nearest), entries, K))
            nearest = tl.where(entries == found, float("-inf"), nearest)
            mined = tl.where(o_mined == i_query * MOST + i_rank, found, mined)
    again = (mined[:, None] == mined[None, :]) & (o_mined[:, None] > o_mined[None, :])
    m_mined = (mined < K) & (tl.max(again.to(tl.int32), axis=1) == 0)
    b_m = load_rows(p_bank, mined.to(tl.int64), m_mined, D, BLOCK_D)
    count = tl.sum(m_mined.to(tl.float32), axis=0)
    if UNIT:
        b_m *= inverse_norms(b_m)[:, None]
    return tl.sum(b_m, axis=0)[None, :] / (1 + count), count / (1 + count)


@triton.constexpr_function
def _place(table, row):
    """Of a row among those that lift."""
    return sum(other[LIFTED] > 0 for other in table[:row])


@triton.jit
def _lift(
    p_lifted, p_bank, i_b, B, b_u, lse, expected, scale, PLACE: tl.constexpr, COUNT: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of a row of u (1, BLOCK_D) some of whose entries are as similar as u is long: log-sum-exp to the base 2, E_bank
    (1, BLOCK_D), and what its expected similarity to itself has beyond u.E_bank; from the first two without that."""
    length = tl.sqrt(tl.sum(b_u * b_u))
    top = tl.maximum(lse, length * scale)
    total = tl.exp2(lse - top)
    new = tl.exp2(length * scale - top)
    entries = expected * total
    beyond = 0.0 * total
    for i_first in range(0, COUNT, 16):
        o_lifted = i_first + tl.arange(0, 16)
        m_lifted = o_lifted < COUNT
        o_row = tl.load(p_lifted + (PLACE * B + i_b).to(tl.int64) * COUNT + o_lifted, mask=m_lifted, other=0)
        b_m = load_rows(p_bank, o_row, m_lifted, D, BLOCK_D)
        b_m *= inverse_norms(b_m)[:, None]
        similar = tl.sum(b_m * b_u, axis=1)
        more = tl.where(m_lifted, new - tl.exp2(similar * scale - top), 0.0)
        total += tl.sum(more, axis=0)
        entries += tl.sum(b_m * more[:, None], axis=0)[None, :]
        beyond += tl.sum(tl.where(m_lifted, new * (length - similar), 0.0), axis=0)
    return top + tl.log2(total), entries / total, beyond / total


@triton.constexpr_function
def _meet_themselves(table):
    """Whether each query meets the bank that is mixed with itself."""
    return all(row[MIXED_WITH] == i for i, row in enumerate(table[: students(table)]))


@triton.constexpr_function
def _is_first_to_use(table, student):
    """Whether the student's target is a target only, and no earlier student's: then nobody else stores its lse."""
    targets = [row[TARGET] for row in table[: student + 1]]
    return targets[-1] >= students(table) and targets.index(targets[-1]) == student


@triton.jit
def _publish(p_number, number):
    """For `_sums_of_batch`, as bits, since Triton's interpreter exchanges integers only."""
    tl.atomic_xchg(p_number, number.to(tl.int32, bitcast=True), sem="relaxed")


@triton.jit
def _sums_of_batch(
    p_samples, p_stats, B, TABLE: tl.constexpr, METRICS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr
):
    """p_stats from p_samples, in one order."""
    QUERIES: tl.constexpr = students(TABLE)
    o_row = tl.arange(0, BLOCK_S)
    m_row = o_row < (QUERIES + 2 if METRICS else QUERIES)
    values = tl.zeros([BLOCK_S, BLOCK_B], tl.float32)
    for i_first in range(0, B, BLOCK_B):
        o_b = i_first + tl.arange(0, BLOCK_B)
        mask = m_row[:, None] & (o_b < B)[None, :]
        bits = tl.atomic_or(p_samples + o_row[:, None] * B + o_b[None, :], 0, mask=mask, sem="relaxed")  # reads
        values += tl.where(mask, bits.to(tl.float32, bitcast=True), 0.0)
    sums = tl.sum(values, axis=1)
    sums = tl.where(o_row == QUERIES, sums, sums / B)
    if METRICS:
        tl.store(p_stats, tl.sum(weighted(tl.where(o_row < QUERIES, sums, 0.0), o_row, TABLE), axis=0))
        tl.store(p_stats + 1 + o_row, sums, mask=o_row < max(5, QUERIES + 2))
    else:
        tl.store(p_stats + o_row, sums, mask=o_row < QUERIES)


@triton.jit(do_not_specialize=["num_chunks"])
def _combine_kernel(
    p_f0,  # (B, D), or (B, POSITIVES, D)
    p_queries,  # a tuple: (B, D) each
    p_sums,  # (chunks, PLANES, R B), from `kernels.sweep`
    p_mined,  # (chunks, mined, 2, R B), of a table that mines; None, and K too, of others
    p_lifted,  # (l, B, lifted) entries of the bank, of a table that lifts them, by its rows; None of others
    p_bank,  # (K, D); None where nothing is mined or lifted
    p_entries,  # (chunks, R B, D); this and what follows, but for p_lse, is None unless LOSS
    # (queries + 2, B), as bits: the losses, whether the measured query's positive is on top, its probability over the
    # plain bank (eq. 2)
    p_samples,
    p_ticket,  # int32 scalar, 0: how many programs are done
    # Under BANK (max(6, queries + 3),): loss, the queries' own, samples with their positive on top, mean probability of
    # the positive, and zeros. Else (queries,): the losses.
    p_stats,
    p_gradients,  # (queries, B, D)
    p_lse,  # (R, B) to the base 2: at the bank's temperature under BANK, else at the loss's
    B,
    K,
    num_chunks,
    scale,  # 1 / (temperature ln 2)
    bank_scale,
    margin,  # what the rounding of a similarity of unit rows may be: it must not decide a tie
    TABLE: tl.constexpr,
    MEASURED: tl.constexpr,  # a query
    UNIT: tl.constexpr,  # the bank's rows are scaled to unit length
    KEY: tl.constexpr,  # f0 is an entry of the softmaxes
    POSITIVES: tl.constexpr,  # of a sample; several only under LOSS and BANK
    OWN: tl.constexpr,  # own mixing: v is of the sample itself
    LOSS: tl.constexpr,
    BANK: tl.constexpr,
    D: tl.constexpr,
    BLOCK_S: tl.constexpr,  # >= 6, queries + 2
    BLOCK_B: tl.constexpr,  # samples that are added up at a time
    BLOCK_C: tl.constexpr,  # >= chunks
    BLOCK_N: tl.constexpr,  # chunks whose entries are added up at a time
    BLOCK_D: tl.constexpr,
):
    QUERIES: tl.constexpr = students(TABLE)
    i_b, i_query = tl.program_id(0), tl.program_id(1)
    o_b = i_b + tl.arange(0, 1)
    m_b = o_b < B
    N = len(TABLE) * B  # rows of all samples
    row = i_query * B + i_b
    if POSITIVES == 1:
        b_f0 = load_rows(p_f0, o_b, m_b, D, BLOCK_D)
    b_u = load_rows(select_query(i_query, p_queries), o_b, m_b, D, BLOCK_D)
    b_v = b_u
    if OWN and not _meet_themselves(TABLE):
        b_v = load_rows(select_query(look_up(i_query, TABLE, MIXED_WITH), p_queries), o_b, m_b, D, BLOCK_D)
    if POSITIVES == 1:
        positive = tl.sum(b_u * b_f0)
        bank_positive = positive
        nearest = positive
    else:
        o_key = tl.arange(0, triton.next_power_of_2(POSITIVES))
        m_key = o_key < POSITIVES
        b_keys = load_rows(p_f0, i_b * POSITIVES + o_key, m_key, D, BLOCK_D)
        similarities = tl.where(m_key, tl.sum(b_keys * b_u, axis=1), float("-inf"))
        nearest = tl.max(similarities, axis=0)
        positive, b_f0 = _of_several(similarities, b_keys, scale)
        bank_positive, _mean = _of_several(similarities, b_keys, bank_scale)
    candidate = positive if KEY else _none(positive)
    lse, rest, expected = _softmax(
        p_sums, p_entries, p_lse, row, b_v, candidate, bank_positive, scale, bank_scale, N, num_chunks,
        OWN, LOSS, BANK, True, D, BLOCK_C, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    aim = tl.zeros([1, BLOCK_D], tl.float32)  # the target's E_bank and bank share: none of a one-hot target
    aim_rest = 0.0
    beyond = 0.0
    for ROW in tl.static_range(QUERIES):
        if entry(TABLE, ROW, LIFTED) > 0:
            if i_query == ROW:
                lse, expected, beyond = _lift(
                    p_lifted, p_bank, i_b, B, b_u, lse, expected, scale, _place(TABLE, ROW), entry(TABLE, ROW, LIFTED),
                    D, BLOCK_D,
                )  # fmt: skip
        if entry(TABLE, ROW, TARGET) is not None:
            if i_query == ROW:
                p_target = p_queries[entry(TABLE, entry(TABLE, ROW, TARGET), QUERY)]
                target_positive = tl.sum(load_rows(p_target, o_b, m_b, D, BLOCK_D) * b_f0)
                target_positive = target_positive if KEY else _none(target_positive)
                _lse, aim_rest, aim = _softmax(
                    p_sums, p_entries, p_lse, entry(TABLE, ROW, TARGET) * B + i_b, b_v, target_positive,
                    target_positive, scale, bank_scale, N, num_chunks, OWN, LOSS, BANK, _is_first_to_use(TABLE, ROW), D,
                    BLOCK_C, BLOCK_N, BLOCK_D,
                )  # fmt: skip
                if entry(TABLE, entry(TABLE, ROW, TARGET), LIFTED) > 0:
                    _lse, aim, _beyond = _lift(
                        p_lifted, p_bank, i_b, B, load_rows(p_target, o_b, m_b, D, BLOCK_D), _lse, aim, scale,
                        _place(TABLE, entry(TABLE, ROW, TARGET)), entry(TABLE, entry(TABLE, ROW, TARGET), LIFTED), D,
                        BLOCK_D,
                    )  # fmt: skip
        if entry(TABLE, ROW, MINED) > 0:
            if i_query == ROW:
                aim, aim_rest = _shared_target(p_mined, p_bank, i_b, B, K, num_chunks, TABLE, UNIT, D, BLOCK_C, BLOCK_D)
    if LOSS:
        if KEY:
            part = lse - (tl.sum(b_u * aim) + (1 - aim_rest) * positive) * scale
        elif most_lifted(TABLE) > 0:
            part = lse - (tl.sum(b_u * aim) + beyond) * scale
        else:
            part = lse - tl.sum(b_u * aim) * scale
        _publish(p_samples + row, part * LN2)
        pull = expected - aim - (rest - aim_rest) * b_f0 if KEY else expected - aim
        gradient = pull * weighted(scale * LN2 / B, i_query, TABLE)
        store_rows(p_gradients, o_b + i_query * B, m_b, gradient, D, BLOCK_D)
    if LOSS and BANK:
        if i_query == MEASURED:
            o_c = tl.arange(0, BLOCK_C).to(tl.int64)
            top_plain = tl.max(_load_plane(p_sums, TOP_PLAIN, row, o_c, N, num_chunks, NOTHING), axis=0)
            if not UNIT:  # rows are as long as query and positive
                keys = b_f0 if POSITIVES == 1 else b_keys
                margin *= tl.sqrt(tl.sum(b_u * b_u) * tl.max(tl.sum(keys * keys, axis=1), axis=0))
            on_top = tl.where(nearest > top_plain + margin, 1.0, 0.0)
            _publish(p_samples + QUERIES * B + i_b, on_top)
            lse, _rest = _log_sum_exp(
                p_sums, TOP_PLAIN, BANK_PLAIN, row, bank_positive, bank_scale, N, num_chunks, BLOCK_C
            )
            _publish(p_samples + (QUERIES + 1) * B + i_b, tl.exp2(bank_positive * bank_scale - lse))
    if LOSS:
        tl.debug_barrier()  # the ticket is one thread's, which vouches for the others
        if tl.atomic_add(p_ticket, 1, sem="acq_rel") == QUERIES * B - 1:
            _sums_of_batch(p_samples, p_stats, B, TABLE, BANK, BLOCK_S, BLOCK_B)
