"""How the clone becomes a wheel. What a wheel says of itself is in pyproject.toml.

A wheel owns one name, fastmc: kernels/ becomes fastmc.kernels and train/ fastmc.train, so that neither another package
of these names nor a train.py in the working folder can stand in for them. What names them is rewritten on the way, line
for line: imports, modules in strings, and commands in messages (python -m train.run is fastmc-train there). An editable
installation (pip install -c constraints.txt -e .[dev], the documented way) is the clone itself and rewrites nothing.
"""

from __future__ import annotations

import ast
import io
import re
import shutil
import tokenize
import tomllib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
BESIDE = ("kernels", "train")
"""Packages that lie beside fastmc in a clone and within it in a wheel."""
NAME = re.compile(rf"(python -m )?(?<![\w./-])((?:fastmc|{'|'.join(BESIDE)})(?:\.\w+)+)")
TEXTS = (tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))


def in_wheel(name: str) -> str:
    """The name of a module of the clone in a wheel."""
    return f"fastmc.{name}" if name.split(".")[0] in BESIDE else name


def in_clone(name: str) -> str:
    """`in_wheel` backwards."""
    inner = name.removeprefix("fastmc.")
    return inner if inner.split(".")[0] in BESIDE else name


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def commands() -> dict[str, str]:
    """The console script of each module of the clone that is a command: {"train.run": "fastmc-train", ...}."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    return {in_clone(call.partition(":")[0]).removesuffix(".__main__"): script for script, call in scripts.items()}


COMMANDS = commands()


def as_in_wheel(source: str) -> str:
    """A file of the clone as the wheel has it, with as many lines.

    Raises:
        ValueError: it imports one of `BESIDE` in a way that cannot be rewritten in its place.
    """
    for start, end, new in sorted([*_imports(source), *_texts(source)], reverse=True):
        source = source[:start] + new + source[end:]
    return source


Change = tuple[int, int, str]
"""From, up to, and what stands there instead."""


def _starts(source: str) -> list[int]:
    """Where each line starts."""
    return [0, *accumulate(len(line) + 1 for line in source.split("\n"))]


def _imports(source: str) -> Iterator[Change]:
    starts = _starts(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            old, new = f"from {node.module}", f"from {in_wheel(node.module)}"
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] in BESIDE for alias in node.names):
            old, new = ast.unparse(node), _import(node)
        else:
            continue
        start = starts[node.lineno - 1] + node.col_offset
        if source[start : start + len(old)] != old:
            raise ValueError(f"line {node.lineno}: write {old}, with single blanks")
        yield start, start + len(old), new


def _import(node: ast.Import) -> str:
    (alias, *others) = node.names
    if others or ("." in alias.name and not alias.asname):
        raise ValueError(f"line {node.lineno}: {ast.unparse(node)} cannot be rewritten; write from ... import ...")
    package, _, name = in_wheel(alias.name).rpartition(".")
    return f"from {package} import {name}" + (f" as {alias.asname}" if alias.asname else "")


def _texts(source: str) -> Iterator[Change]:
    """Strings, docstrings and comments."""
    starts = _starts(source)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in TEXTS:
            start, end = (starts[row - 1] + column for row, column in (token.start, token.end))
            text = source[start:end]
            found = NAME.fullmatch(text[1:-1]) if token.type == tokenize.STRING else None
            if found and not found[1]:  # the string is a name
                new = text[0] + in_wheel(found[2]) + text[-1] if is_module(found[2]) else text
            else:
                new = NAME.sub(_in_prose, text)
            yield start, end, new


def _in_prose(found: re.Match[str]) -> str:
    """A module, what is in one, or a command: python -m train.run, and train.run for short."""
    run, name = found.groups(default="")
    if name in COMMANDS and (run or name.split(".")[0] in BESIDE):
        return COMMANDS[name]
    return run + in_wheel(name) if is_module(".".join(name.split(".")[:2])) else found[0]


class BuildPy(build_py):
    """Copies as `as_in_wheel` says, to where no file is left of an earlier build."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib, "fastmc"), ignore_errors=True)
        super().run()

    def build_module(self, module: str, module_file: str, package: str) -> Any:
        built = super().build_module(module, module_file, package)
        try:
            text = as_in_wheel(Path(module_file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{module_file}, {error}") from None
        Path(built[0]).write_text(text, encoding="utf-8")
        return built


class Editable(editable_wheel):
    """The clone as it stands, its folders beside one another, and commands that call them there."""

    def finalize_options(self) -> None:
        super().finalize_options()
        clone = self.distribution
        clone.packages = packages()
        clone.package_dir, self.package_dir = dict[str, str](), dict[str, str]()
        scripts = clone.entry_points["console_scripts"]
        clone.entry_points = {"console_scripts": [re.sub(r"\S+(?=:)", lambda m: in_clone(m[0]), s) for s in scripts]}
        self.dist_info_dir = None  # it is there already, from pip, and has the wheel's commands


def packages() -> list[str]:
    """Those of the clone."""
    return find_packages(str(ROOT), include=[f"{top}{rest}" for top in ("fastmc", *BESIDE) for rest in ("", ".*")])


if __name__ == "__main__":
    setup(
        packages=[in_wheel(name) for name in packages()],
        package_dir={in_wheel(name): name for name in BESIDE},
        cmdclass={"build_py": BuildPy, "editable_wheel": Editable},
    )
