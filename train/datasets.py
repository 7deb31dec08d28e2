"""From a dataset's name to its packed store, or to a message that says how to get it."""

from __future__ import annotations

from pathlib import Path

from fastmc.data.prepare import HOW_TO_GET_NTU, prepare_synthetic
from fastmc.data.store import PackedStore

HOW_TO_GET_NTU120 = """\
NTU RGB+D 120 comes from where NTU-60 does (ROSE Lab, NTU Singapore, on request); this version reads NTU-60 only.
Bring arrays of your own preparation:
python -m train.prepare npz --file ntu120.npz --out data/ntu120 --train KEY=VALUES"""
HOW_TO_GET_PKU = """\
PKU-MMD comes from the STRUCT group of Peking University (https://www.icst.pku.edu.cn/struct/Projects/PKUMMD.html), on
request; this version does not read its text files. Bring arrays of your own preparation:
python -m train.prepare npz --file pku2.npz --out data/pku2 --train KEY=VALUES"""
HOW_TO_GET = {
    "ntu60": HOW_TO_GET_NTU,
    "ntu120": HOW_TO_GET_NTU120,
    "pku1": HOW_TO_GET_PKU,
    "pku2": HOW_TO_GET_PKU,
}


class DatasetError(RuntimeError):
    """A dataset is not there; the message says what to get, from whom, where to put it, and the command to run."""


def open_dataset(name: str, data_root: Path) -> PackedStore:
    """The packed store ``data_root/name``; ``synthetic`` is generated if it is not there."""
    path = data_root / name
    if path.exists():
        return PackedStore.open(path)
    if name == "synthetic":
        return prepare_synthetic(path)
    stores = sorted(p.parent.name for p in data_root.glob("*/meta.json")) if data_root.is_dir() else []
    there = f"{data_root} holds: {', '.join(stores) or 'no store'}; synthetic is always there."
    how = HOW_TO_GET.get(name, "Import arrays of your own with python -m train.prepare npz --help.")
    raise DatasetError(f"there is no dataset {name!r}: {path} does not exist. {there}\n{how}")
