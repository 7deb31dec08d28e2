"""Runs as a page shows them: what their folders hold, and what of it was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fastmc.checkpoint import CheckpointError
from fastmc.config import Config, load_config
from fastmc.data.placed.placement import Placement
from fastmc.data.store import PackedStore
from fastmc.evaluation import weights_digest
from fastmc.evaluation.digest import tensors_digest
from fastmc.figures.history import History
from fastmc.methods import find_method
from fastmc.state import RunState
from train.command.datasets import DatasetError, open_dataset, root_of
from train.engine.record import log, read_metrics
from train.runs.evaluations import Evaluated, evaluated_again
from train.runs.load import Run, load_run
from train.runs.measured import Measured, keep, kept, made_of, measure
from train.runs.page_files import Begun, Profile, Report, read_begun, read_profile, read_report


@dataclass(frozen=True)
class PageRun:
    """A run as a page shows it.

    Attributes:
        config: its settings, its evaluation's those of report.json.
        report: None where the run is not finished. profile: None where nothing was profiled.
        history: the epochs that are done.
        store: its clips; None where they are not there, or others now. measured: None likewise, or where there is no
            checkpoint to measure.
        notes: what is left out and why, and what is odd: a sentence each.
    """

    folder: Path
    label: str
    config: Config
    report: Report | None
    history: History
    begun: Begun
    profile: Profile | None
    store: PackedStore | None
    measured: Measured | None
    notes: tuple[str, ...]

    @property
    def protocol(self) -> str:
        """Empty where neither settings nor report.json say it."""
        return self.config.protocol or (self.report.protocol if self.report else "")


def read_run(
    folder: Path,
    label: str,
    allow: Sequence[str] = (),
    store: PackedStore | None = None,
    measured: Measured | None = None,
) -> PageRun:
    """A run of the files in its folder, with its clips and what was measured, where those are given.

    Raises:
        RunFolderError: it is no run, or a file is damaged. ValueError: likewise, or as of `fastmc.registry.find`.
    """
    config = load_config(folder, allow)
    report = read_report(folder)
    notes = ["Not finished: there is no report.json yet."] if report is None else [*report.notes]
    if report is not None:
        config = replace(config, evaluation=report.evaluation)
        notes += [f"Not evaluated: {report.why_not}."] if report.why_not else []
    rows = read_metrics(path) if (path := folder / "metrics.csv").exists() else []
    return PageRun(
        folder=folder,
        label=label,
        config=config,
        report=report,
        history=History(rows, find_method(config.method, allow).metrics, config.encoder.feature_dim),
        begun=read_begun(folder),
        profile=read_profile(folder),
        store=store,
        measured=measured,
        notes=(*notes, *(() if measured is None else measured.notes)),
    )


def measure_and_keep(run: Run, evaluated: Evaluated | None) -> Measured:
    """Measure a run that is loaded, and keep what was found in its folder."""
    measured = measure(run, evaluated)
    weights = weights_digest(run.model.representation)
    keep(run.folder, measured, made_of(run.config, run.store.split_digest(run.protocol), weights))
    return measured


def load_page_run(
    folder: Path,
    label: str,
    *,
    device: torch.device,
    data_root: Path | None = None,
    placement: Placement = "auto",
    allow: tuple[str, ...] = (),
    progress: bool = False,
) -> PageRun:
    """A run of its folder, and its clips where they are there. What was measured of it and is not kept, or of other
    weights, data or settings, is measured anew from its checkpoint and features, and kept.

    Raises:
        As `read_run`. DatasetError: ``data_root`` is not there. StoreError: the clips are damaged.
        WriteError: what was measured cannot be kept.
    """
    run = read_run(folder, label, allow)
    if run.report is None:
        return run
    root = root_of(data_root, run.config.data_root)
    try:
        store = open_dataset(run.config.dataset, root)
    except DatasetError as error:
        return _without_clips(run, str(error).splitlines()[0])
    protocol = run.protocol or store.protocols[0]
    if protocol not in store.protocols or store.split_digest(protocol) != run.report.data:
        return _without_clips(run, f"those in {store.path} are not the ones that it was evaluated on")
    config = replace(run.config, protocol=protocol)
    try:
        _, state = RunState.read(folder / "checkpoints")
        weights, why = tensors_digest(state.encoder_weights()), ""
    except CheckpointError as error:
        weights, why = None, str(error)
    measured = kept(folder, made_of(config, run.report.data, weights), store)
    if measured is None:
        if weights is None:
            return _without_clips(run, f"what is shown with them was not kept, and cannot be measured: {why}")
        log.info("%s: measuring what its page shows", folder)
        loaded = replace(load_run(folder, device, data_root, placement, allow), config=config)
        evaluated = None if run.report.why_not else evaluated_again(loaded, progress=progress)
        measured = measure_and_keep(loaded, evaluated)
    return read_run(folder, label, allow, store, measured)


def _without_clips(run: PageRun, why: str) -> PageRun:
    return replace(run, notes=(*run.notes, f"Its clips are not shown: {why}."))
