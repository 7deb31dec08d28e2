"""Where runs are made: on the devices of this machine, or as jobs of a Slurm cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from train.command import slurm
from train.command.devices import check_devices
from train.command.jobs import Job, run_jobs
from train.engine.record import log


@dataclass(frozen=True)
class Launcher:
    """Where a run is made."""

    launcher: Literal["here", "slurm"] = "here"
    """here: in this process, or processes of this machine. slurm: as jobs of Slurm, queued again when they are
    preempted or out of time; the command ends when they are submitted, and the same one goes on from what there is."""
    slurm: tuple[str, ...] = ()
    """Of --launcher slurm: options of sbatch as KEY=VALUE, time among them, such as time=4:00:00 partition=gpu
    gpus_per_node=1 cpus_per_task=8; array_parallelism=N: so many jobs at a time."""

    def __post_init__(self) -> None:
        if self.launcher == "slurm":
            slurm.options_of(self.slurm)
        elif self.slurm:
            raise ValueError("slurm: the options are of --launcher slurm: give that too, or leave them out")


@dataclass(frozen=True)
class Launch(Launcher):
    """Where many runs are made."""

    devices: str = "auto"
    """Devices of this machine to share the runs out over, one run on each at a time, the longest first: cuda:0,cuda:1;
    or cpu:2, two threads of the CPU, and cpu:2x4 four times that. auto: all GPUs; without one the CPU, one run with all
    cores, or of preset tiny a run for each core."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_devices(self.devices)

    def make(self, stages: Sequence[Sequence[Job]], logs: Path, small: bool) -> bool:
        """Make what is not done of the jobs, a stage after the stage before; whether it is all there now.

        Args:
            logs: folder in which Slurm's own output goes to ``slurm``.
            small: as of `devices_of`.

        Raises:
            ValueError, JobFailed: as of `run_jobs` and of `slurm.submit`.
        """
        if self.launcher == "here":
            for jobs in stages:
                run_jobs(jobs, self.devices, small)
            return True
        waiting = slurm.submit(stages, self.slurm, logs / "slurm")
        if waiting:
            log.info("%d jobs are in Slurm's queue (squeue --me); --collect shows what there is of them", waiting)
        return not waiting


def launcher_of(args: Sequence[str]) -> tuple[Launcher, list[str]]:
    """The launcher that a command line of train.run names, and the rest: where a run is made is no setting of it."""
    if not {word.partition("=")[0] for word in args} & {"--launcher", "--slurm"}:
        return Launcher(), list(args)
    return tyro.cli(Launcher, args=args, return_unknown_args=True, add_help=False)


Launched = Annotated[Launch, tyro.conf.arg(name="")]
"""As a field of a command's settings: the flags have no prefix."""
