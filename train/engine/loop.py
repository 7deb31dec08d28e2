"""The pre-training loop: epochs of steps, with probes, checkpoints and resume."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fastmc import checkpoint
from fastmc.build import build_model
from fastmc.checks import check_number
from fastmc.config import Config, to_plain
from fastmc.data.placed.order import epoch_order
from fastmc.data.placed.placement import place_store
from fastmc.data.placed.resident import PlacedStore
from fastmc.data.report import why_not_evaluated
from fastmc.data.store import PackedStore
from fastmc.evaluation import frozen_features, knn_evaluate
from fastmc.methods.base import Method
from fastmc.progress import progress_bar
from fastmc.random import default_generators_kept
from fastmc.state import Position, RunState, TrainingData
from fastmc.views.clips import PackedClips
from train.engine.choices import Choice, choose_amp, choose_compile, choose_graph, choose_overlap
from train.engine.graph import CudaRecorder, GraphedStep, Recorder
from train.engine.initial import read_weights, start_from
from train.engine.profiling import StepProfiler
from train.engine.record import Metrics, Rows, duration, epoch_line, log, scalars
from train.engine.signals import Stopped
from train.engine.step import FaultWatch, NonFiniteError, PretrainStep
from train.engine.stopping import ECHO, asked_to_stop
from train.engine.wandb import open_wandb
from train.engine.world import World

SAYS_EVERY = 60.0
"""Seconds between two lines within an epoch, where no terminal shows a bar."""


def build_step(
    config: Config, model: Method, amp: str = "fp32", overlap: str = "off", world: World | None = None
) -> PretrainStep:
    """The step of this model; ``amp`` and ``overlap`` as `train.engine.choices` chooses them."""
    return PretrainStep(model, config.optim, config.optim.batch_size, amp=amp, overlap=overlap == "on", world=world)


def graph_step(
    stepper: PretrainStep, store: PlacedStore, recorder: Recorder | None = None, phase: str = "main"
) -> GraphedStep:
    """Steps of one phase as one graph, of clips whose frames stay where they are."""

    def body() -> None:
        stepper.advance(store.select(stepper.sample), phase=phase)

    recorder = recorder or CudaRecorder(stepper.sample.device)
    alone = stepper.world.size == 1
    return GraphedStep(body, stepper.state, lambda: stepper.update.baked, recorder, alone)


class Pretraining:
    """A run in progress.

    Attributes:
        data: the clips; ``placement`` says in one line where their frames are and why.
        stepper: makes the steps; ``amp``, ``compiled``, ``graph`` and ``overlap`` say how, and why. Its sums of the
            metrics since the epoch began make the epoch's row of metrics.csv, with ``seconds``.
        can_probe: whether there are labelled clips to train a classifier on, and others to test it on.
        initial: level and line to log of the weights that it starts from, if those were given.
        epoch, batch: position; ``step`` counts all batches since the start.
        before_saving: is called before each checkpoint is written.
        world: the processes that train together, of which one writes. A batch is shared out to them.
    """

    def __init__(
        self, config: Config, store: PackedStore, folder: Path, device: torch.device, world: World | None = None
    ) -> None:
        """Writes nothing. ValueError for a protocol that cannot be trained on, too large a batch, or a best probe that
        is wanted of none."""
        assert config.protocol is not None
        protocol = config.protocol
        self.config, self.folder, self.device = config, folder, device
        self.checksum, self.about_data = store.content_checksum, TrainingData.of_store(store)
        train, test = store.split(protocol)
        self.train_ids, self.test_ids = torch.from_numpy(train).to(device), torch.from_numpy(test).to(device)
        self.world = world or World()
        self.batches = len(train) // config.optim.batch_size
        if self.batches == 0:
            raise ValueError(
                f"batch_size = {config.optim.batch_size} is larger than the {len(train)} training clips of {protocol}; "
                f"give --batch-size {max(len(train), 1)} or less"
            )
        labelled, tested = (torch.from_numpy(ids).to(device) for ids in store.labelled_split(protocol))
        self._labelled = labelled, tested
        self.can_probe = why_not_evaluated(store, protocol) is None
        if self.can_probe:
            check_number("knn_k", config.evaluation.knn_k, at_least=1, at_most=len(labelled))
        if config.log.keep_best and not config.log.probe_every:
            raise ValueError("--keep-best keeps the checkpoint of the best probe, and probe_every = 0 makes none")
        self._store = store
        self.data, self.placement = place_store(store, device, config.data)
        self.model = build_model(config, self.data, device, allow=(config.method, config.backbone))
        self.initial: tuple[int, str] | None = None
        self._before: dict[str, Tensor] | None = {}
        if config.init_from and (config.restart or not checkpoint.complete(self.checkpoints)):
            weights = read_weights(config.init_from, config.stream)
            self.initial = start_from(weights, self.model)
            self._before = None if weights.seen is None else dict(weights.seen)
        self.amp, self.compiled = choose_amp(config.step, device), choose_compile(config.step, device)
        self.graph = choose_graph(config, self.data, device, self.world.no_graph_reason())
        self.overlap = choose_overlap(config, device, has_work=self.model.overlaps)
        self.stepper = build_step(config, self.model, self.amp.value, self.overlap.value, self.world)
        if self.compiled.value == "on" and (left := self.stepper.compile_around()):
            exchanges = f"without the encoder's {', '.join(left)}, whose norms exchange statistics with other ranks"
            self.compiled = self.compiled._replace(why=f"{self.compiled.why}; {exchanges}")
        self._graphs: dict[str, GraphedStep] = {}
        self._watch = FaultWatch(self.stepper)
        self.epoch = self.batch = self.step = 0
        self.seconds = 0.0
        self._saved_at = self._started_at = self._said_at = time.monotonic()
        self._earlier_seconds = 0.0
        self._rows: list[dict[str, Any]] | None = None
        self.before_saving: Callable[[], None] = lambda: None

    @property
    def wall_seconds(self) -> float:
        """Wall time of the run so far, that of its earlier parts up to their last checkpoints included."""
        return self._earlier_seconds + time.monotonic() - self._started_at

    @property
    def choices(self) -> dict[str, Choice]:
        """How steps are computed."""
        return {"amp": self.amp, "compile": self.compiled, "CUDA graph": self.graph, "overlap": self.overlap}

    @property
    def computed(self) -> str:
        """How steps are computed, and why, in one line."""
        choices = ", ".join(f"{name} {choice.value} ({choice.why})" for name, choice in self.choices.items())
        return f"step: {choices}; {self.stepper.update.says}"

    @property
    def finished(self) -> bool:
        return self.epoch >= self.config.optim.epochs

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def run(self) -> None:
        """Train to the last epoch, from wherever the run stands.

        Raises:
            NonFiniteError: names epoch, step, values, and the last good checkpoint.
            StoreError: the data were changed meanwhile.
            Stopped: it was asked to (`train.engine.stopping`), and a checkpoint of that moment is written.
            RankLost, RanksDiffer: one of several ranks is gone, or computes something else.
        """
        metrics, sent, profiled = Rows(self.epoch, self._rows or []), None, 0
        if self.world.writes:
            names = [metric.name for metric in self.model.metrics]
            metrics = Metrics(self.folder, names, epochs_done=self.epoch, rows=self._rows)
            sent = open_wandb(self.config, self.folder, metrics.rows)
            profiled = self.config.step.profile
        self._rows = metrics.rows
        epochs = self.config.optim.epochs
        steps = epochs * self.batches
        shows = sys.stderr.isatty() and self.world.writes
        bar = tqdm(total=steps, initial=self.step, disable=not shows, **progress_bar("step"))
        try:
            profile = StepProfiler(profiled, self.folder / "profile", self.device)
            echo = ECHO if self.world.size > 1 else 0.0
            kept = default_generators_kept(self.device)
            with bar, closing(profile) as profiler, asked_to_stop(echo) as stops, kept:
                while not self.finished:
                    bar.set_description(f"epoch {self.epoch + 1}/{epochs}")
                    self._run_epoch(bar, profiler, stops)
                    best = max((past.get("knn_top1", -1.0) for past in metrics.rows), default=-1.0)
                    metrics.write(row := self._epoch_row())
                    if sent is not None:
                        sent.log(scalars(row), step=row["step"])
                    eta = row["seconds"] * (epochs - self.epoch - 1)
                    log.info(epoch_line(row, self.model.metrics, epochs, eta, self.config.encoder.feature_dim))
                    self._said_at = time.monotonic()
                    self._start_epoch(self.epoch + 1)
                    if self.config.log.keep_best and row.get("knn_top1", -1.0) > best:
                        self._save(self.checkpoints / checkpoint.BEST, keep=1)
                    every = self.config.log.checkpoint_every
                    is_late, number = self.world.agree(self._is_late, stops())
                    if self.finished or self.epoch % every == 0 or is_late or number:
                        self.save()
                    if number := number or self.world.agree(stops())[0]:
                        raise Stopped(number)
        finally:
            # NCCL's communicator waits at its end for graphs that hold its exchanges, and the frames of an error's
            # traceback would keep them.
            self.release()
            metrics.close()
            if sent is not None:
                sent.finish()

    def release(self) -> None:
        """Destroy what was captured as CUDA graphs; a next step captures anew."""
        graphs, self._graphs = self._graphs, {}
        for graph in graphs.values():
            graph.release()

    def _run_epoch(self, bar: tqdm, profiler: StepProfiler, stops: Callable[[], int]) -> None:
        self._store.check_unchanged()
        started = time.perf_counter()
        with closing(self._remaining_batches()) as batches:
            for ids, clips in batches:
                if not self._advance(ids, clips):
                    profiler.step()
                bar.update()
                if bar.disable and self.batch < self.batches and time.monotonic() - self._said_at > SAYS_EVERY:
                    self._say(self.seconds + time.perf_counter() - started)
                fault, is_late, number = self.world.agree(self._watch.sees_a_fault(), self._is_late, stops())
                # Not after the epoch's last batch: what comes next is its row of the metrics.
                saves = self.batch < self.batches and (is_late or number)
                if fault or saves:
                    self._check()
                self._compare_ranks()
                if saves:
                    self.seconds += time.perf_counter() - started
                    self.save()
                    if number := number or self.world.agree(stops())[0]:
                        raise Stopped(number)
                    started = time.perf_counter()
        self._check()  # waits for the device, so that the time is that of the steps
        self.seconds += time.perf_counter() - started

    def _compare_ranks(self) -> None:
        """Every so many steps: RanksDiffer if weights, bank or numbers of the step are not the same on all ranks."""
        every = self.config.step.check_ranks
        if self.world.size > 1 and every and self.step % every == 0:
            kept = {**self.model.state_dict(), "the numbers of the step": self.stepper.metrics}
            self.world.check_equal(kept, f"after step {self.step}")

    def _say(self, seconds: float) -> None:
        """How far the epoch is, which has taken so many seconds."""
        self._said_at = time.monotonic()
        rate = self.batch / seconds
        log.info(
            "epoch %d/%d, step %d of %d: loss %.4f on average, %.3g steps/s, %s to its end",
            *(self.epoch + 1, self.config.optim.epochs, self.batch, self.batches),
            *(self.stepper.sums[0].item() / self.batch, rate, duration((self.batches - self.batch) / rate)),
        )

    @property
    def _is_late(self) -> bool:
        """Whether the last checkpoint is older than it may be."""
        return time.monotonic() - self._saved_at > 60 * self.config.log.checkpoint_minutes

    def _remaining_batches(self) -> Generator[tuple[Tensor, PackedClips]]:
        """What is left of the epoch, without its last short batch."""
        size = self.config.optim.batch_size
        order = epoch_order(self.train_ids, self.config.seed, self.epoch)[self.batch * size : self.batches * size]
        return self.data.batches(self.world.part(order, size), len(self.stepper.sample))

    def _advance(self, ids: Tensor, clips: PackedClips) -> bool:
        """One step; returns whether it is of a phase that is soon over."""
        lr = self.config.lr_at(self.epoch + self.batch / self.batches)
        phase = self.model.phase(self.step * self.config.optim.batch_size, self.epoch)
        is_brief = phase in self.model.brief
        self.stepper.prepare(ids, self.step, lr)
        if self.graph.value == "off" or is_brief:
            self.stepper.advance(clips, phase=phase)
        else:
            if phase not in self._graphs:
                self.release()  # the phase of before is over, and its graph holds the memory of a step
                self._graphs[phase] = graph_step(self.stepper, self.data, phase=phase)
            self._graphs[phase]()
        self.batch += 1
        self.step += 1
        return is_brief

    def _check(self) -> None:
        """Wait for the device; NonFiniteError if a step was not finite."""
        try:
            self.stepper.check()
        except NonFiniteError as error:
            saved = checkpoint.complete(self.checkpoints)
            last = saved[-1][1] if saved else "none yet"
            raise NonFiniteError(
                f"stopped in epoch {self.epoch + 1}, {error}. "
                f"Last good checkpoint: {last}. A smaller --lr or --shear may help, in a new run (--out)."
            ) from error

    def _epoch_row(self) -> dict[str, Any]:
        row: dict[str, Any] = {"epoch": self.epoch + 1, "step": self.step}
        means = (self.stepper.sums / self.batches).tolist()
        row |= {metric.name: mean for metric, mean in zip(self.model.metrics, means, strict=True)}
        row["lr"] = self.config.lr_at(self.epoch + (self.batch - 1) / self.batches)
        row["steps_per_second"] = self.batches / self.seconds
        row["samples_per_second"] = self.batches * self.config.optim.batch_size / self.seconds
        row["seconds"] = self.seconds
        every = self.config.log.probe_every
        if every and self.can_probe and ((self.epoch + 1) % every == 0 or self.epoch + 1 == self.config.optim.epochs):
            row["knn_top1"] = self.probe()
        return row

    def _start_epoch(self, epoch: int) -> None:
        self.epoch, self.batch, self.seconds = epoch, 0, 0.0
        self.stepper.sums.zero_()

    def probe(self) -> float:
        """kNN top-1 accuracy of the encoder on the clips that have a label, percent."""
        config = self.config.evaluation
        features = frozen_features(
            self.model.representation,
            self.data,
            *self._labelled,
            self.config.stream,
            config,
            frames=self.config.frames,
            crops=0,
            ranks=self.world,
        )
        return knn_evaluate(features, config)["knn_top1"]

    def save(self) -> Path:
        """Write a checkpoint of this moment; NonFiniteError, and none, if a number in it is not finite."""
        path = self._save(self.checkpoints, self.config.log.checkpoints_kept)
        self._saved_at = time.monotonic()
        return path

    def _save(self, folder: Path, keep: int) -> Path:
        state = self.state()
        _check_finite(state, self.step)
        if not self.world.writes:
            return checkpoint.place_of(folder, self.step)
        self.before_saving()
        return checkpoint.save(folder, self.step, state.to_plain(), keep=keep)

    def state(self) -> RunState:
        """All that the run goes on from. Its tensors are those of the run, and go on changing."""
        return RunState(
            config=to_plain(self.config),
            model=self.model.state_dict(),
            **self.stepper.state_dict(),
            position=Position(self.epoch, self.batch, self.step, self.seconds),
            dataset_checksum=self.checksum,
            data=self.about_data,
            wall_seconds=self.wall_seconds,
            metrics=self._rows,
            evaluated=self.model.evaluated,
            ranks=self.world.size,
            clips=self.train_ids.cpu(),
            before=self._before,
        )

    def load(self, state: RunState, path: Path) -> None:
        """Continue from the state of the checkpoint ``path``; CheckpointError if it was trained on other data, or on
        other clips of them."""
        state.check_dataset(self.checksum, path)
        state.check_clips(self.train_ids, path)
        self.model.load_state_dict(state.model)
        self.stepper.load_state_dict(state)
        self.epoch, self.batch, self.step, self.seconds = state.position
        self._earlier_seconds = state.wall_seconds
        self._before = None if state.clips is None else state.before
        self._rows = state.metrics
        if state.ranks != self.world.size:
            log.info(
                "the checkpoint is of %d rank(s) and goes on with %d: the same run within rounding, not bit for bit",
                *(state.ranks, self.world.size),
            )


def _check_finite(state: RunState, step: int) -> None:
    """NonFiniteError if a parameter, statistic, bank entry or optimizer state is not finite."""
    tensors = dict(state.model)
    for index, slots in state.optimizer["state"].items():
        tensors |= {f"optimizer state {name} of parameter {index}": value for name, value in slots.items()}
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            raise NonFiniteError(f"{name} is not finite after step {step}; no checkpoint was written of it")
