"""CPM: its loss and mining by the equations, number by number, its step, its phases, its runs. No code of the authors
and no numbers of it exist."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from golden import near
from oracle import matching_losses
from test_backbones import as_on_a_gpu as as_on_a_gpu  # fixtures
from test_backbones import no_onednn as no_onednn
from test_hico import SHORT, one_step, replays, resumes, runs_and_is_exported
from test_train import advance, command, start
from torch import Tensor
from torch.nn import functional as F

from fastmc.methods.cpm import CPM, CPMConfig
from train.engine.step import NonFiniteError

OWN = ("--method", "cpm", "--backbone", "stgcn", "--encoder", "4x8", "--blocks", "1", "1", "1", "1")
OWN += ("--head-width", "6", "--mined", "3", "--predictor-width", "10")
slow = pytest.mark.slow


def softmax(numbers: list[float]) -> list[float]:
    powers = [math.exp(number) for number in numbers]
    return [power / math.fsum(powers) for power in powers]


def dots(f: Tensor, rows: Tensor) -> list[float]:
    return [math.fsum(a * b for a, b in zip(f.tolist(), row, strict=True)) for row in rows.tolist()]


def by_hand(f1: Tensor, f0: Tensor, bank: Tensor, tau_s: float, tau_t: float, mined: int) -> tuple[list, list]:
    """Cross-entropy and KL of each sample."""
    crosses, divergences = [], []
    for student, target in zip(f1, f0, strict=True):
        similar = dots(target, bank)
        for row in sorted(range(len(similar)), key=lambda n: -similar[n])[:mined]:
            similar[row] = 1.0
        p_t = softmax([s / tau_t for s in similar])
        p_s = softmax([s / tau_s for s in dots(student, bank)])
        crosses.append(-math.fsum(t * math.log(s) for t, s in zip(p_t, p_s, strict=True)))
        divergences.append(math.fsum(t * math.log(t / s) for t, s in zip(p_t, p_s, strict=True)))
    return crosses, divergences


@pytest.mark.parametrize("mined", [0, 1, 4, 20])
def test_the_loss_is_that_of_the_equations(mined):
    torch.manual_seed(0)
    f1, f0, bank = (F.normalize(torch.randn(n, 8, dtype=torch.float64), dim=1) for n in (5, 5, 20))
    settings = {"temperature": 0.1, "target_temperature": 0.05}
    losses, least = matching_losses(f1, f0, bank, **settings, mined=mined)
    crosses, divergences = by_hand(f1, f0, bank, 0.1, 0.05, mined)
    near(losses, torch.tensor(crosses, dtype=torch.float64), 1e-12)
    near(losses - least, torch.tensor(divergences, dtype=torch.float64), 1e-10)
    leaf = f1.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: matching_losses(x, f0, bank, **settings, mined=mined)[0], leaf)


def test_more_positives_than_rows_are_refused():
    for make in (lambda: CPMConfig(bank_size=64, mined=65), lambda: CPMConfig(fit_bank=True).fitted(99)):
        with pytest.raises(ValueError, match=r"mined = \d+ is more than the 64 rows of the bank; give a smaller"):
            make()
    assert CPMConfig(bank_size=64, mined=64).says == "bank 64"


@slow
@pytest.mark.parametrize("phase", ["fill", "main", "mined"])
def test_a_step_is_both_orders_of_the_views_and_goes_back_through_the_students(phase, data_root, tmp_path):
    """Each view on its own through a network of its own, whose targets are numbers."""
    pretraining = start(data_root, tmp_path / "run", *OWN)
    model = pretraining.model
    assert isinstance(model, CPM)
    plain = copy.deepcopy(model)
    views, found = one_step(pretraining, phase)
    torch.autograd.backward(found.outputs, found.gradients)

    bank, mined = model.bank.entries, 3 if phase == "mined" else 0
    with torch.no_grad():
        targets = [plain.query(x) for x in views]
    students = [F.normalize(plain.predictor(plain.query.head(plain.query.represent(x))), dim=1) for x in views]
    loss, numbers = 0.0, []
    for student, target in ((students[0], targets[1]), (students[1], targets[0])):
        crosses, divergences = by_hand(student.detach(), target, bank, 0.1, 0.05, mined)
        numbers.append([sum(crosses) / 12, sum(divergences) / 12, float((student.detach() * target).sum(1).mean())])
        similar = target @ bank.T
        if mined:
            similar[similar >= similar.sort(1, descending=True).values[:, mined - 1 : mined]] = 1
        p_t = (similar / 0.05).softmax(1)
        loss = loss - (p_t * (student @ bank.T / 0.1).log_softmax(1)).sum() / 24
    loss.backward()
    near(model.measure(found.seen)[:3], torch.tensor(numbers).mean(0), 1e-5)
    pairs = zip(model.named_parameters(), plain.parameters(), strict=True)
    gradients = [(name, ours.grad, theirs.grad) for (name, ours), theirs in pairs]
    largest = max(theirs.abs().max() for _, _, theirs in gradients)
    for name, ours, theirs in gradients:
        assert (ours - theirs).abs().max() <= 1e-5 * largest, name

    after = {id(buffer): value for buffer, value in found.writes}
    near(after[id(model.bank.entries)][:12], targets[0], 1e-5)
    assert torch.equal(after[id(model.bank.entries)][12:], bank[12:]) and after[id(model.bank.cursor)] == 12


@slow
def test_phases(data_root, tmp_path):
    pretraining = start(data_root, tmp_path / "run", *OWN, "--mining-from", "2")
    said, step = [], pretraining.stepper.advance

    def listening(clips: object, *, phase: str) -> None:
        said.append(phase)
        step(clips, phase=phase)

    pretraining.stepper.advance = listening
    advance(pretraining, 8)  # three steps are an epoch, and two of eight clips fill 16 rows
    assert said == ["fill"] * 2 + ["main"] * 4 + ["mined"] * 2
    assert pretraining.model.phase(8, 5) == "fill", "random rows are never mined"


@slow
def test_all_of_it_moves_and_an_undone_step_moves_nothing(data_root, tmp_path):
    pretraining = start(data_root, tmp_path / "run", *OWN)
    state = pretraining.model.state_dict()
    fresh = {name: tensor.clone() for name, tensor in state.items()}
    advance(pretraining, 3)
    before = {name: tensor.clone() for name, tensor in state.items()}
    assert all(not torch.equal(before[name], fresh[name]) for name in state)
    with torch.no_grad():
        for weight in pretraining.model.predictor.parameters():
            weight.mul_(math.nan)
    advance(pretraining, 1)
    with pytest.raises(NonFiniteError, match="left as before this step"):
        pretraining.stepper.check()
    assert all(torch.equal(before[name], state[name]) for name in state if not name.startswith("predictor"))


@slow
@pytest.mark.usefixtures("as_on_a_gpu", "no_onednn")
@pytest.mark.parametrize("phase", ["main", "mined"])
def test_a_replayed_step_is_the_step(phase, data_root):
    replays(data_root, OWN, phase)


@slow
@pytest.mark.parametrize(("amp", "optimizer"), [("fp32", "adamw"), ("bf16", "sgd")])
def test_it_resumes_bit_for_bit(amp, optimizer, data_root, tmp_path):
    """Before mining begins, and it does so in the seventh step."""
    resumes(data_root, tmp_path, (*OWN, "--amp", amp, "--optimizer", optimizer, "--mining-from", "2"), 4)


@slow
@pytest.mark.quick
def test_a_short_run(data_root, tmp_path):
    out = tmp_path / "run"
    runs_and_is_exported(command(data_root, out, *OWN, "--mining-from", "1", *SHORT), out, 6)
