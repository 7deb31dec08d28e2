"""Views by the plain reference, `fastmc.reference.augment`, clip by clip, in float64 on the CPU."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from fastmc.reference import augment as reference
from fastmc.skeleton import Skeleton
from fastmc.views.clips import DenseClips, PackedClips, Stream
from fastmc.views.draw import COLUMNS, MASK, ViewParams
from fastmc.views.torch_views import Rows, noise_of


def make_views(
    source: PackedClips | DenseClips, params: ViewParams, skeleton: Skeleton, stream: Stream, out: Tensor
) -> None:
    """Write the views into ``out``; arguments as of `fastmc.views.torch_views.make_views`."""
    clips, size = Rows.of(source, skeleton.num_joints), out.shape[2]
    for w, n in itertools.product(range(len(params.views)), range(len(clips.first))):
        clip = _dense_clip(clips, n, int(params.column("crop_start")[w, n] + params.column("crop_length")[w, n]))
        choices = {name: params.column(name)[w, n].double().cpu() for name in (*COLUMNS, *MASK)}
        noise = _noise_of_view(params, w, n, (size, skeleton.num_joints, clips.max_bodies))
        view = reference.view(clip, size=size, mirror=skeleton.mirror, noise=noise, **choices)
        if stream != "joint":
            view = reference.motion(view) if stream == "motion" else reference.bone(view, skeleton.parents)
        out[w, n] = view.transpose(1, 2).flatten(1)


def _dense_clip(clips: Rows, n: int, frames: int) -> Tensor:
    """(frames, M, V, 3) float64: the first frames of clip n."""
    first, step, bodies = (int(t[n]) for t in (clips.first, clips.step, clips.num_bodies))
    rows = clips.rows[first : first + frames * step].to("cpu", torch.float64).view(frames, step, -1, 3)[:, :bodies]
    return torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, clips.max_bodies - bodies))


def _noise_of_view(params: ViewParams, w: int, n: int, shape: tuple[int, int, int]) -> Tensor:
    """(T, M, V, 3) float64."""
    row = torch.full((1,), w * len(params.sample) + n, device=params.sample.device)
    by_body = [noise_of(params, row, torch.Size(shape), body) for body in range(shape[2])]
    return torch.cat(by_body).transpose(0, 1).double().cpu()
