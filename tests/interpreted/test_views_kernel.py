"""The kernels of views, interpreted: the table by value, counted traffic. Their views by value: tests/test_views.py.

Bounds, races between programs and memory that nobody stored are checked on the way (``kernels_on_cpu``).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_pair import every_pair
from gpu_less import kernels_on_cpu
from philox_kernel import assert_words
from torch import Tensor
from view_cases import (
    FEW,
    OF_RIVALS,
    SHORT_CROPS,
    STREAMS,
    assert_tables_equal,
    by_kernel,
    dense_clips,
    drawn,
    frames_needed,
    packed_clips,
)

from bench import ntu_like
from bench.watch import watch
from fastmc.skeleton import NTU25
from fastmc.views.draw import AugmentConfig, draw_params

# --- The table


def test_philox_bit_for_bit():
    with kernels_on_cpu():
        assert_words()


@pytest.mark.parametrize(("joints", "resized_to"), [(1, None), (2, 64), (20, None), (25, 64), (33, None)])
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
        OF_RIVALS,
    ],
)
def test_table_of_other_settings(config):
    with kernels_on_cpu():
        assert_tables_equal(config)


@pytest.mark.parametrize(
    ("seed", "step"),
    [(seed, 2**31 - 1) for seed in (0, 2**31, 2**32 - 1, 2**32, 2**63 - 1)]
    + [(2**63 - 1, step) for step in (2**31, torch.tensor(2**31 - 1), torch.tensor(1))],
)
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


def test_views_that_a_program_cannot_hold_are_refused():
    clips = packed_clips(lengths=FEW, max_bodies=3)
    with pytest.raises(RuntimeError, match="64 frames of 3 bodies of 25 joints"):
        by_kernel(clips, drawn(clips), NTU25)
    clips = packed_clips(lengths=FEW)
    with pytest.raises(RuntimeError, match="65 frames of 2 bodies of 25 joints"):
        by_kernel(clips, drawn(clips), NTU25, size=65)


# --- Counted traffic


@pytest.mark.parametrize(
    ("packed", "out", "stream"), every_pair([True, False], [torch.float32, torch.bfloat16], STREAMS)
)
def test_traffic_is_at_most_a_quarter_above_the_compulsory_one(packed, out, stream):
    """Frames that a view needs once, the view once; all else, such as the table's rows, is what comes on top."""
    frames, bodies = ntu_like.lengths(np.random.default_rng(0), 6)
    clips = packed_clips(lengths=frames.tolist(), bodies=bodies.tolist()) if packed else dense_clips(batch=6)
    params = drawn(clips, views=(0, 3) if packed else (1, 2), config=AugmentConfig())
    with watch() as seen:
        x = by_kernel(clips, params, NTU25, dtype=out, stream=stream)
    needed, written = frames_needed(clips, params, 64), x.numel() * x.element_size()
    assert seen.total.store_bytes == seen.total.memory_store_bytes == written
    asked = seen.total.load_bytes + seen.total.store_bytes
    print(f"asked for {asked:,} bytes of {needed + written:,}: {asked / (needed + written):.3f}")
    assert needed <= seen.total.load_bytes
    assert asked <= 1.25 * (needed + written)
