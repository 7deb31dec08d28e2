"""The layout of ST-GCN, which much of the field has kept: ``train_data.npy`` (N, 3, T, V, M) and ``train_label.pkl``.

Read before this was written: the feeders of ST-GCN, 2s-AGCN, CrosSCLR, AimCLR and CMD. Their label files are pickles of
(sample names, labels), by Python 2 or 3. ST-GCN pads with zeros to 300 frames; 2s-AGCN (``train_data_joint.npy``)
repeats a clip until it fills them, which `fastmc.data.clips.used_frames` undoes; ``train_position.npy`` of CrosSCLR and
AimCLR is resized to 50 frames and has no padding.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmc.data.bytes.safe_pickle import SafePickleError, load_plain
from fastmc.data.clips import MAX_COORDINATE
from fastmc.data.formats.ntu_splits import (
    NTU60_CLASS_NAMES,
    NTU60_PROTOCOLS,
    NTU120_CLASS_NAMES,
    NTU120_PROTOCOLS,
    Protocols,
)
from fastmc.data.formats.parts import (
    PartClip,
    are_actions,
    check_bodies,
    check_size,
    class_index,
    expected_axes,
    layout_of,
    pack_parts,
    read_class_names,
)
from fastmc.data.formats.skeleton_file import ClipName, parse_name
from fastmc.data.given import METRES, Given
from fastmc.data.packing import PARTS, PrepareError
from fastmc.data.store import PackedStore, check_name
from fastmc.reading import explain, load_array, reading, shown

Files = tuple[str | Path, str | Path]
log = logging.getLogger("fastmc")


@dataclass(frozen=True)
class _Part:
    """The two files of a part: ``data`` (N, 3, T, V, M), memory-mapped, and the names and labels of its clips."""

    file: Path
    data: np.ndarray
    names: list[str]
    labels: list[int]


def import_stgcn(
    train: Files,
    test: Files,
    out: str | Path,
    *,
    name: str | None = None,
    protocol: str = "split",
    class_names: str | Path | None = None,
    skeleton: str | None = None,
    given: Given = METRES,
    normalise: bool = True,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> PackedStore:
    """Pack the two pairs of files of a set; the arrays are memory-mapped, and never whole in memory.

    Where all clips have names of NTU RGB+D, these give subject, camera, setup and replication, and the published
    protocols by them; and the names of the actions, where the labels are those of the names.

    Args:
        train, test: the array and the labels of each part. Arrays are floats (N, 3, T, V, M) in metres with M = 1 or
            2 bodies, absent ones zero. Labels are a pickle of (sample names, labels); or a .npy file of labels (N,) or
            (N, 1), to which a pickle of the same name beside it gives the names, and without one clips are numbered.
        skeleton: joint layout, as `Skeleton.named` knows it; by default that of V = 25 (NTU RGB+D) or 20 (Kinect v1).
        given: what the numbers of the arrays are.
        name: of the set; by default that of ``out``.
        protocol: name of the split into these files.
        class_names: text file with a name a line.
        normalise: bring bodies to the common origin and orientation; what the files' own normalisation has removed
            (2s-AGCN: the path of the body) does not come back.
        max_coordinate: metres; a clip beyond it is left out (`fastmc.data.clips.placed_clip`).
        max_bodies: of a clip, 1 or 2: the first that are there. By default all, which may be 2 at most.
        strict: a faulty clip is an error (by default it is reported and left out).

    Raises:
        PrepareError: a file or an option does not fit; the message names the file. A label file that holds anything
            but plain data is refused unread (`fastmc.data.bytes.safe_pickle`).
        StoreError: ``out`` exists (without ``overwrite``) or cannot be written.
    """
    parts = [_read_part(*train, "--train"), _read_part(*test, "--test")]
    shapes = {part.data.shape[3:] for part in parts}
    if len(shapes) > 1:
        raise PrepareError(f"{parts[0].file} and {parts[1].file} differ in joints and bodies (V, M): {shapes}")
    joints, bodies = shapes.pop()
    layout = layout_of(joints, str(parts[0].file), skeleton)
    check_bodies(str(parts[0].file), bodies, max_bodies)
    ids = _ntu_names(parts)
    names = _unique_names(parts, by_ntu=ids is not None)
    if ids and protocol in (published := _ntu_protocols(ids)):
        _check_split(parts, ids, protocol, published[protocol])
    labels = [label for part in parts for label in part.labels]
    order = sorted(range(len(names)), key=names.__getitem__)

    def clips() -> Iterator[PartClip]:
        for n in order:
            which = n >= len(parts[0].names)
            row = n - len(parts[0].names) * which
            joints = np.asarray(parts[which].data[row]).transpose(1, 3, 2, 0)
            place = f"{parts[which].file}, clip {row}"
            yield PartClip(names[n], labels[n], int(which), joints, place, _fields(ids[n]) if ids else {})

    return pack_parts(
        out,
        clips(),
        count=len(names),
        layout=layout,
        name=name,
        class_names=_class_names(labels, ids, class_names),
        protocol=protocol,
        other_protocols=_ntu_protocols(ids) if ids else {},
        files=[Path(file) for pair in (train, test) for file in pair],
        given=given,
        normalise=normalise,
        max_coordinate=max_coordinate,
        max_bodies=max_bodies,
        strict=strict,
        overwrite=overwrite,
    )


def _read_part(data: str | Path, label: str | Path, option: str) -> _Part:
    data, label = Path(data), Path(label)
    if not data.is_file():
        raise PrepareError(f"{option}: there is no file {data}; give the paths of an array and of its labels")
    hint = "the array comes first, then its labels"
    with reading(f"{option}: {data} is not a readable .npy file ({hint})", PrepareError):
        array = load_array(data)
    if not isinstance(array, np.ndarray):
        raise PrepareError(f"{option}: {data} is a .npz file; python -m train.prepare npz and ctrgcn read those")
    if array.ndim != 5 or array.shape[1] != 3 or array.dtype.kind != "f" or 0 in array.shape:
        raise PrepareError(f"{data} is {array.dtype} {array.shape}, {expected_axes(array)}")
    check_size(str(data), array.shape[0], array.shape[2])
    return _Part(data, array, *_read_labels(label, data, len(array)))


def _read_labels(file: Path, data: Path, clips: int) -> tuple[list[str], list[int]]:
    """Names and labels of the so many clips of ``data``."""
    if not file.exists():
        raise PrepareError(f"there is no file {file}; the labels of {data} come second")
    content = _read_label_array(file) if file.suffix == ".npy" else _read_label_pickle(file)
    if {len(part) for part in content} != {clips}:
        raise PrepareError(f"{file} holds {len(content[0])} names and {len(content[1])} labels, {data} {clips} clips")
    names, given = ([item.item() if isinstance(item, np.generic) else item for item in part] for part in content)
    labels = []
    for clip, label in enumerate(given):
        index = class_index(label)
        if index is None:
            raise PrepareError(
                f"{file}: label {shown(label)} of clip {clip} is no class index; expected integers from 0 on, or -1"
            )
        labels.append(index)
    for clip, name in enumerate(names):
        if not isinstance(name, str | bytes | int) or name in ("", b""):
            raise PrepareError(
                f"{file}: {shown(name)} of clip {clip} is no name; the names come first, then the labels"
            )
    return [_text(name, f"{file}, clip {clip}") for clip, name in enumerate(names)], labels


def _read_label_pickle(file: Path) -> Sequence[Any]:
    """The pair (names, labels)."""
    try:
        content = load_plain(file)
    except (OSError, SafePickleError) as error:
        raise PrepareError(f"{file} is not a label file: {explain(error)}") from error
    if not isinstance(content, list | tuple) or len(content) != 2 or not all(map(_is_sequence, content)):
        raise PrepareError(f"{file} is not a label file: expected a pair of sequences (sample names, labels)")
    return content


def _read_label_array(file: Path) -> Sequence[Any]:
    """The same of a .npy file, which has labels alone; the names are those of the pickle beside it, or numbers."""
    with reading(f"{file} is not a label file", PrepareError):
        labels = load_array(file)
        if not isinstance(labels, np.ndarray) or labels.shape not in ((len(labels),), (len(labels), 1)):
            raise ValueError("expected labels (N,) or (N, 1)")
    beside = file.with_suffix(".pkl")
    if beside.exists():
        return _read_label_pickle(beside)[0], labels.ravel()
    log.warning("%s has no names, and there is no %s: clips are numbered, and NTU's protocols unknown", file, beside)
    return range(len(labels)), labels.ravel()


def _text(name: str | bytes | int, place: str) -> str:
    with reading(place, PrepareError):
        text = name.decode("latin1") if isinstance(name, bytes) else str(name)
        text = text.strip().removesuffix(".skeleton")
        check_name(text)
    return text


def _is_sequence(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.shape[1:] in ((), (1,)))


def _ntu_names(parts: Sequence[_Part]) -> list[ClipName] | None:
    """What the names of all clips say, if they are of NTU RGB+D."""
    try:
        return [parse_name(name) for part in parts for name in part.names]
    except ValueError:
        return None


def _unique_names(parts: Sequence[_Part], by_ntu: bool) -> list[str]:
    """The names, with that of the part in front where those of the two files are not of one set (such as numbers)."""
    for part in parts:
        names, counts = np.unique(part.names, return_counts=True)
        if counts.max() > 1:
            twice = str(names[counts.argmax()])
            raise PrepareError(f"{part.file}: {counts.max()} clips are named {shown(twice)}; names must be unique")
    both = set(parts[0].names) & set(parts[1].names)
    if both and by_ntu:
        raise PrepareError(
            f"{min(both)} and {len(both) - 1} more clips are in both {parts[0].file} and {parts[1].file}: "
            "what trains must not test"
        )
    return [f"{PARTS[p]}-{name}" if both else name for p, part in enumerate(parts) for name in part.names]


def _check_split(parts: Sequence[_Part], ids: Sequence[ClipName], protocol: str, rule: Mapping[str, Any]) -> None:
    """PrepareError if the files are not the published split of that name, by the names of the clips."""
    where = [part.file for part in parts for _ in part.names]
    for clip, name, file in zip(ids, [name for part in parts for name in part.names], where, strict=True):
        trains = _fields(clip)[rule["field"]] in rule["train"]
        if trains != (file is parts[0].file):
            raise PrepareError(
                f"{name} is in {file}, but {protocol} as published has it to {'train' if trains else 'test'} on; "
                "exchange --train and --test, or name the split otherwise with --protocol"
            )


def _fields(clip: ClipName) -> dict[str, int]:
    return {
        "subject": clip.performer,
        "camera": clip.camera,
        "setup": clip.setup,
        "replication": clip.replication,
    }


def _is_120(ids: Sequence[ClipName]) -> bool:
    return max(clip.action for clip in ids) > len(NTU60_CLASS_NAMES)


def _ntu_protocols(ids: Sequence[ClipName]) -> Protocols:
    return NTU120_PROTOCOLS if _is_120(ids) else NTU60_PROTOCOLS


def _class_names(labels: Sequence[int], ids: Sequence[ClipName] | None, file: str | Path | None) -> list[str]:
    classes = max(labels) + 1
    if file is not None:
        return read_class_names(file, classes)
    if ids is not None and are_actions(labels, ids):
        published = NTU120_CLASS_NAMES if _is_120(ids) else NTU60_CLASS_NAMES
        if len(published) >= classes:
            return list(published)
    return [f"class {label}" for label in range(classes)]
