"""Drawings of skeleton clips."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from fastmc.skeleton import Skeleton

COLOURS = {"left": "tab:blue", "right": "tab:red", "middle": "0.35"}
BODY_ALPHA = (1.0, 0.4)


def draw_clip(clip: np.ndarray, skeleton: Skeleton, *, fps: float, title: str = "", poses: int = 8) -> Figure:
    """A clip (T, M, V, 3), metres, as a strip of poses at equal intervals of time.

    Distances are to scale along both axes; each pose is centred above its time. Bodies that are zero throughout a
    frame are absent from it.
    """
    across, up, sign = _front(clip, skeleton)
    frames = np.unique(np.linspace(0, len(clip) - 1, poses).round().astype(int))
    present = clip[frames].any(axis=(2, 3))
    flat = np.stack([sign[0] * clip[frames][..., across], sign[1] * clip[frames][..., up]], axis=-1)
    extents = [_extent(pose[seen][..., 0]) for pose, seen in zip(flat, present, strict=True)]
    step = (1.15 if clip.shape[1] == 1 else 1.4) * max(width for _, width in extents)
    drawn = flat[present]
    low, high = drawn[..., 1].min() - 0.1, drawn[..., 1].max() + 0.1
    scale = min(2.6 / (high - low), 14.0 / (step * len(frames)))  # inches a metre
    figure = Figure(figsize=(1.0 + scale * step * len(frames), 1.1 + scale * (high - low)), layout="constrained")
    axes = figure.add_subplot(xlim=(-step / 2, (len(frames) - 0.5) * step), ylim=(low, high), aspect="equal")
    for i, (pose, seen) in enumerate(zip(flat, present, strict=True)):
        for body in np.flatnonzero(seen):
            _draw_body(axes, pose[body] + (i * step - extents[i][0], 0.0), skeleton, BODY_ALPHA[min(int(body), 1)])
    axes.yaxis.set_major_locator(MultipleLocator(0.5))
    axes.set_xticks(np.arange(len(frames)) * step, [f"{frame / fps:.2f}" for frame in frames])
    axes.set_xlabel("time (s)")
    axes.set_ylabel(f"{'xyz'[up]}, up (m)")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _legend(axes, skeleton, bool(present[:, 1:].any()))
    return figure


def _front(clip: np.ndarray, skeleton: Skeleton) -> tuple[int, int, tuple[float, float]]:
    """Axis across the picture, axis up, and their signs: up is up, and body 1's left is on the right."""
    if not skeleton.has_frame:
        return 0, 1, (1.0, 1.0)
    pose = clip[np.flatnonzero(clip[:, 0].any(axis=(1, 2)))[0], 0]
    spine = pose[skeleton.spine] - pose[skeleton.hip]
    side = pose[skeleton.left_shoulder] - pose[skeleton.right_shoulder]
    up = int(np.abs(spine).argmax())
    # One person is seen from the front, two from where they hide each other least.
    breadth = np.abs(side) if clip.shape[1] == 1 else np.ptp(clip[clip.any(axis=(2, 3))].reshape(-1, 3), axis=0)
    across = int(np.where(np.arange(3) == up, -1.0, breadth).argmax())
    return across, up, (float(np.sign(side[across])) or 1.0, float(np.sign(spine[up])) or 1.0)


def _extent(values: np.ndarray) -> tuple[float, float]:
    """Centre and width; a pose without any body takes no room."""
    return (float(values.max() + values.min()) / 2, float(np.ptp(values))) if values.size else (0.0, 0.0)


def _draw_body(axes: Axes, joints: np.ndarray, skeleton: Skeleton, alpha: float) -> None:
    for child, parent in skeleton.bones:
        colour = COLOURS[_side(skeleton.joint_names[child])]
        axes.plot(*joints[[child, parent]].T, color=colour, alpha=alpha, lw=1.8, solid_capstyle="round")
    colours = [COLOURS[_side(name)] for name in skeleton.joint_names]
    axes.scatter(joints[:, 0], joints[:, 1], s=5, c=colours, alpha=alpha, zorder=3)


def _side(joint_name: str) -> str:
    return next((side for side in ("left", "right") if side in joint_name.lower()), "middle")


def _legend(axes: Axes, skeleton: Skeleton, second_body: bool) -> None:
    sides = {_side(name) for name in skeleton.joint_names}
    handles: list[tuple[str, str, float]] = [(side, COLOURS[side], 1.0) for side in ("left", "right") if side in sides]
    handles += [("body 2", COLOURS["middle"], BODY_ALPHA[1])] if second_body else []
    for label, colour, alpha in handles:
        axes.plot([], [], color=colour, alpha=alpha, label=label)
    if handles:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize="small")
