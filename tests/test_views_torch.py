"""What is PyTorch's own about views: what the budget notices, devices, streams, errors. Values: tests/test_views.py."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from view_cases import (
    ALONE,
    FEW,
    MUTANTS,
    STREAMS,
    assert_views,
    by_hand,
    clip_of,
    dense_clips,
    drawn,
    excess,
    mutated,
    packed_clips,
    plain,
    to_layout,
    truth,
)

from fastmc.reference import augment as reference
from fastmc.skeleton import KINECT20, NTU25, Skeleton
from fastmc.views import torch_views as views_module
from fastmc.views.clips import PackedClips
from fastmc.views.draw import COLUMNS, identity_params
from fastmc.views.layout import present_bodies, to_stream
from fastmc.views.make import crop_span, make_views, whole_clips

IN_TORCH = partial(make_views, impl="torch")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """All bodies and clips are worked on, as where nobody may ask which need it."""
    monkeypatch.setattr(views_module, "_some", lambda mask: torch.arange(len(mask)))


def test_autocast_is_nobodys_business():
    """A view is float32 arithmetic wherever it is made: under bfloat16 the products would lose centimetres."""
    clips = packed_clips(lengths=FEW)
    params = drawn(clips)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = drawn(clips)
        x = IN_TORCH(clips, under, NTU25)
    assert torch.equal(under.table, params.table)
    assert torch.equal(x, IN_TORCH(clips, params, NTU25))


# --- Against the truth


@pytest.mark.parametrize("transform", sorted(set(ALONE) - {"narrow_and_wide_filter", "several_axes"}))
def test_each_transform_does_something(transform):
    clips = packed_clips()
    views = [IN_TORCH(clips, params, NTU25) for params in (by_hand(transform, clips), plain(clips))]
    assert ((views[0] - views[1]).abs()[0, 2:].amax(dim=(1, 2)) > 1e-3).all()


@pytest.mark.parametrize("transform", ["everything_masked", "noise", "filter", "crop"])
@pytest.mark.parametrize("clips", [packed_clips(lengths=FEW, max_bodies=3), dense_clips()], ids=["packed", "dense"])
@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_way_of_a_gpu(clips, transform):
    assert_views(IN_TORCH, clips, by_hand(transform, clips))
    assert_views(IN_TORCH, clips, drawn(clips))


# --- What the comparison notices


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_budget_notices_wrong_parameters(mutant):
    clips, params = mutated()
    want = truth(clips, params, NTU25)
    assert (excess(IN_TORCH(clips, params, NTU25), *want) <= 1).all()
    found = excess(IN_TORCH(clips, MUTANTS[mutant](params), NTU25), *want)
    assert (found > 1).all(), found


def _crop_frames_with_weights_off(*arguments: object, original=views_module._crop_frames) -> tuple[Tensor, ...]:
    low, high, weight = original(*arguments)
    return low, high, weight + 1e-4


def _all_bodies_present(*arguments: object, original=views_module._resize_and_map_) -> Tensor:
    return torch.ones_like(original(*arguments))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("FILTER_TAPS", 13),
        ("NOISE_COUNTER", (1 << 16) + 1),
        ("_crop_frames", _crop_frames_with_weights_off),
        ("_resize_and_map_", _all_bodies_present),
    ],
)
def test_the_budget_notices_a_wrong_computation(name, wrong, monkeypatch):
    clips, params = mutated()
    monkeypatch.setattr(views_module, name, wrong)
    assert (excess(IN_TORCH(clips, params, NTU25), *truth(clips, params, NTU25)) > 1).any()


# --- Properties


def test_a_resumed_run_makes_the_same_views():
    clips = packed_clips(lengths=FEW)
    run = [IN_TORCH(clips, drawn(clips, step=step), NTU25) for step in range(3)]
    torch.manual_seed(5)
    assert torch.equal(IN_TORCH(clips, drawn(clips, step=torch.tensor(2)), NTU25), run[2])
    assert not torch.equal(run[1], run[2])


def on_meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("packed", [True, False])
def test_views_stay_on_the_device_of_their_clips(packed, stream):
    """Fake tensors on a device that is not the CPU: an error is an operand left on the CPU, or a look at a value."""
    source = packed_clips(lengths=FEW) if packed else dense_clips(batch=5)
    names = ("frames", "start", "num_frames", "num_bodies") if packed else ("x", "num_bodies")
    with FakeTensorMode(allow_non_fake_inputs=True):  # a skeleton keeps its tensors
        clips = replace(source, **{name: on_meta(getattr(source, name)) for name in names})
        frames = clips.num_frames if isinstance(clips, PackedClips) else clips.num_bodies
        params = identity_params(torch.zeros_like(frames), frames, 25)
        params = replace(params, table=torch.cat([params.table] * 2), views=(1, 2), step=torch.zeros_like(frames[0]))
        x = make_views(clips, params, NTU25, stream=stream)
        assert x.device.type == "meta" and x.shape == (2, 5, 64, 150)


# --- The smaller functions


def test_identity_of_a_64_frame_clip_is_the_clip():
    clips = dense_clips()
    assert torch.equal(IN_TORCH(clips, plain(clips), NTU25)[0], clips.x)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_whole_clips_are_resized_and_nothing_else(impl):
    clips = packed_clips()
    x = whole_clips(clips, NTU25, 64, impl=impl)
    assert x.shape == (len(clips), 64, 150) and x.dtype == torch.float32
    for n in range(len(clips)):
        clip = clip_of(clips, n)
        want = to_layout(reference.temporal_crop_resize(clip, 0, len(clip), 64))
        torch.testing.assert_close(x[n].double(), want, atol=1e-5, rtol=0)


def test_crop_span_is_the_named_crop():
    frames = torch.tensor([100, 100, 1])
    start, length = crop_span(frames, torch.tensor([0.95, 0.5, 0.5]), torch.tensor([0.5, 1.0, 0.5]))
    assert length.tolist() == [95, 50, 1]
    assert start.tolist() == [3, 50, 0]


def test_present_bodies():
    x = torch.zeros(2, 3, 4, 2, 3)
    x[0, 1, 2, 1, 0] = -1e-30
    mask = present_bodies(x)
    assert mask.shape == (2, 3, 1, 2, 1)
    assert mask.sum() == 1 and mask[0, 1, 0, 1, 0]


def test_streams_of_the_layout():
    clip = torch.randn(5, 2, 25, 3)
    x = to_layout(clip)[None]
    assert torch.equal(to_stream(x, "joint", NTU25), x)
    assert torch.equal(to_stream(x, "motion", NTU25)[0], to_layout(reference.motion(clip)))
    assert torch.equal(to_stream(x, "bone", NTU25)[0], to_layout(reference.bone(clip, NTU25.parents)))


@pytest.mark.parametrize("stream", STREAMS)
def test_streams_are_differentiable(stream):
    x = torch.randn(2, 4, 3 * 2 * 3, dtype=torch.float64, requires_grad=True)
    skeleton = Skeleton("three", ("a", "b", "c"), parents=(0, 0, 1))
    assert torch.autograd.gradcheck(lambda x: to_stream(x, stream, skeleton), x)


# --- Errors


TWO = Skeleton("two", ("a", "b"))


def test_bones_must_be_known():
    clips = packed_clips(TWO, FEW)
    for call in (lambda: IN_TORCH(clips, plain(clips, TWO), TWO, stream="bone"),
                 lambda: to_stream(torch.zeros(1, 2, 12), "bone", TWO)):  # fmt: skip
        with pytest.raises(ValueError, match="needs the parents of joint layout 'two', which are unknown"):
            call()
    IN_TORCH(clips, plain(clips, TWO), TWO, stream="motion")


def test_the_stream_must_be_known():
    clips = packed_clips(lengths=FEW)
    with pytest.raises(ValueError, match="stream must be one of joint, motion, bone; got 'colour'"):
        IN_TORCH(clips, plain(clips), NTU25, stream="colour")
    with pytest.raises(ValueError, match="stream must be one of"):
        to_stream(torch.zeros(1, 2, 150), "colour", NTU25)  # type: ignore[arg-type]


def test_the_implementation_must_be_known():
    clips = packed_clips(lengths=FEW)
    with pytest.raises(ValueError, match="impl must be one of"):
        make_views(clips, plain(clips), NTU25, impl="numpy")


@pytest.mark.parametrize("lengths", [FEW[:3], (*FEW, 3)])
def test_parameters_of_other_clips_are_refused(lengths):
    clips = packed_clips(lengths=FEW)
    other = packed_clips(lengths=lengths)
    with pytest.raises(ValueError, match=f"params are of {len(lengths)} clips of 25 joints, the clips are 5 of 25"):
        IN_TORCH(clips, plain(other), NTU25)
    with pytest.raises(ValueError, match="params are of 5 clips of 2 joints, the clips are 5 of 25"):
        IN_TORCH(clips, plain(clips, TWO), NTU25)


def with_one(tensor: torch.Tensor, value: float) -> torch.Tensor:
    """A copy whose second element is this."""
    changed = tensor.clone()
    changed[1] = value
    return changed


WRONG_CLIPS = {
    "joints": (lambda c: {"frames": c.frames[:, :17]}, "the clips have 17 joints, skeleton 'ntu25' 25"),
    "no joints": (
        lambda c: {"frames": c.frames.flatten(1)},
        r"frames must be floats \(R, V, 3\), got torch.float32 \(",
    ),
    "x, y": (lambda c: {"frames": c.frames[..., :2]}, r"frames must be \(R, V, 3\), got"),
    "integers": (
        lambda c: {"frames": c.frames.nan_to_num().int()},
        r"frames must be floats \(R, V, 3\), got torch.int32",
    ),
    "numpy": (lambda c: {"frames": c.frames.numpy()}, r"frames must be a tensor \(R, V, 3\), got ndarray"),
    "fewer frames": (
        lambda c: {"frames": c.frames[:30]},
        r"start \d+ of clip \d puts it outside of the 30 rows of frames",
    ),
    "lengths of others": (lambda c: {"num_frames": c.num_frames[:-1]}, r"num_frames must be \(5,\) integers"),
    "bodies in floats": (
        lambda c: {"num_bodies": c.num_bodies.float()},
        r"num_bodies must be \(5,\) integers, one a clip",
    ),
    "a list": (lambda c: {"start": c.start.tolist()}, "object of type 'list'|start must be|has no attribute 'shape'"),
    "more bodies": (lambda c: {"max_bodies": 1}, "num_bodies 2 of clip 1 must be 1 to max_bodies = 1"),
    "no body": (
        lambda c: {"num_bodies": with_one(c.num_bodies, 0)},
        "num_bodies 0 of clip 1 must be 1 to max_bodies = 2",
    ),
    "no frame": (lambda c: {"num_frames": with_one(c.num_frames, 0)}, "num_frames 0 of clip 1 must be 1 at least"),
    "before the first": (lambda c: {"start": with_one(c.start, -1)}, "start -1 of clip 1 puts it outside"),
    "bodies in text": (lambda c: {"max_bodies": "2"}, "max_bodies must be a finite number, got '2'"),
}
WRONG_CALLS = {
    "size": ({"size": 0}, "size must be a whole number of frames, 1 at least, got 0"),
    "half": ({"size": 7.5}, "size must be a whole number of frames, 1 at least, got 7.5"),
    "skeleton": (
        {"skeleton": "ntu25"},
        "skeleton must be a Skeleton, such as fastmc.skeleton.NTU25, got the str 'ntu25'",
    ),
    "params": ({"params": {}}, "params must be ViewParams, got the dict {}"),
    "source": ({"source": torch.zeros(2, 64, 150)}, "source must be PackedClips or DenseClips, got the Tensor"),
}


@pytest.mark.parametrize("impl", ["torch", "reference", "numba", "triton"])
@pytest.mark.parametrize("wrong", WRONG_CLIPS)
def test_clips_that_do_not_fit_are_named_whatever_makes_the_views(impl, wrong):
    """Before it is asked whether it can run."""
    clips = packed_clips(lengths=FEW)
    change, fault = WRONG_CLIPS[wrong]
    with pytest.raises((ValueError, AttributeError), match=fault):
        make_views(replace(clips, **change(clips)), plain(clips), NTU25, impl=impl)


@pytest.mark.parametrize("impl", ["torch", "reference", "numba", "triton"])
def test_a_mask_is_of_views_of_its_frames(impl):
    clips = packed_clips(lengths=FEW)
    with pytest.raises(ValueError, match="params mask joints in views of 64 frames, size is 32"):
        make_views(clips, by_hand("joint_mask", clips), NTU25, size=32, impl=impl)


@pytest.mark.parametrize("impl", ["torch", "reference", "numba", "triton"])
@pytest.mark.parametrize("wrong", WRONG_CALLS)
def test_calls_that_make_no_sense_are_named_whatever_makes_the_views(impl, wrong):
    clips = packed_clips(lengths=FEW)
    change, fault = WRONG_CALLS[wrong]
    arguments = {"source": clips, "params": plain(clips), "skeleton": NTU25, "impl": impl}
    with pytest.raises(ValueError, match=re.escape(fault)):
        make_views(**{**arguments, **change})


@pytest.mark.parametrize(("column", "value"), [("crop_start", 1e6), ("crop_start", -1), ("crop_length", 0)])
def test_crops_outside_of_their_clips_are_named(column, value):
    for clips in (packed_clips(lengths=FEW), dense_clips()):
        params = plain(clips)
        params.table[0, 2, COLUMNS[column]] = value
        with pytest.raises(ValueError, match=r"params crop clip 2 to frames .*, which it does not have"):
            IN_TORCH(clips, params, NTU25)


def test_clips_in_the_layout_of_an_encoder_check_themselves():
    clips = dense_clips()
    for change, fault in (
        ({"x": clips.x[..., :140]}, r"x must be \(B, T', V \* M \* 3\) with M = 2, got \(4, 64, 140\)"),
        ({"num_bodies": clips.num_bodies + 2}, "num_bodies 3 of clip 0 must be 1 to max_bodies = 2"),
        ({"x": clips.x[0]}, "x must be floats"),
    ):
        with pytest.raises(ValueError, match=fault):
            replace(clips, **change)
    with pytest.raises(ValueError, match="the clips have 25 joints, skeleton 'kinect20' 20"):
        make_views(clips, plain(clips), KINECT20)


def test_numbers_on_a_device_are_not_looked_at():
    """To look at them would wait for a GPU: of the meta device's there are none."""
    clips = packed_clips(lengths=FEW)
    there = {name: getattr(clips, name).to("meta") for name in ("frames", "start", "num_frames", "num_bodies")}
    moved = replace(clips, **there)
    table = plain(clips).table.to("meta")
    replace(plain(clips), table=table).check_crops(moved.num_frames)
    with pytest.raises(ValueError, match=r"num_bodies must be \(5,\) integers, one a clip, got torch.int64 \(4,\)"):
        replace(moved, num_bodies=moved.num_bodies[1:])
    with pytest.raises(ValueError, match="start is on cpu, the coordinates are on meta"):
        replace(moved, start=clips.start)


@pytest.mark.parametrize(
    "out",
    [
        torch.empty(1, 5, 64, 150),
        torch.empty(2, 5, 63, 150),
        torch.empty(2, 5, 64, 150, dtype=torch.bfloat16),
        torch.empty(2, 5, 64, 300)[..., ::2],
        torch.empty(2, 5, 64, 25, 6),
    ],
    ids=["views", "frames", "dtype", "gaps", "dimensions"],
)
def test_out_must_fit(out):
    clips = packed_clips(lengths=FEW)
    with pytest.raises(ValueError, match=r"out must be contiguous \(2, 5, 64, 150\) of torch.float32, got"):
        IN_TORCH(clips, drawn(clips), NTU25, out=out)
