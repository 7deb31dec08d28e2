"""The course of a training as lines in panels, whoever draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastmc.methods.base import Metric

PROBE = Metric(
    *("knn_top1", "kNN probe", "kNN", "share"),
    help="Percent of the labelled test clips whose nearest training clip has their class: what the encoder is worth so "
    "far, for nothing but its features is asked.",
)
LEARNING_RATE = Metric(
    *("lr", "learning rate", "lr", "term"),
    help="How far a step goes along the gradient: it rises at first, and drops to a tenth at the milestones.",
)


@dataclass(frozen=True)
class History:
    """The epochs of a run.

    Attributes:
        rows: one an epoch, as `train.engine.record.read_metrics` gives them; a quantity may be missing from a row.
        metrics: of the run's method. feature_dim: D of the contrastive features.
    """

    rows: Sequence[Mapping[str, float]]
    metrics: Sequence[Metric]
    feature_dim: int


@dataclass(frozen=True)
class Line:
    """A quantity by epoch."""

    metric: Metric
    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class Panel:
    """Lines of one unit, which ``title`` names."""

    title: str
    lines: list[Line]


def curve(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Epochs in which a quantity was measured, and its values."""
    measured = [row for row in rows if name in row]
    return [row["epoch"] for row in measured], [row[name] for row in measured]


def panels_of(history: History) -> dict[str, Panel]:
    """loss and its terms; share, in percent; spread; probe; and lr, the learning rate. A panel without lines has no
    quantity of its kind."""
    of = {kind: [m for m in history.metrics if m.kind == kind] for kind in ("loss", "term", "share", "spread")}

    def panel(title: str, metrics: Sequence[Metric], scale: float = 1.0) -> Panel:
        lines = []
        for metric in metrics:
            epochs, values = curve(history.rows, metric.name)
            lines.append(Line(metric, epochs, [scale * value for value in values]))
        return Panel(title, lines)

    def named(metrics: Sequence[Metric], several: str, unit: str = "") -> str:
        return f"{metrics[0].label}{unit}" if len(metrics) == 1 else several

    return {
        "loss": panel("loss (nats)", [*of["loss"], *of["term"]]),
        "share": panel(named(of["share"], "share (%)", " (%)"), of["share"], 100.0),
        "spread": panel(named(of["spread"], "standard deviation"), of["spread"]),
        "probe": panel("kNN probe, top-1 (%)", [PROBE]),
        "lr": panel("learning rate", [LEARNING_RATE]),
    }
