"""The page of a packed store, before any training: what it holds, what is odd about it, and clips that play."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fastmc.data.report import (
    bodies_of,
    counts_of,
    facts,
    lengths_in_words,
    lengths_of,
    remarks,
    size_in_words,
    skipped_by_reason,
)
from fastmc.data.sanity import Sanity
from fastmc.data.store import REMEDY, UNKNOWN, PackedStore, StoreError
from fastmc.page.clips import clip_columns, known_fields, skeleton_content, spread
from fastmc.page.motion import pack
from fastmc.page.views import Augmentation, views_content

BARS, CLIPS_A_BAR = (8, 40), 8
"""Of the histogram of lengths, at least and at most, and clips that each has on average where the set is small."""
ENTRIES = 500
"""Of what was left out, for one reason: a page has room for so many; skipped.json has all."""
MOTION_BYTES = 6_000_000


def store_content(
    store: PackedStore,
    *,
    clips: int,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """What a page of kind ``store`` shows, without its head; its clips are under ``motion``.

    Of the frames only those of clips that the page carries are read.

    Args:
        clips: how many it carries, at most. seed: of which these are.
        augmentation: of the views; without it there are none.
        advance: is told how many more clips have been read.

    Raises:
        StoreError: a clip holds coordinates that are not finite.
    """
    test = store.split(store.protocols[0])[1] if store.protocols else np.zeros(0, np.int64)
    ids = spread([store.label, _is_in(store, test), store.subject, store.camera], clips, seed)
    sanity = Sanity(store.skeleton)
    motion = pack(_read(store, ids, sanity, advance), store.skeleton, most_bytes=MOTION_BYTES)
    skipped, cut = _skipped(store)
    return {
        "notes": [*_sampled(store, ids, seed, motion), *cut],
        "fields": known_fields(store),
        "skeleton": skeleton_content(store),
        "classes": list(store.class_names),
        "clips": clip_columns(store, ids, test),
        "motion": motion,
        "store": {
            "facts": _facts(store),
            "protocols": [_protocol(store, name, ids) for name in store.protocols],
            "lengths": _lengths(store),
            "bodies": [list(pair) for pair in bodies_of(store)],
            "by": {name: _by(store, name) for name in ("class", *known_fields(store))},
            "skipped": skipped,
            **_odd(store, sanity.finding()),
            **({} if augmentation is None else views_content(store, ids, augmentation)),
        },
    }


def _is_in(store: PackedStore, ids: np.ndarray) -> np.ndarray:
    return np.isin(np.arange(len(store)), ids).astype(np.int64)


def _read(
    store: PackedStore, ids: np.ndarray, sanity: Sanity, advance: Callable[[int], object]
) -> Iterator[np.ndarray]:
    for n in ids.tolist():
        clip = np.asarray(store.clip(n))
        if not np.isfinite(clip).all():
            raise StoreError(
                f"{store.path}: clip {store.names[n]} holds NaN or infinite coordinates; {REMEDY} with --overwrite"
            )
        sanity.see(clip)
        yield clip
        advance(1)


def _sampled(store: PackedStore, ids: np.ndarray, seed: int, motion: dict[str, Any]) -> list[str]:
    """What the page leaves out of the clips, and of their frames."""
    frames = max(motion["frames"])
    said = [f"At most {frames} frames of each clip are carried; what plays between them is interpolated."]
    if len(ids) < len(store):
        said.insert(
            0,
            f"{len(ids):,} of {len(store):,} clips are carried by this page, drawn by chance (seed {seed}) and spread "
            "evenly over classes, parts, subjects and cameras; all numbers are of all clips.",
        )
    return said


def _odd(store: PackedStore, finding: str) -> dict[str, list[str]]:
    """What its clips look like, what its report warns of and notes. Its preparation may have found the same."""
    said = [remark for remark in remarks(store) if remark.text != finding]
    return {
        "sanity": [finding] if finding else [],
        "warnings": [remark.text for remark in said if remark.kind == "warning"],
        "remarks": [remark.text for remark in said if remark.kind == "note"],
    }


def _facts(store: PackedStore) -> list[list[str]]:
    known = {"folder": str(store.path), "size": size_in_words(store), "frames a clip": lengths_in_words(store)}
    return [[name, value] for name, value in (known | facts(store)).items() if value != "unknown"]


def _protocol(store: PackedStore, name: str, ids: np.ndarray) -> dict[str, Any]:
    """With the clips of the page that test under it, as 0 and 1."""
    train, test = store.split(name)
    return {"name": name, "train": len(train), "test": len(test), "tests": np.isin(ids, test).astype(int).tolist()}


def _lengths(store: PackedStore) -> dict[str, Any]:
    fewest, most = BARS
    edges, counts = lengths_of(store, min(most, max(fewest, len(store) // CLIPS_A_BAR)))
    return {"edges": edges, "counts": counts, "fps": store.fps}


def _by(store: PackedStore, name: str) -> list[list[Any]]:
    """For each class, or value of a field: what it is called, its number, its clips, and under each protocol how many
    of them test."""
    values = store.label if name == "class" else getattr(store, name)
    every = range(store.num_classes) if name == "class" else values[values != UNKNOWN].tolist()
    numbers = sorted({*every, *values[values == UNKNOWN].tolist()}, key=lambda n: (n == UNKNOWN, n))
    tests = [dict(counts_of(values[store.split(protocol)[1]])) for protocol in store.protocols]
    every_clip = dict(counts_of(values))
    return [[_called(store, name, n), n, every_clip.get(n, 0), [test.get(n, 0) for test in tests]] for n in numbers]


def _called(store: PackedStore, name: str, value: int) -> str:
    if value == UNKNOWN:
        return f"{name} unknown"
    return store.class_names[value] if name == "class" else f"{name} {value}"


def _skipped(store: PackedStore) -> tuple[list[dict[str, Any]], list[str]]:
    """What the preparation left out, by reason, and a note where there is too much of it for a page."""
    found: list[dict[str, Any]] = [
        {
            "reason": reason,
            "count": len(entries),
            "entries": [{"name": entry["name"], "detail": entry["detail"]} for entry in entries[:ENTRIES]],
        }
        for reason, entries in skipped_by_reason(store)
    ]
    cut = any(group["count"] > ENTRIES for group in found)
    where = store.path / "skipped.json"
    return found, [f"Of what was left out, {ENTRIES} entries a reason are listed; all are in {where}."] * cut
