"""The benchmark of the whole step: that all sides make the same step, that its gate fails, and what it reports."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench import machine, step, summary
from bench.measure import Measurement, Timing
from bench.numpy_views import crop_resize
from bench.parity import ParityError
from bench.providers import MIXES
from bench.step import (
    BATCHES,
    ENCODER,
    OURS,
    OURS_STEPWISE,
    REFERENCE,
    STEPWISE,
    EncoderCalls,
    Ours,
    Plain,
    StepCase,
    StepRace,
    after,
    compare,
    given_batch,
    start_state,
    stepwise_step,
)
from bench.stepwise import FramewiseEncoder, Loader, framewise_name
from bench.views import Clips, ViewsCase
from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from train.engine.step import PretrainStep

pytestmark = [pytest.mark.slow, pytest.mark.program]
CASE = StepCase("own", batch=5, bank=33, dim=16, encoder="2x12", frames=12)
QUICK = Timing(rounds=3, threads=1)
KEYS = ("step_own_vs_reference", "step_tiled_vs_reference", "step_own_vs_stepwise", "step_tiled_vs_stepwise")
KEYS += ("step_vs_encoder",)
TINY = ["--batch", "5", "--bank", "33", "--dim", "16", "--encoder", "2x12", "--frames", "12", "--rounds", "3"]
TINY += ["--threads", "1", "--only", "step", "--no-progress"]


@pytest.fixture(scope="module")
def clips() -> Clips:
    return Clips(ViewsCase(CASE.batch, CASE.frames, BATCHES * CASE.batch), torch.device("cpu"))


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.arange(CASE.batch)


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(machine, "_time_of_others", lambda: 0.0)
    monkeypatch.setattr(summary, "LOOK", 0.0)


# --- All sides


@pytest.mark.parametrize("mix", MIXES)
def test_everybody_makes_the_same_step_and_is_timed(mix):
    with closing(StepRace(replace(CASE, mix=mix), QUICK)) as race:
        assert list(race.found) == [REFERENCE, OURS, ENCODER, STEPWISE, OURS_STEPWISE]
        budgets = {name: found.budget for name, found in race.found.items()}
        assert budgets[REFERENCE] is None and budgets[STEPWISE] is None
        assert all(0 < budgets[name] < 0.6 for name in (OURS, ENCODER, OURS_STEPWISE)), budgets
        race.run("steps")
    assert all(len(found.seconds) == 3 for found in race.found.values())
    text = step.text(race)
    assert str(race.case) in text and f"{OURS}: " in text and " samples/s (" in text
    assert "less than such a step" in text


def test_the_framewise_encoder_is_ours_in_the_stepwise_reading():
    torch.manual_seed(0)
    ours = BiGRU(BiGRUConfig("3x12", reading="stepwise", feature_dim=16), ClipShape(5, 2)).double()
    theirs = FramewiseEncoder(30, 12, 3, 16).double()
    theirs.load_state_dict({framewise_name(name): value for name, value in ours.state_dict().items()})
    x = torch.randn(5, 9, 30, dtype=torch.float64)
    torch.testing.assert_close(theirs(x), ours(x), rtol=0, atol=1e-13)
    weights = torch.randn(5, 16, dtype=torch.float64)
    (theirs(x) * weights).sum().backward()
    (ours(x) * weights).sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, weight in ours.named_parameters():
        torch.testing.assert_close(gradients[framewise_name(name)].grad, weight.grad, rtol=0, atol=1e-12)
    sequence = super(FramewiseEncoder, theirs).represent(x)
    assert (sequence - theirs.represent(x)).abs().max() > 1e-3


class NoLoader:
    """For a step that is given its batch."""


@pytest.mark.parametrize("mix", MIXES)
def test_the_step_as_earlier_codes_write_it_is_that_of_the_reference(mix, clips, ids):
    """The same clips and choices, the encoder in the same reading; views in numpy instead of the reference's."""
    case = replace(CASE, mix=mix)
    config = case.config("stepwise")
    start = start_state(config, clips.packed, clips.device)
    plain = Plain(config, clips.packed, start)
    assert isinstance(plain.query, FramewiseEncoder)
    found, live = stepwise_step(config, clips, start, NoLoader())
    for number in range(2):
        metrics = plain(ids, number)
        theirs = found.advance(*given_batch(config, clips, ids, number))
        share = compare(STEPWISE, case, start, after(live, theirs), after(plain.live_state(), metrics))
        assert 0 < share < 0.6


def spoilt_step(spoil: Callable[[PretrainStep], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Of ours, both readings."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        right = step.build_step

        def build(*args: Any) -> PretrainStep:
            built = right(*args)
            spoil(built)
            return built

        monkeypatch.setattr(step, "build_step", build)

    return patch


def no_ema(built: PretrainStep) -> None:
    built.followers = []


def other_contrast(**changes: Any) -> Callable[[PretrainStep], None]:
    def spoil(built: PretrainStep) -> None:
        built.model.config = replace(built.model.config, **changes)

    return spoil


def smaller_attack(built: PretrainStep) -> None:
    built.model.config = replace(built.model.config, attack_norm=0.49)


WRONG_STEPS = {
    "no ema": (no_ema, "key"),
    "temperature": (other_contrast(temperature=0.0702), "loss"),
    "bank's temperature": (other_contrast(bank_temperature=0.0302), "positive_probability"),
    "bank's momentum": (other_contrast(bank_momentum=0.89), "bank"),
    "mixing": (other_contrast(mix="tiled"), "loss"),
    "attack": (smaller_attack, "query|velocity"),
}


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_the_gate_notices_another_step(name, clips, ids, monkeypatch):
    spoil, part = WRONG_STEPS[name]
    config = CASE.config()
    start = start_state(config, clips.packed, clips.device)
    plain = Plain(config, clips.packed, start)
    truth = after(plain.live_state(), plain(ids, 0))
    right = Ours(config, clips.packed, start)
    assert compare(OURS, CASE, start, after(right.live_state(), right(ids, 0)), truth) < 0.6
    spoilt_step(spoil)(monkeypatch)
    wrong = Ours(config, clips.packed, start)
    with pytest.raises(ParityError, match=f"fastmc does not make the same step, so there are no numbers.*: ({part})"):
        compare(OURS, CASE, start, after(wrong.live_state(), wrong(ids, 0)), truth)


# --- The encoder calls alone


def calls_of(model: nn.Module, what: Callable[[], object]) -> list[tuple[Any, ...]]:
    """Every pass through a recurrent net: which, of how many numbers, normalised how, for whom it keeps what."""
    seen: list[tuple[Any, ...]] = []

    def remember(name: str) -> Callable[..., None]:
        def hook(net: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            norm = getattr(model, name).norm
            seen.append((name, tuple(args[0].shape), args[0].requires_grad, output.requires_grad, norm.training))
            if output.requires_grad:
                output.register_hook(lambda gradient: seen.append((f"back through {name}", tuple(gradient.shape))))

        return hook

    handles = [getattr(model, name).recurrent.register_forward_hook(remember(name)) for name in ("query", "key")]
    what()
    for handle in handles:
        handle.remove()
    return seen


def test_the_encoder_calls_are_those_of_a_step(clips, ids):
    config = CASE.config()
    start = start_state(config, clips.packed, clips.device)
    ours, calls = Ours(config, clips.packed, start), EncoderCalls(config, clips.packed, start, ids)
    of_step = calls_of(ours.model, lambda: ours(ids, 0))
    assert len(of_step) == 5
    assert calls_of(calls.model, calls) == of_step
    before = {name: value.clone() for name, value in calls.model.query.named_parameters()}
    calls()
    assert all(torch.equal(value, before[name]) for name, value in calls.model.query.named_parameters())


def test_the_gate_notices_other_encoder_calls(clips, ids):
    config = CASE.config()
    start = start_state(config, clips.packed, clips.device)
    calls = EncoderCalls(config, clips.packed, start, ids)
    expected, right = calls.expected(config, start), calls()
    assert compare(ENCODER, CASE, {}, right, expected) < 0.6
    for part in ("f0", "f", "dx", "gradient of recurrent.weight_hh_l1"):
        found = right | {part: right[part].clone()}
        found[part].view(-1)[3] += 1e-2 * found[part].abs().max()
        with pytest.raises(ParityError, match=f"{ENCODER}.*: {part} is off"):
            compare(ENCODER, CASE, {}, found, expected)


# --- The loader


@pytest.fixture
def loader(clips) -> Iterator[Loader]:
    with closing(Loader(clips, [[3, 1, 4], [1, 5, 9]], workers=2)) as made:
        yield made


def test_the_loader_goes_through_its_batches_without_end(loader, clips):
    found = [next(loader) for _ in range(5)]
    assert [batch.ids.tolist() for batch in found] == [[3, 1, 4], [1, 5, 9]] * 2 + [[3, 1, 4]]
    for batch in found:
        for n, x in zip(batch.ids.tolist(), batch.x, strict=True):
            whole = crop_resize(clips.padded[n], 0, clips.num_frames[n], CASE.frames)
            np.testing.assert_array_equal(
                x.unflatten(1, (25, 2, 3)).permute(2, 0, 1, 3)[0], whole.transpose(1, 2, 3, 0)[:, :, 0]
            )
        assert batch.x0.shape == batch.x3.shape == (3, CASE.frames, 150)
    same = [(a.x3[0], b.x3[0]) for a, b in itertools.combinations((found[0], found[2], found[4]), 2)]
    assert not any(torch.equal(a, b) for a, b in same), "two workers, or one after another batch, draw other choices"


def test_the_loader_is_no_neighbour(monkeypatch):
    """Of 4 s of processor time in 10 s its processes have used 2 s."""
    with closing(StepRace(CASE, QUICK, encoder_calls=False)) as race, monkeypatch.context() as patched:
        clock, others, used = iter([0.0, 0.0, 10.0]), iter([100.0, 104.0]), iter([1.0, 3.0])
        patched.setattr(step.time, "perf_counter", lambda: next(clock, 10.0))
        patched.setattr(machine, "_time_of_others", lambda: next(others))
        patched.setattr(Loader, "processor_seconds", property(lambda self: next(used)))
        with race.watch() as neighbours:
            pass
    assert neighbours.busy == pytest.approx(0.2)


# --- What is reported


def test_the_summary_has_the_headlines_of_the_step(capsys, tmp_path, quiet):
    assert summary.main([*TINY, "--results", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    own, tiled = (
        {name: Measurement(**found) for name, found in printed["details"]["step"][mix]["calls"].items()}
        for mix in MIXES
    )
    assert printed["step_own_vs_reference"] == own[REFERENCE].median / own[OURS].median
    assert printed["step_tiled_vs_reference"] == tiled[REFERENCE].median / tiled[OURS].median
    assert printed["step_own_vs_stepwise"] == own[STEPWISE].median / own[OURS_STEPWISE].median
    assert printed["step_tiled_vs_stepwise"] == tiled[STEPWISE].median / tiled[OURS_STEPWISE].median
    assert printed["step_vs_encoder"] == own[OURS].median / own[ENCODER].median
    assert set(printed["spread"]) == set(KEYS) and ENCODER not in tiled
    assert {h["key"]: h["better"] for h in printed["headlines"]} == dict.fromkeys(KEYS[:4], "higher") | {
        "step_vs_encoder": "lower"
    }
    assert printed["details"]["step"]["own"]["case"]["encoder"] == "2x12"
