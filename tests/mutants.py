"""Plants faults in the code, one at a time, and counts those that the tests catch: python -m tests.mutants.

A mutant is a copy of the tree with one small fault of `tests.mutant_list` in it. The tests that should see it run
first, and the whole suite if they do not. It counts as caught where a test fails on it that passes on a copy without
the fault. One that hangs counts too, and is told apart. What is known so far is in OUT.json and OUT.md after every
mutant, and the same command goes on from there; a tree with other files begins anew.

Minutes for those that their own tests catch, half an hour for each that nobody does:

    python -m tests.mutants --jobs 2 --hinted-only      the working tree
    python -m tests.mutants --commit HASH --only knn    a commit, and the mutants with "knn" in their names
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from tests.mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
OURS = {"tests/mutants.py", "tests/mutant_list.py"}
"""They are not what is tested."""
INTERPRETED = "tests/interpreted/"
"""Below it Triton's interpreter runs the kernels, as in tests/test_interpreted.py."""
WHOLE_SUITE = 6
"""Times the patience for some files."""
PASSED, FAILED, NOTHING_RAN = 0, 1, 5
"""Exit codes of pytest."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes:
        outcome: caught, hung, survived, or unhinted: survived its own tests, and the others have not run.
        by: the test that failed, or what hung; said: its error's first line.
        seconds: until then. fault: of its text.
    """

    outcome: str
    by: str
    said: str
    seconds: float
    fault: str


@dataclass(frozen=True)
class Ran:
    """A call of pytest: its exit code (None: it hung), the first test that failed, and the first line it said."""

    code: int | None
    test: str = ""
    said: str = ""


@dataclass
class Place:
    """Where mutants are made, one after the other: a folder with the tree, and with the caches of compilers.

    The path stays the same, so that what numba has compiled, which takes as long as many tests, serves the next mutant
    too: numba looks at the path, time and size of a file. Mutants of views have a cache of their own.

    Attributes:
        patience: seconds after which some files of tests hang.
    """

    folder: Path
    patience: float
    changes_views: bool = False
    running: subprocess.Popen[bytes] | None = None
    known: dict[str, bool] = field(default_factory=dict)
    """Whether a test passes here."""

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    def make(self, source: Path, mutant: Mutant | None = None) -> None:
        """A copy of the tree ``source``, and the mutant in it."""
        shutil.rmtree(self.tree, ignore_errors=True)
        shutil.copytree(source, self.tree, symlinks=True)
        for cache in ("triton", "inductor", "numba-of-views"):
            shutil.rmtree(self.folder / cache, ignore_errors=True)
        self.changes_views = mutant is not None and mutant.path.startswith("fastmc/views/")
        if mutant is not None:
            file = self.tree / mutant.path
            file.write_text(file.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")

    def run(self, tests: Sequence[str], *options: str, times: float = 1) -> Ran:
        """pytest until the first failure."""
        report = self.folder / "report.xml"
        report.unlink(missing_ok=True)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.tree),
            "OMP_NUM_THREADS": "1",
            "TRITON_CACHE_DIR": str(self.folder / "triton"),
            "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor"),
            "NUMBA_CACHE_DIR": str(self.folder / ("numba-of-views" if self.changes_views else "numba")),
        }
        if tests and all(test.startswith(INTERPRETED) for test in tests):
            environment["TRITON_INTERPRET"] = "1"
        with open(self.folder / "output.txt", "wb") as output:
            self.running = process = subprocess.Popen(
                [*command, *options, *tests],
                cwd=self.tree,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                code = process.wait(times * self.patience)
            except subprocess.TimeoutExpired:
                return Ran(None, " ".join(tests) or "the whole suite")
            finally:
                self.stop()
        return Ran(code, *_first_failure(report)) if report.exists() else Ran(code)

    def stop(self) -> None:
        """Kill what runs here, with all that it has started."""
        if self.running is not None and self.running.poll() is None:
            os.killpg(self.running.pid, signal.SIGKILL)
            self.running.wait()

    def passes(self, test: str) -> bool:
        """Whether the test, or at least the collection of a file, passes."""
        if test not in self.known:
            options = () if "::" in test else ("--collect-only",)
            self.known[test] = self.run([test], *options).code == PASSED
        return self.known[test]


def _first_failure(report: Path) -> tuple[str, str]:
    """Its id, or the file where a file cannot be collected; and the first line of what it said."""
    for case in ET.parse(report).iter("testcase"):
        for kind in ("failure", "error"):
            if (fault := case.find(kind)) is not None:
                names = case.get("classname", ""), case.get("name", "")
                file, test = names if names[0] else (names[1], "")
                message = (fault.get("message") or "").strip().splitlines() or [""]
                return f"{file.replace('.', '/')}.py" + (f"::{test}" if test else ""), message[0][:160]
    return "", ""


def digest_of(tree: Path) -> str:
    """Of the files that are tested with, and of what is tested."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in tree.rglob("*") if path.is_file() and ".git" not in path.parts):
        name = path.relative_to(tree).as_posix()
        if name not in OURS:
            digest.update(f"{name};".encode() + hashlib.blake2b(path.read_bytes()).digest())
    return digest.hexdigest()


def copy_tree(commit: str | None, target: Path) -> None:
    """What is tracked, of a commit or as it lies here, as a clone of its own."""
    target.mkdir(parents=True)
    if commit is not None:
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x"], cwd=target, input=archive, check=True)
    else:
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, tracked.split("\0")):
            if (ROOT / name).exists():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target / name)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=target, check=True)


def check(mutants: Sequence[Mutant], tree: Path) -> None:
    """ValueError if the text of one does not occur once."""
    for mutant in mutants:
        file = tree / mutant.path
        found = file.read_text(encoding="utf-8").count(mutant.old) if file.exists() else 0
        if found != 1 or mutant.old == mutant.new:
            raise ValueError(f"{mutant.name}: its text occurs {found} times in {mutant.path}, it must be once")


def hinted(mutant: Mutant, tree: Path) -> list[str]:
    """The files that are tried first; a hint without a file is told."""
    found: list[str] = []
    for hint in mutant.hints:
        paths = sorted((tree / "tests").glob(hint))
        if not paths:
            print(f"{mutant.name}: there is no tests/{hint}", file=sys.stderr)
        found += [path.relative_to(tree).as_posix() for path in paths]
    return found


def fault_of(mutant: Mutant) -> str:
    return hashlib.blake2b(repr((mutant.path, mutant.old, mutant.new)).encode(), digest_size=8).hexdigest()


class Hunt:
    """Mutants of one tree, as many at a time as there are places."""

    def __init__(self, source: Path, work: Path, jobs: int, patience: float, *, hinted_only: bool) -> None:
        self.source, self.hinted_only = source, hinted_only
        self.sound, self._lock = Place(work / "sound", patience), Lock()
        self.sound.make(source)
        self.places = [Place(work / f"mutant-{number}", patience) for number in range(jobs)]
        self._free: SimpleQueue[Place] = SimpleQueue()
        for place in self.places:
            self._free.put(place)

    def judge(self, mutant: Mutant) -> Verdict:
        place, began = self._free.get(), time.monotonic()
        try:
            place.make(self.source, mutant)
            outcome, ran = self._try(mutant, place)
        finally:
            self._free.put(place)
        return Verdict(outcome, ran.test, ran.said, round(time.monotonic() - began, 1), fault_of(mutant))

    def _try(self, mutant: Mutant, place: Place) -> tuple[str, Ran]:
        files = hinted(mutant, place.tree)
        for _, group in groupby(files, lambda name: name.startswith(INTERPRETED)):
            if (found := self._caught(place, list(group), 1)) is not None:
                return found
        if self.hinted_only:
            return "unhinted", Ran(PASSED)
        tried = [f"--ignore={name}" for name in files if not name.startswith(INTERPRETED)]
        return self._caught(place, [], WHOLE_SUITE, *tried) or ("survived", Ran(PASSED))

    def _caught(self, place: Place, tests: list[str], times: float, *options: str) -> tuple[str, Ran] | None:
        """By one of these tests that passes without the fault; others are passed over."""
        passed_over: list[str] = []
        while True:
            ran = place.run(tests, *options, *(f"--deselect={test}" for test in passed_over), times=times)
            if ran.code is None:
                return "hung", ran
            if ran.code in (PASSED, NOTHING_RAN):
                return None
            if ran.code != FAILED and not ran.test:
                raise RuntimeError(f"pytest ended with {ran.code}, see {place.folder / 'output.txt'}")
            with self._lock:
                if self.sound.passes(ran.test):
                    return "caught", ran
            passed_over.append(ran.test)


def table(mutants: Sequence[Mutant], verdicts: dict[str, Verdict], what: str) -> str:
    """As markdown."""
    known = [mutant for mutant in mutants if mutant.name in verdicts]
    counts = Counter(verdicts[mutant.name].outcome for mutant in known)
    lines = [
        f"{what}: of {len(known)} mutants "
        f"{', '.join(f'{count} {outcome}' for outcome, count in sorted(counts.items())) or 'none'}.",
        "",
        "| mutant | file | outcome | by | s |",
        "|---|---|---|---|---|",
    ]
    for mutant in known:
        one = verdicts[mutant.name]
        by = one.by.removeprefix("tests/").replace("|", "\\|")
        lines.append(f"| {mutant.name} | {mutant.path} | {one.outcome} | {by} | {one.seconds:.0f} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", metavar="HASH", help="whose files; by default those tracked here, as they lie")
    parser.add_argument("--only", metavar="TEXT", nargs="+", help="mutants with one of these in their names")
    parser.add_argument("--hinted-only", action="store_true", help="leave those alone that their own tests miss")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time, a core each (1)")
    parser.add_argument(
        "--minutes", type=float, default=30, help="after which a call of pytest on some files hangs (30)"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/mutants"), help="OUT.json and OUT.md (runs/mutants)")
    asked = parser.parse_args()
    chosen = [m for m in MUTANTS if not asked.only or any(text in m.name for text in asked.only)]
    as_json, as_markdown = (asked.out.with_name(f"{asked.out.name}.{kind}") for kind in ("json", "md"))
    asked.out.parent.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory(prefix="fastmc-mutants-") as folder:
        work = Path(folder)
        source = work / "source"
        copy_tree(asked.commit, source)
        check(chosen, source)
        what, of = asked.commit or "the working tree", digest_of(source)
        before = json.loads(as_json.read_text(encoding="utf-8")) if as_json.exists() else {}
        verdicts = {name: Verdict(**one) for name, one in before.get("mutants", {}).items() if before["of"] == of}
        hunt = Hunt(source, work, asked.jobs, 60 * asked.minutes, hinted_only=asked.hinted_only)
        writing = Lock()

        def is_known(mutant: Mutant) -> bool:
            one = verdicts.get(mutant.name)
            again = one is None or one.fault != fault_of(mutant)
            return not again and (asked.hinted_only or verdicts[mutant.name].outcome != "unhinted")

        def judge(mutant: Mutant) -> None:
            verdict = hunt.judge(mutant)
            with writing:
                verdicts[mutant.name] = verdict
                print(
                    f"{verdict.outcome:9}{verdict.seconds:6.0f} s  {mutant.name}  [{verdict.by}] {verdict.said}",
                    flush=True,
                )
                plain = {name: asdict(one) for name, one in verdicts.items()}
                as_json.write_text(json.dumps({"what": what, "of": of, "mutants": plain}, indent=1), encoding="utf-8")
                as_markdown.write_text(table(MUTANTS, verdicts, what), encoding="utf-8")

        with ThreadPoolExecutor(asked.jobs) as pool:
            try:
                list(pool.map(judge, [mutant for mutant in chosen if not is_known(mutant)]))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for place in (hunt.sound, *hunt.places):
                    place.stop()
                raise
    print(table(chosen, verdicts, what))
    return 0


if __name__ == "__main__":
    sys.exit(main())
