"""What does not look like a body of its layout in metres is said, with what mends it; what does, is not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from bodies import in_layout, performed

from fastmc.data.formats.npz import import_npz
from fastmc.data.formats.ntu import prepare_synthetic
from fastmc.data.given import Given
from fastmc.data.normalise import normalise as moved
from fastmc.data.packing import PrepareError
from fastmc.data.posture import knees_forwards, toes_forwards
from fastmc.data.sanity import Sanity, unequal_sides
from fastmc.data.store import PackedStore
from fastmc.skeleton import NTU25, SKELETONS, Skeleton
from train.prepare import main

SHARED = Path(__file__).parents[2] / "shared"
ACTIONS = range(1, 25)


def finding(clips, layout="ntu25"):
    sanity = Sanity(layout if isinstance(layout, Skeleton) else SKELETONS[layout])
    for clip in clips:
        sanity.see(clip[:, None] if clip.ndim == 3 else clip)
    return sanity.finding()


def bones(clip, layout=NTU25):
    return clip - clip[:, list(layout.parents)]


def motion(clip):
    return np.concatenate([np.diff(clip, axis=0), 0 * clip[:1]])


@pytest.mark.parametrize("layout", SKELETONS)
def test_people_of_every_layout_pass(layout):
    for action in ACTIONS:
        assert finding([performed(action, layout)], layout) == ""
        assert finding([performed(action, layout)[..., [1, 2, 0]] * (1, -1, -1) + (0.2, -5, 3)], layout) == ""


def test_what_other_codes_made_of_people_passes():
    clips = [performed(action) for action in ACTIONS]
    for joint in (NTU25.hip, NTU25.spine):  # at the origin in every frame
        assert finding([clip - clip[:, joint : joint + 1] for clip in clips]) == ""
    assert finding([clip.astype(np.float32) - clip[0, 1].astype(np.float32) for clip in clips]) == ""
    assert finding([0 * clips[0], np.full_like(clips[0], np.nan)]) == "", "of that others tell"
    assert finding([]) == ""


def pixels(clip):
    """Of a person 400 pixels tall in the middle of an image."""
    return np.stack([960 + 240 * clip[..., 0], 540 - 240 * clip[..., 1], 0 * clip[..., 0]], axis=-1)


WRONG = {
    "bones": (bones, "joint 21 (spine shoulder)", "looks like bones", "--stream bone"),
    "motion": (motion, "looks like motion", "--stream motion"),
    "millimetres": (lambda clip: clip * 1000 - (0, 900, 0), "looks like millimetres", "--scale 0.001"),
    "centimetres": (lambda clip: clip * 100 - (0, 90, 0), "looks like centimetres", "--scale 0.01"),
    "inches": (lambda clip: clip / 0.0254 - (0, 40, 0), "looks like inches", "--scale 0.0254"),
    "kilometres": (lambda clip: clip / 1000, "another unit", "--scale height"),
    "pixels": (lambda clip: pixels(clip) + (0, 0, 5), "looks like pixels", "--image", "body25: --skeleton body25"),
    "(x, y, 0)": (pixels, "(x, y, 0) of an image", "--image"),
    "(x, y, score)": (lambda clip: pixels(clip) + (0, 0, 0.9), "looks like (x, y, score) of an image", "--image"),
    "shares": (lambda clip: pixels(clip) / (1920, 1080, 1) + (0, 0, 0.9), "as shares of its size", "--image"),
    "centred shares": (lambda clip: pixels(clip) / (1920, 1080, 1) + (-0.5, -0.5, 0.9), "as shares", "--image"),
    "a lost joint": (lambda clip: clip * (np.arange(25) != 7)[:, None], "joint 8 (left hand) is zero everywhere"),
    "another order": (lambda clip: clip[:, ::-1], "in another order: --skeleton"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_body_in_metres_is_named_with_its_remedy(what):
    spoil, *words = WRONG[what]
    line = finding([spoil(performed(action)) for action in ACTIONS])
    for word in words:
        assert word in line, line


def test_joints_of_another_layout_are_told_by_their_sides():
    clips = [performed(action, "body25") for action in ACTIONS]
    line = finding(clips, "ntu25")
    assert "do not seem to be those of 'ntu25', but of body25: --skeleton body25" in line
    line = finding([performed(action, "h36m17") for action in ACTIONS], "coco17")
    assert "but of h36m17: --skeleton h36m17" in line


def test_unequal_sides_by_hand():
    layout = Skeleton.from_plain("t", {"joints": {"hip": None, "left leg": "hip", "right leg": "hip"}})
    frames = np.zeros((2, 3, 3))
    frames[:, 1, 0], frames[:, 2, 0] = 3, -1
    assert unequal_sides(frames, layout) == pytest.approx(0.5)
    assert unequal_sides(frames, Skeleton("t", ("a", "b", "c"), (0, 0, 0))) == 0


def test_bones_whose_root_is_the_hip_are_told_from_bodies_around_it():
    layout = SKELETONS["kinect20"]
    clips = [performed(action, "kinect20") for action in ACTIONS]
    assert finding([clip - clip[:, :1] for clip in clips], "kinect20") == ""
    line = finding([bones(clip, layout) for clip in clips], "kinect20")
    assert "joint 1 (hip centre)" in line and "looks like bones" in line


def test_noise_as_tall_as_a_person_is_not_called_motion():
    noise = np.random.default_rng(0).uniform(0, 1.7, (6, 20, 25, 3)) - 0.8
    assert "motion" not in finding(noise)


def test_few_faulty_clips_among_many_are_no_finding():
    clips = [performed(action) for action in ACTIONS]
    assert finding([*clips, clips[0] * 1000, *clips]) == ""


def test_of_many_clips_some_are_kept():
    sanity = Sanity(NTU25)
    clip = performed()[:, None]
    for n in range(1000):
        sanity.see(clip * (1000 if n >= 500 else 1))
    assert 32 <= len(sanity._kept) < 64
    tall = sum(np.ptp(body) > 100 for body in sanity._kept)
    assert abs(tall / len(sanity._kept) - 0.5) < 0.05


# --- People in a mirror


UNITY = Skeleton.from_plain(
    "unity",
    {
        "joints": {"Hips": None, "Spine": "Hips", "Head": "Spine"}
        | {f"{side}{joint}": up if up == "Hips" or up == "Spine" else f"{side}{up}" for side in ("Left", "Right")
           for joint, up in (("UpperArm", "Spine"), ("LowerArm", "UpperArm"), ("Hand", "LowerArm"),
                             ("UpperLeg", "Hips"), ("LowerLeg", "UpperLeg"), ("Foot", "LowerLeg"))},
        "hip": "Hips", "spine": "Spine", "left_shoulder": "LeftUpperArm", "right_shoulder": "RightUpperArm",
    },
)  # fmt: skip
OF_UNITY = [
    NTU25.index(name if name in NTU25.joint_names else f"{side} {name}")
    for side, names in (
        ("", ("spine base", "spine mid", "head")),
        *((side, ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")) for side in ("left", "right")),
    )
    for name in names
]  # fmt: skip


@pytest.mark.parametrize("layout", ["ntu25", "kinect20", "body25", "mediapipe33", "smpl22"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_left_handed_axes_are_told_whichever_of_them_is_negated(layout, axis):
    turned = np.where(np.arange(3) == axis, -1, 1)
    for action in ACTIONS:
        line = finding([performed(action, layout) * turned], layout)
        assert "feet point backwards: this looks like people in a mirror" in line and "clip[..., 0] *= -1" in line
    half = [performed(action, layout) * (turned if action % 3 == 0 else 1) for action in ACTIONS]
    assert finding(half, layout) == "", "some who are seen from behind, as a sensor may have it"


def test_names_of_sides_that_are_exchanged_are_told():
    line = finding([performed(action)[:, list(NTU25.mirror)] for action in ACTIONS])
    assert "people in a mirror" in line and "exchange left and right in the names" in line


def test_where_there_are_no_toes_bent_knees_tell():
    clips = [performed(action)[:, OF_UNITY] for action in ACTIONS]
    assert [name for name in UNITY.joint_names if "Foot" in name]
    assert finding(clips, UNITY) == ""
    line = finding([clip * (1, 1, -1) for clip in clips], UNITY)
    assert "knees bend backwards: this looks like people in a mirror" in line
    straight = [clip for clip in clips if knees_forwards(clip, UNITY) is None]
    bent = [clip * (1, 1, -1) for clip in clips if knees_forwards(clip, UNITY) is not None]
    assert straight and len(bent) >= 4
    assert finding([*straight, *bent[:3]], UNITY) == "", "too few to tell"


def test_toes_and_knees_by_hand():
    """Up is y, left is x, so that z is forwards."""
    layout = Skeleton.from_plain(
        "one leg",
        {
            "joints": {"hip": None, "spine": "hip", "l": "spine", "r": "spine"}
            | {"knee": "hip", "ankle": "knee", "toe": "ankle"},
            "hip": "hip", "spine": "spine", "left_shoulder": "l", "right_shoulder": "r",
        },
    )  # fmt: skip
    body = np.array([[0, 1, 0], [0, 1.2, 0], [0.2, 1.5, 0], [-0.2, 1.5, 0], [0, 0.5, 0.3], [0, 0, 0], [0, 0, 0.1]])[
        None
    ]
    assert toes_forwards(body, layout) == pytest.approx(1) == knees_forwards(body, layout)
    assert toes_forwards(body * (1, 1, -1), layout) == pytest.approx(-1) == knees_forwards(body * (1, 1, -1), layout)
    turned = body[..., [1, 2, 0]] + 5
    assert toes_forwards(turned, layout) == pytest.approx(1) == knees_forwards(turned, layout)
    body[0, 4, 2] = 0.05
    assert knees_forwards(body, layout) is None, "hardly bent"
    body[0, 6] = body[0, 5]
    assert toes_forwards(body, layout) is None, "of no length"


# --- Images


def image(clip, angle=0.0, down=0.15):
    """(T, V, 3), z = 0: people who are seen from this side, and from above by ``down``, in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, depth = clip[..., 0] * cos + clip[..., 2] * sin, clip[..., 2] * cos - clip[..., 0] * sin
    return np.stack([x, clip[..., 1] * np.cos(down) - depth * np.sin(down), 0 * x], axis=-1)


ANGLES = [n * np.pi / 4 for n in range(8)]


def in_its_frame(clip, layout):
    return moved(clip[:, None].astype(np.float32), SKELETONS[layout])[:, 0]


@pytest.mark.parametrize("layout", SKELETONS)
def test_people_in_an_image_pass(layout):
    for angle in ANGLES:
        clips = [image(performed(action, layout), angle) for action in ACTIONS]
        assert finding(clips, layout) == "" == finding([in_its_frame(clip, layout) for clip in clips], layout)
        assert [said for clip in clips if (said := finding([clip], layout))] == []
        lying = [clip[..., [1, 0, 2]] for clip in clips]
        assert finding(lying, layout) == ""


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("body25", "ntu25"), ("ntu25", "body25"), ("h36m17", "coco17"), ("coco17", "h36m17"), ("smpl22", "kinect20"),
     ("mediapipe33", "ntu25")],
)  # fmt: skip
def test_joints_of_another_layout_in_an_image_are_told(theirs, ours):
    count = SKELETONS[ours].num_joints
    for angle in ANGLES:
        clips = [image(performed(action, theirs)[:, :count], angle) for action in ACTIONS]
        line = finding(clips, ours)
        assert f"joints do not seem to be those of {ours!r}" in line
        assert "heads, hips and feet do not lie one above the other" in line
        if SKELETONS[theirs].num_joints == count:
            assert f"but of {theirs}: --skeleton {theirs}" in line
        if theirs != "mediapipe33":  # of which hip and spine would be a nose and an eye
            assert "joints do not seem to be" in finding([in_its_frame(clip, ours) for clip in clips], ours)


def test_joints_of_coco_that_are_filled_up_with_zeros_are_told():
    """Joints that are never seen lie on those that they hang on."""
    clips = []
    for action in ACTIONS:
        seen = image(performed(action, "coco17"))[..., :2] * (200, -200) + (900, 500)
        filled = np.concatenate([seen, np.zeros((len(seen), 8, 2))], axis=1)
        clips.append(Given(image=True).clip(filled[:, None], NTU25)[0])
    assert "joints do not seem to be those of 'ntu25'" in finding(clips)


def test_an_image_whose_y_points_up_already_is_told():
    for layout in ("ntu25", "coco17", "body25", "h36m17"):
        clips = [image(performed(action, layout)) * (1, -1, 1) for action in ACTIONS]
        line = finding(clips, layout)
        assert "heads lie below feet in the image: its y seems to point up" in line and "negate their y" in line


# --- In every way in


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING, "fastmc")
    logging.getLogger("fastmc").propagate = True
    return caplog


def write_npz(file, clips):
    length = min(map(len, clips))
    x = np.stack([clip[:length] for clip in clips]).transpose(0, 3, 1, 2)[..., None].astype(np.float32)
    np.savez(file, x=x, num_frames=np.full(len(x), length), label=np.arange(len(x)) % 2, split=np.arange(len(x)) % 2)


def test_an_import_warns_keeps_the_warning_and_stops_where_strict(tmp_path, told, capsys):
    clips = [performed(action) for action in range(1, 7)]
    write_npz(tmp_path / "a.npz", clips)
    store = import_npz(tmp_path / "a.npz", tmp_path / "a", train="split=0", skeleton="ntu25", strict=True)
    assert store.meta["warnings"] == [] and not told.records
    write_npz(tmp_path / "b.npz", [bones(clip) for clip in clips])
    options = {"train": "split=0", "skeleton": "ntu25", "normalise": False}
    store = import_npz(tmp_path / "b.npz", tmp_path / "b", **options)
    (line,) = store.meta["warnings"]
    assert "looks like bones" in line and line in told.text
    assert main(["info", str(tmp_path / "b")]) == 0
    assert f"warning: {line}" in capsys.readouterr().out
    with pytest.raises(PrepareError, match=r"b\.npz: .*looks like bones.*without --strict this is a warning"):
        import_npz(tmp_path / "b.npz", tmp_path / "c", strict=True, **options)
    assert not (tmp_path / "c").exists()


def test_what_is_out_of_range_says_what_it_looks_like(tmp_path, told):
    write_npz(tmp_path / "a.npz", [performed(action) * 1000 for action in range(1, 7)])
    options = {"train": "split=0", "skeleton": "ntu25"}
    with pytest.raises(PrepareError, match="coordinates out of range"):
        import_npz(tmp_path / "a.npz", tmp_path / "a", **options)
    assert "looks like millimetres; --scale 0.001" in told.text
    with pytest.raises(PrepareError, match=r"a coordinate of .*looks like millimetres; --scale 0\.001"):
        import_npz(tmp_path / "a.npz", tmp_path / "a", strict=True, **options)


def test_a_layout_without_sides_is_told(tmp_path, capsys):
    write_npz(tmp_path / "a.npz", [performed(action) for action in range(1, 7)])
    command = ["npz", "--file", str(tmp_path / "a.npz"), "--train", "split=0", "--no-normalise"]
    assert main([*command, "--out", str(tmp_path / "a")]) == 0
    assert "note: no joint of 'custom' has a partner on the other side" in capsys.readouterr().out
    assert main([*command, "--out", str(tmp_path / "b"), "--skeleton", "ntu25"]) == 0
    assert "partner" not in capsys.readouterr().out


@pytest.mark.slow
def test_synthetic_people_before_a_camera_pass(tmp_path, told):
    assert prepare_synthetic(tmp_path / "s", subjects=2, replications=1, workers=1).meta["warnings"] == []
    assert not told.records


needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"needs {SHARED}, which the repository does not ship")


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize(
    ("name", "train"), [("hdm05_11", "split=train"), ("utd_mhad", "subject=1,3"), ("msr_action3d", "subject=1,3")]
)
def test_recorded_people_pass(name, train, tmp_path, told):
    if not (file := SHARED / "data" / f"{name}.npz").exists():
        pytest.skip(f"needs {file}")
    for out, normalise in (("a", True), ("b", False)):
        store = import_npz(file, tmp_path / out, train=train, normalise=normalise, strict=True)
        assert store.meta["warnings"] == [] and not told.records
    sanity = Sanity(store.skeleton)
    for n in range(len(store)):
        sanity.see(PackedStore.open(tmp_path / "a").clip(n))
    assert sanity.finding() == ""


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize("name", ["hdm05_11", "utd_mhad", "msr_action3d"])
def test_recorded_people_in_a_mirror_and_in_images_are_told_from_others(name, tmp_path):
    """40 at a time: no false word, and none that is missed."""
    if not (file := SHARED / "data" / f"{name}.npz").exists():
        pytest.skip(f"needs {file}")
    store = import_npz(file, tmp_path / "a")
    upright = [np.asarray(store.clip(n))[:, 0][..., [0, 2, 1]] * (1, 1, -1) for n in range(len(store))]  # y up
    for first in range(0, len(upright), 120):
        clips = upright[first : first + 40]
        assert finding(clips) == ""
        assert "people in a mirror" in finding([clip * (-1, 1, 1) for clip in clips])
        for angle in ANGLES[:3]:
            images = [image(clip, angle) for clip in clips]
            assert finding(images) == ""
            assert "y seems to point up" in finding([clip * (1, -1, 1) for clip in images])
            for theirs, ours in (("body25", "ntu25"), ("ntu25", "body25"), ("coco17", "h36m17"), ("h36m17", "coco17")):
                others = [image(in_layout(clip, theirs), angle) for clip in clips]
                assert finding(others, theirs) == ""
                assert f"but of {theirs}: --skeleton {theirs}" in finding(others, ours)
