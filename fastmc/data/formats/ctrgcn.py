"""The layout of CTR-GCN: one ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``.

Read before this was written: CTR-GCN's feeder, which InfoGCN, HD-GCN and others have kept, and the code that writes
its files (``NTU60_CS.npz`` and the like). Their arrays take gigabytes, so they are read clip by clip out of the file.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from fastmc.data.clips import MAX_COORDINATE
from fastmc.data.formats.ntu_splits import NTU60_CLASS_NAMES, NTU120_CLASS_NAMES
from fastmc.data.formats.parts import (
    MAX_CLASSES,
    PartClip,
    check_bodies,
    check_size,
    class_index,
    layout_of,
    pack_parts,
    read_class_names,
)
from fastmc.data.packing import PARTS, PrepareError
from fastmc.data.store import PackedStore
from fastmc.reading import listed, reading
from fastmc.skeleton import NTU25, Skeleton

KEYS = ("x_train", "y_train", "x_test", "y_test")
BODIES_AND_JOINTS = {150: (2, 25), 75: (1, 25), 120: (2, 20), 60: (1, 20)}  # by M * V * 3
MAX_AXES = 5
READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def import_ctrgcn(
    file: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    protocol: str = "split",
    class_names: str | Path | None = None,
    normalise: bool = True,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> PackedStore:
    """Pack the arrays of a file clip by clip, compressed or not; they are never whole in memory.

    ``x_train`` and ``x_test`` are floats (N, T, M*V*3), frame by frame the bodies, of each its joints, of each x, y, z;
    or (N, 3, T, V, M). Metres, absent bodies zero, zero-padded in time. ``y_train`` and ``y_test`` are one-hot
    (N, classes) or integers (N,) from 0. A second body that is the first, bit for bit, is left out: CTR-GCN's code for
    NTU-120 writes that of every clip of one person. The file names no clips: they are called train-00000, test-00000
    and so on, and have neither subject nor camera.

    Args:
        name: of the set; by default that of ``out``.
        protocol: name of the split into training and test arrays.
        class_names: text file with a name a line; by default the names of NTU RGB+D, where the number of joints and
            of classes is its own.
        normalise: bring bodies to the common origin and orientation.
        max_coordinate: metres; a clip beyond it is left out (`fastmc.data.clips.placed_clip`).
        max_bodies: of a clip, 1 or 2: the first that are there. By default all, which may be 2 at most.
        strict: a faulty clip is an error (by default it is reported and left out).

    Raises:
        PrepareError: the file or an option does not fit; the message names the key.
        StoreError: ``out`` exists (without ``overwrite``) or cannot be written.
    """
    file = Path(file)
    with _opened(file) as archive, ExitStack() as stack:
        arrays = {part: stack.enter_context(_member(archive, f"x_{part}", file)) for part in PARTS}
        layouts = {part: _layout(array) for part, array in arrays.items()}
        if layouts["train"] != layouts["test"]:
            raise PrepareError(f"{file}: x_train and x_test differ in joints or bodies")
        check_bodies(f"{file}: x_train", layouts["train"][0][0], max_bodies)
        (bodies, joints), layout = layouts["train"]
        labels, classes = _labels(archive, file, {part: array.shape[0] for part, array in arrays.items()})

        def clips() -> Iterator[PartClip]:
            for part in sorted(PARTS):  # by increasing name
                digits = len(str(len(labels[part]) - 1))
                for n, (row, label) in enumerate(zip(arrays[part].rows(), labels[part], strict=True)):
                    clip = row.reshape(-1, bodies, joints, 3) if row.ndim == 2 else row.transpose(1, 3, 2, 0)
                    yield PartClip(
                        f"{part}-{n:0{digits}}", label, PARTS.index(part), clip, f"{file}, x_{part}, clip {n}"
                    )

        return pack_parts(
            out,
            clips(),
            count=sum(map(len, labels.values())),
            layout=layout,
            name=name,
            class_names=_class_names(class_names, classes, layout),
            protocol=protocol,
            files=[file],
            normalise=normalise,
            max_coordinate=max_coordinate,
            max_bodies=max_bodies,
            strict=strict,
            overwrite=overwrite,
        )


class _Rows:
    """An array in an open file, to be read once, row by row."""

    def __init__(self, content: IO[bytes], key: str, file: Path) -> None:
        self.content, self.key, self.file = content, key, file
        version = np.lib.format.read_magic(content)
        if version not in READERS:
            raise ValueError(f"{key} is written in version {version} of the .npy format")
        self.shape, fortran_order, self.dtype = READERS[version](content)
        if self.dtype.hasobject:
            raise PrepareError(f"{file}: {key!r} is an object array, which is never loaded; save plain numbers")
        if fortran_order and len(self.shape) > 1:
            raise PrepareError(f"{file}: {key} is stored column by column (Fortran order); save it in C order")
        if 0 in self.shape or not self.shape or len(self.shape) > MAX_AXES:
            raise PrepareError(f"{file}: {key} is {self.dtype} {self.shape}, which holds nothing")

    def rows(self) -> Iterator[np.ndarray]:
        row = self.shape[1:]
        size = math.prod(row) * self.dtype.itemsize
        for n in range(self.shape[0]):
            with _readable(self.file):
                block = self.content.read(size)
            if len(block) < size:
                raise PrepareError(f"{self.file} is truncated: {self.key} ends in row {n} of {self.shape[0]}")
            yield np.frombuffer(block, self.dtype).reshape(row)
        with _readable(self.file):
            self.content.read(1)  # at the end, the checksum of the zip file is compared


def _readable(file: Path) -> AbstractContextManager[None]:
    remedy = "is it truncated? Get or make it again"
    return reading(f"{file} is not a readable .npz file", PrepareError, remedy=remedy, passing=(PrepareError,))


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    if not file.is_file():
        raise PrepareError(
            f"there is no file {file}; give --file the path of an .npz file (NTU60_CS.npz, NTU120_CSub.npz, ...) as "
            "data/ntu/seq_transformation.py of CTR-GCN writes it"
        )
    with _readable(file):
        archive = zipfile.ZipFile(file)
    with archive:
        there = [entry.removesuffix(".npy") for entry in archive.namelist()]
        missing = [key for key in KEYS if key not in there]
        if missing:
            raise PrepareError(
                f"{file} lacks {', '.join(missing)}; it holds {listed(there) or 'nothing'} "
                "(arrays x, num_frames, label are read by python -m train.prepare npz)"
            )
        yield archive


@contextmanager
def _member(archive: zipfile.ZipFile, key: str, file: Path) -> Iterator[_Rows]:
    with ExitStack() as stack:
        with _readable(file):
            rows = _Rows(stack.enter_context(archive.open(f"{key}.npy")), key, file)
        yield rows


def _layout(array: _Rows) -> tuple[tuple[int, int], Skeleton]:
    """(bodies, joints) of an array, and their layout."""
    shape, what = array.shape, f"{array.file}: {array.key}"
    if array.dtype.kind != "f" or not (len(shape) == 3 or (len(shape) == 5 and shape[1] == 3)):
        raise PrepareError(f"{what} is {array.dtype} {shape}, expected floats (N, T, M*V*3) or (N, 3, T, V, M)")
    if len(shape) == 3 and shape[2] not in BODIES_AND_JOINTS:
        known = ", ".join(f"{size} (M = {m}, V = {v})" for size, (m, v) in BODIES_AND_JOINTS.items())
        raise PrepareError(f"{what} holds {shape[2]} numbers a frame, expected {known}")
    check_size(what, shape[0], shape[1] if len(shape) == 3 else shape[2])
    bodies, joints = BODIES_AND_JOINTS[shape[2]] if len(shape) == 3 else (shape[4], shape[3])
    return (bodies, joints), layout_of(joints, what)


def _labels(archive: zipfile.ZipFile, file: Path, clips: Mapping[str, int]) -> tuple[dict[str, list[int]], int]:
    """The labels of each part, as many as it has clips, and the number of classes."""
    labels, classes = {}, set()
    for part in PARTS:
        with _member(archive, f"y_{part}", file) as array:
            if array.shape[0] != clips[part]:
                raise PrepareError(f"{file}: x_{part} has {clips[part]} clips, y_{part} {array.shape[0]} labels")
            labels[part] = list(_indices(array))
            classes.add(array.shape[1] if array.shape[1:] > (1,) else None)
    if len(classes) > 1:
        raise PrepareError(f"{file}: y_train and y_test differ in their form or their number of classes")
    return labels, classes.pop() or max(max(part) for part in labels.values()) + 1


def _indices(array: _Rows) -> Iterator[int]:
    one_hot = len(array.shape) == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf"
    if not one_hot and not (array.shape in ((array.shape[0],), (array.shape[0], 1)) and array.dtype.kind in "iuf"):
        raise PrepareError(
            f"{array.file}: {array.key} is {array.dtype} {array.shape}, expected one-hot (N, classes) or integers (N,)"
        )
    if one_hot and array.shape[1] > MAX_CLASSES:
        raise PrepareError(
            f"{array.file}: {array.key} has {array.shape[1]:,} classes, expected {MAX_CLASSES:,} at most"
        )
    for n, row in enumerate(array.rows()):
        hot = np.flatnonzero(row)
        if one_hot and (len(hot) != 1 or row[hot[0]] != 1):
            raise PrepareError(
                f"{array.file}: row {n} of {array.key} is not one-hot: {len(hot)} values are not zero, one must be 1"
            )
        label = class_index(hot if one_hot else row)
        if label is None:
            raise PrepareError(f"{array.file}: label {row.item()} in row {n} of {array.key} is no class index")
        yield label


def _class_names(file: str | Path | None, classes: int, layout: Skeleton) -> Sequence[str]:
    if file is not None:
        return read_class_names(file, classes)
    if layout == NTU25:
        for published in (NTU60_CLASS_NAMES, NTU120_CLASS_NAMES):
            if len(published) == classes:
                return published
    return [f"class {label}" for label in range(classes)]
