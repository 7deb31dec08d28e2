"""Released checkpoints: against an encoder of those codes' kind, written here from their papers and equations, which is
fed one frame at a time in their order of channels."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import shlex
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_small_store
from torch import Tensor, nn
from torch.nn import functional as F

from fastmc import checkpoint
from fastmc.checkpoint import CheckpointError
from fastmc.config import load_config
from fastmc.data.packing import NORMALISATION
from fastmc.data.store import PackedStore
from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.encoders.released import (
    ReleasedEncoder,
    encoder_of,
    read_released,
    released_name,
    to_released,
)
from fastmc.evaluation import represent
from fastmc.objective.bank import MemoryBank
from fastmc.skeleton import NTU25
from fastmc.state import RunState
from fastmc.views.layout import to_stream
from train import convert, evaluate, prepare, run
from train.command.parse import parse
from train.engine.loop import Pretraining
from train.evaluate import load_run

pytestmark = pytest.mark.slow

HIDDEN, DIM, FRAMES, BATCH = 8, 16, 12, 5
QUEUE = 32
TOLERANCE = 1e-5
# Child and parent of each bone, joints counted from 1, as NTU RGB+D draws them.
BONES = [(1, 2), (2, 21), (3, 21), (4, 3), (5, 21), (6, 5), (7, 6), (8, 7), (9, 21), (10, 9), (11, 10), (12, 11)]
BONES += [(13, 1), (14, 13), (15, 14), (16, 15), (17, 1), (18, 17), (19, 18), (20, 19), (22, 23), (23, 8)]
BONES += [(24, 25), (25, 12)]


class TheirGRU(nn.Module):
    """A bidirectional nn.GRU that gets one frame at a time and carries its state."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.gru = nn.GRU(150, HIDDEN, layers, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for t in range(x.shape[1]):
            out, state = self.gru(x[:, t : t + 1], state)
        return out[:, 0]


class TheirEncoder(nn.Module):
    """(N, T, 150) to representations (N, 2 * HIDDEN) and unit features."""

    def __init__(self, layers: int, norm: bool, head: str = "mlp", classes: int = DIM) -> None:
        super().__init__()
        self.encoder = TheirGRU(layers)
        linear = nn.Linear(2 * HIDDEN, classes)
        self.fc = nn.Sequential(nn.Linear(2 * HIDDEN, 2 * HIDDEN), nn.ReLU(), linear) if head == "mlp" else linear
        if norm:
            self.input_norm = nn.BatchNorm1d(150)

    def represent(self, x: Tensor) -> Tensor:
        if hasattr(self, "input_norm"):
            x = self.input_norm(x.transpose(1, 2)).transpose(1, 2)
        return self.encoder(x)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.fc(self.represent(x)), dim=1)


class TheirModel(nn.Module):
    """Query and key encoders and queues of one stream (ISC) or of three (CMD)."""

    def __init__(self, layers: int, norm: bool, streams: tuple[str, ...] = ("",), head: str = "mlp") -> None:
        super().__init__()
        for stream in streams:
            for kind in "qk":
                setattr(self, f"encoder_{kind}{stream}", TheirEncoder(layers, norm, head))
            self.register_buffer(f"queue{stream}", F.normalize(torch.randn(DIM, QUEUE), dim=0))
            self.register_buffer(f"queue_ptr{stream}", torch.tensor([8]))
        randomise(self)


CMD = ("", "_motion", "_bone")


def randomise(module: nn.Module) -> None:
    """Random weights, far from their initial values, and random running statistics."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif "queue" not in name:
                tensor.normal_(std=0.5)
    module.eval()


def theirs(layers: int = 1, *, norm: bool = True, streams: tuple[str, ...] = CMD, seed: int = 0, **kw) -> TheirModel:
    torch.manual_seed(seed)
    return TheirModel(layers, norm, streams, **kw)


def clips(seed: int = 1) -> Tensor:
    """(N, 3, T, V, M), as their feeders hold clips; the second body of every other clip is absent."""
    x = torch.randn(BATCH, 3, FRAMES, 25, 2, generator=torch.Generator().manual_seed(seed))
    x[::2, ..., 1] = 0
    return x


def their_input(x: Tensor, stream: str = "") -> Tensor:
    """(N, 3, T, V, M) to (N, T, V * 3 * M) of a stream."""
    if stream == "_motion":
        motion = torch.zeros_like(x)
        for t in range(x.shape[2] - 1):
            motion[:, :, t] = x[:, :, t + 1] - x[:, :, t]
        x = motion
    elif stream == "_bone":
        bone = torch.zeros_like(x)
        for child, parent in BONES:
            bone[:, :, :, child - 1] = x[:, :, :, child - 1] - x[:, :, :, parent - 1]
        x = bone
    return x.permute(0, 2, 3, 1, 4).reshape(len(x), x.shape[2], -1)


def our_input(x: Tensor, stream: str = "") -> Tensor:
    """(N, 3, T, V, M) to (N, T, V * M * 3) of a stream."""
    joints = x.permute(0, 2, 3, 4, 1).reshape(len(x), x.shape[2], -1)
    return to_stream(joints, stream.removeprefix("_") or "joint", NTU25)


def save_file(path: Path, model: nn.Module, module: bool = False, **more: object) -> Path:
    state = {("module." if module else "") + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 451, "state_dict": state, "optimizer": {"state": {}, "param_groups": []}, **more}, path)
    return path


def our_encoder(found: ReleasedEncoder, state: dict[str, Tensor] | None = None) -> BiGRU:
    encoder = BiGRU(found.config, ClipShape(found.input_size // 3, 1)).eval()
    encoder.load_state_dict(found.query if state is None else state, strict=found.has_head)
    return encoder


def assert_equal_features(ours: BiGRU, theirs: TheirEncoder, stream: str = "") -> None:
    x = clips()
    with torch.no_grad():
        want, got = theirs.represent(their_input(x, stream)), ours.represent(our_input(x, stream))
        torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(ours(our_input(x, stream)), theirs(their_input(x, stream)), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("layers", "stream"), [(1, ""), (3, "_motion"), (3, "_bone")])
def test_cmd_query_and_key_give_the_same_features(layers, stream, tmp_path):
    model = theirs(layers)
    name = stream.removeprefix("_") or "joint"
    found = encoder_of(read_released(save_file(tmp_path / "cmd.pth.tar", model)), name)
    assert found.config == BiGRUConfig(f"{layers}x{HIDDEN}", "stepwise", input_norm=True, feature_dim=DIM)
    assert found.name == f"encoder_q{stream}"
    ours = {f"encoder_q{stream}", f"encoder_k{stream}"}
    assert not ours & set(found.unused) and {"encoder_q", "encoder_k_bone"} - ours <= set(found.unused)
    assert_equal_features(our_encoder(found), getattr(model, f"encoder_q{stream}"), stream)
    assert_equal_features(our_encoder(found, found.key), getattr(model, f"encoder_k{stream}"), stream)
    assert torch.equal(found.queue, getattr(model, f"queue{stream}").T)
    assert found.cursor == 8


def test_isc_without_norm_and_under_data_parallel_gives_the_same_features(tmp_path):
    """The one encoder of its file is of the stream that is named; options saved beside the weights are harmless."""
    model = theirs(3, norm=False, streams=("",))
    args = argparse.Namespace(lr=0.01)
    file = read_released(save_file(tmp_path / "isc.pth.tar", model, module=True, args=args))
    assert file.epochs == 451
    found = encoder_of(file, "bone")
    assert not found.config.input_norm
    assert_equal_features(our_encoder(found), model.encoder_q, "_bone")
    assert_equal_features(our_encoder(found, found.key), model.encoder_k, "_bone")


@pytest.mark.parametrize(
    "wrapped",
    ["encoder_q.module.{}", "module.encoder_q.{}", "_orig_mod.encoder_q.{}", "model.module.encoder_q._orig_mod.{}"],
)
def test_names_are_read_without_what_wrappers_add_wherever_that_is(wrapped, tmp_path):
    """And with numpy's scalars beside the weights, such as a best accuracy."""
    model = theirs(2, streams=("",)).encoder_q
    state = {wrapped.format(name): tensor for name, tensor in model.state_dict().items()}
    beside = {"best": np.float64(87.5), "at": np.int64(3), "half": np.float16(0.5), "is_best": np.bool_(True)}
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pt"
        torch.save({"epoch": 7, "state_dict": state, **beside}, path, _use_new_zipfile_serialization=zipped)
        file = read_released(path)
        assert file.epochs == 7
        assert_equal_features(our_encoder(encoder_of(file, "joint")), model)


def test_one_name_with_and_without_a_wrapper_is_an_error(tmp_path):
    state = dict(theirs(1, streams=("",)).state_dict())
    name = next(iter(state))
    torch.save({"state_dict": {**state, f"module.{name}": state[name] + 1}}, tmp_path / "both.pt")
    with pytest.raises(CheckpointError, match=rf"several tensors for each of {re.escape(name)}, with and without mod"):
        read_released(tmp_path / "both.pt")


@pytest.mark.parametrize("beside", [np.array(["x"], dtype=object), np.dtype([("a", "f4")]), np.random.default_rng(0)])
def test_of_numpy_only_scalars_are_read(beside, tmp_path):
    path = save_file(tmp_path / "file.pt", theirs(1), beside=beside)
    with pytest.raises(CheckpointError, match=r"could run any program|is damaged, or no checkpoint"):
        read_released(path)


def test_isc_inter_skeleton_file_has_the_queue_of_its_gru(tmp_path):
    """Two queues, and encoders of another kind beside the BiGRU, which are left."""
    model = theirs(norm=False, streams=("",))
    model.encoder_r = nn.Conv2d(3, 4, 1)
    for name in ("S1", "S2"):
        model.register_buffer(f"Queue_{name}", F.normalize(torch.randn(DIM, QUEUE), dim=0))
        model.register_buffer(f"queue_ptr_{name}", torch.tensor([3]))
    del model.queue, model.queue_ptr
    found = encoder_of(read_released(save_file(tmp_path / "inter.pth.tar", model, module=True)), "joint")
    assert torch.equal(found.queue, model.Queue_S1.T) and found.cursor == 3
    assert set(found.unused) == {"encoder_r", "Queue_S2", "queue_ptr_S2"}


def test_features_are_those_of_the_equations_of_a_gru(tmp_path):
    """Cell by cell in float64 from the file's tensors, without any recurrent module; each direction of a layer reads
    both of the layer below."""
    layers = 3
    model = theirs(layers)
    path = save_file(tmp_path / "cmd.pth.tar", model)
    tensors = {
        name.removeprefix("encoder_q."): tensor.double().numpy()
        for name, tensor in torch.load(path)["state_dict"].items()
        if name.startswith("encoder_q.")
    }
    x = their_input(clips()).double().numpy()
    norm = {part: tensors[f"input_norm.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
    x = (x - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm["bias"]

    def cell(x: np.ndarray, h: np.ndarray, name: str) -> np.ndarray:
        of_x = x @ tensors[f"encoder.gru.weight_ih_{name}"].T + tensors[f"encoder.gru.bias_ih_{name}"]
        of_h = h @ tensors[f"encoder.gru.weight_hh_{name}"].T + tensors[f"encoder.gru.bias_hh_{name}"]
        reset, update = (1 / (1 + np.exp(-(of_x[:, i : i + HIDDEN] + of_h[:, i : i + HIDDEN]))) for i in (0, HIDDEN))
        new = np.tanh(of_x[:, 2 * HIDDEN :] + reset * of_h[:, 2 * HIDDEN :])
        return (1 - update) * new + update * h

    state = {(layer, d): np.zeros((BATCH, HIDDEN)) for layer in range(layers) for d in ("", "_reverse")}
    for t in range(FRAMES):
        below = x[:, t]
        for layer in range(layers):
            for d in ("", "_reverse"):
                state[layer, d] = cell(below, state[layer, d], f"l{layer}{d}")
            below = np.concatenate([state[layer, ""], state[layer, "_reverse"]], axis=1)
    with torch.no_grad():
        ours = our_encoder(encoder_of(read_released(path), "joint")).represent(our_input(clips()))
    np.testing.assert_allclose(ours.numpy(), below, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("bare", [False, True])
def test_linear_evaluation_checkpoint_gives_its_encoder(bare, tmp_path):
    """A classifier of 50 classes is no projection head: the encoder is read, the head is left out. ISC saves such an
    encoder without a name."""
    torch.manual_seed(0)
    encoder = TheirEncoder(2, norm=not bare, head="linear", classes=50)
    randomise(encoder)
    path = save_file(tmp_path / "linear.pth.tar", encoder if bare else nn.ModuleDict({"encoder_q": encoder}), bare)
    found = encoder_of(read_released(path), "joint")
    assert not found.has_head and found.key is None and found.queue is None
    assert not any(name.startswith("head.") for name in found.query)
    x = clips()
    with torch.no_grad():
        got, want = our_encoder(found).represent(our_input(x)), encoder.represent(their_input(x))
    torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


def test_files_of_old_pytorch_are_read(tmp_path):
    """ISC asks for PyTorch 1.2, whose files are no zip archives."""
    new, old = save_file(tmp_path / "new.pth.tar", theirs()), tmp_path / "old.pth.tar"
    torch.save(torch.load(new), old, _use_new_zipfile_serialization=False)
    assert_same_tensors(*(dict(read_released(path).tensors) for path in (new, old)))


def test_half_precision_is_read_as_float32(tmp_path):
    found = encoder_of(read_released(save_file(tmp_path / "half.pth.tar", theirs().half())), "joint")
    kinds = {tensor.dtype for tensor in [*found.query.values(), *found.key.values(), found.queue]}
    assert kinds == {torch.float32, torch.int64}


class Foreign:
    """What no reader should have to unpickle."""


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that are no checkpoints, by kind."""
    whole = save_file(folder / "whole.pth.tar", theirs())
    old = folder / "old.pth.tar"  # as PyTorch before 1.6 wrote them
    torch.save(torch.load(whole), old, _use_new_zipfile_serialization=False)
    files = {
        name: folder / f"{name}.pth.tar" for name in ("cut", "old cut", "text", "empty", "foreign", "list", "json")
    }
    files["cut"].write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    files["old cut"].write_bytes(old.read_bytes()[:-100])
    files["text"].write_text("hello world")
    files["empty"].write_bytes(b"")
    files["json"].write_text(json.dumps({"state_dict": {}}))
    save_file(files["foreign"], theirs(), options=Foreign())
    torch.save([1, 2], files["list"])
    return files


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    said = {
        "foreign": r"Foreign, and reading that could run any program.*weights_only=False",
        "list": r"it has no 'state_dict' of tensors, but list",
    }
    for kind, path in bad_files(tmp_path).items():
        with pytest.raises(CheckpointError, match=said.get(kind, "is damaged, or no checkpoint")) as caught:
            read_released(path)
        assert str(path) in str(caught.value)


def test_a_checkpoint_of_something_else_is_told_by_what_it_has(tmp_path):
    torch.save({"epoch": 3, "net": {"conv.weight": torch.zeros(2)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no 'state_dict' of tensors, but epoch, net"):
        read_released(tmp_path / "other.pt")
    model = nn.ModuleDict({"encoder_q": nn.Linear(2, 2), "t_queue": nn.Linear(2, 2)})
    path = save_file(tmp_path / "graph.pth.tar", model)
    with pytest.raises(CheckpointError, match=r"no encoder_q\.encoder\.gru\.\*.*it has encoder_q, t_queue"):
        encoder_of(read_released(path), "joint")
    with pytest.raises(CheckpointError, match=r"there is no file .*absent\.pt"):
        read_released(tmp_path / "absent.pt")


def without(name: str):
    def change(state: dict[str, Tensor]) -> None:
        del state[name]

    return change


def setting(name: str, value: Tensor):
    def change(state: dict[str, Tensor]) -> None:
        state[name] = value

    return change


Q = "encoder_q."


FAULTS = [
    (without(Q + "encoder.gru.bias_hh_l1_reverse"), r"missing: encoder_q\.encoder\.gru\.bias_hh_l1_reverse"),
    (without(Q + "encoder.gru.weight_ih_l0"), r"encoder_q\.encoder\.gru\.weight_ih_l0 is missing"),
    (without(Q + "input_norm.running_var"), r"missing: encoder_q\.input_norm\.running_var"),
    (without(Q + "fc.2.bias"), r"missing: encoder_q\.fc\.2\.bias"),
    (without("encoder_k.fc.0.weight"), r"encoder_k is no BiGRU of 2x8.*missing: encoder_k\.fc\.0\.weight"),
    (setting(Q + "prompt", torch.zeros(3)), r"unexpected: encoder_q\.prompt"),
    (setting(Q + "encoder.gru.weight_hh_l1", torch.zeros(24, 9)), r"another shape: .* \(24, 9\) instead of \(24, 8\)"),
    (setting(Q + "encoder.gru.weight_ih_l0", torch.zeros(25, 150)), r"weight_ih_l0 is \(25, 150\), not \(3 \* hid"),
    (setting(Q + "encoder.gru.weight_ih_l0", torch.zeros(24, 149)), "reads 149 numbers a frame"),
    (setting(Q + "fc.0.bias", torch.full((16,), torch.nan)), r"not finite: encoder_q\.fc\.0\.bias"),
    (setting("queue", torch.zeros(DIM + 1, QUEUE)), r"queue is \(17, 32\), not \(D = 16, K\)"),
]


def test_faults_of_the_weights_are_named(tmp_path):
    path, whole = tmp_path / "faulty.pth.tar", theirs(2).state_dict()
    for change, says in FAULTS:
        state = dict(whole)
        change(state)
        torch.save({"epoch": 1, "state_dict": state}, path)
        with pytest.raises(CheckpointError, match=says) as caught:
            encoder_of(read_released(path), "joint")
        assert str(path) in str(caught.value)


def test_a_stream_that_the_file_lacks_is_an_error_that_lists_the_others(tmp_path):
    path = save_file(tmp_path / "two.pth.tar", theirs(streams=("", "_motion")))
    with pytest.raises(
        CheckpointError, match="no encoder_q_bone, the bone encoder; it has encoder_q, encoder_q_motion"
    ):
        encoder_of(read_released(path), "bone")


# --- Run folders


def command(*args: object) -> int:
    return convert.main([str(arg) for arg in args])


def load_command(file: Path, out: Path, data_root: Path, *more: object) -> int:
    return command("load", "--checkpoint", file, "--out", out, "--data-root", data_root, "--dataset", "small", *more)


@pytest.fixture(scope="module")
def cmd_run(data_root, tmp_path_factory) -> tuple[TheirModel, Path, Path]:
    """Their model of three layers, its file, and the run folder of its motion encoder."""
    folder = tmp_path_factory.mktemp("cmd")
    model = theirs(3)
    file = save_file(folder / "cmd.pth.tar", model)
    assert load_command(file, folder / "run", data_root, "--stream", "motion", "--frames", FRAMES) == 0
    return model, file, folder / "run"


def test_run_of_a_released_checkpoint_represents_a_store_as_their_code_does(cmd_run, data_root):
    """From the store's clips to features, theirs from padded arrays: resized by F.interpolate, then their encoder."""
    model, _, out = cmd_run
    run_ = load_run(out, torch.device("cpu"))
    config, ours, placed, store = run_.config, run_.model, run_.placed, run_.store
    assert (config.stream, config.frames, config.protocol) == ("motion", FRAMES, "xsub")
    ids = torch.arange(6)
    whole, centre = torch.ones(6), torch.full((6,), 0.5)
    with torch.no_grad():
        got = represent(ours.query, placed, ids, config.stream, frames=FRAMES, ratio=whole, position=centre)
        for n in range(6):
            clip = store.clip(n)  # (T, M, V, 3)
            x = torch.zeros(3, len(clip), 25, 2)
            x[..., : clip.shape[1]] = torch.tensor(clip).permute(3, 0, 2, 1)
            want = model.encoder_q_motion.represent(their_input(resized(x)[None], "_motion"))[0]
            torch.testing.assert_close(got[n], want, atol=TOLERANCE, rtol=0)


def test_their_arrays_are_packed_as_they_are(cmd_run, tmp_path, monkeypatch):
    """The commands of docs/checkpoints.md on arrays as their data_gen writes them, then features of both codes."""
    rng = np.random.default_rng(0)
    arrays, lengths = {}, {}
    for part, count in (("train", 4), ("val", 3)):
        lengths[part] = rng.integers(10, 30, count)
        lengths[part][0] = 40  # fills the array
        x = rng.normal(size=(count, 3, 40, 25, 2)).astype(np.float32)
        x[::2, ..., 1] = 0
        for clip, frames in zip(x, lengths[part], strict=True):  # they repeat a clip until it fills the array
            clip[:] = clip[:, np.arange(40) % frames]
        arrays[part] = x
        (tmp_path / "xsub").mkdir(exist_ok=True)
        np.save(tmp_path / "xsub" / f"{part}_data_joint.npy", x)
        with open(tmp_path / "xsub" / f"{part}_label.pkl", "wb") as file:
            pickle.dump(([f"{part}{n}.skeleton" for n in range(count)], [n % 2 for n in range(count)]), file)
    monkeypatch.chdir(tmp_path)
    docs = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()
    shell = re.findall(r"```sh\n(.*?)```", docs, re.DOTALL)[1]
    prepare_line, load_line = (shlex.split(line)[3:] for line in shell.replace("\\\n", " ").strip().splitlines())
    shutil.copy(cmd_run[1], tmp_path / "cmd.pth.tar")
    assert prepare.main(prepare_line) == 0
    assert convert.main([*load_line, "--frames", str(FRAMES)]) == 0

    out = Path(load_line[load_line.index("--out") + 1])
    run_ = load_run(out, torch.device("cpu"))
    config, ours, placed, store = run_.config, run_.model, run_.placed, run_.store
    assert config.stream == "motion"
    assert [len(ids) for ids in store.split(config.protocol)] == [4, 3]
    model = cmd_run[0]
    for n, name in enumerate(store.names):
        part, index = name[:-1], int(name[-1])
        x = torch.tensor(arrays[part][index][:, : lengths[part][index]])
        with torch.no_grad():
            span = {"frames": FRAMES, "ratio": torch.ones(1), "position": torch.zeros(1)}
            got = represent(ours.query, placed, torch.tensor([n]), "motion", **span)
            want = model.encoder_q_motion.represent(their_input(resized(x)[None], "_motion"))
        torch.testing.assert_close(got, want, atol=TOLERANCE, rtol=0)


def resized(x: Tensor) -> Tensor:
    """(3, T, V, M) to FRAMES frames, as their feeders do it."""
    rows = x.permute(0, 2, 3, 1).reshape(1, -1, x.shape[1], 1)
    rows = F.interpolate(rows, size=(FRAMES, 1), mode="bilinear", align_corners=False)
    return rows.view(3, 25, 2, FRAMES).permute(0, 3, 1, 2)


def test_run_of_a_released_checkpoint_is_evaluated_and_is_a_finished_run(cmd_run, data_root, tmp_path):
    """The trainer takes it for one, too."""
    out = tmp_path / "run"
    shutil.copytree(cmd_run[2], out)
    assert evaluate.main(["knn", "--run", str(out), "--device", "cpu"]) == 0
    short = ["--linear-epochs", "2", "--train-crops", "1"]
    assert evaluate.main(["linear", "--run", str(out), "--device", "cpu", *short]) == 0
    state = checkpoint.load_latest(out / "checkpoints")[1]
    assert state["dataset_checksum"] is None
    assert state["data"]["skeleton"] == NTU25.to_dict() and state["data"]["max_bodies"] == 2
    assert state["data"]["normalisation"] == convert.THEIR_FRAME, "clips are not to be moved as ours are"
    assert state["position"]["epoch"] == state["config"]["optim"]["epochs"] == 451
    bank = MemoryBank(QUEUE, DIM)
    bank.load_state_dict({name.removeprefix("bank."): t for name, t in state["model"].items() if "bank." in name})
    assert bank.is_full and torch.equal(bank.entries.T, cmd_run[0].queue_motion)
    assert (int(bank.cursor) - 8) % QUEUE == 0
    config = load_config(out)
    config = replace(config, out=out, optim=replace(config.optim, batch_size=8))
    pretraining = Pretraining(config, PackedStore.open(data_root / "small"), out, torch.device("cpu"))
    path = checkpoint.complete(out / "checkpoints")[-1][1]
    pretraining.load(RunState.of_plain(state, path), path)
    assert pretraining.finished
    assert torch.equal(pretraining.model.query.state_dict()["head.2.bias"], cmd_run[0].encoder_q_motion.fc[2].bias)


def test_without_a_key_encoder_it_is_a_copy_and_head_and_bank_are_fresh(data_root, tmp_path):
    torch.manual_seed(0)
    encoder = TheirEncoder(1, norm=True, head="linear", classes=50)
    file = save_file(tmp_path / "linear.pth.tar", nn.ModuleDict({"encoder_q": encoder}))
    assert load_command(file, tmp_path / "run", data_root) == 0
    model = checkpoint.load_latest(tmp_path / "run" / "checkpoints")[1]["model"]
    for name in BiGRU(BiGRUConfig(f"1x{HIDDEN}", "stepwise"), ClipShape(25, 2)).state_dict():
        assert torch.equal(model[f"query.{name}"], model[f"key.{name}"]), name
    assert model["bank.entries"].shape == (16384, 128) and int(model["bank.cursor"]) == 0
    assert evaluate.main(["knn", "--run", str(tmp_path / "run"), "--device", "cpu"]) == 0


def test_errors_leave_nothing_behind(data_root, tmp_path, capsys):
    good = save_file(tmp_path / "cmd.pth.tar", theirs())
    bad = tmp_path / "bad.pth.tar"
    bad.write_bytes(good.read_bytes()[:1000])
    out = tmp_path / "run"
    for file, more, says in (
        (bad, (), "is damaged"),
        (tmp_path / "no.pth.tar", (), "there is no file"),
        (good, ("--protocol", "xsetup"), "protocol = 'xsetup' is none of"),
    ):
        assert load_command(file, out, data_root, *more) == 1
        assert says in capsys.readouterr().err
        assert not out.exists()
    write_one_body_store(tmp_path / "thin")
    assert command("load", "--checkpoint", good, "--out", out, "--data-root", tmp_path, "--dataset", "thin") == 1
    assert "up to 1 bodies, the encoder reads the 25 of ntu25 and 2" in capsys.readouterr().err
    assert not out.exists()


def write_one_body_store(path: Path) -> PackedStore:
    return write_small_store(path, clips=4)  # every fifth clip has two bodies


def test_a_run_that_is_there_is_replaced_only_when_asked(cmd_run, data_root, tmp_path, capsys):
    _, file, _ = cmd_run
    out = tmp_path / "run"
    assert load_command(file, out, data_root) == 0
    assert load_command(file, out, data_root) == 1
    assert "holds a run; name another folder, or replace it with --overwrite" in capsys.readouterr().err
    assert load_command(file, out, data_root, "--stream", "bone", "--overwrite") == 0
    assert load_run(out, torch.device("cpu")).config.stream == "bone"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    assert load_command(file, tmp_path / "mine", data_root, "--overwrite") == 1
    assert "holds files that are no run" in capsys.readouterr().err


def test_a_store_in_our_frame_is_warned_of(data_root, tmp_path, capsys):
    store = write_small_store(tmp_path / "small")
    meta = json.loads((store.path / "meta.json").read_text())
    (store.path / "meta.json").write_text(json.dumps({**meta, "normalisation": "one rigid motion a clip"}))
    file = save_file(tmp_path / "cmd.pth.tar", theirs())
    assert load_command(file, tmp_path / "warned", tmp_path) == 0
    assert "learnt from coordinates of another frame" in capsys.readouterr().err
    assert load_command(file, tmp_path / "plain", data_root) == 0
    assert "another frame" not in capsys.readouterr().err


# --- Export


def assert_same_tensors(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


def test_three_streams_come_back_bit_for_bit(data_root, tmp_path):
    model = theirs(2)
    file = save_file(tmp_path / "cmd.pth.tar", model)
    runs = [tmp_path / stream for stream in ("joint", "motion", "bone")]
    for out in runs:
        assert load_command(file, out, data_root, "--stream", out.name) == 0
    back = tmp_path / "back" / "cmd.pth.tar"
    assert command("export", "--run", *runs, "--out", back) == 0
    content = torch.load(back)
    assert content["epoch"] == 451
    assert_same_tensors(content["state_dict"], dict(model.state_dict()))
    one = theirs(norm=False, streams=("",))  # and ISC's with its prefix, for a store that need not be there yet
    file = save_file(tmp_path / "isc.pth.tar", one, module=True)
    assert load_command(file, tmp_path / "run", tmp_path / "later") == 0
    assert not (tmp_path / "later").exists()
    assert command("export", "--run", tmp_path / "run", "--out", tmp_path / "back.pt") == 0
    want = {f"module.{name}": tensor for name, tensor in one.state_dict().items()}
    assert_same_tensors(torch.load(tmp_path / "back.pt")["state_dict"], want)


def test_pre_training_starts_from_a_released_file(data_root, tmp_path):
    model = theirs(2)
    file = save_file(tmp_path / "cmd.pth.tar", model)
    flags = ["--dataset", "small", "--preset", "tiny", "--batch-size", "8", "--device", "cpu"]
    flags += ["--encoder", f"2x{HIDDEN}", "--reading", "stepwise", "--feature-dim", str(DIM), "--stream", "bone"]
    config = replace(parse([*flags, "--init-from", str(file)]), protocol="xsub")
    store = PackedStore.open(data_root / "small")
    fresh = Pretraining(config, store, tmp_path / "run", torch.device("cpu")).model
    for ours in (fresh.query, fresh.key):
        assert_equal_features(ours.eval(), model.encoder_q_bone, "_bone")


@pytest.fixture(scope="module")
def trained(data_root, tmp_path_factory) -> Path:
    """A run of our own in the stepwise reading."""
    out = tmp_path_factory.mktemp("ours") / "run"
    small = ["--dataset", "small", "--preset", "tiny", "--frames", "8", "--encoder", f"2x{HIDDEN}", "--batch-size", "8"]
    small += ["--bank-size", "16", "--epochs", "2", "--probe-every", "0", "--linear-epochs", "1", "--train-crops", "1"]
    small += ["--feature-dim", str(DIM), "--device", "cpu", "--reading", "stepwise"]
    assert run.main([*small, "--data-root", str(data_root), "--out", str(out)]) == 0
    return out


def test_our_run_in_their_code(trained, tmp_path):
    """What CMD's evaluation does: all of encoder_q but its head, into an encoder with a classifier."""
    file = tmp_path / "ours.pth.tar"
    assert command("export", "--run", trained, "--out", file) == 0
    assert not zipfile.is_zipfile(file), "PyTorch 1.2, which ISC asks for, reads no zip archives"
    state = torch.load(file, weights_only=True)["state_dict"]
    encoder = TheirEncoder(2, norm=True)
    prefix = "encoder_q."
    encoder.load_state_dict({name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)})
    encoder.eval()
    ours = load_run(trained, torch.device("cpu")).model
    assert_equal_features(ours.query.eval(), encoder)

    bank = ours.bank.entries
    assert not torch.allclose(bank.norm(dim=1), torch.ones(len(bank))), "a learned bank is raw"
    want = bank / bank.norm(dim=1, keepdim=True)
    torch.testing.assert_close(state["queue"].T, want, atol=1e-6, rtol=0)
    assert state["queue_ptr"].tolist() == [int(ours.bank.cursor) % 16]


def test_our_run_comes_back_bit_for_bit(trained, data_root, tmp_path):
    file, back = tmp_path / "ours.pth.tar", tmp_path / "back"
    assert command("export", "--run", trained, "--out", file) == 0
    assert load_command(file, back, data_root) == 0
    before, after = (checkpoint.load_latest(out / "checkpoints")[1]["model"] for out in (trained, back))
    encoders = [name for name in before if name.startswith(("query.", "key."))]
    assert len(encoders) > 40
    for name in encoders:
        assert torch.equal(before[name], after[name]), name


def test_export_says_what_their_scripts_feed_otherwise(trained, data_root, tmp_path, capsys):
    """The run's clips are of 8 frames, and normalised as ours are; the file says so, and loading it believes it."""
    ours = tmp_path / "ours"
    shutil.copytree(trained, ours)
    path, state = checkpoint.load_latest(ours / "checkpoints")
    state["data"]["normalisation"] = NORMALISATION
    checkpoint.save(ours / "checkpoints", int(path.name.removeprefix("step_")) + 1, state, keep=2)
    capsys.readouterr()
    assert command("export", "--run", ours, "--out", tmp_path / "file.pt") == 0
    printed = capsys.readouterr().err
    assert f"learnt from coordinates of another frame ({NORMALISATION}) than their scripts feed" in printed
    assert "learnt from clips of 8 frames; their scripts feed 64" in printed

    store = write_small_store(tmp_path / "root" / "small")
    meta = json.loads((store.path / "meta.json").read_text())
    (store.path / "meta.json").write_text(json.dumps({**meta, "normalisation": NORMALISATION}))
    assert load_command(tmp_path / "file.pt", tmp_path / "back", tmp_path / "root") == 0
    assert "another frame" not in capsys.readouterr().err
    config = load_run(tmp_path / "back", torch.device("cpu")).config
    assert config.frames == 8
    assert checkpoint.load_latest(tmp_path / "back" / "checkpoints")[1]["data"]["normalisation"] == NORMALISATION


def test_a_run_that_reads_whole_sequences_cannot_be_exported(trained, tmp_path, capsys):
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    config = json.loads((out / "config.json").read_text())
    config["encoder"]["reading"] = "sequence"
    (out / "config.json").write_text(json.dumps(config))
    assert command("export", "--run", out, "--out", tmp_path / "out.pt") == 1
    error = capsys.readouterr().err
    assert f"{out}: reading = 'sequence' cannot be exported" in error
    assert "train with --reading stepwise" in error
    assert not (tmp_path / "out.pt").exists()


def test_export_refuses_what_would_be_lost(trained, cmd_run, tmp_path, capsys):
    out = tmp_path / "out.pt"
    assert command("export", "--run", trained, cmd_run[2], "--out", out) == 1  # two layers, and three
    assert f"{cmd_run[2]} does not fit to the runs before it" in capsys.readouterr().err
    assert command("export", "--run", trained, trained, "--out", out) == 1
    assert "does not fit to the runs before it" in capsys.readouterr().err
    assert command("export", "--run", "--out", out) == 1
    assert "run names no run folder" in capsys.readouterr().err
    assert not out.exists()
    out.write_text("mine")
    assert command("export", "--run", trained, "--out", out) == 1
    assert "exists; name another file, or replace it with --overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    (tmp_path / "folder").mkdir()
    assert command("export", "--run", trained, "--out", tmp_path / "folder", "--overwrite") == 1
    assert "is a folder; name a file" in capsys.readouterr().err
    assert command("export", "--run", trained, "--out", out / "new.pt") == 1
    assert "out.pt is, or lies in, a file; name another" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"out.pt", "folder"}
    assert command("export", "--run", tmp_path, "--out", tmp_path / "new.pt") == 1
    assert "is no run folder" in capsys.readouterr().err
    assert command("export", "--run", trained, "--out", out, "--overwrite") == 0
    assert "state_dict" in torch.load(out)


def test_an_older_run_takes_its_layout_from_the_store(trained, data_root, tmp_path):
    """Checkpoints of before this layout was written into them."""
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    path, state = checkpoint.load_latest(old / "checkpoints")
    del state["data"]
    checkpoint.save(old / "checkpoints", int(path.name.removeprefix("step_")), state, keep=2)
    for name in (trained, old):
        assert command("export", "--run", name, "--out", tmp_path / f"{name.name}.pt") == 0
    assert_same_tensors(*(torch.load(tmp_path / f"{name.name}.pt")["state_dict"] for name in (trained, old)))


def test_names_map_one_to_one():
    for norm in (False, True):
        names = list(BiGRU(BiGRUConfig("3x4", "stepwise", norm), ClipShape(25, 2)).state_dict())
        assert len({released_name(name) for name in names}) == len(names)
    their_names = set(TheirEncoder(3, norm=True).state_dict())
    assert {
        released_name(n) for n in BiGRU(BiGRUConfig("3x8", "stepwise"), ClipShape(25, 2)).state_dict()
    } == their_names


def test_to_released_needs_the_stepwise_reading():
    with pytest.raises(ValueError, match="--reading stepwise"):
        to_released({}, BiGRUConfig("1x4"), joints=25, bodies=2, stream="joint")
