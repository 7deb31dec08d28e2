"""All headline numbers in one run: python -m bench.summary --help."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import tyro

from bench.headlines import EXPERIMENTS, Report, Settings, headline_markdown, headline_table
from bench.machine import QUIET, conditions, provenance, watch_neighbours
from bench.parity import ParityError

RESULTS = Path(__file__).with_name("results")
LOOK = 2.0
"""Seconds to look at what else goes on before anything is measured."""


@dataclass(frozen=True)
class Summary(Settings):
    """Measure all headline numbers in one run, print them, and append them to bench/results/summary.jsonl.

    Every provider is checked against the float64 reference first; one that is wrong ends the run without a number.
    Providers are timed in turns in one process, and medians are compared. Memory is measured in processes of their own.
    Takes some minutes, most of them for the plain reference. Wants a machine with nothing else to do.

    For docs/benchmarks.md: python -m bench.summary --markdown
    """

    only: tuple[str, ...] = tuple(EXPERIMENTS)
    """Experiments of bench/headlines.py."""
    json: bool = False
    """Print JSON: the headlines by key, their spread, the conditions, and every single time."""
    markdown: bool = False
    """Print the tables of docs/benchmarks.md."""
    record: bool = True
    """Append the run to the results."""
    results: Path = RESULTS
    """Folder of the results."""
    strict: bool = False
    """Refuse to measure while other processes keep this machine busy. Else that is a warning and in the record."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.only) - set(EXPERIMENTS)
        if unknown:
            raise ValueError(f"only must be of {', '.join(EXPERIMENTS)}; got {', '.join(sorted(unknown))}")


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(Summary, prog="python -m bench.summary", args=args)
    try:
        return _measure(settings)
    except (ParityError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _measure(settings: Summary) -> int:
    machine = provenance(settings.device, settings.threads)
    if settings.device == "cpu":
        _check_quiet(settings.strict)
    reports = {name: EXPERIMENTS[name](settings) for name in settings.only}
    content = _content(settings, machine, reports)
    if content["others_busy"] > QUIET:
        print(f"warning: disturbed, others used {content['others_busy']:.2f} cores meanwhile", file=sys.stderr)
    if settings.record:
        settings.results.mkdir(parents=True, exist_ok=True)
        with (settings.results / "summary.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
    print(_shown(settings, content, reports))
    return 0


def _check_quiet(strict: bool) -> None:
    with watch_neighbours() as others:
        time.sleep(LOOK)
    if not others.disturbing:
        return
    message = f"other processes keep {others.busy:.2f} cores busy, so timings would mislead"
    if strict:
        raise RuntimeError(f"{message}; wait, or leave --strict out")
    print(f"warning: {message}", file=sys.stderr)


def _content(settings: Summary, machine: dict[str, Any], reports: dict[str, Report]) -> dict[str, Any]:
    """The JSON of a run: headlines by key on top, then all that they rest on."""
    headlines = [headline for report in reports.values() for headline in report.headlines]
    method = {f.name: getattr(settings, f.name) for f in fields(Settings)}
    return {
        **{h.key: h.value for h in headlines},
        "spread": {h.key: [h.low, h.high] for h in headlines if h.low is not None},
        "conditions": _conditions_line(settings, machine),
        "others_busy": max((busy for report in reports.values() for busy in report.others_busy), default=0.0),
        "machine": machine,
        "method": method,
        "details": {name: report.details for name, report in reports.items()},
        "headlines": [asdict(h) for h in headlines],
    }


def _conditions_line(settings: Summary, machine: dict[str, Any]) -> str:
    size = f"B = {settings.batch}, K = {settings.bank:,}, D = {settings.dim}"
    return f"{size}; {conditions(machine)}; medians of up to {settings.rounds} rounds in turns, quartiles in brackets"


def _shown(settings: Summary, content: dict[str, Any], reports: dict[str, Report]) -> str:
    if settings.json:
        return json.dumps(content, indent=2)
    headlines = [headline for report in reports.values() for headline in report.headlines]
    if settings.markdown:
        tables = [report.markdown for report in reports.values()]
        note = f"`python -m bench.summary --markdown`; {content['conditions']}."
        return "\n\n".join([headline_markdown(headlines), *tables, note])
    texts = [report.text for report in reports.values()]
    return "\n\n".join([*texts, headline_table(headlines), content["conditions"]])


if __name__ == "__main__":
    sys.exit(main())
