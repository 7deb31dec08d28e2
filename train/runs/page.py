"""The page of one or several runs: its content, of what their folders hold, and the file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from fastmc.config import CALL_SETTINGS, Config, to_plain
from fastmc.data.store import PackedStore
from fastmc.figures.history import Panel, panels_of
from fastmc.methods import find_method
from fastmc.page.clips import clip_columns, known_fields, skeleton_content
from fastmc.page.document import room_for_motion, write_page
from fastmc.page.motion import pack
from train.engine.profiling import Part
from train.engine.record import duration, log
from train.runs.figure_runs import changed_settings, labels_by_settings, setting, tell_apart
from train.runs.folder import ACCURACIES, PAGE
from train.runs.measured import SHOWN, Attack, Map
from train.runs.page_runs import PageRun
from train.runs.published import Variant, published_accuracies
from train.runs.report import made_by

MOST_BYTES, MOST_BYTES_SAMPLED = 6_000_000, 20_000_000
"""Of a page, and of one whose 2,000 test clips are some of more, with neighbours of their own."""
FEWEST_BYTES = 1_000_000
"""For clips, however many numbers the runs have."""
FINE = 1e-5
"""Metres: the quantum of a perturbation, which a slider makes longer."""
DIGITS = 4
BARE = ("method", "dataset")
"""Settings that labels on a page do not name: their values say what they are."""
MOST_NAMED = 3
"""Groups of runs whose labels stand in the title."""


def write_run_page(run: PageRun, command: str) -> None:
    """The page of one run, report.html in its folder. WriteError if it cannot be written."""
    write_runs_page([run], run.folder / PAGE, command)


def write_runs_page(runs: Sequence[PageRun], path: Path, command: str) -> None:
    """A page of one or several runs.

    Args:
        command: that makes it, as the page says.

    Raises:
        WriteError: it cannot be written.
    """
    size = write_page(path, content_of(runs, command))
    log.info("the page %s has %.1f MB", path, size / 1e6)


def content_of(runs: Sequence[PageRun], command: str) -> dict[str, Any]:
    """What the page holds: plain values, as `fastmc.page.document.write_page` takes them.

    Of runs on different data neither clips nor what is shown by clips are there.
    """
    notes, groups = _notes(runs), groups_of(runs)
    carried = None
    known = {(run.protocol, run.report.data) for run in runs if run.report is not None and run.report.data}
    if len({run.config.dataset for run in runs}) > 1 or len(known) > 1:
        notes.append(
            "These runs are of different data: curves and accuracies are compared; clips, maps and confusions are on "
            "the page of each run."
        )
    else:
        carried = Carried.of(runs)
    content = {
        "kind": "report",
        "title": _title(runs, groups),
        **made_by(command),
        "notes": notes,
        **({} if carried is None else carried.content()),
        "runs": [_run(run, carried) for run in runs],
        "groups": groups,
        "differences": _differences(runs),
        "accuracies": {"rows": list(ACCURACIES.values())},
    }
    return content if carried is None else {**content, "motion": carried.motion(content)}


def _title(runs: Sequence[PageRun], groups: Sequence[dict[str, Any]]) -> str:
    sets = list(dict.fromkeys(run.config.dataset for run in runs))
    on = f"on {' and '.join(sets)}"
    if len(runs) == 1:
        return f"{runs[0].config.method} {on}: {runs[0].label}"
    if len(sets) > 1 or len(groups) > MOST_NAMED:
        return f"{len(runs)} runs {on}"
    return f"{' and '.join(group['label'] for group in groups)} {on}"


@dataclass(frozen=True)
class Carried:
    """The clips that a page carries.

    Attributes:
        first: a run whose store they are of.
        clips: (N,) int64, of the store, increasing.
    """

    first: PageRun
    clips: np.ndarray

    @classmethod
    def of(cls, runs: Sequence[PageRun]) -> Carried | None:
        """Those that the runs show, which are of the same data; None if there are none."""
        found = []
        for measured in (run.measured for run in runs if run.measured is not None):
            found.append(measured.shown)
            found += [] if measured.map is None else [measured.map.neighbours.ravel()]
            found += [] if measured.attack is None else [measured.attack.clips]
        clips = np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)
        return cls(next(run for run in runs if run.store is not None), clips) if len(clips) else None

    def places(self, clips: np.ndarray) -> list[Any]:
        """Where clips of the store, an array of any shape, are on the page; -1 for those that are not on it."""
        at = np.minimum(np.searchsorted(self.clips, clips), len(self.clips) - 1)
        return np.where(self.clips[at] == clips, at, -1).tolist()

    @property
    def store(self) -> PackedStore:
        assert self.first.store is not None
        return self.first.store

    @property
    def test(self) -> np.ndarray:
        """All test clips of the store."""
        return self.store.split(self.first.protocol or self.store.protocols[0])[1]

    def content(self) -> dict[str, Any]:
        """All of it but how the clips move."""
        store = self.store
        return {
            "fields": known_fields(store),
            "skeleton": skeleton_content(store),
            "classes": list(store.class_names),
            "clips": clip_columns(store, self.clips, self.test),
        }

    def motion(self, content: dict[str, Any]) -> dict[str, Any]:
        """How they move, in the room that a page with the rest of its content has left."""
        most = MOST_BYTES if len(self.test) <= SHOWN else MOST_BYTES_SAMPLED
        room = max(room_for_motion(content, most), FEWEST_BYTES)
        return pack((self.store.clip(n) for n in self.clips), self.store.skeleton, most_bytes=room)


def _run(run: PageRun, carried: Carried | None) -> dict[str, Any]:
    published, source = _published(run)
    where, plain = str(run.folder), _plain(run.config)
    return {
        "label": run.label,
        "folder": where,
        "facts": _facts(run),
        "settings": [[name, setting(plain, name)] for name in _names(plain)],
        "command": "python -m train.run " + shlex.join(["--config", str(run.folder / "config.json"), "--out", where]),
        "trained": run.report.trained if run.report else [None] * len(ACCURACIES),
        "untrained": run.report.untrained if run.report else [None] * len(ACCURACIES),
        "raw": _raw(run),
        "published": published,
        "published_source": source,
        "panels": [_panel(name, panel, run) for name, panel in panels_of(run.history).items() if panel.lines],
        "bank_full": None if run.measured is None else run.measured.bank_full,
        **({} if carried is None else _by_clips(run, carried)),
        "time": _time(run),
    }


def _by_clips(run: PageRun, carried: Carried) -> dict[str, Any]:
    """What of a run is shown by clips."""
    measured, store = run.measured, run.store
    if measured is None or store is None:
        return {}
    found: dict[str, Any] = {}
    if measured.predicted is not None:
        _, test = store.labelled_split(run.protocol or store.protocols[0])
        found["predictions"] = {
            "by": "linear classifier",
            "true": store.label[test].tolist(),
            "predicted": measured.predicted.tolist(),
            "clip": carried.places(np.where(np.isin(test, measured.shown), test, -1)),
        }
    if measured.map is not None:
        found["map"] = _map(measured.map, measured.shown, carried)
    if measured.attack is not None:
        found["attack"] = _attack(measured.attack, run, carried)
    return found


def _map(found: Map, shown: np.ndarray, carried: Carried) -> dict[str, Any]:
    x, y = (_rounded(found.points[:, axis], 2) for axis in (0, 1))
    return {
        "clip": carried.places(shown),
        "x": x,
        "y": y,
        "words": found.words,
        "neighbours": carried.places(found.neighbours),
        "cosines": _rounded(found.cosines),
    }


def _attack(attack: Attack, run: PageRun, carried: Carried) -> dict[str, Any]:
    found, store = attack.found, run.store
    assert store is not None
    clips = [
        {"clip": place, "steps": _rounded(found.norms), "entropy": _rounded(entropy), "own": own}
        for place, entropy, own in zip(carried.places(attack.clips), found.entropy, _rounded(found.own), strict=True)
    ]
    eta = getattr(run.config.settings, "attack_norm", None)
    length = f"{found.own.min():.3g} to {found.own.max():.3g}" if np.ptp(found.own) > 1e-3 else f"{found.own.max():.3g}"
    return {
        "clips": clips,
        "classes": getattr(run.config.settings, "attack_classes", None),
        "says": (
            f"The whole clip, as {run.config.frames} frames, moved along the perturbation ρ of this run's attack, "
            f"which takes one step of length {length} m here (η = {eta:g} m at most). The direction is the run's; how "
            "far it goes is the slider's. Entropy: of the fixed random layer's distribution, in nats."
        ),
        "motion": pack(
            chain.from_iterable(zip(found.x, found.rho, strict=True)),
            store.skeleton,
            frames=found.x.shape[1],
            quantum=[0.004, FINE] * len(found.x),
            centred=[True, False] * len(found.x),
        ),
    }


def _panel(name: str, panel: Panel, run: PageRun) -> dict[str, Any]:
    feature_dim = run.history.feature_dim
    lines = [
        {"name": line.metric.label, "help": line.metric.help, "x": line.epochs, "y": line.values}
        for line in panel.lines
    ]
    mark = {"y": feature_dim**-0.5, "text": f"1/√{feature_dim}: no collapse"} if name == "spread" else None
    off = name == "probe" and not run.config.log.probe_every
    why = "Not measured: it was switched off (--probe-every 0)." if off else None
    return {"title": panel.title, "zero": name in ("share", "spread"), "lines": lines, "mark": mark, "why": why}


def _facts(run: PageRun) -> list[list[str]]:
    """What was trained on what, when, and with what: names and texts."""
    config, report, begun = run.config, run.report, run.begun
    facts: list[tuple[str, Any]] = [
        ("method", config.method),
        ("encoder", config.encoder.says),
        ("data", f"{config.dataset} {run.protocol}, {config.stream} stream"),
        ("clips", None if run.store is None else _clips_in_words(run)),
        ("length", f"{config.optim.epochs} epochs" + (f", {report.steps:,} steps" if report else "")),
        ("preset", config.preset),
        ("seed", config.seed),
        ("began", begun.began),
        ("took", duration(report.wall_seconds) if report else None),
        ("commit", begun.commit),
        ("device", begun.device),
        ("versions", begun.versions),
    ]
    return [[name, str(value)] for name, value in facts if value not in (None, "")]


def _clips_in_words(run: PageRun) -> str:
    assert run.store is not None
    train, test = run.store.split(run.protocol or run.store.protocols[0])
    return f"{len(train):,} training clips, {len(test):,} test clips, {run.store.num_classes} classes"


def _plain(config: Config) -> dict[str, Any]:
    return {name: value for name, value in to_plain(config).items() if name not in CALL_SETTINGS}


def _names(plain: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all settings."""
    found = []
    for name, value in plain.items():
        found += _names(value, f"{prefix}{name}.") if isinstance(value, dict) else [f"{prefix}{name}"]
    return found


def _raw(run: PageRun) -> list[float | None] | None:
    raw = None if run.measured is None else run.measured.raw
    return None if raw is None else [raw.get(key) for key in ACCURACIES]


def _published(run: PageRun) -> tuple[list[float | None] | None, str | None]:
    """What the paper has for this method, stream and data, by accuracy, and where; None, None if it has nothing."""
    config = run.config
    own = config.backbone == find_method(config.method, (config.method,)).backbone
    variant = Variant(config.method, (config.stream,), None if own else config.backbone)
    found = published_accuracies(config.dataset, run.protocol, variant)
    by_key = {"knn_top1": found.get("knn"), "linear_top1": found.get("linear")}
    tables = sorted({each[1] for each in by_key.values() if each is not None})
    if not tables:
        return None, None
    source = f"the paper's table{'s' * (len(tables) > 1)} {' and '.join(map(str, tables))}, with its own settings"
    return [each and each[0] for each in (by_key.get(key) for key in ACCURACIES)], source


def _time(run: PageRun) -> dict[str, Any] | None:
    """Parts of a step, each followed by those that lie within it."""
    if run.profile is None:
        return None
    parts = run.profile.parts
    device = "host and GPU" if any(part.gpu is not None for part in parts) else "CPU"
    says = f"Mean of {run.profile.steps} recorded steps, {device}. A profiler costs time: a step without is shorter."
    return {"says": says, "unit": "ms a step", "parts": [part._asdict() for part in _nested(parts, None)]}


def _nested(parts: Sequence[Part], within: str | None, around: tuple[str, ...] = ()) -> list[Part]:
    """The parts within one, each followed by those that lie within it, none within itself."""
    found = []
    for part in parts:
        if part.within == within and part.name not in around:
            found += [part, *_nested(parts, part.name, (*around, part.name))]
    return found


def groups_of(runs: Sequence[PageRun]) -> list[dict[str, Any]]:
    """Runs that differ in their seed alone, together."""
    plain = [_plain(run.config) for run in runs]
    groups: list[list[int]] = []
    for n, own in enumerate(plain):
        group = next((group for group in groups if set(changed_settings([plain[group[0]], own])) <= {"seed"}), None)
        if group is None:
            groups.append([n])
        else:
            group.append(n)
    firsts = [{**plain[group[0]], "seed": None} for group in groups]
    labels = labels_by_settings(firsts, BARE)
    if len(groups) == 1:
        labels = [runs[0].config.method]
    elif not all(labels):
        names = [name for name in BARE if name in changed_settings(firsts)]
        labels = [", ".join(setting(first, name) for name in names) for first in firsts]
        if not tell_apart(labels):
            labels = [_common(runs, group) for group in groups]
    return [{"label": label, "runs": group} for label, group in zip(labels, groups, strict=True)]


def _common(runs: Sequence[PageRun], group: Sequence[int]) -> str:
    """The label of the first run of a group, and how many are with it."""
    others = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return f"{runs[group[0]].label}{others}"


def _differences(runs: Sequence[PageRun]) -> list[dict[str, Any]]:
    plain = [_plain(run.config) for run in runs]
    return [{"setting": name, "values": [setting(p, name) for p in plain]} for name in changed_settings(plain)]


def _notes(runs: Sequence[PageRun]) -> list[str]:
    """Of all runs, each once; with the label of the run where there are several, unless all say it."""
    said: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            said.setdefault(note, []).append(run.label)
    return [note if len(labels) == len(runs) else f"{', '.join(labels)}: {note}" for note, labels in said.items()]


def _rounded(values: np.ndarray, digits: int = DIGITS) -> list[Any]:
    return np.round(values.astype(np.float64), digits).tolist()
