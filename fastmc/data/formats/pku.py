"""From PKU-MMD's long recordings and their label files to a packed store of clips.

A recording is text: one line a frame (30 fps), 150 numbers a line: x, y, z in metres of the 25 Kinect v2 joints of one
body, then of another; a body that is not there is zero. Its label file has one clip a line:
``class,start_frame,end_frame,confidence``, frames counted from 1, both ends included.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fastmc.data.bytes.number_lines import read_number_lines
from fastmc.data.clips import MAX_COORDINATE, FaultyClip, placed_clip
from fastmc.data.formats.pku_splits import (
    CLASS_NAMES,
    PKU2,
    Phase,
    Split,
    is_list,
    part_of,
    protocols_of,
    read_splits,
)
from fastmc.data.formats.skeleton_file import RawBody, RawClip
from fastmc.data.normalise import choose_bodies
from fastmc.data.packing import (
    DUPLICATE,
    FOREIGN_NAME,
    MALFORMED,
    NO_BODY,
    Clip,
    Packing,
    PrepareError,
    Read,
    Skipped,
    Source,
    check_limits,
    digest_of,
    faulty,
    malformed,
    packing,
)
from fastmc.data.store import PackedStore
from fastmc.files import find_files, open_file, read_bytes
from fastmc.reading import explain, shown
from fastmc.skeleton import NTU25

FPS = 30.0
MAX_BODIES = 2
NUMBERS = MAX_BODIES * NTU25.num_joints * 3  # of a frame
SLACK = 30  # frames; a label may reach this far beyond its recording and is then cut at its end
MAX_LABELS = 999  # of a recording: as many as three digits of a clip's name can count
CUT_CLIP = re.compile(r"F\d{3}V\d{3}C\d{3}L\d{3}", re.ASCII)
LABEL_NUMBERS = 4  # of a line of a label file
HEAD = 4096  # bytes that tell a label file from a recording

# Reasons to leave something out, beside those of `fastmc.data.packing`.
UNPAIRED = "recording without label file, or label file without recording"
UNLISTED = "recording in no list of the split"
NO_DURATION = "label that starts and ends in the same frame"
UNUSED_CLASS = "action that is not of this phase"


@dataclass(frozen=True, kw_only=True)
class Recording(Source):
    """A recording to read and cut; ``labels`` is its label file."""

    labels: Path
    phase: Phase


def prepare_pku(
    raw: str | Path,
    out: str | Path,
    *,
    phase: Phase = PKU2,
    labels: str | Path | None = None,
    splits: str | Path | None = None,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> PackedStore:
    """Read recordings, cut them into clips, normalise and pack these; the same store for any number of workers.

    Clip n of a recording, named RECORDING_nnn, is line n of its label file. Its bodies are chosen as those of an NTU
    clip are (`choose_bodies`), a body's place in the line being its identity. Fields: camera (L, M, R are 1, 2, 3),
    subject (of phase II: the number after the N of its name), and ``part``, a number for the recording's sides in the
    lists, which the protocols' ``values`` spell out. Protocols: xsub, and xview where its list is there.

    Args:
        raw: folder of the recordings, at any depth.
        out: folder of the store.
        labels, splits: folders of the label files and of the lists, at any depth; by default below ``raw`` too.
        max_coordinate: metres; a clip beyond it is left out (`placed_clip`).
        max_bodies: of a clip, 1 or 2: those that move most.
        strict: stop at the first faulty file, label or name and at a recording without labels (by default these are
            reported and left out).
        workers: processes; None takes all cores.

    Raises:
        PrepareError: recordings, labels or the cross-subject list are not there, a list is faulty, nothing is usable,
            or something is faulty in a strict preparation.
        StoreError: ``out`` exists (without ``overwrite``), or another process is writing it.
    """
    check_limits(max_coordinate, max_bodies)
    texts = _texts(Path(raw), phase)
    label_texts = texts if labels is None else _texts(Path(labels), phase)
    recording_folders = _folders(texts, phase, labels=False)
    label_folders = _folders(label_texts, phase, labels=True)
    if not recording_folders:
        cut = [path for path in find_files(Path(raw), "*.skeleton") if CUT_CLIP.fullmatch(path.stem)]
        if cut:
            raise PrepareError(
                f"{raw} holds clips that others have cut from PKU-MMD ({cut[0].name}); they do not say of which "
                f"recording they are, and so which of them train. python -m train.embed --input {raw} encodes them; "
                f"to train, get the recordings.\n{phase.how_to_get}"
            )
        raise PrepareError(f"{raw} holds no recording of {phase.title}.\n{phase.how_to_get}")
    if not label_folders:
        raise PrepareError(
            f"{labels or raw} holds no label file of {phase.title} such as {phase.example}.txt, with lines such as "
            f"8,325,413,2: unpack {phase.labels} there, or name its folder with --labels"
        )
    found = read_splits(texts if splits is None else _texts(Path(splits), phase), phase)
    if "xsub" not in found:
        raise PrepareError(
            f"{splits or raw} holds no cross-subject list of {phase.title}: put {phase.lists[0]} there, or name the "
            "folder of the lists with --splits"
        )
    with packing(
        out,
        strict=strict,
        workers=workers,
        name=phase.name,
        skeleton=NTU25,
        fps=FPS,
        class_names=phase.class_names,
        protocols=protocols_of(found),
        max_bodies=max_bodies,
        overwrite=overwrite,
    ) as target:
        recordings = _named(recording_folders, phase, target)
        label_files = _named(label_folders, phase, target)
        sources = _sources(recordings, label_files, found, phase, target)
        target.read_all(partial(_read, max_coordinate), sources)
        target.check_usable(len(recordings), raw)
    return PackedStore.open(out)


def read_recording(path: str | Path, content: bytes | None = None) -> np.ndarray:
    """Positions (T, 2, 25, 3) of a recording: frames, bodies, joints; float32, metres in camera space.

    A body that is not there is zero. Lines may end in LF or CRLF, blanks may surround the numbers, and blank lines may
    end the file. A line of 75 numbers is no frame with one body: the format fills the other one with zeros, and half a
    line is what a cut copy ends in.

    Args:
        path: the file.
        content: its bytes, where they have been read already.

    Raises:
        SkeletonFileError: names the line: it has not 150 numbers, or one that is not finite in float32.
        OSError: the file cannot be read.
    """
    return read_number_lines(path, NUMBERS, content).reshape(-1, MAX_BODIES, NTU25.num_joints, 3)


def _texts(folder: Path, phase: Phase) -> list[Path]:
    if not folder.is_dir():
        raise PrepareError(f"{folder} is not a folder.\n{phase.how_to_get}")
    return find_files(folder, "*.txt")


def _folders(texts: Iterable[Path], phase: Phase, *, labels: bool) -> list[list[Path]]:
    """The files of each folder that holds label files, or that holds recordings; both have the same names."""
    folders: defaultdict[Path, list[Path]] = defaultdict(list)
    for path in texts:
        folders[path.parent].append(path)
    return [paths for paths in folders.values() if _holds_labels(paths, phase) is labels]


def _holds_labels(paths: Iterable[Path], phase: Phase) -> bool | None:
    """Whether the files of a folder are label files: most of them have commas, and no line of 150 numbers, whose
    decimal points may be commas too. None if none is named as they are."""
    heads = []
    for path in paths:
        if phase.recording.fullmatch(path.stem):
            with open_file(path) as file:
                heads.append(file.read(HEAD).strip())
    labels = sum(b"," in head and len(head.partition(b"\n")[0].split()) <= LABEL_NUMBERS for head in heads)
    return 2 * labels > sum(map(bool, heads)) if heads else None


def _named(folders: Iterable[Iterable[Path]], phase: Phase, target: Packing) -> dict[str, Path]:
    """Name -> file, by name; files of other names, and further ones of the same, are skipped."""
    files: dict[str, Path] = {}
    for path in sorted((path for paths in folders for path in paths), key=lambda path: (path.name, path)):
        if is_list(path):
            continue
        if not phase.recording.fullmatch(path.stem):
            target.skip(path.stem, FOREIGN_NAME, f"{path}: not the name of a recording such as {phase.example}.txt")
        elif path.stem in files:
            target.skip(path.stem, DUPLICATE, f"{path}: {files[path.stem]} has the same name")
        else:
            files[path.stem] = path
    return files


def _sources(
    recordings: Mapping[str, Path],
    label_files: Mapping[str, Path],
    splits: Mapping[str, Split],
    phase: Phase,
    target: Packing,
) -> list[Recording]:
    """The recordings to read, by name; all others are skipped."""
    sources = []
    for name in sorted(recordings.keys() | label_files.keys()):
        unlisted = [protocol for protocol, split in splits.items() if name not in split.train | split.test]
        if name not in recordings or name not in label_files:
            path, other = (label_files[name], "recording") if name in label_files else (recordings[name], "label file")
            _skip_unpaired(target, name, f"{path}: there is no {other} of that name")
        elif unlisted:
            target.skip(name, UNLISTED, f"{recordings[name]}: in no list of {' and '.join(unlisted)}")
        else:
            fields = {**phase.fields(name), "split": part_of(name, splits)}
            sources.append(Recording(recordings[name], name, fields, labels=label_files[name], phase=phase))
    return sources


def _skip_unpaired(target: Packing, name: str, detail: str) -> None:
    if target.strict:
        raise PrepareError(f"{detail}; without --strict it is left out and listed")
    target.skip(name, UNPAIRED, detail)


def _read(max_coordinate: float, source: Source) -> Read:
    """Runs in a worker."""
    assert isinstance(source, Recording)
    labels, content = read_bytes(source.labels), read_bytes(source.path)
    try:
        lines = labels.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        return malformed(source, f"{source.labels}: {error}")
    joints = read_recording(source.path, content)
    if not any(line.strip() for line in lines) or len(lines) > MAX_LABELS:
        return malformed(source, f"{source.labels}: {len(lines)} lines, expected 1 to {MAX_LABELS} labels")
    results = [
        _cut(joints, source, number, line, max_coordinate) for number, line in enumerate(lines, 1) if line.strip()
    ]
    clips = [result for result in results if isinstance(result, Clip)]
    skipped = [result for result in results if isinstance(result, Skipped)]
    return Read(source, digest_of(labels + content), clips, skipped)


def _cut(joints: np.ndarray, source: Recording, number: int, line: str, max_coordinate: float) -> Clip | Skipped:
    """The clip of a line of the label file."""
    name = f"{source.name}_{number:03d}"
    place = f"{source.labels}, line {number}"
    try:
        action, start, end = _read_label(line, len(joints))
        if action not in source.phase.classes:
            return Skipped(name, UNUSED_CLASS, f"{place}: action {action}, {CLASS_NAMES[action - 1]}")
        if start == end:
            return Skipped(name, NO_DURATION, f"{place}: {line.strip()}")
        clip = joints[max(start, 1) - 1 : end]
        if not clip.any():
            return Skipped(name, NO_BODY)
        frames = np.arange(len(clip))
        raw = RawClip(len(clip), {str(body): RawBody(frames, clip[:, body]) for body in range(MAX_BODIES)})
        fields = {**source.fields, "name": name, "label": source.phase.classes.index(action)}
        return Clip(placed_clip(choose_bodies(raw), NTU25, max_coordinate), fields)
    except FaultyClip as fault:
        return faulty(name, place, fault)
    except ValueError as error:
        return Skipped(name, MALFORMED, f"{place}: {explain(error)}")


def _read_label(line: str, num_frames: int) -> tuple[int, int, int]:
    """Action, first and last frame, from 1 (0 passes for the first); ValueError says what is wrong."""
    try:
        action, start, end, confidence = line.split(",")
        numbers = int(action), int(start), int(end)
        float(confidence)
    except ValueError as error:
        raise ValueError(f"expected class,start_frame,end_frame,confidence, found {shown(line.strip())}") from error
    if not 1 <= numbers[0] <= len(CLASS_NAMES):
        raise ValueError(f"class {numbers[0]}, expected 1 to {len(CLASS_NAMES)}")
    if numbers[1] > numbers[2]:
        raise ValueError(f"starts in frame {numbers[1]} and ends in frame {numbers[2]}")
    if numbers[1] < 0 or numbers[1] > num_frames or numbers[2] > num_frames + SLACK:
        raise ValueError(f"frames {numbers[1]} to {numbers[2]} of a recording of {num_frames}")
    return numbers
