"""What a run folder tells of its trained encoder: the settings of its input, its data, and a trained classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmc.checkpoint import CheckpointError
from fastmc.checks import check_number
from fastmc.data.store import PackedStore
from fastmc.encoders.bigru import Encoder, EncoderConfig
from fastmc.evaluation import EvalConfig, weights_digest
from fastmc.files import read_text
from fastmc.skeleton import Skeleton
from fastmc.tensor_files import TensorFileError, check_values, read_tensors
from fastmc.views.clips import STREAMS, Stream

CLASSIFIER = "classifier.pt"


@dataclass(frozen=True)
class RunSettings:
    """What of a run's settings its encoder's input depends on: ``frames`` T and the evaluation's centre crop."""

    encoder: EncoderConfig
    stream: Stream
    frames: int
    crop: float

    @classmethod
    def read(cls, folder: Path) -> RunSettings:
        """From DIR/config.json; ValueError if DIR is no run folder."""
        path = folder / "config.json"
        if not path.is_file():
            fault = "has no config.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
            raise ValueError(f"{folder} is no run folder (it {fault}); python -m train.run --out {folder} makes one")
        try:
            plain = json.loads(read_text(path))
            crop = plain.get("evaluation", {}).get("test_crop", EvalConfig.test_crop)
            found = cls(EncoderConfig(**plain["encoder"]), plain["stream"], plain["frames"], crop)
            if found.stream not in STREAMS:
                raise ValueError(f"stream is {found.stream!r}")
            check_number("frames", found.frames, at_least=1)
            check_number("test_crop", found.crop, above=0, at_most=1)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            remedy = "name a folder that python -m train.run made"
            raise ValueError(f"{path} is damaged or not of fastmc: {error!r}; {remedy}") from None
        return found


@dataclass(frozen=True)
class TrainingData:
    """What an encoder expects of its clips, since its training data were so: at most ``max_bodies`` bodies, and their
    frame of reference, in words (`fastmc.data.packing.NORMALISATION`, or none, or that of another code)."""

    skeleton: Skeleton
    max_bodies: int
    class_names: tuple[str, ...]
    fps: float
    normalisation: str

    @classmethod
    def of_store(cls, store: PackedStore) -> TrainingData:
        return cls(store.skeleton, store.max_bodies, store.class_names, store.fps, store.normalisation)

    @classmethod
    def of_checkpoint(cls, state: Mapping[str, Any], path: Path) -> TrainingData:
        """CheckpointError if the checkpoint at ``path`` does not say."""
        data = state.get("data")
        if data is None:
            raise CheckpointError(
                f"{path} does not describe the data it was trained on (an older fastmc wrote it, or it was imported); "
                "name their packed store: fastmc.load(DIR, data=STORE), or --data STORE"
            )
        skeleton, class_names = Skeleton.from_dict(data["skeleton"]), tuple(data["class_names"])
        return cls(skeleton, data["max_bodies"], class_names, data["fps"], data["normalisation"])


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of frozen features, as ``python -m train.evaluate linear`` writes it.

    Attributes:
        weight: (C, H), bias: (C,), float32.
        dataset, protocol: what it was trained on; ``top1`` is its accuracy on that protocol's test clips, percent.
    """

    weight: Tensor
    bias: Tensor
    class_names: tuple[str, ...]
    dataset: str
    protocol: str
    top1: float

    @classmethod
    def read(cls, folder: Path, encoder: Encoder) -> Classifier:
        """From DIR/classifier.pt; ValueError if it is not there, damaged, or of other weights than the encoder's."""
        path, remedy = folder / CLASSIFIER, f"python -m train.evaluate linear --run {folder}"
        if not path.is_file():
            raise ValueError(f"{folder} has no trained classifier ({CLASSIFIER}); {remedy} trains one")
        try:
            saved = read_tensors(path)
            check_values(saved, path)
            names = tuple(map(str, saved["class_names"]))
            found = cls(saved["weight"], saved["bias"], names, saved["dataset"], saved["protocol"], saved["top1"])
            digest = saved["weights"]
            check_number("top1", found.top1, at_least=0, at_most=100)
        except TensorFileError as error:
            raise ValueError(f"{error}; {remedy} writes it anew") from error
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error!r}; {remedy} writes it anew") from error
        if digest != weights_digest(encoder):
            raise ValueError(f"{path} was trained on the features of other weights than the run's newest; {remedy}")
        shape = (len(names), encoder.representation_dim)
        if found.weight.shape != shape or found.bias.shape != shape[:1]:
            raise ValueError(f"{path} is damaged: weight is {tuple(found.weight.shape)}, not {shape}; {remedy}")
        return found
