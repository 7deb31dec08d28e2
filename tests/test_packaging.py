"""What is handed to strangers: a source archive, and the wheel built of it, which owns no name but fastmc."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import Distribution
from pathlib import Path
from typing import NamedTuple

import pytest
from once import made_once

pytest.importorskip("setuptools", "70.1", "older ones build no wheel by themselves")

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.program
NOT_SHIPPED = {".ci/run", ".gitattributes", ".gitignore"}
HOSTILE = 'raise ImportError(f"{__name__} of somebody else was imported")\n'


class Handed(NamedTuple):
    """What `handed` has made: the unpacked source archive, an installation of its wheel, somebody's working folder."""

    source: Path
    site: Path
    work: Path

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command of somebody who has installed the wheel; ``python`` is this one."""
        paths = {"PYTHONPATH": str(self.site), "OMP_NUM_THREADS": "1", "NUMBA_DISABLE_JIT": "1", **environment}
        program = sys.executable if command[0] == "python" else self.site / "bin" / command[0]
        done = subprocess.run(
            [program, *command[1:]],
            cwd=self.work,
            env={**os.environ, **paths},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
        return done


@pytest.fixture(scope="module")
def handed(tmp_path_factory) -> Handed:
    """The installation has a foreign ``kernels`` beside it, the working folder a ``train.py`` and a ``kernels.py``."""
    folder = made_once(tmp_path_factory, "handed", hand_over)
    (source,) = (folder / "source").iterdir()
    return Handed(source, folder / "site", folder / "work")


def hand_over(folder: Path) -> None:
    junk = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "data", "wheels", "*.egg-info")
    # What is compiled meanwhile, by numba too, is written under such a name, which is gone as soon as it is whole.
    unfinished = shutil.ignore_patterns("*.pyc.*", "*.tmp.*")

    def left_out(at: str, names: list[str]) -> set[str]:
        return (junk if at == str(ROOT) else unfinished)(at, names)

    shutil.copytree(ROOT, folder / "clone", ignore=left_out)
    build(folder / "clone", "sdist", folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    build(source, "wheel", folder)
    (wheel,) = folder.glob("*.whl")
    site, pip = folder / "site", [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--no-compile", "--target", site, wheel], check=True, timeout=120)
    for name in ("kernels", "work"):
        (folder / name).mkdir()
    shutil.move(folder / "kernels", site)
    for file in (site / "kernels" / "__init__.py", folder / "work" / "train.py", folder / "work" / "kernels.py"):
        file.write_text(HOSTILE)


def build(source: Path, what: str, out: Path) -> None:
    """By the hook that pip and build call."""
    code = f"from setuptools.build_meta import build_{what} as build; build({str(out)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_source_archive_holds_what_is_needed_to_build_test_and_read(handed):
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no clone: nothing says what belongs to it")
    ours = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()} - NOT_SHIPPED
    assert {"README.md", "setup.py", "docs/kernels.md", "tests/test_packaging.py", "bench/step.py"} <= ours
    there = {str(path.relative_to(handed.source)) for path in handed.source.rglob("*") if path.is_file()}
    made = {name for name in there if name.startswith(("build/", "fastmc.egg-info/"))} | {"PKG-INFO", "setup.cfg"}
    assert there - made == ours


def place_in_wheel(path: Path) -> Path:
    return path if path.parts[0] == "fastmc" else "fastmc" / path


def files_of_clone() -> list[Path]:
    files = [path for top in ("fastmc", "kernels", "train") for path in (ROOT / top).rglob("*") if path.is_file()]
    return [path.relative_to(ROOT) for path in files if "__pycache__" not in path.parts]


def test_a_wheel_owns_fastmc_alone(handed):
    (about,) = handed.site.glob("fastmc-*.dist-info")
    found = Distribution.at(about)
    shipped = {str(path) for path in found.files or () if not str(path).startswith((about.name, "../../bin"))}
    assert shipped == {str(place_in_wheel(path)) for path in files_of_clone()}
    assert found.read_text("top_level.txt") == "fastmc\n"
    assert found.metadata.get_payload().startswith("# fastmc\n")
    assert found.metadata["Requires-Python"] == ">=3.11"
    assert "Typing :: Typed" in found.metadata.get_all("Classifier")


class Plain(ast.NodeTransformer):
    """A program without what a wheel may say otherwise: where imports come from, and texts."""

    def visit_Import(self, node):
        return ast.Import(names=[])

    visit_ImportFrom = visit_Import

    def visit_Constant(self, node):
        return ast.Constant("") if isinstance(node.value, str) else node


def test_imports_and_texts_are_all_that_differs(handed):
    for path in files_of_clone():
        if path.suffix == ".py":
            ours, theirs = (p.read_text(encoding="utf-8") for p in (ROOT / path, handed.site / place_in_wheel(path)))
            assert ours.count("\n") == theirs.count("\n"), path
            assert ast.dump(Plain().visit(ast.parse(ours))) == ast.dump(Plain().visit(ast.parse(theirs))), path


def texts_of_wheel(handed: Handed) -> list[tuple[Path, str]]:
    """All strings, f-strings in one piece."""
    texts = []
    for path in sorted((handed.site / "fastmc").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append((path, node.value))
            elif isinstance(node, ast.JoinedStr):
                texts.append(
                    (path, "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values))
                )
    return texts


def test_nothing_in_a_wheel_names_what_is_not_there(handed):
    commands = {path.name for path in (handed.site / "bin").iterdir()}
    assert len(commands) == 11
    named = set()
    for path, text in texts_of_wheel(handed):
        for run in re.findall(r"python\s+-m\s+(\w+\.[\w.]*\w)", text):
            assert run.startswith("bench.") or (handed.site / Path(*run.split("."))).with_suffix(".py").exists(), path
        assert not re.match(r"(?:kernels|train)\.", text), f"{path}: a name of a module that is put together"
        for module in re.findall(r"(?<![\w./-])(?:kernels|train)(?:\.\w+)+", text):
            assert not (ROOT / Path(*module.split(".")[:2])).with_suffix(".py").exists(), f"{path} names {module}"
        for module in re.findall(r"^(?:fastmc)(?:\.\w+)+$", text):
            place = handed.site / Path(*module.split("."))
            assert place.is_dir() or place.with_suffix(".py").exists(), f"{path} names {module}"
        named |= set(re.findall(r"(?<![\w./-])fastmc-\w+", text))
    assert commands <= named


def test_every_module_and_command_works_beside_others_of_our_names(handed):
    done = handed.run("python", "-c", ALL_OF_IT)
    assert int(done.stdout.splitlines()[-1]) > 80, "modules of ours"


ALL_OF_IT = """
import pkgutil, sys
from importlib import import_module
from importlib.metadata import distribution
import fastmc

for module in pkgutil.walk_packages(fastmc.__path__, "fastmc."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
for entry in distribution("fastmc").entry_points:
    if entry.name == "fastmc-doctor":
        assert entry.load()() == 0
        continue
    try:
        entry.load()(["--help"])
    except SystemExit as end:
        assert end.code == 0, entry
site = fastmc.__path__[0]
ours = [name for name in sys.modules if name.split(".")[0] in ("fastmc", "kernels", "train")]
assert all(name.split(".")[0] == "fastmc" and sys.modules[name].__file__.startswith(site) for name in ours), ours
print()
print(len(ours))
"""


def test_the_commands_of_a_wheel_prepare_train_and_evaluate(handed, tmp_path):
    """Processes that are started for a part of the work find the wheel too. Without numba, which would compile."""
    (tmp_path / "numba.py").write_text('raise ImportError("it is not installed")\n')
    paths = {"PYTHONPATH": os.pathsep.join((str(handed.site), str(tmp_path)))}
    few = "synthetic --out data/few --subjects 2 --replications 1 --workers 2"
    handed.run("fastmc-prepare", *few.split(), **paths)
    tiny = "--dataset few --preset tiny --encoder 1x8 --epochs 1 --bank-size 32 --batch-size 8 --out runs/few"
    handed.run("fastmc-train", *tiny.split(), "--frames", "8", "--linear-epochs", "1", **paths)
    job = """if True:
        from pathlib import Path
        from fastmc.train.command.jobs import Job, run_jobs
        arguments = ("knn", "--run", "runs/few")
        there = Path("runs/few/evaluate/knn-xsub.json").is_file
        assert run_jobs([Job("knn", "fastmc.train.evaluate", arguments, Path("knn.log"), there)]) == 1
    """
    handed.run("python", "-c", job, **paths)
    assert (handed.work / "runs" / "few" / "evaluate" / "knn-xsub.json").is_file()


def build_step():
    spec = importlib.util.spec_from_file_location("setup_of_the_clone", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "clone, wheel",
    [
        ("import kernels", "from fastmc import kernels"),
        ("import kernels.mc as mc", "from fastmc.kernels import mc as mc"),
        ("from kernels import mc", "from fastmc.kernels import mc"),
        ("if x:\n    from train.run import (\n        run)", "if x:\n    from fastmc.train.run import (\n        run)"),
        ("from fastmc.data import ntu; import torch", "from fastmc.data import ntu; import torch"),
        ("from .train import x", "from .train import x"),
        ("train.run(kernels.mc)", "train.run(kernels.mc)"),
        ("{'train': 'kernels.mc', 'train.py': ''}", "{'train': 'fastmc.kernels.mc', 'train.py': ''}"),
        ("prog = 'python -m train.run'", "prog = 'fastmc-train'"),
        ("f'{a} python -m train.run {{{b}}} of train.run.'", "f'{a} fastmc-train {{{b}}} of fastmc-train.'"),
        ("'''See\ntrain.runs.load.Run, train.sh'''", "'''See\nfastmc.train.runs.load.Run, train.sh'''"),
        ("# python -m train.command.worker, fastmc.doctor", "# python -m fastmc.train.command.worker, fastmc.doctor"),
    ],
)  # fmt: skip
def test_what_is_rewritten_on_the_way_into_a_wheel(clone, wheel):
    assert build_step().as_in_wheel(clone) == wheel


@pytest.mark.parametrize("line", ["import kernels.mc", "import torch, train", "from   kernels import mc"])
def test_what_cannot_be_rewritten_ends_the_build(line):
    with pytest.raises(ValueError, match="line 2: "):
        build_step().as_in_wheel(f"\n{line}\n")
