"""CUDA graphs in a run, by stand-ins: on which device they are captured, what they leave behind, and when they go.

NCCL's communicator waits at its end for every graph that holds one of its exchanges (pytorch/pytorch#115388): a graph
that outlives `Ranks.close` or `Ranks.end` hangs the rank. So the order of the two is held here, for each way of ending.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tape import TapeRecorder
from test_train import command

from fastmc.methods.a2mc import A2MC
from train import run
from train.command.parse import parse
from train.engine import loop, ranks
from train.engine.choices import Choice
from train.engine.graph import WARM_UP, CudaRecorder, GraphedStep
from train.engine.loop import Pretraining
from train.engine.ranks import Place, RankLost, RanksDiffer, opened
from train.engine.record import log
from train.engine.signals import Stopped
from train.engine.step import FaultWatch, NonFiniteError
from train.engine.world import World


class StandIn:
    """A graph that runs the body anew, until it is reset."""

    def __init__(self, body: Callable[[], None], events: list[str]) -> None:
        self.replay, self._events = body, events
        events.append("captured")

    def reset(self) -> None:
        self._events.append("reset")


class StandInRecorder:
    """In the place of `CudaRecorder`."""

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def warm_up(self, body: Callable[[], None]) -> None:
        body()

    def record(self, body: Callable[[], None]) -> StandIn:
        return StandIn(body, self._events)


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """What becomes of graphs, and of the ranks' exchanges, in order. Every step is captured, and there are ranks."""
    found: list[str] = []

    class Exchanging(World):
        def __init__(self, *_: object) -> None: ...

        def end(self, error: Exception) -> Exception:
            self.close(abort=True)
            return error

        def close(self, *, abort: bool = False) -> None:
            gc.collect()  # what is freed by luck, is by now
            found.append("aborted" if abort else "closed")

    monkeypatch.setattr(loop, "CudaRecorder", lambda device: StandInRecorder(found))
    monkeypatch.setattr(loop, "choose_graph", lambda *_: Choice("on", "a stand-in"))
    monkeypatch.setattr(ranks, "Ranks", Exchanging)
    return found


def ended(words: list[str]) -> BaseException | None:
    """How a run of several ranks has ended."""
    try:
        with opened(Place(0, 2), "cpu", 60.0) as world:
            run.run(parse(words), world)
    except BaseException as error:
        return error
    return None


WAYS = (Stopped(15), KeyboardInterrupt(), NonFiniteError("no number"), RankLost("gone"), RanksDiffer("other bits"))


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: type(way).__name__)
def test_graphs_are_gone_before_the_exchanges_end(way, events, data_root, tmp_path, monkeypatch):
    after = Pretraining._compare_ranks

    def then_end(self: Pretraining) -> None:
        after(self)
        if self.step == 5:  # the bank of 16 is full after two steps of 8
            raise way

    monkeypatch.setattr(Pretraining, "_compare_ranks", then_end)
    assert ended(command(data_root, tmp_path / "run")) is way
    assert events == ["captured", "reset", "aborted"]


@pytest.mark.slow
def test_graphs_are_gone_at_a_normal_end_and_with_their_phase(events, data_root, tmp_path, monkeypatch):
    phase = A2MC.phase
    monkeypatch.setattr(A2MC, "phase", lambda self, *at: f"{phase(self, *at)}{' late' * (at[1] > 2)}")
    monkeypatch.setattr(A2MC, "step", lambda self, *given, of=A2MC.step: of(self, *given[:2], given[2].split()[0]))
    assert ended(command(data_root, tmp_path / "run")) is None
    assert events == ["captured", "reset", "captured", "reset", "closed"]


def test_a_graph_is_reset_before_it_is_captured_anew():
    events: list[str] = []
    state = [torch.zeros(2)]
    graph = GraphedStep(lambda: state[0].add_(1), lambda: state, recorder=StandInRecorder(events))
    graph()
    state[0] = state[0].clone()
    graph()
    graph.release()
    graph.release()
    assert events == ["captured", "reset", "captured", "reset"]
    graph()
    assert (state[0].tolist(), graph.captures) == ([3.0, 3.0], 3)


@pytest.mark.parametrize("recorder", [TapeRecorder, lambda: StandInRecorder([])], ids=["tape", "stand-in"])
def test_a_capture_draws_no_random_number_of_the_run(recorder):
    """A resumed run captures anew: what its dropout draws then must not hang on how often it was captured."""

    def drawn(graphed: bool) -> tuple[list[list[float]], torch.Tensor]:
        torch.manual_seed(3)
        total, found = torch.zeros(64), []

        def body() -> None:
            total.add_(torch.nn.functional.dropout(torch.ones(64), 0.5))

        step = GraphedStep(body, lambda: [total], recorder=recorder()) if graphed else body
        for _ in range(3):
            step()
            found.append(total.tolist())
        return found, torch.get_rng_state()

    (ours, after), (theirs, wanted) = drawn(True), drawn(False)
    assert ours == theirs
    assert torch.equal(after, wanted)


@pytest.mark.parametrize("alone", [True, False])
def test_a_warm_up_that_fails_leaves_the_state_and_runs_launch_by_launch(alone, monkeypatch):
    """Not of several ranks: the others wait for this one's warm-up."""
    messages: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    total, times = torch.zeros(2), []

    def body() -> None:
        total.add_(1)
        times.append(1)
        if len(times) == WARM_UP:
            raise RuntimeError("CUDA out of memory")

    step = GraphedStep(body, lambda: [total], recorder=StandInRecorder([]), alone=alone)
    if not alone:
        with pytest.raises(RuntimeError, match="out of memory"):
            step()
        return
    step()
    step()
    assert total.tolist() == [2.0, 2.0]
    assert step.captures == 0 and messages[0].endswith("launch by launch: CUDA out of memory")


class Capture:
    """In the place of torch.cuda.graph."""

    warns = ""

    def __init__(self, graph: object, stream: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        if self.warns:
            warnings.warn(self.warns, stacklevel=1)


@pytest.fixture
def cuda(monkeypatch) -> list[Any]:
    """As much of torch.cuda as a capture asks for; the devices whose streams were wanted, and graphs that were
    reset."""
    asked: list[Any] = []

    class Stream:
        def __init__(self, device: object) -> None:
            asked.append(device)
            self.device = device

    class Graph:
        def reset(self) -> None:
            asked.append("reset")

    for name, value in (("Stream", Stream), ("CUDAGraph", Graph), ("graph", Capture)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda _: None)
    return asked


def test_a_capture_is_made_on_the_device_of_the_step(cuda, monkeypatch):
    device = torch.device("cuda:1")
    CudaRecorder(device).record(lambda: None)
    assert cuda == [device]
    made = []
    monkeypatch.setattr(loop, "CudaRecorder", made.append)
    step = type("Step", (), {"sample": type("Sample", (), {"device": device}), "state": None, "world": World()})
    loop.graph_step(step, None)  # type: ignore[arg-type]
    assert made == [device]


def test_a_capture_that_took_in_nothing_is_a_failed_one(cuda, monkeypatch):
    """PyTorch warns of it, and each of its replays would leave the run where it is."""
    messages: list[str] = []
    monkeypatch.setattr(log, "warning", lambda text, *values: messages.append(text % values))
    monkeypatch.setattr(Capture, "warns", "The CUDA Graph is empty. This usually means that the graph was attempted")
    monkeypatch.setattr(CudaRecorder, "warm_up", lambda self, body: body())
    total = torch.zeros(2)
    step = GraphedStep(lambda: total.add_(1), lambda: [total], recorder=CudaRecorder(torch.device("cuda:1")))
    step()
    step()
    assert total.tolist() == [2.0, 2.0] and step.captures == 0
    assert "launch by launch: The CUDA Graph is empty" in messages[0]
    assert cuda[-1] == "reset"
    monkeypatch.setattr(Capture, "warns", "of another kind")
    with pytest.warns(UserWarning, match="of another kind"):
        CudaRecorder(torch.device("cuda:1")).record(lambda: None)


def test_the_watch_for_faults_waits_for_the_stream_of_the_fault(monkeypatch):
    recorded = []

    class Event:
        def query(self) -> bool:
            return True

        def record(self, stream: object = "of the current device") -> None:
            recorded.append(stream)

    watch = FaultWatch(type("Step", (), {"fault": torch.ones(1)}))  # type: ignore[arg-type]
    watch._on_gpu, watch._copy, watch._copied = True, torch.zeros(()), Event()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"of {device}")
    assert [watch.sees_a_fault() for _ in range(2 * watch.EVERY)].count(True) == 1
    assert recorded == ["of cpu"] * 2


@pytest.mark.parametrize(("name", "current"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_a_command_s_gpu_is_the_current_one_and_its_convolutions_repeat(name, current, monkeypatch):
    became: list[torch.device] = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", became.append)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    assert run.choose_device(name) == torch.device(name)
    assert became == current
    assert torch.backends.cudnn.deterministic == (name != "cpu")
