"""Pre-train and evaluate: python -m train.run --dataset NAME. Teaches itself with --help."""

from __future__ import annotations

import io
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any

import torch

import fastmc
from fastmc import checkpoint
from fastmc.backends import CONTRAST, VIEWS, Need
from fastmc.budget import fitted
from fastmc.build import build_model, needs
from fastmc.config import Config, to_plain
from fastmc.data.placed.resident import PlacedStore
from fastmc.data.report import label_notes, why_not_evaluated
from fastmc.data.store import PackedStore
from fastmc.evaluation import weights_digest
from fastmc.files import write_json
from fastmc.ranks import ALONE, Alone
from fastmc.state import RunState
from train.command import slurm
from train.command.datasets import open_dataset
from train.command.errors import run_command
from train.command.jobs import Job
from train.command.launch import launcher_of
from train.command.parse import parse
from train.engine.host_memory import keep_freed_memory
from train.engine.loop import Pretraining
from train.engine.ranks import GRACE, Place, opened
from train.engine.record import duration, log, start_logging
from train.engine.wandb import check_wandb
from train.engine.world import World
from train.runs.evaluations import Evaluated
from train.runs.folder import NOT_EVALUATED, PAGE, RunFolder, default_folder, is_finished
from train.runs.load import Run
from train.runs.page import write_run_page
from train.runs.page_runs import measure_and_keep, read_run
from train.runs.report import commit, environment, evaluate_encoder, plot_curves, report_table


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""

    def command(args: Sequence[str]) -> None:
        place = Place.of_environment()
        with _speaking(place.rank == 0):
            launcher, args = launcher_of(args)
            config = parse(args)
            if config.print_config:
                print(json.dumps(to_plain(_as_it_would_run(config)), indent=2))
                return
        if launcher.launcher == "slurm":
            submit(config, args, launcher.slurm)
            return
        with opened(place, config.device, config.step.rank_timeout) as world:
            run(config, world)

    return run_command(command, args, stopped="stopped", shared=True)


@contextmanager
def _speaking(speaks: bool) -> Iterator[None]:
    """Within: what is printed is seen, if this process is the one that speaks."""
    if speaks:
        yield
        return
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    except (Exception, SystemExit):
        time.sleep(GRACE)  # torchrun ends all with the first that fails: the one that speaks may need a moment
        raise


def run(config: Config, world: World | None = None) -> dict[str, Any]:
    """Train (or resume) and evaluate; returns the content of report.json.

    Everything that can be wrong with the settings is found before anything is written.

    Args:
        world: the processes that train together; by default this one.
    """
    world = world or World()
    device = choose_device(world.device or config.device)
    impl = config.step.impl
    reason = None if impl == "auto" else CONTRAST.why_not(impl, Need(device))
    if reason is not None:
        raise ValueError(f"impl = {impl!r} cannot run on {device}: {reason}")
    check_wandb(config)
    store = world.first(lambda: open_dataset(config.dataset, config.data_root, config.data.verify))
    config, protocol = settled(config, store)

    folder = RunFolder(config, store=store)
    pretraining = Pretraining(config, store, folder.path, device, world)
    finished_report = None if config.restart else _resume(pretraining, folder, store.split_digest(protocol))
    if world.size > 1:
        world.check_same(_facts(pretraining, finished_report is not None))
    if finished_report is not None:
        return finished_report
    pretraining.before_saving = folder.make_again
    holds = folder.begin(environment(device, world.size)) if world.writes else nullcontext()
    with checkpoint.saying_where_a_run_goes_on(pretraining.checkpoints), holds:
        if world.writes:
            start_logging(folder.path / "run.log")
        return _train_and_report(config, store, pretraining)


def settled(config: Config, store: PackedStore) -> tuple[Config, str]:
    """The settings with all that follows from the set, and the protocol."""
    protocol = config.protocol or store.protocols[0]
    config = fitted(replace(config, protocol=protocol), len(store.split(protocol)[0]))
    return replace(config, out=config.out or default_folder(config)), protocol


def _as_it_would_run(config: Config) -> Config:
    """The settings fitted to the set, if that is there; if not, and if something would be, it is said so."""
    if (config.data_root / config.dataset).exists():
        return settled(config, open_dataset(config.dataset, config.data_root, "off"))[0]
    if fitted(config, 1) != config:
        says = "epochs and bank are those of the preset, not yet fitted to the set"
        print(f"{config.data_root / config.dataset} does not exist: {says}", file=sys.stderr)
    return config


def submit(config: Config, args: Sequence[str], options: Sequence[str]) -> None:
    """The command as one job of Slurm, on all GPUs of its nodes by torchrun.

    Raises:
        ValueError: as of `train.command.slurm.submit`. RunFolderError: the folder holds another run.
    """
    if config.restart:
        raise ValueError("--restart would start over each time that the job begins again: delete the folder instead")
    store = open_dataset(config.dataset, config.data_root, config.data.verify)
    config, protocol = settled(config, store)
    folder, data = RunFolder(config, store=store).path, store.split_digest(protocol)
    output = folder.with_name(f"{folder.name}.log")
    job = Job(folder.name, "train.run", tuple(args), output, lambda: is_finished(config, data))
    if not slurm.submit([[job]], options, folder.with_name("slurm"), ranks=True):
        log.info("%s holds this run, finished", folder)


def _facts(pretraining: Pretraining, finished: bool) -> dict[str, Any]:
    """What has to be the same on all ranks before the first step, by the names that an error calls it."""
    where = ("data_root", "device", "config")  # which a machine may have elsewhere
    settings = {name: value for name, value in to_plain(pretraining.config).items() if name not in where}
    choices = {name: choice.value for name, choice in pretraining.choices.items()}
    code = {"fastmc": fastmc.__version__, "commit": commit(), "torch": torch.__version__}
    on_cpu = pretraining.device.type == "cpu"
    return {
        "settings": settings,
        "code": code,
        "step": choices | {"views": str(pretraining.model.setup.view_impl), "loss": str(pretraining.model.setup.impl)},
        "data": pretraining.checksum,
        "threads": torch.get_num_threads() if on_cpu else None,
        "finished": finished,
        "checkpoint": pretraining.step,
        "weights": weights_digest(pretraining.model),
    }


def _resume(pretraining: Pretraining, folder: RunFolder, data: str) -> dict[str, Any] | None:
    """Load the newest checkpoint, if there is one. The report, if the run is finished and evaluated as asked, on these
    data (their digest)."""
    if not checkpoint.complete(pretraining.checkpoints):
        return None
    path, state = RunState.read(pretraining.checkpoints)
    pretraining.load(state, path)
    report = folder.finished_report(data)
    if pretraining.finished and report is not None and folder.is_complete(report):
        log.info("%s holds this run, finished; --restart runs it again\n%s", folder.path, report_table(report))
        return report
    log.info("resuming from %s (epoch %d, step %d)", path, pretraining.epoch + 1, pretraining.step)
    return None


def _train_and_report(config: Config, store: PackedStore, pretraining: Pretraining) -> dict[str, Any]:
    folder = pretraining.folder
    assert config.protocol is not None
    log.info(start_line(config, store, pretraining))
    if pretraining.initial is not None:
        log.log(*pretraining.initial)
    say_when_full(pretraining)
    if config.log.keep_best and not pretraining.can_probe:
        log.warning("--keep-best keeps nothing, since there is no probe: %s", why_not_evaluated(store, config.protocol))
    log.info(pretraining.placement)
    log.info(pretraining.computed)
    say_what_is_slower(pretraining)
    if pretraining.world.says is not None:
        log.info(pretraining.world.says)
    if pretraining.device.type == "cpu" and config.preset == "paper":
        log.warning("preset paper is made for a GPU; on a CPU --preset small or tiny is done in hours or minutes")
    pretraining.run()
    if pretraining.world.writes:
        metrics, dim = pretraining.model.metrics, config.encoder.feature_dim
        plot_curves(folder / "metrics.csv", folder / "curves.png", metrics, dim, title=folder.name)
    state = pretraining.state()
    of_state: dict[str, Any] = {"position": state.position, "seen": state.seen}
    trained = Run(folder, config, pretraining.model, pretraining.data, store, **of_state)
    accuracies, evaluated = _evaluated(config, store, pretraining)
    report = {
        "dataset": config.dataset,
        "dataset_checksum": store.checksum,
        "data": store.split_digest(config.protocol),
        "weights": weights_digest(pretraining.model.representation),
        "protocol": config.protocol,
        "pretraining": trained.pretraining(),
        "method": config.method,
        "stream": config.stream,
        "preset": config.preset,
        "seed": config.seed,
        "epochs": config.optim.epochs,
        "steps": pretraining.step,
        "evaluation": to_plain(config.evaluation),
        **accuracies,
    }
    report["wall_seconds"] = round(pretraining.wall_seconds, 1)
    if pretraining.world.writes:
        (folder / PAGE).unlink(missing_ok=True)  # that of other results, should this process end before its own
        write_json(folder / "report.json", report)
    log.info("%s", report_table(report))
    if pretraining.world.writes:
        measured = measure_and_keep(trained, evaluated)
        allow = (config.method, config.backbone)
        write_run_page(read_run(folder, folder.resolve().name, allow, store, measured), "python -m train.run")
    log.info("report, curves, metrics and checkpoints are in %s (%s)", folder, duration(pretraining.wall_seconds))
    return report


def _evaluated(config: Config, store: PackedStore, pretraining: Pretraining) -> tuple[dict[str, Any], Evaluated | None]:
    """What report.json says of the frozen encoder, and what was found of it; or why it says nothing, and None."""
    assert config.protocol is not None
    reason = why_not_evaluated(store, config.protocol)
    if reason is not None:
        log.warning("not evaluated: %s", reason)
        return {NOT_EVALUATED: reason}, None
    notes = label_notes(store, config.protocol)
    for note in notes:
        log.warning("%s", note)
    log.info("evaluating the frozen encoder, pre-trained and untrained: kNN and linear")
    data, world = pretraining.data, pretraining.world
    folder, shows = (pretraining.folder, sys.stderr.isatty()) if world.writes else (None, False)
    found = evaluate_encoder(pretraining.model, store, data, config, run_folder=folder, progress=shows, ranks=world)
    said = {"notes": notes} if notes else {}
    return {**said, **found.accuracies, "random_init": untrained_accuracy(config, store, data, world)}, found


def untrained_accuracy(
    config: Config, store: PackedStore, placed: PlacedStore, ranks: Alone = ALONE
) -> dict[str, float]:
    """The same evaluation of the encoder as it was before training."""
    model = build_model(config, store, placed.device, allow=(config.method, config.backbone))
    return evaluate_encoder(model, store, placed, config, ranks=ranks).accuracies


def choose_device(name: str) -> torch.device:
    """The device of this name, ready for work; ValueError if there is none.

    A GPU becomes the current one, on whose streams libraries work that are not told another, and cuDNN's convolutions
    give equal bits for equal calls.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
        if device.type == "cuda":
            if device.index is not None:
                torch.cuda.set_device(device)
            torch.backends.cudnn.deterministic = True
    except (RuntimeError, AssertionError) as error:
        remedy = "try --device cpu, or python -m fastmc.doctor"
        raise ValueError(f"device = {name!r} cannot be used: {error}; {remedy}") from None
    if device.type == "cpu":
        keep_freed_memory()
    return device


def start_line(config: Config, store: PackedStore, pretraining: Pretraining) -> str:
    parameters = sum(p.numel() for p in pretraining.model.representation.parameters())
    optim = config.optim
    drops = ", ".join(str(epoch) for epoch in optim.milestones if epoch < optim.epochs)
    warmup = f", warm-up {optim.warmup_epochs:.3g}" if optim.warmup_epochs else ""
    said = (config.settings.says, f"for {optim.steps:,} steps" if optim.steps else "")
    settings = "".join(f"{part}, " for part in said if part)
    return (
        f"{config.method} on {store.name} {config.protocol} ({len(pretraining.train_ids)} training clips, "
        f"{len(pretraining.test_ids)} test clips), {config.stream} stream, {config.encoder.says} "
        f"({parameters / 1e6:.1f}M parameters), {settings}{optim.epochs} epochs of {pretraining.batches} steps, "
        f"{optim.optimizer} at {config.lr_factor * optim.lr:g} (epochs: drops at {drops or 'none'}{warmup}), "
        f"views by {pretraining.model.setup.view_impl}, {pretraining.device}"
    )


def say_what_is_slower(pretraining: Pretraining) -> None:
    """Why views or loss are not computed by what is made for the device, where nobody asked for another."""
    step = pretraining.config.step
    of_loss, of_views = needs(pretraining.model.setup, pretraining.data, pretraining.device)
    for what, asked, operation, need in (
        ("views", step.view_impl, VIEWS, of_views),
        ("loss and bank", step.impl, CONTRAST, of_loss),
    ):
        if asked == "auto" and (reason := operation.passed_by(need)) is not None:
            log.info("%s by %s, slower: %s", what, operation.choose("auto", need), reason)


LATE = 0.25
"""Share of a run after which a bank that is not full is worth a warning."""


def say_when_full(pretraining: Pretraining) -> None:
    """From which epoch on the bank is full of features, of a method that waits for it; a warning where that is late or
    never."""
    config, model = pretraining.config, pretraining.model
    size = getattr(config.settings, "bank_size", None)
    if size is None or model.phase(0, 0) not in model.brief:
        return
    clips, batches, epochs = config.optim.batch_size, pretraining.batches, config.optim.epochs
    steps = range(epochs * batches)
    first = model.first_step_after_filling(clips, batches, len(steps))
    if first is not None and first <= LATE * len(steps):
        log.info("the bank is full from epoch %d on", first // batches + 1)
        return
    seen = len(steps) * clips
    never = f"never: {epochs} epochs are {seen} clips"
    when = never if first is None else f"from epoch {first // batches + 1} of {epochs} on"
    log.warning(
        "the bank of %d is full %s; until then a step is one that fills it, and not one of %s. "
        "--bank-size %d is full within a quarter of the run; or give more --epochs",
        *(size, when, config.method, 2 ** int(math.log2(max(1, LATE * seen)))),
    )


if __name__ == "__main__":
    sys.exit(main())
