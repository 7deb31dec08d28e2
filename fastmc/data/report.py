"""What a packed store holds, as text."""

from __future__ import annotations

from collections import defaultdict
from typing import Literal, NamedTuple

import numpy as np

from fastmc.data.store import UNKNOWN, PackedStore
from fastmc.reading import writable

SHOWN = 3  # names per reason
BAR = 40  # characters of the longest bar of a histogram


class Remark(NamedTuple):
    """Something about a store that its user should know; a warning says that something is wrong."""

    kind: Literal["warning", "note"]
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


def summary(store: PackedStore) -> str:
    """Size, splits and what was left out: some lines."""
    lines = [f"{store.path}: {size_in_words(store)}"]
    for protocol in store.protocols:
        train, test = store.split(protocol)
        lines.append(f"  {protocol}: {len(train):,} training clips, {len(test):,} test clips")
        lines += [f"  {remark}" for remark in _of_protocol(store, protocol)]
    return writable("\n".join([*lines, *(f"  {remark}" for remark in _of_store(store)), *_skipped(store)]))


def size_in_words(store: PackedStore) -> str:
    """Clips, classes, time and room on the disk."""
    classes = f"of {store.num_classes} classes" if store.num_classes else "without labels"
    return f"{len(store):,} clips {classes}, {_seconds(store)}, {_disk(store)} on disk"


def remarks(store: PackedStore) -> list[Remark]:
    """What is odd about a store: its protocols, bodies, sides and labels, and what its preparation warned of."""
    of_protocols = [remark for protocol in store.protocols for remark in _of_protocol(store, protocol)]
    return [*of_protocols, *_of_store(store), *(Remark("warning", text) for text in store.meta.get("warnings", []))]


def _of_protocol(store: PackedStore, protocol: str) -> list[Remark]:
    if not len(store.split(protocol)[0]):
        return [Remark("warning", f"{protocol} cannot be used, it has no training clip")]
    if reason := why_not_evaluated(store, protocol):
        return [Remark("note", f"{reason}: it can be pre-trained on, not evaluated")]
    return []


def _of_store(store: PackedStore) -> list[Remark]:
    found = []
    if cut := store.meta.get("bodies_cut"):
        found.append(Remark("note", f"{cut:,} clips had more bodies than --max-bodies, and keep the first"))
    if not store.skeleton.has_sides:
        says = (
            f"no joint of {store.skeleton.name!r} has a partner on the other side, so that flipped views swap "
            "none; left and right in joint names, or --skeleton, name them"
        )
        found.append(Remark("note", says))
    labels = dict.fromkeys(note for protocol in store.protocols for note in label_notes(store, protocol))
    return [*found, *(Remark("warning", note) for note in labels)]


def why_not_evaluated(store: PackedStore, protocol: str) -> str | None:
    """Why no classifier can be trained and tested under a protocol; None where one can."""
    sides = zip(("training", "test"), store.split(protocol), store.labelled_split(protocol), strict=True)
    for side, clips, labelled in sides:
        if not len(labelled):
            what = f"labelled {side}" if len(clips) else side
            return f"protocol = {protocol!r} leaves no {what} clip in {store.path}"
    return None


def label_notes(store: PackedStore, protocol: str) -> list[str]:
    """What is odd about the labels, and what it does to an evaluation under a protocol: a sentence each."""
    train, test = (store.label[ids] for ids in store.labelled_split(protocol))
    known, names = store.label[store.label != UNKNOWN], store.class_names
    notes = []
    if 0 < len(known) < len(store):
        notes.append(f"{len(store) - len(known):,} of {len(store):,} clips have no label; evaluations leave them out")
    if len(known) and known.min() > 0:
        notes.append(f"no clip has label 0 ({names[0]}); do the labels count from 1? Then the names are one off")
    if len(test) and len(train):
        unseen = np.setdiff1d(test, train)
        if len(unseen):
            which = ", ".join(names[label] for label in unseen[:SHOWN]) + ", ..." * (len(unseen) > SHOWN)
            clips = int(np.isin(test, unseen).sum())
            notes.append(
                f"{protocol}: classes without a labelled training clip ({which}): "
                f"{clips:,} of {len(test):,} test clips count as errors, whatever the encoder"
            )
        if len(np.unique(train)) == 1:
            notes.append(
                f"{protocol}: all labelled training clips are of one class ({names[train[0]]}), "
                "which is then said of every test clip; its accuracies tell nothing of the encoder"
            )
    return notes


def describe(store: PackedStore) -> str:
    """`summary` and then the skeleton, recording conditions, clip lengths and counts per class."""
    known = facts(store)
    width = max(map(len, known))
    return "\n".join(
        [
            summary(store),
            "",
            *(f"  {key:{width}}  {value}" for key, value in known.items()),
            *(f"  warning: {line}" for line in store.meta.get("warnings", [])),
            "",
            *_lengths(store),
            "",
            *_classes(store),
        ]
    )


def facts(store: PackedStore) -> dict[str, str]:
    """The skeleton, recording conditions and source of a store, by name."""
    skeleton = store.skeleton
    return {
        "skeleton": f"{skeleton.name}, {skeleton.num_joints} joints, {len(skeleton.bones)} bones, {store.fps:g} fps",
        "bodies": ", ".join(f"{clips:,} clips with {bodies}" for bodies, clips in bodies_of(store)),
        **{f"{field}s": _ids(getattr(store, field)) for field in ("subject", "camera", "setup", "replication")},
        "normalised": store.meta.get("normalisation", "unknown"),
        "source": f"blake2b {store.checksum}",
    }


def bodies_of(store: PackedStore) -> list[tuple[int, int]]:
    """How many clips there are of each number of bodies: (bodies, clips)."""
    return counts_of(store.num_bodies)


def counts_of(values: np.ndarray) -> list[tuple[int, int]]:
    """Each value, in increasing order, and how often it is there."""
    return [(int(value), int(count)) for value, count in zip(*np.unique(values, return_counts=True), strict=True)]


def lengths_of(store: PackedStore, bins: int) -> tuple[list[int], list[int]]:
    """A histogram of the clips' frames: the edges of its bars, of which there are at most so many and the last one is
    left out of its bar, and the clips of each."""
    low, high = int(store.num_frames.min()), int(store.num_frames.max())
    edges = np.ceil(np.linspace(low, high + 1, min(bins, max(1, high - low)) + 1)).astype(int)
    return edges.tolist(), np.histogram(store.num_frames, edges)[0].tolist()


def skipped_by_reason(store: PackedStore) -> list[tuple[str, list[dict[str, str]]]]:
    """What the preparation left out, as `PackedStore.skipped` has it, by reason; the most frequent one comes first."""
    by_reason = defaultdict(list)
    for entry in store.skipped():
        by_reason[entry["reason"]].append(entry)
    return sorted(by_reason.items(), key=lambda item: -len(item[1]))


def _skipped(store: PackedStore) -> list[str]:
    by_reason = skipped_by_reason(store)
    total = sum(len(entries) for _, entries in by_reason)
    if not total:
        return ["  nothing was left out"]
    lines = [f"  left out: {total:,} files (all of them in {store.path / 'skipped.json'})"]
    for reason, entries in by_reason:
        more = ", ..." if len(entries) > SHOWN else ""
        lines.append(f"    {len(entries):,} × {reason}")
        if any(entry["detail"] for entry in entries):
            lines += [f"      {entry['detail']}" for entry in entries[:SHOWN]] + ["      ..."] * bool(more)
        else:
            lines.append(f"      {', '.join(entry['name'] for entry in entries[:SHOWN])}{more}")
    return lines


def _seconds(store: PackedStore) -> str:
    return f"{store.num_frames.sum() / store.fps / 3600:.2f} hours"


def _disk(store: PackedStore) -> str:
    size = float(sum(file.stat().st_size for file in store.path.iterdir()))
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.3g} {unit}"


def _ids(values: np.ndarray) -> str:
    known = np.unique(values[values >= 0])
    if not len(known):
        return "unknown"
    return f"{len(known)} ({known[0]} to {known[-1]})" if len(known) > 6 else ", ".join(map(str, known))


def _lengths(store: PackedStore) -> list[str]:
    edges, counts = lengths_of(store, 10)
    bars = [
        f"  {edge:6}+ {count:8,} {'#' * _bar(count, max(counts))}" for edge, count in zip(edges, counts, strict=False)
    ]
    return [f"  frames a clip: {lengths_in_words(store)}", *bars]


def lengths_in_words(store: PackedStore) -> str:
    """The frames of the shortest and of the longest clip, and those of clips in the middle."""
    low, middle, high = (int(value) for value in np.percentile(store.num_frames, (0, 50, 100)))
    return f"{low} to {high}, median {middle}, mean {store.num_frames.mean():.1f}"


def _bar(count: int, most: int) -> int:
    return int(np.ceil(BAR * count / most))


def _classes(store: PackedStore) -> list[str]:
    sides = [indices for protocol in store.protocols for indices in store.split(protocol)]
    heads = [f"{protocol} {side}" for protocol in store.protocols for side in ("train", "test")]
    columns = [
        np.bincount(label - UNKNOWN, minlength=store.num_classes + 1)
        for label in (store.label, *(store.label[indices] for indices in sides))
    ]
    named = list(enumerate(store.class_names)) + [(UNKNOWN, "no label")] * bool(columns[0][0])
    width = max(len("class"), *(len(name) for _, name in named)) + 4
    rows = [("class", ["clips", *heads])] + [
        (f"{label:3} {name}", [f"{column[label - UNKNOWN]:,}" for column in columns]) for label, name in named
    ]
    return [f"  {first:{width}}" + "".join(f"{cell:>13}" for cell in cells) for first, cells in rows]
