"""Where and when a number was measured, and whether the machine was quiet."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fastmc.doctor import package_versions
from fastmc.parallel import usable_cores

ROOT = Path(__file__).resolve().parents[1]
PROC_STAT = Path("/proc/stat")
QUIET = 0.25
"""Cores that others may keep busy, on average, before a timing counts as disturbed."""


def provenance(device: torch.device | str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """Everything beside a number that a reader needs to judge it or to measure it again."""
    device = torch.device(device)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        # What earlier measurements have left there changes nothing that is measured.
        "dirty": bool(_git("status", "--porcelain", "--", ".", ":!bench/results")),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "threads": threads or torch.get_num_threads(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": package_versions(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def conditions(machine: dict[str, Any]) -> str:
    """The line that belongs beside a headline."""
    where = machine["gpu"] or f"{machine['threads']} threads of a {machine['cores']}-core {machine['cpu']}"
    versions = f"Python {machine['python']}, torch {machine['packages']['torch']}"
    if machine["gpu"]:
        versions += f", triton {machine['packages']['triton']}"
    commit = f"commit {machine['commit']}{' with changes' if machine['dirty'] else ''}"
    return f"{commit}, {where} ({machine['simd']}), {versions}, {machine['date'][:10]}"


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:  # a bare machine has no git
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@dataclass
class Neighbours:
    """What everybody else did while we measured: ``busy`` in cores, on average. None where the system does not tell."""

    busy: float | None = None

    @property
    def disturbing(self) -> bool:
        return self.busy is not None and self.busy > QUIET


@contextmanager
def watch_neighbours() -> Iterator[Neighbours]:
    """Count the processor time of other processes, and what a hypervisor has stolen, from here to the end of the block.

    The load average says something else: it looks minutes back, and our own threads are in it.
    """
    seen = Neighbours()
    before, start = _time_of_others(), time.perf_counter()
    yield seen
    after, seconds = _time_of_others(), time.perf_counter() - start
    if before is not None and after is not None:
        seen.busy = max(0.0, (after - before) / seconds)


def _time_of_others() -> float | None:
    """Core seconds since boot that were not idle and not ours, our finished children's included."""
    try:
        fields = PROC_STAT.read_text(encoding="utf-8").splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal = (int(field) for field in fields[:8])
    ours = os.times()
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - (ours.user + ours.system + ours.children_user + ours.children_system)
