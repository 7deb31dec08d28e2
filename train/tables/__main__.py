"""The paper's tables, ours beside what was published: python -m train.tables --help."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path

import tyro

from fastmc.checks import Seed, Whole, check_ranges
from fastmc.config import differences, preset_config, to_plain
from fastmc.files import whole_file
from train.command.errors import run_command
from train.command.evaluation_settings import Semi
from train.command.launch import Launch, Launched
from train.command.parse import parse
from train.engine.record import duration, log
from train.runs.published import DATASETS, OURS, PRETRAINING, TABLES, Column, Table, Variant
from train.tables.plan import VARYING, Cell, Plan
from train.tables.render import Filled, draw, to_markdown, write_csv


@dataclass(frozen=True)
class Settings:
    """Make tables of the paper: pre-train and evaluate whatever they need, and write markdown, CSV and a picture.

    All other flags are those of train.run, the same for all runs. The runs are ordinary run folders under --runs, named
    as train.run names them: finished ones are only read, interrupted ones resume. So the same command goes on after a
    stop.

    Without data: python -m train.tables --table 2 6 --dataset synthetic --preset tiny

    The paper's: python -m train.tables --table 1 3 --dataset ntu60 ntu120 pku2 --seeds 0

    What there is so far: python -m train.tables --table 6 --dataset ntu60 --collect

    On a cluster: python -m train.tables --table 6 --dataset ntu60 --launcher slurm --slurm time=4:00:00 gpus_per_node=1
    """

    table: tuple[Whole, ...]
    """Numbers, 1 to 6. 1: linear; 2: streams and their fusion; 3: kNN; 4: semi-supervised; 5: transfer; 6: ablation."""
    dataset: tuple[str, ...] = ("synthetic",)
    """Data sets to pre-train on, packed stores under --data-root. One that the paper does not have gets columns of its
    own beside the published ones."""
    protocols: tuple[str, ...] = ()
    """Splits, such as xsub xview; by default the published ones."""
    target: str = "pku2"
    """Data set that table 5 fine-tunes on."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds of each cell; mean and standard deviation are shown."""
    also: tuple[str, ...] = ()
    """Encoders of further rows of table 1, at their presets' sizes: stgcn, dstanet."""
    methods: tuple[str, ...] = ()
    """Methods of further rows of tables 1 to 3, by their names, or all; each with its own encoder, unless --backbone
    says one for all."""
    runs: Path = Path("runs")
    """Folder of the run folders."""
    out: Path = Path("runs/tables")
    """Folder of the tables."""
    launch: Launched = field(default_factory=Launch)
    collect: bool = False
    """Run nothing: make the tables of what there is."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""

    def command(args: Sequence[str]) -> None:
        settings, flags = tyro.cli(Settings, prog="python -m train.tables", args=args, return_unknown_args=True)
        make_tables(settings, tuple(flags))

    return run_command(command, args, stopped="stopped; the same command goes on from here")


def make_tables(settings: Settings, flags: tuple[str, ...] = ()) -> list[Filled]:
    """Run what is missing, unless it is only to be collected, and write the tables.

    Returns:
        The tables; none where runs were submitted to Slurm.

    Raises:
        ValueError: an argument does not fit. DatasetError: a data set is not there.
        JobFailed: a run failed; the tables of the others are written before.
    """
    unknown = [number for number in settings.table if number not in TABLES]
    if unknown or not settings.table:
        raise ValueError(f"table = {', '.join(map(str, unknown)) or 'none'}: choose from {', '.join(map(str, TABLES))}")
    for name, values in (("table", settings.table), ("dataset", settings.dataset), ("protocols", settings.protocols)):
        if len(set(values)) < len(values):
            raise ValueError(f"{name} = {', '.join(map(str, values))}: name each once")
    variants = [row.variant for table in TABLES.values() for row in table.rows if row.variant]
    rivals = sorted({variant.method for variant in variants if variant.is_rival})
    methods = tuple(rivals) if settings.methods == ("all",) else settings.methods
    if not set(rivals).issuperset(methods):
        raise ValueError(f"methods = {', '.join(settings.methods)}: choose from {', '.join(rivals)}, or all")
    known = {variant.backbone for variant in variants} - {None}
    if not known.issuperset(settings.also):
        raise ValueError(f"also = {', '.join(settings.also)}: choose from {', '.join(sorted(known))}")  # type: ignore[arg-type]
    check_flags(flags)
    plan = Plan(flags, settings.seeds, settings.runs, settings.target, settings.out / "logs", settings.also, methods)
    tables = [TABLES[number] for number in settings.table]
    columns = {table.number: plan.columns(table, settings.dataset, settings.protocols) for table in tables}
    if any(table.number == 5 for table in tables):
        plan.store(settings.target)  # an error now, not after hours
    cells = [cell for table in tables for cell in plan.cells(table, columns[table.number])]
    started = time.monotonic()
    waiting = False
    try:
        waiting = not settings.collect and not _run_missing(settings, plan, cells)
    finally:
        filled = [] if waiting else [fill(plan, table, columns[table.number]) for table in tables]
        for each in filled:
            _write(settings, each)
    if filled and not settings.collect:
        log.info("all of it took %s", duration(time.monotonic() - started))
    return filled


def check_flags(flags: Sequence[str]) -> None:
    """ValueError for a flag that is nearly one of ours: train.run, which reads the rest, would not know of them."""
    ours = [f"--{field.name}" for field in (*fields(Settings), *fields(Launch)) if field.name != "launch"]
    for flag in flags:
        name = flag.partition("=")[0]
        nearest = get_close_matches(name, ours, 1, cutoff=0.75) if name.startswith("--") and name not in VARYING else []
        if nearest:
            raise ValueError(f"there is no flag {name}; did you mean {nearest[0]}?")


def _run_missing(settings: Settings, plan: Plan, cells: Sequence[Cell]) -> bool:
    """Whether all of it is there now: not where it waits in Slurm's queue."""
    training, evaluating = plan.training_jobs(cells), plan.evaluation_jobs(cells)
    config = parse((*plan.flags, "--dataset", settings.dataset[0]))
    log.info(
        "%d runs to train, %d done already; %d evaluations beside them; what they print is in %s",
        *(sum(not job.done() for job in training), sum(job.done() for job in training)),
        *(len(evaluating), plan.logs),
    )
    return settings.launch.make((training, evaluating), plan.logs, small=config.preset == "tiny")


def fill(plan: Plan, table: Table, columns: tuple[Column, ...]) -> Filled:
    """The table with our figures, as far as they are there. Of rows that nobody asked for, the published figures."""
    rows = (row if plan.wants(row) else replace(row, variant=None) for row in table.rows)
    table = replace(table, rows=tuple(row for row in rows if row.variant or any(row.values)))
    own = [(row, column) for row in table.rows if plan.wants(row) for column in columns]
    values = {(row, column): found for row, column in own if (found := plan.values(row, column))}
    missing = len(own) * len(plan.seeds) - sum(map(len, values.values()))
    untrained = {column: plan.untrained(column) for column in columns}
    fine_print, pages = _fine_print(plan, table, columns), plan.pages(list(plan.cells(table, columns)))
    return Filled(table, columns, values, untrained, missing, len(plan.seeds), fine_print, tuple(pages))


def _fine_print(plan: Plan, table: Table, columns: tuple[Column, ...]) -> tuple[str, ...]:
    lines = [f"Paper: {table.fine_print} {PRETRAINING}"]
    ours = [(row.label, row.variant) for row in table.rows if row.variant is not None and plan.wants(row)]
    usual = next(variant for _, variant in ours if not variant.is_rival)
    for whose, variant in [("Ours", usual), *((label, variant) for label, variant in ours if variant.is_rival)]:
        found = {column.dataset: _our_settings(plan, column, variant) for column in columns}
        for settings in dict.fromkeys(found.values()):  # as many paragraphs as there are settings
            names = ", ".join(name for name, of_it in found.items() if of_it == settings)
            lines.append(f"{whose} ({names}): {settings}")
    seeds = ", ".join(map(str, plan.seeds))
    lines.append(f"Seeds {seeds}; mean ± standard deviation.{_measured(plan, table, columns)}")
    foreign = [c.dataset for c in columns if c.dataset not in DATASETS]
    if foreign:
        names = ", ".join(dict.fromkeys(foreign))
        lines.append(f"{names}: none of the paper's sets. Only the order of the rows can be compared, not the figures.")
    if table.number == 5:
        lines.append(f"Target of ours: {plan.target}, its training part to fine-tune, its test part to test.")
    runs, seconds = plan.wall_seconds(list(plan.cells(table, columns)))
    lines.append(
        f"{runs} pre-training runs, each with its kNN and linear evaluation; their wall time added up: "
        f"{duration(seconds)}."
    )
    return tuple(lines)


def _our_settings(plan: Plan, column: Column, variant: Variant) -> str:
    config = plan.config(column, variant, variant.streams[0], plan.seeds[0])
    optim = config.optim
    paper = preset_config("paper", column.dataset, config.method)
    groups = ("frames", "augment", "settings", "encoder", "optim", "evaluation")
    changed = [name for name in differences(to_plain(paper), to_plain(config)) if name.split(".")[0] in groups]
    return (
        f"preset {config.preset}: {config.encoder.says}, {config.frames} frames, {optim.optimizer} at "
        f"{optim.lr:g}, batches of {optim.batch_size}, {config.settings.says}, {optim.epochs} epochs, times 0.1 at "
        f"{', '.join(map(str, optim.milestones))}."
        + (f" Settings that are not those of preset paper: {', '.join(changed)}." if changed else "")
    )


def _measured(plan: Plan, table: Table, columns: tuple[Column, ...]) -> str:
    """What of our evaluation the title does not say."""
    config = plan.config(columns[0], OURS, "joint", plan.seeds[0])
    if table.number == 3:
        return f" K = {config.evaluation.knn_k}, by cosine."
    if table.number != 4:
        return ""
    counts = []
    for column in columns:
        found = plan.outcome(column, OURS, plan.seeds[0])
        if found:
            train, _ = plan.store(column.dataset).split(column.protocol)
            counts.append(f"{column.title}: {found['labelled']} of {len(train)} clips")
    of_each = (
        f" Labelled: as many clips of each class, one at least; {Semi.draws} draws a seed, whose mean is that seed's."
    )
    return of_each + (f" {'; '.join(counts)}." if counts else "")


def _write(settings: Settings, filled: Filled) -> None:
    from fastmc.figures.style import save  # here, so that nothing else waits for matplotlib

    settings.out.mkdir(parents=True, exist_ok=True)
    name = f"table{filled.table.number}-{'-'.join(settings.dataset)}"
    text = to_markdown(filled, settings.out)
    with whole_file(settings.out / f"{name}.md") as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    with whole_file(settings.out / f"{name}.csv") as unfinished:
        write_csv(filled, unfinished)
    save(draw(filled), settings.out, name)
    log.info("%s", text)
    missing = f"; {filled.missing} figures of ours are not there yet" if filled.missing else ""
    log.info("%s.md, .csv, .png and .svg are written%s", settings.out / name, missing)


if __name__ == "__main__":
    sys.exit(main())
