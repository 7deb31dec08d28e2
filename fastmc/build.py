"""A method as the settings of a run name it, ready to be trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch

from fastmc.backends import CONTRAST, VIEWS, Chosen, Need
from fastmc.checkpoint import CheckpointError
from fastmc.config import Config, StepConfig
from fastmc.encoders import find_encoder
from fastmc.encoders.recurrent import RecurrentNet
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
        precision=config.step.precision,
    )
    setup = resolved(setup, config.step, layout, device)
    model = build_method(find_method(config.method, allow), config.settings, setup).to(device)
    for net in model.modules():
        if isinstance(net, RecurrentNet):
            net.impl = "auto" if config.step.impl in ("auto", "cpp") else "torch"
    return model


def resolved(setup: Setup, step: StepConfig, layout: ClipLayout, device: torch.device) -> Setup:
    """The setup with the implementations that serve on this device, so that no call looks for them again.

    Raises:
        ValueError: one that was asked for cannot run.
    """
    need, of_views = needs(setup, layout, device)
    try:
        setup = replace(setup, impl=Chosen(CONTRAST.choose(step.impl, need)))
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    try:
        found = Chosen(VIEWS.choose(step.view_impl, of_views))
    except RuntimeError as error:
        raise ValueError(f"view_impl: {error}") from None
    # Attacked clips are float32 whatever the frames are, and may have a faster implementation than these.
    return replace(setup, view_impl=found if of_views.dtype == torch.float32 else step.view_impl)


def needs(setup: Setup, layout: ClipLayout, device: torch.device) -> tuple[Need, Need]:
    """What losses, and what views of these clips, have to be computed for."""
    joints = setup.skeleton.num_joints
    dtype = getattr(layout, "dtype", torch.float32)
    of_views = Need(device, dtype, size=(setup.frames, setup.max_bodies, joints), joints=joints)
    return Need(device, dim=setup.encoder.feature_dim), of_views


def anywhere(config: Config) -> Config:
    """The settings of a run without its implementations: a machine that evaluates need not have what trained it."""
    return replace(config, step=replace(config.step, impl="auto", view_impl="auto"))


def trained_model(
    config: Config,
    state: RunState,
    layout: ClipLayout,
    device: torch.device,
    allow: Collection[str] = (),
    *,
    path: Path,
) -> Method:
    """The method as the checkpoint at ``path`` has it, computed by what can serve here. CheckpointError if it is of
    another one than the config's."""
    model = build_model(anywhere(config), layout, device, allow)
    try:
        model.load_state_dict(state.model)
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds another model than the run's config.json names: {error}") from None
    return model
