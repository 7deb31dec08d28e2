"""Views by every implementation, against the truth of tests/view_cases.py within a budget of float32's roundings.

Triton's run on the CPU, compiled (by ttsem) or, where it is not there, interpreted (by tests/test_interpreted.py);
bounds, races between programs and memory that nobody stored are checked on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import pytest
import torch
from every_pair import every_pair
from gpu_less import INTERPRETED, kernels_on_cpu, needs_engine
from torch import Tensor
from view_cases import (
    BY_HAND,
    FEW,
    LAYOUTS,
    LENGTHS,
    STREAMS,
    Clips,
    Make,
    assert_views,
    by_hand,
    by_kernel,
    clip_of,
    dense_clips,
    drawn,
    packed_clips,
    some_clips,
)

from fastmc.reference import augment as reference
from fastmc.skeleton import KINECT20, NTU25, Skeleton
from fastmc.views.clips import DenseClips
from fastmc.views.draw import AugmentConfig
from fastmc.views.make import make_views

IMPLS = ["triton"] if INTERPRETED else ["torch", "reference", "numba", "triton"]
BODIES_AND_SIZE = [(1, 64), (2, 64), (3, 32)]
"""What a program of Triton's can hold."""


@pytest.fixture(
    params=[pytest.param(i, marks=[needs_engine, pytest.mark.compiler] if i == "triton" else ()) for i in IMPLS]
)
def impl(request) -> str:
    if request.param == "numba" and find_spec("numba") is None:
        pytest.skip("numba is not installed")
    return request.param


@pytest.fixture
def make(impl) -> Iterator[Make]:
    """`make_views` of one implementation."""
    if impl != "triton":
        yield partial(make_views, impl=impl)
        return
    with kernels_on_cpu():
        yield by_kernel


# --- Against the truth


@pytest.mark.parametrize(
    ("transform", "skeleton"),
    [(name, NTU25) for name in BY_HAND] + [(name, KINECT20) for name in ("flip", "jitter", "everything")],
    ids=lambda x: getattr(x, "name", x),
)
def test_each_transform_alone_and_all_at_once(make, transform, skeleton):
    clips = packed_clips(skeleton, LENGTHS if transform in ("crop", "everything") else FEW)
    assert_views(make, clips, by_hand(transform, clips, skeleton), skeleton)


@pytest.mark.parametrize(
    ("views", "skeleton", "bodies_and_size", "stream"), every_pair([(0, 3), (1, 2)], LAYOUTS, BODIES_AND_SIZE, STREAMS)
)
def test_drawn_views(make, views, skeleton, bodies_and_size, stream):
    max_bodies, size = bodies_and_size
    dense = dense_clips(skeleton, batch=2, max_bodies=max_bodies)
    for clips in (packed_clips(skeleton, FEW, max_bodies=max_bodies), dense):
        assert_views(make, clips, drawn(clips, skeleton, views=views), skeleton, size=size, stream=stream)


@pytest.mark.parametrize(
    ("size", "max_bodies", "stream"),
    [(1, 2, "motion"), (2, 2, "bone"), (7, 3, "motion"), (7, 3, "joint"), (100, 1, "bone"), (128, 1, "motion")],
)
def test_other_sizes(make, size, max_bodies, stream):
    """And clips as long as a view, twice as long, and a frame longer, where a kernel's way to read them changes."""
    clips = packed_clips(lengths=(1, 2, size, size + 1, 2 * size, 2 * size + 1, 301), max_bodies=max_bodies)
    assert_views(make, clips, by_hand("everything", clips), size=size, stream=stream)


@pytest.mark.parametrize(("bodies_and_size", "frames", "stream"), every_pair(BODIES_AND_SIZE, [1, 64, 300], STREAMS))
def test_dense_clips(make, bodies_and_size, frames, stream):
    max_bodies, size = bodies_and_size
    clips = dense_clips(frames=frames, batch=2, max_bodies=max_bodies)
    assert_views(make, clips, by_hand("everything", clips), size=size, stream=stream)


@pytest.mark.parametrize("joints", [1, 16, 33])
def test_other_layouts(make, joints):
    names = tuple(f"{side} {n}" for n in range(joints // 2) for side in ("left", "right")) + ("head",) * (joints % 2)
    skeleton = Skeleton("other", names, parents=tuple(max(0, v - 1) for v in range(joints)))
    clips = packed_clips(skeleton, FEW[1:])
    assert_views(make, clips, by_hand("everything", clips, skeleton), skeleton, size=30, stream="bone")


def in_half(clips: Clips, dtype: torch.dtype) -> Clips:
    name = "x" if isinstance(clips, DenseClips) else "frames"
    return replace(clips, **{name: getattr(clips, name).to(dtype)})


@pytest.mark.parametrize(
    ("dtype", "stream"), [(torch.float16, "joint"), (torch.bfloat16, "motion"), (torch.bfloat16, "bone")]
)
def test_views_in_half_precision(make, dtype, stream):
    """Rounded once, at the end."""
    for clips in (packed_clips(lengths=(30, 129)), dense_clips(batch=2)):
        params = by_hand("everything", clips)
        got = assert_views(make, clips, params, stream=stream, dtype=dtype)
        assert torch.equal(got, make(clips, params, NTU25, stream=stream).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frames_in_half_precision(make, impl, dtype):
    """Are the numbers that they are: nothing is computed in their precision."""
    if impl == "numba":
        pytest.skip("refuses them: tests/test_views_numba.py")
    for clips in (in_half(packed_clips(lengths=(30, 129)), dtype), in_half(dense_clips(batch=2), dtype)):
        params = by_hand("everything", clips)
        got = assert_views(make, clips, params)
        assert torch.equal(got, make(in_half(clips, torch.float32), params, NTU25))


# --- Properties


def test_missing_bodies_stay_exactly_zero(make):
    clips = packed_clips(lengths=FEW)
    for step in range(2):
        params = drawn(clips, step=step)
        x = make(clips, params, NTU25).unflatten(3, (25, 2, 3))
        for w, n in torch.cartesian_prod(torch.arange(2), torch.arange(len(clips))).tolist():
            start, length = (int(params.column(name)[w, n]) for name in ("crop_start", "crop_length"))
            source = reference.temporal_crop_resize(clip_of(clips, n), start, length, 64)
            missing = (source == 0).flatten(2).all(dim=2)
            assert (x[w, n].transpose(1, 2)[missing] == 0).all()
            assert missing[:, 1].all() or n % 2 == 1, "every other clip has no second body"


@pytest.mark.parametrize("stream", STREAMS)
def test_views_do_not_depend_on_batch_split_or_order_or_company(make, stream):
    """Bit for bit."""
    clips = packed_clips(lengths=(30, 65, 129))
    params, everyone, order = drawn(clips), torch.arange(3), torch.tensor([2, 0, 1])

    def views(ids: Tensor, rows: slice = slice(None)) -> Tensor:
        table, sample = params.table[rows][:, ids].contiguous(), params.sample[ids]
        part = replace(params, table=table, sample=sample, views=params.views[rows])
        return make(some_clips(clips, ids), part, NTU25, stream=stream)

    together = views(everyone)
    assert torch.equal(views(order), together[:, order])
    assert torch.equal(torch.cat([views(ids) for ids in everyone.split(1)], dim=1), together)
    assert torch.equal(torch.cat([views(everyone, slice(w, w + 1)) for w in range(2)]), together)


def test_a_step_on_the_device_is_the_same_step(make):
    clips = packed_clips(lengths=FEW)
    params = by_hand("everything", clips)
    x = make(clips, params, NTU25)
    assert torch.equal(make(clips, replace(params, step=torch.tensor(params.step)), NTU25), x)


@pytest.mark.parametrize("packed", [True, False])
def test_a_clip_that_is_not_finite_is_alone_in_it(make, packed):
    clips = packed_clips(lengths=(64, 65, 30)) if packed else dense_clips(batch=3)
    params = by_hand("everything", clips)
    clean = make(clips, params, NTU25)
    for value in (torch.nan, torch.inf):
        if packed:
            spoilt = replace(clips, frames=clips.frames.clone())
            spoilt.frames[clips.start[1] : clips.start[2] - 3] = value
        else:
            spoilt = replace(clips, x=clips.x.clone())
            spoilt.x[1] = value
        got = make(spoilt, params, NTU25)
        assert torch.equal(got[:, ::2], clean[:, ::2])
        assert not got[:, 1].isfinite().all()


@pytest.mark.parametrize(("dtype", "stream"), [(torch.float32, "joint"), (torch.bfloat16, "motion")])
def test_only_out_is_written(make, dtype, stream):
    clips = packed_clips(lengths=(30, 65, 129))
    params = drawn(clips)
    before = clips.frames.clone(), params.table.clone()
    room = torch.full((4, 3, 64, 150), 7.0, dtype=dtype)
    got = make(clips, params, NTU25, stream=stream, dtype=dtype, out=room[1:3])
    assert got.data_ptr() == room[1].data_ptr()
    assert torch.equal(got, make(clips, params, NTU25, stream=stream, dtype=dtype))
    assert (room[0] == 7).all() and (room[3] == 7).all()
    assert torch.equal(clips.frames.nan_to_num(), before[0].nan_to_num()) and torch.equal(params.table, before[1])


def test_a_filter_so_narrow_that_its_square_vanishes_does_nothing(make):
    clips = packed_clips(lengths=FEW)
    plain = drawn(clips, config=AugmentConfig(filter_probability=0), views=(2,))
    narrow = replace(plain, table=plain.table.clone())
    narrow.column("filter_sigma")[:] = 1e-30
    assert torch.equal(make(clips, narrow, NTU25), make(clips, plain, NTU25))
