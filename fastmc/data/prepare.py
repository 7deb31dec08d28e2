"""From raw NTU RGB+D files to a packed store, on all cores, in memory that does not grow with the set."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from fastmc.data.normalise import choose_bodies, normalise
from fastmc.data.ntu import SkeletonFileError, parse_name, read_skeleton
from fastmc.data.parallel import ordered_map, usable_cores
from fastmc.data.protocols import (
    NTU60_CLASS_NAMES,
    NTU60_FILES,
    NTU60_LIMITS,
    NTU60_PROTOCOLS,
    Protocols,
    read_missing_list,
)
from fastmc.data.store import PackedStore, StoreWriter, check_target
from fastmc.progress import progress_bar
from fastmc.skeleton import NTU25

FPS = 30.0
NORMALISATION = "one rigid motion a clip: first frame's spine at the origin, hip to spine +z, right to left shoulder +x"

# Reasons to leave a file out. The first three are faults, where a strict preparation stops.
MALFORMED = "malformed file"
FOREIGN_NAME = "not an NTU RGB+D file name"
DUPLICATE = "clip of the same name in another folder"
PUBLISHED = "published as missing"
NO_BODY = "no skeleton in the file"
OTHER_SET = "clip of another set"
FAULTS = (MALFORMED, FOREIGN_NAME, DUPLICATE)

HOW_TO_GET_NTU = f"""\
NTU RGB+D may not be redistributed. To get it:
  1. request access at https://rose1.ntu.edu.sg/dataset/actionRecognition (ROSE Lab, NTU Singapore);
  2. download the 3D skeletons, nturgbd_skeletons_s001_to_s017.zip, and unpack it;
  3. python -m train.prepare ntu60 --raw FOLDER --out data/ntu60
FOLDER must hold files such as S001C001P001R001A001.skeleton ({NTU60_FILES:,} of them), at any depth."""


class PrepareError(RuntimeError):
    """A set cannot be prepared; the message names the input, the fault and the remedy."""


@dataclass(frozen=True)
class _Source:
    path: Path
    name: str
    fields: dict[str, Any]  # of the clip, as StoreWriter.add takes them


@dataclass(frozen=True)
class _Read:
    """What a worker sends back: a clip, or the reason why there is none."""

    source: _Source
    digest: bytes
    clip: np.ndarray | None = None
    reason: str = ""
    detail: str = ""


def prepare_ntu(
    raw: str | Path,
    out: str | Path,
    *,
    missing: str | Path | None = None,
    strict: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    name: str = "ntu60",
    class_names: Sequence[str] = NTU60_CLASS_NAMES,
    limits: Mapping[str, int] = NTU60_LIMITS,
    protocols: Protocols = NTU60_PROTOCOLS,
    extra_meta: Mapping[str, Any] | None = None,
) -> PackedStore:
    """Read, normalise and pack a folder of ``.skeleton`` files; the store is the same for any number of workers.

    Args:
        raw: folder that holds the files, at any depth.
        out: folder of the store.
        missing: published list of the files without usable skeletons, which are then left out unread. A file
            without any skeleton is left out in any case.
        strict: stop at the first malformed file or foreign name (by default it is reported and left out).
        workers: processes; None takes all cores.
        class_names: names of actions 1, 2, ...
        limits: highest setup and performer of the set; files with higher numbers, or of an action without a name, are
            left out as those of another set.

    Raises:
        PrepareError: no usable file, a faulty one in a strict preparation, or ``missing`` is not such a list.
        StoreError: ``out`` exists (without ``overwrite``), or another process is writing it.
    """
    if workers is not None and workers < 1:
        raise PrepareError(f"workers must be at least 1, got {workers}")
    left_out = _left_out(missing)
    paths = _find(Path(raw))
    meta = {"normalisation": NORMALISATION, **(extra_meta or {})}
    checksum = hashlib.blake2b(digest_size=16)
    with StoreWriter(
        out,
        name=name,
        skeleton=NTU25,
        fps=FPS,
        class_names=class_names,
        protocols=protocols,
        overwrite=overwrite,
        extra_meta=meta,
    ) as writer:

        def skip(name: str, reason: str, detail: str) -> None:
            if strict and reason in FAULTS:
                raise PrepareError(f"{detail}; without --strict such files are left out and listed")
            writer.skip(name, reason, detail)

        sources = _sources(paths, left_out, {**limits, "action": len(class_names)}, skip)
        with closing(ordered_map(_read, sources, min(workers or usable_cores(), len(sources)))) as reads:
            for read in tqdm(reads, total=len(sources), **progress_bar("file", "read and pack")):
                if read.clip is None:
                    skip(read.source.name, read.reason, read.detail)
                else:
                    writer.add(read.clip, **read.source.fields)
                    checksum.update(read.source.name.encode() + read.digest)
        writer.meta["source_checksum"] = checksum.hexdigest()
        if not len(writer):
            counts = "; ".join(f"{count} {reason}" for reason, count in writer.skip_counts.items())
            raise PrepareError(f"none of the {len(paths)} files under {raw} is usable ({counts})")
    return PackedStore.open(out)


def prepare_synthetic(
    out: str | Path,
    *,
    raw: str | Path | None = None,
    subjects: int = 10,
    replications: int = 2,
    seed: int = 0,
    workers: int | None = None,
    overwrite: bool = False,
) -> PackedStore:
    """Write synthetic ``.skeleton`` files, to a temporary folder or to ``raw``, and pack them as NTU files are.

    Odd subjects (xsub) and cameras 2 and 3 (xview) train.
    """
    from fastmc.data.synthetic import CLASS_NAMES, write_synthetic

    check_target(out, overwrite)
    with ExitStack() as stack:
        folder = Path(raw if raw is not None else stack.enter_context(tempfile.TemporaryDirectory(prefix="fastmc-")))
        if folder.exists() and any(folder.iterdir()):
            raise PrepareError(f"{folder} is not empty: synthetic files would mix with what it holds")
        try:
            write_synthetic(
                folder, subjects=subjects, replications=replications, seed=seed, workers=workers, progress=True
            )
        except ValueError as error:
            raise PrepareError(f"cannot make synthetic clips: {error}") from error
        return prepare_ntu(
            folder,
            out,
            strict=True,
            workers=workers,
            overwrite=overwrite,
            name="synthetic",
            class_names=CLASS_NAMES,
            limits={},
            protocols={
                "xsub": {"field": "subject", "train": list(range(1, subjects + 1, 2))},
                "xview": {"field": "camera", "train": [2, 3]},
            },
            extra_meta={"synthetic": {"subjects": subjects, "replications": replications, "seed": seed}},
        )


def _left_out(missing: str | Path | None) -> frozenset[str]:
    if missing is None:
        return frozenset()
    try:
        return read_missing_list(missing)
    except (OSError, ValueError) as error:
        raise PrepareError(f"cannot use the list of missing skeletons: {error}") from error


def _find(raw: Path) -> list[Path]:
    paths = sorted(raw.rglob("*.skeleton"), key=lambda path: (path.name, path)) if raw.is_dir() else []
    if not paths:
        fault = "holds no .skeleton file" if raw.is_dir() else "is not a folder"
        raise PrepareError(f"{raw} {fault}.\n{HOW_TO_GET_NTU}")
    return paths


def _sources(
    paths: Iterable[Path], left_out: frozenset[str], limits: Mapping[str, int], skip: Callable[[str, str, str], None]
) -> list[_Source]:
    """The files to read, sorted by name; all others are skipped."""
    sources: dict[str, _Source] = {}
    for path in paths:
        try:
            clip = parse_name(path)
        except ValueError as error:
            skip(path.stem, FOREIGN_NAME, str(error))
            continue
        name = path.stem
        beyond = [f"{field} {n} of {limits[field]}" for field, n in clip._asdict().items() if n > limits.get(field, n)]
        if name in sources:
            skip(name, DUPLICATE, f"{path}: {sources[name].path} has the same name")
        elif name in left_out:
            skip(name, PUBLISHED, "")
        elif beyond:
            skip(name, OTHER_SET, f"{path}: {', '.join(beyond)}")
        else:
            fields = {
                "name": name,
                "label": clip.action - 1,
                "subject": clip.performer,
                "camera": clip.camera,
                "setup": clip.setup,
                "replication": clip.replication,
            }
            sources[name] = _Source(path, name, fields)
    return list(sources.values())


def _read(source: _Source) -> _Read:
    """Runs in a worker: any fault of a file is a result, so that one bad file does not end the preparation."""
    try:
        content = source.path.read_bytes()
        digest = hashlib.blake2b(content, digest_size=16).digest()
        raw = read_skeleton(source.path, content)
        if not any(body.joints.any() for body in raw.bodies.values()):
            return _Read(source, digest, reason=NO_BODY)
        return _Read(source, digest, normalise(choose_bodies(raw), NTU25))
    except SkeletonFileError as error:  # names file and line itself
        return _Read(source, b"", reason=MALFORMED, detail=str(error))
    except (OSError, ValueError) as error:
        return _Read(source, b"", reason=MALFORMED, detail=f"{source.path}: {error}")
