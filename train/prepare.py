"""Command line that turns raw skeleton data into a packed store: ``python -m train.prepare --help``."""

from __future__ import annotations

import difflib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tyro

from fastmc.data.clips import MAX_COORDINATE
from fastmc.data.formats.npz import import_npz
from fastmc.data.formats.ntu import HOW_TO_GET_NTU120, prepare_ntu, prepare_synthetic
from fastmc.data.formats.ntu_splits import (
    NTU60_CLIPS,
    NTU120_CLASS_NAMES,
    NTU120_CLIPS,
    NTU120_LIMITS,
    NTU120_PROTOCOLS,
)
from fastmc.data.formats.pku import prepare_pku
from fastmc.data.formats.pku_splits import PKU1, PKU2, Phase
from fastmc.data.given import MIN_SCORE
from fastmc.data.join import join_stores
from fastmc.data.packing import PrepareError
from fastmc.data.report import describe, summary
from fastmc.data.store import PackedStore, StoreError
from fastmc.files import whole_file
from fastmc.parallel import WorkerDied
from train.command.debug import without_debug
from train.command.readers import READERS, given_numbers, say_published
from train.engine.signals import stopped_by_signals, told

WITHOUT_MISSING = "the complete set, without the files published as missing,"


def ntu60(
    raw: Path,
    out: Path = Path("data/ntu60"),
    missing: Path | None = None,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Pack NTU RGB+D 60 (protocols xsub and xview).

    Example: python -m train.prepare ntu60 --raw ~/nturgb+d_skeletons --out data/ntu60

    Args:
        raw: folder of the SsssCcccPpppRrrrAaaa.skeleton files, at any depth.
        out: folder of the store.
        missing: published list of the 302 files with missing or incomplete skeletons, which are left out:
            Matlab/NTU_RGBD_samples_with_missing_skeletons.txt of https://github.com/shahroudy/NTURGB-D.
        max_coordinate: metres; a clip with a larger coordinate, or 100 times that before it is normalised, is left
            out.
        max_bodies: keep so many of a clip, 1 or 2: those that move most.
        strict: stop at the first malformed or misnamed file, instead of leaving it out.
        workers: processes; all cores by default.
        overwrite: replace a store that exists, once the new one is complete.
    """
    store = prepare_ntu(
        raw,
        out,
        missing=missing,
        max_coordinate=max_coordinate,
        max_bodies=max_bodies,
        strict=strict,
        workers=workers,
        overwrite=overwrite,
    )
    print(summary(store))
    say_published(store, WITHOUT_MISSING, NTU60_CLIPS)


def ntu120(
    raw: Path,
    out: Path = Path("data/ntu120"),
    missing: Path | None = None,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Pack NTU RGB+D 120 (protocols xsub and xset).

    Example: python -m train.prepare ntu120 --raw ~/nturgbd --out data/ntu120

    Args:
        raw: folder of the SsssCcccPpppRrrrAaaa.skeleton files of both archives, at any depth.
        out: folder of the store.
        missing: published list of the 535 files with missing or incomplete skeletons, which are left out:
            Matlab/NTU_RGBD120_samples_with_missing_skeletons.txt of https://github.com/shahroudy/NTURGB-D.
        max_coordinate: metres; a clip with a larger coordinate, or 100 times that before it is normalised, is left
            out.
        max_bodies: keep so many of a clip, 1 or 2: those that move most.
        strict: stop at the first malformed or misnamed file, instead of leaving it out.
        workers: processes; all cores by default.
        overwrite: replace a store that exists, once the new one is complete.
    """
    store = prepare_ntu(
        raw,
        out,
        missing=missing,
        max_coordinate=max_coordinate,
        max_bodies=max_bodies,
        strict=strict,
        workers=workers,
        overwrite=overwrite,
        name="ntu120",
        class_names=NTU120_CLASS_NAMES,
        limits=NTU120_LIMITS,
        protocols=NTU120_PROTOCOLS,
        how_to_get=HOW_TO_GET_NTU120,
    )
    print(summary(store))
    say_published(store, WITHOUT_MISSING, NTU120_CLIPS)


def _pku(phase: Phase) -> Callable[..., None]:
    """The commands of the two phases, which differ in names alone."""

    def command(
        raw: Path,
        out: Path = Path("data", phase.name),
        labels: Path | None = None,
        splits: Path | None = None,
        max_coordinate: float = MAX_COORDINATE,
        max_bodies: int | None = None,
        strict: bool = False,
        workers: int | None = None,
        overwrite: bool = False,
    ) -> None:
        store = prepare_pku(
            raw,
            out,
            phase=phase,
            labels=labels,
            splits=splits,
            max_coordinate=max_coordinate,
            max_bodies=max_bodies,
            strict=strict,
            workers=workers,
            overwrite=overwrite,
        )
        print(summary(store))
        if "xview" not in store.protocols:
            print(f"  note: no cross-view list ({phase.lists[1]}) was found, so there is no protocol xview")
        say_published(store, f"{phase.title}, as published,", phase.clips)

    command.__doc__ = f"""Pack the clips of {phase.title} (protocols xsub and, where its list is there, xview).

    Example: python -m train.prepare {phase.name} --raw ~/pku-mmd --out data/{phase.name}

    Args:
        raw: folder of the recordings (such as {phase.example}.txt), at any depth.
        out: folder of the store.
        labels: folder of the label files, which have the same names; by default below raw too.
        splits: folder of {" and ".join(phase.lists)}; by default below raw too.
        max_coordinate: metres; a clip with a larger coordinate, or 100 times that before it is normalised, is left
            out.
        max_bodies: keep so many of a clip, 1 or 2: those that move most.
        strict: stop at the first fault of a file, label or name, instead of leaving it out.
        workers: processes; all cores by default.
        overwrite: replace a store that exists, once the new one is complete.
    """
    return command


def synthetic(
    out: Path = Path("data/synthetic"),
    raw: Path | None = None,
    subjects: int = 10,
    replications: int = 2,
    seed: int = 0,
    max_bodies: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Make a synthetic stand-in for NTU RGB+D and pack it (protocols xsub and xview).

    Example: python -m train.prepare synthetic --out data/synthetic --subjects 12

    Args:
        out: folder of the store.
        raw: keep the raw .skeleton files in this folder.
        subjects: number of people; odd ones train under xsub.
        replications: performances of each action by each subject.
        seed: of all that is random.
        max_bodies: keep so many of a clip, 1 or 2: those that move most.
        workers: processes; all cores by default.
        overwrite: replace a store that exists, once the new one is complete.
    """
    store = prepare_synthetic(
        out,
        raw=raw,
        subjects=subjects,
        replications=replications,
        seed=seed,
        max_bodies=max_bodies,
        workers=workers,
        overwrite=overwrite,
    )
    print(summary(store))


def npz(
    file: Path,
    out: Path,
    train: str | None = None,
    name: str | None = None,
    skeleton: str | None = None,
    hip: str | None = None,
    spine: str | None = None,
    left_shoulder: str | None = None,
    right_shoulder: str | None = None,
    image: bool = False,
    scale: str | None = None,
    min_score: float = MIN_SCORE,
    no_normalise: bool = False,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    """Pack a set given as arrays: x (N, 3, T, V, M) in metres, num_frames (N,), and perhaps label (N,) and more.

    Example: python -m train.prepare npz --file set.npz --out data/set --train subject=1,3,5

    Args:
        file: the .npz file.
        out: folder of the store.
        train: KEY=V1,V2: clips whose KEY (subject, split, ...) has one of these values train, all others test. Without
            it all train, and nothing is evaluated.
        name: of the set; by default that of the folder.
        skeleton: joint layout: ntu25, kinect20, coco17, openpose18, body25, mediapipe33, smpl22, h36m17, or a JSON file
            (docs/own-data.md), or file; by default ntu25 if the file has ntu25_index, else as the file says.
        hip: joint (name or index) at the hips, or the mean of several, such as "left hip + right hip".
        spine: joint above the hips; it becomes the origin.
        left_shoulder: joint (name or index).
        right_shoulder: joint (name or index).
        image: x holds (x, y) or (x, y, score) of an image, y downwards; bodies become 1.7 m tall.
        scale: times this x is in metres, such as 0.001 for millimetres; "height" makes every body 1.7 m tall.
        min_score: of an image: joints with a lower score are not there.
        no_normalise: keep the coordinates; by default bodies are turned to a common frame, which needs the four joints.
        max_coordinate: metres; a clip with a larger coordinate, or 100 times that before it is normalised, is left
            out.
        max_bodies: keep so many of a clip, 1 or 2: the first that are there.
        strict: stop at the first faulty clip, instead of leaving it out, and where clips do not look like bodies.
        overwrite: replace a store that exists, once the new one is complete.
    """
    given = {"hip": hip, "spine": spine, "left_shoulder": left_shoulder, "right_shoulder": right_shoulder}
    roles = {role: joint for role, joint in given.items() if joint is not None}
    store = import_npz(
        file,
        out,
        train=train,
        name=name,
        skeleton=skeleton,
        roles=roles,
        given=given_numbers(image, scale, min_score),
        normalise=not no_normalise,
        max_coordinate=max_coordinate,
        max_bodies=max_bodies,
        strict=strict,
        overwrite=overwrite,
    )
    print(summary(store))


def join(stores: tuple[Path, ...], out: Path, name: str | None = None, overwrite: bool = False) -> None:
    """Join packed stores of one joint layout into one, to pre-train on all of them (protocol split).

    Example: python -m train.prepare join --stores data/ntu60 data/pku1 --out data/both

    Args:
        stores: two or more; of each, the training part of its first protocol trains.
        out: folder of the store.
        name: of the set; by default that of the folder.
        overwrite: replace a store that exists, once the new one is complete.
    """
    if len(stores) < 2:
        raise PrepareError("--stores names fewer than two stores; there is nothing to join")
    found = [PackedStore.open(path) for path in stores]
    print(summary(join_stores(found, out, name=name or out.name, overwrite=overwrite)))


def info(
    store: tyro.conf.Positional[Path], plot: Path | None = None, clip: str | None = None, verify: bool = False
) -> None:
    """Show what a store holds.

    Example: python -m train.prepare info data/ntu60 --plot clip.png --clip S001C001P001R001A023

    Args:
        store: folder of the store.
        plot: draw a clip into this image file (.png, .pdf, .svg).
        clip: name or index of the clip to draw; the first one by default.
        verify: read all frames and compare their checksum with what was written.
    """
    if clip is not None and plot is None:
        raise PrepareError("--clip says what to draw: give --plot FILE.png too")
    if plot is not None and not plot.suffix:
        raise PrepareError(f"--plot {plot} has no suffix; name a picture, such as {plot}.png")
    opened = PackedStore.open(store)
    n = find_clip(opened, clip or "0")
    if verify:
        opened.verify()
    print(describe(opened))
    if plot is not None:
        _plot(opened, n, plot)


def find_clip(store: PackedStore, name_or_index: str) -> int:
    """Index of a clip; PrepareError names close matches."""
    found = np.flatnonzero(store.names == name_or_index)
    if len(found):
        return int(found[0])
    if name_or_index.isdecimal() and int(name_or_index) < len(store):
        return int(name_or_index)
    near = difflib.get_close_matches(name_or_index, store.names.tolist(), n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"the first one is {store.names[0]}"
    raise PrepareError(f"{store.path} has no clip {name_or_index!r} (it holds {len(store)}); {hint}")


def _plot(store: PackedStore, n: int, file: Path) -> None:
    from fastmc.figures.skeletons import draw_clip  # here, so that nothing else waits for matplotlib

    title = f"{store.names[n]}: {store.class_name(n)} (label {store.label[n]}), {store.num_frames[n]} frames"
    figure = draw_clip(store.clip(n), store.skeleton, fps=store.fps, title=title)
    try:
        with whole_file(file) as unfinished:
            figure.savefig(unfinished, dpi=150)
    except (OSError, ValueError) as error:
        raise PrepareError(f"cannot draw into {file}: {error}") from error
    print(f"\ndrew clip {n} into {file}")


@stopped_by_signals()
def main(args: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    args, debug = without_debug(args)
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "ntu60": ntu60,
                "ntu120": ntu120,
                "pku1": _pku(PKU1),
                "pku2": _pku(PKU2),
                "synthetic": synthetic,
                "npz": npz,
                **READERS,
                "join": join,
                "info": info,
            },
            prog="python -m train.prepare",
            description="Turn raw skeleton data into a packed store, or show what a store holds.",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (PrepareError, StoreError, WorkerDied, OSError, ValueError) as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        says, code = told(stop, "interrupted; no store was written")
        print(says, file=sys.stderr)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
