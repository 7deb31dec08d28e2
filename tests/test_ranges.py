"""Parts of a step: told to NVTX, to PyTorch's profiler and to observers, and to nobody else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import python

from kernels import ranges
from kernels.ranges import PARTS, observe, part

ROOT = Path(__file__).resolve().parents[1]


def names_in(profile: torch.profiler.profile) -> list[str]:
    events = [event for event in profile.events() if event.name in PARTS]
    return [event.name for event in sorted(events, key=lambda event: event.time_range.start)]


def test_observers_are_told_in_order():
    told = []
    with observe(lambda *call: told.append(call)):
        with part("attack"), part("query"):
            pass
        with part("bank"):
            pass
    with part("ema"):
        pass
    enter, leave = True, False
    want = [("attack", enter), ("query", enter), ("query", leave), ("attack", leave), ("bank", enter), ("bank", leave)]
    assert told == want
    told.clear()
    with observe(lambda *call: told.append(call)), pytest.raises(KeyError), part("mc"):
        raise KeyError
    with pytest.raises(KeyError), observe(lambda *call: told.append(call)):
        raise KeyError
    with part("mc"):
        pass
    assert told == [("mc", enter), ("mc", leave)], "of a part that fails too, and no longer than asked"


def test_an_unknown_part_is_an_error():
    with pytest.raises(ValueError, match=r"part must be one of augment, .*; got 'atack'"):
        part("atack")


def test_pytorchs_profiler_is_told():
    with torch.profiler.profile() as profile, part("attack"), part("query"):
        torch.zeros(3)
    assert names_in(profile) == ["attack", "query"]


def test_a_profiler_that_begins_within_a_part_is_told_of_the_next():
    with part("attack"):
        profile = torch.profiler.profile()
        profile.start()
        with part("query"):
            torch.zeros(3)
    profile.stop()
    assert names_in(profile) == ["query"]


def test_nothing_is_recorded_where_nobody_listens(monkeypatch):
    monkeypatch.setattr(ranges, "_nvtx", None)  # as it is, unless these tests run under a profiler
    monkeypatch.setattr(torch.profiler, "record_function", lambda name: pytest.fail("recorded"))
    with part("attack"):
        assert torch._C._is_multithreading_enabled()


def test_backward_passes_keep_to_their_thread_where_a_profiler_listens():
    with torch.profiler.profile(), part("backward"):
        assert not torch._C._is_multithreading_enabled()
        with part("attack"):
            pass
        assert not torch._C._is_multithreading_enabled()
    assert torch._C._is_multithreading_enabled()


@pytest.mark.slow
def test_compiled_functions_are_not_compiled_anew_within_a_part():
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    twice = torch.compile(lambda x: 2 * x, backend=backend, fullgraph=True)
    x = torch.ones(3, requires_grad=True)
    twice(x).sum().backward()
    with part("query"):
        twice(x)
    with torch.profiler.profile(), part("query"):
        twice(x).sum().backward()
    assert len(compiled) == 1
    assert x.grad is not None and x.grad.tolist() == [4, 4, 4]


def listening(code: str, **environment: str) -> list[str]:
    """What a process says, and what it tells the listener if there is one."""
    done = python(code, **environment)
    done.check_returncode()
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
    """A tool that NVTX loads as it loads Nsight Systems."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("a C compiler is needed to build something that listens to NVTX")
    pytest.importorskip("nvtx")
    library = tmp_path_factory.mktemp("nvtx") / "listener.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, ROOT / "tests" / "nvtx_listener.c"], check=True)
    return str(library)


NESTED = """
import torch
from kernels.ranges import part
with part("attack"):
    with part("query"):
        print(torch._C._is_multithreading_enabled(), flush=True)
    with part("query"):
        pass
"""


@pytest.mark.program
def test_a_tool_that_listens_to_nvtx_is_told(listener):
    assert listening(NESTED, NVTX_INJECTION64_PATH=listener) == [
        "start fastmc attack 1",
        "start fastmc query 2",
        "False",
        "end fastmc 2",
        "start fastmc query 3",
        "end fastmc 3",
        "end fastmc 1",
    ]
