"""Options of the benchmarks."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastmc")
    group.addoption("--sweep", action="store_true", help="also sweep K and B, some twenty minutes, as bench.sweep does")
    group.addoption("--device", default="cpu", help="cpu or cuda: where the contrast is measured")
