"""Extra peak memory of one call: python -m bench.memory --provider torch --help.

On a GPU the allocator counts it. On a CPU the kernel does: the call runs in a process of its own, and its extra memory
is the resident peak during the call (VmHWM, set back to the present value just before, through /proc/self/clear_refs)
less what was resident when it began. That counts every page that is touched, by whatever library, and none that is not.

Why a fresh process, and not just a fresh call: glibc keeps freed memory for later allocations. A call in a process that
has worked before finds resident pages and seems to need none; and a heap with holes grows by more than what is alive,
by up to twice, differently in every process. So the child draws the inputs, makes one tiny call (which loads libraries
and starts threads), tells glibc to give every array of 64 KiB or more pages of its own and to take them back at once
(``mallopt``), hands the free pages of its heap back (``malloc_trim``), and measures. Runs then differ by under 1 MB.

``--allocations`` also runs the call under torch.profiler and adds the peak of what torch's allocator has given out.
That knows nothing of pages nor of the scratch memory of MKL and of autograd's thread, some MB: but for them both agree.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import tyro

from bench.providers import PROVIDERS, Call, Case, draw
from fastmc.parallel import usable_cores

ROOT = Path(__file__).resolve().parents[1]
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # of proc(5)
M_MMAP_THRESHOLD = -3  # of malloc.h


@dataclass(frozen=True)
class Memory:
    """Measure the extra peak memory of one call, in this process, and print it as JSON, in bytes."""

    provider: str = "torch"
    """One of the providers in bench/providers.py."""
    case: Case = field(default_factory=Case)
    device: str = "cpu"
    """cpu or cuda."""
    threads: int = field(default_factory=usable_cores)
    """Threads of torch."""
    allocations: bool = False
    """Also the peak of what torch's allocator gives out, from torch.profiler (CPU only)."""


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(Memory, prog="python -m bench.memory", args=args, config=(tyro.conf.OmitArgPrefixes,))
    print(json.dumps(_measure_here(settings)))
    return 0


def extra_peak(provider: str, case: Case, *, device: str = "cpu", threads: int, allocations: bool = False) -> dict:
    """``extra_bytes`` of one call, and ``allocated_bytes`` if asked for, measured in a process of its own."""
    flags = ["--provider", provider, "--device", device, "--threads", str(threads)]
    for name, value in asdict(case).items():
        flags += [f"--{name}", str(value)]
    command = [sys.executable, "-m", "bench.memory", *flags, *(["--allocations"] if allocations else [])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure_here(settings: Memory) -> dict[str, Any]:
    _glibc("mallopt", M_MMAP_THRESHOLD, 64 * 1024)
    torch.set_num_threads(settings.threads)
    provider, case, device = PROVIDERS[settings.provider], settings.case, torch.device(settings.device)
    tiny = replace(case, batch=2, bank=8, dim=4)
    provider.bind(tiny, draw(tiny).to(device, torch.float32))()
    call = provider.bind(case, draw(case).to(device, torch.float32))
    if provider.compiles:
        call()  # the compiler's own memory is no part of the work
    result = {"extra_bytes": extra_device_bytes(call) if device.type == "cuda" else extra_resident_bytes(call)}
    if settings.allocations:
        result["allocated_bytes"] = peak_allocated_bytes(call)
    return result


def extra_device_bytes(call: Call) -> int:
    """Peak of the GPU's allocator during the call, less what was allocated before."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def extra_resident_bytes(call: Callable[[], Any]) -> int:
    """Resident peak of this process during the call, less what was resident before. Meant for a fresh process."""
    if not CLEAR_REFS.exists():
        raise OSError(f"the peak of resident memory is read from {CLEAR_REFS}, which only Linux has")
    gc.collect()
    _glibc("malloc_trim", 0)
    CLEAR_REFS.write_text(RESET_PEAK)
    before = _peak_resident_bytes()
    call()
    return _peak_resident_bytes() - before


def _glibc(function: str, *arguments: int) -> None:
    """Call what other C libraries than glibc do not have, and do not need."""
    if hasattr(ctypes.CDLL(None), function):
        getattr(ctypes.CDLL(None), function)(*arguments)


def _peak_resident_bytes() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak_allocated_bytes(call: Callable[[], Any]) -> int:
    """Largest sum of what torch's CPU allocator has given out during the call and not taken back."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    total = peak = 0
    for _, change in changes:
        total += change
        peak = max(peak, total)
    return peak


if __name__ == "__main__":
    sys.exit(main())
