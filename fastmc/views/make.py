"""Views of skeleton clips: a deterministic function of packed frames and of parameters (`fastmc.views.draw`).

A view is born in the encoder's layout (B, T, V * M * 3): joints outermost, then bodies, then x, y, z. In this order:
temporal crop-resize, the linear map of each joint (shear or jittering, rotation), flip, noise, Gaussian filter in time,
axis mask; a body that is missing in a frame stays exactly zero. ``fastmc.reference.augment`` says the same one clip and
one transform at a time; kernels/views.py does it in one launch, and `fastmc.views.numba_views` in one pass on a CPU.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmc.arguments import check_choice, choose_for_views, may_look, plainly
from fastmc.random import normal, philox
from fastmc.reference import augment as reference
from fastmc.skeleton import Skeleton
from fastmc.views.clips import STREAMS, DenseClips, PackedClips, Stream
from fastmc.views.draw import COLUMNS, FILTER_TAPS, NOISE_COUNTER, ViewParams, identity_params, view_numbers


def make_views(
    source: PackedClips | DenseClips,
    params: ViewParams,
    skeleton: Skeleton,
    *,
    size: int = 64,
    stream: Stream = "joint",
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Make W views of each of B clips.

    Args:
        source: the clips.
        params: W views of these clips, whose crops count in the frames of ``source``.
        skeleton: what a flip swaps, and the bones.
        size: T, frames of a view.
        stream: joint coordinates; motion, the next frame minus this one, zero in the last; or bone, a joint minus its
            parent.
        dtype: of the views. All arithmetic is float32.
        out: where to write them, contiguous (W, B, T, V * M * 3) of this dtype; fresh memory if None.
        impl: "triton", "numba", "torch", "reference", or "auto": triton on a GPU and numba on a CPU where they can run,
            and torch elsewhere. numba takes clips in float32.

    Returns:
        (W, B, T, V * M * 3), without gradient.

    Raises:
        ValueError: an unknown stream, bones of a layout whose bones are unknown, parameters of other clips.
        RuntimeError: impl="triton" or "numba" cannot run.
    """
    check_choice("stream", stream, STREAMS)
    if stream == "bone" and not skeleton.parents:
        raise ValueError(f"stream='bone' needs the parents of joint layout {skeleton.name!r}, which are unknown")
    if len(source) != params.table.shape[1] or params.num_joints != skeleton.num_joints:
        rows = f"{params.table.shape[1]} clips of {params.num_joints} joints"
        raise ValueError(f"params are of {rows}, the clips are {len(source)} of {skeleton.num_joints} joints")
    device = params.table.device
    shape = (len(params.views), len(source), size, skeleton.num_joints * source.max_bodies * 3)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=device)
    elif out.shape != shape or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(f"out must be contiguous {shape} of {dtype}, got {tuple(out.shape)} of {out.dtype}")

    frames = source.frames if isinstance(source, PackedClips) else source.x
    impl = choose_for_views(impl, device, frames.dtype, (size, source.max_bodies, skeleton.num_joints))
    with plainly(device, "make_views"):
        _MAKERS[impl](source, params, skeleton, stream, out)
    return out


def _launch(
    source: PackedClips | DenseClips, params: ViewParams, skeleton: Skeleton, stream: Stream, out: Tensor
) -> None:
    from kernels import views  # here, since Triton need not be installed

    frames, first = (source.frames, source.start) if isinstance(source, PackedClips) else (source.x.detach(), None)
    views.make_views(
        frames.contiguous(),
        first,
        source.num_bodies,
        params.table,
        params.sample,
        params.views,
        params.seed,
        params.step,
        joint_indices(skeleton.mirror, out.device),
        joint_indices(skeleton.parents, out.device) if stream == "bone" else None,
        source.max_bodies,
        stream,
        out,
    )


def _compiled(
    source: PackedClips | DenseClips, params: ViewParams, skeleton: Skeleton, stream: Stream, out: Tensor
) -> None:
    from fastmc.views import numba_views  # here, since numba need not be installed

    numba_views.make_views(source, params, skeleton, stream, out)


@functools.lru_cache(maxsize=16)
def joint_indices(joints: tuple[int, ...], device: torch.device) -> Tensor:
    """As an int64 tensor, made once per device: to copy it at every step would wait for a GPU."""
    return torch.tensor(joints, device=device)


def whole_clips(clips: PackedClips, skeleton: Skeleton, size: int, *, impl: str = "auto") -> Tensor:
    """The clips resized to ``size`` frames and nothing else: x of eq. 5, (B, size, V * M * 3) float32."""
    params = identity_params(torch.zeros_like(clips.num_frames), clips.num_frames, skeleton.num_joints)
    return make_views(clips, params, skeleton, size=size, impl=impl)[0]


def crop_span(num_frames: Tensor, ratio: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Start and length (B,) int64 of a temporal crop: ``ratio`` (B,) of the clip, at ``position`` (B,) in [0, 1] of the
    free room."""
    frames = num_frames.to(torch.int64)
    length = torch.floor(frames * ratio).to(torch.int64).clamp_min(1).minimum(frames)
    start = torch.floor((frames - length + 1) * position).to(torch.int64).minimum(frames - length)
    return start, length


def present_bodies(x: Tensor) -> Tensor:
    """(..., V, M, 3) to the bool mask (..., 1, M, 1) of the bodies that are there (not all zero)."""
    return (x != 0).any(dim=-1, keepdim=True).any(dim=-3, keepdim=True)


def to_stream(x: Tensor, stream: Stream, skeleton: Skeleton) -> Tensor:
    """Joint coordinates (B, T, V * M * 3) in the encoder's layout to an input stream of the same shape, differentiable.

    joint: as is. motion: next frame minus this one, the last is zero. bone: joint minus its parent.
    """
    check_choice("stream", stream, STREAMS)
    if stream == "joint":
        return x
    if stream == "motion":
        return torch.nn.functional.pad(x[:, 1:] - x[:, :-1], (0, 0, 0, 1))
    if not skeleton.parents:
        raise ValueError(f"stream='bone' needs the parents of joint layout {skeleton.name!r}, which are unknown")
    joints = x.unflatten(2, (skeleton.num_joints, -1))
    return x - joints.index_select(2, joint_indices(skeleton.parents, x.device)).flatten(2)


# --- In PyTorch. On a CPU only the bodies and the clips that need it are worked on. A GPU would have to be asked which
# those are, and waited for, so there all are.


@dataclass(frozen=True)
class _Rows:
    """Either kind of clips by rows (R, V * 3): body m of frame t of clip n is row first[n] + t * step[n] + m."""

    rows: Tensor
    first: Tensor
    step: Tensor
    num_bodies: Tensor
    max_bodies: int

    @staticmethod
    def of(clips: PackedClips | DenseClips, joints: int) -> _Rows:
        bodies = clips.max_bodies
        if isinstance(clips, PackedClips):
            return _Rows(clips.frames.flatten(1), clips.start, clips.num_bodies, clips.num_bodies, bodies)
        batch, frames, _ = clips.x.shape
        rows = clips.x.detach().view(batch, frames, joints, bodies, 3).transpose(2, 3).reshape(-1, joints * 3)
        first = torch.arange(batch, device=rows.device) * (frames * bodies)
        return _Rows(rows, first, torch.full_like(first, bodies), clips.num_bodies, bodies)


def _make_views(
    source: PackedClips | DenseClips, params: ViewParams, skeleton: Skeleton, stream: Stream, out: Tensor
) -> None:
    clips = _Rows.of(source, skeleton.num_joints)
    direct = stream == "joint" and out.dtype == torch.float32
    views = (out if direct else torch.empty_like(out, dtype=torch.float32)).flatten(0, 1)
    x = views.unflatten(2, (skeleton.num_joints, clips.max_bodies, 3))
    present = _resize_and_map_(x, clips, params, skeleton)
    _noise_and_filter_(x, present, clips, params)
    if not direct:
        out.copy_(to_stream(views, stream, skeleton).view(out.shape))


def _some(mask: Tensor) -> Tensor:
    """Indices of the True ones of (N,); on a GPU, those of all."""
    return mask.nonzero()[:, 0] if may_look(mask) else torch.arange(len(mask), device=mask.device)


def _resize_and_map_(x: Tensor, clips: _Rows, params: ViewParams, skeleton: Skeleton) -> Tensor:
    """Fill x (N, T, V, M, 3), N = W * B, with the clips cropped, resized and mapped; present (N, T, M) bool."""
    low, high, weight = _crop_frames(params, x.shape[1])
    first, step, count = (t.repeat(len(params.views))[:, None] for t in (clips.first, clips.step, clips.num_bodies))
    matrix = _map_matrix(params, skeleton)
    present = torch.zeros(*x.shape[:2], clips.max_bodies, dtype=torch.bool, device=x.device)
    x.zero_()
    for body in range(clips.max_bodies):
        there = _some(count[:, 0] > body)
        lane = (count - 1).clamp_max(body)  # a body that is not there must not read its neighbour's rows
        source = [_select(clips.rows, (first + frame * step + lane)[there]) for frame in (low, high)]
        resized = torch.lerp(source[0], source[1], weight[there])
        if body:
            resized *= (count[there] > body)[..., None]
        present[there, :, body] = resized.abs().amax(dim=2) != 0
        if body:
            mapped = torch.bmm(resized, matrix[there]).unflatten(2, (-1, 3))
            x[:, :, :, body].index_copy_(0, there, mapped)
        else:  # every clip has a first body
            x[:, :, :, 0] = torch.bmm(resized, matrix).unflatten(2, (-1, 3))
    return present


def _select(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index] in float32."""
    return rows.index_select(0, index.flatten()).unflatten(0, index.shape).to(torch.float32)


def _crop_frames(params: ViewParams, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each frame of each view, the two source frames (N, size) int64 and the weight (N, size, 1) of the second one.

    The positions are those of ``torch.nn.functional.interpolate(mode="linear", align_corners=False)``.
    """
    start, length = (params.column(name).flatten()[:, None] for name in ("crop_start", "crop_length"))
    out = torch.arange(size, device=start.device, dtype=torch.float32)
    position = ((out + 0.5) * (length / size) - 0.5).clamp_min(0.0)
    low = torch.floor(position).minimum(length - 1)
    high = (low + 1).minimum(length - 1)
    return (start + low).to(torch.int64), (start + high).to(torch.int64), (position - low)[..., None]


def _map_matrix(params: ViewParams, skeleton: Skeleton) -> Tensor:
    """(N, V * 3, V * 3): one product of a body's joints with it maps and swaps them. It holds the axis mask too, which
    only scales coordinates, so that it may come before noise and filter, if the noise is scaled as well."""
    jittered, flip = params.column("jittered").flatten(0, 1), params.column("flip").flatten()
    pose, jitter, scale = (params.column(name).flatten(0, 1) for name in ("pose", "jitter", "axis_scale"))
    joints = torch.arange(skeleton.num_joints, device=flip.device)
    source = torch.where(flip[:, None] > 0, joint_indices(skeleton.mirror, flip.device), joints)  # (N, V)
    chosen = jittered.gather(1, source)[..., None, None] > 0
    maps = torch.where(chosen, jitter[:, None], pose[:, None]) * scale[:, None, :, None]  # (N, V, 3, 3)
    matrix = torch.zeros(len(flip), len(joints), 3, len(joints), 3, device=flip.device)
    clip = torch.arange(len(flip), device=flip.device)[:, None]
    matrix[clip, source, :, joints] = maps.transpose(2, 3)
    return matrix.flatten(3).flatten(1, 2)


def _noise_and_filter_(x: Tensor, present: Tensor, clips: _Rows, params: ViewParams) -> None:
    """Add noise to the views x (N, T, V, M, 3) and filter them in time, where they are to be; missing bodies are put
    back to zero."""
    std, sigma = params.column("noise_std").flatten(), params.column("filter_sigma").flatten()
    changed = _some((std > 0) | (sigma > 0))
    if len(changed) == 0:
        return
    y = x[changed]
    count = clips.num_bodies.repeat(len(params.views))[changed]
    for body in range(clips.max_bodies):
        some = _some((std[changed] > 0) & (count > body))
        amplitude = std[changed[some], None] * params.column("axis_scale").flatten(0, 1)[changed[some]]
        noise = _noise(params, changed[some], y.shape[1:4], body)
        y[:, :, :, body].index_add_(0, some, noise * amplitude[:, None, None])
    y = torch.bmm(_filter_weights(sigma[changed], y.shape[1]), y.flatten(2)).view_as(y)
    x[changed] = y * present[changed][:, :, None, :, None]


def _noise(params: ViewParams, rows: Tensor, shape: torch.Size, body: int) -> Tensor:
    """Standard normal (n, T, V, 3) of one body; a block of four numbers serves the three coordinates of a joint."""
    frames, joints, bodies = shape
    batch, device = len(params.sample), rows.device
    block = torch.arange(frames * joints, device=device) * bodies + (NOISE_COUNTER + body)
    view = view_numbers(params.views, device)
    key = params.sample[rows % batch, None], view[rows // batch, None]
    words = philox(params.seed, block, params.step, *key)
    return normal(words, 3).view(len(rows), frames, joints, 3)


def _filter_weights(sigma: Tensor, size: int) -> Tensor:
    """Gaussian weights (n, size, size) of 15 taps; at the ends, those that exist are scaled to sum to one."""
    reach = FILTER_TAPS // 2
    tap = torch.arange(reach + 2, device=sigma.device)
    by_distance = torch.exp(-tap.square() / (2 * sigma.clamp_min(1e-6).square())[:, None]) * (tap <= reach)
    frame = torch.arange(size, device=sigma.device)
    weights = by_distance[:, (frame[:, None] - frame).abs().clamp_max(reach + 1)]
    return weights / weights.sum(dim=2, keepdim=True)


def _reference_views(
    source: PackedClips | DenseClips, params: ViewParams, skeleton: Skeleton, stream: Stream, out: Tensor
) -> None:
    """The same by ``fastmc.reference``, clip by clip, in float64 on the CPU."""
    clips, size = _Rows.of(source, skeleton.num_joints), out.shape[2]
    for w, n in itertools.product(range(len(params.views)), range(len(clips.first))):
        clip = _dense_clip(clips, n, int(params.column("crop_start")[w, n] + params.column("crop_length")[w, n]))
        choices = {name: params.column(name)[w, n].double().cpu() for name in COLUMNS}
        noise = _noise_of_view(params, w, n, (size, skeleton.num_joints, clips.max_bodies))
        view = reference.view(clip, size=size, mirror=skeleton.mirror, noise=noise, **choices)
        if stream != "joint":
            view = reference.motion(view) if stream == "motion" else reference.bone(view, skeleton.parents)
        out[w, n] = view.transpose(1, 2).flatten(1)


def _dense_clip(clips: _Rows, n: int, frames: int) -> Tensor:
    """(frames, M, V, 3) float64: the first frames of clip n."""
    first, step, bodies = (int(t[n]) for t in (clips.first, clips.step, clips.num_bodies))
    rows = clips.rows[first : first + frames * step].to("cpu", torch.float64).view(frames, step, -1, 3)[:, :bodies]
    return torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, clips.max_bodies - bodies))


def _noise_of_view(params: ViewParams, w: int, n: int, shape: tuple[int, int, int]) -> Tensor:
    """(T, M, V, 3) float64."""
    row = torch.full((1,), w * len(params.sample) + n, device=params.sample.device)
    by_body = [_noise(params, row, torch.Size(shape), body) for body in range(shape[2])]
    return torch.cat(by_body).transpose(0, 1).double().cpu()


_MAKERS = {"triton": _launch, "numba": _compiled, "torch": _make_views, "reference": _reference_views}
