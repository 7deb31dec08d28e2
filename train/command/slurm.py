"""Runs as jobs of Slurm, by submitit: submitted, queued again when they are preempted or out of time, and resumed.

A job is a `Task`, which runs one command of this program in a process of its own and passes on once, as Ctrl-C, what
Slurm tells it: the command ends after its step, with a checkpoint. Slurm itself queues a job again that it preempts
(SIGTERM); before a time limit it sends SIGUSR1, and then submitit does. Begun again, a job is the same command, which
resumes.
"""

from __future__ import annotations

import getpass
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmc.files import read_text, write_json
from fastmc.reading import reading
from train.command.jobs import TAIL, Job, to_do
from train.engine.record import log

CLUSTER = "slurm"  # submitit's name of it; "local" in tests
WARNS = "USR1"
"""The signal before a time limit. submitit's own is USR2."""
RESTARTS = 1000
"""How many time limits a job outlives: runs of days on queues of hours are what this is for."""
NUMBERS = ("array_parallelism", "signal_delay_s", "nodes")
"""Options that are submitit's, and no text of sbatch's."""


def options_of(words: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE as a dictionary, with _ for - in keys.

    Raises:
        ValueError: a word is no such, a number is none, or there is no time limit.
    """
    found = dict(word.lstrip("-").split("=", 1) for word in words if "=" in word)
    bare = [word for word in words if "=" not in word]
    if bare:
        raise ValueError(f"slurm = {' '.join(bare)}: give KEY=VALUE, such as partition=gpu")
    found = {key.replace("-", "_"): value for key, value in found.items()}
    if "time" not in found:
        raise ValueError("slurm: give a time limit, such as time=4:00:00; a run that needs longer is queued again")
    minutes_of(found["time"])
    for key in (*NUMBERS, "cpus_per_task"):
        if not found.get(key, "1").isdigit() or not int(found.get(key, "1")):
            raise ValueError(f"slurm: {key} = {found[key]}: give a number from 1 on")
    return found


def minutes_of(limit: str) -> int:
    """Whole minutes of a time limit as sbatch reads it: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS; ValueError
    for anything else."""
    days, dash, rest = limit.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in (days or "0", *parts)) or len(parts) > 3:
        raise ValueError(f"slurm: time = {limit!r}: give it as sbatch reads it, such as 90 (minutes), 4:00:00 or 1-12")
    numbers = [int(part) for part in parts]
    if dash or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return max(1, (int(days or 0) * 24 + hours) * 60 + minutes + (seconds > 0))


@dataclass
class Task:
    """A command of this program, as submitit calls it: with `checkpoint` where the job is to be queued again.

    Attributes:
        name, module, arguments, log: of a `Job`.
        ranks: start it by torchrun on every node of the job, a rank for each GPU.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    log: str
    ranks: bool = False
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _told: bool = field(default=False, init=False, repr=False)

    def __call__(self) -> None:
        """Run it to its end; RuntimeError where it fails."""
        Path(self.log).parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as output:
            self._child = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self._environment()},
                preexec_fn=_deaf,
            )
            signal.signal(signal.SIGTERM, lambda *_: self._stop())
            if os.environ.get("SLURM_PROCID", "0") != "0":  # submitit has the job queued again by its first node alone
                signal.signal(signal.SIGUSR1, lambda *_: self._stop())
            self._until_ended()
            code = self._child.wait()
        if code:
            end = Path(self.log).read_text(encoding="utf-8", errors="replace")[-TAIL:]
            raise RuntimeError(f"{self.name}: exit code {code}; all of its output is in {self.log}:\n{end}")

    def checkpoint(self) -> Any:
        """End the command, with a checkpoint; what is to be called when the job begins again."""
        from submitit.helpers import DelayedSubmission

        self._stop()
        self._until_ended()
        return DelayedSubmission(Task(self.name, self.module, self.arguments, self.log, self.ranks))

    def _stop(self) -> None:
        """Say it once: a second Ctrl-C would end a run at once."""
        if self._child is not None and not self._told:
            self._told = True
            with suppress(ProcessLookupError):
                os.kill(self._child.pid, signal.SIGINT)

    def _until_ended(self) -> None:
        """Wait, and leave the process to be waited for: a signal's handler, which calls this too, comes in between."""
        if self._child is None:
            return
        with suppress(ChildProcessError):
            os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT)

    def _command(self) -> list[str]:
        command = ["-m", self.module, *self.arguments]
        return [sys.executable, *(torchrun(os.environ) if self.ranks else ()), *command]

    def _environment(self) -> dict[str, str]:
        """Threads as many as Slurm gives it cores, where it says so; torchrun listens to what its ranks listen to."""
        threads = os.environ.get("SLURM_CPUS_PER_TASK")
        told = {"OMP_NUM_THREADS": threads} if threads and not self.ranks else {}
        return told | ({"PET_SIGNALS_TO_HANDLE": "SIGINT"} if self.ranks else {})


def _deaf() -> None:
    """In the process of a command before it begins: what Slurm sends to all processes of a job at once is for the
    `Task`, which passes it on. What is ignored stays ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def torchrun(environment: Mapping[str, str]) -> list[str]:
    """Arguments of Python that start a module on this node as one of the job's: a rank for each GPU that this node has
    for the job, or one rank without a GPU."""
    import torch

    here = "gpu" if torch.cuda.device_count() else "1"
    command = ["-m", "torch.distributed.run", "--nproc-per-node", here]
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes == 1:
        return [*command, "--standalone"]
    listed = subprocess.check_output(["scontrol", "show", "hostnames", environment["SLURM_JOB_NODELIST"]], text=True)
    job = int(environment["SLURM_JOB_ID"])
    meeting = f"{listed.split()[0]}:{20000 + job % 10000}"  # jobs of one node meet at ports of their own
    name = f"{job}-{environment.get('SLURM_RESTART_COUNT', '0')}"
    return [
        *(*command, "--nnodes", str(nodes), "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", meeting, "--rdzv-id", name),
    ]


def submit(stages: Sequence[Sequence[Job]], words: Sequence[str], folder: Path, ranks: bool = False) -> int:
    """Submit what is not done and not in the queue, a job array a stage, each after the stage before; how many jobs are
    in the queue then. With ``ranks`` a job is one run on all of its nodes.

    Raises:
        ValueError: submitit or Slurm is not there, or sbatch does not take the options.
    """
    options, wanted = options_of(words), [to_do(jobs) for jobs in stages]
    if not any(wanted):
        return 0
    executor_of, queued = _submitit(), _in_queue()
    known = folder / "jobs.json"
    folder.mkdir(parents=True, exist_ok=True)
    ids = _known(known)
    before: set[str] = set()
    for todo in wanted:
        there = [job for job in todo if ids.get(job.name) in queued]
        new = [job for job in todo if job not in there]
        ids |= _submit(executor_of, new, options, folder, before, ranks)
        write_json(known, ids)
        before = {ids[job.name].partition("_")[0] for job in todo}
        for job in new:
            log.info("%s: submitted as job %s; what it prints goes to %s", job.name, ids[job.name], job.log)
        for job in there:
            log.info("%s: in the queue already, as job %s", job.name, ids[job.name])
    return sum(map(len, wanted))


def _known(path: Path) -> dict[str, str]:
    """The ids of the jobs that were submitted, by their names; ValueError if the file is damaged."""
    if not path.exists():
        return {}
    with reading(f"{path} is damaged", ValueError, remedy="delete it once none of its jobs is in the queue"):
        return {str(name): str(number) for name, number in json.loads(read_text(path)).items()}


def _submit(
    executor_of: Any, jobs: Sequence[Job], options: Mapping[str, str], folder: Path, after: set[str], ranks: bool
) -> dict[str, str]:
    """One job array of all jobs; the id of each by its name."""
    if not jobs:
        return {}
    own = {key: value for key, value in options.items() if key not in (*NUMBERS, "time")}
    own.setdefault("job_name", "fastmc")
    if after:
        own["dependency"] = "afterany:" + ":".join(sorted(after))
    numbers = {f"slurm_{key}": int(options[key]) for key in NUMBERS if key in options and key != "nodes"}
    # Since version 22.05 srun does not take this over from sbatch, and would give a run one core.
    cores = [f"--cpus-per-task={options['cpus_per_task']}"] if "cpus_per_task" in options else []
    tasks = [Task(job.name, job.module, job.arguments, str(job.log.resolve()), ranks) for job in jobs]
    try:
        executor = executor_of(folder=folder, cluster=CLUSTER, slurm_max_num_timeout=RESTARTS)
        executor.update_parameters(
            timeout_min=minutes_of(options["time"]),
            nodes=int(options.get("nodes", "1")),
            tasks_per_node=1,
            slurm_srun_args=cores,
            slurm_additional_parameters={**own, "requeue": True},
            **numbers,
        )
        with executor.batch():
            found = [executor.submit(task) for task in tasks]
    except RuntimeError as error:  # also of sbatch, with what it says
        raise ValueError(f"slurm: the jobs cannot be submitted: {error}") from error
    return {job.name: each.job_id for job, each in zip(jobs, found, strict=True)}


def _submitit() -> Any:
    """submitit's executor, with the signal that its jobs hear."""
    os.environ.setdefault("SUBMITIT_PREEMPT_SIGNAL", WARNS)  # read when it is imported, here and in a job
    try:
        from submitit import AutoExecutor
    except ImportError:
        raise ValueError("--launcher slurm needs submitit, which is not here: pip install submitit") from None
    return AutoExecutor


def _in_queue() -> set[str]:
    """Ids of this user's jobs that wait or run, of arrays one by one, such as 12_0."""
    if CLUSTER != "slurm":
        return set()
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--user={getpass.getuser()}"]
    try:
        return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    except FileNotFoundError:
        raise ValueError("--launcher slurm: there is no squeue here; submit from a machine of the cluster") from None
    except subprocess.CalledProcessError as error:
        raise ValueError(f"--launcher slurm: squeue fails: {error.stderr.strip()}") from None
