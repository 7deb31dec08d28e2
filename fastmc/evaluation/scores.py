"""What a classifier made of the test clips, and the accuracies of that."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

BEST = 5


@dataclass(frozen=True)
class Predictions:
    """Predicted classes of N test clips.

    Attributes:
        labels: (N,) int64, the true ones.
        ranked: (N, k) int64, the k classes of highest score, best first; k = 1 where the classifier ranks none.
        class_names: C names.
    """

    labels: np.ndarray
    ranked: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.ranked.ndim != 2 or len(self.ranked) != len(self.labels) or len(self.labels) == 0:
            shapes = f"{self.ranked.shape} and {self.labels.shape}"
            raise ValueError(f"ranked must be (N, k) and labels (N,) with N >= 1, got {shapes}")

    @classmethod
    def of_classes(cls, predicted: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Predictions:
        """Of one class (N,) for each clip."""
        return cls(labels.cpu().numpy(), predicted[:, None].cpu().numpy(), class_names)

    @classmethod
    def of_scores(cls, scores: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Predictions:
        """Of a score (N, C) for each class."""
        if scores.shape[1] != len(class_names):
            raise ValueError(f"scores are of {scores.shape[1]} classes, there are {len(class_names)} names")
        ranked = scores.topk(min(BEST, scores.shape[1]), dim=1).indices
        return cls(labels.cpu().numpy(), ranked.cpu().numpy(), class_names)

    @property
    def ranks(self) -> bool:
        """Whether there is more than one class for each clip, as far as there are more."""
        return self.ranked.shape[1] >= min(BEST, len(self.class_names))

    def top(self, k: int) -> float:
        """Percent of the clips whose class is among the k best."""
        return 100.0 * float((self.ranked[:, :k] == self.labels[:, None]).any(axis=1).mean())

    @property
    def top1(self) -> float:
        return self.top(1)

    @property
    def top5(self) -> float | None:
        """None where the classifier does not rank the classes."""
        return self.top(BEST) if self.ranks else None

    @cached_property
    def confusion(self) -> np.ndarray:
        """Clips of each true class (row) by predicted class (column), (C, C) int64."""
        from sklearn.metrics import confusion_matrix  # here, since it takes half a second to import

        return confusion_matrix(self.labels, self.ranked[:, 0], labels=np.arange(len(self.class_names)))

    @property
    def accuracy_by_class(self) -> np.ndarray:
        """Percent of each class's clips that are found, (C,); NaN for a class without test clips."""
        clips = self.confusion.sum(axis=1)
        return np.where(clips > 0, 100.0 * np.diag(self.confusion) / np.maximum(clips, 1), np.nan)

    @property
    def per_class(self) -> dict[str, float | None]:
        """The same by name of the class; None for a class without test clips. See `unique_names`."""
        names = unique_names(self.class_names)
        return {
            name: None if np.isnan(share) else float(share)
            for name, share in zip(names, self.accuracy_by_class, strict=True)
        }


def unique_names(names: tuple[str, ...]) -> list[str]:
    """The names, with their number from 0 where they occur more than once."""
    return [f"{name} ({n})" if names.count(name) > 1 else name for n, name in enumerate(names)]
