"""Views in PyTorch's operators, for any device and dtype: what `fastmc.views.make` says, a transform at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmc.backends import may_look
from fastmc.random import normal, philox
from fastmc.skeleton import Skeleton
from fastmc.views.clips import DenseClips, PackedClips, Stream
from fastmc.views.draw import FILTER_TAPS, MASK, NOISE_COUNTER, ViewParams, view_numbers
from fastmc.views.layout import joint_indices, to_stream


@dataclass(frozen=True)
class Rows:
    """Either kind of clips by rows (R, V * 3): body m of frame t of clip n is row first[n] + t * step[n] + m."""

    rows: Tensor
    first: Tensor
    step: Tensor
    num_bodies: Tensor
    max_bodies: int

    @staticmethod
    def of(clips: PackedClips | DenseClips, joints: int) -> Rows:
        bodies = clips.max_bodies
        if isinstance(clips, PackedClips):
            return Rows(clips.frames.flatten(1), clips.start, clips.num_bodies, clips.num_bodies, bodies)
        batch, frames, _ = clips.x.shape
        rows = clips.x.detach().view(batch, frames, joints, bodies, 3).transpose(2, 3).reshape(-1, joints * 3)
        first = torch.arange(batch, device=rows.device) * (frames * bodies)
        return Rows(rows, first, torch.full_like(first, bodies), clips.num_bodies, bodies)


def make_views(
    source: PackedClips | DenseClips, params: ViewParams, skeleton: Skeleton, stream: Stream, out: Tensor
) -> None:
    """Write the views (W, B, T, V * M * 3) of the clips into ``out``."""
    clips = Rows.of(source, skeleton.num_joints)
    direct = stream == "joint" and out.dtype == torch.float32
    views = (out if direct else torch.empty_like(out, dtype=torch.float32)).flatten(0, 1)
    x = views.unflatten(2, (skeleton.num_joints, clips.max_bodies, 3))
    present = _resize_and_map_(x, clips, params, skeleton)
    _noise_and_filter_(x, present, clips, params)
    if params.masked:
        joints, frames = (params.column(name).flatten(0, 1) > 0 for name in MASK)
        x.masked_fill_((frames[:, :, None] & joints[:, None])[..., None, None], 0)
    if not direct:
        out.copy_(to_stream(views, stream, skeleton).view(out.shape))


def _some(mask: Tensor) -> Tensor:
    """Indices of the True ones of (N,); on a GPU, those of all."""
    return mask.nonzero()[:, 0] if may_look(mask) else torch.arange(len(mask), device=mask.device)


def _resize_and_map_(x: Tensor, clips: Rows, params: ViewParams, skeleton: Skeleton) -> Tensor:
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
    position = ((_frames_shown(params, size) + 0.5) * (length / size) - 0.5).clamp_min(0.0)
    low = torch.floor(position).minimum(length - 1)
    high = (low + 1).minimum(length - 1)
    return (start + low).to(torch.int64), (start + high).to(torch.int64), (position - low)[..., None]


def _frames_shown(params: ViewParams, size: int) -> Tensor:
    """(N, size) float32: which frame of the resized crop each frame of a view shows, see `ViewParams`."""
    shift, reverse = (params.column(name).flatten()[:, None] for name in ("shift", "reverse"))
    frame = torch.arange(size, device=shift.device, dtype=torch.float32)
    frame = torch.where(reverse > 0, size - 1 - frame, frame) + shift
    frame = torch.where(frame < 0, -1 - frame, frame)
    return torch.where(frame >= size, 2 * size - 1 - frame, frame)


def _map_matrix(params: ViewParams, skeleton: Skeleton) -> Tensor:
    """(N, V * 3, V * 3): one product of a body's joints with it subtracts one, maps and swaps them. It holds the axis
    mask too, which only scales coordinates, so that it may come before noise and filter, if the noise is scaled as
    well."""
    jittered, flip = params.column("jittered").flatten(0, 1), params.column("flip").flatten()
    pose, jitter, scale = (params.column(name).flatten(0, 1) for name in ("pose", "jitter", "axis_scale"))
    joints = torch.arange(skeleton.num_joints, device=flip.device)
    source = torch.where(flip[:, None] > 0, joint_indices(skeleton.mirror, flip.device), joints)  # (N, V)
    chosen = jittered.gather(1, source)[..., None, None] > 0
    maps = torch.where(chosen, jitter[:, None], pose[:, None]) * scale[:, None, :, None]  # (N, V, 3, 3)
    matrix = torch.zeros(len(flip), len(joints), 3, len(joints), 3, device=flip.device)
    clip = torch.arange(len(flip), device=flip.device)[:, None]
    matrix[clip, source, :, joints] = maps.transpose(2, 3)
    centre = params.column("centre").flatten()[:, None]
    subtracted = maps.transpose(2, 3) * (centre >= 0)[..., None, None]
    matrix[clip, centre.clamp_min(0).to(torch.int64), :, joints] -= subtracted
    return matrix.flatten(3).flatten(1, 2)


def _noise_and_filter_(x: Tensor, present: Tensor, clips: Rows, params: ViewParams) -> None:
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
        noise = noise_of(params, changed[some], y.shape[1:4], body)
        y[:, :, :, body].index_add_(0, some, noise * amplitude[:, None, None])
    gain = params.column("filter_gain").flatten()[changed]
    y = torch.bmm(_filter_weights(sigma[changed], gain, y.shape[1]), y.flatten(2)).view_as(y)
    x[changed] = y * present[changed][:, :, None, :, None]


def noise_of(params: ViewParams, rows: Tensor, shape: torch.Size, body: int) -> Tensor:
    """Standard normal (n, T, V, 3) of one body; a block of four numbers serves the three coordinates of a joint."""
    frames, joints, bodies = shape
    batch, device = len(params.sample), rows.device
    block = torch.arange(frames * joints, device=device) * bodies + (NOISE_COUNTER + body)
    view = view_numbers(params.views, device)
    key = params.sample[rows % batch, None], view[rows // batch, None]
    words = philox(params.seed, block, params.step, *key)
    return normal(words, 3).view(len(rows), frames, joints, 3)


def _filter_weights(sigma: Tensor, gain: Tensor, size: int) -> Tensor:
    """Gaussian weights (n, size, size) of 15 taps; those that exist, at the ends fewer, are scaled to sum to one where
    there is no gain."""
    reach = FILTER_TAPS // 2
    tap = torch.arange(reach + 2, device=sigma.device)
    by_distance = torch.exp(-tap.square() / (2 * sigma.clamp_min(1e-6).square())[:, None]) * (tap <= reach)
    frame = torch.arange(size, device=sigma.device)
    weights = by_distance[:, (frame[:, None] - frame).abs().clamp_max(reach + 1)]
    return weights / torch.where(gain[:, None, None] > 0, 1, weights.sum(dim=2, keepdim=True))
