"""How the clips of an epoch are shared between ranks, and what a run on several asks of its parts; in one process."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from test_step import make, settings
from torch import nn

from fastmc.build import build_model
from fastmc.config import preset_config
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.encoders import find_encoder
from fastmc.encoders.norm import ViewNorm, share_statistics
from fastmc.methods import METHODS
from fastmc.ranks import Alone, gathered, rows_of_all, shares
from train.command.parse import parse
from train.engine import loop
from train.engine.choices import Choice
from train.engine.loop import build_step
from train.engine.ranks import OF_TORCHRUN, Place, Ranks, opened
from train.engine.signals import Stopped
from train.engine.stopping import asked_to_stop
from train.engine.world import World


class One(World):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


class Script(Alone):
    """A rank that hears from the others what is written for it."""

    def __init__(self, rank: int, of_all: list[torch.Tensor]) -> None:
        self.rank, self.size, self.of_all = rank, len(of_all), of_all

    def stack(self, tensor):
        assert torch.equal(tensor, self.of_all[self.rank])
        return torch.stack(self.of_all)


def test_one_process_has_all_clips_in_their_order():
    order = torch.randperm(11)
    assert World().part(order, 4) is order


@pytest.mark.parametrize(("batches", "batch", "size"), [(3, 8, 2), (4, 7, 3), (2, 3, 3), (5, 4, 1)])
def test_shares_together_are_the_batches_of_one_process(batches, batch, size):
    """In its order, and as even as can be: ranks need not divide the batch."""
    order = torch.randperm(batches * batch)
    counts = shares(batch, size)
    assert [len(piece) for piece in torch.arange(batch).tensor_split(size)] == list(counts)
    parts = [One(rank, size).part(order, batch).split(counts[rank]) for rank in range(size)]
    assert torch.equal(torch.cat([torch.cat(step) for step in zip(*parts, strict=True)]), order)


def test_rows_are_gathered_without_what_fills_them_up():
    rows = torch.arange(10.0).view(5, 2)
    padded = [rows[:2], torch.cat([rows[2:3], torch.zeros(1, 2)]), torch.cat([rows[3:4], torch.zeros(1, 2)])]
    assert torch.equal(rows_of_all(Script(1, padded), rows[2:3], (2, 1, 1)), rows[:4])


def test_backwards_each_rank_takes_its_own_rows():
    """Of features (n, 2) and of losses (n,), in one exchange."""
    features, losses = torch.randn(3, 2), torch.randn(3)
    whole = torch.cat([features, losses[:, None]], dim=1)
    ranks = Script(1, [whole[:2], torch.cat([whole[2:], torch.zeros(1, 3)])])
    mine = features[2:].clone().requires_grad_(), losses[2:].clone().requires_grad_()
    f, loss = gathered(ranks, mine, (2, 1))
    assert torch.equal(f, features) and torch.equal(loss, losses)
    (f * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert mine[0].grad.tolist() == [[3.0, 3.0]] and mine[1].grad is None
    assert gathered(Alone(), mine, (1,)) == mine


@pytest.mark.parametrize("batch", [(4, 4), (5, 2)])
def test_norms_take_the_moments_of_all_ranks_and_pass_gradients_through_them(batch):
    """Against one rank that has all clips, in float64; the ranks' exchanges are played one rank after the other."""
    x = torch.randn(2, sum(batch), 3, 6, dtype=torch.float64)
    weights = torch.randn_like(x)

    def norm() -> ViewNorm:
        made = ViewNorm(6).double()
        nn.init.uniform_(made.weight)
        return made

    torch.manual_seed(0)
    one = norm()
    whole = x.clone().requires_grad_()
    want = one(whole.flatten(0, 1), views=2).unflatten(0, (2, -1))
    (want * weights).sum().backward()

    class Threads(Alone):
        """Ranks that are threads, and meet at each exchange."""

        size, given, meets = 2, [None, None], threading.Barrier(2)

        def __init__(self, rank: int) -> None:
            self.rank = rank

        def stack(self, tensor):
            self.given[self.rank] = tensor.clone()
            self.meets.wait()
            found = torch.stack(self.given)
            self.meets.wait()
            return found

        def sum(self, tensor):
            return self.stack(tensor).sum(0)

    found: list = [None, None]

    def work(rank: int) -> None:
        mine = norms[rank]
        share_statistics(mine, Threads(rank))
        own = x.split(batch, dim=1)[rank].clone().requires_grad_()
        y = mine(own.flatten(0, 1), views=2).unflatten(0, (2, -1))
        (y * weights.split(batch, dim=1)[rank]).sum().backward()
        found[rank] = (y.detach(), own.grad, mine)

    norms = []
    for _ in range(2):
        torch.manual_seed(0)
        norms.append(norm())
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(torch.cat([y for y, _, _ in found], dim=1), want.detach(), **close)
    torch.testing.assert_close(torch.cat([g for _, g, _ in found], dim=1), whole.grad, **close)
    for _, _, mine in found:
        torch.testing.assert_close(mine.running_mean, one.running_mean, **close)
        torch.testing.assert_close(mine.running_var, one.running_var, **close)
        assert mine.num_batches_tracked == one.num_batches_tracked == 2
    torch.testing.assert_close(sum(mine.weight.grad for _, _, mine in found), one.weight.grad, **close)


def test_a_norm_that_cannot_be_shared_is_named():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    share_statistics(net, Alone())
    with pytest.raises(ValueError, match="1 of Sequential is a BatchNorm1d, whose statistics would be"):
        share_statistics(net, One(0, 2))


COMPILED = {
    "bigru": {"before_fixed", "after"},
    "stgcn": {"after"},
    "agcn": {"after"},
    "dstanet": {"after"},
    "hcn": {"body", "after"},
    "lstm": {"after"},
    "s2s": {"after"},
}


@pytest.mark.parametrize("backbone", COMPILED)
def test_what_exchanges_statistics_is_not_compiled_and_the_log_says_so(backbone, data_root, tmp_path, monkeypatch):
    """It would be an error at the first step: each function that is compiled is one graph."""
    taken = []

    def compile_(function, **_):
        taken.append(function.__name__)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(loop, "choose_compile", lambda *_: Choice("on", "asked for"))
    words = ["--dataset", "small", "--data-root", str(data_root), "--preset", "tiny", "--method", "b3"]
    words += ["--protocol", "xsub", "--device", "cpu", "--batch-size", "8", "--frames", "16", "--backbone", backbone]
    config, store = parse(words), PackedStore.open(data_root / "small")
    for world, compiled in ((One(0, 2), COMPILED[backbone]), (World(), set(find_encoder(backbone).compiled))):
        taken.clear()
        run = loop.Pretraining(config, store, tmp_path, torch.device("cpu"), world)
        assert set(taken) == compiled | {"judge"}
        left = ", ".join(sorted(set(find_encoder(backbone).compiled) - compiled))
        assert ("other ranks" in run.computed) == bool(left)
        assert f"without the encoder's {left}, whose norms" in run.computed or not left


def test_every_rank_needs_a_clip(data_root):
    store = ResidentStore(PackedStore.open(data_root / "small"))
    config = settings()
    config = replace(config, optim=replace(config.optim, batch_size=2))
    model = build_model(config, store, store.device)
    with pytest.raises(ValueError, match="--batch-size 3 or more, or torchrun fewer"):
        build_step(config, model, world=One(0, 3))
    assert len(make(settings(), store).sample) == 8


def test_a_process_knows_its_place(monkeypatch):
    for name in (*OF_TORCHRUN, "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Place.of_environment() == Place() and Place().device("auto") == "auto"
    for name, value in zip(OF_TORCHRUN, ("5", "8", "1", "host", "1234"), strict=True):
        assert Place.of_environment() == Place(), "a variable that is there by chance starts no ranks"
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    place = Place.of_environment()
    assert place == Place(5, 8, 1, 4)
    assert place.device("cpu") == "cpu" and place.device("cuda:3") == "cuda:3"
    assert place.gpu("cuda") is None, "without one"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert place.device("auto") == place.device("cuda") == "cuda:1" and place.device("cpu") == "cpu"
    assert place.gpu("auto") == torch.device("cuda:1") and place.gpu("cuda:3") == torch.device("cuda:3")
    assert place.gpu("cpu") is None and place.gpu("cuda:4") is None and place.gpu("cudas") is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="4 ranks on 2 GPUs; give torchrun --nproc-per-node 2 or less"):
        place.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert place.device("cuda") == "cuda" and place.gpu("cuda") == torch.device("cuda:0"), "the one that is there"
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="the environment of torchrun"):
        Place.of_environment()
    with opened(Place(), "cpu", 1.0) as world:
        assert type(world) is World


H100, SLICE = "NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
GPUS = {
    "a GPU each, which each sees alone": ((1, 1), [(H100, "a"), (H100, "b")], None),
    "a GPU each, and all see all": ((2, 2), [(H100, "a"), (H100, "b")], None),
    "one GPU for both": ((1, 1), [(H100, "a"), (H100, "a")], "ranks 0, 1 share one GPU"),
    "slices of one GPU": ((1, 1), [(SLICE, "a"), (SLICE, "b")], "NCCL takes no slices of a GPU (MIG)"),
    "one without": ((1, 0), [(H100, "a"), (H100, "b")], "some ranks have no GPU"),
    "none": ((0, 0), [(H100, "a"), (H100, "b")], "on CPUs"),
}
"""By case: how many GPUs each rank sees, its own's name and UUID, and why NCCL does not carry their exchanges."""


@pytest.mark.parametrize("case", GPUS)
def test_ranks_find_out_whether_each_has_a_gpu_of_its_own(case, monkeypatch):
    """Not by how many a rank sees: launchers show each rank its own GPU alone (CUDA_VISIBLE_DEVICES)."""
    sees, cards, reason = GPUS[case]
    mine, store, found = threading.local(), dist.HashStore(), {}

    def properties(gpu: torch.device) -> SimpleNamespace:
        return SimpleNamespace(name=cards[mine.rank][0], uuid=cards[mine.rank][1])

    def backend(name: str, **how: object) -> None:
        found[mine.rank] = (name, how["device_id"])

    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees[mine.rank] > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: sees[mine.rank])
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: None)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, 0, 0)]))
    monkeypatch.setattr(dist, "init_process_group", backend)
    monkeypatch.setattr(Ranks, "agree", lambda self, *numbers: numbers)
    worlds = {}

    def work(rank: int) -> None:
        mine.rank = rank
        worlds[rank] = Ranks(Place(rank, 2, rank, 2), "auto", 60.0)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for rank, world in worlds.items():
        number = rank if sees[rank] > 1 else 0
        if reason is None:
            assert found[rank] == ("cpu:gloo,cuda:nccl", torch.device("cuda", number))
            assert "exchanges by NCCL;" in world.says and world.no_graph_reason() is None
        else:
            assert found[rank] == ("gloo", None)
            assert f"exchanges by gloo ({reason});" in world.says and world.no_graph_reason() is not None
    assert len(worlds) == 2


def test_what_torchrun_hands_on_is_no_second_signal():
    """Ctrl-C and the end of a job reach the ranks twice."""
    with asked_to_stop(echo=60.0) as asked:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == signal.SIGTERM
    with asked_to_stop(echo=0.0) as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("scale", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
@pytest.mark.parametrize(("preset", "batch"), [("paper", 256), ("tiny", 128)])
def test_the_learning_rate_scales_with_the_batch_of_all_ranks(scale, factor, preset, batch):
    config = preset_config(preset)
    scaled = replace(config, optim=replace(config.optim, batch_size=batch, lr_scale=scale))
    for epoch in (0.5, 30.0, 400.0):
        assert scaled.lr_at(epoch) == pytest.approx(factor * config.lr_at(epoch))


@pytest.mark.parametrize("scale", ["none", "linear", "sqrt"])
@pytest.mark.parametrize("preset", ["paper", "small", "tiny"])
@pytest.mark.parametrize("method", METHODS)
def test_the_batch_that_a_preset_has_for_a_method_scales_nothing(method, preset, scale):
    """Methods bring batches of their own to preset paper, and the learning rates that go with them."""
    config = preset_config(preset, "ntu60", method)
    scaled = replace(config, optim=replace(config.optim, lr_scale=scale))
    assert scaled.lr_factor == 1.0
    twice = replace(scaled, optim=replace(scaled.optim, batch_size=2 * config.optim.batch_size))
    assert twice.lr_factor == pytest.approx({"none": 1.0, "linear": 2.0, "sqrt": 2**0.5}[scale])
