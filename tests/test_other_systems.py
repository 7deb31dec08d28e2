"""What needs no Linux runs without what only Linux, or only POSIX, has; and the doctor says what is left out."""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import python, write_small_store

from fastmc import doctor, files, parallel
from fastmc.data.store import PackedStore, StoreError, StoreWriter
from fastmc.skeleton import NTU25

HIDDEN = """
import os, signal, sys
import matplotlib.pyplot, numba, numpy, sklearn.metrics, tensorboard.summary.writer.record_writer, torch, tyro
sys.modules["fcntl"] = None
for name in "O_NONBLOCK O_CLOEXEC pread pwrite sysconf fork killpg".split():
    delattr(os, name)
for name in "pthread_sigmask SIGHUP".split():
    delattr(signal, name)
"""
COMMANDS = (
    HIDDEN
    + """
from train import embed, evaluate, prepare, run
root = {root!r}
small = ["--frames", "8", "--encoder", "1x8", "--batch-size", "8", "--bank-size", "16", "--linear-epochs", "2"]
store, out = root + "/synthetic", root + "/run"
assert prepare.main(["synthetic", "--out", store, "--subjects", "2", "--replications", "1", "--workers", "1"]) == 0
assert prepare.main(["info", store, "--verify"]) == 0
for epochs in ("1", "1"):
    assert run.main(["--data-root", root, "--out", out, "--epochs", epochs, "--train-crops", "1", *small]) == 0
assert evaluate.main(["linear", "--run", out, "--linear-epochs", "1"]) == 0
assert embed.main(["--run", out, "--input", store, "--out", root + "/features.npz"]) == 0
"""
)


@pytest.mark.program
def test_commands_run_without_posix(tmp_path):
    done = python(COMMANDS.format(root=str(tmp_path)), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert "holds this run, finished" in done.stdout + done.stderr
    with np.load(tmp_path / "features.npz") as arrays:
        assert len(arrays["features"]) == len(PackedStore.open(tmp_path / "synthetic")) > 0


def writer(path):
    return StoreWriter(path, name="a", skeleton=NTU25, fps=30, class_names=["a"], protocols={})


def test_without_any_lock_all_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert files.why_no_locks().startswith("Python has neither fcntl nor msvcrt")
    assert len(write_small_store(tmp_path / "small", clips=3)) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert ("file locks", files.why_no_locks()) in doctor.system_lines()
    monkeypatch.delattr(os, "fork")
    assert any(name == "train.tables" for name, _ in doctor.system_lines())


def test_workers_are_started_where_no_signal_can_be_held_back(monkeypatch):
    monkeypatch.delattr(signal, "pthread_sigmask")
    with ThreadPoolExecutor(1) as pool:
        assert parallel._submit(pool, abs, -2).result() == 2


def test_locks_of_windows(tmp_path, monkeypatch):
    """As its C library has them: a byte is locked from where the file stands, and refused with EACCES."""
    locked = set()

    def locking(handle, mode, count):
        here = os.fstat(handle).st_ino, os.lseek(handle, 0, os.SEEK_CUR)
        if here in locked:
            raise PermissionError(13, "Permission denied")
        locked.add(here)
        assert (mode, count) == (2, 1)

    fake = SimpleNamespace(locking=locking, LK_NBLCK=2, __spec__=ModuleSpec("msvcrt", None))
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", fake)
    with writer(tmp_path / "toy") as store:
        store.add(np.ones((4, 1, 25, 3)), name="a", label=0)
        with (
            pytest.raises(StoreError, match=f"is being written by process {os.getpid()}"),
            writer(tmp_path / "toy"),
        ):
            pass
    assert len(PackedStore.open(tmp_path / "toy")) == 1


def test_windows_opens_no_folder_and_asks_no_process(tmp_path, monkeypatch):
    """Either would be an error there, or the end of the process that is asked after."""
    monkeypatch.setattr(files, "ON_WINDOWS", True)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("asked"))
    opened, open_ = [], os.open

    def noted(path, *how, **more):
        opened.extend([path] * sys._getframe(1).f_globals["__name__"].startswith("fastmc"))
        return open_(path, *how, **more)

    monkeypatch.setattr(os, "open", noted)
    left = tmp_path / ".toy-1.tmp"
    left.touch()
    assert len(write_small_store(tmp_path / "toy", clips=3)) == 3
    with files.temporary_beside(tmp_path / "toy", folder=True) as folder:
        assert folder.is_dir()
    assert not folder.exists() and left.exists()
    assert opened and not any(os.path.isdir(path) for path in opened)
