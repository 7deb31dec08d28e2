"""Windows of recordings: of raw files and of their stores, and what is wrong with one of them costs no other."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from bodies import performed
from test_embedding import command, make_run, read, write_clips, write_people

import fastmc
from fastmc import Given
from fastmc.data.formats.ntu import prepare_ntu
from fastmc.embedding import Embedder
from fastmc.skeleton import NTU25
from train import embed

pytestmark = pytest.mark.slow


def recording(frames):
    """(T, 25, 3): someone who moves, walks and turns."""
    body = np.concatenate([performed(1 + n) for n in range(6)])[:frames]
    turn = np.linspace(0, np.pi, frames)
    rotation = np.zeros((frames, 3, 3))
    rotation[:, 0, 0], rotation[:, 0, 2] = np.cos(turn), np.sin(turn)
    rotation[:, 2, 0], rotation[:, 2, 2], rotation[:, 1, 1] = -np.sin(turn), np.cos(turn), 1
    return np.einsum("tij,tvj->tvi", rotation, body) + np.linspace((0, 0, 3), (4, 0, 3), frames)[:, None]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    return make_run(folder / "run", write_people(folder / "clips"))


@pytest.fixture(scope="module")
def embedder(run) -> Embedder:
    return fastmc.load(run, device="cpu")


def skeleton_file(path, body):
    """The file of a body that is there in all frames."""
    tail = " 1 1 1 1 1 0 0 0 2"
    lines = [str(len(body))]
    for frame in body:
        lines += ["1", "72057594037931101 0 0 0 0 0 0 0.3 -0.5 2", "25"]
        lines += [" ".join(f"{value:.7f}" for value in joint) + tail for joint in frame]
    path.write_text("\n".join(lines) + "\n")


def test_windows_of_a_file_and_of_its_store_are_the_same(run, embedder, tmp_path):
    """Each is moved by its own first frames, also out of the frame of reference of the whole clip."""
    frames, name = recording(192), "S001C001P001R001A001"
    (tmp_path / "raw").mkdir()
    skeleton_file(tmp_path / "raw" / f"{name}.skeleton", frames)
    packed = prepare_ntu(tmp_path / "raw", tmp_path / "packed", workers=1)
    unmoved = write_clips(tmp_path / "unmoved", [frames[:, None].astype(np.float32)])
    found = {}
    for given in (tmp_path / "raw", packed.path, unmoved.path):
        out = tmp_path / f"{given.name}.npz"
        assert command(run, out, given, extra=("--window", "64", "--hop", "64")) == 0
        found[given.name] = read(out)
        assert found[given.name]["start"].tolist() == [0, 64, 128]
    want = embedder.encode([frames[start : start + 64] for start in (0, 64, 128)], crop=1.0).numpy()
    for name, arrays in found.items():
        np.testing.assert_allclose(arrays["features"], want, atol=1e-5, err_msg=name)
    in_stream = embedder.encode_stream(packed.clip(0), 64, 64)
    np.testing.assert_allclose(np.stack([w.feature.numpy() for w in in_stream]), want, atol=1e-5)
    assert command(run, tmp_path / "n.npz", packed.path, extra=("--window", "64", "--hop", "64", "--no-normalise")) == 0
    as_they_are = embedder.encode_stream(packed.clip(0), 64, 64, normalise=False)
    as_they_are = np.stack([w.feature.numpy() for w in as_they_are])
    np.testing.assert_allclose(read(tmp_path / "n.npz")["features"], as_they_are, atol=1e-6)
    assert np.abs(as_they_are - want)[1:].max() > 1e-2


@pytest.mark.parametrize("meta", [{}, {"normalisation": "every frame's spine at the origin"}])
def test_windows_of_a_store_in_another_frame_are_taken_as_they_are(meta, tmp_path):
    clips = [recording(48)[:, None].astype(np.float32) + n for n in range(8)]
    store = write_clips(tmp_path / "s", clips, **meta)
    run = make_run(tmp_path / "run", store)
    assert command(run, tmp_path / "a.npz", store.path, extra=("--window", "16", "--hop", "16")) == 0
    want = fastmc.load(run, device="cpu").encode(
        [clip[s : s + 16] for clip in clips for s in (0, 16, 32)], normalise=False, crop=1.0
    )
    np.testing.assert_allclose(read(tmp_path / "a.npz")["features"], want.numpy(), atol=1e-5)


def nobody(window):
    window[:] = np.nan


def no_shoulders(window):
    window[:, NTU25.left_shoulder] = window[:, NTU25.right_shoulder]


def far_away(window):
    window[5, 3, 0] = 2e5


WRONG = {
    "nan": (nobody, "holds NaN or infinite coordinates, first in frame 0"),
    "no frame": (no_shoulders, "no frame of body 1 gives a frame of reference"),
    "far": (far_away, r"a coordinate of 2e\+05 m in frame 5, expected at most 10000 \(--max-coordinate\)"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_window_that_cannot_be_used_costs_no_other_one(what, run, embedder, tmp_path, told, capsys):
    spoil, message = WRONG[what]
    frames = recording(48)
    want = [w.feature for w in embedder.encode_stream(frames, 16, 16)][::2]
    spoil(frames[16:32])
    told.clear()
    for batch_size in (1, 5):
        found = list(embedder.encode_stream(iter(frames), 16, 16, batch_size=batch_size))
        assert [window.start for window in found] == [0, 32]
        torch.testing.assert_close(torch.stack([window.feature for window in found]), torch.stack(want))
        assert re.search(rf"left out: the window of frames 16 to 31:? {message}", told.text)
    with pytest.raises(ValueError, match=message):
        list(embedder.encode_stream(frames, 16, 16, strict=True))
    np.save(tmp_path / "a.npy", frames)
    words = ["--run", str(run), "--input", str(tmp_path / "a.npy"), "--window", "16", "--hop", "16"]
    assert embed.main([*words, "--out", str(tmp_path / "a.npz")]) == 0
    with np.load(tmp_path / "a.npz") as content:
        assert content["start"].tolist() == [0, 32]
    assert re.search(rf"window of frames 16 to 31 of .*a\.npy:? {message}", capsys.readouterr().err)
    assert embed.main([*words, "--out", str(tmp_path / "b.npz"), "--strict"]) == 1
    assert "without --strict such" in capsys.readouterr().err and not (tmp_path / "b.npz").exists()


def test_a_window_whose_features_are_not_finite_is_left_out_alone(embedder, monkeypatch, told):
    frames, represent = recording(48), Embedder._represent

    def spoilt(self, packed, crop):
        features = represent(self, packed, crop).clone()
        features[1] = torch.nan
        return features

    monkeypatch.setattr(Embedder, "_represent", spoilt)
    found = embedder.encode_stream(frames, 16, 16, batch_size=3)
    assert [window.start for window in found] == [0, 32]
    assert "left out: the window of frames 16 to 31: its features are not finite" in told.text
    with pytest.raises(ValueError, match="16 to 31: its features are not finite"):
        list(embedder.encode_stream(frames, 16, 16, batch_size=3, strict=True))


@pytest.mark.parametrize("seen", ["scores", "nan", "zero"])
def test_who_is_not_seen_in_an_image_is_in_no_window_of_it(seen, embedder, told):
    body = recording(48)
    image = np.concatenate([500 + 100 * body[..., :2], np.full((48, 25, 1), 0.9)], axis=-1)
    want = [w.feature for w in embedder.encode_stream(image, 16, 16, given=Given(image=True, scale=0.01))][::2]
    told.clear()
    if seen == "scores":
        image[16:32, :, 2] = 0.02  # what a detector gives for an empty room
    else:
        image[16:32] = np.nan if seen == "nan" else 0
    found = list(embedder.encode_stream(image, 16, 16, given=Given(image=True, scale=0.01), strict=True))
    assert [window.start for window in found] == [0, 32]
    torch.testing.assert_close(torch.stack([window.feature for window in found]), torch.stack(want))
    assert "left out" not in told.text


def test_windows_of_an_array_of_an_image_have_one_scale(embedder):
    """Of who sits down: as if the scale were known; frames that come one after the other have one a window."""
    body = recording(48)
    body[32:] *= 0.6
    image = np.round(np.stack([900 + 200 * body[..., 0], 500 - 200 * body[..., 1]], axis=-1))
    height = np.quantile(np.ptp(image, axis=1).max(axis=-1), 0.5, method="lower")
    known = embedder.encode_stream(image, 16, 16, given=Given(image=True, scale=1.7 / float(height)))
    want = torch.stack([window.feature for window in known])
    for given in (image, torch.from_numpy(image), image[:, None].astype(np.float32)):
        found = embedder.encode_stream(given, 16, 16, given=Given(image=True))
        torch.testing.assert_close(torch.stack([w.feature for w in found]), want, atol=1e-5, rtol=0)
    one_by_one = torch.stack([w.feature for w in embedder.encode_stream(iter(image), 16, 16, given=Given(image=True))])
    clip_by_clip = embedder.encode([image[:16], image[16:32], image[32:]], given=Given(image=True), crop=1.0)
    torch.testing.assert_close(one_by_one, clip_by_clip, atol=1e-6, rtol=0)
    assert (one_by_one[2] - want[2]).abs().max() > 1e-3
