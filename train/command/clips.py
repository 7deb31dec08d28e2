"""Where the clips of a command line come from: files, folders, stores and arrays, each read when its turn comes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fastmc.data.clips import used_frames
from fastmc.data.formats.parts import expected_axes
from fastmc.data.formats.txt2npy import HEADERS
from fastmc.data.formats.txt2npy import SUFFIX as TXT2NPY
from fastmc.data.given import METRES, Given
from fastmc.data.store import PackedStore
from fastmc.embedding import Clip, Embedder
from fastmc.files import find_files, open_file
from fastmc.reading import load_array, reading
from fastmc.skeleton import NTU25, Skeleton

KINDS = ".skeleton file, a folder of such files, a packed store, a .npy or a .npz file"
log = logging.getLogger("fastmc")


@dataclass(frozen=True)
class Input:
    """A clip that is read when its turn comes. ``place`` is what messages call it; ``moved`` tells that it is in the
    frame of reference of the run's data, ``is_array`` that what its numbers are is said by `ArrayKind`, ``is_stored``
    that it is of a packed store."""

    name: str
    place: str
    read: Callable[[], Clip]
    moved: bool = False
    is_array: bool = False
    is_stored: bool = False


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
        return _of_folder(path)
    if path.suffix == ".skeleton" or (path.name.endswith(TXT2NPY) and _holds_objects(path)):
        return [_of_file(path, path.name)]
    if path.suffix == ".npy":
        return _of_npy(path, kind)
    if path.suffix == ".npz":
        return _of_npz(path, embedder, kind)
    raise ValueError(f"--input {path} is of no kind that is read; name a {KINDS}")


def _of_folder(folder: Path) -> list[Input]:
    found = {_name(file.relative_to(folder).as_posix()): file for file in find_files(folder, f"*{TXT2NPY}")}
    plain = {_name(file.relative_to(folder).as_posix()): file for file in find_files(folder, "*.skeleton")}
    if not found and not plain:
        raise ValueError(f"--input {folder} holds no .skeleton file and is no packed store; name another folder")
    if twice := sorted(found.keys() & plain.keys()):
        log.warning("left out: %s: %s is the same clip; so with %d files", found[twice[0]], plain[twice[0]], len(twice))
    files = found | plain
    return [_of_file(files[name], name) for name in sorted(files, key=files.__getitem__)]


def _of_file(file: Path, name: str) -> Input:
    return Input(_name(name), str(file), lambda: file)


def _name(file: str) -> str:
    """Of a clip, by that of its file."""
    return file.removesuffix(".npy").removesuffix(".skeleton")


def _holds_objects(file: Path) -> bool:
    """Whether an array file is one of Python objects, as txt2npy.py writes, and not of numbers."""
    with reading(f"--input {file} is not a readable .npy file", ValueError), open_file(file) as content:
        version = np.lib.format.read_magic(content)
        header = HEADERS.get(version)
        return header is not None and header(content)[2].hasobject


def _of_store(store: PackedStore, embedder: Embedder, normalise: bool) -> list[Input]:
    moved = not embedder.must_move(store, normalise)
    names = enumerate(store.names.tolist())
    return [
        Input(name, f"clip {name} of {store.path}", partial(store.clip, n), moved, is_stored=True) for n, name in names
    ]


def _of_npy(file: Path, kind: ArrayKind) -> list[Input]:
    with reading(f"--input {file} is not a readable .npy file", ValueError):
        array = load_array(file)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"--input {file} is a .npz file by its content; give it that suffix")
    shape = array.shape
    del array  # it holds a file descriptor, of which a process has about a thousand: each clip is mapped in its turn
    if len(shape) != 5:
        return [Input(file.stem, str(file), lambda: _mapped(file), is_array=True)]
    joints = kind.layout.num_joints
    if shape[3] != joints or shape[4] not in kind.given.numbers:
        theirs = shape[1] == 3 and shape[3] == joints
        remedy = "arrays (N, 3, T, V, M) are packed by python -m train.prepare npy, and --input takes the store"
        raise ValueError(
            f"--input {file} is {shape}, expected (N, T, M, V = {joints}, 3)" + (f"; {remedy}" if theirs else "")
        )
    if shape[0] == 0:
        raise ValueError(f"--input {file} holds no clip: its shape is {shape}")
    reads = (partial(_unpadded, file, n) for n in range(shape[0]))
    return [Input(f"{file.stem}[{n}]", f"{file}[{n}]", read, is_array=True) for n, read in enumerate(reads)]


def _mapped(file: Path) -> np.ndarray:
    with reading(f"{file} is no readable .npy file any more", ValueError):
        return np.asarray(load_array(file))


def _unpadded(file: Path, n: int) -> np.ndarray:
    """Clip n of (N, T, M, V, 3) without its padding, as `train.prepare npy` takes it off."""
    clip = _mapped(file)[n]
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
