"""Choice of bodies and view normalisation, on clips whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmc.data.normalise import choose_bodies, normalise
from fastmc.reference.ntu import RawBody, RawClip
from fastmc.skeleton import KINECT20, NTU25, Skeleton

STANDING = np.random.default_rng(1).uniform([-0.3, -0.9, 2.9], [0.3, 0.9, 3.1], (25, 3))  # as narrow as a person
LYING = STANDING[:, [1, 0, 2]]


def body(frames, motion: float = 0.1, pose: np.ndarray = STANDING, seed: int = 0) -> RawBody:
    """A body that moves as a whole; more `motion` is more variance."""
    frames = np.asarray(list(frames), np.int64)
    path = np.random.default_rng(seed).normal(size=(len(frames), 1, 3)) * motion
    return RawBody(frames, (pose + path).astype(np.float32))


def clip_of(num_frames: int, **bodies: RawBody) -> RawClip:
    return RawClip(num_frames, bodies)


def test_one_body_is_kept_as_it_is():
    one = body(range(30))
    clip = choose_bodies(clip_of(30, a=one))
    assert clip.shape == (30, 1, 25, 3)
    assert clip.dtype == np.float32
    np.testing.assert_array_equal(clip[:, 0], one.joints)


@pytest.mark.parametrize("one", [body(range(3)), body(range(30), pose=LYING)], ids=["short", "lying"])
def test_an_only_body_is_never_noise(one):
    np.testing.assert_array_equal(choose_bodies(clip_of(40, a=one))[:, 0], one.joints)


def test_two_people_by_descending_motion():
    calm, lively = body(range(30), 0.05), body(range(30), 0.5, seed=1)
    clip = choose_bodies(clip_of(30, calm=calm, lively=lively))
    np.testing.assert_array_equal(clip, np.stack([lively.joints, calm.joints], axis=1))


def test_third_person_is_dropped():
    people = [body(range(30), motion, seed=i) for i, motion in enumerate([0.2, 0.1, 0.3])]
    clip = choose_bodies(clip_of(30, a=people[0], b=people[1], c=people[2]))
    np.testing.assert_array_equal(clip, np.stack([people[2].joints, people[0].joints], axis=1))


@pytest.mark.parametrize(("frames", "people"), [(11, 1), (12, 2)])
def test_short_bodies_are_noise(frames, people):
    assert choose_bodies(clip_of(30, a=body(range(30)), b=body(range(frames), 0.5))).shape == (30, people, 25, 3)


@pytest.mark.parametrize(("wide", "people"), [(69, 2), (70, 1)])
def test_wide_bodies_are_noise(wide, people):
    flat = body(range(100), 0.01, seed=1)
    flat.joints[:wide] = LYING
    assert choose_bodies(clip_of(100, a=body(range(100)), b=flat)).shape[1] == people


@pytest.mark.parametrize(("width", "people"), [(0.79, 2), (0.81, 1)])
def test_wide_is_more_than_four_fifths_of_the_height(width, people):
    box = STANDING.copy()
    box[:, :2] = 0
    box[:2, :2] = [0, 0], [width, 1]
    assert choose_bodies(clip_of(30, a=body(range(30)), box=body(range(30), pose=box))).shape[1] == people


def test_wide_frames_do_not_count_as_motion():
    jumpy = body(range(100), 0.01, seed=1)
    jumpy.joints[:50] = LYING + np.random.default_rng(0).normal(size=(50, 1, 3))
    lively = body(range(100), 0.3)
    clip = choose_bodies(clip_of(100, jumpy=jumpy, lively=lively))
    np.testing.assert_array_equal(clip[:, 0], lively.joints)


def test_the_best_of_noise_only_is_kept():
    shorter, longer = body(range(5), 0.5), body(range(9), seed=1)
    np.testing.assert_array_equal(choose_bodies(clip_of(9, a=shorter, b=longer))[:, 0], longer.joints)
    flat, flatter = (body(range(20), 0.01, LYING, seed) for seed in (0, 1))
    flat.joints[:3] = STANDING
    clip = choose_bodies(clip_of(20, a=flatter, b=flat))
    np.testing.assert_array_equal(clip, flat.joints[:, None])


def test_new_id_continues_the_slot():
    whole = body(range(40), 0.5)
    first, second = body(range(18), 0.1, seed=1), body(range(20, 40), 0.1, seed=2)
    clip = choose_bodies(clip_of(40, whole=whole, first=first, second=second))
    assert clip.shape == (40, 2, 25, 3)
    held = np.repeat(first.joints[-1:], 2, axis=0)
    np.testing.assert_array_equal(clip[:, 1], np.concatenate([first.joints, held, second.joints]))


def test_new_id_of_the_only_person():
    first, second = body(range(15), 0.1), body(range(15, 30), 0.3, seed=1)
    clip = choose_bodies(clip_of(30, a=first, b=second))
    np.testing.assert_array_equal(clip[:, 0], np.concatenate([first.joints, second.joints]))


def test_overlapping_id_opens_slot_two():
    first, second = body(range(20), 0.5), body(range(19, 40), 0.1, seed=1)
    clip = choose_bodies(clip_of(40, a=first, b=second))
    np.testing.assert_array_equal(clip[20:, 0], np.repeat(first.joints[-1:], 20, axis=0))  # body 1 is held at the end
    np.testing.assert_array_equal(clip[19:, 1], second.joints)
    assert not clip[:19, 1].any()  # body 2 is exactly zero where it is absent


def test_gaps_hold_the_last_frame_and_the_start_the_first():
    main = body([*range(5, 20), *range(23, 40)], 0.5)
    other = body(range(40), 0.1, seed=1)
    clip = choose_bodies(clip_of(40, a=main, b=other))
    source = [*[0] * 5, *range(15), *[14] * 3, *range(15, 32)]
    np.testing.assert_array_equal(clip[:, 0], main.joints[source])


def test_body_two_stays_in_a_gap_of_body_one():
    main, other = body([*range(20), *range(40, 60)], 0.5), body(range(22, 38), 0.1, seed=1)
    clip = choose_bodies(clip_of(60, a=main, b=other))  # frames 20, 21, 38, 39 hold nobody
    assert clip.shape == (56, 2, 25, 3)
    np.testing.assert_array_equal(clip[:, 0], main.joints[[*range(20), *[19] * 16, *range(20, 40)]])
    np.testing.assert_array_equal(clip[20:36, 1], other.joints)
    assert not clip[:20, 1].any()
    assert not clip[36:, 1].any()


def test_frames_without_chosen_bodies_are_dropped():
    main, noise = body([*range(3, 20), *range(25, 40)]), body(range(20, 25), 0.5)
    clip = choose_bodies(clip_of(50, a=main, b=noise))
    np.testing.assert_array_equal(clip, main.joints[:, None])


def test_all_zero_frames_are_unseen():
    main, other = body(range(30), 0.5), body(range(30), 0.1, seed=1)
    main.joints[10:12] = 0
    clip = choose_bodies(clip_of(30, a=main, b=other))
    np.testing.assert_array_equal(clip[10:12, 0], main.joints[[9, 9]])


@pytest.mark.parametrize("bodies", [{}, {"a": RawBody(np.arange(3), np.zeros((3, 25, 3), np.float32))}])
def test_missing_skeleton(bodies):
    with pytest.raises(ValueError, match="missing skeleton: none of the 3 frames"):
        choose_bodies(RawClip(3, bodies))


def random_clip(skeleton: Skeleton, num_frames: int = 6, bodies: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_frames, bodies, skeleton.num_joints, 3)).astype(np.float32)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return q * np.linalg.det(q)


@pytest.mark.parametrize("skeleton", [NTU25, KINECT20])
def test_axes(skeleton):
    clip = random_clip(skeleton)
    before = clip.copy()
    out = normalise(clip, skeleton)
    assert out.shape == clip.shape
    assert out.dtype == np.float32
    np.testing.assert_array_equal(clip, before)
    first = out[0, 0].astype(np.float64)
    np.testing.assert_array_equal(first[skeleton.spine], 0)
    up = first[skeleton.spine] - first[skeleton.hip]
    np.testing.assert_allclose(up, [0, 0, np.linalg.norm(up)], atol=1e-6)
    side = first[skeleton.left_shoulder] - first[skeleton.right_shoulder]
    assert abs(side[1]) < 1e-6 < side[0]


@pytest.mark.parametrize("skeleton", [NTU25, KINECT20])
def test_distances_and_handedness_are_kept(skeleton):
    """Over frames and bodies: one rigid motion for the whole clip."""
    clip = random_clip(skeleton)
    points, moved = (x.reshape(-1, 3).astype(np.float64) for x in (clip, normalise(clip, skeleton)))
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (points, moved)]
    np.testing.assert_allclose(distances[1], distances[0], atol=2e-6)
    volumes = [np.linalg.det(x[1:4] - x[0]) for x in (points, moved)]
    np.testing.assert_allclose(volumes[1], volumes[0], rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_invariant_to_where_the_camera_stands(seed):
    rng = np.random.default_rng(seed)
    clip = STANDING + rng.normal(size=(4, 2, 25, 3)) * 0.05
    seen_from_elsewhere = clip @ random_rotation(rng).T + rng.normal(size=3)
    np.testing.assert_allclose(normalise(seen_from_elsewhere, NTU25), normalise(clip, NTU25), atol=1e-5)


def test_normalising_twice_changes_nothing():
    once = normalise(random_clip(NTU25), NTU25)
    np.testing.assert_allclose(normalise(once, NTU25), once, atol=1e-5)


def test_absent_bodies_stay_zero():
    clip = random_clip(NTU25)
    clip[2:4, 1] = 0
    clip[0, 0] = 0
    out = normalise(clip, NTU25)
    assert not out[2:4, 1].any()
    assert not out[0, 0].any()
    assert out[[0, 1, 4, 5], 1].any(axis=(1, 2)).all()
    np.testing.assert_array_equal(out[1, 0, NTU25.spine], 0)  # the first frame in which body 1 is seen


@pytest.mark.parametrize(
    ("one", "other"), [("spine", "hip"), ("left_shoulder", "right_shoulder")], ids=["no spine", "no shoulders"]
)
def test_degenerate_frames(one, other):
    clip = random_clip(NTU25)
    clip[:2, 0, getattr(NTU25, one)] = clip[:2, 0, getattr(NTU25, other)]
    out = normalise(clip, NTU25)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(out[2:], normalise(clip[2:], NTU25))
    with pytest.raises(ValueError, match="coincide in all of them"):
        normalise(clip[:2], NTU25)


def test_shoulders_along_the_spine_are_degenerate():
    clip = random_clip(NTU25, num_frames=1)
    up = clip[0, 0, NTU25.spine] - clip[0, 0, NTU25.hip]
    clip[0, 0, NTU25.left_shoulder] = clip[0, 0, NTU25.right_shoulder] + 2 * up
    with pytest.raises(ValueError, match="no frame of body 1 gives a frame of reference"):
        normalise(clip, NTU25)


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="needs the indices of hip, spine, left_shoulder and right_shoulder"):
        normalise(np.zeros((1, 1, 2, 3), np.float32), Skeleton("two", ("a", "b")))
    with pytest.raises(ValueError, match=r"must be \(T, M, 25, 3\) for 'ntu25', got \(6, 2, 20, 3\)"):
        normalise(random_clip(KINECT20), NTU25)
    with pytest.raises(ValueError, match="body 1 is zero in every frame"):
        normalise(np.zeros((4, 1, 25, 3), np.float32), NTU25)
