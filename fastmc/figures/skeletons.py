"""Drawings of skeletons: a body, poses side by side, a whole clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fastmc.skeleton import Skeleton

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito's palette, whose colours the colour-blind tell apart.
COLOURS = {"left": "#0072B2", "right": "#D55E00", "middle": "0.35"}
BODY_ALPHA = (1.0, 0.4)


@dataclass(frozen=True)
class Front:
    """The direction from which clips are seen: the coordinate axes across the picture and up it, and their signs."""

    across: int
    up: int
    signs: tuple[float, float]
    upright: bool = True
    """Whether ``up`` is known to be up."""

    def flat(self, joints: np.ndarray) -> np.ndarray:
        """Joints (..., 3) as points of the picture (..., 2)."""
        return np.stack([self.signs[0] * joints[..., self.across], self.signs[1] * joints[..., self.up]], axis=-1)

    @property
    def up_label(self) -> str:
        return f"{'xyz'[self.up]}{', up' if self.upright else ''} (m)"


def front_of(clip: np.ndarray, skeleton: Skeleton) -> Front:
    """From where a clip (T, M, V, 3) is seen best: up is up, and the left of the first body in it is on the right."""
    if not skeleton.has_frame:
        return Front(0, 1, (1.0, 1.0), upright=False)
    body = clip[:, clip.any(axis=(0, 2, 3)).argmax()]
    pose = body[body.any(axis=(1, 2)).argmax()]
    spine = skeleton.place("spine", pose) - skeleton.place("hip", pose)
    side = skeleton.place("left_shoulder", pose) - skeleton.place("right_shoulder", pose)
    up = int(np.abs(spine).argmax())
    # One person is seen from the front, two from where they hide each other least.
    breadth = np.abs(side) if clip.shape[1] == 1 else np.ptp(clip[clip.any(axis=(2, 3))].reshape(-1, 3), axis=0)
    across = int(np.where(np.arange(3) == up, -1.0, breadth).argmax())
    return Front(across, up, (float(np.sign(side[across])) or 1.0, float(np.sign(spine[up])) or 1.0))


def draw_clip(clip: np.ndarray, skeleton: Skeleton, *, fps: float, title: str = "", poses: int = 8) -> Figure:
    """A clip (T, M, V, 3), metres, as a strip of poses at equal intervals of time.

    Distances are to scale along both axes; each pose is centred above its time. Bodies that are zero throughout a
    frame are absent from it.
    """
    from matplotlib.figure import Figure  # here, so that nothing else waits for matplotlib
    from matplotlib.ticker import MultipleLocator

    front = front_of(clip, skeleton)
    frames = pick_frames(len(clip), poses)
    poses_3d = clip[frames]
    widths, heights = pose_widths(poses_3d, front), front.flat(poses_3d)[bodies_there(poses_3d)][..., 1]
    step = (1.15 if clip.shape[1] == 1 else 1.4) * max(widths)
    low, high = heights.min() - 0.1, heights.max() + 0.1
    scale = min(2.6 / (high - low), 14.0 / (step * len(frames)))  # inches a metre
    figure = Figure(figsize=(1.0 + scale * step * len(frames), 1.1 + scale * (high - low)), layout="constrained")
    axes = figure.add_subplot(xlim=(-step / 2, (len(frames) - 0.5) * step), ylim=(low, high), aspect="equal")
    draw_poses(axes, side_by_side(poses_3d, front, step), bodies_there(poses_3d), skeleton)
    axes.yaxis.set_major_locator(MultipleLocator(0.5))
    axes.set_xticks(np.arange(len(frames)) * step, [f"{frame / fps:.2f}" for frame in frames])
    axes.set_xlabel("time (s)")
    axes.set_ylabel(front.up_label)
    axes.set_title(title, loc="left", fontsize="medium")
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    handles = add_legend_entries(axes, skeleton, second_body=bool(bodies_there(poses_3d)[:, 1:].any()))
    if handles:
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize="small")
    return figure


def pick_frames(frames: int, poses: int) -> np.ndarray:
    """Indices of at most ``poses`` frames at equal intervals, the first and the last of ``frames`` among them."""
    return np.unique(np.linspace(0, frames - 1, poses).round().astype(int))


def bodies_there(poses: np.ndarray) -> np.ndarray:
    """(P, M) bool: which bodies of the poses (P, M, V, 3) are there, that is, are not all zero."""
    return (poses != 0).any(axis=(2, 3))


def pose_widths(poses: np.ndarray, front: Front) -> list[float]:
    """The room across the picture that each of the poses (P, M, V, 3) takes, metres."""
    flat = front.flat(poses)
    return [_extent(pose[seen][..., 0])[1] for pose, seen in zip(flat, bodies_there(poses), strict=True)]


def side_by_side(poses: np.ndarray, front: Front, step: float, *, by_median: bool = False) -> np.ndarray:
    """Points (P, M, V, 2) of the poses (P, M, V, 3), each centred on its multiple of ``step``, metres.

    by_median: the centre is the joints' median, not the middle of their extent, which one stray joint moves.
    """
    flat = front.flat(poses)
    for i, (pose, seen) in enumerate(zip(flat, bodies_there(poses), strict=True)):
        across = pose[seen][..., 0]
        if across.size:
            pose[..., 0] += i * step - (np.median(across) if by_median else _extent(across)[0])
    return flat


def draw_poses(
    axes: Axes, points: np.ndarray, there: np.ndarray, skeleton: Skeleton, *, line: float = 1.8, dot: float = 5
) -> None:
    """The bodies that are ``there`` (P, M) of poses at these points (P, M, V, 2).

    line, dot: the width of a bone in points, the area of a joint in points squared.
    """
    for pose, seen in zip(points, there, strict=True):
        for body in np.flatnonzero(seen):
            Body(axes, skeleton, int(body), line=line, dot=dot).place(pose[body])


class Body:
    """A body in a picture, which can be moved: what an animation needs."""

    def __init__(self, axes: Axes, skeleton: Skeleton, body: int, *, line: float = 1.8, dot: float = 5) -> None:
        """``body``: its number, from 0; the later ones are paler."""
        alpha = BODY_ALPHA[min(body, 1)]
        self._bones = skeleton.bones
        sides = [COLOURS[side_of(name)] for name in skeleton.joint_names]
        self._lines = [
            axes.plot([], [], color=sides[child], alpha=alpha, lw=line, solid_capstyle="round")[0]
            for child, _ in self._bones
        ]
        nowhere = np.full(len(sides), np.nan)
        self._dots = axes.scatter(nowhere, nowhere, s=dot, c=sides, alpha=alpha, zorder=3, linewidths=0)

    def place(self, joints: np.ndarray | None) -> None:
        """Put the joints (V, 2) where they are; None takes the body away."""
        for artist in (*self._lines, self._dots):
            artist.set_visible(joints is not None)
        if joints is None:
            return
        for line, bone in zip(self._lines, self._bones, strict=True):
            line.set_data(*joints[list(bone)].T)
        self._dots.set_offsets(joints)


def add_legend_entries(axes: Axes, skeleton: Skeleton, *, second_body: bool) -> Sequence[object]:
    """Empty lines that name the colours of a skeleton; returns them, none where the joints' names know no sides."""
    sides = {side_of(name) for name in skeleton.joint_names}
    entries: list[tuple[str, str, float]] = [(side, COLOURS[side], 1.0) for side in ("left", "right") if side in sides]
    entries += [("body 2", COLOURS["middle"], BODY_ALPHA[1])] if second_body else []
    return [axes.plot([], [], color=colour, alpha=alpha, label=label)[0] for label, colour, alpha in entries]


def _extent(values: np.ndarray) -> tuple[float, float]:
    """Centre and width; a pose without any body takes no room."""
    return (float(values.max() + values.min()) / 2, float(np.ptp(values))) if values.size else (0.0, 0.0)


def side_of(joint_name: str) -> str:
    """left or right, as its name says, else middle."""
    return next((side for side in ("left", "right") if side in joint_name.lower()), "middle")
