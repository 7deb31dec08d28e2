"""NW-UCLA (Northwestern-UCLA Multiview Action 3D), from the JSON files that the field uses.

Read before this was written: CTR-GCN's feeder for the set and its graph. The files hold raw joints in the order of
KINECT20; CTR-GCN's bones between them say so. Their unit is nowhere written; the Kinect's is the metre, and the feeders
scale each clip to [-1, 1], for which it does not matter. Here it is taken for metres.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastmc.data.formats.kinect20 import ClipFiles, prepare_clip_files
from fastmc.data.store import PackedStore
from fastmc.reading import reading

NWUCLA_CLIPS = 1484
NWUCLA_CLASSES = {  # by action number; the set has neither 7 nor 10
    1: "pick up with one hand",
    2: "pick up with two hands",
    3: "drop trash",
    4: "walk around",
    5: "sit down",
    6: "stand up",
    8: "donning",
    9: "doffing",
    11: "throw",
    12: "carry",
}
NWUCLA_PROTOCOLS = {"xview": {"field": "camera", "train": [1, 2]}}
HOW_TO_GET_NWUCLA = f"""\
NW-UCLA is not ours to redistribute. To get it:
  1. its home is https://wangjiangb.github.io/my_data.html (Northwestern-UCLA Multiview Action 3D Dataset);
  2. download its skeletons as JSON, all_sqe.zip, from the link in the README of CTR-GCN
     (https://github.com/Uason-Chen/CTR-GCN, section NW-UCLA), and unpack it;
  3. python -m train.prepare nwucla --raw FOLDER --out data/nwucla
FOLDER must hold files such as a01_s01_e00_v01.json ({NWUCLA_CLIPS:,} of them), at any depth."""


def prepare_nw_ucla(raw: str | Path, out: str | Path, **options: Any) -> PackedStore:
    """Pack a folder of ``a##_s##_e##_v##.json`` files: action, subject, repetition (from 0) and view.

    Views 1 and 2 train, view 3 tests (protocol ``xview``). Arguments and errors are those of `prepare_clip_files`.
    """
    return prepare_clip_files(NW_UCLA, raw, out, **options)


def _fields(action: int, subject: int, repetition: int, view: int) -> Mapping[str, int] | str:
    if action not in NWUCLA_CLASSES:
        return f"action {action} is none of {', '.join(map(str, NWUCLA_CLASSES))}"
    if not (1 <= subject <= 10 and 1 <= view <= 3):
        return f"subject {subject} of 10, view {view} of 3"
    label = list(NWUCLA_CLASSES).index(action)
    return {"label": label, "subject": subject, "camera": view, "replication": repetition}


def load_json(content: bytes) -> np.ndarray:
    """``skeletons`` (T, V, 3) of a JSON file; ValueError says what is wrong with it."""
    with reading("is no JSON", ValueError):
        values = json.loads(content)
    if not isinstance(values, dict) or "skeletons" not in values:
        raise ValueError("has no key 'skeletons'")
    with reading("'skeletons' is no table of numbers (T, 20, 3)", ValueError):
        table = np.asarray(values["skeletons"])
        if table.dtype.kind not in "iuf":  # numpy would make numbers of strings, booleans and null
            raise ValueError("it holds what is no number")
        return table.astype(np.float64)


NW_UCLA = ClipFiles(
    name="nwucla",
    class_names=tuple(NWUCLA_CLASSES.values()),
    protocols=NWUCLA_PROTOCOLS,
    pattern="*.json",
    file_name=re.compile(r"a(\d\d)_s(\d\d)_e(\d\d)_v(\d\d)\.json", re.ASCII),
    example="a01_s01_e00_v01.json",
    fields=_fields,
    load=load_json,
    how_to_get=HOW_TO_GET_NWUCLA,
)
