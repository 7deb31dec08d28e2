"""Temporary files: beside their target, gone at the end, and swept where a process was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fastmc.files import TEMPORARY, WriteError, find_files, temporary_beside, whole_file

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


def test_what_a_process_of_the_same_number_has_left_is_removed(tmp_path):
    """As in a container, where each begins to count anew."""
    left = tmp_path / f".a-{os.getpid()}{TEMPORARY}"
    left.mkdir()
    (left / "half").touch()
    with temporary_beside(tmp_path / "a", folder=True) as mine:
        assert not list(mine.iterdir())
    assert not list(tmp_path.iterdir())


def test_two_that_write_to_one_place_each_put_a_whole_file_there(tmp_path):
    """They wrote into one file, and what came to stand there was some of both."""
    path = tmp_path / "features.npz"
    with whole_file(path) as first:
        first.write_text("first, the begin")
        with whole_file(path) as second:
            second.write_text("second")
            assert first.read_text() == "first, the begin" and first.name == second.name == path.name
        assert path.read_text() == "second"
    assert path.read_text() == "first, the begin"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_the_file_that_was_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("before")
    with pytest.raises(ZeroDivisionError), whole_file(path) as unfinished:
        unfinished.write_text(f"half{1 / 0}")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with (
        pytest.raises(WriteError, match=r"lost/a\.json cannot be written: No such file"),
        whole_file(tmp_path / "lost" / "a.json"),
    ):
        pass


def test_folders_that_are_links_are_searched_once(tmp_path):
    """A half of NTU-120 that was linked below the other was lost, and nothing said so."""
    raw, elsewhere = tmp_path / "raw", tmp_path / "disk2" / "s018"
    (raw / "s001").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    for file in (raw / "s001" / "b.txt", elsewhere / "a.txt", elsewhere / "deep" / "c.txt", raw / "._a.txt"):
        file.touch()
    (raw / "a-link").symlink_to(raw / "s001")  # the way without a link is taken
    (raw / "s002").symlink_to(elsewhere)
    (raw / "s003").symlink_to(elsewhere)
    (elsewhere / "deep" / "back").symlink_to(raw)  # circles
    (raw / "s001" / "self").symlink_to(raw / "s001" / "self")
    (raw / "gone.txt").symlink_to(tmp_path / "lost.txt")  # a file to be reported, not passed over
    found = [str(path.relative_to(raw)) for path in find_files(raw, "*.txt")]
    assert found == ["s002/a.txt", "s001/b.txt", "s002/deep/c.txt", "gone.txt"]
    (tmp_path / "link").symlink_to(raw)
    assert len(find_files(tmp_path / "link", "*.txt")) == 4
    assert find_files(tmp_path / "nowhere", "*.txt") == find_files(raw / "s001" / "b.txt", "*") == []
