"""The drawing of figure 3, as a picture and as an animated one; `fastmc.figures.attack` has what is drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from fastmc.figures.attack import STATES, TOP, AttackStates, entropy, top_classes
from fastmc.figures.skeletons import (
    Body,
    Front,
    add_legend_entries,
    bodies_there,
    draw_poses,
    front_of,
    pick_frames,
    pose_widths,
    side_by_side,
)
from fastmc.figures.style import DOUBLE, ORANGE, SMALL, head, mark_metres, style
from fastmc.files import whole_file
from fastmc.skeleton import Skeleton

GREY = "0.65"
COLUMN = 1.5  # inches across each of the four
ANIMATION_DPI = 120
SHORTEST_FRAME = 0.02  # seconds; players slow a GIF down whose frames are shorter
LOW_ROW = 0.9  # inches; skeletons that would be drawn lower than this get more room, by fewer poses
BARS = 1.05  # inches


@style()
def draw_attack(states: AttackStates, skeleton: Skeleton, *, title: str = "", poses: int = 3) -> Figure:
    """Four columns: poses at equal intervals of each state, above the distribution of its features. There are at most
    ``poses``, and fewer where the skeletons would be too small.

    All columns have the same scale, axes and viewing direction. The TOP largest classes of each distribution are
    highlighted, and its entropy is written into the picture.
    """
    front = front_of(states.joints[0], skeleton)
    row = next(row for n in range(poses, 0, -1) if (row := _lay_out(states, front, n)).height >= LOW_ROW or n == 1)
    (left, right), (low, high) = row.limits
    headings = _headings(states)
    layout = ConstrainedLayoutEngine(h_pad=0.07)  # inches; headings of many lines come close to the title
    figure = Figure(figsize=(DOUBLE, row.height + 2.6 + 0.12 * headings[0].count("\n")), layout=layout)
    head(figure, title)
    top, bottom = figure.subplots(2, len(STATES), sharey="row", height_ratios=[row.height, BARS])
    for i, skeletons in enumerate(top):
        skeletons.set(xlim=(left, right), ylim=(low, high), aspect="equal")
        skeletons.set_title(headings[i], linespacing=1.3)
        draw_poses(skeletons, row.points[i], row.there[i], skeleton, line=1.1, dot=2)
        skeletons.set_xticks(np.arange(len(row.frames)) * row.step, [str(frame) for frame in row.frames])
        skeletons.set_xlabel(f"frame of the view (T = {states.joints.shape[1]})" if i == 0 else "frame of the view")
    _draw_distributions(bottom, states)
    top[0].set_ylabel(front.up_label)
    mark_metres(top[0].yaxis, high - low, row.height)
    _legends(figure, top[0], bottom[0], skeleton, states, second_body=bool(row.there[:, :, 1:].any()))
    return figure


@dataclass(frozen=True)
class _Row:
    """Poses of the four states, laid out on common axes.

    Attributes:
        frames: (P,) indices. step: distance of neighbouring poses, metres.
        points: (4, P, M, V, 2), metres. there: (4, P, M), which bodies are there.
        limits: of the axes, metres. height: inches that they are drawn high.
    """

    frames: np.ndarray
    step: float
    points: np.ndarray
    there: np.ndarray
    limits: tuple[tuple[float, float], tuple[float, float]]
    height: float


def _lay_out(states: AttackStates, front: Front, poses: int) -> _Row:
    frames = pick_frames(states.joints.shape[1], poses)
    shown = states.joints[:, frames]
    step = _step(shown, front)
    points = np.stack([side_by_side(poses, front, step, by_median=True) for poses in shown])
    there = np.stack([bodies_there(poses) for poses in shown])
    across, up = (_range(points[there][..., axis]) for axis in range(2))
    height = min(2.6, COLUMN * (up[1] - up[0]) / (across[1] - across[0]))
    return _Row(frames, step, points, there, (across, up), height)


def _headings(states: AttackStates) -> list[str]:
    """Name and note of each state, all of the same number of lines."""
    notes = [textwrap.wrap(note, 30) for note in states.notes]
    most = max(map(len, notes))
    symbols = ("x", "x̂", "x₁", "x₂")  # not as formulas, whose letters an SVG has one by one
    return [
        "\n".join([f"{name}, {symbol}", *note, *[" "] * (most - len(note))])
        for name, symbol, note in zip(STATES, symbols, notes, strict=True)
    ]


def _step(shown: np.ndarray, front: Front) -> float:
    """Distance of neighbouring poses, metres. Joints that jittering threw far out may reach across their neighbour."""
    widths = [max(pose_widths(poses, front)) for poses in shown]
    return max(1.25 * max(widths[:2]), 0.6 * max(widths))


def _range(values: np.ndarray) -> tuple[float, float]:
    """Limits of an axis that holds the values, metres, with some room."""
    return float(values.min()) - 0.1, float(values.max()) + 0.1


def _draw_distributions(row: Sequence[Axes], states: AttackStates) -> None:
    for axes, p in zip(row, states.distribution, strict=True):
        _draw_bars(axes, p, ceiling=1.3 * states.distribution.max())
    row[0].set_ylabel("probability")


def _draw_bars(axes: Axes, p: np.ndarray, ceiling: float) -> None:
    top = top_classes(p)
    axes.stairs(p, np.arange(len(p) + 1) - 0.5, fill=True, color=GREY)  # bars would leave gaps between their pixels
    axes.bar(top, p[top], width=1.0, color=ORANGE, linewidth=0)
    axes.axhline(1 / len(p), color="black", linewidth=0.6, linestyle=(0, (4, 3)))
    text = f"entropy {entropy(p):.4f} nats\ntop-{len(top)} mass {p[top].sum():.4f}"
    axes.text(0.98, 0.98, text, transform=axes.transAxes, ha="right", va="top", fontsize=6.5)
    axes.set(xlim=(-1.5, len(p) + 0.5), ylim=(0, ceiling), xlabel="class of FC")
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))


def _legends(
    figure: Figure, skeletons: Axes, bars: Axes, skeleton: Skeleton, states: AttackStates, *, second_body: bool
) -> None:
    largest = min(TOP, states.distribution.shape[1])
    handles = list(add_legend_entries(skeletons, skeleton, second_body=second_body))
    handles += [
        bars.plot([], [], color=ORANGE, linewidth=4, label=f"{largest} largest")[0],
        bars.plot([], [], color=GREY, linewidth=4, label="other classes")[0],
        bars.plot([], [], color="black", linewidth=0.6, linestyle=(0, (4, 3)), label="uniform, 1/C")[0],
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, handlelength=1.5)


def frame_seconds(num_frames: int, fps: float, frames: int) -> float:
    """Seconds for which each of the ``frames`` of a view is shown, so that a clip of ``num_frames`` lasts as long as it
    did; hundredths, which GIF counts in, and 0.02 at least."""
    return max(SHORTEST_FRAME, round(num_frames / fps / frames, 2))


def animate_attack(
    states: AttackStates,
    skeleton: Skeleton,
    path: Path,
    *,
    seconds: float,
    title: str = "",
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Write the four states side by side, each above the distribution of its features, as an animated GIF of T frames
    that are shown for ``seconds`` each.

    ``advance`` is told of each frame that is drawn.
    """
    figure, update = _stage(states, skeleton, title)
    with style():
        # The writer cuts off what is below a millisecond: the last bit of a quotient must not cost one.
        writer = PillowWriter(fps=1 / (seconds + 1e-6))  # type: ignore[arg-type]  # it takes any number
        with whole_file(path) as unfinished, writer.saving(figure, unfinished, dpi=ANIMATION_DPI):
            for frame in range(states.joints.shape[1]):
                update(frame)
                writer.grab_frame()
                advance(1)


@style()
def _stage(states: AttackStates, skeleton: Skeleton, title: str) -> tuple[Figure, Callable[[int], None]]:
    """The picture of the animation, and what puts the bodies where they are in a frame."""
    front = front_of(states.joints[0], skeleton)
    flat, there = front.flat(states.joints), (states.joints != 0).any(axis=(3, 4))  # (4, T, M, V, 2), (4, T, M)
    (left, right), (low, high) = (_range(flat[there][..., axis]) for axis in range(2))
    height = min(3.0, COLUMN * (high - low) / (right - left))
    figure = Figure(figsize=(DOUBLE, height + 2.3), layout="constrained")
    FigureCanvasAgg(figure)
    head(figure, title)
    bodies = []
    top, bottom = figure.subplots(2, len(STATES), sharey="row", height_ratios=[height, BARS])
    for i, axes in enumerate(top):
        axes.set(xlim=(left, right), ylim=(low, high), aspect="equal")
        axes.set_title(STATES[i])
        axes.set_xlabel("across (m)")
        mark_metres(axes.xaxis, right - left, height / 2 * (right - left) / (high - low))  # numbers are wider than high
        mark_metres(axes.yaxis, high - low, height)
        if i == 0:
            axes.set_ylabel(front.up_label)
        bodies.append([Body(axes, skeleton, m, line=1.6, dot=4) for m in range(flat.shape[2])])
    _draw_distributions(bottom, states)
    _legends(figure, top[0], bottom[0], skeleton, states, second_body=bool(there[:, :, 1:].any()))
    # Pillow merges neighbouring frames that are equal; the frame's number makes each one different.
    clock = figure.text(0.995, 0.985, "", ha="right", va="top", fontsize=SMALL, family="DejaVu Sans Mono")
    figure.canvas.draw()
    figure.set_layout_engine("none")  # laid out once, or the axes would tremble

    def update(frame: int) -> None:
        clock.set_text(f"frame {frame:2d} of 0-{flat.shape[1] - 1}")
        for state, row in enumerate(bodies):
            for m, body in enumerate(row):
                body.place(flat[state, frame, m] if there[state, frame, m] else None)

    return figure, update
