"""The kernels of views by value, interpreted: the table, every transform, odd shapes, hostile input, counted traffic.

Bounds, races between programs and memory that nobody stored are checked on the way (``kernels_on_cpu``).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gpu_less import kernels_on_cpu
from philox_kernel import assert_words
from torch import Tensor
from view_cases import (
    BY_HAND,
    FEW,
    LAYOUTS,
    MUTANTS,
    SHORT_CROPS,
    STREAMS,
    Clips,
    assert_tables_equal,
    assert_views,
    by_hand,
    by_kernel,
    dense_clips,
    drawn,
    excess,
    frames_needed,
    mutated,
    packed_clips,
    some_clips,
    truth,
)

from bench import ntu_like
from bench.watch import watch
from fastmc.skeleton import NTU25, Skeleton
from fastmc.views.draw import COLUMNS, AugmentConfig, ViewParams, draw_params

# --- The table


def test_philox_bit_for_bit():
    with kernels_on_cpu():
        assert_words()


@pytest.mark.parametrize("resized_to", [None, 64])
@pytest.mark.parametrize("joints", [1, 2, 20, 25, 33])
def test_table_equals_that_of_pytorch(joints, resized_to):
    with kernels_on_cpu() as seen:
        assert_tables_equal(AugmentConfig(), joints, resized_to=resized_to)
    assert [launch.kernel for launch in seen.launches] == ["_draw_kernel"]


@pytest.mark.parametrize(
    "config",
    [
        SHORT_CROPS,
        AugmentConfig(crop_frames_min=1, shear=0.3, jitter_joints=3, noise_std=0.5),
        AugmentConfig(crop_ratio_min=1.0, shear=0, jitter_joints=0, filter_sigma_min=0.7, filter_sigma_max=0.7),
        AugmentConfig(rotation_degrees=180.0, rotation_minor_degrees=90.0, flip_probability=1, noise_probability=0),
        AugmentConfig(filter_probability=1, axis_mask_probability=1, jitter_joints=100),
    ],
)
def test_table_of_other_settings(config):
    with kernels_on_cpu():
        assert_tables_equal(config)


@pytest.mark.parametrize("seed", [0, 2**31, 2**32 - 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize("step", [2**31 - 1, 2**31, torch.tensor(2**31 - 1), torch.tensor(1)])
def test_table_of_the_largest_keys(seed, step):
    sample = torch.tensor([2**31 - 1, 2**31 - 2])
    with kernels_on_cpu():
        assert_tables_equal(AugmentConfig(), seed=seed, step=step, sample=sample)


def test_table_of_the_longest_clips():
    """A crop is a product rounded down: no rounding may fall differently."""
    frames = torch.tensor([1, 2, 3, 63, 64, 65, 2**24 - 1, 2**24 - 2, 12_345_678, 5_000_001])
    with kernels_on_cpu():
        for resized_to in (None, 64):
            config = AugmentConfig(crop_frames_min=1)
            assert_tables_equal(config, frames=frames, sample=torch.arange(10), resized_to=resized_to)


def test_rows_do_not_depend_on_what_is_drawn_beside_them():
    frames, sample, everyone = torch.arange(1, 11) * 31, torch.randperm(1000)[:10], torch.arange(10)

    def table(ids: Tensor, views: tuple[int, ...]) -> Tensor:
        key = {"views": views, "seed": 5, "step": 3, "sample": sample[ids], "impl": "triton"}
        return draw_params(AugmentConfig(), frames[ids], 25, **key).table

    with kernels_on_cpu():
        together = table(everyone, (0, 1, 2, 3))
        assert torch.equal(torch.cat([table(ids, (0, 1, 2, 3)) for ids in everyone.split(4)], dim=1), together)
        assert torch.equal(torch.cat([table(everyone, (view,)) for view in range(4)]), together)


# --- The views


def checked_views(clips: Clips, params: ViewParams, skeleton: Skeleton = NTU25, **settings: object) -> Tensor:
    """Within the budget, by one launch."""
    with kernels_on_cpu() as seen:
        x = assert_views(by_kernel, clips, params, skeleton, **settings)
    assert [launch.kernel for launch in seen.launches] == ["_views_kernel"]
    return x


@pytest.mark.parametrize("transform", BY_HAND)
@pytest.mark.parametrize("skeleton", LAYOUTS, ids=lambda s: s.name)
def test_each_transform_alone_and_all_at_once(skeleton, transform):
    clips = packed_clips(skeleton)
    checked_views(clips, by_hand(transform, clips, skeleton), skeleton)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("max_bodies", "size"), [(1, 64), (2, 64), (3, 32)])
@pytest.mark.parametrize("skeleton", LAYOUTS, ids=lambda s: s.name)
def test_drawn_views(skeleton, max_bodies, size, stream):
    clips = packed_clips(skeleton, FEW, max_bodies=max_bodies)
    checked_views(clips, drawn(clips, skeleton, views=(0, 3, 1, 2)), skeleton, size=size, stream=stream)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize(("size", "max_bodies"), [(1, 2), (2, 2), (7, 3), (32, 2), (100, 1), (128, 1)])
def test_other_sizes(size, max_bodies, stream):
    """And clips as long as a view, twice as long, and a frame longer, where the way to read them changes."""
    clips = packed_clips(lengths=(1, 2, size, size + 1, 2 * size, 2 * size + 1, 301), max_bodies=max_bodies)
    checked_views(clips, by_hand("everything", clips), size=size, stream=stream)
    checked_views(clips, drawn(clips), size=size, stream=stream)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("frames", [1, 2, 64, 100, 300])
@pytest.mark.parametrize(("max_bodies", "size"), [(1, 64), (2, 64), (3, 32)])
def test_dense_clips(max_bodies, size, frames, stream):
    clips = dense_clips(frames=frames, max_bodies=max_bodies)
    checked_views(clips, by_hand("everything", clips), size=size, stream=stream)


@pytest.mark.parametrize("skeleton", LAYOUTS, ids=lambda s: s.name)
def test_drawn_views_of_dense_clips(skeleton):
    clips = dense_clips(skeleton)
    checked_views(clips, drawn(clips, skeleton), skeleton)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, packed):
    """Of the frames: they are the numbers that they are. Of the views: rounded once, at the end."""
    clips = packed_clips(lengths=FEW, dtype=dtype) if packed else dense_clips()
    clips = clips if packed else replace(clips, x=clips.x.to(dtype))
    params = by_hand("everything", clips)
    x = checked_views(clips, params)
    assert torch.equal(checked_views(clips, params, dtype=dtype), x.to(dtype))
    name = "frames" if packed else "x"
    assert torch.equal(checked_views(replace(clips, **{name: getattr(clips, name).float()}), params), x)


@pytest.mark.parametrize("joints", [1, 2, 16, 33])
def test_other_layouts(joints):
    names = tuple(f"{side} {n}" for n in range(joints // 2) for side in ("left", "right")) + ("head",) * (joints % 2)
    skeleton = Skeleton("other", names, parents=tuple(max(0, v - 1) for v in range(joints)))
    clips = packed_clips(skeleton, FEW[1:])
    checked_views(clips, by_hand("everything", clips, skeleton), skeleton, size=30, stream="bone")


def test_views_that_a_program_cannot_hold_are_refused():
    clips = packed_clips(lengths=FEW, max_bodies=3)
    with pytest.raises(RuntimeError, match="64 frames of 3 bodies of 25 joints"):
        by_kernel(clips, drawn(clips), NTU25)
    clips = packed_clips(lengths=FEW)
    with pytest.raises(RuntimeError, match="65 frames of 2 bodies of 25 joints"):
        by_kernel(clips, drawn(clips), NTU25, size=65)


def test_a_step_on_the_device_is_the_same_step():
    clips = packed_clips(lengths=FEW)
    params = by_hand("everything", clips)
    x = checked_views(clips, params)
    assert torch.equal(checked_views(clips, replace(params, step=torch.tensor(params.step))), x)


@pytest.mark.parametrize("stream", STREAMS)
def test_views_do_not_depend_on_batch_split_or_company(stream):
    """Bit for bit."""
    clips = packed_clips(lengths=FEW)
    params, everyone = drawn(clips, views=(1, 2, 3)), torch.arange(len(FEW))

    def views(ids: Tensor, rows: slice = slice(None)) -> Tensor:
        table, sample = params.table[rows][:, ids], params.sample[ids]
        part = replace(params, table=table, sample=sample, views=params.views[rows])
        return by_kernel(some_clips(clips, ids), part, NTU25, stream=stream)

    with kernels_on_cpu():
        together = views(everyone)
        assert torch.equal(torch.cat([views(ids) for ids in everyone.split(2)], dim=1), together)
        assert torch.equal(torch.cat([views(everyone, slice(w, w + 1)) for w in range(3)]), together)
        assert torch.equal(views(everyone.flip(0)), together.flip(1))


@pytest.mark.parametrize("packed", [True, False])
def test_a_clip_that_is_not_finite_is_alone_in_it(packed):
    clips = packed_clips(lengths=(64, 65, 30)) if packed else dense_clips(batch=3)
    params = by_hand("everything", clips)
    clean = checked_views(clips, params)
    for value in (torch.nan, torch.inf):
        if packed:
            spoilt = replace(clips, frames=clips.frames.clone())
            spoilt.frames[clips.start[1] : clips.start[2] - 3] = value
        else:
            spoilt = replace(clips, x=clips.x.clone())
            spoilt.x[1] = value
        with kernels_on_cpu():
            got = by_kernel(spoilt, params, NTU25)
        assert torch.equal(got[:, ::2], clean[:, ::2]) and got[:, 1].isnan().any()


def test_only_out_is_written():
    clips = packed_clips(lengths=FEW)
    params = drawn(clips)
    room = torch.full((4, len(FEW), 64, 150), 7.0)
    with kernels_on_cpu():
        got = by_kernel(clips, params, NTU25, out=room[1:3])
        assert torch.equal(got, by_kernel(clips, params, NTU25))
    assert got.data_ptr() == room[1].data_ptr()
    assert (room[0] == 7).all() and (room[3] == 7).all()


def test_a_filter_so_narrow_that_its_square_vanishes_does_nothing():
    clips = packed_clips(lengths=FEW)
    plain = drawn(clips, config=AugmentConfig(filter_probability=0), views=(2,))
    narrow = replace(plain, table=plain.table.clone())
    narrow.table[..., COLUMNS["filter_sigma"]] = 1e-30
    with kernels_on_cpu():
        assert torch.equal(by_kernel(clips, narrow, NTU25), by_kernel(clips, plain, NTU25))


def test_the_library_takes_the_kernels_where_it_is_told_to():
    clips = packed_clips(lengths=FEW)
    with kernels_on_cpu() as seen:
        params = drawn(clips, impl="triton")
        assert_views(by_kernel, clips, params)
    assert [launch.kernel for launch in seen.launches] == ["_draw_kernel", "_views_kernel"]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_budget_notices_wrong_parameters(mutant):
    clips, params = mutated()
    with kernels_on_cpu():
        x = by_kernel(clips, MUTANTS[mutant](params), NTU25)
    assert (excess(x, *truth(clips, params, NTU25)) > 1).all()


# --- Counted traffic


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [True, False])
def test_traffic_is_at_most_a_quarter_above_the_compulsory_one(packed, out, stream):
    """Frames that a view needs once, the view once; all else, such as the table's rows, is what comes on top."""
    frames, bodies = ntu_like.lengths(np.random.default_rng(0), 24)
    clips = packed_clips(lengths=frames.tolist(), bodies=bodies.tolist()) if packed else dense_clips(batch=24)
    params = drawn(clips, views=(0, 3) if packed else (1, 2), config=AugmentConfig())
    with watch() as seen:
        x = by_kernel(clips, params, NTU25, dtype=out, stream=stream)
    needed, written = frames_needed(clips, params, 64), x.numel() * x.element_size()
    assert seen.total.store_bytes == seen.total.memory_store_bytes == written
    asked = seen.total.load_bytes + seen.total.store_bytes
    print(f"asked for {asked:,} bytes of {needed + written:,}: {asked / (needed + written):.3f}")
    assert needed <= seen.total.load_bytes
    assert asked <= 1.25 * (needed + written)


def test_traffic_of_the_draw():
    frames = torch.arange(1, 31) * 11
    with kernels_on_cpu() as seen:
        params = draw_params(AugmentConfig(), frames, 25, views=(0, 3), seed=0, step=0, sample=frames, impl="triton")
    assert seen.total.store_bytes == params.table.numel() * 4
    assert seen.total.load_bytes == 2 * 30 * (8 + 8)
