"""Tables of rows: what they accept; those of the paper are its equations, AimCLR's and HiCLR's their formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracle import CROSSED, DOTS, LIFTING, MATCHING, MINING, TABLES, Case
from torch import Tensor

from fastmc.contrast_table import A2MC, AIMCLR, B1, B2, B3, CPM, HICLR, Row, Table
from fastmc.objective.contrast_step import contrast_step_
from fastmc.reference import contrast as reference

ALL = TABLES | MINING | DOTS | MATCHING | LIFTING


@pytest.mark.parametrize("table", ALL.values(), ids=ALL)
def test_a_table_is_its_code(table):
    assert Table.parse(table.code) == table
    assert hash(Table.parse(table.code)) == hash(table)


@pytest.mark.parametrize(
    ("rows", "measured", "message"),
    [
        ((Row(0), Row(2), Row(1)), 0, "row 1 must have the loss of query 1"),
        ((Row(-1),), 0, "measured must be one of 0 queries"),
        ((Row(0),), 1, "measured must be one of 1 queries"),
        ((Row(0, 0), Row(1)), 0, "row 1 must be mixed with one of the queries, as all rows or none"),
        ((Row(0, 1),), 0, "row 0 must be mixed with one"),
        ((Row(0), Row(1, target=1)), 0, "row 1 can have no target or another row"),
        ((Row(0, target=2), Row(1)), 0, "row 0 can have no target or another row"),
        ((Row(0, target=1), Row(0, target=0)), 0, "row 1 can have no target"),
        ((Row(0, 0), Row(1, 1, target=0)), 0, "row 1 and its target must meet the same entries"),
        ((Row(0), Row(0)), 0, "row 1 is nobody's target"),
        ((Row(0, mined=9),), 0, "row 0 can mine 0 to 8 entries"),
        ((Row(0, mined=-1),), 0, "row 0 can mine 0 to 8 entries"),
        ((Row(0, mined=2), Row(1, mined=1)), 0, "row 1 can mine 0 to 8 entries, as many as others that mine"),
        ((Row(0), Row(1, target=0, mined=1)), 0, "row 1 can mine if it has a loss, no target"),
        ((Row(0, 0, mined=1),), 0, "row 0 can mine if it has a loss, no target and no mixed entries"),
        ((Row(0, target=1), Row(0, mined=1)), 0, "row 1 can mine if it has a loss"),
        ((Row(0, target=1), Row(0, lifted=1)), 0, "row 1 can lift entries if they are the bank's alone"),
    ],
)
def test_what_is_no_table_says_so(rows, measured, message):
    with pytest.raises(ValueError, match=message):
        Table(rows, measured)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((Row(0),), "row 0 must have a target where the key is no entry"),
        ((Row(0, target=1), Row(1)), "row 1 must have a target where the key is no entry"),
        ((Row(0, mined=1),), "row 0 must have a target where the key is no entry"),
        ((Row(0, target=0, mined=1),), "row 0 can mine if it has a loss, no target"),
        ((Row(0, target=2), Row(0, target=1)), "row 0 can have no target or another row"),
        ((Row(0, target=0, lifted=-1),), "row 0 can lift 0 or more entries"),
        ((Row(0, target=0, lifted=2), Row(1, target=1, lifted=1)), "row 1 can lift 0 or more entries, as many as oth"),
        ((Row(0, target=1, lifted=1), Row(1, target=1)), "row 0 can lift entries if it has no target but itself"),
        ((Row(0, 0, target=0, lifted=1),), "row 0 can lift entries if they are the bank's alone"),
    ],
)
def test_what_is_no_table_without_a_key_says_so(rows, message):
    with pytest.raises(ValueError, match=message):
        Table(rows, key=False)


def test_the_order_in_which_each_student_finds_its_target():
    forwards = (AIMCLR, HICLR, CROSSED, B1, B2)
    assert all(table.bank_order == range(table.queries) for table in forwards)
    assert [list(table.bank_order) for table in (A2MC, B3)] == [[2, 1, 0]] * 2
    assert Table((Row(0, target=1), Row(1, target=0))).bank_order is None
    assert AIMCLR.mining().bank_order is None


def test_a_table_can_be_told_to_mine():
    assert (AIMCLR.mined, AIMCLR.miners) == (0, [])
    table = AIMCLR.mining(3)
    assert (table.mined, table.miners) == (3, [0])
    assert table.rows == (Row(0, mined=3), *AIMCLR.rows[1:]) and table.mining(0) == AIMCLR


def test_a_table_can_be_told_to_lift():
    with pytest.raises(ValueError, match="row 1 can lift entries if they are the bank's alone, at unit length"):
        replace(CPM, unit=False).lifting(1)
    assert (CPM.lifted, CPM.lifters) == (0, [])
    table = CPM.lifting(100)
    assert (table.lifted, table.lifters) == (100, [1]) and table.lifting(0) == CPM
    assert table.rows == (CPM.rows[0], CPM.rows[1]._replace(lifted=100))


@pytest.mark.parametrize("mix", ["own", "tiled"])
def test_the_papers_tables_are_its_equations(mix):
    case = Case.draw(7, 45, 6)
    for table, mixing in ((A2MC, case.mixing), (B3, None)):
        settings = {"temperature": 0.07, "mix": mix}
        losses = reference.contrast_losses(case.f0, case.queries, case.bank, table, mixing, **settings)
        parts = reference.mc_loss_parts(case.f0, *case.queries, case.bank, mixing, **settings)
        assert torch.equal(losses, torch.stack(parts))
        total = reference.mc_loss(case.f0, *case.queries, case.bank, mixing, **settings)
        torch.testing.assert_close(reference.contrast_loss(losses, table), total, rtol=1e-15, atol=0)
    m0 = reference.normalise(case.bank)
    single = reference.contrast_losses(case.f0, case.queries, case.bank, B2, None, temperature=0.07)
    assert torch.equal(single, torch.stack([reference.info_nce(f, case.f0, m0, 0.07) for f in case.queries]))


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize(("table", "teachers"), [(AIMCLR, (0, 0)), (HICLR, (0, 1))])
def test_soft_targets_by_their_formula(table, teachers, impl):
    """-log p_1,0 - 1/2 sum of t log p, over the logits [key | bank], in plain PyTorch; first in, first out."""
    case = Case.draw(7, 45, 6)
    leaves = [f.clone().requires_grad_() for f in case.queries]
    candidates = torch.nn.functional.normalize(case.bank, dim=1)

    def logits(f: Tensor) -> Tensor:
        return torch.cat([(f * case.f0).sum(dim=1, keepdim=True), f @ candidates.T], dim=1) / 0.07

    log_p = [logits(f).log_softmax(dim=1) for f in leaves]
    hard = -log_p[0][:, 0].mean()
    soft = [-(log_p[t].detach().exp() * log_p[s]).sum(dim=1).mean() for s, t in zip((1, 2), teachers, strict=True)]
    loss = hard + (soft[0] + soft[1]) / 2
    loss.backward()

    bank, momentum, cursor = case.bank.clone(), case.bank.clone(), torch.tensor(43)
    step = contrast_step_(bank, momentum, case.f0, case.queries, table, cursor=cursor, impl=impl)
    torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(step.losses, torch.stack([hard, *soft]).detach(), rtol=1e-13, atol=0)
    for ours, leaf in zip(step.gradients, leaves, strict=True):
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-11, atol=1e-15)
    written = (43 + torch.arange(7)) % 45
    assert torch.equal(bank[written], case.f0) and not momentum[written].any()
    assert torch.equal(bank[5:43], case.bank[5:43])
    assert cursor == 50


MUTUAL = Table((Row(0, target=1), Row(1, target=0)))


@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_two_rows_may_be_each_others_targets(impl):
    """Without an ascent of the bank, which has to meet a target before its student."""
    case = Case.draw(7, 45, 6)
    leaves = [f.clone().requires_grad_() for f in (case.f1, case.f2)]
    losses = reference.contrast_losses(case.f0, leaves, case.bank, MUTUAL, None, temperature=0.07)
    losses.sum().backward()
    step = contrast_step_(case.bank, torch.zeros_like(case.bank), case.f0, leaves, MUTUAL, update="none", impl=impl)
    torch.testing.assert_close(step.losses, losses.detach(), rtol=1e-13, atol=0)
    for ours, leaf in zip(step.gradients, leaves, strict=True):
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(
    ("table", "count", "settings", "message"),
    [
        (AIMCLR, 2, {}, "table has rows of 3 queries, and 2 are given"),
        (A2MC, 3, {}, "mixing must be given"),
        (AIMCLR, 3, {"mixing": 0.3}, "mixing must be None"),
        (MUTUAL, 2, {"update": "ascent"}, "table must not have targets that interleave for update 'ascent'"),
        (AIMCLR, 3, {"update": "fifo", "cursor": None}, "cursor must be an int64 scalar"),
        (replace(B2, unit=False), 3, {"update": "ascent"}, "table must scale the rows of bank to unit length for upd"),
        (CPM, 2, {"update": "ascent"}, "table must have the key for update 'ascent'"),
        (CPM, 2, {"f0": (3, 2, 5)}, r"f0 must be \(B, D\) for a table with mixed rows, targets or mined entries"),
        (AIMCLR.mining(), 3, {"update": "ascent"}, "table must not mine for update 'ascent'"),
        (AIMCLR.mining(8), 3, {"bank": 7}, "table mines 8 rows of bank for each query, and bank has 7"),
        (CPM.lifting(8), 2, {"bank": 7}, "table lifts 8 rows of bank for each query, and bank has 7"),
        ("A2MC", 3, {}, "table must be a Table, got 'A2MC'"),
    ],
)
def test_a_call_that_does_not_fit_its_table_says_so(table, count, settings, message):
    case = Case.draw(3, 20, 5)
    settings = {"update": "none", **settings}
    bank, f0 = case.bank[: settings.pop("bank", 20)], torch.ones(settings.pop("f0", (3, 5)))
    with pytest.raises(ValueError, match=message):
        contrast_step_(bank, torch.zeros_like(bank), f0, case.queries[:count], table, **settings)


def test_a_query_is_named_by_its_number():
    case = Case.draw(3, 20, 5)
    with pytest.raises(ValueError, match=r"f2 is \(2, 5\), f0 is \(3, 5\)"):
        contrast_step_(
            case.bank, torch.zeros_like(case.bank), case.f0, [case.f1, case.f2[:2], case.f3], AIMCLR, update="none"
        )
