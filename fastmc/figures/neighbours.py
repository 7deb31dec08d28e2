"""A clip and its nearest neighbours among the training clips, as skeletons."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from fastmc.figures.skeletons import (
    Front,
    add_legend_entries,
    bodies_there,
    draw_poses,
    front_of,
    pick_frames,
    pose_widths,
    side_by_side,
)
from fastmc.figures.style import DOUBLE, GREEN, PURPLE, head, mark_metres, style
from fastmc.skeleton import Skeleton

TEXT_WIDTH, STRIP_HEIGHT = 1.6, 0.85  # inches
FEWEST_POSES, MOST_POSES = 4, 16
LINE_LENGTH = 27  # letters
SAME, OTHER = GREEN, PURPLE  # not blue and vermilion, which tell a skeleton's left from its right


def nearest(train: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the features train (N, H) to query (H,): (indices (k,), cosines (k,)), the most similar first.

    Raises:
        ValueError: k is not in 1..N.
    """
    if not 1 <= k <= len(train):
        raise ValueError(f"k must be in 1..{len(train)}, the number of training clips, got {k}")
    unit = train / np.maximum(np.linalg.norm(train, axis=1, keepdims=True), 1e-12)
    cosine = unit @ (query / max(float(np.linalg.norm(query)), 1e-12))
    order = np.argsort(-cosine, kind="stable")[:k]
    return order, cosine[order]


@dataclass(frozen=True)
class Strip:
    """A clip (T, M, V, 3) in metres to be drawn, with the name of its class; cosine to the query: None for itself."""

    clip: np.ndarray
    name: str
    class_name: str
    fps: float
    cosine: float | None = None


@style()
def draw_neighbours(query: Strip, found: Sequence[Strip], skeleton: Skeleton, *, title: str = "") -> Figure:
    """The query on top and what was found below it, each as poses at equal intervals over its clip.

    All are to the same scale and seen from the same direction; text and colour say which have the query's class.
    """
    strips = [query, *found]
    front = front_of(query.clip, skeleton)
    step, low, high = _room([strip.clip[pick_frames(len(strip.clip), MOST_POSES)] for strip in strips], front)
    width = (DOUBLE - TEXT_WIDTH - 0.6) * (high - low) / STRIP_HEIGHT  # metres across a strip of that height
    poses = int(np.clip(width / step, FEWEST_POSES, MOST_POSES))
    step = max(step, width / MOST_POSES)
    height = STRIP_HEIGHT * min(1.0, width / (step * poses))
    shown = [strip.clip[pick_frames(len(strip.clip), poses)] for strip in strips]
    points, there = [side_by_side(drawn, front, step) for drawn in shown], [bodies_there(drawn) for drawn in shown]
    across = np.concatenate([p[seen][..., 0].flatten() for p, seen in zip(points, there, strict=True)])
    left, right = min(-0.6 * step, across.min() - 0.05), max((poses - 0.4) * step, across.max() + 0.05)
    figure = Figure(figsize=(DOUBLE, len(strips) * (max(height, 0.6) + 0.1) + 0.75), layout="constrained")
    head(figure, title)
    rows = figure.subplots(len(strips), 2, width_ratios=[TEXT_WIDTH, DOUBLE - TEXT_WIDTH], squeeze=False)
    for (words, axes), strip, drawn, seen in zip(rows, strips, points, there, strict=True):
        colour = "black" if strip is query else SAME if strip.class_name == query.class_name else OTHER
        words.set_axis_off()
        words.text(
            0, 0.5, _caption(strip, query), va="center", color=colour, linespacing=1.35, transform=words.transAxes
        )
        axes.set(xlim=(left, right), ylim=(low, high), aspect="equal", xticks=[])
        mark_metres(axes.yaxis, high - low, height)
        for spine in axes.spines.values():
            spine.set(visible=True, color=colour, linewidth=0.9)
        axes.tick_params(axis="y", color=colour)
        draw_poses(axes, drawn, seen, skeleton, line=0.9, dot=1.2)
    rows[len(rows) // 2][1].set_ylabel(front.up_label)
    rows[-1][1].set_xlabel(f"{poses} poses at equal intervals, from the first frame of the clip to its last")
    second = any(bool(seen[:, 1:].any()) for seen in there)
    handles = list(add_legend_entries(rows[0][1], skeleton, second_body=second))
    if handles:
        figure.legend(handles=handles, loc="outside lower right", ncols=3, frameon=False)
    return figure


def _room(clips: Sequence[np.ndarray], front: Front) -> tuple[float, float, float]:
    """Distance of neighbouring poses that keeps nearly all of them apart, and the lowest and highest point, metres."""
    step = 1.1 * float(np.percentile(np.concatenate([pose_widths(poses, front) for poses in clips]), 90))
    heights = [front.flat(poses)[bodies_there(poses)][..., 1] for poses in clips]
    return step, float(min(h.min() for h in heights)) - 0.05, float(max(h.max() for h in heights)) + 0.05


def _caption(strip: Strip, query: Strip) -> str:
    verdict = "query" if strip is query else ("same class" if strip.class_name == query.class_name else "other class")
    cosine = "" if strip.cosine is None else f", cosine {strip.cosine:.3f}"
    names = [line for name in (strip.class_name, strip.name) for line in textwrap.wrap(name, LINE_LENGTH)]
    return "\n".join([f"{verdict}{cosine}", *names, f"{len(strip.clip) / strip.fps:.1f} s"])
