"""Views of skeleton clips in one launch: what `fastmc.views.make` describes, read once and written once.

A program makes one view of one clip. It loads each source frame that the view needs once, a coordinate at a time;
everything after that happens in registers and shared memory, on tiles of frames by (body, joint). At the end the three
coordinates are put side by side and each thread picks the elements that follow one another in the output, so that
stores are 128 bits wide although a frame of 150 numbers is no multiple of that. The same pick gives the streams: a
joint minus its parent, or the next frame minus this one.
"""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from kernels.draw import (
    CENTRE,
    FLIP,
    GAIN,
    JITTER,
    JITTERED,
    LENGTH,
    POSE,
    REVERSE,
    SCALE,
    SHIFT,
    SIGMA,
    START,
    STD,
    pack_views,
    read_word,
    sine_cosine,
    uniform,
    view_of,
)

NOISE_COUNTER = tl.constexpr(1 << 16)
SMALLEST_SIGMA = tl.constexpr(1e-6)  # frames: narrower filters do nothing, and its square must not vanish
REACH = tl.constexpr(7)  # frames, of the Gaussian filter's 15 taps
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _frames_shown(o_t, p_row, T: tl.constexpr):
    """Which frame of the resized crop frame o_t of the view shows: backwards or not, shifted, mirrored at both ends."""
    shift = tl.load(p_row + SHIFT).to(tl.int32)
    back = tl.load(p_row + REVERSE) > 0
    frame = tl.where(back, T - 1 + shift, shift) + tl.where(back, -1, 1) * o_t
    frame = tl.where(frame < 0, -1 - frame, frame)
    # Of a tile's frames behind the view's nobody asks; they must lie in the clip.
    return tl.maximum(tl.where(frame >= T, 2 * T - 1 - frame, frame), 0)


@triton.jit
def _positions(o_t, length, T: tl.constexpr):
    """Where frame o_t of T lies in a crop of ``length`` frames: the frame before it, the one after, the weight of the
    latter; as interpolate(align_corners=False) has it."""
    position = tl.maximum((o_t.to(tl.float32) + 0.5) * tl.div_rn(length.to(tl.float32), T * 1.0) - 0.5, 0.0)
    low = tl.minimum(tl.floor(position).to(tl.int32), length - 1)
    return low, tl.minimum(low + 1, length - 1), position - low.to(tl.float32)


@triton.jit
def _share(frame, weight, first, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr):
    """Where a frame (T,) is among the BLOCK_T from ``first`` on, as (T, P), and its weight (T, 1), 0 if it is not."""
    near = frame - first
    is_here = (near >= 0) & (near < BLOCK_T)
    index = tl.broadcast_to(tl.where(is_here, near, 0)[:, None], (BLOCK_T, BLOCK_P))
    return index, tl.where(is_here, weight, 0.0)[:, None]


@triton.jit
def _map_entry(p_row, ENTRY: tl.constexpr, column, jittered):
    """Entry (ENTRY, column) of the matrix of each joint (1, P), axis mask included."""
    entry = 3 * ENTRY + column
    value = tl.where(jittered, tl.load(p_row + JITTER + entry), tl.load(p_row + POSE + entry))
    return (value * tl.load(p_row + SCALE + ENTRY))[None, :]


@triton.jit
def _radius(word):
    """Of a Box-Muller pair. 1 - u lies in (0, 1]: the logarithm is finite."""
    return tl.sqrt(tl.log2(1.0 - uniform(word)) * (-2.0 * LN2))


@triton.jit
def _noise(seed, step, sample, view, o_t, o_m, o_v, V: tl.constexpr, M: tl.constexpr):
    """Standard normal x, y, z (T, P): a Philox block for each frame, joint and body."""
    block = ((o_t * (V * M) + NOISE_COUNTER)[:, None] + (o_v * M + o_m)[None, :]).to(tl.uint32)
    zero = block * 0
    w_0, w_1, w_2, w_3 = tl.philox(seed, block, zero + step, zero + sample, zero + view)
    radius, last_radius = _radius(w_0), _radius(w_2)
    sine, cosine = sine_cosine(uniform(w_1))
    _, last_cosine = sine_cosine(uniform(w_3))
    return radius * cosine, radius * sine, last_radius * last_cosine


@triton.jit
def _smooth(b_x, o_t, sigma, gain, T: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr):
    """A coordinate (T, P) filtered with Gaussian weights of 15 taps; where there is no gain, those that exist sum to
    one."""
    b_sum = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
    total = tl.zeros([BLOCK_T], tl.float32)
    for i_tap in range(2 * REACH + 1):
        tap = i_tap - REACH
        weight = tl.exp2((tap * tap) * (-0.5 * LOG2E / (sigma * sigma)))
        near = o_t + tap
        weights = tl.where((near >= 0) & (near < T), weight, 0.0)
        index = tl.minimum(tl.maximum(near, 0), T - 1)[:, None]
        b_sum += weights[:, None] * tl.gather(b_x, tl.broadcast_to(index, (BLOCK_T, BLOCK_P)), 0)
        total += weights
    return b_sum / tl.where(gain > 0, 1.0, total)[:, None]


@triton.jit
def _present(b_any, BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr):
    """Whether a body is there in a frame, that is any of its joints is not zero: (T, P), the same for all of them."""
    b_body = tl.max(tl.reshape(b_any.to(tl.int32), (BLOCK_T, BLOCK_M, BLOCK_V)), axis=2)
    b_all = tl.broadcast_to(b_body[:, :, None], (BLOCK_T, BLOCK_M, BLOCK_V))
    return tl.reshape(b_all, (BLOCK_T, BLOCK_M * BLOCK_V)) != 0


@triton.jit
def _pick(b_flat, t, m, v, c, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, SIZE: tl.constexpr):
    """Coordinate c of joint v of body m in frame t from a flat tile of (frame, body, joint, 4)."""
    return tl.gather(b_flat, tl.minimum(((t * BLOCK_M + m) * BLOCK_V + v) * 4 + c, SIZE - 1), 0)


@triton.jit(do_not_specialize=["seed", "step", "B"])
def _views_kernel(
    p_frames,  # packed (R, V, 3), or dense (B, FRAMES, V, M, 3)
    p_first,  # (B,) first row of a packed clip
    p_bodies,  # (B,)
    p_table,  # (W, B, JITTERED + V), or with a joint mask (W, B, JITTERED + 2 V + T)
    p_sample,  # (B,)
    p_step,  # 0-dim, where STEP_ON_DEVICE
    p_mirror,  # (V,)
    p_parents,  # (V,), where STREAM is bone
    p_out,  # (W, B, T, V, M, 3)
    seed,
    step,
    B,
    VIEWS: tl.constexpr,  # numbers of the W views, see pack_views
    STEP_ON_DEVICE: tl.constexpr,
    FRAMES: tl.constexpr,  # of a dense clip; 0 if they are packed
    CENTRED: tl.constexpr,  # whether a joint may be subtracted
    MASKED: tl.constexpr,  # whether there is a joint mask
    STREAM: tl.constexpr,
    T: tl.constexpr,
    V: tl.constexpr,
    M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_E: tl.constexpr,  # >= T * V * M * 3
):
    n, w = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if MASKED:
        p_row = p_table + (w * B + n) * (JITTERED + 2 * V + T)
    else:
        p_row = p_table + (w * B + n) * (JITTERED + V)
    start, length = tl.load(p_row + START).to(tl.int32), tl.load(p_row + LENGTH).to(tl.int32)
    bodies = tl.load(p_bodies + n).to(tl.int32)

    # Tiles are (frame, body * BLOCK_V + joint). A joint of the view may be another one of the source.
    BLOCK_P: tl.constexpr = BLOCK_M * BLOCK_V
    o_t, o_p = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_P)
    o_m, o_v = o_p // BLOCK_V, o_p % BLOCK_V
    is_joint = (o_v < V) & (o_m < bodies)
    mirrored = tl.load(p_mirror + o_v, mask=is_joint, other=0).to(tl.int32)
    source = tl.where(tl.load(p_row + FLIP) > 0, mirrored, o_v)

    # The source frames that are needed, each loaded once, BLOCK_T at a time: those of the crop; or, if it is more than
    # twice as long as the view, first those before, then those after the view's frames.
    low, high, weight = _positions(_frames_shown(o_t, p_row, T), length, T)
    is_long = length > 2 * T
    rows = tl.where(is_long, 2 * BLOCK_T, length)
    low_row, high_row = tl.where(is_long, o_t, low), tl.where(is_long, o_t + BLOCK_T, high)
    if FRAMES:
        p_clip = p_frames + n * (FRAMES * V * M * 3)
        frame_step = V * M * 3
        joint_step = M * 3
        o_body = o_m * 3
    else:
        p_clip = p_frames + tl.load(p_first + n).to(tl.int64) * (V * 3)
        frame_step = bodies * (V * 3)
        joint_step = 3
        o_body = o_m * (V * 3)
    o_source = o_body + source * joint_step
    p_clip += start.to(tl.int64) * frame_step
    if CENTRED:
        centre = tl.load(p_row + CENTRE).to(tl.int32)
    jittered = tl.load(p_row + JITTERED + source, mask=is_joint, other=0.0) > 0
    b_x = tl.zeros([BLOCK_T, BLOCK_P], tl.float32)
    b_y, b_z, b_any = b_x, b_x, b_x != 0
    for i_first in range(0, rows, BLOCK_T):
        frame = tl.where(is_long, tl.where(i_first == 0, low, high), i_first + o_t)
        is_needed = tl.where(is_long, o_t < T, frame < length)
        b_offsets = (frame * frame_step)[:, None] + o_source[None, :]
        mask = is_needed[:, None] & is_joint[None, :]
        b_low, low_weight = _share(low_row, 1.0 - weight, i_first, BLOCK_T, BLOCK_P)
        b_high, high_weight = _share(high_row, weight, i_first, BLOCK_T, BLOCK_P)
        for i_axis in range(3):  # a loop, so that one coordinate's frames are held at a time
            b_rows = tl.load(p_clip + b_offsets + i_axis, mask=mask, other=0.0).to(tl.float32)
            b_s = tl.gather(b_rows, b_low, 0) * low_weight + tl.gather(b_rows, b_high, 0) * high_weight
            b_any |= b_s != 0
            if CENTRED:  # the same joint of all: out of the cache
                b_centre = (frame * frame_step)[:, None] + (o_body + centre * joint_step)[None, :]
                b_rows = tl.load(p_clip + b_centre + i_axis, mask=mask & (centre >= 0), other=0.0).to(tl.float32)
                b_s -= tl.gather(b_rows, b_low, 0) * low_weight + tl.gather(b_rows, b_high, 0) * high_weight
            b_x += _map_entry(p_row, 0, i_axis, jittered) * b_s
            b_y += _map_entry(p_row, 1, i_axis, jittered) * b_s
            b_z += _map_entry(p_row, 2, i_axis, jittered) * b_s
    present = _present(b_any, BLOCK_T, BLOCK_M, BLOCK_V)

    std = tl.load(p_row + STD)
    if std > 0:
        sample = read_word(p_sample + n)
        counter = read_word(p_step) if STEP_ON_DEVICE else step.to(tl.uint32)
        n_x, n_y, n_z = _noise(seed, counter, sample, view_of(VIEWS, w), o_t, o_m, o_v, V, M)
        b_x += n_x * (std * tl.load(p_row + SCALE))
        b_y += n_y * (std * tl.load(p_row + SCALE + 1))
        b_z += n_z * (std * tl.load(p_row + SCALE + 2))
    sigma = tl.load(p_row + SIGMA)
    if sigma > 0:
        sigma = tl.maximum(sigma, SMALLEST_SIGMA)
        gain = tl.load(p_row + GAIN)
        b_x = _smooth(b_x, o_t, sigma, gain, T, BLOCK_T, BLOCK_P)
        b_y = _smooth(b_y, o_t, sigma, gain, T, BLOCK_T, BLOCK_P)
        b_z = _smooth(b_z, o_t, sigma, gain, T, BLOCK_T, BLOCK_P)
    if MASKED:
        joint = tl.load(p_row + JITTERED + V + o_v, mask=is_joint, other=0.0) > 0
        in_frame = tl.load(p_row + JITTERED + 2 * V + o_t, mask=o_t < T, other=0.0) > 0
        present = present & ~(in_frame[:, None] & joint[None, :])
    b_x, b_y, b_z = tl.where(present, b_x, 0.0), tl.where(present, b_y, 0.0), tl.where(present, b_z, 0.0)

    # x, y, z, x side by side; then elements as they follow one another in the output.
    SIZE: tl.constexpr = BLOCK_T * BLOCK_M * BLOCK_V * 4
    b_flat = tl.reshape(tl.join(tl.join(b_x, b_z), tl.join(b_y, b_x)), (SIZE,))
    o_e = tl.arange(0, BLOCK_E)
    t, v, m, c = o_e // (V * M * 3), (o_e // (M * 3)) % V, (o_e // 3) % M, o_e % 3
    b_out = _pick(b_flat, t, m, v, c, BLOCK_M, BLOCK_V, SIZE)
    if STREAM == "motion":
        b_out = tl.where(t + 1 < T, _pick(b_flat, t + 1, m, v, c, BLOCK_M, BLOCK_V, SIZE) - b_out, 0.0)
    if STREAM == "bone":
        o_j = tl.arange(0, BLOCK_V)
        parents = tl.load(p_parents + o_j, mask=o_j < V, other=0).to(tl.int32)
        parent = tl.gather(parents, v, 0)
        b_out -= _pick(b_flat, t, m, parent, c, BLOCK_M, BLOCK_V, SIZE)
    p_view = p_out + (w * B + n) * (T * V * M * 3)
    tl.store(p_view + o_e, b_out.to(p_out.dtype.element_ty), mask=o_e < T * V * M * 3)


def make_views(
    frames: Tensor,
    first: Tensor | None,
    num_bodies: Tensor,
    table: Tensor,
    sample: Tensor,
    views: Sequence[int],
    seed: int,
    step: Tensor | int,
    mirror: Tensor,
    parents: Tensor | None,
    bodies: int,
    centred: bool,
    masked: bool,
    stream: str,
    out: Tensor,
) -> None:
    """Write the views to ``out`` (W, B, T, V * M * 3), in one launch.

    Args:
        frames: packed (R, V, 3) with the clips' ``first`` rows (B,); or dense (B, T', V * M * 3), contiguous, and None.
        table, sample, views, seed, step: of `fastmc.views.draw.ViewParams`.
        mirror, parents: (V,) int64; parents may be None but for stream "bone".
        bodies: M. centred: whether the table has joints to subtract. masked: whether it has a joint mask.
    """
    (width, batch, size, _), joints, dense = out.shape, len(mirror), first is None
    block_t, block_v, block_m = (triton.next_power_of_2(n) for n in (size, joints, bodies))
    on_device = isinstance(step, Tensor)
    _views_kernel[(batch, width)](
        frames, num_bodies if first is None else first, num_bodies, table, sample, step if on_device else sample,
        mirror, mirror if parents is None else parents, out, seed, 0 if on_device else step, batch,
        VIEWS=pack_views(views), STEP_ON_DEVICE=on_device, FRAMES=frames.shape[1] if dense else 0, CENTRED=centred,
        MASKED=masked, STREAM=stream, T=size, V=joints, M=bodies, BLOCK_T=block_t, BLOCK_V=block_v, BLOCK_M=block_m,
        BLOCK_E=triton.next_power_of_2(size * joints * bodies * 3),
        num_warps=min(16, max(4, block_t * block_v * block_m // 256)),
    )  # fmt: skip
