"""Commands of train.prepare for what the field has on disk already: arrays of other codes, and two small sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastmc.data.clips import MAX_COORDINATE
from fastmc.data.formats.ctrgcn import import_ctrgcn
from fastmc.data.formats.kinetics import prepare_kinetics
from fastmc.data.formats.nw_ucla import NWUCLA_CLIPS, prepare_nw_ucla
from fastmc.data.formats.pyskl import import_pyskl
from fastmc.data.formats.stgcn import import_stgcn
from fastmc.data.formats.utd_mhad import UTD_CLIPS, prepare_utd_mhad
from fastmc.data.given import MIN_SCORE, Given
from fastmc.data.packing import PrepareError
from fastmc.data.report import summary
from fastmc.data.store import PackedStore
from fastmc.reading import reading

FEW = 0.9
"""Share of a published set below which no accuracy compares with a published one. What is left out as faulty is 1 %."""
FEWER = "; accuracies on fewer do not compare with published ones"


def given_numbers(image: bool, scale: str | None, min_score: float) -> Given:
    """What --image, --scale and --min-score say of numbers; PrepareError where one of them is none."""
    with reading("the command line", PrepareError):
        return Given(image, scale, min_score)


def npy(
    train: tuple[Path, Path],
    test: tuple[Path, Path],
    out: Path,
    name: str | None = None,
    protocol: str = "split",
    class_names: Path | None = None,
    skeleton: str | None = None,
    image: bool = False,
    scale: str | None = None,
    min_score: float = MIN_SCORE,
    no_normalise: bool = False,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    """Pack the arrays and label pickles of ST-GCN, 2s-AGCN, CrosSCLR, AimCLR and CMD: a pair of files for each part.

    Example: python -m train.prepare npy --train xsub/train_data_joint.npy xsub/train_label.pkl --test
    xsub/val_data_joint.npy xsub/val_label.pkl --out data/ntu60-agcn

    Args:
        train: DATA.npy LABEL.pkl: floats (N, 3, T, V, M) in metres, and a pickle of (sample names, labels). Or
            LABEL.npy: labels (N,) or (N, 1) alone; names from a pickle of the same name beside it, if there is one.
        test: the same two for the clips that test.
        out: folder of the store.
        name: of the set; by default that of the folder.
        protocol: what the split into these files is called. Names of NTU RGB+D clips give its own protocols too.
        class_names: text file with the name of a class a line; NTU RGB+D's are known.
        skeleton: joint layout: coco17, openpose18, ... (docs/own-data.md) or a JSON file; by default NTU RGB+D's for 25
            joints and Kinect v1's for 20.
        image: the arrays hold (x, y, score) of an image, y downwards; bodies become 1.7 m tall.
        scale: times this they are in metres; "height" makes every body 1.7 m tall.
        min_score: of an image: joints with a lower score are not there.
        no_normalise: keep the coordinates; by default bodies are turned to a common frame.
        max_coordinate: metres; a clip with a larger coordinate, or 100 times that before it is normalised, is left
            out.
        max_bodies: keep so many of a clip, 1 or 2: the first that are there.
        strict: stop at the first faulty clip, instead of leaving it out, and where clips do not look like bodies.
        overwrite: replace a store that exists, once the new one is complete.
    """
    store = import_stgcn(
        train,
        test,
        out,
        name=name,
        protocol=protocol,
        class_names=class_names,
        skeleton=skeleton,
        given=given_numbers(image, scale, min_score),
        normalise=not no_normalise,
        max_coordinate=max_coordinate,
        max_bodies=max_bodies,
        strict=strict,
        overwrite=overwrite,
    )
    _report(store)


def ctrgcn(
    file: Path,
    out: Path,
    name: str | None = None,
    protocol: str = "split",
    class_names: Path | None = None,
    no_normalise: bool = False,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    """Pack the single file of CTR-GCN, InfoGCN and HD-GCN: x_train, y_train, x_test and y_test.

    Example: python -m train.prepare ctrgcn --file NTU60_CS.npz --out data/ntu60-cs --protocol xsub

    Args:
        file: the .npz file: x (N, T, M*V*3) or (N, 3, T, V, M) in metres, y one-hot or integers.
        out: folder of the store.
        name: of the set; by default that of the folder.
        protocol: what the split into training and test arrays is called.
        class_names: text file with the name of a class a line; NTU RGB+D's are known.
        no_normalise: keep the coordinates; by default bodies are turned to a common frame.
        max_coordinate: metres; a clip with a larger coordinate, or 100 times that before it is normalised, is left
            out.
        max_bodies: keep so many of a clip, 1 or 2: the first that are there.
        strict: stop at the first faulty clip, instead of leaving it out.
        overwrite: replace a store that exists, once the new one is complete.
    """
    store = import_ctrgcn(
        file,
        out,
        name=name,
        protocol=protocol,
        class_names=class_names,
        normalise=not no_normalise,
        max_coordinate=max_coordinate,
        max_bodies=max_bodies,
        strict=strict,
        overwrite=overwrite,
    )
    _report(store)


def pyskl(
    file: Path,
    out: Path,
    name: str | None = None,
    protocol: str | None = None,
    skeleton: str | None = None,
    class_names: Path | None = None,
    min_score: float = MIN_SCORE,
    no_normalise: bool = False,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    overwrite: bool = False,
) -> None:
    """Pack an annotation file of pyskl or mmaction2, of two or three dimensions; its lists give the protocols.

    Example: python -m train.prepare pyskl --file ntu60_hrnet.pkl --out data/ntu60-hrnet

    Args:
        file: the pickle: split, and annotations of frame_dir, label, keypoint and perhaps keypoint_score. It is read
            into memory whole, and nothing that it names is run.
        out: folder of the store.
        name: of the set; by default that of the folder.
        protocol: keep this pair of lists alone, and the clips in it, where none holds all clips: xsub is xsub_train and
            xsub_val, 1 is train1 and test1, split is train and test.
        skeleton: joint layout: coco17, openpose18, ... (docs/own-data.md) or a JSON file; by default by the number of
            joints.
        class_names: text file with the name of a class a line; NTU RGB+D's are known.
        min_score: of two dimensions: joints with a lower score are not there.
        no_normalise: keep the coordinates; by default bodies are turned to a common frame.
        max_coordinate: metres; a clip with a larger coordinate, or 100 times that before it is normalised, is left
            out.
        max_bodies: keep so many of a clip, 1 or 2: those of the highest scores.
        strict: stop at the first faulty clip, instead of leaving it out, and where clips do not look like bodies.
        overwrite: replace a store that exists, once the new one is complete.
    """
    store = import_pyskl(
        file,
        out,
        name=name,
        protocol=protocol,
        skeleton=skeleton,
        class_names=class_names,
        min_score=min_score,
        normalise=not no_normalise,
        max_coordinate=max_coordinate,
        max_bodies=max_bodies,
        strict=strict,
        overwrite=overwrite,
    )
    _report(store)


def kinetics(
    raw: Path,
    out: Path = Path("data/kinetics"),
    min_score: float = MIN_SCORE,
    no_normalise: bool = False,
    max_coordinate: float = MAX_COORDINATE,
    max_bodies: int | None = None,
    strict: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Pack Kinetics-skeleton from its JSON files, 18 joints of OpenPose (protocol split: folders of val test).

    Example: python -m train.prepare kinetics --raw ~/kinetics-skeleton --out data/kinetics

    Args:
        raw: folder of the .json files, at any depth.
        out: folder of the store.
        min_score: joints with a lower score are not there.
        no_normalise: keep the coordinates; by default bodies are turned to a common frame.
        max_coordinate: metres; a clip with a larger coordinate, or 100 times that before it is normalised, is left
            out.
        max_bodies: keep so many of a clip, 1 or 2: those of the highest scores.
        strict: stop at the first malformed file, instead of leaving it out, and where clips do not look like bodies.
        workers: processes; all cores by default.
        overwrite: replace a store that exists, once the new one is complete.
    """
    store = prepare_kinetics(
        raw,
        out,
        min_score=min_score,
        normalise=not no_normalise,
        max_coordinate=max_coordinate,
        max_bodies=max_bodies,
        strict=strict,
        workers=workers,
        overwrite=overwrite,
    )
    _report(store)


def nwucla(
    raw: Path,
    out: Path = Path("data/nwucla"),
    no_normalise: bool = False,
    max_coordinate: float = MAX_COORDINATE,
    strict: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Pack NW-UCLA from its JSON files (protocol xview: views 1 and 2 train, view 3 tests).

    Example: python -m train.prepare nwucla --raw ~/NW-UCLA/all_sqe --out data/nwucla

    Args:
        raw: folder of the a##_s##_e##_v##.json files, at any depth.
        out: folder of the store.
        no_normalise: keep the coordinates; by default bodies are turned to a common frame.
        max_coordinate: metres; a clip with a larger coordinate, or 100 times that before it is normalised, is left
            out.
        strict: stop at the first malformed or misnamed file, instead of leaving it out.
        workers: processes; all cores by default.
        overwrite: replace a store that exists, once the new one is complete.
    """
    store = prepare_nw_ucla(
        raw,
        out,
        normalise=not no_normalise,
        max_coordinate=max_coordinate,
        strict=strict,
        workers=workers,
        overwrite=overwrite,
    )
    _report(store, NWUCLA_CLIPS)


def utd_mhad(
    raw: Path,
    out: Path = Path("data/utd-mhad"),
    no_normalise: bool = False,
    max_coordinate: float = MAX_COORDINATE,
    strict: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
) -> None:
    """Pack UTD-MHAD from its MATLAB files (protocol xsub: odd subjects train, even ones test).

    Example: python -m train.prepare utd-mhad --raw ~/UTD-MHAD/Skeleton --out data/utd-mhad

    Args:
        raw: folder of the a#_s#_t#_skeleton.mat files, at any depth.
        out: folder of the store.
        no_normalise: keep the coordinates; by default bodies are turned to a common frame.
        max_coordinate: metres; a clip with a larger coordinate, or 100 times that before it is normalised, is left
            out.
        strict: stop at the first malformed or misnamed file, instead of leaving it out.
        workers: processes; all cores by default.
        overwrite: replace a store that exists, once the new one is complete.
    """
    store = prepare_utd_mhad(
        raw,
        out,
        normalise=not no_normalise,
        max_coordinate=max_coordinate,
        strict=strict,
        workers=workers,
        overwrite=overwrite,
    )
    _report(store, UTD_CLIPS)


def say_published(store: PackedStore, what: str, clips: int) -> None:
    """Print how many clips a set is published with, if the store has another number."""
    if len(store) != clips:
        few = len(store) < FEW * clips
        print(f"  {'warning' if few else 'note'}: {what} has {clips:,} clips" + FEWER * few)


def _report(store: PackedStore, published: int | None = None) -> None:
    print(summary(store))
    repeats = store.meta.get("repeats_cut", 0)
    if repeats:
        print(f"  note: {repeats:,} clips were padded by repetition; each is cut to its first period")
    copies = store.meta.get("copied_bodies_cut", 0)
    if copies:
        print(f"  note: in {copies:,} clips the second body was the first again; it is left out")
    if published is not None:
        say_published(store, "the complete set", published)


READERS: dict[str, Callable[..., None]] = {
    "npy": npy,
    "ctrgcn": ctrgcn,
    "pyskl": pyskl,
    "kinetics": kinetics,
    "nwucla": nwucla,
    "utd-mhad": utd_mhad,
}
