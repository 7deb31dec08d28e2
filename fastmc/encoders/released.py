"""Checkpoints in the layout that released skeleton-contrast codes share, to and from the encoder of this package.

ISC (Thoker et al. 2021), CMD (Mao et al. 2022), HaLP (Shah et al. 2023) and PCM3 (Zhang et al. 2023) save the same
BiGRU under the same names, whose part before the first dot says which encoder of the file it is:

    encoder.gru.weight_ih_l0, ..._l0_reverse, ..._l1, ...     one bidirectional nn.GRU, fed a frame at a time: its
                                                              directions are our `StepwiseGRU`'s pairs
    input_norm.*                                              a BatchNorm1d of the input channels; ISC has none
    fc.0.*, fc.2.*                                            the projection head; fc.* alone is a linear layer

A frame's channels are ordered (V, 3, M) there and (V, M, 3) here, so that the input norm and the first layer's input
weights are permuted. The motion and bone encoders of CMD carry the suffix _motion or _bone, key encoders are called
encoder_k*, and the queue of key features is (D, K). docs/checkpoints.md says what else differs.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmc.checkpoint import CheckpointError
from fastmc.data.bytes.safe_pickle import numpy_scalars
from fastmc.encoders.base import ClipShape, EncoderConfig
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.encoders.released_graphs import graph_of, names_of
from fastmc.skeleton import NTU25
from fastmc.tensor_files import TensorFileError, read_tensors
from fastmc.views.clips import Stream

SUFFIX: dict[Stream, str] = {"joint": "", "motion": "_motion", "bone": "_bone"}
GRU = "encoder.gru."
CODES = "ISC, CMD, HaLP or PCM3"
BODIES, FRAMES = 2, 64
"""Of the clips that these codes feed."""
ABOUT = "fastmc"
"""In files that we export: what their layout has no place for, by name."""
WRAPPERS = ("module", "model", "_orig_mod")
"""Parts of names that data parallelism, trainers' classes and torch.compile add where they wrap a module."""
MOST_LAYERS = 64
SHOWN = 6
"""Names that an error lists of each kind."""


@dataclass(frozen=True)
class ReleasedFile:
    """The content of a file, whose names are without what wrappers add (`WRAPPERS`), wherever that is.

    Attributes:
        tensors: by name.
        epochs: how many it was trained for; 0 where the file does not say.
        about: what a file of ours says beside: frames and normalisation of the clips. Empty in files of others.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    epochs: int
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReleasedEncoder:
    """What a file holds of one stream, in our layout.

    Attributes:
        name: of the query encoder in the file; empty where the file holds that encoder alone.
        backbone, config, input_size: its kind, its size, and that of a frame, V * M * 3. frames: of a clip.
        query: state of an `Encoder`, float32. Without ``head.`` if ``has_head`` is false: the file's fc is a single
            layer, such as the classifier of a linear evaluation.
        key: the same of the key encoder, if there is one.
        queue: (K, D) key features, if there are any, and ``cursor``, the row that the next one goes to.
        unused: the file's other parts.
    """

    name: str
    backbone: str
    config: EncoderConfig
    input_size: int
    frames: int
    has_head: bool
    query: dict[str, Tensor]
    key: dict[str, Tensor] | None
    queue: Tensor | None
    cursor: int
    unused: tuple[str, ...]


def read_released(path: Path) -> ReleasedFile:
    """Read a file without running anything that it brings along: tensors, plain values, numpy's scalars (a best
    accuracy), argparse.Namespace (a bare holder of values, in which some codes save their options).

    Raises:
        CheckpointError: there is no such file, it is damaged, or it holds no named tensors, or two of one name.
    """
    if not path.exists():
        raise CheckpointError(f"there is no file {path}; name a checkpoint (.pth.tar, .pt) of {CODES}")
    try:
        content = read_tensors(path, allowed=[argparse.Namespace, *numpy_scalars()], mapped=True)
    except TensorFileError as error:
        raise CheckpointError(f"{error}{_remedy(path, error)}") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    named = isinstance(state, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named or not state:
        inside = ", ".join(map(str, list(content)[:SHOWN])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} is no checkpoint of {CODES}: it has no 'state_dict' of tensors, but {inside or 'nothing'}"
        )
    epochs = content.get("epoch", 0)
    tensors = {_unwrapped(name): tensor for name, tensor in state.items()}
    if len(tensors) < len(state):
        twice = [name for name, count in Counter(map(_unwrapped, state)).items() if count > 1]
        raise CheckpointError(
            f"{path} has several tensors for each of {_some(twice)}, with and without {', '.join(WRAPPERS)} in their "
            "names; save those that are meant to a file of their own"
        )
    about = content.get(ABOUT, {})
    return ReleasedFile(
        path, tensors, epochs if isinstance(epochs, int) else 0, about if isinstance(about, dict) else {}
    )


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _remedy(path: Path, error: TensorFileError) -> str:
    if error.forbidden is None:
        return "; get the file again"
    return (
        ". If you trust its source, save what is needed to another file: "
        f"python -c \"import torch; c = torch.load('{path}', map_location='cpu', weights_only=False); "
        "torch.save({'epoch': c['epoch'], 'state_dict': c['state_dict']}, 'weights.pth.tar')\""
    )


def encoder_of(file: ReleasedFile, stream: Stream, joints: int = 25) -> ReleasedEncoder:
    """The encoder of ``stream``. A file with one encoder only does not say of which stream it is, so it is that one's.

    Args:
        joints: V.

    Raises:
        CheckpointError: the file has no such encoder, or one whose tensors are not those of this layout; their names
            are listed.
    """
    graphs = names_of(file.tensors)
    if graphs and not any(GRU in name for name in file.tensors):
        return _graph_encoder(file, _name_of_stream(file, stream, graphs), joints)
    name = _query_name(file, stream)
    size = _measure(file, name)
    config, input_size, has_head = size
    if input_size % (3 * joints):
        raise CheckpointError(
            f"{file.path}: {_join(name, GRU)}weight_ih_l0 reads {input_size} numbers a frame, which is no whole number "
            f"of bodies of {joints} joints"
        )
    order = channel_order(joints, input_size // (3 * joints))
    query = _state(file, name, size, order)
    key_name = name.replace("encoder_q", "encoder_k")
    has_key = key_name != name and any(other.startswith(f"{key_name}.") for other in file.tensors)
    key = _state(file, key_name, size, order) if has_key else None
    queue, cursor, queue_names = _queue(file, name, config) if key and has_head else (None, 0, ())
    used = {_part(_join(each, "x")) for each in (name, *([key_name] if has_key else []))} | set(queue_names)
    unused = dict.fromkeys(part for part in map(_part, file.tensors) if name and part not in used)
    return ReleasedEncoder(
        name, "bigru", config, input_size, FRAMES, has_head, query, key, queue, cursor, tuple(unused)
    )


def _name_of_stream(file: ReleasedFile, stream: Stream, graphs: Collection[str]) -> str:
    """Name of the query encoder of a stream, where the file's encoders are none of recurrent nets. A file with one
    does not say of which stream it is."""
    wanted, queries = f"encoder_q{SUFFIX[stream]}", sorted(name for name in graphs if "encoder_k" not in name)
    if wanted in queries:
        return wanted
    if len(queries) != 1 or queries[0].startswith("encoder_q_"):
        raise CheckpointError(f"{file.path} has no {wanted}, the {stream} encoder; it has {', '.join(queries)}")
    return queries[0]


def _graph_encoder(file: ReleasedFile, name: str, joints: int) -> ReleasedEncoder:
    if joints != NTU25.num_joints:
        raise CheckpointError(
            f"{file.path}: released encoders of graphs are of {NTU25.num_joints} joints, not {joints}"
        )
    found = graph_of(file.tensors, name, NTU25, BODIES, str(file.path))
    queue, cursor, queue_names = _queue(file, name, found.config) if found.key and found.has_head else (None, 0, ())
    used = {_part(_join(name, "x")), name.replace("encoder_q", "encoder_k") if found.key else "", *queue_names}
    unused = dict.fromkeys(part for part in map(_part, file.tensors) if name and part not in used)
    size = joints * BODIES * 3
    return ReleasedEncoder(
        name,
        found.backbone,
        found.config,
        size,
        found.frames,
        found.has_head,
        found.state,
        found.key,
        queue,
        cursor,
        tuple(unused),
    )


def channel_order(joints: int, bodies: int) -> Tensor:
    """(V * M * 3,) int64: the place in their order (V, 3, M) of each channel of ours, (V, M, 3)."""
    return torch.arange(joints * 3 * bodies).view(joints, 3, bodies).transpose(1, 2).flatten()


def released_name(name: str) -> str:
    """What a tensor of our `Encoder` in the stepwise reading is called in their encoder."""
    gru = re.fullmatch(r"recurrent\.layers\.(\d+)\.([01])\.(\w+)_l0", name)
    if gru is not None:
        return f"{GRU}{gru[3]}_l{gru[1]}{'_reverse' if gru[2] == '1' else ''}"
    return re.sub(r"^head\.", "fc.", re.sub(r"^norm\.", "input_norm.", name))


def to_released(
    state: Mapping[str, Tensor],
    config: BiGRUConfig,
    *,
    joints: int,
    bodies: int,
    stream: Stream,
    unit_queue: bool = False,
) -> dict[str, Tensor]:
    """The encoders and the bank of a model under the names of CMD; of ISC where there is no input norm, since CMD's
    encoder has one and ISC's has not. ISC's loader asks for ``module.`` before each name, and knows no streams.

    Args:
        state: of a `fastmc.methods.a2mc.A2MC` with this encoder.
        joints, bodies: V and M.
        unit_queue: normalise the queue's features, as their codes expect them; a learned bank is raw.

    Raises:
        ValueError: the encoder reads whole sequences.
    """
    if config.reading != "stepwise":
        raise ValueError(
            f"reading = {config.reading!r} cannot be exported: codes of this layout feed a frame at a time and carry "
            "the state, and so compute other features from these weights; train with --reading stepwise"
        )
    prefix, suffix = ("", SUFFIX[stream]) if config.input_norm else ("module.", "")
    order = channel_order(joints, bodies).argsort()
    tensors: dict[str, Tensor] = {}
    for ours, theirs in (("query", "encoder_q"), ("key", "encoder_k")):
        for name in _template(config, joints * bodies * 3):
            value = state[f"{ours}.{name}"]
            value = value.index_select(-1, order) if _by_channel(name) else value.clone()
            tensors[f"{prefix}{theirs}{suffix}.{released_name(name)}"] = value
    entries = F.normalize(state["bank.entries"], dim=1) if unit_queue else state["bank.entries"]
    tensors[f"{prefix}queue{suffix}"] = entries.T.contiguous()
    tensors[f"{prefix}queue_ptr{suffix}"] = (state["bank.cursor"] % len(entries)).view(1)
    return tensors


def _query_name(file: ReleasedFile, stream: Stream) -> str:
    """Name of the query encoder of a stream."""
    found = {name.partition(GRU)[0].rstrip(".") for name in file.tensors if GRU in name}
    queries = sorted(name for name in found if name in {f"encoder_q{suffix}" for suffix in SUFFIX.values()})
    wanted = f"encoder_q{SUFFIX[stream]}"
    if wanted in queries:
        return wanted
    if queries == ["encoder_q"] or found == {""}:
        return next(iter(queries), "")
    if queries:
        raise CheckpointError(f"{file.path} has no {wanted}, the {stream} encoder; it has {', '.join(queries)}")
    parts = ", ".join(list(dict.fromkeys(map(_part, file.tensors)))[:SHOWN])
    raise CheckpointError(
        f"{file.path} has no encoder_q.{GRU}*, the BiGRU of {CODES}; it has {parts}. Beside it, ST-GCN "
        "(CrosSCLR, AimCLR, HiCLR), AGCN and HCN (ISC) can be loaded"
    )


class _Size(NamedTuple):
    """An encoder's configuration, the size of a frame, and whether its head is a projection head."""

    config: BiGRUConfig
    input_size: int
    has_head: bool


def _measure(file: ReleasedFile, name: str) -> _Size:
    """What the shapes say."""
    first = file.tensors.get(_join(name, f"{GRU}weight_ih_l0"))
    if first is None or first.dim() != 2 or len(first) % 3 or not first.numel():
        given = "is missing" if first is None else f"is {tuple(first.shape)}, not (3 * hidden, V * M * 3)"
        raise CheckpointError(f"{file.path}: {_join(name, GRU)}weight_ih_l0 {given}; get the file again")
    # As many as there are, whatever their numbers: of 0 and 99999 the second is one that does not belong there.
    found = (re.fullmatch(rf"{re.escape(GRU)}\w+?_l(\d+)(_reverse)?", key) for key in _names(file, name))
    layers = len({match[1] for match in found if match})
    if layers > MOST_LAYERS:
        raise CheckpointError(f"{file.path}: {name or 'the encoder'} has {layers} layers, more than {MOST_LAYERS}")
    last = file.tensors.get(_join(name, "fc.2.weight"))
    has_head = any(key.startswith(("fc.0.", "fc.2.")) for key in _names(file, name))
    config = BiGRUConfig(
        encoder=f"{layers}x{len(first) // 3}",
        reading="stepwise",
        input_norm=any(key.startswith("input_norm.") for key in _names(file, name)),
        feature_dim=BiGRUConfig.feature_dim if last is None or not last.dim() else len(last),
    )
    return _Size(config, first.shape[1], has_head)


def _state(file: ReleasedFile, name: str, size: _Size, order: Tensor) -> dict[str, Tensor]:
    """State of an `Encoder`. CheckpointError names tensors that are missing, unexpected, mis-shaped or not finite."""
    config, input_size, has_head = size
    template = {
        key: shape for key, shape in _template(config, input_size).items() if has_head or not key.startswith("head.")
    }
    expected = {released_name(key): shape for key, shape in template.items()}
    found = _names(file, name)
    given = {key: file.tensors[_join(name, key)] for key in found if has_head or key not in ("fc.weight", "fc.bias")}
    problems = {
        "missing": [_join(name, key) for key in expected if key not in given],
        "unexpected": [_join(name, key) for key in given if key not in expected],
        "of another shape": [
            f"{_join(name, key)} {tuple(given[key].shape)} instead of {shape}"
            for key, shape in expected.items()
            if key in given and tuple(given[key].shape) != shape
        ],
        "not finite": [_join(name, key) for key, value in given.items() if not torch.isfinite(value).all()],
        "negative variances": [_join(name, k) for k, v in given.items() if k.endswith("running_var") and (v < 0).any()],
    }
    listed = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if listed:
        what = f"{name or 'the encoder'} is no BiGRU of {config.encoder} as {CODES} save it"
        raise CheckpointError(f"{file.path}: {what}; {'; '.join(listed)}. Get the file again, or name another --stream")
    state = {}
    for key in template:
        value = given[released_name(key)]
        value = value.index_select(-1, order) if _by_channel(key) else value.clone()
        state[key] = value.float() if value.is_floating_point() else value
    return state


def _queue(file: ReleasedFile, name: str, config: EncoderConfig) -> tuple[Tensor | None, int, tuple[str, str]]:
    """(K, D) features of this stream's key encoder, the row for the next one, and the names of both in the file."""
    suffix = name.removeprefix("encoder_q")
    # ISC's inter-skeleton training has two queues; the key encoder of its BiGRU fills the first.
    for queue_name, position in ((f"queue{suffix}", f"queue_ptr{suffix}"), ("Queue_S1", "queue_ptr_S1")):
        if queue_name in file.tensors:
            queue = file.tensors[queue_name]
            if queue.dim() != 2 or len(queue) != config.feature_dim or not queue.shape[1]:
                raise CheckpointError(
                    f"{file.path}: {queue_name} is {tuple(queue.shape)}, not (D = {config.feature_dim}, K)"
                )
            if not torch.isfinite(queue).all():
                raise CheckpointError(f"{file.path}: {queue_name} is not finite; get the file again")
            cursor = file.tensors.get(position)
            if cursor is not None and (cursor.numel() != 1 or not torch.isfinite(cursor).all()):
                raise CheckpointError(f"{file.path}: {position} is {cursor.tolist()}, not one row; get the file again")
            row = 0 if cursor is None else int(cursor) % queue.shape[1]
            return queue.T.contiguous().float(), row, (queue_name, position)
    return None, 0, ("", "")


def _template(config: BiGRUConfig, input_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of an `Encoder`'s tensors, by name."""
    with torch.device("meta"):
        return {
            name: tuple(value.shape)
            for name, value in BiGRU(config, ClipShape(input_size // 3, 1)).state_dict().items()
        }


def _by_channel(name: str) -> bool:
    """Whether the last axis of a tensor of an `Encoder` is that of the input channels."""
    return re.fullmatch(r"recurrent\.layers\.0\.[01]\.weight_ih_l0|norm\.(weight|bias|running_\w+)", name) is not None


def _names(file: ReleasedFile, encoder: str) -> list[str]:
    """Names within an encoder of the file."""
    prefix = _join(encoder, "")
    return [name.removeprefix(prefix) for name in file.tensors if name.startswith(prefix)]


def _join(encoder: str, name: str) -> str:
    return f"{encoder}.{name}" if encoder else name


def _part(name: str) -> str:
    return name.partition(".")[0]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
