"""Annotation files of pyskl and mmaction2: a pickle of ``split`` and ``annotations``, in two or three dimensions.

Read before this was written: the documentation of both on the format of skeleton annotations. Of a clip there are
``frame_dir`` (its name), ``label``, ``keypoint`` (M, T, V, 2 or 3) and, of an image, ``keypoint_score`` (M, T, V).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmc.data.bytes.safe_pickle import load_plain
from fastmc.data.clips import MAX_COORDINATE
from fastmc.data.formats.ntu_splits import NTU60_CLASS_NAMES, NTU120_CLASS_NAMES
from fastmc.data.formats.parts import (
    MAX_BODIES,
    PartClip,
    are_actions,
    check_size,
    class_index,
    layout_of,
    pack_parts,
    read_class_names,
)
from fastmc.data.formats.skeleton_file import ClipName, parse_name
from fastmc.data.given import METRES, MIN_SCORE, Given
from fastmc.data.packing import PrepareError
from fastmc.data.store import PackedStore, check_name
from fastmc.reading import listed, reading, shown

MAX_FILE = 1 << 33  # bytes; that of NTU-120 in three dimensions has less than a quarter of it
PART = re.compile(r"(.*?)[_-]?(train|val|test)[_-]?(.*)")
OF_IMAGES = {17: "coco17", 18: "openpose18", 25: "body25"}
log = logging.getLogger("fastmc")


def import_pyskl(
    file: str | Path,
    out: str | Path,
    *,
    name: str | None = None,
    protocol: str | None = None,
    skeleton: str | None = None,
    class_names: str | Path | None = None,
    min_score: float = MIN_SCORE,
    normalise: bool = True,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> PackedStore:
    """Pack an annotation file, which is read into memory whole.

    Its lists give the protocols: ``xsub_train`` and ``xsub_val`` that of xsub, ``train`` and ``val`` one called split,
    ``train1`` and ``test1`` one called 1. Those that hold all clips are kept, or the one that is named.
    Names of NTU RGB+D clips give their subject, camera, setup and replication. Of more than two bodies the two of the
    highest scores are kept, or that move most where there are no scores.

    Args:
        name: of the set; by default that of ``out``.
        protocol: keep this one alone, and the clips in its lists.
        skeleton: joint layout, as `Skeleton.named` knows it; by default ntu25 of 25 joints in space, and of an image
            coco17 of 17, openpose18 of 18, body25 of 25.
        class_names: text file with a name a line; NTU RGB+D's are known.
        min_score: of an image: joints with a lower score are not there (`fastmc.data.given.Given`).
        max_bodies: of a clip, 1 or 2.
        strict: a faulty clip is an error (by default it is reported and left out).

    Raises:
        PrepareError: the file or an option does not fit; the message names it.
        StoreError: ``out`` exists (without ``overwrite``) or cannot be written.
    """
    file = Path(file)
    if not file.exists():
        raise PrepareError(f"there is no file {file}; give --file an annotation file of pyskl or mmaction2")
    with reading(f"{file} is no annotation file of pyskl or mmaction2", PrepareError, passing=(PrepareError,)):
        split, annotations = _content(load_plain(file, MAX_FILE))
        _, _, joints, numbers = annotations[0]["keypoint"].shape
        protocols, parts = _protocols(split, [annotation["frame_dir"] for annotation in annotations], protocol)
        given = Given(image=True, min_score=min_score) if numbers == 2 else METRES
    layout = layout_of(joints, str(file), skeleton or (OF_IMAGES.get(joints) if given.image else None))
    kept = sorted((each for each in annotations if each["frame_dir"] in parts), key=lambda each: each["frame_dir"])
    if len(kept) < len(annotations) and protocol is None:
        log.warning("warning: %d clips of %s are in no list of its split; left out", len(annotations) - len(kept), file)
    names, labels = [each["frame_dir"] for each in kept], [each["label"] for each in kept]
    ids = _ntu_names(names)

    def clips() -> Iterator[PartClip]:
        for n, each in enumerate(kept):
            fields = _fields(ids[n]) if ids else {}
            yield PartClip(names[n], labels[n], parts[names[n]], _joints(each), f"{file}, {names[n]}", fields)

    first, *others = protocols
    return pack_parts(
        out,
        clips(),
        count=len(kept),
        layout=layout,
        name=name,
        class_names=_class_names(labels, ids, class_names),
        protocol=first,
        rule=protocols[first],
        other_protocols={key: protocols[key] for key in others},
        files=[file],
        given=given,
        normalise=normalise,
        max_coordinate=max_coordinate,
        max_bodies=max_bodies,
        strict=strict,
        overwrite=overwrite,
    )


def _content(content: Any) -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """The lists of the split and the annotations; ValueError where they are not what is needed of them."""
    if not isinstance(content, dict) or not {"split", "annotations"} <= set(content):
        raise ValueError(f"expected a dict of split and annotations, got {shown(type(content).__name__)}")
    split, annotations = content["split"], content["annotations"]
    if not isinstance(split, dict) or not all(isinstance(names, list | tuple) for names in split.values()):
        raise ValueError("split is no dict of lists of names")
    if not isinstance(annotations, list) or not annotations:
        raise ValueError("annotations is no list of any")
    for n, each in enumerate(annotations):
        _check(each, f"annotation {n}", annotations[0])
    names = [each["frame_dir"] for each in annotations]
    if len(set(names)) < len(names):
        raise ValueError("two annotations have the same frame_dir")
    check_size("it", len(names), max(each["keypoint"].shape[1] for each in annotations))
    return {str(key): [str(name) for name in names] for key, names in split.items()}, annotations


def _check(each: Any, place: str, first: Mapping[str, Any]) -> None:
    if not isinstance(each, dict) or not {"frame_dir", "label", "keypoint"} <= set(each):
        raise ValueError(f"{place} is no dict of frame_dir, label and keypoint")
    if not isinstance(each["frame_dir"], str):
        raise ValueError(f"{place}: frame_dir is {shown(each['frame_dir'])}, expected a name")
    check_name(each["frame_dir"])
    label = class_index(each["label"])
    if label is None:
        raise ValueError(
            f"{place}: label {shown(each['label'])} is no class index; expected integers from 0 on, or -1 where the "
            "class is unknown"
        )
    each["label"] = label
    points, scores = each["keypoint"], each.get("keypoint_score")
    if (
        not isinstance(points, np.ndarray)
        or points.dtype.kind != "f"
        or points.ndim != 4
        or points.shape[3] not in (2, 3)
    ):
        raise ValueError(f"{place}: keypoint is {_kind(points)}, expected floats (M, T, V, 2) or (M, T, V, 3)")
    if points.shape[2:] != first["keypoint"].shape[2:]:
        raise ValueError(f"{place}: keypoint is {_kind(points)}, that of the first {_kind(first['keypoint'])}")
    if scores is not None and (
        not isinstance(scores, np.ndarray) or scores.dtype.kind != "f" or scores.shape != points.shape[:3]
    ):
        raise ValueError(f"{place}: keypoint_score is {_kind(scores)}, expected floats {points.shape[:3]}")


def _kind(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"


def _protocols(
    split: Mapping[str, Sequence[str]], names: Sequence[str], wanted: str | None
) -> tuple[dict[str, Any], dict[str, int]]:
    """The rules of the protocols, or of the one that is wanted, and the part of each clip that is in a list of them:
    which lists it is in."""
    lists = _pairs(split, wanted)
    known = {name for name in names if any(name in side for sides in lists.values() for side in sides.values())}
    whole = {key: sides for key, sides in lists.items() if known <= sides["train"] | sides["test"]}
    which = f"--protocol NAME keeps one pair, and the clips in it: {listed(list(lists))}"
    if not whole or not known:
        there = f"there are {listed(list(split))}" if lists else "there are none"
        raise ValueError(f"split has no pair of lists that hold all clips; {there}" + (f"; {which}" if known else ""))
    if len(whole) < len(lists):
        left_out = listed(sorted(lists.keys() - whole.keys()))
        log.warning("warning: %s: not all clips are in its lists; left out. %s", left_out, which)
    ways = {name: tuple(name in sides["train"] for sides in whole.values()) for name in sorted(known)}
    values = sorted(set(ways.values()), reverse=True)
    texts = [
        ", ".join(f"{key} {'train' if t else 'test'}" for key, t in zip(whole, way, strict=True)) for way in values
    ]
    rules = {
        key: {"field": "part", "train": [n for n, way in enumerate(values) if way[i]], "values": texts}
        for i, key in enumerate(whole)
    }
    return rules, {name: values.index(way) for name, way in ways.items()}


def _pairs(split: Mapping[str, Sequence[str]], wanted: str | None) -> dict[str, dict[str, set[str]]]:
    """Protocol -> the clips that train and those that test; of the one that is wanted alone."""
    lists: dict[str, list[str]] = {}
    for key in split:
        match = PART.fullmatch(key)
        if match is None:
            raise ValueError(f"split has a list {shown(key)}; expected names such as xsub_train and xsub_val")
        lists.setdefault("_".join(filter(None, (match[1], match[3]))) or "split", []).append(key)
    if wanted is not None and wanted not in lists:
        there = listed(list(lists)) or "it has none"
        raise PrepareError(f"--protocol {wanted} is none of the file's pairs of lists: {there}")
    kept = lists if wanted is None else {wanted: lists[wanted]}
    return {protocol: _sides(protocol, {key: split[key] for key in keys}) for protocol, keys in kept.items()}


def _sides(protocol: str, lists: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    tests = [key for key, members in lists.items() if members and not _trains(key)]
    if len(tests) > 1:
        log.warning("warning: %s: clips of %s all test; take what shall not out of its split", protocol, listed(tests))
    train = {name for key, members in lists.items() if _trains(key) for name in members}
    test = {name for key in tests for name in lists[key]}
    if both := train & test:
        raise ValueError(f"{shown(min(both))} both trains and tests under {protocol}")
    return {"train": train, "test": test}


def _trains(key: str) -> bool:
    match = PART.fullmatch(key)
    return match is not None and match[2] == "train"


def _joints(each: Mapping[str, Any]) -> np.ndarray:
    """(T, M, V, 3): (x, y, score) of an image, metres else; the bodies that matter."""
    points, scores = each["keypoint"], each.get("keypoint_score")
    if points.shape[3] == 2:
        scores = np.ones(points.shape[:3]) if scores is None else scores
        points, weight = np.concatenate([points, scores[..., None]], axis=-1), scores.mean(axis=(1, 2))
    else:
        weight = points.var(axis=1, dtype=np.float64).sum(axis=(1, 2))
    if len(points) > MAX_BODIES:
        points = points[np.sort(np.argsort(-weight, kind="stable")[:MAX_BODIES])]
    return points.transpose(1, 0, 2, 3)


def _ntu_names(names: Sequence[str]) -> list[ClipName] | None:
    """What the names of all clips say, if they are of NTU RGB+D."""
    try:
        return [parse_name(name) for name in names]
    except ValueError:
        return None


def _fields(clip: ClipName) -> dict[str, int]:
    return {
        "subject": clip.performer,
        "camera": clip.camera,
        "setup": clip.setup,
        "replication": clip.replication,
    }


def _class_names(labels: Sequence[int], ids: Sequence[ClipName] | None, file: str | Path | None) -> list[str]:
    classes = max(labels) + 1
    if file is not None:
        return read_class_names(file, classes)
    if ids is not None and are_actions(labels, ids):
        published = NTU60_CLASS_NAMES if classes <= len(NTU60_CLASS_NAMES) else NTU120_CLASS_NAMES
        if classes <= len(published):
            return list(published)
    return [f"class {label}" for label in range(classes)]
