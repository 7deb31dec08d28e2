"""What ``--profile N`` does: records N training steps. docs/profiling.md tells how to read what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from fastmc.files import write_json
from kernels.ranges import PARTS, heard_by_nvtx
from train.engine.record import log

WARM_UP = 6
"""Steps that are not recorded: they compile, choose algorithms and capture a CUDA graph; the profiler starts in the
last of them."""
TRACE, OPERATORS, MEMORY, SNAPSHOT = "trace.json.gz", "operators.txt", "memory.txt", "memory.pickle"
PARTS_FILE = "parts.json"
NO_PART = "No part ran under its name: a CUDA graph replays them all as one launch; --cuda-graph off names them."


class StepProfiler:
    """Records some steps of a training loop that calls `step` after each of them; the loop goes on unchanged.

    Afterwards the folder holds the steps' trace, a table of their parts and operators by time, a table of operators by
    memory and, on a CUDA device, a snapshot of its memory with the history of all allocations since the profiler began.

    Where a profiler of NVIDIA's listens, nothing is written: two cannot record one process. Those steps are marked for
    it instead, by cudaProfilerStart and cudaProfilerStop.

    Args:
        steps: how many to record, after ``WARM_UP`` others. With 0 nothing happens.
        folder: is made when there is something to write.
        device: the one that the steps run on.
    """

    def __init__(self, steps: int, folder: Path, device: torch.device) -> None:
        self._steps, self._folder, self._on_gpu = steps, folder, device.type == "cuda"
        self._runs, self._seen = steps > 0, 0
        self._profile: profile | None = None
        if self._runs and not (self._on_gpu and heard_by_nvtx()):
            self._begin()

    def step(self) -> None:
        """A training step is done."""
        if not self._runs:
            return
        self._seen += 1
        if self._profile is not None:
            self._profile.step()
        elif self._seen == WARM_UP:
            torch.cuda.synchronize()  # so that no kernel of the warm-up is among them
            torch.cuda.profiler.start()
        if self._seen == WARM_UP + self._steps:
            self._end()

    def close(self) -> None:
        """The loop is done, or has failed: write what was recorded, if anything was."""
        if not self._runs:
            return
        if self._seen <= WARM_UP:
            log.warning(
                "nothing was profiled: this run ended after %d steps, of which the first %d are warm-up",
                self._seen,
                WARM_UP,
            )
        self._end()

    def _begin(self) -> None:
        activities = {ProfilerActivity.CPU, ProfilerActivity.CUDA if self._on_gpu else ProfilerActivity.CPU}
        when = schedule(wait=WARM_UP - 1, warmup=1, active=self._steps, repeat=1)
        self._profile = profile(activities=activities, schedule=when, on_trace_ready=self._write, profile_memory=True)
        self._profile.start()
        if self._on_gpu:  # from the first step on, since a graph's memory is allocated when it is captured
            torch.cuda.memory._record_memory_history(stacks="python")

    def _end(self) -> None:
        self._runs = False
        if self._profile is not None:
            self._profile.stop()
            self._profile = None
            if self._on_gpu:
                torch.cuda.memory._record_memory_history(enabled=None)
        elif self._seen >= WARM_UP:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
            log.info("the profiler that is attached was told of %d steps", self._seen - WARM_UP)

    def _write(self, recorded: profile) -> None:
        steps = min(self._seen - WARM_UP, self._steps)
        if steps < 1:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(self._folder / TRACE))
        where = "device" if self._on_gpu else "cpu"
        operators = recorded.key_averages()
        by_time = operators.table(sort_by=f"self_{where}_time_total", row_limit=-1, max_name_column_width=80)
        by_memory = operators.table(sort_by=f"self_{where}_memory_usage", row_limit=-1, max_name_column_width=80)
        parts = parts_of(recorded, steps, self._on_gpu)
        (self._folder / OPERATORS).write_text(f"{_table(parts, self._on_gpu)}\n\n{by_time}", encoding="utf-8")
        write_json(self._folder / PARTS_FILE, {"steps": steps, "parts": [part._asdict() for part in parts]})
        (self._folder / MEMORY).write_text(by_memory, encoding="utf-8")
        files = [TRACE, OPERATORS, PARTS_FILE, MEMORY]
        if self._on_gpu:
            torch.cuda.memory._dump_snapshot(str(self._folder / SNAPSHOT))
            files.append(SNAPSHOT)
        log.info(
            "profiled %d steps: %s in %s; open the trace in https://ui.perfetto.dev%s (docs/profiling.md)",
            steps,
            ", ".join(files),
            self._folder,
            ", the snapshot in https://pytorch.org/memory_viz" if self._on_gpu else "",
        )


class Part(NamedTuple):
    """A part of a step, or a place within another one where it ran.

    Attributes:
        times: how often it ran in a step. cpu, gpu: milliseconds a step, what lies within it included; gpu is None
            where there is none.
        within: the part that it ran in; None for the step itself.
    """

    name: str
    times: float
    cpu: float
    gpu: float | None
    within: str | None


def parts_of(recorded: profile, steps: int, on_gpu: bool) -> list[Part]:
    """The parts that ran, in the order of a step, once for each part that they ran in."""
    events = [event for event in recorded.events() or () if event.device_type == DeviceType.CPU]
    found: dict[tuple[str, str | None], list[Any]] = {}
    for event in (event for event in events if event.name in PARTS):
        found.setdefault((event.name, _surrounding(event)), []).append(event)
    parts = []
    for (name, within), runs in sorted(found.items(), key=lambda each: PARTS.index(each[0][0])):
        cpu, gpu = (sum(getattr(run, f"{side}_time_total") for run in runs) / steps / 1e3 for side in ("cpu", "device"))
        parts.append(Part(name, len(runs) / steps, cpu, gpu if on_gpu else None, within))
    return parts


def _surrounding(event: Any) -> str | None:
    """The innermost part around an event, of its own thread."""
    around = event.cpu_parent
    while around is not None and around.name not in PARTS:
        around = around.cpu_parent
    return None if around is None else around.name


def _table(parts: Sequence[Part], on_gpu: bool) -> str:
    """Milliseconds a step on either side; a part within another is counted in both."""
    lines = [f"{'part':<12}{'times a step':>14}{'CPU ms a step':>16}" + f"{'GPU ms a step':>16}" * on_gpu]
    for name in dict.fromkeys(part.name for part in parts):
        own = [part for part in parts if part.name == name]
        line = f"{name:<12}{sum(part.times for part in own):>14g}{sum(part.cpu for part in own):>16.3f}"
        lines.append(line + f"{sum(part.gpu or 0.0 for part in own):>16.3f}" * on_gpu)
    return "\n".join(lines) if parts else NO_PART
