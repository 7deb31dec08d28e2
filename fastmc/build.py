"""A method as the settings of a run name it, ready to be trained."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import torch

from fastmc.checkpoint import CheckpointError
from fastmc.config import Config
from fastmc.encoders import find_encoder
from fastmc.methods import build_method, find_method
from fastmc.methods.base import Method, Setup
from fastmc.skeleton import Skeleton
from fastmc.state import RunState


class ClipLayout(Protocol):
    """As much of a store as the size of a model depends on."""

    @property
    def skeleton(self) -> Skeleton: ...

    @property
    def max_bodies(self) -> int: ...


def build_model(config: Config, layout: ClipLayout, device: torch.device, allow: Collection[str] = ()) -> Method:
    """A method with fresh weights, which depend on the config's seed alone; ``allow`` and errors as of
    `fastmc.registry.find`."""
    setup = Setup(
        layout.skeleton,
        layout.max_bodies,
        kind=find_encoder(config.backbone, allow),
        encoder=config.encoder,
        augment=config.augment,
        frames=config.frames,
        stream=config.stream,
        seed=config.seed,
        impl=config.step.impl,
        precision=config.step.precision,
        view_impl=config.step.view_impl,
    )
    return build_method(find_method(config.method, allow), config.settings, setup).to(device)


def trained_model(
    config: Config,
    state: RunState,
    layout: ClipLayout,
    device: torch.device,
    allow: Collection[str] = (),
    *,
    path: Path,
) -> Method:
    """The method as the checkpoint at ``path`` has it. CheckpointError if it is of another one than the config's."""
    model = build_model(config, layout, device, allow)
    try:
        model.load_state_dict(state.model)
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds another model than the run's config.json names: {error}") from None
    return model
