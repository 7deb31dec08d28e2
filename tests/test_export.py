"""Encoders for other programs: their files against `Embedder.encode`; and windows of long recordings."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bodies import performed
from safetensors.torch import load_file, save_file
from test_embedding import make_run, write_clips

import fastmc
from bench.machine import ROOT
from fastmc.data.packing import NORMALISATION
from fastmc.data.store import PackedStore
from fastmc.embedding import READY
from fastmc.encoder_file import EncoderFileError
from fastmc.encoders.bigru import BiGRUConfig
from fastmc.portable import first
from fastmc.skeleton import NTU25, Skeleton
from train import embed, export

pytestmark = pytest.mark.slow


def clips(count: int, frames: int, bodies: int = 2, seed: int = 0) -> np.ndarray:
    """A body's gentle motion; the second is there in the middle third."""
    rng = np.random.default_rng(seed)
    still = rng.normal(size=(count, 1, bodies, 25, 3))
    found = (still + 0.05 * rng.normal(size=(count, frames, bodies, 25, 3)).cumsum(1)).astype(np.float32)
    found[:, : frames // 3, 1:] = found[:, -(frames // 3) :, 1:] = 0
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> PackedStore:
    return write_clips(tmp_path_factory.mktemp("stores") / "clips", list(clips(4, 30)), normalisation=NORMALISATION)


@pytest.mark.parametrize(
    "kind, to",
    [
        *(("joint", to) for to in export.SUFFIXES),
        *(("motion", "torchscript"), ("bone", "torchscript")),
        *(("stepwise", "onnx"), ("as it is", "torchscript")),
    ],
)
def test_a_file_computes_what_encode_does_for_clips_of_every_number_and_length(kind, to, store, tmp_path):
    """By the program it is for: ONNX Runtime, PyTorch's own reader, fastmc. Of all streams, both readings of the GRU,
    and of clips that are taken as they are."""
    data = write_clips(tmp_path / "raw", list(clips(4, 30))) if kind == "as it is" else store
    settings = {
        "stepwise": {"encoder": BiGRUConfig("2x8", reading="stepwise")},
        "as it is": {},
    }.get(kind, {"stream": kind})
    run = make_run(tmp_path / "run", data, **settings)
    out = tmp_path / f"encoder{export.SUFFIXES[to]}"
    assert export.main(["--run", str(run), "--to", to, "--out", str(out)]) == 0
    embedder = fastmc.load(run, device="cpu")
    for count, frames in ((1, 1), (3, 16), (7, 45), (2, 301)):
        given = clips(count, frames, seed=frames)
        given[0, 0, 0] = 0  # the frame of reference is another frame's, if there is one
        given = given if frames > 1 else clips(count, frames)
        if count > 2:  # only the second body is there, or the first one
            given[1, :, 0], given[2, :, 1] = 0, 0
        want = embedder.encode(list(given)).numpy()
        np.testing.assert_allclose(compute(to, out, given), want, atol=2e-5 * np.abs(want).max(), rtol=0)


def test_places_that_are_means_of_joints_are_so_in_the_file_too(tmp_path):
    """Of COCO's joints hips and spine are."""
    coco = Skeleton.named("coco17")
    assert isinstance(coco.hip, tuple) and isinstance(coco.spine, tuple)
    given = np.random.default_rng(0).normal(size=(4, 20, 1, 17, 3)).astype(np.float32)
    run = make_run(tmp_path / "run", write_clips(tmp_path / "coco", list(given), coco, normalisation=NORMALISATION))
    out = tmp_path / "encoder.ts"
    assert export.main(["--run", str(run), "--to", "torchscript", "--out", str(out)]) == 0
    want = fastmc.load(run, device="cpu").encode(list(given), check="off").numpy()
    np.testing.assert_allclose(compute("torchscript", out, given), want, atol=2e-5 * np.abs(want).max(), rtol=0)


def compute(to: str, path: Path, given: np.ndarray) -> np.ndarray:
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert [value.shape for value in session.get_inputs()] == [["clips", "frames", 2, 25, 3]]
        about = session.get_modelmeta().custom_metadata_map["fastmc"]
        assert json.loads(about)["joints"] == list(NTU25.joint_names)
        return np.asarray(session.run(["features"], {"clips": given})[0])
    if to == "torchscript":
        return torch.jit.load(path)(torch.from_numpy(given)).numpy()
    return fastmc.load(path, device="cpu").encode(list(given)).numpy()


def test_the_first_of_several_is_the_first():
    assert first(torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)).tolist() == [1, 0, 0]


@pytest.fixture(scope="module")
def joint_run(store, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", store)


def test_a_trace_by_hand_is_an_error_and_not_wrong(joint_run):
    encoder = fastmc.load(joint_run, device="cpu").encoder
    with pytest.raises(RuntimeError, match=r"wrong at other batch sizes; export it by python -m train\.export"):
        torch.jit.trace(encoder, torch.randn(2, 16, encoder.shape.width), check_trace=False)


def test_what_differs_from_the_encoder_is_not_written(joint_run, tmp_path, monkeypatch, capsys):
    real = export.PortableEncoder.forward
    monkeypatch.setattr(export.PortableEncoder, "forward", lambda self, clips: real(self, clips) * 1.001)
    out = tmp_path / "encoder.ts"
    assert export.main(["--run", str(joint_run), "--to", "torchscript", "--out", str(out)]) == 1
    assert "encoder.ts was not written: for 1 clips of 7 frames its features differ" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_of_export_name_the_remedy(joint_run, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(joint_run, tmp_path / "run")
    (copy / "encoder.onnx").touch()
    for words, message in (
        (["--run", str(copy)], "encoder.onnx exists; --overwrite replaces it"),
        (["--run", str(copy), "--out", "a.pt"], "--out a.pt must end in .onnx for --to onnx"),
        (["--run", "small-v2", "--to", "torchscript"], "is no folder to write to; name the file with --out"),
        (["--run", "small-v2", "--out", "a.onnx"], "it does not exist); python -m train.run --out small-v2 makes one"),
        (["--run", "small-v2", "--out", "a.onnx"], "; encoders that come along: small-v1"),
        (["--run", str(tmp_path), "--out", "a.onnx"], "is no run folder (it has no config.json)"),
    ):
        assert export.main(words) == 1
        assert message in capsys.readouterr().err
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert export.main(["--run", str(copy), "--overwrite"]) == 1
    assert "--to onnx needs onnxruntime: pip install onnxruntime" in capsys.readouterr().err


def test_the_file_of_an_encoder_that_is_damaged_or_another_s_is_refused(joint_run, tmp_path):
    good = tmp_path / "good.safetensors"
    assert export.main(["--run", str(joint_run), "--to", "safetensors", "--out", str(good)]) == 0
    tensors = load_file(good)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(good.read_bytes()[:-8])
    refused(bad, r"bad\.safetensors is no encoder that fastmc wrote: ")
    save_file(tensors, bad)
    refused(bad, "its format is None, and this reads 'fastmc encoder 1'")
    with pytest.raises(EncoderFileError, match="No such file"):
        fastmc.load(tmp_path / "none.safetensors")
    from safetensors import safe_open

    with safe_open(good, framework="pt") as file:
        about = file.metadata()
    name = "recurrent.weight_ih_l0"
    save_file(tensors | {name: tensors[name] * float("nan")}, bad, metadata=about)
    refused(bad, re.escape(f"{name} is not finite"))
    save_file(tensors | {name: tensors[name][:-1].clone()}, bad, metadata=about)
    refused(bad, re.escape(name))
    foreign = about | {"config": json.dumps(json.loads(about["config"]) | {"backbone": "os:path"})}
    save_file(tensors, bad, metadata=foreign)
    with pytest.raises(ValueError, match="os:path"):
        fastmc.load(bad)
    embedder = fastmc.load(good, device="cpu")
    with pytest.raises(ValueError, match="holds an encoder and no classifier"):
        embedder.classify(clips(1, 10)[0])


def refused(path: Path, message: str) -> None:
    with pytest.raises(EncoderFileError, match=message):
        fastmc.load(path)


def test_the_encoder_that_comes_along_is_that_of_its_card():
    path = READY["small-v1"]
    assert path.stat().st_size < 3e6
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"`{digest[:16]}`" in (ROOT / "docs/model-card.md").read_text(encoding="utf-8")
    embedder = fastmc.load("small-v1", device="cpu")
    assert (embedder.skeleton.joint_names, embedder.max_bodies, embedder.dim) == (NTU25.joint_names, 2, 256)
    pairs = [performed(action, subject=subject) for action in (1, 4, 7, 9) for subject in (1, 3)]
    features = torch.nn.functional.normalize(embedder.encode(pairs), dim=1)
    nearest = (features @ features.T).fill_diagonal_(-1).argmax(1)
    assert nearest.tolist() == [1, 0, 3, 2, 5, 4, 7, 6], "who does the same"


# --- Windows of recordings


@pytest.fixture(scope="module")
def embedder(joint_run) -> fastmc.Embedder:
    return fastmc.load(joint_run, device="cpu")


def camera(frames: np.ndarray, held: list[int]):
    """Frames one by one; ``held`` learns how many were asked for."""
    for frame in frames:
        held.append(len(held))
        yield frame


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("window, hop, starts", [(16, 8, range(0, 33, 8)), (16, 20, [0, 20]), (50, 1, [0])])
def test_a_window_has_the_feature_of_the_clip_that_it_is(embedder, window, hop, starts, batch_size):
    recording = clips(1, 50)[0]
    want = embedder.encode([recording[s : s + window] for s in starts], crop=1.0)
    for given in (recording, torch.from_numpy(recording), iter(recording)):
        found = list(embedder.encode_stream(given, window, hop, batch_size=batch_size))
        assert [(w.start, w.stop) for w in found] == [(s, s + window) for s in starts]
        torch.testing.assert_close(torch.stack([w.feature for w in found]), want, atol=1e-6, rtol=0)


def test_a_camera_s_window_is_known_with_its_last_frame(embedder):
    asked: list[int] = []
    windows = embedder.encode_stream(camera(clips(1, 50)[0], asked), 16, 8)
    assert next(windows).stop == 16 == len(asked)
    assert next(windows).stop == 24 == len(asked)


def test_short_recordings_empty_windows_and_wrong_frames(embedder):
    recording = clips(1, 40, bodies=1)[0]
    (short,) = embedder.encode_stream(recording[:7], 16, 8)
    assert (short.start, short.stop) == (0, 7)
    recording[16:32] = 0
    assert [w.start for w in embedder.encode_stream(recording, 16, 8)] == [0, 8, 24]
    assert list(embedder.encode_stream(iter(()), 16, 8)) == []
    with pytest.raises(ValueError, match=r"frame 20 has shape \(1, 24, 3\), those before it \(1, 25, 3\)"):
        list(embedder.encode_stream([*recording[:20], recording[20, :, 1:]], 16, 8))
    recording[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="the window of frames 0 to 15 of cam 1 holds NaN or infinite coordinates"):
        list(embedder.encode_stream(recording, 16, 8, strict=True, name="cam 1"))
    for name in ("window", "hop", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            embedder.encode_stream(recording, **{name: 0})


def test_embed_writes_a_row_for_each_window(joint_run, embedder, tmp_path):
    recordings, out = clips(2, 50), tmp_path / "out.npz"
    for n, recording in enumerate(recordings):
        np.save(tmp_path / f"recording{n}.npy", recording)
    np.save(tmp_path / "nobody.npy", np.zeros_like(recordings[0]))
    given = [str(tmp_path / f"{name}.npy") for name in ("recording0", "nobody", "recording1")]
    words = ["--run", str(joint_run), "--input", *given, "--out", str(out), "--window", "16", "--hop", "10"]
    assert embed.main(words) == 0
    with np.load(out) as found:
        assert found["names"].tolist() == ["recording0"] * 4 + ["recording1"] * 4
        assert found["start"].tolist() == [0, 10, 20, 30] * 2 and set(found["num_frames"].tolist()) == {16}
        want = embedder.encode([r[s : s + 16] for r in recordings for s in (0, 10, 20, 30)], crop=1.0)
        np.testing.assert_allclose(found["features"], want.numpy(), atol=1e-6)
