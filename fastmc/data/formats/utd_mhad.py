"""UTD-MHAD (University of Texas at Dallas Multimodal Human Action Dataset): its skeletons, which are MATLAB files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastmc.data.bytes.matlab import read_numbers
from fastmc.data.formats.kinect20 import ClipFiles, prepare_clip_files
from fastmc.data.store import PackedStore
from fastmc.skeleton import KINECT20

UTD_CLIPS = 861  # of 27 actions, 8 subjects and 4 repetitions; three are corrupt and left out by the publisher
UTD_CLASS_NAMES = (
    "right arm swipe to the left",
    "right arm swipe to the right",
    "right hand wave",
    "two hand front clap",
    "right arm throw",
    "cross arms in the chest",
    "basketball shoot",
    "right hand draw x",
    "right hand draw circle (clockwise)",
    "right hand draw circle (counter clockwise)",
    "draw triangle",
    "bowling (right hand)",
    "front boxing",
    "baseball swing from right",
    "tennis right hand forehand swing",
    "arm curl (two arms)",
    "tennis serve",
    "two hand push",
    "right hand knock on door",
    "right hand catch an object",
    "right hand pick up and throw",
    "jogging in place",
    "walking in place",
    "sit to stand",
    "stand to sit",
    "forward lunge (left foot forward)",
    "squat (two arms stretch out)",
)
UTD_PROTOCOLS = {"xsub": {"field": "subject", "train": [1, 3, 5, 7]}}
UTD_ORDER = (3, 2, 1, 0, *range(4, 20))  # its files begin with head, shoulder centre, spine, hip centre
HOW_TO_GET_UTD = f"""\
UTD-MHAD is not ours to redistribute. To get it:
  1. download the skeleton data, Skeleton.zip, from https://personal.utdallas.edu/~kehtar/UTD-MHAD.html
     (Chen, Jafari and Kehtarnavaz, University of Texas at Dallas), and unpack it;
  2. python -m train.prepare utd-mhad --raw FOLDER --out data/utd-mhad
FOLDER must hold files such as a1_s1_t1_skeleton.mat ({UTD_CLIPS} of them), at any depth."""


def prepare_utd_mhad(raw: str | Path, out: str | Path, **options: Any) -> PackedStore:
    """Pack a folder of ``a#_s#_t#_skeleton.mat`` files: action, subject and repetition, each from 1.

    Odd subjects train, even ones test (protocol ``xsub``). Arguments and errors are those of `prepare_clip_files`.
    """
    return prepare_clip_files(UTD_MHAD, raw, out, **options)


def _fields(action: int, subject: int, repetition: int) -> Mapping[str, int] | str:
    if not (1 <= action <= len(UTD_CLASS_NAMES) and 1 <= subject <= 8):
        return f"action {action} of {len(UTD_CLASS_NAMES)}, subject {subject} of 8"
    return {"label": action - 1, "subject": subject, "replication": repetition}


def load_mat(content: bytes) -> np.ndarray:
    """``d_skel`` (V, 3, T) of a MATLAB file, as (T, V, 3); ValueError says what is wrong with it."""
    values = read_numbers(content, "d_skel")
    if values.ndim == 2:  # MATLAB drops the last axis of a single frame
        values = values[:, :, None]
    if values.ndim != 3 or values.shape[:2] != (KINECT20.num_joints, 3):
        raise ValueError(f"'d_skel' is {values.shape}, expected (20, 3, T)")
    return values.transpose(2, 0, 1)


UTD_MHAD = ClipFiles(
    name="utd-mhad",
    class_names=UTD_CLASS_NAMES,
    protocols=UTD_PROTOCOLS,
    patterns=("*_skeleton.mat",),
    file_name=re.compile(r"a(\d{1,2})_s(\d{1,2})_t(\d{1,2})_skeleton\.mat", re.ASCII),
    example="a1_s1_t1_skeleton.mat",
    fields=_fields,
    load=load_mat,
    how_to_get=HOW_TO_GET_UTD,
    order=UTD_ORDER,
)
