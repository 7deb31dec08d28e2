"""What an example would call, without calling it, and whether that could be called so: the examples that cannot run."""

from __future__ import annotations

import argparse
import ast
import functools
import importlib
import importlib.util
import inspect
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tyro

from fastmc.config import preset_config
from train import evaluate
from train.command.parse import parse

ROOT = Path(__file__).resolve().parents[1]
OURS = ("bench", "fastmc", "kernels", "tests", "train")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
RECORDING = r"""
PATH=/nonexistent
TIMEFORMAT=
command_not_found_handle() { printf '%s\0' "$#" "$@" >&3; }
cd() { :; }
function source { :; }
function . { :; }
"""
"""For bash: every command is written down, and succeeds."""


class Parsed(BaseException):
    """A command line is one that its command takes."""


def calls_of(script: str, folder: Path) -> list[list[str]]:
    """The commands that a script calls, each with its arguments, as bash reads it; none of them is run.

    Raises:
        ValueError: the script is no such.
    """
    record = folder / "calls"
    done = subprocess.run(
        ["bash", "-c", 'exec 3>"$1"; eval "$2"', "bash", record, f"{RECORDING}\n{script}"],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "USER")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    if done.stderr.strip():
        raise ValueError(done.stderr.strip())
    words = iter(record.read_text(encoding="utf-8").split("\0")[:-1])
    return [[next(words) for _ in range(int(count))] for count in words]


def check_call(call: Sequence[str]) -> None:
    """ValueError where a command of ours, a target of make, a script, an extra or a test is not there, or does not take
    these arguments. What is not ours passes."""
    name, *arguments = call
    scripts = {script: to.partition(":")[0].removeprefix("fastmc.") for script, to in PROJECT["scripts"].items()}
    if name in scripts:
        known = scripts[name] if scripts[name].startswith("train.") else f"fastmc.{scripts[name]}"
        check_module(known.removesuffix(".__main__"), arguments)
    elif name.startswith("fastmc-"):
        raise ValueError(f"there is no {name}")
    elif name == "make":
        _check_make(arguments)
    for n, (word, following) in enumerate(zip(call, arguments, strict=False)):
        if word == "-m" and following.split(".")[0] in OURS:
            check_module(following, call[n + 2 :])
        elif word.endswith(("python", "python3", "pytest")) and following.endswith(".py"):
            _check_path(following)
    if "pytest" in call:
        for argument in call[call.index("pytest") + 1 :]:
            if "/" in argument and not argument.startswith("-"):
                _check_path(argument.partition("::")[0])
    if "pip" in call:
        for extras in re.findall(r"(?:^|\s)(?:\.|fastmc)\[([\w,]+)\]", " ".join(arguments)):
            unknown = set(extras.split(",")) - set(PROJECT["optional-dependencies"])
            if unknown:
                raise ValueError(f"there is no extra {', '.join(unknown)}")


def _check_path(name: str) -> None:
    if not (ROOT / name).exists():
        raise ValueError(f"there is no {name}")


def _check_make(arguments: Sequence[str]) -> None:
    for argument in arguments:
        variable, is_one, _ = argument.partition("=")
        known = rf"^{re.escape(variable)} *[?:]?=" if is_one else rf"^{re.escape(argument)}:"
        if not re.search(known, MAKEFILE, re.MULTILINE):
            raise ValueError(f"the Makefile has no {variable}")


def check_module(name: str, arguments: Sequence[str]) -> None:
    """ValueError unless ``python -m name`` is there and takes these arguments, by its own parser; it is not run."""
    try:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(name)
        package = bool(importlib.util.find_spec(name).submodule_search_locations)
        module = importlib.import_module(f"{name}.__main__" if package else name)
        main = module.main
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"python -m {name} is no command: {error}") from None
    takes = list(inspect.signature(main).parameters)
    if not takes and not hasattr(module, "argparse"):
        if arguments:
            raise ValueError(f"python -m {name} takes no arguments")
        return
    with pytest.MonkeyPatch.context() as patch:
        _parse_only(patch)
        patch.setattr(sys, "argv", [name, *arguments])
        try:
            code = main(list(arguments)) if takes else main()
        except Parsed:
            return
        except SystemExit as error:
            code = error.code
            if not code:  # --help
                return
    raise ValueError(f"python -m {name} {' '.join(arguments)}: exit code {code} before anything is run")


def _parse_only(patch: pytest.MonkeyPatch) -> None:
    """From here on `Parsed` is raised where a command line has been read, and no run folder is looked for."""

    def cli(*given: Any, real: Any = tyro.cli, **how: Any) -> Any:
        found = real(*given, **how)
        if not how.get("return_unknown_args"):
            raise Parsed
        if "prog" in how:  # the rest is for train.run
            parse(found[1])
        return found

    def from_dict(commands: dict[str, Any], real: Any = tyro.extras.subcommand_cli_from_dict, **how: Any) -> Any:
        return real({name: _raising(command) for name, command in commands.items()}, **how)

    def parse_args(self: argparse.ArgumentParser, *given: Any, real: Any = argparse.ArgumentParser.parse_args) -> Any:
        real(self, *given)
        raise Parsed

    patch.setattr(tyro, "cli", cli)
    patch.setattr(tyro.extras, "subcommand_cli_from_dict", from_dict)
    patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    patch.setattr(evaluate, "load_config", lambda *_: preset_config("paper", "ntu60"))
    patch.setattr(signal, "signal", lambda *_: None)


def _raising(command: Any) -> Any:
    @functools.wraps(command)
    def stand_in(*_: Any, **__: Any) -> None:
        raise Parsed

    return stand_in


def check_python(code: str) -> None:
    """ValueError or SyntaxError unless it is Python and what it imports of ours, or takes from ``fastmc``, is there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            wanted = [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            wanted = [(alias.name, None) for alias in node.names if alias.name.split(".")[0] in OURS]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fastmc":
            wanted = [("fastmc", node.attr)]
        else:
            continue
        for module, name in wanted:
            try:
                if name is not None and not hasattr(importlib.import_module(module), name):
                    importlib.import_module(f"{module}.{name}")
                importlib.import_module(module)
            except ModuleNotFoundError:
                raise ValueError(f"there is no {module}.{name}" if name else f"there is no {module}") from None
