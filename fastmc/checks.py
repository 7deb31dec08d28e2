"""The check of a number that every setting and argument shares, and the ranges that settings declare.

@dataclass(frozen=True)
class OptimConfig:
    lr: Positive = 0.01

    def __post_init__(self) -> None:
        check_ranges(self)
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from numbers import Integral, Real
from typing import Annotated, Any


@dataclass(frozen=True)
class Range:
    """Finite numbers with above < number and at_least <= number <= at_most."""

    above: float = -math.inf
    at_least: float = -math.inf
    at_most: float = math.inf

    def check(self, name: str, value: object) -> None:
        """ValueError if it is another; the message names it."""
        number = _finite(value)
        if number is None:
            huge = isinstance(value, int) and value.bit_length() > 1024  # Python may refuse to write it out
            raise ValueError(f"{name} must be a finite number, got {'a larger one' if huge else repr(value)}")
        if not (self.above < number and self.at_least <= number <= self.at_most):
            limits = [f"> {self.above}"] * (self.above > -math.inf) + [f">= {self.at_least}"] * (
                self.at_least > -math.inf
            )
            limits += [f"<= {self.at_most}"] * (self.at_most < math.inf)
            raise ValueError(f"{name} must be {' and '.join(limits)}, got {value!r}")


def _finite(value: object) -> float | None:
    """A number as a float; None for what is none, or is too large for one."""
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(above=0, at_most=1)]
"""Of a whole, more than nothing."""
Probability = Annotated[float, Range(at_least=0, at_most=1)]
Count = Annotated[int, Range(at_least=1)]
Whole = Annotated[int, Range(at_least=0)]
Seed = Annotated[int, Range(at_least=0, at_most=2**31 - 1)]


def check_number(
    name: str, value: float, *, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf
) -> None:
    """A finite number with above < value and at_least <= value <= at_most."""
    Range(above, at_least, at_most).check(name, value)


def check_ranges(settings: Any) -> None:
    """Each number of a dataclass that declares its range, on its own or in a tuple; one that may be None may be.

    Raises:
        ValueError: a number is out of its range, or no whole one where it has to be; the message names the field.
    """
    for name, kind, limits in declared_ranges(settings.__class__):
        value = getattr(settings, name)
        for number in value if isinstance(value, tuple) else () if value is None else (value,):
            limits.check(name, number)
            if kind is int and not isinstance(number, Integral):
                raise ValueError(f"{name} must be a whole number, got {number!r}")


@cache
def declared_ranges(settings: type) -> tuple[tuple[str, type, Range], ...]:
    """(field, int or float, range) of each number that the dataclass declares one of."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return tuple((name, kind, limits) for name, hint in hints.items() for kind, limits in _numbers(hint))


def _numbers(hint: Any) -> Iterator[tuple[type, Range]]:
    """Of a type such as Positive, Positive | None, tuple[Count, ...]."""
    if typing.get_origin(hint) is Annotated:
        kind, *notes = typing.get_args(hint)
        yield from ((kind, note) for note in notes if isinstance(note, Range))
    else:
        for part in typing.get_args(hint):
            yield from _numbers(part)
