"""The devices that runs are shared out over, one run on each at a time: --devices cuda:0,cuda:1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from fastmc.parallel import usable_cores

WORD = re.compile(r"(?:(cuda):(\d+)|cpu(?::([1-9]\d*))?)(?:x([1-9]\d*))?")
GRAMMAR = (
    "name devices with commas between them: cuda:N is a GPU, cpu:THREADS so many threads of the CPU, cpu all of its "
    "cores; cpu:1x2 is cpu:1 twice"
)


@dataclass(frozen=True)
class Device:
    """A place for one run at a time.

    Attributes:
        name: as the picture of the queue has it.
        gpu: its number among the GPUs that this process sees; None for the CPU.
        threads: of a run's CPU work (OMP_NUM_THREADS).
    """

    name: str
    gpu: int | None
    threads: int

    def environment(self, ours: Mapping[str, str]) -> dict[str, str]:
        """That of a process which is to see this device alone, so that --device auto is this one. Of a GPU: what CUDA
        asks for by ``our`` CUDA_VISIBLE_DEVICES, which may be numbers or names."""
        visible = [name for name in ours.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        own = "" if self.gpu is None else visible[self.gpu] if visible else str(self.gpu)
        return {**ours, "OMP_NUM_THREADS": str(self.threads), "CUDA_VISIBLE_DEVICES": own}


def check_devices(said: str) -> None:
    """ValueError for words that name no devices; whether these are there is asked when they are needed."""
    for word in said.split(","):
        if said != "auto" and not WORD.fullmatch(word):
            raise ValueError(f"devices = {said!r}: {word!r} is no device; {GRAMMAR}; or auto")


def devices_of(said: str, runs: int, small: bool = False) -> list[Device]:
    """The devices of ``--devices``, no more of them than there are ``runs``.

    Args:
        said: such as cuda:0,cuda:1 or cpu:2x4. auto: all GPUs that this process sees; without one the CPU, which takes
            one run with all cores, or, of ``small`` runs, as many as it has cores, each with an equal share of them.

    Raises:
        ValueError: no such devices, or they are not there.
    """
    check_devices(said)
    cores, gpus = usable_cores(), torch.cuda.device_count()
    if said == "auto":
        at_once = max(1, min(cores, runs)) if small else 1
        said = ",".join(f"cuda:{n}" for n in range(gpus)) or f"cpu:{cores // at_once}x{at_once}"
    words = [match for word in said.split(",") if (match := WORD.fullmatch(word))]
    places = sum(int(match[4] or 1) for match in words)
    found: list[Device] = []
    for match in words:
        kind, number, threads, times = match.groups()
        if kind and int(number) >= gpus:
            there = ", ".join(f"cuda:{n}" for n in range(gpus)) or "no GPU"
            remedy = "python -m fastmc.doctor says what can run"
            raise ValueError(f"devices = {said!r}: no cuda:{number} is here, but {there}; {remedy}")
        own = max(1, cores // places) if kind else int(threads or cores)
        found += [Device(match[0].partition("x")[0], int(number) if kind else None, own)] * int(times or 1)
    return _told_apart(found)[: max(1, runs)]


def _told_apart(devices: list[Device]) -> list[Device]:
    """Those that are named several times have a number more."""
    return [
        replace(each, name=f"{each.name} ({devices[: n + 1].count(each)})") if devices.count(each) > 1 else each
        for n, each in enumerate(devices)
    ]
