"""The joint layouts that have a name, and those of a JSON file: structure, places that are means, one's own file."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from bodies import performed

from fastmc import Skeleton
from fastmc.data.formats.npz import import_npz
from fastmc.data.normalise import normalise
from fastmc.data.packing import PrepareError
from fastmc.encoders.graphs import check_bones
from fastmc.figures.skeletons import COLOURS, draw_clip, front_of
from fastmc.layouts import LAYOUTS
from fastmc.skeleton import NTU25, ROLES, SKELETONS
from fastmc.views.clips import PackedClips
from fastmc.views.draw import COLUMNS, identity_params
from fastmc.views.make import make_views

COUNTS = {
    "ntu25": 25,
    "kinect20": 20,
    "coco17": 17,
    "openpose18": 18,
    "body25": 25,
    "mediapipe33": 33,
    "smpl22": 22,
    "h36m17": 17,
}
CENTRES = {  # joints that have no other side
    "ntu25": {"spine base", "spine mid", "neck", "head", "spine shoulder"},
    "kinect20": {"hip centre", "spine", "shoulder centre", "head"},
    "coco17": {"nose"},
    "openpose18": {"nose", "neck"},
    "body25": {"nose", "neck", "mid hip"},
    "mediapipe33": {"nose"},
    "smpl22": {"pelvis", "spine 1", "spine 2", "spine 3", "neck", "head"},
    "h36m17": {"pelvis", "spine", "thorax", "neck", "head"},
}
PLACES = {  # some by hand: what the sets' own documents number so
    "coco17": {0: "nose", 5: "left shoulder", 10: "right wrist", 11: "left hip", 16: "right ankle"},
    "openpose18": {1: "neck", 2: "right shoulder", 7: "left wrist", 8: "right hip", 13: "left ankle", 17: "left ear"},
    "body25": {1: "neck", 4: "right wrist", 8: "mid hip", 14: "left ankle", 19: "left big toe", 24: "right heel"},
    "mediapipe33": {
        0: "nose",
        7: "left ear",
        11: "left shoulder",
        16: "right wrist",
        23: "left hip",
        32: "right foot index",
    },
    "smpl22": {0: "pelvis", 3: "spine 1", 12: "neck", 15: "head", 16: "left shoulder", 21: "right wrist"},
    "h36m17": {
        0: "pelvis",
        1: "right hip",
        6: "left ankle",
        8: "thorax",
        10: "head",
        11: "left shoulder",
        16: "right wrist",
    },
    "ntu25": {0: "spine base", 4: "left shoulder", 20: "spine shoulder", 24: "right thumb"},
    "kinect20": {0: "hip centre", 3: "head", 19: "right foot"},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_a_tree_whose_sides_mirror_each_other(name):
    layout = Skeleton.named(name)
    assert (layout.name, layout.num_joints) == (name, COUNTS[name])
    assert len(set(layout.joint_names)) == layout.num_joints
    assert {j: layout.joint_names[j] for j in PLACES[name]} == PLACES[name]
    roots = [j for j, parent in enumerate(layout.parents) if parent == j]
    assert len(roots) == 1 and len(layout.bones) == layout.num_joints - 1
    for joint in range(layout.num_joints):
        way = [joint]
        while way[-1] != roots[0]:
            way.append(layout.parents[way[-1]])
            assert len(way) <= layout.num_joints, "a circle"
    for joint, other in enumerate(layout.mirror):
        assert layout.mirror[other] == joint
        assert layout.mirror[layout.parents[joint]] == layout.parents[other]
        sides = {layout.joint_names[joint].replace("left", "right"), layout.joint_names[other].replace("left", "right")}
        assert len(sides) == 1, "a joint's partner is of another name"
    alone = {layout.joint_names[j] for j, other in enumerate(layout.mirror) if j == other}
    assert alone == CENTRES[name] and layout.has_sides and layout.has_frame
    for role in ("hip", "spine"):  # in the middle: what they are a mean of mirrors itself
        joints = set(np.atleast_1d(getattr(layout, role)).tolist())
        assert {layout.mirror[j] for j in joints} == joints
    assert layout.mirror[layout.left_shoulder] == layout.right_shoulder
    assert Skeleton.from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_a_place_is_a_joint_or_the_mean_of_some():
    layout = Skeleton.named("coco17")
    joints = np.random.default_rng(0).normal(size=(5, 17, 3))
    np.testing.assert_array_equal(layout.place("left_shoulder", joints), joints[:, 5])
    np.testing.assert_allclose(layout.place("hip", joints), (joints[:, 11] + joints[:, 12]) / 2)
    np.testing.assert_allclose(layout.place("spine", joints), joints[:, [5, 6, 11, 12]].mean(axis=1))
    weights = np.ones((5, 17))
    weights[:, 12] = 0.5
    want = (joints[:, 11] + 0.5 * joints[:, 12]) / 1.5
    np.testing.assert_allclose(layout.place("hip", joints, weights), want)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_clip_of_any_layout_is_brought_to_its_frame(name):
    layout = SKELETONS[name]
    clip = np.random.default_rng(1).normal(size=(6, 2, layout.num_joints, 3)).astype(np.float32)
    moved = normalise(clip, layout)
    hip, spine, left, right = (layout.place(role, moved[0, 0].astype(np.float64)) for role in ROLES)
    np.testing.assert_allclose(spine, 0, atol=1e-6)
    np.testing.assert_allclose((spine - hip)[:2], 0, atol=1e-6)
    assert (spine - hip)[2] > 0 and (left - right)[0] > 0
    np.testing.assert_allclose((left - right)[1], 0, atol=1e-6)
    before, after = (np.linalg.norm(x - x[:, :, :1], axis=-1) for x in (clip, moved))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)


def test_a_frame_serves_where_all_four_places_have_weight():
    layout = SKELETONS["coco17"]
    clip = np.random.default_rng(2).normal(size=(3, 1, 17, 3)).astype(np.float32)
    weights = np.ones((3, 1, 17))
    weights[0, 0, [11, 12]] = 0  # no hips in the first frame
    weights[1, 0, 6] = 0  # no right shoulder in the second
    moved = normalise(clip, layout, weights)
    np.testing.assert_allclose(layout.place("spine", moved[2, 0]), 0, atol=1e-6)
    with pytest.raises(ValueError, match="no frame of body 1"):
        normalise(clip[:2], layout, weights[:2])


OWN = {
    "joints": {"pelvis": None, "chest": "pelvis", "arm_l": "chest", "arm_r": "chest"},
    "hip": "pelvis",
    "spine": "pelvis + chest",
    "left_shoulder": "arm_l",
    "right_shoulder": "arm_r",
    "pairs": [["arm_l", "arm_r"]],
}


def test_a_json_file_of_ones_own(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(OWN))
    layout = Skeleton.named(file)
    assert (layout.name, layout.joint_names) == ("mine", ("pelvis", "chest", "arm_l", "arm_r"))
    assert (layout.parents, layout.mirror) == ((0, 0, 1, 1), (0, 1, 3, 2))
    assert (layout.hip, layout.spine, layout.left_shoulder, layout.right_shoulder) == (0, (0, 1), 2, 3)
    file.write_text(json.dumps({"joints": ["a", "b"]}))
    layout = Skeleton.from_json(file)
    assert layout.parents == () and not layout.has_frame and not layout.has_sides


def test_joints_named_by_numbers_are_found_by_their_names(tmp_path):
    """As many data sets count their joints, from 1; a whole number is an index."""
    file = tmp_path / "counted.json"
    file.write_text(json.dumps({"joints": {"1": None, "2": "1", "3": "2", "4": "3"}, "hip": "1", "spine": "2 + 3"}))
    layout = Skeleton.named(file)
    assert (layout.parents, layout.bones) == ((0, 0, 1, 2), ((1, 0), (2, 1), (3, 2)))
    assert (layout.hip, layout.spine) == (0, (1, 2))
    assert (layout.index("1"), layout.index(1), layout.role("1 + 2"), layout.index("0")) == (0, 1, (0, 1), 0)
    counted = {"joints": {"1": None, "2": 0}, "hip": 1, "spine": "1", "pairs": [["1", 1]]}
    file.write_text(json.dumps(counted))
    layout = Skeleton.named(file)
    assert (layout.parents, layout.hip, layout.spine, layout.mirror) == ((0, 0), 1, 0, (1, 0))


def test_the_hip_of_a_command_line_is_a_name_first(tmp_path):
    names = np.array([str(n) for n in range(1, 18)])
    clips = performed(1, "coco17")[:8].transpose(2, 0, 1)[None, ..., None].astype(np.float32)
    np.savez(tmp_path / "set.npz", x=clips, num_frames=[8], joint_names=names)
    roles = {"hip": "12", "spine": "13", "left_shoulder": "6", "right_shoulder": "7"}
    store = import_npz(tmp_path / "set.npz", tmp_path / "out", roles=roles)
    assert [store.skeleton.joint_names[getattr(store.skeleton, role)] for role in ROLES] == ["12", "13", "6", "7"]


def test_bones_that_make_a_circle_are_refused_wherever_they_come_from(tmp_path):
    """Whoever walks to the root would walk for ever."""
    for parents in ((1, 0, 2), (0, 2, 3, 1), (1, 2, 0)):
        with pytest.raises(ValueError, match=r"the bones make a circle: . hangs on no root"):
            Skeleton("x", tuple("abcd")[: len(parents)], parents=parents)
        with pytest.raises(ValueError, match=r"the bones make a circle: joint \d hangs on no root"):
            check_bones(parents, "ST-GCN")
    assert Skeleton("x", tuple("abcd"), parents=(1, 3, 2, 3)).bones == ((0, 1), (1, 3))
    with pytest.raises(ValueError, match="make a circle"):
        Skeleton.from_dict({**NTU25.to_dict(), "parents": [1, 0, *NTU25.parents[2:]]})
    arrays = {"x": np.ones((1, 3, 4, 3, 1), np.float32), "num_frames": [4], "parents": [-1, 2, 1]}
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(PrepareError, match="joint_names and parents make no skeleton: the bones make a circle"):
        import_npz(tmp_path / "set.npz", tmp_path / "out", normalise=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": {"a": "b", "b": "a"}}, "the bones make a circle"),
        ({"hip": "0"}, "no joint named '0'"),
        ({"hip": 4}, r"joint 4 is outside of 0\.\.3"),
        ({"hip": 1.0}, r"no joint named '1\.0'"),
        ({"joints": {"a": "lost"}}, "no joint named 'lost'"),
        ({"joints": ["a", "a"]}, "given to two joints"),
        ({"joints": [1, 2]}, "no list of names"),
        ({"joints": []}, "no list of names"),
        ({"hip": "tail"}, "no joint named 'tail'"),
        ({"spine": "pelvis + tail"}, "no joint named 'tail'"),
        ({"pairs": [["arm_l"]]}, r"pairs is no list of \[left, right\]"),
        ({"pairs": [["arm_l", "arm_r"], ["arm_l", "chest"]]}, "its own inverse"),
        ({"parent": {}}, "got parent"),
    ],
)
def test_a_faulty_json_file_is_named_with_its_fault(change, message, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({**OWN, **change}))
    with pytest.raises(ValueError, match=rf"mine\.json is no skeleton: .*{message}"):
        Skeleton.named(tmp_path / "mine.json")


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"{" * 10_000, b"[" * 200_000])
def test_what_is_no_json_is_said(content, tmp_path):
    (tmp_path / "mine.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.json is no skeleton"):
        Skeleton.named(tmp_path / "mine.json")
    with pytest.raises(ValueError, match="choose from ntu25, kinect20, coco17"):
        Skeleton.named("coco")
    with pytest.raises(ValueError, match=r"lost\.json is no skeleton: .*No such file"):
        Skeleton.named(tmp_path / "lost.json")


def test_older_stores_and_newer_ones_read_the_same():
    """Roles as numbers, as they were before means of joints."""
    values = NTU25.to_dict()
    assert (values["hip"], values["spine"]) == (0, 1)
    with pytest.raises(ValueError, match="hip"):
        Skeleton.from_dict({**values, "hip": [0, 25]})
    with pytest.raises(ValueError, match="hip"):
        Skeleton.from_dict({**values, "hip": []})


# --- What is made of a layout


@pytest.mark.parametrize("name", LAYOUTS)
def test_views_flip_and_make_bones_of_any_layout_as_the_plain_reference_does(name):
    layout, clip = SKELETONS[name], performed(1, name)[:20, None].astype(np.float32)
    frames = torch.from_numpy(clip.reshape(20, -1, 3))
    clips = PackedClips(frames, torch.tensor([0]), torch.tensor([20]), torch.tensor([1]), 1)
    whole = identity_params(torch.zeros(1, dtype=torch.long), torch.tensor([20]), layout.num_joints)
    table = whole.table.clone()
    table[..., COLUMNS["flip"]] = 1
    flipped = replace(whole, table=table)
    for params in (whole, flipped):
        for stream in ("joint", "bone"):
            want = make_views(clips, params, layout, size=16, stream=stream, impl="reference")
            for impl in ("torch", "numba"):
                found = make_views(clips, params, layout, size=16, stream=stream, impl=impl)
                torch.testing.assert_close(found, want, atol=1e-5, rtol=0)
    plain, swapped = (make_views(clips, p, layout, size=16).reshape(16, -1, 3) for p in (whole, flipped))
    torch.testing.assert_close(swapped[..., 1:], plain[:, list(layout.mirror), 1:])
    assert (swapped - plain).abs().max() > 0.1


@pytest.mark.parametrize("name", LAYOUTS)
def test_people_of_any_layout_are_drawn_upright_with_their_left_on_the_right(name):
    layout, clip = SKELETONS[name], performed(1, name)[:20, None]
    flat = front_of(clip, layout).flat(clip)[0, 0]
    hip, spine, left, right = (layout.place(role, flat) for role in ROLES)
    assert spine[1] > hip[1] and left[0] > right[0]
    axes = draw_clip(clip, layout, fps=30, poses=2).axes[0]
    lines = [line for line in axes.lines if len(line.get_xdata())]
    assert len(lines) == 2 * len(layout.bones)
    assert {line.get_color() for line in lines} >= {COLOURS["left"], COLOURS["right"]}
