"""What bench/ computes beside timings; that its gates fail, and that its tools count what they say."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_small_store
from torch.utils.flop_counter import FlopCounterMode

from bench import (
    accuracy,
    contention,
    headlines,
    machine,
    measure,
    memory,
    parity,
    plot,
    providers,
    summary,
    supervised,
)
from bench.accuracy import raw_accuracy_of
from bench.measure import Measurement, Race, Result, Timing
from bench.parity import ParityError, exact_outputs
from bench.providers import MIXES, PROVIDERS, Call, Case, Inputs, Outputs, Provider, draw
from bench.stepping import Stint
from bench.supervised import supervised_accuracy
from fastmc.config import preset_config
from fastmc.data.store import PackedStore
from fastmc.encoders.bigru import BiGRUConfig
from fastmc.reference import bank as reference_bank
from fastmc.reference import contrast as reference
from train.command import launch
from train.command.parse import parse

SMALL = {"batch": 7, "bank": 130, "dim": 24}
QUICK = Timing(rounds=4, threads=1)
TIMED = ("reference", "algebraic", "torch", "cpp", "products")
RIGHT = PROVIDERS["algebraic"]
KEYS = ("mc_own_vs_reference", "mc_tiled_vs_reference", "mc_vs_algebraic", "mc_vs_products", "mc_extra_mb")
KEYS += ("views_vs_numpy", "views_vs_tuned_numpy", "data_share_of_step")
KEYS += ("step_own_vs_reference", "step_tiled_vs_reference", "step_own_vs_stepwise", "step_tiled_vs_stepwise")
KEYS += ("step_vs_encoder", "tiny_step_vs_products", "small_step_vs_products", "busy_core_share")


def accuracies(value: float) -> dict:
    return {"knn_top1": value, "linear_top1": value + 1, "linear_top5": value + 2}


@pytest.mark.slow
def test_accuracy_page_has_a_table_a_set_with_means_and_single_values(data_root, tmp_path, monkeypatch, capsys):
    def run_jobs(jobs, devices, small):
        assert (devices, small) == ("auto", True)
        for number, job in enumerate(job for job in jobs if job.module == "train.run"):
            folder = Path(job.arguments[job.arguments.index("--out") + 1])
            folder.mkdir(parents=True)
            report = accuracies(10.0 * number) | {"random_init": accuracies(1.0)}
            (folder / "report.json").write_text(json.dumps(report))
        for number, job in enumerate(job for job in jobs if job.module == "bench.supervised"):
            assert supervised.main(job.arguments) == 0
            kept = (
                Path(job.arguments[job.arguments.index("--keep") + 1]) / f"tiny-supervised-seed{1 + number // 2}.json"
            )
            kept.write_text(json.dumps(json.loads(kept.read_text()) | {"top1": 70.0 + number}))

    monkeypatch.setattr(launch, "run_jobs", run_jobs)
    monkeypatch.setattr(accuracy, "is_finished", lambda config, data: (config.out / "report.json").exists())
    write_small_store(tmp_path / "root" / "a")
    write_small_store(tmp_path / "root" / "b", clips=36)
    words = ["--datasets", "a", "b", "--methods", "b1", "a2mc", "--seeds", "1", "2", "--out", str(tmp_path / "out")]
    assert accuracy.main([*words, "--data-root", str(tmp_path / "root"), "--linear-epochs", "2"]) == 0
    page = (tmp_path / "out" / "accuracy.md").read_text()
    assert capsys.readouterr().out.endswith(page)  # after what is said of kernels that are compiled for the first time
    first, second = page.split("b xsub: 18 training clips, 18 test clips, 3 classes")
    lines = first.splitlines()
    assert lines[0] == "a xsub: 24 training clips, 24 test clips, 3 classes"
    assert lines[2] == "| method | kNN top-1 | linear top-1 | linear top-5 |"
    assert lines[4].startswith("| raw coordinates | ")
    assert lines[5] == "| tiny, untrained | 1.0 (1.0, 1.0) | 2.0 (2.0, 2.0) | 3.0 (3.0, 3.0) |"
    assert lines[6].startswith("| tiny, b1 | 20.0 (0.0, 40.0) |") and lines[7].startswith(
        "| tiny, a2mc | 30.0 (10.0, 50.0)"
    )
    assert "| tiny, b1 | 40.0 (20.0, 60.0) |" in second
    assert accuracy.main(["--dataset", "a"]) == 1
    assert "--dataset differs from run to run: give --datasets" in capsys.readouterr().err

    fast = ["--data-root", str(tmp_path / "root"), "--linear-epochs", "2", "--frames", "8", "--encoder", "1x8"]
    more = ["--epochs", "1", "--batch-size", "4", "--supervised", "--variants", "lr=0.3 no-input-norm"]
    other = [word.replace(str(tmp_path / "out"), str(tmp_path / "more")) for word in words]
    assert accuracy.main([*other, *fast, *more]) == 0
    rows = [line[2:] for line in (tmp_path / "more" / "accuracy.md").read_text().splitlines()]
    assert rows[8].startswith("tiny, a2mc | ") and rows[9].startswith("tiny, a2mc lr=0.3 no-input-norm | ")
    assert rows[10] == "tiny, supervised | – | 71.0 (70.0, 72.0) | – |"  # of the first set
    assert accuracy.main([*other, *fast, *more, "--collect", "--lr", "0.5"]) == 0
    assert "| tiny, supervised | not run | not run | not run |" in capsys.readouterr().out


@pytest.mark.slow
def test_raw_accuracy_of_the_small_store(data_root):
    """Its classes are frequencies, which raw coordinates tell apart better than chance."""
    config = replace(parse(["--frames", "32", "--linear-epochs", "5"]), protocol="xsub")
    found = raw_accuracy_of(PackedStore.open(data_root / "small"), config)
    assert 100 / 3 < found["knn_top1"] < 100
    assert found["linear_top5"] == 100


@pytest.mark.slow
def test_supervised_encoder_learns_classes_that_are_plain_to_see(tmp_path):
    flags = ["--frames", "8", "--encoder", "1x16", "--batch-size", "8", "--epochs", "30", "--milestones", "25"]
    config = replace(parse([*flags, "--jitter-joints", "0", "--shear", "0.1", "--lr", "1e-2"]), protocol="xsub")
    store = write_small_store(tmp_path / "lifted", lift=1.0)
    found = supervised_accuracy(config, store)
    assert found > 80  # chance is 33
    assert found == supervised_accuracy(config, store)


@pytest.mark.slow
def test_supervised_accuracies_that_are_kept_are_read(tmp_path, capsys):
    write_small_store(tmp_path / "data" / "small")
    flags = ["--dataset", "small", "--data-root", str(tmp_path / "data"), "--frames", "8", "--encoder", "1x8"]
    flags += [
        "--batch-size",
        "4",
        "--epochs",
        "1",
        "--preset",
        "tiny",
        "--seeds",
        "0",
        "--keep",
        str(tmp_path / "kept"),
    ]
    kept = tmp_path / "kept" / "tiny-supervised-seed0.json"
    assert supervised.main(flags) == 0
    found = json.loads(kept.read_text(encoding="utf-8"))
    kept.write_text(json.dumps(found | {"top1": 12.5}), encoding="utf-8")
    assert supervised.main(flags) == 0
    assert "supervised top-1: 12.5 (12.5)" in capsys.readouterr().out
    assert supervised.main([*flags, "--lr", "0.1"]) == 0  # other settings
    assert json.loads(kept.read_text(encoding="utf-8"))["config"]["optim"]["lr"] == 0.1


@pytest.fixture
def quiet(monkeypatch):
    """Nobody else is at work, whatever this machine does, and nobody waits to see it."""
    monkeypatch.setattr(machine, "_time_of_others", lambda: 0.0)
    monkeypatch.setattr(summary, "LOOK", 0.0)


@pytest.mark.parametrize(("mix", "work"), [("own", "loss"), ("tiled", "step")])
def test_providers_pass_the_gate(mix, work):
    race = Race(Case(work, mix, **SMALL), TIMED, QUICK)
    assert [found.skipped for found in race.result.providers.values()] == [None] * 5
    assert all(0 <= race.result.providers[name].budget < 0.5 for name in TIMED[:4])


@pytest.mark.parametrize("mix", MIXES)
def test_the_truth_is_the_reference(mix, monkeypatch):
    """Samples one at a time, and the algebraic form that stands in for large cases: equal to the reference as it is."""
    case = Case("step", mix, **SMALL)
    x = draw(case).to("cpu", torch.float64)
    queries = [f.requires_grad_() for f in (x.f1, x.f2, x.f3)]
    loss = reference.mc_loss(x.f0, *queries, x.bank, x.mixing, temperature=0.07, mix=mix)
    gradients = torch.autograd.grad(loss, queries)
    settings = {"temperature": 0.03, "lr": 3.0, "momentum_factor": 0.9, "weight_decay": 1e-4, "mix": mix}
    bank, momentum = reference_bank.bank_step(x.bank, x.momentum, *x.features, x.mixing, **settings)
    expected = dict(zip(("loss", "df1", "df2", "df3"), (loss.detach(), *gradients), strict=True))
    expected |= {"bank": bank - x.bank, "momentum": momentum}
    literal = exact_outputs(case)
    monkeypatch.setattr(parity, "LITERAL", 0)
    parity._exact_gradients.cache_clear()
    algebraic = exact_outputs(case)
    parity._exact_gradients.cache_clear()
    for name, exact in expected.items():
        for found in (literal, algebraic):
            assert (found[name] - exact).abs().max() < 1e-13 * max(1, exact.abs().max()), name


def wrong_provider(spoil: Callable[[list[Any], Inputs], None], before: Callable[[Inputs], Inputs] = lambda x: x) -> Any:
    """The algebraic provider on other inputs, or with its outputs (a list) and the bank spoilt after each call."""

    def bind(case: Case, x: Inputs) -> Call:
        def call() -> Outputs:
            outputs = list(RIGHT.bind(case, before(x))())
            spoil(outputs, x)
            return tuple(outputs)

        return call

    return replace(RIGHT, bind=bind)


def nothing(outputs: list[Any], x: Inputs) -> None:
    pass


def one_element(i: int) -> Callable[[list[Any], Inputs], None]:
    def spoil(outputs: list[Any], x: Inputs) -> None:
        outputs[i].view(-1)[3] += 1e-3 * outputs[i].abs().max()

    return spoil


def not_a_number(outputs: list[Any], x: Inputs) -> None:
    outputs[3][0, 0] = float("nan")


WRONG: dict[str, Provider] = {
    "df2": wrong_provider(one_element(2)),
    "df3": wrong_provider(one_element(3)),
    "not a number": wrong_provider(not_a_number),
    "views swapped": wrong_provider(nothing, lambda x: replace(x, f1=x.f2, f2=x.f1)),
    "another mixing": wrong_provider(nothing, lambda x: replace(x, mixing=x.mixing.flip(0))),
    "bank not updated": wrong_provider(nothing, lambda x: replace(x, bank=x.bank.clone())),
    "momentum forgotten": wrong_provider(nothing, lambda x: replace(x, momentum=torch.zeros_like(x.momentum))),
}


@pytest.mark.parametrize(("name", "mix"), [(name, MIXES[i % 2]) for i, name in enumerate(WRONG)])
def test_no_number_from_a_wrong_provider(mix, name, monkeypatch, capsys):
    right = wrong_provider(nothing)
    monkeypatch.setitem(PROVIDERS, "algebraic", right)
    Race(Case("step", mix, **SMALL), ["algebraic"], QUICK)
    monkeypatch.setitem(PROVIDERS, "algebraic", WRONG[name])
    with pytest.raises(ParityError, match="algebraic is wrong, so there are no numbers"):
        measure.measure(Case("step", mix, **SMALL), TIMED, QUICK, memory=False)
    assert capsys.readouterr().out == ""


def test_the_summary_ends_without_a_number_too(monkeypatch, capsys, tmp_path, quiet):
    monkeypatch.setitem(PROVIDERS, "torch", replace(WRONG["df2"], name="torch"))
    assert summary.main([*TINY, "--results", str(tmp_path), "--json"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "torch is wrong" in printed.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("work", "products"), [("loss", 2), ("step", 3)])
def test_the_floor_is_the_products_and_nothing_else(work, products):
    case = Case(work, "own", **SMALL)
    x = draw(case)
    call = PROVIDERS["products"].bind(case, x)
    with FlopCounterMode(display=False) as counter:
        similarities, keys, rows = call()
    assert counter.get_total_flops() == products * 2 * 3 * case.batch * case.bank * case.dim
    stacked = torch.cat([x.f1, x.f2, x.f3])
    torch.testing.assert_close(similarities, x.bank @ stacked.T)
    torch.testing.assert_close(keys, similarities.T @ x.bank)
    torch.testing.assert_close(rows, similarities @ stacked if work == "step" else torch.zeros_like(rows))
    assert memory.peak_allocated_bytes(call) == 0


def test_everybody_takes_turns():
    race = Race(Case("loss", "own", **SMALL), TIMED, Timing(rounds=10, threads=1))
    race._rounds = {"reference": 3, "algebraic": 10, "torch": 7, "cpp": 5, "products": 10}
    rounds = [race.turns(i) for i in range(10)]
    assert Counter(name for names in rounds for name in names) == race._rounds
    assert all(len(set(names)) == len(names) for names in rounds)
    assert len({tuple(names) for names in rounds}) > 3
    where = [i for i, names in enumerate(rounds) if "reference" in names]
    assert max(b - a for a, b in pairwise(where)) <= 4


def test_a_call_starts_from_the_same_bank():
    race = Race(Case("step", "own", **SMALL), TIMED, QUICK)
    before = race.x.bank.clone()
    for _ in range(3):
        race.take("torch")
    assert not torch.equal(race.x.bank, before)
    race.restore()
    assert torch.equal(race.x.bank, draw(race.result.case).bank)
    assert torch.equal(race.x.momentum, draw(race.result.case).momentum)


def test_who_cannot_take_part_is_left_out_with_a_reason(monkeypatch):
    case = Case("step", "own", **SMALL)
    small = replace(QUICK, memory_limit_gb=4e-9 * 7 * 7 * 130 * 24 * 0.9)
    monkeypatch.setattr(providers.shutil, "which", lambda name: None)
    result = measure.measure(case, tuple(PROVIDERS), small, memory=False)
    reasons = {name: found.skipped for name, found in result.providers.items() if found.skipped}
    assert list(reasons) == ["reference", "compiled", "triton"]
    assert "the limit is" in reasons["reference"]
    assert "C++ compiler" in reasons["compiled"]
    assert "GPU" in reasons["triton"]
    text = measure.table(result)
    assert all(reason in text for reason in reasons.values())
    assert result.ratio("reference", "torch") is None and result.ratio("algebraic", "torch") is not None


MEGABYTES_50 = 50_000_000


def touched() -> None:
    torch.ones(MEGABYTES_50 // 4).sum()


@pytest.mark.slow
@pytest.mark.skipif(not memory.CLEAR_REFS.exists(), reason="the peak of resident memory is read as Linux offers it")
def test_memory_of_a_known_temporary():
    touched()
    assert memory.extra_resident_bytes(touched) == pytest.approx(MEGABYTES_50, rel=0.05)
    assert memory.extra_resident_bytes(touched) == pytest.approx(MEGABYTES_50, rel=0.05)  # the peak is set back
    assert memory.extra_resident_bytes(lambda: None) < MEGABYTES_50 / 10


TINY = ["--batch", "5", "--bank", "40", "--dim", "8", "--rounds", "3", "--threads", "1", "--no-progress"]
TINY += ["--providers", *TIMED, "--preset", "tiny", "--encoder", "1x8", "--frames", "12"]


@pytest.fixture
def least_presets(monkeypatch):
    """Every preset steps with the least net."""
    tiny = preset_config("tiny")
    settings = replace(tiny.settings, bank_size=40)
    least = replace(tiny, frames=12, encoder=BiGRUConfig("1x8"), settings=settings)
    least = replace(least, optim=replace(tiny.optim, batch_size=5))
    monkeypatch.setattr(headlines, "preset_config", lambda preset: least)


@pytest.fixture
def known_memory(monkeypatch):
    """And a known training process beside others: what takes processes of its own has tests of its own."""
    monkeypatch.setattr(measure, "extra_peak", lambda *args, **kwargs: {"extra_bytes": 12_000_000})
    beside = contention.Loads()
    for seconds, load in itertools.product((0.9, 1.0, 1.2), contention.LOADS):
        beside.take(load, Stint(10, seconds * (1 + contention.LOADS[load]), 1.0, 0.0), others=0.0)
    monkeypatch.setattr(contention, "measure", lambda settings: {contention.HERE: beside})


@pytest.mark.slow
def test_summary_has_all_headlines_and_records_the_run(capsys, tmp_path, quiet, known_memory, least_presets):
    assert summary.main([*TINY, "--results", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert all(printed[key] > 0 for key in KEYS)
    assert printed["mc_extra_mb"] == 12
    assert printed["mc_vs_compiled"] is None  # it was not among the providers
    assert {"commit", "dirty", "cpu", "cores", "threads", "date", "packages", "load_average"} <= set(printed["machine"])
    assert printed["machine"]["threads"] == 1 and printed["others_busy"] == 0
    own = Result.from_json(printed["details"]["mc"]["own"])
    assert len(own.providers["torch"].seconds) == 3
    assert printed["mc_vs_algebraic"] == own.providers["algebraic"].median / own.providers["cpp"].median
    calls = {n: Measurement(**m) for e in ("views", "data") for n, m in printed["details"][e]["calls"].items()}
    assert printed["views_vs_numpy"] == calls["numpy, usual"].median / calls["fastmc"].median
    assert printed["data_share_of_step"] == 100 * (calls["its data"].median / calls["whole step"].median)
    assert 0 < printed["data_share_of_step"] < 100
    assert printed["busy_core_share"] == pytest.approx(50)
    assert set(printed["spread"]) == set(KEYS) - {"mc_extra_mb"}
    for key, (low, high) in printed["spread"].items():
        assert low <= printed[key] <= high
    (line,) = (tmp_path / "summary.jsonl").read_text().splitlines()
    assert json.loads(line) == printed


def test_summary_warns_of_a_busy_machine_or_refuses_it(monkeypatch, capsys, tmp_path, known_memory):
    monkeypatch.setattr(summary, "LOOK", 0.0)
    time = iter(range(0, 10_000, 100))  # core seconds of others: more in every look than any block can last
    monkeypatch.setattr(machine, "_time_of_others", lambda: float(next(time)))
    arguments = [*TINY, "--only", "mc", "--results", str(tmp_path), "--json"]
    assert summary.main([*arguments, "--strict"]) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and "leave --strict out" in printed.err
    assert summary.main(arguments) == 0
    printed = capsys.readouterr()
    assert "warning: other processes keep" in printed.err and "warning: disturbed" in printed.err
    assert json.loads(printed.out)["others_busy"] > machine.QUIET


@pytest.mark.parametrize("flags", [["--rounds", "1"], ["--only", "md"]])
def test_summary_says_what_is_wrong_with_a_flag(capsys, flags):
    with pytest.raises(SystemExit) as ending:
        summary.main(flags)
    assert ending.value.code != 0
    assert f"{flags[0][2:]} must be" in " ".join(capsys.readouterr().err.split())


def small_sweep() -> dict[str, Any]:
    """A sweep with numbers made up; the largest case does not fit the reference."""
    results = []
    for batch, bank in ((64, 1024), (32, 4096), (64, 4096), (64, 16384)):
        found = {}
        for i, name in enumerate(("reference", "torch", "products")):
            seconds = [1e-9 * bank * batch * (3 - i) * factor for factor in (0.9, 1.0, 1.0, 1.2)]
            found[name] = Measurement(seconds=seconds, extra_bytes=None if name == "products" else bank * batch * 4)
        if bank == 16384:
            found["reference"] = Measurement(skipped="needs about 40 GB, the limit is 10 GB")
        results.append(Result(Case("step", "own", batch, bank, 128), found, 0.0).to_json())
    method = {"mixes": ["own"], "work": "step", "at_batch": 64, "at_bank": 4096, "memory_limit_gb": 10}
    method["providers"] = ["reference", "torch", "products"]
    return {"machine": machine.provenance(threads=2), "method": method, "results": results}


@pytest.mark.slow
def test_plot_writes_its_files(tmp_path, capsys):
    (tmp_path / "sweep.json").write_text(json.dumps(small_sweep()))
    assert plot.main(["--sweep", str(tmp_path / "sweep.json"), "--out", str(tmp_path / "drawn")]) == 0
    files = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert files == ["sweep-own.png", "sweep-own.svg"]
    assert (tmp_path / "drawn" / "sweep-own.png").read_bytes().startswith(b"\x89PNG")
    assert all(str(tmp_path / "drawn" / name) in capsys.readouterr().out for name in files[:1])
    assert plot.main(["--sweep", str(tmp_path / "none.json")]) == 1
    assert "python -m bench.sweep makes it" in capsys.readouterr().err


def test_git_state_ignores_results(monkeypatch):
    asked = []
    monkeypatch.setattr(machine, "_git", lambda *arguments: asked.append(arguments) or "")
    assert machine.provenance()["dirty"] is False
    assert any(":!bench/results" in arguments for arguments in asked)
    monkeypatch.setattr(machine, "_git", lambda *arguments: " M fastmc/objective/loss.py")
    assert machine.provenance()["dirty"] is True


def test_time_of_others_is_neither_idle_nor_ours(monkeypatch, tmp_path):
    stat = tmp_path / "stat"
    monkeypatch.setattr(machine, "PROC_STAT", stat)
    monkeypatch.setattr(machine.os, "times", lambda: machine.os.times_result((1.0, 0.5, 0.25, 0.25, 0.0)))
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 100)
    stat.write_text("cpu  300 20 100 99999 5000 10 20 50 0 0\ncpu0 1 2 3\n")  # user nice system idle iowait irq ...
    assert machine._time_of_others() == pytest.approx(5.0 - 2.0)
    stat.unlink()
    assert machine._time_of_others() is None
    with machine.watch_neighbours() as others:
        pass
    assert others.busy is None and not others.disturbing
