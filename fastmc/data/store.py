"""The packed store: a folder that holds a skeleton set without padding, read through a memory map.

A store holds ``meta.json``, ``skipped.json`` and plain ``.npy`` files (no pickle). ``frames.npy`` is float32 (R, V, 3)
in metres; clip n has T_n = ``num_frames[n]`` frames of M_n = ``num_bodies[n]`` bodies, and body m of its frame t is row
``start[n] + t * M_n + m``. All other arrays have one entry per clip.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from fastmc.files import lock, read_text, remove_what_was_left, summed_file, sync_folder, writing
from fastmc.reading import load_array, reading, shown, writable
from fastmc.skeleton import ROLES, Skeleton

FRAMES = "frames.npy"
CHUNK_ROWS = 1 << 16
"""Frames that are read at once."""
FORMAT = "fastmc packed store"
VERSION = 1
PROTOCOL_FIELDS = ("subject", "camera", "setup", "replication", "part")
CLIP_DTYPES: dict[str, str] = {
    "start": "<i8",
    "num_frames": "<i4",
    "num_bodies": "<i4",
    "label": "<i4",
    **dict.fromkeys(PROTOCOL_FIELDS, "<i4"),
}
NOT_NORMALISED = "none"
UNKNOWN = -1
"""The label of a clip whose class is not known."""
NAME_BYTES = 255  # what a file system takes
DELETE = "\x7f"
SECONDS_BETWEEN_LOOKS = 0.2
REMEDY = "prepare it again (python -m train.prepare --help)"


class StoreError(RuntimeError):
    """A store cannot be read or written; the message names the folder, the fault and the remedy."""


class StoreBusy(StoreError):
    """Another process is writing the store."""


@dataclass(frozen=True)
class PackedStore:
    """A packed skeleton set, read-only. Open one with `PackedStore.open`.

    Attributes:
        frames: float32 (R, V, 3), metres, memory-mapped.
        start: int64 (N,), first row of each clip.
        num_frames, num_bodies: int32 (N,), T_n and M_n.
        label: int32 (N,), class index from 0, -1 where unknown.
        subject, camera, setup, replication, part: int32 (N,), -1 where unknown; ``part`` is for sets that come with
            their own parts (training, test, folds), numbered by the protocol's ``values``.
        names: unicode (N,), unique and sorted.
    """

    path: Path
    meta: dict[str, Any]
    skeleton: Skeleton
    frames: np.ndarray
    start: np.ndarray
    num_frames: np.ndarray
    num_bodies: np.ndarray
    label: np.ndarray
    subject: np.ndarray
    camera: np.ndarray
    setup: np.ndarray
    replication: np.ndarray
    part: np.ndarray
    names: np.ndarray
    opened: FileState
    """What frames.npy was like when it was opened."""

    @classmethod
    def open(cls, path: str | Path) -> PackedStore:
        """Open a store; StoreError if it is missing, incomplete, corrupt or of another version.

        All that is read is of one store, even where another process replaces it meanwhile.
        """
        path = Path(path)
        while True:
            before = _state_of_meta(path)
            try:
                store = cls._read(path)
            except StoreError:
                if _state_of_meta(path) == before:
                    raise
            else:
                if _state_of_meta(path) == before:
                    return store

    @classmethod
    def _read(cls, path: Path) -> PackedStore:
        meta = _read_meta(path)
        with reading(f"{path} is corrupt or incomplete", StoreError, remedy=f"{REMEDY} with --overwrite"):
            with reading("meta.json", ValueError):
                skeleton = Skeleton.from_dict(meta["skeleton"])
                _check_meta(meta)
            arrays = {name: _load(path, name) for name in (*CLIP_DTYPES, "names")}
            opened = FileState.of(path / FRAMES)
            store = cls(path, meta, skeleton, _load(path, "frames", mmap=True), **arrays, opened=opened)
            store._check()
        return store

    def _check(self) -> None:
        clips, rows = self.meta["counts"]["clips"], self.meta["counts"]["rows"]
        if (self.num_frames < 1).any() or (self.num_bodies < 1).any():
            raise ValueError("num_frames.npy or num_bodies.npy holds numbers below 1")
        if self.frames.dtype != np.float32 or self.frames.shape != (rows, self.skeleton.num_joints, 3):
            raise ValueError(f"frames.npy is {self.frames.dtype} {self.frames.shape}, meta.json says {rows} rows")
        for name in (*CLIP_DTYPES, "names"):
            array = getattr(self, name)
            if array.shape != (clips,) or array.dtype != CLIP_DTYPES.get(name, array.dtype):
                raise ValueError(f"{name}.npy is {array.dtype} {array.shape}, meta.json says {clips} clips")
        if self.names.dtype.kind != "U" or (self.names[1:] <= self.names[:-1]).any():
            raise ValueError("names.npy holds no unique, sorted names")
        for name in self.names.tolist():
            check_name(name)
        size = self.num_frames.astype(np.int64) * self.num_bodies
        if (self.start != np.cumsum(size) - size).any() or size.sum() != rows:
            raise ValueError("start.npy, num_frames.npy and num_bodies.npy do not agree with frames.npy")
        if (self.label < UNKNOWN).any() or (self.label >= self.num_classes).any():
            raise ValueError(f"label.npy holds a label outside of {UNKNOWN}..{self.num_classes - 1}")

    @property
    def name(self) -> str:
        return self.meta["name"]

    @property
    def fps(self) -> float:
        return float(self.meta["fps"])

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.meta["class_names"])

    @property
    def num_classes(self) -> int:
        return len(self.meta["class_names"])

    @property
    def normalisation(self) -> str:
        """The frame of reference of the clips, in words; ``NOT_NORMALISED`` if they are as they were recorded."""
        return self.meta.get("normalisation", NOT_NORMALISED)

    @property
    def max_bodies(self) -> int:
        return int(self.num_bodies.max())

    @property
    def protocols(self) -> tuple[str, ...]:
        return tuple(self.meta["protocols"])

    @property
    def checksum(self) -> str:
        """Checksum of the source files; of the packed frames where the writer was given none."""
        return self.meta.get("source_checksum") or self.meta["content_checksum"]

    @property
    def content_checksum(self) -> str:
        """Checksum of the packed frames: of what was made of the source, normalisation included."""
        return self.meta["content_checksum"]

    def __len__(self) -> int:
        return len(self.start)

    def clip(self, n: int) -> np.ndarray:
        """Clip n as a (T_n, M_n, V, 3) view of the frames, metres."""
        start, frames, bodies = int(self.start[n]), int(self.num_frames[n]), int(self.num_bodies[n])
        return self.frames[start : start + frames * bodies].reshape(frames, bodies, -1, 3)

    def split(self, protocol: str) -> tuple[np.ndarray, np.ndarray]:
        """(train, test) clip indices, int64 and increasing; ValueError for an unknown protocol."""
        if protocol not in self.protocols:
            raise ValueError(f"{self.path} has no protocol {protocol!r}; there are: {', '.join(self.protocols)}")
        rule = self.meta["protocols"][protocol]
        train = np.isin(getattr(self, rule["field"]), rule["train"])
        return np.flatnonzero(train).astype(np.int64), np.flatnonzero(~train).astype(np.int64)

    def labelled_split(self, protocol: str) -> tuple[np.ndarray, np.ndarray]:
        """Of `split` the clips whose class is known: what can be evaluated."""
        train, test = (ids[self.label[ids] != UNKNOWN] for ids in self.split(protocol))
        return train, test

    def class_name(self, n: int) -> str:
        """Of clip n, for people."""
        return self.class_names[self.label[n]] if self.label[n] != UNKNOWN else "no label"

    def split_digest(self, protocol: str) -> str:
        """Hexdigest (32 digits) of what an evaluation under a protocol depends on: frames, lengths, labels and names of
        the classes, and which clips train and test. ValueError for an unknown protocol."""
        digest = hashlib.blake2b(json.dumps([self.content_checksum, *self.class_names]).encode(), digest_size=16)
        for numbers in (self.num_frames, self.num_bodies, self.label, *self.split(protocol)):
            digest.update(np.ascontiguousarray(numbers, dtype="<i8").data)
            digest.update(b";")
        return digest.hexdigest()

    def skipped(self) -> list[dict[str, str]]:
        """What the preparation left out: ``name``, ``reason`` (a category) and ``detail`` of each source file."""
        with reading(f"{self.path / 'skipped.json'} is corrupt", StoreError, remedy=f"{REMEDY} with --overwrite"):
            entries = json.loads(read_text(self.path / "skipped.json"))
            keys = ("name", "reason", "detail")  # earlier versions wrote half characters of names that are no UTF-8
            return [{key: writable(_text_of(entry, key)) for key in keys} for entry in entries]

    def verify(self) -> None:
        """Read all frames and compare their checksum; StoreError if a bit has changed since they were written, which
        names the first clip that is not finite, if there is one."""
        digest, broken = hashlib.blake2b(digest_size=16), None
        for first in range(0, len(self.frames), CHUNK_ROWS):
            chunk = np.ascontiguousarray(self.frames[first : first + CHUNK_ROWS])
            digest.update(chunk.data)
            if broken is None and not np.isfinite(chunk).all():
                broken = first + int(np.flatnonzero(~np.isfinite(chunk).all(axis=(1, 2)))[0])
        if digest.hexdigest() != self.meta["content_checksum"]:
            which = ""
            if broken is not None:
                clip = self.names[np.searchsorted(self.start, broken, "right") - 1]
                which = f": clip {clip} holds NaN or infinite coordinates"
            raise StoreError(f"{self.path / FRAMES} is not what was written to it{which}; {REMEDY} with --overwrite")

    def check_unchanged(self) -> None:
        """StoreError if frames.npy is not the file that was opened, or was written to since. Costs no reading."""
        try:
            now = FileState.of(self.path / FRAMES)
        except OSError as error:
            raise StoreError(f"{self.path / FRAMES} has gone while it was in use ({error.strerror})") from error
        if now != self.opened:
            raise StoreError(
                f"{self.path / FRAMES} was changed while it was in use, and what was computed belongs to neither; "
                "give the command again, once nothing writes there"
            )


class FileState(NamedTuple):
    """By what one knows, without reading it, that a file was not written to."""

    device: int
    number: int
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        found = os.stat(path)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class StoreWriter:
    """Writes a store clip by clip; a context manager.

    Clips go to disk as they are added, into a hidden folder beside ``path`` that is renamed into place when the
    context ends without an error. After an error, or a kill, ``path`` is as it was before; what a killed writer
    has left behind is removed by the next one.

    Args:
        path: the store's folder.
        protocols: name -> ``{"field": one of PROTOCOL_FIELDS, "train": [values]}``; all other clips are test clips.
        max_bodies: of a clip; of one that has more the first ones are kept. ``meta.json`` counts such clips under
            ``bodies_cut``.
        overwrite: replace a store that is there already (a folder that is no store is never replaced).
        extra_meta: further JSON values for ``meta.json``. `meta` may be changed until the context ends.

    Raises:
        StoreError: ``path`` exists, or another process is writing it.
        ValueError: a clip, its name or its label is not valid, or the set's name or that of a class.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        name: str,
        skeleton: Skeleton,
        fps: float,
        class_names: Sequence[str],
        protocols: Mapping[str, Mapping[str, Any]],
        max_bodies: int | None = None,
        overwrite: bool = False,
        extra_meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(os.path.realpath(path))  # a link to another disk stays a link
        self.max_bodies, self.overwrite = max_bodies, overwrite
        self.skeleton = skeleton
        for text in (name, *class_names):
            if writable(text) != text:
                raise ValueError(f"{shown(text)} is no text: a set or a class needs another name, as by --name")
        self.meta: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "name": name,
            "skeleton": skeleton.to_dict(),
            "fps": float(fps),
            "class_names": list(class_names),
            "protocols": {key: dict(rule) for key, rule in protocols.items()},
            **(extra_meta or {}),
        }
        for key, rule in self.meta["protocols"].items():
            _check_protocol(key, rule)
        self._clips: list[tuple[int, ...]] = []
        self._names: dict[str, None] = {}
        self._skipped: list[dict[str, str]] = []
        self._rows = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def __enter__(self) -> StoreWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.path)  # before anything else: a writer that has just begun is no killed one
        self._temp = self.path.with_name(f".{self.path.name}.tmp-{os.getpid()}")
        try:
            _clean_up_after_killed_writers(self.path)  # may bring an old store back
            check_target(self.path, self.overwrite)
        except BaseException:
            _unlock(self._lock, self.path)
            raise
        try:
            with writing(self.path):
                self._temp.mkdir()
                self._file: BinaryIO = open(self._temp / "frames.npy", "wb")
                self._header_size = self._write_header()
        except OSError:
            self._clean_up()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            with writing(self.path):
                if kind is None:
                    self._finish()
                    self._file.close()
        finally:
            with suppress(OSError):  # what a full disk keeps from being written is given up
                self._file.close()
            self._clean_up()

    def _clean_up(self) -> None:
        shutil.rmtree(self._temp, ignore_errors=True)
        _unlock(self._lock, self.path)

    def __len__(self) -> int:
        return len(self._clips)

    def add(
        self,
        clip: np.ndarray,
        *,
        name: str,
        label: int,
        subject: int = -1,
        camera: int = -1,
        setup: int = -1,
        replication: int = -1,
        split: int = -1,
    ) -> None:
        """Append a clip (T, M, V, 3) in metres; names must come in increasing order."""
        check_name(name)
        clip = np.ascontiguousarray(clip, dtype="<f4")
        if clip.ndim != 4 or clip.shape[2:] != (self.skeleton.num_joints, 3) or 0 in clip.shape:
            raise ValueError(f"clip {name} has shape {clip.shape}, expected (T, M, {self.skeleton.num_joints}, 3)")
        if not np.isfinite(clip).all():
            raise ValueError(f"clip {name} holds NaN or infinite coordinates")
        if self.max_bodies is not None and clip.shape[1] > self.max_bodies:
            clip = np.ascontiguousarray(clip[:, : self.max_bodies])
            self.meta["bodies_cut"] = self.meta.get("bodies_cut", 0) + 1
        if not UNKNOWN <= label < len(self.meta["class_names"]):
            raise ValueError(
                f"clip {name} has label {label}, outside of {UNKNOWN}..{len(self.meta['class_names']) - 1}"
            )
        if self._names and name <= next(reversed(self._names)):
            raise ValueError(f"clip {name} comes after {next(reversed(self._names))}: add clips sorted by unique names")
        with writing(self.path):
            self._file.write(clip.data)
        self._digest.update(clip.data)
        frames, bodies = clip.shape[:2]
        self._clips.append((self._rows, frames, bodies, label, subject, camera, setup, replication, split))
        self._names[name] = None
        self._rows += frames * bodies

    def skip(self, name: str, reason: str, detail: str = "") -> None:
        """Record that a source file was left out: ``reason`` is a category, ``detail`` says more."""
        self._skipped.append({"name": writable(name), "reason": writable(reason), "detail": writable(detail)})

    @property
    def skip_counts(self) -> dict[str, int]:
        return dict(Counter(entry["reason"] for entry in self._skipped).most_common())

    @property
    def first_skip(self) -> str:
        return self._skipped[0]["detail"] if self._skipped else ""

    def _write_header(self) -> int:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self.skeleton.num_joints, 3)}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)
        return self._file.tell()

    def _finish(self) -> None:
        if not self._clips:
            raise StoreError(f"{self.path} was not written: there is no usable clip")
        # numpy leaves room in a header for the first axis to grow, so the rows stay where they are.
        if self._write_header() != self._header_size:
            raise StoreError(f"the header of {self._temp / 'frames.npy'} has outgrown its place")
        _sync(self._file)
        self._file.close()  # Windows does not move a folder of open files
        for (name, dtype), values in zip(CLIP_DTYPES.items(), zip(*self._clips, strict=True), strict=True):
            self._save(name, np.array(values, dtype))
        self._save("names", np.array(list(self._names)))
        self.meta["counts"] = {"clips": len(self._clips), "rows": self._rows, "skipped": self.skip_counts}
        self.meta["content_checksum"] = self._digest.hexdigest()
        self._save_json("skipped", self._skipped)
        self._save_json("meta", self.meta)
        sync_folder(self._temp)
        self._move_into_place()

    def _save(self, name: str, array: np.ndarray) -> None:
        with summed_file(self._temp / f"{name}.npy") as file:
            np.save(file, array, allow_pickle=False)

    def _save_json(self, name: str, values: Any) -> None:
        with open(self._temp / f"{name}.json", "wb") as file:
            file.write(json.dumps(values, indent=1).encode() + b"\n")
            _sync(file)

    def _move_into_place(self) -> None:
        check_target(self.path, self.overwrite)
        old = self.path.with_name(f".{self.path.name}.old")
        if self.path.exists():
            self.path.rename(old)
        try:
            self._temp.rename(self.path)
        except OSError:
            if old.exists():
                old.rename(self.path)
            raise
        try:
            sync_folder(self.path.parent)
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _load(path: Path, name: str, mmap: bool = False) -> np.ndarray:
    file = path / f"{name}.npy"
    with reading(file.name, ValueError):
        array = load_array(file)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is an archive")
        if not mmap:
            array = np.array(array)
            array.flags.writeable = False
    return array


def _check_meta(meta: Mapping[str, Any]) -> None:
    """ValueError, KeyError or the like, now and not in the middle of a run, where meta.json lacks something."""
    texts = ["name", "content_checksum", *(["normalisation"] if "normalisation" in meta else [])]
    for value in (*(_text_of(meta, key) for key in texts), *meta["class_names"]):
        if not isinstance(value, str):
            raise ValueError(f"{shown(value)} is no name of a class")
        value.encode()  # an error for half a character, which no terminal can show
    if not isinstance(meta["class_names"], list) or not all(
        isinstance(meta["counts"][key], int) for key in ("clips", "rows")
    ):
        raise ValueError("class_names is no list, or counts are no integers")
    if not 0 < float(meta["fps"]) < np.inf:
        raise ValueError(f"fps is {shown(meta['fps'])}")
    for name, protocol in meta["protocols"].items():
        _check_protocol(name, protocol)


def _text_of(values: Mapping[str, Any], key: str) -> str:
    if not isinstance(values[key], str):
        raise ValueError(f"{key} is {shown(values[key])}, expected a text")
    return values[key]


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise StoreError(f"there is no packed store at {path}; prepare one (python -m train.prepare --help)")
    meta = _meta_of_store(path)
    if meta is None:
        raise StoreError(f"{path} is not a packed store (no meta.json of the format {FORMAT!r}); check the path")
    if meta.get("version") != VERSION:
        version = shown(meta.get("version"))
        raise StoreError(f"{path} has store version {version}, this fastmc reads {VERSION}; {REMEDY}")
    return meta


def _state_of_meta(path: Path) -> FileState | None:
    """It tells a store from the one that takes its place: each has a file of its own."""
    try:
        return FileState.of(path / "meta.json")
    except OSError:
        return None


def _meta_of_store(path: Path) -> dict[str, Any] | None:
    """Content of ``meta.json``; None if the folder is not a store of any version."""
    try:
        meta = json.loads(read_text(path / "meta.json"))
        return meta if meta["format"] == FORMAT else None
    except Exception:  # what is read may be any file at all
        return None


def _check_protocol(name: str, rule: Mapping[str, Any]) -> None:
    if rule["field"] not in PROTOCOL_FIELDS or not all(isinstance(value, int) for value in rule["train"]):
        raise ValueError(f"protocol {name!r} must split by one of {', '.join(PROTOCOL_FIELDS)} in integers")


def frame_in_words(normalisation: str, skeleton: Skeleton) -> str:
    """The frame of reference of clips with the joints that it was made by: it is another one where these are others."""
    if normalisation == NOT_NORMALISED:
        return normalisation
    return f"{normalisation} ({', '.join(f'{role} = {skeleton.in_words(role)}' for role in ROLES)})"


def check_name(name: str) -> None:
    """ValueError if it cannot be the name of a clip: 1 to 255 bytes of text without control characters. All names of a
    store take the room of the longest."""
    if not name:
        raise ValueError("a name is empty")
    if not name.isprintable() and any(letter < " " or letter == DELETE for letter in name[: NAME_BYTES + 1]):
        raise ValueError(f"{shown(name)} is no name: it holds control characters")
    try:
        size = len(name.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{shown(name)} is no name: it is no text") from error
    if size > NAME_BYTES:
        raise ValueError(f"{shown(name[:40])}... is no name: it has {size:,} bytes, expected {NAME_BYTES} at most")


def check_target(path: str | Path, overwrite: bool) -> None:
    """StoreError unless a store may be written to ``path``: it is free, or holds a store that may be replaced."""
    path = Path(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise StoreError(f"{path} is a file; choose another place for the store")
    if _meta_of_store(path) is not None:
        if not overwrite:
            remove_what_was_left(path)  # by a preparation that was killed between the end of its work and its own end
            raise StoreError(f"{path} already holds a store; --overwrite replaces it")
    elif any(path.iterdir()):
        raise StoreError(f"{path} is not empty and holds no packed store; choose another folder")


def _clean_up_after_killed_writers(path: Path) -> None:
    for temp in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        shutil.rmtree(temp, ignore_errors=True)
    old = path.with_name(f".{path.name}.old")
    if old.exists():  # a writer was killed between its two renames, or while it deleted the old store
        shutil.rmtree(old) if path.exists() else old.rename(path)


def _lock(path: Path) -> int:
    """Lock the place of a store for the life of this process; the kernel unlocks it even after a kill.

    Raises:
        StoreBusy: another writer has locked it; the message names its process. StoreError: there are no locks.
    """
    file = _lock_file(path)
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(handle)
        except BlockingIOError:
            os.lseek(handle, 0, os.SEEK_SET)
            number = os.read(handle, 20).decode("ascii", "replace")
            os.close(handle)
            who = f"process {number}" if number else "another process"
            raise StoreBusy(f"{path} is being written by {who}; wait for it, or stop it") from None
        except OSError as error:  # a disk without locks: to wait for one would be for ever
            os.close(handle)
            raise StoreError(f"{file} cannot be locked ({error.strerror}); choose a place on another disk") from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                os.ftruncate(handle, 0)
                os.lseek(handle, 0, os.SEEK_SET)
                os.write(handle, str(os.getpid()).encode())
                return handle
        os.close(handle)  # its last owner has removed it meanwhile


def wait_for_writer(path: str | Path) -> None:
    """Wait until no other process writes a store to ``path``."""
    path = Path(os.path.realpath(path))
    while True:
        with suppress(StoreBusy):
            _unlock(_lock(path), path)
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _unlock(handle: int, path: Path) -> None:
    with suppress(PermissionError):  # Windows keeps what is open
        _lock_file(path).unlink(missing_ok=True)  # while it is locked, so that nobody else's is removed
    os.close(handle)


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
