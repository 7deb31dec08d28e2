"""What the pictures have in common: column widths, sizes of type, colours, and how they are written."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from fastmc.files import whole_file

DOUBLE = 7.0
"""Inches: the width of two columns of a paper."""
SMALL = 6.0
"""Points: the smallest type in any picture."""
TICK_ROOM = 0.17
"""Inches between ticks, at least."""
BLACK, ORANGE, SKY, GREEN, BLUE, RED, PURPLE = (
    *("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"),
)  # Okabe and Ito; their yellow is too pale for lines
LINE_COLOURS, DASHES = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK), ("-", "--", "-.", ":")
MOST_LINES = len(LINE_COLOURS) * len(DASHES)
CLASS_COLOURS = (
    *("#332288", "#DDAA33", "#117733", "#CC6677", "#66BBEE", "#882255", "#44AA99", "#999933", "#AA4499", "#555555"),
)  # Tol's "muted", with two pale ones darkened
MARKERS = "os^DvPX<>*"

SETTINGS: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that sizes are the same everywhere
    "font.size": 7.0,
    "axes.titlesize": 7.0,
    "axes.labelsize": 7.0,
    "figure.titlesize": 7.5,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text: it can be searched and edited
    "svg.hashsalt": "fastmc",  # the same data give the same file
}


def line_style(number: int) -> dict[str, str]:
    """Colour and dashes of the line of this number: those of neighbours differ in print and without colours too, and
    no two of `MOST_LINES` are alike."""
    turn, colour = divmod(number, len(LINE_COLOURS))
    return {"color": LINE_COLOURS[colour], "linestyle": DASHES[(colour + turn) % len(DASHES)]}


@contextmanager
def style() -> Iterator[None]:
    """Within, or in a function so decorated: matplotlib's defaults are those of these pictures."""
    with matplotlib.rc_context(SETTINGS):
        yield


def quiet_grid(axes: Axes, axis: str = "both") -> None:
    """A grid behind the data."""
    axes.grid(axis=axis, color="0.9", linewidth=0.5)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def mark_metres(axis: Axis, metres: float, inches: float) -> None:
    """Ticks at round distances on an axis of so many metres that is so many inches long."""
    apart = [step for step in (0.5, 1.0, 2.0, 5.0) if inches * step / metres >= TICK_ROOM]
    axis.set_major_locator(MultipleLocator(apart[0] if apart else 10.0))


def head(figure: Figure, title: str) -> None:
    """A title over the whole picture, broken into lines that fit."""
    figure.suptitle("\n".join(textwrap.wrap(title, int(figure.get_figwidth() * 16.5))))


def save(figure: Figure, folder: Path, name: str, dpi: int = 150) -> list[Path]:
    """Write NAME.png and NAME.svg, each whole or not at all; returns their paths."""
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with whole_file(path) as unfinished, style():
            figure.savefig(unfinished, format=path.suffix[1:], dpi=dpi, metadata=metadata)
    return paths
