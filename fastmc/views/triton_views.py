"""Views by the kernel of kernels/views.py."""

from __future__ import annotations

from torch import Tensor

from fastmc.skeleton import Skeleton
from fastmc.views.clips import DenseClips, PackedClips, Stream
from fastmc.views.draw import ViewParams
from fastmc.views.layout import joint_indices
from kernels import views


def make_views(
    source: PackedClips | DenseClips, params: ViewParams, skeleton: Skeleton, stream: Stream, out: Tensor
) -> None:
    """Write the views into ``out`` in one launch; arguments as of `fastmc.views.torch_views.make_views`."""
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
        params.centred,
        params.masked > 0,
        stream,
        out,
    )
