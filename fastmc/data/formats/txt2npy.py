"""What txt2npy.py, the converter that comes with NTU RGB+D, makes of a `.skeleton` file: ``NAME.skeleton.npy``.

The file is a pickled dictionary in an array: ``skel_body0``, ``skel_body1``, ... (T, 25, 3) in metres, zero where a
frame lacks the body. It is read without running anything (`fastmc.data.bytes.safe_pickle`).
"""

from __future__ import annotations

import io
from itertools import count, takewhile

import numpy as np

from fastmc.data.bytes.safe_pickle import plain_of
from fastmc.data.formats.skeleton_file import RawBody, RawClip
from fastmc.reference.ntu import NUM_JOINTS

SUFFIX = ".skeleton.npy"
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_txt2npy(content: bytes) -> RawClip:
    """The bodies of such a file, by their numbers, as `read_skeleton` gives those of a `.skeleton` file.

    Raises:
        ValueError: it is none, or its positions are not finite in float32.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in HEADERS or HEADERS[version](file)[::2] != ((), np.dtype(object)):
        raise ValueError("it is not what txt2npy.py of NTU RGB+D writes: a dictionary in an array of no axes")
    values = plain_of(content[file.tell() :], objects=True)
    if not isinstance(values, dict) or "skel_body0" not in values:
        raise ValueError("it is not what txt2npy.py of NTU RGB+D writes: a dictionary with skel_body0")
    names = takewhile(values.__contains__, (f"skel_body{n}" for n in count()))
    return RawClip(len(values["skel_body0"]), {name: _body(name, values[name]) for name in names})


def _body(name: str, joints: object) -> RawBody:
    if not isinstance(joints, np.ndarray) or joints.dtype.kind != "f" or joints.shape[1:] != (NUM_JOINTS, 3):
        found = f"{joints.dtype} {joints.shape}" if isinstance(joints, np.ndarray) else type(joints).__name__
        raise ValueError(f"{name} is {found}, expected floats (T, {NUM_JOINTS}, 3)")
    with np.errstate(over="ignore"):
        positions = joints.astype(np.float32)
    if not np.isfinite(positions).all():
        raise ValueError(f"{name} holds NaN or infinite coordinates")
    return RawBody(np.arange(len(positions)), positions)
