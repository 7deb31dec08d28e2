"""What an evaluation leaves in the run folder: evaluate/NAME.json, .csv, .png and .svg, and the linear classifier."""

from __future__ import annotations

import csv
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fastmc.config import to_plain
from fastmc.evaluation import EvalConfig, FinetuneConfig, Predictions
from fastmc.evaluation.classifier import CLASSIFIER
from fastmc.evaluation.linear import unset_classifier
from fastmc.figures.confusion import draw_confusion
from fastmc.files import whole_file, write_json
from fastmc.tensor_files import check_values, read_tensors, write_tensors
from train.engine.record import log

UNUSED = {"knn_k"}  # settings of EvalConfig that a linear classifier does not depend on


@dataclass(frozen=True)
class Outcome:
    """One evaluation.

    Attributes:
        name: of its files, with the protocol and the settings that are not the run's own.
        kind: knn, linear, semi, finetune, transfer or ensemble.
        data: digest of the clips and labels. weights: of the query encoder's weights.
        settings: that were used, plain. pretraining: as `Run.pretraining` gives it.
        more: further entries of the JSON.
    """

    name: str
    kind: str
    dataset: str
    protocol: str
    seed: int
    predictions: Predictions
    data: str
    weights: str | list[str]
    settings: dict[str, Any]
    pretraining: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The content of NAME.json, but for the time it took."""
        top5 = self.predictions.top5
        return {
            "kind": self.kind,
            "dataset": self.dataset,
            "protocol": self.protocol,
            "pretraining": self.pretraining,
            "seed": self.seed,
            "top1": self.predictions.top1,
            **({} if top5 is None else {"top5": top5}),
            **self.more,
            "per_class": self.predictions.per_class,
            "evaluation": self.settings,
            "data": self.data,
            "weights": self.weights,
        }


def variant(settings: EvalConfig | FinetuneConfig, usual: EvalConfig | FinetuneConfig) -> str:
    """What keeps the files of these settings apart from those of the usual ones, as the end of their names."""

    def said(value: Any) -> str:
        return "+".join(map(said, value)) if isinstance(value, list) else f"{value:g}"

    plain, other = to_plain(settings), to_plain(usual)
    return "".join(f"-{name}{said(value)}" for name, value in plain.items() if value != other[name])


def write_outcome(outcome: Outcome, folder: Path, wall_seconds: float) -> Path:
    """Write the four files below ``folder``/evaluate, the JSON last; returns its path."""
    from fastmc.figures.style import save  # here, so that nothing else waits for matplotlib

    out = folder / "evaluate"
    out.mkdir(parents=True, exist_ok=True)
    title = f"{outcome.dataset} {outcome.protocol}, {outcome.name.replace(f'-{outcome.protocol}', '', 1)}"
    save(draw_confusion(outcome.predictions, title), out, outcome.name)
    _write_per_class(outcome.predictions, out / f"{outcome.name}.csv")
    path = out / f"{outcome.name}.json"
    write_json(path, {**outcome.to_dict(), "wall_seconds": round(wall_seconds, 3)})
    log.info("%s, .csv, .png and .svg are written", path)
    return path


def _write_per_class(predictions: Predictions, path: Path) -> None:
    """A line per class: its test clips, how many are found, and how many percent that is."""
    with whole_file(path) as unfinished, open(unfinished, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("class", "clips", "correct", "accuracy"))
        clips, correct = predictions.confusion.sum(axis=1), np.diag(predictions.confusion)
        for (name, accuracy), n, right in zip(predictions.per_class.items(), clips, correct, strict=True):
            writer.writerow((name, n, right, "" if accuracy is None else f"{accuracy:.4f}"))


def save_classifier(
    folder: Path,
    classifier: nn.Linear,
    *,
    class_names: tuple[str, ...],
    dataset: str,
    protocol: str,
    data: str,
    top1: float,
    weights: str,
    settings: EvalConfig,
    seed: int,
    name: str = CLASSIFIER,
) -> None:
    """Write the linear classifier to file ``name`` in the run folder, beside and renamed.

    Args:
        data: digest of the clips and labels (`PackedStore.split_digest`). top1: percent of the test clips. weights:
            digest of the query encoder's.
    """
    content = {
        "weight": classifier.weight.detach().float().cpu(),
        "bias": classifier.bias.detach().float().cpu(),
        "class_names": list(class_names),
        "dataset": dataset,
        "protocol": protocol,
        "top1": top1,
        "weights": weights,
        "made": _made(data, settings, seed),
    }
    with whole_file(folder / name) as unfinished:
        write_tensors(unfinished, content)


def saved_classifier(
    folder: Path, *, protocol: str, data: str, weights: str, settings: EvalConfig, seed: int, name: str = CLASSIFIER
) -> nn.Linear | None:
    """The classifier of that name, if it is the one that these arguments would give; else None."""
    path = folder / name
    if not path.is_file():
        return None
    try:
        saved = read_tensors(path)
        check_values(saved, path)
        wanted = (protocol, weights, _made(data, settings, seed))
        if (saved["protocol"], saved["weights"], saved.get("made")) != wanted:
            return None
        classifier = unset_classifier(*reversed(saved["weight"].shape))
        classifier.load_state_dict({"weight": saved["weight"], "bias": saved["bias"]})
    except Exception as error:  # a damaged file may hold anything
        log.warning("%s cannot be used, so a classifier is trained anew (%s)", path, error)
        return None
    return classifier


def _made(data: str, settings: EvalConfig, seed: int) -> dict[str, Any]:
    """What a classifier depends on beside weights and protocol."""
    plain = to_plain(settings)
    used = {f.name: plain[f.name] for f in dataclasses.fields(settings) if f.name not in UNUSED}
    return {"data": data, "seed": seed, "settings": used}
