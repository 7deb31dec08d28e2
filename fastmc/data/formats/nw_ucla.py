"""NW-UCLA (Northwestern-UCLA Multiview Action 3D), from the JSON files that the field uses.

Read before this was written: CTR-GCN's feeder for the set and its graph. The files hold raw joints in the order of
KINECT20; CTR-GCN's bones between them say so. Their unit is nowhere written; the Kinect's is the metre, and the feeders
scale each clip to [-1, 1], for which it does not matter. Here it is taken for metres. The set's own text files are read
too, where they have that form, with the same joints in the same order.
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
from fastmc.skeleton import KINECT20

NWUCLA_CLIPS = 1484
FRAME_NUMBER = re.compile(rb"(\xef\xbb\xbf)?\s*\d+\s*\n\s*-?\d")
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
    """Pack a folder of ``a##_s##_e##_v##.json`` or ``.txt`` files: action, subject, repetition (from 0) and view.

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


def load_clip(content: bytes) -> np.ndarray:
    """Joints (T, V, 3) of a JSON file or of the set's own text; ValueError says what is wrong with it."""
    return load_text(content) if FRAME_NUMBER.match(content) else load_json(content)


def load_text(content: bytes) -> np.ndarray:
    """Of each frame its number, and then 20 lines ``x,y,z,state``; blank lines between them."""
    lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    frames, rest = divmod(len(lines), 1 + KINECT20.num_joints)
    if rest:
        raise ValueError(f"has {len(lines)} lines, expected {1 + KINECT20.num_joints} a frame: its number, x,y,z,state")
    values = [[float(number) for number in line.split(",")] for line in lines]
    of_frame = [values[n * (1 + KINECT20.num_joints) :][: 1 + KINECT20.num_joints] for n in range(frames)]
    if {tuple(map(len, frame)) for frame in of_frame} != {(1, *[4] * KINECT20.num_joints)}:
        raise ValueError("has other lines than a frame's number and 20 of x,y,z,state")
    return np.array([frame[1:] for frame in of_frame])[:, :, :3]


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
    patterns=("*.json", "a*_s*_e*_v*.txt"),
    file_name=re.compile(r"a(\d\d)_s(\d\d)_e(\d\d)_v(\d\d)\.(?:json|txt)", re.ASCII),
    example="a01_s01_e00_v01.json",
    fields=_fields,
    load=load_clip,
    how_to_get=HOW_TO_GET_NWUCLA,
)
