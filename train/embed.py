"""Features and classes of clips by a trained encoder: python -m train.embed --run DIR --input FILES --out OUT.npz."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from tqdm import tqdm

from fastmc.checks import Count, NotNegative, Positive, check_ranges
from fastmc.data.clips import MAX_COORDINATE
from fastmc.data.given import MIN_SCORE, Given
from fastmc.data.packing import NORMALISATION
from fastmc.data.sanity import Sanity
from fastmc.embedding import Embedder, EncoderFault, joints_by_name, load
from fastmc.files import make_folder_of, whole_file
from fastmc.progress import progress_bar
from fastmc.skeleton import Skeleton
from train.command.clips import ArrayKind, Input, find_inputs
from train.command.errors import run_command
from train.engine.record import log
from train.run import choose_device

SHOWN = 20  # clips whose classes are shown on the terminal


@dataclass(frozen=True)
class Embed:
    """Encode clips with a trained encoder; name their classes too, if the run has a trained classifier.

    Example: python -m train.embed --run runs/demo --input clips/ --out features.npz

    The classifier: python -m train.evaluate linear --run runs/demo

    OUT holds features (N, H), names (N,), num_frames (N,), one row a clip in the order of the inputs, files of a folder
    by name; and with a classifier labels (N,), probability (N, C), class_names (C,). Long recordings: --window 64 --hop
    16 gives a row for each window, and start (N,), its first frame.
    """

    run: str
    """Run folder, as made by python -m train.run; or an encoder's file or name, such as small-v1."""
    input: tuple[Path, ...]
    """Any number of: .skeleton files, and .skeleton.npy of txt2npy.py; folders of them, at any depth; packed stores;
    .npy files of a clip (T, V, 3) or (T, M, V, 3), or of many (N, T, M, V, 3), padded with zeros; .npz files with
    x (N, 3, T, V, M), num_frames (N,) and perhaps name (N,). Coordinates in metres."""
    out: Path
    """The .npz file to write."""
    data: Path | None = None
    """Packed store that the run was trained on; needed if its checkpoint does not describe it."""
    classifier: Path | None = None
    """Classifier that names the classes; by default DIR/classifier.pt, of the run's own protocol."""
    checkpoint: str = "last"
    """last, best (of the probe, where the run had --keep-best), or a step."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    batch_size: Count = 256
    """Clips that are encoded at once."""
    window: Count | None = None
    """Cut clips into windows of so many frames; a clip that is shorter is one window."""
    hop: Count = 16
    """Frames from the start of a window to the start of the next."""
    top: Count = 5
    """Classes of each clip to show on the terminal."""
    skeleton: str | None = None
    """Joint layout of arrays, where it is not the run's: coco17, ... or a JSON file; joints are taken by name."""
    image: bool = False
    """Arrays hold (x, y) or (x, y, score) of an image, y downwards; bodies become 1.7 m tall."""
    scale: str | None = None
    """Times this arrays are in metres, such as 0.001 for millimetres; "height" makes every body 1.7 m tall."""
    min_score: NotNegative = MIN_SCORE
    """Of an image: joints with a lower score are not there."""
    normalise: bool = True
    """Keep coordinates as they are; by default clips are moved to a common frame, if the run's data were."""
    max_coordinate: Positive = MAX_COORDINATE
    """Metres; a clip beyond it, or whose coordinates were 100 times that before it was moved, is left out."""
    strict: bool = False
    """Stop at the first faulty clip or window, instead of leaving it out, and where clips do not look like bodies."""
    overwrite: bool = False
    """Replace OUT if it exists."""
    allow: tuple[str, ...] = ()
    """Methods and encoders outside of fastmc, MODULE:CLASS, that may be imported if the run is of one."""

    def __post_init__(self) -> None:
        if not self.input:
            raise ValueError("--input names nothing; give at least one file or folder")
        check_ranges(self)
        _ = self.given

    @property
    def given(self) -> Given:
        return Given(self.image, self.scale, self.min_score)


def embed(settings: Embed) -> dict[str, np.ndarray]:
    """Encode all inputs and write the .npz file; returns its arrays.

    Raises:
        ValueError: a setting is wrong, no clip can be used, or one cannot in a strict run.
        CheckpointError, StoreError, OSError: run, store or file cannot be read or written.
    """
    check_out(settings.out, settings.overwrite)
    if settings.classifier is not None and not settings.classifier.is_file():
        raise ValueError(f"--classifier {settings.classifier} is no file")
    embedder = load(
        settings.run,
        device=choose_device(settings.device),
        data=settings.data,
        classifier=settings.classifier,
        checkpoint=settings.checkpoint,
        allow=settings.allow,
    )
    layout = embedder.skeleton if settings.skeleton is None else Skeleton.named(settings.skeleton)
    joints_by_name(layout, embedder.skeleton)
    kind, sanity = ArrayKind(layout, settings.given), Sanity(embedder.skeleton)
    inputs = [found for path in settings.input for found in find_inputs(path, embedder, settings.normalise, kind)]
    rows = _of_clips if settings.window is None else _of_windows
    found = [row for group in rows(inputs, Reader(embedder, settings, kind, sanity)) for row in group]
    sanity.tell(settings.strict, ValueError)
    if not found:
        raise ValueError(f"none of the {len(inputs)} clips can be used; nothing was written")
    features = torch.stack([row.feature for row in found])
    arrays = {
        "features": features.cpu().numpy(),
        "names": np.array([row.name for row in found]),
        "num_frames": np.array([row.frames for row in found]),
    }
    if settings.window is not None:
        arrays["start"] = np.array([row.start for row in found])
    used = len({row.place for row in found})
    windows = "" if settings.window is None else f"{len(found)} windows of "
    summary = f"{settings.out}: {windows}{used} clips, {embedder.dim} numbers each"
    summary += f"; {len(inputs) - used} left out" if len(inputs) > used else ""
    arrays, classes = _with_classes(arrays, features, embedder, settings.top)
    write_arrays(settings.out, arrays)
    log.info("%s; %s", summary, classes)
    return arrays


class Row(NamedTuple):
    """A feature (H,) of the ``frames`` frames from ``start`` on of the clip at ``place``."""

    name: str
    place: str
    start: int
    frames: int
    feature: torch.Tensor


@dataclass(frozen=True)
class Reader:
    """How the clips of a command line are read: by which encoder, with which settings, and who looks at them."""

    embedder: Embedder
    settings: Embed
    kind: ArrayKind
    sanity: Sanity

    def kind_of(self, item: Input) -> ArrayKind:
        return self.kind if item.is_array else ArrayKind(self.embedder.skeleton)

    def limit(self, item: Input) -> float:
        """Metres; a store was prepared with a limit of its own."""
        return math.inf if item.is_stored else self.settings.max_coordinate

    def clip(self, item: Input) -> np.ndarray:
        """Whole, as the encoder takes it."""
        kind, normalise = self.kind_of(item), self.settings.normalise and not item.moved
        joints, weights = self.embedder.read(item.read(), item.place, kind.given, kind.layout)
        self.sanity.see(joints)
        return self.embedder.moved(joints, item.place, normalise, weights, self.limit(item))

    def windows(self, item: Input) -> list[Row]:
        """Of a clip, whose frames are read one after the other where its file can.

        A window is moved by its own frames, also where its whole clip was moved already.
        """
        assert self.settings.window is not None
        kind, frames = self.kind_of(item), self.embedder.frames_of(item.read())
        may_be_moved = not item.moved or self.embedder.data.normalisation == NORMALISATION
        windows = self.embedder.encode_stream(
            frames,
            self.settings.window,
            self.settings.hop,
            batch_size=self.settings.batch_size,
            normalise=self.settings.normalise and may_be_moved,
            given=kind.given,
            layout=kind.layout,
            sanity=self.sanity,
            max_coordinate=self.limit(item),
            strict=self.settings.strict,
            name=item.place,
        )
        return [Row(item.name, item.place, w.start, w.stop - w.start, w.feature) for w in windows]


def _of_clips(inputs: Sequence[Input], reader: Reader) -> Iterator[list[Row]]:
    """A batch of clips after the other; those that cannot be used are reported."""
    batch: list[tuple[Input, np.ndarray]] = []

    def rows() -> list[Row]:
        features, faults = reader.embedder.features_of([(item.place, clip) for item, clip in batch])
        found = []
        for n, (item, clip) in enumerate(batch):
            with _left_out(reader.settings):
                if n in faults:
                    raise faults[n]
                found.append(Row(item.name, item.place, 0, len(clip), features[n]))
        return found

    for item in _with_bar(inputs):
        with _left_out(reader.settings):
            batch.append((item, reader.clip(item)))
        if len(batch) == reader.settings.batch_size:
            yield rows()
            batch = []
    if batch:
        yield rows()


def _of_windows(inputs: Sequence[Input], reader: Reader) -> Iterator[list[Row]]:
    """A clip after the other; one that cannot be used is reported, and has no windows."""
    for item in _with_bar(inputs):
        found: list[Row] = []
        with _left_out(reader.settings, item.place):
            found = reader.windows(item)
            if not found:
                raise ValueError("none of its windows holds a body that can be used")
        if found:
            yield found


def _with_bar(inputs: Sequence[Input]) -> Iterator[Input]:
    yield from tqdm(inputs, disable=not sys.stderr.isatty(), **progress_bar("clip", "read and encode"))


@contextmanager
def _left_out(settings: Embed, place: str = "") -> Iterator[None]:
    """Within: an error of a clip leaves it out, or ends a strict run. ``place`` is said where the error does not."""
    try:
        yield
    except EncoderFault:  # of which no clip is to blame
        raise
    except (ValueError, OSError) as error:
        named = f"{place}: {error}" if place and place not in str(error) else str(error)
        if settings.strict:
            raise ValueError(f"{named}; without --strict such a clip is left out") from error
        log.warning("left out: %s", named)


def _with_classes(
    arrays: dict[str, np.ndarray], features: torch.Tensor, embedder: Embedder, top: int
) -> tuple[dict[str, np.ndarray], str]:
    """The arrays with those of the classifier, where there is one, and what it found, in words."""
    try:
        classifier = embedder.classifier
    except ValueError as error:
        return arrays, f"no classes: {error}"
    probability = embedder.probabilities(features)
    labels = probability.argmax(dim=1).cpu().numpy()
    classes = {"labels": labels, "probability": probability.cpu().numpy()}
    trained = f"{classifier.dataset} {classifier.protocol}, {classifier.top1:.1f} % of its test clips right"
    lines = [f"classes by the linear classifier of {trained}"]
    if len(features) <= SHOWN:
        names = arrays["names"].tolist()
        width = max(map(len, names))
        for name, scores in zip(names, embedder.rank(probability, top), strict=True):
            lines.append(f"  {name:{width}}  " + ", ".join(f"{s.name} {100 * s.probability:.1f} %" for s in scores))
    return {**arrays, **classes, "class_names": np.array(classifier.class_names)}, "\n".join(lines)


def check_out(out: Path, overwrite: bool) -> None:
    """ValueError unless the features may be written to ``out``."""
    if out.suffix != ".npz":
        raise ValueError(f"--out {out} must be the name of a .npz file, such as {out.with_suffix('.npz')}")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file")
    if out.exists() and not overwrite:
        raise ValueError(f"--out {out} exists; --overwrite replaces it")
    make_folder_of(out)


def write_arrays(out: Path, arrays: dict[str, Any]) -> None:
    """Write the .npz file, whole or not at all."""
    with whole_file(out) as unfinished, open(unfinished, "wb") as file:
        np.savez(file, **arrays)


def main(args: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""

    def command(args: Sequence[str]) -> None:
        embed(tyro.cli(Embed, prog="python -m train.embed", args=args, config=(tyro.conf.FlagCreatePairsOff,)))

    return run_command(command, args, stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
