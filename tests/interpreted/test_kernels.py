"""The MC-loss kernels by value, interpreted: every output against the float64 reference, on reasoned and hostile input.

Bounds, races between programs and memory that nobody stored are checked on the way (``kernels_on_cpu``).
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from every_pair import every_pair
from gpu_less import kernels_on_cpu
from kernel_budget import kernel_budget
from oracle import HYPER, TABLES, Case, Results, forward_of, forward_truth, step_of, step_truth, velocity, within
from test_loss import HOSTILE
from torch.nn import functional as F

import fastmc
from fastmc.contrast_table import B3
from kernels import mc

PRECISIONS = ["bf16x3", "ieee", "bf16"]
WEIGHTS = torch.tensor([1.0, -2.5, 0.5, 2.0])
# Below, at and above the tiles (32 entries in the sweep, 64 in the bank's step; 128 queries; 16 columns at least).
SHAPES = [
    (1, 1, 1),
    (7, 31, 5),
    (16, 32, 16),
    (32, 64, 16),
    (33, 65, 17),
    (1, 200, 3),
    (40, 100, 32),
    (64, 70, 128),
    (5, 20, 130),
    (5, 20, 512),
]
# Neither the batch nor a tile divides the bank.
TILED = [(1, 31, 8), (20, 1, 8), (40, 33, 8), (70, 65, 8)]
CALLS = [("mc", "ascent"), ("unmixed", "fifo"), ("one-hot", "fifo"), ("alone", "fifo"), ("mc", "none")]
OTHER_CALLS = [
    ("aimclr", "fifo"), ("hiclr", "fifo"), ("aimclr", "ascent"), ("hiclr", "ascent"), ("crossed", "ascent"),
    ("mining", "fifo"), ("mining three", "fifo"), ("two mine", "none"),
]  # fmt: skip


def checked_step(case: Case, update: str, precision: str = "bf16x3", cursor: int = 0) -> tuple[Results, list[str]]:
    """Results of mc_step_ and the kernels that it launched."""
    with kernels_on_cpu() as seen:
        found = step_of(mc, case, update, velocity(case), cursor, precision)
    return found, [launch.kernel for launch in seen.launches]


def assert_step(case: Case, update: str, precision: str = "bf16x3", cursor: int = 0) -> None:
    truth, plain = (step_truth(c, update, velocity(c), cursor) for c in (case.to(torch.float64), case))
    ours, launches = checked_step(case, update, precision, cursor)
    last = {"ascent": ["_bank_kernel"], "fifo": ["_enqueue_kernel"], "none": []}[update]
    assert launches == ["_prepare_kernel", "_sweep_kernel", "_combine_kernel", *last]
    if precision == "bf16":  # whether a positive is on top may hang on the rounding
        truth["stats"][1 + case.table.queries] = ours["stats"][1 + case.table.queries]
    verdict = within(ours, truth, kernel_budget(plain, truth, case, precision))
    assert all(torch.isfinite(value).all() for value in ours.values())
    assert all(verdict.values()), {n: float((ours[n] - truth[n]).abs().max()) for n in verdict if not verdict[n]}


@pytest.mark.parametrize(
    ("shape", "tiled"), [(shape, i % 2 == 1) for i, shape in enumerate(SHAPES)] + [(shape, True) for shape in TILED]
)
def test_step_keeps_the_error_budget(shape, tiled):
    assert_step(Case.draw(*shape, tiled=tiled, dtype=torch.float32), "ascent")


@pytest.mark.parametrize(("call", "precision", "tiled"), every_pair(CALLS + OTHER_CALLS, PRECISIONS, [False, True]))
def test_every_call_of_the_trainer_in_every_precision(call, precision, tiled):
    kind, update = call
    case = Case.draw(7, 70, 17, kind=kind, tiled=tiled, dtype=torch.float32)
    assert_step(case, update, precision, cursor=67)


@pytest.mark.parametrize(("positives", "update"), [(3, "fifo"), (8, "ascent")])
def test_several_positives(positives, update):
    case = Case.draw(7, 70, 17, kind="one-hot", positives=positives, dtype=torch.float32)
    assert_step(case, update, cursor=67)


@pytest.mark.parametrize(
    ("temperatures", "tiled"),
    [((0.01, 0.01), False), ((0.07, 0.01), True), ((1.0, 0.03), False), ((0.03, 1.0), True)],
)
def test_peaked_and_flat_softmaxes(temperatures, tiled):
    tau, bank_tau = temperatures
    case = Case.draw(9, 100, 16, tiled=tiled, dtype=torch.float32, temperature=tau, bank_temperature=bank_tau)
    assert_step(case, "ascent")
    assert_step(replace(case, f1=case.f0, f3=case.f0), "ascent")  # the positive has nearly all of the probability


@pytest.mark.parametrize(("spoil", "tiled"), [(spoil, i % 2 == 0) for i, spoil in enumerate(HOSTILE)])
def test_hostile_input(spoil, tiled):
    case = Case.draw(7, 45, 6, tiled=tiled, dtype=torch.float32)
    names = ("f0", "f1", "f2", "f3", "bank", "mixing")
    arguments = {name: getattr(case, name).clone() for name in names}
    spoil(arguments)
    case = replace(case, **arguments)
    truth, plain = (step_truth(c, "ascent", velocity(c)) for c in (case.to(torch.float64), case))
    ours, _ = checked_step(case, "ascent")
    if spoil.__name__ == "entry_equal_to_a_feature":  # a tie, decided by a rounding of the reference's two products
        truth["stats"][4] = ours["stats"][4]
    verdict = within(ours, truth, kernel_budget(plain, truth, case, "bf16x3"))
    assert all(verdict.values()), verdict


@pytest.mark.parametrize(("precision", "kind", "tiled"), every_pair(PRECISIONS, list(TABLES), [False, True]))
def test_forward_and_bank_gradient_with_upstream_weights(precision, kind, tiled):
    case = Case.draw(7, 70, 17, kind=kind, tiled=tiled, dtype=torch.float32, bank_temperature=0.07)
    truth, plain = (forward_truth(c, WEIGHTS) for c in (case.to(torch.float64), case))
    with kernels_on_cpu():
        ours = forward_of(mc, case, WEIGHTS, precision)
    verdict = within(ours, truth, kernel_budget(plain, truth, case, precision))
    assert all(verdict.values()), verdict


def test_the_budget_notices_one_wrong_element():
    case = Case.draw(7, 45, 6, dtype=torch.float32)
    truth, plain = (step_truth(c, "ascent", velocity(c)) for c in (case.to(torch.float64), case))
    ours, _ = checked_step(case, "ascent")
    for name in ("stats", "gradients", "bank", "momentum"):
        wrong = ours[name].clone()
        wrong.view(-1)[wrong.abs().argmax()] *= 1.01
        verdict = within({**ours, name: wrong}, truth, kernel_budget(plain, truth, case, "bf16x3"))
        assert [n for n in verdict if not verdict[n]] == [name]


MUTANTS = {
    "mixing reversed": lambda c: replace(c, mixing=c.mixing.flip(0)),
    "one bank row off": lambda c: replace(c, bank=c.bank.roll(1, 0)),
    "other mix": lambda c: replace(c, tiled=True),
    "temperature off by a hundredth": lambda c: replace(c, temperature=0.07 * 1.01),
    "bank's temperature off by a hundredth": lambda c: replace(c, bank_temperature=0.03 * 1.01),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_budget_notices_a_wrong_kernel(mutant):
    case = Case.draw(7, 45, 6, dtype=torch.float32)
    truth, plain = (step_truth(c, "ascent", velocity(c)) for c in (case.to(torch.float64), case))
    ours, _ = checked_step(MUTANTS[mutant](case), "ascent")
    verdict = within(ours, truth, kernel_budget(plain, truth, case, "bf16x3"))
    assert not all(verdict.values())


@pytest.mark.parametrize(("update", "poison"), [("ascent", float("nan")), ("fifo", float("inf"))])
def test_a_loss_that_is_not_finite_leaves_the_bank_alone(poison, update):
    case = Case.draw(7, 45, 6, dtype=torch.float32)
    case.f3[2, 1] = poison
    with kernels_on_cpu():
        found = step_of(mc, case, update, velocity(case), 3, "bf16x3")
    assert not torch.isfinite(found["stats"][0])
    assert torch.equal(found["bank"], case.bank)
    assert torch.equal(found["momentum"], velocity(case))
    assert found["cursor"] == 3


@pytest.mark.parametrize("update", ["ascent", "fifo"])
def test_rows_with_gaps_are_updated_in_place(update):
    case = Case.draw(7, 45, 6, dtype=torch.float32)
    want, _ = checked_step(case, update)
    wide = torch.cat([case.bank, velocity(case)], dim=1)
    bank, momentum, cursor = wide[:, :6], wide[:, 6:], torch.tensor(0)
    with kernels_on_cpu():
        arguments = (0.07, 0.03, *HYPER.values(), False, update, cursor, "bf16x3")
        mc.contrast_step_(bank, momentum, case.f0, case.queries, case.mixing, case.table, *arguments)
    assert torch.equal(bank, want["bank"])
    assert torch.equal(momentum, want["momentum"])


def test_a_tie_is_not_on_top_and_a_collapsed_encoder_has_no_top():
    f = F.normalize(torch.ones(5, 8), dim=1)
    bank = f[:1].repeat(21, 1)
    with kernels_on_cpu():
        stats, _ = mc.contrast_step_(
            bank, 0 * bank, f, [f] * 3, None, B3, 0.07, 0.03, 3.0, 0.9, 1e-4, False, "none", None, "bf16x3"
        )
    assert stats[4] == 0
    assert stats[5].item() == pytest.approx(1 / 22, rel=1e-4)
    assert stats[1:4].tolist() == pytest.approx([math.log(22)] * 3, rel=1e-5)


@pytest.mark.parametrize("mix", ["own", "tiled"])
def test_public_loss_and_autograd(mix):
    """mc_loss, mc_loss_parts, info_nce and bank_step_ through the library, with an upstream gradient that is not 1."""
    case = Case.draw(7, 45, 6, dtype=torch.float32)
    found = {}
    for impl, c in (("triton", case), ("reference", case.to(torch.float64))):
        leaves = [t.clone().requires_grad_() for t in (c.f1, c.f2, c.f3, c.bank)]
        loss = fastmc.mc_loss(c.f0, *leaves, c.mixing, mix=mix, impl=impl)
        l1, l2, l3 = fastmc.mc_loss_parts(c.f0, *leaves, c.mixing, mix=mix, impl=impl)
        single = fastmc.info_nce(leaves[0], c.f0, leaves[3], impl=impl)
        (-2.5 * loss + 0.5 * l2 - 2 * l3 + l1 + 3 * single).backward()
        bank, momentum = c.bank.clone(), torch.zeros_like(c.bank)
        fastmc.bank_step_(bank, momentum, c.f0, c.f1, c.f2, c.f3, c.mixing, mix=mix, impl=impl)
        found[impl] = [loss.detach(), single.detach(), *(leaf.grad for leaf in leaves), bank, momentum]
    for ours, truth in zip(found["triton"], found["reference"], strict=True):
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=1e-4 * float(truth.abs().max()))
