"""Views against what the authors' codes make of the same clips and choices (../shared/golden): every implementation of
the views, and the plain reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from golden import golden, near, needs_golden
from torch import Tensor

from fastmc.reference import augment as reference
from fastmc.skeleton import NTU25
from fastmc.views.clips import PackedClips
from fastmc.views.draw import COLUMNS, MASK, AugmentConfig, ViewParams, draw_params, identity_params
from fastmc.views.make import make_views

EXACT = 2e-6  # the files are in float32, and so are the views: some roundings of numbers up to the largest
pytestmark = needs_golden
each = pytest.mark.parametrize("impl", ["reference", "torch", "numba"])
"""Triton's views are held against the same reference, for each column: tests/test_views.py."""


def clip_of(x: Tensor) -> Tensor:
    """(3, T, V, M) to (T, M, V, 3)."""
    return x.permute(1, 3, 2, 0)


def view_of(x: Tensor, impl: str, size: int | None = None, **choices: object) -> Tensor:
    """The one view (3, size, V, M) of a clip (3, T, V, M), with these columns of its table."""
    _, frames, _, bodies = x.shape
    rows = clip_of(x).float().flatten(0, 1)
    one = torch.tensor([frames])
    clips = PackedClips(rows, torch.zeros(1, dtype=torch.int64), one, torch.tensor([bodies]), max_bodies=bodies)
    params = identity_params(torch.zeros_like(one), one, 25)
    masked = frames if choices.keys() & set(MASK) else 0
    room = params.table.new_zeros(1, 1, 25 + masked if masked else 0)
    params = ViewParams(torch.cat([params.table, room], 2), 0, 0, one, (0,), centred=True, masked=masked)
    for name, value in choices.items():
        params.column(name)[0] = torch.as_tensor(value, dtype=torch.float32)
    view = make_views(clips, params, NTU25, size=size or frames, impl=impl)[0, 0]
    return view.view(-1, 25, bodies, 3).permute(3, 0, 1, 2)


def there(x: Tensor, of: Tensor) -> Tensor:
    """x (3, T, V, M) where the clip ``of`` has a body: ours leave an absent one at zero whatever is done to others."""
    return x * (of != 0).any(dim=2, keepdim=True).any(dim=0, keepdim=True)


@each
def test_geometry_of_aimclr(impl):
    """Also of CrosSCLR and HiCLR."""
    found = golden("AimCLR_aug_geometry")
    x, padding = found["x_CTVM"], int(found["crop:padding"])
    for name in ("shear_0.5", "shear_1.0"):
        near(view_of(x, impl, pose=found[f"{name}:matrix"]), found[f"{name}:y"], EXACT)
    for name in ("crop", "crop2"):
        near(view_of(x, impl, shift=int(found[f"{name}:start"]) - padding), found[f"{name}:y"], EXACT)
    assert tuple(found["spatial_flip:order"].tolist()) == NTU25.mirror
    near(view_of(x, impl, flip=1), found["spatial_flip:y"], EXACT)
    near(view_of(x, impl, reverse=1), found["time_flip:y"], EXACT)
    scale = torch.ones(3)
    scale[int(found["axis_mask:axis"])] = 0
    near(view_of(x, impl, axis_scale=scale), found["axis_mask:y"], EXACT)


def turned(degrees: Tensor) -> Tensor:
    """The released rotations about x, y and z, which turn the other way: their matrices are of the negative angles."""
    return reference.rotate(torch.eye(3, dtype=torch.float64)[None], (-torch.deg2rad(degrees)).tolist())[0].T


@each
def test_rotations_and_blur_with_gain_of_aimclr(impl):
    found = golden("AimCLR_aug_rotate_noise_blur")
    x = found["x_CTVM"]
    for n in range(4):
        near(view_of(x, impl, pose=turned(found[f"rotate{n}:degrees_about_xyz"])), found[f"rotate{n}:y"], EXACT)
    for n in range(3):
        made = view_of(x, impl, filter_sigma=float(found[f"blur{n}:sigma"]), filter_gain=1)
        near(there(made, x), there(found[f"blur{n}:y"], x), EXACT)
        narrow = float(found[f"blur{n}:sigma"]) < 1
        without = view_of(x, impl, filter_sigma=float(found[f"blur{n}:sigma"]))
        assert narrow or float(found[f"blur{n}:y"].norm() / without.norm()) > 2, "the released blur enlarges"


def test_noise_of_aimclr():
    """Given the numbers; ours are of a generator of their own (tests/test_views.py)."""
    found = golden("AimCLR_aug_rotate_noise_blur")
    y = reference.gaussian_noise(clip_of(found["x_CTVM"]), clip_of(found["noise:noise"]), 1.0)
    near(y, clip_of(found["noise:y"]), EXACT)


@each
def test_views_of_ascal(impl):
    found = golden("AS-CAL_aug")
    x = found["x_CTVM"]
    near(view_of(x, impl, centre=1), found["subtract1:y"], EXACT)
    near(view_of(x, impl, reverse=1), found["time_reversal:y"], EXACT)
    near(view_of(x, impl, pose=found["shear:matrix"]), found["shear:y"], EXACT)
    chosen = {"masked_joints": torch.zeros(25), "masked_frames": torch.zeros(60)}
    for name, ours in zip(("joints", "frames"), chosen.values(), strict=True):
        ours[found[f"joint_mask:{name}"].long()] = 1
    near(view_of(found["joint_mask:x_CTVM"], impl, **chosen), found["joint_mask:y"], EXACT)
    found = golden("AS-CAL_aug_chain")
    x = found["x_CTVM"][:, : int(found["selected_frames"])]
    for n in range(3):
        choices = {"centre": 1, "reverse": int(found[f"chain{n}:reversed"]), "pose": found[f"chain{n}:matrix"]}
        near(view_of(x, impl, **choices), found[f"chain{n}:y"], EXACT)


@each
def test_views_of_hico(impl):
    found = golden("HiCo_aug_crop")
    x = found["x_CTVM"]
    for n in range(2):
        crop = {"crop_start": int(found[f"crop{n}:start"]), "crop_length": int(found[f"crop{n}:length"])}
        near(view_of(x, impl, 64, **crop), found[f"crop{n}:y"], EXACT)
    near(view_of(x[:, : int(found["short:valid_frames"])], impl, 64), found["short:y"], EXACT)
    start = int(found["centre095:start"])
    crop = {"crop_start": start, "crop_length": int(found["valid_frames"]) - 2 * start}  # as many at the end
    near(view_of(x, impl, 64, **crop), found["centre095:y"], EXACT)
    found = golden("HiCo_aug_spatial")
    x = found["x_CTVM"]
    for name in ("jitter", "zero"):
        matrix = torch.zeros(3, 3) if name == "zero" else found["jitter:matrix_rows_multiply_from_the_right"].T
        chosen = torch.zeros(25)
        chosen[found[f"{name}:joints"].long()] = 1
        near(view_of(x, impl, jittered=chosen, jitter=matrix), found[f"{name}:y"], EXACT)
    near(view_of(x, impl, pose=found["shear:matrix"]), found["shear:y"], EXACT)


@each
def test_clips_of_fifty_frames(impl):
    """ST-GCN's pre-processing, as CrosSCLR has it, but for its frame of reference: whole clips, resized."""
    found = golden("CrosSCLR_preprocess")
    for n in range(2):
        raw = found[f"clip{n}:raw_CTVM"]
        near(view_of(raw, impl, 50), found[f"clip{n}:resized_only"], EXACT)


def frequencies(choices: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.double().mean()) for name, value in choices.items()}


def test_choices_are_as_frequent_as_those_of_aimclr():
    """Ten thousand draws of each: means within four standard errors of both."""
    from fastmc.config import preset_config

    found = golden("AimCLR_aug_statistics")
    config = preset_config("paper", "ntu60", "aimclr").augment
    frames = torch.full((10_000,), 50)
    params = draw_params(config, frames, 25, views=(2,), seed=0, step=0, sample=torch.arange(10_000), size=12)
    start, flip, noise, mask, blur = found["columns_start_flip_noise_mask_blur_mainaxis_mean"][:5].tolist()
    of = {name: params.column(name)[0] for name in COLUMNS}
    ours = frequencies(
        {
            "start": of["shift"] + 2,  # a sixth of 12 frames
            "flip": of["flip"],
            "noise": of["noise_std"] > 0,
            "mask": (of["axis_scale"] == 0).any(1),
            "blur": of["filter_sigma"] > 0,
        }
    )
    for name, theirs in {"flip": flip, "noise": noise, "mask": mask, "blur": blur}.items():
        assert abs(ours[name] - theirs) < 4 * (2 * 0.25 / 10_000) ** 0.5, name
    assert abs(ours["start"] - start) < 4 * (2 * 2 / 10_000) ** 0.5
    histogram = torch.bincount((of["shift"] + 2).long(), minlength=5)
    assert (abs(histogram - found["start_histogram_T12"]) < 4 * (2 * 1600) ** 0.5).all()
    assert (of["jittered"] == 0).all() and (of["crop_length"] == 50).all()


def test_masks_are_as_large_as_those_of_ascal():
    """Of a clip of 60 frames: 5 to 15 joints in 20 to 50 frames, each number as often. Its second histogram begins at
    0 frames."""
    found = golden("AS-CAL_aug_statistics")
    config = AugmentConfig(joint_mask_probability=1.0, joint_mask_frames_max=5 / 6)
    frames = torch.full((10_000,), 60)
    params = draw_params(config, frames, 25, views=(0,), seed=0, step=0, sample=torch.arange(10_000), size=60)
    for name, theirs in zip(MASK, ("joints_masked_histogram", "frames_masked_histogram_clip_of_60"), strict=True):
        wanted = found[theirs]
        sizes = torch.bincount(params.column(name)[0].sum(dim=1).long(), minlength=len(wanted))
        assert torch.equal(sizes > 0, wanted > 0)
        assert (abs(sizes - wanted) < 4.5 * (2.0 * wanted.max()) ** 0.5).all()
        shares = params.column(name)[0].mean(dim=0)
        assert (abs(shares - shares.mean()) < 4.5 * 0.5 / 100).all(), "each joint and each frame as often"
    rare = draw_params(replace(config, joint_mask_probability=0.25), frames, 25, views=(0,), seed=0, step=0,
                       sample=torch.arange(10_000), size=60)  # fmt: skip
    masking = rare.column("masked_joints")[0].any(dim=1)
    assert torch.equal(masking, rare.column("masked_frames")[0].any(dim=1))
    assert abs(masking.double().mean() - 0.25) < 4 * (0.25 * 0.75 / 10_000) ** 0.5
