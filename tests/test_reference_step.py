"""The plain reference of a whole step, and the trainer's own step held against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.step import live_state, plain_choices, plain_clips, plain_encoders, plain_settings, view_params
from fastmc.build import build_model
from fastmc.config import Config, OptimConfig
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.methods.a2mc import A2MC, A2MCConfig
from fastmc.reference import step as reference
from fastmc.views.draw import AugmentConfig
from train.engine.loop import build_step
from train.engine.step import PretrainStep

pytestmark = pytest.mark.slow
BATCH, BANK, FRAMES = 6, 21, 12
STEPS = 10
"""Four of them fill the bank."""
CONFIG = Config(
    frames=FRAMES,
    encoder=BiGRUConfig("2x12", feature_dim=16),
    augment=AugmentConfig(),
    settings=A2MCConfig(bank_size=BANK),
    optim=OptimConfig(batch_size=BATCH, lr=0.1),
)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def store(data_root) -> ResidentStore:
    return ResidentStore(PackedStore.open(data_root / "small"))


def batches(store: ResidentStore) -> list[Tensor]:
    return list(torch.arange(len(store)).split(BATCH))


def trained(config: Config, store: ResidentStore, spoil: Callable[[PretrainStep], None] = lambda step: None) -> State:
    """All that the trainer's steps have come to, and the metrics of each."""
    model = build_model(config, store, store.device)
    step = build_step(config, model)
    spoil(step)
    found: State = {}
    for number in range(STEPS):
        ids = batches(store)[number % len(batches(store))]
        step.prepare(ids, number, config.optim.lr)
        step.advance(store.select(ids), phase="fill" if number * BATCH < BANK else "main")
        found |= metrics_of(number, dict(zip([metric.name for metric in A2MC.metrics], step.metrics, strict=True)))
    bank = model.bank
    state = live_state(model.query, model.key, bank.entries, bank.momentum, step.update.optimizer)
    return found | {name: value.double() for name, value in state.items()}


def plainly(config: Config, store: ResidentStore, dtype: torch.dtype, shaken_by: int = 0) -> State:
    """The same by the reference."""
    model = build_model(config, store, store.device)
    query, key = plain_encoders(config, model.setup.shape.width, store.device)
    query.load_state_dict(model.query.state_dict())
    key.load_state_dict(model.key.state_dict())
    fc, bank, momentum = model.attack_head.to(dtype), model.bank.entries.to(dtype), model.bank.momentum.to(dtype)
    query, key = query.to(dtype), key.to(dtype)
    optimizer = torch.optim.SGD(
        query.parameters(), lr=config.optim.lr, momentum=0.9, weight_decay=config.optim.weight_decay
    )
    sizes = {"size": FRAMES, "mirror": store.skeleton.mirror}
    settings = plain_settings(config)
    found: State = {}
    for number in range(STEPS):
        ids = batches(store)[number % len(batches(store))]
        packed = store.select(ids)
        clips = [shaken(clip.to(dtype), shaken_by) for clip in plain_clips(packed)]
        params = view_params(config, packed, store.skeleton.num_joints, ids, number)
        choices = [
            [{name: value.to(dtype) for name, value in one.items()} for one in view]
            for view in plain_choices(params, FRAMES, packed.max_bodies)
        ]
        if number * BATCH < BANK:
            names = ("temperature", "bank_temperature", "ema")
            some = {name: settings[name] for name in names}
            metrics = reference.filling_step(
                query, key, optimizer, bank, clips, choices, number * BATCH, **sizes, **some
            )
        else:
            learning = (query, key, fc, optimizer, bank, momentum, clips, choices, model.coefficients.to(dtype))
            metrics = reference.pretrain_step(*learning, **sizes, **settings)
        found |= metrics_of(number, metrics)
    state = live_state(query, key, bank, momentum, optimizer)
    return found | {name: value.double() for name, value in state.items()}


def shaken(clip: Tensor, seed: int) -> Tensor:
    """The clip, with numbers of it moved by a rounding of float32; as it is for seed 0."""
    moves = torch.randint(-1, 2, clip.shape, generator=torch.Generator().manual_seed(seed)) if seed else 0
    return clip * (1 + torch.finfo(torch.float32).eps * moves)


def metrics_of(number: int, metrics: reference.Metrics) -> State:
    return {f"{name} of step {number}": value.detach().double().clone() for name, value in metrics.items()}


def errors(found: State, truth: State) -> dict[str, float]:
    """The largest error of each metric, of each encoder, and so on, relative to the largest element of a tensor."""
    largest: dict[str, float] = {}
    assert found.keys() == truth.keys()
    for name, exact in truth.items():
        kind = name.split(" of ")[0].split(".")[0]
        error = float((found[name] - exact).abs().max() / exact.abs().max().clamp_min(1e-12))
        largest[kind] = max(largest.get(kind, 0.0), error)
    return largest


@pytest.fixture(scope="module", params=["own", "tiled"])
def case(request, store) -> tuple[Config, State, dict[str, float]]:
    """A config, the truth in float64, and the budget by kind: twice what the reference itself loses in float32, where
    it may be given clips of other roundings."""
    config = replace(CONFIG, settings=replace(CONFIG.settings, mix=request.param))
    truth = plainly(config, store, torch.float64)
    lost = [errors(plainly(config, store, torch.float32, shaken_by=seed), truth) for seed in range(3)]
    return config, truth, {kind: 2 * max(one[kind] for one in lost) for kind in lost[0]}


def test_steps_of_the_trainer_are_those_of_the_reference(case, store):
    """Every metric of every step, and the state after them."""
    config, truth, budget = case
    assert max(budget.values()) < 1e-3
    found = errors(trained(config, store), truth)
    assert all(found[kind] <= budget[kind] for kind in budget), (found, budget)


def no_ema(step: PretrainStep) -> None:
    step.followers = []


def no_statistics(step: PretrainStep) -> None:
    for norm in (step.model.query.norm, step.model.key.norm):
        norm.momentum = 0.0


MUTANTS = {
    "key encoder left behind": ({}, no_ema, "key"),
    "running statistics left behind": ({}, no_statistics, "query"),
    "temperature": ({"temperature": 0.0701}, None, "loss"),
    "temperature of the bank": ({"bank_temperature": 0.0301}, None, "bank"),
    "rate of the bank": ({"bank_lr": 3.01}, None, "bank"),
    "mixing": ({"mixing": "fixed:0.3"}, None, "l1"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_another_step_exceeds_the_budget(name, case, store):
    changes, spoil, kind = MUTANTS[name]
    config, truth, budget = case
    config = replace(config, settings=replace(config.settings, **changes))
    found = errors(trained(config, store, spoil or (lambda step: None)), truth)
    assert found[kind] > budget[kind], (found[kind], budget[kind])


def test_the_reference_s_encoder_is_the_model_s():
    """Weights of the same names, the same representation and features, with batch statistics and with running ones."""
    torch.manual_seed(0)
    ours = BiGRU(BiGRUConfig("2x12", feature_dim=16), ClipShape(5, 2)).double()
    plain = reference.Encoder(30, 12, 2, 16).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(5, 9, 30, dtype=torch.float64)
    torch.testing.assert_close(plain(x), ours(x), rtol=0, atol=1e-13)
    with ours.fixed():
        plain.norm.eval()
        torch.testing.assert_close(plain.represent(x), ours.represent(x), rtol=0, atol=1e-13)
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[name], value, rtol=0, atol=1e-14)


def test_clips_in_the_encoder_s_layout_and_back():
    clip = torch.randn(7, 2, 25, 3)
    row = reference.layout(clip)
    assert row.shape == (7, 150)
    assert torch.equal(row[3, 3 * (2 * 11 + 1) :][:3], clip[3, 1, 11])  # joint 11 of the second body
    assert torch.equal(reference.as_clips(torch.stack([row, 2 * row]), 2)[1], 2 * clip)


def test_features_go_to_the_bank_s_next_rows(store):
    """From the last row on to the first, and nothing else moves."""
    model = build_model(CONFIG, store, store.device)
    query, key = plain_encoders(CONFIG, model.setup.shape.width, store.device)
    ids = batches(store)[0]
    packed = store.select(ids)
    params = view_params(CONFIG, packed, store.skeleton.num_joints, ids, 0)
    choices = plain_choices(params, FRAMES, packed.max_bodies)
    bank, optimizer = model.bank.entries.clone(), torch.optim.SGD(query.parameters(), lr=0.1)
    sizes = {"size": FRAMES, "mirror": store.skeleton.mirror}
    f0 = key(reference.make_view(plain_clips(packed), choices[0], **sizes)).detach()
    before = bank.clone()
    reference.filling_step(query, key, optimizer, bank, plain_clips(packed), choices, BANK - 2, **sizes)
    torch.testing.assert_close(bank[[BANK - 2, BANK - 1, 0, 1, 2, 3]], f0)
    assert torch.equal(bank[4:-2], before[4:-2])
