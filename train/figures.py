"""Draw what a run has learnt: python -m train.figures --run DIR."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import torch
import tyro

from fastmc.checks import Count, Range, Seed, Whole, check_ranges
from fastmc.config import load_config
from fastmc.data.placed.placement import Placement
from fastmc.figures.history import History
from fastmc.methods import find_method
from train.command.errors import run_command
from train.engine.record import log
from train.prepare import find_clip
from train.run import choose_device
from train.runs.figure_runs import (
    DrawnRun,
    candidates,
    check_runs,
    check_same_data,
    clips_of_classes,
    load_runs,
    progress,
    read_rows,
    run_labels,
    some_of,
)

Name = Literal["attack", "tsne", "curves", "neighbours"]
NAMES: tuple[Name, ...] = get_args(Name)
CLIPS_FOR_MEAN = 256


@dataclass(frozen=True)
class Settings:
    """Draw what a run has learnt, as PNG and SVG.

    attack: a clip before and after the attack and its two augmentations, with the distribution of its features (figure
    3 of the paper), and the same animated, attack.gif. tsne: the features of ten classes in two dimensions, untrained
    and pre-trained (figure 4). curves: the course of the training. neighbours: a test clip and the training clips that
    are nearest to it.

    Example: python -m train.figures --run runs/demo

    Example, the methods of table 6 side by side as figure 4 has the paper's, and their curves in one picture:
    python -m train.figures --run runs/b1 --run runs/b2 --run runs/b3 --run runs/a2mc --only tsne curves
    """

    run: tyro.conf.UseAppendAction[tuple[Path, ...]]
    """Run folder, as made by python -m train.run. Say it again for further runs, which curves and tsne compare; attack
    and neighbours are of the first one."""
    only: tuple[Name, ...] = NAMES
    """Which pictures."""
    clip: str | None = None
    """Name or index of the clip for attack and neighbours; by default a random test clip."""
    out: Path | None = None
    """Folder for the pictures; by default figures/ in the first run's folder."""
    seed: Seed = 0
    """Of the clip, the ten classes and the t-SNE."""
    draw: Whole | None = None
    """attack: number of the random augmentations to show; by default the first of 0, 1, ... whose strong view masks no
    axis, for a masked axis flattens the skeleton."""
    k: Count = 5
    """neighbours: how many."""
    protocol: str | None = None
    """Split into training and test clips, such as xview; by default the run's own."""
    dpi: Annotated[int, Range(at_least=50, at_most=1200)] = 150
    """Pixels an inch of the PNG files, which are 7 inches wide; 300 for print."""
    data_root: Path | None = None
    """Folder of the packed stores; by default the run's own."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    placement: Placement = "auto"
    """Where the frames are kept: device, pinned, mapped, or auto; see python -m train.run --help."""

    allow: tuple[str, ...] = ()
    """Methods and encoders outside of fastmc, MODULE:CLASS, that may be imported if the run is of one."""

    def __post_init__(self) -> None:
        check_ranges(self)


def draw_attack_of(run: DrawnRun, settings: Settings, clip: int, out: Path) -> list[Path]:
    """Figure 3: attack.png, attack.svg and attack.gif."""
    from fastmc.figures.attack import attack_states, attacking, entropy_change
    from fastmc.figures.draw_attack import animate_attack, draw_attack, frame_seconds
    from fastmc.figures.style import save

    model = attacking(run.model)
    ids = torch.tensor([clip], device=run.placed.device)
    states = attack_states(model, run.placed.select(ids), ids, draw=settings.draw)
    log.info("attack: clip %d, %s; augmentations of draw %d", clip, run.describe(clip), states.draw)
    test = some_of(run.clips()[1], CLIPS_FOR_MEAN, settings.seed).to(run.placed.device)
    with progress("clip", "attacks", len(test)) as advance:
        before, after = entropy_change(model, run.placed, test, advance=advance)
    mean = f"mean entropy over {len(test)} test clips {before.mean():.4f} nats before attack, {after.mean():.4f} after"
    log.info("attack: %s; it rises in %.1f %% of them", mean, 100 * (after > before).mean())
    title = f"{run.describe(clip)}; {mean}"
    paths = save(draw_attack(states, run.store.skeleton, title=title), out, "attack", settings.dpi)
    seconds = frame_seconds(int(run.store.num_frames[clip]), run.store.fps, run.config.frames)
    with progress("frame", "attack.gif", run.config.frames) as advance:
        moving = out / "attack.gif"
        subtitle = f"{run.describe(clip)}, ‖ρ‖ = {states.rho_norm:.3g} m"
        animate_attack(states, run.store.skeleton, moving, seconds=seconds, title=subtitle, advance=advance)
    return [*paths, moving]


def draw_tsne_of(runs: Sequence[DrawnRun], settings: Settings, out: Path) -> list[Path]:
    """Figure 4: tsne.png and tsne.svg. ValueError where the runs are of different data."""
    from fastmc.figures.style import save
    from fastmc.figures.tsne import draw_embeddings, embed, scores_in_words

    check_same_data(runs)
    first, several = runs[0], len(runs) > 1
    ids = clips_of_classes(first, settings.seed)
    labels = first.store.label[ids]
    features = {f"untrained ({first.label})" if several else "untrained": first.features(ids, first.untrained())}
    features |= {run.label if several else "pre-trained": run.features(ids) for run in runs}
    with progress("panel", "t-SNE", len(features)) as advance:
        panels = {}
        for heading, h in features.items():
            panels[heading] = embed(h, labels, seed=settings.seed)
            advance(1)
    used, perplexity = len(np.unique(labels)), next(iter(panels.values())).perplexity
    title = (
        f"Features of {len(ids)} test clips ({first.store.name}, {first.protocol}) of {used} classes: "
        f"t-SNE with perplexity {perplexity:.3g}, seed {settings.seed}. "
        "1-NN: share of clips whose nearest other clip has their class"
    )
    for heading, panel in panels.items():
        log.info("tsne: %s: %s", heading, scores_in_words(panel))
    return save(draw_embeddings(panels, labels, first.store.class_names, title=title), out, "tsne", settings.dpi)


def draw_curves_of(folders: Sequence[Path], out: Path, dpi: int, allow: Sequence[str] = ()) -> list[Path]:
    """curves.png and curves.svg."""
    from fastmc.figures.curves import draw_curves
    from fastmc.figures.style import save

    histories = {
        label: _history(folder, allow) for folder, label in zip(folders, run_labels(folders, allow), strict=True)
    }
    title = f"Training of {folders[0].resolve().name}" if len(folders) == 1 else ""
    return save(draw_curves(histories, title=title), out, "curves", dpi)


def _history(folder: Path, allow: Sequence[str]) -> History:
    config = load_config(folder, allow)
    return History(read_rows(folder), find_method(config.method, allow).metrics, config.encoder.feature_dim)


def draw_neighbours_of(run: DrawnRun, settings: Settings, clip: int, out: Path) -> list[Path]:
    """neighbours.png and neighbours.svg."""
    from fastmc.figures.neighbours import Strip, draw_neighbours, nearest
    from fastmc.figures.style import save

    train = candidates(run, clip, settings.k)
    order, cosines = nearest(run.features(train), run.features(np.array([clip]))[0], settings.k)

    def strip(n: int, cosine: float | None = None) -> Strip:
        store = run.store
        return Strip(store.clip(n), str(store.names[n]), store.class_name(n), store.fps, cosine)

    found = [strip(int(train[i]), float(cosine)) for i, cosine in zip(order, cosines, strict=True)]
    same = sum(s.class_name == run.store.class_name(clip) for s in found)
    log.info("neighbours of clip %d, %s: %d of %d have its class", clip, run.describe(clip), same, len(found))
    title = f"Nearest of {len(train)} training clips ({run.store.name}, {run.protocol}) by cosine of frozen features"
    return save(draw_neighbours(strip(clip), found, run.store.skeleton, title=title), out, "neighbours", settings.dpi)


def choose_clip(run: DrawnRun, settings: Settings) -> int:
    """The clip that was asked for, or a random test clip."""
    if settings.clip is not None:
        return find_clip(run.store, settings.clip)
    return int(np.random.default_rng(settings.seed).choice(run.clips()[1]))


def draw(settings: Settings) -> list[Path]:
    """Draw all that was asked for; returns the files. What is wrong with the settings is found before the first."""
    out = check_settings(settings)
    settings = replace(settings, only=_with_something_to_draw(settings))
    runs = _load(settings) if set(settings.only) != {"curves"} else []
    settings = replace(settings, only=_with_an_attack(settings.only, runs))
    settings = replace(settings, only=_with_classes(settings, runs))
    clip = choose_clip(runs[0], settings) if {"attack", "neighbours"} & set(settings.only) else -1
    if "neighbours" in settings.only:
        candidates(runs[0], clip, settings.k)
    if "tsne" in settings.only:
        check_same_data(runs)
    draws: dict[Name, Callable[[], list[Path]]] = {
        "attack": lambda: draw_attack_of(runs[0], settings, clip, out),
        "tsne": lambda: draw_tsne_of(runs, settings, out),
        "curves": lambda: draw_curves_of(settings.run, out, settings.dpi, settings.allow),
        "neighbours": lambda: draw_neighbours_of(runs[0], settings, clip, out),
    }
    out.mkdir(parents=True, exist_ok=True)
    paths = [path for name in NAMES if name in settings.only for path in draws[name]()]
    for path in paths:
        log.info("%s (%.0f kB)", path, path.stat().st_size / 1e3)
    return paths


def _load(settings: Settings) -> list[DrawnRun]:
    return load_runs(
        settings.run,
        device=choose_device(settings.device),
        data_root=settings.data_root,
        protocol=settings.protocol,
        placement=settings.placement,
        allow=settings.allow,
    )


def check_settings(settings: Settings) -> Path:
    """The folder for the pictures.

    Raises:
        ValueError: a number is out of range, no picture or no run is named, or one twice, or ``out`` is a file.
    """
    if not settings.only:
        raise ValueError(f"--only names no picture; choose from {', '.join(NAMES)}, or leave it out for all")
    check_runs(settings.run, settings.allow)
    out = settings.out or settings.run[0] / "figures"
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; name a folder")
    return out


def _with_something_to_draw(settings: Settings) -> tuple[Name, ...]:
    """The pictures that can be drawn: runs without metrics have no curves. ValueError where only those were asked for.

    A run that came from another code's checkpoint has none, and neither has one whose first epoch goes on.
    """
    if "curves" not in settings.only:
        return settings.only
    try:
        for folder in settings.run:
            read_rows(folder)
    except ValueError as error:
        others = tuple(name for name in settings.only if name != "curves")
        if not others:
            raise
        log.warning("curves are left out: %s", error)
        return others
    return settings.only


def _with_an_attack(only: tuple[Name, ...], runs: Sequence[DrawnRun]) -> tuple[Name, ...]:
    """The pictures, without the attack where the first run's method has none; ValueError where no other is left."""
    from fastmc.figures.attack import attacking

    if "attack" not in only:
        return only
    try:
        attacking(runs[0].model)
    except ValueError as error:
        if only == ("attack",):
            raise
        log.warning("attack is left out: %s", error)
        return tuple(name for name in only if name != "attack")
    return only


def _with_classes(settings: Settings, runs: Sequence[DrawnRun]) -> tuple[Name, ...]:
    """The pictures, without the t-SNE where too few test clips have a label; ValueError where no other is left."""
    if "tsne" not in settings.only:
        return settings.only
    try:
        clips_of_classes(runs[0], settings.seed)
    except ValueError as error:
        if settings.only == ("tsne",) or len(runs[0].store.labelled_split(runs[0].protocol)[1]):
            raise
        log.warning("tsne is left out: %s", error)
        return tuple(name for name in settings.only if name != "tsne")
    return settings.only


def parse(args: Sequence[str] | None = None) -> Settings:
    return tyro.cli(Settings, prog="python -m train.figures", args=args)


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return run_command(lambda given: draw(parse(given)), args, stopped="stopped; what was drawn is whole")


if __name__ == "__main__":
    sys.exit(main())
