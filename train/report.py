"""A page to look at of one or several runs: python -m train.report --run DIR."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import tyro

from fastmc.data.placed.placement import Placement
from fastmc.files import make_folder_of
from train.command.errors import run_command
from train.run import choose_device
from train.runs.evaluations import show_progress
from train.runs.figure_runs import check_runs, run_labels
from train.runs.folder import PAGE
from train.runs.report import check_page


@dataclass(frozen=True)
class Settings:
    """Make a page of one or several runs: one HTML file that any browser opens, without a network.

    In it: what was trained on what; accuracies beside the untrained encoder, raw coordinates and what was published;
    curves; which classes are confused, with the clips; a map of the embedding on which every clip plays beside its
    nearest neighbours; the attack at any strength; where a step's time goes, if it was profiled. Of several runs the
    curves lie over one another, the maps side by side, and seeds are put together.

    A run leaves such a page itself, report.html in its folder. This command makes it anew, or one of several runs, of
    what the folders keep; it computes what they lack, where a run's checkpoint and clips are there.

    Example: python -m train.report --run runs/demo

    Example, two methods over three seeds each: python -m train.report --run runs/b1-seed* runs/a2mc-seed* --out
    comparison.html
    """

    run: tyro.conf.UseAppendAction[tuple[tuple[Path, ...], ...]] = ()
    """Run folders, as made by python -m train.run: one or more. The flag may be said again for further ones."""
    out: Path | None = None
    """The page; by default report.html in the run's folder. Of several runs it has to be named."""
    data_root: Path | None = None
    """Folder of the packed stores; by default each run's own."""
    device: str = "auto"
    """auto, cpu, cuda, ...: for what a run folder does not keep."""
    placement: Placement = "auto"
    """Where the frames are kept: device, pinned, mapped, or auto; see python -m train.run --help."""
    allow: tuple[str, ...] = ()
    """Methods and encoders outside of fastmc, MODULE:CLASS, that may be imported if a run is of one."""

    @property
    def runs(self) -> tuple[Path, ...]:
        return tuple(chain.from_iterable(self.run))


def report(settings: Settings, command: str) -> Path:
    """Write the page; returns its path. What is wrong with the settings is found before anything is computed.

    Args:
        command: that asks for it, as the page says.

    Raises:
        ValueError: a setting does not fit, or a folder is no run. StoreError, CheckpointError: a run's clips or weights
            are damaged. WriteError: the page cannot be written.
    """
    from train.runs.page import BARE, write_runs_page  # here, so that --help does not wait for what pages are made with
    from train.runs.page_runs import load_page_run

    out = _checked(settings)
    device = choose_device(settings.device)
    labels = run_labels(settings.runs, settings.allow, BARE)
    runs = [
        load_page_run(
            folder,
            label,
            device=device,
            data_root=settings.data_root,
            placement=settings.placement,
            allow=settings.allow,
            progress=show_progress(),
        )
        for folder, label in zip(settings.runs, labels, strict=True)
    ]
    make_folder_of(out)
    write_runs_page(runs, out, command)
    return out


def _checked(settings: Settings) -> Path:
    """Where the page goes; ValueError as of `report`."""
    check_runs(settings.runs, settings.allow)
    if settings.out is None and len(settings.runs) > 1:
        raise ValueError("--out is missing: name the file for a page of several runs, such as --out comparison.html")
    out = settings.out or settings.runs[0] / PAGE
    check_page(out)
    return out


def parse(args: Sequence[str] | None = None) -> Settings:
    return tyro.cli(Settings, prog="python -m train.report", args=args)


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""

    def command(given: Sequence[str]) -> None:
        report(parse(given), f"python -m train.report {shlex.join(given)}")

    return run_command(command, args, stopped="stopped; what was measured before is kept")


if __name__ == "__main__":
    sys.exit(main())
