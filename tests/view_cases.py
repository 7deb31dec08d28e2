"""What views are held against, whoever makes them: clips, parameters, the truth and how far float32 may be from it.

The truth goes a way of its own: the single functions of `fastmc.reference.augment`, put together here in float64, with
noise from a Philox in NumPy. It shares with the code under test what a table's columns mean, and nothing else.

``make`` below is called as `fastmc.views.make.make_views` is: (clips, params, skeleton, size=, stream=, dtype=) ->
views.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import torch
from plain_philox import normal_plain, words_plain
from torch import Tensor

from fastmc.reference import augment as reference
from fastmc.skeleton import KINECT20, NTU25, Skeleton
from fastmc.views.clips import DenseClips, PackedClips
from fastmc.views.draw import COLUMNS, MASK, AugmentConfig, ViewParams, draw_params, identity_params
from fastmc.views.make import make_views

Clips = PackedClips | DenseClips
Make = Callable[..., Tensor]

SIZE = 64
LENGTHS = (1, 2, 30, 63, 64, 65, 128, 129, 301, 1000)
FEW = (1, 30, 64, 65, 129)
LAYOUTS = [NTU25, KINECT20]
STREAMS = ("joint", "motion", "bone")
SHORT_CROPS = AugmentConfig(crop_ratio_min=0.2, crop_frames_min=5)

OF_RIVALS = AugmentConfig(
    crop_ratio_min=1.0,
    crop_padding=1 / 6,
    reverse_probability=0.5,
    centre_joint=1,
    shear=0.5,
    jitter_probability=0.2,
    rotation="both-ways",
    filter_gain=True,
    joint_mask_probability=0.7,
)
"""What A²MC does not have."""

# Roundings, each at most U of a value.
U = 2.0**-24
POSITION = 3  # of a place in the crop: length / size, the product, the half that is taken off
RESIZE = 3  # the difference of two frames, its product, the sum
SUBTRACT = 4  # of the centre: one, where it is taken off before the map; else three more products and their sum
MAP = 4  # three products and their sum
STREAM = 2  # the difference of a stream
NORMAL_MAX = 5.8  # the largest radius, sqrt(48 ln 2)
NORMAL = NORMAL_MAX * (
    4 * np.pi + 8
)  # absolute: the angle's two roundings, four each of logarithm and root, and cosine
FILTER = (
    2 * (3 + 4) + 2 * 15 + 2
)  # a weight's exponent (its mean is a half) and exponential, twice; two sums; a division


# --- Clips


def draw_clip(frames: int, bodies: int, skeleton: Skeleton, generator: torch.Generator) -> Tensor:
    """(frames, bodies, V, 3) float32. A second body is away in the first third, a third in every other frame. A joint
    of the first lies in the origin; where there are 60 frames, that body is away in the last eighth."""
    clip = torch.randn(frames, bodies, skeleton.num_joints, 3, generator=generator)
    clip[: frames // 3, 1:2] = 0
    clip[1::2, 2:] = 0
    clip[:, 0, 1:2] = 0
    if frames >= 60:
        clip[frames - frames // 8 :, 0] = 0
    return clip


def packed_clips(
    skeleton: Skeleton = NTU25,
    lengths: Sequence[int] = LENGTHS,
    *,
    max_bodies: int = 2,
    bodies: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> PackedClips:
    """Clips of so many bodies, or of one to ``max_bodies`` in turn. Between them lie rows of NaN, of no clip."""
    generator = torch.Generator().manual_seed(seed)
    gap = torch.full((3, skeleton.num_joints, 3), torch.nan)
    bodies = [1 + n % max_bodies for n in range(len(lengths))] if bodies is None else bodies
    rows, start = [gap], []
    for frames, count in zip(lengths, bodies, strict=True):
        start.append(sum(map(len, rows)))
        rows += [draw_clip(frames, count, skeleton, generator).flatten(0, 1), gap]
    sizes = (torch.tensor(values) for values in (start, list(lengths), list(bodies)))
    return PackedClips(torch.cat(rows).to(dtype), *sizes, max_bodies=max_bodies)


def dense_clips(
    skeleton: Skeleton = NTU25, frames: int = 64, *, batch: int = 4, max_bodies: int = 2, seed: int = 0
) -> DenseClips:
    """As attacked clips are: those of `packed_clips`, equally long, zero where a body is missing."""
    packed = packed_clips(skeleton, [frames] * batch, max_bodies=max_bodies, seed=seed)
    x = torch.stack([to_layout(clip_of(packed, n)) for n in range(batch)]).float()
    return DenseClips(x, packed.num_bodies, max_bodies)


def to_layout(clip: Tensor) -> Tensor:
    """(T, M, V, 3) to (T, V * M * 3)."""
    return clip.transpose(1, 2).flatten(1)


def lengths_of(clips: Clips) -> Tensor:
    """(B,) int64 frames."""
    if isinstance(clips, PackedClips):
        return clips.num_frames
    return torch.full_like(clips.num_bodies, clips.x.shape[1])


def clip_of(clips: Clips, n: int) -> Tensor:
    """Clip n as (frames, M, V, 3) float64."""
    if isinstance(clips, DenseClips):
        joints = clips.x.shape[2] // (3 * clips.max_bodies)
        return clips.x[n].double().view(-1, joints, clips.max_bodies, 3).transpose(1, 2)
    start, frames, bodies = (int(t[n]) for t in (clips.start, clips.num_frames, clips.num_bodies))
    joints = clips.frames.shape[1]
    clip = torch.zeros(frames, clips.max_bodies, joints, 3, dtype=torch.float64)
    for frame in range(frames):
        for body in range(bodies):
            clip[frame, body] = clips.frames[start + frame * bodies + body].double()
    return clip


def some_clips(clips: PackedClips, ids: Tensor) -> PackedClips:
    return replace(clips, start=clips.start[ids], num_frames=clips.num_frames[ids], num_bodies=clips.num_bodies[ids])


# --- Parameters


def drawn(
    clips: Clips,
    skeleton: Skeleton = NTU25,
    *,
    views: Sequence[int] = (1, 2),
    config: AugmentConfig = SHORT_CROPS,
    seed: int = 3,
    step: int | Tensor = 11,
    impl: str = "torch",
) -> ViewParams:
    """All transforms composed, as training draws them."""
    sample = torch.arange(len(clips)) + 100
    key = {"views": views, "seed": seed, "step": step, "sample": sample, "size": SIZE}
    return draw_params(config, lengths_of(clips), skeleton.num_joints, **key, impl=impl)


def plain(clips: Clips, skeleton: Skeleton = NTU25) -> ViewParams:
    """The whole clips, in the role of view 2, with a key of their own."""
    frames = lengths_of(clips)
    params = identity_params(torch.zeros_like(frames), frames, skeleton.num_joints)
    return replace(params, seed=2**63 - 3, step=2**31 - 2, sample=2**31 - 1 - torch.arange(len(clips)), views=(2,))


def _crop(p: ViewParams, g: torch.Generator) -> None:
    start = torch.floor(p.column("crop_length") / 3)
    p.column("crop_start")[:] = start
    p.column("crop_length")[:] -= start


def _single_frame(p: ViewParams, g: torch.Generator) -> None:
    p.column("crop_start")[:] = p.column("crop_length") - 1
    p.column("crop_length")[:] = 1


def _window(p: ViewParams, g: torch.Generator) -> None:
    """As far as a view has frames, which may be one."""
    p.column("shift")[:] = torch.tensor([1, -1])[torch.arange(p.table.shape[1]) % 2]


def _far_window(p: ViewParams, g: torch.Generator) -> None:
    p.column("shift")[:] = torch.tensor([0, 2, -8, 10, -SIZE, SIZE, -3, 63, 5, -9])[: p.table.shape[1]]


def _reverse(p: ViewParams, g: torch.Generator) -> None:
    p.column("reverse")[:] = 1


def _centre(p: ViewParams, g: torch.Generator) -> None:
    _pose(p, g)
    joints = (torch.arange(p.table.shape[1]) % 3 + 2).clamp_max(p.num_joints - 1)  # 1 of a first body is in the origin
    p.column("centre")[:] = joints


def _centre_moved(p: ViewParams, g: torch.Generator) -> None:
    """The joint that is subtracted is another one's place, and its own map another's."""
    for part in (_centre, _jitter, _flip):
        part(p, g)


def _pose(p: ViewParams, g: torch.Generator) -> None:
    p.column("pose")[:] = torch.randn(p.column("pose").shape, generator=g)


def _jitter(p: ViewParams, g: torch.Generator) -> None:
    p.column("jitter")[:] = torch.randn(p.column("jitter").shape, generator=g)
    p.column("jittered")[:] = (torch.rand(p.column("jittered").shape, generator=g) < 0.5).float()


def _zeroing(p: ViewParams, g: torch.Generator) -> None:
    _jitter(p, g)
    p.column("jitter")[:] = 0


def _flip(p: ViewParams, g: torch.Generator) -> None:
    p.column("flip")[:] = 1


def _noise(p: ViewParams, g: torch.Generator) -> None:
    p.column("noise_std")[:] = 0.1


def _nothing_but_noise(p: ViewParams, g: torch.Generator) -> None:
    p.column("pose")[:] = 0
    p.column("noise_std")[:] = 1


def _filter(p: ViewParams, g: torch.Generator) -> None:
    p.column("filter_sigma")[:] = torch.linspace(0.1, 2, p.table.shape[1])


def _narrow_and_wide_filter(p: ViewParams, g: torch.Generator) -> None:
    p.column("filter_sigma")[:] = torch.logspace(-3, 3, p.table.shape[1])


def _filter_with_gain(p: ViewParams, g: torch.Generator) -> None:
    _filter(p, g)
    p.column("filter_gain")[:] = 1


def _axis_mask(p: ViewParams, g: torch.Generator) -> None:
    p.column("axis_scale")[:] = 1 - torch.eye(3)[torch.arange(p.table.shape[1]) % 3]


def _several_axes(p: ViewParams, g: torch.Generator) -> None:
    n = torch.arange(p.table.shape[1])
    p.column("axis_scale")[:] = torch.stack([n % 2, n // 2 % 2, n // 4 % 2], dim=1).float()


def _everything(p: ViewParams, g: torch.Generator) -> None:
    for part in (_crop, _window, _reverse, _centre, _jitter, _flip, _noise, _filter_with_gain, _axis_mask):
        part(p, g)


def _joint_mask(p: ViewParams, g: torch.Generator) -> None:
    """Some in each half; the numbers of joints and frames lie apart."""
    for name in MASK:
        chosen = p.column(name)
        chosen[:] = (torch.rand(chosen.shape, generator=g) < 0.4).float()


def _everything_masked(p: ViewParams, g: torch.Generator) -> None:
    for part in (_everything, _joint_mask):
        part(p, g)


ALONE = {
    part.__name__[1:]: part
    for part in (_crop, _single_frame, _window, _far_window, _reverse, _centre, _centre_moved, _pose, _jitter,
                 _zeroing, _flip, _noise, _nothing_but_noise, _filter, _narrow_and_wide_filter, _filter_with_gain,
                 _axis_mask, _several_axes)
}  # fmt: skip
"""Each transform alone."""
MASKING = {"joint_mask": _joint_mask, "everything_masked": _everything_masked}
"""These are of a table with a joint mask, for views of SIZE frames."""
BY_HAND = ALONE | {"everything": _everything} | MASKING


def with_mask(params: ViewParams) -> ViewParams:
    """With the columns of a joint mask, of views of SIZE frames, in which nothing is masked."""
    columns = params.table.new_zeros(*params.table.shape[:2], params.num_joints + SIZE)
    return replace(params, table=torch.cat([params.table, columns], dim=2), masked=SIZE)


def by_hand(name: str, clips: Clips, skeleton: Skeleton = NTU25) -> ViewParams:
    """One view by a table that is written here, not drawn."""
    params = plain(clips, skeleton)
    if name in MASKING:
        params = with_mask(params)
    BY_HAND[name](params, torch.Generator().manual_seed(len(name)))
    return replace(params, centred=bool((params.column("centre") >= 0).any()))


# --- The truth


def true_noise(params: ViewParams, w: int, n: int, size: int, bodies: int) -> Tensor:
    """Standard normal (size, bodies, V, 3) float64: a block for each body of each joint of each frame, in this order of
    the view's layout, from 2^16 on; its first three numbers are x, y, z."""
    block = 2**16 + np.arange(size * params.num_joints * bodies)
    words = words_plain(params.seed, block, int(params.step), int(params.sample[n]), params.views[w])
    noise = torch.from_numpy(normal_plain(words)[:, :3])
    return noise.view(size, params.num_joints, bodies, 3).transpose(1, 2)


def true_view(clip: Tensor, params: ViewParams, w: int, n: int, skeleton: Skeleton, size: int) -> tuple[Tensor, Tensor]:
    """View w of clip n (frames, M, V, 3), and how far float32 may be from it; both (size, M, V, 3) float64.

    Beside the view x go the sum of the magnitudes of all that is added to it and, in U, its error so far: the
    transforms are linear, so they take either along. Where a body is missing, no error is allowed at all.
    """
    choice = {name: params.column(name)[w, n].double() for name in (*COLUMNS, *MASK)}
    start, length, centre = (int(choice[name]) for name in ("crop_start", "crop_length", "centre"))
    std, sigma, gain = float(choice["noise_std"]), float(choice["filter_sigma"]), bool(choice["filter_gain"])
    jittered = [v for v in range(skeleton.num_joints) if choice["jittered"][v] == 1]
    others = [v for v in range(skeleton.num_joints) if v not in jittered]

    def placed(x: Tensor) -> Tensor:
        x = reference.mirrored_window(x, int(choice["shift"]))
        return reference.time_reversal(x) if choice["reverse"] == 1 else x

    def mapped(x: Tensor, magnitudes: bool) -> Tensor:
        # `pose` and `jitter` carry the rotation too: it is applied after either, so it may be taken along.
        jitter, pose = (choice[name].abs() if magnitudes else choice[name] for name in ("jitter", "pose"))
        x = reference.joint_jittering(reference.joint_jittering(x, jittered, jitter), others, pose)
        return reference.spatial_flip(x, skeleton.mirror) if choice["flip"] == 1 else x

    original = reference.temporal_crop_resize(clip, start, length, size)
    magnitude = reference.temporal_crop_resize(clip.abs(), start, length, size)
    slope = clip[start : start + length].diff(dim=0).abs().amax(dim=0) if length > 1 else torch.zeros_like(clip[0])
    place = (torch.arange(size) + 0.5)[:, None, None, None] * length / size + 1
    error = (position_error(size) * place + RESIZE) * slope + RESIZE * magnitude
    original, magnitude, error = placed(original), placed(magnitude), placed(error)
    seen = original
    if centre >= 0:
        seen = reference.subtract_joint(original, centre)
        # The difference of two: the centre's own is exactly nothing, wherever it is taken.
        magnitude, error = (y + y[:, :, centre : centre + 1] for y in (magnitude, error))
        error = error + SUBTRACT * magnitude

    x, magnitude, error = mapped(seen, False), mapped(magnitude, True), mapped(error, True)
    error = error + MAP * magnitude
    if std > 0:
        noise = true_noise(params, w, n, size, clip.shape[1])
        x, magnitude = (reference.gaussian_noise(y, z, std) for y, z in ((x, noise), (magnitude, noise.abs())))
        error = error + NORMAL * std + 2 * magnitude
    if sigma > 0:
        x, magnitude, error = (reference.gaussian_filter(y, sigma, gain=gain) for y in (x, magnitude, error))
        error = error + FILTER * magnitude
    error = error + STREAM * magnitude
    for axis in range(3):
        if choice["axis_scale"][axis] == 0:
            x, error = reference.axis_mask(x, axis), reference.axis_mask(error, axis)
    for frame in choice["masked_frames"].nonzero()[:, 0]:
        for joint in choice["masked_joints"].nonzero()[:, 0]:
            x[frame, :, joint] = error[frame, :, joint] = 0
    return reference.restore_missing(x, original), U * reference.restore_missing(error, original)


def position_error(size: int) -> int:
    """A place is a multiple of 1 / (2 size): float32 holds it exactly where size is a power of two."""
    return POSITION if size & (size - 1) else 0


def true_stream(x: Tensor, stream: str, skeleton: Skeleton) -> Tensor:
    """(T, M, V, 3)."""
    if stream == "joint":
        return x
    return reference.motion(x) if stream == "motion" else reference.bone(x, skeleton.parents)


def stream_budget(budget: Tensor, stream: str, skeleton: Skeleton) -> Tensor:
    """Of a difference, both errors; none where a thing is taken from itself."""
    total = torch.zeros_like(budget)
    if stream == "joint":
        return budget
    if stream == "motion":
        total[:-1] = budget[1:] + budget[:-1]
        return total
    for joint, parent in enumerate(skeleton.parents):
        if joint != parent:
            total[:, :, joint] = budget[:, :, joint] + budget[:, :, parent]
    return total


def truth(
    clips: Clips, params: ViewParams, skeleton: Skeleton, *, size: int = SIZE, stream: str = "joint"
) -> tuple[Tensor, Tensor]:
    """All views and their budgets, (W, B, size, V * M * 3) float64 each. The last ones are kept: one implementation
    after the other asks for them."""
    values = *vars(clips).values(), *vars(params).values(), skeleton.parents, skeleton.mirror, size, stream
    key = hashlib.sha256(b"".join(map(_bytes, values))).digest()
    if key not in _TRUTHS:
        if len(_TRUTHS) == 32:
            del _TRUTHS[next(iter(_TRUTHS))]
        _TRUTHS[key] = _truth(clips, params, skeleton, size, stream)
    return _TRUTHS[key]


_TRUTHS: dict[bytes, tuple[Tensor, Tensor]] = {}


def _bytes(value: Any) -> bytes:
    if not isinstance(value, Tensor):
        return repr(value).encode()
    return value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def _truth(clips: Clips, params: ViewParams, skeleton: Skeleton, size: int, stream: str) -> tuple[Tensor, Tensor]:
    views, budgets = [], []
    for w in range(len(params.views)):
        for n in range(len(clips)):
            view, budget = true_view(clip_of(clips, n), params, w, n, skeleton, size)
            views.append(to_layout(true_stream(view, stream, skeleton)))
            budgets.append(to_layout(stream_budget(budget, stream, skeleton)))
    shape = (len(params.views), len(clips), size, -1)
    return torch.stack(views).view(shape), torch.stack(budgets).view(shape)


def excess(got: Tensor, want: Tensor, budget: Tensor) -> Tensor:
    """Error over budget, the largest of each view (W, B); at most 1 is right. NaN counts as infinite."""
    allowed = budget + (0 if got.dtype == torch.float32 else (want.abs() + budget) * torch.finfo(got.dtype).eps / 2)
    error = (got.double() - want).abs()
    ratio = torch.where(error == 0, 0.0, error / allowed)  # where nothing is allowed, any error is infinite
    return ratio.nan_to_num(nan=torch.inf, posinf=torch.inf).flatten(2).amax(dim=2)


def frames_needed(clips: Clips, params: ViewParams, size: int) -> int:
    """Bytes of the frames that the views are made of: of each view, each frame of its bodies that one of the view's
    frames lies at or between, once."""
    frames = clips.frames if isinstance(clips, PackedClips) else clips.x
    a_body = params.num_joints * 3 * frames.element_size()
    total = 0
    for w in range(len(params.views)):
        for n, bodies in enumerate(clips.num_bodies.tolist()):
            length = int(params.column("crop_length")[w, n])
            place = ((np.arange(size) + 0.5) * length / size - 0.5).clip(0)
            low = np.floor(place).astype(int).clip(max=length - 1)
            total += len(np.union1d(low, (low + 1).clip(max=length - 1))) * bodies * a_body
    return total


def assert_views(
    make: Make,
    clips: Clips,
    params: ViewParams,
    skeleton: Skeleton = NTU25,
    *,
    size: int = SIZE,
    stream: str = "joint",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The views of ``make``, within the budget."""
    got = make(clips, params, skeleton, size=size, stream=stream, dtype=dtype)
    assert got.shape == (len(params.views), len(clips), size, skeleton.num_joints * clips.max_bodies * 3)
    assert got.dtype == dtype
    found = excess(got, *truth(clips, params, skeleton, size=size, stream=stream))
    assert (found <= 1).all(), found
    return got


@contextlib.contextmanager
def kernels_wherever() -> Iterator[None]:
    """impl="triton" is let through wherever the tensors are: something here runs or compiles its launches."""
    with mock.patch("kernels.unavailable_reason", return_value=None):
        yield


def by_kernel(*args: Any, **kwargs: Any) -> Tensor:
    """`make_views` of Triton, inside of a session that runs kernels."""
    with kernels_wherever():
        return make_views(*args, **kwargs, impl="triton")


def assert_tables_equal(
    config: AugmentConfig,
    joints: int = 25,
    *,
    frames: Tensor | None = None,
    sample: Tensor | None = None,
    seed: int = 3,
    step: int | Tensor = 11,
    resized_to: int | None = None,
) -> None:
    """The kernel's table is PyTorch's: whatever is an integer or a choice bit for bit, all else up to roundings."""
    sample = torch.arange(12) * 37 if sample is None else sample
    frames = torch.arange(len(sample)) ** 2 * 5 + 1 if frames is None else frames
    key = {"views": (0, 1, 2, 3), "seed": seed, "step": step, "sample": sample}
    key |= {"size": 50, "resized_to": resized_to}
    want = draw_params(config, frames, joints, **key, impl="torch")
    with kernels_wherever():
        got = draw_params(config, frames, joints, **key, impl="triton")
    assert got.table.shape == want.table.shape and got.table.dtype == torch.float32
    for name in (*COLUMNS, *MASK):
        ours, theirs = got.column(name), want.column(name)
        if name in ("pose", "jitter", "filter_sigma"):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6 * max(1.0, config.shear))
        else:
            assert torch.equal(ours, theirs), name
    basic = [0, 1, 3]
    assert torch.equal(got.table[basic], want.table[basic]), "no sine or cosine in them"


# --- Wrong parameters, which the budget must notice


def _other(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[ViewParams], ViewParams]:
    def mutant(params: ViewParams) -> ViewParams:
        wrong = replace(params, table=params.table.clone())
        wrong.column(name)[:] = change(params.column(name))
        return wrong

    return mutant


MUTANTS: dict[str, Callable[[ViewParams], ViewParams]] = {
    "crop one frame early": _other("crop_start", lambda start: (start - 1).clamp_min(0)),
    "crop one frame short": _other("crop_length", lambda length: (length - 1).clamp_min(1)),
    "window one frame late": _other("shift", lambda shift: shift + 1),
    "not backwards": _other("reverse", torch.zeros_like),
    "another joint subtracted": _other("centre", lambda centre: centre + 1),
    "no joint subtracted": _other("centre", lambda centre: centre * 0 - 1),
    "filter without gain": _other("filter_gain", torch.zeros_like),
    "flip missing": _other("flip", torch.zeros_like),
    "pose off by 1e-5": _other("pose", lambda matrix: matrix * (1 + 1e-5)),
    "pose transposed": _other("pose", lambda matrix: matrix.transpose(2, 3)),
    "jitter off by 1e-5": _other("jitter", lambda matrix: matrix * (1 + 1e-5)),
    "one joint less jittered": _other("jittered", lambda chosen: chosen * (chosen.cumsum(2) > 1)),
    "another axis masked": _other("axis_scale", lambda scale: scale.roll(1, 2)),
    "no mask": _other("axis_scale", torch.ones_like),
    "noise off by 1e-3": _other("noise_std", lambda std: std * (1 + 1e-3)),
    "no noise": _other("noise_std", torch.zeros_like),
    "no joint mask": _other("masked_joints", torch.zeros_like),
    "masked one joint further": _other("masked_joints", lambda chosen: chosen.roll(1, 2)),
    "masked a frame later": _other("masked_frames", lambda chosen: chosen.roll(1, 2)),
    "masked in all frames": _other("masked_frames", torch.ones_like),
    "sigma off by 1e-3": _other("filter_sigma", lambda sigma: sigma * (1 + 1e-3)),
    "no filter": _other("filter_sigma", torch.zeros_like),
    "noise of another step": lambda p: replace(p, step=int(p.step) + 1),
    "noise of another sample": lambda p: replace(p, sample=p.sample + 1),
    "noise of another view": lambda p: replace(p, views=tuple(view + 1 for view in p.views)),
    "noise of another seed": lambda p: replace(p, seed=p.seed ^ 1 << 40),
}
"""Each is caught in every clip of `mutated`."""


def mutated() -> tuple[PackedClips, ViewParams]:
    """Clips and parameters of which any mutant is seen: everything at once, and nothing of it too weak to matter."""
    clips = packed_clips(lengths=(63, 100, 129))
    params = with_mask(by_hand("everything", clips))
    _joint_mask(params, torch.Generator().manual_seed(0))
    params.column("filter_sigma")[:] = 2
    return clips, params
