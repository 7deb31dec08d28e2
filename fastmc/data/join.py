"""One store of the clips of several: to pre-train on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from fastmc.data.packing import TWO_PARTS, PrepareError
from fastmc.data.store import UNKNOWN, PackedStore, StoreWriter


def join_stores(stores: Sequence[PackedStore], out: Path, *, name: str, overwrite: bool = False) -> PackedStore:
    """The clips of stores of one joint layout and frame of reference, each under STORE/NAME with a class STORE: CLASS.

    Its protocol ``split`` trains on what the first protocol of each trains on.

    Raises:
        PrepareError: they do not fit together, or two have one name.
    """
    first = stores[0]
    for store in stores[1:]:
        for what, ours, theirs in (
            ("joint layout", first.skeleton.joint_names, store.skeleton.joint_names),
            ("frame of reference", first.normalisation, store.normalisation),
        ):
            if ours != theirs:
                raise PrepareError(f"{store.path} has another {what} than {first.path}; prepare both in one way")
    names = [store.name for store in stores]
    if len(set(names)) < len(names):
        raise PrepareError(f"stores must have different names, got {', '.join(names)}; prepare one with another --name")
    classes = [f"{store.name}: {label}" for store in stores for label in store.class_names]
    about = {"name": name, "skeleton": first.skeleton, "fps": first.fps, "class_names": classes}
    meta = {"joined": names} | {key: first.meta[key] for key in ("normalisation",) if key in first.meta}
    before = accumulate((store.num_classes for store in stores), initial=0)  # classes of the stores before each
    offsets = dict(zip(names, before, strict=False))
    protocols = {"split": TWO_PARTS}
    with StoreWriter(out, **about, protocols=protocols, overwrite=overwrite, extra_meta=meta) as writer:  # type: ignore[arg-type]
        for store in sorted(stores, key=lambda store: f"{store.name}/"):
            trains = set(store.split(next(iter(store.protocols)))[0].tolist())
            for n, clip in enumerate(store.names.tolist()):
                label = int(store.label[n])
                writer.add(
                    store.clip(n),
                    name=f"{store.name}/{clip}",
                    label=label + offsets[store.name] if label != UNKNOWN else label,
                    split=0 if n in trains else 1,
                )
    return PackedStore.open(out)
