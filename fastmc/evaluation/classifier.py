"""The linear classifier of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fastmc.checks import check_number
from fastmc.encoders.base import Encoder
from fastmc.evaluation import weights_digest
from fastmc.tensor_files import TensorFileError, check_values, read_tensors

CLASSIFIER = "classifier.pt"


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
    def read(cls, folder: Path, encoder: Encoder, file: Path | None = None) -> Classifier:
        """From ``file``, by default DIR/classifier.pt; ValueError if it is not there, damaged, or of other weights than
        the encoder's."""
        path, remedy = file or folder / CLASSIFIER, f"python -m train.evaluate linear --run {folder}"
        if not path.is_file():
            others = " or ".join(map(str, sorted(folder.glob("classifier-*.pt"))))
            remedy = f"give --classifier {others}" if others else f"{remedy} trains one"
            raise ValueError(f"{folder} has no trained classifier ({path.name}); {remedy}")
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
            raise ValueError(f"{path} was trained on the features of other weights than these; {remedy}")
        shape = (len(names), encoder.representation_dim)
        if found.weight.shape != shape or found.bias.shape != shape[:1]:
            raise ValueError(f"{path} is damaged: weight is {tuple(found.weight.shape)}, not {shape}; {remedy}")
        return found
