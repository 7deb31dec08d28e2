"""What a packed store holds, as text."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from fastmc.data.store import UNKNOWN, PackedStore

SHOWN = 3  # names per reason
BAR = 40  # characters of the longest bar of a histogram


def summary(store: PackedStore) -> str:
    """Size, splits and what was left out: some lines."""
    classes = f"of {store.num_classes} classes" if store.num_classes else "without labels"
    lines = [f"{store.path}: {len(store):,} clips {classes}, {_seconds(store)}, {_disk(store)} on disk"]
    notes: dict[str, None] = {}
    for protocol in store.protocols:
        train, test = store.split(protocol)
        lines.append(f"  {protocol}: {len(train):,} training clips, {len(test):,} test clips")
        if not len(train):
            lines.append(f"  warning: {protocol} cannot be used, it has no training clip")
        elif reason := why_not_evaluated(store, protocol):
            lines.append(f"  note: {reason}: it can be pre-trained on, not evaluated")
        notes |= dict.fromkeys(label_notes(store, protocol))
    if cut := store.meta.get("bodies_cut"):
        lines.append(f"  note: {cut:,} clips had more bodies than --max-bodies, and keep the first")
    if not store.skeleton.has_sides:
        lines.append(
            f"  note: no joint of {store.skeleton.name!r} has a partner on the other side, so that flipped views swap "
            "none; left and right in joint names, or --skeleton, name them"
        )
    return "\n".join([*lines, *(f"  warning: {note}" for note in notes), *_skipped(store)])


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
    skeleton = store.skeleton
    bodies = [f"{np.sum(store.num_bodies == m):,} clips with {m}" for m in np.unique(store.num_bodies)]
    facts = {
        "skeleton": f"{skeleton.name}, {skeleton.num_joints} joints, {len(skeleton.bones)} bones, {store.fps:g} fps",
        "bodies": ", ".join(bodies),
        **{f"{field}s": _ids(getattr(store, field)) for field in ("subject", "camera", "setup", "replication")},
        "normalised": store.meta.get("normalisation", "unknown"),
        "source": f"blake2b {store.checksum}",
    }
    width = max(map(len, facts))
    return "\n".join(
        [
            summary(store),
            "",
            *(f"  {key:{width}}  {value}" for key, value in facts.items()),
            *(f"  warning: {line}" for line in store.meta.get("warnings", [])),
            "",
            *_lengths(store),
            "",
            *_classes(store),
        ]
    )


def _skipped(store: PackedStore) -> list[str]:
    by_reason = defaultdict(list)
    for entry in store.skipped():
        by_reason[entry["reason"]].append(entry)
    total = sum(map(len, by_reason.values()))
    if not total:
        return ["  nothing was left out"]
    lines = [f"  left out: {total:,} files (all of them in {store.path / 'skipped.json'})"]
    for reason, entries in sorted(by_reason.items(), key=lambda item: -len(item[1])):
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
    frames = store.num_frames
    low, middle, high = (int(value) for value in np.percentile(frames, (0, 50, 100)))
    counts, edges = np.histogram(frames, bins=min(10, max(1, high - low)), range=(low, high + 1))
    bars = [
        f"  {int(np.ceil(edge)):6}+ {count:8,} {'#' * _bar(count, counts.max())}"
        for edge, count in zip(edges, counts, strict=False)
    ]
    return [f"  frames a clip: {low} to {high}, median {middle}, mean {frames.mean():.1f}", *bars]


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
