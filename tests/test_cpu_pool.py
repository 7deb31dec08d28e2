"""Kernels for CPUs: how they are compiled and found, and their threads."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import python

from kernels import cpu

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def threads():
    """Set PyTorch's threads, for the test alone."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def some(rows: int = 96, n: int = 48, k: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, k, generator=generator), torch.randn(k, n, generator=generator)


def test_they_run_here():
    assert cpu.unavailable_reason() is None, "this suite needs a C++ compiler (on Debian: apt-get install g++)"


@pytest.mark.parametrize("rows, share", [(96, 16), (1, 16), (17, 16), (33, 1), (0, 4)])
def test_each_unit_is_done_once_and_for_any_number_of_threads_alike(threads, rows, share):
    a, b = some(rows)
    found = []
    for count in (1, 2, 3, 5):
        threads(count)
        c, by = cpu.product(a, b, share)
        assert set(by.tolist()) <= ({0} if count == 1 else {0, 1})
        found.append(c)
    torch.testing.assert_close(found[0], a @ b)
    assert all(torch.equal(c, found[0]) for c in found)


def test_workers_take_part(threads):
    threads(3)
    a, b = some(4096, 256, 256)
    assert any(cpu.product(a, b, 16)[1].any() for _ in range(200))


def test_two_threads_may_call_at_once(threads):
    threads(3)
    a, b = some(256)
    wrong = []

    def call() -> None:
        for _ in range(200):
            c, by = cpu.product(a, b, 8)
            if not torch.allclose(c, a @ b, atol=1e-4) or (by < 0).any():
                wrong.append(c)

    others = [threading.Thread(target=call) for _ in range(3)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert not wrong


@pytest.mark.program
def test_a_forked_process_has_threads_of_its_own(threads):
    threads(3)
    a, b = some(512)
    expected, _ = cpu.product(a, b, 8)
    child = os.fork()
    if child == 0:
        worked = all(torch.equal(cpu.product(a, b, 8)[0], expected) for _ in range(50))
        os._exit(0 if worked else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(cpu.product(a, b, 8)[0], expected)


@pytest.mark.program
def test_openmp_is_not_entered_and_waiting_costs_nothing():
    """A process that calls the kernels has their workers beside its own threads, and none of OpenMP's."""
    code = """
import os, time, torch
from pathlib import Path
from kernels import cpu
torch.set_num_threads(3)
a, b = torch.empty(4096, 256), torch.empty(256, 256)
cpu.library()
def tasks():
    return {path: (path / "comm").read_text().strip() for path in Path("/proc/self/task").iterdir()}
before = tasks()
for _ in range(20):
    cpu.product(a, b, 16)
print(*(name for path, name in tasks().items() if path not in before))
start = time.process_time()
time.sleep(0.3)
print(time.process_time() - start < 0.1)
"""
    done = python(code)
    assert done.stdout.split() == ["fastmc", "fastmc", "True"], done.stderr


def test_products_outside_keep_their_threads(threads):
    set_threads = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(cpu._blas()[2].value)
    before = set_threads(2)
    try:
        cpu.product(*some(), 16)
        assert set_threads(2) == 2
    finally:
        set_threads(before)


@pytest.mark.program
def test_they_are_compiled_once_and_two_processes_do_not_at_once(tmp_path):
    code = """
import logging
logging.basicConfig(level=logging.INFO)
from kernels import cpu
print(cpu.unavailable_reason())
"""
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [out.strip() for out, _ in outputs] == ["None", "None"]
    assert sum(error.count("compiling") for _, error in outputs) == 1
    assert [path.suffix for path in sorted((tmp_path / "fastmc").iterdir())] == [".lock", ".so"]
    assert "compiling" not in python(code, TORCH_EXTENSIONS_DIR=str(tmp_path)).stderr


@pytest.mark.parametrize(
    "environment, reason",
    [
        ({"PATH": "/nowhere", "CXX": ""}, "there is no C++ compiler"),
        ({"CXX": "/nowhere/c++"}, "/nowhere/c++, which CXX names, is not there"),
        ({"CXX": "false"}, "false cannot compile them"),
        ({"FASTMC_CPU_KERNELS": "0"}, "the environment variable FASTMC_CPU_KERNELS is 0"),
        ({"TORCH_EXTENSIONS_DIR": "/proc/nowhere"}, "No such file or directory"),
    ],
)
def test_where_they_cannot_run_the_reason_is_said(tmp_path, monkeypatch, environment, reason):
    for name, value in {"TORCH_EXTENSIONS_DIR": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    cpu._found.cache_clear()
    try:
        assert reason in str(cpu.unavailable_reason())
        with pytest.raises(cpu.NoKernels, match=re.escape(reason)):
            cpu.library()
    finally:
        cpu._found.cache_clear()


@pytest.mark.parametrize(
    ("machine", "x86"), [("x86_64", True), ("AMD64", True), ("aarch64", False), ("riscv64", False)]
)
def test_flags_of_x86_are_given_on_x86_alone(monkeypatch, tmp_path, machine, x86):
    """GCC for ARM ends with "unrecognized command-line option '-mprefer-vector-width=512'"."""
    compiled = []

    def run(command, **_):
        compiled.append(command)
        Path(command[-1]).touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    monkeypatch.setattr(cpu.subprocess, "run", run)
    cpu._compile(tmp_path / "kernels.so")
    assert ("-mprefer-vector-width=512" in compiled[0]) == x86


@pytest.mark.parametrize("files", [[], ["libtorch_cpu.so", "libtorch_cpu.so.2"]])
def test_a_torch_whose_blas_is_not_found_leaves_the_operators(monkeypatch, tmp_path, files):
    (tmp_path / "lib").mkdir()
    for name in files:
        (tmp_path / "lib" / name).touch()
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "__init__.py"))
    cpu._found.cache_clear()
    try:
        assert f"there are {len(files)} files lib/libtorch_cpu.*, not one" in str(cpu.unavailable_reason())
    finally:
        cpu._found.cache_clear()
