"""A table as markdown, CSV and a picture: the published figures, and ours beside them."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.runs.published import MEASURES, Column, Row, Table
from train.tables.markdown import link, markdown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER, OURS = "#888888", "#0072b2"  # told apart by readers who do not see colours, too
BAR_HEIGHT = 0.16  # inches


@dataclass(frozen=True)
class Filled:
    """A table with our figures.

    Attributes:
        columns: of ours. values: percent by seed, of each (row, column) of ours that is there.
        untrained: the same for the encoder before training, by column; empty where a protocol trains it.
        missing: how many figures of ours are not there yet. seeds: how many each cell is to have.
        fine_print: paragraphs: the published protocol, ours, and how they differ. pages: that our runs have left.
    """

    table: Table
    columns: tuple[Column, ...]
    values: dict[tuple[Row, Column], list[float]]
    untrained: dict[Column, list[float]]
    missing: int
    seeds: int
    fine_print: tuple[str, ...]
    pages: tuple[Path, ...] = ()

    @property
    def title(self) -> str:
        measures = dict.fromkeys(MEASURES[column.measure] for column in self.table.columns)
        return f"Table {self.table.number}: {self.table.title} ({' and '.join(measures)}, percent)"


def to_markdown(filled: Filled, folder: Path = Path()) -> str:
    """``folder``: of the text, from where it links the pages of the runs."""
    table = filled.table
    head = ["method", *table.info]
    head += [f"{column.title} (paper)" for column in table.columns]
    head += [f"{column.title} (fastmc)" for column in filled.columns]
    lines = []
    for row in table.rows:
        published = ["–" if value is None else f"{value:.1f}" for value in row.values]
        own = [_cell(filled.values.get((row, column), []), row, filled.seeds) for column in filled.columns]
        lines.append([row.label, *row.info, *published, *own])
    if any(filled.untrained.values()):
        info, gap = _untrained_info(table), [""] * len(table.columns)
        own = [_spread(filled.untrained[column], filled.seeds) for column in filled.columns]
        lines.append(["untrained encoder", *info, *gap, *own])
    paragraphs = [f"# {filled.title}", markdown(head, lines), *filled.fine_print]
    if filled.pages:
        paragraphs.append(
            f"Pages of the runs: {', '.join(link(page.parent.name, page, folder) for page in filled.pages)}."
        )
    return "\n\n".join(paragraphs) + "\n"


def _cell(values: Sequence[float], row: Row, seeds: int) -> str:
    return "" if row.variant is None else _spread(values, seeds) if values else "not run"


def _spread(values: Sequence[float], seeds: int) -> str:
    """Mean and standard deviation, and how many seeds they are of where that is not all."""
    if not values:
        return ""
    mean = f"{statistics.fmean(values):.1f}"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean}{spread}" + (f" ({len(values)} of {seeds} seeds)" if len(values) < seeds else "")


def _untrained_info(table: Table) -> Sequence[str]:
    """Of the row of the untrained encoder: table 2 says streams, and the encoder is that of the joint stream."""
    return ("joint",) if table.number == 2 else ("",) * len(table.info)


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
        info = _untrained_info(filled.table)
        for column, values in filled.untrained.items():
            _write_own(writer, _keys(filled, "fastmc", "untrained encoder", info, column), values)


def _keys(filled: Filled, source: str, label: str, info: Sequence[str], column: Column) -> tuple[object, ...]:
    return filled.table.number, source, label, *info, column.dataset, column.protocol, column.measure


def _write_own(writer: csv.Writer, keys: tuple[object, ...], values: Sequence[float] | None) -> None:  # type: ignore[name-defined]
    if values:
        spread = statistics.stdev(values) if len(values) > 1 else ""
        writer.writerow((*keys, statistics.fmean(values), spread, len(values), " ".join(f"{v:.4f}" for v in values)))


def draw(filled: Filled) -> Figure:
    """A panel per column, the paper's first: a bar per row that has a figure in these panels, and the single seeds of
    ours as points."""
    from matplotlib.figure import Figure  # here, so that nothing else waits for matplotlib

    from fastmc.figures.style import DOUBLE, head, style

    most = max(len(filled.table.columns), len(filled.columns))
    across = 2 if most == 4 else min(3, most)  # four are two and two, not three and one
    lines = [*_lines(filled, across, own=False), *_lines(filled, across, own=True)]
    heights = [0.75 + BAR_HEIGHT * len(line.bars) for line in lines]
    with style():
        figure = Figure(figsize=(DOUBLE, sum(heights) + 0.35), layout="constrained")
        head(figure, filled.title)
        grid = figure.add_gridspec(len(lines), across, height_ratios=heights)
        for place, line in enumerate(lines):
            _draw_line(figure, [grid[place, i] for i in range(across)], line)
    return figure


@dataclass(frozen=True)
class _Line:
    """Panels side by side, with the same bars: by name of the row, percent of each column, by seed where it is ours."""

    titles: tuple[str, ...]
    bars: dict[str, list[Sequence[float]]]
    own: bool
    emphasised: frozenset[str]


def _lines(filled: Filled, across: int, *, own: bool) -> list[_Line]:
    """The panels of the paper's columns or of ours, ``across`` side by side."""
    rows = [row for row in filled.table.rows if not own or row.variant]
    columns = filled.columns if own else filled.table.columns
    names = {row: " ".join((row.label, *row.info)) if filled.table.number == 2 else row.label for row in rows}
    found = []
    for start in range(0, len(columns), across):
        some = columns[start : start + across]
        bars: dict[str, list[Sequence[float]]] = {
            names[row]: [filled.values.get((row, column), []) for column in some]
            if own
            else [_published(value) for value in row.values[start : start + across]]
            for row in rows
        }
        if own and any(filled.untrained.values()):
            bars[" ".join(("untrained", *_untrained_info(filled.table))).strip()] = [
                filled.untrained[column] for column in some
            ]
        titles = tuple(f"{column.title}\n{'fastmc, mean and seeds' if own else 'paper'}" for column in some)
        ours = frozenset(bars) if own else frozenset(names[row] for row in rows if row.variant)
        found.append(_Line(titles, bars, own, ours))
    return found


def _draw_line(figure: Figure, cells: Sequence[Any], line: _Line) -> None:
    for panel, title in enumerate(line.titles):
        axis = figure.add_subplot(cells[panel])
        for place, (name, columns) in enumerate(line.bars.items()):
            _draw_bar(axis, place, columns[panel], line.own, emphasised=name in line.emphasised)
        axis.set_yticks(range(len(line.bars)), list(line.bars) if panel == 0 else [""] * len(line.bars))
        axis.set_ylim(len(line.bars) - 0.4, -0.6)
        axis.set_xlim(0, 118)  # room for the number of the longest bar
        axis.set_xticks((0, 25, 50, 75, 100))
        axis.set_xlabel("top-1 accuracy (%)")
        axis.set_title(title)


def _draw_bar(axis: Axes, place: int, values: Sequence[float], own: bool, *, emphasised: bool) -> None:
    if not values:
        return
    mean = statistics.fmean(values)
    axis.barh(place, mean, height=0.7, color=OURS if own else PAPER, alpha=0.9 if emphasised else 0.5)
    if len(values) > 1:
        axis.plot(values, [place] * len(values), "k|", markersize=5)
    where: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 6.5}
    axis.annotate(f"{mean:.1f}", (max(values), place), **where)


def _published(value: float | None) -> list[float]:
    return [] if value is None else [value]
