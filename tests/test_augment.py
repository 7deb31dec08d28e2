"""The random choices of views: what they depend on, and the distribution of every column of the table."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from plain_philox import uniform_plain, words_plain
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmc.reference import augment as reference
from fastmc.views.draw import (
    BASIC_KEY,
    BASIC_QUERY,
    COLUMNS,
    MASK,
    STRONG,
    WEAK,
    AugmentConfig,
    ViewParams,
    identity_params,
    rotation_matrix,
)
from fastmc.views.draw import draw_params as draw_by_any

draw_params = partial(draw_by_any, impl="torch")  # the other implementations are held against this one
COUNT = 20_000
FAR = 3.3  # standard deviations; of some two hundred checks, each may fail once in a thousand
CHOICES = ("flip", "noise_std", "filter_sigma")


def draw(
    count: int = 200,
    *,
    views: tuple[int, ...] = (STRONG,),
    frames: int = 200,
    joints: int = 25,
    config: AugmentConfig | None = None,
    seed: int = 0,
    step: int | Tensor = 0,
    resized_to: int | None = None,
) -> ViewParams:
    return draw_params(
        config or AugmentConfig(),
        torch.full((count,), frames),
        joints,
        views=views,
        seed=seed,
        step=step,
        sample=torch.arange(count),
        resized_to=resized_to,
    )


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    """By Kolmogorov and Smirnov, at a level of one in a thousand."""
    u = ((values.double() - low) / (high - low)).sort().values
    assert u[0] >= -1e-6 and u[-1] <= 1 + 1e-6
    place = torch.arange(len(u), dtype=torch.float64) / len(u)
    assert torch.maximum(u - place, place + 1 / len(u) - u).max() < 1.95 / math.sqrt(len(u))


def assert_equally_often(values: Tensor, low: int, high: int) -> None:
    """Each integer from low to high, by chi-square at the level of 3.3 standard deviations."""
    assert values.min() >= low and values.max() <= high
    kinds = high - low + 1
    expected = len(values) / kinds
    assert expected > 5, "too few for a chi-square test"
    counts = torch.bincount(values.long() - low, minlength=kinds)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = kinds - 1
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + FAR * math.sqrt(2 / (9 * freedom))) ** 3


def assert_share(chosen: Tensor, share: float) -> None:
    spread = math.sqrt(share * (1 - share) / chosen.numel())
    assert abs(float(chosen.double().mean()) - share) <= FAR * spread


def assert_uncorrelated(columns: Tensor) -> None:
    """columns: (N, numbers)."""
    assert (columns.std(dim=0) > 0).all()
    numbers = torch.corrcoef(columns.double().T).fill_diagonal_(0).abs()
    assert numbers.max() < 4.5 / math.sqrt(len(columns))  # of a few hundred pairs


def off_diagonal(matrix: Tensor) -> Tensor:
    return matrix[..., ~torch.eye(3, dtype=torch.bool)]


# --- The key


def test_the_numbers_are_those_of_the_documented_key_and_counter():
    """Shear and jittering entries are 2 u - 1, u of a Philox block whose counter is (block, step, sample, view); also
    where seed, step and sample are the largest that there are."""
    seed, step, sample = 2**63 - 1, 2**31 - 1, torch.tensor([0, 7, 2**31 - 1, 2**31 - 2])
    views = (BASIC_KEY, WEAK, BASIC_QUERY)
    p = draw_params(AugmentConfig(), torch.full((4,), 99), 25, views=views, seed=seed, step=step, sample=sample)
    for w, view in enumerate(views):
        for n in range(4):
            words = words_plain(seed, np.arange(15), step, int(sample[n]), view)
            numbers = set((2 * uniform_plain(words) - 1).ravel().astype(np.float32).tolist())
            entries = [p.column("jitter")[w, n].flatten(), off_diagonal(p.column("pose")[w, n])]
            drawn = {value for t in entries for value in t.tolist() if value != 0}
            assert drawn <= numbers
            assert len(drawn) in (0, 6, 9)
    assert (p.column("jitter") != 0).any() and (off_diagonal(p.column("pose")) != 0).any()


@pytest.mark.parametrize("resized_to", [None, 64])
def test_a_row_does_not_depend_on_what_is_drawn_beside_it(resized_to):
    """Not on the batch's split or order, nor on the views drawn with it."""
    frames, sample = torch.randint(1, 400, (60,)), torch.randperm(10_000)[:60]
    views = (BASIC_KEY, STRONG, BASIC_QUERY, WEAK)

    def table(ids: Tensor, views: tuple[int, ...] = views) -> Tensor:
        key = {"seed": 9, "step": 4, "sample": sample[ids]}
        return draw_params(AugmentConfig(), frames[ids], 25, views=views, resized_to=resized_to, **key).table

    together, order = table(torch.arange(60)), torch.randperm(60)
    assert torch.equal(table(order), together[:, order])
    assert torch.equal(torch.cat([table(ids) for ids in torch.arange(60).split(7)], dim=1), together)
    assert torch.equal(torch.cat([table(torch.arange(60), (view,)) for view in views]), together)
    assert torch.equal(table(torch.arange(60), views[::-1]), together.flip(0))


def test_a_resumed_run_draws_the_same():
    """A step's table holds no history, and drawing it neither reads nor moves torch's generator."""
    run = [draw(30, views=(1, 2), step=step).table for step in range(6)]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(draw(30, views=(1, 2), step=5).table, run[5])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(run[4], run[5])


def test_a_step_may_be_a_tensor():
    p = draw(30, views=(1, 2), step=torch.tensor(2**31 - 1))
    assert torch.equal(p.table, draw(30, views=(1, 2), step=2**31 - 1).table)
    assert p.step == 2**31 - 1


@pytest.mark.parametrize("views", [(0,), (2,), (1, 2), (0, 3)])
@pytest.mark.parametrize("resized_to", [None, 64])
def test_a_table_stays_on_the_device_of_its_clips(views, resized_to):
    """Fake tensors on a device that is not the CPU: an operand that is left on the CPU is an error."""
    with FakeTensorMode():
        frames, sample = torch.empty(2, 6, dtype=torch.int64, device="meta")
        step = torch.empty((), dtype=torch.int64, device="meta")
        p = draw_params(
            AugmentConfig(), frames, 25, views=views, seed=1, step=step, sample=sample, resized_to=resized_to
        )
        assert p.table.device.type == "meta" and p.table.shape == (len(views), 6, 55)


def test_columns_are_where_the_kernels_look_for_them():
    p = identity_params(torch.tensor([4, 5]), torch.tensor([7, 8]), 20)
    p = replace(p, table=torch.arange(2 * 50.0).view(1, 2, 50))
    shapes = {name: tuple(p.column(name).shape) for name in COLUMNS}
    assert shapes == {
        "crop_start": (1, 2), "crop_length": (1, 2), "shift": (1, 2), "reverse": (1, 2), "centre": (1, 2),
        "flip": (1, 2), "noise_std": (1, 2), "filter_sigma": (1, 2), "filter_gain": (1, 2),
        "axis_scale": (1, 2, 3), "pose": (1, 2, 3, 3), "jitter": (1, 2, 3, 3), "jittered": (1, 2, 20),
    }  # fmt: skip
    assert torch.equal(torch.cat([p.column(name).reshape(2, -1) for name in COLUMNS], dim=1), p.table[0])
    assert p.column("pose")[0, 0, 0, 1] == 13, "row-major"
    assert p.num_joints == 20
    assert [p.column(name).shape for name in MASK] == [(1, 2, 0)] * 2
    p = replace(p, table=torch.arange(2 * 77.0).view(1, 2, 77), masked=7)
    assert p.num_joints == 20
    for name, first, count in (("jittered", 30, 20), ("masked_joints", 50, 20), ("masked_frames", 70, 7)):
        assert torch.equal(p.column(name)[0, 0], torch.arange(first, first + count).float())


def test_identity():
    p = identity_params(torch.tensor([4, 5]), torch.tensor([7, 8]), 20)
    assert p.table.shape == (1, 2, 50)
    assert p.column("crop_start").tolist() == [[4, 5]] and p.column("crop_length").tolist() == [[7, 8]]
    assert (p.column("axis_scale") == 1).all() and (p.column("centre") == -1).all()
    for name in ("pose", "jitter"):
        assert torch.equal(p.column(name), torch.eye(3).expand(1, 2, 3, 3))
    for name in (*CHOICES, "jittered"):
        assert (p.column(name) == 0).all()


# --- The crop


def test_the_length_is_uniform():
    config = AugmentConfig(crop_ratio_min=0.1, crop_frames_min=1)
    length = draw(COUNT, config=config).column("crop_length")[0]
    assert_equally_often(length, 20, 199)  # floor(200 ratio), ratio in [0.1, 1)


def test_the_shortest_crop():
    p = draw(COUNT)
    length, start = p.column("crop_length")[0], p.column("crop_start")[0]
    assert length.min() == 64
    assert_share(length == 64, (65 / 200 - 0.1) / 0.9)
    assert ((start >= 0) & (start + length <= 200)).all()
    for frames in (1, 2, 63, 64):
        p = draw(frames=frames)
        assert (p.column("crop_length") == frames).all() and (p.column("crop_start") == 0).all()
    assert (draw(config=AugmentConfig(crop_ratio_min=1.0)).column("crop_length") == 200).all()


def place_in_room(start: Tensor, length: Tensor, frames: int) -> Tensor:
    """In [0, 1), uniform if each start is as likely: start and a random fraction of a frame, over all starts."""
    fraction = torch.rand(len(start), generator=torch.Generator().manual_seed(0))
    return (start + fraction) / (frames + 1 - length)


def test_the_start_is_uniform_in_the_room_that_the_length_leaves():
    p = draw(COUNT, frames=100)
    length, start = p.column("crop_length")[0], p.column("crop_start")[0]
    assert_equally_often(start[length == 64], 0, 36)
    longer = length > 64
    place = place_in_room(start, length, 100)[longer]
    assert_uniform(place, 0, 1)
    assert_uncorrelated(torch.stack([place, length[longer]], dim=1))


def test_attacked_clips_are_cropped_as_their_sources_are():
    """The shortest crop of 64 frames counts in frames of the source, not in the 64 frames that the attack leaves."""
    frames = torch.tensor([300, 100, 64, 10]).repeat_interleave(2000)
    key = {"views": (WEAK,), "seed": 0, "step": 0, "sample": torch.arange(len(frames))}
    source = draw_params(AugmentConfig(), frames, 25, **key)
    attacked = draw_params(AugmentConfig(), frames, 25, **key, resized_to=64)
    start, length = attacked.column("crop_start")[0], attacked.column("crop_length")[0]
    assert ((length >= 1) & (start >= 0) & (start + length <= 64)).all()
    assert (length / 64 - source.column("crop_length")[0] / frames).abs().max() <= 0.5 / 64 + 1e-6
    assert (start / 64 - source.column("crop_start")[0] / frames).abs().max() <= 1.5 / 64
    assert length[:2000].min() == round(64 * 64 / 300)
    assert (length[4000:] == 64).all(), "a clip of at most 64 frames is taken whole"
    assert torch.equal(attacked.table[..., 2:], source.table[..., 2:]), "all else is the same"


def test_crops_are_exact_up_to_the_longest_clip():
    config = AugmentConfig(crop_frames_min=1)
    p = draw(2000, config=config, frames=2**24 - 1)
    start, length = p.column("crop_start")[0], p.column("crop_length")[0]
    for t in (start, length):
        assert torch.equal(t, t.floor())
    assert ((start >= 0) & (length >= 1) & (start.long() + length.long() <= 2**24 - 1)).all()
    assert_uniform(length.double() / (2**24 - 1), 0.1, 1)


# --- The basic augmentation


def test_shear():
    p = draw(COUNT, views=(BASIC_KEY,), config=AugmentConfig(shear=0.3))
    pose, is_jitter = p.column("pose")[0], p.column("jittered")[0].any(dim=1)
    assert_share(is_jitter, 0.5)
    assert torch.equal(pose[is_jitter], torch.eye(3).expand(int(is_jitter.sum()), 3, 3))
    shear = pose[~is_jitter]
    assert (shear.diagonal(dim1=1, dim2=2) == 1).all()
    for entry in off_diagonal(shear).unbind(1):
        assert_uniform(entry, -0.3, 0.3)
    assert_uncorrelated(off_diagonal(shear))


def test_jittering_matrix():
    p = draw(COUNT, views=(BASIC_KEY,))
    matrix, is_jitter = p.column("jitter")[0].flatten(1), p.column("jittered")[0].any(dim=1)
    is_zeroing = (matrix == 0).all(dim=1)
    assert_share(is_zeroing, 0.5)
    assert_share(is_zeroing & is_jitter, 0.25)
    for entry in matrix[~is_zeroing].unbind(1):
        assert_uniform(entry, -1, 1)
    assert_uncorrelated(matrix[~is_zeroing])


@pytest.mark.parametrize("joints", [20, 25])
def test_jittered_joints_are_any_subset_of_their_number(joints):
    jittered = draw(COUNT, views=(BASIC_KEY,), joints=joints).column("jittered")[0]
    assert ((jittered == 0) | (jittered == 1)).all()
    jittered = jittered[jittered.any(dim=1)].double()
    taken = min(15, round(0.6 * joints))
    assert (jittered.sum(dim=1) == taken).all()
    for joint in jittered.unbind(1):
        assert_share(joint, taken / joints)
    pairs, expected = jittered.T @ jittered / len(jittered), taken * (taken - 1) / (joints * (joints - 1))
    spread = math.sqrt(expected * (1 - expected) / len(jittered))
    for a, b in combinations(range(joints), 2):
        assert abs(pairs[a, b] - expected) < 4.5 * spread, (a, b)


@pytest.mark.parametrize("joints", [1, 2, 11, 25, 33])
def test_jittering_never_takes_all_joints_of_a_small_skeleton(joints):
    jittered = draw(joints=joints).column("jittered")
    assert jittered.shape == (1, 200, joints)
    assert jittered.sum(dim=2).max() == min(15, round(0.6 * joints))


def test_how_many_joints_are_jittered_is_a_setting():
    assert draw(config=AugmentConfig(jitter_joints=4)).column("jittered").sum(dim=2).unique().tolist() == [0, 4]
    assert not draw(config=AugmentConfig(jitter_joints=0)).column("jittered").any()


@pytest.mark.parametrize("view", [BASIC_KEY, WEAK, BASIC_QUERY])
def test_a_basic_view_draws_only_basic_augmentation(view):
    p = draw(views=(view,))
    for name in CHOICES:
        assert (p.column(name) == 0).all(), name
    assert (p.column("axis_scale") == 1).all()


# --- The strong augmentation


@pytest.fixture(scope="module")
def strong() -> ViewParams:
    return draw(COUNT)


def test_each_strong_transform_is_chosen_half_of_the_time_and_alone(strong):
    masked = (strong.column("axis_scale")[0] == 0).any(dim=1)
    bits = [strong.column(name)[0] > 0 for name in CHOICES] + [masked, strong.column("jittered")[0].any(dim=1)]
    for bit in bits:
        assert_share(bit, 0.5)
    assert_uncorrelated(torch.stack(bits, dim=1).double())
    assert strong.column("flip").unique().tolist() == [0, 1]


@pytest.mark.parametrize("probability", [0.0, 0.2, 1.0])
def test_probabilities_are_settings(probability):
    names = ("flip", "noise", "filter", "axis_mask")
    p = draw(COUNT, config=AugmentConfig(**{f"{name}_probability": probability for name in names}))
    masked = (p.column("axis_scale") == 0).any(dim=2)
    for chosen in (*(p.column(name) > 0 for name in CHOICES), masked):
        assert_share(chosen, probability)


def test_noise_has_its_standard_deviation():
    values = draw(config=AugmentConfig(noise_std=0.02)).column("noise_std").unique()
    assert values.tolist() == pytest.approx([0.0, 0.02], rel=1e-6)


def test_sigma_is_uniform(strong):
    sigma = strong.column("filter_sigma")[0]
    assert_uniform(sigma[sigma > 0], 0.1, 2)
    sigma = draw(config=AugmentConfig(filter_sigma_min=0.5, filter_sigma_max=0.6)).column("filter_sigma")[0]
    assert_uniform(sigma[sigma > 0], 0.5, 0.6)


def test_the_masked_axis_is_any_of_the_three(strong):
    scale = strong.column("axis_scale")[0]
    assert ((scale == 0) | (scale == 1)).all()
    masked = (scale == 0).sum(dim=1)
    assert masked.max() == 1
    assert_equally_often((scale == 0).float().argmax(dim=1)[masked == 1], 0, 2)


def angles(rotation: Tensor) -> Tensor:
    """Degrees (N, 3) about x, y, z of matrices R_z R_y R_x (N, 3, 3), for angles below 90 degrees."""
    r = rotation.double()
    x, y, z = r[:, 2, 1].atan2(r[:, 2, 2]), (-r[:, 2, 0]).asin(), r[:, 1, 0].atan2(r[:, 0, 0])
    return torch.rad2deg(torch.stack([x, y, z], dim=1))


def test_rotation(strong):
    """A jittered clip's other map is the bare rotation: up to 30 degrees about any one axis, 1 about the others."""
    turn = strong.column("pose")[0][strong.column("jittered")[0].any(dim=1)]
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand_as(turn), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.linalg.det(turn), torch.ones(len(turn)), atol=1e-6, rtol=0)
    found = angles(turn)
    large = found > 1 + 1e-4
    assert (large.sum(dim=1) <= 1).all()
    assert_share(large.any(dim=1), 29 / 30)
    main = large.double().argmax(dim=1)[large.any(dim=1)]
    assert_equally_often(main, 0, 2)
    found = found[large.any(dim=1)]
    for axis in range(3):
        assert_uniform(found[main == axis, axis], 1, 30)
        first, second = (found[main == axis, other] for other in range(3) if other != axis)
        assert_uniform(first, 0, 1)
        assert_uniform(second, 0, 1)
        assert_uncorrelated(torch.stack([found[main == axis, axis], first, second], dim=1))


def test_rotation_is_applied_after_either_map(strong):
    """Of a sheared clip, pose = R shear; of a jittered one, jitter = R matrix, R being its pose."""
    still = replace(AugmentConfig(), rotation_degrees=0.0, rotation_minor_degrees=0.0)
    bare = draw(500, config=still)
    turned = ViewParams(strong.table[:, :500], 0, 0, strong.sample[:500], (STRONG,))
    is_jitter = bare.column("jittered")[0].any(dim=1)
    turn = turned.column("pose")[0][is_jitter]
    torch.testing.assert_close(
        turned.column("jitter")[0][is_jitter], turn @ bare.column("jitter")[0][is_jitter], atol=1e-6, rtol=0
    )
    turn = turned.column("pose")[0][~is_jitter] @ torch.linalg.inv(bare.column("pose")[0][~is_jitter].double()).float()
    usable = torch.linalg.det(bare.column("pose")[0][~is_jitter]).abs() > 0.3
    product = (turn @ turn.transpose(1, 2))[usable]
    torch.testing.assert_close(product, torch.eye(3).expand_as(product), atol=1e-4, rtol=0)
    assert torch.equal(turned.column("jittered"), bare.column("jittered"))


def test_rotation_equals_reference():
    angle = torch.tensor([[0.3, -0.7, 1.1]])
    points = torch.randn(4, 1, 5, 3)
    want = reference.rotate(points, angle[0].tolist())
    torch.testing.assert_close(points @ rotation_matrix(angle)[0].T, want)


def test_all_choices_of_a_view_are_independent(strong):
    p = {name: strong.column(name)[0].double() for name in COLUMNS}
    masked = (p["axis_scale"] == 0).double()
    some = (p["filter_sigma"] > 0) & (p["crop_length"] > 64)
    place = place_in_room(p["crop_start"], p["crop_length"], 200)
    numbers = [p["crop_length"], place, p["flip"], p["noise_std"], p["filter_sigma"], masked.sum(dim=1)]
    numbers += [p["jittered"].any(dim=1).double(), (p["jitter"] == 0).all(dim=2).all(dim=1).double()]
    assert_uncorrelated(torch.stack(numbers, dim=1)[some])


@pytest.mark.parametrize(
    "setting",
    [
        {"crop_ratio_min": 0.0},
        {"flip_probability": 1.5},
        {"filter_sigma_min": 3.0},
        {"crop_frames_min": 0},
        {"noise_std": -1.0},
        {"rotation_degrees": float("nan")},
    ],
)
def test_config_refuses_nonsense(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        AugmentConfig(**setting)


def test_a_joint_mask_needs_the_frames_of_a_view_and_limits_in_their_order():
    frames, sample = torch.tensor([30, 40]), torch.arange(2)
    config = AugmentConfig(joint_mask_probability=1.0)
    with pytest.raises(ValueError, match="size must be given, the frames of a view: a joint mask"):
        draw_params(config, frames, 25, views=(0,), seed=0, step=0, sample=sample)
    for wrong in ({"joint_mask_joints_min": 16}, {"joint_mask_frames_min": 0.7}):
        (name,) = wrong
        with pytest.raises(ValueError, match=name):
            AugmentConfig(**wrong)
    params = draw_params(config, frames, 4, views=(0, 2), seed=0, step=0, sample=sample, size=9)
    assert params.column("masked_joints").sum(dim=2).eq(4).all(), "of few joints all"
    assert params.column("masked_frames").sum(dim=2).sub(4.5).abs().le(1.5).all()
