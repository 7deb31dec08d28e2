"""What is fuzzed: of each format small sound files, and the real reader of them, which judges what it made of them."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.io import savemat

from fastmc.data.bytes.safe_pickle import SafePickleError, load_plain
from fastmc.data.clips import MAX_COORDINATE
from fastmc.data.formats.ctrgcn import import_ctrgcn
from fastmc.data.formats.kinetics import prepare_kinetics
from fastmc.data.formats.npz import import_npz
from fastmc.data.formats.ntu import prepare_ntu
from fastmc.data.formats.nw_ucla import prepare_nw_ucla
from fastmc.data.formats.pku import prepare_pku
from fastmc.data.formats.pyskl import import_pyskl
from fastmc.data.formats.stgcn import import_stgcn
from fastmc.data.formats.utd_mhad import prepare_utd_mhad
from fastmc.data.packing import PrepareError
from fastmc.data.report import describe
from fastmc.data.store import NAME_BYTES, PackedStore, StoreError, StoreWriter
from fastmc.skeleton import KINECT20, NTU25, SKELETONS, Skeleton
from tests.bodies import performed

Files = dict[str, bytes]  # path below a folder -> content
PROJECT_ERRORS = (PrepareError, StoreError, SafePickleError)


@dataclass(frozen=True)
class Format:
    """``seeds`` gives sound inputs; ``read`` reads a folder of such files as a user's command does, into an empty
    folder, and raises AssertionError for content that must not have passed."""

    seeds: Callable[[], list[Files]]
    read: Callable[[Path, Path], object]


def people(layout: Skeleton, frames: int, bodies: int = 1, seed: int = 0) -> np.ndarray:
    """(T, M, V, 3) of people, y up, who stand almost still."""
    pose = np.stack([performed(1 + (seed + 7 * body) % 24, layout.name)[0] + (body, 0, 0) for body in range(bodies)])
    return np.round(pose + np.random.default_rng(seed).normal(0, 0.02, (frames, *pose.shape)), 4)


def check_store(store: PackedStore) -> None:
    describe(store).encode()
    assert len(store) <= 1000
    assert max(len(name.encode()) for name in store.names.tolist()) <= NAME_BYTES
    for n in range(len(store)):
        clip = store.clip(n)
        assert clip.size <= 1 << 24
        assert np.abs(clip).max() <= MAX_COORDINATE, f"clip {n} holds {np.abs(clip).max()}"  # false for NaN
    store.verify()


# ---- text


def _skeleton(frames: int, bodies: int) -> bytes:
    joints = people(NTU25, frames, bodies)
    lines = [str(frames)]
    for t in range(frames):
        lines.append(str(bodies))
        for m in range(bodies):
            lines += [f"7205759403793110{m} 0 1 1 1 1 0 0.0276 0.0574 2", "25"]
            lines += [
                " ".join(map(str, joint)) + " 277.4 191.8 1036.2 519.1 -0.2 0.05 0.9 -0.1 2" for joint in joints[t, m]
            ]
    return "\n".join(lines).encode() + b"\n"


def _skeleton_seeds() -> list[Files]:
    return [{"S001C001P001R001A001.skeleton": _skeleton(*size)} for size in ((3, 1), (2, 2), (13, 1))]


def _converted_seeds() -> list[Files]:
    """As NTU's txt2npy.py writes them."""
    bodies = people(NTU25, 13, 2).transpose(1, 0, 2, 3)
    about = {"file_name": "S001C001P001R001A001", "nbodys": [2] * 13, "njoints": 25}
    made = [about | {f"skel_body{m}": bodies[m] for m in range(count)} for count in (1, 2)]
    return [{"S001C001P001R001A001.skeleton.npy": npy_bytes(np.array(values, object))} for values in made]


def _read_skeleton(folder: Path, out: Path) -> None:
    check_store(prepare_ntu(folder, out, workers=1))


def _pku_seeds() -> list[Files]:
    def text(frames: int, bodies: int) -> bytes:
        full = np.zeros((frames, 2, 25, 3))
        full[:, :bodies] = people(NTU25, frames, bodies)
        return "".join(" " + " ".join(map(str, frame.ravel())) + "\n" for frame in full).encode()

    split = b"Training videos:\nA01N01-L\nValidation videos:\nA01N02-R\n"
    return [
        {
            "data/A01N01-L.txt": text(6, 1),
            "data/A01N02-R.txt": text(5, 2),
            "label/A01N01-L.txt": b"8,1,4,2\n51,3,6,1\n",
            "label/A01N02-R.txt": b"8,1,5,2\n",
            "split/cross_subject_v2.txt": split,
        }
    ]


def _read_pku(folder: Path, out: Path) -> None:
    check_store(prepare_pku(folder, out, workers=1))


def _json_seeds() -> list[Files]:
    name = "a01_s01_e00_v01.json"
    table = people(KINECT20, 4)[:, 0].tolist()
    frames = ("\n".join(",".join(map(str, (*joint, 2))) for joint in frame) for frame in table)
    return [
        {name: json.dumps({"file_name": "a01_s01_e00_v01", "skeletons": table, "label": 1}).encode()},
        {name.replace("json", "txt"): "\n".join(f"{n}\n\n{frame}" for n, frame in enumerate(frames, 60)).encode()},
    ]


def _read_json(folder: Path, out: Path) -> None:
    check_store(prepare_nw_ucla(folder, out, workers=1))


def _mat_seeds() -> list[Files]:
    def content(**how: bool) -> bytes:
        file = io.BytesIO()
        savemat(file, {"d_skel": people(KINECT20, 5)[:, 0].transpose(1, 2, 0), "other": "text"}, **how)
        return file.getvalue()

    return [{"a1_s1_t1_skeleton.mat": content(do_compression=compressed)} for compressed in (False, True)]


def _read_mat(folder: Path, out: Path) -> None:
    check_store(prepare_utd_mhad(folder, out, workers=1))


# ---- arrays


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz_bytes(arrays: dict[str, np.ndarray], compressed: bool) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def _clips(count: int, layout: Skeleton = NTU25, bodies: int = 1) -> np.ndarray:
    """(N, 3, T, V, M)"""
    return np.stack([people(layout, 4, bodies, n).transpose(3, 0, 2, 1) for n in range(count)]).astype(np.float32)


def _npz_seeds() -> list[Files]:
    arrays = {
        "x": _clips(3),
        "num_frames": np.array([4, 3, 2]),
        "label": np.array([0, 1, 0]),
        "name": np.array(["a", "b", "c"]),
        "subject": np.array([1, 2, 3]),
        "split": np.array(["train", "test", "train"]),
        "ntu25_index": np.arange(25),
        "class_names": np.array(["x", "y"]),
        "fps": np.float32(30),
    }
    texts = {key: np.char.encode(a, "utf-8") if a.dtype.kind == "U" else a for key, a in arrays.items()}
    return [{"set.npz": npz_bytes(arrays, False)}, {"set.npz": npz_bytes(texts, True)}]


def _read_npz(folder: Path, out: Path) -> None:
    check_store(import_npz(folder / "set.npz", out, train="split=train"))


def _ctrgcn_seeds() -> list[Files]:
    seeds = []
    for compressed in (False, True):
        arrays = {}
        for part, count in (("train", 3), ("test", 2)):
            x = _clips(count, bodies=2)
            arrays[f"x_{part}"] = x.transpose(0, 2, 4, 3, 1).reshape(count, 4, 150)
            arrays[f"y_{part}"] = np.eye(5)[np.arange(count)]
        seeds.append({"set.npz": npz_bytes(arrays, compressed)})
    return seeds


def _read_ctrgcn(folder: Path, out: Path) -> None:
    check_store(import_ctrgcn(folder / "set.npz", out))


def _stgcn_seeds() -> list[Files]:
    ntu = [f"S001C00{n}P001R001A00{n}.skeleton" for n in (1, 2)]
    labels = [pickle.dumps((ntu, [0, 1]), 2), pickle.dumps((["x", "y"], np.array([0, 1])), 4)]
    return [
        {
            "train.npy": npy_bytes(_clips(2)),
            "train.pkl": train,
            "test.npy": npy_bytes(_clips(2)),
            "test.pkl": pickle.dumps((["p", "q"], [0, 1])),
        }
        for train in labels
    ]


def _read_stgcn(folder: Path, out: Path) -> None:
    pair = [(folder / f"{part}.npy", folder / f"{part}.pkl") for part in ("train", "test")]
    check_store(import_stgcn(*pair, out))


def _pyskl_seeds() -> list[Files]:
    names = [f"S001C00{n}P00{n}R001A00{n}" for n in (1, 2, 3)]
    split = {"xsub_train": names[:2], "xsub_val": names[2:], "xview_train": names[1:], "xview_val": names[:1]}
    seeds = []
    for layout, numbers in ((NTU25, 3), (SKELETONS["coco17"], 2)):
        annotations: list[dict[str, object]] = []
        for n, name in enumerate(names):
            keypoint = people(layout, 4, 1, n).transpose(1, 0, 2, 3)[..., :numbers].astype(np.float16)
            scores = {"keypoint_score": np.ones((1, 4, layout.num_joints), np.float16)} if numbers == 2 else {}
            annotations.append({"frame_dir": name, "label": n, "total_frames": 4, "keypoint": keypoint, **scores})
        seeds.append({"set.pkl": pickle.dumps({"split": split, "annotations": annotations})})
    return seeds


def _read_pyskl(folder: Path, out: Path) -> None:
    check_store(import_pyskl(folder / "set.pkl", out))


def _kinetics_seeds() -> list[Files]:
    points = people(SKELETONS["openpose18"], 3)[:, 0, :, :2].round(3)
    person = [{"pose": frame.ravel().tolist(), "score": [0.9] * 18} for frame in points]
    data = [{"frame_index": t + 1, "skeleton": [one]} for t, one in enumerate(person)]
    content = json.dumps({"data": data, "label": "abseiling", "label_index": 2}).encode()
    return [{"kinetics_train/a.json": content, "kinetics_val/b.json": content}]


def _read_kinetics(folder: Path, out: Path) -> None:
    check_store(prepare_kinetics(folder, out, workers=1))


def _pickle_seeds() -> list[Files]:
    values = [
        (["S001C001P001R001A001.skeleton", "é"], [0, 59]),
        {"names": ["a"], 3: {"deep": (1, [2, (3,)])}},
        (["a", "b"], np.array([3, 4])),
        (["a", "b"], [np.int64(3), np.float32(0.5), np.bool_(True)]),
        [np.array([[1.5, 2.5], [3.5, 4.5]], np.float32).T, np.array(["ab", "ü"]), b"\xff"],
    ]
    return [{"label.pkl": pickle.dumps(value, protocol)} for value in values for protocol in (0, 2, 4, 5)]


def _read_pickle(folder: Path, out: Path) -> None:
    load_plain(folder / "label.pkl")


# ---- what fastmc wrote itself


def _store_seeds() -> list[Files]:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as temporary:
        path = Path(temporary, "toy")
        rule = {"xsub": {"field": "subject", "train": [1]}}
        with StoreWriter(path, name="toy", skeleton=NTU25, fps=30, class_names=["x", "y"], protocols=rule) as writer:
            for n in range(3):
                writer.add(people(NTU25, 3, 1 + n % 2, n), name=f"clip{n}", label=n % 2, subject=n)
            writer.skip("clip9", "malformed file", "clip9.skeleton, line 1: found nothing")
        return [{f"toy/{file.name}": file.read_bytes() for file in path.iterdir()}]


def _read_store(folder: Path, out: Path) -> None:
    store = PackedStore.open(folder / "toy")
    for protocol in store.protocols:
        store.split(protocol)
        store.split_digest(protocol)
    describe(store).encode()
    store.verify()
    check_store(store)


def _run_seeds() -> list[Files]:
    from fastmc.config import Config, to_plain  # here, since these take seconds, and no other format needs them
    from fastmc.methods.a2mc import A2MC
    from train.engine.profiling import Part
    from train.engine.record import columns

    rows = ["1,10,9.5,4,3,2.5,0.1,0.2,0.1,0.1,5,500,2,30", "2,20,9.1,4,3,2.1,0.1,0.2,0.1,0.1,5,500,2,"]
    return [
        {
            "run/config.json": json.dumps(to_plain(Config())).encode(),
            "run/report.json": json.dumps({"linear_top1": 50.0, "random_init": {"linear_top1": 20.0}}).encode(),
            "run/environment.json": json.dumps([{"python": "3.11"}]).encode(),
            "run/profile/parts.json": json.dumps(
                {"steps": 2, "parts": [Part("mc", 1.0, 2.5, None, None)._asdict()]}
            ).encode(),
            "run/metrics.csv": "\n".join([",".join(columns(metric.name for metric in A2MC.metrics)), *rows]).encode()
            + b"\n",
        }
    ]


def _read_run(folder: Path, out: Path) -> None:
    from fastmc.config import Config, load_config
    from train.engine.record import read_metrics
    from train.runs.folder import RunFolder
    from train.runs.page_files import read_begun, read_profile, read_report

    run = folder / "run"
    load_config(run)
    for row in read_metrics(run / "metrics.csv"):
        assert type(row["epoch"]) is int
    for read in (read_report, read_begun, read_profile):
        read(run)
    finished = replace(Config(), out=run, restart=True)
    with RunFolder(finished).begin({"python": "3.12"}):
        pass


def _settings_seeds() -> list[Files]:
    from fastmc.budget import fitted
    from fastmc.config import preset_config, to_plain

    run = to_plain(fitted(preset_config("tiny"), 188))
    own = {"preset": "small", "method": "aimclr", "optim": {"lr": 0.5, "milestones": [40]}, "settings": {"ema": 0.9}}
    before = {"contrast": {"bank_size": 64, "method": "b1", "impl": "torch"}, "attack": {}, "optim": {"epochs": 3}}
    return [{"own.json": json.dumps(plain).encode()} for plain in (run, own, before)]


def _read_settings(folder: Path, out: Path) -> None:
    from fastmc.budget import fitted
    from train.command.parse import parse

    config = parse(["--config", str(folder / "own.json")])
    with suppress(ValueError):  # of two budgets; it is the command's own
        fitted(config, 188)


FORMATS: dict[str, Format] = {
    "skeleton": Format(_skeleton_seeds, _read_skeleton),
    "txt2npy": Format(_converted_seeds, _read_skeleton),
    "pku": Format(_pku_seeds, _read_pku),
    "nwucla": Format(_json_seeds, _read_json),
    "utd-mhad": Format(_mat_seeds, _read_mat),
    "npz": Format(_npz_seeds, _read_npz),
    "ctrgcn": Format(_ctrgcn_seeds, _read_ctrgcn),
    "npy": Format(_stgcn_seeds, _read_stgcn),
    "pyskl": Format(_pyskl_seeds, _read_pyskl),
    "kinetics": Format(_kinetics_seeds, _read_kinetics),
    "pickle": Format(_pickle_seeds, _read_pickle),
    "store": Format(_store_seeds, _read_store),
    "run": Format(_run_seeds, _read_run),
    "settings": Format(_settings_seeds, _read_settings),
}
