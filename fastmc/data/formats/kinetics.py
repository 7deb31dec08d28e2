"""Kinetics-skeleton, the set of ST-GCN: one JSON per clip, up to five people a frame by OpenPose, 18 joints.

Read before this was written: the description of the set in ST-GCN's repository, and its feeder. Of a frame the two
people of the highest scores are kept; who is who from frame to frame is not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fastmc.data.clips import ALL_ZERO, MAX_COORDINATE, FaultyClip, usable_clip
from fastmc.data.formats.parts import MAX_CLASSES, MAX_FRAMES
from fastmc.data.given import MIN_SCORE, Given
from fastmc.data.packing import (
    DUPLICATE,
    FOREIGN_NAME,
    MAX_BODIES,
    NO_BODY,
    PARTS,
    TWO_PARTS,
    Clip,
    PrepareError,
    Read,
    Skipped,
    Source,
    check_limits,
    digest_of,
    malformed,
    packing,
    source_files,
)
from fastmc.data.store import NOT_NORMALISED, PackedStore, check_name
from fastmc.files import read_bytes
from fastmc.reading import reading, shown
from fastmc.skeleton import SKELETONS

FPS = 30.0
LAYOUT = SKELETONS["openpose18"]
LIST_OF_LABELS = re.compile(r"(.*_)?(train|val|test)_label\.json")
"""What the set has beside its folders: kinetics_train_label.json and kinetics_val_label.json."""
SAYS_PART = re.compile(r"(?<![a-z])(train|e?val|test)(?:ing|id|idation|uation)?(?:set|s)?(?![a-z])")
"""As a word, so that "interval" and "festival" say nothing."""
WIDE = 340 / 256  # the videos' width over their height; places are shares of both
HOW_TO_GET_KINETICS = """\
Kinetics-skeleton is not ours to redistribute. To get it:
  1. the README of ST-GCN (https://github.com/yysijie/st-gcn, section Data Preparation) links kinetics-skeleton.zip;
  2. unpack it: a folder kinetics_train and one kinetics_val;
  3. python -m train.prepare kinetics --raw FOLDER --out data/kinetics
FOLDER must hold one .json file a clip, at any depth."""


def prepare_kinetics(
    raw: str | Path,
    out: str | Path,
    *,
    name: str = "kinetics",
    min_score: float = MIN_SCORE,
    normalise: bool = True,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> PackedStore:
    """Read and pack a folder of such files; the store is the same for any number of workers.

    A file below a folder with the word ``val`` or ``test`` in its name tests, all others train (protocol ``split``).
    Of folders in folders the innermost that says train, val or test counts.

    Args:
        raw: folder that holds the files, at any depth.
        min_score: joints with a lower score are not there (`fastmc.data.given.Given`).
        max_bodies: of a clip, 1 or 2.
        strict: stop at the first malformed file (by default it is reported and left out).
        workers: processes; None takes all cores.

    Raises:
        PrepareError: no usable file, or a faulty one in a strict preparation.
        StoreError: ``out`` exists (without ``overwrite``), or another process is writing it.
    """
    check_limits(max_coordinate, max_bodies)
    with reading("the command line", PrepareError):
        given = Given(image=True, min_score=min_score)
    found = source_files(Path(raw), ("*.json",), HOW_TO_GET_KINETICS)
    paths = [path for path in found if not LIST_OF_LABELS.fullmatch(path.name)]
    with packing(
        out,
        strict=strict,
        workers=workers,
        name=name,
        skeleton=LAYOUT,
        fps=FPS,
        class_names=[f"class {label}" for label in range(MAX_CLASSES)],
        protocols={"split": TWO_PARTS},
        max_bodies=max_bodies,
        overwrite=overwrite,
        extra_meta=None if normalise else {"normalisation": NOT_NORMALISED},
    ) as target:
        sources = _sources(paths, Path(raw), target.skip)
        target.read_all(partial(_read, given, normalise, max_coordinate), sources)
        target.check_usable(len(paths), raw)
        names = target.class_names
        target.writer.meta["class_names"] = [names.get(c, f"class {c}") for c in range(max(names) + 1)]
    return PackedStore.open(out)


def _sources(paths: Iterable[Path], raw: Path, skip: Callable[[str, str, str], None]) -> list[Source]:
    """The files to read, with the part of each; all others are skipped."""
    sources: dict[str, Source] = {}
    for path in paths:
        try:
            check_name(path.stem)
        except ValueError as error:
            skip(path.stem, FOREIGN_NAME, f"{path}: {error}")
            continue
        if path.stem in sources:
            skip(path.stem, DUPLICATE, f"{path}: {sources[path.stem].path} has the same name")
            continue
        part = PARTS.index(_part_of(path.relative_to(raw).parent))
        sources[path.stem] = Source(path, path.stem, {"name": path.stem, "split": part})
    return list(sources.values())


def _part_of(folder: Path) -> str:
    for name in reversed(folder.parts):
        if said := SAYS_PART.findall(name.lower()):
            return "train" if said[-1] == "train" else "test"
    return "train"


def _read(given: Given, normalise: bool, max_coordinate: float, source: Source) -> Read:
    """Runs in a worker."""
    content = read_bytes(source.path)
    digest = digest_of(content)
    with reading("is no JSON", ValueError):
        values = json.loads(content)
    if not isinstance(values, dict) or not {"data", "label", "label_index"} <= set(values):
        return malformed(source, f"{source.path}: lacks data, label or label_index", digest)
    label, named = values["label_index"], values["label"]
    if type(label) is not int or not 0 <= label < MAX_CLASSES or not isinstance(named, str):
        return malformed(source, f"{source.path}: label_index is {shown(label)}, label {shown(named)}", digest)
    named.encode()  # an error for half a character
    joints, weights = given.clip(load_people(values["data"]), LAYOUT)
    try:
        clip = usable_clip(joints, LAYOUT if normalise else None, max_coordinate, weights)
    except FaultyClip as fault:
        if fault.reason != ALL_ZERO:
            raise
        return Read(source, digest, skipped=[Skipped(source.name, NO_BODY, f"{source.path}: {fault}")])
    return Read(source, digest, [Clip(clip, {**source.fields, "label": label})], class_names={label: named})


def load_people(frames: Any) -> np.ndarray:
    """``data`` of a file as (T, 2, 18, 3): x and y in units of the videos' height, and the score; zero where nobody is.

    Raises:
        ValueError: it is no list of frames with a frame_index from 1 and people of 36 numbers and 18 scores.
    """
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
        raise ValueError("'data' is no list of frames")
    times = [frame["frame_index"] for frame in frames]
    if not all(type(time) is int and 1 <= time <= MAX_FRAMES for time in times):
        raise ValueError(f"a frame_index is none of 1 to {MAX_FRAMES}")
    joints = np.zeros((max(times, default=1), MAX_BODIES, LAYOUT.num_joints, 3))
    for time, frame in zip(times, frames, strict=True):
        people = [_person(person) for person in frame["skeleton"]]
        people.sort(key=lambda person: -person[:, 2].sum())
        for body, person in enumerate(people[:MAX_BODIES]):
            joints[time - 1, body] = person
    return joints


def _person(person: Any) -> np.ndarray:
    """(18, 3)"""
    points, scores = np.asarray(person["pose"]), np.asarray(person["score"])
    count = LAYOUT.num_joints
    if points.shape != (2 * count,) or scores.shape != (count,) or {points.dtype.kind, scores.dtype.kind} - set("iuf"):
        raise ValueError(f"a person is no {2 * count} numbers and {count} scores")
    return np.column_stack([points.reshape(count, 2) * (WIDE, 1), scores]).astype(np.float64)
