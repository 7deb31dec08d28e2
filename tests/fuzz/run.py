"""Fuzzing of all readers for some time: python -m tests.fuzz.run --minutes 5 (or: make fuzz MINUTES=5).

Inputs that were read wrongly (another exception than the project's, a hang, too much memory, a process that died, a
store with numbers out of range) are kept in tests/fuzz/found: seeds of the next run, and read by every test run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

from tests.fuzz.formats import FORMATS
from tests.fuzz.worker import FOUND, input_of, save

PATIENCE = 60.0  # seconds without an answer; an input takes some hundredths
MOST_WRONG = 50
START = 120.0  # seconds until the first


@dataclass
class Tally:
    """How many inputs of each (format, outcome), and the wrong ones: (format, number, what happened)."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[tuple[str, int, str]] = field(default_factory=list)

    def table(self) -> str:
        lines = [f"{'format':12}{'inputs':>10}{'read':>10}{'refused':>10}{'wrong':>10}"]
        names = dict.fromkeys(name for name, _ in self.counts)
        for name in names:
            row = [self.counts[name, outcome] for outcome in ("read", "refused", "wrong")]
            lines.append(f"{name:12}{sum(row):10,}" + "".join(f"{count:10,}" for count in row))
        total = [sum(self.counts[name, outcome] for name in names) for outcome in ("read", "refused", "wrong")]
        return "\n".join([*lines, f"{'all':12}{sum(total):10,}" + "".join(f"{count:10,}" for count in total)])


def fuzz(
    formats: Sequence[str], seconds: float, first: int, patience: float = PATIENCE, most_wrong: int = MOST_WRONG
) -> Tally:
    """Read inputs ``first``, first + 1, ... of each format in turn, until the time is over or so many were wrong."""
    tally, end = Tally(), time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        name, number = "", first - 1
        for outcome, name, number, said in _answers(formats, first, left, patience):
            tally.counts[name, outcome] += 1
            if outcome == "wrong":
                tally.wrong.append((name, number, said))
            if len(tally.wrong) >= most_wrong:
                return tally
        first = number + 1
    return tally


def _answers(
    formats: Sequence[str], first: int, seconds: float, patience: float
) -> Iterator[tuple[str, str, int, str]]:
    """(outcome, format, number, what was said) of one worker, until it ends or has to be ended."""
    command = [sys.executable, "-m", "tests.fuzz.worker", "--formats", *formats]
    command += ["--first", str(first), "--seconds", str(seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as worker:
        reading: tuple[str, int] | None = None
        try:
            lines = _lines(worker)
            next(lines)
            while line := lines.send(patience if reading else max(patience, START)):
                what, name, number, *said = json.loads(line)
                reading = (name, number)
                if what != "start":
                    yield what, name, number, said[0]
        except TimeoutError:
            worker.kill()
            assert reading is not None, "the worker did not begin"
            yield "wrong", *reading, f"no answer within {patience:g} s"
            return
        except GeneratorExit:
            worker.kill()
            raise
        assert worker.stderr is not None
        said_last = worker.stderr.read()[-2000:].decode(errors="replace")
        code = worker.wait()
        if code:
            assert reading is not None, said_last
            yield "wrong", *reading, f"the process ended with {code}: {said_last}"


def _lines(worker: subprocess.Popen[bytes]) -> Generator[bytes, float, None]:
    """Is sent how many seconds to wait, and gives the next line, empty at the end; TimeoutError where there is none."""
    assert worker.stdout is not None
    waiting = b""
    with selectors.DefaultSelector() as selector:
        selector.register(worker.stdout, selectors.EVENT_READ)
        patience = yield b""
        while True:
            while b"\n" not in waiting:
                if not selector.select(patience):
                    raise TimeoutError
                block = os.read(worker.stdout.fileno(), 1 << 16)
                if not block:
                    yield b""
                waiting += block
            line, _, waiting = waiting.partition(b"\n")
            patience = yield line


def keep(tally: Tally) -> list[str]:
    """Save the wrong inputs, one of each kind of failure; their names."""
    kept = {}
    for name, number, said in tally.wrong:
        kind = said.strip().splitlines()[-1][:60] if said.strip() else ""
        if (name, kind) not in kept:
            digest = hashlib.blake2b(f"{name} {number}".encode(), digest_size=4).hexdigest()
            path = FOUND / f"{name}-{digest}.zip"
            save(input_of(name, number), path)
            kept[name, kind] = f"{path}: {said}"
    return list(kept.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    parser.add_argument("--first", type=int, help="number of the first input; by default a random one")
    settings = parser.parse_args()
    first = int.from_bytes(os.urandom(5), "little") if settings.first is None else settings.first
    print(f"inputs from number {first} on, for {settings.minutes:g} minutes", flush=True)
    tally = fuzz(settings.formats, 60 * settings.minutes, first)
    print(tally.table())
    for said in keep(tally):
        print(f"\n{said}".encode("utf-8", "backslashreplace").decode())
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
