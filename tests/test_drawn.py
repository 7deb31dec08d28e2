"""What networks draw by themselves, such as dropout, follows from seed, step and rank: whatever the process has done
before, and however the step is launched."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tape import TapeRecorder
from test_backbones import as_on_a_gpu  # noqa: F401
from test_step import batch, same, settings
from test_train import advance, assert_same_state, command, start, state_of

from fastmc import checkpoint
from fastmc.build import build_model
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.encoders import find_encoder
from fastmc.encoders.base import ClipShape
from fastmc.evaluation import FinetuneConfig, finetune
from fastmc.random import default_generators_kept, key_default_generators
from fastmc.state import RunState
from train import run
from train.engine.loop import build_step, graph_step
from train.engine.step import PretrainStep

CPU = torch.device("cpu")
CLASSES = 6
SMALL = ("--encoder", "4x8", "--blocks", "1", "1", "1", "1")
STGCN = ("--method", "skeletonclr", "--backbone", "stgcn", *SMALL, "--dropout", "0.5")
S2S = ("--backbone", "s2s", "--encoder", "8", "--levels", "2", "--heads", "2", "--dropout", "0.1")


@pytest.fixture(scope="module")
def store(data_root) -> ResidentStore:
    return ResidentStore(PackedStore.open(data_root / "small"), CPU)


def drawn() -> torch.Tensor:
    return torch.rand(8)


def test_the_default_generator_begins_where_its_key_says_and_other_keys_elsewhere():
    with default_generators_kept(CPU):
        found = []
        for key in ((0, 5, 0), (0, 5, 1), (0, 6, 0), (1, 5, 0), (0, 5, 0)):
            key_default_generators(CPU, *key)
            found.append(drawn())
    assert torch.equal(found[0], found[-1])
    assert all(not torch.equal(a, b) for n, a in enumerate(found[:-1]) for b in found[:n])


def test_the_default_generators_are_as_they_were_afterwards():
    before = torch.get_rng_state()
    with default_generators_kept(CPU):
        key_default_generators(CPU, 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("more", [STGCN, S2S])
def test_a_run_with_dropout_repeats_and_resumes_whatever_the_process_drew_before(more, data_root, tmp_path):
    """Two runs of one command, whose processes stand elsewhere at first, and one that went on from a checkpoint."""
    torch.manual_seed(1)
    whole = start(data_root, tmp_path / "whole", *more)
    advance(whole, 7)
    torch.manual_seed(2)
    parts = start(data_root, tmp_path / "parts", *more)
    advance(parts, 4)
    path = parts.save()
    torch.manual_seed(3)
    again = start(data_root, tmp_path / "again", *more)
    again.load(RunState.of_plain(torch.load(path / checkpoint.STATE, weights_only=True), path), path)
    drawn()
    advance(again, 3)
    advance(parts, 3)
    states = [RunState.read(each.save().parent)[1].to_plain() for each in (whole, parts, again)]
    assert_same_state(states[0], states[1])
    assert_same_state(states[0], states[2])


@pytest.mark.slow
def test_a_whole_run_leaves_the_default_generator_as_it_was_and_saves_none(data_root, tmp_path):
    before = torch.get_rng_state()
    assert run.main(command(data_root, tmp_path / "run", *STGCN, "--epochs", "1", "--probe-every", "0")) == 0
    assert torch.equal(torch.get_rng_state(), before)
    assert "random" not in state_of(tmp_path / "run")


@pytest.mark.slow
def test_a_checkpoint_of_before_which_holds_random_states_still_loads(data_root, tmp_path):
    pretraining = start(data_root, tmp_path / "run", *STGCN)
    plain = RunState.read(pretraining.save().parent)[1].to_plain()
    plain["random"] = {"cpu": torch.get_rng_state(), "device": None}
    pretraining.load(RunState.of_plain(plain, tmp_path), tmp_path)


def of_rank(rank: int, store: ResidentStore) -> PretrainStep:
    """A step of this rank, with a network that drops half."""
    config = replace(settings("b1"), backbone="s2s")
    kind = find_encoder("s2s")
    config = replace(config, encoder=kind.Config(encoder="8", levels=2, heads=2, feature_dim=16, dropout=0.5))
    step = build_step(config, build_model(config, store, CPU), "fp32")
    step.world = copy.copy(step.world)
    step.world.rank = rank
    return step


def test_each_rank_drops_something_else(store):
    """The same clips with the same weights, by the second of two ranks."""
    found = []
    for rank in (0, 1, 0):
        step = of_rank(rank, store)
        step.prepare(batch(0), 0, 0.05)
        step.advance(store.select(step.sample))
        found.append([tensor.clone() for tensor in step.state()])
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_warming_up_a_graph_does_not_change_what_its_first_launch_draws(store):
    eager, ours = of_rank(0, store), of_rank(0, store)
    graph = graph_step(ours, store, TapeRecorder())
    for i in range(3):
        for step in (eager, ours):
            step.prepare(batch(i), i, 0.05)
            if step is eager:
                step.advance(store.select(step.sample))
            else:
                graph()
        same(eager, ours)
    assert graph.captures == 1


@pytest.mark.slow
def test_fine_tuning_with_dropout_repeats_and_leaves_the_default_generator_alone(store):
    shape = ClipShape(store.skeleton.num_joints, store.max_bodies, 8, store.skeleton.parents, None)
    kind = find_encoder("s2s")
    encoder = kind(kind.Config(encoder="8", levels=2, heads=2, feature_dim=16, dropout=0.5), shape)
    train = torch.arange(24)
    before, found = torch.get_rng_state(), []
    for _ in range(2):
        tuned, classifier = finetune(
            encoder, store, train, CLASSES, "joint", FinetuneConfig(epochs=2, batch_size=8), frames=8
        )
        found.append([classifier.weight, *tuned.parameters()])
        assert torch.equal(torch.get_rng_state(), before)
        drawn()
        before = torch.get_rng_state()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
