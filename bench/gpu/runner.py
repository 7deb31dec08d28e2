"""Runs the sections one after the other and keeps report.json and report.md up to date."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.gpu import report
from bench.gpu.section import Settings
from bench.gpu.sections import Section
from bench.machine import provenance
from fastmc.files import write_json

ROOT = Path(__file__).resolve().parents[2]
REPORT, PAGE, LOG = "report.json", "report.md", "log.txt"
DONE, FAILED, CUT, LEFT_OUT, INTERRUPTED = "done", "failed", "cut", "left out", "interrupted"
LOOK = 0.1
"""Seconds between two looks at a section's findings."""
PATIENCE = 3.0
"""Seconds that a section has to end in when it is told to."""
TAIL = 4000
"""Characters of a section's output that a failure shows."""
QUERY = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"


class Runner:
    """Attributes:
    state: the content of report.json.
    """

    def __init__(
        self,
        out: Path,
        sections: Sequence[Section],
        *,
        rehearsal: bool,
        again: bool = False,
        commit: str | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Reads what ``out`` holds already; writes nothing.

        Raises:
            ValueError: ``out`` is a file, or holds a report of another card, commit or kind.
        """
        self.out, self.sections, self.rehearsal, self.again, self._say = out, sections, rehearsal, again, say
        if out.exists() and not out.is_dir():
            raise ValueError(f"out: {out} is a file, and a folder is needed")
        identity = identify(rehearsal, commit)
        self._dirty = identity["dirty"]
        self.state: dict[str, Any] = {"identity": identity, "conditions": {}, "sections": {}}
        if (out / REPORT).exists():
            self.state = read(out)
            check_same(self.state["identity"], identity, out)

    def run(self, minutes: float) -> int:
        """All sections that are not done; returns the exit code: 0 unless one has failed or was cut."""
        self.out.mkdir(parents=True, exist_ok=True)
        ends = time.monotonic() + 60 * minutes
        todo = [s for s in self.sections if self.again or self._status(s) != DONE]
        for done in (s for s in self.sections if s not in todo):
            self._say(f"({done.letter}) {done.title}: is done; --again runs it again")
        if todo:
            self.state["identity"]["dirty"] |= self._dirty
            self.state["conditions"] = conditions()
            self._write()
        work = Path(tempfile.mkdtemp(prefix="fastmc-gpu-"))
        try:
            for i, section in enumerate(todo):
                left = ends - time.monotonic()
                budget = left * section.share / sum(s.share for s in todo[i:])
                self._run(section, budget, work)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        return int(any(self._status(s) in (FAILED, CUT) for s in self.sections))

    def _status(self, section: Section) -> str | None:
        return self.state["sections"].get(section.letter, {}).get("status")

    def _run(self, section: Section, budget: float, work: Path) -> None:
        entry: dict[str, Any] = {"title": section.title, "budget": round(budget, 1)}
        if budget < section.least:
            reason = f"{budget:.0f} s were left for it, and it takes {section.least:.0f} at least"
            self._keep(section, entry | {"status": LEFT_OUT, "error": reason})
            self._say(f"({section.letter}) {section.title}: left out, {reason}")
            return
        self._say(f"({section.letter}) {section.title}: at most {budget:.0f} s")
        started, result = time.monotonic(), work / f"{section.letter}.json"
        settings = Settings(
            module=section.module,
            rehearsal=self.rehearsal,
            seconds=budget,
            out=str(self.out.resolve()),
            work=str(work),
            result=str(result),
            report=str((self.out / REPORT).resolve()),
        )
        with (self.out / LOG).open("ab") as log:
            log.write(f"\n==== ({section.letter}) {section.title}\n".encode())
            log.flush()
            begins = log.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.gpu.section", settings.words()],
                cwd=ROOT,
                env=environment(self.rehearsal),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # with its own children it can be ended as a whole
            )
            status = INTERRUPTED
            try:
                status = self._follow(process, section, entry, result, started + budget)
            finally:
                end(process)
                entry |= {"seconds": round(time.monotonic() - started, 1), "found": _read_findings(result)}
                if status == FAILED and not entry["found"].get("error"):
                    entry["error"] = f"ended with {process.returncode}:\n{_tail(self.out / LOG, begins)}"
                self._keep(section, entry | {"status": status})
        self._say(f"({section.letter}) {status} after {entry['seconds']:.0f} s")

    def _follow(
        self, process: subprocess.Popen[bytes], section: Section, entry: dict[str, Any], result: Path, ends: float
    ) -> str:
        """Until it ends or its time is up; returns how it ended. The report has its findings as soon as they exist."""
        seen: set[str] = set()
        modified = 0
        while process.poll() is None and time.monotonic() < ends:
            time.sleep(LOOK)
            if result.exists() and (now := result.stat().st_mtime_ns) != modified:
                modified, found = now, _read_findings(result)
                self._keep(section, entry | {"status": INTERRUPTED, "found": found})
                for title in (t for t in (*found.get("tables", ()), *found.get("notes", ())) if t not in seen):
                    self._say(f"    {title}")
                    seen.add(title)
        if process.poll() is None:
            return CUT
        return DONE if process.returncode == 0 else FAILED

    def _keep(self, section: Section, entry: dict[str, Any]) -> None:
        self.state["sections"][section.letter] = entry
        self.state["sections"] = dict(sorted(self.state["sections"].items()))
        self._write()

    def _write(self) -> None:
        write_json(self.out / REPORT, self.state)
        report.write(self.out / PAGE, self.state)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a section and all that it has started."""
    for number, patience in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def read(out: Path) -> dict[str, Any]:
    """The report in a folder; ValueError if it cannot be read."""
    try:
        return json.loads((out / REPORT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"out: {out} holds no {REPORT}") from None
    except ValueError as error:
        raise ValueError(f"out: {out / REPORT} is damaged ({error}); name another folder") from None


def _read_findings(result: Path) -> dict[str, Any]:
    return json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}


def _tail(log: Path, begins: int) -> str:
    with log.open("rb") as file:
        file.seek(begins)
        return file.read().decode(errors="replace")[-TAIL:]


def environment(rehearsal: bool) -> dict[str, str]:
    """Of a section: a rehearsal interprets the kernels and sees no GPU; otherwise they are compiled."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join(filter(None, (str(ROOT), inherited.get("PYTHONPATH"))))
    # What is as small as that gains nothing from threads and from a compiler, and would pay for them.
    small = {"OMP_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "1"}
    chosen = {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", **small} if rehearsal else {}
    return inherited | chosen | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def identify(rehearsal: bool, commit: str | None) -> dict[str, Any]:
    """What the numbers of one report have in common."""
    machine = provenance()
    return {
        "rehearsal": rehearsal,
        "card": None if rehearsal else (nvidia_smi().get("name") or "unknown"),
        "torch": machine["packages"]["torch"],
        "triton": machine["packages"]["triton"],
        "commit": commit or machine["commit"],
        "dirty": machine["dirty"],
    }


def check_same(held: dict[str, Any], ours: dict[str, Any], out: Path) -> None:
    """ValueError if numbers of ``ours`` may not stand beside those that a folder holds."""
    different = [name for name in ours if name != "dirty" and ours[name] != held.get(name)]
    if different:
        what = ", ".join(f"{name} {held.get(name)}, now {ours[name]}" for name in different)
        raise ValueError(f"out: {out} holds a report of other conditions ({what}); name another folder")


def conditions() -> dict[str, Any]:
    """Everything else that belongs beside the numbers."""
    return {"began": datetime.now(UTC).isoformat(timespec="seconds"), **provenance(), "nvidia-smi": nvidia_smi()}


def nvidia_smi() -> dict[str, str]:
    """What it says of the first GPU; empty where there is none."""
    try:
        command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader", "--id=0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = done.stdout.strip().split(", ")
    return dict(zip(QUERY.split(","), values, strict=True)) if done.returncode == 0 else {}
