"""Tables of the paper: what is planned, run, resumed, collected and drawn."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import exit_code, write_small_store
from warm_python import warm_python

from fastmc import checkpoint
from fastmc.config import RunFolderError, to_plain
from fastmc.data.store import StoreWriter
from fastmc.evaluation import FinetuneConfig
from fastmc.files import write_json
from fastmc.skeleton import NTU25
from train import run
from train.command import jobs
from train.command.evaluation_settings import Ensemble, Semi, Transfer
from train.command.jobs import Job, JobFailed, run_jobs, to_do
from train.command.parse import parse
from train.engine.signals import stopped_by_signals
from train.runs.folder import ACCURACIES
from train.runs.published import TABLES, Column
from train.tables import __main__ as tables
from train.tables.plan import Plan
from train.tables.render import Filled, draw, to_markdown, write_csv

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT.parent / "shared" / "paper" / "a2mc.txt"
TINY = (
    *("--preset", "tiny", "--frames", "8", "--encoder", "1x8", "--batch-size", "8", "--bank-size", "16"),
    *("--epochs", "1", "--milestones", "1", "--linear-epochs", "2", "--train-crops", "1", "--probe-every", "0"),
    *("--view-impl", "torch"),  # numba would compile in every process
)


def plan(data_root: Path, tmp_path: Path, *flags: str, seeds=(0, 1), target="small") -> Plan:
    return Plan((*TINY, "--data-root", str(data_root), *flags), seeds, tmp_path / "runs", target, tmp_path / "logs")


def test_every_row_has_a_figure_or_a_gap_for_each_column():
    for table in TABLES.values():
        for row in table.rows:
            assert len(row.values) == len(table.columns) and len(row.info) == len(table.info)
            assert all(value is None or 20 < value < 100 for value in row.values)
        assert any(row.variant for row in table.rows)


@pytest.mark.shared
@pytest.mark.skipif(not PAPER.exists(), reason="../shared/paper is not here")
@pytest.mark.parametrize("number", TABLES)
def test_published_figures_are_the_paper_s(number):
    """Each row's figures and gaps end a line of the paper that begins with the method's name."""
    lines = (
        PAPER.read_text(encoding="utf-8").replace("^2", "²").replace("A ²", "A²").replace("MS ²", "MS²").splitlines()
    )
    for row in TABLES[number].rows:
        if row.variant is not None and row.variant.backbone is not None:  # of these the paper has words alone
            assert set(row.values) == {None} and any(row.label.removeprefix("A²MC, ") in line for line in lines)
            continue
        if row.variant is not None and row.variant.is_rival and set(row.values) == {None}:
            assert not any(line.startswith(row.label) and _ends_in(line.split("\t"), row.values) for line in lines)
            continue
        cut_off = (number, row.label) == (4, "LongT GAN")  # its last dash is not in the text
        values = row.values[:-1] if cut_off else row.values
        name = row.label.replace("MS²L", "MS² L").replace("A²MC", "A² MC").replace("3s-A² MC", "3s-A²MC")
        names = {row.label, name}
        found = [
            line
            for line in lines
            if any(line.strip().startswith(n) or n.replace(" ", "") in line.replace(" ", "") for n in names)
            and _ends_in(line.split("\t"), values)
        ]
        assert found, f"{row.label}: {values}"


def _ends_in(cells: list[str], values: tuple[float | None, ...]) -> bool:
    """Whether the last cells of a line are these figures, and dashes where there are none."""
    last = [cell.strip() for cell in cells if cell.strip()][-len(values) :]
    return last == ["-" if value is None else f"{value:.1f}" for value in values]


def test_rows_of_other_encoders_are_trained_where_they_are_asked_for(data_root, tmp_path):
    """At their own size, whatever that of the others, and in folders of their own."""
    without = plan(data_root, tmp_path)
    asked = replace(without, also=("stgcn",))
    columns = without.columns(TABLES[1], ["small"], ["xsub"])
    rows = [[row.label for row, _, _ in p.cells(TABLES[1], columns)] for p in (without, asked)]
    assert set(rows[0]) == {"A²MC"} and set(rows[1]) == {"A²MC", "A²MC, ST-GCN"}
    row = next(row for row in TABLES[1].rows if row.label == "A²MC, ST-GCN")
    config = asked.config(columns[0], row.variant, "joint", 0)
    assert config.backbone == "stgcn" and config.encoder.encoder == "16x64"
    assert config.out.name == "small-xsub-a2mc-stgcn-joint-tiny-seed0"
    cells = [cell for cell in asked.cells(TABLES[1], columns) if cell[0] is row]
    (job, *_) = asked.training_jobs(cells)
    assert parse(job.arguments).backbone == "stgcn"


def test_rows_of_rivals_are_trained_where_they_are_asked_for(data_root, tmp_path):
    """With their own encoders at their own sizes, or with one for all."""
    asked = replace(plan(data_root, tmp_path), methods=("aimclr", "ascal"))
    column = asked.columns(TABLES[1], ["small"], ["xsub"])[0]
    rows = {row.label: row.variant for row, _, _ in asked.cells(TABLES[1], [column])}
    assert set(rows) == {"A²MC", "AimCLR", "AS-CAL"}
    configs = {label: asked.config(column, variant, "joint", 0) for label, variant in rows.items()}
    assert [configs[label].backbone for label in ("A²MC", "AimCLR", "AS-CAL")] == ["bigru", "stgcn", "lstm"]
    assert configs["AimCLR"].encoder.encoder == "16x64" and configs["AimCLR"].augment.crop_padding > 0
    assert configs["AimCLR"].out.name == "small-xsub-aimclr-stgcn-joint-tiny-seed0"
    on_one = replace(asked, flags=(*asked.flags, "--backbone", "bigru"))
    assert on_one.config(column, rows["AimCLR"], "joint", 0).encoder == configs["A²MC"].encoder


def test_rows_that_nobody_asked_for_show_what_was_published(data_root, tmp_path):
    """And are left out where that is nothing."""
    p = plan(data_root, tmp_path)
    columns = p.columns(TABLES[1], ["small"], ["xsub"])
    for asked, (there, absent) in {("aimclr",): ("AimCLR", "CPM"), ("cpm", "hico"): ("CPM", "AimCLR")}.items():
        text = to_markdown(tables.fill(replace(p, methods=asked), TABLES[1], columns))
        cells = {row.split("|")[1].strip(): row.split("|")[-2].strip() for row in text.splitlines() if "|" in row}
        assert (cells[there], cells[absent], cells["ISC"], cells["A²MC"]) == ("not run", "", "", "not run")
        assert ("HiCo" in cells) == ("hico" in asked) and "A²MC, ST-GCN" not in cells and "SkeletonCLR" not in cells


def test_a_rival_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match="methods = simclr: choose from aimclr, ascal, cpm, hiclr, hico, skeletonclr,"):
        tables.make_tables(tables.Settings(table=(1,), methods=("simclr",)))


def test_columns_of_a_published_set_are_the_published_protocols(data_root, tmp_path):
    p = plan(data_root, tmp_path)
    assert p.columns(TABLES[6], ["small"]) == (Column("small", "xsub", "linear"), Column("small", "xview", "linear"))
    assert p.columns(TABLES[2], ["small"]) == (Column("small", "xsub", "linear"),), "table 2 has one protocol"
    assert p.columns(TABLES[2], ["small"], ["xview"]) == (Column("small", "xview", "linear"),)
    semi = p.columns(TABLES[4], ["small"])
    assert [(c.protocol, c.measure) for c in semi] == [
        *(("xsub", "semi1"), ("xsub", "semi10"), ("xview", "semi1"), ("xview", "semi10"))
    ]
    with pytest.raises(ValueError, match="no protocol xset; there are: xsub, xview"):
        p.columns(TABLES[6], ["small"], ["xset"])


def test_no_flag_of_the_trainer_is_taken_for_a_misspelt_one():
    helptext = io.StringIO()
    with contextlib.redirect_stdout(helptext), pytest.raises(SystemExit):
        run.main(["--help"])
    flags = set(re.findall(r"--[a-z][a-z-]+", helptext.getvalue()))
    assert len(flags) > 60
    tables.check_flags(sorted(flags))


def test_a_run_that_several_rows_need_is_trained_once(data_root, tmp_path):
    p = plan(data_root, tmp_path)
    six, two = (list(p.cells(TABLES[n], p.columns(TABLES[n], ["small"], ["xsub"]))) for n in (6, 2))
    names = [job.name for job in p.training_jobs([*six, *two])]
    assert len(names) == len(set(names)) == 2 * (4 + 2), "joint A²MC is in both tables, the fused row needs no run"
    assert [name[-1] for name in names] == sorted(name[-1] for name in names), "one seed after the other"
    first = [job.name for job in to_do(p.training_jobs(six))]
    assert ["-b1-" in name for name in first] == [False] * 6 + [True] * 2, "the shortest runs begin last"
    assert first[:6] == [name for name in names if name in first and "-b1-" not in name], "of equal ones none is moved"
    fused = p.evaluation_jobs(two)
    assert [job.module for job in fused] == ["train.evaluate"] * 2
    runs = fused[0].arguments[fused[0].arguments.index("--run") + 1 :][:3]
    assert [Path(run).name for run in runs] == [f"small-xsub-a2mc-{s}-tiny-seed0" for s in ("joint", "motion", "bone")]


def test_evaluations_of_an_encoder_of_ones_own_may_import_it(data_root, tmp_path):
    """As the command that trains it does; of what is built in nothing is said."""
    cells = lambda p: list(p.cells(TABLES[2], p.columns(TABLES[2], ["small"], ["xsub"])))  # noqa: E731
    flags = ("--backbone", "toy:ToyEncoder", "--toy-width", "4")
    own = Plan((*flags, "--preset", "tiny", "--data-root", str(data_root)), (0,), tmp_path, "small", tmp_path)
    assert all(job.arguments[-2:] == ("--allow", flags[1]) for job in own.evaluation_jobs(cells(own)))
    assert all("allow" in {field.name for field in fields(kind)} for kind in (Ensemble, Semi, Transfer))
    usual = plan(data_root, tmp_path)
    assert all("--allow" not in job.arguments for job in usual.evaluation_jobs(cells(usual)))


def test_flags_that_differ_from_run_to_run_are_refused(data_root, tmp_path):
    for flag in ("--seed", "--method=b1", "--stream", "--out", "--protocol", "--restart"):
        with pytest.raises(ValueError, match="differs from run to run"):
            plan(data_root, tmp_path, flag, "1")


def command(data_root: Path, tmp_path: Path, *flags: str) -> list[str]:
    settings = ["--dataset", "small", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    return [*settings, "--data-root", str(data_root), *TINY, *flags]


@pytest.fixture
def forked(monkeypatch):
    """Workers are forks of a process that has their imports behind it."""
    with warm_python() as folder:
        monkeypatch.setattr(jobs, "sys", SimpleNamespace(executable=str(folder / "python")))
        yield


@pytest.mark.program
@pytest.mark.usefixtures("forked")
def test_a_table_is_run_written_resumed_and_collected_and_results_of_other_data_do_not_enter_it(
    data_root, tmp_path, capsys
):
    root = Path(shutil.copytree(data_root / "small", tmp_path / "root" / "small")).parent
    flags = command(root, tmp_path, "--table", "6", "--protocols", "xsub", "--seeds", "0")
    assert tables.main([*flags, "--collect"]) == 0
    assert "4 figures of ours are not there yet" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists(), "collecting runs nothing"
    assert tables.main(flags) == 0
    assert "4 runs to train, 0 done already" in capsys.readouterr().out
    reports = {p.parent.name: json.loads(p.read_text()) for p in (tmp_path / "runs").glob("*/report.json")}
    assert len(reports) == 4
    with open(tmp_path / "out" / "table6-small.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for method, label in (("b1", "B1"), ("a2mc", "A²MC")):
        want = reports[f"small-xsub-{method}-joint-tiny-seed0"]["linear_top1"]
        (row,) = (row for row in rows if (row["source"], row["method"]) == ("fastmc", label))
        assert float(row["mean"]) == pytest.approx(want) and row["seeds"] == "1"
    published = [float(row["mean"]) for row in rows if row["source"] == "paper" and row["protocol"] == "xview"]
    assert published == [82.8, 85.6, 86.7, 87.9]
    text = (tmp_path / "out" / "table6-small.md").read_text(encoding="utf-8")
    assert "| B1 |  |  |  | 75.6 | 82.8 |" in text
    assert "not run" not in text
    links = re.findall(r"\[small-xsub-(\w+)-joint-tiny-seed0\]\(([^)]+)\)", text)
    assert [method for method, _ in links] == ["b1", "b2", "b3", "a2mc"]
    assert {(tmp_path / "out" / path).resolve() for _, path in links} == set((tmp_path / "runs").glob("*/report.html"))
    assert "small: none of the paper's sets" in text
    (tmp_path / "runs" / "small-xsub-b2-joint-tiny-seed0" / "report.json").unlink()
    assert tables.main(flags) == 0
    assert "1 runs to train, 3 done already" in capsys.readouterr().out

    shutil.rmtree(root / "small")  # and a store that was made anew: what was trained on the old one is no part
    write_small_store(root / "small", seed=9)
    assert tables.main([*flags, "--collect"]) == 0
    printed = capsys.readouterr().out
    assert "| B1 |  |  |  | 75.6 | 82.8 | not run |" in printed
    assert "4 figures of ours are not there yet" in printed
    assert tables.main(flags) == 1
    assert "was trained on other data" in capsys.readouterr().err


def test_other_settings_in_a_run_s_folder_stop_before_anything_runs(data_root, tmp_path, capsys):
    flags = command(data_root, tmp_path, "--table", "6", "--protocols", "xsub", "--seeds", "0")
    p = plan(data_root, tmp_path, seeds=(0,))
    column = p.columns(TABLES[6], ["small"], ["xsub"])[0]
    config = p.config(column, TABLES[6].rows[3].variant, "joint", 0)
    config.out.mkdir(parents=True)
    (config.out / "config.json").write_text(json.dumps(to_plain(replace(config, frames=9))))
    (config.out / "report.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"\(frames\)\. Name another folder with --runs, or delete"):
        p.training_jobs([(TABLES[6].rows[3], column, 0)])
    assert tables.main(flags) == 1
    said = capsys.readouterr().err
    assert (
        "other settings (frames)" in said
        and "Name another folder with --runs, or delete" in said
        and "--out" not in said
    )
    assert list((tmp_path / "runs").iterdir()) == [config.out], "nothing ran"


def test_wrong_arguments_are_named(data_root, tmp_path, capsys):
    for flags, message in (
        (["--table", "7"], "table = 7: choose from 1, 2, 3, 4, 5, 6"),
        (["--table", "6", "--dataset", "ntu60"], "there is no dataset 'ntu60'"),
        (["--table", "5", "--target", "pku9"], "there is no dataset 'pku9'"),
        (["--table", "6", "6"], "table = 6, 6: name each once"),
        (["--table", "6", "--seeds", "0", "0"], "seeds = 0, 0: give one or more different seeds"),
        (["--table", "6", "--epochz", "3"], "epochz"),
        (["--table", "6", "--sedes", "3"], "there is no flag --sedes; did you mean --seeds?"),
        (["--table", "6", "--devizes=cpu"], "there is no flag --devizes; did you mean --devices?"),
        (["--table", "6", "--device", "cpu"], "--device differs from run to run; here it is said by --devices"),
        (["--table", "6", "--devices", "cpu:0"], "devices = 'cpu:0': 'cpu:0' is no device; name devices with commas"),
        (["--table", "6", "--devices", "cuda:99"], "devices = 'cuda:99': no cuda:99 is here, but "),
    ):
        assert exit_code(tables.main, [*command(data_root, tmp_path), *flags])
        captured = capsys.readouterr()
        assert message in captured.err + captured.out


def filled() -> Filled:
    table = TABLES[6]
    column = Column("small", "xsub", "linear")
    values = {(row, column): [50.0 + i, 52.0 + i] for i, row in enumerate(table.rows[:3])}
    return Filled(table, (column,), values, {column: [20.0, 22.0]}, 2, 3, ("Fine print.",))


def test_markdown_shows_both_sides_and_gaps():
    text = to_markdown(filled())
    assert "| B1 |  |  |  | 75.6 | 82.8 | 51.0 ± 1.4 (2 of 3 seeds) |" in text
    assert "| A²MC | ✓ | ✓ | ✓ | 80.0 | 87.9 | not run |" in text
    assert "| untrained encoder |  |  |  |  |  | 21.0 ± 1.4 (2 of 3 seeds) |" in text
    assert "| B1 |  |  |  | 75.6 | 82.8 | 51.0 ± 1.4 |" in to_markdown(replace(filled(), seeds=2))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(a.count("|") == b.count("|") for a, b in pairwise(rows))


def test_csv_is_one_line_a_figure(tmp_path):
    write_csv(filled(), tmp_path / "t.csv")
    rows = list(csv.DictReader((tmp_path / "t.csv").open(encoding="utf-8")))
    assert [row["source"] for row in rows].count("paper") == 8
    (b1,) = (row for row in rows if (row["source"], row["method"]) == ("fastmc", "B1"))
    assert (float(b1["mean"]), b1["seeds"]) == (51.0, "2") and float(b1["std"]) == pytest.approx(2**0.5, abs=1e-4)
    assert [row["values"] for row in rows if row["method"] == "B2" and row["source"] == "fastmc"] == ["51.0000 53.0000"]


@pytest.mark.parametrize("number", [2, 6])
def test_picture_names_rows_columns_and_axes(number, tmp_path):
    table = TABLES[number]
    own = Column("small", "xsub", table.columns[0].measure)
    values = {(row, own): [40.0, 60.0] for row in table.rows if row.variant}
    figure = draw(Filled(table, (own,), values, {own: []}, 0, 2, ()))
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(tmp_path / "t.svg")
    texts = {
        "".join(e.itertext()).strip() for e in ElementTree.parse(tmp_path / "t.svg").iter() if e.tag.endswith("text")
    }
    assert {"top-1 accuracy (%)", "50.0"} <= texts
    assert {row.label for row in table.rows} <= texts or number == 2
    assert any("fastmc" in text for text in texts)


@pytest.mark.program
@pytest.mark.usefixtures("forked")
def test_jobs_that_are_done_do_not_run_and_failures_are_told_after_the_others(tmp_path, told):
    """Each on a device, which is all that it sees."""
    made = [tmp_path / name for name in "ab"]
    code = "import os; open({!r}, 'w').write(os.environ['OMP_NUM_THREADS'])"
    asked = [
        Job("a", "timeit", ("-n1", "-r1", code.format(str(made[0]))), tmp_path / "a.log", made[0].exists),
        Job("fails", "no_such_module", (), tmp_path / "fails.log", lambda: False),
        Job("silent", "timeit", ("-n1", "-r1", "pass"), tmp_path / "silent.log", lambda: False),
        Job("b", "timeit", ("-n1", "-r1", code.format(str(made[1]))), tmp_path / "b.log", made[1].exists),
        Job("done", "no_such_module", (), tmp_path / "done.log", lambda: True),
    ]
    with pytest.raises(JobFailed) as failure:
        run_jobs(asked, "cpu:3x2")
    assert [path.read_text() for path in made] == ["3"] * 2
    assert "a: starts on cpu:3 (" in told.text and "fails: failed after " in told.text
    assert "fails failed" in str(failure.value)
    assert "No module named no_such_module" in str(failure.value)
    assert "silent failed" in str(failure.value), "a command that ends well without a result has failed too"
    assert not (tmp_path / "done.log").exists()
    assert run_jobs([asked[0], asked[3], asked[4]]) == 0


def test_a_figure_of_other_settings_does_not_enter_a_table(data_root, tmp_path):
    """As a hand-run evaluation of fewer epochs or draws would leave it, or one that is older than the run."""
    p = plan(data_root, tmp_path, seeds=(0,))
    row = TABLES[4].rows[-1]
    column = p.columns(TABLES[4], ["small"], ["xsub"])[0]
    config = p.config(column, row.variant, "joint", 0)
    path = p.result(column, row.variant, 0)
    path.parent.mkdir(parents=True)
    (config.out / "config.json").write_text(json.dumps(to_plain(config)))
    data = p.data("small", "xsub")
    accuracies = dict.fromkeys(ACCURACIES, 50.0)
    report = {"data": data, "evaluation": to_plain(config.evaluation), **accuracies, "random_init": accuracies}
    write_json(config.out / "report.json", report)
    good = {"kind": "semi", "top1": 40.0, "draws": 5, "data": data, "evaluation": to_plain(FinetuneConfig())}

    def value_of(**other) -> list[float]:
        path.write_text(json.dumps(good | other))
        os.utime(path, ns=(later := (config.out / "report.json").stat().st_mtime_ns + 10**9, later))
        return p.values(row, column)

    assert value_of() == [40.0]
    assert value_of(draws=2) == []
    assert value_of(data="another") == [], "of clips or labels that are no longer those of the store"
    assert value_of(evaluation=to_plain(FinetuneConfig(epochs=1))) == []
    assert value_of() == [40.0]
    os.utime(path, ns=(0, 0))
    assert p.values(row, column) == [], "of before the run, as far as an older report tells"
    write_json(config.out / "report.json", {**report, "weights": "abc"})
    assert value_of(weights="abd") == [], "of other weights, however late"
    assert value_of(weights="abc") == [40.0]
    os.utime(path, ns=(0, 0))
    assert p.values(row, column) == [40.0], "as a copy may leave it"
    p = plan(data_root, tmp_path, "--test-crop", "0.9", seeds=(0,))
    assert value_of() == [], "the run was evaluated on other crops"
    other = p.config(column, row.variant, "joint", 0)
    write_json(config.out / "report.json", report | {"evaluation": to_plain(other.evaluation)})
    assert value_of() == []
    assert value_of(evaluation=to_plain(FinetuneConfig(test_crop=0.9))) == [40.0]
    os.utime(path, ns=(0, 0))
    assert p.values(row, column) == [], "it is of an earlier run"


def test_stopping_is_heard_by_any_of_its_signals():
    before = [signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)]
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            with pytest.raises(KeyboardInterrupt), stopped_by_signals():
                signal.raise_signal(number)
            assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)


@pytest.mark.program
def test_stopping_ends_what_runs(tmp_path):
    """The command that runs and its worker are gone, and the jobs that wait are not started."""
    code = f"""
import os, pathlib
from train.command.jobs import Job, run_jobs
started = pathlib.Path({str(tmp_path)!r})
def job(n):
    sleep = f"import os, time; open({{str(started / str(n))!r}}, 'w').write(str(os.getpid())); time.sleep(600)"
    return Job(str(n), "timeit", ("-n1", "-r1", sleep), started / f"{{n}}.log", lambda: False)
run_jobs([job(n) for n in range(3)], "cpu:1x2")
"""

    def hears() -> None:
        """Also where these tests were started by nohup, or in the background."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)

    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=hears
    )
    deadline = time.monotonic() + 180
    while not all((tmp_path / str(n)).exists() and (tmp_path / str(n)).read_text() for n in range(2)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    _, errors = process.communicate(timeout=60)  # returns when no one holds the pipe any more
    assert "Stopped: SIGHUP" in errors
    for n in range(2):
        assert not Path(f"/proc/{(tmp_path / str(n)).read_text()}").exists()
        assert "KeyboardInterrupt" in (tmp_path / f"{n}.log").read_text()
    assert not (tmp_path / "2").exists()


@pytest.mark.program
@pytest.mark.parametrize("killed", ["command", "worker"])
def test_what_was_started_by_who_is_killed_ends_with_a_checkpoint(killed, data_root, tmp_path):
    """Nobody can pass a kill -9 on: a worker looks for its parent, and the command that it runs for the worker."""
    flags = [*("--dataset", "small", "--data-root", str(data_root), "--preset", "tiny", "--encoder", "1x8"), "--frames"]
    flags += ["8", "--batch-size", "8", "--bank-size", "16", "--epochs", "100000", "--probe-every", "0", "--device"]
    flags += ["cpu", "--checkpoint-every", "100000", "--out", str(tmp_path / "run"), "--view-impl", "torch"]
    code = f"""
import pathlib
from train.command.jobs import Job, run_jobs
run_jobs([Job("run", "train.run", tuple({flags!r}), pathlib.Path({str(tmp_path / "log")!r}), lambda: False)])
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def said() -> str:
        return (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""

    wait_until(lambda: "epoch 3/" in said())
    (worker,) = children_of(process.pid)
    (child,) = children_of(worker)
    os.kill(process.pid if killed == "command" else worker, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{child}").exists() and not Path(f"/proc/{worker}").exists())
    _, errors = process.communicate(timeout=60)
    assert "stopping after this step, with a checkpoint" in said()
    assert "SIGINT: stopped; the same command resumes from " in said()
    assert "Traceback" not in said()
    position = checkpoint.load_latest(tmp_path / "run" / "checkpoints")[1]["position"]
    assert position["step"] >= 9, "no checkpoint was due before"
    assert killed == "command" or "run failed" in errors


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(come: Callable[[], bool], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not come():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.program
def test_nothing_asks_for_cuda_before_a_fork():
    """CUDA that was asked for does not survive a fork, so what a worker imports must not ask for it."""
    code = """
import importlib, torch
def refuse(*_): raise AssertionError("CUDA was asked for")
torch.cuda.is_available = torch.cuda.device_count = torch.cuda._lazy_init = refuse
from train.command.worker import PRELOADED
for module in PRELOADED: importlib.import_module(module)
import sys; print("train.run" in sys.modules, "train.evaluate" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_columns_of_the_paper_s_sets_are_the_published_ones(tmp_path):
    """Of several sets at once, of which a table has some: table 3 has none of PKU-II."""
    sets = {"ntu60": ("xsub", "xview"), "ntu120": ("xsub", "xset"), "pku2": ("xsub", "xview")}
    for name, protocols in sets.items():
        rules = {p: {"field": "subject", "train": [1, 3]} for p in protocols}
        about = {"name": name, "skeleton": NTU25, "fps": 30.0, "class_names": ["a", "b"], "protocols": rules}
        with StoreWriter(tmp_path / name, **about) as store:
            for n in range(8):
                clip = np.random.default_rng(n).normal(size=(4, 1, 25, 3)).astype(np.float32)
                store.add(clip, name=f"c{n}", label=n % 2, subject=1 + n % 4)
    p = Plan((*TINY, "--data-root", str(tmp_path)), (0,), tmp_path / "runs", "pku2", tmp_path / "logs")
    for number, names in ((1, list(sets)), (3, list(sets)), (6, ["ntu60"]), (2, ["ntu60", "pku2"])):
        published = {(c.dataset, c.protocol) for c in TABLES[number].columns if c.dataset in names}
        assert {(c.dataset, c.protocol) for c in p.columns(TABLES[number], names)} == published
    with pytest.raises(ValueError, match="table 3 has no column for pku2; name another --dataset, or --protocols"):
        p.columns(TABLES[3], ["pku2"])
    paper = Plan(("--data-root", str(tmp_path)), (0,), tmp_path / "runs", "pku2", tmp_path / "logs")
    text = " ".join(tables._fine_print(paper, TABLES[1], paper.columns(TABLES[1], ["ntu60", "pku2"])))
    assert re.search(r"Ours \(ntu60\): .*750 epochs, times 0\.1 at 350\. Ours \(pku2\): .*1000 epochs, .* at 800", text)
