"""From raw NTU RGB+D files, or synthetic ones, to a packed store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from fastmc.data.clips import MAX_COORDINATE, placed_clip
from fastmc.data.formats.ntu_splits import (
    NTU60_CLASS_NAMES,
    NTU60_FILES,
    NTU60_LIMITS,
    NTU60_PROTOCOLS,
    NTU120_FILES,
    Protocols,
    read_missing_list,
)
from fastmc.data.formats.skeleton_file import parse_name, read_skeleton
from fastmc.data.formats.txt2npy import SUFFIX, read_txt2npy
from fastmc.data.normalise import choose_bodies
from fastmc.data.packing import (
    DUPLICATE,
    FOREIGN_NAME,
    NO_BODY,
    OTHER_SET,
    PUBLISHED,
    Clip,
    PrepareError,
    Read,
    Skipped,
    Source,
    check_limits,
    digest_of,
    packing,
    source_files,
)
from fastmc.data.store import PackedStore, check_target
from fastmc.files import make_folder_of, read_bytes, temporary_beside
from fastmc.skeleton import NTU25

FPS = 30.0

HOW_TO_GET_NTU = f"""\
NTU RGB+D may not be redistributed. To get it:
  1. request access at https://rose1.ntu.edu.sg/dataset/actionRecognition (ROSE Lab, NTU Singapore);
  2. download the 3D skeletons, nturgbd_skeletons_s001_to_s017.zip, and unpack it;
  3. python -m train.prepare ntu60 --raw FOLDER --out data/ntu60 --missing LIST
FOLDER must hold files such as S001C001P001R001A001.skeleton ({NTU60_FILES:,} of them), at any depth.
LIST names the 302 to leave out: Matlab/NTU_RGBD_samples_with_missing_skeletons.txt of
https://github.com/shahroudy/NTURGB-D"""
HOW_TO_GET_NTU120 = f"""\
NTU RGB+D 120 may not be redistributed. To get it:
  1. request access at https://rose1.ntu.edu.sg/dataset/actionRecognition (ROSE Lab, NTU Singapore);
  2. download the 3D skeletons, nturgbd_skeletons_s001_to_s017.zip and nturgbd_skeletons_s018_to_s032.zip, and unpack
     both below one folder;
  3. python -m train.prepare ntu120 --raw FOLDER --out data/ntu120 --missing LIST
FOLDER must hold files such as S018C001P008R001A061.skeleton ({NTU120_FILES:,} of them in both), at any depth.
LIST names the 535 to leave out: Matlab/NTU_RGBD120_samples_with_missing_skeletons.txt of
https://github.com/shahroudy/NTURGB-D"""


def prepare_ntu(
    raw: str | Path,
    out: str | Path,
    *,
    missing: str | Path | None = None,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    name: str = "ntu60",
    class_names: Sequence[str] = NTU60_CLASS_NAMES,
    limits: Mapping[str, int] = NTU60_LIMITS,
    protocols: Protocols = NTU60_PROTOCOLS,
    how_to_get: str = HOW_TO_GET_NTU,
    extra_meta: Mapping[str, Any] | None = None,
) -> PackedStore:
    """Read, normalise and pack a folder of ``.skeleton`` files, or of the ``.skeleton.npy`` files that NTU's converter
    makes of them; the store is the same for any number of workers.

    Args:
        raw: folder that holds the files, at any depth.
        out: folder of the store.
        missing: published list of the files without usable skeletons, which are then left out unread. A file
            without any skeleton is left out in any case.
        max_coordinate: metres; a clip beyond it is left out (`placed_clip`).
        max_bodies: of a clip, 1 or 2: those that move most.
        strict: stop at the first malformed file or foreign name (by default it is reported and left out).
        workers: processes; None takes all cores.
        class_names: names of actions 1, 2, ...
        limits: highest setup and performer of the set; files with higher numbers, or of an action without a name, are
            left out as those of another set.
        how_to_get: what an error says where ``raw`` holds no such file.

    Raises:
        PrepareError: no usable file, a faulty one in a strict preparation, or ``missing`` is not such a list.
        StoreError: ``out`` exists (without ``overwrite``), or another process is writing it.
    """
    check_limits(max_coordinate, max_bodies)
    left_out = _left_out(missing)
    paths = source_files(Path(raw), ("*.skeleton", f"*{SUFFIX}"), how_to_get)
    with packing(
        out,
        strict=strict,
        workers=workers,
        name=name,
        skeleton=NTU25,
        fps=FPS,
        class_names=class_names,
        protocols=protocols,
        max_bodies=max_bodies,
        overwrite=overwrite,
        extra_meta=extra_meta,
    ) as target:
        sources = _sources(paths, left_out, {**limits, "action": len(class_names)}, target.skip)
        target.read_all(partial(_read, max_coordinate), sources)
        target.check_usable(len(paths), raw)
    return PackedStore.open(out)


def prepare_synthetic(
    out: str | Path,
    *,
    raw: str | Path | None = None,
    subjects: int = 10,
    replications: int = 2,
    seed: int = 0,
    max_bodies: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> PackedStore:
    """Write synthetic ``.skeleton`` files, to a temporary folder or to ``raw``, and pack them as NTU files are.

    Odd subjects (xsub) and cameras 2 and 3 (xview) train.
    """
    from fastmc.data.synthetic import CLASS_NAMES, write_synthetic

    check_target(out, overwrite)
    with ExitStack() as stack:
        if raw is None:
            make_folder_of(Path(out))
            raw = stack.enter_context(temporary_beside(Path(out), folder=True))
        folder = Path(raw)
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
            max_bodies=max_bodies,
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


def _sources(
    paths: Iterable[Path], left_out: frozenset[str], limits: Mapping[str, int], skip: Callable[[str, str, str], None]
) -> list[Source]:
    """The files to read, sorted by name; all others are skipped."""
    sources: dict[str, Source] = {}
    for path in paths:
        try:
            clip = parse_name(path)
        except ValueError as error:
            skip(path.stem, FOREIGN_NAME, str(error))
            continue
        name = path.name.partition(".")[0]
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
            sources[name] = Source(path, name, fields)
    return list(sources.values())


def _read(max_coordinate: float, source: Source) -> Read:
    """Runs in a worker."""
    content = read_bytes(source.path)
    digest = digest_of(content)
    raw = read_txt2npy(content) if source.path.suffix == ".npy" else read_skeleton(source.path, content)
    if not any(body.joints.any() for body in raw.bodies.values()):
        return Read(source, digest, skipped=[Skipped(source.name, NO_BODY)])
    return Read(source, digest, [Clip(placed_clip(choose_bodies(raw), NTU25, max_coordinate), source.fields)])
