"""Runs as jobs of Slurm: what is submitted, how a job ends and begins again, and what comes of it. By stand-ins of
Slurm's commands, by submitit's executor for one machine, and on a Slurm that is started here where it is installed."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_tables import TINY, children_of, wait_until

from bench import accuracy
from train import run
from train.command import slurm
from train.command.jobs import Job
from train.command.slurm import minutes_of, options_of, submit, torchrun
from train.tables import __main__ as tables

ROOT = Path(__file__).resolve().parents[1]
START = ROOT / "tests" / "slurm" / "start.sh"
WANTED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "srun", "scancel", "scontrol")
EPOCHS = 120  # of 3 steps: long enough to be interrupted, and seconds


def until(come: Callable[[], bool]) -> None:
    """Also on a machine that is busy with other things, where several processes import PyTorch one after the other."""
    wait_until(come, seconds=900)


def small(root: Path) -> list[str]:
    """Flags of a run."""
    return ["--dataset", "small", "--data-root", str(root), *TINY, "--epochs", str(EPOCHS)]


def said(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def epochs_of(folder: Path) -> list[int]:
    with open(folder / "metrics.csv", newline="", encoding="utf-8") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "limit, minutes",
    [("90", 90), ("0:30", 1), ("5:00", 5), ("4:00:00", 240), ("1-12", 2160), ("1-0:30", 1470), ("2-01:00:01", 2941)],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit, minutes):
    assert minutes_of(limit) == minutes


@pytest.mark.parametrize(
    "words, message",
    [
        (["time=1:00", "gpu"], "slurm = gpu: give KEY=VALUE, such as partition=gpu"),
        (["partition=gpu"], "slurm: give a time limit, such as time=4:00:00"),
        (["time=an hour"], "slurm: time = 'an hour': give it as sbatch reads it"),
        (["time=1:2:3:4"], "slurm: time = '1:2:3:4': give it as sbatch reads it"),
        (["time=9", "nodes=two"], "slurm: nodes = two: give a number from 1 on"),
        (["time=9", "cpus-per-task=0"], "slurm: cpus_per_task = 0: give a number from 1 on"),
    ],
)
def test_options_that_slurm_would_not_take_are_named(words, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        options_of(words)


def test_what_does_not_go_together_is_an_error_and_so_is_a_missing_submitit(data_root, tmp_path, capsys, monkeypatch):
    flags = ["--table", "3", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    flags += small(data_root)
    assert run.main([*small(data_root), "--restart", "--launcher", "slurm", "--slurm", "time=9"]) == 1
    assert "--restart would start over each time that the job begins again" in capsys.readouterr().err
    assert tables.main([*flags, "--slurm", "time=9"]) == 1
    assert "the options are of --launcher slurm" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert tables.main([*flags, "--launcher", "slurm", "--slurm", "time=9"]) == 1
    assert "--launcher slurm needs submitit, which is not here: pip install submitit" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def commands(tmp_path, monkeypatch) -> Path:
    """A folder of stand-ins of Slurm's commands on PATH: sbatch keeps the scripts that it is given and counts from 11
    on, squeue shows what the file ``queue`` holds."""
    folder = tmp_path / "bin"
    folder.mkdir()
    count = f'n=$(($(ls {folder}/*.sent 2>/dev/null | wc -l) + 11)); cp "$1" {folder}/$n.sent'
    scripts = {
        "sbatch": f"{count}; echo Submitted batch job $n",
        "squeue": f"cat {folder}/queue",
        "srun": "exit 1",
        "scontrol": '[ "$*" = "show hostnames n[3-4]" ] && printf "n3\\nn4\\n"',
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    (folder / "queue").write_text("")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def job(name: str, folder: Path, work: float = 0.0, done: bool = False) -> Job:
    return Job(name, "timeit", ("-n1", "-r1", "pass"), folder / f"{name}.log", lambda: done, work)


def test_stages_are_job_arrays_in_turn_and_what_is_queued_is_not_submitted_again(tmp_path, commands, told):
    runs = [job("short", tmp_path), job("long", tmp_path, work=2), job("done", tmp_path, done=True)]
    stages = [runs, [job("after", tmp_path)]]
    words = ["time=1:30:00", "partition=gpu", "gpus-per-node=2", "cpus_per_task=8", "array_parallelism=1"]
    assert submit(stages, words, tmp_path / "slurm") == 3
    array, one = (said(commands / f"{n}.sent") for n in (11, 12))
    for line in ("time=90", "partition=gpu", "gpus-per-node=2", "cpus-per-task=8", "requeue", "signal=USR1@90"):
        assert f"#SBATCH --{line}\n" in array and f"#SBATCH --{line}\n" in one
    assert "#SBATCH --array=0-1%1\n" in array and "--array" not in one
    assert "#SBATCH --dependency=afterany:11\n" in one and "--dependency" not in array
    assert re.search("^srun .*--cpus-per-task=8 ", array, re.MULTILINE), "srun does not take it from sbatch"
    assert json.loads(said(tmp_path / "slurm" / "jobs.json")) == {"long": "11_0", "short": "11_1", "after": "12"}
    assert told.messages[0].startswith("long: submitted as job 11_0; what it prints goes to ")

    (commands / "queue").write_text("11_1\n12\n77\n")
    assert submit(stages, words, tmp_path / "slurm") == 3
    assert "short: in the queue already, as job 11_1" in told.messages
    (again,) = set(commands.glob("*.sent")) - {commands / "11.sent", commands / "12.sent"}
    assert "--array" not in said(again), "long alone, which had ended without a result"
    (tmp_path / "slurm" / "jobs.json").write_text("{")
    with pytest.raises(ValueError, match=r"jobs\.json is damaged: .*; delete it once none of its jobs is in the queue"):
        submit(stages, words, tmp_path / "slurm")
    assert submit([[runs[2]]], words, tmp_path / "other") == 0 and not (tmp_path / "other").exists()


def test_what_slurm_says_against_it_is_one_error(tmp_path, commands):
    (commands / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpo' >&2; exit 1\n")
    with pytest.raises(ValueError, match=r"the jobs cannot be submitted: .*invalid partition specified: gpo"):
        submit([[job("a", tmp_path)]], ["time=9", "partition=gpo"], tmp_path / "slurm")
    (commands / "squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    with pytest.raises(ValueError, match="squeue fails: Unable to contact slurm controller"):
        submit([[job("a", tmp_path)]], ["time=9"], tmp_path / "slurm")


def test_away_from_a_cluster_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no squeue here; submit from a machine of the cluster"):
        submit([[job("a", tmp_path)]], ["time=9"], tmp_path / "slurm")


@pytest.mark.usefixtures("commands")
def test_a_run_of_several_nodes_meets_on_the_first_one(monkeypatch):
    """At a port and by a name of its own, another one each time that it begins again."""
    several = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[3-4]", "SLURM_JOB_ID": "120007"}
    one = ["-m", "torch.distributed.run", "--nproc-per-node"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert torchrun(several) == [
        *(*one, "gpu", "--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "n3:20007"),
        *("--rdzv-id", "120007-0"),
    ]
    assert torchrun({**several, "SLURM_RESTART_COUNT": "2"})[-1] == "120007-2"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert torchrun({}) == [*one, "1", "--standalone"]


LISTENS = """
import os, signal, time
heard = []
signal.signal(signal.SIGINT, lambda number, _: heard.append(signal.Signals(number).name))
open({started!r}, "w").write(str(os.getpid()))
while not heard: time.sleep(0.01)
time.sleep(0.5)
print("heard", *heard, "ignored", [n for n in (10, 12, 15) if signal.getsignal(n) is signal.SIG_IGN])
"""


@pytest.mark.program
@pytest.mark.slow
def test_what_slurm_sends_to_all_processes_of_a_job_reaches_its_command_once(tmp_path):
    """A second signal would end a run before its checkpoint."""
    started, log = tmp_path / "started", tmp_path / "log"
    listens = LISTENS.format(started=str(started))
    (tmp_path / "listens.py").write_text(listens)
    code = f"from train.command.slurm import Task; Task('a', 'listens', (), {str(log)!r})()"
    path = os.pathsep.join((str(ROOT), str(tmp_path)))
    task = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    until(lambda: bool(said(started)))
    for number in (signal.SIGTERM, signal.SIGTERM):
        for pid in (int(said(started)), task.pid):
            os.kill(pid, number)
    os.kill(int(said(started)), signal.SIGUSR1)
    assert task.wait(60) == 0
    assert said(log) == "heard SIGINT ignored [10, 12, 15]\n"


@pytest.mark.program
@pytest.mark.slow
def test_a_command_that_fails_is_a_job_that_fails_with_the_end_of_its_output(tmp_path):
    code = f"from train.command.slurm import Task; Task('a', 'nothing', (), {str(tmp_path / 'log')!r})()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said_of_it = done.stderr.rpartition("RuntimeError: ")[2]
    assert said_of_it.startswith(f"a: exit code 1; all of its output is in {tmp_path / 'log'}:\n")
    assert said_of_it.endswith("No module named nothing\n\n")


@pytest.fixture
def here(monkeypatch) -> None:
    """submitit's jobs are processes of this machine."""
    monkeypatch.setattr(slurm, "CLUSTER", "local")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.program
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_table_is_submitted_preempted_resumed_and_collected(data_root, tmp_path, capsys):
    own = ["--table", "3", "--seeds", "0", "--protocols", "xsub", "--runs", str(tmp_path / "runs")]
    flags = [*own, "--out", str(tmp_path / "out"), *small(data_root)]
    submits = [*flags, "--launcher", "slurm", "--slurm", "time=20"]
    assert tables.main(submits) == 0
    assert "1 jobs are in Slurm's queue (squeue --me); --collect shows" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("table3*")), "there is nothing to show"
    name = "small-xsub-a2mc-joint-tiny-seed0"
    folder, log = tmp_path / "runs" / name, tmp_path / "out" / "logs" / f"{name}.log"
    until(lambda: "epoch 3/" in said(log))
    controller = int(json.loads(said(tmp_path / "out" / "logs" / "slurm" / "jobs.json"))[name])
    (task,) = children_of(controller)
    os.kill(task, signal.SIGUSR1)
    until(lambda: (folder / "report.json").exists())
    text = said(log)
    stopped = re.search(r"stopped; the same command resumes from (\S+/step_0*(\d+))", text)
    assert stopped and int(stopped[2]) < 3 * EPOCHS
    assert f"resuming from {stopped[1]} " in text and "Traceback" not in text
    assert epochs_of(folder) == list(range(1, EPOCHS + 1))
    until(lambda: not children_of(controller))  # its pickles are written by now
    assert tables.main(submits) == 0, "nothing is left to submit, so the table is made"
    shown = said(tmp_path / "out" / "table3-small.md")
    assert "not run" not in shown
    (tmp_path / "out" / "table3-small.md").unlink()
    assert tables.main([*flags, "--collect"]) == 0
    assert said(tmp_path / "out" / "table3-small.md") == shown


@pytest.mark.program
@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_a_page_of_accuracies_is_submitted_and_collected(data_root, tmp_path, capsys):
    flags = ["--datasets", "small", "--methods", "b1", "--seeds", "0", "1", "--out", str(tmp_path)]
    flags += [*("--data-root", str(data_root)), *TINY[2:]]
    assert accuracy.main([*flags, "--collect"]) == 0
    assert "| tiny, b1 | not run | not run | not run |" in capsys.readouterr().out
    assert accuracy.main([*flags, "--launcher", "slurm", "--slurm", "time=20"]) == 0
    reports = [tmp_path / "small" / f"tiny-b1-seed{seed}" / "report.json" for seed in (0, 1)]
    until(reports[0].exists)
    until(reports[1].exists)
    reports[1].rename(tmp_path / "kept")
    capsys.readouterr()
    assert accuracy.main([*flags, "--collect"]) == 0
    found = [json.loads(path.read_text())["knn_top1"] for path in (reports[0], tmp_path / "kept")]
    assert f"| tiny, b1 | {found[0]:.1f} | " in (page := capsys.readouterr().out)
    assert "1 of 2 runs are there" in page
    (tmp_path / "kept").rename(reports[1])
    assert accuracy.main([*flags, "--collect"]) == 0
    assert f"({found[0]:.1f}, {found[1]:.1f}) |" in capsys.readouterr().out


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Path]:
    """Folder of a Slurm of this one machine, started for this module."""
    path = f"{os.environ['PATH']}{os.pathsep}/usr/sbin"
    missing = [name for name in WANTED if shutil.which(name, path=path) is None]
    if missing:
        pytest.skip(f"no Slurm is installed here ({', '.join(missing)}): apt-get install slurm-wlm munge")
    folder = tmp_path_factory.mktemp("slurm")
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
    with subprocess.Popen([START, folder, str(port)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                pytest.skip(f"Slurm does not start here: {said(folder / 'why')}")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
                patch.setenv("OMP_NUM_THREADS", "1")
                yield folder
        finally:
            process.terminate()


@pytest.mark.program
@pytest.mark.slow
def test_on_a_slurm_a_table_is_preempted_requeued_resumed_and_collected(cluster, data_root, tmp_path, capsys):
    """Three runs, and the evaluation that waits for them."""
    own = ["--table", "2", "--seeds", "0", "--protocols", "xsub", "--runs", str(tmp_path / "runs")]
    flags = [*own, "--out", str(tmp_path / "out"), *small(data_root)]
    submits = [*flags, "--launcher", "slurm", "--slurm", "time=20", "cpus_per_task=1"]
    assert tables.main(submits) == 0
    assert "4 jobs are in Slurm's queue" in capsys.readouterr().out
    folder = tmp_path / "out" / "logs"
    logs = [folder / f"small-xsub-a2mc-{stream}-tiny-seed0.log" for stream in ("joint", "motion", "bone")]
    until(lambda: any("epoch 3/" in said(log) for log in logs))
    before = said(folder / "slurm" / "jobs.json")
    assert tables.main(submits) == 0
    assert capsys.readouterr().out.count("in the queue already") == 4
    assert said(folder / "slurm" / "jobs.json") == before
    urgent = ["sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true"]
    subprocess.run(urgent, check=True)
    until(lambda: any("resuming from " in said(log) for log in logs))
    assert any("stopped; the same command resumes from" in said(log) for log in logs)
    assert "has been requeued to reclaim resources" in said(cluster / "slurmctld.log")
    until(lambda: bool(list((tmp_path / "runs").glob("*/evaluate/ensemble-xsub.json"))))
    assert all("Traceback" not in said(log) for log in folder.glob("*.log"))
    assert tables.main([*flags, "--collect"]) == 0
    assert "not run" not in said(tmp_path / "out" / "table2-small.md")
    for each in (tmp_path / "runs").iterdir():
        assert epochs_of(each) == list(range(1, EPOCHS + 1))


@pytest.mark.program
@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_on_a_slurm_one_run_goes_by_torchrun_and_is_queued_again_before_its_time_is_over(data_root, tmp_path, capsys):
    """The signal is sent by hand: by itself Slurm sends it when the limit comes near."""
    folder = tmp_path / "run"
    submits = [*small(data_root), "--out", str(folder), "--launcher", "slurm", "--slurm", "time=20"]
    assert run.main(submits) == 0
    (number,) = re.findall(r"run: submitted as job (\d+);", capsys.readouterr().out)
    log = tmp_path / "run.log"
    until(lambda: "epoch 3/" in said(log))
    subprocess.run(["scancel", "--signal=USR1", number], check=True)
    until(lambda: (folder / "report.json").exists())
    assert "stopped; the same command resumes from" in said(log) and "resuming from " in said(log)
    assert epochs_of(folder) == list(range(1, EPOCHS + 1))
    assert f"Requeued job {number} " in said(tmp_path / "slurm" / f"{number}_0_log.out")
    assert run.main(submits) == 0
    assert "run holds this run, finished" in capsys.readouterr().out
