"""The random choices of augmented views: the table that `fastmc.views.draw.draw_params` describes, in one launch.

A program draws one view of one clip. Sums and products round one by one here as they do in PyTorch, never fused: a crop
is a product rounded down, and must not depend on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of the parameter table, as fastmc.views.draw.COLUMNS has them.
START, LENGTH, SHIFT, REVERSE, CENTRE, FLIP, STD, SIGMA, GAIN = (tl.constexpr(n) for n in range(9))
SCALE, POSE, JITTER, JITTERED = (tl.constexpr(n) for n in (9, 12, 21, 30))
VIEW_BITS = tl.constexpr(4)
ORDER_BLOCK = tl.constexpr(8)  # the Philox block that the jittered joints' order begins with
MASK_BLOCK = tl.constexpr(1 << 15)  # that of the masked joints and frames
TURN = tl.constexpr(1 / 360)  # of a degree


def pack_views(views: Sequence[int]) -> int:
    """The numbers of up to 7 views in one constant. ValueError if they are not below 16."""
    if len(views) > 7 or not all(0 <= view < 16 for view in views):
        raise ValueError(f"views must be at most 7 numbers in 0..15, got {tuple(views)}")
    return sum(view << (VIEW_BITS.value * w) for w, view in enumerate(views))


@triton.jit
def view_of(VIEWS: tl.constexpr, w):
    return (VIEWS >> (w * VIEW_BITS)) & 15


@triton.jit
def read_word(p_number):
    """The low 32 bits of an int64."""
    return tl.load(p_number).to(tl.uint32)


@triton.jit
def uniform(word):
    """In [0, 1), from the upper 24 bits."""
    return (word >> 8).to(tl.float32) * (1.0 / 16777216)


@triton.jit
def _block(seed, number, step, sample, view):
    """Four uniform numbers of block ``number``."""
    zero = (number * 0).to(tl.uint32)
    w_0, w_1, w_2, w_3 = tl.philox(seed, zero + number, zero + step, zero + sample, zero + view)
    return uniform(w_0), uniform(w_1), uniform(w_2), uniform(w_3)


@triton.jit
def _pick3(o, a, b, c):
    return tl.where(o == 0, a, tl.where(o == 1, b, c))


@triton.jit
def sine_cosine(turns):
    """Of an angle in turns, to a rounding or two: Taylor's polynomials around the nearest quarter turn. Angles are
    small here, and the general functions' way to reduce large ones needs local memory."""
    quarter = tl.floor(turns * 4 + 0.5)
    x = (turns * 4 - quarter) * 1.5707963267948966  # in [-pi / 4, pi / 4]
    s = x * x
    sine = x + x * s * (-1 / 6 + s * (1 / 120 + s * (-1 / 5040 + s * (1 / 362880))))
    cosine = 1 + s * (-1 / 2 + s * (1 / 24 + s * (-1 / 720 + s * (1 / 40320))))
    quadrant = quarter.to(tl.int32) & 3
    swap = (quadrant & 1) != 0
    sine, cosine = tl.where(swap, cosine, sine), tl.where(swap, sine, cosine)
    negative_sine, negative_cosine = quadrant >= 2, (quadrant == 1) | (quadrant == 2)
    return tl.where(negative_sine, -sine, sine), tl.where(negative_cosine, -cosine, cosine)


@triton.jit
def _rotation(turns_x, turns_y, turns_z):
    """The nine numbers of R_z R_y R_x."""
    sx, cx = sine_cosine(turns_x)
    sy, cy = sine_cosine(turns_y)
    sz, cz = sine_cosine(turns_z)
    return (
        cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx,
        sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx,
        -sy, cy * sx, cy * cx,
    )  # fmt: skip


@triton.jit
def _times(a, b, i: tl.constexpr, j: tl.constexpr):
    """Element (i, j) of the product of two matrices of nine numbers."""
    return a[3 * i] * b[j] + a[3 * i + 1] * b[3 + j] + a[3 * i + 2] * b[6 + j]


@triton.jit
def _product(a, b):
    return (
        _times(a, b, 0, 0), _times(a, b, 0, 1), _times(a, b, 0, 2),
        _times(a, b, 1, 0), _times(a, b, 1, 1), _times(a, b, 1, 2),
        _times(a, b, 2, 0), _times(a, b, 2, 1), _times(a, b, 2, 2),
    )  # fmt: skip


@triton.jit
def _store_matrix(p_matrix, a):
    for i in tl.static_range(9):
        tl.store(p_matrix + i, a[i])


@triton.jit
def _crop(frames, u_length, u_start, ratio_min, ratio_range, frames_min, RESIZED: tl.constexpr):
    """Start and length of the crop, carried over to RESIZED frames unless that is 0."""
    longest = frames.to(tl.float32)
    length = tl.floor(longest * (ratio_min + ratio_range * u_length)).to(tl.int64)
    length = tl.minimum(tl.maximum(length, tl.minimum(frames, frames_min)), frames)
    start = tl.minimum(tl.floor((frames - length + 1).to(tl.float32) * u_start).to(tl.int64), frames - length)
    if RESIZED:
        length = tl.minimum(tl.maximum((2 * length * RESIZED + frames) // (2 * frames), 1), RESIZED)
        start = tl.minimum(start * RESIZED // frames, RESIZED - length)
    return start, length


@triton.jit
def _jittered(seed, step, sample, view, count, V: tl.constexpr, BLOCK_V: tl.constexpr):
    """(BLOCK_V,): whether a joint's number is among the ``count`` smallest; of equal ones the first joint's is less."""
    o_v = tl.arange(0, BLOCK_V)
    u_0, u_1, u_2, u_3 = _block(seed, o_v // 4 + ORDER_BLOCK, step, sample, view)
    u = tl.where(o_v % 4 == 0, u_0, _pick3(o_v % 4 - 1, u_1, u_2, u_3))
    u = tl.where(o_v < V, u, 2.0)
    other = tl.reshape(u, (1, BLOCK_V))
    mine = tl.reshape(u, (BLOCK_V, 1))
    before = (other < mine) | ((other == mine) & (o_v[None, :] < o_v[:, None]))
    return tl.sum(before.to(tl.int32), axis=1) < count


@triton.jit
def _of_order(o, seed, step, sample, view):
    """Numbers o of those that order a mask's joints and, behind them, frames."""
    u_0, u_1, u_2, u_3 = _block(seed, o // 4 + MASK_BLOCK, step, sample, view)
    return tl.where(o % 4 == 0, u_0, _pick3(o % 4 - 1, u_1, u_2, u_3))


@triton.jit
def _smallest(o, first, many, count, seed, step, sample, view):
    """Whether numbers ``first`` + o are among the ``count`` smallest of the ``many`` from ``first`` on, as in
    `_jittered`: one after the other, since there may be hundreds."""
    mine = _of_order(first + o, seed, step, sample, view)
    before = o * 0
    for i in range(many):
        other = _of_order(first + i, seed, step, sample, view)
        before += ((other < mine) | ((other == mine) & (i < o))).to(tl.int32)
    return before < count


@triton.jit
def _count(least, choices, u):
    """Of ``choices`` numbers from ``least`` on."""
    return least + tl.minimum(tl.floor(choices.to(tl.float32) * u).to(tl.int32), choices - 1)


OF_MASK = ["joints_least", "joints_choices", "frames_least", "frames_choices"]


@triton.jit(do_not_specialize=["seed", "step", "B", "padding", "centre", *OF_MASK])
def _draw_kernel(
    p_frames,  # (B,) of the source clips
    p_sample,  # (B,)
    p_step,  # 0-dim, where STEP_ON_DEVICE
    p_table,  # (W, B, JITTERED + V), or with a joint mask (W, B, JITTERED + 2 V + MASKED)
    seed,
    step,
    B,
    ratio_min,
    ratio_range,
    frames_min,
    padding,
    reverse_probability,
    centre,
    shear,
    jitter_probability,
    jitter_joints,
    flip_probability,
    degrees,
    minor_degrees,
    noise_std,
    noise_probability,
    sigma_min,
    sigma_range,
    filter_probability,
    filter_gain,
    mask_probability,
    joint_mask_probability,  # this and the next four are None without a joint mask
    joints_least,
    joints_choices,
    frames_least,
    frames_choices,
    VIEWS: tl.constexpr,
    STRONG: tl.constexpr,
    BOTH_WAYS: tl.constexpr,
    STEP_ON_DEVICE: tl.constexpr,
    RESIZED: tl.constexpr,
    MASKED: tl.constexpr,  # frames of a view with a joint mask, or 0
    V: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    n, w = tl.program_id(0), tl.program_id(1)
    if MASKED:
        p_row = p_table + (w * B + n).to(tl.int64) * (JITTERED + 2 * V + MASKED)
    else:
        p_row = p_table + (w * B + n).to(tl.int64) * (JITTERED + V)
    view = view_of(VIEWS, w)
    sample = read_word(p_sample + n)
    counter = read_word(p_step) if STEP_ON_DEVICE else step.to(tl.uint32)

    u_length, u_start, u_kind, u_zero = _block(seed, 0 * n, counter, sample, view)
    a, b, c, d = _block(seed, 0 * n + 1, counter, sample, view)
    e, f, g, h = _block(seed, 0 * n + 2, counter, sample, view)
    i, _, u_main, u_x = _block(seed, 0 * n + 3, counter, sample, view)
    u_y, u_z, u_mask, u_axis = _block(seed, 0 * n + 4, counter, sample, view)
    u_filter, u_sigma, u_flip, u_noise = _block(seed, 0 * n + 5, counter, sample, view)
    u_shift, u_reverse, u_masking, u_joints = _block(seed, 0 * n + 6, counter, sample, view)

    start, length = _crop(
        tl.load(p_frames + n).to(tl.int64), u_length, u_start, ratio_min, ratio_range, frames_min, RESIZED
    )
    tl.store(p_row + START, start.to(tl.float32))
    tl.store(p_row + LENGTH, length.to(tl.float32))
    places = (2 * padding + 1).to(tl.float32)
    tl.store(p_row + SHIFT, tl.minimum(tl.floor(places * u_shift), places - 1) - padding)
    tl.store(p_row + REVERSE, tl.where(u_reverse < reverse_probability, 1.0, 0.0))
    tl.store(p_row + CENTRE, centre.to(tl.float32))
    is_strong = ((STRONG >> view) & 1) == 1
    sigma = sigma_min + sigma_range * u_sigma
    is_filtered = is_strong & (u_filter < filter_probability)
    tl.store(p_row + FLIP, tl.where(is_strong & (u_flip < flip_probability), 1.0, 0.0))
    tl.store(p_row + STD, tl.where(is_strong & (u_noise < noise_probability), noise_std, 0.0))
    tl.store(p_row + SIGMA, tl.where(is_filtered, sigma, 0.0))
    tl.store(p_row + GAIN, tl.where(is_filtered, filter_gain, 0.0))
    axis = tl.floor(3 * u_axis).to(tl.int32)
    is_masking = is_strong & (u_mask < mask_probability)
    for k in tl.static_range(3):
        tl.store(p_row + SCALE + k, tl.where(is_masking & (axis == k), 0.0, 1.0))

    is_jitter, is_zero = u_kind < jitter_probability, u_zero < 0.5
    a, b, c = 2 * a - 1, 2 * b - 1, 2 * c - 1
    d, e, f = 2 * d - 1, 2 * e - 1, 2 * f - 1
    g, h, i = 2 * g - 1, 2 * h - 1, 2 * i - 1
    s = tl.where(is_jitter, 0.0, shear)
    pose = (0 * a + 1, s * b, s * c, s * d, 0 * a + 1, s * f, s * g, s * h, 0 * a + 1)
    z = tl.where(is_zero, 0.0, 1.0)
    jitter = (z * a, z * b, z * c, z * d, z * e, z * f, z * g, z * h, z * i)
    if is_strong:
        main = tl.floor(3 * u_main).to(tl.int32)
        if BOTH_WAYS:
            u_x, u_y, u_z = 2 * u_x - 1, 2 * u_y - 1, 2 * u_z - 1
        rotation = _rotation(
            tl.where(main == 0, degrees, minor_degrees) * u_x * TURN,
            tl.where(main == 1, degrees, minor_degrees) * u_y * TURN,
            tl.where(main == 2, degrees, minor_degrees) * u_z * TURN,
        )
        pose, jitter = _product(rotation, pose), _product(rotation, jitter)
    _store_matrix(p_row + POSE, pose)
    _store_matrix(p_row + JITTER, jitter)
    jittered = is_jitter & _jittered(seed, counter, sample, view, jitter_joints, V, BLOCK_V)
    o_v = tl.arange(0, BLOCK_V)
    tl.store(p_row + JITTERED + o_v, tl.where(jittered, 1.0, 0.0), mask=o_v < V)
    if MASKED:
        o_t = tl.arange(0, BLOCK_T)
        u_frames, _, _, _ = _block(seed, 0 * n + 7, counter, sample, view)
        of_joints = _count(joints_least, joints_choices, u_joints)
        of_frames = _count(frames_least, frames_choices, u_frames)
        joints = _smallest(o_v, 0 * n, V, of_joints, seed, counter, sample, view)
        frames = _smallest(o_t, 0 * n + V, MASKED, of_frames, seed, counter, sample, view)
        masking = u_masking < joint_mask_probability
        tl.store(p_row + JITTERED + V + o_v, tl.where(masking & joints, 1.0, 0.0), mask=o_v < V)
        tl.store(p_row + JITTERED + 2 * V + o_t, tl.where(masking & frames, 1.0, 0.0), mask=o_t < MASKED)


def draw(
    config: Any,
    frames: Tensor,
    num_joints: int,
    views: Sequence[int],
    strong: Sequence[int],
    seed: int,
    step: Tensor | int,
    sample: Tensor,
    padding: int,
    resized_to: int | None,
    masked: int = 0,
) -> Tensor:
    """The table (W, B, 30 + V) float32, or with a joint mask (W, B, 30 + 2 V + T), in one launch. config: a
    `fastmc.views.draw.AugmentConfig`; strong: numbers of the strong views; padding: frames; masked: T, or 0."""
    batch, on_device = len(frames), isinstance(step, Tensor)
    width = JITTERED.value + num_joints + (num_joints + masked if masked else 0)
    table = torch.empty(len(views), batch, width, device=frames.device)
    mask: tuple[Any, ...] = (None,) * 5
    if masked:
        of_joints, of_frames = config.masked_of(num_joints, masked)
        mask = (config.joint_mask_probability, *of_joints, *of_frames)
    _draw_kernel[(batch, len(views))](
        frames, sample, step if on_device else sample, table, seed, 0 if on_device else step, batch,
        config.crop_ratio_min, 1 - config.crop_ratio_min, config.crop_frames_min, padding,
        config.reverse_probability, -1 if config.centre_joint is None else config.centre_joint, config.shear,
        config.jitter_probability, config.jittered_of(num_joints), config.flip_probability, config.rotation_degrees,
        config.rotation_minor_degrees, config.noise_std, config.noise_probability, config.filter_sigma_min,
        config.filter_sigma_max - config.filter_sigma_min, config.filter_probability, float(config.filter_gain),
        config.axis_mask_probability, *mask, VIEWS=pack_views(views), STRONG=sum(1 << view for view in strong),
        BOTH_WAYS=config.rotation == "both-ways", STEP_ON_DEVICE=on_device, RESIZED=resized_to or 0, MASKED=masked,
        V=num_joints, BLOCK_V=triton.next_power_of_2(num_joints), BLOCK_T=triton.next_power_of_2(masked or 1),
        num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return table
