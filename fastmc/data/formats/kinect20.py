"""Sets of one Kinect v1 body a clip and one clip a file: what NW-UCLA and UTD-MHAD have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fastmc.data.clips import ALL_ZERO, MAX_COORDINATE, FaultyClip, usable_clip
from fastmc.data.formats.ntu_splits import Protocols
from fastmc.data.packing import (
    DUPLICATE,
    FOREIGN_NAME,
    NO_BODY,
    OTHER_SET,
    Clip,
    Read,
    Skipped,
    Source,
    check_limits,
    digest_of,
    malformed,
    packing,
    source_files,
)
from fastmc.data.store import NOT_NORMALISED, PackedStore
from fastmc.files import read_bytes
from fastmc.skeleton import KINECT20, Skeleton

FPS = 30.0


@dataclass(frozen=True)
class ClipFiles:
    """A set of such files.

    Attributes:
        patterns: of the files among others of the set, as `Path.rglob` takes them.
        file_name: matches a file's whole name, with a group per number.
        example: a file's name, for messages.
        fields: from the numbers of a name to the clip's fields (``label``, ``subject``, ...), or to the reason why the
            clip is of another set.
        load: from a file's bytes to joints (T, 20, 3) in metres; ValueError says what is wrong with them. A function
            of a module, since it runs in a worker.
        order: where in a file each joint of KINECT20 is.
        how_to_get: whom to ask for the set, and what to do with it.
    """

    name: str
    class_names: Sequence[str]
    protocols: Protocols
    patterns: tuple[str, ...]
    file_name: re.Pattern[str]
    example: str
    fields: Callable[..., Mapping[str, int] | str]
    load: Callable[[bytes], np.ndarray]
    how_to_get: str
    order: Sequence[int] = range(KINECT20.num_joints)


def prepare_clip_files(
    files: ClipFiles,
    raw: str | Path,
    out: str | Path,
    *,
    normalise: bool = True,
    max_coordinate: float = MAX_COORDINATE,
    strict: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> PackedStore:
    """Read and pack a folder of such files; the store is the same for any number of workers.

    Args:
        raw: folder that holds the files, at any depth.
        out: folder of the store.
        normalise: bring bodies to the common origin and orientation.
        max_coordinate: metres; a clip beyond it is left out (`placed_clip`).
        strict: stop at the first malformed file or foreign name (by default it is reported and left out).
        workers: processes; None takes all cores.

    Raises:
        PrepareError: no usable file, or a faulty one in a strict preparation.
        StoreError: ``out`` exists (without ``overwrite``), or another process is writing it.
    """
    check_limits(max_coordinate)
    paths = source_files(Path(raw), files.patterns, files.how_to_get)
    with packing(
        out,
        strict=strict,
        workers=workers,
        name=files.name,
        skeleton=KINECT20,
        fps=FPS,
        class_names=files.class_names,
        protocols=files.protocols,
        overwrite=overwrite,
        extra_meta=None if normalise else {"normalisation": NOT_NORMALISED},
    ) as target:
        sources = _sources(paths, files, target.skip)
        target.read_all(
            partial(_read, files.load, tuple(files.order), KINECT20 if normalise else None, max_coordinate), sources
        )
        target.check_usable(len(paths), raw)
    return PackedStore.open(out)


def _sources(paths: Iterable[Path], files: ClipFiles, skip: Callable[[str, str, str], None]) -> list[Source]:
    """The files to read, sorted by name; all others are skipped."""
    sources: dict[str, Source] = {}
    for path in paths:
        match = files.file_name.fullmatch(path.name)
        if match is None:
            skip(path.stem, FOREIGN_NAME, f"{path}: expected a name such as {files.example}")
            continue
        fields = files.fields(*map(int, match.groups()))
        if isinstance(fields, str):
            skip(path.stem, OTHER_SET, f"{path}: {fields}")
        elif path.stem in sources:
            skip(path.stem, DUPLICATE, f"{path}: {sources[path.stem].path} has the same name")
        else:
            sources[path.stem] = Source(path, path.stem, {"name": path.stem, **fields})
    return list(sources.values())


def _read(
    load: Callable[[bytes], np.ndarray],
    order: Sequence[int],
    layout: Skeleton | None,
    max_coordinate: float,
    source: Source,
) -> Read:
    """Runs in a worker."""
    content = read_bytes(source.path)
    digest = digest_of(content)
    joints = load(content)
    if joints.ndim != 3 or joints.shape[1:] != (KINECT20.num_joints, 3) or not len(joints):
        return malformed(source, f"{source.path}: holds joints {joints.shape}, expected (T, 20, 3)", digest)
    try:
        clip = usable_clip(joints[:, None, order], layout, max_coordinate)
    except FaultyClip as fault:
        if fault.reason != ALL_ZERO:
            raise
        return Read(source, digest, skipped=[Skipped(source.name, NO_BODY, f"{source.path}: {fault}")])
    return Read(source, digest, [Clip(clip, source.fields)])
