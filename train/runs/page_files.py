"""What a page takes from the small files of a run folder, each value of the kind that it should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fastmc.config import RunFolderError, from_plain
from fastmc.evaluation import EvalConfig
from fastmc.reading import reading, shown
from kernels.ranges import PARTS
from train.engine.profiling import PARTS_FILE, Part
from train.runs.folder import ACCURACIES, NOT_EVALUATED, read_json, read_list

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Report:
    """Of report.json.

    Attributes:
        trained, untrained: percent, in the order of `ACCURACIES`; None where it was not evaluated.
        evaluation: settings of that. data: digest of clips and labels; empty where an older fastmc has not written it.
        why_not: it was evaluated; None where it was.
    """

    trained: list[float | None]
    untrained: list[float | None]
    evaluation: EvalConfig
    data: str
    protocol: str
    steps: int
    wall_seconds: float
    notes: tuple[str, ...]
    why_not: str | None

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Report:
        """ValueError or the like for a value of another kind."""
        before = _of_kind(plain.get("random_init", {}), dict)
        return cls(
            trained=[_number_or_none(plain.get(key)) for key in ACCURACIES],
            untrained=[_number_or_none(before.get(key)) for key in ACCURACIES],
            evaluation=from_plain(EvalConfig, _of_kind(plain.get("evaluation", {}), dict)),
            data=_of_kind(plain.get("data", ""), str),
            protocol=_of_kind(plain.get("protocol", ""), str),
            steps=_of_kind(plain.get("steps", 0), int),
            wall_seconds=float(plain.get("wall_seconds", 0.0)),
            notes=tuple(_of_kind(note, str) for note in _of_kind(plain.get("notes", []), list)),
            why_not=_of_kind(plain[NOT_EVALUATED], str) if NOT_EVALUATED in plain else None,
        )


@dataclass(frozen=True)
class Begun:
    """Of environment.json: where and with what a run was begun, as texts; empty where it does not say."""

    began: str = ""
    commit: str = ""
    device: str = ""
    versions: str = ""

    @classmethod
    def of(cls, plain: list[Any]) -> Begun:
        first = _of_kind(plain[0], dict) if plain else {}
        packages = _of_kind(first.get("packages", {}), dict)
        versions = [f"{name} {packages[name]}" for name in ("fastmc", "torch") if packages.get(name)]
        device = first.get("gpu") or first.get("device") or ""
        return cls(str(first.get("began", "")), str(first.get("commit") or "")[:12], str(device), ", ".join(versions))


@dataclass(frozen=True)
class Profile:
    """Of profile/parts.json: so many steps, and their parts."""

    steps: int
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Profile:
        parts = tuple(Part(**_of_kind(part, dict)) for part in _of_kind(plain["parts"], list))
        for part in parts:
            float(part.cpu), _number_or_none(part.gpu)
            if part.name not in PARTS or part.within not in (None, *PARTS) or part.name == part.within:
                raise ValueError(f"{shown(part.name)} within {shown(part.within)} is no part of a step")
        return cls(_of_kind(plain["steps"], int), parts)


def read_report(folder: Path) -> Report | None:
    """None where the run is not finished. RunFolderError for a damaged file, as of the others here."""
    return _read(folder / "report.json", read_json, Report.of)


def read_begun(folder: Path) -> Begun:
    return _read(folder / "environment.json", read_list, Begun.of) or Begun()


def read_profile(folder: Path) -> Profile | None:
    """None where nothing was profiled."""
    return _read(folder / "profile" / PARTS_FILE, read_json, Profile.of)


def _read(path: Path, read: Callable[[Path], Any], of: Callable[[Any], Kind]) -> Kind | None:
    plain = read(path)
    if plain is None:
        return None
    with reading(f"{path} is damaged", RunFolderError, remedy="delete it, and the page goes without"):
        return of(plain)


def _of_kind(value: Any, kind: type[Kind]) -> Kind:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"it holds {shown(value)}, expected {kind.__name__}")
    return value


def _number_or_none(value: Any) -> float | None:
    return None if value is None else float(value)
