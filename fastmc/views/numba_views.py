"""Parameters and views of clips on a CPU, compiled by numba: what `fastmc.views.draw` and `fastmc.views.make` say,
fused.

PyTorch on a CPU needs some sixty operators for a table of parameters, and passes over all views for every transform.
Here a view is made from beginning to end while it is in the cache, and what it does not need is left out: a body that
is not there, a noise or a filter that was not drawn. Threads take clips from a common list, as many threads as PyTorch
uses; a view is the same bits whichever thread makes it.

The arithmetic is float32 in the order of the other implementations. In a compiled function a Python number is double
precision and would make its neighbours so: constants are float32 from the start.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeAlias

import numba
import numpy as np
import torch
from torch import Tensor

from fastmc.skeleton import Skeleton
from fastmc.views.clips import DenseClips, PackedClips
from fastmc.views.draw import COLUMNS, FILTER_TAPS, MASK_COUNTER, NOISE_COUNTER, AugmentConfig, ViewParams
from kernels import cpu

log = logging.getLogger("fastmc")
_compiling = threading.Lock()
PART = 4  # clips that a thread takes at a time
Array: TypeAlias = np.ndarray


def _compiled(function: Callable[..., Any], *, contract: bool = False, inline: bool = False) -> Any:
    """numba's njit, kept on disk where it finds a folder to write to.

    contract: products and sums may become fused ones. Not where a floor follows, which a last bit can change.
    inline: always; for what LLVM finds too long for it, though it keeps the loop around it from being vectorised.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "inline": "always" if inline else "never"}
    options["fastmath"] = {"contract"} if contract else False
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither the package's folder nor the user's can be written to
        return numba.njit(**options)(function)


_fused = functools.partial(_compiled, contract=True)


class _Source(NamedTuple):
    """Either kind of clips: coordinate k of joint v of body m in frame t of clip n is element
    ``begin[n] + t * pitch[n] + v * joint_pitch + m * body_pitch + k``."""

    elements: Array
    begin: Array
    pitch: Array
    bodies: Array
    joint_pitch: int
    body_pitch: int

    @staticmethod
    def of(clips: PackedClips | DenseClips, joints: int) -> _Source:
        bodies = _integers(clips.num_bodies)
        if isinstance(clips, PackedClips):
            elements = clips.frames.detach().contiguous().view(-1).numpy()
            width = joints * 3
            return _Source(elements, _integers(clips.start) * width, bodies * width, bodies, 3, width)
        batch, frames, width = clips.x.shape
        begin = np.arange(batch) * (frames * width)
        elements = clips.x.detach().contiguous().view(-1).numpy()
        return _Source(elements, begin, np.full(batch, width), bodies, clips.max_bodies * 3, 3)


def _integers(tensor: Tensor) -> Array:
    """Contiguous int64: another layout or dtype would be compiled for anew."""
    return tensor.to(torch.int64).contiguous().numpy()


class _Columns(NamedTuple):
    """Where each column of a parameter table starts. An argument rather than constants: numba's cache on disk does not
    notice that another file's constants have changed."""

    crop_start: int
    crop_length: int
    shift: int
    reverse: int
    centre: int
    flip: int
    noise_std: int
    filter_sigma: int
    filter_gain: int
    axis_scale: int
    pose: int
    jitter: int
    jittered: int


class _Strength(NamedTuple):
    """What AugmentConfig says, for so many joints and frames."""

    crop_ratio_min: float
    crop_frames_min: int
    padding: int
    reverse_probability: float
    centre: int
    shear: float
    jitter_probability: float
    jittered: int
    flip_probability: float
    rotation_degrees: float
    rotation_minor_degrees: float
    both_ways: bool
    noise_std: float
    noise_probability: float
    filter_sigma_min: float
    filter_sigma_max: float
    filter_probability: float
    filter_gain: bool
    axis_mask_probability: float
    joint_mask_probability: float
    joints: int
    masked: int
    masked_joints: tuple[int, int]
    masked_frames: tuple[int, int]
    mask_counter: int

    @staticmethod
    def of(config: AugmentConfig, joints: int, padding: int, masked: int) -> _Strength:
        of_joints, of_frames = config.masked_of(joints, masked)
        derived: dict[str, Any] = {
            "joints": joints,
            "masked": masked,
            "masked_joints": of_joints,
            "masked_frames": of_frames,
            "mask_counter": MASK_COUNTER,
            "padding": padding,
            "centre": -1 if config.centre_joint is None else config.centre_joint,
            "jittered": config.jittered_of(joints),
            "both_ways": config.rotation == "both-ways",
        }
        return _Strength(**{name: derived.get(name, getattr(config, name, 0)) for name in _Strength._fields})


class _Key(NamedTuple):
    """The words of Philox's key and counter that the clips of a batch share, uint64 below 2^32."""

    low: np.uint64
    high: np.uint64
    step: np.uint64

    @staticmethod
    def of(seed: int, step: Tensor | int) -> _Key:
        words = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, int(step) & 0xFFFFFFFF)
        return _Key(*map(np.uint64, words))


COLUMN_STARTS = _Columns(**{name: columns.start for name, columns in COLUMNS.items()})


def draw(
    config: AugmentConfig,
    num_frames: Tensor,
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
    """The table (W, B, 30 + V) float32 of ``fastmc.views.draw.draw_params``, or with a joint mask (W, B, 30 + 2 V + T).
    strong: numbers of the strong views; padding: frames; masked: T, or 0."""
    width = COLUMNS["jittered"].start + num_joints + (num_joints + masked if masked else 0)
    table = torch.empty(len(views), len(num_frames), width)
    _noted(
        _draw,
        table.numpy(),
        COLUMN_STARTS,
        _Strength.of(config, num_joints, padding, masked),
        _integers(num_frames),
        np.array(views, dtype=np.int64),
        np.array([view in strong for view in views]),
        _Key.of(seed, step),
        _integers(sample),
        resized_to or 0,
    )
    return table


def make_views(
    clips: PackedClips | DenseClips, params: ViewParams, skeleton: Skeleton, stream: str, out: Tensor
) -> None:
    """Write the views into ``out`` (W, B, T, V * M * 3) of any floating dtype. The clips are float32 on the CPU.

    Raises:
        IndexError: a crop reaches out of the array of frames.
    """
    made = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    arguments = (
        _Source.of(clips, skeleton.num_joints),
        params.table.contiguous().numpy(),
        COLUMN_STARTS,
        np.array(params.views, dtype=np.int64),
        _Key.of(params.seed, params.step),
        _integers(params.sample),
        NOISE_COUNTER,
        FILTER_TAPS // 2,
        np.array(skeleton.mirror, dtype=np.int64),
        np.array(skeleton.parents if stream == "bone" else (), dtype=np.int64),
        stream == "motion",
        made.view(*made.shape[:3], skeleton.num_joints, clips.max_bodies, 3).numpy(),
    )
    _in_parallel(lambda first, last: _noted(_make_part, first, last, *arguments), len(clips))
    if made is not out:
        out.copy_(made)


def _noted(function: Any, *arguments: Any) -> None:
    """Call a compiled function, and say so if it took a compilation."""
    if function.signatures:
        function(*arguments)
        return
    with _compiling:  # other threads would wait for the compiler anyway, and say so again
        new, start = not function.signatures, time.perf_counter()
        function(*arguments)
    if new and not function.stats.cache_hits:
        name, seconds = function.__name__.strip("_"), time.perf_counter() - start
        place = function.stats.cache_path or "memory alone: no folder for it can be written to"
        log.info("compiled %s of views for this CPU in %.1f s, kept in %s", name, seconds, place)


# --- Threads. Not numba's own: its workqueue aborts when two Python threads meet in it, and its OpenMP does so in a
# forked process.


def _in_parallel(work: Callable[[int, int], None], count: int) -> None:
    """work(first, last) for consecutive parts of range(count), by as many threads as PyTorch uses."""
    parts = iter(range(0, count, PART))  # shared: whoever is free takes the next

    def take_parts() -> None:
        for first in parts:
            work(first, min(first + PART, count))

    threads = min(cpu.threads(), -(-count // PART))
    helpers = [_pool(threads - 1).submit(take_parts) for _ in range(threads - 1)]
    take_parts()
    for helper in helpers:
        if not helper.cancel():  # one that has not begun is not waited for
            helper.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="fastmc-views")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


# --- Random numbers

_MASK, _8, _32 = np.uint64(0xFFFFFFFF), np.uint64(8), np.uint64(32)
_MULTIPLIER_A, _MULTIPLIER_B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_A, _WEYL_B = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_ULP = np.float32(2.0**-24)
_ZERO, _HALF, _ONE, _TWO, _THREE = (np.float32(value) for value in (0, 0.5, 1, 2, 3))
_SMALLEST_SIGMA = np.float32(1e-6)


@functools.partial(_compiled, inline=True)
def _philox(key, a, b, c, d):
    """Four words, uint64 below 2^32; see fastmc.random.philox."""
    key_a, key_b = key.low, key.high
    for _ in range(10):
        product_a, product_c = a * _MULTIPLIER_A, c * _MULTIPLIER_B
        a, b = (product_c >> _32) ^ b ^ key_a, product_c & _MASK
        c, d = (product_a >> _32) ^ d ^ key_b, product_a & _MASK
        key_a, key_b = (key_a + _WEYL_A) & _MASK, (key_b + _WEYL_B) & _MASK
    return a, b, c, d


@_compiled
def _philox_blocks(key, first, pitch, sample, view, words):
    """words (4, n) uint32 of the blocks with the numbers first, first + pitch, ... below 2^32."""
    for i in range(words.shape[1]):
        a, b, c, d = _philox(key, first + pitch * np.uint64(i), key.step, sample & _MASK, view)
        words[0, i], words[1, i], words[2, i], words[3, i] = np.uint32(a), np.uint32(b), np.uint32(c), np.uint32(d)


@_compiled
def _uniform(word):
    """See fastmc.random.uniform."""
    return np.float32(np.int32(word >> _8)) * _ULP


_LOG = tuple(
    np.float32(c)
    for c in (
        7.0376836292e-2,
        -1.1514610310e-1,
        1.1676998740e-1,
        -1.2420140846e-1,
        1.4249322787e-1,
        -1.6668057665e-1,
        2.0000714765e-1,
        -2.4999993993e-1,
        3.3333331174e-1,
    )
)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_SQRT_HALF, _SQRT_HALF_BITS, _MANTISSA = np.float32(math.sqrt(0.5)), np.int32(0x3F3504F3), np.int32(0x7FFFFF)
_SIN = tuple(np.float32(c) for c in (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1))
_COS = tuple(np.float32(c) for c in (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2))
_TWO_PI, _QUARTER, _FOUR = np.float32(2 * math.pi), np.float32(0.25), np.float32(4)


@_fused
def _log(x):
    """Natural logarithm of a positive normal float32: Cephes' polynomial on [sqrt(1/2), sqrt(2)). Without a call, so
    that a loop of it is vectorised."""
    bits = np.int32(np.float32(x).view(np.int32) - _SQRT_HALF_BITS)
    exponent = np.int32(bits >> 23)
    m = np.int32((bits & _MANTISSA) + _SQRT_HALF_BITS).view(np.float32) - _ONE
    p = _LOG[0]
    for c in _LOG[1:]:
        p = p * m + c
    square, e = m * m, np.float32(exponent)
    return m + ((p * m * square + _LN2_LOW * e) - _HALF * square) + _LN2_HIGH * e


@_fused
def _cos_sin(turn):
    """Cosine and sine of 2 pi turn, turn in [0, 1): by its distance to the nearest quarter, which is exact."""
    quarter = np.int32(_FOUR * turn + _HALF)
    angle = (turn - _QUARTER * np.float32(quarter)) * _TWO_PI
    square = angle * angle
    sin = ((_SIN[0] * square + _SIN[1]) * square + _SIN[2]) * square * angle + angle
    cos = ((_COS[0] * square + _COS[1]) * square + _COS[2]) * square * square - _HALF * square + _ONE
    swap = (quarter & 1) != 0
    x, y = sin if swap else cos, cos if swap else sin
    return -x if ((quarter + 1) & 2) != 0 else x, -y if (quarter & 2) != 0 else y


@_fused
def _normals(words, normals):
    """The first three of fastmc.random.normal's four numbers of each block: (4, n) uint32 to (3, n) float32."""
    for i in range(normals.shape[1]):
        radius = np.sqrt(-_TWO * _log(_ONE - _uniform(words[0, i])))
        cos, sin = _cos_sin(_uniform(words[1, i]))
        normals[0, i], normals[1, i] = radius * cos, radius * sin
        radius = np.sqrt(-_TWO * _log(_ONE - _uniform(words[2, i])))
        cos, sin = _cos_sin(_uniform(words[3, i]))
        normals[2, i] = radius * cos


# --- Views


@_compiled
def _make_part(
    first, last, source, table, columns, views, key, sample, noise_counter, reach, mirror, parents, motion, out
):
    """All views of clips [first, last): out[:, first:last] of (W, B, T, V, M, 3)."""
    size, joints, bodies = out.shape[2:5]
    row, maps = np.empty(joints * bodies * 3, np.float32), np.empty((joints, 9), np.float32)
    places, present = np.empty(joints, np.int64), np.empty((size, bodies), np.bool_)
    words, normals = np.empty((4, size * joints), np.uint32), np.empty((3, size * joints), np.float32)
    weights, memory = np.empty(reach + 1, np.float32), np.empty((size, row.size), np.float32)
    for n in range(first, last):
        count = min(source.bodies[n], bodies)
        for w in range(len(views)):
            x, params = out[w, n], table[w, n]
            flat = x.reshape(size, row.size)
            std, sigma = params[columns.noise_std], params[columns.filter_sigma]
            _choose_maps(params, columns, mirror, maps, places)
            if count < bodies:
                x[:] = 0
            if count > 0:
                _resize(source, n, count, params, columns, joints, memory, present)
            for m in range(count):
                if params[columns.centre] >= 0:
                    _subtract_joint(memory, source, m, np.int64(params[columns.centre]), joints)
                _map(memory, source, m, maps, places, x)
            if std > 0:
                scale = params[columns.axis_scale : columns.axis_scale + 3]
                for m in range(count):
                    number = np.uint64(noise_counter + m)
                    _philox_blocks(key, number, np.uint64(bodies), np.uint64(sample[n]), np.uint64(views[w]), words)
                    _normals(words, normals)
                    _add_noise(x, m, normals, std, scale)
            if sigma > 0:
                _filter(flat, sigma, params[columns.filter_gain] > 0, weights, memory)
            if std > 0 or sigma > 0:
                _restore_missing(x, count, present)
            if len(params) > columns.jittered + joints:
                _mask_joints(x, params[columns.jittered + joints :])
            if motion:
                _to_motion(flat)
            if len(parents):
                _to_bones(flat, parents, row)


@_compiled
def _choose_maps(params, columns, mirror, maps, places):
    """maps (V, 9) and places (V,): joint v of the view is maps[v] times joint places[v] of the clip.

    The maps hold the axis mask too, which only scales coordinates: it may come before noise and filter, if the noise is
    scaled as well.
    """
    for v in range(len(places)):
        places[v] = mirror[v] if params[columns.flip] > 0 else v
        chosen = columns.jitter if params[columns.jittered + places[v]] > 0 else columns.pose
        for i in range(9):
            maps[v, i] = params[chosen + i] * params[columns.axis_scale + i // 3]


@_compiled
def _frame_shown(t, size, shift, reverse):
    """Which frame of the resized crop frame t of a view shows; see fastmc.views.torch_views._frames_shown."""
    frame = (size - 1 - t if reverse > 0 else t) + np.int64(shift)
    frame = -1 - frame if frame < 0 else frame
    return 2 * size - 1 - frame if frame >= size else frame


@_compiled
def _position(t, size, length):
    """The two frames of a crop that frame t of its resized form lies between, and the second one's weight; see
    fastmc.views.make._crop_frames."""
    position = max((np.float32(t) + _HALF) * (length / np.float32(size)) - _HALF, _ZERO)
    low = min(np.floor(position), length - _ONE)
    high = min(low + _ONE, length - _ONE)
    return np.int64(low), np.int64(high), position - low


@_fused
def _resize(source, n, count, params, columns, joints, resized, present):
    """Fill resized (T, V * M * 3) with the crop of clip n, in the order of its source, and present (T, M) with the
    bodies that are not all zero.

    A line is a slice of its own: an index into the whole array that might be negative, as numba sees it, keeps the loop
    from being vectorised.
    """
    size = len(resized)
    start, length, pitch = np.int64(params[columns.crop_start]), params[columns.crop_length], source.pitch[n]
    begin = source.begin[n] + start * pitch
    width = (count - 1) * source.body_pitch + (joints - 1) * source.joint_pitch + 3
    end = begin + (np.int64(length) - 1) * pitch + width
    if not (length >= 1 and 0 <= source.begin[n] <= begin and end <= source.elements.size):
        raise IndexError("a crop reaches out of the array of frames")
    shift, reverse = params[columns.shift], params[columns.reverse]
    for t in range(size):
        low, high, weight = _position(_frame_shown(t, size, shift, reverse), size, length)
        before, after = source.elements[begin + low * pitch :], source.elements[begin + high * pitch :]
        line = resized[t]
        for i in range(width):
            line[i] = before[i] + weight * (after[i] - before[i])
        for m in range(count):
            present[t, m] = _is_present(line[m * source.body_pitch :], joints, source.joint_pitch)


@_compiled
def _is_present(body, joints, joint_pitch):
    for v in range(joints):
        for k in range(3):
            if body[v * joint_pitch + k] != 0:
                return True
    return False


@_compiled
def _subtract_joint(resized, source, m, joint, joints):
    """From all joints of body m in resized (T, V * M * 3), itself last."""
    first = m * source.body_pitch
    for t in range(len(resized)):
        body = resized[t, first:]
        for k in range(3):
            centre = body[joint * source.joint_pitch + k]
            for v in range(joints):
                body[v * source.joint_pitch + k] -= centre


@_fused
def _map(resized, source, m, maps, places, x):
    """Fill body m of x (T, V, M, 3). Joint by joint, so that its map stays in registers."""
    for v in range(len(places)):
        first = m * source.body_pitch + places[v] * source.joint_pitch
        joint = resized[:, first : first + 3]
        p = maps[v]
        p0, p1, p2, p3, p4, p5, p6, p7, p8 = p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8]
        for t in range(len(x)):
            a, b, c = joint[t, 0], joint[t, 1], joint[t, 2]
            x[t, v, m, 0] = p0 * a + p1 * b + p2 * c
            x[t, v, m, 1] = p3 * a + p4 * b + p5 * c
            x[t, v, m, 2] = p6 * a + p7 * b + p8 * c


@_fused
def _add_noise(x, m, normals, std, scale):
    """Add the standard normal numbers (3, T * V) times std * scale to body m of x (T, V, M, 3)."""
    size, joints = x.shape[:2]
    for k in range(3):
        amplitude = std * scale[k]
        for t in range(size):
            for v in range(joints):
                x[t, v, m, k] += amplitude * normals[k, t * joints + v]


@_fused
def _filter(x, sigma, gain, weights, copy):
    """Gaussian filter of x (T, n) in time, in place; see fastmc.views.make._filter_weights. copy: memory like x."""
    reach, size = len(weights) - 1, len(x)
    for tap in range(reach + 1):
        weights[tap] = np.exp(-np.float32(tap * tap) / (_TWO * max(sigma, _SMALLEST_SIGMA) ** 2))
    for t in range(size):
        for i in range(x.shape[1]):
            copy[t, i], x[t, i] = x[t, i], _ZERO
    for t in range(size):
        near = range(max(0, t - reach), min(size, t + reach + 1))
        total = _ZERO
        for s in near:
            total += weights[abs(s - t)]
        line = x[t]
        for s in near:
            weight, other = weights[abs(s - t)] / (_ONE if gain else total), copy[s]
            for i in range(len(line)):
                line[i] += weight * other[i]


@_compiled
def _restore_missing(x, count, present):
    """Bodies that are missing in a frame are zero again. A NaN that the filter spread stays, as elsewhere."""
    for t in range(len(x)):
        for m in range(count):
            for v in range(0 if present[t, m] else x.shape[1]):
                for k in range(3):
                    x[t, v, m, k] *= _ZERO


@_compiled
def _mask_joints(x, chosen):
    """Zero where a joint and a frame of x (T, V, M, 3) are chosen (V + T,)."""
    size, joints = x.shape[:2]
    for t in range(size):
        if chosen[joints + t] > 0:
            for v in range(joints):
                if chosen[v] > 0:
                    x[t, v] = 0


@_compiled
def _to_motion(x):
    """x: (T, n)."""
    for t in range(len(x) - 1):
        for i in range(x.shape[1]):
            x[t, i] = x[t + 1, i] - x[t, i]
    x[-1] = 0


@_compiled
def _to_bones(x, parents, row):
    """x: (T, V * M * 3). row: memory for a frame."""
    width = x.shape[1] // len(parents)
    for t in range(len(x)):
        for i in range(len(row)):
            row[i] = x[t, i]
        for i in range(len(row)):
            x[t, i] -= row[parents[i // width] * width + i % width]


# --- Parameters


@_compiled
def _draw(table, columns, strength, num_frames, views, strong, key, sample, resized_to):
    """Fill the table (W, B, P); see fastmc.views.draw.draw_params. resized_to: 0 for None."""
    joints = strength.joints
    words, mask_words = (
        np.empty((4, 8 + (joints + 3) // 4), np.uint32),
        np.empty((4, (joints + strength.masked + 3) // 4), np.uint32),
    )
    u, order = np.empty(words.size, np.float32), np.empty(mask_words.size, np.float32)
    for w in range(len(views)):
        for n in range(len(sample)):
            _philox_blocks(key, np.uint64(0), np.uint64(1), np.uint64(sample[n]), np.uint64(views[w]), words)
            for i in range(u.size):
                u[i] = _uniform(words[i % 4, i // 4])
            row = table[w, n]
            row[:] = 0
            _draw_crop(row, columns, strength, num_frames[n], resized_to, u)
            _draw_window(row, columns, strength, u)
            _draw_basic(row, columns, strength, u)
            if strong[w]:
                _draw_strong(row, columns, strength, u)
            if strength.masked > 0 and u[26] < np.float32(strength.joint_mask_probability):
                first, one = np.uint64(strength.mask_counter), np.uint64(1)
                _philox_blocks(key, first, one, np.uint64(sample[n]), np.uint64(views[w]), mask_words)
                for i in range(order.size):
                    order[i] = _uniform(mask_words[i % 4, i // 4])
                place = columns.jittered + joints
                _draw_smallest(row[place : place + joints], strength.masked_joints, u[27], order[:joints])
                of_frames = order[joints : joints + strength.masked]
                _draw_smallest(row[place + joints :], strength.masked_frames, u[28], of_frames)


@_compiled
def _draw_crop(row, columns, strength, frames, resized_to, u):
    smallest, share = np.float32(strength.crop_ratio_min), np.float32(1 - strength.crop_ratio_min)
    length = np.int64(np.floor(np.float32(frames) * (smallest + share * u[0])))
    length = min(max(length, min(frames, strength.crop_frames_min)), frames)
    start = min(np.int64(np.floor(np.float32(frames - length + 1) * u[1])), frames - length)
    if resized_to > 0:
        length = min(max((2 * length * resized_to + frames) // (2 * frames), 1), resized_to)
        start = min(start * resized_to // frames, resized_to - length)
    row[columns.crop_start], row[columns.crop_length] = start, length


@_compiled
def _draw_window(row, columns, strength, u):
    places = 2 * strength.padding + 1
    shift = min(np.int64(np.floor(np.float32(places) * u[24])), places - 1) - strength.padding
    row[columns.shift], row[columns.centre] = shift, strength.centre
    row[columns.reverse] = u[25] < np.float32(strength.reverse_probability)


@_compiled
def _draw_basic(row, columns, strength, u):
    is_jitter, is_zeroing = u[2] < np.float32(strength.jitter_probability), u[3] < _HALF
    shear = np.float32(strength.shear)
    row[columns.axis_scale : columns.axis_scale + 3] = 1
    for i in range(9):
        signed = _TWO * u[4 + i] - _ONE
        on_diagonal = i % 4 == 0
        row[columns.pose + i] = _ONE if on_diagonal else _ZERO if is_jitter else shear * signed
        row[columns.jitter + i] = _ZERO if is_zeroing else signed
    if is_jitter:
        for v in range(strength.joints):
            row[columns.jittered + v] = _rank(u[32 : 32 + strength.joints], v) < strength.jittered


@_compiled
def _draw_smallest(chosen, counts, u, order):
    """1 for the smallest of ``order``, so many of ``counts`` as u says, see fastmc.views.draw._mask; else 0."""
    least, choices = counts
    count = least + min(np.int64(np.floor(np.float32(choices) * u)), choices - 1)
    for i in range(len(order)):
        chosen[i] = _rank(order, i) < count


@_compiled
def _rank(u, v):
    """See fastmc.views.draw._rank."""
    before = 0
    for other in range(len(u)):
        before += u[other] < u[v] or (u[other] == u[v] and other < v)
    return before


@_compiled
def _draw_strong(row, columns, strength, u):
    """Make a basic row a strong one."""
    degree, angles = np.float32(math.pi / 180), np.empty(3, np.float32)
    main, masked = np.floor(_THREE * u[14]), np.floor(_THREE * u[19])
    for axis in range(3):
        largest = strength.rotation_degrees if axis == main else strength.rotation_minor_degrees
        turn = _TWO * u[15 + axis] - _ONE if strength.both_ways else u[15 + axis]
        angles[axis] = np.float32(largest) * turn * degree
    if u[18] < np.float32(strength.axis_mask_probability):
        row[columns.axis_scale + np.int64(masked)] = 0
    _rotate(row[columns.pose : columns.pose + 9], angles)
    _rotate(row[columns.jitter : columns.jitter + 9], angles)
    row[columns.flip] = u[22] < np.float32(strength.flip_probability)
    if u[23] < np.float32(strength.noise_probability):
        row[columns.noise_std] = strength.noise_std
    if u[20] < np.float32(strength.filter_probability):
        smallest = np.float32(strength.filter_sigma_min)
        row[columns.filter_sigma] = smallest + np.float32(strength.filter_sigma_max - strength.filter_sigma_min) * u[21]
        row[columns.filter_gain] = strength.filter_gain


@_compiled
def _rotate(matrix, angles):
    """R_z R_y R_x times a matrix (9,), in place: one axis after the other, as fastmc.reference.augment.rotate."""
    for axis in range(3):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        cos, sin = np.cos(angles[axis]), np.sin(angles[axis])
        for k in range(3):
            a, b = matrix[3 * i + k], matrix[3 * j + k]
            matrix[3 * i + k], matrix[3 * j + k] = cos * a - sin * b, sin * a + cos * b
