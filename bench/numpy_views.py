"""The views as a data loader's worker makes them, in numpy, one clip after the other: what ``fastmc.views.draw`` is
measured against.

Written from sections 3.1 and 3.2 of the paper, in the form of this field's loaders: clips (C, T, V, M) are read from an
array padded to 300 frames and two bodies, every transform takes and returns such a clip, and a batch is a stack of what
comes out. Nothing in it goes frame by frame or joint by joint. Two styles differ in the transforms where the usual way
to write numpy is not the fastest:

usual: a 3x3 map is ``np.dot`` on coordinates moved to the last axis; the filter adds up 15 shifted clips.
tuned: a 3x3 map is one product with the clip as a (3, T V M) matrix; the filter is one with a (T, T) matrix of weights.

The crop is resized by the faster of two ways in both: two gathered frames and their weights (35 µs a clip here) rather
than ``torch.nn.functional.interpolate`` on one clip (43 µs).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastmc.views.draw import FILTER_TAPS, AugmentConfig

Array = np.ndarray


@dataclass(frozen=True)
class Strong:
    """What the strong augmentation adds; None where a transform is left out."""

    flip: bool
    rotation: Array
    """(3, 3)"""
    noise: Array | None
    """(C, T, V, M), metres."""
    sigma: float | None
    axis: int | None


@dataclass(frozen=True)
class Choices:
    """What is done to one clip for one view."""

    start: int
    length: int
    shear: Array | None
    """(3, 3) of pose augmentation; None for joint jittering."""
    joints: Array
    """Indices of the jittered joints."""
    jitter: Array
    """(3, 3), their map."""
    strong: Strong | None


@dataclass(frozen=True)
class Style:
    """How two transforms are written."""

    linear: Callable[[Array, Array], Array]
    smooth: Callable[[Array, float], Array]


def draw_choices(
    rng: np.random.Generator,
    config: AugmentConfig,
    num_frames: int,
    num_joints: int,
    *,
    strong: bool,
    size: int,
    resized: bool,
) -> Choices:
    """The random choices of a view, as fastmc.views.draw.draw_params distributes them.

    resized: the view is taken of a clip that was resized to ``size`` frames; ``num_frames`` are those it had before.
    """
    ratio = rng.uniform(config.crop_ratio_min, 1)
    length = max(int(num_frames * ratio), min(num_frames, config.crop_frames_min))
    start = int(rng.integers(num_frames - length + 1))
    if resized:
        length = min(max(round(length * size / num_frames), 1), size)
        start = min(start * size // num_frames, size - length)
    shear, joints, jitter = None, np.empty(0, np.int64), np.zeros((3, 3), np.float32)
    if rng.random() < 0.5:
        count = min(config.jitter_joints, round(0.6 * num_joints))
        joints = rng.choice(num_joints, count, replace=False)
        if rng.random() < 0.5:
            jitter = rng.uniform(-1, 1, (3, 3)).astype(np.float32)
    else:
        shear = rng.uniform(-config.shear, config.shear, (3, 3)).astype(np.float32)
        np.fill_diagonal(shear, 1)
    extra = draw_strong(rng, config, (3, size, num_joints, 2)) if strong else None
    return Choices(start, length, shear, joints, jitter, extra)


def draw_strong(rng: np.random.Generator, config: AugmentConfig, shape: tuple[int, ...]) -> Strong:
    largest = np.full(3, config.rotation_minor_degrees)
    largest[rng.integers(3)] = config.rotation_degrees
    noise = None
    if rng.random() < config.noise_probability:
        noise = np.float32(config.noise_std) * rng.standard_normal(shape, dtype=np.float32)
    filtered, masked = rng.random() < config.filter_probability, rng.random() < config.axis_mask_probability
    return Strong(
        flip=rng.random() < config.flip_probability,
        rotation=rotation_matrix(np.deg2rad(largest * rng.random(3))),
        noise=noise,
        sigma=rng.uniform(config.filter_sigma_min, config.filter_sigma_max) if filtered else None,
        axis=int(rng.integers(3)) if masked else None,
    )


def rotation_matrix(angles: Array) -> Array:
    """R_z R_y R_x (3, 3) float32 of three angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return (about_z @ about_y @ about_x).astype(np.float32)


def crop_resize(clip: Array, start: int, length: int, size: int) -> Array:
    """Frames [start, start + length) resized linearly to ``size``, at the positions of
    ``torch.nn.functional.interpolate(align_corners=False)``."""
    scale = np.float32(length) / np.float32(size)
    position = np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)
    low = np.minimum(position.astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    weight = (position - low).astype(np.float32)[:, None, None]
    before, after = clip[:, start + low], clip[:, start + high]
    return before + (after - before) * weight


def linear_by_dot(clip: Array, matrix: Array) -> Array:
    return np.dot(clip.transpose(1, 2, 3, 0), matrix.T).transpose(3, 0, 1, 2)


def linear_by_product(clip: Array, matrix: Array) -> Array:
    return (matrix @ clip.reshape(3, -1)).reshape(clip.shape)


def jitter_joints(clip: Array, joints: Array, matrix: Array, linear: Callable[[Array, Array], Array]) -> Array:
    clip = clip.copy()
    clip[:, :, joints] = linear(clip[:, :, joints], matrix) if matrix.any() else 0
    return clip


def smooth_by_shifts(clip: Array, sigma: float) -> Array:
    """Gaussian filter in time; at the ends, the taps that exist sum to one."""
    reach, frames = FILTER_TAPS // 2, clip.shape[1]
    weights = np.exp(-np.square(np.arange(-reach, reach + 1)) / (2 * sigma**2)).astype(np.float32)
    around = np.pad(clip, ((0, 0), (reach, reach), (0, 0), (0, 0)))
    total = np.convolve(np.ones(frames, np.float32), weights)[reach : reach + frames]
    out = np.zeros_like(clip)
    for tap, weight in enumerate(weights):
        out += weight * around[:, tap : tap + frames]
    return out / total[:, None, None]


def smooth_by_product(clip: Array, sigma: float) -> Array:
    """The same."""
    frame = np.arange(clip.shape[1])
    distance = np.abs(frame[:, None] - frame)
    weights = np.where(distance <= FILTER_TAPS // 2, np.exp(-np.square(distance) / (2 * sigma**2)), 0)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return (weights @ clip.reshape(3, len(frame), -1)).reshape(clip.shape)


def make_strong(clip: Array, choices: Strong, mirror: Array, style: Style) -> Array:
    """Flip, rotate, noise, filter, axis mask."""
    if choices.flip:
        clip = clip[:, :, mirror]
    clip = style.linear(clip, choices.rotation)
    if choices.noise is not None:
        clip = clip + choices.noise
    if choices.sigma is not None:
        clip = style.smooth(clip, choices.sigma)
    if choices.axis is not None:
        clip = clip.copy()
        clip[choices.axis] = 0
    return clip


def make_view(clip: Array, choices: Choices, mirror: Array, size: int, style: Style) -> Array:
    """One view (size, V * M * C) float32 of a clip (C, T, V, M)."""
    resized = crop_resize(clip, choices.start, choices.length, size)
    if choices.shear is not None:
        view = style.linear(resized, choices.shear)
    else:
        view = jitter_joints(resized, choices.joints, choices.jitter, style.linear)
    if choices.strong is not None:
        present = np.any(np.any(resized, axis=0), axis=1)[:, None]  # (T, 1, M)
        view = make_strong(view, choices.strong, mirror, style) * present
    return view.transpose(1, 2, 3, 0).reshape(size, -1)


def collate(samples: Sequence[Sequence[Array]]) -> list[Array]:
    """B samples of W views to W batches (B, size, V * M * C)."""
    return [np.stack(views) for views in zip(*samples, strict=True)]


STYLES = {
    "usual": Style(linear_by_dot, smooth_by_shifts),
    "tuned": Style(linear_by_product, smooth_by_product),
}
