"""Files: whole or not there, whatever happens while they are written; found in folders; read where they are files."""

from __future__ import annotations

import errno
import fnmatch
import glob
import json
import os
import shutil
import stat
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

TEMPORARY = ".tmp"
FULL = (errno.ENOSPC, errno.EDQUOT)
CHUNK = 1 << 22
"""Bytes that are read at once of a file that may be larger than memory."""
ON_WINDOWS = os.name == "nt"
LOCKED_BYTE = 1 << 30
"""On Windows a lock is one of bytes, which no one else may read: this one lies beyond what is written."""
READING = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"))
KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "named pipe"), (stat.S_ISSOCK, "socket"))


def lock(handle: int, *, wait: bool = False) -> None:
    """Lock an open file for this process; the system unlocks it when the process ends, even after a kill. Nothing is
    locked where the system has no locks (`why_no_locks`).

    Raises:
        BlockingIOError: another process has locked it, and it is not to be waited for.
    """
    try:
        import fcntl
    except ImportError:
        _lock_on_windows(handle)
    else:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_on_windows(handle: int) -> None:
    if why_no_locks() is not None:
        return
    import msvcrt

    os.lseek(handle, LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        raise BlockingIOError(errno.EAGAIN, "another process has locked it") from error


def why_no_locks() -> str | None:
    """Why files cannot be locked, as the end of a sentence; None if they can."""
    if any(find_spec(module) for module in ("fcntl", "msvcrt")):
        return None
    return "Python has neither fcntl nor msvcrt here: two commands that write to one folder at once are not kept apart"


class WriteError(OSError):
    """A file could not be written; the message names it and says why. What was there before is as it was."""

    def __init__(self, path: Path, error: OSError) -> None:
        self.why: str = error.why if isinstance(error, WriteError) else error.strerror or str(error)
        full = f"No space left on {path.parent} for {path.name}"
        super().__init__(full if error.errno in FULL else f"{path} cannot be written: {self.why}")
        self.errno = error.errno


class NotAFile(OSError):
    """What is to be read is a pipe, a folder, a device; the message names it."""


class Sum(NamedTuple):
    """CRC-32 and bytes of a file: any single flipped bit changes the first. A CRC is nine times as fast as BLAKE2b."""

    crc: int
    size: int

    def add(self, content: bytes | memoryview) -> Sum:
        return Sum(zlib.crc32(content, self.crc), self.size + len(content))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within: what keeps ``path`` from being written is a WriteError that names it, and not a file on the way there."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, error) from error


def write_json(path: Path, content: Any) -> None:
    """Write a file that readers never see half of."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write to, which becomes ``path`` at the end, once it is on disk, and is removed after an error.
    WriteError where it cannot be written.

    It lies in a folder of this process alone, so that two that write to one place each put a whole file there; its name
    is that of ``path``, since writers go by the suffix, and some put the name into the file.
    """
    with writing(path), temporary_beside(path, folder=True) as folder:
        unfinished = folder / path.name
        yield unfinished
        sync_file(unfinished)
        os.replace(unfinished, path)
        sync_folder(path.parent)


@contextmanager
def temporary_beside(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """An empty file, or a folder, beside ``path`` for this use alone, removed at the end if it is still there. What
    processes have left that were killed is removed first.

    It is locked while it is in use, which the kernel ends even after a kill, on a disk of several machines too. Where
    the disk has no locks, what is left of killed processes stays.
    """
    remove_what_was_left(path)
    mine = _new_beside(path, folder)
    handle = None if ON_WINDOWS else os.open(mine, os.O_RDONLY)  # there folders are not opened, and what is open stays
    try:
        if handle is not None:
            with suppress(OSError):
                lock(handle, wait=True)
        yield mine
    finally:
        _remove(mine)
        if handle is not None:
            os.close(handle)


def _new_beside(path: Path, folder: bool) -> Path:
    for n in count():
        mine = path.with_name(f".{path.name}-{f'{n}-' * (n > 0)}{os.getpid()}{TEMPORARY}")
        with suppress(FileExistsError):
            mine.mkdir() if folder else mine.touch(exist_ok=False)
            break
    return mine


def remove_what_was_left(path: Path) -> None:
    """Temporary files and folders beside ``path`` of processes that are gone."""
    for left in path.parent.glob(f".{glob.escape(path.name)}-*{TEMPORARY}"):
        number = left.name.removesuffix(TEMPORARY).rpartition("-")[2]
        own = number == str(os.getpid())  # it may be left of another one: in a container all have the same few numbers
        if not number.isdigit() or (not own and _is_running(int(number))):
            continue
        with suppress(OSError):
            handle = os.open(left, os.O_RDONLY)
            try:
                lock(handle)  # an error if it is in use, here or by another machine
                _remove(left)
            finally:
                os.close(handle)


def _is_running(process: int) -> bool:
    """On this machine. On Windows the question would end the process: nothing is ever taken for left there."""
    if ON_WINDOWS:
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


class SummedFile:
    """A file that others write from its start to its end: sums it up, and keeps the error that stopped it.

    Nothing is raised while it is written, since writers in C++ tell another error than the one they met: `check` does.
    It has no ``fileno``, without which numpy and PyTorch write through this object.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self.sum = Sum(0, 0)

    def write(self, content: bytes | memoryview) -> int:
        flat = memoryview(content).cast("B")
        if self._error is None:
            try:
                self._file.write(flat)
            except OSError as error:
                self._error = error
        self.sum = self.sum.add(flat)
        return len(flat)

    def flush(self) -> None:
        """Nothing: `check` does."""

    def check(self) -> None:
        """Wait until all of it is on disk; the OSError that kept it from there."""
        if self._error is not None:
            raise self._error
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def summed_file(path: Path) -> Iterator[SummedFile]:
    """A new file to write to; on disk at the end. WriteError where it is not; then ``path`` holds a part of it."""
    with writing(path), open(path, "wb") as file:
        summed = SummedFile(file)
        yield summed
        summed.check()


class GrowingFile:
    """A file that grows by whole pieces: after an error it is as long as before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by close()

    @property
    def is_there(self) -> bool:
        """Whether its name still leads to it: it may have been removed since."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False

    def append(self, piece: bytes) -> None:
        """WriteError if it is not on disk afterwards."""
        handle = self._file.fileno()
        with writing(self.path):
            end = os.fstat(handle).st_size
            try:
                rest = memoryview(piece)
                while rest:
                    rest = rest[self._file.write(rest) :]
                os.fsync(handle)
            except BaseException:
                os.ftruncate(handle, end)
                raise

    def close(self) -> None:
        self._file.close()


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading; NotAFile if it is something else, such as a pipe, whose reader waits for ever."""
    handle = os.open(path, READING)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = next((name for is_so, name in KINDS if is_so(mode)), "device")
        raise NotAFile(f"{path} is a {kind}, not a file")
    return open(handle, "rb")


def read_bytes(path: Path) -> bytes:
    """The content of a file. OSError, among them NotAFile."""
    with open_file(path) as file:
        return file.read()


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The content of a file of text. OSError, among them NotAFile, and UnicodeDecodeError."""
    return read_bytes(path).decode(encoding)


def sum_of(file: BinaryIO) -> Sum:
    """The sum of a file, of which a part is in memory at a time."""
    found = Sum(0, 0)
    while chunk := file.read(CHUNK):
        found = found.add(chunk)
    return found


def make_folder_of(file: Path) -> None:
    """Make the folder that ``file`` is to be written to, if need be; ValueError if it cannot be."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{file} cannot be written: {file.parent} is, or lies in, a file; name another") from None


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Files of this name at any depth, in folders that are links too, by name and then path; none if there is no such
    folder.

    What several ways lead to is found by one of them, one without links where there is such a one; so a circle of links
    ends. Archives made on a Mac hold a hidden companion ``._NAME`` of every file, which is passed over.
    """
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    tops = deque([str(folder)])
    while tops:
        for place, folders, files in os.walk(tops.popleft()):
            state = os.stat(place)
            if (state.st_dev, state.st_ino) in seen:
                folders.clear()
                continue
            seen.add((state.st_dev, state.st_ino))
            folders.sort()  # which of several ways is taken is no matter of the disk
            found += [Path(place, name) for name in fnmatch.filter([*folders, *files], pattern)]
            tops += sorted(link for name in folders if os.path.islink(link := os.path.join(place, name)))
    return sorted((path for path in found if not path.name.startswith("._")), key=lambda path: (path.name, path))


def sync_file(path: Path) -> None:
    """Wait until a file is on disk: a rename may get there before what is renamed, and a power cut between."""
    handle = os.open(path, os.O_RDWR if ON_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk: a rename that is not may be undone by a power cut. Windows opens no
    folder."""
    if not ON_WINDOWS:
        sync_file(folder)
