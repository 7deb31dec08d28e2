"""A synthetic stand-in for NTU RGB+D: raw `.skeleton` files of kinematic people seen by three Kinect cameras.

Made so that the whole chain, from raw text to accuracy, runs without a download. It is not a model of human motion;
accuracies on it say nothing about NTU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from tqdm import tqdm

from fastmc.data.synthetic.actions import CLASS_NAMES
from fastmc.data.synthetic.kinect import film, skeleton_text
from fastmc.data.synthetic.perform import FILM, stream
from fastmc.parallel import ordered_map, usable_cores
from fastmc.progress import progress_bar

__all__ = ["CLASS_NAMES", "write_synthetic"]

_TEXT = 1
_Key = tuple[int, int, int]


def write_synthetic(
    folder: str | Path,
    *,
    subjects: int | Sequence[int] = 10,
    replications: int = 1,
    setups: int = 2,
    cameras: int = 3,
    actions: Sequence[int] | None = None,
    seed: int = 0,
    workers: int | None = None,
    progress: bool = False,
) -> list[Path]:
    """Writes `SsssCcccPpppRrrrAaaa.skeleton` files into `folder` and returns their paths, sorted.

    A file's bytes depend on `seed`, `setups` and the numbers in its name only, not on `workers` nor on which other
    files are written.

    Args:
        folder: made if missing; files of the same name are replaced.
        subjects: how many, or which (1-based).
        replications: performances of each action by each subject.
        setups: camera arrangements; subject p is filmed in setup (p - 1) % setups + 1.
        cameras: 1 to 3, at about -45, 0 and +45 degrees.
        actions: 1-based numbers into `CLASS_NAMES`; all of them by default.
        seed: of everything.
        workers: processes; the number of usable cores by default.
        progress: show a progress bar.

    Raises:
        ValueError: an argument is out of range.
    """
    people = range(1, subjects + 1) if isinstance(subjects, int) else subjects
    chosen = range(1, len(CLASS_NAMES) + 1) if actions is None else actions
    _check(people, chosen, replications, setups, cameras, seed)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    keys = [(p, a, r) for p in people for a in chosen for r in range(1, replications + 1)]
    workers = min(workers or usable_cores(), len(keys))
    views = ordered_map(partial(_write_views, folder, seed, setups, cameras), keys, workers)
    bar = tqdm(views, total=len(keys), disable=not progress, **progress_bar("performance", "write synthetic files"))
    with closing(views):
        return sorted(path for paths in bar for path in paths)


def _check(
    people: Sequence[int], chosen: Sequence[int], replications: int, setups: int, cameras: int, seed: int
) -> None:
    limits = (
        ("subjects", people, 999),
        ("actions", chosen, len(CLASS_NAMES)),
        ("replications", [replications], 999),
        ("setups", [setups], 999),
        ("cameras", [cameras], 3),
    )
    for name, values, most in limits:
        if not values or not all(1 <= value <= most for value in values):
            raise ValueError(f"{name} must lie in 1..{most}, got {list(values)}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")


def _write_views(folder: Path, seed: int, setups: int, cameras: int, key: _Key) -> list[Path]:
    subject, action, replication = key
    setup = (subject - 1) % setups + 1
    paths = []
    for camera in range(1, cameras + 1):
        frames, tracks = film(seed, setup, camera, key)
        rng = stream(seed, FILM, camera, *key, _TEXT)
        text = skeleton_text(rng, frames, tracks)
        newline = "\r\n" if rng.random() < 0.2 else "\n"
        path = folder / f"S{setup:03d}C{camera:03d}P{subject:03d}R{replication:03d}A{action:03d}.skeleton"
        path.write_text(text, newline=newline)
        paths.append(path)
    return paths
