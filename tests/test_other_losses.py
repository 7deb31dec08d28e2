"""What else a step can say: several positives, rows of any length, no key; their authors' own numbers, formulas, every
implementation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from every_pair import every_pair
from golden import golden, near, needs_golden
from gpu_less import needs_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_budget import kernels_see, kernels_step
from oracle import (
    CUTS,
    DOTS,
    LIFTING,
    MATCHING,
    MODULES,
    SHAPES,
    Case,
    assert_step,
    check_step_budget,
    check_step_lengths,
    cut,
    matching_losses,
    velocity,
)
from torch.nn import functional as F

from fastmc.contrast_table import A2MC, AIMCLR, B1, B2, CPM, Row, Table
from fastmc.objective import attention, chunked, cpp_passes
from fastmc.objective.contrast_step import contrast_step_

IMPLS = ["reference", "torch", "cpp"]
DOT = replace(B1, unit=False)


def step(case: Case, impl: str, **more):
    settings = {"temperature": case.temperature, "bank_temperature": case.bank_temperature, "update": "none", **more}
    momentum = torch.zeros_like(case.bank)
    return contrast_step_(case.bank, momentum, case.key, case.queries, case.table, impl=impl, **settings)


# --- Several positives


@needs_golden
@pytest.mark.parametrize("impl", IMPLS)
def test_hicos_own_numbers(impl):
    """Each term's loss, gradient and bank, whose rows enter as they are."""
    theirs = golden("HiCo_loss")
    tau, pointers, total = float(theirs["temperature"]), theirs["pointer_before"], 0.0
    names = ["clip", "part", "temporal", "spatial", "instance"]
    for n, (name, other) in enumerate(zip(names, ["clip", "part", "spatial", "temporal", "instance"], strict=True)):
        raw = theirs[f"raw_query_{name}"]
        query, key = F.normalize(raw, dim=-1), F.normalize(theirs[f"raw_key_{other}"], dim=-1)
        several = key.dim() == 3
        bank, cursor = theirs[f"bank_{other}"].clone(), pointers[n].long()
        found = contrast_step_(
            bank, torch.ones_like(bank), key, [query[:, 0] if several else query], DOT, temperature=tau,
            cursor=cursor, impl=impl,
        )  # fmt: skip
        near(found.losses[0], theirs[f"loss_{name}"], 1e-9)
        total += found.loss
        wanted = theirs[f"grad_unit_{name}"]
        near(found.gradients[0], wanted[:, 0] if several else wanted, 1e-9)
        if several:
            near(bank, theirs[f"bank_after_{name}"], 1e-9)
            assert cursor == theirs["pointer_after"][n] and cursor - pointers[n] == key.shape[:2].numel()
    near(total, theirs["loss"], 1e-9)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("positives", [2, 3, 8])
def test_several_positives_by_their_formula(positives, impl):
    case = replace(Case.draw(9, 45, 11, kind="one-hot"), positives=positives)
    queries = [f.clone().requires_grad_() for f in case.queries]
    candidates = F.normalize(case.bank, dim=1)

    def shares(f, tau):
        own = torch.stack([(f * case.key[:, g]).sum(dim=1) for g in range(positives)], dim=1)
        return own, (own / tau).exp().sum(dim=1), (f @ candidates.T / tau).exp().sum(dim=1)

    losses = torch.stack([-(own / (own + rest)).log().mean() for _, own, rest in (shares(f, 0.07) for f in queries)])
    losses.sum().backward()
    found = step(case, impl)
    torch.testing.assert_close(found.losses, losses.detach(), rtol=1e-13, atol=0)
    for ours, f in zip(found.gradients, queries, strict=True):
        torch.testing.assert_close(ours, f.grad, rtol=1e-11, atol=1e-15)
    similar, own, rest = shares(case.f3, 0.03)
    torch.testing.assert_close(found.positive_probability, (own / (own + rest)).mean(), rtol=1e-13, atol=0)
    assert found.top1_count == (similar.amax(dim=1) > (case.f3 @ candidates.T).amax(dim=1)).sum()


@pytest.mark.parametrize("impl", IMPLS)
def test_one_of_several_is_one(impl):
    """And equal ones are one whose logit is larger by log G."""
    case = Case.draw(7, 45, 6, kind="one-hot")
    bank, momentum = case.bank, torch.zeros_like(case.bank)
    for update in ("fifo", "none"):
        found, banks = [], []
        for f0 in (case.f0, case.f0.unsqueeze(1)):
            banks.append(bank.clone())
            cursor = torch.tensor(43)
            found.append(contrast_step_(banks[-1], momentum, f0, case.queries, B2, update=update, cursor=cursor,
                                        impl=impl))  # fmt: skip
        assert torch.equal(*banks)
        assert all(map(torch.equal, found[0].gradients, found[1].gradients))
        assert torch.equal(found[0].losses, found[1].losses) and torch.equal(found[0][4], found[1][4])
    many = contrast_step_(bank, momentum, case.f0.unsqueeze(1).expand(-1, 4, -1), case.queries, B2, update="none",
                          impl=impl)  # fmt: skip
    candidates = F.normalize(bank, dim=1)
    for f, loss in zip(case.queries, many.losses, strict=True):
        own, rest = ((f * case.f0).sum(dim=1) / 0.07).exp(), (f @ candidates.T / 0.07).exp().sum(dim=1)
        torch.testing.assert_close(loss, -(4 * own / (4 * own + rest)).log().mean(), rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("module", "shape", "positives", "update", "looking"),
    every_pair(MODULES, SHAPES, [2, 4, 7], ["fifo", "ascent", "none"], [True, False]),
)
def test_several_positives_equal_the_reference_in_float64(module, shape, positives, update, looking):
    if not looking and module is cpp_passes:
        update = "fifo"
    kind = "alone" if positives == 7 else "one-hot"
    with cut(looking):
        assert_step(module, Case.draw(*shape, kind=kind, positives=positives), update)


@settings(max_examples=30, deadline=None)
@given(b=st.integers(1, 20), k=st.integers(3, 40), kind=st.sampled_from(["one-hot", *LIFTING]),
       positives=st.integers(1, 8), **CUTS)  # fmt: skip
def test_any_cut_into_blocks_and_chunks_gives_the_same(b, k, kind, positives, samples, entries, looking):
    with cut(looking, samples, entries):
        assert_step(chunked, Case.draw(b, k, 5, kind=kind, positives=positives if kind == "one-hot" else 1))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(("kind", "positives"), [("one-hot", 3), ("lifting", 1)])
@pytest.mark.parametrize("lengths", [(0.01, 1.0), (0.01, 30.0), (5.0, 1e-3)])
def test_large_and_small_logits(lengths, kind, positives, module):
    check_step_lengths(module, lengths, Case.draw(7, 45, 6, kind=kind, positives=positives))


def test_the_length_of_every_positive_counts():
    """For whether logits are known to be bounded: of these, |q||k| / tau is 714, and the exponential overflows."""
    f = torch.full((1, 128), 128**-0.5, dtype=torch.float64)
    contrast = attention.Contrast(f.unsqueeze(0), f, None, B1, False)
    key = torch.stack([f, 50 * f, f], dim=1)
    assert chunked._logits_are_bounded(f, contrast, 0.07)
    assert not chunked._logits_are_bounded(key, contrast, 0.07)


@pytest.mark.parametrize("module", MODULES)
def test_several_positives_keep_the_error_budget(module):
    case = Case.draw(65, 700, 128, kind="one-hot", dtype=torch.float32, positives=4)
    other = check_step_budget(module, case, case.bank_temperature, positives=3)
    assert not other["stats"] and not other["gradients"]


@needs_engine
@pytest.mark.compiler
@pytest.mark.parametrize(
    ("shape", "positives", "update", "precision"),
    [
        ((7, 70, 17), 4, "fifo", "bf16x3"),
        ((33, 130, 40), 3, "ascent", "bf16x3"),
        ((5, 3, 8), 8, "fifo", "ieee"),
        ((20, 200, 24), 2, "none", "ieee"),
    ],
)
def test_the_kernels_take_several_positives(shape, positives, update, precision):
    case = Case.draw(*shape, kind="one-hot", dtype=torch.float32, positives=positives)
    (fewer,) = kernels_see(case, update, precision, replace(case, positives=positives - 1))
    assert not fewer["gradients"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_positive_that_is_not_finite_leaves_the_bank_alone(value, impl):
    case = Case.draw(5, 30, 6, kind="one-hot", positives=3)
    key = case.key.clone()
    key[2, 1, 3] = value
    bank, momentum, cursor = case.bank.clone(), velocity(case), torch.tensor(4)
    found = contrast_step_(bank, momentum, key, case.queries, B2, cursor=cursor, impl=impl)
    assert not found.loss.isfinite() and cursor == 4
    assert torch.equal(bank, case.bank) and torch.equal(momentum, velocity(case))


@pytest.mark.parametrize(
    ("table", "key", "message"),
    [
        (B2, (3, 9, 5), r"f0 must be \(B, D\), or \(B, G, D\) with G of 1 to 8, got \(3, 9, 5\)"),
        (B2, (3, 0, 5), r"f0 must be \(B, D\), or \(B, G, D\)"),
        (B2, (3, 2, 2, 5), r"f0 must be \(B, D\)"),
        (B2, (2, 2, 5), r"f1 is \(3, 5\), f0 is \(2, 5\)"),
        (AIMCLR, (3, 2, 5), r"f0 must be \(B, D\) for a table with mixed rows, targets or mined entries"),
        (B2.mining(), (3, 2, 5), r"f0 must be \(B, D\) for a table with mixed"),
        (A2MC, (3, 2, 5), r"f0 must be \(B, D\) for a table with mixed"),
    ],
)
def test_positives_that_do_not_fit_say_so(table, key, message):
    case = Case.draw(3, 20, 5)
    mixing = 0.3 if table.mixed else None
    with pytest.raises(ValueError, match=message):
        contrast_step_(case.bank, velocity(case), torch.ones(key), case.queries, table, mixing, update="none")


# --- Rows of any length


def stretched(case: Case, most: float = 4.0) -> Case:
    """The features with lengths from 1 / most to most, in their dtype."""
    generator = torch.Generator().manual_seed(1)

    def stretch(f: torch.Tensor) -> torch.Tensor:
        return f * (most ** (2 * torch.rand(len(f), 1, generator=generator) - 1)).to(f)

    return replace(case, **{name: stretch(getattr(case, name)) for name in ("f0", "f1", "f2", "f3")})


@needs_golden
@pytest.mark.parametrize("impl", IMPLS)
def test_ascals_own_numbers(impl):
    theirs = golden("AS-CAL_loss")
    bank, cursor = theirs["bank"].clone(), theirs["index_before"].long()
    found = contrast_step_(
        bank, torch.ones_like(bank), theirs["f0"], [theirs["f1"]], DOT, temperature=float(theirs["temperature"]),
        bank_temperature=float(theirs["temperature"]), cursor=cursor, impl=impl,
    )  # fmt: skip
    near(found.loss, theirs["loss"], 1e-9)
    near(found.gradients[0], theirs["grad_f1"], 1e-9)
    near(found.positive_probability, theirs["logits"].softmax(dim=1)[:, 0].mean(), 1e-9)
    assert found.top1_count == (theirs["logits"].argmax(dim=1) == 0).sum()
    near(bank, theirs["bank_after"], 1e-9)
    assert cursor % len(bank) == theirs["index_after"]
    scaled = contrast_step_(
        theirs["bank"], bank, theirs["f0"], [theirs["f1"]], B1, temperature=float(theirs["temperature"]), update="none",
        impl=impl,
    )  # fmt: skip
    assert abs(scaled.loss - theirs["loss"]) > 0.01


@pytest.mark.parametrize(
    ("module", "shape", "kind", "tiled", "positives", "looking"),
    every_pair(MODULES, SHAPES, list(DOTS), [False, True], [1, 3], [True, False]),
)
def test_rows_of_any_length_equal_the_reference_in_float64(module, shape, kind, tiled, positives, looking):
    case = Case.draw(*shape, kind=kind, tiled=tiled, positives=positives if DOTS[kind].plain else 1)
    with cut(looking):
        assert_step(module, case)
        assert_step(module, stretched(case))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("length", [1e-6, 30.0, 1e4])
def test_long_and_short_rows_of_the_bank(length, module):
    """Beyond any exponential too: logits are up to 1e6 and back."""
    for kind in ("dots", "mining dots"):
        case = Case.draw(7, 45, 6, kind=kind)
        case = replace(case, bank=length * case.bank)
        assert_step(module, case, "fifo", 1e-12 * max(1.0, 3 * length / case.bank_temperature / 100))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("kind", DOTS)
def test_rows_of_any_length_keep_the_error_budget(kind, module):
    case = stretched(Case.draw(65, 700, 128, kind=kind, dtype=torch.float32), 2.0)
    largest = 2.0 * float(case.bank.norm(dim=1).max())  # of a similarity
    scaled = F.normalize(case.bank, dim=1)
    assert not check_step_budget(module, case, case.bank_temperature / largest, bank=scaled)["gradients"]


def collapsed() -> Case:
    f = 37.3 * F.normalize(torch.randn(1, 24, generator=torch.Generator().manual_seed(0)), dim=1)
    return Case(*(f.expand(9, -1),) * 4, f.expand(40, -1).clone(), torch.zeros(40), kind="dots of one",
                temperature=1.0, bank_temperature=1.0)  # fmt: skip


@pytest.mark.parametrize("impl", IMPLS)
def test_equal_features_of_any_length_are_a_tie(impl):
    """Of an encoder that has collapsed no positive is on top, whatever its length."""
    case = collapsed()
    assert step(case, impl).top1_count == 0
    assert step(replace(case, f0=case.f0 * 1.001), impl).top1_count == 9


@needs_engine
@pytest.mark.compiler
@pytest.mark.parametrize(("longer", "count"), [(1.0, 0), (1.00002, 0), (1.001, 9)])
def test_to_the_kernels_too(longer, count):
    case = collapsed()
    case = replace(case, f0=case.f0 * longer).to(torch.float32)
    assert kernels_step(case, "none", "bf16x3")["stats"][2] == count


@needs_engine
@pytest.mark.compiler
@pytest.mark.parametrize(
    ("shape", "kind", "positives", "precision"),
    [
        ((7, 70, 17), "dots", 1, "bf16x3"),
        ((33, 130, 40), "mixed dots", 1, "bf16x3"),
        ((5, 40, 8), "mining dots", 1, "ieee"),
        ((20, 200, 24), "dots of one", 4, "ieee"),
        ((20, 200, 24), "dots of aimclr", 1, "bf16x3"),
    ],
)
def test_the_kernels_take_rows_of_any_length(shape, kind, positives, precision):
    case = stretched(Case.draw(*shape, kind=kind, dtype=torch.float32, positives=positives), 2.0)
    (scaled,) = kernels_see(case, "fifo", precision, replace(case, bank=F.normalize(case.bank, dim=1)))
    assert not scaled["gradients"]


# --- No key


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("mined", [0, 1, 20, 45])
def test_a_target_of_another_temperature_by_its_formula(mined, impl):
    """That of the method cpm: unit rows, the student at 0.1, the target at 0.05; and the other order of the views."""
    case = Case.draw(9, 45, 6)
    bank, f0 = F.normalize(case.bank, dim=1), F.normalize(case.f0, dim=1)
    f1 = F.normalize(f0 + 0.3 * case.f1, dim=1).requires_grad_()
    losses, entropies = matching_losses(f1, f0, bank, temperature=0.1, target_temperature=0.05, mined=mined)
    losses.mean().backward()
    cursor, changed = torch.tensor(43), bank.clone()
    found = contrast_step_(
        changed, torch.zeros_like(bank), f0, [f1, f0 * (0.1 / 0.05)], CPM.lifting(mined), temperature=0.1,
        cursor=cursor, impl=impl,
    )  # fmt: skip
    torch.testing.assert_close(found.loss, losses.mean().detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(
        found.losses, torch.stack([losses.mean(), entropies.mean()]).detach(), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(found.gradients[0], f1.grad, rtol=1e-11, atol=1e-15)
    assert not found.gradients[1].any()
    assert torch.equal(changed[(43 + torch.arange(9)) % 45], f0) and cursor == 52
    both = Table((Row(0, target=2), Row(1, target=3), Row(2, target=2, weight=0.0), Row(3, target=3, weight=0.0)),
                 key=False)  # fmt: skip
    f2, other = F.normalize(f0 - case.f2, dim=1), F.normalize(case.f3 + f0, dim=1)
    swapped, _ = matching_losses(f2, other, bank, temperature=0.1, target_temperature=0.05, mined=mined)
    found = contrast_step_(
        bank,
        torch.zeros_like(bank),
        f0,
        [f1, f2, 2 * f0, 2 * other],
        both.lifting(mined),
        temperature=0.1,
        update="none",
        impl=impl,
    )
    torch.testing.assert_close(found.losses[:2], torch.stack([losses.mean(), swapped.mean()]).detach(), rtol=1e-13,
                               atol=0)  # fmt: skip


@pytest.mark.parametrize(
    ("module", "shape", "kind", "tiled", "looking"),
    every_pair(MODULES, SHAPES, [*MATCHING, *LIFTING], [False, True], [True, False]),
)
def test_without_a_key_a_step_equals_the_reference_in_float64(module, shape, kind, tiled, looking):
    case = Case.draw(*shape, kind=kind, tiled=tiled)
    with cut(looking):
        assert_step(module, case)
        assert_step(module, stretched(case))


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("kind", [*MATCHING, *LIFTING])
@pytest.mark.parametrize("far", [-1000.0, 1000.0])
def test_a_far_key_is_no_entry(far, kind, module):
    """Beyond any exponential, so that the sums vanish where they refer to it."""
    case = Case.draw(7, 45, 6, kind=kind)
    assert_step(module, replace(case, f0=far * case.f0), "fifo", 1e-11)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("kind", [*MATCHING, *LIFTING])
def test_without_a_key_a_step_keeps_the_error_budget(kind, module):
    case = Case.draw(65, 700, 128, kind=kind, dtype=torch.float32)
    longest = 1.0 if case.table.unit else float(case.bank.norm(dim=1).max())
    other = check_step_budget(module, case, case.bank_temperature / longest, temperature=0.071)
    assert not other["gradients"]


@needs_engine
@pytest.mark.compiler
@pytest.mark.parametrize(
    ("shape", "kind", "tiled", "precision"),
    [
        ((7, 70, 17), "matching", False, "bf16x3"),
        ((33, 130, 40), "mixed matching", True, "bf16x3"),
        ((5, 40, 8), "matching dots", False, "ieee"),
        ((20, 200, 24), "mixed matching", False, "ieee"),
        ((7, 70, 17), "lifting", False, "bf16x3"),
        ((20, 200, 24), "lifting apart", False, "ieee"),
    ],
)
def test_the_kernels_do_without_a_key(shape, kind, tiled, precision):
    case = Case.draw(*shape, kind=kind, tiled=tiled, dtype=torch.float32)
    (other,) = kernels_see(case, "fifo", precision, replace(case, kind="matching"))
    assert other["gradients"] == (kind == "matching")
    kernels_see(replace(case, f0=100 * case.f0), "none", "ieee")


# --- Entries that lie in the direction of a target


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 100, 3000])
@pytest.mark.parametrize("looking", [True, False])
def test_nearest_rows_are_those_of_topk(looking, k, dtype):
    case = Case.draw(70, 5000, 16, dtype=dtype)
    with cut(looking):
        found = chunked.nearest_rows(case.f1, case.bank, k)
    wanted = (case.f1 @ F.normalize(case.bank, dim=1).T).topk(k, dim=1).indices
    assert torch.equal(found.sort(dim=1).values, wanted.sort(dim=1).values)


@pytest.mark.parametrize("k", [1, 3, 400, 700])
@pytest.mark.parametrize("looking", [True, False])
def test_of_equally_near_rows_the_lower_are_taken(looking, k):
    """Similarities that are 0, 1 or -1 exactly, many of each, in every chunk."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.cat([torch.eye(4), -torch.eye(4)])
    bank, f = (axes[torch.randint(8, (n,), generator=generator)] for n in (5000, 70))
    with cut(looking):
        found = chunked.nearest_rows(f, 2 * bank, k)
    wanted = (f @ bank.T).sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(found.sort(dim=1).values, wanted.sort(dim=1).values)


@pytest.mark.parametrize("impl", IMPLS)
def test_of_equally_near_rows_the_lower_are_lifted(impl):
    """Two by two, rows are equally near to the target, and not to the student."""
    axes = torch.eye(8, dtype=torch.float64)
    bank = torch.cat([0.6 * axes[:4] + 0.8 * axes[4:], 0.6 * axes[:4] - 0.8 * axes[4:]])
    student, target = F.normalize(axes[4:] + 0.5 * axes[:4], dim=1), axes[:4]
    losses = [
        contrast_step_(rows, rows, target, [student, target], CPM.lifting(1), update="none", impl=impl).losses[0]
        for rows in (bank, bank.flip(0))
    ]
    assert losses[0] + 1 < losses[1]  # of a positive on the student's side; else of its opposite


LIFT = chunked.Results._lift


def lifted_wrongly(mistake: str):
    def lift(self, sums, others, keys):
        before, sums_before = keys.clone(), others.clone()
        beyond = LIFT(self, sums, others, keys)
        if mistake == "the expected entry stays":
            keys.copy_(before)
        if mistake == "the sum stays":
            others.copy_(sums_before)
        return 0 * beyond if mistake == "the expected logit is not lifted" else beyond

    return lift


@pytest.mark.parametrize(
    "mistake",
    ["the expected entry stays", "the sum stays", "the expected logit is not lifted", "the next row is lifted"],
)
def test_the_comparison_notices_a_mistake(mistake, monkeypatch):
    case = Case.draw(7, 45, 6, kind="lifting")
    assert_step(chunked, case)
    monkeypatch.setattr(chunked.Results, "_lift", lifted_wrongly(mistake))
    if mistake == "the next row is lifted":
        monkeypatch.setattr(Case, "lifted", property(lambda case, right=Case.lifted.fget: (right(case) + 1) % 45))
    with pytest.raises(AssertionError, match="error"):
        assert_step(chunked, case)


@pytest.mark.parametrize("impl", [*IMPLS, pytest.param("kernels", marks=[needs_engine, pytest.mark.compiler])])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["f0", "f1", "f3"])
def test_what_is_not_finite_stays_out_of_the_bank(name, value, impl):
    case = Case.draw(5, 30, 6, kind="matching", dtype=torch.float32)
    spoiled = getattr(case, name).clone()
    spoiled[2, 1] = value
    case = replace(case, **{name: spoiled})
    if impl == "kernels":
        found = kernels_step(case, "fifo", "bf16x3")
        loss, bank, cursor = found["stats"][0], found["bank"], found["cursor"] + 1
    else:
        bank, cursor = case.bank.clone(), torch.tensor(4)
        loss = contrast_step_(bank, velocity(case), case.f0, case.queries, case.table, cursor=cursor, impl=impl).loss
    assert not loss.isfinite() and cursor == 4 and torch.equal(bank, case.bank)
