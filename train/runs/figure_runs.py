"""Runs as `train.figures` needs them: loaded, labelled by what differs, with the clips that can be drawn."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastmc.config import CALL_SETTINGS, differences, load_config, to_plain
from fastmc.data.placed.placement import Placement
from fastmc.evaluation import represent
from fastmc.methods.base import Method
from fastmc.progress import progress_bar
from train.engine.record import read_metrics
from train.runs.folder import FREE_SETTINGS
from train.runs.load import Run, load_run

CLASSES = 10
LONGEST_LABEL = 3  # settings


@dataclass(frozen=True)
class DrawnRun(Run):
    """A trained run with its data, and the label that tells it from the others."""

    label: str = ""

    def clips(self) -> tuple[np.ndarray, np.ndarray]:
        """(training, test) clips, int64, labelled or not; where none test, those that train stand for them too."""
        train, test = self.store.split(self.protocol)
        return train, test if len(test) else train

    def features(self, ids: np.ndarray, model: Method | None = None) -> np.ndarray:
        """Frozen features (N, H) of the query encoder, of this model or the given one, at the centre crop."""
        clips = torch.from_numpy(ids).to(self.placed.device)
        share = torch.full((len(ids),), self.config.evaluation.test_crop, device=self.placed.device)
        with progress("clip", "features", len(ids)) as advance:
            h = represent(
                (model or self.model).representation,
                self.placed,
                clips,
                self.config.stream,
                frames=self.config.frames,
                ratio=share,
                position=torch.full_like(share, 0.5),
                advance=advance,
            )
        return h.float().cpu().numpy()

    def describe(self, clip: int) -> str:
        """A clip's class and name."""
        return f"{self.store.class_name(clip)} ({self.store.names[clip]})"


@contextmanager
def progress(unit: str, what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Within: a function that is told how many units are done, and shows it on a terminal."""
    with tqdm(total=total, disable=not sys.stderr.isatty(), **progress_bar(unit, what)) as bar:
        yield bar.update


def check_runs(folders: Sequence[Path], allow: Sequence[str] = ()) -> None:
    """Of folders that --run names: ValueError unless there are some, each named once and a run."""
    if not folders:
        raise ValueError("--run is missing: name a run folder, as made by python -m train.run")
    resolved = [folder.resolve() for folder in folders]
    again = next((folder for folder in folders if resolved.count(folder.resolve()) > 1), None)
    if again is not None:
        raise ValueError(f"--run {again} is named twice; name each run once")
    run_labels(folders, allow)


def run_labels(folders: Sequence[Path], allow: Sequence[str] = (), bare: Collection[str] = ()) -> list[str]:
    """What tells the runs apart: the settings in which they differ, or else the folders' names. ``allow`` as of
    `load_config`, ``bare`` as of `labels_by_settings`.

    Raises:
        RunFolderError: a folder is no run.
    """
    plain = [to_plain(load_config(folder, allow)) for folder in folders]
    by_name = [folder.resolve().name for folder in folders]
    return next(filter(tell_apart, (labels_by_settings(plain, bare), by_name)), [str(folder) for folder in folders])


def labels_by_settings(plain: Sequence[Mapping[str, Any]], bare: Collection[str] = ()) -> list[str]:
    """What tells runs of these plain settings apart; empty texts where that is nothing, or too much for a label.

    Args:
        bare: settings whose values say by themselves what they are of, such as a method's name.
    """

    def word(p: Mapping[str, Any], name: str) -> str:
        return setting(p, name) if name in bare else f"{name.split('.')[-1]} {setting(p, name)}"

    changed = changed_settings(plain)
    if len(changed) > 1:
        changed = [name for name in changed if name != "preset"]  # it only sets the defaults of the others
    if len(changed) > LONGEST_LABEL:
        return [""] * len(plain)
    return [", ".join(word(p, name) for name in changed) for p in plain]


def tell_apart(labels: Sequence[str]) -> bool:
    """Whether each of them says something, and no other says the same."""
    return all(labels) and len(set(labels)) == len(labels)


def changed_settings(plain: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted names of the settings in which runs differ, without those that do not change what is computed."""
    changed = {name for other in plain[1:] for name in differences(plain[0], other)}
    return sorted(name for name in changed if not name.startswith((*CALL_SETTINGS, *FREE_SETTINGS)))


def setting(plain: Mapping[str, Any], dotted: str) -> str:
    """A setting as text; a dash where the run's method or encoder has none of this name."""
    found: Any = plain
    for key in dotted.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return "–"
        found = found[key]
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found)


def load_runs(
    folders: Sequence[Path],
    *,
    device: torch.device,
    data_root: Path | None,
    protocol: str | None,
    placement: Placement,
    allow: tuple[str, ...] = (),
) -> list[DrawnRun]:
    """All runs, trained. ``data_root``, ``protocol``: by default each run's own. Raises what `load_run` raises."""
    runs = []
    for folder, label in zip(folders, run_labels(folders, allow), strict=True):
        run = load_run(folder, device, data_root, placement, allow)
        config = replace(run.config, protocol=protocol or run.protocol)
        runs.append(DrawnRun(folder, config, run.model, run.placed, run.store, allow, label=label))
    return runs


def check_same_data(runs: Sequence[DrawnRun]) -> None:
    """ValueError, naming two of the runs, unless all are of the same clips, split in the same way."""
    first = runs[0]
    for other in runs[1:]:
        what = [(r.store.content_checksum, r.protocol) for r in (first, other)]
        if what[0] != what[1]:
            raise ValueError(
                f"--run {first.folder} and --run {other.folder} are of different clips ({first.store.name} "
                f"{first.protocol} and {other.store.name} {other.protocol}), which one t-SNE cannot compare: "
                "name runs of one dataset, or leave tsne out with --only"
            )


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.csv; ValueError where no epoch is complete."""
    path = folder / "metrics.csv"
    rows = read_metrics(path) if path.exists() else []
    if not rows:
        raise ValueError(f"{path} holds no epoch: the run's first is not complete yet, or its checkpoint was imported")
    return rows


def candidates(run: DrawnRun, clip: int, k: int) -> np.ndarray:
    """The training clips other than this one; ValueError where they are fewer than ``k``."""
    train = run.clips()[0]
    train = train[train != clip]
    if not 1 <= k <= len(train):
        raise ValueError(f"k = {k} must be in 1..{len(train)}, the number of training clips of {run.protocol}")
    return train


def clips_of_classes(run: DrawnRun, seed: int) -> np.ndarray:
    """The labelled test clips of ten random classes; ValueError where they are too few."""
    from fastmc.figures.tsne import FEWEST, choose_classes

    _, test = (ids.cpu().numpy() for ids in run.split())
    label = run.store.label[test]
    ids = test[np.isin(label, choose_classes(label, CLASSES, seed))]
    if len(ids) < FEWEST:
        raise ValueError(f"protocol {run.protocol} leaves {len(ids)} test clips, a t-SNE needs {FEWEST} at least")
    return ids


def some_of(ids: np.ndarray, count: int, seed: int) -> Tensor:
    """All of the clips, or ``count`` random ones."""
    chosen = np.random.default_rng(seed).permutation(ids)[:count]
    return torch.from_numpy(np.sort(chosen))
