"""What each part of a step takes on the GPU, by CUDA events around the parts, within a graph or launch by launch."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from kernels.ranges import PARTS, observe

Seconds = dict[str, float]


class PartWatch:
    """An observer of parts that marks the beginning and the end of each: by CUDA's events, or, in a rehearsal, by the
    host's clock.

    Args:
        captured: mark only what is captured. Such events are nodes of the graph, and every replay records them anew.

    Attributes:
        spans: name, beginning and end of every part so far.
    """

    def __init__(self, on_gpu: bool, captured: bool = False) -> None:
        self._on_gpu, self._captured = on_gpu, captured
        self._begun: dict[str, list[Any]] = defaultdict(list)
        self.spans: list[tuple[str, Any, Any]] = []

    def __call__(self, name: str, begins: bool) -> None:
        if self._on_gpu and torch.cuda.is_current_stream_capturing() != self._captured:
            return
        mark = self._mark()
        if begins:
            self._begun[name].append(mark)
        else:
            self.spans.append((name, self._begun[name].pop(), mark))

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True, external=self._captured)
        event.record()
        return event

    def seconds(self) -> Seconds:
        """Of each part, all its spans together, in the order of `kernels.ranges.PARTS`; a part within another counts
        in both. Waits for the device."""
        if self._on_gpu:
            torch.cuda.synchronize()
        total: Seconds = defaultdict(float)
        for name, begin, end in self.spans:
            total[name] += 1e-3 * begin.elapsed_time(end) if self._on_gpu else end - begin
        return {name: total[name] for name in PARTS if name in total}


def launched(step: Callable[[], object], steps: int, on_gpu: bool) -> Seconds:
    """Of a step that is made launch by launch; where the GPU waits for the host, that is in it."""
    watch = PartWatch(on_gpu)
    with observe(watch):
        for _ in range(steps):
            step()
    return {name: value / steps for name, value in watch.seconds().items()}


def replayed(step: Callable[[], object], steps: int) -> Seconds:
    """Of a step that is captured at its first call, which this has to be, and replayed from then on; medians."""
    watch = PartWatch(on_gpu=True, captured=True)
    with observe(watch):
        step()
    assert watch.spans, "the step was not captured"
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(steps):
        step()
        for name, value in watch.seconds().items():
            seconds[name].append(value)
    return {name: statistics.median(values) for name, values in seconds.items()}
