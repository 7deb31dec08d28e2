"""Training curves of several runs in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastmc.figures.history import History, panels_of
from fastmc.figures.style import DOUBLE, MOST_LINES, head, line_style, quiet_grid, style

MARKED = 40  # so many epochs at most have a marker each


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
    _, contrast, spread, probe = panels = figure.subplots(2, 2, sharex=True).flatten()
    for i, (run, history) in enumerate(runs.items()):
        _draw_run(panels, run, history, i, alone=len(runs) == 1)
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
    of = panels_of(history)
    i = 0
    for axes, name in zip(panels, ("loss", "share", "spread", "probe"), strict=True):
        lines = of[name].lines if alone else of[name].lines[:1]
        for line in lines:
            marker = "o" if len(line.epochs) <= MARKED else ""
            look: dict[str, Any] = {**line_style(i if alone else number), "marker": marker, "markersize": 2.5}
            axes.plot(line.epochs, line.values, label=line.metric.label if alone else run, **look)
            i += 1
        if lines:
            axes.set_ylabel(f"{lines[0].metric.label} (%)" if name == "share" and not alone else of[name].title)


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
