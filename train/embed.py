"""Features and classes of clips by a trained encoder: python -m train.embed --run DIR --input FILES --out OUT.npz."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from fastmc.checks import Count, NotNegative, check_ranges
from fastmc.data.given import MIN_SCORE, Given
from fastmc.data.sanity import Sanity
from fastmc.embedding import Embedder, joints_by_name, load
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
    by name; and with a classifier labels (N,), probability (N, C), class_names (C,).
    """

    run: Path
    """Run folder, as made by python -m train.run."""
    input: tuple[Path, ...]
    """Any number of: .skeleton files; folders of them, at any depth; packed stores; .npy files of a clip (T, V, 3) or
    (T, M, V, 3), or of many (N, T, M, V, 3), padded with zeros; .npz files with x (N, 3, T, V, M), num_frames (N,) and
    perhaps name (N,). Coordinates in metres."""
    out: Path
    """The .npz file to write."""
    data: Path | None = None
    """Packed store that the run was trained on; needed if its checkpoint does not describe it."""
    device: str = "auto"
    """auto, cpu, cuda, ..."""
    batch_size: Count = 256
    """Clips that are encoded at once."""
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
    strict: bool = False
    """Stop at the first faulty clip, instead of leaving it out, and where clips do not look like bodies."""
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
    embedder = load(settings.run, device=choose_device(settings.device), data=settings.data, allow=settings.allow)
    layout = embedder.skeleton if settings.skeleton is None else Skeleton.named(settings.skeleton)
    joints_by_name(layout, embedder.skeleton)
    kind = ArrayKind(layout, settings.given)
    inputs = [found for path in settings.input for found in find_inputs(path, embedder, settings.normalise, kind)]
    sanity = Sanity(embedder.skeleton)
    names: list[str] = []
    lengths: list[int] = []
    features: list[torch.Tensor] = []
    for batch, clips in _batches(inputs, embedder, settings, kind, sanity):
        names += [clip.name for clip in batch]
        lengths += [len(clip) for clip in clips]
        features.append(embedder.encode(clips, normalise=False, check="off", batch_size=settings.batch_size))
    sanity.tell(settings.strict, ValueError)
    if not features:
        raise ValueError(f"none of the {len(inputs)} clips can be used; nothing was written")
    found = torch.cat(features)
    arrays = {"features": found.cpu().numpy(), "names": np.array(names), "num_frames": np.array(lengths)}
    summary = f"{settings.out}: {len(names)} clips, {embedder.dim} numbers each"
    summary += f"; {len(inputs) - len(names)} left out" if len(inputs) > len(names) else ""
    arrays, classes = _with_classes(arrays, found, embedder, settings.top)
    write_arrays(settings.out, arrays)
    log.info("%s; %s", summary, classes)
    return arrays


def _batches(
    inputs: Sequence[Input], embedder: Embedder, settings: Embed, kind: ArrayKind, sanity: Sanity
) -> Iterator[tuple[list[Input], list[np.ndarray]]]:
    """The clips that can be used, read and prepared; those that cannot are reported."""
    batch: list[Input] = []
    clips: list[np.ndarray] = []
    bar = progress_bar("clip", "read and encode")
    for item in tqdm(inputs, disable=not sys.stderr.isatty(), **bar):
        normalise = settings.normalise and not item.moved
        try:
            how = kind if item.is_array else ArrayKind(embedder.skeleton)
            joints, weights = embedder.read(item.read(), item.place, how.given, how.layout)
            sanity.see(joints)
            clips.append(embedder.moved(joints, item.place, normalise, weights))
        except (ValueError, OSError) as error:
            if settings.strict:
                raise ValueError(f"{error}; without --strict such a clip is left out") from error
            log.warning("left out: %s", error)
            continue
        batch.append(item)
        if len(batch) == settings.batch_size:
            yield batch, clips
            batch, clips = [], []
    if batch:
        yield batch, clips


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
