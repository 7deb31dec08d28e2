"""What train.embed reads: many files, files of the set's own converter, and coordinates that no person has."""

from __future__ import annotations

import os
from itertools import count, islice

import numpy as np
import pytest
import torch
from bodies import performed
from test_embedding import command, make_run, read, write_clips, write_people
from test_windows import skeleton_file

import fastmc
from fastmc import Given
from fastmc.embedding import Embedder
from fastmc.skeleton import NTU25

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("s") / "clips", pairs=2)


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("r") / "run", store)


@pytest.fixture(scope="module")
def embedder(run) -> Embedder:
    return fastmc.load(run, device="cpu")


def test_more_files_of_arrays_than_a_process_may_hold_open(run, tmp_path):
    """Of one clip each, and of many."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    inputs = [tmp_path / f"{n:03d}.npy" for n in range(100)]
    for n, file in enumerate(inputs):
        clip = performed(1 + n % 8)[:24].astype(np.float32)
        np.save(file, clip if n % 2 else np.stack([clip[:, None]] * 2))
    taken = set(map(int, os.listdir("/proc/self/fd"))) if os.path.isdir("/proc/self/fd") else set(range(24))
    limit = next(islice((n for n in count() if n not in taken), 40, None))  # 40 more may be opened
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        assert command(run, tmp_path / "out.npz", *inputs) == 0
        assert command(run, tmp_path / "windows.npz", *inputs, extra=("--window", "24")) == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    names = read(tmp_path / "out.npz")["names"].tolist()
    assert names[:3] == ["000[0]", "000[1]", "001"] and len(names) == 150
    assert len(read(tmp_path / "windows.npz")["names"]) == 150


def txt2npy(path, body):
    """What txt2npy.py writes of a body that is there in all frames."""
    with open(path, "wb") as file:
        np.save(file, np.array({"file_name": path.name, "nbodys": [1] * len(body), "skel_body0": body}, object))


def test_files_of_txt2npy_are_read_as_those_they_were_made_of(run, embedder, store, tmp_path, capsys):
    bodies = {f"S001C001P001R001A00{n}": performed(n).astype(np.float32) for n in (1, 2)}
    (tmp_path / "plain").mkdir()
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name, body in bodies.items():
        skeleton_file(tmp_path / "plain" / f"{name}.skeleton", body)
        txt2npy(tmp_path / "deep" / "er" / f"{name}.skeleton.npy", body)
    files = sorted(tmp_path.rglob("*.npy"))
    assert command(run, tmp_path / "plain.npz", tmp_path / "plain") == 0
    want = read(tmp_path / "plain.npz")
    for n, given in enumerate(([tmp_path / "deep"], files)):
        assert command(run, tmp_path / f"{n}.npz", *given) == 0
        found = read(tmp_path / f"{n}.npz")
        np.testing.assert_allclose(found["features"], want["features"], atol=1e-5)
        assert found["names"].tolist() == [("er/" if n == 0 else "") + name for name in bodies]
    np.testing.assert_allclose(embedder.encode(files).numpy(), want["features"], atol=1e-5)
    assert command(run, tmp_path / "w.npz", *files, extra=("--window", "16")) == 0
    first, second = files
    skeleton_file(first.with_suffix(""), bodies[first.name.partition(".")[0]])
    capsys.readouterr()
    assert command(run, tmp_path / "both.npz", tmp_path / "deep") == 0
    assert len(read(tmp_path / "both.npz")["names"]) == 2
    assert f"left out: {first}: {first.with_suffix('')} is the same clip; so with 1 files" in capsys.readouterr().err
    np.save(second, performed(2))  # numbers of one's own under such a name
    assert command(run, tmp_path / "own.npz", second) == 0
    second.write_bytes(second.read_bytes()[:90])
    assert command(run, tmp_path / "damaged.npz", second, first) == 1
    assert f"{second} is not a readable .npy file" in capsys.readouterr().err
    txt2npy(second, performed(2)[:, :20])
    assert command(run, tmp_path / "damaged.npz", second, first) == 0
    assert f"left out: {second}: skel_body0 is float64" in capsys.readouterr().err


def test_a_coordinate_that_no_person_has_leaves_its_clip_out_by_name(run, embedder, tmp_path, capsys):
    """As train.prepare does, and with its limits."""
    body = performed()[:24].astype(np.float32)
    for name, spoilt, message in (
        ("raw", 200_000, "a coordinate of 2e+05 m in frame 3, expected at most 10000 (--max-coordinate)"),
        ("moved", 2000, "m once normalised in frame 3, expected at most 100 (--max-coordinate)"),
    ):
        far = body.copy()
        far[3, 7, 0] = spoilt
        folder = tmp_path / name
        folder.mkdir()
        skeleton_file(folder / "far.skeleton", far)
        skeleton_file(folder / "good.skeleton", body)
        np.save(folder / "far.npy", far)
        inputs = (folder, folder / "far.npy")
        assert command(run, tmp_path / f"{name}.npz", *inputs) == 0
        assert read(tmp_path / f"{name}.npz")["names"].tolist() == ["good"]
        said = capsys.readouterr().err
        assert said.count(message) == 2
        assert all(f"left out: {folder / file}: a coordinate" in said for file in ("far.skeleton", "far.npy"))
        with pytest.raises(ValueError, match=r"clip 1: a coordinate of .*--max-coordinate"):
            embedder.encode([body, far])
        assert command(run, tmp_path / "s.npz", *inputs, extra=("--strict",)) == 1
        assert command(run, tmp_path / f"all-{name}.npz", *inputs, extra=("--max-coordinate", "1e6")) == 0
        assert len(read(tmp_path / f"all-{name}.npz")["names"]) == 3
        assert embedder.encode(far, max_coordinate=1e6, check="off").isfinite().all()
        assert embedder.encode(far, max_coordinate=float("inf"), check="off").isfinite().all()
    with pytest.raises(ValueError, match="max_coordinate"):
        embedder.encode(body, max_coordinate=0)


def test_a_store_was_prepared_with_a_limit_of_its_own(run, embedder, tmp_path):
    store = write_clips(tmp_path / "far", [performed()[:, None].astype(np.float32) * 1000] * 2)
    assert command(run, tmp_path / "out.npz", store.path) == 0
    assert command(run, tmp_path / "w.npz", store.path, extra=("--window", "16")) == 0
    np.testing.assert_array_equal(read(tmp_path / "out.npz")["features"], embedder.encode(store).numpy())


def test_a_clip_whose_feature_is_not_finite_is_left_out_by_name(run, tmp_path, monkeypatch, capsys):
    bodies = np.stack([performed(1 + n)[:24, None] for n in range(4)]).astype(np.float32)
    np.save(tmp_path / "many.npy", bodies)
    represent = Embedder._represent

    def spoilt(self, packed, crop):
        features = represent(self, packed, crop).clone()
        features[2] = torch.nan
        return features

    monkeypatch.setattr(Embedder, "_represent", spoilt)
    assert command(run, tmp_path / "out.npz", tmp_path / "many.npy") == 0
    assert read(tmp_path / "out.npz")["names"].tolist() == ["many[0]", "many[1]", "many[3]"]
    out, err = capsys.readouterr()
    assert f"left out: {tmp_path / 'many.npy'}[2]: its features are not finite" in err and "; 1 left out" in out
    assert command(run, tmp_path / "strict.npz", tmp_path / "many.npy", extra=("--strict",)) == 1
    assert "many.npy[2]: its features" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [(), ("--window", "12")])
def test_an_encoder_that_is_not_finite_ends_the_command_and_blames_no_clip(extra, run, tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "a.npy", performed()[:24])
    load = fastmc.load

    def spoilt(*arguments, **how):
        embedder = load(*arguments, **how)
        next(embedder.encoder.parameters()).fill_(torch.nan)
        return embedder

    monkeypatch.setattr("train.embed.load", spoilt)
    assert command(run, tmp_path / "out.npz", tmp_path / "a.npy", extra=extra) == 1
    said = capsys.readouterr().err
    assert "error: no features: " in said and "of the encoder is not finite" in said and "left out" not in said


def test_who_is_in_the_second_place_alone_has_the_same_feature(run, embedder, tmp_path):
    """In an image as well, where the first place gave the scale."""
    body = performed()[:24]
    image = np.concatenate([900 + 200 * body[..., :2] * (1, -1), np.full((24, 25, 1), 0.9)], axis=-1)
    second = np.stack([np.zeros_like(image), image], axis=1)
    for given in (Given(image=True), Given(image=True, scale=0.004)):
        want = embedder.encode(image, given=given)
        torch.testing.assert_close(embedder.encode(second, given=given), want)
        windows = embedder.encode_stream(second, 24, given=given)
        whole = embedder.encode(image, given=given, crop=1.0)
        torch.testing.assert_close(next(windows).feature, whole[0], atol=1e-6, rtol=0)
    np.save(tmp_path / "one.npy", image)
    np.save(tmp_path / "two.npy", second)
    assert command(run, tmp_path / "out.npz", tmp_path / "one.npy", tmp_path / "two.npy", extra=("--image",)) == 0
    features = read(tmp_path / "out.npz")["features"]
    np.testing.assert_allclose(features[0], features[1], atol=1e-6)


def test_layouts_have_names_and_what_is_none_is_refused(run, embedder, tmp_path):
    clip = performed(1)[:24]
    want = embedder.encode(clip)
    assert torch.equal(embedder.encode(clip, layout="ntu25"), want)
    turned = list(reversed(NTU25.joint_names))
    (tmp_path / "mine.json").write_text('{"joints": ["' + '", "'.join(turned) + '"]}')
    for layout in (tmp_path / "mine.json", str(tmp_path / "mine.json")):
        assert torch.equal(embedder.encode(clip[:, ::-1], layout=layout), want)
    windows = list(embedder.encode_stream(clip[:, ::-1], 24, layout=str(tmp_path / "mine.json")))
    torch.testing.assert_close(windows[0].feature, embedder.encode(clip, crop=1.0)[0])
    with pytest.raises(ValueError, match=r"there is no skeleton 'coco'; choose from .*coco17"):
        embedder.encode(clip, layout="coco")
    with pytest.raises(ValueError, match="'coco17', which lack spine base"):
        embedder.encode(clip, layout="coco17")
    for use in (embedder.encode, embedder.read, embedder.encode_stream):
        with pytest.raises(TypeError, match=r"layout must be a fastmc\.Skeleton, or the name of one, .* got int"):
            use(clip, layout=17)
        with pytest.raises(
            TypeError, match=r"given must be a fastmc\.Given, such as fastmc\.Given\(image=True\), got st"
        ):
            use(clip, given="image")
