"""A process that reads damaged inputs in little memory and tells what came of each: python -m tests.fuzz.worker.

Input n of a format is a function of the two and of the code, so that whoever starts this process can make it again when
the process has died of it.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from functools import cache
from pathlib import Path
from random import Random
from typing import TextIO

from tests.fuzz.formats import FORMATS, PROJECT_ERRORS, Files, Format
from tests.fuzz.mutate import damaged
from tests.fuzz.planted import PLANTED

FOUND = Path(__file__).parent / "found"
MEMORY = 256 << 20  # bytes that an input may take beside what the process has
ADDRESSES = 1 << 30  # the system's own limit, above that: what asks for a terabyte is refused at once
LONGEST_MESSAGE = 5_000
ALL: dict[str, Format] = {**FORMATS, **PLANTED}


@cache
def seeds(name: str) -> list[Files]:
    """Sound inputs, and those that once were read wrongly."""
    return [*ALL[name].seeds(), *map(unpack, sorted(FOUND.glob(f"{name}-*.zip")))]


def unpack(path: Path) -> Files:
    with zipfile.ZipFile(path) as archive:
        return {entry: archive.read(entry) for entry in archive.namelist()}


def save(files: Files, path: Path) -> None:
    """As a seed, the same bytes for the same files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(entry), data, zipfile.ZIP_DEFLATED)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.getvalue())


def input_of(name: str, number: int) -> Files:
    random = Random(f"{name} {number}")
    return damaged(random.choice(seeds(name)), random)


def outcome_of(name: str, files: Files, folder: Path) -> tuple[str, str]:
    """("read" or "refused" or "wrong", what was said)."""
    source, out = folder / "in", folder / "out"
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    source.mkdir(exist_ok=True)
    try:
        ALL[name].read(source, out)
    except (*PROJECT_ERRORS, ValueError, FileNotFoundError) as error:
        message = str(error)
        named = isinstance(error, PROJECT_ERRORS) or str(folder) in message
        if not named or not message or len(message) > LONGEST_MESSAGE or not _printable(message):
            return "wrong", f"a message that says too little or too much: {traceback.format_exc()[-3000:]}"
        return "refused", message[:200]
    except Exception:
        return "wrong", traceback.format_exc()[-3000:]
    finally:
        shutil.rmtree(folder)
        folder.mkdir()
    return "read", ""


def _printable(message: str) -> bool:
    try:
        message.encode()
    except UnicodeEncodeError:
        return False
    return True


def peak() -> int:
    """Bytes; not ru_maxrss, which begins at that of the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ADDRESSES,) * 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--formats", nargs="+", required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    settings = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    try:
        answers, sys.stdout, sys.stderr = sys.stdout, io.StringIO(), io.StringIO()  # progress bars are not the question
        work(settings, answers)
    finally:
        sys.stderr = sys.__stderr__


def work(settings: argparse.Namespace, answers: TextIO) -> None:
    number = settings.first
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as temporary:
        for name in settings.formats:
            outcome_of(name, seeds(name)[0], Path(temporary))  # what is imported late is not an input's memory
        limit_memory()
        end = time.monotonic() + settings.seconds
        while time.monotonic() < end:
            for name in settings.formats:
                print(json.dumps(["start", name, number]), file=answers, flush=True)
                files = input_of(name, number)
                forget_peak()
                before = peak()
                outcome, said = outcome_of(name, files, Path(temporary))
                taken = peak() - before
                if taken > MEMORY:
                    outcome, said = "wrong", f"it took {taken >> 20} MB; {outcome}: {said}"
                print(json.dumps([outcome, name, number, said]), file=answers, flush=True)
                for stream in (sys.stdout, sys.stderr):
                    stream.seek(0)
                    stream.truncate()
            number += 1


if __name__ == "__main__":
    main()
