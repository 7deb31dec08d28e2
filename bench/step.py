"""The whole training step against the plain reference, against a step as earlier released codes write it, and against
its encoder calls alone; one after the other in turns, after all have come to the same new state.

In parity everybody makes one step from the same state on the same clips with the same random choices, and every weight,
velocity, statistic and bank entry after it has to be that of the plain reference (fastmc/reference/step.py), for the
stepwise reading that of the step in bench/stepwise.py, which tests hold against the reference.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bench.machine import Neighbours, watch_neighbours
from bench.measure import Measurement, Timing, Turns, times
from bench.parity import BUDGET, ParityError
from bench.providers import PROVIDERS, Case, Mix
from bench.stepwise import FramewiseEncoder, Loader, NumpyClips, Sample, StepwiseStep, framewise_name
from bench.views import Clips, ViewsCase, choices_of, noise_of
from fastmc.build import ClipLayout, build_model
from fastmc.config import Config, OptimConfig, StepConfig, preset_config
from fastmc.data.placed.resident import PlacedStore
from fastmc.encoders.bigru import BiGRUConfig, Reading
from fastmc.encoders.norm import ViewNorm
from fastmc.methods.a2mc import A2MC, OF_ATTACKED, OF_CLIPS, X0, X1, X2, X3, A2MCConfig
from fastmc.methods.attack import logit_gradient
from fastmc.methods.base import Batch
from fastmc.optim import Fused
from fastmc.reference import step as reference
from fastmc.views.clips import PackedClips
from fastmc.views.draw import COLUMNS, MASK, ViewParams, draw_params
from train.engine.choices import choose_amp, choose_compile, choose_graph, choose_overlap
from train.engine.graph import GraphedStep
from train.engine.loop import build_step, graph_step
from train.engine.step import FaultWatch

OURS, REFERENCE, ENCODER = "fastmc", "plain reference", "fastmc's encoder calls alone"
OURS_STEPWISE, STEPWISE = "fastmc, stepwise reading", "as earlier codes, stepwise reading"
BATCHES = 8
"""Batches that the timed steps go through, over and over again."""
State = dict[str, Tensor]
"""What a step changes, by name: query.*, key.* and velocity.* with the names of `fastmc.encoders.bigru.BiGRU`,
bank.entries, bank.momentum."""


@dataclass(frozen=True)
class StepCase:
    """By default the paper's batch and bank, with an encoder that a CPU can train."""

    mix: Mix = "own"
    """How a mixed bank is made, see fastmc.mc_loss."""
    batch: int = 64
    """B, clips."""
    bank: int = 16384
    """K, bank entries."""
    dim: int = 128
    """D, elements of a feature."""
    encoder: str = "3x256"
    """Layers x hidden units of the GRU."""
    frames: int = 64
    """T of a view."""
    workers: int = 1
    """Processes that make views for the step as earlier codes write it."""

    def __str__(self) -> str:
        sizes = f"B = {self.batch}, K = {self.bank:,}, encoder {self.encoder}, T = {self.frames}"
        return f"training step, {self.mix} mixing, {sizes}"

    def config(self, reading: Reading = "sequence") -> Config:
        """The paper's settings at this case's size, in float32: the gate is one of float32."""
        return replace(
            preset_config("paper"),
            frames=self.frames,
            encoder=BiGRUConfig(self.encoder, reading, feature_dim=self.dim),
            settings=A2MCConfig(bank_size=self.bank, mix=self.mix),
            optim=OptimConfig(batch_size=self.batch),
            step=StepConfig(amp="fp32"),
        )


# --- The state that all start from


def start_state(config: Config, store: PlacedStore, device: torch.device) -> State:
    """A state as in the middle of a run, where every part of a step shows: the key encoder is not the query encoder,
    velocities are not zero, no bank row has unit length, the input norm has seen data."""
    models = [a2mc(replace(config, seed=config.seed + n), store, device) for n in range(2)]
    generator = torch.Generator().manual_seed(config.seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(device)

    state: State = {}
    for name, encoder in (("query", models[0].query), ("key", models[1].key)):
        norm = encoder.norm
        assert isinstance(norm, ViewNorm) and norm.running_mean is not None and norm.running_var is not None
        norm.running_mean.copy_(0.1 * noise(norm.running_mean))
        norm.running_var.copy_(0.25 * (1 + noise(norm.running_var).square()))
        state |= {f"{name}.{key}": value.clone() for key, value in encoder.state_dict().items()}
    state |= {f"velocity.{name}": 1e-3 * noise(p) for name, p in models[0].query.named_parameters()}
    bank = models[0].bank
    lengths = 0.5 + torch.rand(len(bank.entries), 1, generator=generator).to(device)
    state["bank.entries"] = lengths * bank.entries
    state["bank.momentum"] = noise(bank.momentum) / len(bank.entries)
    return state


def live_state(
    query: torch.nn.Module,
    key: torch.nn.Module,
    bank: Tensor,
    momentum: Tensor,
    optimizer: Fused | torch.optim.Optimizer,
) -> State:
    """The very tensors that a step changes."""
    state = {f"query.{name}": value for name, value in query.state_dict().items()}
    state |= {f"key.{name}": value for name, value in key.state_dict().items()}
    for name, weight in query.named_parameters():
        slots = optimizer.state[weight]
        if slots.get("momentum_buffer") is None:
            slots["momentum_buffer"] = torch.zeros_like(weight)
        state[f"velocity.{name}"] = slots["momentum_buffer"]
    return state | {"bank.entries": bank, "bank.momentum": momentum}


def renamed(live: State, names: Iterable[str]) -> State:
    """What lies under these names of `fastmc.encoders.bigru.BiGRU`, where a side may have those of
    `FramewiseEncoder`."""
    return {name: live[framewise_name(name)] for name in names}


def under(state: State, prefix: str) -> State:
    """What lies there, without the prefix."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


@torch.no_grad()
def load(live: State, start: State) -> None:
    """Put a state in place."""
    assert live.keys() == start.keys()
    for name, value in start.items():
        live[name].copy_(value)


# --- The sides: each makes step ``number`` on the clips ``ids``, and returns the metrics


class Ours:
    """This project's step, as `train.engine.loop` makes it."""

    def __init__(self, config: Config, store: PlacedStore, start: State | None = None) -> None:
        """``start``: by default that of a fresh run."""
        self.config, self.store, device = config, store, store.device
        self.model = a2mc(config, store, device)
        overlap = choose_overlap(config, device, has_work=self.model.overlaps)
        self.stepper = build_step(config, self.model, choose_amp(config.step, device).value, overlap.value)
        if choose_compile(config.step, device).value == "on":
            self.stepper.compile_around()
        self._graphed: GraphedStep | None = None
        if choose_graph(config, store, device).value == "on":
            self._graphed = graph_step(self.stepper, store)
        self._watch = FaultWatch(self.stepper)
        if start is not None:
            load(self.live_state(), start)

    def live_state(self) -> State:
        model, bank = self.model, self.model.bank
        optimizer = self.stepper.update.optimizer
        return live_state(model.query, model.key, bank.entries, bank.momentum, optimizer)

    @property
    def captured(self) -> bool:
        """Whether the last step was the replay of a graph."""
        return self._graphed is not None and self._graphed.captures > 0

    def __call__(self, ids: Tensor, number: int) -> reference.Metrics:
        self.stepper.prepare(ids, number, self.config.optim.lr)
        if self._graphed is None:
            self.stepper.advance(self.store.select(self.stepper.sample))
        else:
            self._graphed()
        if self._watch.sees_a_fault():
            self.stepper.check()
        return {metric.name: value for metric, value in zip(A2MC.metrics, self.stepper.metrics, strict=True)}


def a2mc(config: Config, layout: ClipLayout, device: torch.device) -> A2MC:
    """The method at hand."""
    model = build_model(config, layout, device)
    assert isinstance(model, A2MC)
    return model


@torch.no_grad()
def make_data(model: A2MC, store: PlacedStore, ids: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """All that a step does before an encoder sees anything: x of eq. 5, (B, T, V * M * 3), and the four views
    (4, B, T, V * M * 3) as the step has them, of which x1 and x2 are made of x as if it had been attacked."""
    batch = Batch(model.setup, model.views, store.select(ids), ids, step)
    x = batch.whole()
    batch.make(X0, X3)
    batch.make(X1, X2, of=x)
    return x, batch.x


class Plain:
    """The plain reference."""

    def __init__(self, config: Config, store: PlacedStore, start: State) -> None:
        self.config, self.store = config, store
        self.model = a2mc(config, store, store.device)
        self.query, self.key = plain_encoders(config, self.model.setup.shape.width, store.device)
        self.optimizer = plain_optimizer(config, self.query)
        self._names = tuple(start)
        load(self.live_state(), start)

    def live_state(self) -> State:
        bank = self.model.bank
        live = live_state(self.query, self.key, bank.entries, bank.momentum, self.optimizer)
        return renamed(live, self._names)

    def __call__(self, ids: Tensor, number: int) -> reference.Metrics:
        clips = self.store.select(ids)
        bodies, skeleton = clips.max_bodies, self.store.skeleton
        params = view_params(self.config, clips, skeleton.num_joints, ids, number)
        return reference.pretrain_step(
            self.query,
            self.key,
            self.model.attack_head,
            self.optimizer,
            self.model.bank.entries,
            self.model.bank.momentum,
            plain_clips(clips),
            plain_choices(params, self.config.frames, bodies),
            self.model.coefficients,
            size=self.config.frames,
            mirror=skeleton.mirror,
            **plain_settings(self.config),
        )


def stepwise_step(config: Config, clips: Clips, start: State, loader: Loader) -> tuple[StepwiseStep, State]:
    """The step as earlier codes write it, and its live state."""
    store = clips.packed
    model = a2mc(config, store, store.device)
    query, key = plain_encoders(config, model.setup.shape.width, store.device)
    optimizer, bank = plain_optimizer(config, query), model.bank
    learning = (query, key, model.attack_head, optimizer, bank.entries, bank.momentum, model.coefficients)
    step = StepwiseStep(*learning, clips=clips, loader=loader, **plain_settings(config))
    live = renamed(live_state(query, key, bank.entries, bank.momentum, optimizer), start)
    load(live, start)
    return step, live


def plain_encoders(config: Config, width: int, device: torch.device) -> tuple[reference.Encoder, reference.Encoder]:
    """Query and key encoder in the config's reading, for clips of so many numbers a frame."""
    encoder = config.encoder
    assert isinstance(encoder, BiGRUConfig)
    (layers, hidden), dim = encoder.size, encoder.feature_dim
    kind = reference.Encoder if encoder.reading == "sequence" else FramewiseEncoder
    query, key = (kind(width, hidden, layers, dim).to(device) for _ in range(2))
    return query, key


def plain_optimizer(config: Config, query: torch.nn.Module) -> torch.optim.Optimizer:
    """One tensor after the other."""
    optim = config.optim
    return torch.optim.SGD(
        query.parameters(), lr=optim.lr, momentum=0.9, weight_decay=optim.weight_decay, foreach=False, fused=False
    )


def plain_settings(config: Config) -> dict[str, Any]:
    """Those of `fastmc.reference.step.pretrain_step` that a config has."""
    c = config.settings
    assert isinstance(c, A2MCConfig)
    names = ("temperature", "bank_temperature", "bank_lr", "bank_momentum", "bank_weight_decay", "ema", "mix")
    return {name: getattr(c, name) for name in names} | {
        "eps": c.attack_lr,
        "eta": c.attack_norm,
    }


def view_params(config: Config, clips: PackedClips, joints: int, ids: Tensor, number: int) -> list[ViewParams]:
    """The random choices of a step: of views 0 and 3, and of views 1 and 2."""
    keyed: dict[str, Any] = {"seed": config.seed, "step": number, "sample": ids, "impl": config.step.view_impl}
    return [
        draw_params(config.augment, clips.num_frames, joints, views=views, resized_to=resized_to, **keyed)
        for views, resized_to in ((OF_CLIPS, None), (OF_ATTACKED, config.frames))
    ]


def plain_clips(clips: PackedClips) -> list[Tensor]:
    """Each (T_n, M, V, 3), zero where a body is missing."""
    found = []
    index = (column.tolist() for column in (clips.start, clips.num_frames, clips.num_bodies))
    for start, frames, bodies in zip(*index, strict=True):
        rows = clips.frames[start : start + frames * bodies].unflatten(0, (frames, bodies))
        missing = rows.new_zeros(frames, clips.max_bodies - bodies, *rows.shape[2:])
        found.append(torch.cat([rows, missing], dim=1))
    return found


def plain_choices(params: Sequence[ViewParams], size: int, bodies: int) -> list[list[reference.Choices]]:
    """Of views 0..3, for each clip: what a parameter table says, for `fastmc.reference.augment.view`."""

    def choices(one: ViewParams, w: int, n: int) -> reference.Choices:
        row = {name: one.column(name)[w, n] for name in (*COLUMNS, *MASK)}
        noise = torch.zeros(size, bodies, one.num_joints, 3)
        if row["noise_std"] > 0:
            noise = torch.from_numpy(noise_of(one, w, n, size)).permute(1, 3, 2, 0)[:, :bodies]
        return row | {"noise": noise.to(one.table)}

    place = {view: (one, w) for one in params for w, view in enumerate(one.views)}
    return [[choices(*place[view], n) for n in range(len(params[0].sample))] for view in range(4)]


class EncoderCalls:
    """What a step asks of its encoders, on views that are there, with gradients that are there: the key encoder's pass,
    the attack's pass and the gradient of its input, the query encoder's pass over three views and back."""

    def __init__(self, config: Config, store: PlacedStore, start: State, ids: Tensor) -> None:
        self.model = model = a2mc(config, store, store.device)
        for name, encoder in (("query", model.query), ("key", model.key)):
            encoder.load_state_dict(under(start, f"{name}."))
            if choose_compile(config.step, store.device).value == "on":
                encoder.compile_around()
        model.train()
        self.x, self.views = make_data(model, store, ids, 0)
        generator = torch.Generator().manual_seed(0)
        shape = (3 * len(ids), config.encoder.feature_dim)
        self.df = torch.randn(shape, generator=generator).to(store.device) / len(ids)
        with torch.no_grad(), model.query.fixed():
            self.dlogits = logit_gradient(model.attack_head(model.query.represent(self.x)))

    def __call__(self) -> State:
        """f0 (B, D), f of views 3, 1, 2 (3B, D), the attack's gradient, and those of the weights."""
        query, key = self.model.query, self.model.key
        with torch.no_grad():
            f0 = key(self.views[0])
        with query.fixed():
            variable = self.x.detach().requires_grad_()
            logits = self.model.attack_head(query.represent(variable))
        (dx,) = torch.autograd.grad(logits, variable, self.dlogits)
        f = query(self.views[1:].flatten(0, 1), views=3)
        for weight in query.parameters():
            weight.grad = None
        torch.autograd.backward(f, self.df)
        gradients = {f"gradient of {name}": p.grad for name, p in query.named_parameters() if p.grad is not None}
        return {"f0": f0, "f": f.detach(), "dx": dx} | gradients

    def expected(self, config: Config, start: State) -> State:
        """The same of the reference's encoder, a view at a time."""
        query, key = plain_encoders(config, self.model.setup.shape.width, self.x.device)
        query.load_state_dict(under(start, "query."))
        key.load_state_dict(under(start, "key."))
        found: State = {}
        query.norm.eval()
        variable = self.x.detach().requires_grad_()
        (found["dx"],) = torch.autograd.grad(self.model.attack_head(query.represent(variable)), variable, self.dlogits)
        query.norm.train()
        with torch.no_grad():
            found["f0"] = key(self.views[0])
        f = torch.cat([query(view) for view in self.views[1:]])
        f.backward(self.df)
        found["f"] = f.detach()
        return found | {f"gradient of {name}": p.grad for name, p in query.named_parameters() if p.grad is not None}


# --- The gate


def compare(name: str, case: StepCase, before: State, found: State, truth: State) -> float:
    """The largest share of its budget that a tensor after the step uses.

    In the scale of what the step changes most in it, a tensor may be off by the roundings that bench.parity gives a
    loss, and one more for each frame: the recurrent net rounds its state there. A logit is a feature divided by the
    temperature, and so is its error. Besides, a number may be off by two roundings of its own.

    Args:
        before: what the tensors were before the step; those that are not there were zero.

    Raises:
        ParityError: it uses more than all of it, or is not finite; the message names the tensor.
    """
    worst = 0.0
    tau = min(A2MCConfig.temperature, A2MCConfig.bank_temperature)
    for part, exact in truth.items():
        exact = exact.double()
        change = exact - before[part].double() if part in before else exact
        roundings = (BUDGET + case.frames) / tau * float(change.abs().max()) + 2 * float(exact.abs().max())
        allowed = torch.finfo(torch.float32).eps * roundings
        error = float((found[part].double() - exact).abs().max())
        if not error <= allowed:  # a NaN is not
            raise ParityError(
                f"{name} does not make the same step, so there are no numbers ({case}): {part} is off by {error:.2e}, "
                f"its budget is {allowed:.2e}"
            )
        worst = max(worst, error / allowed if allowed else 0.0)
    return worst


def after(live: State, metrics: reference.Metrics) -> State:
    """All that a step has come to. Not top1: a rounding may tip a sample."""
    said = {name: value.detach().clone() for name, value in metrics.items() if name != "top1"}
    return said | {name: value.detach().clone() for name, value in live.items()}


# --- The race


class StepRace(Turns):
    """All sides, compared and ready to be timed. Close it: the loader has processes of its own.

    Attributes:
        loader: of the step as earlier codes write it.
    """

    def __init__(self, case: StepCase, timing: Timing, *, encoder_calls: bool = True) -> None:
        """``encoder_calls``: those alone take part too.

        Raises:
            ParityError: a side makes another step; there is nothing to measure then.
            ValueError: the reference needs more memory than the timing allows.
        """
        super().__init__(timing)
        loss = Case("step", case.mix, case.batch, case.bank, case.dim)
        reason = PROVIDERS["reference"].fits(loss, timing.memory_limit_gb)
        if reason is not None:
            raise ValueError(f"memory_limit_gb: the plain reference of {case} {reason}")
        self.case = case
        self.clips = Clips(ViewsCase(case.batch, case.frames, BATCHES * case.batch), self.device)
        self._batches = torch.arange(len(self.clips.packed), device=self.device).split(case.batch)
        self.loader = Loader(self.clips, [batch.tolist() for batch in self._batches], case.workers)
        try:
            self._enter_sequence(encoder_calls)
            self._enter_stepwise()
        except BaseException:
            self.close()
            raise

    def _enter_sequence(self, encoder_calls: bool) -> None:
        config, store = self.case.config(), self.clips.packed
        start = start_state(config, store, self.device)
        plain, ours = Plain(config, store, start), Ours(config, store, start)
        truth: State = {}

        def remember(metrics: reference.Metrics) -> float:
            truth.update(after(plain.live_state(), metrics))
            return 0.0

        def check(metrics: reference.Metrics) -> float:
            return compare(OURS, self.case, start, after(ours.live_state(), metrics), truth)

        self.enter(REFERENCE, self._numbered(plain), check=remember)
        self.found[REFERENCE].budget = None  # it is the truth
        self.enter(OURS, self._numbered(ours), check=check, compiles=True)
        if encoder_calls:
            calls = EncoderCalls(config, store, start, self._batches[0])
            expected = calls.expected(config, start)

            def check_calls(found: State) -> float:
                return compare(ENCODER, self.case, {}, found, expected)

            self.enter(ENCODER, calls, check=check_calls, compiles=True)

    def _enter_stepwise(self) -> None:
        config, store = self.case.config("stepwise"), self.clips.packed
        start = start_state(config, store, self.device)
        step, live = stepwise_step(config, self.clips, start, self.loader)
        ours = Ours(config, store, start)
        given: Iterator[tuple[Sample, Any]] = iter([given_batch(config, self.clips, self._batches[0], 0)])
        truth: State = {}

        def as_earlier_codes() -> reference.Metrics:
            first = next(given, None)
            return step() if first is None else step.advance(*first)

        def remember(metrics: reference.Metrics) -> float:
            truth.update(after(live, metrics))
            return 0.0

        def check(metrics: reference.Metrics) -> float:
            return compare(OURS_STEPWISE, self.case, start, after(ours.live_state(), metrics), truth)

        self.enter(STEPWISE, as_earlier_codes, check=remember)
        self.found[STEPWISE].budget = None
        self.enter(OURS_STEPWISE, self._numbered(ours), check=check, compiles=True)

    def _numbered(self, side: Callable[[Tensor, int], reference.Metrics]) -> Callable[[], reference.Metrics]:
        """Each call makes the next step on the next batch."""
        numbers = itertools.count()

        def call() -> reference.Metrics:
            number = next(numbers)
            return side(self._batches[number % BATCHES], number)

        return call

    def restore(self) -> None:
        """Nobody is timed while the loader makes batches for another's steps."""
        self.loader.settle()

    def run(self, says: str, *, progress: bool = False) -> None:
        """As `Turns.run`."""
        with self.watch() as neighbours:
            super().run(says, progress=progress)
        self.others_busy = neighbours.busy

    @contextmanager
    def watch(self) -> Iterator[Neighbours]:
        """As `watch_neighbours`; the loader's processes, which live on, are none."""
        used, began = self.loader.processor_seconds, time.perf_counter()
        with watch_neighbours() as neighbours:
            yield neighbours
        used, seconds = self.loader.processor_seconds - used, time.perf_counter() - began
        if neighbours.busy is not None:
            neighbours.busy = max(0.0, neighbours.busy - used / seconds)

    def close(self) -> None:
        self.loader.close()


def given_batch(config: Config, clips: Clips, ids: Tensor, number: int) -> tuple[Sample, Any]:
    """The batch of a step and its choices as the numpy pipeline takes them, with the random choices of our step."""
    params = view_params(config, clips.packed.select(ids), clips.skeleton.num_joints, ids, number)
    place = {view: (one, w) for one in params for w, view in enumerate(one.views)}
    row = {clip_id: n for n, clip_id in enumerate(ids.tolist())}

    def choose(clip_id: int, view: int) -> Any:
        return choices_of(*place[view], row[clip_id], config.frames)

    dataset = NumpyClips(clips, choose)
    return Sample(*torch.utils.data.default_collate([dataset[clip_id] for clip_id in row])), choose


def samples_per_second(found: Measurement, batch: int) -> str:
    """B / median, and the range of the quartiles."""
    low, high = found.quartiles
    return f"{batch / found.median:.1f} samples/s ({batch / high:.1f} to {batch / low:.1f})"


def text(race: StepRace) -> str:
    """Time of each call, and what else belongs to it."""
    case, found = race.case, race.found
    limited = race.loader.seconds_per_batch / race.loader.workers
    waits = "more" if limited > found[STEPWISE].median else "less"
    return "\n".join(
        [
            times(str(case), found, race.others_busy),
            *(f"{name}: {samples_per_second(found[name], case.batch)}" for name in (OURS, OURS_STEPWISE)),
            f"the loader's {case.workers} worker(s) take {1e3 * limited:.0f} ms a batch, {waits} than such a step",
        ]
    )
