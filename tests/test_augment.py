"""The batched views against the reference, transform by transform and composed; what the random choices obey."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmc.augment import (
    AugmentConfig,
    PackedClips,
    _add_noise,
    apply_params,
    crop_span,
    draw_params,
    identity_params,
    pack_dense,
    rotation_matrix,
    to_encoder_layout,
    to_stream,
)
from fastmc.random import normal, philox
from fastmc.reference import augment as reference
from fastmc.skeleton import KINECT20, NTU25, Skeleton

SIZE = 64
LENGTHS = (1, 2, 30, 64, 65, 301)


def make_clips(skeleton: Skeleton = NTU25, lengths=LENGTHS, seed=0) -> tuple[PackedClips, list[torch.Tensor]]:
    """Packed clips of one and two bodies in turn, and the same as dense (T, 2, V, 3) float64 clips. The second body
    of a two-body clip is away in its first third."""
    generator = torch.Generator().manual_seed(seed)
    rows, dense, start, bodies = [], [], [], []
    for n, frames in enumerate(lengths):
        count = 1 + n % 2
        clip = torch.randn(frames, count, skeleton.num_joints, 3, generator=generator)
        if count == 2:
            clip[: frames // 3, 1] = 0
        start.append(sum(len(r) for r in rows))
        rows.append(clip.flatten(0, 1))
        bodies.append(count)
        full = torch.zeros(frames, 2, skeleton.num_joints, 3, dtype=torch.float64)
        full[:, :count] = clip
        dense.append(full)
    packed = PackedClips(
        torch.cat(rows), torch.tensor(start), torch.tensor(lengths), torch.tensor(bodies), max_bodies=2
    )
    return packed, dense


def reference_view(clip: torch.Tensor, params, n: int, skeleton: Skeleton) -> torch.Tensor:
    """View n by the reference's own functions, in float64."""
    start, length = int(params.crop_start[n]), int(params.crop_length[n])
    original = x = reference.temporal_crop_resize(clip, start, length, SIZE)
    jittered = params.jittered[n].nonzero()[:, 0].tolist()
    others = [v for v in range(skeleton.num_joints) if v not in jittered]
    # `pose` and `jitter` carry the rotation too: it is applied after either, so it may be taken along.
    x = reference.joint_jittering(x, jittered, params.jitter[n].double())
    x = reference.joint_jittering(x, others, params.pose[n].double())
    if params.flip[n]:
        x = reference.spatial_flip(x, skeleton.mirror)
    if params.noise_std[n] > 0:
        step, sample, view = params.noise_key[n].tolist()
        blocks = 2**16 + torch.arange((x.numel() + 3) // 4)
        noise = normal(philox(params.noise_seed, blocks, step, sample, view)).flatten()[: x.numel()]
        x = reference.gaussian_noise(x, noise.view(x.shape).double(), float(params.noise_std[n]))
    if params.filter_sigma[n] > 0:
        x = reference.gaussian_filter(x, float(params.filter_sigma[n]))
    for axis in (params.axis_scale[n] == 0).nonzero()[:, 0].tolist():
        x = reference.axis_mask(x, axis)
    return reference.restore_missing(x, original)


def assert_views_equal(clips, dense, params, skeleton=NTU25, tolerance=3e-6):
    got = apply_params(clips, params, skeleton, SIZE)
    assert got.shape == (len(clips), SIZE, 2, skeleton.num_joints, 3)
    for n, clip in enumerate(dense):
        want = reference_view(clip, params, n, skeleton)
        scale = want.abs().max().clamp_min(1)
        error = float((got[n] - want).abs().max() / scale)
        assert error < tolerance, f"clip {n}: {error}"


SHORT_CROPS = AugmentConfig(crop_ratio_min=0.2, crop_frames_min=5)


def draw(clips, *, strong, config=SHORT_CROPS, seed=3, step=11, skeleton=NTU25):
    sample = torch.arange(len(clips)) + 100
    return draw_params(
        config, clips.num_frames, skeleton.num_joints, strong=strong, seed=seed, step=step, sample=sample, view=2
    )


@pytest.mark.parametrize("skeleton", [NTU25, KINECT20], ids=lambda s: s.name)
@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("step", range(4))
def test_composed_view_equals_reference(skeleton, strong, step):
    clips, dense = make_clips(skeleton, seed=step)
    assert_views_equal(clips, dense, draw(clips, strong=strong, step=step, skeleton=skeleton), skeleton)


ALONE = {
    "crop": lambda p, c: replace(p, crop_start=c.num_frames // 3, crop_length=c.num_frames - c.num_frames // 3),
    "pose": lambda p, c: replace(p, pose=torch.randn(len(c), 3, 3)),
    "jitter": lambda p, c: replace(p, jitter=torch.randn(len(c), 3, 3), jittered=torch.rand(len(c), 25) < 0.5),
    "zeroing": lambda p, c: replace(p, jitter=torch.zeros(len(c), 3, 3), jittered=torch.rand(len(c), 25) < 0.5),
    "flip": lambda p, c: replace(p, flip=torch.ones(len(c), dtype=torch.bool)),
    "noise": lambda p, c: replace(
        p, noise_std=torch.full((len(c),), 0.1), noise_seed=5, noise_key=torch.arange(3 * len(c)).view(-1, 3)
    ),
    "filter": lambda p, c: replace(p, filter_sigma=torch.linspace(0.1, 2, len(c))),
    "axis_mask": lambda p, c: replace(p, axis_scale=1 - torch.eye(3)[torch.arange(len(c)) % 3]),
}


@pytest.mark.parametrize("transform", ALONE)
def test_each_transform_alone_equals_reference(transform):
    torch.manual_seed(0)
    clips, dense = make_clips()
    plain = identity_params(clips.num_frames, 25)
    params = ALONE[transform](plain, clips)
    assert_views_equal(clips, dense, params)
    changed = apply_params(clips, params, NTU25, SIZE)
    assert not torch.allclose(changed[1:], apply_params(clips, plain, NTU25, SIZE)[1:], atol=1e-3), (
        "it must do something"
    )


def test_the_comparison_can_fail():
    clips, dense = make_clips()
    params = draw(clips, strong=True)
    wrong = replace(params, pose=params.pose * (1 + 1e-4), jitter=params.jitter * (1 + 1e-4))
    got = apply_params(clips, wrong, NTU25, SIZE)
    errors = [(got[n] - reference_view(clip, params, n, NTU25)).abs().max() for n, clip in enumerate(dense)]
    assert max(errors) > 3e-5


def test_rotation_equals_reference():
    angles = torch.tensor([[0.3, -0.7, 1.1]])
    points = torch.randn(4, 1, 5, 3)
    want = reference.rotate(points, angles[0].tolist())
    torch.testing.assert_close(points @ rotation_matrix(angles)[0].T, want)


def test_missing_bodies_stay_exactly_zero():
    clips, dense = make_clips()
    for step in range(5):
        params = draw(clips, strong=True, step=step)
        x = apply_params(clips, params, NTU25, SIZE)
        for n, clip in enumerate(dense):
            source = reference.temporal_crop_resize(clip, int(params.crop_start[n]), int(params.crop_length[n]), SIZE)
            missing = (source == 0).flatten(2).all(dim=2)
            assert (x[n][missing] == 0).all()
            assert missing[:, 1].all() == (n % 2 == 0), "clips 0, 2, 4 have no second body"


def test_views_do_not_depend_on_batch_split_or_order():
    clips, _ = make_clips()
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    config = AugmentConfig()

    def view(ids):
        part = PackedClips(clips.frames, clips.start[ids], clips.num_frames[ids], clips.num_bodies[ids], 2)
        params = draw_params(config, part.num_frames, 25, strong=True, seed=9, step=4, sample=ids, view=2)
        return apply_params(part, params, NTU25, SIZE)

    together = view(torch.arange(6))
    assert torch.equal(view(order), together[order])
    torch.testing.assert_close(torch.cat([view(torch.tensor([n])) for n in range(6)]), together, rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", ["seed", "step", "sample", "view"])
def test_every_part_of_the_key_matters(change):
    frames = torch.full((1,), 200)
    key = {"seed": 1, "step": 2, "sample": torch.tensor([3]), "view": 1}
    first = draw_params(AugmentConfig(), frames, 25, strong=True, **key)
    second = draw_params(AugmentConfig(), frames, 25, strong=True, **{**key, change: key[change] + 1})
    assert not torch.equal(first.pose, second.pose)


def test_attacked_clips_are_cropped_as_their_sources_are():
    """The shortest crop of 64 frames counts in frames of the source, not in the 64 frames that the attack leaves."""
    frames = torch.tensor([300, 100, 64, 10]).repeat_interleave(2000)
    key = {"strong": True, "seed": 0, "step": 0, "sample": torch.arange(len(frames)), "view": 1}
    source = draw_params(AugmentConfig(), frames, 25, **key)
    attacked = draw_params(AugmentConfig(), frames, 25, **key, resized_to=64)
    assert (attacked.crop_length >= 1).all()
    assert (attacked.crop_start >= 0).all()
    assert (attacked.crop_start + attacked.crop_length <= 64).all()
    share = attacked.crop_length / 64 - source.crop_length / frames
    assert share.abs().max() <= 0.5 / 64 + 1e-6
    shift = attacked.crop_start / 64 - source.crop_start / frames
    assert shift.abs().max() <= 1.5 / 64
    assert attacked.crop_length[:2000].min() == round(64 * 64 / 300)
    assert (attacked.crop_length[4000:] == 64).all(), "a clip of at most 64 frames is taken whole"


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("resized_to", [None, 64])
def test_views_stay_on_the_device_of_their_clips(strong, resized_to):
    """Fake tensors on a device that is not the CPU: an operand that is left on the CPU is an error."""
    clips, _ = make_clips()
    with FakeTensorMode(allow_non_fake_inputs=True):
        real = [getattr(clips, name) for name in ("frames", "start", "num_frames", "num_bodies")]
        on_device = PackedClips(*(torch.empty(t.shape, dtype=t.dtype, device="meta") for t in real), max_bodies=2)
        params = draw_params(
            AugmentConfig(),
            on_device.num_frames,
            25,
            strong=strong,
            seed=0,
            step=5,
            sample=torch.empty(6, dtype=torch.int64, device="meta"),
            view=2,
            resized_to=resized_to,
        )
        assert apply_params(on_device, params, NTU25, SIZE).device.type == "meta"


def test_shear_jitter_and_noise_have_their_amplitudes():
    count = 20_000
    config = AugmentConfig(shear=0.3, noise_std=0.02)
    frames, sample = torch.full((count,), 100), torch.arange(count)
    p = draw_params(config, frames, 25, strong=False, seed=0, step=0, sample=sample, view=0)
    is_jitter = p.jittered.any(dim=1)
    shear = p.pose[~is_jitter]
    assert (shear.diagonal(dim1=1, dim2=2) == 1).all()
    off_diagonal = shear[:, ~torch.eye(3, dtype=torch.bool)]
    assert 0.299 < off_diagonal.abs().max() <= 0.3
    assert off_diagonal.mean(dim=0).abs().max() < 0.01
    assert (off_diagonal.std(dim=0) - 0.3 / 3**0.5).abs().max() < 0.01
    assert torch.corrcoef(off_diagonal.T).fill_diagonal_(0).abs().max() < 0.05
    assert torch.equal(p.pose[is_jitter], torch.eye(3).expand(int(is_jitter.sum()), 3, 3))
    matrix = p.jitter[(p.jitter != 0).flatten(1).any(dim=1)]
    assert 0.99 < matrix.abs().max() <= 1
    assert (matrix.std(dim=0) - 1 / 3**0.5).abs().max() < 0.03
    strong = draw_params(config, frames, 25, strong=True, seed=0, step=0, sample=sample, view=0)
    assert strong.noise_std.unique().tolist() == pytest.approx([0.0, 0.02])


@pytest.mark.parametrize("joints", [1, 11, 20, 25])
def test_jittering_never_takes_all_joints_of_a_small_skeleton(joints):
    sample = torch.arange(200)
    p = draw_params(
        AugmentConfig(), torch.full((200,), 50), joints, strong=False, seed=0, step=0, sample=sample, view=0
    )
    assert p.jittered.sum(dim=1).max() == min(15, round(0.6 * joints))


def test_drawn_parameters_have_their_distributions():
    config = AugmentConfig()
    count, frames = 20_000, 200
    p = draw_params(
        config,
        torch.full((count,), frames),
        25,
        strong=True,
        seed=0,
        step=0,
        sample=torch.arange(count),
        view=2,
    )
    assert p.crop_length.min() == 64
    assert p.crop_length.max() in (199, 200)
    # ratio uniform in [0.1, 1]: below 64 of 200 frames for (0.32 - 0.1) / 0.9 of the draws
    assert abs((p.crop_length == 64).float().mean() - (0.325 - 0.1) / 0.9) < 0.02
    assert (p.crop_start >= 0).all()
    assert (p.crop_start + p.crop_length <= frames).all()
    room = (frames - p.crop_length)[p.crop_length == 64]
    assert abs((p.crop_start[p.crop_length == 64] / room).mean() - 0.5) < 0.02

    is_jitter = p.jittered.any(dim=1)
    assert abs(is_jitter.float().mean() - 0.5) < 0.02
    assert (p.jittered[is_jitter].sum(dim=1) == 15).all()
    assert (p.jittered[is_jitter].float().mean(dim=0) - 0.6).abs().max() < 0.03, "every joint is as likely"
    zeroed = (p.jitter.flatten(1) == 0).all(dim=1)
    assert abs(zeroed.float().mean() - 0.5) < 0.02

    for name, chosen in {
        "flip": p.flip,
        "noise": p.noise_std > 0,
        "filter": p.filter_sigma > 0,
        "axis mask": (p.axis_scale == 0).any(dim=1),
    }.items():
        assert abs(chosen.float().mean() - 0.5) < 0.02, name
    sigma = p.filter_sigma[p.filter_sigma > 0]
    assert 0.1 <= sigma.min() < 0.12
    assert 1.98 < sigma.max() <= 2.0
    assert ((1 - p.axis_scale).mean(dim=0) - 1 / 6).abs().max() < 0.02

    # A rotation's trace is 1 + 2 cos(angle); the jittered clips' pose map is the bare rotation.
    turn = p.pose[is_jitter]
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(3).expand_as(turn), atol=1e-5, rtol=0)
    angle = torch.rad2deg(torch.arccos(((turn.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1)))
    assert angle.max() < 30.1
    assert abs(angle.mean() - 15) < 0.5


def test_basic_view_draws_only_basic_augmentation():
    p = draw(make_clips()[0], strong=False)
    assert not p.flip.any()
    assert (p.noise_std == 0).all()
    assert (p.filter_sigma == 0).all()
    assert (p.axis_scale == 1).all()


def test_identity_of_a_64_frame_clip_is_the_clip():
    clip = torch.randn(3, 64, 2, 25, 3)
    packed = pack_dense(clip)
    got = apply_params(packed, identity_params(packed.num_frames, 25), NTU25, 64)
    torch.testing.assert_close(got, clip, atol=1e-6, rtol=0)


def test_crop_span_is_the_named_crop():
    frames = torch.tensor([100, 100, 1])
    start, length = crop_span(frames, torch.tensor([0.95, 0.5, 0.5]), torch.tensor([0.5, 1.0, 0.5]))
    assert length.tolist() == [95, 50, 1]
    assert start.tolist() == [3, 50, 0]


def test_streams():
    x = torch.randn(2, 5, 1, 25, 3)
    for n in range(2):
        assert torch.equal(to_stream(x, "motion", NTU25)[n], reference.motion(x[n]))
        assert torch.equal(to_stream(x, "bone", NTU25)[n], reference.bone(x[n], NTU25.parents))
    assert torch.equal(to_stream(x, "joint", NTU25), x)
    with pytest.raises(ValueError, match="parents"):
        to_stream(x[:, :, :, :2], "bone", Skeleton("two", ("a", "b")))
    with pytest.raises(ValueError, match="stream"):
        to_stream(x, "colour", NTU25)  # type: ignore[arg-type]


def test_encoder_layout_is_joints_bodies_coordinates():
    x = torch.arange(2 * 3 * 2 * 4 * 3).view(2, 3, 2, 4, 3)
    flat = to_encoder_layout(x)
    assert flat.shape == (2, 3, 24)
    assert flat[1, 2, (3 * 2 + 1) * 3 + 2] == x[1, 2, 1, 3, 2]


def test_noise_is_added_only_where_asked():
    x = torch.zeros(2, 4, 1, 25, 3)
    p = replace(identity_params(torch.tensor([4, 4]), 25), noise_std=torch.tensor([0.0, 0.01]))
    noisy = _add_noise(x, p)
    assert (noisy[0] == 0).all()
    assert np.isclose(noisy[1].std(), 0.01, rtol=0.2)


@pytest.mark.parametrize(
    "setting",
    [{"crop_ratio_min": 0.0}, {"flip_probability": 1.5}, {"filter_sigma_min": 3.0}, {"crop_frames_min": 0}],
)
def test_config_refuses_nonsense(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        AugmentConfig(**setting)
