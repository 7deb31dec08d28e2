"""Drawings of a sweep, time and memory against K and B: python -m bench.plot --help."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.machine import conditions
from bench.measure import Measurement, Result
from bench.providers import PROVIDERS
from bench.sweep import RESULTS

# Okabe and Ito's colours, which most people can tell apart, and marks for print without colour.
STYLES: dict[str, dict[str, Any]] = {
    "reference": {"color": "#000000", "marker": "s"},
    "algebraic": {"color": "#E69F00", "marker": "^"},
    "compiled": {"color": "#CC79A7", "marker": "v"},
    "torch": {"color": "#0072B2", "marker": "o"},
    "triton": {"color": "#009E73", "marker": "D"},
    "products": {"color": "#777777", "marker": "", "linestyle": "--"},
}
COLUMN = 3.5  # inches: a column of a paper, where the letters have to be legible
LETTERS: dict[Any, Any] = {
    "font.size": 6.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.0,
}


@dataclass(frozen=True)
class Plot:
    """Draw a sweep as PNG and SVG, one pair for each mixing."""

    sweep: Path = RESULTS
    """What python -m bench.sweep has written."""
    out: Path | None = None
    """Folder of the drawings; by default that of the sweep."""


def main(args: Sequence[str] | None = None) -> int:
    settings = tyro.cli(Plot, prog="python -m bench.plot", args=args)
    if not settings.sweep.exists():
        print(f"error: there is no {settings.sweep}: python -m bench.sweep makes it", file=sys.stderr)
        return 1
    content = json.loads(settings.sweep.read_text(encoding="utf-8"))
    folder = settings.out or settings.sweep.parent
    folder.mkdir(parents=True, exist_ok=True)
    for mix in content["method"]["mixes"]:
        with rc_context(LETTERS | {"svg.hashsalt": "fastmc"}):  # equal numbers give equal files
            figure = draw(content, mix)
            for kind, metadata in (("png", {}), ("svg", {"Date": None})):
                path = folder / f"{settings.sweep.stem}-{mix}.{kind}"
                figure.savefig(path, dpi=300, metadata=metadata)
                print(path)
    return 0


def draw(content: dict[str, Any], mix: str) -> Figure:
    """Two rows, time and memory; two columns, against K and against B."""
    results = [Result.from_json(r) for r in content["results"] if r["case"]["mix"] == mix]
    method = content["method"]
    over_bank = sorted((r for r in results if r.case.batch == method["at_batch"]), key=lambda r: r.case.bank)
    over_batch = sorted((r for r in results if r.case.bank == method["at_bank"]), key=lambda r: r.case.batch)
    figure = Figure(figsize=(COLUMN, 3.9), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, series, size, at in (
        (0, over_bank, "bank", f"B = {method['at_batch']}"),
        (1, over_batch, "batch", f"K = {method['at_bank']:,}"),
    ):
        time, memory = panels[0, column], panels[1, column]
        for name in method["providers"]:
            _line(time, series, size, name, lambda m: [1e3 * m.median, *(1e3 * q for q in m.quartiles)])
            _line(memory, series, size, name, _megabytes)
        _axis(memory, [getattr(result.case, size) for result in series])
        memory.set_xlabel(f"{size} {'K (entries)' if size == 'bank' else 'B (samples)'}, at {at}")
    panels[0, 0].set_ylabel("time of a call (ms)")
    panels[1, 0].set_ylabel("extra peak memory (MB)")
    for axes in panels.flat:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, linewidth=0.4)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    work = "loss, gradients and bank step" if method["work"] == "step" else "loss and gradients"
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, title=f"{work}, {mix} mixing")
    figure.supxlabel(_note(content, results), fontsize=4.5, color="0.4")
    return figure


def _megabytes(found: Measurement) -> list[float] | None:
    return None if not found.extra_bytes else [found.extra_bytes / 1e6] * 3


def _line(
    axes: Axes, series: list[Result], size: str, name: str, value: Callable[[Measurement], list[float] | None]
) -> None:
    """Medians with bars from quartile to quartile, where the provider was measured."""
    points = []
    for result in series:
        found = result.providers.get(name)
        numbers = value(found) if found is not None and not found.skipped else None
        if numbers is not None:
            points.append((getattr(result.case, size), *numbers))
    if not points:
        return
    x, middle, low, high = zip(*points, strict=True)
    bars = [[m - a for m, a in zip(middle, low, strict=True)], [b - m for m, b in zip(middle, high, strict=True)]]
    axes.errorbar(x, middle, yerr=bars, label=PROVIDERS[name].says, capsize=1.5, elinewidth=0.6, **STYLES[name])


def _axis(axes: Axes, values: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{v // 1024}k" if v >= 1024 and v % 1024 == 0 else str(v) for v in values])
    axes.minorticks_off()


def _note(content: dict[str, Any], results: list[Result]) -> str:
    machine = conditions(content["machine"])
    half = machine.find(", ", len(machine) // 2) + 1
    note = f"medians and quartiles; {machine[:half]}\n{machine[half:].strip()}"
    too_big = {name for result in results for name, found in result.providers.items() if "GB" in (found.skipped or "")}
    if too_big:
        names = ", ".join(PROVIDERS[name].says for name in sorted(too_big))
        note += f"; {names}: only where it needs less than {content['method']['memory_limit_gb']:g} GB"
    return note


if __name__ == "__main__":
    sys.exit(main())
