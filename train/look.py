"""Look at a packed store before any training: python -m train.look DIR."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tqdm import tqdm

from fastmc.checks import Count, Seed, Whole, check_ranges
from fastmc.config import Frames, Preset, load_config, preset_config
from fastmc.data.store import StoreError
from fastmc.files import make_folder_of
from fastmc.progress import progress_bar
from fastmc.views.draw import AugmentConfig
from train.command.datasets import open_store, stores_in
from train.command.errors import run_command
from train.engine.record import log
from train.runs.report import check_page, made_by


@dataclass(frozen=True)
class Settings:
    """Look at a packed store before any training: one HTML file that any browser opens, without a network.

    Clips that play, by class, subject and camera; lengths and bodies; what was left out, and why; what looks wrong; and
    views of some clips as augmentations make them, drawn as training draws them.

    Example: python -m train.look data/hdm05
    """

    store: tyro.conf.Positional[Path]
    """Folder of the packed store."""
    out: Path | None = None
    """The page; by default look-STORE.html in the current folder: the store's own may be read-only, and goes when the
    store is prepared again."""
    clips: Count = 1000
    """Clips that the page carries, at most, spread over classes, parts, subjects and cameras; numbers are of all."""
    views_of: Whole = 8
    """Clips whose views are shown; 0 for none."""
    draws: Count = 12
    """Random draws of the views of each."""
    preset: Preset = "tiny"
    """Of train.run: sets the augmentations and --frames, which every other flag overrides."""
    run: Path | None = None
    """Run folder whose augmentations and --frames are shown, in place of a preset's."""
    allow: tuple[str, ...] = ()
    """A method and encoder outside of fastmc, MODULE:CLASS, that may be imported if the run is of it."""
    frames: Frames = 64
    """T, frames of every view."""
    seed: Seed = 0
    """Of the clips, and of the views."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass
class First:
    """What sets the defaults of other flags."""

    preset: Preset | None = None
    run: Path | None = None
    allow: tuple[str, ...] = ()


def parse(args: Sequence[str] | None = None) -> Settings:
    """The command line. ValueError where a preset and a run are named, RunFolderError for what is no run."""
    first, _ = tyro.cli(First, args=args, return_unknown_args=True, add_help=False)
    if first.run is not None and first.preset is not None:
        raise ValueError("--preset and --run both say how views are made: leave one out")
    if first.run is not None:
        base = load_config(first.run, first.allow)
    else:
        base = preset_config(first.preset or Settings.preset)
    return tyro.cli(
        Settings,
        prog="python -m train.look",
        args=args,
        default=Settings(
            store=tyro.MISSING, preset=first.preset or Settings.preset, augment=base.augment, frames=base.frames
        ),
        config=(tyro.conf.OmitArgPrefixes,),
    )


def look(settings: Settings, command: str) -> Path:
    """Write the page; returns its path. ``command`` is said on it."""
    from fastmc.page.document import write_page
    from fastmc.page.store import store_content
    from fastmc.page.views import Augmentation

    out = settings.out or Path(f"look-{settings.store.resolve().name}.html")
    check_page(out)
    check_path(settings.store)
    make_folder_of(out)
    store = open_store(settings.store)
    views = Augmentation(settings.augment, settings.frames, settings.seed, settings.views_of, settings.draws)
    with tqdm(total=min(len(store), settings.clips), **progress_bar("clip", "read")) as bar:
        content = store_content(
            store,
            clips=settings.clips,
            seed=settings.seed,
            augmentation=views if settings.views_of else None,
            advance=bar.update,
        )
    head = {
        "kind": "store",
        "title": store.name,
        **made_by(command),
    }
    size = write_page(out, {**head, **content})
    log.info("%s (%.1f MB): open it in a browser", out, size / 1e6)
    return out


def check_path(path: Path) -> None:
    """StoreError for what is plainly something else than a store, which says what to name instead."""
    if path.is_file():
        raise StoreError(f"{path} is a file, not a packed store; pack it first (python -m train.prepare --help)")
    if (path / "config.json").is_file():
        raise StoreError(f"{path} is a run folder, not a packed store; name the store that it was trained on")
    inside = stores_in(path)
    if inside and not (path / "meta.json").exists():
        raise StoreError(f"{path} is a folder of packed stores; name one of them: {', '.join(inside)}")
    if not path.exists() and path.name in (known := stores_in(Path("data"))):
        raise StoreError(f"there is no packed store at {path}; there is one at data/{path.name}")
    if not path.exists() and known:
        raise StoreError(
            f"there is no packed store at {path}; data holds {', '.join(known)}, and python -m train.prepare --help "
            "says how to make others"
        )


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""

    def command(given: list[str]) -> None:
        look(parse(given), f"python -m train.look {shlex.join(given)}")

    return run_command(command, args, stopped="stopped; no page was written")


if __name__ == "__main__":
    sys.exit(main())
