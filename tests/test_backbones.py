"""What the engine asks of an encoder: views on their own, the attack, key encoder, faults, half precision, graphs,
compiling, resume, embedding, export. Of every encoder but BiGRU, of which test_step.py and test_encoder.py ask it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gpu_less import needs_compiler
from tape import SHAPED_BY_DATA, Tape, TapeRecorder
from test_step import OnOneDevice, advance, batch, same
from test_step import store as store  # a fixture
from test_train import assert_same_state, command, losses, state_of

import fastmc
from bench.aot import compile_launches
from bench.ledger_data import ntu_like_clips
from bench.ledger_step import as_on_a_gpu as taken_for_a_gpu
from fastmc import arguments
from fastmc.build import build_model
from fastmc.config import Config, OptimConfig, config_of, preset_config, to_plain
from fastmc.encoders import ENCODERS, find_encoder, rows
from fastmc.encoders.base import ClipShape, Encoder
from fastmc.encoders.norm import ViewNorm
from fastmc.methods import find_method
from fastmc.methods.a2mc import A2MCConfig
from fastmc.methods.hiclr import JointMask
from fastmc.objective import chunked
from fastmc.skeleton import NTU25, SKELETONS
from fastmc.views import clips as clip_module
from fastmc.views import draw, torch_views
from train import embed, evaluate, export, run
from train.command.parse import parse
from train.engine.graph import WARM_UP
from train.engine.loop import Pretraining, build_step, graph_step
from train.engine.step import FaultWatch, NonFiniteError, PretrainStep

pytestmark = pytest.mark.slow

SMALL: dict[str, dict[str, Any]] = {
    "agcn": {"encoder": "4", "blocks": (1, 1, 1)},
    "dstanet": {"encoder": "8", "blocks": (1, 1)},
    "hcn": {"encoder": "4"},
    "lstm": {"encoder": "1x8", "bidirectional": True, "input_norm": True},
    "s2s": {"encoder": "8", "levels": 2, "heads": 2},
    "stgcn": {"encoder": "4x8", "blocks": (1, 1, 1, 1)},
}
"""Settings of a small one of each."""
FRAMES = {"hcn": 16}
"""That a small one needs, where not any number will do."""
BATCH, CPU = 8, torch.device("cpu")
each = pytest.mark.parametrize("kind", SMALL)


def frames(kind: str) -> int:
    return FRAMES.get(kind, 8)


def new(kind: str, shape: ClipShape | None = None, **settings: Any) -> Encoder:
    torch.manual_seed(0)
    cls = find_encoder(kind)
    return cls(
        cls.Config(feature_dim=16, **SMALL[kind], **settings), shape or ClipShape(25, 2, frames(kind), NTU25.parents)
    )


def clips(kind: str, count: int = 6) -> torch.Tensor:
    """(n, T, V * M * 3) of which three have one body."""
    x = torch.randn(count, frames(kind), 25, 2, 3)
    x[1:4, :, :, 1] = 0
    return x.flatten(2)


def settings(kind: str, optimizer: str = "sgd") -> Config:
    base = preset_config("tiny", backbone=kind)
    return replace(
        base,
        frames=frames(kind),
        encoder=find_encoder(kind).Config(feature_dim=16, **SMALL[kind]),
        settings=A2MCConfig(bank_size=16),
        optim=OptimConfig(optimizer=optimizer, batch_size=BATCH, lr=0.01),
        step=replace(base.step, impl="torch", view_impl="torch"),
    )


def make(kind: str, store: Any, amp: str = "fp32", optimizer: str = "sgd") -> PretrainStep:
    config = settings(kind, optimizer)
    return build_step(config, build_model(config, store, store.device), amp)


def test_every_encoder_is_in_these_tests():
    assert {"bigru", *SMALL} == ENCODERS.keys()


@each
def test_settings_go_through_config_json(kind):
    for preset in ("paper", "small", "tiny"):
        config = preset_config(preset, backbone=kind)
        assert config_of(to_plain(config)) == config
        assert config.encoder.says


@pytest.mark.parametrize(
    ("said", "backbone", "size"),
    [
        (("--encoder", "stgcn:8x32"), "stgcn", "8x32"),
        (("--encoder=stgcn:8x32",), "stgcn", "8x32"),
        (("--encoder", "lstm"), "lstm", "1x128"),
        (("--backbone", "lstm", "--encoder", "2x16"), "lstm", "2x16"),
        (("--encoder", "2x16"), "bigru", "2x16"),
    ],
)
def test_kind_and_size_are_said_at_once_or_apart(said, backbone, size):
    config = parse(["--preset", "tiny", *said])
    assert (config.backbone, config.encoder.encoder) == (backbone, size)


@each
@pytest.mark.parametrize("name", SKELETONS)
def test_it_is_built_for_every_layout(kind, name):
    skeleton = SKELETONS[name]
    shape = ClipShape(skeleton.num_joints, 1, frames(kind), skeleton.parents)
    f = new(kind, shape).eval()(torch.randn(2, shape.frames, shape.width))
    torch.testing.assert_close(f.norm(dim=1), torch.ones(2))


@each
def test_views_are_normalised_each_on_its_own(kind):
    encoder = new(kind).double()
    apart = copy.deepcopy(encoder)
    x = clips(kind).double() * torch.tensor([1.0, 3.0, 0.3]).repeat_interleave(2)[:, None, None]
    together = encoder(x, views=3)
    torch.testing.assert_close(together, torch.cat([apart(view) for view in x.chunk(3)]), atol=1e-9, rtol=0)
    for (name, ours), theirs in zip(encoder.named_buffers(), apart.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9, msg=name)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """No value decides what to do next."""
    for module in (arguments, chunked, clip_module, draw, rows, torch_views):
        monkeypatch.setattr(module, "may_look", lambda tensor: False)


@pytest.fixture
def no_onednn():
    """As on a GPU: operators of which it can be seen what they compute, and which a tape can run again."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


@each
@pytest.mark.usefixtures("no_onednn")
def test_within_fixed_clips_are_alone_and_nothing_but_the_input_gets_a_gradient(kind):
    encoder, x = new(kind), clips(kind)
    encoder(x)
    want = copy.deepcopy(encoder).eval().represent(x)
    encoder.train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    with encoder.fixed():
        torch.testing.assert_close(encoder.represent(x), want, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder.represent(x[:1]), want[:1], atol=1e-5, rtol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    work = {}
    for name, scope in (("attack", encoder.fixed()), ("training", torch.enable_grad())):
        variable = x.clone().requires_grad_()
        with scope, Tape() as tape:
            (encoder.represent(variable) ** 2).sum().backward()
        work[name] = sum(out.numel() for out in products(tape))
        assert variable.grad.any()
        if name == "attack":
            assert all(p.grad is None for p in encoder.parameters())
            assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    assert any(p.grad is not None for p in encoder.parameters()), "after it they ask for theirs again"
    assert work["attack"] < work["training"], "no product for a gradient of weights"


def products(tape: Tape) -> list[torch.Tensor]:
    """What matrix products and convolutions gave."""
    kinds = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
    found = []
    for func, _, _, result in tape.calls:
        if func.overloadpacket.__name__ in kinds:
            found += [r for r in (result if isinstance(result, (tuple, list)) else (result,)) if r is not None]
    return found


@pytest.mark.parametrize("kind", ["agcn", "dstanet", "hcn", "stgcn"])
@pytest.mark.parametrize("training", [False, True])
def test_one_row_for_all_absent_bodies_changes_nothing(kind, training, monkeypatch):
    """Values, gradients of all weights and running statistics, in float64, of three views of which one has no absent
    body, one has a second body nowhere; with fewer rows than bodies."""
    shared, plain = (new(kind).double().train(training) for _ in range(2))
    x = torch.randn(12, frames(kind), 25, 2, 3, dtype=torch.float64)
    x[torch.tensor([1, 2, 4, 5, 6, 7]), :, :, 1] = 0
    x, weights = x.flatten(2), torch.randn(12, 16, dtype=torch.float64)
    seen = []
    take = rows.Rows.take
    monkeypatch.setattr(rows.Rows, "take", lambda self, x: seen.append((len(x), len(take(self, x)))) or take(self, x))
    outputs = [shared(x, views=3)]
    monkeypatch.setattr(rows, "may_look", lambda tensor: False)
    outputs.append(plain(x, views=3))
    assert seen == [(24, 18 + 2), (24, 24)], "six are absent, in two views"
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-11)
    for output in outputs:
        (output * weights).sum().backward()
    largest = max(float(p.grad.abs().max()) for p in plain.parameters())
    for (name, p), q in zip(shared.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-11 * largest, msg=name)
    for (name, value), other in zip(shared.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", ["agcn", "dstanet", "hcn", "stgcn"])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_one_row_for_all_masked_absent_bodies_changes_nothing(value, kind, monkeypatch):
    """Nor the gradient of the value that all of a view's bodies are masked by, HiCLR's, which is in absent ones too."""
    shared, plain = (new(kind).double().train() for _ in range(2))
    shared.sums_absent = True
    x = torch.randn(12, frames(kind), 25, 2, 3, dtype=torch.float64)
    x[torch.tensor([1, 2, 4, 5, 6, 7, 9, 10, 11]), :, :, 1] = 0
    x, weights = x.flatten(2), torch.randn(12, 16, dtype=torch.float64)
    masked = torch.rand(frames(kind), 25) < 0.2
    seen, found = [], []
    take = rows.Rows.take
    monkeypatch.setattr(rows.Rows, "take", lambda self, x: seen.append((len(x), len(take(self, x)))) or take(self, x))
    for look, encoder in ((True, shared), (False, plain)):
        monkeypatch.setattr(rows, "may_look", lambda tensor, look=look: look)
        mask = JointMask().double()
        mask.value.data.fill_(value)
        output = encoder(torch.cat((x[:8], mask(x[8:], masked))), views=3)
        (output * weights).sum().backward()
        gradients = {name: p.grad for name, p in encoder.named_parameters()} | {"mask": mask.value.grad}
        found.append((output, gradients, dict(encoder.named_buffers())))
    assert seen == [(24, 15 + 3), (24, 24)], "nine are absent, in three views"
    (output, gradients, buffers), (want, of_plain, other) = found
    torch.testing.assert_close(output, want, rtol=1e-9, atol=1e-11)
    largest = max(float(p.abs().max()) for p in of_plain.values())
    for name, gradient in of_plain.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-8, atol=1e-11 * largest, msg=name)
    for name, buffer in other.items():
        torch.testing.assert_close(buffers[name], buffer, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", ["agcn", "dstanet", "hcn", "stgcn"])
def test_the_attack_s_gradient_of_present_bodies_is_the_same_with_shared_rows(kind, monkeypatch):
    encoder, x = new(kind).double(), clips(kind).double()
    found = []
    for look in (True, False):
        monkeypatch.setattr(rows, "may_look", lambda tensor, look=look: look)
        variable = x.clone().requires_grad_()
        with encoder.fixed():
            (encoder.represent(variable) ** 2).sum().backward()
        found.append(variable.grad.masked_fill(x == 0, 0))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


@each
def test_a_step_moves_weights_and_statistics_and_the_key_encoder_follows(kind, store):
    step = make(kind, store)
    before = copy.deepcopy(step.model)
    advance(step, store, range(1), phase="fill")
    advance(step, store, range(1, 2))
    model, alpha = step.model, step.model.followers()["key"][1].alpha
    moved = [n for n, p in model.query.named_parameters() if not torch.equal(p, before.query.state_dict()[n])]
    assert len(moved) == len(list(model.query.parameters()))
    for name, key in model.key.named_parameters():
        assert not torch.equal(key, model.query.state_dict()[name])
        assert (key - before.key.state_dict()[name]).norm() <= (1 - alpha) * 4 * (
            model.query.state_dict()[name] - before.query.state_dict()[name]
        ).norm() + 1e-6, name
    for encoder, old in ((model.query, before.query), (model.key, before.key)):
        for name, value in encoder.named_buffers():
            if "running" in name:
                assert not torch.equal(value, dict(old.named_buffers())[name]), name


@each
@pytest.mark.parametrize("stream", ["motion", "bone"])
@pytest.mark.parametrize("method", ["b1", "b2", "b3", "a2mc"])
def test_every_method_and_stream_trains_it(kind, method, stream, store):
    """Every weight moves, by another step than that of joints."""
    base, losses = settings(kind), []
    for of in ("joint", stream):
        chosen = replace(base, method=method, stream=of, settings=find_method(method).Config(bank_size=16))
        step = build_step(chosen, build_model(chosen, store, store.device), "fp32")
        before = copy.deepcopy(step.model.query.state_dict())
        advance(step, store, range(1), phase="fill")
        losses.append(advance(step, store, range(1, 3)))
        step.check()
        still = [n for n, p in step.model.query.named_parameters() if torch.equal(p, before[n])]
        assert not still
    assert losses[0] != losses[1]


@each
@pytest.mark.parametrize("amp", ["fp32", "bf16"])
def test_a_step_that_is_not_finite_changes_nothing(kind, amp, store):
    step = make(kind, store, amp)
    advance(step, store, range(2), phase="fill")
    watch, frames = FaultWatch(step), store.frames
    kept = [t.clone() for t in (*step.model.state_dict().values(), *step.update.tensors())]
    store.frames = torch.full_like(frames, torch.nan)
    try:
        advance(step, store, range(2, 3))
    finally:
        store.frames = frames
    assert watch.sees_a_fault()
    for before, now in zip(kept, (*step.model.state_dict().values(), *step.update.tensors()), strict=True):
        assert torch.equal(before, now)
    with pytest.raises(NonFiniteError, match="step 2: loss = nan"):
        step.check()


@each
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_keeps_statistics_and_norms_in_float32(kind, amp, store):
    low, full = make(kind, store, amp), make(kind, store)
    if low.scaling is not None:
        low.scaling.scale.fill_(1)  # so that no step overflows, and is called off
    found, want = (advance(step, store, range(3), phase="fill") for step in (low, full))
    torch.testing.assert_close(torch.tensor(found)[:, 0], torch.tensor(want)[:, 0], rtol=0.03, atol=0)
    copied = low.copies["query"].network
    assert any(p.dtype != torch.float32 for p in copied.parameters())
    for name, part in low.model.query.named_modules():
        if isinstance(part, ViewNorm):
            assert dict(copied.named_modules())[name] is part and part.weight.dtype == torch.float32
    for (name, mine), theirs in zip(low.model.query.named_buffers(), full.model.query.buffers(), strict=True):
        if "running" in name:
            torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.02 * float(theirs.abs().max()), msg=name)


@each
@pytest.mark.usefixtures("as_on_a_gpu", "no_onednn")
@pytest.mark.parametrize("amp", ["fp32", "fp16"])
def test_a_replayed_step_is_the_step(kind, amp, store):
    """Recorded once, with other clips, counter and learning rate at every replay; and every step gives the device the
    same work, without a read or a shape from data."""
    eager, ours = make(kind, store, amp), make(kind, store, amp)
    recorder = TapeRecorder()
    graph = graph_step(ours, store, recorder)
    for step in (eager, ours):
        advance(step, store, range(2), phase="fill")
    sequences = []
    for i in range(2, 6):
        with Tape() as tape:
            want = advance(eager, store, range(i, i + 1))
        sequences.append([call for call in tape.sequence() if "_local_scalar_dense" not in call[0]])
        ours.prepare(batch(i), i, 0.05 / (1 + i))
        graph()
        assert [ours.metrics.tolist()] == want, i
        same(eager, ours)
    assert (graph.captures, recorder.warm_ups) == (1, WARM_UP)
    assert all(sequence == sequences[0] for sequence in sequences)
    assert not set(SHAPED_BY_DATA) & set(tape.names())


@needs_compiler
@pytest.mark.compiler
@each
def test_on_a_device_without_memory_nothing_is_read_and_nothing_uploaded(kind):
    config = replace(settings(kind), step=replace(settings(kind).step, impl="triton", view_impl="triton"))
    with taken_for_a_gpu(), compile_launches("cuda:90"):
        with torch.device("meta"):
            layout = type("Layout", (), {"skeleton": NTU25, "max_bodies": 2, "dtype": torch.float32})()
            model = build_model(config, layout, torch.device("meta"))
        step, given = PretrainStep(model, config.optim, BATCH, amp="fp16"), ntu_like_clips(BATCH, 2, "meta")
        sample = step.sample.clone()
        with OnOneDevice() as mode:
            for phase in ("fill", "main", "main"):
                step.prepare(sample, 3, 0.1)
                step.advance(given, phase=phase)
    assert mode.seen > 300 and not mode.strangers


@each
def test_compiled_steps_have_no_graph_break_and_no_recompile(kind, store):
    plain, compiled = make(kind, store), make(kind, store)  # AdamW's first steps are signs, and rounding decides some
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled.compile_around("aot_eager")
    for step in (plain, compiled):
        advance(step, store, range(2), phase="fill")
        advance(step, store, range(2, 3))
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = advance(compiled, store, range(3, 6))
    assert not torch._dynamo.utils.counters["graph_break"]
    want = advance(plain, store, range(3, 6))
    torch.testing.assert_close(torch.tensor(found)[:, 0], torch.tensor(want)[:, 0], rtol=1e-3, atol=1e-5)


@each
def test_the_state_of_a_step_is_complete(kind, store):
    first, second = make(kind, store, optimizer="adamw"), make(kind, store, optimizer="adamw")
    advance(first, store, range(2), phase="fill")
    advance(first, store, range(2, 4))
    for mine, theirs in zip(second.state(), first.state(), strict=True):
        mine.copy_(theirs)
    assert advance(first, store, range(4, 6)) == advance(second, store, range(4, 6))


def words(kind: str, data_root: Any, out: Any) -> list[str]:
    """A small run's command."""
    given = command(data_root, out, "--backbone", kind, "--frames", "16")
    for flag in ("--encoder", "--reading", "--feature-dim"):
        while flag in given:
            at = given.index(flag)
            del given[at : at + 2]
    for name, value in {"feature_dim": 16, **SMALL[kind]}.items():
        words = () if value is True else value if isinstance(value, tuple) else (value,)
        given += [f"--{name.replace('_', '-')}", *map(str, words)]
    return given


@pytest.fixture(scope="module", params=SMALL)
def trained(request, data_root, tmp_path_factory):
    """(kind, run folder) of a small run by the command."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    assert run.main(words(request.param, data_root, out)) == 0
    return request.param, out


def test_a_run_resumes_bit_for_bit(trained, data_root, tmp_path, monkeypatch):
    kind, whole = trained
    out, save = tmp_path / "run", Pretraining.save

    class Died(BaseException):
        """Nothing handles it."""

    def then_die(self: Pretraining) -> Any:
        path = save(self)
        if self.step >= 7:
            raise Died
        return path

    given = [*words(kind, data_root, out), "--checkpoint-minutes", "0"]
    monkeypatch.setattr(Pretraining, "save", then_die)
    with pytest.raises(Died):
        run.main(given)
    monkeypatch.setattr(Pretraining, "save", save)
    assert run.main(given) == 0
    ours, theirs = (state_of(folder) for folder in (out, whole))
    assert_same_state(ours, theirs)
    assert losses(out) == losses(whole)


def test_a_run_is_evaluated_and_embedded_with_any_number_of_bodies(trained, data_root, tmp_path):
    _, out = trained
    assert np.isfinite(losses(out)).all()
    assert evaluate.main(["knn", "--run", str(out), "--device", "cpu"]) == 0
    features = tmp_path / "features.npz"
    given = ["--run", str(out), "--input", str(data_root / "small"), "--out", str(features), "--device", "cpu"]
    assert embed.main(given) == 0
    assert np.isfinite(np.load(features)["features"]).all()
    embedder = fastmc.load(out, device="cpu")
    rng = np.random.default_rng(0)
    alone = rng.normal(size=(30, 25, 3)).astype(np.float32)
    pair = np.stack([alone, np.zeros_like(alone)], axis=1)
    one, two = (embedder.encode([clip], check="off") for clip in (alone, pair))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("to", ["onnx", "torchscript", "safetensors"])
def test_a_run_is_exported_and_the_file_checked_against_it(trained, to, tmp_path):
    """`train.export` compares the file's features at three sizes of batches and clips with the encoder's."""
    if to == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    suffix = {"onnx": ".onnx", "torchscript": ".ts", "safetensors": ".safetensors"}[to]
    assert export.main(["--run", str(trained[1]), "--to", to, "--out", str(tmp_path / f"encoder{suffix}")]) == 0
