"""Views of skeleton clips: a deterministic function of packed frames and of parameters (`fastmc.views.draw`).

A view is born in the encoder's layout (B, T, V * M * 3): joints outermost, then bodies, then x, y, z. In this order:
temporal crop-resize, mirrored window, time reversal, a joint subtracted, the linear map of each joint (shear or
jittering, rotation), flip, noise, Gaussian filter in time, axis mask, joint mask; a body that is missing in a frame
stays exactly zero. ``fastmc.reference.augment`` says the same one clip and one transform at a time;
`fastmc.views.torch_views` in PyTorch's operators; kernels/views.py does it in one launch, and
`fastmc.views.numba_views` in one pass on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastmc.arguments import check_choice
from fastmc.backends import VIEWS, Need
from fastmc.skeleton import Skeleton
from fastmc.views.clips import STREAMS, DenseClips, PackedClips, Stream
from fastmc.views.draw import ViewParams, identity_params


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
        ValueError: what is given is of another type or shape than this says, an unknown stream, bones of a layout whose
            bones are unknown, parameters of other clips; or, on a CPU, a crop outside of its clip.
        RuntimeError: impl="triton" or "numba" cannot run.
    """
    _check(source, params, skeleton, size)
    check_choice("stream", stream, STREAMS)
    if stream == "bone" and not skeleton.parents:
        raise ValueError(f"stream='bone' needs the parents of joint layout {skeleton.name!r}, which are unknown")
    device = params.table.device
    shape = (len(params.views), len(source), size, skeleton.num_joints * source.max_bodies * 3)
    if out is None:
        out = torch.empty(shape, dtype=dtype, device=device)
    elif out.shape != shape or out.dtype != dtype or not out.is_contiguous():
        raise ValueError(f"out must be contiguous {shape} of {dtype}, got {tuple(out.shape)} of {out.dtype}")

    frames = source.frames if isinstance(source, PackedClips) else source.x
    need = Need(device, frames.dtype, size=(size, source.max_bodies, skeleton.num_joints))
    impl = VIEWS.choose(impl, need)
    VIEWS.call(impl, "make_views", device, source, params, skeleton, stream, out)
    return out


def _check(source: PackedClips | DenseClips, params: ViewParams, skeleton: Skeleton, size: int) -> None:
    """For all implementations, which read memory by these numbers and check nothing. The clips check themselves."""
    wanted = {
        "source": (source, PackedClips | DenseClips, "PackedClips or DenseClips"),
        "params": (params, ViewParams, "ViewParams"),
        "skeleton": (skeleton, Skeleton, "a Skeleton, such as fastmc.skeleton.NTU25"),
    }
    for name, (value, kind, said) in wanted.items():
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be {said}, got the {type(value).__name__} {value!r:.40}")
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of frames, 1 at least, got {size!r}")
    if source.num_joints != skeleton.num_joints:
        raise ValueError(f"the clips have {source.num_joints} joints, skeleton {skeleton.name!r} {skeleton.num_joints}")
    if len(source) != params.table.shape[1] or params.num_joints != skeleton.num_joints:
        rows = f"{params.table.shape[1]} clips of {params.num_joints} joints"
        raise ValueError(f"params are of {rows}, the clips are {len(source)} of {skeleton.num_joints} joints")
    if params.masked not in (0, size):
        raise ValueError(f"params mask joints in views of {params.masked} frames, size is {size}")
    params.check_crops(source.num_frames)


def whole_clips(
    clips: PackedClips, skeleton: Skeleton, size: int, *, centre: int | None = None, impl: str = "auto"
) -> Tensor:
    """The clips resized to ``size`` frames, their ``centre`` joint subtracted, and nothing else: x of eq. 5, (B, size,
    V * M * 3) float32."""
    params = identity_params(torch.zeros_like(clips.num_frames), clips.num_frames, skeleton.num_joints, centre)
    return make_views(clips, params, skeleton, size=size, impl=impl)[0]


def crop_span(num_frames: Tensor, ratio: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Start and length (B,) int64 of a temporal crop: ``ratio`` (B,) of the clip, at ``position`` (B,) in [0, 1] of the
    free room."""
    frames = num_frames.to(torch.int64)
    length = torch.floor(frames * ratio).to(torch.int64).clamp_min(1).minimum(frames)
    start = torch.floor((frames - length + 1) * position).to(torch.int64).minimum(frames - length)
    return start, length


def crops_of(
    clips: PackedClips,
    ratio: Tensor,
    position: Tensor,
    skeleton: Skeleton,
    size: int,
    stream: Stream,
    centre: int | None = None,
) -> Tensor:
    """A temporal crop of each clip, as `crop_span` says, resized to ``size`` frames, its ``centre`` joint subtracted,
    and not changed otherwise: what evaluations encode, (B, size, V * M * 3)."""
    params = identity_params(*crop_span(clips.num_frames, ratio, position), skeleton.num_joints, centre)
    return make_views(clips, params, skeleton, size=size, stream=stream)[0]
