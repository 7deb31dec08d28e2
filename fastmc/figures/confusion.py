"""A picture of which classes are taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmc.evaluation.scores import Predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NAMES, MOST_NUMBERS = 60, 12  # classes that are named on the axes, and whose cells hold their number
LONGEST_NAME = 30


def draw_confusion(predictions: Predictions, title: str = "") -> Figure:
    """The confusion matrix, each true class a row that sums to 100 %; grey where a class has no test clip.

    Up to 60 classes have their names on both axes, more their numbers from 0. The title ends with top-1.
    """
    from matplotlib.colors import PowerNorm  # here, so that nothing else waits for matplotlib
    from matplotlib.figure import Figure

    from fastmc.figures.style import style

    counts = predictions.confusion
    classes, total = len(counts), counts.sum(axis=1, keepdims=True)
    share = np.where(total > 0, 100.0 * counts / np.maximum(total, 1), np.nan)
    inches, points = _sizes(classes)
    with style():
        figure = Figure(figsize=(inches + 1.0, inches), layout="constrained")
        axes = figure.subplots()
        axes.set_facecolor("0.85")
        scale = PowerNorm(0.5, 0, 100)  # by the square root, so that a confusion of a few percent can be seen
        image = axes.imshow(share, cmap="Blues", norm=scale, interpolation="nearest")
        names = [_short(name) for name in predictions.class_names]
        if classes <= MOST_NAMES:
            axes.set_xticks(range(classes), names, rotation=90, fontsize=points)
            axes.set_yticks(range(classes), names, fontsize=points)
        else:
            places = range(0, classes, 10)
            axes.set_xticks(places, [str(n) for n in places])
            axes.set_yticks(places, [str(n) for n in places])
        if classes <= MOST_NUMBERS:
            for row, column in np.argwhere(counts > 0):
                colour = "white" if share[row, column] > 30 else "black"
                cell = f"{share[row, column]:.0f}"
                axes.text(column, row, cell, ha="center", va="center", color=colour, fontsize=6.5)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title(f"{title}{': ' if title else ''}top-1 {predictions.top1:.1f} %")
        figure.colorbar(image, ax=axes, label="of the true class (%)", shrink=0.8)
    return figure


def _sizes(classes: int) -> tuple[float, float]:
    """Height of the picture in inches, and the size of the names in points, so that they do not touch."""
    inches = min(max(3.4, 1.9 + 0.16 * classes), 11.0)
    return inches, 6.5 if classes <= 30 else 6.0


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
