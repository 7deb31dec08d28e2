"""Options, the fixture and the closing table of ``pytest bench/ --benchmark-only``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.machine import conditions, provenance
from bench.measure import Timing
from bench.rows import Piece, Session, TimeRow

SESSION = pytest.StashKey[Session]()
SHORT = Timing(rounds=15, seconds=4.0)
"""Without --full."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastmc")
    group.addoption("--full", action="store_true", help="more rounds, and pieces whose plain way takes half a minute")
    group.addoption("--device", default="cpu", help="cpu or cuda: where loss, views and steps are measured")


def pytest_configure(config: pytest.Config) -> None:
    timing = Timing() if config.getoption("--full") else SHORT
    config.stash[SESSION] = Session(replace(timing, device=config.getoption("--device")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Pieces that wait for --full are no rows at all, and are named below the closing table."""
    if config.getoption("--full"):
        return
    pieces = {item: item.callspec.params.get("piece") for item in items if hasattr(item, "callspec")}
    waiting = {item: piece for item, piece in pieces.items() if isinstance(piece, Piece) and piece.full}
    if waiting:
        config.hook.pytest_deselected(items=list(waiting))
        items[:] = [item for item in items if item not in waiting]
        config.stash[SESSION].left_out += dict.fromkeys(piece.title for piece in waiting.values())


@pytest.fixture
def time_row(benchmark: Any, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> TimeRow:
    """Fills in a row; the first of a piece measures all of its rows, and says so."""

    def fill(piece: Piece, row: str) -> None:
        with capsys.disabled():
            request.config.stash[SESSION].time(benchmark, piece, row)

    return fill


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    session = config.stash[SESSION]
    if not session.shown:
        return
    terminalreporter.section("side by side, in turns")
    for line in session.text():
        terminalreporter.write_line(line)
    terminalreporter.write_line(conditions(provenance(session.timing.device, session.timing.threads)))
