"""Runs shared out over devices: what --devices means, what a run sees of them, and how the queue is shown."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmc.config import preset_config
from train.command import devices
from train.command.devices import Device, check_devices, devices_of
from train.command.jobs import Job, run_jobs
from train.command.picture import Picture, last_line
from train.command.work import work_of

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def machine(monkeypatch):
    """Of six cores, and as many GPUs as is said."""

    def has(gpus: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    monkeypatch.setattr(devices, "usable_cores", lambda: 6)
    has(0)
    return has


@pytest.mark.parametrize(
    "said, gpus, small, expected",
    [
        ("auto", 2, False, {"cuda:0": 3, "cuda:1": 3}),
        ("auto", 0, False, {"cpu:6": 6}),
        ("auto", 0, True, {"cpu:2 (1)": 2, "cpu:2 (2)": 2, "cpu:2 (3)": 2}),
        ("cuda:1", 2, False, {"cuda:1": 6}),
        ("cuda:1,cuda:0x2", 2, False, {"cuda:1": 2, "cuda:0 (1)": 2, "cuda:0 (2)": 2}),
        ("cpu", 1, False, {"cpu": 6}),
        ("cpu:2", 1, True, {"cpu:2": 2}),
        ("cpu:1x2", 0, False, {"cpu:1 (1)": 1, "cpu:1 (2)": 1}),
        ("cpu:1x9", 0, False, {"cpu:1 (1)": 1, "cpu:1 (2)": 1, "cpu:1 (3)": 1}),
    ],
)
def test_what_devices_means_for_three_runs(said, gpus, small, expected, machine):
    machine(gpus)
    assert {device.name: device.threads for device in devices_of(said, 3, small)} == expected


def test_few_small_runs_share_all_cores(machine):
    assert [device.threads for device in devices_of("auto", 2, small=True)] == [3, 3]
    assert [device.threads for device in devices_of("auto", 1, small=True)] == [6]


@pytest.mark.parametrize("said", ["", "gpu", "cuda", "cuda:", "cpu:0", "cpu:1x0", "cpu:1,", "auto,cpu", "cuda:0 cpu"])
def test_what_is_no_device_is_refused_with_the_grammar(said):
    with pytest.raises(ValueError, match=r"is no device; name devices with commas between them: cuda:N is a GPU"):
        check_devices(said)


def test_a_gpu_that_is_not_there_is_named_beside_those_that_are(machine):
    machine(2)
    with pytest.raises(ValueError, match="no cuda:2 is here, but cuda:0, cuda:1;"):
        devices_of("cuda:0,cuda:2", 4)


def test_a_run_sees_its_own_device_alone():
    """Also where this process itself sees only some, by number or by name."""
    gpu = Device("cuda:1", 1, 4)
    assert gpu.environment({"A": "b"}) == {"A": "b", "OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "1"}
    assert gpu.environment({"CUDA_VISIBLE_DEVICES": "3,5"})["CUDA_VISIBLE_DEVICES"] == "5"
    assert gpu.environment({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"})["CUDA_VISIBLE_DEVICES"] == "GPU-b"
    assert Device("cpu:2", None, 2).environment({"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == ""


def test_work_is_told_by_method_steps_and_encoder():
    paper = preset_config("paper", "ntu60")
    assert work_of(paper, 40091) == 3 * work_of(replace(paper, method="b1"), 40091)
    longer = replace(paper, optim=replace(paper.optim, epochs=2 * paper.optim.epochs))
    assert work_of(longer, 40091) == 2 * work_of(paper, 40091)
    assert work_of(paper, 40091) > 2 * work_of(paper, 20000)
    assert work_of(paper, 40091) > work_of(preset_config("small", "ntu60"), 40091)


def test_the_last_line_of_what_a_run_prints(tmp_path):
    assert last_line(tmp_path / "none") == ""
    for text, expected in (("", ""), ("a\nb\n\n", "b"), ("a\n 10%\r 20%", "20%"), ("x" * 9999 + "\nend", "end")):
        (tmp_path / "log").write_text(text)
        assert last_line(tmp_path / "log") == expected


def test_off_a_terminal_a_line_says_where_a_run_starts_and_ends(tmp_path, told):
    with Picture(["cpu:1", "cpu:2"], 3) as picture:
        picture.starts("cpu:2", "a", tmp_path / "a.log")
        picture.ends("cpu:2", "done")
        picture.starts("cpu:1", "b", tmp_path / "b.log")
        picture.ends("cpu:1", "failed")
    assert [re.sub("0m0[0-9]s", "TIME", message) for message in told.messages] == [
        "a: starts on cpu:2",
        "a: done after TIME (1 of 3)",
        "b: starts on cpu:1",
        "b: failed after TIME (2 of 3)",
    ]


@pytest.mark.program
@pytest.mark.slow
def test_on_a_terminal_each_device_has_a_line_with_the_last_one_of_its_run(tmp_path):
    """One that fits in the terminal, whatever the run prints."""
    (tmp_path / "a.log").write_text("epoch 3/9  " + "loss " * 100)
    code = f"""
import pathlib
from train.command.picture import Picture
with Picture(["cpu:1 (1)", "cpu:1 (2)"], 3) as picture:
    picture.starts("cpu:1 (2)", "a", pathlib.Path({str(tmp_path / "a.log")!r}))
    picture.draw()
"""
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 70))
    seen = bytearray()

    def read() -> None:
        try:
            while part := os.read(terminal, 4096):
                seen.extend(part)
        except OSError:  # how the end of a terminal reads
            pass

    reader = threading.Thread(target=read)
    reader.start()
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=end, stderr=end, check=True, env=environment)
    os.close(end)
    reader.join()
    os.close(terminal)
    lines = re.split(r"\r\n|\n|\r", re.sub(r"\x1b\[[A-K]", "", seen.decode()))
    drawn = [line.strip() for line in lines]
    assert "0 of 3 runs have ended, 1 run" in drawn
    assert "cpu:1 (1)  -" in drawn
    (line,) = (line for line in drawn if line.startswith("cpu:1 (2)"))
    assert line.startswith("cpu:1 (2)  a  0m00s  epoch 3/9  loss loss") and len(line) <= 70


@pytest.mark.program
@pytest.mark.slow
def test_a_device_whose_process_was_killed_takes_the_next_run(tmp_path):
    """The run that it had has failed, and no other."""
    first, second = tmp_path / "first", tmp_path / "second"
    wait = f"import os, time; open({str(first)!r}, 'w').write(str(os.getppid())); time.sleep(600)"
    touch = f"open({str(second)!r}, 'w')"
    asked = [
        Job("first", "timeit", ("-n1", "-r1", wait), tmp_path / "first.log", lambda: False, work=2),
        Job("second", "timeit", ("-n1", "-r1", touch), tmp_path / "second.log", second.exists, work=1),
    ]

    def kill() -> None:
        while not (first.exists() and first.read_text()):
            time.sleep(0.02)
        os.kill(int(first.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(RuntimeError, match=r"^first failed") as failure:
        run_jobs(asked, "cpu:1")
    assert "second failed" not in str(failure.value) and second.exists()
