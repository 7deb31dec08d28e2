"""--profile on a GPU: a snapshot of its memory, and the time of each part there."""

from __future__ import annotations

import pickle

import on_gpu
import pytest
import torch
from on_gpu import needs_gpu
from test_graphed_step import pretraining

from kernels.ranges import PARTS, part
from train.engine.profiling import MEMORY, OPERATORS, SNAPSHOT, TRACE, WARM_UP, StepProfiler

pytestmark = [needs_gpu, pytest.mark.gpu, pytest.mark.usefixtures("nothing_compiled")]
FILES = {TRACE, OPERATORS, MEMORY, SNAPSHOT}


def rows_of_parts(folder) -> dict[str, list[float]]:
    """times a step, CPU ms a step, GPU ms a step."""
    parts = (folder / OPERATORS).read_text().split("\n\n")[0].splitlines()[1:]
    return {row.split()[0]: [float(value) for value in row.split()[1:]] for row in parts}


def test_backward_passes_count_to_their_part(tmp_path):
    """On a GPU autograd has a thread of its own, unless somebody listens."""
    profiler = StepProfiler(2, tmp_path, on_gpu.DEVICE)
    x = torch.randn(512, 512, device=on_gpu.DEVICE, requires_grad=True)
    for _ in range(WARM_UP + 2):
        with part("query"):
            y = (x @ x).sum()
        with part("backward"):
            y.backward()
        profiler.step()
    profiler.close()
    assert {path.name for path in tmp_path.iterdir()} == FILES
    rows = rows_of_parts(tmp_path)
    assert list(rows) == ["query", "backward"]
    assert rows["backward"][2] > rows["query"][2] > 0, "two products against one"
    with (tmp_path / SNAPSHOT).open("rb") as file:
        snapshot = pickle.load(file)
    assert snapshot["segments"]
    assert any(snapshot["device_traces"])


def test_parts_of_a_run(data_root, tmp_path):
    """AdamW, since the kernel that does SGD follows with the key encoder too, in the part of the optimizer."""
    flags = ("--profile", "2", "--cuda-graph", "off", "--epochs", "4", "--optimizer", "adamw")
    run = pretraining(data_root, tmp_path / "run", *flags)
    run.folder.mkdir()
    run.run()
    folder = run.folder / "profile"
    assert {path.name for path in folder.iterdir()} == FILES
    rows = rows_of_parts(folder)
    assert set(rows) == set(PARTS)
    assert all(gpu_ms > 0 for _, _, gpu_ms in rows.values())


@pytest.mark.parametrize("profile", ["0", "2"])
def test_a_profile_changes_no_weight(data_root, tmp_path, profile):
    plain, profiled = (
        pretraining(data_root, tmp_path / name, "--profile", steps) for name, steps in (("a", "0"), ("b", profile))
    )
    for run in (plain, profiled):
        run.folder.mkdir()
        run.run()
    for ours, theirs in zip(plain.stepper.state(), profiled.stepper.state(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_replay_names_no_part(data_root, tmp_path):
    run = pretraining(data_root, tmp_path / "run", "--profile", "2")
    run.folder.mkdir()
    run.run()
    assert "--cuda-graph off names them" in (run.folder / "profile" / OPERATORS).read_text()
