"""bench.contention: what it makes of its turns; that its processes do what they are said to do."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import contention, headlines
from bench.contention import HERE, IDLE, LOADS, ONE_BUSY, TWO_BUSY, Contention, Loads, busy, take_turn, text
from bench.machine import ROOT, Neighbours
from bench.stepping import Stint, work

STEP_SECONDS = {IDLE: (0.1, 0.1, 0.2), ONE_BUSY: (0.5, 0.25, 0.2), TWO_BUSY: (1.0, 1.0, 1.0)}


def loads(slower: float = 1.0, others: float = 0.0) -> Loads:
    """Three turns of each load, of 30 steps."""
    found = Loads()
    for load, times in STEP_SECONDS.items():
        for seconds in times:
            found.take(load, Stint(30, 30 * slower * seconds, 30 * 0.4, 1.0), others if load == ONE_BUSY else 0.0)
    return found


def test_the_share_is_of_medians_and_quartiles_bound_it():
    share, low, high = loads().ratio(IDLE, ONE_BUSY)
    assert share == pytest.approx(0.1 / 0.25)
    assert (low, high) == pytest.approx((0.1 / 0.375, 0.15 / 0.225))


def test_the_table_says_rates_shares_and_who_was_disturbed():
    settings = Contention(rounds=3)
    lines = text(settings, {HERE: loads(), "../old": loads(slower=2.0, others=0.5)}).splitlines()
    assert lines[0] == "preset tiny, medians of 3 turns of 3 s"
    cells = {line.split("  ")[0]: line.split()[-7:] for line in lines[2:8]}
    assert cells[f"{HERE}, {IDLE}"] == ["10.00", "6.67", "to", "10.00", "100%", "0.400", "0.00"]
    assert cells[f"{HERE}, {ONE_BUSY}"] == ["4.00", "2.67", "to", "4.44", "40%", "0.400", "0.00"]
    assert cells[f"../old, {TWO_BUSY}"] == ["0.50", "0.50", "to", "0.50", "10%", "0.400", "0.00"]
    assert lines[8] == f"{IDLE}: 2.00x as fast as ../old [1.33-3.00]"
    assert lines[11:] == [f"disturbed: ../old, {ONE_BUSY}: others used 0.50 cores meanwhile"]


def test_a_stint_has_a_step_at_least_and_one_before_its_clock_starts():
    made = []
    stint = work(lambda: made.append(1), 0.0)
    assert stint.steps == 1 and len(made) == 2


def test_what_the_training_process_used_is_not_others(monkeypatch):
    """Of three cores that were busy for a second, it used two and a half, and others half a core."""

    class Run:
        def work(self, seconds: float) -> Stint:
            return Stint(1, 1.0, 2.0, 0.5)

    clock = iter((10.0, 11.0))
    monkeypatch.setattr(contention, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    monkeypatch.setattr(contention, "watch_neighbours", lambda: nullcontext(Neighbours(3.0)))
    stint, others = take_turn(Run(), 0, 1.0)
    assert stint.steps == 1 and others == pytest.approx(0.5)


@pytest.mark.program
def test_busy_cores_are_busy_one_each_and_their_processes_end():
    with busy(2) as started:
        cores = [os.sched_getaffinity(process.pid) for process in started]
        assert all(len(core) == 1 and process.poll() is None for core, process in zip(cores, started, strict=True))
        assert len({min(core) for core in cores}) == min(2, len(os.sched_getaffinity(0)))
    assert all(process.poll() is not None for process in started)


@pytest.mark.program
def test_a_true_training_process_takes_its_turns(monkeypatch):
    """The shortest that there are."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = Contention(rounds=3, seconds=0.0, progress=False)
    (found,) = contention.measure(settings).values()
    assert {load: len(measured.seconds) for load, measured in found.found.items()} == dict.fromkeys(LOADS, 3)
    assert all(seconds > 0 for load in LOADS for seconds in found.processor[load])


def test_another_checkout_takes_turns_too(monkeypatch):
    """Both in every load, as often."""
    started, worked = [], []

    class Process:
        def __init__(self, checkout: Path, preset: str) -> None:
            started.append((checkout, preset))
            self.checkout = checkout

        def work(self, seconds: float) -> Stint:
            worked.append(self.checkout)
            return Stint(1, 1.0, 1.0, 0.0)

        def close(self) -> None:
            started.remove((self.checkout, "small"))

    monkeypatch.setattr(contention, "Training", Process)
    monkeypatch.setattr(contention, "busy", lambda processes: nullcontext())
    other = ROOT.parent
    found = contention.measure(Contention("small", rounds=4, against=other, progress=False))
    assert list(found) == [HERE, str(other)] and not started
    assert worked.count(ROOT) == worked.count(other) == 4 * len(LOADS)
    assert worked != sorted(worked)


def test_the_headline_is_the_share(monkeypatch):
    monkeypatch.setattr(contention, "measure", lambda settings: {HERE: loads()})
    report = headlines.beside_others(headlines.Settings())
    (headline,) = report.headlines
    assert headline.key == "busy_core_share" and headline.unit == " %" and headline.better == "higher"
    assert headline.value == pytest.approx(40)
