"""Augmentations, one clip and one transform at a time (paper sections 3.1 and 3.2, and those of other methods).

Every function takes and returns a clip (T, M, V, 3), float, metres; what is random is an argument. A body that is
missing in a frame is zero there and stays zero: that is ``view``'s business, which ends by putting the zeros back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def temporal_crop_resize(clip: Tensor, start: int, length: int, size: int) -> Tensor:
    """Frames [start, start + length), resized linearly to ``size`` frames."""
    crop = clip[start : start + length]
    signal = crop.flatten(1).T.unsqueeze(0)  # (1, M * V * 3, length)
    resized = F.interpolate(signal, size=size, mode="linear", align_corners=False)
    return resized[0].T.reshape(size, *clip.shape[1:])


def mirrored_window(clip: Tensor, shift: int) -> Tensor:
    """Frames from ``shift`` on of a clip that goes on at both ends with its mirror image, edge frames twice (CrosSCLR).
    abs(shift) <= T."""
    mirrored = torch.cat([clip.flip(0), clip, clip.flip(0)])
    return mirrored[len(clip) + shift :][: len(clip)]


def time_reversal(clip: Tensor) -> Tensor:
    """The frames backwards (AS-CAL)."""
    return clip.flip(0)


def subtract_joint(clip: Tensor, joint: int) -> Tensor:
    """Each body as seen from one of its joints, frame by frame (AS-CAL)."""
    return clip - clip[:, :, joint : joint + 1]


def pose_augmentation(clip: Tensor, shear: Tensor) -> Tensor:
    """Shear (3, 3), ones on the diagonal: every joint p becomes shear p."""
    return clip @ shear.T


def joint_jittering(clip: Tensor, joints: Sequence[int], matrix: Tensor) -> Tensor:
    """Some joints p become matrix p; a matrix of zeros drops them."""
    clip = clip.clone()
    clip[:, :, list(joints)] = clip[:, :, list(joints)] @ matrix.T
    return clip


def spatial_flip(clip: Tensor, mirror: Sequence[int]) -> Tensor:
    """Left and right joints change places."""
    return clip[:, :, list(mirror)]


def rotate(clip: Tensor, angles: Sequence[float]) -> Tensor:
    """Turn about x, then y, then z; angles in radians."""
    for axis, angle in enumerate(angles):
        i, j = ((1, 2), (2, 0), (0, 1))[axis]
        turn = torch.eye(3, dtype=clip.dtype)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        clip = clip @ turn.T
    return clip


def gaussian_noise(clip: Tensor, noise: Tensor, std: float) -> Tensor:
    """noise: standard normal numbers in the clip's shape."""
    return clip + std * noise


def gaussian_filter(clip: Tensor, sigma: float, taps: int = 15, *, gain: bool = False) -> Tensor:
    """Smooth in time with Gaussian weights; at the ends the weights that exist are scaled to sum to one.

    ``gain``: weights are left as they are, exp(-i^2 / 2 sigma^2), as in AimCLR's code: sums are 1 to 5.
    """
    smooth = torch.zeros_like(clip)
    for t in range(len(clip)):
        near = range(max(0, t - taps // 2), min(len(clip), t + taps // 2 + 1))
        weight = {s: math.exp(-((s - t) ** 2) / (2 * sigma**2)) for s in near}
        smooth[t] = sum(weight[s] * clip[s] for s in near) / (1 if gain else sum(weight.values()))
    return smooth


def axis_mask(clip: Tensor, axis: int) -> Tensor:
    """Set the coordinate ``axis`` (0, 1, 2) of every joint to zero."""
    clip = clip.clone()
    clip[..., axis] = 0
    return clip


def joint_mask(clip: Tensor, joints: Sequence[int], frames: Sequence[int]) -> Tensor:
    """Some joints are zero in some frames (AS-CAL)."""
    clip = clip.clone()
    for frame in frames:
        clip[frame, :, list(joints)] = 0
    return clip


def view(
    clip: Tensor,
    *,
    size: int,
    mirror: Sequence[int],
    noise: Tensor,
    crop_start: Tensor,
    crop_length: Tensor,
    shift: Tensor,
    reverse: Tensor,
    centre: Tensor,
    pose: Tensor,
    jitter: Tensor,
    jittered: Tensor,
    flip: Tensor,
    noise_std: Tensor,
    filter_sigma: Tensor,
    filter_gain: Tensor,
    axis_scale: Tensor,
    masked_joints: Tensor | None = None,
    masked_frames: Tensor | None = None,
) -> Tensor:
    """One view (size, M, V, 3) of a clip: all transforms in order, with the choices of one row of a parameter table.

    ``pose`` and ``jitter`` carry the rotation too: it is applied after either. noise: standard normal, (size, M, V, 3).
    """
    x = mirrored_window(temporal_crop_resize(clip, int(crop_start), int(crop_length), size), int(shift))
    original = x = time_reversal(x) if reverse > 0 else x
    if centre >= 0:
        x = subtract_joint(x, int(centre))
    x = joint_jittering(x, jittered.nonzero()[:, 0].tolist(), jitter)
    x = joint_jittering(x, (jittered == 0).nonzero()[:, 0].tolist(), pose)
    if flip > 0:
        x = spatial_flip(x, mirror)
    if noise_std > 0:
        x = gaussian_noise(x, noise, float(noise_std))
    if filter_sigma > 0:
        x = gaussian_filter(x, float(filter_sigma), gain=bool(filter_gain))
    for axis in (axis_scale == 0).nonzero()[:, 0].tolist():
        x = axis_mask(x, axis)
    if masked_joints is not None and masked_frames is not None:
        x = joint_mask(x, *(chosen.nonzero()[:, 0].tolist() for chosen in (masked_joints, masked_frames)))
    return restore_missing(x, original)


def restore_missing(clip: Tensor, original: Tensor) -> Tensor:
    """Zero wherever a body of the original (T, M, V, 3) is missing, that is all zero."""
    return clip * (original != 0).flatten(2).any(dim=2)[:, :, None, None]


def motion(clip: Tensor) -> Tensor:
    """The next frame minus this one; the last is zero."""
    out = torch.zeros_like(clip)
    out[:-1] = clip[1:] - clip[:-1]
    return out


def bone(clip: Tensor, parents: Sequence[int]) -> Tensor:
    """Each joint minus its parent."""
    return clip - clip[:, :, list(parents)]
