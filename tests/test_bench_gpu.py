"""python -m bench.gpu, rehearsed without a GPU; and how it takes failures, hangs, interruptions and wrong arguments."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from once import made_once
from torch.autograd import DeviceType

from bench.gpu import __main__ as command
from bench.gpu import candidates, part_times, report, runner, smoke, training
from bench.gpu.clock import Clock, Quartiles, by_kernel
from bench.gpu.keep import keep
from bench.gpu.recurrent_calls import Split, check_same
from bench.gpu.runner import CUT, DONE, FAILED, PAGE, REPORT, Runner
from bench.gpu.section import Findings
from bench.gpu.sections import SECTIONS, Section
from bench.gpu.sizes import Sizes
from bench.gpu.smoke import judge
from bench.gpu.suite import verdict_of
from kernels.ranges import observe, part

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.program


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory) -> Path:
    """The folder of a rehearsal of all sections."""

    def rehearse(out: Path) -> None:
        words = [sys.executable, "-m", "bench.gpu", "--rehearse", "--out", str(out), "--minutes", "60"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{(out / runner.LOG).read_text()[-5000:]}"

    return made_once(tmp_path_factory, "rehearsal", rehearse)


def state_of(out: Path) -> dict:
    return json.loads((out / REPORT).read_text(encoding="utf-8"))


def test_all_sections_run_and_the_page_shows_what_they_found(rehearsed):
    out, sections = rehearsed, state_of(rehearsed)["sections"]
    assert {letter: s["status"] for letter, s in sections.items()} == {s.letter: DONE for s in SECTIONS}
    found = {letter: s["found"] for letter, s in sections.items()}
    assert all(each["tables"] or each["code"] for each in found.values())
    rows = found["a"]["tables"]["Largest error of each against float64, and its budget"]
    assert len(rows) == 13, "loss and bank step, choices, views, attack, update"
    assert all(row["error"] <= row["budget"] for row in rows)
    rows = found["d"]["tables"]["Shares of their ceilings"]
    assert len(rows) >= 11 and all(row["us_at_least"] > 0 for row in rows)
    code = found["d"]["code"][candidates.LISTING]
    assert code.count("Tiles(sweep_rows=") >= 2 and "# own mixing" in code and "# tiled mixing" in code
    assert any(note.startswith("resumed from step_") for note in found["h"]["notes"])
    numbers = {name: value for each in found.values() for name, value in each["numbers"].items()}
    missing = report.HEADLINES.keys() - numbers.keys()
    assert missing <= {"training_memory", "hours_of_wall_clock"}, "nvidia-smi's, and an epoch's of seconds"
    page = (out / PAGE).read_text(encoding="utf-8")
    assert page.startswith("**A REHEARSAL") and "None of the numbers below means anything" in page.splitlines()[0]
    assert f"| {report.HEADLINES['step_vs_encoder'][0]} | {report.shown(numbers['step_vs_encoder'])} x |" in page
    paths = list(out.rglob("*"))
    assert all(path.is_file() for path in paths) and len(paths) <= 8
    assert {REPORT, PAGE, runner.LOG, "trace.json.gz"} <= {path.name for path in paths}


# --- Wrong arguments


def test_without_a_gpu_or_with_wrong_arguments_nothing_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--out", str(tmp_path / "out")]) == 1
    assert "sees no NVIDIA GPU" in (said := capsys.readouterr().err) and "--rehearse" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit):
        command.main(["--rehearse", "--only", "a", "x", "--out", str(tmp_path)])
    said = "".join(capsys.readouterr()).replace("│", "")
    assert "there is no section x" in " ".join(said.split())
    (tmp_path / "file").touch()
    assert command.main(["--rehearse", "--out", str(tmp_path / "file")]) == 1
    assert "is a file, and a folder is needed" in capsys.readouterr().err


def test_a_report_of_other_conditions_is_neither_gone_on_with_nor_kept(rehearsed, tmp_path, capsys):
    state = state_of(rehearsed)
    state["identity"]["commit"] = "0123456789ab"
    (tmp_path / REPORT).write_text(json.dumps(state))
    assert command.main(["--rehearse", "--out", str(tmp_path)]) == 1
    assert "other conditions (commit 0123456789ab, now" in capsys.readouterr().err
    with pytest.raises(ValueError, match="holds a rehearsal"):
        keep(rehearsed, tmp_path / "docs")
    about = {"rehearsal": False, "card": "NVIDIA H100 80GB HBM3", "torch": "2.11.0+cu130", "triton": "3.6.0"}
    state["identity"] |= about | {"dirty": False}
    (tmp_path / REPORT).write_text(json.dumps(state))
    (tmp_path / PAGE).write_text("")
    name = "nvidia-h100-80gb-hbm3_torch2.11.0-triton3.6.0_0123456789ab"
    assert [path.name for path in keep(tmp_path, tmp_path / "docs")] == [f"{name}.md", f"{name}.json"]
    (tmp_path / REPORT).write_text("{")
    assert command.main(["--rehearse", "--out", str(tmp_path)]) == 1
    assert "is damaged" in capsys.readouterr().err


# --- Sections that misbehave

FINDS = "bench.found.row('Rows', us=1.5)\n    bench.found.number('step_seconds', 0.012)\n    "
BODIES = {
    "good": FINDS + "bench.found.note('all well')",
    "wrong": FINDS + "bench.attempt('the first half', lambda: 1 / 0)\n    bench.found.note('the second half')\n    "
    "raise ValueError('it is broken')",
    "dead": FINDS + "import os; print('last words', flush=True); os.kill(os.getpid(), 9)",
    "hangs": "import subprocess, time\n    child = subprocess.Popen(['sleep', '600'])\n    "
    + "bench.found.number('child', child.pid)\n    "
    + FINDS
    + "time.sleep(600)",
}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A runner of sections with these bodies."""
    for name, body in BODIES.items():
        (tmp_path / f"section_{name}.py").write_text(f"def run(bench):\n    {body}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def make(*names: str, **settings) -> Runner:
        letters = zip("pqrst", names, strict=False)
        sections = [Section(letter, f"Section {name}", f"section_{name}", 1, least=0.1) for letter, name in letters]
        return Runner(tmp_path / "out", sections, rehearsal=True, say=lambda text: None, **settings)

    return make


def test_a_failure_leaves_its_traceback_and_the_next_one_runs(make):
    run = make("wrong", "dead", "good")
    assert run.run(minutes=30) == 1
    sections = state_of(run.out)["sections"]
    assert [s["status"] for s in sections.values()] == [FAILED, FAILED, DONE]
    assert all(s["found"]["tables"] == {"Rows": [{"us": 1.5}]} for s in sections.values()), "what it had found stays"
    page = (run.out / PAGE).read_text(encoding="utf-8")
    assert "ValueError: it is broken" in page
    assert "ZeroDivisionError" in page and "the second half" in page
    assert "ended with -9" in page and "last words" in page
    assert "all well" in page


def test_a_section_that_hangs_is_cut_with_all_that_it_started(make, monkeypatch):
    """Its time is up as soon as it has found something: the clock is put forward."""
    run, late = make("hangs", "good"), SimpleNamespace(by=0.0)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + late.by, sleep=time.sleep)
    monkeypatch.setattr(runner, "time", clock)

    def put_forward(text: str) -> None:
        if "Rows" in text and not late.by:
            late.by = 300.0

    run._say = put_forward
    assert run.run(minutes=10) == 1
    hung, good = state_of(run.out)["sections"].values()
    assert (hung["status"], good["status"]) == (CUT, DONE)
    assert hung["seconds"] >= hung["budget"] > 290 > good["seconds"]
    assert gone(int(hung["found"]["numbers"]["child"]))


def gone(pid: int) -> bool:
    """Whether a process has ended, perhaps in a moment."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):  # before the file is opened, or after
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_an_error_over_its_budget_fails_and_is_in_the_table(tmp_path):
    for error, budget, fits in ((1.0, 2.0, True), (3.0, 2.0, False), (float("nan"), 2.0, False), (1e-9, 0.0, False)):
        found = Findings(tmp_path / "found.json")
        errors, budgets = {"loss": 0.1, "bank": error}, {"loss": 1.0, "bank": budget}
        with contextlib.nullcontext() if fits else pytest.raises(AssertionError, match="a step: bank is off by"):
            judge(SimpleNamespace(found=found), "a step", errors, budgets)
        (row,) = found.tables[smoke.TABLE]
        assert row["worst"] == "bank" and row["budget"] == budget


def test_a_bare_machine_gets_the_versions_that_are_tested():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (names,) = re.findall(r"^BARE +:= (.*)$", makefile, re.MULTILINE)
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert "tyro" in names.split() and set(names.split()) <= pinned


# --- A run that is stopped and goes on


class FakeRun:
    """train.run whose epochs are so short that one ends while the run is being stopped."""

    epochs = 0
    memory = 0.0

    def __init__(self, bench: object) -> None:
        self.resumes, self.words = FakeRun.epochs > 0, ""

    def wait_until(self, reached, seconds: float) -> bool:
        for _ in range(5):
            if reached():
                return True
            self.words = f"resuming from step_7 (epoch {FakeRun.epochs + 1}, step 7)" if self.resumes else ""
            FakeRun.epochs += 1
        return False

    def stop(self) -> int:
        FakeRun.epochs += 1
        return 130

    def rows(self) -> list[dict]:
        return [{"epoch": i, "step": 7 * i, "loss": 1.0, "steps_per_second": 2.0} for i in range(1, FakeRun.epochs + 1)]

    def said(self) -> str:
        return self.words

    def log(self) -> str:
        return "".join(f"2026-11-28 12:00:0{i} epoch {i}/750\n" for i in range(1, FakeRun.epochs + 1))

    def close(self) -> None:
        pass


def test_an_epoch_that_ends_while_a_run_stops_is_not_taken_for_the_resumed_runs(tmp_path, monkeypatch):
    """A rehearsal's epoch takes a tenth of a second: the resumed run was once asked before it had said a word."""
    monkeypatch.setattr(training, "Run", FakeRun)
    monkeypatch.setattr(training, "prepare", lambda bench: None)
    sizes = SimpleNamespace(training_flags=(), training_clips=8, batch=8)
    found = Findings(tmp_path / "found.json")
    training.run(SimpleNamespace(rehearsal=True, left=lambda: 60.0, sizes=sizes, found=found))
    assert "resumed from step_7 in epoch 4, after step 7" in found.notes


# --- What pytest says


def test_verdicts_are_read_once():
    for line, verdict in (
        ("tests/gpu/test_a.py::test_b[zero in one clip] PASSED [  3%]", ("test_b[zero in one clip]", "PASSED")),
        ("tests/gpu/test_a.py::test_b SKIPPED (needs an NVIDIA GPU) [100%]", ("test_b", "SKIPPED")),
        ("[gw3] [  7%] FAILED tests/gpu/test_a.py::test_b[a b] ", ("test_b[a b]", "FAILED")),
        ("FAILED tests/gpu/test_a.py::test_b - AssertionError", None),
        ("tests/gpu/test_a.py::test_b[zero] ", None),
        ("==== 5 skipped in 3.20s ====", None),
    ):
        found = verdict_of(line + "\n")
        assert found == (None if verdict is None else (f"tests/gpu/test_a.py::{verdict[0]}", verdict[1]))


# --- Clocks


def test_kernels_are_found_among_what_a_profiler_has_seen():
    def event(name: str, start: int, us: float, where: DeviceType = DeviceType.CUDA) -> SimpleNamespace:
        return SimpleNamespace(
            name=name, device_type=where, time_range=SimpleNamespace(start=start, elapsed_us=lambda: us)
        )

    events = [
        event("_bank_kernel", 30, 7),
        event("_sweep_kernel", 20, 10),
        event("_sweep_kernel", 40, 12),
        event("_sweep_kernel", 45, 20),
        event("_sweep_kernel", 50, 14),
        event("_bank_kernel", 60, 9),
        event("void at::native::copy", 10, 100),
        event("_sweep_kernel", 5, 500, DeviceType.CPU),
    ]
    found = by_kernel(events, calls=2)
    assert list(found) == ["_sweep_kernel", "_bank_kernel"]
    assert found["_sweep_kernel"] == (pytest.approx(13e-6), 2.0)
    assert found["_bank_kernel"] == (pytest.approx(8e-6), 1.0)


class FakeEvent:
    """An event of a GPU whose clock goes on by a millisecond at every record."""

    now = 0.0

    def __init__(self, enable_timing: bool, external: bool = False) -> None:
        assert enable_timing
        self.external = external

    def record(self) -> None:
        FakeEvent.now += 1.0
        self.at = FakeEvent.now

    def elapsed_time(self, other: FakeEvent) -> float:
        return other.at - self.at


class FakeGraph:
    """Replays for as long as a millisecond for each call that it holds."""

    held: FakeGraph | None = None

    def __init__(self) -> None:
        self.calls = 0

    def reset(self) -> None:
        self.calls = 0

    def replay(self) -> None:
        FakeEvent.now += self.calls
        time.sleep(1e-4)


@contextlib.contextmanager
def fake_capture(graph: FakeGraph, stream: object):
    FakeGraph.held = graph
    yield
    FakeGraph.held = None


@pytest.fixture
def fake_gpu(monkeypatch):
    """As much of torch.cuda as a clock asks for; gives the streams that were made the current one again."""
    restored: list[str] = []
    stream = SimpleNamespace(device=None, wait_stream=lambda other: None)
    fakes = {
        "Event": FakeEvent,
        "CUDAGraph": FakeGraph,
        "graph": fake_capture,
        "Stream": lambda device: stream,
        "current_stream": lambda device=None: stream,
        "stream": lambda _: contextlib.nullcontext(),
        "set_stream": restored.append,
        "synchronize": lambda: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return restored


def captured_call() -> None:
    if FakeGraph.held is not None:
        FakeGraph.held.calls += 1


def test_a_replay_is_divided_by_the_calls_it_holds_and_launches_are_timed_one_by_one(fake_gpu):
    clock = Clock(torch.device("cuda"))
    timing = clock.replayed([captured_call] * 3, seconds=0.01)
    assert timing.how == "graph" and timing.samples >= 5
    # Between the two events of a replay lie its own calls, 3 at least, and one record.
    assert 1e-3 < timing.median <= (1 + 1 / 3) * 1e-3 + 1e-9
    assert fake_gpu, "the stream is put back after a capture"
    assert clock.launched([captured_call], seconds=0.0, fewest=3) == Quartiles(1e-3, 1e-3, 1e-3, 3, "events")
    timing = Quartiles.of([5.0, 1.0, 2.0, 3.0, 4.0], "events")
    assert (timing.low, timing.median, timing.high, timing.cells("ms")["ms"]) == (2.0, 3.0, 4.0, 3000)


def test_what_cannot_be_captured_is_timed_as_launched(fake_gpu):
    def refuses() -> None:
        if FakeGraph.held is not None:
            FakeGraph.held = None
            raise RuntimeError("operation not permitted when stream is capturing")

    clock = Clock(torch.device("cuda"))
    with pytest.raises(RuntimeError, match="not permitted"):
        clock.replayed([refuses], 0.0)
    assert len(fake_gpu) == 1, "the stream is put back after a capture that failed"
    assert clock.best([refuses], 0.0).how == "events"


@pytest.mark.parametrize("captured", [False, True])
def test_parts_are_timed_where_they_run_or_where_they_are_captured(captured, monkeypatch, fake_gpu):
    capturing = iter([False, True] if captured else [True, False])
    state = SimpleNamespace(capturing=False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    watch = part_times.PartWatch(on_gpu=True, captured=captured)
    with observe(watch):
        for state.capturing in capturing:
            with part("mc"):
                if state.capturing == captured:
                    with part("bank"):
                        pass
            with part("query"):
                pass
    assert watch.seconds() == pytest.approx({"query": 1e-3, "mc": 3e-3, "bank": 1e-3})
    assert all(begin.external == captured for _, begin, _ in watch.spans)


# --- What is compared


def test_candidates_are_of_todays_fields():
    from kernels.tiles import tiles

    for changes in (*candidates.SWEEP, *candidates.BANK):
        assert changes.keys() <= vars(tiles("hopper", 128, "bf16x3", "own")).keys()


def test_candidates_are_compiled_ahead():
    sizes = Sizes(batch=16, bank=256, dim=16)
    tried = [("own", {}), ("own", {"no_such_field": 1})]
    assert candidates.main(candidates.job(sizes, "bf16x3", "cuda:90", tried)) >= 4, "launches of one of them"


def test_the_split_net_is_the_net():
    nets = {"one": torch.nn.GRU(5, 7, 2, bidirectional=True), "split": Split(5, 7, 2)}
    x = torch.randn(6, 3, 5)
    check_same(nets, x)

    class Wrong(Split):
        def forward(self, x):
            return super().forward(x.flip(0))

    with pytest.raises(AssertionError, match="something else"):
        check_same(nets | {"split": Wrong(5, 7, 2)}, x)
