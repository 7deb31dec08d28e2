"""Trained runs, read from their folders with the data that they are evaluated on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastmc.build import ClipLayout, anywhere, build_model, trained_model
from fastmc.config import Config, load_config
from fastmc.data.placed.placement import Placement, place_store
from fastmc.data.placed.resident import PlacedStore
from fastmc.data.report import why_not_evaluated
from fastmc.data.store import PackedStore, frame_in_words
from fastmc.methods.base import Method
from fastmc.skeleton import numbered
from fastmc.state import Position, RunState, TrainingData
from train.command.datasets import open_dataset, root_of
from train.engine.record import log

UNKNOWN = "unknown"
"""How many test clips were in pre-training, where the checkpoint does not say."""


@dataclass(frozen=True)
class Run:
    """A trained run and data to evaluate it on, split by the config's protocol.

    Attributes:
        trained: the settings that it was pre-trained with, where those of its evaluation are others.
        checkpoint: which one of the run, as of `fastmc.checkpoint.load`, and position: where the run stood then; None
            for that of its end.
        seen: the clips that trained it, as `RunState.seen` has it.
    """

    folder: Path
    config: Config
    model: Method
    placed: PlacedStore
    store: PackedStore
    allow: tuple[str, ...] = ()
    trained: Config | None = None
    checkpoint: str = "last"
    position: Position | None = None
    seen: Mapping[str, torch.Tensor] | None = None

    @property
    def protocol(self) -> str:
        return self.config.protocol or self.store.protocols[0]

    @property
    def at(self) -> str:
        """What tells files of this checkpoint from those of the finished run."""
        if self.checkpoint == "last":
            return "" if self.position is None or self.finished else f"-{self.position.step}"
        return f"-{self.checkpoint}"

    @property
    def finished(self) -> bool:
        """Whether the checkpoint is that of the run's end."""
        return self.position is None or self.position.epoch >= self.own.optim.epochs

    @property
    def own(self) -> Config:
        """The settings that it was pre-trained with."""
        return self.trained or self.config

    def pretraining(self) -> dict[str, Any]:
        """What the encoder was pre-trained on, how many of the test clips were among the clips that trained it or the
        weights it started from (UNKNOWN where the checkpoint does not say), and which checkpoint it is of, where in the
        run."""
        return {
            "dataset": self.own.dataset,
            "protocol": self.own.protocol,
            "test_clips_seen": self._test_clips_seen(),
            "checkpoint": self.checkpoint,
            **({} if self.position is None else {"step": self.position.step, "epoch": self.position.epoch}),
            "epochs": self.own.optim.epochs,
        }

    def _test_clips_seen(self) -> int | str:
        if self.seen is None:
            return UNKNOWN
        ids = self.seen.get(self.store.content_checksum)
        return 0 if ids is None else int(torch.isin(torch.from_numpy(self.store.split(self.protocol)[1]), ids).sum())

    def split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(train, test) clips whose class is known, int64, on the device of the clips; ValueError where either is
        empty."""
        reason = why_not_evaluated(self.store, self.protocol)
        if reason is not None:
            raise ValueError(f"{reason}; it has: {', '.join(self.store.protocols)}")
        train, test = self.store.labelled_split(self.protocol)
        device = self.placed.device
        return torch.from_numpy(train).to(device), torch.from_numpy(test).to(device)

    def untrained(self) -> Method:
        """The model as it was before training."""
        return build_model(anywhere(self.config), self.model.setup, self.placed.device, self.allow)


def load_run(
    folder: Path,
    device: torch.device,
    data_root: Path | None = None,
    placement: Placement = "auto",
    allow: tuple[str, ...] = (),
    checkpoint: str = "last",
) -> Run:
    """A trained run with its data.

    Args:
        checkpoint: as of `fastmc.checkpoint.load`.
        allow: methods and encoders of the user's own that may be imported, should the run be of one.

    Raises:
        ValueError: the placement does not fit, or as of `fastmc.registry.find`.
        RunFolderError: the folder is no run. CheckpointError: it holds no checkpoint, or one of other data.
        DatasetError: the data are not there, or ``data_root`` is not.
    """
    config = load_config(folder, allow)
    path, state = RunState.read(folder / "checkpoints", checkpoint)
    store = open_dataset(config.dataset, root_of(data_root, config.data_root))
    state.check_dataset(store.content_checksum, path)
    model = trained_model(config, state, state.data or store, device, allow, path=path)
    placed = place(store, model, config, device, placement)
    of_state: dict[str, Any] = {"position": state.position, "seen": state.seen}
    return Run(folder, config, model, placed, store, allow, trained=config, checkpoint=checkpoint, **of_state)


def load_for(
    dataset: str,
    folder: Path,
    device: torch.device,
    data_root: Path | None = None,
    placement: Placement = "auto",
    allow: tuple[str, ...] = (),
    checkpoint: str = "last",
) -> Run:
    """A run with clips of another data set, under its first protocol. The run's own data need not be there, unless its
    checkpoint does not describe them. Raises as `load_run`; ValueError if the encoder cannot read the clips."""
    config = load_config(folder, allow)
    path, state = RunState.read(folder / "checkpoints", checkpoint)
    root = root_of(data_root, config.data_root)
    layout: ClipLayout = state.data or open_dataset(config.dataset, root)
    store = open_dataset(dataset, root)
    model = trained_model(config, state, layout, device, allow, path=path)
    placed = place(store, model, config, device, placement)
    if isinstance(layout, TrainingData):
        of_store, of_run = (frame_in_words(of.normalisation, of.skeleton) for of in (store, layout))
        if of_store != of_run:
            log.warning(
                "%s: the frame of its clips is %s, that of the clips of %s was %s; the encoder does not know it",
                *(store.path, of_store, config.dataset, of_run),
            )
    if store.skeleton.joint_names == numbered(store.skeleton.num_joints):
        log.warning("%s: its joints have no names, so that nothing tells whether they are those of the run", store.path)
    there = replace(config, dataset=dataset, protocol=store.protocols[0])
    of_state: dict[str, Any] = {"position": state.position, "seen": state.seen}
    return Run(folder, there, model, placed, store, allow, trained=config, checkpoint=checkpoint, **of_state)


def place(
    store: PackedStore, model: Method, config: Config, device: torch.device, placement: Placement = "auto"
) -> PlacedStore:
    """The store's frames, placed, with as many bodies as the encoder reads: those that clips lack are zero.

    Raises:
        ValueError: the encoder cannot read these clips, or the placement does not fit.
    """
    check_layout(store, model.setup, config.stream)
    placed, where = place_store(store, device, replace(config.data, placement=placement))
    placed.max_bodies = model.setup.max_bodies
    log.info(where)
    return placed


def check_layout(store: PackedStore, read: ClipLayout, stream: str) -> None:
    """ValueError if the store's clips have other joints, or more bodies, than the encoder reads."""
    theirs, ours = store.skeleton, read.skeleton
    bones = stream == "bone" and theirs.parents != ours.parents
    if theirs.joint_names != ours.joint_names or bones:
        raise ValueError(
            f"{store.path} has another skeleton ({theirs.name}, {theirs.num_joints} joints) than the encoder reads "
            f"({ours.name}, {ours.num_joints} joints); name a data set of the same joints in the same order"
        )
    if store.max_bodies > read.max_bodies:
        raise ValueError(
            f"{store.path} has clips of {store.max_bodies} bodies, the encoder reads {read.max_bodies}; prepare the "
            f"data set with --max-bodies {read.max_bodies}, or pre-train on clips of as many"
        )
