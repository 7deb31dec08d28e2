"""--profile: the files that it writes, and that the steps which it records stay as they are."""

from __future__ import annotations

import copy
import gzip
import json
import logging

import pytest
import torch
from torch.nn import functional as F

import fastmc
from kernels.ranges import part
from train.engine import profiling
from train.engine.profiling import MEMORY, OPERATORS, PARTS_FILE, SNAPSHOT, TRACE, WARM_UP, StepProfiler

CPU = torch.device("cpu")
RECORDED = 3


class Steps:
    """A training step with parts, on a net small enough to be quick and with state enough to be disturbed."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
        self.key = copy.deepcopy(self.net)
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)
        self.losses: list[float] = []

    def run(self) -> None:
        with part("augment"):
            x = torch.randn(5, 6)
        with part("query"):
            loss = F.mse_loss(self.net(x), x.repeat(1, 2)[:, :8])
        self.optimizer.zero_grad()
        with part("backward"):
            loss.backward()
        with part("optimizer"):
            self.optimizer.step()
        self.losses.append(loss.item())

    def state(self) -> list[torch.Tensor]:
        return [*self.net.state_dict().values(), torch.get_rng_state()]


def run(steps: int, folder, recorded: int = RECORDED) -> Steps:
    training, profiler = Steps(), StepProfiler(recorded, folder, CPU)
    for _ in range(steps):
        training.run()
        profiler.step()
    profiler.close()
    return training


@pytest.fixture
def lines(monkeypatch):
    """What is logged; the program's logger does not propagate once it has been started."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append((record.levelno, record.getMessage()))
    monkeypatch.setattr(profiling.log, "handlers", [handler])
    monkeypatch.setattr(profiling.log, "level", logging.INFO)
    profiling.log.manager._clear_cache()
    yield said
    profiling.log.manager._clear_cache()


def trace(folder) -> list[dict]:
    return json.loads(gzip.decompress((folder / TRACE).read_bytes()))["traceEvents"]


def test_the_recorded_steps_are_those_after_the_warm_up(tmp_path):
    profiler = StepProfiler(2, tmp_path, CPU)
    for i in range(WARM_UP + 4):
        torch.zeros(3).add_(1) if WARM_UP <= i < WARM_UP + 2 else torch.zeros(3).mul_(1)
        profiler.step()
    names = [event.get("name") for event in trace(tmp_path)]
    assert names.count("aten::add_") == 2
    assert "aten::mul_" not in names


def test_files_of_a_run(tmp_path, lines):
    """Parts and operators as often as they ran; allocations, one by one."""
    folder = tmp_path / "run" / "profile"
    run(WARM_UP + RECORDED + 4, folder)
    assert {path.name for path in folder.iterdir()} == {TRACE, OPERATORS, PARTS_FILE, MEMORY}
    ((level, line),) = lines
    assert level == logging.INFO
    assert line.startswith(f"profiled 3 steps: {TRACE}, {OPERATORS}, {PARTS_FILE}, {MEMORY} in {folder}; open the ")
    names = [event.get("name") for event in trace(folder)]
    assert {names.count(n) for n in ("augment", "query", "backward", "optimizer", "aten::mse_loss")} == {RECORDED}
    assert "attack" not in names and "[memory]" in names
    parts, operators = (folder / OPERATORS).read_text().split("\n\n", 1)
    head, *rows = parts.splitlines()
    assert head.split("  ")[0] == "part"
    assert "GPU" not in parts
    assert [row.split()[:2] for row in rows] == [[n, "1"] for n in ("augment", "query", "backward", "optimizer")]
    assert all(float(row.split()[2]) > 0 for row in rows)
    written = json.loads((folder / PARTS_FILE).read_text())
    assert written["steps"] == RECORDED
    assert [(p["name"], f"{p['cpu']:.3f}") for p in written["parts"]] == [(r.split()[0], r.split()[2]) for r in rows]
    assert all((p["times"], p["gpu"], p["within"]) == (1, None, None) for p in written["parts"])
    assert "aten::addmm" in operators
    assert "Self CPU Mem" in (folder / MEMORY).read_text()


def test_a_part_is_told_for_each_part_that_it_ran_in(tmp_path):
    """The key twice in a step: by itself, and within the attack, an operator between them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        for _ in range(2):
            with part("attack"), torch.profiler.record_function("what is no part"), part("key"):
                torch.zeros(3).add_(1)
            with part("key"):
                torch.zeros(3)
    found = {(each.name, each.within): each for each in profiling.parts_of(recorded, 2, on_gpu=False)}
    assert list(found) == [("attack", None), ("key", "attack"), ("key", None)]
    assert {each.times for each in found.values()} == {1}
    assert found["attack", None].cpu > found["key", "attack"].cpu > 0
    (row,) = [line.split() for line in profiling._table(list(found.values()), False).splitlines() if "key" in line]
    both = sum(found["key", within].cpu for within in ("attack", None))
    assert row[1] == "2" and float(row[2]) == pytest.approx(both, abs=1e-3)


def test_no_number_of_the_training_changes(tmp_path):
    steps = WARM_UP + RECORDED + 4
    plain, profiled = run(steps, tmp_path / "plain", recorded=0), run(steps, tmp_path / "profiled")
    assert profiled.losses == plain.losses
    assert len(set(plain.losses)) == steps
    assert all(torch.equal(a, b) for a, b in zip(plain.state(), profiled.state(), strict=True))


def test_without_steps_nothing_is_recorded(tmp_path, monkeypatch, lines):
    monkeypatch.setattr(profiling, "profile", lambda **_: pytest.fail("a profiler was made"))
    run(3, tmp_path / "profile", recorded=0)
    assert not list(tmp_path.iterdir())
    assert not lines


def test_a_run_that_ends_while_steps_are_recorded_leaves_those(tmp_path, lines):
    run(WARM_UP + 2, tmp_path)
    assert [event.get("name") for event in trace(tmp_path)].count("query") == 2
    assert lines[0][1].startswith("profiled 2 steps: ")
    assert len(lines) == 1


@pytest.mark.parametrize("steps", [0, WARM_UP])
def test_a_run_that_ends_before_says_so(tmp_path, lines, steps):
    run(steps, tmp_path / "profile")
    assert not list(tmp_path.iterdir())
    assert lines == [
        (
            logging.WARNING,
            f"nothing was profiled: this run ended after {steps} steps, of which the first {WARM_UP} are warm-up",
        )
    ]
    assert not torch.autograd.profiler._is_profiler_enabled


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_on_cuda_the_memory_of_all_steps_is_recorded_and_written(tmp_path, monkeypatch, lines):
    """With a stand-in for the recorder of PyTorch's CUDA allocator."""
    calls = []
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda **settings: calls.append(("record", settings)))
    monkeypatch.setattr(memory, "_dump_snapshot", lambda path: calls.append(("dump", path)))
    training, profiler = Steps(), StepProfiler(RECORDED, tmp_path, torch.device("cuda"))
    assert calls == [("record", {"stacks": "python"})]
    for _ in range(WARM_UP + RECORDED + 1):
        training.run()
        profiler.step()
    profiler.close()
    assert calls[1:] == [("dump", str(tmp_path / SNAPSHOT)), ("record", {"enabled": None})]
    assert SNAPSHOT in lines[0][1]
    assert "GPU ms a step" in (tmp_path / OPERATORS).read_text()


@pytest.mark.parametrize("steps", [WARM_UP - 1, WARM_UP + 1, WARM_UP + RECORDED + 2])
def test_an_attached_profiler_is_told_where_the_steps_begin_and_end(tmp_path, monkeypatch, lines, steps):
    told = []
    monkeypatch.setattr(profiling, "heard_by_nvtx", lambda: True)
    monkeypatch.setattr(profiling, "profile", lambda **_: pytest.fail("a second profiler was made"))
    for module, name in ((torch.cuda, "synchronize"), (torch.cuda.profiler, "start"), (torch.cuda.profiler, "stop")):
        monkeypatch.setattr(module, name, lambda name=name: told.append(name))
    profiler = StepProfiler(RECORDED, tmp_path / "profile", torch.device("cuda"))
    for i in range(steps):
        told.append(i)
        profiler.step()
    profiler.close()
    begin, end = ["synchronize", "start"], ["synchronize", "stop"]
    want = [*range(WARM_UP), *begin, *range(WARM_UP, WARM_UP + RECORDED), *end, *range(WARM_UP + RECORDED, steps)]
    if steps < WARM_UP + RECORDED:
        want = [*range(WARM_UP), *begin, *range(WARM_UP, steps), *end] if steps >= WARM_UP else list(range(steps))
    assert told == want
    assert not list(tmp_path.iterdir())
    recorded = min(max(steps - WARM_UP, 0), RECORDED)
    assert any("nothing was profiled" in line for _, line in lines) == (recorded == 0)
    assert any(line.endswith(f"was told of {recorded} steps") for _, line in lines) == (steps >= WARM_UP)


def test_a_replay_without_parts_is_explained(tmp_path):
    profiler = StepProfiler(1, tmp_path, CPU)
    for _ in range(WARM_UP + 1):
        torch.zeros(3)
        profiler.step()
    assert "--cuda-graph off names them" in (tmp_path / OPERATORS).read_text()


def test_what_triton_launches_counts_to_its_part(tmp_path):
    """A GPU's kernels belong to the innermost operator that was running, and a part is none: it is an annotation of the
    user's. So every launch stands in an operator, and the part has the time of that."""
    rows = torch.nn.functional.normalize(torch.randn(4, 6, 8), dim=2)
    bank = torch.randn(20, 8)
    with torch.profiler.profile() as recorded, part("mc"):
        fastmc.mc_step_(bank, torch.zeros_like(bank), *rows, 0.3)
    (mc,) = [event for event in recorded.events() if event.name == "mc"]
    (launches,) = [event for event in recorded.events() if event.name == "fastmc::contrast_step_"]
    function, annotation = 0, 7  # of c10's RecordScope
    assert (mc.scope, launches.scope) == (annotation, function)
    assert mc.time_range.start <= launches.time_range.start <= launches.time_range.end <= mc.time_range.end
    mc.use_device = launches.use_device = "cuda"
    launches.append_kernel("_sweep_kernel", 0, 70)
    assert mc.device_time_total == 70
