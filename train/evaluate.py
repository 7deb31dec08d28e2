"""Evaluate a pre-trained encoder: python -m train.evaluate knn|linear|finetune|semi|transfer|ensemble --run DIR."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from fastmc.checks import check_number
from fastmc.config import load_config
from fastmc.data.report import label_notes
from fastmc.evaluation import EvalConfig
from train.command.errors import run_command
from train.command.evaluation_settings import (
    Ensemble,
    Finetune,
    Knn,
    Linear,
    Semi,
    Settings,
    Transfer,
    check_ensemble,
    check_semi,
)
from train.engine.record import log
from train.run import choose_device
from train.runs.evaluations import (
    evaluate_ensemble,
    evaluate_finetuned,
    evaluate_knn,
    evaluate_linear,
    evaluate_semi,
    show_progress,
)
from train.runs.load import UNKNOWN, Run, load_for, load_run
from train.runs.report import report_table
from train.runs.results import Outcome, write_outcome

__all__ = ["evaluate", "load_run", "main", "parse"]


def parse(args: Sequence[str] | None = None) -> Settings:
    """The command line; settings that are not given are those of the run."""
    args = _gather_runs(sys.argv[1:] if args is None else args)

    @dataclass
    class First:
        run: Path | None = None
        allow: tuple[str, ...] = ()

    first, _ = tyro.cli(First, args=args, return_unknown_args=True, add_help=False)
    own = dataclasses.asdict(load_config(first.run, first.allow).evaluation) if first.run is not None else {}

    def default(kind: type) -> Any:
        fields = {f.name for f in dataclasses.fields(kind)}
        run = tyro.MISSING if first.run is None else first.run
        required = {"dataset": tyro.MISSING} if kind is Transfer else {}
        return kind(run=run, **required, **{k: v for k, v in own.items() if k in fields})

    return tyro.cli(
        Annotated[Knn, tyro.conf.subcommand("knn", default=default(Knn))]
        | Annotated[Linear, tyro.conf.subcommand("linear", default=default(Linear))]
        | Annotated[Finetune, tyro.conf.subcommand("finetune", default=default(Finetune))]
        | Annotated[Semi, tyro.conf.subcommand("semi", default=default(Semi))]
        | Annotated[Transfer, tyro.conf.subcommand("transfer", default=default(Transfer))]
        | Annotated[Ensemble, tyro.conf.subcommand("ensemble")],
        prog="python -m train.evaluate",
        args=args,
    )


def _gather_runs(args: Sequence[str]) -> list[str]:
    """``--run A --run B``, or ``--run=A --run=B``, as ``--run A B``, where there are several."""
    args = [part for each in args for part in (each.split("=", 1) if each.startswith("--run=") else [each])]
    if args.count("--run") < 2:
        return args
    rest: list[str] = []
    runs, into = ["--run"], rest
    for argument in args:
        into = runs if argument == "--run" else rest if argument.startswith("-") else into
        if argument != "--run":
            into.append(argument)
    return [*rest[:1], *runs, *rest[1:]]


def evaluate(settings: Settings) -> list[dict[str, Any]]:
    """Run the evaluations, write each to the run folder as it is done, and return what the JSON files hold.

    Raises:
        ValueError: a setting does not fit to the run or its data. Else as `load_run`.
    """
    device = choose_device(settings.device)
    if isinstance(settings, Semi):
        check_semi(settings)
    started, found = time.monotonic(), []
    for outcome, folder in _outcomes(settings, device):
        write_outcome(outcome, folder, time.monotonic() - started)
        log.info("%s", describe(outcome))
        found.append(outcome.to_dict())
        started = time.monotonic()
    return found


def _outcomes(settings: Settings, device: torch.device) -> Iterator[tuple[Outcome, Path]]:
    """Each evaluation that the settings name, and the run folder that it belongs to."""
    progress = show_progress()
    if isinstance(settings, Ensemble):
        check_ensemble(settings)
        runs = (_load(folder, settings, device) for folder in settings.run)
        weights = settings.weights or None
        yield evaluate_ensemble(runs, weights, cache=settings.cache, progress=progress), settings.run[0]
        return
    run = _load(settings.run, settings, device)
    if isinstance(settings, Knn):
        yield evaluate_knn(run, cache=settings.cache, progress=progress), run.folder
    elif isinstance(settings, Linear):
        yield evaluate_linear(run, cache=settings.cache, progress=progress), run.folder
    elif isinstance(settings, Semi):
        for share in settings.share:
            yield evaluate_semi(run, settings.tuning, share, settings.draws, progress=progress), run.folder
    else:
        kind = "transfer" if isinstance(settings, Transfer) else "finetune"
        yield evaluate_finetuned(run, settings.tuning, kind=kind, progress=progress), run.folder


def _load(folder: Path, settings: Settings, device: torch.device) -> Run:
    """The run with the settings that were given in place of its own."""
    where = (device, settings.data_root, settings.placement, settings.allow, settings.checkpoint)
    target = settings.dataset if isinstance(settings, Transfer) else None
    run = load_run(folder, *where) if target is None else load_for(target, folder, *where)
    config = replace(run.config, protocol=settings.protocol or run.protocol)
    if isinstance(settings, Knn | Linear):
        names = {f.name for f in dataclasses.fields(EvalConfig)}
        chosen = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings) if f.name in names}
        config = replace(config, evaluation=replace(config.evaluation, **chosen))
    run = replace(run, config=config)
    train, test = run.split()  # an error now, and not after hours
    _say_of_pretraining(run, len(test))
    if isinstance(settings, Knn):
        check_number("knn_k", settings.knn_k, at_least=1, at_most=len(train))
    log.info("%s: %s stream, %s %s", folder, config.stream, config.dataset, config.protocol)
    for note in label_notes(run.store, run.protocol):
        log.warning("%s", note)
    return run


def _say_of_pretraining(run: Run, tests: int) -> None:
    """Warnings of what makes the accuracies on so many test clips others than those of a finished run on clips that it
    never saw."""
    seen = run.pretraining()["test_clips_seen"]
    if seen == UNKNOWN:
        log.warning(
            "%s does not say which clips trained it or the weights it started from: how many of the %d test clips of "
            "%s were in pre-training is unknown",
            *(run.folder, tests, run.protocol),
        )
    elif seen:
        log.warning(
            "%d of the %d test clips of %s were in pre-training, on %s: it had no labels, but these accuracies are not "
            "those of clips that it never saw; pre-train with --protocol %s for them, and from weights that did not "
            "see them",
            *(seen, tests, run.protocol, run.own.protocol, run.protocol),
        )
    if run.checkpoint == "last" and run.position is not None and not run.finished:
        log.warning(
            "%s is not finished: these are the weights of step %d, after %d of %d epochs; python -m train.run --config "
            "%s --out %s goes on, and --checkpoint %d names these weights",
            *(run.folder, run.position.step, run.position.epoch, run.own.optim.epochs),
            *(run.folder / "config.json", run.folder, run.position.step),
        )


def describe(outcome: Outcome) -> str:
    """What came out, for the log."""
    found, more = outcome.predictions, outcome.more
    if "random_init" in more:
        names = {"top1": f"{outcome.kind}_top1", "top5": f"{outcome.kind}_top5"}
        both = {"top1": found.top1, "top5": found.top5}
        table: dict[str, Any] = {names[key]: value for key, value in both.items() if key in more["random_init"]}
        return report_table({**table, "random_init": {names[k]: v for k, v in more["random_init"].items()}})
    accuracy = f"top-1 {found.top1:.2f} %" + ("" if found.top5 is None else f", top-5 {found.top5:.2f} %")
    if outcome.kind == "semi":
        accuracy += f", standard deviation of top-1 {more['top1_std']:.2f} over {more['draws']} draws"
    return f"{outcome.name}: {accuracy}"


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return run_command(lambda given: evaluate(parse(given)), args, stopped="stopped; what was written before is whole")


if __name__ == "__main__":
    sys.exit(main())
