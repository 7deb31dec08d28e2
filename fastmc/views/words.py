"""What a view does to a clip, in words and numbers, and what each of its transforms is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastmc.views.draw import AugmentConfig, ViewParams

SINGULAR = 1e-3
"""A shear whose determinant is smaller flattens a body so far that rounding hides how it was turned."""


STRONG_ONLY = ("rotation", "flip", "noise", "smoothing", "axis mask")


class Change(NamedTuple):
    """A transform of a view: its name, as a caption has it, and with its numbers."""

    name: str
    short: str
    text: str


@dataclass(frozen=True)
class ViewOfClip:
    """A view of one clip.

    Attributes:
        params, row, clip: its place in a table of parameters.
        frames: of what it is made of. size: its own.
        strong: whether it is a strong one, which is turned.
        plain: the same draws of views of which none is strong, so that turn and shear can be told apart.
        joints: their names.
    """

    params: ViewParams
    row: int
    frames: int
    size: int
    strong: bool
    clip: int = 0
    plain: ViewParams | None = None
    joints: tuple[str, ...] = ()

    def of(self, name: str) -> Tensor:
        """A parameter of `fastmc.views.draw.COLUMNS`, in float64."""
        return self.params.column(name)[self.row, self.clip].double().cpu()

    def number(self, name: str) -> float:
        return float(self.of(name))

    @property
    def crop(self) -> tuple[int, int]:
        """Its first frame, and how many."""
        return int(self.number("crop_start")), int(self.number("crop_length"))

    def changes(self) -> list[Change]:
        """What it does to the clip, in the order in which it is done."""
        return [*self._in_time(), self._of_joints(), *(self._turned() if self.strong else []), *self._of_strong()]

    def _in_time(self) -> Iterator[Change]:
        first, length = self.crop
        span = f"frames {first}-{first + length - 1} of {self.frames}"
        yield Change("crop", span, f"{span}: {length} become {self.size}")
        if shift := int(self.number("shift")):
            yield Change("window", "window", f"{abs(shift)} frames {'later' if shift > 0 else 'earlier'}")
        if self.number("reverse"):
            yield Change("reverse", "backwards", "last frame first")
        if (centre := int(self.number("centre"))) >= 0:
            yield Change("centre", "centred", f"{self._name(centre)} is the origin")

    def _of_joints(self) -> Change:
        chosen = self.of("jittered").nonzero()[:, 0].tolist()
        if not chosen:
            return Change("shear", "shear", shear_in_words(self._basic("pose")))
        matrix = self._basic("jitter")
        names = ", ".join(map(self._name, chosen))
        how = f"through the matrix ({matrix_in_words(matrix)})" if matrix.any() else "to the origin"
        text = f"{len(chosen)} of {self.params.num_joints} joints {how}: {names}"
        return Change("jitter", f"{len(chosen)} joints jittered", text)

    def _turned(self) -> Iterator[Change]:
        shear = self._basic("pose")
        text = "turned"
        if self.plain is not None and abs(float(torch.linalg.det(shear))) > SINGULAR:
            angles = angles_of(self.of("pose") @ torch.linalg.inv(shear))
            text = ", ".join(f"{angle:.1f}° about {axis}" for axis, angle in zip("xyz", angles, strict=True))
        yield Change("rotation", "rotation", text)

    def _of_strong(self) -> Iterator[Change]:
        if self.number("flip"):
            yield Change("flip", "left-right flip", "left and right joints have changed places")
        if std := self.number("noise_std"):
            yield Change("noise", "noise", f"{100 * std:.3g} cm standard deviation")
        if sigma := self.number("filter_sigma"):
            gain = ", weights not divided by their sum" * bool(self.number("filter_gain"))
            yield Change("smoothing", "smoothing", f"sigma of {sigma:.2f} frames{gain}")
        for axis, kept in zip("xyz", self.of("axis_scale").tolist(), strict=True):
            if not kept:
                yield Change("axis mask", f"{axis} masked", f"{axis} is zero")

    def _basic(self, name: str) -> Tensor:
        """A matrix (3, 3) as it is before the body is turned, where that is known."""
        return (self.plain or self.params).column(name)[self.row, self.clip].double().cpu()

    def _name(self, joint: int) -> str:
        return self.joints[joint] if self.joints else f"joint {joint + 1}"


def explained(config: AugmentConfig, size: int) -> list[tuple[str, str, bool]]:
    """The transforms that views with these settings may have: name, a sentence on what it is and how strong, and
    whether only strong views have it."""
    c = config
    every = {
        "crop": (
            f"A stretch of the clip, at least {100 * c.crop_ratio_min:g} % of it, resized to the {size} frames of "
            "every view: a short one plays more slowly."
        ),
        "window": "The stretch begins earlier or later; where it ends, its mirror image in time goes on.",
        "reverse": f"The frames run backwards, with probability {c.reverse_probability:g}.",
        "centre": "One joint becomes the origin of each frame, so that a walking body walks on the spot.",
        "shear": (
            f"Each coordinate takes up to ±{c.shear:g} times the two others: the body leans, grows or shrinks, as if "
            "space were oblique."
        ),
        "jitter": (
            f"In place of the shear, with probability {c.jitter_probability:g}: some joints go to the origin, or all "
            "through one random matrix."
        ),
        "rotation": (
            f"The body is turned by up to {c.rotation_degrees:g}° about one axis and up to "
            f"{c.rotation_minor_degrees:g}° about the two others."
        ),
        "flip": f"Left and right joints change places, with probability {c.flip_probability:g}.",
        "noise": f"Gaussian noise on every coordinate, with probability {c.noise_probability:g}.",
        "smoothing": f"A Gaussian filter over time, with probability {c.filter_probability:g}.",
        "axis mask": (
            f"One coordinate of all joints is zero, with probability {c.axis_mask_probability:g}: a flat body."
        ),
    }
    possible = {
        "window": c.crop_padding > 0,
        "reverse": c.reverse_probability > 0,
        "centre": c.centre_joint is not None,
        "shear": c.shear > 0 and c.jitter_probability < 1,
        "jitter": c.jitter_probability > 0 and c.jitter_joints > 0,
        "rotation": c.rotation_degrees > 0 or c.rotation_minor_degrees > 0,
        "flip": c.flip_probability > 0,
        "noise": c.noise_probability > 0 and c.noise_std > 0,
        "smoothing": c.filter_probability > 0,
        "axis mask": c.axis_mask_probability > 0,
    }
    return [(name, says, name in STRONG_ONLY) for name, says in every.items() if possible.get(name, True)]


def angles_of(rotation: Tensor) -> tuple[float, float, float]:
    """Degrees about x, y and z of a matrix R_z R_y R_x (3, 3), as `fastmc.views.draw.rotation_matrix` makes it of
    angles below 90 degrees."""
    r = rotation.tolist()
    x, y, z = math.atan2(r[2][1], r[2][2]), math.asin(max(-1.0, min(1.0, -r[2][0]))), math.atan2(r[1][0], r[0][0])
    return math.degrees(x), math.degrees(y), math.degrees(z)


def shear_in_words(matrix: Tensor) -> str:
    """Of a matrix (3, 3) with ones on its diagonal: what each coordinate becomes."""
    rows = []
    for n, (axis, row) in enumerate(zip("xyz", matrix.tolist(), strict=True)):
        others = [
            f"{'−' if w < 0 else '+'} {abs(w):.2f} {a}"
            for i, (a, w) in enumerate(zip("xyz", row, strict=True))
            if i != n
        ]
        rows.append(f"{axis} {' '.join(others)}")
    return "; ".join(rows)


def matrix_in_words(matrix: Tensor) -> str:
    return "; ".join(" ".join(f"{value:.2f}" for value in row) for row in matrix.tolist())
