"""The random choices of augmented views, drawn from counter-based numbers into a small table of parameters.

Basic and weak augmentation: pose augmentation (shear) or joint jittering, and temporal crop-resize (paper section 3.1);
for other methods a window of the mirrored clip, time reversal and a joint to subtract too. Strong: basic, then spatial
flip, rotate, Gaussian noise, Gaussian filter, axis mask (section 3.2). Making a view from its parameters is a
deterministic function: `fastmc.views.make`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from fastmc.backends import DRAW, Need, may_look
from fastmc.checks import Count, NotNegative, Positive, Probability, Range, Share, Whole, check_number, check_ranges
from fastmc.random import philox, uniform

BASIC_KEY, WEAK, STRONG, BASIC_QUERY = 0, 1, 2, 3
"""The views x0..x3: of the key encoder, the two of the attacked clip, and that of the query encoder."""
FILTER_TAPS = 15  # AimCLR
# Noise blocks count from here, those of the mask's order from there, parameter blocks from 0: they never meet.
NOISE_COUNTER = 1 << 16
MASK_COUNTER = 1 << 15


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of the augmentations. The defaults are the field's; each says where it comes from."""

    crop_ratio_min: Share = 0.1
    """Shortest temporal crop, as a share of the clip. Source: ISC (Thoker et al. 2021), l_ratio = [0.1, 1]."""
    crop_frames_min: Count = 64
    """Shortest temporal crop in frames (or the whole clip, if shorter). Source: ISC."""
    crop_padding: Annotated[float, Range(at_least=0, at_most=0.5)] = 0.0
    """Share of a view's frames that the resized clip is continued by at both ends, mirrored; the view is a window of
    it. Source: CrosSCLR (Li et al. 2021), a sixth, of whole clips."""
    reverse_probability: Probability = 0.0
    """Frames in reverse order. Source: AS-CAL (Rao et al. 2021), 0.5."""
    centre_joint: Whole | None = None
    """The joint of each body that is subtracted from all of them, frame by frame; None: none. Source: AS-CAL, 1."""
    shear: NotNegative = 1.0
    """Amplitude s of the pose augmentation: off-diagonal entries of the shear are uniform in [-s, s]. Source: ISC."""
    jitter_probability: Probability = 0.5
    """Joint jittering in place of the pose augmentation. Source: ISC."""
    jitter_joints: Whole = 15
    """Joints that joint jittering zeroes or maps by a random 3x3 matrix, at most three fifths of them all. Source: ISC,
    15 of 25."""
    flip_probability: Probability = 0.5
    """Strong only: swap left and right joints. Source: AimCLR (Guo et al. 2022)."""
    rotation_degrees: NotNegative = 30.0
    """Strong only: largest angle about the main axis. Source: AimCLR."""
    rotation_minor_degrees: NotNegative = 1.0
    """Strong only: largest angle about the two other axes. Source: AimCLR."""
    rotation: Literal["one-way", "both-ways"] = "one-way"
    """Strong only: angles from 0 on, or from their negatives on. Source: AimCLR's code turns one way."""
    noise_std: NotNegative = 0.01
    """Strong only: standard deviation of the Gaussian noise, metres. Source: AimCLR."""
    noise_probability: Probability = 0.5
    """Strong only. Source: AimCLR."""
    filter_sigma_min: Positive = 0.1
    """Strong only: smallest sigma of the Gaussian filter in time, frames. Source: AimCLR, [0.1, 2], 15 taps."""
    filter_sigma_max: Positive = 2.0
    """Strong only: largest sigma of the Gaussian filter in time, frames. Source: AimCLR."""
    filter_probability: Probability = 0.5
    """Strong only. Source: AimCLR."""
    filter_gain: bool = False
    """Strong only: the filter's weights as they are, not divided by their sum, which enlarges a clip by up to 5.
    Source: AimCLR's code, whose blur it is."""
    axis_mask_probability: Probability = 0.5
    """Strong only: set one coordinate axis to zero. Source: AimCLR."""
    joint_mask_probability: Probability = 0.0
    """Set some joints to zero in some of the frames, after everything else. Source: AS-CAL's code, which leaves it out
    by default."""
    joint_mask_joints_min: Whole = 5
    """Fewest joints of a joint mask. Source: AS-CAL, 5 to 15 of 25."""
    joint_mask_joints_max: Whole = 15
    """Most joints of a joint mask, or all."""
    joint_mask_frames_min: Share = 1 / 3
    """Fewest frames of a joint mask, as a share of a view's. Source: AS-CAL, 50 to 100 of 150 frames."""
    joint_mask_frames_max: Share = 2 / 3
    """Most frames of a joint mask, as a share of a view's."""

    def __post_init__(self) -> None:
        check_ranges(self)
        for what in ("joints", "frames"):
            least, most = (f"joint_mask_{what}_{end}" for end in ("min", "max"))
            check_number(least, getattr(self, least), at_most=getattr(self, most))
        check_number("filter_sigma_min", self.filter_sigma_min, at_most=self.filter_sigma_max)

    def jittered_of(self, num_joints: int) -> int:
        """How many joints joint jittering takes of so many."""
        return min(self.jitter_joints, round(0.6 * num_joints))

    def masked_of(self, num_joints: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The fewest joints of so many that a joint mask has, and how many numbers of them there may be; the same of
        the frames of a view."""
        joints = [min(n, num_joints) for n in (self.joint_mask_joints_min, self.joint_mask_joints_max)]
        frames = [round(share * size) for share in (self.joint_mask_frames_min, self.joint_mask_frames_max)]
        (a, b), (c, d) = joints, frames
        return (a, b - a + 1), (c, d - c + 1)


COLUMNS = {
    "crop_start": slice(0, 1),
    "crop_length": slice(1, 2),
    "shift": slice(2, 3),
    "reverse": slice(3, 4),
    "centre": slice(4, 5),
    "flip": slice(5, 6),
    "noise_std": slice(6, 7),
    "filter_sigma": slice(7, 8),
    "filter_gain": slice(8, 9),
    "axis_scale": slice(9, 12),
    "pose": slice(12, 21),
    "jitter": slice(21, 30),
    "jittered": slice(30, None),
}
"""The parameter table's columns; kernels/views.py reads the same. Behind those of ``jittered``, one a joint, a table
that masks joints has those of MASK."""
MASK = ("masked_joints", "masked_frames")
"""A column a joint, and a column a frame."""


@dataclass(frozen=True)
class ViewParams:
    """What is to be done to each of B clips for each of W views: a table, and the key of the noise.

    Attributes:
        table: (W, B, 30 + V) float32, or (W, B, 30 + 2 V + T) with a joint mask, by ``COLUMNS`` and ``MASK``; what is
            an integer or a choice is exact in float32.
            crop_start, crop_length: in frames of the clip. shift: in frames of the view, which shows frame t + shift of
            the T of the resized crop at t, mirrored at both ends; up to T. reverse: 0 or 1, then backwards.
            centre: the joint that is subtracted, -1 for none. flip: 0 or 1. noise_std: metres, 0 for none.
            filter_sigma: frames, 0 for none. filter_gain: 1 for weights that are not divided by their sum.
            axis_scale: zeros and ones. pose: the linear map (3, 3) of a joint that is not jittered, row-major; jitter:
            that of one that is. jittered: 0 or 1 by joint. masked_joints, masked_frames: 0 or 1 by joint and by frame
            of the view; a joint is zero where both are 1.
        seed, step, sample, views: the key. step: an int or a 0-dim int64 tensor; sample: (B,) int64; views: W numbers.
        centred: whether any view may have a centre; the kernel is another one then.
        masked: T where the table has a joint mask, of views of so many frames; 0 where it has none.
    """

    table: Tensor
    seed: int
    step: Tensor | int
    sample: Tensor
    views: tuple[int, ...]
    centred: bool = True
    masked: int = 0

    def check_crops(self, num_frames: Tensor | int) -> None:
        """ValueError where a crop is not in its clip of ``num_frames`` (B,). A GPU would be waited for: not there."""
        if not may_look(self.table) or torch.compiler.is_compiling():
            return
        start, length = self.column("crop_start"), self.column("crop_length")
        inside = (start >= 0) & (length >= 1) & (start + length <= num_frames)
        if not inside.all():
            view, clip = (~inside).nonzero()[0].tolist()
            span = f"{start[view, clip].item():g} to {(start + length)[view, clip].item():g}"
            raise ValueError(f"params crop clip {clip} to frames {span}, which it does not have")

    @property
    def num_joints(self) -> int:
        by_joint = self.table.shape[2] - COLUMNS["jittered"].start - self.masked
        return by_joint // 2 if self.masked else by_joint

    def column(self, name: str) -> Tensor:
        """(W, B), (W, B, 3), (W, B, 3, 3), (W, B, V) or (W, B, T) float32; those of a joint mask that is not there are
        empty."""
        start, joints = COLUMNS["jittered"].start, self.num_joints
        wide = dict(
            zip(("jittered", *MASK), self.table[:, :, start:].tensor_split((joints, 2 * joints), 2), strict=True)
        )
        if name in wide:
            return wide[name]
        values = self.table[:, :, COLUMNS[name]]
        if name in ("pose", "jitter"):
            return values.unflatten(2, (3, 3))
        return values.squeeze(2) if values.shape[2] == 1 else values


def identity_params(start: Tensor, length: Tensor, num_joints: int, centre: int | None = None) -> ViewParams:
    """One view that only resizes frames [start, start + length) of each clip, and subtracts a ``centre`` joint where
    one is given. start, length: (B,) int64."""
    table = torch.zeros(1, len(start), COLUMNS["jittered"].start + num_joints, device=start.device)
    table[0, :, 0], table[0, :, 1] = start, length
    table[..., COLUMNS["centre"]] = -1 if centre is None else centre
    table[..., COLUMNS["axis_scale"]] = 1
    for name in ("pose", "jitter"):
        table[..., COLUMNS[name]][..., ::4] = 1
    return ViewParams(table, 0, 0, torch.zeros_like(start), (0,), centred=centre is not None)


def draw_params(
    config: AugmentConfig,
    num_frames: Tensor,
    num_joints: int,
    *,
    views: Sequence[int],
    strong: Sequence[int] = (STRONG,),
    seed: int,
    step: Tensor | int,
    sample: Tensor,
    size: int | None = None,
    resized_to: int | None = None,
    impl: str = "auto",
) -> ViewParams:
    """Draw the random choices of some views of each clip.

    Args:
        num_frames: (B,) frames of each source clip, below 2^24.
        views: numbers of the views, 0 to 15. strong: those that get the strong augmentation; the others get the basic.
        seed, step, sample: the rest of the key. step may be a 0-dim int64 tensor on the clips' device; sample: (B,)
            int64 ids of the clips.
        size: T, frames of the views, which crop_padding and the frames of a joint mask are shares of: needed where
            there are any.
        resized_to: the views are to be taken of clips that were resized to so many frames before. The crop is drawn in
            frames of the source clip, which the shortest crop counts in, and then carried over.
        impl: "triton", "numba", "torch", or "auto": triton on a GPU and numba on a CPU where they can run.

    Returns:
        ViewParams whose row of a clip and a view depends on (config, its num_frames, seed, step, its sample id, view)
        alone. Integers and choices are the same on all devices, and maps up to the rounding of sine and cosine.

    Raises:
        ValueError: crop_padding or a joint mask without ``size``, or a centre_joint that there is not.
        RuntimeError: ``impl`` cannot run, or not for so many joints.
    """
    views, strong, frames = tuple(views), tuple(strong), num_frames.to(torch.int64)
    if size is None and config.crop_padding > 0:
        raise ValueError(f"size must be given, the frames of a view: crop_padding {config.crop_padding:g} is a share")
    if size is None and config.joint_mask_probability > 0:
        raise ValueError("size must be given, the frames of a view: a joint mask has a share of them")
    if config.centre_joint is not None and config.centre_joint >= num_joints:
        raise ValueError(f"centre_joint must be below the {num_joints} joints, got {config.centre_joint}")
    padding, masked = (0, 0) if size is None else (int(size * config.crop_padding), size)
    masked *= config.joint_mask_probability > 0
    impl = DRAW.choose(impl, Need(frames.device, joints=num_joints))
    what = (config, frames, num_joints, views, strong, seed, step, sample, padding, resized_to, masked)
    table = DRAW.call(impl, "draw", frames.device, *what)
    return ViewParams(table, seed, step, sample, views, centred=config.centre_joint is not None, masked=masked)


def draw(
    config: AugmentConfig,
    frames: Tensor,
    num_joints: int,
    views: tuple[int, ...],
    strong: tuple[int, ...],
    seed: int,
    step: Tensor | int,
    sample: Tensor,
    padding: int,
    resized_to: int | None,
    masked: int = 0,
) -> Tensor:
    """The table of :func:`draw_params` in PyTorch. strong: numbers of the strong views; padding: frames; masked: frames
    of a view with a joint mask, 0 without."""
    blocks = 8 + math.ceil(num_joints / 4)
    index = torch.arange(blocks, device=frames.device)
    view = view_numbers(views, frames.device)[:, None, None]
    u = uniform(philox(seed, index, step, sample[:, None], view)).flatten(2)  # (W, B, 4 * blocks)
    placed = _crop(config, frames, u, resized_to), _window(config, u, padding)
    table = torch.cat([*placed, *_basic(config, num_joints, u)], dim=2)
    for row, number in enumerate(views):
        if number in strong:
            _strengthen_(config, table[row], u[row])
    if not masked:
        return table
    index = MASK_COUNTER + torch.arange(-(-(num_joints + masked) // 4), device=frames.device)
    order = uniform(philox(seed, index, step, sample[:, None], view)).flatten(2)
    counts = config.masked_of(num_joints, masked)
    return torch.cat([table, *_mask(config.joint_mask_probability, counts, num_joints, masked, u, order)], dim=2)


def view_numbers(views: Sequence[int], device: torch.device) -> Tensor:
    """(W,) int64, filled on the device: a copy to a GPU would wait."""
    return torch.stack([torch.full((), view, device=device) for view in views])


def _crop(config: AugmentConfig, frames: Tensor, u: Tensor, resized_to: int | None) -> Tensor:
    """Columns crop_start and crop_length (W, B, 2)."""
    ratio = config.crop_ratio_min + (1 - config.crop_ratio_min) * u[..., 0]
    shortest = frames.clamp_max(config.crop_frames_min)
    length = torch.floor(frames * ratio).to(torch.int64).maximum(shortest).minimum(frames)
    start = torch.floor((frames - length + 1) * u[..., 1]).to(torch.int64).minimum(frames - length)
    if resized_to is not None:
        length = ((2 * length * resized_to + frames) // (2 * frames)).clamp(1, resized_to)
        start = (start * resized_to // frames).minimum(resized_to - length)
    return torch.stack([start, length], dim=2).to(torch.float32)


def _window(config: AugmentConfig, u: Tensor, padding: int) -> Tensor:
    """Columns shift, reverse and centre (W, B, 3)."""
    shift = torch.floor((2 * padding + 1) * u[..., 24]).clamp_max(2 * padding) - padding
    centre = torch.full_like(shift, -1 if config.centre_joint is None else config.centre_joint)
    return torch.stack([shift, (u[..., 25] < config.reverse_probability).to(torch.float32), centre], dim=2)


def _basic(config: AugmentConfig, num_joints: int, u: Tensor) -> tuple[Tensor, ...]:
    """The columns from flip on, of the basic augmentation."""
    is_jitter, is_zeroing = u[..., 2:3] < config.jitter_probability, u[..., 3:4] < 0.5
    signed = 2 * u[..., 4:13] - 1
    eye = torch.eye(3, device=u.device).flatten()
    shear = eye + (1 - eye) * config.shear * signed
    pose = torch.where(is_jitter, eye, shear)
    jitter = torch.where(is_zeroing, 0.0, signed)
    jittered = is_jitter & (_rank(u[..., 32 : 32 + num_joints]) < config.jittered_of(num_joints))
    return torch.zeros_like(u[..., :4]), torch.ones_like(u[..., :3]), pose, jitter, jittered.to(torch.float32)


def _mask(
    probability: float,
    counts: tuple[tuple[int, int], tuple[int, int]],
    joints: int,
    size: int,
    u: Tensor,
    order: Tensor,
) -> list[Tensor]:
    """Columns masked_joints (W, B, V) and masked_frames (W, B, T): of ``order`` the smallest numbers, as many as u
    says."""
    is_masking, columns = u[..., 26:27] < probability, []
    for (least, choices), drawn, mine in zip(
        counts, (u[..., 27:28], u[..., 28:29]), order[..., : joints + size].split((joints, size), 2), strict=True
    ):
        count = least + torch.floor(choices * drawn).clamp_max(choices - 1)
        columns.append((is_masking & (_rank(mine) < count)).to(torch.float32))
    return columns


def _rank(u: Tensor) -> Tensor:
    """The place (..., V) of each of the V numbers in their increasing order; of equal ones the first comes first."""
    mine, other = u[..., :, None], u[..., None, :]
    index = torch.arange(u.shape[-1], device=u.device)
    before = (other < mine) | ((other == mine) & (index < index[:, None]))
    return before.sum(dim=-1)


def _strengthen_(config: AugmentConfig, table: Tensor, u: Tensor) -> None:
    """Make one view's basic rows (B, P) strong ones, in place."""
    axes = torch.arange(3, device=u.device)
    is_main = axes == torch.floor(3 * u[:, 14:15])
    largest = torch.where(is_main, config.rotation_degrees, config.rotation_minor_degrees)
    turn = u[:, 15:18] if config.rotation == "one-way" else 2 * u[:, 15:18] - 1
    rotation = rotation_matrix(torch.deg2rad(largest * turn))
    is_masked = (axes == torch.floor(3 * u[:, 19:20])) & (u[:, 18:19] < config.axis_mask_probability)
    sigma = config.filter_sigma_min + (config.filter_sigma_max - config.filter_sigma_min) * u[:, 21]
    for name in ("pose", "jitter"):
        table[:, COLUMNS[name]] = (rotation @ table[:, COLUMNS[name]].unflatten(1, (3, 3))).flatten(1)
    table[:, COLUMNS["axis_scale"]] = (~is_masked).to(torch.float32)
    filtered = u[:, 20] < config.filter_probability
    for name, value in {
        "flip": u[:, 22] < config.flip_probability,
        "noise_std": torch.where(u[:, 23] < config.noise_probability, config.noise_std, 0.0),
        "filter_sigma": torch.where(filtered, sigma, 0.0),
        "filter_gain": filtered & config.filter_gain,
    }.items():
        table[:, COLUMNS[name]] = value.to(torch.float32)[:, None]


def rotation_matrix(angles: Tensor) -> Tensor:
    """(B, 3) angles about x, y, z in radians to (B, 3, 3) matrices R_z R_y R_x."""
    (cx, cy, cz), (sx, sy, sz) = torch.cos(angles).unbind(1), torch.sin(angles).unbind(1)
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
