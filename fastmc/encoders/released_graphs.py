"""Checkpoints of graph and image encoders in the layout of released codes, to and from those of this package.

CrosSCLR, AimCLR and HiCLR (ST-GCN), and ISC (AGCN, HCN) save them as they save everything: query encoder encoder_q*,
key encoder encoder_k*, projection head fc.0 and fc.2, and a queue (D, K). HiCLR numbers the weights of edges from 1.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmc.checkpoint import CheckpointError
from fastmc.encoders import find_encoder
from fastmc.encoders.agcn import AGCNConfig
from fastmc.encoders.base import ClipShape, Encoder, EncoderConfig
from fastmc.encoders.hcn import HCNConfig
from fastmc.encoders.released_names import released_state, released_tensors
from fastmc.encoders.stgcn import STGCNConfig
from fastmc.skeleton import Skeleton

FRAMES = 64
SHOWN = 6
PARTITIONS = {1: "uniform", 2: "distance", 3: "released"}


class Kind(NamedTuple):
    """How an encoder is known in a file: a tensor that only it has, and what the shapes of its tensors say of it."""

    backbone: str
    mark: str
    measured: Callable[[Mapping[str, Tensor], int], tuple[EncoderConfig, int]]


def _stgcn(tensors: Mapping[str, Tensor], dim: int) -> tuple[EncoderConfig, int]:
    width, last = (len(tensors[f"st_gcn_networks.{n}.tcn.2.weight"]) for n in (0, 9))
    parts = len(tensors["st_gcn_networks.0.gcn.conv.weight"]) // width
    edges = "edge_importance.0" in tensors
    partition = PARTITIONS[parts]
    return STGCNConfig(f"{width}x{last}", partition=partition, edge_weights=edges, feature_dim=dim), FRAMES  # type: ignore[arg-type]


def _agcn(tensors: Mapping[str, Tensor], dim: int) -> tuple[EncoderConfig, int]:
    return AGCNConfig(f"{len(tensors['l1.tcn1.conv.weight'])}", feature_dim=dim), FRAMES


def _hcn(tensors: Mapping[str, Tensor], dim: int) -> tuple[EncoderConfig, int]:
    return HCNConfig(f"{len(tensors['conv1.0.weight'])}", feature_dim=dim), len(tensors["conv2.weight"])


KINDS = (
    Kind("stgcn", "st_gcn_networks.0.gcn.conv.weight", _stgcn),
    Kind("agcn", "l1.gcn1.PA", _agcn),
    Kind("hcn", "conv1m.0.weight", _hcn),
)


class Graph(NamedTuple):
    """An encoder that a file holds.

    Attributes:
        backbone, config: its kind and size. frames: of a clip; those that it must have, or the usual 64.
        has_head: whether its fc is a projection head of two layers; else the state is without ``head.``.
        state: of the query encoder, in our layout, float32. key: of the key encoder, if there is one.
    """

    backbone: str
    config: EncoderConfig
    frames: int
    has_head: bool
    state: dict[str, Tensor]
    key: dict[str, Tensor] | None


def names_of(tensors: Mapping[str, Tensor]) -> dict[str, Kind]:
    """The encoders of a file by their names in it ("" for one that the file holds alone)."""
    found = {}
    for name in tensors:
        for kind in KINDS:
            if name == kind.mark or name.endswith(f".{kind.mark}"):
                found[name.removesuffix(kind.mark).rstrip(".")] = kind
    return found


def graph_of(tensors: Mapping[str, Tensor], name: str, skeleton: Skeleton, bodies: int, where: str) -> Graph:
    """The encoder of this name, and the key encoder beside it.

    Raises:
        CheckpointError: tensors are missing, mis-shaped or not finite; ``where`` names the file.
    """
    kind, mine = names_of(tensors)[name], _within(tensors, name)
    last = mine.get("fc.2.weight")
    try:
        dim = EncoderConfig.feature_dim if last is None or last.dim() != 2 else len(last)
        config, frames = kind.measured(mine, dim)
        shape = ClipShape(skeleton.num_joints, bodies, frames, skeleton.parents)
        with torch.device("meta"):
            encoder = find_encoder(kind.backbone)(config, shape)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        what = f"{where}: {name or 'the encoder'} is no {kind.backbone} of a known size"
        raise CheckpointError(f"{what}: {error}") from None
    has_head = last is not None and "fc.0.weight" in mine
    state = _checked(encoder, mine, has_head, f"{where}: {name or 'the encoder'}")
    key_name = name.replace("encoder_q", "encoder_k")
    theirs = _within(tensors, key_name) if key_name != name else {}
    key = _checked(encoder, theirs, has_head, f"{where}: {key_name}") if kind.mark in theirs else None
    return Graph(kind.backbone, config, frames, has_head, state, key)


def to_released_graph(
    state: Mapping[str, Tensor], encoder: Encoder, suffix: str, *, unit_queue: bool
) -> dict[str, Tensor]:
    """Encoders and bank of a model under their names; ``suffix``: of the stream.

    Raises:
        ValueError: no released code has such an encoder.
    """
    config = encoder.config
    if isinstance(config, STGCNConfig) and config.partition == "spatial":
        raise ValueError(
            "partition = 'spatial' cannot be exported: the released codes' own spatial partition is another graph, so "
            "that they would compute other features; train with --partition released"
        )
    if not any(find_encoder(kind.backbone) is type(encoder) for kind in KINDS):
        raise ValueError(f"no released code has {config.says} in a layout that is known here")
    found: dict[str, Tensor] = {}
    for ours, theirs in (("query.", "encoder_q"), ("key.", "encoder_k")):
        mine = {name.removeprefix(ours): value for name, value in state.items() if name.startswith(ours)}
        renamed = released_tensors(encoder, mine)
        found |= {f"{theirs}{suffix}.{name}": value for name, value in renamed.items()}
    entries = F.normalize(state["bank.entries"], dim=1) if unit_queue else state["bank.entries"]
    found[f"queue{suffix}"] = entries.T.contiguous()
    found[f"queue_ptr{suffix}"] = (state["bank.cursor"] % len(entries)).view(1)
    return found


def _within(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Tensors of one encoder, without its name, edges' weights numbered from 0."""
    prefix = f"{name}." if name else ""
    found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return {re.sub(r"^edge_importance(\d+)$", _from_zero, key): value for key, value in found.items()}


def _from_zero(match: re.Match[str]) -> str:
    return f"edge_importance.{int(match[1]) - 1}"


def _checked(encoder: Encoder, theirs: Mapping[str, Tensor], has_head: bool, what: str) -> dict[str, Tensor]:
    found = released_state(encoder, theirs)
    wanted = [n for n in encoder.state_dict() if (has_head or not n.startswith("head.")) and "num_batches" not in n]
    problems = {
        "missing or of another shape": [name for name in wanted if name not in found],
        "not finite": [name for name, value in found.items() if not torch.isfinite(value).all()],
        "negative variances": [n for n, v in found.items() if n.endswith("running_var") and (v < 0).any()],
    }
    listed = [f"{kind}: {', '.join(names[:SHOWN])}" for kind, names in problems.items() if names]
    if listed:
        raise CheckpointError(f"{what} is no {encoder.config.says} as released codes save it; {'; '.join(listed)}")
    floats = {n: v.float() if v.is_floating_point() else v for n, v in found.items()}
    # A norm's count of batches says nothing in evaluation, and files of old PyTorch have none.
    counts = {n: torch.zeros((), dtype=torch.int64) for n in encoder.state_dict() if "num_batches" in n}
    return {name: value for name, value in (counts | floats).items() if has_head or not name.startswith("head.")}
