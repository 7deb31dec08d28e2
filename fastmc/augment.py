"""Views of skeleton clips: random choices are a table of parameters, applying them is a deterministic function.

Basic and weak augmentation: pose augmentation (shear) or joint jittering, and temporal crop-resize (paper section 3.1).
Strong: basic, then spatial flip, rotate, Gaussian noise, Gaussian filter, axis mask (section 3.2).
``fastmc.reference.augment`` says the same one clip and one transform at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fastmc.checks import check_number
from fastmc.random import normal, philox, uniform
from fastmc.skeleton import Skeleton

Stream = Literal["joint", "motion", "bone"]
FILTER_TAPS = 15  # AimCLR
NOISE_COUNTER = 1 << 16  # noise blocks count from here, parameter blocks from 0: they never meet


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of the augmentations. The defaults are the field's; each says where it comes from."""

    crop_ratio_min: float = 0.1
    """Shortest temporal crop, as a share of the clip. Source: ISC (Thoker et al. 2021), l_ratio = [0.1, 1]."""
    crop_frames_min: int = 64
    """Shortest temporal crop in frames (or the whole clip, if shorter). Source: ISC."""
    shear: float = 1.0
    """Amplitude s of the pose augmentation: off-diagonal entries of the shear are uniform in [-s, s]. Source: ISC."""
    jitter_joints: int = 15
    """Joints that joint jittering zeroes or maps by a random 3x3 matrix, at most three fifths of them all. Source: ISC,
    15 of 25."""
    flip_probability: float = 0.5
    """Strong only: swap left and right joints. Source: AimCLR (Guo et al. 2022)."""
    rotation_degrees: float = 30.0
    """Strong only: largest angle about the main axis. Source: AimCLR."""
    rotation_minor_degrees: float = 1.0
    """Strong only: largest angle about the two other axes. Source: AimCLR."""
    noise_std: float = 0.01
    """Strong only: standard deviation of the Gaussian noise, metres. Source: AimCLR."""
    noise_probability: float = 0.5
    """Strong only. Source: AimCLR."""
    filter_sigma_min: float = 0.1
    """Strong only: smallest sigma of the Gaussian filter in time, frames. Source: AimCLR, [0.1, 2], 15 taps."""
    filter_sigma_max: float = 2.0
    """Strong only: largest sigma of the Gaussian filter in time, frames. Source: AimCLR."""
    filter_probability: float = 0.5
    """Strong only. Source: AimCLR."""
    axis_mask_probability: float = 0.5
    """Strong only: set one coordinate axis to zero. Source: AimCLR."""

    def __post_init__(self) -> None:
        check_number("crop_ratio_min", self.crop_ratio_min, above=0, at_most=1)
        check_number("crop_frames_min", self.crop_frames_min, at_least=1)
        for name in ("jitter_joints", "shear", "rotation_degrees", "rotation_minor_degrees", "noise_std"):
            check_number(name, getattr(self, name), at_least=0)
        for name in ("flip_probability", "noise_probability", "filter_probability", "axis_mask_probability"):
            check_number(name, getattr(self, name), at_least=0, at_most=1)
        check_number("filter_sigma_min", self.filter_sigma_min, above=0, at_most=self.filter_sigma_max)


@dataclass(frozen=True)
class ViewParams:
    """What is to be done to each of B clips; every field has B as its first axis.

    Attributes:
        crop_start, crop_length: (B,) int64, frames of the source clip.
        pose: (B, 3, 3) float32, the linear map of every joint that is not jittered.
        jitter: (B, 3, 3) float32, the linear map of the jittered joints.
        jittered: (B, V) bool.
        flip: (B,) bool.
        noise_std: (B,) float32, 0 for none.
        filter_sigma: (B,) float32, 0 for none.
        axis_scale: (B, 3) float32 of zeros and ones.
        noise_seed, noise_key: the Philox key, and (B, 3) int64 counter words, of the noise.
    """

    crop_start: Tensor
    crop_length: Tensor
    pose: Tensor
    jitter: Tensor
    jittered: Tensor
    flip: Tensor
    noise_std: Tensor
    filter_sigma: Tensor
    axis_scale: Tensor
    noise_seed: int
    noise_key: Tensor

    def __len__(self) -> int:
        return self.crop_start.shape[0]


def identity_params(num_frames: Tensor, num_joints: int) -> ViewParams:
    """The view that only resizes the whole clip in time. num_frames: (B,)."""
    batch, device = num_frames.shape[0], num_frames.device
    eye = torch.eye(3, device=device).expand(batch, 3, 3)
    zeros = torch.zeros(batch, device=device)
    return ViewParams(
        crop_start=torch.zeros_like(num_frames, dtype=torch.int64),
        crop_length=num_frames.to(torch.int64),
        pose=eye,
        jitter=eye,
        jittered=torch.zeros(batch, num_joints, dtype=torch.bool, device=device),
        flip=torch.zeros(batch, dtype=torch.bool, device=device),
        noise_std=zeros,
        filter_sigma=zeros,
        axis_scale=torch.ones(batch, 3, device=device),
        noise_seed=0,
        noise_key=torch.zeros(batch, 3, dtype=torch.int64, device=device),
    )


def draw_params(
    config: AugmentConfig,
    num_frames: Tensor,
    num_joints: int,
    *,
    strong: bool,
    seed: int,
    step: int,
    sample: Tensor,
    view: int,
    resized_to: int | None = None,
) -> ViewParams:
    """Draw the random choices of one view of each clip.

    Args:
        num_frames: (B,) frames of each source clip.
        strong: whether the strong augmentation is drawn; basic otherwise.
        seed, step, sample, view: the key. sample: (B,) int64 ids of the clips, view: 0..3.
        resized_to: the view is to be taken of clips that were resized to so many frames before. The crop is drawn in
            frames of the source clip, which the shortest crop counts in, and then carried over.

    Returns:
        ViewParams that depend on (config, num_frames[n], seed, step, sample[n], view) alone.
    """
    frames = num_frames.to(torch.int64)
    blocks = 8 + math.ceil(num_joints / 4)
    index = torch.arange(blocks, device=frames.device)
    words = philox(seed, index[None, :], step, sample[:, None], view)
    u = uniform(words).flatten(1)  # (B, 4 * blocks)

    ratio = config.crop_ratio_min + (1 - config.crop_ratio_min) * u[:, 0]
    shortest = frames.clamp_max(config.crop_frames_min)
    length = torch.floor(frames * ratio).to(torch.int64).maximum(shortest).minimum(frames)
    start = torch.floor((frames - length + 1) * u[:, 1]).to(torch.int64).minimum(frames - length)
    if resized_to is not None:
        length = torch.round(length * resized_to / frames).to(torch.int64).clamp(1, resized_to)
        start = torch.floor(start * resized_to / frames).to(torch.int64).minimum(resized_to - length)

    eye = torch.eye(3, device=frames.device)
    off_diagonal = 1 - eye
    is_jitter = u[:, 2] < 0.5
    is_zeroing = u[:, 3] < 0.5
    signed = 2 * u[:, 4:13].reshape(-1, 3, 3) - 1
    shear = eye + off_diagonal * config.shear * signed
    pose = torch.where(is_jitter[:, None, None], eye, shear)
    jitter = torch.where(is_zeroing[:, None, None], torch.zeros_like(signed), signed)
    order = u[:, 32 : 32 + num_joints].argsort(dim=1).argsort(dim=1)
    jittered = is_jitter[:, None] & (order < min(config.jitter_joints, round(0.6 * num_joints)))

    params = replace(
        identity_params(frames, num_joints),
        crop_start=start,
        crop_length=length,
        pose=pose,
        jitter=jitter,
        jittered=jittered,
    )
    if not strong:
        return params

    main_axis = torch.floor(3 * u[:, 14]).to(torch.int64).clamp_max(2)
    is_main = torch.nn.functional.one_hot(main_axis, 3).bool()
    largest = torch.where(is_main, config.rotation_degrees, config.rotation_minor_degrees)
    rotation = rotation_matrix(torch.deg2rad(largest * u[:, 15:18]))
    masked_axis = torch.floor(3 * u[:, 19]).to(torch.int64).clamp_max(2)
    axis_scale = 1.0 - torch.nn.functional.one_hot(masked_axis, 3) * (u[:, 18:19] < config.axis_mask_probability)
    sigma = config.filter_sigma_min + (config.filter_sigma_max - config.filter_sigma_min) * u[:, 21]
    key = torch.stack([torch.full_like(sample, step), sample, torch.full_like(sample, view)], dim=-1)
    return replace(
        params,
        pose=rotation @ pose,
        jitter=rotation @ jitter,
        flip=u[:, 22] < config.flip_probability,
        noise_std=torch.where(u[:, 23] < config.noise_probability, config.noise_std, 0.0),
        filter_sigma=torch.where(u[:, 20] < config.filter_probability, sigma, 0.0),
        axis_scale=axis_scale,
        noise_seed=seed,
        noise_key=key,
    )


def rotation_matrix(angles: Tensor) -> Tensor:
    """(B, 3) angles about x, y, z in radians to (B, 3, 3) matrices R_z R_y R_x."""
    cos, sin = torch.cos(angles), torch.sin(angles)
    one, zero = torch.ones_like(cos[:, 0]), torch.zeros_like(cos[:, 0])

    def matrix(*rows: Tensor) -> Tensor:
        return torch.stack(rows, dim=-1).reshape(-1, 3, 3)

    about_x = matrix(one, zero, zero, zero, cos[:, 0], -sin[:, 0], zero, sin[:, 0], cos[:, 0])
    about_y = matrix(cos[:, 1], zero, sin[:, 1], zero, one, zero, -sin[:, 1], zero, cos[:, 1])
    about_z = matrix(cos[:, 2], -sin[:, 2], zero, sin[:, 2], cos[:, 2], zero, zero, zero, one)
    return about_z @ about_y @ about_x


@dataclass(frozen=True)
class PackedClips:
    """B clips inside a packed array of frames (no padding).

    Attributes:
        frames: (R, V, 3) float32; frame t of body m of clip n is row ``start[n] + t * num_bodies[n] + m``.
        start, num_frames, num_bodies: (B,) int64.
        max_bodies: M, the bodies of every view; a body that a clip lacks is zero.
    """

    frames: Tensor
    start: Tensor
    num_frames: Tensor
    num_bodies: Tensor
    max_bodies: int

    def __len__(self) -> int:
        return self.start.shape[0]


def pack_dense(x: Tensor) -> PackedClips:
    """Dense clips (B, T, M, V, 3) seen as packed ones."""
    batch, frames, bodies, joints, _ = x.shape
    index = torch.arange(batch, device=x.device)
    return PackedClips(
        frames=x.reshape(-1, joints, 3),
        start=index * (frames * bodies),
        num_frames=torch.full_like(index, frames),
        num_bodies=torch.full_like(index, bodies),
        max_bodies=bodies,
    )


def crop_span(num_frames: Tensor, ratio: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Start and length (B,) int64 of a temporal crop: ``ratio`` (B,) of the clip, at ``position`` (B,) in [0, 1] of the
    free room."""
    frames = num_frames.to(torch.int64)
    length = torch.floor(frames * ratio).to(torch.int64).clamp_min(1).minimum(frames)
    start = torch.floor((frames - length + 1) * position).to(torch.int64).minimum(frames - length)
    return start, length


def crop_resize(clips: PackedClips, start: Tensor, length: Tensor, size: int) -> Tensor:
    """Temporal crop-resize: frames [start, start + length) of each clip, resized linearly to ``size`` frames.

    The positions are those of ``torch.nn.functional.interpolate(mode="linear", align_corners=False)``.

    Returns:
        (B, size, M, V, 3) float32, zero where a clip has no such body.
    """
    device = clips.frames.device
    out = torch.arange(size, device=device, dtype=torch.float32)
    scale = length.to(torch.float32)[:, None] / size
    position = ((out + 0.5) * scale - 0.5).clamp_min(0.0)
    low = torch.floor(position).to(torch.int64).minimum(length[:, None] - 1)
    high = (low + 1).minimum(length[:, None] - 1)
    weight = (position - low)[..., None, None, None]

    body = torch.arange(clips.max_bodies, device=device)
    exists = body < clips.num_bodies[:, None]
    body = torch.where(exists, body, 0)

    def rows(frame: Tensor) -> Tensor:
        first = clips.start[:, None] + (start[:, None] + frame) * clips.num_bodies[:, None]
        return clips.frames[first[..., None] + body[:, None, :]]

    return torch.lerp(rows(low), rows(high), weight) * exists[:, None, :, None, None]


def present_bodies(x: Tensor) -> Tensor:
    """(B, T, M, V, 3) to the bool mask (B, T, M, 1, 1) of the bodies that are there (not all zero)."""
    return (x != 0).flatten(3).any(dim=3)[..., None, None]


def apply_params(clips: PackedClips, params: ViewParams, skeleton: Skeleton, size: int = 64) -> Tensor:
    """Make one view of each clip: (B, size, M, V, 3) float32. Missing bodies stay exactly zero."""
    x = crop_resize(clips, params.crop_start, params.crop_length, size)
    present = present_bodies(x)
    x = _map_joints(x, params)
    x = _flip(x, params.flip, skeleton)
    x = _add_noise(x, params)
    x = _filter_in_time(x, params.filter_sigma)
    return x * params.axis_scale[:, None, None, None, :] * present


def _map_joints(x: Tensor, params: ViewParams) -> Tensor:
    maps = torch.where(params.jittered[..., None, None], params.jitter[:, None], params.pose[:, None])  # (B, V, 3, 3)
    return torch.einsum("btmvc,bvdc->btmvd", x, maps)


def _flip(x: Tensor, flip: Tensor, skeleton: Skeleton) -> Tensor:
    keep = torch.arange(x.shape[3], device=x.device)
    mirror = torch.tensor(skeleton.mirror, device=x.device)
    order = torch.where(flip[:, None], mirror, keep)[:, None, None, :, None]
    return x.gather(3, order.expand_as(x))


def _add_noise(x: Tensor, params: ViewParams) -> Tensor:
    # Half of the clips get none. A CPU does not draw for them; on a GPU asking which would wait for the device.
    std = params.noise_std
    chosen = std.nonzero()[:, 0] if std.device.type == "cpu" else torch.arange(len(std), device=std.device)
    if chosen.numel() == 0:
        return x
    elements = x[0].numel()
    block = NOISE_COUNTER + torch.arange(math.ceil(elements / 4), device=x.device)
    step, sample, view = (word[:, None] for word in params.noise_key[chosen].unbind(1))
    noise = normal(philox(params.noise_seed, block[None, :], step, sample, view)).flatten(1)[:, :elements]
    return x.index_add(0, chosen, noise.view(-1, *x.shape[1:]) * std[chosen, None, None, None, None])


def _filter_in_time(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian filter with 15 taps; at the ends, the taps that exist are renormalised to sum to one."""
    frame = torch.arange(x.shape[1], device=x.device)
    distance = (frame[:, None] - frame[None, :]).abs()
    exponent = distance.square() / (2 * sigma.clamp_min(1e-6).square())[:, None, None]
    weights = torch.exp(-exponent) * (distance <= FILTER_TAPS // 2)
    weights = weights / weights.sum(dim=2, keepdim=True)
    return torch.bmm(weights, x.flatten(2)).view_as(x)


def to_stream(x: Tensor, stream: Stream, skeleton: Skeleton) -> Tensor:
    """Joint coordinates (B, T, M, V, 3) to an input stream of the same shape.

    joint: as is. motion: next frame minus this one, the last is zero. bone: joint minus its parent.
    """
    if stream == "joint":
        return x
    if stream == "motion":
        return torch.nn.functional.pad(x[:, 1:] - x[:, :-1], (0, 0, 0, 0, 0, 0, 0, 1))
    if stream == "bone":
        if not skeleton.parents:
            raise ValueError(f"stream='bone' needs the parents of joint layout {skeleton.name!r}, which are unknown")
        return x - x[:, :, :, list(skeleton.parents)]
    raise ValueError(f"stream must be joint, motion or bone, got {stream!r}")


def to_encoder_layout(x: Tensor) -> Tensor:
    """(B, T, M, V, 3) to the encoder's input (B, T, V * M * 3), joints outermost."""
    return x.transpose(2, 3).flatten(2)
