"""Import of labelled skeleton sets that are given as arrays in one ``.npz`` file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fastmc.data.clips import MAX_COORDINATE, FaultyClip, usable_clip
from fastmc.data.formats.parts import check_bodies, check_size, checksum, class_index, expected_axes
from fastmc.data.given import METRES, Given
from fastmc.data.packing import NORMALISATION, PrepareError, check_limits
from fastmc.data.sanity import Sanity
from fastmc.data.store import NOT_NORMALISED, UNKNOWN, PackedStore, StoreWriter, check_name
from fastmc.progress import progress_bar
from fastmc.reading import listed, load_array, reading, shown
from fastmc.skeleton import NTU25, Skeleton, numbered

REQUIRED = ("x", "num_frames")
ID_FIELDS = ("subject", "camera", "setup", "replication")
MAX_TEXT = 1 << 28  # bytes of a member: all of its texts take the room of the longest
BAD_LENGTH = "num_frames out of range"
ALL = "all"
"""The protocol under which every clip trains."""

Arrays = Mapping[str, np.ndarray]


def import_npz(
    file: str | Path,
    out: str | Path,
    *,
    train: str | None = None,
    name: str | None = None,
    skeleton: str | None = None,
    roles: Mapping[str, int | str] | None = None,
    given: Given = METRES,
    normalise: bool = True,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> PackedStore:
    """Pack the arrays of a ``.npz`` file. The whole of ``x`` is read into memory.

    The file holds ``x`` (N, 3, T, V, M) in metres, zero-padded in time and bodies, and ``num_frames`` (N,). It may hold
    ``label`` (N,), classes from 0, -1 where unknown, as all are without it; ``name`` (N,); ``subject``, ``camera``,
    ``setup`` and ``replication`` (N,) integers; other keys (N,) that ``train`` may name; ``class_names``;
    ``joint_names`` (V,); ``parents`` (V,), where a root is its own parent or -1; ``fps``; and ``ntu25_index`` (25,),
    which puts the joints in the order of NTU RGB+D.

    Args:
        train: ``KEY=V1,V2``: clips whose ``KEY`` has one of these values train, all others test. The store's
            protocol is called ``KEY``. By default all train, under the protocol "all", and none tests.
        name: of the set; by default that of ``out``.
        skeleton: joint layout of ``x``: one that `Skeleton.named` knows, such as "coco17" or a JSON file; or "file"
            (as the .npz file says). By default "ntu25" where the file has ``ntu25_index``, else "file".
        roles: joints (index, name, or names as "left hip + right hip", whose mean it is) that are ``hip``, ``spine``,
            ``left_shoulder`` and ``right_shoulder``.
        given: what the numbers of ``x`` are, which is (N, 2, T, V, M) too where they are of an image.
        normalise: bring bodies to the common origin and orientation, which needs the four joints.
        max_coordinate: metres; a clip beyond it is left out (`fastmc.data.clips.placed_clip`).
        max_bodies: of a clip, 1 or 2: the first that are there. By default all, which may be 2 at most.
        strict: a faulty clip is an error (by default it is reported and left out).

    Raises:
        PrepareError: the file or an option does not fit; the message names the key.
        StoreError: ``out`` exists (without ``overwrite``) or cannot be written.
    """
    file = Path(file)
    check_limits(max_coordinate, max_bodies)
    arrays = _read(file, given)
    check_bodies(f"{file}: x", arrays["x"].shape[4], max_bodies)
    with reading(f"{file} does not fit", PrepareError, passing=(PrepareError,)):
        index, layout = _layout(arrays, skeleton, roles or {})
        key, rule, part, trains = _protocol(arrays, train)
        labels = _labels(arrays, file)
        names, class_names = _clip_names(arrays), _class_names(arrays, labels)
    if normalise and not layout.has_frame:
        raise PrepareError(
            "normalisation needs to know four joints: give --hip, --spine, --left-shoulder and "
            "--right-shoulder (names or indices), or --skeleton, or --no-normalise"
        )
    sanity = Sanity(layout)
    with StoreWriter(
        out,
        name=name or Path(out).name,
        skeleton=layout,
        fps=float(arrays.get("fps", 30.0)),
        class_names=class_names,
        protocols={key: rule},
        max_bodies=max_bodies,
        overwrite=overwrite,
        extra_meta={
            "normalisation": NORMALISATION if normalise else NOT_NORMALISED,
            "source_checksum": checksum([file]),
        },
    ) as writer:
        kept = []
        for n in tqdm(np.argsort(names, kind="stable"), **progress_bar("clip", "import")):
            try:
                clip, weights = given.clip(_clip(arrays, n, index), layout)
                sanity.see(clip)
                clip = usable_clip(clip, layout if normalise else None, max_coordinate, weights)
            except FaultyClip as fault:
                if strict:
                    raise PrepareError(
                        f"{file}: clip {n} ({names[n]}): {fault}; without --strict it is left out{sanity.hint()}"
                    ) from fault
                writer.skip(str(names[n]), fault.reason, f"clip {n}: {fault}")
                continue
            ids = {field: int(arrays[field][n]) for field in ID_FIELDS if field in arrays}
            writer.add(clip, name=str(names[n]), label=labels[n], split=int(part[n]), **ids)
            kept.append(n)
        writer.meta["warnings"] = sanity.tell(strict, lambda why: PrepareError(f"{file}: {why}"))
        _check_sides(file, trains, trains[kept], writer)
    return PackedStore.open(out)


def parse_train(text: str) -> tuple[str, list[str]]:
    """``KEY=V1,V2`` as (KEY, [V1, V2])."""
    key, equals, values = text.partition("=")
    parts = [value.strip() for value in values.split(",") if value.strip()]
    if not (key.strip() and equals and parts):
        raise PrepareError(f"--train {text!r} is not of the form KEY=V1,V2 (such as split=train or subject=1,3,5)")
    return key.strip(), parts


def _read(file: Path, given: Given) -> dict[str, np.ndarray]:
    if not file.exists():
        raise PrepareError(f"there is no file {file}; give --file the path of a .npz file")
    with reading(f"{file} is not a readable .npz file", PrepareError, passing=(PrepareError,)):
        content = load_array(file)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise PrepareError(f"{file} holds one array; expected a .npz file with {', '.join(REQUIRED)}")
        with content:
            if {"x_train", "x_test"} <= set(content.files):
                raise PrepareError(f"{file} has the layout of CTR-GCN: python -m train.prepare ctrgcn --file {file}")
            arrays = {key: _member(content, key, file) for key in content.files}
        _check(arrays, file, given)
    return arrays


def _member(content: Mapping[str, np.ndarray], key: str, file: Path) -> np.ndarray:
    """An array of the file; the boundary names the file alone, this one the member."""
    with reading(f"{file}: {shown(key)}", PrepareError, passing=(PrepareError,)):
        array = content[key]
        if not isinstance(array, np.ndarray):
            raise ValueError("it is no .npy file")
        if array.dtype.kind in "US" and array.size * array.dtype.itemsize > MAX_TEXT:
            raise ValueError(f"it holds texts of {array.dtype.itemsize:,} bytes each, {array.size:,} of them")
        array = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array  # as MATLAB and HDF5 exports have
        return np.char.strip(array) if array.dtype.kind == "U" else array  # lines of a file from Windows end in CR


def _check(arrays: Arrays, file: Path, given: Given) -> None:
    missing = [key for key in REQUIRED if key not in arrays]
    if missing:
        raise PrepareError(f"{file} lacks {', '.join(missing)}; it holds {listed([*arrays])}")
    x = arrays["x"]
    if x.ndim != 5 or x.shape[1] not in given.numbers or x.dtype.kind != "f" or 0 in x.shape:
        raise PrepareError(f"{file}: x is {x.dtype} {x.shape}, {expected_axes(x)}")
    clips, joints = len(x), x.shape[3]
    check_size(f"{file}: x", clips, x.shape[2])
    lengths = {
        **dict.fromkeys(("num_frames", *ID_FIELDS), (clips, "iu")),
        "name": (clips, "U"),
        "joint_names": (joints, "U"),
        "parents": (joints, "iu"),
        "ntu25_index": (NTU25.num_joints, "iu"),
    }
    for key, (length, kinds) in lengths.items():
        if key in arrays and (arrays[key].shape != (length,) or arrays[key].dtype.kind not in kinds):
            kind = "strings" if kinds == "U" else "integers"
            raise PrepareError(f"{file}: {key} is {arrays[key].dtype} {arrays[key].shape}, expected {length} {kind}")
    for key in ID_FIELDS:
        if key in arrays and not 0 <= int(arrays[key].min()) <= int(arrays[key].max()) < 2**31:
            clip = int(arrays[key].argmin() if arrays[key].min() < 0 else arrays[key].argmax())
            raise PrepareError(f"{file}: {key} {arrays[key][clip]} of clip {clip} is negative or above 2^31 - 1")
    fps = arrays.get("fps", np.float32(30))
    if fps.shape != () or fps.dtype.kind not in "iuf" or not 0 < fps < np.inf:
        raise PrepareError(f"{file}: fps is {listed([str(fps)])}, expected one positive number")


def _layout(arrays: Arrays, skeleton: str | None, roles: Mapping[str, int | str]) -> tuple[np.ndarray, Skeleton]:
    """Which joints of ``x`` to take, and what they are."""
    joints = arrays["x"].shape[3]
    index = np.arange(joints)
    if skeleton in (None, "ntu25") and "ntu25_index" in arrays:
        index, layout = arrays["ntu25_index"].astype(np.int64), NTU25
        if index.min() < 0 or index.max() >= joints:
            raise PrepareError(f"ntu25_index points outside of the {joints} joints of x")
    elif skeleton not in (None, "file"):
        with reading("--skeleton", PrepareError):
            layout = Skeleton.named(str(skeleton))
        if layout.num_joints != joints:
            raise PrepareError(f"x has {joints} joints, --skeleton {skeleton} has {layout.num_joints}")
    else:
        layout = _layout_of_file(arrays)
    try:
        changes: dict[str, Any] = {role: layout.role(joint) for role, joint in roles.items()}
        return index, replace(layout, **changes)
    except ValueError as error:
        raise PrepareError(f"skeleton {layout.name}: {error}") from error


def _layout_of_file(arrays: Arrays) -> Skeleton:
    joints = arrays["x"].shape[3]
    names = arrays.get("joint_names", np.array(numbered(joints)))
    parents = arrays.get("parents", np.array([], np.int64))
    parents = np.where(parents < 0, np.arange(len(parents)), parents)
    try:
        return Skeleton("custom", tuple(names.tolist()), tuple(parents.tolist()))
    except ValueError as error:
        raise PrepareError(f"joint_names and parents make no skeleton: {error}") from error


def _labels(arrays: Arrays, file: Path) -> list[int]:
    """A class index for each clip, -1 where it is unknown."""
    clips = len(arrays["x"])
    given = arrays.get("label", np.full(clips, UNKNOWN))
    if given.shape not in ((clips,), (clips, 1)) or given.dtype.kind not in "iuf":
        raise PrepareError(f"{file}: label is {given.dtype} {given.shape}, expected {clips} integers")
    labels = [class_index(label) for label in given]
    if None in labels:
        clip = labels.index(None)
        raise PrepareError(
            f"{file}: label {given[clip].item()} of clip {clip} is no class index; expected integers from 0 on, or -1 "
            "where the class is unknown"
        )
    return [label for label in labels if label is not None]


def _protocol(arrays: Arrays, train: str | None) -> tuple[str, dict[str, Any], np.ndarray, np.ndarray]:
    """Protocol name, its rule, each clip's part (-1 where the rule needs none) and whether each clip trains."""
    clips = len(arrays["x"])
    if train is None:
        return ALL, {"field": "part", "train": [0], "values": ["train"]}, np.zeros(clips, int), np.ones(clips, bool)
    key, wanted = parse_train(train)
    keys = [k for k, values in arrays.items() if values.shape == (clips,) and k not in ("num_frames", "name")]
    if key not in keys:
        raise PrepareError(f"--train: the file has no key {key!r} with one value a clip; there are: {listed(keys)}")
    values, number = np.unique(arrays[key], return_inverse=True)
    texts = [str(value) for value in values]
    absent = [value for value in wanted if value not in texts]
    if absent:
        raise PrepareError(f"--train: {key} is never {listed(absent)}; its values are {listed(texts)}")
    chosen = sorted({texts.index(value) for value in wanted})
    trains = np.isin(number, chosen)
    if key in ID_FIELDS:
        return key, {"field": key, "train": values[chosen].tolist()}, np.full(clips, -1), trains
    return key, {"field": "part", "train": chosen, "values": texts}, number, trains


def _check_sides(file: Path, given: np.ndarray, kept: np.ndarray, writer: StoreWriter) -> None:
    """Faulty clips may have been all of a side: whether each clip that was given trains, and each that is kept."""
    if not kept.any() or (kept.all() and not given.all()):
        lacking = "train or test" if not len(kept) else "test" if kept.all() else "train"
        counts = "; ".join(f"{count} {reason}" for reason, count in writer.skip_counts.items())
        first = f"; the first: {writer.first_skip}" if counts else ""
        raise PrepareError(f"{file}: no usable clip is left to {lacking} on ({counts}){first}")


def _clip_names(arrays: Arrays) -> np.ndarray:
    clips = len(arrays["x"])
    names = arrays.get("name", np.array([f"{n:0{len(str(clips - 1))}d}" for n in range(clips)]))
    unique, count = np.unique(names, return_counts=True)
    if count.max() > 1:
        raise PrepareError(
            f"name {shown(str(unique[count.argmax()]))} belongs to {count.max()} clips; names must be unique"
        )
    for name in names.tolist():
        check_name(name)
    return names


def _class_names(arrays: Arrays, labels: Sequence[int]) -> Sequence[str]:
    highest = max(labels)
    if "class_names" not in arrays:
        return [f"class {label}" for label in range(highest + 1)]
    names = [str(name) for name in arrays["class_names"].ravel()]
    if highest >= len(names):
        raise PrepareError(f"label {highest} has no name: class_names holds {len(names)}, for labels from 0")
    for name in names:
        check_name(name)
    return names


def _clip(arrays: Arrays, n: int, index: np.ndarray) -> np.ndarray:
    """Clip n as (T_n, M, V, 2 or 3) without padding in time."""
    x, frames = arrays["x"][n], int(arrays["num_frames"][n])
    if not 1 <= frames <= x.shape[1]:
        raise FaultyClip(BAD_LENGTH, f"num_frames is {frames}, expected 1 to {x.shape[1]}")
    return x[:, :frames, index].transpose(1, 3, 2, 0)
