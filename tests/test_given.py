"""Numbers that are not metres: images with scores, other units; in every way in."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from bodies import performed

import fastmc
from fastmc.data.formats.npz import import_npz
from fastmc.data.formats.stgcn import import_stgcn
from fastmc.data.given import METRES, Given, body_height
from fastmc.data.normalise import normalise
from fastmc.data.packing import PrepareError
from fastmc.data.store import PackedStore
from fastmc.skeleton import SKELETONS
from train.prepare import main

COCO = SKELETONS["coco17"]


def image_of(clip, scale=200.0):
    """(T, M, V, 2): what a camera before people (T, M, V, 3), y up, would see of them, y downwards."""
    return np.stack([900 + scale * clip[..., 0], 500 - scale * clip[..., 1]], axis=-1)


def with_scores(points, scores):
    return np.concatenate([points, np.broadcast_to(scores, points.shape[:-1])[..., None]], axis=-1)


@pytest.fixture
def clip():
    return performed(1, "coco17")[:20, None]


def test_metres_are_as_they_are(clip):
    joints, weights = METRES.clip(clip, COCO)
    assert joints is clip and weights is None


def test_another_unit_is_scaled(clip):
    joints, weights = Given(scale=0.001).clip(clip * 1000, COCO)
    np.testing.assert_allclose(joints, clip)
    assert weights is None
    joints, _ = Given(scale="height").clip(clip * 37, COCO)
    assert body_height(joints, joints.any(axis=-1)) == pytest.approx(1.7)
    np.testing.assert_allclose(joints / joints[0, 0, 0, 0], clip / clip[0, 0, 0, 0])


@pytest.mark.parametrize("given", [Given(image=True), Given(scale="height")])
def test_the_first_body_that_is_there_is_made_as_tall_as_a_person(clip, given):
    """Whatever its place; and no other one, nor one of a single joint, which has no height."""
    numbers = with_scores(image_of(clip), 0.9) if given.image else clip * 37
    want, _ = given.clip(numbers, COCO)
    absent, larger = np.zeros_like(numbers), numbers * 1.5
    for place, bodies in ((1, [absent, numbers]), (1, [absent, numbers, larger]), (0, [numbers, larger])):
        joints, weights = given.clip(np.concatenate(bodies, axis=1), COCO)
        np.testing.assert_allclose(joints[:, [place]], want)
        if weights is not None:
            assert weights[:, place].all() and not weights[:, :place].any()
    dot = absent.copy()
    dot[:, :, 3] = numbers[:, :, 3]
    joints, _ = given.clip(np.concatenate([dot, numbers], axis=1), COCO)
    np.testing.assert_allclose(joints[:, [1]], want)


def test_a_recording_has_one_scale():
    """Of someone who sits in its second half; in any parts it is that of the whole."""
    clip = np.stack([performed(1, "coco17")[:10, None]] * 2)
    clip[1] *= 0.6
    whole = with_scores(image_of(clip.reshape(20, 1, 17, 3)), 0.9)
    for given in (Given(image=True), Given(image=True, scale="height")):
        one = given.of_recording([whole])
        assert one == given.of_recording([whole[:3], whole[3:]]) == given.of_recording(list(whole[:, None]))
        np.testing.assert_array_equal(one.clip(whole, COCO)[0], given.clip(whole, COCO)[0])
        parts = [one.clip(part, COCO)[0] for part in (whole[:10], whole[10:])]
        heights = [body_height(part, part.any(axis=-1)) for part in parts]
        assert heights[1] / heights[0] == pytest.approx(0.6, abs=1e-3)
    for given in (METRES, Given(scale=2), Given(image=True, scale=2)):
        assert given.of_recording([whole]) == given


def test_millimetres_in_half_precision_are_scaled_in_double(clip):
    half = (clip * 1000).astype(np.float16)
    for given, factor in ((Given(scale=0.001), 0.001), (Given(scale="height"), None)):
        joints, _ = given.clip(half, COCO)
        want, _ = given.clip(half.astype(np.float64), COCO)
        np.testing.assert_allclose(joints, want, rtol=1e-12)
        assert factor is None or np.abs(joints - half.astype(np.float64) * factor).max() < 1e-12


def test_an_image_becomes_a_body_in_a_plane_that_stands_upright(clip):
    joints, weights = Given(image=True).clip(with_scores(image_of(clip), 0.8), COCO)
    assert (weights == 0.8).all() and (joints[..., 2] == 0).all()
    assert body_height(joints, weights > 0) == pytest.approx(1.7)
    head, foot = joints[0, 0, 0], joints[0, 0, 15]
    assert head[1] > foot[1], "y points up"
    span = clip[0, 0, 5, 0] - clip[0, 0, 6, 0]
    height = clip[0, 0, 0, 1] - clip[0, 0, 15, 1]
    assert (joints[0, 0, 5, 0] - joints[0, 0, 6, 0]) / (head[1] - foot[1]) == pytest.approx(span / height)
    plain, _ = Given(image=True).clip(image_of(clip), COCO)  # without scores
    np.testing.assert_allclose(plain, joints)
    half, _ = Given(image=True, scale=0.005).clip(image_of(clip), COCO)
    np.testing.assert_allclose(half[..., 0], 4.5 + clip[..., 0])
    moved = normalise(joints.astype(np.float32), COCO, weights)
    np.testing.assert_allclose(moved[..., 1], 0, atol=1e-6)
    assert moved[0, 0, 0, 2] > 0 > moved[0, 0, 15, 2]


def test_joints_of_low_scores_hold_their_place():
    """Of two joints in four frames, one seen in frames 1 and 3; by hand."""
    layout = fastmc.Skeleton.from_plain("pair", {"joints": {"a": None, "b": "a"}})
    points = np.zeros((4, 1, 2, 2)) + (10, 20)
    points[:, 0, 1, 0] = [1, 2, 3, 4]
    scores = np.ones((4, 1, 2))
    scores[[0, 2], 0, 1] = 0.05
    joints, weights = Given(image=True, scale=1).clip(with_scores(points, scores), layout)
    assert joints[:, 0, 1, 0].tolist() == [2, 2, 2, 4]
    assert weights[:, 0, 1].tolist() == [0, 1, 0, 1]
    assert joints[:, 0, 0].tolist() == [[10, -20, 0]] * 4
    joints, _ = Given(image=True, scale=1, min_score=0.01).clip(with_scores(points, scores), layout)
    assert joints[:, 0, 1, 0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("missing", ["score", "nan", "zero"])
def test_a_joint_never_seen_lies_on_the_one_that_it_hangs_on(clip, missing):
    points, scores = image_of(clip), np.ones(clip.shape[:3])
    elbow, wrist = COCO.index("left elbow"), COCO.index("left wrist")
    if missing == "score":
        scores[:, :, [elbow, wrist]] = 0
    else:
        points[:, :, [elbow, wrist]] = np.nan if missing == "nan" else 0
    joints, weights = Given(image=True).clip(with_scores(points, scores), COCO)
    for joint in (elbow, wrist):
        np.testing.assert_array_equal(joints[:, 0, joint], joints[:, 0, COCO.index("left shoulder")])
        assert not weights[:, 0, joint].any()
    assert np.isfinite(joints).all()


def test_a_body_that_is_never_seen_is_zero(clip):
    points = with_scores(image_of(np.concatenate([clip, clip], axis=1)), 1.0)
    points[:, 1, :, 2] = 0
    joints, weights = Given(image=True).clip(points, COCO)
    assert joints[:, 0].any() and not joints[:, 1].any() and not weights[:, 1].any()


def test_scores_weigh_the_origin(clip):
    scores = np.ones((len(clip), 1, 17))
    scores[:, :, COCO.index("left hip")] = 0.2
    joints, weights = Given(image=True).clip(with_scores(image_of(clip), scores), COCO)
    moved = normalise(joints.astype(np.float32), COCO, weights)
    share = scores[0, 0, [11, 12, 5, 6]]
    np.testing.assert_allclose((moved[0, 0, [11, 12, 5, 6]] * share[:, None]).sum(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [({"scale": "high"}, "give a number, or height"), ({"scale": 0}, "scale"), ({"min_score": -1}, "min_score")],
)
def test_numbers_out_of_range(numbers, message):
    with pytest.raises(ValueError, match=message):
        Given(**numbers)


# --- In every way in


def arrays(numbers=3):
    clips = [performed(action, "coco17")[:24, None] for action in range(1, 7)]
    x = np.stack([with_scores(image_of(clip), 0.7)[..., :numbers] for clip in clips]).transpose(0, 4, 1, 3, 2)
    return {
        "x": x.astype(np.float32),
        "num_frames": np.full(6, 24),
        "label": np.arange(6) % 2,
        "split": np.arange(6) % 2,
    }


@pytest.mark.parametrize("numbers", [2, 3])
def test_an_npz_of_an_image(numbers, tmp_path, told, capsys):
    np.savez(tmp_path / "a.npz", **arrays(numbers))
    command = ["npz", "--file", str(tmp_path / "a.npz"), "--train", "split=0", "--skeleton", "coco17"]
    assert main([*command, "--image", "--strict", "--out", str(tmp_path / "a")]) == 0
    assert "3 training clips, 3 test clips" in capsys.readouterr().out and not told.records
    store = PackedStore.open(tmp_path / "a")
    assert store.skeleton == COCO
    assert np.abs(store.frames[..., 1]).max() < 1e-5 and 0.7 < np.abs(store.frames).max() < 2
    assert main([*command, "--out", str(tmp_path / "b")]) == 1
    if numbers == 3:
        assert "looks like (x, y, score) of an image, not like metres; --image" in told.text
    assert main([*command, "--image", "--scale", "big", "--out", str(tmp_path / "b")]) == 1
    assert "give a number, or height" in capsys.readouterr().err


def test_whoever_is_in_the_second_place_alone_is_as_tall_in_every_file(tmp_path):
    """Shares of an image's size, where a wrong factor would not be told by a coordinate out of range."""
    values = arrays()
    values["x"][:, :2] /= 1000
    both = np.concatenate([values["x"], np.zeros_like(values["x"])], axis=-1)
    both[[1, 4]] = both[[1, 4]][..., ::-1]
    stores = []
    for name, x in (("one", values["x"]), ("two", both)):
        np.savez(tmp_path / f"{name}.npz", **values | {"x": x})
        options = {"train": "split=0", "skeleton": "coco17", "given": Given(image=True), "strict": True}
        stores.append(import_npz(tmp_path / f"{name}.npz", tmp_path / name, **options))
        pairs = npy_pairs(tmp_path, x, values["split"])
        stores.append(import_stgcn(*pairs, tmp_path / f"{name}-npy", skeleton="coco17", given=Given(image=True)))
    for want, found in zip(stores[:2], stores[2:], strict=True):
        assert found.num_bodies.tolist() == [1] * 6
        np.testing.assert_allclose(found.frames, want.frames, atol=1e-6)


def npy_pairs(folder, x, split):
    """The files of a training and a test part."""
    pairs = []
    for part in (0, 1):
        pair = folder / f"{part}.npy", folder / f"{part}.pkl"
        np.save(pair[0], x[split == part])
        pair[1].write_bytes(pickle.dumps(([f"{part}-{n}" for n in range(3)], [0, 1, 0])))
        pairs.append(pair)
    return pairs


def test_an_npy_pair_of_another_layout(tmp_path):
    values = arrays()
    pairs = npy_pairs(tmp_path, values["x"], values["split"])
    store = import_stgcn(*pairs, tmp_path / "a", skeleton="coco17", given=Given(image=True), strict=True)
    np.savez(tmp_path / "a.npz", **values)
    same = import_npz(tmp_path / "a.npz", tmp_path / "b", train="split=0", skeleton="coco17", given=Given(image=True))
    np.testing.assert_array_equal(store.clip(0), same.clip(0))
    assert store.skeleton == same.skeleton == COCO
    with pytest.raises(PrepareError, match="17 joints, --skeleton body25 has 25"):
        import_stgcn(*pairs, tmp_path / "c", skeleton="body25")
    with pytest.raises(PrepareError, match=r"17 joints, expected 25 .*--skeleton names another layout"):
        import_stgcn(*pairs, tmp_path / "c")
