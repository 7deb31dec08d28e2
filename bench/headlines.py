"""What the project claims in numbers, and how each number comes about.

An experiment measures and returns a report: headlines by key, a table for reading, one for docs/benchmarks.md, and
every single time. A new headline is one more ``Headline`` of an experiment; a new experiment is one more entry of
``EXPERIMENTS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench import contention, data_share, products, views
from bench.contention import HERE, IDLE, LOADS, ONE_BUSY, Contention, Loads
from bench.measure import (
    Measurement,
    Result,
    Timing,
    Turns,
    measure,
    measure_memory,
    milliseconds,
    table,
    times,
)
from bench.providers import MIXES, PROVIDERS, Case, fast_provider
from bench.step import ENCODER, OURS, OURS_STEPWISE, REFERENCE, STEPWISE, StepCase, StepRace, samples_per_second, text
from bench.views import ViewsCase
from fastmc.config import Preset, preset_config
from train.tables.markdown import markdown

STEP_SECONDS = 2
"""Whole steps take seconds each: each side gets so many times the usual time for its rounds."""

CONTENTION_SECONDS = 0.3
"""A turn beside busy cores takes so many times the time that a side usually has for all its rounds."""


@dataclass(frozen=True)
class Settings(Timing):
    """How everything is measured, and at which size; by default the product's."""

    batch: int = 64
    """B, samples."""
    bank: int = 16384
    """K, bank entries."""
    dim: int = 128
    """D, elements of a feature."""
    preset: Preset = "small"
    """Of the training step whose data part is measured; with B from --batch, and bank and encoder from the preset."""
    encoder: str = "3x256"
    """Of the whole training step, layers x hidden units; with B, K and D as above."""
    frames: int = 64
    """Of the whole training step: T of a view."""
    workers: int = 1
    """Processes that make views for the whole training step as earlier codes write it."""
    providers: tuple[str, ...] = tuple(PROVIDERS)
    """Which of bench/providers.py take part. Headlines about the others stay empty."""
    progress: bool = True
    """Bars on stderr."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.providers) - set(PROVIDERS)
        if unknown:
            raise ValueError(f"providers must be of {', '.join(PROVIDERS)}; got {', '.join(sorted(unknown))}")


@dataclass(frozen=True)
class Headline:
    """One number, with the range that the quartiles of what it is made of span; None where it was not measured."""

    key: str
    says: str
    unit: str
    better: str
    """higher or lower."""
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass
class Report:
    """What an experiment found."""

    headlines: list[Headline]
    text: str
    markdown: str
    details: dict[str, Any]
    others_busy: list[float] = field(default_factory=list)
    """Cores that other processes kept busy, by timed case."""


def mc(settings: Settings) -> Report:
    """The step of the contrast: loss, gradients and bank update, by every provider, with both mixings."""
    results = {}
    for mix in MIXES:
        case = Case("step", mix, settings.batch, settings.bank, settings.dim)
        results[mix] = measure(case, settings.providers, settings, memory=False, progress=settings.progress)
    measure_memory(results["own"], settings, progress=settings.progress)
    own, tiled, fast = results["own"], results["tiled"], fast_provider(settings.device)
    extra = own.providers[fast].extra_bytes if fast in own.providers else None
    headlines = [
        _ratio("mc_own_vs_reference", "step: speed-up over the plain reference, own mixing", own, "reference", fast),
        _ratio("mc_tiled_vs_reference", "step: the same, tiled mixing", tiled, "reference", fast),
        _ratio("mc_vs_algebraic", "step: speed-up over algebraic PyTorch with autograd", own, "algebraic", fast),
        _ratio("mc_vs_compiled", "step: speed-up over the same under torch.compile", own, "compiled", fast),
        _ratio("mc_vs_products", "step: time over that of its matrix products alone", own, fast, "products", "lower"),
        Headline("mc_extra_mb", "step: extra peak memory", " MB", "lower", None if extra is None else extra / 1e6),
    ]
    return Report(
        headlines,
        "\n\n".join(map(table, results.values())),
        _providers_markdown(own, tiled),
        {mix: result.to_json() for mix, result in results.items()},
        [result.others_busy for result in results.values() if result.others_busy is not None],
    )


def four_views(settings: Settings) -> Report:
    """The four views of a batch, by fastmc and by a loader's worker in numpy, one clip at a time."""
    case = ViewsCase(settings.batch, clips=8 * settings.batch)
    turns = views.race(case, settings)
    turns.run(str(case), progress=settings.progress)
    over = "four views: speed-up over numpy, clip by clip"
    headlines = [
        _ratio("views_vs_numpy", over, turns, "numpy, usual", views.FASTMC),
        _ratio("views_vs_tuned_numpy", "four views: the same, numpy tuned", turns, "numpy, tuned", views.FASTMC),
    ]
    return _timed(str(case), turns, headlines, asdict(case))


def data(settings: Settings) -> Report:
    """The data part of a training step, and the whole of it."""
    config = preset_config(settings.preset)
    title = f"training step, preset {settings.preset}, B = {settings.batch}, T = {config.frames}"
    turns = data_share.race(config, settings.batch, settings)
    turns.run(title, progress=settings.progress)
    says = f"training step, preset {settings.preset}: share of its time for data"
    share = _ratio("data_share_of_step", says, turns, data_share.DATA, data_share.STEP, "lower", percent=True)
    return _timed(title, turns, [share], {"preset": settings.preset, "batch": settings.batch})


def over_products(settings: Settings) -> Report:
    """Whole steps of the two presets for CPUs beside their matrix products."""
    reports = []
    for preset in ("tiny", "small"):
        config = preset_config(preset)
        batch = config.optim.batch_size
        title = f"training step, preset {preset}, B = {batch}, T = {config.frames}"
        turns = products.race(config, batch, settings)
        turns.run(title, progress=settings.progress)
        says = f"training step, preset {preset}: time over that of its matrix products"
        headline = _ratio(f"{preset}_step_vs_products", says, turns, data_share.STEP, products.PRODUCTS, "lower")
        reports.append(_timed(title, turns, [headline], {"preset": preset, "batch": batch}))
    return Report(
        [headline for report in reports for headline in report.headlines],
        "\n\n".join(report.text for report in reports),
        "\n\n".join(report.markdown for report in reports),
        {report.details["case"]["preset"]: report.details for report in reports},
        [busy for report in reports for busy in report.others_busy],
    )


def step(settings: Settings) -> Report:
    """The whole training step beside the plain reference's, one as earlier codes write it, and the encoder calls."""
    timing = replace(settings, seconds=STEP_SECONDS * settings.seconds)
    races: dict[str, StepRace] = {}
    for mix in MIXES:
        case = StepCase(
            mix, settings.batch, settings.bank, settings.dim, settings.encoder, settings.frames, settings.workers
        )
        with closing(StepRace(case, timing, encoder_calls=mix == "own")) as race:
            race.run(str(case), progress=settings.progress)
        races[mix] = race
    own, tiled = races["own"], races["tiled"]
    over_stepwise = "whole step: speed-up over one as earlier codes write it"
    headlines = [
        _ratio("step_own_vs_reference", "whole step: speed-up over the plain reference", own, REFERENCE, OURS),
        _ratio("step_tiled_vs_reference", "whole step: the same, tiled mixing", tiled, REFERENCE, OURS),
        _ratio("step_own_vs_stepwise", over_stepwise, own, STEPWISE, OURS_STEPWISE),
        _ratio("step_tiled_vs_stepwise", "whole step: the same, tiled mixing", tiled, STEPWISE, OURS_STEPWISE),
        _ratio("step_vs_encoder", "whole step: time over that of its encoder calls", own, OURS, ENCODER, "lower"),
    ]
    title = f"training step, B = {settings.batch}, encoder {settings.encoder}, T = {settings.frames}"
    return Report(
        headlines,
        "\n\n".join(map(text, races.values())),
        markdown((title, "own mixing", "tiled mixing"), [_step_row(name, own, tiled) for name in own.found]),
        {
            mix: {
                "case": asdict(race.case),
                "calls": {name: asdict(found) for name, found in race.found.items()},
                "loader_seconds_per_batch": race.loader.seconds_per_batch,
            }
            for mix, race in races.items()
        },
        [race.others_busy for race in races.values() if race.others_busy is not None],
    )


def _step_row(name: str, own: StepRace, tiled: StepRace) -> tuple[str, str, str]:
    cells = []
    for race in (own, tiled):
        found = race.found.get(name)
        rate = f", {samples_per_second(found, race.case.batch)}" if found and name == OURS else ""
        cells.append(_milliseconds(found) + rate if found else "")
    return name, cells[0], cells[1]


def beside_others(settings: Settings) -> Report:
    """A training process alone and beside busy cores, always of preset tiny and on a CPU."""
    chosen = Contention(seconds=CONTENTION_SECONDS * settings.seconds, progress=settings.progress)
    found = contention.measure(chosen)[HERE]
    says = "training step, preset tiny: speed beside one busy core, of its speed on an idle machine"
    rows = [(load, _milliseconds(one)) for load, one in found.found.items()]
    return Report(
        [_ratio("busy_core_share", says, found, IDLE, ONE_BUSY, percent=True)],
        contention.text(chosen, {HERE: found}),
        markdown(("training step, preset tiny", "time"), rows),
        asdict(found),
        [found.others_busy(load) for load in LOADS],
    )


EXPERIMENTS: dict[str, Callable[[Settings], Report]] = {
    "mc": mc,
    "views": four_views,
    "data": data,
    "products": over_products,
    "step": step,
    "contention": beside_others,
}


def _ratio(
    key: str,
    says: str,
    found: Result | Turns | Loads,
    over: str,
    under: str,
    better: str = "higher",
    *,
    percent: bool = False,
) -> Headline:
    scale, unit = (100, " %") if percent else (1, "x")
    ratio = found.ratio(over, under)
    return Headline(key, says, unit, better, *(scale * x for x in ratio or ()))


def _timed(title: str, turns: Turns, headlines: list[Headline], case: dict[str, Any]) -> Report:
    """The report on calls that have taken their turns."""
    rows = [(name, _milliseconds(found)) for name, found in turns.found.items()]
    return Report(
        headlines,
        times(title, turns.found, turns.others_busy),
        markdown((title, "time"), rows),
        {"case": case, "calls": {name: asdict(found) for name, found in turns.found.items()}},
        [] if turns.others_busy is None else [turns.others_busy],
    )


def headline_table(headlines: Sequence[Headline]) -> str:
    """For a terminal."""
    says = max(len(h.says) for h in headlines)
    keys = max(len(h.key) for h in headlines)
    return "\n".join(f"{h.key:{keys}}  {h.says:{says}}  {shown(h)}  ({h.better} is better)" for h in headlines)


def shown(headline: Headline) -> str:
    if headline.value is None:
        return "not measured"
    spread = "" if headline.low is None else f" [{headline.low:.3g}-{headline.high:.3g}]"
    return f"{headline.value:.3g}{headline.unit}{spread}"


def headline_markdown(headlines: Sequence[Headline]) -> str:
    """For docs/benchmarks.md."""
    return markdown(("headline", "measured", "better"), [(h.says, shown(h), h.better) for h in headlines])


def _providers_markdown(own: Result, tiled: Result) -> str:
    """Times by provider, of those that ran."""
    rows = []
    for name, found in own.providers.items():
        if found.skipped and tiled.providers[name].skipped:
            continue
        memory = "" if found.extra_bytes is None else f"{found.extra_bytes / 1e6:,.0f} MB"
        times = (_milliseconds(result.providers[name]) for result in (own, tiled))
        rows.append((PROVIDERS[name].says, *times, memory))
    return markdown(("loss, gradients, bank step by", "own mixing", "tiled mixing", "extra memory"), rows)


def _milliseconds(found: Measurement) -> str:
    if found.skipped:
        return "not measured"
    low, high = map(milliseconds, found.quartiles)
    return f"{milliseconds(found.median)} ms ({low} to {high})"
