"""One file for a trained encoder: its weights, what it expects of clips, and its settings, as safetensors.

The file is for use and for sharing: nothing in it can run, and whatever reads safetensors reads the weights. A run goes
on from its checkpoints, which hold more.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from fastmc.config import Config, config_of, to_plain
from fastmc.encoders import find_encoder
from fastmc.encoders.base import ClipShape, Encoder
from fastmc.files import open_file, whole_file
from fastmc.reading import reading, shown
from fastmc.registry import NotAllowed
from fastmc.state import TrainingData
from fastmc.tensor_files import check_values

if TYPE_CHECKING:
    from fastmc.embedding import Embedder

SUFFIX = ".safetensors"
FORMAT = "fastmc encoder 1"
READY = {path.stem: path for path in Path(__file__).with_name("ready").glob(f"*{SUFFIX}")}
"""Encoders that come with the package, by name; docs/model-card.md says what they were trained on."""


class EncoderFileError(ValueError):
    """A file is no encoder of fastmc, or damaged; the message names it."""


def write_encoder(path: Path, embedder: Embedder) -> None:
    """Write the file, whole or not at all; ``embedder``: an `Embedder`."""
    from safetensors.torch import save

    about = {
        "format": FORMAT,
        "config": json.dumps(to_plain(embedder.config)),
        "data": json.dumps(embedder.data.to_plain()),
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in embedder.encoder.state_dict().items()}
    with whole_file(path) as unfinished:
        unfinished.write_bytes(save(tensors, about))


def read_encoder(path: Path, allow: Collection[str] = ()) -> tuple[Config, TrainingData, Encoder]:
    """Settings, data and encoder, on the CPU.

    Args:
        allow: the encoder's class, MODULE:CLASS, where it is no part of fastmc: it is imported.

    Raises:
        EncoderFileError: it is not there, damaged, or no such file. ValueError: as of `fastmc.registry.find`.
    """
    from safetensors import safe_open

    with reading(f"{path} is no encoder that fastmc wrote", EncoderFileError, passing=(NotAllowed,)):
        open_file(path).close()  # what is no file is refused, and not waited for
        with safe_open(path, framework="pt") as file:
            about: dict[str, str] = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError(f"its format is {shown(about.get('format'))}, and this reads {FORMAT!r}")
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        check_values(tensors, path)
        config = config_of(json.loads(about["config"]), allow)
        data = TrainingData.of_plain(json.loads(about["data"]))
        bones, centre = data.skeleton.parents, config.augment.centre_joint
        shape = ClipShape(data.skeleton.num_joints, data.max_bodies, config.frames, bones, centre)
        encoder = find_encoder(config.backbone, allow)(config.encoder, shape)
        encoder.load_state_dict(tensors)
    return config, data, encoder
