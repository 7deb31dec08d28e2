"""From many source files to one packed store: on all cores, in memory that does not grow with the set.

A reader of a format gives a list of `Source`, one per file, and a function that reads one of them in a worker. A
file may hold one clip or many. Whatever is wrong with a file is a result, so that one bad file does not end a
preparation; with ``strict`` it does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fastmc.checks import check_number
from fastmc.data.clips import TOO_FAR, FaultyClip
from fastmc.data.sanity import Sanity
from fastmc.data.store import StoreWriter
from fastmc.files import find_files
from fastmc.parallel import ordered_map, usable_cores
from fastmc.progress import progress_bar
from fastmc.reading import explain
from fastmc.reference.ntu import SkeletonFileError

NORMALISATION = "one rigid motion a clip: first frame's spine at the origin, hip to spine +z, right to left shoulder +x"

# Reasons to leave a file or clip out. Some are faults, where a strict preparation stops.
MALFORMED = "malformed file"
FOREIGN_NAME = "file name of another kind"
DUPLICATE = "clip of the same name in another folder"
PUBLISHED = "published as missing"
NO_BODY = "no skeleton in the file"
OTHER_SET = "clip of another set"
MAX_BODIES = 2  # of a clip that is stored
PARTS = ("train", "test")
TWO_PARTS = {"field": "part", "train": [0], "values": list(PARTS)}  # the rule of a set that comes with these
HIGHEST_LIMIT = 1e30  # float32 holds it, and its square in float64 is far from overflow
FAULTS = (MALFORMED, FOREIGN_NAME, DUPLICATE, TOO_FAR)


class PrepareError(RuntimeError):
    """A set cannot be prepared; the message names the input, the fault and the remedy."""


@dataclass(frozen=True)
class Source:
    """A file to read. ``name`` is unique and orders the files; ``fields`` are those of its clips, as
    `StoreWriter.add` takes them, so far as its name tells."""

    path: Path
    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Clip:
    """A clip (T, M, V, 3) in metres, normalised, and its fields as `StoreWriter.add` takes them."""

    joints: np.ndarray
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Skipped:
    """What was left out: ``reason`` is a category, ``detail`` names file, place and fault."""

    name: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Read:
    """What a worker sends back: the clips of a file, by increasing name, and what is left out of it. ``digest`` is
    that of the file's bytes, or empty where it could not be read; ``class_names`` are those of labels that it tells."""

    source: Source
    digest: bytes
    clips: Sequence[Clip] = ()
    skipped: Sequence[Skipped] = ()
    class_names: Mapping[int, str] = field(default_factory=dict)


def source_files(raw: Path, patterns: Sequence[str], how_to_get: str) -> list[Path]:
    """The files of these names below ``raw``, by name; PrepareError with ``how_to_get`` where there is none."""
    paths = [path for pattern in patterns for path in find_files(raw, pattern)]
    if not paths:
        fault = f"holds no file {' or '.join(patterns)}" if raw.is_dir() else "is not a folder"
        raise PrepareError(f"{raw} {fault}.\n{how_to_get}")
    return sorted(paths, key=lambda path: (path.name, path))


def digest_of(content: bytes) -> bytes:
    """For `Read.digest`."""
    return hashlib.blake2b(content, digest_size=16).digest()


def malformed(source: Source, detail: str, digest: bytes = b"") -> Read:
    """A file that cannot be used as a whole."""
    return Read(source, digest, skipped=[Skipped(source.name, MALFORMED, detail)])


def faulty(name: str, place: str, fault: FaultyClip) -> Skipped:
    """A clip that cannot be used; ``place`` says where it is."""
    return Skipped(name, TOO_FAR if fault.reason == TOO_FAR else MALFORMED, f"{place}: {fault}")


def _read_or_fault(read: Callable[[Source], Read], source: Source) -> Read:
    """The boundary around all readers of files. Runs in a worker: a failure of any kind is a fault of that file."""
    try:
        return read(source)
    except SkeletonFileError as error:  # names file and line itself
        return malformed(source, str(error))
    except FaultyClip as fault:
        return Read(source, b"", skipped=[faulty(source.name, str(source.path), fault)])
    except Exception as error:
        return malformed(source, f"{source.path}: {explain(error)}")


def check_limits(max_coordinate: float, max_bodies: int | None = None) -> None:
    """PrepareError if they cannot be the largest coordinate of a store and the most bodies of a clip."""
    try:
        check_number("max_coordinate", max_coordinate, above=0, at_most=HIGHEST_LIMIT)
        check_number("max_bodies", 1 if max_bodies is None else max_bodies, at_least=1, at_most=MAX_BODIES)
    except ValueError as error:
        raise PrepareError(str(error)) from error


class Packing:
    """A store that is being packed; made by `packing`."""

    def __init__(self, writer: StoreWriter, strict: bool, workers: int | None) -> None:
        self.writer, self.strict, self.workers = writer, strict, workers
        self.class_names: dict[int, str] = {}
        self._sanity = Sanity(writer.skeleton)

    def skip(self, name: str, reason: str, detail: str = "") -> None:
        """Leave a file or clip out. PrepareError if it is faulty and the preparation strict."""
        if self.strict and reason in FAULTS:
            raise PrepareError(f"{detail or f'{name}: {reason}'}; without --strict such files are left out and listed")
        self.writer.skip(name, reason, detail)

    def read_all(self, read: Callable[[Source], Read], sources: Sequence[Source]) -> None:
        """Read the sources by name, and add their clips; the store is the same for any number of workers.

        Args:
            read: a function of a module, which runs in a worker; whatever it raises is a fault of the file.

        Raises:
            PrepareError: in a strict preparation a file is faulty, or clips do not look like bodies of this layout
                (`fastmc.data.sanity`; otherwise a warning).
        """
        checksum = hashlib.blake2b(digest_size=16)
        sources = sorted(sources, key=lambda source: source.name)  # a file's name, suffix and all, may sort otherwise
        with closing(
            ordered_map(partial(_read_or_fault, read), sources, min(self.workers or usable_cores(), len(sources)))
        ) as results:
            for result in tqdm(results, total=len(sources), **progress_bar("file", "read and pack")):
                for skipped in result.skipped:
                    self.skip(skipped.name, skipped.reason, skipped.detail)
                self.class_names |= result.class_names
                for clip in result.clips:
                    self._sanity.see(clip.joints)
                    self.writer.add(clip.joints, **clip.fields)
                if result.clips:
                    checksum.update(result.source.name.encode() + result.digest)
        self.writer.meta["source_checksum"] = checksum.hexdigest()
        self.writer.meta["warnings"] = self._sanity.tell(self.strict, PrepareError)

    def check_usable(self, found: int, raw: str | Path) -> None:
        """PrepareError, which says why, if none of the files found under ``raw`` gave a clip."""
        if not len(self.writer):
            counts = "; ".join(f"{count} {reason}" for reason, count in self.writer.skip_counts.items())
            first = f"; the first: {self.writer.first_skip}" if self.writer.first_skip else ""
            raise PrepareError(f"none of the {found} files under {raw} is usable ({counts}){first}")


@contextmanager
def packing(out: str | Path, *, strict: bool = False, workers: int | None = None, **store: Any) -> Iterator[Packing]:
    """Within: a store is written to ``out``. ``store`` are the other arguments of `StoreWriter`.

    Args:
        strict: a faulty file or clip is an error (by default it is reported and left out).
        workers: processes that read; None takes all cores.

    Raises:
        PrepareError: ``workers`` is no number of processes.
        StoreError: ``out`` exists (without ``overwrite``), or another process is writing it.
    """
    if workers is not None and workers < 1:
        raise PrepareError(f"workers must be at least 1, got {workers}")
    store["extra_meta"] = {"normalisation": NORMALISATION, **(store.get("extra_meta") or {})}
    with StoreWriter(out, **store) as writer:
        yield Packing(writer, strict, workers)
