"""Numbers of all settings: each declares its range, and no number out of it passes."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from pathlib import Path
from typing import Annotated, Any

import pytest

from fastmc.checks import Count, Positive, Range, Whole, check_number, check_ranges, declared_ranges
from fastmc.config import Config, LogConfig, OptimConfig, StepConfig
from fastmc.data.placed.placement import DataConfig
from fastmc.encoders.bigru import BiGRUConfig
from fastmc.evaluation import EvalConfig, FinetuneConfig
from fastmc.methods.a2mc import A2MCConfig
from fastmc.views.draw import AugmentConfig
from train.command.evaluation_settings import Ensemble, Finetune, Knn, Linear, Semi, Transfer
from train.embed import Embed
from train.figures import Settings as Figures
from train.tables.__main__ import Settings as Tables

HERE = Path(".")
NEEDED: dict[type, dict[str, Any]] = {
    **{kind: {"run": HERE} for kind in (Knn, Linear, Finetune, Semi, Transfer)},
    Ensemble: {"run": (HERE, HERE)},
    Figures: {"run": (HERE,)},
    Tables: {"table": (1,)},
    Embed: {"run": HERE, "input": (HERE,), "out": HERE},
}
CLASSES = (
    *(AugmentConfig, A2MCConfig, DataConfig, BiGRUConfig, EvalConfig, FinetuneConfig),
    *(Config, LogConfig, OptimConfig, StepConfig),
    *NEEDED,
)


def make(settings: type, **values: Any) -> Any:
    return settings(**{**NEEDED.get(settings, {}), **values})


def holds_numbers(hint: Any) -> bool:
    """Whether a type is of numbers, or a tuple or an option of them; bool is none, nor are names in a Literal."""
    if typing.get_origin(hint) is typing.Literal:
        return False
    parts = typing.get_args(hint)
    return any(map(holds_numbers, parts)) if parts else hint in (int, float)


NUMBERS = [(settings, name, limits) for settings in CLASSES for name, _kind, limits in declared_ranges(settings)]


@pytest.mark.parametrize("settings", CLASSES)
def test_every_number_declares_its_range(settings):
    """So one that is added without a range fails here."""
    hints = typing.get_type_hints(settings)
    numbers = {field.name for field in dataclasses.fields(settings) if holds_numbers(hints[field.name])}
    assert numbers == {name for name, _kind, _limits in declared_ranges(settings)}
    make(settings)


@pytest.mark.parametrize(("settings", "name", "limits"), NUMBERS, ids=[f"{s.__name__}.{n}" for s, n, _ in NUMBERS])
def test_no_number_out_of_its_range_passes(settings, name, limits):
    bad = [math.nan, math.inf, -math.inf, "3", 10**5000]
    bad += [limits.above, limits.above - 1] if limits.above > -math.inf else []
    bad += [limits.at_least - 1, math.nextafter(limits.at_least, -math.inf)] if limits.at_least > -math.inf else []
    bad += [limits.at_most + 1] if limits.at_most < math.inf else []
    assert limits != Range(), "a range without limits is none"
    of_many = typing.get_origin(typing.get_type_hints(settings)[name]) is tuple
    for value in bad:
        with pytest.raises(ValueError, match=rf"\b{name} must be "):
            make(settings, **{name: (value,) if of_many else value})


def test_whole_numbers_are_whole():
    @dataclasses.dataclass(frozen=True)
    class Some:
        count: Count = 1
        size: Positive = 0.5
        many: tuple[Whole, ...] = ()
        maybe: Count | None = None
        high: Annotated[int, Range(at_most=3)] = 0

        def __post_init__(self) -> None:
            check_ranges(self)

    Some(count=2, size=2, many=(0, 7), maybe=3, high=-5)
    for values, says in (
        ({"count": 1.5}, "count must be a whole number, got 1.5"),
        ({"count": 0}, "count must be >= 1, got 0"),
        ({"size": 0}, "size must be > 0, got 0"),
        ({"many": (3, -1)}, "many must be >= 0, got -1"),
        ({"maybe": 0}, "maybe must be >= 1, got 0"),
        ({"high": 4}, "high must be <= 3, got 4"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
            Some(**values)


def test_a_number_of_an_argument():
    check_number("share", 1, above=0, at_most=1)
    with pytest.raises(ValueError, match="share must be > 0 and <= 1, got 0"):
        check_number("share", 0, above=0, at_most=1)
