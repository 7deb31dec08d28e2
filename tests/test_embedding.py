"""Features of a trained encoder from files and arrays, against those of the evaluation and of the plain reference."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from bodies import performed
from view_cases import to_layout

import fastmc
from fastmc import checkpoint
from fastmc.checkpoint import CheckpointError
from fastmc.config import preset_config, to_plain
from fastmc.data.formats.ntu import prepare_ntu
from fastmc.data.formats.skeleton_file import read_skeleton
from fastmc.data.normalise import choose_bodies, normalise
from fastmc.data.packing import NORMALISATION
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore, StoreError, StoreWriter
from fastmc.data.synthetic import CLASS_NAMES, write_synthetic
from fastmc.embedding import present_bodies
from fastmc.encoders.bigru import BiGRUConfig
from fastmc.evaluation import represent, weights_digest
from fastmc.files import write_json
from fastmc.reference import augment as reference
from fastmc.skeleton import KINECT20, NTU25, Skeleton
from fastmc.state import TrainingData
from train import embed
from train.engine.loop import Pretraining

pytestmark = pytest.mark.slow

NAMES = tuple(f"class {c}" for c in range(6))


def make_run(folder: Path, store: PackedStore, **settings: object) -> Path:
    """The folder of a run that has not taken a step, but whose input norm has seen data."""
    settings = {"frames": 16, "encoder": BiGRUConfig(encoder="2x8"), "device": "cpu"} | settings
    config = replace(preset_config("tiny"), dataset=store.name, protocol=store.protocols[0], out=folder, **settings)
    config = replace(config, optim=replace(config.optim, batch_size=2), settings=replace(config.settings, bank_size=16))
    folder.mkdir(parents=True)
    write_json(folder / "config.json", to_plain(config))
    pretraining = Pretraining(config, store, folder, torch.device("cpu"))
    width = pretraining.model.query.shape.width
    pretraining.model.query(0.3 * torch.randn(8, 16, width, generator=torch.Generator().manual_seed(0)) + 0.1)
    pretraining.save()
    return folder


def write_classifier(run: Path, **changes: object) -> dict:
    encoder = fastmc.load(run, device="cpu").encoder
    generator = torch.Generator().manual_seed(1)
    saved = {
        "weight": torch.randn(6, encoder.representation_dim, generator=generator),
        "bias": torch.randn(6, generator=generator),
        "class_names": list(NAMES),
        "dataset": "clips",
        "protocol": "xsub",
        "top1": 81.25,
        "weights": weights_digest(encoder),
        **changes,
    }
    torch.save(saved, run / "classifier.pt")
    return saved


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Raw files, some of two bodies."""
    folder = tmp_path_factory.mktemp("raw") / "clips"
    actions = [1 + CLASS_NAMES.index(name) for name in ("drink", "wave", "shake hands", "hug")]
    write_synthetic(folder, subjects=2, cameras=1, actions=actions, workers=1)
    return folder


@pytest.fixture(scope="module")
def files(raw) -> list[Path]:
    return sorted(raw.glob("*.skeleton"))


@pytest.fixture(scope="module")
def store(raw, tmp_path_factory) -> PackedStore:
    """The same clips, packed; normalised on the way."""
    out = tmp_path_factory.mktemp("stores") / "clips"
    protocols = {"xsub": {"field": "subject", "train": [1]}}
    packed = prepare_ntu(raw, out, workers=1, name="clips", class_names=CLASS_NAMES, protocols=protocols)
    assert set(packed.num_bodies.tolist()) == {1, 2}
    return packed


@pytest.fixture(scope="module")
def run(store, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", store)


@pytest.fixture(scope="module")
def embedder(run) -> fastmc.Embedder:
    return fastmc.load(run, device="cpu")


@pytest.fixture(scope="module")
def unmoved(files) -> list[np.ndarray]:
    """The clips as arrays in camera space."""
    return [choose_bodies(read_skeleton(file)) for file in files]


def write_clips(path: Path, clips: list[np.ndarray], skeleton: Skeleton = NTU25, **meta: object) -> PackedStore:
    """A store of these clips, of two subjects in turn."""
    rule = {"xsub": {"field": "subject", "train": [1]}}
    about = {"name": path.name, "skeleton": skeleton, "fps": 30, "class_names": ["a"], "protocols": rule}
    with StoreWriter(path, **about, extra_meta=meta) as out:
        for n, clip in enumerate(clips):
            out.add(clip, name=f"{n:03d}", label=0, subject=1 + n % 2)
    return PackedStore.open(path)


def write_people(path: Path, pairs: int = 0) -> PackedStore:
    """A store of eight people who move, and of so many pairs, in the frame of reference of NTU's clips."""
    clips = [normalise(performed(1 + n)[:24, None].astype(np.float32), NTU25) for n in range(8)]
    two = [np.repeat(clip, 2, axis=1) for clip in clips[:pairs]]
    return write_clips(path, [*clips, *two], normalisation=NORMALISATION)


def evaluated(embedder: fastmc.Embedder, store: PackedStore, crop: float = 0.95) -> torch.Tensor:
    """What the evaluation sees of every clip of a store."""
    count, settings = len(store), embedder.config
    return represent(
        embedder.encoder,
        ResidentStore(store),
        torch.arange(count),
        settings.stream,
        frames=settings.frames,
        ratio=torch.full((count,), crop),
        position=torch.full((count,), 0.5),
    )


def assert_close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


@pytest.mark.parametrize("stream", ["joint", "motion"])
def test_files_arrays_and_store_give_the_features_of_the_evaluation(stream, store, files, unmoved, tmp_path):
    embedder = fastmc.load(make_run(tmp_path / "run", store, stream=stream), device="cpu")
    want = evaluated(embedder, store)
    assert want.shape == (len(store), 16) == (len(store), embedder.dim)
    assert want.std(dim=0).min() > 1e-4, "the clips differ"
    assert torch.equal(embedder.encode(store), want)
    assert torch.equal(embedder.encode(files), want)
    assert torch.equal(embedder.encode([str(file) for file in files]), want)
    assert torch.equal(embedder.encode(unmoved), want)
    assert torch.equal(embedder.encode([torch.from_numpy(clip) for clip in unmoved]), want)
    packed = [store.clip(n) for n in range(len(store))]
    assert torch.equal(embedder.encode(packed, normalise=False), want)
    assert embedder.encode(unmoved, normalise=False).sub(want).abs().max() > 1e-2, "normalisation matters"


def test_features_are_the_encoder_s_of_the_plain_centre_crop(embedder, store):
    for n, crop in ((0, 0.95), (1, 0.5), (len(store) - 1, 1.0)):
        clip = torch.zeros(int(store.num_frames[n]), 2, 25, 3)
        clip[:, : store.num_bodies[n]] = torch.from_numpy(store.clip(n).copy())
        length = int(len(clip) * np.float32(crop))
        start = min(int((len(clip) - length + 1) * 0.5), len(clip) - length)
        x = reference.temporal_crop_resize(clip, start, length, 16)
        want = embedder.encoder.represent(to_layout(x)[None])
        found = embedder.encode(store.clip(n), normalise=False, crop=crop)
        torch.testing.assert_close(found, want, atol=1e-5, rtol=0)


def test_features_depend_neither_on_order_nor_on_the_batch(embedder, unmoved):
    """And encoding leaves the encoder alone."""
    before = {name: value.clone() for name, value in embedder.encoder.state_dict().items()}
    want = embedder.encode(unmoved)
    assert_close(embedder.encode(unmoved[::-1]).flip(0), want)
    for size in (1, 3, 1000):
        assert_close(embedder.encode(unmoved, batch_size=size), want)
    assert not want.requires_grad and not embedder.encoder.training
    assert all(torch.equal(value, before[name]) for name, value in embedder.encoder.state_dict().items())


def test_one_clip_is_a_list_of_one(embedder, files, unmoved):
    clip = next(clip for clip in unmoved if clip.shape[1] == 1)
    want = embedder.encode([clip])
    assert want.shape == (1, 16)
    for one in (clip, clip[:, 0], torch.from_numpy(clip[:, 0]), clip.astype(np.float64), np.repeat(clip, 2, 1)[:, :1]):
        assert torch.equal(embedder.encode(one), want)
    assert torch.equal(embedder.encode(files[0]), embedder.encode([str(files[0])]))
    zeros = np.zeros_like(clip)
    for padded in ([clip, zeros], [zeros, clip], [clip, zeros, zeros]):
        assert torch.equal(embedder.encode(np.concatenate(padded, axis=1)), want), "absent bodies are padding"
    assert_close(embedder.encode(clip[:1]), embedder.encode(np.repeat(clip[:1], 50, axis=0)))  # a still


@pytest.mark.parametrize("impl", ["torch", "cpp"])
def test_a_weight_that_is_not_finite_is_named(impl, run, unmoved, tmp_path):
    """Whichever of them it is, and also where the C++ kernels compute, whose sigmoid and tanh are their own."""
    names = [name for name in fastmc.load(run).encoder.state_dict() if not name.startswith(("head.", "norm.num_"))]
    assert len(names) > 8
    for name in names:
        embedder = fastmc.load(run)
        embedder.encoder.recurrent.impl = impl
        embedder.encoder.state_dict()[name].view(-1)[0] = float("nan")
        with pytest.raises(ValueError, match=rf"no features: {re.escape(name)} of the encoder is not finite"):
            embedder.encode(unmoved)


def test_the_crop_is_that_of_the_run(store, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["evaluation"]["test_crop"] = 0.5
    write_json(copy / "config.json", config)
    other = fastmc.load(copy, device="cpu")
    assert torch.equal(other.encode(store), evaluated(other, store, crop=0.5))
    assert torch.equal(other.encode(store, crop=0.95), fastmc.load(run, device="cpu").encode(store))


def test_a_run_on_coordinates_as_they_are_takes_them_as_they_are(data_root, store, tmp_path):
    small = PackedStore.open(data_root / "small")
    assert "normalisation" not in small.meta
    embedder = fastmc.load(make_run(tmp_path / "run", small), device="cpu")
    want = evaluated(embedder, small)
    assert torch.equal(embedder.encode([small.clip(n) for n in range(len(small))]), want)
    assert torch.equal(embedder.encode(small), want)
    with pytest.raises(ValueError, match=r"clips is normalised otherwise \(one rigid motion.* trained on \(none\); "):
        embedder.encode(store)
    packed = [store.clip(n) for n in range(len(store))]
    assert torch.equal(embedder.encode(store, normalise=False), embedder.encode(packed))


def test_the_frame_of_another_code_is_for_the_user_to_make(run, store, unmoved, files, tmp_path, capsys):
    """As of an imported checkpoint."""
    _, state = checkpoint.load_latest(run / "checkpoints")
    imported = forget(
        run, tmp_path / "run", data=state["data"] | {"normalisation": "every frame's spine at the origin"}
    )
    embedder = fastmc.load(imported, device="cpu")
    for clips in (unmoved, files, store):
        with pytest.raises(ValueError, match=r"trained on \(every frame's spine.*; bring it into that frame, and give"):
            embedder.encode(clips)
    want = fastmc.load(run, device="cpu").encode(store)
    assert torch.equal(embedder.encode(store, normalise=False), want)
    assert torch.equal(fastmc.load(imported, device="cpu", data=store).encode(unmoved), want), (
        "said to be as in a store"
    )
    for given in (store.path, files[0].parent):
        assert command(imported, tmp_path / "out.npz", given) == 1
        assert capsys.readouterr().err.count("(--no-normalise)") == 1, "said once, not for each clip"
    assert command(imported, tmp_path / "out.npz", store.path, extra=("--no-normalise",)) == 0
    np.testing.assert_allclose(read(tmp_path / "out.npz")["features"], want.numpy(), atol=1e-6, rtol=0)


def test_a_store_that_is_not_normalised_is_moved(embedder, store, unmoved, tmp_path):
    unprepared = write_clips(tmp_path / "raw", unmoved)
    assert torch.equal(embedder.encode(unprepared), embedder.encode(store))
    assert torch.equal(embedder.encode(unprepared, normalise=False), embedder.encode(unmoved, normalise=False))


def test_of_a_file_s_bodies_the_run_s_number_is_kept(tmp_path, files, store, unmoved):
    first = [store.clip(n)[:, :1] for n in range(len(store))]
    single = write_clips(tmp_path / "single", first, normalisation=NORMALISATION)
    embedder = fastmc.load(make_run(tmp_path / "run", single), device="cpu")
    assert embedder.max_bodies == 1
    assert torch.equal(embedder.encode(files), evaluated(embedder, single))
    two = next(clip for clip in unmoved if clip.shape[1] == 2)
    with pytest.raises(ValueError, match=r"30 bodies, .* at most 1: is it \(M, T, V, 3\)\? Then give clip\.transpose"):
        present_bodies(np.ones((2, 30, 25, 3), np.float32), "it", NTU25, 1)
    with pytest.raises(ValueError, match="clip 1 holds 2 bodies, the encoder was trained on at most 1"):
        embedder.encode([unmoved[0][:, :1], two])


def nan_in_frame_3(clip: np.ndarray) -> np.ndarray:
    clip = clip.copy()
    clip[3:, 0, 7, 1] = np.nan
    return clip


def of_no_frame(clip: np.ndarray) -> np.ndarray:
    return np.ones_like(clip)  # all joints in one point


@pytest.mark.parametrize(
    "spoil, message",
    [
        (nan_in_frame_3, r"clip 1 holds NaN or infinite coordinates, first in frame 3; fill or drop them"),
        (lambda clip: clip.astype(np.float64) * 1e39, "clip 1 holds NaN or infinite"),
        (lambda clip: clip[:, :, :20], r"clip 1 has shape \(\d+, 1, 20, 3\), expected .* V = 25 joints of 'ntu25'"),
        (lambda clip: clip[..., :2], "clip 1 has shape .*, 25, 2"),
        (lambda clip: clip[None], "clip 1 has shape .*several go in a list"),
        (lambda clip: clip[0, 0], r"clip 1 has shape \(25, 3\)"),
        (lambda clip: clip[:0], r"clip 1 is empty: its shape is \(0, 1, 25, 3\)"),
        (lambda clip: clip[:, :0], "clip 1 is empty"),
        (np.zeros_like, "clip 1 holds no body: all coordinates are zero; leave it out"),
        (lambda clip: np.repeat(clip, 3, axis=1), "clip 1 holds 3 bodies, .* at most 2; keep those that matter"),
        (lambda clip: clip.astype(str), "clip 1 is an array of <U"),
        (lambda clip: torch.from_numpy(clip) + 1j, r"clip 1 is a tensor of torch\.complex64, expected coordinates"),
        (of_no_frame, "clip 1: no frame of body 1 gives a frame of reference: .*leave it out"),
    ],
)
def test_a_clip_that_cannot_be_read_is_named(embedder, unmoved, spoil, message):
    clip = next(clip for clip in unmoved if clip.shape[1] == 1)
    with pytest.raises(ValueError, match=message):
        embedder.encode([clip, spoil(clip), clip])


def test_what_is_no_clip_is_refused(embedder, unmoved, tmp_path):
    with pytest.raises(TypeError, match=r"skeletons must be an array, .* got int"):
        embedder.encode(3)
    with pytest.raises(TypeError, match=r"clip 1 must be an array, a tensor or the path .* got list"):
        embedder.encode([unmoved[0], unmoved[1].tolist()])
    with pytest.raises(ValueError, match="empty list; give at least one clip"):
        embedder.encode([])
    with pytest.raises(FileNotFoundError, match=r"no\.skeleton does not exist"):
        embedder.encode(tmp_path / "no.skeleton")
    with pytest.raises(FileNotFoundError, match=r"is a folder; name a \.skeleton file"):
        embedder.encode(tmp_path)
    (tmp_path / "bad.skeleton").write_text("1\n1\n")
    with pytest.raises(ValueError, match=r"bad\.skeleton, line "):
        embedder.encode(tmp_path / "bad.skeleton")
    (tmp_path / "nobody.skeleton").write_text("2\n0\n0\n")
    with pytest.raises(ValueError, match=r"nobody\.skeleton: missing skeleton"):
        embedder.encode(tmp_path / "nobody.skeleton")
    with pytest.raises(ValueError, match="crop must be"):
        embedder.encode(unmoved, crop=0)
    with pytest.raises(ValueError, match="batch_size must be"):
        embedder.encode(unmoved, batch_size=0)


def test_other_joints_are_refused(embedder, tmp_path, files):
    clip = np.random.default_rng(0).normal(size=(30, 1, 20, 3)).astype(np.float32)
    kinect = write_clips(tmp_path / "k", [clip + n for n in range(8)], KINECT20)
    with pytest.raises(ValueError, match="holds joints of 'kinect20', the encoder reads those of 'ntu25'"):
        embedder.encode(kinect)
    other = fastmc.load(make_run(tmp_path / "run", kinect), device="cpu")
    assert torch.equal(other.encode(kinect), evaluated(other, kinect))
    with pytest.raises(ValueError, match=r"holds the joints of 'ntu25', the encoder reads those of 'kinect20'"):
        other.encode(files[0])


# --- The run folder


def test_what_is_no_run_folder(tmp_path, run):
    with pytest.raises(ValueError, match=r"is no run folder \(it has no config\.json\)"):
        fastmc.load(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device = 'cuda' cannot be used: PyTorch finds no CUDA here"):
            fastmc.load(run, device="cuda")
    plain = json.loads((run / "config.json").read_text())
    for key, value in (("frames", 0), ("stream", "smell"), ("encoder", {"layers": 3})):
        write_json(tmp_path / "config.json", plain | {key: value})
        with pytest.raises(ValueError, match=key if key != "encoder" else r"config\.json is damaged or not of fastmc"):
            fastmc.load(tmp_path)
    shutil.copy(run / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="holds no complete checkpoint; train one"):
        fastmc.load(tmp_path)
    copy = shutil.copytree(run, tmp_path / "run")
    write_json(copy / "config.json", plain | {"encoder": plain["encoder"] | {"encoder": "2x9"}})
    with pytest.raises(CheckpointError, match=r"holds another model than .*config\.json"):
        fastmc.load(copy)


def forget(run: Path, copy: Path, **changes: object) -> Path:
    """A copy of a run whose checkpoint does not describe its data."""
    copy.mkdir()
    shutil.copy(run / "config.json", copy)
    _, state = checkpoint.load_latest(run / "checkpoints")
    del state["data"]
    checkpoint.save(copy / "checkpoints", 0, state | changes, keep=2)
    return copy


def test_a_checkpoint_that_does_not_describe_its_data_wants_the_store(run, store, tmp_path, data_root):
    old = forget(run, tmp_path / "old")
    with pytest.raises(CheckpointError, match=r"does not describe the data .*fastmc\.load\(DIR, data=STORE\)"):
        fastmc.load(old)
    want = fastmc.load(run, device="cpu").encode(store)
    for data in (store, store.path, str(store.path)):
        found = fastmc.load(old, device="cpu", data=data)
        assert found.data == fastmc.load(run, device="cpu").data
        assert torch.equal(found.encode(store), want)
    with pytest.raises(CheckpointError, match=r"was trained on other data than .*small"):
        fastmc.load(old, data=data_root / "small")
    with pytest.raises(StoreError, match="there is no packed store"):
        fastmc.load(old, data=tmp_path / "nothing")
    imported = forget(run, tmp_path / "imported", dataset_checksum=None)
    assert torch.equal(fastmc.load(imported, device="cpu", data=store).encode(store), want)


def test_the_description_is_the_one_that_the_trainer_writes(run, store):
    _, state = checkpoint.load_latest(run / "checkpoints")
    assert state["data"] == TrainingData.of_store(store).to_plain()
    data = fastmc.load(run, device="cpu").data
    assert (data.skeleton, data.max_bodies, data.class_names) == (NTU25, 2, CLASS_NAMES)
    assert data.normalisation == NORMALISATION


# --- Classes


@pytest.fixture
def judged(run, tmp_path) -> Path:
    """The run with a classifier."""
    copy = shutil.copytree(run, tmp_path / "judged")
    write_classifier(copy)
    return copy


def test_classes_are_those_of_the_softmax(judged, store, files):
    saved = torch.load(judged / "classifier.pt", weights_only=True)
    embedder = fastmc.load(judged, device="cpu")
    logits = embedder.encode(store).double().numpy() @ saved["weight"].double().numpy().T + saved["bias"].numpy()
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    truth = odds / odds.sum(axis=1, keepdims=True)
    found = embedder.classify(files, top=3)
    assert len(found) == len(files)
    for scores, row in zip(found, truth, strict=True):
        best = np.argsort(-row)[:3]
        assert [score.name for score in scores] == [NAMES[c] for c in best]
        assert [score.probability for score in scores] == pytest.approx(row[best], abs=1e-5)
    everything = embedder.classify(files[0], top=100)
    assert sorted(score.name for score in everything[0]) == sorted(NAMES)
    assert sum(score.probability for score in everything[0]) == pytest.approx(1, abs=1e-5)
    assert embedder.classify(store.clip(0), top=1, normalise=False)[0][0].name == found[0][0].name
    with pytest.raises(ValueError, match="top must be"):
        embedder.classify(files, top=0)


def test_a_run_without_classifier_says_how_to_get_one(run, files, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    embedder = fastmc.load(copy, device="cpu")
    with pytest.raises(ValueError, match=r"no trained classifier .*python -m train\.evaluate linear --run .*run"):
        embedder.classify(files)
    write_classifier(copy)
    assert len(embedder.classify(files[:2])) == 2, "found once it is there"


def test_a_classifier_of_something_else_is_refused(judged, files):
    """Damaged, or of other weights: those of an older checkpoint among them."""
    for changes, message in (
        ({"weights": "0" * 32}, r"trained on the features of other weights .*train\.evaluate linear --run"),
        ({"weight": torch.zeros(6, 3)}, r"is damaged: weight is \(6, 3\), not \(6, 16\)"),
        ({"bias": torch.zeros(5)}, "is damaged"),
        ({"class_names": None}, "is damaged"),
    ):
        write_classifier(judged, **changes)
        with pytest.raises(ValueError, match=message):
            fastmc.load(judged, device="cpu").classify(files)
    (judged / "classifier.pt").write_bytes(b"half of i")
    with pytest.raises(ValueError, match=r"classifier\.pt is damaged, .*train\.evaluate linear"):
        fastmc.load(judged, device="cpu").classify(files)
    write_classifier(judged)
    _, state = checkpoint.load_latest(judged / "checkpoints")
    state["model"]["query.head.0.bias"] += 1
    checkpoint.save(judged / "checkpoints", 1, state, keep=2)
    with pytest.raises(ValueError, match="other weights than these"):
        fastmc.load(judged, device="cpu").classify(files)


# --- The command line


def command(run: Path, out: Path, *inputs: Path, extra: tuple[str, ...] = ()) -> int:
    given = [str(path) for path in inputs]
    return embed.main(["--run", str(run), "--input", *given, "--out", str(out), "--device", "cpu", *extra])


def read(out: Path) -> dict[str, np.ndarray]:
    with np.load(out, allow_pickle=False) as content:
        return dict(content)


def padded(clips: list[np.ndarray]) -> np.ndarray:
    """(N, T, M, V, 3), zeros after the end of a clip and for absent bodies."""
    out = np.zeros((len(clips), max(map(len, clips)), 2, 25, 3), np.float32)
    for n, clip in enumerate(clips):
        out[n, : len(clip), : clip.shape[1]] = clip
    return out


def test_every_kind_of_input_gives_the_same_features(run, raw, files, store, unmoved, embedder, tmp_path):
    want = embedder.encode(store).numpy()
    stacked = padded(unmoved)
    lengths = np.array([len(clip) for clip in unmoved])
    np.save(tmp_path / "many.npy", stacked)
    np.save(tmp_path / "one.npy", unmoved[0])
    x = stacked.transpose(0, 4, 1, 3, 2)
    np.savez(tmp_path / "arrays.npz", x=x, num_frames=lengths)
    np.savez(
        tmp_path / "named.npz", x=x[..., ::-1, :], num_frames=lengths, name=store.names, ntu25_index=np.arange(25)[::-1]
    )
    deep = tmp_path / "deep" / "er"
    shutil.copytree(raw, deep)
    stems = [file.stem for file in files]
    kinds: list[tuple[list[Path], list[str]]] = [
        ([raw], stems),
        (files, stems),
        ([store.path], stems),
        ([tmp_path / "deep"], [f"er/{stem}" for stem in stems]),
        ([tmp_path / "many.npy"], [f"many[{n}]" for n in range(len(stems))]),
        ([tmp_path / "arrays.npz"], [f"arrays[{n}]" for n in range(len(stems))]),
        ([tmp_path / "named.npz"], stems),
        ([tmp_path / "one.npy", *files[1:]], ["one", *stems[1:]]),
    ]
    for n, (inputs, names) in enumerate(kinds):
        assert command(run, tmp_path / f"{n}.npz", *inputs, extra=("--batch-size", "4")) == 0
        found = read(tmp_path / f"{n}.npz")
        assert set(found) == {"features", "names", "num_frames"}
        assert found["names"].tolist() == names
        assert found["num_frames"].tolist() == lengths.tolist()
        assert found["features"].dtype == np.float32
        np.testing.assert_allclose(found["features"], want, atol=1e-6, rtol=0)


def test_classes_are_written_and_shown(judged, raw, store, tmp_path, capsys):
    assert command(judged, tmp_path / "new" / "out.npz", raw, extra=("--top", "2")) == 0
    found, embedder = read(tmp_path / "new" / "out.npz"), fastmc.load(judged, device="cpu")
    truth = embedder.probabilities(embedder.encode(store)).numpy()
    np.testing.assert_allclose(found["probability"], truth, atol=1e-6)
    assert found["labels"].tolist() == truth.argmax(axis=1).tolist()
    assert found["class_names"].tolist() == list(NAMES)
    printed = capsys.readouterr().out
    assert f"{len(store)} clips, 16 numbers each" in printed
    assert "linear classifier of clips xsub, 81.2 % of its test clips right" in printed
    first = embedder.classify(store, top=2)[0]
    shown = ", ".join(f"{score.name} {100 * score.probability:.1f} %" for score in first)
    assert f"  {store.names[0]}  {shown}\n" in printed
    assert not [entry for entry in (tmp_path / "new").iterdir() if entry.name != "out.npz"]


def test_without_a_classifier_of_these_weights_there_are_features_alone(judged, raw, tmp_path, capsys):
    write_classifier(judged, weights="of another")
    assert command(judged, tmp_path / "out.npz", raw) == 0
    assert set(read(tmp_path / "out.npz")) == {"features", "names", "num_frames"}
    assert "no classes:" in capsys.readouterr().out


def test_a_faulty_clip_is_left_out_by_name(run, raw, files, unmoved, tmp_path, capsys):
    folder = shutil.copytree(raw, tmp_path / "clips")
    (folder / files[1].name).write_text("1\n1\n")
    stacked = padded(unmoved)
    stacked[2, 5, 0, 3] = np.nan
    np.save(tmp_path / "many.npy", stacked)
    x, lengths = stacked.transpose(0, 4, 1, 3, 2), np.array([len(clip) for clip in unmoved])
    lengths[4] = x.shape[2] + 1
    np.savez(tmp_path / "x.npz", x=x, num_frames=lengths)
    inputs = (folder, tmp_path / "many.npy", tmp_path / "x.npz")
    assert command(run, tmp_path / "out.npz", *inputs) == 0
    names = read(tmp_path / "out.npz")["names"].tolist()
    left = {files[1].stem, "many[2]", "x[2]", "x[4]"}
    everything = [
        *(file.stem for file in files),
        *(f"{stem}[{n}]" for stem in ("many", "x") for n in range(len(files))),
    ]
    assert names == [name for name in everything if name not in left]
    out, err = capsys.readouterr()
    assert f"{files[1].name}, line " in err
    assert "many.npy[2] holds NaN" in err
    assert "x.npz[4]: num_frames is" in err
    assert "; 4 left out" in out
    assert command(run, tmp_path / "strict.npz", *inputs, extra=("--strict",)) == 1
    assert "without --strict such a clip is left out" in capsys.readouterr().err
    assert not (tmp_path / "strict.npz").exists()


def test_user_errors_are_one_message(run, raw, files, tmp_path, capsys):
    (tmp_path / "there.npz").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.npz").mkdir()
    (tmp_path / "notes.txt").write_text("no clips")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with open(tmp_path / "array.npz", "wb") as file:
        np.save(file, np.zeros(3))
    np.save(tmp_path / "none.npy", np.zeros((0, 3, 1, 25, 3), np.float32))
    np.save(tmp_path / "nan.npy", np.full((5, 25, 3), np.nan))
    x = np.ones((2, 3, 4, 25, 1), np.float32)
    np.save(tmp_path / "theirs.npy", x)
    np.save(tmp_path / "joints.npy", np.ones((2, 4, 1, 20, 3), np.float32))
    np.savez(tmp_path / "lacks.npz", x=x)
    np.savez(tmp_path / "flat.npz", x=x[0], num_frames=[4])
    np.savez(tmp_path / "lengths.npz", x=x, num_frames=[4])
    np.savez(tmp_path / "index.npz", x=x, num_frames=[4, 4], ntu25_index=np.arange(25) + 1)
    np.savez(tmp_path / "pickled.npz", x=np.array([{}]), num_frames=[4])
    before = sorted(tmp_path.rglob("*"))
    out, skeleton = tmp_path / "out.npz", files[0]
    for folder, where, given, message in [
        (tmp_path / "nowhere", out, skeleton, "nowhere is no run folder (it does not exist); python -m train.run"),
        (tmp_path, out, skeleton, "is no run folder (it has no config.json)"),
        (run, out, tmp_path / "nothing", "nothing does not exist; name a .skeleton file"),
        (run, out, tmp_path / "empty", "empty holds no .skeleton file and is no packed store"),
        (run, out, tmp_path / "notes.txt", "notes.txt is of no kind that is read"),
        (run, out, tmp_path / "bad.npy", "bad.npy is not a readable .npy file"),
        (run, out, tmp_path / "bad.npz", "bad.npz is not a readable .npz file"),
        (run, out, tmp_path / "array.npz", "array.npz is not a readable .npz file of plain arrays: it holds one array"),
        (run, out, tmp_path / "pickled.npz", "pickled.npz is not a readable .npz file of plain arrays"),
        (run, out, tmp_path / "none.npy", "none.npy holds no clip"),
        (run, out, tmp_path / "nan.npy", "none of the 1 clips can be used; nothing was written"),
        (run, out, tmp_path / "lacks.npz", "lacks.npz lacks x or num_frames"),
        (run, out, tmp_path / "flat.npz", "x is float32 (3, 4, 25, 1), expected floats (N, 3, T, V, M)"),
        (run, out, tmp_path / "lengths.npz", "num_frames is int64 (1,), expected one a clip (2,)"),
        (run, out, tmp_path / "index.npz", "index.npz: ntu25_index does not fit x"),
        (run, tmp_path / "there.npz", skeleton, "there.npz exists; --overwrite replaces it"),
        (run, tmp_path / "a.npz", skeleton, "a.npz is a folder; name a file"),
        (run, tmp_path / "there.npz" / "out.npz", skeleton, "there.npz is, or lies in, a file; name another"),
        (run, out, tmp_path / "theirs.npy", "theirs.npy is (2, 3, 4, 25, 1), expected (N, T, M, V = 25, 3); arrays"),
        (run, out, tmp_path / "joints.npy", "joints.npy is (2, 4, 1, 20, 3), expected (N, T, M, V = 25, 3)"),
        (run / "config.json", out, skeleton, "config.json is no run folder (it is a file)"),
        (run, tmp_path / "out.csv", skeleton, "out.csv must be the name of a .npz file"),
    ]:
        assert command(folder, where, given) == 1, message
        printed = capsys.readouterr()
        assert message in printed.err
        assert "Traceback" not in printed.err
    for wrong, inputs in ((("--top", "0"), [skeleton]), (("--batch-size", "0"), [skeleton]), ((), [])):
        with pytest.raises(SystemExit):
            command(run, out, *inputs, extra=wrong)
        assert ("must be >= 1, got 0" if wrong else "--input names nothing") in capsys.readouterr().err
    assert command(run, out, skeleton, extra=("--device", "abacus")) == 1
    assert "device = 'abacus' cannot be used" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written"
    assert (tmp_path / "there.npz").read_bytes() == b"mine"
    assert command(run, tmp_path / "there.npz", skeleton, extra=("--overwrite",)) == 0
    assert read(tmp_path / "there.npz")["features"].shape == (1, 16)
