"""The rules of the house: who may import whom, foreign packages, a machine without Triton, the doctor."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from fastmc import bank_step_, doctor, foreign_package, mc_loss, mc_step_
from fastmc.backends import VIEWS
from fastmc.objective import chunked
from fastmc.skeleton import KINECT20, NTU25, SKELETONS, Skeleton, mirror_from_names
from fastmc.views.make import make_views

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"kernels": set(), "fastmc": {"kernels"}, "train": {"fastmc", "kernels"}}


def imports_of(path: Path) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_nothing_imports_upward(floor):
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    for path in files:
        above = imports_of(path) & ({"kernels", "fastmc", "train", "bench", "tests"} - FLOORS[floor] - {floor})
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


ROOMS = {
    "fastmc": (
        {
            "checks",
            "contrast_table",
            "files",
            "layouts",
            "optim",
            "parallel",
            "progress",
            "random",
            "ranks",
            "reference",
            "registry",
            "skeleton",
        },
        {"backends", "derivatives", "reading", "tensor_files"},
        {"arguments"},
        {"checkpoint", "data", "data.bytes", "data.synthetic", "objective", "views"},
        {"data.formats", "data.placed", "encoders", "state"},
        {"evaluation", "methods"},
        {"config", "figures"},
        {"page"},
        {"budget", "build", "doctor", "encoder_file"},
        {"embedding"},
        {"portable"},
    ),
    "train": (
        {"engine"},
        {"command"},
        {"runs"},
        {"prepare", "run"},
        {"convert", "embed", "evaluate", "export", "figures", "look", "report", "tables"},
    ),
}
"""Floors of a package, from the ground up; a room is a folder or a file beside the folders. None imports upward, and on
its own floor there is no circle."""


def room_of(module: str) -> str:
    """Such as data.formats of fastmc.data.formats.npz, and checks of fastmc.checks."""
    package, *names = module.split(".")
    folder = [name for n, name in enumerate(names) if ROOT.joinpath(package, *names[: n + 1]).is_dir()]
    return ".".join(folder) or names[0]


def rooms_imported(path: Path, package: str) -> set[str]:
    """Rooms of its package that a file imports, anywhere in it but for the type checker."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hints = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    unseen = {id(inner) for hint in hints for inner in ast.walk(hint)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in unseen and node.module:
            if node.module == package:
                found |= {
                    room_of(f"{package}.{alias.name}")
                    for alias in node.names
                    if (ROOT / package / f"{alias.name}.py").exists()
                }
            elif node.module.startswith(f"{package}."):
                found.add(room_of(node.module))
    return found


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_stand_on_their_floors_and_there_is_no_circle(package):
    floor = {room: n for n, rooms in enumerate(ROOMS[package]) for room in rooms}
    arrows: dict[str, set[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if module != package:
            room = room_of(module)
            arrows.setdefault(room, set()).update(rooms_imported(path, package) - {room})
    assert arrows.keys() == floor.keys(), "a room that has no floor, or a floor of no room"
    for room, others in arrows.items():
        above = {other for other in others if floor[other] > floor[room]}
        assert not above, f"{package}.{room} imports {above}"
    done: set[str] = set()
    while left := arrows.keys() - done:
        free = {room for room in left if arrows[room] <= done}
        assert free, f"a circle among {left}"
        done |= free


def run_python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    program = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=path[0], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.program
def test_foreign_package_is_never_picked_up_silently(tmp_path):
    for package in ("kernels", "train"):
        (tmp_path / package / package).mkdir(parents=True)
        (tmp_path / package / package / "__init__.py").write_text("")
    done = run_python("import fastmc", tmp_path / "kernels", ROOT)
    assert done.returncode == 1
    assert "ImportError: import kernels finds" in done.stderr and str(tmp_path) in done.stderr
    done = run_python("import fastmc; print(fastmc.foreign_package('train'))", tmp_path / "train", ROOT)
    assert str(tmp_path) in done.stdout


@pytest.mark.program
def test_train_of_another_clone_is_refused(tmp_path):
    """fastmc from here, train from a copy elsewhere."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "__init__.py").write_text((ROOT / "train" / "__init__.py").read_text())
    done = run_python("import train", tmp_path, ROOT)
    assert done.returncode == 1
    assert "does not belong to the fastmc" in done.stderr


def test_own_packages_are_ours():
    assert [foreign_package(name) for name in ("fastmc", "kernels", "train")] == [None] * 3
    assert foreign_package("json") is not None
    assert foreign_package("no_such_package_at_all") == "nowhere"


@pytest.mark.program
def test_without_triton_everything_works_and_asking_for_it_says_why():
    block = "sys.modules['triton'] = None\nimport torch, fastmc, fastmc.methods.a2mc, train.run\n"
    rows = "f = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)\n"
    losses = "print(fastmc.mc_loss(f, f, f, f, f, 0.2).item() > 0)\nfastmc.mc_loss(f, f, f, f, f, 0.2, impl='triton')"
    done = run_python(block + rows + losses, ROOT)
    assert done.stdout.strip() == "True", done.stderr
    assert done.returncode == 1
    assert "impl='triton' cannot run" in done.stderr


def test_an_interpreter_that_computes_wrongly_is_refused(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "interpreter computes bfloat16 wrongly" in kernels.unavailable_reason(torch.device("cpu"))


@pytest.mark.parametrize(("version", "old"), [("3.3.1", True), ("3.4.0+git1a2b", False), ("10.0", False)])
def test_a_triton_without_knobs_is_too_old(version, old, monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton, "__version__", version)
    reason = kernels.too_old_reason.__wrapped__()
    assert (reason is not None) == old
    assert reason is None or reason.startswith("Triton 3.3.1 is too old (3.4 or later is needed")


def test_a_gpu_without_what_triton_builds_its_launchers_with_says_so(monkeypatch, tmp_path):
    no_launcher_reason = kernels.no_launcher_reason.__wrapped__
    assert no_launcher_reason() is None, "here both are there"
    monkeypatch.setattr(kernels.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    assert no_launcher_reason() == (
        f"Triton needs {tmp_path / 'Python.h'}, which is not there (on Debian: apt-get install python3-dev)"
    )
    monkeypatch.setattr(kernels, "which", lambda name: None)
    monkeypatch.delenv("CC", raising=False)
    assert no_launcher_reason().startswith("Triton finds no C compiler")
    monkeypatch.setenv("CC", "tcc")
    assert "Python.h" in no_launcher_reason()


def test_the_doctor_says_what_a_gpu_needs_beside_it(monkeypatch):
    assert doctor.gpu_lines() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    (cudnn, launcher) = doctor.gpu_lines()
    assert cudnn == ("cudnn", "9.10.2: cuDNN 9.10.2 has no recurrent nets in bfloat16, 9.13.0 has", False)
    assert launcher == ("launcher of kernels", "a C compiler and Python.h are there", True)


def test_doctor_is_content_here(capsys):
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "torch on cpu         runs, error" in out
    line = next(line for line in out.splitlines() if "triton on cpu        cannot run:" in line)
    assert "without a GPU kernels run in an interpreter: docs/kernels.md" in line
    assert out.endswith("ok\n")


def test_doctor_notices_a_wrong_implementation(monkeypatch, capsys):
    """Of the loss, of the bank's step, and of what training calls."""

    def wrong_loss(*arguments, impl, **settings):
        return mc_loss(*arguments, impl=impl, **settings) * (1.001 if impl == "torch" else 1)

    def wrong_step(bank, *arguments, impl, **settings):
        found = mc_step_(bank, *arguments, impl=impl, **settings)
        return found._replace(df3=found.df3 * (1.001 if impl == "torch" else 1))

    def poisoned(bank, momentum, *arguments, impl, **settings):
        bank_step_(bank, momentum, *arguments, impl=impl, **settings)
        if impl == "torch":
            bank[0, 0] = float("nan")

    for name, wrong in (("mc_loss", wrong_loss), ("mc_step_", wrong_step), ("bank_step_", poisoned)):
        with monkeypatch.context() as patch:
            patch.setattr(doctor, name, wrong)
            assert not doctor.self_test("torch", torch.device("cpu")) < 1e-4
    monkeypatch.setattr(doctor, "mc_loss", wrong_loss)
    monkeypatch.setattr(doctor, "foreign_package", lambda name: "/elsewhere/train" if name == "train" else None)
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "!!torch on cpu" in said and "!!train                another package is found: /elsewhere/train" in said


def test_doctor_tests_triton_in_each_precision_where_it_can_run(monkeypatch, capsys):
    """The chunked functions stand in for the kernels."""
    monkeypatch.setitem(sys.modules, "kernels.mc", chunked)
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: None)
    only_torch = [
        b._replace(why_not=lambda need, name=b.name: None if name == "torch" else "not here") for b in VIEWS.backends
    ]
    monkeypatch.setattr(doctor, "VIEWS", VIEWS._replace(backends=tuple(only_torch)))
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "triton on cpu        runs with ieee products, error" in out
    assert "triton on cpu        runs with bf16x3 products, error" in out


def test_doctor_tests_the_views(monkeypatch, capsys):
    def wrong(clips, params, skeleton, *, impl):
        return make_views(clips, params, skeleton, impl=impl) * (1.001 if impl == "torch" else 1)

    assert doctor.view_self_test("torch", torch.device("cpu")) < 1e-6
    monkeypatch.setattr(doctor, "make_views", wrong)
    assert doctor.view_self_test("torch", torch.device("cpu")) > 1e-4
    assert doctor.main([]) == 1
    assert "!!torch on cpu" in capsys.readouterr().out


def test_kinect_layouts():
    assert NTU25.num_joints == 25
    assert KINECT20.num_joints == 20
    names = NTU25.joint_names
    for left, right in ((4, 8), (7, 11), (12, 16), (15, 19), (21, 23), (22, 24)):
        assert NTU25.mirror[left] == right
        assert NTU25.mirror[right] == left
    assert [names[i] for i, j in enumerate(NTU25.mirror) if i == j] == [
        "spine base",
        "spine mid",
        "neck",
        "head",
        "spine shoulder",
    ]
    # The field's bone list: the parents of joints 1 to 25, 1-based.
    parents = [2, 21, 21, 3, 21, 5, 6, 7, 21, 9, 10, 11, 1, 13, 14, 15, 1, 17, 18, 19, 21, 23, 8, 25, 12]
    assert [parent + 1 for parent in NTU25.parents] == parents
    bones = {(names[child], names[parent]) for child, parent in NTU25.bones}
    assert len(bones) == 24
    assert {("left elbow", "left shoulder"), ("head", "neck"), ("spine base", "spine mid")} <= bones


def test_skeleton_survives_json_and_refuses_nonsense():
    for skeleton in SKELETONS.values():
        assert Skeleton.from_dict(skeleton.to_dict()) == skeleton
    assert mirror_from_names(["hip", "hand_left", "hand_right", "left toe"]) == (0, 2, 1, 3)
    with pytest.raises(ValueError, match="parents"):
        Skeleton("x", ("a", "b"), parents=(0,))
    with pytest.raises(ValueError, match="inverse"):
        Skeleton("x", ("a", "b", "c"), mirror=(1, 2, 0))
    with pytest.raises(ValueError, match="hip"):
        Skeleton("x", ("a", "b"), hip=2)
    assert NTU25.index("head") == NTU25.index("3") == 3
    with pytest.raises(ValueError, match="no joint named"):
        NTU25.index("tail")
