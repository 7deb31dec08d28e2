"""One store of the clips of several: to pre-train on all of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from fastmc.data.packing import TWO_PARTS, PrepareError
from fastmc.data.store import NAME_BYTES, UNKNOWN, PackedStore, StoreWriter, frame_in_words
from fastmc.skeleton import numbered

log = logging.getLogger("fastmc")


def join_stores(stores: Sequence[PackedStore], out: Path, *, name: str, overwrite: bool = False) -> PackedStore:
    """The clips of stores of one joint layout and frame of reference, each under STORE/NAME with a class STORE: CLASS.

    Its protocol ``split`` trains on what the first protocol of each trains on. What warns of one of them, it has too,
    and of what cannot be told or kept.

    Raises:
        PrepareError: they do not fit together, two have one name, or a name has no room.
    """
    first = stores[0]
    for store in stores[1:]:
        _check_fit(first, store)
    names = [store.name for store in stores]
    if len(set(names)) < len(names):
        raise PrepareError(f"stores must have different names, got {', '.join(names)}; prepare one with another --name")
    clips = sorted(
        (f"{store.name}/{clip}", which, n)
        for which, store in enumerate(stores)
        for n, clip in enumerate(store.names.tolist())
    )
    for clip, which, n in clips:
        if len(clip.encode()) > NAME_BYTES:
            at = stores[which]
            raise PrepareError(
                f"{at.path}: {at.name}/ before the name of clip {n} is longer than {NAME_BYTES} bytes; prepare it with "
                "a shorter --name, or shorter names of clips"
            )
    classes = [f"{store.name}: {label}" for store in stores for label in store.class_names]
    about = {"name": name, "skeleton": first.skeleton, "fps": first.fps, "class_names": classes}
    meta = {"joined": names} | {key: first.meta[key] for key in ("normalisation",) if key in first.meta}
    meta["warnings"] = [f"{store.name}: {text}" for store in stores for text in store.meta.get("warnings", [])]
    for text in _warnings(stores):
        log.warning("warning: %s", text)
        meta["warnings"].append(text)
    before = accumulate((store.num_classes for store in stores), initial=0)  # classes of the stores before each
    offsets = dict(zip(names, before, strict=False))
    trains = [set(store.split(next(iter(store.protocols)))[0].tolist()) for store in stores]
    protocols = {"split": TWO_PARTS}
    with StoreWriter(out, **about, protocols=protocols, overwrite=overwrite, extra_meta=meta) as writer:  # type: ignore[arg-type]
        for clip, which, n in clips:
            store, label = stores[which], int(stores[which].label[n])
            writer.add(
                store.clip(n),
                name=clip,
                label=label + offsets[store.name] if label != UNKNOWN else label,
                split=0 if n in trains[which] else 1,
            )
    return PackedStore.open(out)


def _check_fit(first: PackedStore, store: PackedStore) -> None:
    ours, theirs = first.skeleton, store.skeleton
    known = ours.parents and theirs.parents
    for what, differ in (
        ("another joint layout", ours.joint_names != theirs.joint_names),
        ("other bones", known and ours.parents != theirs.parents),
        ("other left and right joints", ours.mirror != theirs.mirror),
    ):
        if differ:
            raise PrepareError(f"{store.path} has {what} than {first.path}; prepare both in one way")
    frames = [frame_in_words(of.normalisation, of.skeleton) for of in (store, first)]
    if frames[0] != frames[1]:
        raise PrepareError(
            f"{store.path} has another frame of reference than {first.path}: {frames[0]}, not {frames[1]}; "
            "prepare both in one way"
        )


def _warnings(stores: Sequence[PackedStore]) -> list[str]:
    first, found = stores[0], []
    others = [f"{store.name} {store.fps:g}" for store in stores if store.fps != first.fps]
    if others:
        found.append(
            f"{first.name} has {first.fps:g} frames a second, {', '.join(others)}: the joined set says {first.fps:g}, "
            "and seconds of the others' clips are wrong; training does not depend on it, as it resizes clips"
        )
    if first.skeleton.joint_names == numbered(first.skeleton.num_joints):
        found.append(
            "the joints have no names, so that nothing tells whether those of all stores are in one order; joint_names "
            "(docs/own-data.md) do"
        )
    return found
