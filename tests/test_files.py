"""Temporary files: beside their target, gone at the end, and swept where a process was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastmc.files import TEMPORARY, temporary_beside

ROOT = Path(__file__).parents[1]
HOLD = """
import sys
from pathlib import Path
from fastmc.files import temporary_beside
with temporary_beside(Path(sys.argv[1]), folder=sys.argv[2] == "folder") as mine:
    if mine.is_dir():
        (mine / "part").write_text("x")
    print("there", flush=True)
    sys.stdin.read()
"""


def hold(path: Path, kind: str) -> subprocess.Popen[str]:
    """A process that has one in use."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    return process


@pytest.mark.program
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_a_killed_process_has_left_is_removed_by_the_next_and_what_is_in_use_is_not(kind, tmp_path):
    path = tmp_path / "crops[1].npy"  # a name that is a pattern, too
    killed, running = hold(path, kind), hold(path, kind)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    left, used = (tmp_path / f".{path.name}-{p.pid}{TEMPORARY}" for p in (killed, running))
    assert left.exists() and used.exists()
    with temporary_beside(path, folder=kind == "folder") as mine:
        assert mine.is_dir() == (kind == "folder")
        assert sorted(tmp_path.iterdir()) == sorted([mine, used])
    assert list(tmp_path.iterdir()) == [used]
    running.communicate("")
    assert not list(tmp_path.iterdir())


def test_what_another_machine_uses_stays(tmp_path):
    """Its process is none of this machine's, but the lock is seen."""
    path = tmp_path / "a.npy"
    running = hold(path, "file")
    used = tmp_path / f".a.npy-{running.pid}{TEMPORARY}"
    elsewhere = tmp_path / f".a.npy-{2**22 + 1}{TEMPORARY}"  # above the largest number of a process
    os.rename(used, elsewhere)
    with temporary_beside(path):
        assert elsewhere.exists()
    running.send_signal(signal.SIGKILL)
    running.wait()
    with temporary_beside(path):
        assert not elsewhere.exists()


def test_an_error_leaves_nothing_and_a_renamed_file_stays(tmp_path):
    with pytest.raises(ZeroDivisionError), temporary_beside(tmp_path / "a") as mine:
        mine.write_text(str(1 / 0))
    assert not list(tmp_path.iterdir())
    with temporary_beside(tmp_path / "a") as mine:
        mine.write_text("whole")
        os.replace(mine, tmp_path / "a")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_other_files_are_not_touched(tmp_path):
    for name in (".a-notes.tmp", ".a-.tmp", ".b-1.tmp", "a-4194305.tmp"):
        (tmp_path / name).touch()
    before = sorted(tmp_path.iterdir())
    with temporary_beside(tmp_path / "a"):
        pass
    assert sorted(tmp_path.iterdir()) == before
