"""From a dataset's name to its packed store, or to a message that says how to get it."""

from __future__ import annotations

import logging
import shlex
from difflib import get_close_matches
from pathlib import Path

from fastmc.data.formats.ntu import HOW_TO_GET_NTU, HOW_TO_GET_NTU120, prepare_synthetic
from fastmc.data.formats.nw_ucla import HOW_TO_GET_NWUCLA
from fastmc.data.formats.pku_splits import PKU1, PKU2
from fastmc.data.formats.utd_mhad import HOW_TO_GET_UTD
from fastmc.data.store import PackedStore, StoreBusy, StoreError, wait_for_writer

log = logging.getLogger("fastmc")
HOW_TO_GET = {
    "ntu60": HOW_TO_GET_NTU,
    "ntu120": HOW_TO_GET_NTU120,
    "pku1": PKU1.how_to_get,
    "pku2": PKU2.how_to_get,
    "nwucla": HOW_TO_GET_NWUCLA,
    "utd-mhad": HOW_TO_GET_UTD,
}
OWN_ARRAYS = (
    "Import arrays of your own with python -m train.prepare npz --help, those that codes like ST-GCN, 2s-AGCN and CMD "
    "wrote with npy --help, those of CTR-GCN with ctrgcn --help."
)


class DatasetError(RuntimeError):
    """A dataset is not there; the message says what to get, from whom, where to put it, and the command to run."""


VERIFIED_BYTES = 512e6
"""Frames of a store that are compared with their checksum whenever it is opened: so many took 1.1 s on one core of an
Intel Xeon (2026-11-28)."""


def open_store(path: Path, verify: str = "auto") -> PackedStore:
    """The packed store in a folder; ``verify`` and StoreError as of `open_dataset`."""
    store = PackedStore.open(path)
    if verify == "on" or (verify == "auto" and store.frames.nbytes <= VERIFIED_BYTES):
        store.verify()
    return store


def open_dataset(name: str, data_root: Path, verify: str = "auto") -> PackedStore:
    """The packed store ``data_root/name``; ``synthetic`` is generated if it is not there.

    Args:
        verify: whether its frames are read and compared with their checksum: on, off, or auto, if they are few.

    Raises:
        DatasetError: it is not there. StoreError: it is damaged.
    """
    path = data_root / name
    if path.exists():
        return open_store(path, verify)
    if name == "synthetic":
        return _made(path, verify)
    stores = stores_in(data_root)
    there = f"{data_root} holds: {', '.join(stores) or 'no store'}; synthetic is always there."
    near = get_close_matches(name.lower(), dict.fromkeys(["synthetic", *HOW_TO_GET, *stores]), 1)
    meant = f"Did you mean {near[0]}? " if near and name not in HOW_TO_GET else ""
    how = HOW_TO_GET.get(name, OWN_ARRAYS)
    how = how.replace(f"--out data/{name}", f"--out {shlex.quote(str(path))}")
    raise DatasetError(f"there is no dataset {name!r}: {path} does not exist. {meant}{there}\n{how}")


def _made(path: Path, verify: str) -> PackedStore:
    """The synthetic set, made here, or by another process that was asked for it at the same time."""
    while True:
        try:
            return prepare_synthetic(path)
        except StoreBusy as busy:
            log.info("%s", busy)
            wait_for_writer(path)
        except StoreError:
            if not path.exists():
                raise
        if path.exists():
            return open_store(path, verify)


def root_of(data_root: Path | None, own: Path) -> Path:
    """The folder whose stores a finished run is read with: the one that is named, or its own.

    Raises:
        DatasetError: the one that is named is not there. A set that can be made would be made in it.
    """
    if data_root is not None and not data_root.is_dir():
        raise DatasetError(f"--data-root {data_root} is no folder; without it the run's own is read, {own}")
    return data_root or own


def stores_in(data_root: Path) -> list[str]:
    """The names of the packed stores in a folder."""
    return sorted(p.parent.name for p in data_root.glob("*/meta.json")) if data_root.is_dir() else []
