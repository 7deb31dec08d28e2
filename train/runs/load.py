"""Trained runs, read from their folders with the data that they are evaluated on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastmc import checkpoint
from fastmc.checkpoint import CheckpointError
from fastmc.data.placed.placement import Placement, place_store
from fastmc.data.placed.resident import PlacedStore
from fastmc.data.store import PackedStore
from fastmc.evaluation.trained import TrainingData
from fastmc.methods.a2mc import A2MC
from train.command.config import Config
from train.command.datasets import open_dataset
from train.engine.loop import ClipLayout, build_model, check_dataset
from train.engine.record import log
from train.runs.folder import load_config


@dataclass(frozen=True)
class Run:
    """A trained run and data to evaluate it on, split by the config's protocol."""

    folder: Path
    config: Config
    model: A2MC
    placed: PlacedStore
    store: PackedStore

    @property
    def protocol(self) -> str:
        return self.config.protocol or self.store.protocols[0]

    def split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(train, test) clips, int64, on the device of the clips; ValueError where either is empty."""
        train, test = self.store.split(self.protocol)
        for name, ids in (("training", train), ("test", test)):
            if len(ids) == 0:
                others = ", ".join(self.store.protocols)
                raise ValueError(
                    f"protocol = {self.protocol!r} leaves no {name} clip in {self.store.path}; it has: {others}"
                )
        device = self.placed.device
        return torch.from_numpy(train).to(device), torch.from_numpy(test).to(device)

    def untrained(self) -> A2MC:
        """The model as it was before training."""
        return build_model(self.config, self.model, self.placed.device)


def load_run(
    folder: Path, device: torch.device, data_root: Path | None = None, placement: Placement = "auto"
) -> tuple[Config, A2MC, PlacedStore, PackedStore]:
    """Config, trained model, placed store and packed store of a run folder.

    Raises:
        ValueError: the placement does not fit.
        RunFolderError: the folder is no run. CheckpointError: it holds no checkpoint, or one of other data.
        DatasetError: the data are not there.
    """
    config = load_config(folder)
    path, state = checkpoint.load_latest(folder / "checkpoints")
    store = open_dataset(config.dataset, data_root or config.data_root)
    check_dataset(state, store.content_checksum, path)
    model = _build(config, state, _layout(state, path) or store, device)
    return config, model, place(store, model, config, device, placement), store


def load_for(
    dataset: str, folder: Path, device: torch.device, data_root: Path | None = None, placement: Placement = "auto"
) -> Run:
    """A run with clips of another data set, under its first protocol. The run's own data need not be there, unless its
    checkpoint does not describe them. Raises as `load_run`; ValueError if the encoder cannot read the clips."""
    config = load_config(folder)
    path, state = checkpoint.load_latest(folder / "checkpoints")
    root = data_root or config.data_root
    layout = _layout(state, path) or open_dataset(config.dataset, root)
    store = open_dataset(dataset, root)
    model = _build(config, state, layout, device)
    placed = place(store, model, config, device, placement)
    if isinstance(layout, TrainingData) and layout.normalisation != store.normalisation:
        log.warning(
            "%s: the frame of its clips is %s, that of the clips of %s was %s; the encoder does not know it",
            *(store.path, store.normalisation, config.dataset, layout.normalisation),
        )
    return Run(folder, replace(config, dataset=dataset, protocol=store.protocols[0]), model, placed, store)


def place(
    store: PackedStore, model: A2MC, config: Config, device: torch.device, placement: Placement = "auto"
) -> PlacedStore:
    """The store's frames, placed, with as many bodies as the encoder reads: those that clips lack are zero.

    Raises:
        ValueError: the encoder cannot read these clips, or the placement does not fit.
    """
    check_layout(store, model, config.stream)
    placed, where = place_store(store, device, replace(config.data, placement=placement))
    placed.max_bodies = model.max_bodies
    log.info(where)
    return placed


def check_layout(store: PackedStore, model: A2MC, stream: str) -> None:
    """ValueError if the store's clips have other joints, or more bodies, than the encoder reads."""
    theirs, ours = store.skeleton, model.skeleton
    bones = stream == "bone" and theirs.parents != ours.parents
    if theirs.joint_names != ours.joint_names or bones:
        raise ValueError(
            f"{store.path} has another skeleton ({theirs.name}, {theirs.num_joints} joints) than the encoder reads "
            f"({ours.name}, {ours.num_joints} joints); name a data set of the same joints in the same order"
        )
    if store.max_bodies > model.max_bodies:
        raise ValueError(
            f"{store.path} has clips of {store.max_bodies} bodies, the encoder reads {model.max_bodies}; prepare the "
            "data set with fewer, or pre-train on clips of as many"
        )


def _layout(state: dict[str, Any], path: Path) -> TrainingData | None:
    """What the checkpoint says of its data; None if it does not."""
    try:
        return TrainingData.of_checkpoint(state, path)
    except CheckpointError:
        return None


def _build(config: Config, state: dict[str, Any], layout: ClipLayout, device: torch.device) -> A2MC:
    model = build_model(config, layout, device)
    model.load_state_dict(state["model"])
    return model
