"""Training curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastmc.figures.style import DOUBLE, MOST_LINES, head, line_style, quiet_grid, style
from fastmc.methods.base import Metric

MARKED = 40  # so many epochs at most have a marker each


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


def curve(rows: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Epochs in which a quantity was measured, and its values."""
    measured = [row for row in rows if name in row]
    return [row["epoch"] for row in measured], [row[name] for row in measured]


@style()
def draw_curves(runs: Mapping[str, History], *, title: str = "") -> Figure:
    """Loss, shares such as contrastive top-1, standard deviation of the features and kNN probe by epoch. Of one run the
    terms of the loss and all shares are drawn; of several the loss and the first share, a line a run.

    The dotted line at 1/sqrt(D) is the standard deviation of features that have not collapsed.

    Raises:
        ValueError: there are more runs than lines that can be told apart.
    """
    if len(runs) > MOST_LINES:
        raise ValueError(f"curves of {len(runs)} runs cannot be told apart; name {MOST_LINES} at most")
    columns = max(1, min(len(runs), int(DOUBLE / (0.5 + 0.055 * max(map(len, runs))))))  # inches a name and a letter
    figure = Figure(figsize=(DOUBLE, 4.3 + 0.15 * (-(-len(runs) // columns))), layout="constrained")
    head(figure, title)
    loss, contrast, spread, probe = panels = figure.subplots(2, 2, sharex=True).flatten()
    for i, (run, history) in enumerate(runs.items()):
        _draw_run(panels, run, history, i, alone=len(runs) == 1)
    loss.set_ylabel("loss (nats)")
    probe.set_ylabel("kNN probe, top-1 (%)")
    _mark_no_collapse(spread, sorted({history.feature_dim for history in runs.values()}))
    if not any("knn_top1" in row for history in runs.values() for row in history.rows):
        probe.text(0.5, 0.5, "no probe (--probe-every 0)", transform=probe.transAxes, ha="center", color="0.4")
    for axes in (spread, probe):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in panels:
        quiet_grid(axes)
        if len(runs) == 1 and len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(frameon=False)
    contrast.set_ylim(0, 100)
    if len(runs) > 1:
        handles, names = probe.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6)
    return figure


def _draw_run(panels: Sequence[Axes], run: str, history: History, number: int, *, alone: bool) -> None:
    """A run's curves: several lines a panel where it is ``alone``, else one that has its name."""
    loss, contrast, spread, probe = panels
    of = {kind: [m for m in history.metrics if m.kind == kind] for kind in ("loss", "term", "share", "spread")}
    lines = [(loss, m, 1.0) for m in (*of["loss"], *(of["term"] if alone else ()))]
    lines += [(contrast, m, 100.0) for m in of["share"][: None if alone else 1]]
    lines += [(spread, m, 1.0) for m in of["spread"]]
    drawn = [(axes, metric.name, metric.label, scale) for axes, metric, scale in lines]
    for i, (axes, name, label, scale) in enumerate([*drawn, (probe, "knn_top1", "kNN probe", 1.0)]):
        epochs, values = curve(history.rows, name)
        marker = "o" if len(epochs) <= MARKED else ""
        look: dict[str, Any] = {**line_style(i if alone else number), "marker": marker, "markersize": 2.5}
        axes.plot(epochs, [scale * v for v in values], label=label if alone else run, **look)
    for axes, metrics, unit in ((contrast, of["share"], " (%)"), (spread, of["spread"], "")):
        if metrics:
            axes.set_ylabel("share (%)" if alone and len(metrics) > 1 else metrics[0].label + unit)


def _mark_no_collapse(axes: Axes, dims: Sequence[int]) -> None:
    for dim in dims:
        axes.axhline(dim**-0.5, color="0.4", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"1/√{dim}: no collapse",
            (1.0, dim**-0.5),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=6.5,
            color="0.3",
        )
    axes.set_ylim(0, 1.12 * max(axes.get_ylim()[1], *(dim**-0.5 for dim in dims)))
