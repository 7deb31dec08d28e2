"""The pre-training step: it asks nothing of the host, repeats as a graph, and changes nothing where it must not."""

from __future__ import annotations

import copy
import itertools
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gpu_less import INTERPRETED, needs_compiler
from tape import Tape, TapeRecorder
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.aot import compile_launches
from bench.ledger_data import ntu_like_clips
from bench.ledger_step import TrainingStep
from bench.ledger_step import as_on_a_gpu as taken_for_a_gpu
from bench.providers import Case
from fastmc import arguments
from fastmc.build import build_model
from fastmc.config import Config, OptimConfig, StepConfig, preset_config
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.encoders import recurrent
from fastmc.encoders.bigru import BiGRUConfig
from fastmc.encoders.recurrent import rounded_states
from fastmc.evaluation import represent
from fastmc.methods.a2mc import A2MCConfig
from fastmc.objective import chunked
from fastmc.state import Position, RunState
from fastmc.views import clips, draw, torch_views
from fastmc.views.make import whole_clips
from train.engine.graph import WARM_UP, CudaRecorder, GraphedStep
from train.engine.loop import build_step, graph_step
from train.engine.record import log
from train.engine.step import FaultWatch, GradientScale, NonFiniteError, PretrainStep

BATCH = 8
CPU = torch.device("cpu")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """No value decides what to do next."""
    for module in (arguments, chunked, clips, draw, torch_views):
        monkeypatch.setattr(module, "may_look", lambda tensor: False)


@pytest.fixture(scope="module")
def store(data_root) -> ResidentStore:
    return ResidentStore(PackedStore.open(data_root / "small"))


def settings(method: str = "a2mc", optimizer: str = "sgd", encoder: str = "2x8", **others) -> Config:
    """Of a small run whose arithmetic is PyTorch's operators alone."""
    base = preset_config("tiny")
    impl = others.pop("impl", "torch")
    return replace(
        base,
        frames=8,
        method=method,
        encoder=BiGRUConfig(encoder=encoder, feature_dim=16),
        settings=A2MCConfig(**{"bank_size": 16, **others}),
        optim=OptimConfig(optimizer=optimizer, batch_size=BATCH, lr=0.05),
        step=replace(base.step, impl=impl, view_impl="torch"),
    )


def make(config: Config, store: ResidentStore, amp: str = "fp32") -> PretrainStep:
    return build_step(config, build_model(config, store, store.device), amp)


def run_state(of_step: dict) -> RunState:
    """A checkpoint of a step's state, and of nothing else."""
    return RunState({}, {}, position=Position(), dataset_checksum=None, data=None, **of_step)


def batch(i: int, size: int = BATCH) -> torch.Tensor:
    return torch.randperm(48, generator=torch.Generator().manual_seed(i))[:size]


def advance(step: PretrainStep, store: ResidentStore, steps: range, *, phase: str = "main") -> list[list[float]]:
    """Metrics of each step; the learning rate changes from step to step."""
    found = []
    for i in steps:
        step.prepare(batch(i), i, 0.05 / (1 + i))
        step.advance(store.select(step.sample), phase=phase)
        found.append(step.metrics.tolist())
    return found


def same(a: PretrainStep, b: PretrainStep) -> None:
    for ours, theirs in zip(a.state(), b.state(), strict=True):
        assert torch.equal(ours, theirs)


# One graph


@pytest.mark.parametrize(
    ("method", "optimizer", "mixing", "amp"),
    [
        ("b1", "sgd", "cycle", "fp32"),
        ("b3", "adamw", "cycle", "fp32"),
        ("a2mc", "sgd", "draw", "bf16"),
        ("a2mc", "adamw", "cycle", "fp16"),
    ],
)
@pytest.mark.slow
@pytest.mark.usefixtures("as_on_a_gpu")
def test_a_replayed_step_is_the_step(method, optimizer, mixing, amp, store):
    """Captured once, with other clips, counter, learning rate and mixing at every replay. A number that the host baked
    into the capture would show."""
    config = settings(method, optimizer, mixing=mixing)
    eager, ours = make(config, store, amp), make(config, store, amp)
    recorder = TapeRecorder()
    graph = graph_step(ours, store, recorder)
    for step in (eager, ours):
        advance(step, store, range(2), phase="fill")
    for i in range(2, 8):
        want = advance(eager, store, range(i, i + 1))
        ours.prepare(batch(i), i, 0.05 / (1 + i))
        graph()
        assert [ours.metrics.tolist()] == want, i
        same(eager, ours)
    assert (graph.captures, recorder.warm_ups) == (1, WARM_UP)


def test_warming_up_leaves_no_trace(store):
    """All that a step changes is put back, and nothing else is changed: a second step from a copy goes the same way."""
    step = make(settings(optimizer="adamw"), store)
    advance(step, store, range(3), phase="fill")
    step.prepare(batch(3), 3, 0.05)
    before = [tensor.clone() for tensor in step.state()]

    class Nothing(TapeRecorder):
        def record(self, body):
            class Graph:
                def replay(self) -> None:
                    """Not this time."""

            return Graph()

    recorder = Nothing()
    graph_step(step, store, recorder)()
    assert recorder.warm_ups == WARM_UP
    assert all(torch.equal(a, b) for a, b in zip(before, step.state(), strict=True))


def test_the_state_of_a_step_is_complete(store):
    """Two runs go on alike once the one's state is copied to the other: nothing that a step reads is left out."""
    first, second = make(settings(optimizer="adamw"), store, "fp16"), make(settings(optimizer="adamw"), store, "fp16")
    advance(first, store, range(4), phase="fill")
    advance(first, store, range(4, 9))
    for mine, theirs in zip(second.state(), first.state(), strict=True):
        mine.copy_(theirs)
    assert advance(first, store, range(9, 12)) == advance(second, store, range(9, 12))
    same(first, second)


def test_what_cannot_be_captured_runs_launch_by_launch_and_says_why(store, monkeypatch):
    messages = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    config = settings()
    eager, ours = make(config, store), make(config, store)

    def body() -> None:
        ours.advance(store.select(ours.sample), phase="main")
        ours.sums.sum().item()  # a wait for the device

    graph = GraphedStep(body, ours.state, recorder=TapeRecorder())
    for i in range(3):
        advance(eager, store, range(i, i + 1))
        ours.prepare(batch(i), i, 0.05 / (1 + i))
        graph()
        same(eager, ours)
    assert graph.captures == 0
    assert len(messages) == 1 and "_local_scalar_dense" in messages[0]


def test_a_capture_that_fails_leaves_the_stream_that_was_current(store, monkeypatch):
    """torch.cuda.graph ends the capture before it puts the stream back: where that raises, it does not."""
    current, messages = ["the run's"], []

    class Capture:
        def __init__(self, graph: object, stream: object) -> None: ...

        def __enter__(self) -> None:
            current[0] = "the capture's"

        def __exit__(self, *_: object) -> None:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(reset=lambda: None))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: object())
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.__setitem__(0, stream))
    monkeypatch.setattr(CudaRecorder, "warm_up", lambda self, body: body())
    eager, ours = make(settings(), store), make(settings(), store)
    streams = []

    def body() -> None:
        streams.append(current[0])
        if current[0] == "the capture's":
            raise RuntimeError("a copy to the host\nand more")
        ours.advance(store.select(ours.sample), phase="main")

    graph = GraphedStep(body, ours.state, recorder=CudaRecorder())
    for i in range(2):
        advance(eager, store, range(i, i + 1))
        ours.prepare(batch(i), i, 0.05 / (1 + i))
        graph()
        same(eager, ours)
    assert streams == ["the run's"] * WARM_UP + ["the capture's"] + ["the run's"] * 2
    assert len(messages) == 1 and messages[0].endswith("launch by launch: a copy to the host")


def test_a_graph_is_captured_anew_when_its_memory_has_moved_or_a_baked_number_has_changed():
    state, inputs, baked, seen = [torch.zeros(2)], torch.ones(2), [0.5], []

    def body() -> None:
        state[0].add_(inputs * baked[0])

    graph = GraphedStep(body, lambda: state, lambda: (baked[0],), TapeRecorder())
    for change in (None, None, "number", None, "memory", None):
        if change == "number":
            baked[0] = 2.0
        if change == "memory":
            state[0] = state[0].clone()
        graph()
        seen.append((state[0][0].item(), graph.captures))
    assert seen == [(0.5, 1), (1.0, 1), (3.0, 2), (5.0, 2), (7.0, 3), (9.0, 3)]


def test_the_stand_in_keeps_numbers_of_the_host_as_cuda_does():
    """Otherwise the tests above would show nothing."""
    total, number = torch.zeros(()), [1.0]
    graph = GraphedStep(lambda: total.add_(number[0]), lambda: [total], recorder=TapeRecorder())
    graph()
    number[0] = 100.0
    graph()
    assert total.item() == 2.0


@pytest.mark.slow
@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("amp", ["fp32", "fp16"])
def test_every_step_gives_the_device_the_same_work(amp, store):
    """Operators, shapes and strides are those of the first step, nothing is read, and no shape comes from data."""
    step = make(settings("a2mc", "adamw"), store, amp)
    sequences = []
    for i in range(3):
        step.prepare(batch(i), i, 0.05)
        with Tape() as tape:
            step.advance(store.select(step.sample), phase="main")
        sequences.append(tape.sequence())
        assert "_local_scalar_dense" not in tape.names() and "nonzero" not in tape.names()
    assert all(sequence == sequences[0] for sequence in sequences)
    assert len(sequences[0]) > 100


class OnOneDevice(TorchDispatchMode):
    """Notes operators with a tensor on another device than meta: an upload, or a download."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.strangers = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # PyTorch's fused optimizers work in place, and not on tensors without memory.
        result = None if "_fused" in func.overloadpacket.__name__ else func(*args, **kwargs or {})
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        self.seen += 1
        if any(t.device.type != "meta" for t in tensors):
            self.strangers.append(str(func))
        return result


@needs_compiler
@pytest.mark.compiler
@pytest.mark.parametrize("amp", ["fp32", "fp16"])
def test_on_a_device_without_memory_nothing_is_read_and_nothing_uploaded(amp):
    """There reading a value, or a shape that depends on one, is an error. Triton's kernels are compiled and not run."""
    size = TrainingStep(case=Case("step", "own", 16, 64, 16), frames=16, encoder="1x8", amp=amp)
    with taken_for_a_gpu(), compile_launches("cuda:90"):
        step, clips = size.stepper(), ntu_like_clips(16, 2, "meta")
        sample = step.sample.clone()
        with OnOneDevice() as mode:
            for phase in ("fill", "main", "main"):
                step.prepare(sample, 3, 0.1)
                step.advance(clips, phase=phase)
    assert mode.seen > 300 and not mode.strangers
    with OnOneDevice() as mode, pytest.raises((RuntimeError, NotImplementedError)):
        step.check()
    with OnOneDevice() as mode:
        sample.to("meta").copy_(torch.arange(16))
    assert mode.strangers, "an upload is seen"


# What is not finite


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_after_a_fault_nothing_moves_until_it_is_read(optimizer, store):
    step = make(settings(optimizer=optimizer), store)
    advance(step, store, range(3), phase="fill")
    watch = FaultWatch(step)
    frames = store.frames
    kept = [t.clone() for t in (*step.model.state_dict().values(), *step.update.tensors())]
    store.frames = torch.full_like(frames, torch.nan)
    try:
        advance(step, store, range(3, 4))
    finally:
        store.frames = frames
    assert watch.sees_a_fault()
    advance(step, store, range(4, 7))  # good clips: a GPU gets some steps on before the fault is seen
    for before, now in zip(kept, (*step.model.state_dict().values(), *step.update.tensors()), strict=True):
        assert torch.equal(before, now)
    with pytest.raises(NonFiniteError, match="step 3: loss = nan"):
        step.check()


def test_a_first_step_that_is_called_off_leaves_the_optimizer_clean(store):
    step = make(settings(), store)
    frames = store.frames
    store.frames = torch.full_like(frames, torch.nan)
    try:
        advance(step, store, range(1), phase="fill")
    finally:
        store.frames = frames
    assert all(not tensor.any() for tensor in step.update.tensors())


# Half precision


@pytest.mark.parametrize("amp", ["bf16", "fp16", "tf32", "fp32"])
def test_tensor_cores_are_allowed_for_the_whole_step_and_for_it_alone(amp, store, monkeypatch):
    """Without it cuDNN multiplies bfloat16 without them. Backward passes read the flag too, from their thread."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    step, seen = make(settings(), store, amp), []

    def look(*_) -> None:
        seen.append(torch.backends.cudnn.allow_tf32)

    net, weight = step.copies["query"].network.recurrent, next(step.copies["query"].network.recurrent.parameters())
    net.register_forward_hook(look)
    weight.register_hook(look)
    advance(step, store, range(1), phase="fill")
    advance(step, store, range(1, 2))
    assert len(seen) == 1 + 1 + 2 + 1, "a pass and its gradient; the attack's pass, the queries' pass and its gradient"
    assert set(seen) == {amp != "fp32"}
    assert torch.backends.cudnn.allow_tf32 is False


def test_evaluation_is_float32_whatever_is_allowed(store, monkeypatch):
    encoder, seen = build_model(settings(), store, CPU).query, []
    encoder.recurrent.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    centre = torch.full((2,), 0.5)
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        represent(encoder, store, torch.arange(2), "joint", frames=8, ratio=centre, position=centre)
        assert torch.backends.cudnn.allow_tf32 is allowed
    assert seen == [False, False]


def test_a_step_that_fails_puts_the_flag_back(store, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    step = make(settings(), store, "bf16")
    with pytest.raises(AttributeError):
        step.advance(None, phase="main")
    assert torch.backends.cudnn.allow_tf32 is False


def forty(
    amp: str, store: ResidentStore, *, stale: bool = False, impl: str = "torch", encoder: str = "2x64"
) -> tuple[torch.Tensor, torch.Tensor, PretrainStep]:
    """Losses (40,) of steps on a full bank, and the features of all clips after them."""
    config = settings(bank_size=1024, impl=impl)  # a small bank lets roundings grow fast
    config = replace(config, frames=16, encoder=BiGRUConfig(encoder=encoder, feature_dim=128))
    config = replace(config, optim=replace(config.optim, batch_size=16))
    step = make(config, store, amp)
    if step.scaling is not None:
        step.scaling.scale.fill_(2.0**8)  # at the default the first steps overflow and are skipped
    losses = []
    for i in range(64 + 40):
        step.prepare(batch(i, size=16).to(store.device), i, 0.01)
        step.advance(store.select(step.sample), phase="fill" if i < 64 else "main")
        losses.append(step.metrics[0].clone())
        if stale:
            never_refreshed(step)
    step.check()
    clips = whole_clips(store.select(torch.arange(len(store), device=store.device)), store.skeleton, 16)
    with torch.no_grad():
        return torch.stack(losses[64:]), step.model.query.eval()(clips), step


def never_refreshed(step: PretrainStep) -> None:
    """From now on the query encoder's working copy stays as it is."""
    step.copies["query"].refresh = lambda: None
    for group in getattr(step.update, "groups", ()):
        group._copies = []


@pytest.fixture(scope="module")
def in_float32(store) -> tuple[torch.Tensor, torch.Tensor]:
    return forty("fp32", store)[:2]


def apart(found: tuple, want: tuple) -> tuple[float, float]:
    """Largest relative difference of the losses, smallest cosine of a clip's features."""
    cosine = torch.nn.functional.cosine_similarity(found[1], want[1])
    return float(((found[0] - want[0]) / want[0]).abs().max()), float(cosine.min())


def near(found: tuple, want: tuple) -> bool:
    """Whether forty steps in half precision are those of float32: losses within two roundings of bfloat16. float16 gets
    the same: what its roundings lead to is the noise of so many steps. tests/gpu has the same budget, so it has to hold
    where states are rounded at every frame, as cuDNN does."""
    loss, cosine = apart(found, want)
    return loss < 2 * 2.0**-8 and cosine > 0.999


@pytest.mark.slow
@pytest.mark.parametrize(("amp", "states"), [("bf16", "rounded"), ("fp16", "wide")])
def test_forty_steps_in_half_precision_are_near_those_in_float32(amp, states, store, in_float32):
    with rounded_states() if states == "rounded" else nullcontext():
        found = forty(amp, store)
    assert near(found, in_float32)
    assert found[1].dtype == torch.float32
    for name, value in found[2].model.state_dict().items():
        assert value.dtype in (torch.float32, torch.int64), name


@pytest.mark.slow
def test_states_of_three_bits_are_noticed(store, in_float32, monkeypatch):
    rounded = recurrent._rounded

    def coarser(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return rounded(x, torch.float8_e5m2 if x.dim() == 3 else dtype)  # a state is (2, B, H), other operands are not

    monkeypatch.setattr(recurrent, "_rounded", coarser)
    with rounded_states():
        assert not near(forty("bf16", store), in_float32)


@pytest.mark.slow
def test_a_working_copy_that_is_never_refreshed_is_noticed(store, in_float32):
    assert not near(forty("bf16", store, stale=True), in_float32)


def test_working_copies_are_cast_once_a_step(store):
    """By PyTorch one call for each encoder, by our kernel the update itself; and nobody else reads the weights."""
    step = make(settings(), store, "bf16")
    advance(step, store, range(1))
    step.prepare(batch(1), 1, 0.05)
    with Tape() as tape:
        step.advance(store.select(step.sample), phase="main")
    weights = {p.data_ptr() for encoder in (step.model.query, step.model.key) for p in encoder.recurrent.parameters()}

    def reads_a_master(call) -> bool:
        func, args, kwargs, _ = call
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        return any(t.data_ptr() in weights for t in tensors) and "fused" not in str(func)

    casts = [str(call[0]) for call in tape.calls if reads_a_master(call)]
    assert casts == (["_update_kernel"] if INTERPRETED else ["aten._foreach_copy_.default"] * 2)


@pytest.mark.parametrize("change", ["in place", "loaded"])
def test_weights_that_somebody_else_changes_reach_the_working_copies(change, store):
    """Before the next step, whoever casts them."""
    step = make(settings(), store, "bf16")
    advance(step, store, range(3), phase="fill")
    state = {name: value + 0.5 for name, value in step.model.state_dict().items() if "recurrent" in name}
    if change == "loaded":
        step.model.load_state_dict(step.model.state_dict() | state)
    else:
        for name, value in state.items():
            step.model.state_dict()[name].copy_(value)
    copies = [working for one in step.copies.values() for master, working in one.pairs if working is not master]
    seen = []
    for one in step.copies.values():
        one.network.head.register_forward_pre_hook(lambda *_: seen.extend(c.detach().clone() for c in copies))
    masters = [m.detach().bfloat16() for one in step.copies.values() for m, working in one.pairs if working is not m]
    advance(step, store, range(3, 4), phase="fill")
    assert len(seen) >= len(copies)
    assert all(torch.equal(a, b) for a, b in zip(seen, masters, strict=False))


def test_the_gradient_scale_halves_and_grows_as_torch_does():
    ours = GradientScale(CPU)
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=GradientScale.GROWTH_INTERVAL)
    weight = torch.nn.Parameter(torch.zeros(1))
    sgd = torch.optim.SGD([weight], lr=0.0)
    theirs.scale(torch.zeros(1))
    steps = itertools.chain([1.0, 0.0, 1.0], itertools.repeat(0.0, 2001), [1.0], itertools.repeat(0.0, 2000))
    for overflow in steps:
        weight.grad = torch.full((1,), torch.inf if overflow else 1.0)
        theirs.step(sgd)
        theirs.update()
        ours.update_(torch.tensor(overflow))
        assert ours.scale.item() == theirs.get_scale()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_gradients_are_divided_by_the_scale_that_they_have(optimizer, store):
    """Also in the step after which the scale doubles."""
    first, second = (make(settings(optimizer=optimizer), store, "fp16") for _ in range(2))
    first.scaling.state.copy_(torch.tensor([2.0**8, 0.0]))
    second.scaling.state.copy_(torch.tensor([2.0**8, GradientScale.GROWTH_INTERVAL - 1]))
    for step in (first, second):
        advance(step, store, range(1), phase="fill")
    assert (first.scaling.scale.item(), second.scaling.scale.item()) == (2.0**8, 2.0**9)
    for ours, theirs in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_overflow_in_float16_costs_one_step(store):
    """Weights and key encoder stay, the scale halves, the run goes on; at its smallest the scale can help no more."""
    step = make(settings(), store, "fp16")
    advance(step, store, range(2), phase="fill")
    step.scaling.scale.fill_(2.0**40)
    weights = [p.clone() for p in (*step.model.query.parameters(), *step.model.key.parameters())]
    advance(step, store, range(2, 3))
    now = [*step.model.query.parameters(), *step.model.key.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(weights, now, strict=True))
    assert step.scaling.scale.item() == 2.0**39
    step.check()
    step.scaling.scale.fill_(2.0**10)
    advance(step, store, range(3, 4))
    assert not torch.equal(weights[0], now[0])
    handle = next(step.model.query.norm.parameters()).register_hook(lambda gradient: gradient * torch.inf)
    step.scaling.scale.fill_(1.0)
    advance(step, store, range(4, 5))
    handle.remove()
    with pytest.raises(NonFiniteError, match=r"step 4: .* gradient norm = inf\. The bank has moved"):
        step.check()


def test_the_gradient_scale_is_resumed(store):
    first, second = (make(settings(), store, "fp16") for _ in range(2))
    first.scaling.state.copy_(torch.tensor([8.0, 77.0]))
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(run_state(state))
    assert second.scaling.state.tolist() == [8.0, 77.0]
    assert second.scaling.scale.item() == 8.0


# torch.compile


@pytest.mark.slow
def test_twenty_compiled_steps_have_no_graph_break_and_no_recompile(store):
    """After the first step of each kind. Traced and differentiated as for a GPU; no code is generated."""
    config = settings("a2mc", "adamw")
    plain, compiled = make(config, store), make(config, store)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled.compile_around("aot_eager")
    for step in (plain, compiled):
        advance(step, store, range(2), phase="fill")
        advance(step, store, range(2, 3))
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = advance(compiled, store, range(3, 23))
    assert not torch._dynamo.utils.counters["graph_break"]
    want = advance(plain, store, range(3, 13))
    torch.testing.assert_close(torch.tensor(found)[:10], torch.tensor(want), rtol=1e-4, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 5, "norm of both encoders, norm of the attack, heads, verdict"


def test_a_batch_of_another_size_is_an_error(store):
    step = make(settings(), store)
    with pytest.raises(ValueError, match=r"sample must be \(8,\), got \(1,\)"):
        step.prepare(batch(0)[:1], 0, 0.1)


def test_metrics_are_named(store):
    step = make(settings(), store)
    (row,) = advance(step, store, range(1))
    named = {metric.name: value for metric, value in zip(step.model.metrics, row, strict=True)}
    assert named["loss"] == pytest.approx(named["l1"] + named["l2"] + named["l3"], rel=1e-5)
    assert step.sums.tolist() == row
    assert StepConfig().amp == "auto"
