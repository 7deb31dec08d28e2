"""What the page of a run shows of the encoder beyond report.json, measured once and kept in the run folder."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmc.config import Config, to_plain
from fastmc.data.store import PackedStore
from fastmc.evaluation.knn import nearest_neighbours
from fastmc.evaluation.raw import raw_accuracy, raw_bytes
from fastmc.figures.attack import AttackStrengths, attack_strengths, attacking
from fastmc.files import whole_file
from fastmc.page.clips import spread
from fastmc.tensor_files import check_values, read_tensors, write_tensors
from train.engine.record import log
from train.runs.evaluations import Evaluated
from train.runs.figure_runs import some_of
from train.runs.load import Run

MEASURED = "page.pt"
VERSION = 1
SHOWN = 2000
"""Test clips on a page, at most."""
NEIGHBOURS = 5
ATTACKED = 6
SHARES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Of eta: how far the attack's perturbation goes."""
RAW_BYTES = 5 * 10**8
"""Of the features that raw coordinates are, at most: those of some thousands of clips."""
SEED = 0


@dataclass(frozen=True)
class Map:
    """Test clips in two dimensions.

    Attributes:
        points: (N, 2) float32, of the clips that are shown. words: how they were found, and how good they are.
        neighbours: (N, k) int64, the training clips nearest to each by cosine of the features, nearest first; cosines:
            (N, k) float32.
    """

    points: np.ndarray
    words: str
    neighbours: np.ndarray
    cosines: np.ndarray


@dataclass(frozen=True)
class Attack:
    """Clips (N,) int64, and what the attack does to them."""

    clips: np.ndarray
    found: AttackStrengths


@dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
        bank_full: epochs done when the bank was full of features; None where none waits for it, or never.
        shown: (N,) int64, the test clips that a page plays, increasing: all, or some by chance.
        predicted: classes int64 that the linear classifier gives all labelled test clips, in their order; None where
            there are none.
        map: None where there are too few clips. attack: None where the method has none.
        raw: accuracies of raw coordinates, by the names of report.json; None where they were too large.
        notes: what a reader has to know, a sentence each.
    """

    bank_full: float | None
    shown: np.ndarray
    predicted: np.ndarray | None
    map: Map | None
    attack: Attack | None
    raw: dict[str, float] | None
    notes: tuple[str, ...]


def measure(run: Run, evaluated: Evaluated | None) -> Measured:
    """Measure a trained run; ``evaluated``: what its evaluation found, None where it has no labels."""
    _, test = run.store.split(run.protocol) if evaluated is None else run.store.labelled_split(run.protocol)
    places = np.asarray(some_of(np.arange(len(test)), SHOWN, SEED))
    shown, notes = test[places], []
    if len(shown) < len(test):
        notes.append(
            f"{len(shown):,} of {len(test):,} test clips are shown, drawn by chance (seed {SEED}), with the training "
            "clips nearest to them; accuracies and confusions are of all."
        )
    found, raw = None, None
    if evaluated is not None:
        found = _map(run, evaluated, places, shown)
        raw = _raw(run, notes)
        if found is None:
            notes.append(f"There is no map: {len(shown)} test clips are too few for a t-SNE.")
    predictions = None if evaluated is None else evaluated.predictions
    return Measured(
        bank_full=_bank_full(run),
        shown=shown,
        predicted=None if predictions is None else predictions.ranked[:, 0],
        map=found,
        attack=_attack(run, shown),
        raw=raw,
        notes=tuple(notes),
    )


def _map(run: Run, evaluated: Evaluated, places: np.ndarray, shown: np.ndarray) -> Map | None:
    from fastmc.figures.tsne import FEWEST, embed, scores_in_words  # here, so that nothing else waits for matplotlib

    if len(shown) < FEWEST:
        return None
    features = evaluated.test[torch.from_numpy(places).to(evaluated.test.device)].float()
    embedding = embed(features.cpu().numpy(), run.store.label[shown], seed=SEED)
    train, _ = run.store.labelled_split(run.protocol)
    device = evaluated.train.device
    nearest, cosines = nearest_neighbours(evaluated.train, features, min(NEIGHBOURS, len(train)), device=device)
    return Map(
        points=np.asarray(embedding.points, np.float32),
        words=f"t-SNE of {len(shown):,} clips, perplexity {embedding.perplexity:.3g}; {scores_in_words(embedding)}",
        neighbours=train[nearest.cpu().numpy()],
        cosines=cosines.float().cpu().numpy(),
    )


def _raw(run: Run, notes: list[str]) -> dict[str, float] | None:
    train, test = run.split()
    config, frames = run.config.evaluation, run.config.frames
    size = raw_bytes(run.placed, train, test, config, frames)
    if size > RAW_BYTES:
        notes.append(
            f"Raw coordinates are not evaluated: with {config.train_crops} crops of {len(train):,} training clips they "
            f"take {size / 1e9:.1f} GB, and a page {RAW_BYTES / 1e9:g} GB at most."
        )
        return None
    return raw_accuracy(run.placed, train, test, run.store.num_classes, config, frames)


def _attack(run: Run, shown: np.ndarray) -> Attack | None:
    """Of a few clips of as many classes as there are."""
    try:
        model = attacking(run.model)
    except ValueError:
        return None
    candidates = shown if len(shown) else run.store.split(run.protocol)[0]
    if not model.attacks:
        return None
    clips = candidates[spread([run.store.label[candidates]], ATTACKED, SEED)]
    ids = torch.from_numpy(clips).to(run.placed.device)
    return Attack(clips, attack_strengths(model, run.placed, ids, SHARES))


def _bank_full(run: Run) -> float | None:
    optim = run.own.optim
    train, _ = run.store.split(run.own.protocol or run.store.protocols[0])
    batches = len(train) // optim.batch_size
    if not batches or run.model.phase(0, 0) not in run.model.brief:
        return None
    first = run.model.first_step_after_filling(optim.batch_size, batches, optim.epochs * batches)
    return None if first is None else first / batches


def made_of(config: Config, data: str, weights: str | None) -> dict[str, Any]:
    """What measurements depend on: settings, the digest of clips and labels, and that of the encoder's weights, None
    where these are not there any more."""
    plain = to_plain(config)
    used = ("protocol", "evaluation", "stream", "frames", "seed", "method", "settings")
    return {"version": VERSION, "data": data, "weights": weights, **{name: plain[name] for name in used}}


def keep(folder: Path, measured: Measured, made: dict[str, Any]) -> None:
    """Write them to the run folder, beside and renamed."""
    with whole_file(folder / MEASURED) as unfinished:
        write_tensors(unfinished, {"made": made, "measured": _plain(measured)})


def kept(folder: Path, made: dict[str, Any], store: PackedStore) -> Measured | None:
    """What the run folder keeps of a run on this store, if it was made of this; else None. A damaged file is told."""
    path = folder / MEASURED
    if not path.is_file():
        return None
    try:
        saved = read_tensors(path)
        if not {name: value for name, value in made.items() if value is not None}.items() <= saved["made"].items():
            return None
        check_values(saved, path)
        measured = _measured(saved["measured"])
        _check(measured, store)
        return measured
    except Exception as error:  # a damaged file may hold anything
        log.warning("%s cannot be used, and is made anew (%s)", path, error)
        return None


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, arrays as tensors, tuples as lists."""
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.ascontiguousarray(value))
    return list(value) if isinstance(value, tuple) else value


def _measured(plain: dict[str, Any]) -> Measured:
    """The inverse of `_plain`."""

    def arrays(values: dict[str, Any]) -> dict[str, Any]:
        return {name: each.numpy() if isinstance(each, torch.Tensor) else each for name, each in values.items()}

    map_, attack = plain["map"], plain["attack"]
    parts = {
        "map": None if map_ is None else Map(**arrays(map_)),
        "attack": None
        if attack is None
        else Attack(attack["clips"].numpy(), AttackStrengths(**arrays(attack["found"]))),
        "notes": tuple(map(str, plain["notes"])),
    }
    return Measured(**{**arrays(plain), **parts})


def _check(measured: Measured, store: PackedStore) -> None:
    """ValueError for clips and classes that the store has not, or arrays that do not belong together."""
    shown, predicted, found, attack = measured.shown, measured.predicted, measured.map, measured.attack
    clips = [shown, *([] if found is None else [found.neighbours]), *([] if attack is None else [attack.clips])]
    if any(each.size and not 0 <= each.min() <= each.max() < len(store) for each in clips):
        raise ValueError("it names clips that the store has not")
    if predicted is not None and not 0 <= predicted.min() <= predicted.max() < store.num_classes:
        raise ValueError("it names classes that the store has not")
    if found is not None and (
        found.points.shape != (len(shown), 2)
        or len(found.neighbours) != len(shown)
        or found.cosines.shape != found.neighbours.shape
    ):
        raise ValueError("its arrays are not of the same clips")
    if attack is not None and {len(getattr(attack.found, name)) for name in ("x", "rho", "own", "entropy")} != {
        len(attack.clips)
    }:
        raise ValueError("its attack is not of as many clips as it names")
