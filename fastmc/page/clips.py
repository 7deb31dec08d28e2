"""What a page says of the clips of a packed store: their columns, their skeleton, and which ones it carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastmc.data.store import PROTOCOL_FIELDS, UNKNOWN, PackedStore
from fastmc.figures.skeletons import front_of, side_of


def known_fields(store: PackedStore) -> list[str]:
    """The fields of a clip beside its class that a reader may ask for. Parts are left out: protocols are made of
    them."""
    return [name for name in PROTOCOL_FIELDS if name != "part" and (getattr(store, name) != UNKNOWN).any()]


def clip_columns(store: PackedStore, ids: np.ndarray, test: np.ndarray) -> dict[str, list[Any]]:
    """``clips`` of a page's content, of these clips in this order.

    Args:
        test: indices of the test clips of the protocol.
    """
    return {
        "name": store.names[ids].tolist(),
        "class": store.label[ids].tolist(),
        "seconds": [round(seconds, 3) for seconds in (store.num_frames[ids] / store.fps).tolist()],
        "test": np.isin(ids, test).astype(int).tolist(),
        **{field: getattr(store, field)[ids].tolist() for field in known_fields(store)},
    }


def skeleton_content(store: PackedStore) -> dict[str, Any]:
    """``skeleton`` of a page's content: joints, bones, sides, and from where clips are seen."""
    skeleton = store.skeleton
    alone = np.flatnonzero(store.num_bodies == 1)
    front = front_of(store.clip(int(alone[0]) if len(alone) else 0), skeleton)
    return {
        "name": skeleton.name,
        "joints": list(skeleton.joint_names),
        "bones": [list(bone) for bone in skeleton.bones],
        "sides": [side_of(name) for name in skeleton.joint_names],
        "front": {"across": front.across, "up": front.up, "signs": [int(sign) for sign in front.signs]},
    }


def spread(columns: Sequence[np.ndarray], count: int, seed: int = 0) -> np.ndarray:
    """Indices, increasing, of at most ``count`` clips that are spread evenly over the values of the first column;
    within each of those over the values of the second, and so on; by chance within all of them.

    Args:
        columns: (N,) integers each.
    """
    order = np.random.default_rng(seed).permutation(len(columns[0]))
    for n in range(len(columns), 0, -1):
        _, group = np.unique(np.stack(columns[:n]), axis=1, return_inverse=True)
        order = order[np.argsort(_turns(group[order]), kind="stable")]
    return np.sort(order[:count])


def _turns(groups: np.ndarray) -> np.ndarray:
    """How many before each one are of its group."""
    by_group = np.argsort(groups, kind="stable")
    first = np.searchsorted(groups[by_group], groups[by_group])
    turns = np.empty(len(groups), np.int64)
    turns[by_group] = np.arange(len(groups)) - first
    return turns
