"""The parts of a pre-training step, as the model puts them together, against the reference."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.methods import build_method, find_method
from fastmc.methods.a2mc import A2MC, X0, X1, X2, X3, A2MCConfig, Features
from fastmc.methods.base import Batch, Setup, View
from fastmc.methods.streams import Beside
from fastmc.objective.bank import mixing_coefficients
from fastmc.reference import bank as reference_bank
from fastmc.reference import contrast as reference
from fastmc.skeleton import NTU25
from fastmc.views.clips import DenseClips
from fastmc.views.draw import AugmentConfig, draw_params
from fastmc.views.layout import to_stream
from fastmc.views.make import make_views, whole_clips
from kernels.ranges import observe

SMALL = A2MCConfig(bank_size=20)


def make(config: A2MCConfig = SMALL, method: str = "a2mc", **settings) -> A2MC:
    setup = Setup(NTU25, 2, BiGRU, BiGRUConfig(encoder="1x8", feature_dim=16), frames=16, **settings)
    return build_method(find_method(method), config, setup)


def batch_of(model: A2MC, clips, ids, step: int, **how) -> Batch:
    return Batch(model.setup, model.views, clips, ids, step, **how)


def features(model: A2MC, clips, ids, step: int, *, attacks: bool = True, beside=None) -> Features:
    return model.features(batch_of(model, clips, ids, step, beside=beside), model.query, model.key, attacks=attacks)


@pytest.fixture(scope="module")
def batch(data_root):
    ids = torch.tensor([5, 3, 7, 20, 11])
    return ResidentStore(PackedStore.open(data_root / "small")).select(ids), ids


@pytest.fixture(scope="module")
def f() -> Features:
    torch.manual_seed(0)
    return Features(*(torch.nn.functional.normalize(torch.randn(5, 16), dim=1) for _ in range(4)))


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = make(seed=3).state_dict()
    torch.manual_seed(2)
    again, other = make(seed=3).state_dict(), make(seed=4).state_dict()
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    assert not torch.equal(first["bank.entries"], other["bank.entries"])
    model = make()
    for query, key in zip(model.query.parameters(), model.key.parameters(), strict=True):
        assert torch.equal(query, key)
        assert not key.requires_grad


def test_views_are_keyed(batch):
    clips, ids = batch
    model = make(seed=9)
    params = draw_params(AugmentConfig(), clips.num_frames, 25, views=(0, 3), seed=9, step=4, sample=ids)
    views = batch_of(model, clips, ids, 4).make(X0, X3)
    assert torch.equal(views, make_views(clips, params, NTU25, size=16))
    assert views.shape == (2, 5, 16, 150) and not torch.equal(*views)
    assert torch.equal(batch_of(model, clips, ids, 4).make(X3)[0], views[1])
    assert not torch.equal(batch_of(model, clips, ids, 5).make(X0)[0], views[0])


def test_views_of_other_strength_and_stream_are_made_as_their_method_says(batch):
    """Strong by its flag, not by its number; of a recipe and a stream of its own."""
    clips, ids = batch
    recipe = AugmentConfig(shear=0.2, rotation_degrees=80)
    view = View(7, strong=True, stream="motion", recipe=recipe)
    setup = make(seed=9).setup
    got = Batch(setup, (X0, view), clips, ids, 4).make(view)
    key = {"seed": 9, "step": 4, "sample": ids}
    params = draw_params(recipe, clips.num_frames, 25, views=(7,), strong=(7,), **key)
    assert torch.equal(got, make_views(clips, params, NTU25, size=16, stream="motion"))
    basic = draw_params(recipe, clips.num_frames, 25, views=(7,), **key)
    assert not torch.equal(basic.table, params.table)
    with pytest.raises(AssertionError, match="several kinds"):
        Batch(setup, (X0, view), clips, ids, 4).make(X0, view)
    with pytest.raises(AssertionError, match="neighbours"):
        Batch(setup, (X0, view, X3), clips, ids, 4).make(X0, X3)


def test_attacked_views_come_from_the_attacked_clips(batch):
    """Of the 16 frames that the attack leaves, cropped where the sources would be, in the run's stream."""
    clips, ids = batch
    x = torch.randn(5, 16, 150, generator=torch.Generator().manual_seed(0))
    x.view(5, 16, 25, 2, 3)[clips.num_bodies == 1, :, :, 1] = 0
    model = make(seed=9, stream="bone")
    params = draw_params(AugmentConfig(), clips.num_frames, 25, views=(1, 2), seed=9, step=4, sample=ids, resized_to=16)
    want = make_views(DenseClips(x, clips.num_bodies, 2), params, NTU25, size=16, stream="bone")
    room = torch.full((4, 5, 16, 150), torch.nan)
    got = batch_of(model, clips, ids, 4, x=room).make(X1, X2, of=x)
    assert torch.equal(got, want) and torch.equal(room[2:], want) and room[:2].isnan().all()


@pytest.mark.parametrize("stream", ["joint", "motion", "bone"])
def test_the_attack_moves_whole_clips_by_at_most_eta_and_leaves_the_encoder(batch, stream):
    clips, ids = batch
    model = make(stream=stream)
    model.query(torch.randn(6, 16, 150))
    before = copy.deepcopy(model.state_dict())
    x = whole_clips(clips, NTU25, 16)
    rho = (model.attacked(batch_of(model, clips, ids, 0)) - x).flatten(1).norm(dim=1)
    assert (rho <= 0.5 * (1 + 1e-5)).all()
    assert (rho > 0.4).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.query.parameters())


@pytest.mark.parametrize("stream", ["joint", "motion"])
def test_features_are_those_of_separate_calls(batch, stream):
    """Each encoder reads its own views; the three of the query go through it together, each with its own statistics."""
    clips, ids = batch
    got = features(make(stream=stream), clips, ids, 2)
    fresh = make()
    of_joints, attacker = batch_of(fresh, clips, ids, 2), make(stream=stream)
    attacked = attacker.attacked(batch_of(attacker, clips, ids, 2))
    joints = [*of_joints.make(X0, X3), *of_joints.make(X1, X2, of=attacked)]
    x0, x3, x1, x2 = (to_stream(x, stream, NTU25) for x in joints)
    want3 = fresh.query(x3)
    for found, want in (
        (got.f0, fresh.key(x0)),
        (got.f3, want3),
        (got.f1, make().query(x1)),
        (got.f2, make().query(x2)),
    ):
        torch.testing.assert_close(found, want, atol=1e-6, rtol=0)
    assert got.f0.grad_fn is None and got.f1.grad_fn is not None
    plain = features(make(stream=stream), clips, ids, 2, attacks=False)
    assert plain.f1 is None and plain.f2 is None
    torch.testing.assert_close(plain.f3, want3)


def test_the_key_encoder_beside_the_attack(batch, monkeypatch):
    """With stand-ins for two streams: it begins after its view is there, the attack does not wait for it, the queries
    do, and the features have the same bits."""
    streams, done = ["main"], []

    class Stream:
        device = None

        def __init__(self, device: object) -> None:
            self.name = "second"

        def wait_stream(self, other: Stream) -> None:
            done.append((self.name, "waits for", other.name))

    class Main(Stream):
        def __init__(self) -> None:
            self.name = streams[-1]

    class Within:
        def __init__(self, stream: Stream) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            streams.append(self.stream.name)

        def __exit__(self, *_: object) -> None:
            streams.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", Within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Main())
    beside, plain, ours = Beside(torch.device("cuda")), make(), make()
    with observe(lambda name, begins: done.append((streams[-1], name)) if begins else None):
        got = features(ours, *batch, 2, beside=beside)
    assert done == [
        ("main", "augment"),
        ("second", "waits for", "main"),
        ("second", "key"),
        ("main", "attack"),
        ("main", "augment"),
        ("main", "waits for", "second"),
        ("main", "query"),
    ]
    want = features(plain, *batch, 2)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    for mine, theirs in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(ZeroDivisionError), beside:
        1 / 0  # noqa: B018
    assert streams == ["main"]


@pytest.mark.parametrize("filling", [False, True])
@pytest.mark.parametrize("method", ["a2mc", "b1", "b2", "b3"])
@pytest.mark.parametrize("impl", ["reference", "torch"])
def test_the_contrast_of_every_method(impl, method, filling, f):
    tau = 0.07
    model = make(SMALL, method, impl=impl)
    entries, momentum = model.bank.entries.clone(), model.bank.momentum.clone()
    m0 = reference.normalise(entries)
    mixing = mixing_coefficients(20) if method == "a2mc" and not filling else None
    one_view = method == "b1" or filling
    found = model.contrast_step_(f._replace(f1=None, f2=None) if one_view else f, mixing, filling=filling)

    if one_view:
        want = (0.0, 0.0, reference.info_nce(f.f3, f.f0, m0, tau))
    elif method == "b2":
        want = tuple(reference.info_nce(query, f.f0, m0, tau) for query in (f.f1, f.f2, f.f3))
    else:
        want = reference.mc_loss_parts(f.f0, f.f1, f.f2, f.f3, entries, mixing, temperature=tau)
    torch.testing.assert_close(torch.stack(found[1:4]), torch.tensor([float(w) for w in want]))
    torch.testing.assert_close(found.loss, torch.tensor(sum(float(w) for w in want)))
    psi = reference.similarity_distribution(f.f3, f.f0, m0, 0.03)[:, 0]
    torch.testing.assert_close(found.positive_probability, psi.mean(), rtol=1e-4, atol=0)

    if method == "a2mc" and not filling:
        setting = {"temperature": 0.03, "lr": 3.0, "momentum_factor": 0.9, "weight_decay": 1e-4}
        entries, momentum = reference_bank.bank_step(entries, momentum, f.f0, f.f1, f.f2, f.f3, mixing, **setting)
    else:
        entries[:5] = f.f0
    torch.testing.assert_close(model.bank.entries, entries, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.bank.momentum, momentum, rtol=1e-5, atol=1e-5)


def test_mixing_policies():
    cycling, drawing = make(), make(replace(SMALL, mixing="draw"))
    cycling.prepare(7)
    assert torch.equal(cycling.mixing, mixing_coefficients(20))
    assert make(SMALL, "b3").mixing is None

    def drawn(step):
        drawing.prepare(step)
        return drawing.mixing.clone()

    of_steps = [drawn(step) for step in range(30)]
    assert all((m == m[0]).all() for m in of_steps)
    assert {float(m[0]) for m in of_steps} == {float(c) for c in torch.tensor([0.4, 0.3, 0.2, 0.1])}
    assert torch.equal(drawn(4), of_steps[4]), "a function of seed and step"
    assert "coefficients" not in drawing.state_dict()


def test_mixing_may_begin_late(batch, monkeypatch):
    """Until then the loss is over the bank alone, and the bank learns."""
    clips, ids = batch
    model = make(replace(SMALL, mixing_from=3))
    seen = [model.phase(clips_seen, epoch) for clips_seen, epoch in ((19, 0), (20, 0), (99, 2), (99, 3))]
    assert seen == ["fill", "unmixed", "unmixed", "main"]
    assert make(replace(SMALL, mixing_from=3), "b3").phase(20, 0) == "main"
    said = []
    real = model.contrast_step_
    monkeypatch.setattr(
        model,
        "contrast_step_",
        lambda f, mixing, *, filling: said.append((mixing, filling)) or real(f, mixing, filling=filling),
    )
    before = model.bank.entries.clone()
    model.step(batch_of(model, clips, ids, 0), {"query": model.query, "key": model.key}, "unmixed")
    model.step(batch_of(model, clips, ids, 1), {"query": model.query, "key": model.key}, "main")
    assert said[0] == (None, False) and torch.equal(said[1][0], model.coefficients)
    assert (model.bank.entries != before).all(), "each entry of a bank that learns moves"
