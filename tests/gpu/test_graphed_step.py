"""The step on a GPU: as one CUDA graph it is the step launch by launch, and neither waits for the host."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import on_gpu
import pytest
import torch
from on_gpu import needs_gpu
from test_step import apart, batch, forty, near, settings
from test_train import assert_same_state, command
from torch.nn import functional as F

from fastmc.build import build_model
from fastmc.config import Config
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.encoders import ENCODERS, find_encoder
from fastmc.encoders.s2s import S2SConfig
from fastmc.random import key_default_generators
from fastmc.views.clips import STREAMS
from train.command.parse import parse
from train.engine.graph import CudaRecorder, GraphedStep
from train.engine.loop import Pretraining, build_step, graph_step
from train.engine.step import FaultWatch, PretrainStep

pytestmark = [needs_gpu, pytest.mark.gpu, pytest.mark.usefixtures("nothing_compiled")]
RECORDER: Callable[[], CudaRecorder] = CudaRecorder
FILL, STEPS = 2, 20
IMPLS = ["triton", "torch"]  # the reference reads numbers back, and is never captured
AMPS = ["bf16", "fp16", "tf32", "fp32"]


@pytest.fixture(scope="module")
def store(data_root) -> ResidentStore:
    return ResidentStore(PackedStore.open(data_root / "small"), on_gpu.DEVICE)


def config_of(impl: str = "triton", method: str = "a2mc", optimizer: str = "sgd", **others) -> Config:
    """Wide enough for the algorithm of cuDNN that the paper's size gets."""
    config = settings(method, optimizer, encoder="2x256", impl=impl, **others)
    return replace(config, step=replace(config.step, view_impl=impl))


def make(config: Config, store: ResidentStore, amp: str = "fp32", overlap: str = "on") -> PretrainStep:
    return build_step(config, build_model(config, store, on_gpu.DEVICE), amp, overlap)


def prepare(step: PretrainStep, i: int) -> None:
    step.prepare(batch(i).to(on_gpu.DEVICE), i, 0.05 / (1 + i))


def eager(step: PretrainStep, store: ResidentStore, steps: range) -> list[list[float]]:
    """Metrics of each step; the first ones fill the bank."""
    found = []
    for i in steps:
        prepare(step, i)
        step.advance(store.select(step.sample), phase="fill" if i < FILL else "main")
        found.append(step.metrics.tolist())
    return found


def graph_of(step: PretrainStep, store: ResidentStore, recorder: CudaRecorder | None = None) -> GraphedStep:
    return graph_step(step, store, recorder or RECORDER())


def replayed(step: PretrainStep, store: ResidentStore, graph: GraphedStep, steps: range) -> list[list[float]]:
    found = []
    for i in steps:
        prepare(step, i)
        graph()
        found.append(step.metrics.tolist())
    return found


def assert_same(a: PretrainStep, b: PretrainStep) -> None:
    """Weights, bank, momenta, statistics and metrics, bit for bit."""
    for index, (ours, theirs) in enumerate(zip(a.state(), b.state(), strict=True)):
        assert torch.equal(ours, theirs), f"tensor {index} of the state, {tuple(ours.shape)}"


def test_what_a_graph_draws_follows_from_the_key_before_its_launch_as_without_one():
    """Whatever was drawn in its warm-up and by launches before: a run that resumes captures anew."""
    x, out = torch.ones(4096, device=on_gpu.DEVICE), torch.zeros(4096, device=on_gpu.DEVICE)

    def body() -> None:
        out.copy_(F.dropout(x, 0.5))

    graph, found = GraphedStep(body, lambda: [out], recorder=RECORDER()), []
    for step in range(4):
        for launch in (graph, body):
            key_default_generators(on_gpu.DEVICE, 0, step, 0)
            launch()
            found.append(out.clone())
    assert graph.captures == 1
    for step in range(4):
        assert torch.equal(found[2 * step], found[2 * step + 1])
        assert step == 0 or not torch.equal(found[2 * step], found[2 * step - 2])


def test_equal_runs_give_equal_bits(store):
    """Or else the next tests have nothing to go by."""
    first, second = (make(config_of(), store, "bf16") for _ in range(2))
    assert eager(first, store, range(FILL + 5)) == eager(second, store, range(FILL + 5))
    assert_same(first, second)


@pytest.mark.parametrize("amp", ["bf16", "fp32"])
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("backbone", ENCODERS)
def test_equal_runs_of_every_encoder_and_stream_give_equal_bits(backbone, stream, amp, store):
    """Gradients too that lead through convolutions, attention and bones, to the weights and to the attacked clips."""
    kind = find_encoder(backbone)
    encoder = kind.Config(feature_dim=16, **kind.presets["tiny"])
    config = replace(config_of(), backbone=backbone, encoder=encoder, stream=stream, frames=16)
    want = make(config, store, amp)
    numbers = eager(want, store, range(FILL + 5))
    for _ in range(3):
        again = make(config, store, amp)
        assert eager(again, store, range(FILL + 5)) == numbers
        assert_same(again, want)


@pytest.mark.parametrize("amp", AMPS)
@pytest.mark.parametrize("impl", IMPLS)
def test_a_replayed_step_is_the_step(impl, amp, store):
    config = config_of(impl)
    want, ours = make(config, store, amp), make(config, store, amp)
    eager(want, store, range(FILL))
    eager(ours, store, range(FILL))
    graph = graph_of(ours, store)
    steps = range(FILL, FILL + STEPS)
    assert replayed(ours, store, graph, steps) == eager(want, store, steps)
    assert_same(ours, want)
    assert graph.captures == 1
    ours.check()


@pytest.mark.parametrize("amp", ["bf16", "fp32"])
def test_the_key_encoder_beside_the_attack_changes_no_bit(amp, store):
    """Launch by launch and as a graph, which then has two branches."""
    alone, beside, graphed = (make(config_of(), store, amp, overlap) for overlap in ("off", "on", "on"))
    for step in (alone, beside, graphed):
        eager(step, store, range(FILL))
    steps = range(FILL, FILL + STEPS)
    want = eager(alone, store, steps)
    assert eager(beside, store, steps) == want
    assert replayed(graphed, store, graph_of(graphed, store), steps) == want
    assert_same(beside, alone)
    assert_same(graphed, alone)


@pytest.mark.parametrize("reading", ["sequence", "stepwise"])
@pytest.mark.parametrize("amp", ["bf16", "fp16", "fp32"])
def test_cudnn_finds_the_weights_of_every_call_in_one_piece(amp, reading, store):
    """Else it warns and packs them at each call."""
    config = config_of()
    step = make(replace(config, encoder=replace(config.encoder, reading=reading)), store, amp)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="RNN module weights")
        eager(step, store, range(FILL + 1))
    for encoder in step.networks.values():
        for gru in (module for module in encoder.recurrent.modules() if isinstance(module, torch.nn.GRU)):
            assert len({weight.untyped_storage().data_ptr() for weight in gru.parameters()}) == 1


@pytest.mark.parametrize(
    ("method", "optimizer", "mixing"), [("b1", "sgd", "cycle"), ("b3", "adamw", "cycle"), ("a2mc", "adamw", "draw")]
)
def test_other_methods_replayed(method, optimizer, mixing, store):
    config = config_of("triton", method, optimizer, mixing=mixing)
    want, ours = make(config, store, "bf16"), make(config, store, "bf16")
    eager(want, store, range(FILL))
    eager(ours, store, range(FILL))
    steps = range(FILL, FILL + 5)
    assert replayed(ours, store, graph_of(ours, store), steps) == eager(want, store, steps)
    assert_same(ours, want)


def test_compiled_and_replayed(store):
    """Compiled code differs from eager code in its last bits; as a graph it has its own."""
    config = config_of()
    want, ours = make(config, store, "bf16"), make(config, store, "bf16")
    want.compile_around()
    ours.compile_around()
    eager(want, store, range(FILL))
    eager(ours, store, range(FILL))
    steps = range(FILL, FILL + 5)
    assert replayed(ours, store, graph_of(ours, store), steps) == eager(want, store, steps)
    assert_same(ours, want)


def of_s2s(impl: str, **others) -> Config:
    """With an encoder that draws by itself."""
    return replace(config_of(impl, **others), backbone="s2s", encoder=S2SConfig("64", levels=2, heads=2, dropout=0.2))


def generators() -> dict[str, torch.Tensor]:
    """Where those stand from which networks draw by themselves."""
    state = {"cpu": torch.get_rng_state()}
    return state | ({"device": torch.cuda.get_rng_state(on_gpu.DEVICE)} if on_gpu.DEVICE.type == "cuda" else {})


@pytest.mark.parametrize("config", [config_of, of_s2s])
@pytest.mark.parametrize("impl", IMPLS)
def test_warming_up_and_capturing_leave_no_trace(impl, config, store):
    step = make(config(impl, optimizer="adamw"), store, "fp16")
    eager(step, store, range(FILL + 1))
    prepare(step, FILL + 1)
    before, random = [tensor.clone() for tensor in step.state()], generators()

    class Mute:
        """Captures, and replays nothing."""

        def __init__(self) -> None:
            self.recorder = RECORDER()

        def warm_up(self, body):
            self.recorder.warm_up(body)

        def record(self, body):
            self.graph = self.recorder.record(body)
            return self

        def replay(self) -> None:
            """Not this time."""

        def reset(self) -> None:
            self.graph.reset()

    graph = graph_of(step, store, Mute())
    graph()
    assert graph.captures == 1
    assert_same_state(generators(), random)
    for index, (was, now) in enumerate(zip(before, step.state(), strict=True)):
        assert torch.equal(was, now), f"tensor {index} of the state, {tuple(now.shape)}"


def test_a_replayed_step_drops_what_the_step_drops(store):
    """As often as it is captured, too: a run that goes on captures anew."""
    found = []
    for captures in (0, 1, 2):
        step = make(of_s2s("triton"), store, "bf16")
        eager(step, store, range(FILL))
        torch.cuda.manual_seed(5)
        graph = graph_of(step, store)
        numbers = []
        for i in range(FILL, FILL + 4):
            numbers += (
                replayed(step, store, graph, range(i, i + 1)) if captures else eager(step, store, range(i, i + 1))
            )
            if captures == 2:
                graph.release()
        found.append(numbers)
    assert found[1] == found[0]
    assert found[2] == found[0]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs: the second one is not the current")
def test_a_step_of_the_second_gpu_is_captured_there(data_root):
    """While the first one is the current device, as where a library is used; the program makes its own current."""
    there = torch.device("cuda:1")
    store = ResidentStore(PackedStore.open(data_root / "small"), there)
    steps = [build_step(config_of("torch"), build_model(config_of("torch"), store, there)) for _ in range(2)]
    for i in range(FILL + 3):
        for step in steps:
            step.prepare(batch(i).to(there), i, 0.05)
        steps[0].advance(store.select(steps[0].sample), phase="fill" if i < FILL else "main")
        if i < FILL:
            steps[1].advance(store.select(steps[1].sample), phase="fill")
        elif i == FILL:
            graph = graph_step(steps[1], store)
        if i >= FILL:
            graph()
    assert graph.captures == 1
    assert_same(*steps)


@pytest.fixture
def waits_are_errors():
    """Whatever waits for the GPU raises, as far as PyTorch knows of it."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("amp", AMPS)
@pytest.mark.parametrize("impl", IMPLS)
def test_no_step_waits_for_the_gpu(impl, amp, store, waits_are_errors):
    step, ids = make(config_of(impl), store, amp), [batch(i).to(on_gpu.DEVICE) for i in range(FILL + 60)]
    eager(step, store, range(FILL + 1))
    graph, watch = graph_of(step, store), FaultWatch(step)
    prepare(step, FILL + 1)
    graph()
    waits_are_errors()
    for i in range(FILL + 2, FILL + 60):  # beyond the step at which the watch looks
        step.prepare(ids[i], i, 0.01)
        if i % 2:
            graph()
        else:
            step.advance(store.select(step.sample), phase="main")
        assert not watch.sees_a_fault()


def test_the_mode_that_makes_waits_errors_does(waits_are_errors):
    waits_are_errors()
    with pytest.raises(RuntimeError, match="synchroniz"):
        torch.zeros(1, device=on_gpu.DEVICE).item()


def test_replays_allocate_nothing(store):
    step = make(config_of(), store, "bf16")
    eager(step, store, range(FILL))
    graph = graph_of(step, store)
    replayed(step, store, graph, range(FILL, FILL + 2))
    before = torch.cuda.memory_stats(on_gpu.DEVICE)["allocation.all.allocated"]
    for _ in range(5):
        graph()
    assert torch.cuda.memory_stats(on_gpu.DEVICE)["allocation.all.allocated"] == before


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_forty_steps_in_half_precision_are_near_those_in_float32(amp, store):
    """By the budget of tests/test_step.py; wide enough for the algorithm of cuDNN that the paper's size gets."""
    found, want = (forty(one, store, impl="triton", encoder="2x256") for one in (amp, "fp32"))
    assert near(found, want), apart(found, want)


# The program


def pretraining(data_root, folder, *extra: str) -> Pretraining:
    arguments = [str(on_gpu.DEVICE) if word == "cpu" else word for word in command(data_root, folder, *extra)]
    config = replace(parse(arguments), protocol="xsub")
    return Pretraining(config, PackedStore.open(data_root / "small"), folder, on_gpu.DEVICE)


def test_streamed_frames_run_launch_by_launch_to_the_same_weights(data_root, tmp_path):
    resident = pretraining(data_root, tmp_path / "resident", "--placement", "device")
    streamed = pretraining(data_root, tmp_path / "streamed", "--placement", "pinned")
    assert resident.graph.value == "on"
    assert streamed.graph.value == "off"
    assert streamed.graph.why == "streamed frames lie elsewhere at every step (--placement device)"
    for one in (resident, streamed):
        one.folder.mkdir()
        one.run()
    assert_same(resident.stepper, streamed.stepper)


def test_a_graph_that_was_asked_for_and_cannot_be_is_an_error(data_root, tmp_path):
    with pytest.raises(ValueError, match="cuda_graph = 'on' is impossible: streamed frames"):
        pretraining(data_root, tmp_path / "run", "--placement", "pinned", "--cuda-graph", "on")
