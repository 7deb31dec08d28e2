"""Section f: the whole training step in all ways, its parts, and its recurrent calls alone."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.gpu import part_times, recurrent_calls
from bench.gpu.clock import Clock, kernel_seconds
from bench.gpu.section import Bench
from bench.step import BATCHES, Ours, Plain, State, StepCase, after, start_state
from bench.step import compare as compare_states
from bench.views import Clips, ViewsCase
from fastmc.build import build_model
from fastmc.config import Config
from fastmc.encoders.amp import AMP, WorkingCopy, tensor_cores
from fastmc.views.clips import ViewImpl

TABLE, PARTS, ALONE = "A training step", "Its parts", "The recurrent calls of a step alone"
KERNELS = "This project's kernels within a step"
LOSS = {"bf16": 2 * 2.0**-8, "fp16": 2 * 2.0**-8, "tf32": 2 * 2.0**-8, "fp32": 1e-4}
"""How far the loss of the first step may be from the plain reference's, relative."""
STEPS = 20


@dataclass(frozen=True)
class Way:
    """How a step is made."""

    amp: str
    compile: str
    graph: str
    overlap: str = "auto"

    def __str__(self) -> str:
        compiled = ", compiled around the recurrent calls" if self.compile == "on" else ""
        alone = ", nothing beside the attack" if self.overlap == "off" else ""
        return f"{self.amp}{compiled}{alone}, {'one CUDA graph' if self.graph == 'on' else 'launch by launch'}"


PRODUCT = Way("bf16", "on", "on")
WAYS = (
    PRODUCT,
    Way("bf16", "on", "on", overlap="off"),
    Way("fp16", "on", "on"),
    Way("bf16", "off", "on"),
    Way("bf16", "on", "off"),
    Way("bf16", "off", "off"),
    Way("tf32", "on", "on"),
    Way("fp32", "on", "on"),
)
REHEARSED = (Way("fp32", "off", "off"), Way("bf16", "off", "off"))


class Steps:
    """Clips on the device, and steps on them that all begin in the same state."""

    def __init__(self, bench: Bench) -> None:
        sizes = bench.sizes
        self.bench, self.clock = bench, Clock(bench.device)
        self.case = StepCase("own", sizes.batch, sizes.bank, sizes.dim, sizes.encoder, sizes.frames)
        config = self.case.config()
        # The interpreter takes half a second for the views of a step.
        views: ViewImpl = "torch" if bench.rehearsal else "triton"
        self.config: Config = replace(
            config,
            step=replace(config.step, impl="triton", view_impl=views),
        )
        self.clips = Clips(ViewsCase(sizes.batch, sizes.frames, sizes.clips), bench.device)
        self.store = self.clips.packed
        self.batches = torch.arange(len(self.store), device=bench.device).split(sizes.batch)[:BATCHES]
        self.start: State = start_state(self.config, self.store, bench.device)
        self.truth: State = {}
        """What the plain reference's first step has come to, in float32; empty if it has failed."""

    def make(self, way: Way) -> Ours:
        if way.compile == "on":
            torch._dynamo.reset()  # else the encoders of earlier steps count against the limit of recompilations
        ways: dict[str, Any] = {"amp": way.amp, "compile": way.compile, "cuda_graph": way.graph, "overlap": way.overlap}
        step = replace(self.config.step, **ways)
        return Ours(replace(self.config, step=step), self.store, self.start)

    def numbered(self, side: Callable[..., Any]) -> Callable[[], Any]:
        """Each call makes the next step on the next batch."""
        numbers = itertools.count()

        def call() -> Any:
            number = next(numbers)
            return side(self.batches[number % len(self.batches)], number)

        return call


def run(bench: Bench) -> None:
    """The product's way first, then what its ratios need, then the other ways."""
    steps = Steps(bench)
    plain = Plain(steps.config, steps.store, steps.start)
    plain_step = steps.numbered(plain)
    steps.truth = bench.attempt("the plain reference's first step", first_step, plain, plain_step) or {}
    if not steps.truth:
        bench.found.note("the plain reference has failed, so what follows was held to nothing")
    product, *others = REHEARSED if bench.rehearsal else WAYS
    bench.attempt(str(product), time_way, steps, product)
    bench.attempt("recurrent calls", time_recurrent, steps, PRODUCT.amp)
    if bench.has(15, "the plain reference's step"):
        bench.attempt("the plain reference's step", time_plain, steps, plain_step)
    del plain, plain_step
    forget(bench)
    bench.attempt("parts", time_parts, steps)
    bench.attempt(recurrent_calls.SPLIT, recurrent_calls.compare_split, bench, steps.clock)
    for way in others:
        if bench.has(8, str(way)):
            bench.attempt(str(way), time_way, steps, way)
    for amp in () if bench.rehearsal else ("fp16", "tf32"):
        if bench.has(3, what := f"recurrent calls in {amp}"):
            bench.attempt(what, time_recurrent, steps, amp)


def first_step(plain: Plain, step: Callable[[], Any]) -> State:
    """All that it comes to, in float32."""
    with tensor_cores(False):
        return after(plain.live_state(), step())


def forget(bench: Bench) -> None:
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def time_way(steps: Steps, way: Way) -> None:
    """A row of the table. AssertionError if the first step's loss, or in float32 any of its results, is not the
    reference's."""
    bench, on_gpu = steps.bench, steps.clock.on_gpu
    forget(bench)
    before = torch.cuda.memory_allocated() if on_gpu else 0
    step = steps.numbered(ours := steps.make(way))
    metrics = step()
    assert ours.captured == (way.graph == "on"), "the step was not captured, and the log says why"
    apart, share = check_step(steps, way, ours, metrics) if steps.truth else (None, None)
    timing = steps.clock.launched([step], max(0.1, min(2.5, bench.left() / 20)))
    seconds = timing.median
    bench.found.row(
        TABLE,
        way=str(way),
        **timing.cells("ms"),
        steps_per_second=1 / seconds,
        peak_GB=(torch.cuda.max_memory_allocated() - before) / 1e9 if on_gpu else None,
        loss_off_by=apart,
        **{"% of the error budget of all results": share},
    )
    if way == PRODUCT or bench.rehearsal:
        bench.found.number("step_seconds", seconds)
        compare(bench)


def check_step(steps: Steps, way: Way, ours: Ours, metrics: Any) -> tuple[float, float | None]:
    """How far its loss is from the reference's; in float32 the largest share of its budget that a result uses, in %."""
    loss, truth = float(metrics["loss"]), float(steps.truth["loss"])
    apart = abs(loss / truth - 1)
    assert apart <= LOSS[way.amp], f"the loss is {loss:.6f}, the plain reference's {truth:.6f}"
    if way.amp != "fp32":
        return apart, None
    found = after(ours.live_state(), metrics)
    return apart, 100 * compare_states(str(way), steps.case, steps.start, found, steps.truth)


def time_plain(steps: Steps, step: Callable[[], Any]) -> None:
    """The plain reference, float32, launch by launch; few rounds, since one may take seconds."""
    with tensor_cores(False):
        timing = steps.clock.launched([step], max(0.1, min(6.0, steps.bench.left() / 10)), fewest=2)
    cells = timing.cells("ms")
    steps.bench.found.row(TABLE, way="plain reference, float32", **cells, steps_per_second=1 / timing.median)
    steps.bench.found.number("plain_step_seconds", timing.median)
    compare(steps.bench)


def time_recurrent(steps: Steps, amp: str) -> None:
    """Its recurrent calls alone, by the net of a step's working copy and by one of PyTorch's."""
    bench = steps.bench
    if bench.rehearsal:
        amp = "fp32"
    dtype = AMP[amp].dtype
    with tensor_cores(AMP[amp].tensor_cores):
        copy = WorkingCopy(build_model(steps.config, steps.store, bench.device).representation, dtype)
        copy.refresh()
        call = recurrent_calls.step_calls(copy.network.get_submodule("recurrent"), bench, dtype)
        timing = steps.clock.best([call], max(0.1, min(3.0, bench.left() / 15)))
    bench.found.row(ALONE, precision=amp, **timing.cells("ms"), how=timing.how)
    if amp == PRODUCT.amp or bench.rehearsal:
        bench.found.number("recurrent_seconds", timing.median)
        compare(bench)


def compare(bench: Bench) -> None:
    """The ratios that can be formed by now."""
    known = bench.found.numbers
    if {"step_seconds", "recurrent_seconds"} <= known.keys():
        bench.found.number("step_vs_encoder", known["step_seconds"] / known["recurrent_seconds"])
    if {"step_seconds", "plain_step_seconds"} <= known.keys():
        bench.found.number("step_vs_reference", known["plain_step_seconds"] / known["step_seconds"])


def time_parts(steps: Steps) -> None:
    """Parts of the product's step: within the graph, where events can be captured, and launch by launch."""
    bench, on_gpu = steps.bench, steps.clock.on_gpu
    rows: dict[str, dict[str, float]] = {}
    if on_gpu:

        def within_the_graph() -> None:
            ours = steps.make(PRODUCT)
            rows["ms within the graph"] = part_times.replayed(steps.numbered(ours), STEPS)

        bench.attempt("parts within the graph", within_the_graph)
    forget(bench)
    if bench.has(5, "parts, launch by launch"):
        step = steps.numbered(steps.make(Way(PRODUCT.amp, "off", "off")))
        for _ in range(2):
            step()
        rows["ms launch by launch"] = part_times.launched(step, 1 if bench.rehearsal else STEPS, on_gpu)
        for name, (seconds, launches) in (kernel_seconds([step], rounds=5) if on_gpu else {}).items():
            bench.found.row(KERNELS, kernel=name, launches=launches, us_a_launch=1e6 * seconds)
    names = list(dict.fromkeys(name for seconds in rows.values() for name in seconds))
    cells = [
        {"part": name} | {way: 1e3 * seconds[name] for way, seconds in rows.items() if name in seconds}
        for name in names
    ]
    bench.found.replace(PARTS, cells)
