"""Clips that are not what the encoder was trained on: warned of, refused, or brought to it."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from bodies import performed
from test_embedding import command, make_run, read, write_clips

import fastmc
from fastmc import Given
from fastmc.data.normalise import normalise
from fastmc.data.packing import NORMALISATION
from fastmc.skeleton import NTU25, SKELETONS

pytestmark = pytest.mark.slow

COCO = SKELETONS["coco17"]


def images(layout="coco17", count=6):
    """(N, T, V, 3): x, y, score."""
    clips = [performed(1 + n, layout)[:24] for n in range(count)]
    points = [np.stack([900 + 200 * clip[..., 0], 500 - 200 * clip[..., 1]], axis=-1) for clip in clips]
    return np.stack([np.concatenate([each, np.full((*each.shape[:2], 1), 0.7)], axis=-1) for each in points])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of people in NTU's joints."""
    clips = [performed(1 + n)[:24, None].astype(np.float32) for n in range(8)]
    store = write_clips(
        tmp_path_factory.mktemp("s") / "ntu",
        [normalise(clip, NTU25) for clip in (*clips, *(np.repeat(clip, 2, axis=1) for clip in clips[:2]))],
        normalisation=NORMALISATION,
    )
    return make_run(tmp_path_factory.mktemp("r") / "run", store)


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Of people in an image."""
    clips = []
    for points in images(count=8):
        joints, weights = Given(image=True).clip(points[:, None], COCO)
        clips.append(normalise(joints.astype(np.float32), COCO, weights))
    store = write_clips(tmp_path_factory.mktemp("s") / "flat", clips, COCO, normalisation=NORMALISATION)
    return make_run(tmp_path_factory.mktemp("r") / "run", store)


def test_encode_warns_of_what_is_no_body_in_metres(run, told):
    embedder = fastmc.load(run, device="cpu")
    clips = [performed(1 + n) for n in range(6)]
    want = embedder.encode(clips, check="strict")
    assert not told.records
    wrong, limit = [clip * 1000 for clip in clips], {"max_coordinate": 1e5}
    found = embedder.encode(wrong, **limit)
    assert "this looks like millimetres; --scale 0.001" in told.text
    told.clear()
    with pytest.raises(ValueError, match="looks like millimetres"):
        embedder.encode(wrong, check="strict", **limit)
    assert torch.equal(embedder.encode(wrong, check="off", **limit), found) and not told.records
    with pytest.raises(
        ValueError, match=r"clip 0: a coordinate of .* m once normalised.*; bodies are .*--scale 0\.001"
    ):
        embedder.encode(wrong)
    scaled = embedder.encode([clip * 1000 for clip in clips], given=Given(scale=0.001), check="strict")
    torch.testing.assert_close(scaled, want, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="check must be one of warn, strict, off"):
        embedder.encode(clips, check="loose")


def test_a_clip_whose_axes_may_be_others_is_an_error_that_asks(run):
    embedder = fastmc.load(run, device="cpu")
    clip = performed()[:30]
    for array in (np.stack([clip, clip + 1]), np.stack([clip] * 9)):
        with pytest.raises(ValueError, match=r"\(T, M, V, 3\) are 30 bodies.*is it \(M, T, V, 3\)\? .*list\(clips\)"):
            embedder.encode(array)
    with pytest.raises(ValueError, match=r"3 bodies, .*is it"):
        embedder.encode(np.zeros((2, 3, 25, 3)) + clip[0])


def test_features_that_are_not_finite_are_an_error(run):
    embedder = fastmc.load(run, device="cpu")
    with torch.no_grad():
        next(embedder.encoder.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"no features: .* of the encoder is not finite"):
        embedder.encode([performed(), performed(2)])
    with pytest.raises(ValueError, match=r"no features: .* of the encoder is not finite"):
        next(embedder.encode_stream(performed(), window=16))


def test_joints_in_an_image_become_what_the_encoder_was_trained_on(flat, told):
    embedder = fastmc.load(flat, device="cpu")
    clips = list(images())
    want = embedder.encode(clips, given=Given(image=True))
    joints, weights = Given(image=True).clip(clips[0][:, None], COCO)
    moved = normalise(joints.astype(np.float32), COCO, weights)
    torch.testing.assert_close(embedder.encode(moved, normalise=False), want[:1], atol=1e-5, rtol=0)
    twice = [np.concatenate([clip[..., :2] * 2, clip[..., 2:]], axis=-1) for clip in clips]  # a finer image
    torch.testing.assert_close(embedder.encode(twice, given=Given(image=True)), want, atol=1e-4, rtol=0)
    assert torch.equal(embedder.encode([clip[..., :2] for clip in clips], given=Given(image=True)), want)
    assert not told.records
    embedder.encode(clips, max_coordinate=1e5)
    assert "looks like (x, y, score) of an image" in told.text


def test_openpose_s_25_joints_are_not_taken_for_kinect_s_and_a_mirror_is_seen(run, told, tmp_path, capsys):
    embedder, image = fastmc.load(run, device="cpu"), Given(image=True)
    embedder.encode(list(images("ntu25")), given=image)
    assert not told.records
    embedder.encode(list(images("body25")), given=image)
    assert "joints do not seem to be those of 'ntu25', but of body25: --skeleton body25" in told.text
    told.clear()
    upright = [clip * (1, -1, 1) for clip in images("ntu25")]
    embedder.encode(upright, given=image)
    assert "its y seems to point up" in told.text
    told.clear()
    embedder.encode([performed(1 + n) * (1, 1, -1) for n in range(6)])
    assert "people in a mirror" in told.text and "clip[..., 0] *= -1" in told.text
    np.save(tmp_path / "a.npy", images("body25")[:, :, None])
    assert command(run, tmp_path / "a.npz", tmp_path / "a.npy", extra=("--image",)) == 0
    assert "joints do not seem to be those of 'ntu25'" in capsys.readouterr().err
    assert command(run, tmp_path / "w.npz", tmp_path / "a.npy", extra=("--image", "--window", "12")) == 0
    assert "joints do not seem to be those of 'ntu25'" in capsys.readouterr().err
    assert command(run, tmp_path / "s.npz", tmp_path / "a.npy", extra=("--image", "--strict")) == 1


def test_joints_of_another_layout_are_taken_by_name(flat):
    embedder = fastmc.load(flat, device="cpu")
    body25 = SKELETONS["body25"]
    clips = images("body25")
    index = [body25.joint_names.index(name) for name in COCO.joint_names]
    found = embedder.encode(list(clips), given=Given(image=True, scale=0.005), layout=body25)
    want = embedder.encode(list(clips[:, :, index]), given=Given(image=True, scale=0.005))
    torch.testing.assert_close(found, want, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="the joints of 'ntu25', which lack nose, left eye"):
        embedder.encode(list(clips), layout=NTU25)
    with pytest.raises(ValueError, match=r"clip 0 has shape \(24, 25, 3\), .*V = 17 joints of 'coco17', C = 2 or 3"):
        embedder.encode(list(clips), given=Given(image=True))


def test_the_command(flat, run, told, tmp_path, capsys):
    clips = images("body25")
    np.save(tmp_path / "many.npy", clips[:, :, None].astype(np.float32))
    np.save(tmp_path / "one.npy", clips[0].astype(np.float32))
    x = clips.transpose(0, 3, 1, 2)[..., None].astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, num_frames=np.full(6, 24))
    options = ("--image", "--skeleton", "body25", "--strict")
    want = fastmc.load(flat, device="cpu").encode(
        list(clips), given=Given(image=True), layout=SKELETONS["body25"]
    )  # fmt: skip
    for name, count in (("many.npy", 6), ("one.npy", 1), ("x.npz", 6)):
        assert command(flat, tmp_path / f"{name}.npz", tmp_path / name, extra=options) == 0
        features = read(tmp_path / f"{name}.npz")["features"]
        np.testing.assert_allclose(features, want[:count].numpy(), atol=1e-5)
    assert "warning" not in capsys.readouterr().err
    assert command(run, tmp_path / "out.npz", tmp_path / "many.npy", extra=("--max-coordinate", "1e5")) == 0
    err = capsys.readouterr().err
    assert "looks like (x, y, score) of an image" in err and "--skeleton body25" in err
    assert command(run, tmp_path / "s.npz", tmp_path / "many.npy", extra=("--strict",)) == 1
    assert not (tmp_path / "s.npz").exists()
    assert command(flat, tmp_path / "s.npz", tmp_path / "many.npy", extra=("--skeleton", "coco")) == 1
    assert "there is no skeleton 'coco'; choose from" in capsys.readouterr().err
    assert command(run, tmp_path / "s.npz", tmp_path / "many.npy", extra=("--skeleton", "body25")) == 1
    assert "which lack spine base" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(flat, tmp_path / "s.npz", tmp_path / "many.npy", extra=("--scale", "big"))
    assert "give a number, or height" in capsys.readouterr().err


def test_stores_and_files_are_metres_whatever_is_said_of_arrays(run, tmp_path):
    store = write_clips(tmp_path / "s", [performed()[:, None].astype(np.float32)] * 2)
    assert command(run, tmp_path / "a.npz", store.path) == 0
    assert command(run, tmp_path / "b.npz", store.path, extra=("--scale", "0.001")) == 0
    np.testing.assert_array_equal(*(read(tmp_path / f"{name}.npz")["features"] for name in "ab"))
    shutil.rmtree(store.path)
