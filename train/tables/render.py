"""A table as markdown, CSV and a picture: the published figures, and ours beside them."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.markdown import markdown
from train.tables.published import MEASURES, Column, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER, OURS = "#888888", "#0072b2"  # told apart by readers who do not see colours, too


@dataclass(frozen=True)
class Filled:
    """A table with our figures.

    Attributes:
        columns: of ours. values: percent by seed, of each (row, column) of ours that is there.
        untrained: the same for the encoder before training, by column; empty where a protocol trains it.
        missing: how many figures of ours are not there yet.
        fine_print: paragraphs: the published protocol, ours, and how they differ.
    """

    table: Table
    columns: tuple[Column, ...]
    values: dict[tuple[Row, Column], list[float]]
    untrained: dict[Column, list[float]]
    missing: int
    fine_print: tuple[str, ...]

    @property
    def title(self) -> str:
        measures = dict.fromkeys(MEASURES[column.measure] for column in self.table.columns)
        return f"Table {self.table.number}: {self.table.title} ({' and '.join(measures)}, percent)"


def to_markdown(filled: Filled) -> str:
    table = filled.table
    head = ["method", *table.info]
    head += [f"{column.title} (paper)" for column in table.columns]
    head += [f"{column.title} (fastmc)" for column in filled.columns]
    lines = []
    for row in table.rows:
        published = ["–" if value is None else f"{value:.1f}" for value in row.values]
        own = [_cell(filled.values.get((row, column), []), row) for column in filled.columns]
        lines.append([row.label, *row.info, *published, *own])
    if any(filled.untrained.values()):
        blank = [""] * (len(table.info) + len(table.columns))
        lines.append(["untrained encoder", *blank, *(_spread(filled.untrained[column]) for column in filled.columns)])
    paragraphs = [f"# {filled.title}", markdown(head, lines), *filled.fine_print]
    return "\n\n".join(paragraphs) + "\n"


def _cell(values: Sequence[float], row: Row) -> str:
    return "" if row.variant is None else _spread(values) if values else "not run"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def write_csv(filled: Filled, path: Path) -> None:
    """One line per figure: where from, row, column, mean, standard deviation, seeds and their single values."""
    head = ("table", "source", "method", *filled.table.info, "dataset", "protocol", "measure")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow((*head, "mean", "std", "seeds", "values"))
        for row in filled.table.rows:
            for column, value in zip(filled.table.columns, row.values, strict=True):
                if value is not None:
                    writer.writerow((*_keys(filled, "paper", row.label, row.info, column), value, "", "", ""))
            for column in filled.columns:
                _write_own(
                    writer, _keys(filled, "fastmc", row.label, row.info, column), filled.values.get((row, column))
                )
        blank = ("",) * len(filled.table.info)
        for column, values in filled.untrained.items():
            _write_own(writer, _keys(filled, "fastmc", "untrained encoder", blank, column), values)


def _keys(filled: Filled, source: str, label: str, info: Sequence[str], column: Column) -> tuple[object, ...]:
    return filled.table.number, source, label, *info, column.dataset, column.protocol, column.measure


def _write_own(writer: csv.Writer, keys: tuple[object, ...], values: Sequence[float] | None) -> None:  # type: ignore[name-defined]
    if values:
        spread = statistics.stdev(values) if len(values) > 1 else ""
        writer.writerow((*keys, statistics.fmean(values), spread, len(values), " ".join(f"{v:.4f}" for v in values)))


def draw(filled: Filled) -> Figure:
    """A panel per column, the paper's first: a bar per row, and the single seeds of ours as points."""
    from matplotlib.figure import Figure  # here, so that nothing else waits for matplotlib

    table = filled.table
    panels = len(table.columns) + len(filled.columns)
    across = min(panels, 4)
    down = -(-panels // across)
    rows = len(table.rows) + bool(any(filled.untrained.values()))
    figure = Figure(figsize=(1.6 + 2.1 * across, (0.9 + 0.24 * rows) * down + 0.5), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False, sharey=True).flat)
    for panel, (axis, column) in enumerate(zip(axes, (*table.columns, *filled.columns), strict=False)):
        own = panel >= len(table.columns)
        _draw_panel(axis, filled, column, own, panel)
    for axis in axes[panels:]:
        axis.set_visible(False)
    figure.suptitle(filled.title, fontsize=9)
    return figure


def _draw_panel(axis: Axes, filled: Filled, column: Column, own: bool, panel: int) -> None:
    rows = filled.table.rows
    names = [" ".join((row.label, *row.info)) if filled.table.number == 2 else row.label for row in rows]
    bars = [filled.values.get((row, column), []) if own else _published(row.values[panel]) for row in rows]
    if any(filled.untrained.values()):
        names.append("untrained")
        bars.append(filled.untrained[column] if own else [])
    for place, (row, values) in enumerate(zip((*rows, None), bars, strict=False)):
        if not values:
            continue
        mean = statistics.fmean(values)
        ours = row is None or row.variant is not None
        axis.barh(place, mean, height=0.7, color=OURS if own else PAPER, alpha=0.9 if ours else 0.5)
        axis.plot(values, [place] * len(values), "k|", markersize=5) if len(values) > 1 else None
        where: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 6.5}
        axis.annotate(f"{mean:.1f}", (max(values), place), **where)
    axis.set_yticks(range(len(names)), names, fontsize=7)
    if not axis.yaxis_inverted():
        axis.invert_yaxis()
    axis.set_xlim(0, 118)  # room for the number of the longest bar
    axis.set_xticks((0, 25, 50, 75, 100))
    axis.tick_params(axis="x", labelsize=6.5)
    axis.set_xlabel("top-1 accuracy (%)", fontsize=7)
    axis.set_title(f"{column.title}\n{'fastmc, mean and seeds' if own else 'paper'}", fontsize=7.5)
    axis.spines[["top", "right"]].set_visible(False)


def _published(value: float | None) -> list[float]:
    return [] if value is None else [value]
