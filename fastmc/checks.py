"""The check of a number that every setting and argument shares."""

from __future__ import annotations

import math
from numbers import Real


def check_number(
    name: str, value: float, *, above: float = -math.inf, at_least: float = -math.inf, at_most: float = math.inf
) -> None:
    """A finite number with above < value and at_least <= value <= at_most."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if not (above < value and at_least <= value <= at_most):
        limits = [f"> {above}"] * (above > -math.inf) + [f">= {at_least}"] * (at_least > -math.inf)
        limits += [f"<= {at_most}"] * (at_most < math.inf)
        raise ValueError(f"{name} must be {' and '.join(limits)}, got {value!r}")
