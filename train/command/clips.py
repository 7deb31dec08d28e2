"""Where the clips of a command line come from: files, folders, stores and arrays, each read when its turn comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fastmc.data.clips import used_frames
from fastmc.data.formats.parts import expected_axes
from fastmc.data.given import METRES, Given
from fastmc.data.store import PackedStore
from fastmc.embedding import Clip, Embedder
from fastmc.files import find_files
from fastmc.reading import load_array, reading
from fastmc.skeleton import NTU25, Skeleton

KINDS = ".skeleton file, a folder of such files, a packed store, a .npy or a .npz file"


@dataclass(frozen=True)
class Input:
    """A clip that is read when its turn comes. ``place`` is what messages call it; ``moved`` tells that it is in the
    frame of reference of the run's data, ``is_array`` that what its numbers are is said by `ArrayKind`."""

    name: str
    place: str
    read: Callable[[], Clip]
    moved: bool = False
    is_array: bool = False


@dataclass(frozen=True)
class ArrayKind:
    """What is said of all arrays of a command line: their joints, and what their numbers are."""

    layout: Skeleton
    given: Given = METRES


def find_inputs(path: Path, embedder: Embedder, normalise: bool, kind: ArrayKind) -> list[Input]:
    """The clips of one input, which are not read yet; ``normalise`` is said of all of them.

    Raises:
        ValueError: it holds none, or is of no kind that can be read. StoreError: it is a damaged store.
        FileNotFoundError: it does not exist.
    """
    if not path.exists():
        raise FileNotFoundError(f"--input {path} does not exist; name a {KINDS}")
    if (path / "meta.json").is_file():
        return _of_store(PackedStore.open(path), embedder, normalise)
    embedder.moves(f"--input {path}", normalise)  # an error once, not for each clip
    if path.is_dir():
        files = sorted(find_files(path, "*.skeleton"))
        if not files:
            raise ValueError(f"--input {path} holds no .skeleton file and is no packed store; name another folder")
        return [_of_file(file, file.relative_to(path)) for file in files]
    if path.suffix == ".skeleton":
        return [_of_file(path, Path(path.name))]
    if path.suffix == ".npy":
        return _of_npy(path, kind)
    if path.suffix == ".npz":
        return _of_npz(path, embedder, kind)
    raise ValueError(f"--input {path} is of no kind that is read; name a {KINDS}")


def _of_file(file: Path, name: Path) -> Input:
    return Input(name.with_suffix("").as_posix(), str(file), lambda: file)


def _of_store(store: PackedStore, embedder: Embedder, normalise: bool) -> list[Input]:
    moved = not embedder.must_move(store, normalise)
    names = enumerate(store.names.tolist())
    return [Input(name, f"clip {name} of {store.path}", partial(store.clip, n), moved) for n, name in names]


def _of_npy(file: Path, kind: ArrayKind) -> list[Input]:
    with reading(f"--input {file} is not a readable .npy file", ValueError):
        array = load_array(file)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"--input {file} is a .npz file by its content; give it that suffix")
    if array.ndim != 5:
        return [Input(file.stem, str(file), lambda: np.asarray(array), is_array=True)]
    joints = kind.layout.num_joints
    if array.shape[3] != joints or array.shape[4] not in kind.given.numbers:
        theirs = array.shape[1] == 3 and array.shape[3] == joints
        remedy = "arrays (N, 3, T, V, M) are packed by python -m train.prepare npy, and --input takes the store"
        raise ValueError(
            f"--input {file} is {array.shape}, expected (N, T, M, V = {joints}, 3)" + (f"; {remedy}" if theirs else "")
        )
    if len(array) == 0:
        raise ValueError(f"--input {file} holds no clip: its shape is {array.shape}")
    names = (f"[{n}]" for n in range(len(array)))
    read = (partial(_unpadded, array, n) for n in range(len(array)))
    return [Input(file.stem + n, f"{file}{n}", clip, is_array=True) for n, clip in zip(names, read, strict=True)]


def _unpadded(clips: np.ndarray, n: int) -> np.ndarray:
    """Clip n of (N, T, M, V, 3) without its padding, as `train.prepare npy` takes it off."""
    clip = np.asarray(clips[n])
    return clip[: used_frames(clip)] if clip.any() else clip


def _of_npz(file: Path, embedder: Embedder, kind: ArrayKind) -> list[Input]:
    arrays = _arrays(file)
    if not {"x", "num_frames"} <= set(arrays):
        raise ValueError(f"--input {file} lacks x or num_frames; see python -m train.embed --help for the layout")
    x, lengths = arrays["x"], arrays["num_frames"]
    if x.ndim != 5 or x.shape[1] not in kind.given.numbers or x.dtype.kind != "f" or len(x) == 0:
        raise ValueError(f"--input {file}: x is {x.dtype} {x.shape}, {expected_axes(x)}")
    names = arrays.get("name", np.array([f"{file.stem}[{n}]" for n in range(len(x))]))
    for key, array, kinds in (("num_frames", lengths, "iu"), ("name", names, "U")):
        if array.shape != (len(x),) or array.dtype.kind not in kinds:
            raise ValueError(f"--input {file}: {key} is {array.dtype} {array.shape}, expected one a clip ({len(x)},)")
    if "ntu25_index" in arrays and embedder.skeleton.joint_names == NTU25.joint_names:
        try:
            x = x[:, :, :, arrays["ntu25_index"]]
        except IndexError as error:
            raise ValueError(f"--input {file}: ntu25_index does not fit x: {error}") from error

    def read(n: int) -> np.ndarray:
        if not 1 <= lengths[n] <= x.shape[2]:
            raise ValueError(f"{file}[{n}]: num_frames is {lengths[n]}, expected 1 to {x.shape[2]}")
        return x[n, :, : lengths[n]].transpose(1, 3, 2, 0)

    return [Input(str(name), f"{file}[{n}]", partial(read, n), is_array=True) for n, name in enumerate(names)]


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """Those of a .npz file that are read here."""
    with reading(f"--input {file} is not a readable .npz file of plain arrays", ValueError):
        content = load_array(file)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array; a file of that has the suffix .npy")
        with content:
            keys = [key for key in ("x", "num_frames", "name", "ntu25_index") if key in content.files]
            arrays: dict[str, np.ndarray] = {key: content[key] for key in keys}
        for key, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{key} is no .npy file")
        return arrays
