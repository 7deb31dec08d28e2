"""The kernels of views as they are compiled: values, bounds and races through ttsem; machine code through ptxas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from gpu_less import needs_triton, needs_ttsem, spilled_by_triton_3_6, ttsem_session
from machine_code import compiled, meta
from view_cases import (
    assert_tables_equal,
    dense_clips,
    drawn,
    kernels_wherever,
    packed_clips,
)

pytest.importorskip("triton")

import triton

from bench.aot import compile_launches
from bench.counting import count_operators
from bench.resources import Report
from fastmc.skeleton import KINECT20, NTU25, Skeleton
from fastmc.views import clips as clips_module
from fastmc.views import draw as draw_module
from fastmc.views.clips import DenseClips, PackedClips
from fastmc.views.draw import AugmentConfig, ViewParams, draw_params
from fastmc.views.make import make_views

pytestmark = [pytest.mark.compiler, pytest.mark.usefixtures("triton_cache")]
FEW = (1, 30, 65, 129)


# --- Values, bounds, races


@needs_ttsem
@pytest.mark.parametrize(("cc", "joints", "resized_to"), [(80, 20, None), (90, 25, 64)])
def test_table_equals_that_of_pytorch(cc, joints, resized_to):
    with ttsem_session(cc) as session:
        assert_tables_equal(AugmentConfig(), joints, resized_to=resized_to)
        assert_tables_equal(
            AugmentConfig(crop_frames_min=1, shear=0.3), joints, seed=2**63 - 1, step=torch.tensor(2**31)
        )
    assert session.launches == 2


# --- Launches and machine code


whole = partial(meta, dtype=torch.int64)


def code_of(target: str, call: Callable[[], object], spilled: int = 0) -> list[Report]:
    with kernels_wherever():
        return compiled(target, call, spilled=max(spilled, spilled_by_triton_3_6(80)))


def clips_without_memory(packed: bool, dtype: torch.dtype, skeleton: Skeleton, bodies: int) -> PackedClips | DenseClips:
    """64 clips, such as they are in training."""
    joints = skeleton.num_joints
    if packed:
        return PackedClips(meta(4_000_000, joints, 3, dtype=dtype), *3 * [whole(64)], bodies)
    return DenseClips(meta(64, 64, joints * bodies * 3, dtype=dtype), whole(64), bodies)


def params_without_memory(joints: int, centred: bool = False, masked: int = 0) -> ViewParams:
    table = meta(2, 64, 30 + joints + (joints + masked if masked else 0))
    return ViewParams(table, 2**40, whole(), whole(64), (1, 2), centred, masked)


SOME = [(torch.float32, True, "joint"), (torch.bfloat16, False, "bone"), (torch.float32, False, "motion")]
CALLS = [(target, *call) for target in ("cuda:80", "cuda:90") for call in SOME] + [
    ("cuda:86", torch.bfloat16, True, "motion"), ("cuda:100", *SOME[0]), ("hip:gfx942", *SOME[1])
]  # fmt: skip


@needs_triton
@pytest.mark.parametrize(("target", "dtype", "packed", "stream"), CALLS)
def test_machine_code_of_views(target, dtype, packed, stream):
    clips = clips_without_memory(packed, torch.float32, NTU25, 2)
    params = params_without_memory(25)
    (r,) = code_of(target, lambda: make_views(clips, params, NTU25, stream=stream, dtype=dtype, impl="triton"))
    store, wide = ("store", ".x4") if target.startswith("hip") else ("STG", ".128")
    assert r.counts[store + wide] == r.counts[store] > 0


@needs_triton
@pytest.mark.parametrize(("target", "spilled"), [("cuda:80", 224), ("cuda:90", 0), ("hip:gfx942", 0)])
def test_machine_code_of_views_with_a_joint_to_subtract(target, spilled):
    """Two joints at a time are more than the registers hold; other views do not pay for it."""
    clips = clips_without_memory(True, torch.float32, NTU25, 2)
    params = params_without_memory(25, centred=True)
    code_of(target, lambda: make_views(clips, params, NTU25, stream="motion", impl="triton"), spilled)


@needs_triton
@pytest.mark.parametrize("target", ["cuda:80", "cuda:90"])
def test_machine_code_with_a_joint_mask(target):
    """Of the draw and of the views."""
    clips, config = clips_without_memory(True, torch.float32, NTU25, 2), AugmentConfig(joint_mask_probability=0.5)
    key = {"views": (1, 2), "seed": 2**40, "step": whole(), "sample": whole(64), "size": 64}
    code_of(target, lambda: draw_params(config, whole(64), 25, **key, impl="triton"))
    code_of(target, lambda: make_views(clips, params_without_memory(25, masked=64), NTU25, impl="triton"))


OTHER_SIZES = [
    (KINECT20, 2, 64, torch.float16, True),
    (NTU25, 1, 128, torch.float32, True),
    (NTU25, 3, 32, torch.float32, False),
]


@needs_triton
@pytest.mark.parametrize(
    ("target", "case"),
    [("cuda:80", case) for case in OTHER_SIZES] + [("hip:gfx942", OTHER_SIZES[-1])],
)
def test_machine_code_of_other_sizes(case, target):
    skeleton, bodies, size, dtype, packed = case
    clips = clips_without_memory(packed, dtype, skeleton, bodies)
    params = params_without_memory(skeleton.num_joints)
    # Views of more than 64 frames spill a little on sm_80: docs/kernels.md says so.
    spilled = 144 if target == "cuda:80" and size > 64 else 0
    code_of(target, lambda: make_views(clips, params, skeleton, size=size, impl="triton"), spilled)


@needs_triton
@pytest.mark.parametrize(("target", "resized_to"), [("cuda:90", None), ("cuda:80", 64), ("hip:gfx942", 64)])
def test_machine_code_of_the_draw(target, resized_to):
    key = {"views": (1, 2), "seed": 2**40, "step": whole(), "sample": whole(64), "resized_to": resized_to}
    code_of(target, lambda: draw_params(AugmentConfig(), whole(64), 25, **key, impl="triton"))


@needs_triton
@pytest.mark.parametrize("packed", [True, False])
def test_two_launches_and_nothing_else(packed, monkeypatch):
    """A batch's views cost a draw and a making; nothing is computed or copied beside them."""
    launched = []
    for module in (clips_module, draw_module):
        monkeypatch.setattr(module, "may_look", lambda tensor: False)  # as on a GPU
    monkeypatch.setattr(triton.JITFunction, "run", lambda self, *_, **__: launched.append(self.__name__))
    clips = packed_clips(lengths=FEW) if packed else dense_clips()
    with kernels_wherever():
        make_views(
            clips, drawn(clips, impl="torch"), NTU25, stream="bone", impl="triton"
        )  # keeps the skeleton's indices
        launched.clear()
        frames, sample = torch.full((4,), 64), torch.arange(4)
        key = {"views": (1, 2), "seed": 0, "step": 5, "sample": sample, "resized_to": None if packed else 64}

        def call() -> None:
            params = draw_params(AugmentConfig(), frames, 25, **key, impl="triton")
            make_views(clips, params, NTU25, stream="bone", dtype=torch.bfloat16, impl="triton")

        counts = count_operators(call)
    assert launched == ["_draw_kernel", "_views_kernel"]
    assert counts["launches"] == 0


@needs_triton
def test_seeds_and_steps_share_one_compiled_kernel():
    """As each step has another number, a kernel that is specialised on it would be compiled again and again."""
    clips = clips_without_memory(True, torch.float32, NTU25, 2)
    params = params_without_memory(25)
    with kernels_wherever(), compile_launches("cuda:90") as launches:
        for step in (0, 1, 2, 16, 17, 48, 1000, 2**31 - 1):
            draw_params(
                AugmentConfig(), whole(64), 25, views=(0, 3), seed=7, step=step, sample=whole(64), impl="triton"
            )
            make_views(clips, replace(params, step=step, seed=7), NTU25, impl="triton")
    assert len({id(launch.kernel) for launch in launches}) == 2
