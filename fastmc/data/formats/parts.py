"""Sets that come as a training and a test array, as other codes have prepared them: from their clips to a store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fastmc.data.clips import LAYOUTS, MAX_COORDINATE, FaultyClip, distinct_bodies, usable_clip, used_frames
from fastmc.data.formats.skeleton_file import ClipName
from fastmc.data.given import METRES, Given
from fastmc.data.packing import MAX_BODIES, NORMALISATION, TWO_PARTS, PrepareError, check_limits
from fastmc.data.sanity import Sanity
from fastmc.data.store import NOT_NORMALISED, UNKNOWN, PackedStore, StoreWriter
from fastmc.files import open_file, read_text
from fastmc.progress import progress_bar
from fastmc.reading import reading
from fastmc.skeleton import Skeleton

FPS = 30.0
MAX_CLIPS = 1 << 20
MAX_FRAMES = 1 << 15  # of a clip: 18 minutes
MAX_CLASSES = 10_000  # a label as high as this is no class index, but a year or a hash


@dataclass(frozen=True)
class PartClip:
    """A clip of an array of PARTS[part]: ``joints`` (T, M, V, 3), padded; ``place`` says where it is in its file. Where
    the protocol has a rule of its own, ``part`` is what that says of it."""

    name: str
    label: int
    part: int
    joints: np.ndarray
    place: str
    ids: Mapping[str, int] = field(default_factory=dict)


def pack_parts(
    out: str | Path,
    clips: Iterable[PartClip],
    *,
    count: int,
    layout: Skeleton,
    name: str | None,
    class_names: Sequence[str],
    protocol: str,
    files: Sequence[Path],
    rule: Mapping[str, Any] = TWO_PARTS,
    other_protocols: Mapping[str, Mapping[str, Any]] | None = None,
    given: Given = METRES,
    normalise: bool = True,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> PackedStore:
    """Pack clips, one at a time and by increasing name, without their padding (`used_frames`).

    The protocol ``protocol`` is the split into training and test arrays, or ``rule`` says which parts train.
    ``meta.json`` counts under ``repeats_cut`` the clips that were padded by repetition, under ``copied_bodies_cut``
    those whose second body was the first again (`distinct_bodies`).

    Args:
        count: of the clips, for the progress bar.
        max_coordinate: metres; a clip beyond it is left out (`placed_clip`).
        max_bodies: of a clip, 1 or 2: the first that are there.
        files: that hold the clips, for messages and the source's checksum.
        given: what the numbers of the clips are.

    Raises:
        PrepareError: a faulty clip in a strict preparation, or clips that do not look like bodies of this layout
            (`fastmc.data.sanity`; otherwise a warning); or no usable clip to train or to test on.
        StoreError: ``out`` exists (without ``overwrite``) or cannot be written.
    """
    check_limits(max_coordinate, max_bodies)
    kept, repeated, copies, sanity = {True: 0, False: 0}, 0, 0, Sanity(layout)
    with StoreWriter(
        out,
        name=name or Path(out).name,
        skeleton=layout,
        fps=FPS,
        class_names=class_names,
        protocols={
            protocol: rule,
            **{key: other for key, other in (other_protocols or {}).items() if key != protocol},
        },
        max_bodies=max_bodies,
        overwrite=overwrite,
        extra_meta={"normalisation": NORMALISATION if normalise else NOT_NORMALISED},
    ) as writer:
        writer.meta["source_checksum"] = checksum(files)
        for clip in tqdm(clips, total=count, **progress_bar("clip", "import")):
            try:
                frames = used_frames(clip.joints)
                bodies = distinct_bodies(clip.joints[:frames])
                joints, weights = given.clip(bodies, layout)
                sanity.see(joints)
                joints = usable_clip(joints, layout if normalise else None, max_coordinate, weights)
            except FaultyClip as fault:
                if strict:
                    raise PrepareError(
                        f"{clip.place} ({clip.name}): {fault}; without --strict it is left out{sanity.hint()}"
                    ) from fault
                writer.skip(clip.name, fault.reason, f"{clip.place}: {fault}")
                continue
            writer.add(joints, name=clip.name, label=clip.label, split=clip.part, **clip.ids)
            kept[clip.part in rule["train"]] += 1
            repeated += frames < len(clip.joints) and bool(clip.joints[-1].any())
            copies += bodies.shape[1] < clip.joints.shape[1]
        warnings = sanity.tell(strict, lambda why: PrepareError(f"{' and '.join(map(str, files))}: {why}"))
        if not all(kept.values()):
            counts = "; ".join(f"{number} {reason}" for reason, number in writer.skip_counts.items())
            side = "train or test" if not any(kept.values()) else "test" if kept[True] else "train"
            first = f"; the first: {writer.first_skip}" if counts else ""
            raise PrepareError(
                f"{' and '.join(map(str, files))}: no usable clip is left to {side} on ({counts}){first}"
            )
        writer.meta |= {"warnings": warnings, "repeats_cut": repeated, "copied_bodies_cut": copies}
    return PackedStore.open(out)


def check_bodies(what: str, bodies: int, max_bodies: int | None) -> None:
    """PrepareError if an array has more bodies a clip than are kept, and nobody has said which."""
    if bodies > MAX_BODIES and max_bodies is None:
        raise PrepareError(f"{what} holds {bodies} bodies a clip; --max-bodies 2 keeps the first two that are there")


def layout_of(joints: int, what: str, skeleton: str | None = None) -> Skeleton:
    """The joint layout of an array of so many joints, or the one that is named; PrepareError if there is
    none, or it does not fit."""
    if skeleton is not None:
        with reading("--skeleton", PrepareError):
            layout = Skeleton.named(skeleton)
        if layout.num_joints != joints:
            raise PrepareError(f"{what} has {joints} joints, --skeleton {skeleton} has {layout.num_joints}")
    elif joints not in LAYOUTS:
        known = " or ".join(f"{layout.num_joints} ({layout.name})" for layout in LAYOUTS.values())
        raise PrepareError(
            f"{what} has {joints} joints, expected {known}; "
            "--skeleton names another layout, and python -m train.prepare npz lets you name the joints"
        )
    else:
        layout = LAYOUTS[joints]
    return layout


def check_size(what: str, clips: int, frames: int) -> None:
    """PrepareError if an array has more clips or frames a clip than any set has: its header may say anything."""
    if clips > MAX_CLIPS or frames > MAX_FRAMES:
        raise PrepareError(
            f"{what} has {clips:,} clips of {frames:,} frames, expected {MAX_CLIPS:,} of {MAX_FRAMES:,} at most"
        )


def expected_axes(x: np.ndarray) -> str:
    """What an array of clips has to be, and how one of this shape may become that; ends a sentence."""
    turns = {
        3: "one clip (T, V, 3) by x.transpose(2, 0, 1)[None, ..., None]",
        4: "(N, T, V, 3) by x.transpose(0, 3, 1, 2)[..., None]",
        5: "(N, T, M, V, 3) by x.transpose(0, 4, 1, 3, 2)",
    }
    if x.shape[1:2] == (3,):
        how = "(N, 3, T, V) by x[..., None]" if x.ndim == 4 else None
    else:
        how = turns.get(x.ndim) if x.shape[-1:] == (3,) else None
    remedy = f"; make that of {how}" if how else ""
    return f"expected floats (N, 3, T, V, M): clips, xyz, frames, joints, bodies{remedy}"


def class_index(label: Any) -> int | None:
    """A label as the index of its class, from 0, or -1 where it is unknown; None if it is neither. It may be a float or
    an array of one element, as much of the field's code leaves it."""
    value = label.item() if isinstance(label, np.ndarray | np.generic) and label.size == 1 else label
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and UNKNOWN <= value < MAX_CLASSES else None


def are_actions(labels: Sequence[int], ids: Sequence[ClipName]) -> bool:
    """Whether the labels that are known are those that the names of NTU RGB+D say."""
    known = [(label, clip.action - 1) for label, clip in zip(labels, ids, strict=True) if label != UNKNOWN]
    return bool(known) and all(label == action for label, action in known)


def read_class_names(file: str | Path, classes: int) -> list[str]:
    """The names in a text file, one a line from class 0 on; PrepareError if there are less than ``classes``, or a line
    between them is blank, after which all names would be those of other classes."""
    try:
        names = [line.strip() for line in read_text(Path(file), "utf-8-sig").rstrip().splitlines()]
    except (OSError, ValueError) as error:
        raise PrepareError(f"cannot read class names from {file}: {error}") from error
    if "" in names:
        at = names.index("")
        raise PrepareError(f"{file}, line {at + 1} is blank: it stands for class {at}; name it there, or take it out")
    if len(names) < classes:
        raise PrepareError(
            f"{file} holds {len(names)} class names, the labels need {classes}; one a line, class 0 first"
        )
    return names


def checksum(files: Iterable[Path]) -> str:
    """Of the bytes of the files, in this order. They may be tens of gigabytes: a bar tells how far it is."""
    digest, files = hashlib.blake2b(digest_size=16), list(files)
    size = sum(file.stat().st_size for file in files)
    with tqdm(total=size, unit_scale=True, **progress_bar("B", "checksum of the source")) as bar:
        for file in files:
            with open_file(file) as content:
                while block := content.read(1 << 20):
                    digest.update(block)
                    bar.update(len(block))
    return digest.hexdigest()
