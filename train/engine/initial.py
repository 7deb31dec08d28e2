"""Weights that pre-training starts from in place of random ones: --init-from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastmc import checkpoint
from fastmc.checkpoint import CheckpointError
from fastmc.encoder_file import READY, SUFFIX, read_encoder
from fastmc.encoders.base import ClipShape
from fastmc.encoders.released import encoder_of, read_released
from fastmc.methods.base import Method
from fastmc.skeleton import NTU25
from fastmc.state import RunState

SHOWN = 4


@dataclass(frozen=True)
class Weights:
    """Of an encoder, by its own names.

    Attributes:
        path: of the file or folder that holds them. joint_names: of its clips; None where it does not say.
        seen: the clips that trained them, as `RunState.seen` has it.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    joint_names: tuple[str, ...] | None
    seen: Mapping[str, Tensor] | None = None


def read_weights(path: Path, stream: str) -> Weights:
    """The encoder of a run folder, of one of its checkpoints, of a file of train.export, of a name such as small-v1,
    or of a checkpoint that another code released.

    Raises:
        CheckpointError, EncoderFileError: it is none of these, or damaged.
    """
    path = READY.get(str(path), path)
    if not path.exists():
        raise CheckpointError(f"--init-from {path} does not exist; name a run folder or a checkpoint")
    if path.suffix == SUFFIX:
        _, data, encoder = read_encoder(path)
        return Weights(path, encoder.state_dict(), data.skeleton.joint_names)
    if path.name == checkpoint.STATE:
        path = path.parent
    if path.is_file():
        found = encoder_of(read_released(path), stream, NTU25.num_joints)  # type: ignore[arg-type]
        return Weights(path, found.query, NTU25.joint_names)
    step = checkpoint.step_of(path)
    place, state = RunState.read(path / "checkpoints") if step is None else RunState.read(path.parent, str(step))
    names = None if state.data is None else state.data.skeleton.joint_names
    return Weights(place, state.encoder_weights(), names, state.seen)


def start_from(weights: Weights, model: Method) -> tuple[int, str]:
    """Put the weights into the encoder that is evaluated, as far as they fit, and into those that follow it. What to
    log of it: level and line.

    Of other joints, what reads the joints is left as it was drawn: tensors whose shape depends on the size of a frame.

    Raises:
        CheckpointError: none of them fits.
    """
    encoder = model.representation
    own = encoder.state_dict()
    parents = encoder.shape.parents
    wider = encoder.shape._replace(joints=encoder.shape.joints + 1, parents=parents and (*parents, len(parents)))
    same_joints = weights.joint_names in (None, model.setup.skeleton.joint_names)
    of_joints = set() if same_joints else _differ(own, _shapes(model, wider))
    fits = {
        name: tensor
        for name, tensor in weights.tensors.items()
        if name in own and tensor.shape == own[name].shape and name not in of_joints
    }
    if not any(name in dict(encoder.named_parameters()) for name in fits):
        raise CheckpointError(f"--init-from {weights.path}: none of its weights fits {encoder.config.says}")
    encoder.load_state_dict({**own, **fits})
    for follower, follow in model.followers().values():
        if follow.of == model.evaluated:
            follower.load_state_dict(encoder.state_dict())
    left = [name for name in own if name not in fits]
    says = f"initial weights: {len(fits)} of {len(own)} tensors of the encoder are those of {weights.path}"
    if not left:
        return logging.INFO, says
    more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    why = "it lacks them, or has them for other joints or sizes"
    return logging.WARNING, f"{says}; drawn at random, since {why}: {', '.join(left[:SHOWN])}{more}"


def _shapes(model: Method, shape: ClipShape) -> dict[str, Tensor]:
    """The tensors of an encoder for clips of another shape, without memory."""
    with torch.device("meta"):
        return model.setup.kind(model.setup.encoder, shape).state_dict()


def _differ(own: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    return {name for name, tensor in own.items() if name not in other or other[name].shape != tensor.shape}
