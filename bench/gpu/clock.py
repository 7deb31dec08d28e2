"""Times of calls: by CUDA's events or replays of a graph on a GPU, by the host's clock in a rehearsal."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from train.engine.graph import WARM_UP, CudaRecorder

Call = Callable[[], Any]
FEWEST, MOST = 5, 400
"""Samples that a median is taken of."""
REHEARSED = 2
"""Samples of a rehearsal."""
REPLAY = 2e-3
"""Seconds that one replay of a graph should last at least: beside them the gap between two replays is small."""
LONGEST_GRAPH = 512
"""Calls in one graph."""
TRITON = re.compile(r"^_\w+_kernel")
"""Names of this project's kernels."""


@dataclass(frozen=True)
class Quartiles:
    """Of one call, in seconds.

    Attributes:
        how: "events": a launch after the other, gaps included; "graph": replays, of which one holds many calls;
            "host clock": of a rehearsal, meaningless.
    """

    median: float
    low: float
    high: float
    samples: int
    how: str

    @staticmethod
    def of(samples: Sequence[float], how: str) -> Quartiles:
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive")
        return Quartiles(middle, low, high, len(samples), how)

    def cells(self, unit: str = "us") -> dict[str, Any]:
        """For a row of a table."""
        scale = {"us": 1e6, "ms": 1e3}[unit]
        return {unit: self.median * scale, "quartiles": f"{self.low * scale:.4g} to {self.high * scale:.4g}"}


class Clock:
    """Times calls on a device."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"

    def launched(self, calls: Sequence[Call], seconds: float, fewest: int = FEWEST) -> Quartiles:
        """As a program launches them.

        Args:
            calls: the same work, on inputs of their own if those are to be cold; taken in turns.
            seconds: to spend, about, after a first round that compiles.
            fewest: samples to take in any case.
        """
        if not self.on_gpu:
            return Quartiles.of([self._elapsed(calls[i % len(calls)]) for i in range(REHEARSED)], "host clock")
        for call in calls:
            call()
        estimate = max(1e-6, self._elapsed(calls[0]))
        count = _between(seconds / estimate, fewest, MOST)
        pairs = []
        for i in range(count):
            pairs.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
            pairs[-1][0].record()
            calls[i % len(calls)]()
            pairs[-1][1].record()
        torch.cuda.synchronize()
        return Quartiles.of([1e-3 * start.elapsed_time(end) for start, end in pairs], "events")

    def replayed(self, calls: Sequence[Call], seconds: float) -> Quartiles:
        """As replays of a graph that holds them many times over, so that no launch is waited for.

        Raises:
            RuntimeError: they cannot be captured.
        """
        if not self.on_gpu:
            return self.launched(calls, seconds)
        recorder = CudaRecorder()
        for _ in range(WARM_UP):
            recorder.warm_up(lambda: in_turn(calls))
        graph = recorder.record(lambda: in_turn(calls))
        once = max(1e-6, min(self._elapsed(graph.replay) for _ in range(3)))
        repeats = _between(REPLAY / once, 1, max(1, LONGEST_GRAPH // len(calls)))
        if repeats > 1:
            graph = recorder.record(lambda: in_turn(list(calls) * repeats))
        replays = self.launched([graph.replay], seconds)
        held = repeats * len(calls)
        return Quartiles(replays.median / held, replays.low / held, replays.high / held, replays.samples, "graph")

    def best(self, calls: Sequence[Call], seconds: float) -> Quartiles:
        """As replays, or as launched if they cannot be captured."""
        try:
            return self.replayed(calls, seconds)
        except RuntimeError:
            return self.launched(calls, seconds)

    def _elapsed(self, call: Call) -> float:
        if self.on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start


def in_turn(calls: Iterable[Call]) -> None:
    for call in calls:
        call()


def _between(value: float, low: int, high: int) -> int:
    return max(low, min(high, math.ceil(value)))


def kernel_seconds(calls: Sequence[Call], rounds: int) -> dict[str, tuple[float, float]]:
    """By kernel, of this project's: seconds of a launch on the GPU, and launches a call; from PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    for call in calls:
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU], acc_events=True) as recorded:
        for _ in range(rounds):
            for call in calls:
                call()
        torch.cuda.synchronize()
    return by_kernel(recorded.events() or (), rounds * len(calls))


def by_kernel(events: Iterable[Any], calls: int) -> dict[str, tuple[float, float]]:
    """See `kernel_seconds`; in order of their first launch."""
    from torch.autograd import DeviceType

    seconds: dict[str, list[float]] = defaultdict(list)
    for event in sorted((e for e in events if e.device_type == DeviceType.CUDA), key=lambda e: e.time_range.start):
        if TRITON.match(event.name):
            seconds[event.name].append(1e-6 * event.time_range.elapsed_us())
    return {name: (statistics.median(each), len(each) / calls) for name, each in seconds.items()}
