"""A trained encoder in use: from raw files or arrays to features and, with a trained classifier, to class names.

``fastmc.load(DIR)`` reads a run folder, the file of an encoder, or one that comes with the package, and gives an
`Embedder`. Its features are those of the evaluation: the same normalisation, the same centre crop, the representation
before the head.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from fastmc.arguments import check_choice
from fastmc.build import trained_model
from fastmc.checkpoint import CheckpointError
from fastmc.checks import check_number
from fastmc.config import Config, RunFolderError, load_config
from fastmc.data.clips import ALL_ZERO, MAX_COORDINATE, NO_FRAME, NOT_FINITE, FaultyClip, placed_clip
from fastmc.data.formats.skeleton_file import SkeletonFileError, read_skeleton
from fastmc.data.formats.txt2npy import SUFFIX as TXT2NPY
from fastmc.data.formats.txt2npy import read_txt2npy
from fastmc.data.given import METRES, Given
from fastmc.data.normalise import choose_bodies
from fastmc.data.packing import NORMALISATION
from fastmc.data.sanity import Sanity
from fastmc.data.store import NOT_NORMALISED, PackedStore
from fastmc.encoder_file import READY, SUFFIX, read_encoder
from fastmc.encoders.amp import tensor_cores
from fastmc.encoders.base import Encoder
from fastmc.evaluation.classifier import Classifier
from fastmc.files import read_bytes
from fastmc.progress import progress_bar
from fastmc.reading import listed, reading
from fastmc.skeleton import NTU25, Skeleton
from fastmc.state import RunState, TrainingData
from fastmc.views.clips import PackedClips
from fastmc.views.make import crops_of

MANY_BODIES = 6  # that one sensor follows
CHUNK = 1024  # frames of a recording that are looked at at once
CHECKS = ("warn", "strict", "off")
Check = Literal["warn", "strict", "off"]
Clip = np.ndarray | Tensor | str | Path
Skeletons = Clip | Sequence[Clip] | PackedStore
log = logging.getLogger("fastmc")


class EncoderFault(ValueError):
    """No clip can have a feature, since a weight of the encoder is not finite; the message names it."""


class ClassScore(NamedTuple):
    """A class and its probability, 0 to 1."""

    name: str
    probability: float


class Window(NamedTuple):
    """Frames ``start`` to ``stop`` - 1 of a recording, and their feature (H,)."""

    start: int
    stop: int
    feature: Tensor


class Embedder:
    """A trained encoder, and what its clips have to be. `load` makes one.

    Attributes:
        encoder: the query encoder, in evaluation mode.
        config, data: of the run. classifier_file: as `load` was given it.
        skeleton, max_bodies: V joints in this order, and M, of `data`.
        dim: H, numbers of a feature.
    """

    def __init__(
        self,
        folder: Path,
        encoder: Encoder,
        config: Config,
        data: TrainingData,
        classifier_file: Path | None = None,
    ) -> None:
        self.folder, self.config, self.data, self.classifier_file = folder, config, data, classifier_file
        self.encoder = encoder.eval().requires_grad_(False)
        self.skeleton, self.max_bodies, self.dim = data.skeleton, data.max_bodies, encoder.representation_dim

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def encode(
        self,
        skeletons: Skeletons,
        *,
        normalise: bool = True,
        crop: float | None = None,
        batch_size: int = 256,
        progress: bool = False,
        given: Given = METRES,
        layout: Skeleton | str | None = None,
        check: Check = "warn",
        max_coordinate: float = MAX_COORDINATE,
    ) -> Tensor:
        """Features before the head (N, H) of N clips, float32, on the encoder's device.

        Args:
            skeletons: one clip or a list of clips: an array or tensor (T, V, 3) or (T, M, V, 3) in metres, T >= 1, or
                the path of a ``.skeleton`` file, or of what txt2npy.py makes of one. Or a packed store.
            normalise: move clips as those that the encoder was trained on were (`fastmc.data.normalise.normalise`);
                False takes coordinates as they are. A store knows whether its clips are moved already.
            crop: share of a clip that is kept, from its middle; by default that of the run's evaluation.
            batch_size: clips that are encoded, and held in memory, at once.
            progress: show a bar.
            given: what the numbers of arrays are: ``Given(image=True)`` for (x, y) or (x, y, score) of an image.
            layout: of the joints of arrays, where it is not the encoder's, or its name, such as ``"coco17"``: joints
                of the same names are taken.
            check: whether clips that do not look like bodies of the encoder's joints in metres (`fastmc.data.sanity`)
                are warned of, an error ("strict"), or not looked at ("off").
            max_coordinate: metres; a clip beyond it, or whose coordinates were 100 times that before it was moved, is
                an error, as `train.prepare` leaves it out; ``math.inf`` sets no limit. Of a store, which was prepared
                so, none is.

        Raises:
            ValueError: a clip is none that the encoder can read, or a weight is not finite; the message names it.
            TypeError: an argument is of another kind.
            SkeletonFileError, OSError: a file is malformed or cannot be read.
        """
        check_number("batch_size", batch_size, at_least=1)
        crop = self.config.evaluation.test_crop if crop is None else crop
        check_number("crop", crop, above=0, at_most=1)
        if max_coordinate != math.inf:
            check_number("max_coordinate", max_coordinate, above=0)
        check_choice("check", check, CHECKS)
        layout, sanity = as_layout(layout), Sanity(self.skeleton)
        if isinstance(skeletons, PackedStore):
            normalise, max_coordinate = self.must_move(skeletons, normalise), math.inf
        clips = named_clips(skeletons)
        parts = []
        with tqdm(total=len(clips), disable=not progress, **progress_bar("clip", "features")) as bar:
            for first in range(0, len(clips), batch_size):
                batch = clips[first : first + batch_size]
                ready = []
                for name, clip in batch:
                    joints, weights = self.read(clip, name, given, layout)
                    if check != "off":
                        sanity.see(joints)
                    try:
                        ready.append((name, self.moved(joints, name, normalise, weights, max_coordinate)))
                    except FaultyClip as fault:
                        raise FaultyClip(fault.reason, f"{fault}{sanity.hint()}") from None
                features, faults = self.features_of(ready, crop)
                if faults:
                    raise faults[min(faults)]
                parts.append(features)
                bar.update(len(batch))
        if check != "off":
            sanity.tell(check == "strict", ValueError)
        return torch.cat(parts)

    def encode_stream(
        self,
        frames: np.ndarray | Tensor | Iterable[np.ndarray | Tensor],
        window: int = 64,
        hop: int = 16,
        *,
        batch_size: int = 1,
        normalise: bool = True,
        crop: float = 1.0,
        given: Given = METRES,
        layout: Skeleton | str | None = None,
        sanity: Sanity | None = None,
        max_coordinate: float = MAX_COORDINATE,
        strict: bool = False,
        name: str = "",
    ) -> Iterator[Window]:
        """Features of the windows of a long recording, or of a camera's frames as they come.

        No more frames are held than the windows at work have. Each window is a clip of its own: it is moved into the
        frame of reference of its own first frames. Windows without a body are left out, and so is the rest of a
        recording that fills no window, unless it is all there is.

        Bodies whose size is not known (of an image, or ``scale="height"``) are scaled alike in all windows of an array,
        by the median height in it, so that a person does not grow who bends. Of frames that come one after the other
        each window has a scale of its own, unless ``given`` says one.

        Args:
            frames: an array or tensor (T, V, 3) or (T, M, V, 3), which may be mapped from a file; or whatever gives
                frames (V, 3) or (M, V, 3) one after the other. In metres.
            window: frames of a clip. hop: frames from the start of one to the start of the next.
            batch_size: windows that are encoded at once: 1 answers at once, more are faster.
            normalise, crop, given, layout, max_coordinate: as of `encode`; a window is taken whole.
            sanity: is shown the windows; by default the first one that holds a body is looked at, and warned of.
            strict: a window that no feature can be made of (coordinates that are not finite or out of range, no frame
                of reference) is an error; by default it is left out, and a warning says why.
            name: what messages call the recording.

        Raises:
            ValueError, TypeError: frames that the encoder cannot read, or a weight is not finite; the message tells the
                window or the weight.
        """
        for argument, value in (("window", window), ("hop", hop), ("batch_size", batch_size)):
            check_number(argument, value, at_least=1)
        check_number("crop", crop, above=0, at_most=1)
        if max_coordinate != math.inf:
            check_number("max_coordinate", max_coordinate, above=0)
        layout, given = as_layout(layout), of_one_scale(frames, given)
        first = None if sanity is not None else Sanity(self.skeleton)

        def prepared(clip: np.ndarray, called: str) -> np.ndarray:
            nonlocal first
            joints, weights = self.read(clip, called, given, layout)
            if sanity is not None:
                sanity.see(joints)
            elif first is not None:
                first.see(joints)
                first.tell(False, ValueError)
                first = None
            return self.moved(joints, called, normalise, weights, max_coordinate)

        def leave_out(fault: FaultyClip) -> None:
            if fault.reason == ALL_ZERO:
                return
            if strict:
                raise fault
            log.warning("left out: %s", fault)

        of = f" of {name}" if name else ""
        return self._stream(windows_of(frames, window, hop), batch_size, prepared, leave_out, crop, of)

    def _stream(
        self,
        windows: Iterable[tuple[int, np.ndarray]],
        batch_size: int,
        prepared: Callable[[np.ndarray, str], np.ndarray],
        leave_out: Callable[[FaultyClip], None],
        crop: float,
        of: str,
    ) -> Iterator[Window]:
        batch: list[tuple[int, str, np.ndarray]] = []
        for start, clip in windows:
            name = f"the window of frames {start} to {start + len(clip) - 1}{of}"
            try:
                batch.append((start, name, prepared(clip, name)))
            except FaultyClip as fault:
                leave_out(fault)
            if len(batch) == batch_size:
                yield from self._windows(batch, leave_out, crop)
                batch = []
        if batch:
            yield from self._windows(batch, leave_out, crop)

    def _windows(
        self, batch: Sequence[tuple[int, str, np.ndarray]], leave_out: Callable[[FaultyClip], None], crop: float
    ) -> Iterator[Window]:
        features, faults = self.features_of([(name, clip) for _, name, clip in batch], crop)
        for n, (start, _, clip) in enumerate(batch):
            if n in faults:
                leave_out(faults[n])
            else:
                yield Window(start, start + len(clip), features[n])

    def classify(self, skeletons: Skeletons, top: int = 5, **how: Any) -> list[list[ClassScore]]:
        """Of each clip the ``top`` most probable classes, best first. ``how`` are the other arguments of `encode`.

        Raises:
            ValueError: the run has no trained classifier, or one of other weights; and as `encode`.
        """
        check_number("top", top, at_least=1)
        _ = self.classifier  # an error before the work
        return self.rank(self.probabilities(self.encode(skeletons, **how)), top)

    @cached_property
    def classifier(self) -> Classifier:
        """Of the file that `load` was given, or DIR/classifier.pt, read on first use. Raises as `Classifier.read`."""
        if self.folder.is_file() and self.classifier_file is None:
            raise ValueError(f"{self.folder} holds an encoder and no classifier; train one on its features")
        return Classifier.read(self.folder, self.encoder, self.classifier_file)

    def probabilities(self, features: Tensor) -> Tensor:
        """(N, H) features to the classifier's probabilities (N, C)."""
        weight, bias = (tensor.to(features.device) for tensor in (self.classifier.weight, self.classifier.bias))
        return F.linear(features, weight, bias).softmax(dim=1)

    def rank(self, probabilities: Tensor, top: int) -> list[list[ClassScore]]:
        """Of each row of probabilities (N, C) the ``top`` highest, best first."""
        names = self.classifier.class_names
        best = probabilities.topk(min(top, len(names)), dim=1)
        rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [[ClassScore(names[c], p) for c, p in zip(*row, strict=True)] for row in rows]

    def read(
        self, clip: Clip, name: str = "the clip", given: Given = METRES, layout: Skeleton | str | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """A clip in metres, not moved: (T, M, V, 3) float32 without absent bodies, and the weights (T, M, V) of its
        joints, where it is of an image.

        Of a file's bodies those that move most are kept, as many as the encoder reads. ``given`` and ``layout`` are of
        arrays. Raises as `encode`; what is wrong with this clip alone is a `fastmc.data.clips.FaultyClip`.
        """
        check_given(given)
        weights = None
        if isinstance(clip, (str, Path)):
            joints = self._read(Path(clip))
        else:
            joints = as_floats(clip, name)
            layout = as_layout(layout) or self.skeleton
            if given != METRES or layout.joint_names != self.skeleton.joint_names:
                joints, weights = self._taken(joints, name, given, layout)
                weights = None if weights is None else weights[:, joints.any(axis=(0, 2, 3))]
        return present_bodies(joints, name, self.skeleton, self.max_bodies), weights

    def moved(
        self,
        joints: np.ndarray,
        name: str = "the clip",
        normalise: bool = True,
        weights: np.ndarray | None = None,
        max_coordinate: float = MAX_COORDINATE,
    ) -> np.ndarray:
        """What `read` gave as the encoder's views are made of it: moved as its data were, and in their range.

        Raises as `encode`; what is wrong with this clip alone is a `fastmc.data.clips.FaultyClip`.
        """
        layout = self.skeleton if self.moves(name, normalise) else None
        try:
            return placed_clip(joints, layout, max_coordinate, weights)
        except FaultyClip as fault:
            remedy = "; leave it out, or say that it is normalised already" if fault.reason == NO_FRAME else ""
            raise FaultyClip(fault.reason, f"{name}: {fault}{remedy}") from None

    def frames_of(self, clip: Clip) -> np.ndarray | Tensor:
        """A clip's frames, (T, V, 3) or (T, M, V, 3), as `encode_stream` takes them; a file is read whole."""
        return self._read(Path(clip)) if isinstance(clip, (str, Path)) else clip

    def _taken(
        self, joints: np.ndarray, name: str, given: Given, layout: Skeleton
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The encoder's joints, in metres, of a clip of such numbers in this layout, and their weights."""
        index = joints_by_name(layout, self.skeleton)
        bodies = joints[:, None] if joints.ndim == 3 else joints
        if bodies.ndim != 4 or bodies.shape[2] != layout.num_joints or bodies.shape[3] not in given.numbers:
            numbers = " or ".join(map(str, given.numbers))
            raise ValueError(
                f"{name} has shape {joints.shape}, expected (T, V, C) or (T, M, V, C), V = {layout.num_joints} joints "
                f"of {layout.name!r}, C = {numbers} numbers"
            )
        placed, weights = given.clip(bodies, layout)
        with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinite
            return placed[:, :, index].astype(np.float32), None if weights is None else weights[:, :, index]

    def _read(self, path: Path) -> np.ndarray:
        """The bodies of a ``.skeleton`` file, (T, M, 25, 3)."""
        if self.skeleton.joint_names != NTU25.joint_names:
            raise ValueError(
                f"{path} holds the joints of {NTU25.name!r}, the encoder reads those of {self.skeleton.name!r}; "
                "give arrays of those joints"
            )
        if not path.is_file():
            fault = "is a folder" if path.is_dir() else "does not exist"
            raise FileNotFoundError(f"{path} {fault}; name a .skeleton file")
        with reading(str(path), ValueError, passing=(SkeletonFileError, OSError)):  # those name the file themselves
            raw = read_txt2npy(read_bytes(path)) if path.name.endswith(TXT2NPY) else read_skeleton(path)
            return choose_bodies(raw)[:, : self.max_bodies]

    def must_move(self, store: PackedStore, normalise: bool = True) -> bool:
        """Whether a store's clips are still to be normalised; ValueError if the encoder cannot read them."""
        if store.skeleton.joint_names != self.skeleton.joint_names:
            ours, theirs = self.skeleton.name, store.skeleton.name
            raise ValueError(f"{store.path} holds joints of {theirs!r}, the encoder reads those of {ours!r}")
        return self.moves(str(store.path), normalise, given=store.normalisation)

    def moves(self, name: str, normalise: bool = True, *, given: str = NOT_NORMALISED) -> bool:
        """Whether clips in the frame of reference ``given`` are to be moved into that of the training data; ValueError
        where only their owner can."""
        wanted = self.data.normalisation
        if not normalise or given == wanted:
            return False
        if (given, wanted) != (NOT_NORMALISED, NORMALISATION):
            raise ValueError(
                f"{name} is normalised otherwise ({given}) than what the encoder was trained on ({wanted}); bring it "
                "into that frame, and give normalise=False (--no-normalise), which takes coordinates as they are"
            )
        return True

    def _pack(self, clips: Sequence[np.ndarray]) -> PackedClips:
        frames = torch.from_numpy(np.concatenate([clip.reshape(-1, *clip.shape[2:]) for clip in clips]))
        num_frames, num_bodies = (torch.tensor([clip.shape[axis] for clip in clips]) for axis in (0, 1))
        rows = num_frames * num_bodies
        parts = (part.to(self.device) for part in (frames, rows.cumsum(0) - rows, num_frames, num_bodies))
        frames, start, num_frames, num_bodies = parts
        return PackedClips(frames, start, num_frames, num_bodies, self.max_bodies)

    def features_of(
        self, clips: Sequence[tuple[str, np.ndarray]], crop: float | None = None
    ) -> tuple[Tensor, dict[int, FaultyClip]]:
        """Features (N, H) of clips as `moved` gives them, each with what messages call it; and of the rows that are
        not finite what is wrong with them.

        Raises:
            EncoderFault: a weight is not finite.
        """
        crop = self.config.evaluation.test_crop if crop is None else crop
        features = self._represent(self._pack([clip for _, clip in clips]), crop)
        faulty = torch.isfinite(features).all(dim=1).logical_not().nonzero()[:, 0].tolist()
        if faulty:
            self._check_weights()
        fault = "its features are not finite; its coordinates may be too large"
        return features, {n: FaultyClip(NOT_FINITE, f"{clips[n][0]}: {fault}") for n in faulty}

    def _check_weights(self) -> None:
        for name, weight in self.encoder.state_dict().items():
            if not torch.isfinite(weight).all():
                fault = f"{name} of the encoder is not finite"
                raise EncoderFault(f"no features: {fault}; load the run again, or one with python -m train.run")

    @torch.no_grad()
    @tensor_cores(False)
    def _represent(self, clips: PackedClips, crop: float) -> Tensor:
        share, middle = (torch.full((len(clips),), value, device=self.device) for value in (crop, 0.5))
        how = (self.skeleton, self.config.frames, self.config.stream, self.encoder.shape.centre_joint)
        return self.encoder.represent(crops_of(clips, share, middle, *how))


def as_layout(layout: Skeleton | str | Path | None) -> Skeleton | None:
    """A layout that may be given by its name, or as a JSON file; ValueError lists the names, TypeError for what is
    neither."""
    if isinstance(layout, (str, Path)):
        return Skeleton.named(layout)
    if layout is not None and not isinstance(layout, Skeleton):
        kind = type(layout).__name__
        raise TypeError(f"layout must be a fastmc.Skeleton, or the name of one, such as 'coco17', got {kind}")
    return layout


def check_given(given: object) -> None:
    """TypeError unless it is a `Given`."""
    if not isinstance(given, Given):
        kind = type(given).__name__
        raise TypeError(f"given must be a fastmc.Given, such as fastmc.Given(image=True), got {kind}")


def of_one_scale(frames: object, given: Given) -> Given:
    """What the numbers of all windows of a recording are: of an array, whose height is known, with one scale."""
    check_given(given)
    if not isinstance(frames, (np.ndarray, Tensor)) or frames.ndim not in (3, 4) or 0 in frames.shape:
        return given
    if frames.shape[-1] not in given.numbers:  # of which the windows tell
        return given
    parts = (as_floats(frames[first : first + CHUNK], "the recording") for first in range(0, len(frames), CHUNK))
    return given.of_recording(part[:, None] if part.ndim == 3 else part for part in parts)


def joints_by_name(theirs: Skeleton, ours: Skeleton) -> list[int]:
    """Where our joints are among theirs; ValueError if they lack one."""
    lacking = [name for name in ours.joint_names if name not in theirs.joint_names]
    if lacking:
        raise ValueError(
            f"the clips have the joints of {theirs.name!r}, which lack {listed(lacking)}; the encoder reads those of "
            f"{ours.name!r}"
        )
    return [theirs.joint_names.index(name) for name in ours.joint_names]


def windows_of(frames: Iterable[np.ndarray | Tensor], window: int, hop: int) -> Iterator[tuple[int, np.ndarray]]:
    """(start, clip) of each window of a recording, whose frames are read once and in order.

    Raises:
        ValueError: the frames differ in shape.
    """
    held: deque[np.ndarray] = deque(maxlen=window)
    number, given = -1, 0
    for number, frame in enumerate(frames):
        held.append(as_floats(frame, f"frame {number}"))
        if held[0].shape != held[-1].shape:
            raise ValueError(f"frame {number} has shape {held[-1].shape}, those before it {held[0].shape}")
        start = number + 1 - window
        if start >= 0 and start % hop == 0:
            given += 1
            yield start, np.stack(held)
    if held and not given:
        yield 0, np.stack(held)


def named_clips(skeletons: Skeletons) -> list[tuple[str, Clip]]:
    """Each clip with what messages call it. A store's clips stay in its file."""
    if isinstance(skeletons, PackedStore):
        return [(f"clip {name} of {skeletons.path}", skeletons.clip(n)) for n, name in enumerate(skeletons.names)]
    clips = [skeletons] if isinstance(skeletons, (np.ndarray, Tensor, str, Path)) else skeletons
    if not isinstance(clips, (list, tuple)):
        kinds = "an array, a tensor, the path of a .skeleton file, a list of those, or a packed store"
        raise TypeError(f"skeletons must be {kinds}, got {type(skeletons).__name__}")
    if not clips:
        raise ValueError("skeletons is an empty list; give at least one clip")
    return [(str(clip) if isinstance(clip, (str, Path)) else f"clip {n}", clip) for n, clip in enumerate(clips)]


def present_bodies(joints: np.ndarray, name: str, skeleton: Skeleton, max_bodies: int) -> np.ndarray:
    """A clip (T, V, 3) or (T, M, V, 3) as (T, M', V, 3) without the bodies that are all zero; ValueError if it is none
    of this skeleton with 1 to ``max_bodies`` bodies."""
    bodies = joints[:, None] if joints.ndim == 3 else joints
    layout = f"(T, V, 3) or (T, M, V, 3), V = {skeleton.num_joints} joints of {skeleton.name!r}"
    if bodies.ndim != 4 or bodies.shape[2:] != (skeleton.num_joints, 3):
        raise ValueError(
            f"{name} has shape {joints.shape}, expected {layout}; several go in a list, or file (N, T, M, V, 3)"
        )
    if 0 in bodies.shape:
        raise ValueError(f"{name} is empty: its shape is {joints.shape}, expected {layout}, T and M at least 1")
    finite = np.isfinite(bodies).all(axis=(1, 2, 3))
    if not finite.all():
        frame = int(np.flatnonzero(~finite)[0])
        fault = f"{name} holds NaN or infinite coordinates, first in frame {frame}; fill or drop them"
        raise FaultyClip(NOT_FINITE, fault)
    bodies = bodies[:, bodies.any(axis=(0, 2, 3))]
    if bodies.shape[1] == 0:
        raise FaultyClip(ALL_ZERO, f"{name} holds no body: all coordinates are zero; leave it out")
    if bodies.shape[1] > max_bodies:
        most = f"the encoder was trained on at most {max_bodies}"
        if bodies.shape[1] > MANY_BODIES or len(joints) <= max_bodies:  # no scene, but axes in another order
            raise ValueError(
                f"{name} has shape {joints.shape}, which as (T, M, V, 3) are {bodies.shape[1]} bodies, {most}: is it "
                "(M, T, V, 3)? Then give clip.transpose(1, 0, 2, 3). Is it (N, T, V, 3)? Then give list(clips), or a "
                "file of clips[:, :, None]"
            )
        remedy = "keep those that matter (of a data set: train.prepare --max-bodies)"
        raise ValueError(f"{name} holds {bodies.shape[1]} bodies, {most}; {remedy}")
    return bodies


def as_floats(clip: np.ndarray | Tensor, name: str) -> np.ndarray:
    """A clip's coordinates in float32."""
    if isinstance(clip, Tensor):
        if clip.is_complex() or clip.dtype == torch.bool:
            raise ValueError(f"{name} is a tensor of {clip.dtype}, expected coordinates in metres, floats")
        return clip.detach().to("cpu", torch.float32).numpy()
    if not isinstance(clip, np.ndarray):
        raise TypeError(f"{name} must be an array, a tensor or the path of a .skeleton file, got {type(clip).__name__}")
    if clip.dtype.kind not in "fiu":
        raise ValueError(f"{name} is an array of {clip.dtype}, expected coordinates in metres, floats")
    with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinite
        return clip.astype(np.float32)


def load(
    folder: str | Path,
    *,
    device: torch.device | str = "auto",
    data: str | Path | PackedStore | None = None,
    classifier: str | Path | None = None,
    checkpoint: str | int = "last",
    allow: Collection[str] = (),
) -> Embedder:
    """A trained encoder, ready for clips of its kind.

    Args:
        folder: a run folder, as made by ``python -m train.run``; the file of an encoder, as made by
            ``python -m train.export --to safetensors``; or the name of one that comes with the package, such as
            ``small-v1``.
        device: auto takes the GPU if there is one.
        data: the packed store that the run was trained on, where the checkpoint does not describe it.
        classifier: its file, where that is not DIR/classifier.pt: ``train.evaluate linear`` of another protocol or with
            other settings has written it.
        checkpoint: last, best (of the probe, where the run had --keep-best), or a step.
        allow: method and encoder of the run, MODULE:CLASS, where they are no part of fastmc: they are imported.

    Raises:
        ValueError: it is no run folder and no encoder, of a class that is not allowed, or there is no such device.
        CheckpointError: it holds no checkpoint, one that does not describe its data, or one of other data.
        StoreError: ``data`` is no packed store.
    """
    folder, classifier_file = READY.get(str(folder), Path(folder)), None if classifier is None else Path(classifier)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device = {str(device)!r} cannot be used: PyTorch finds no CUDA here; give 'cpu' or 'auto'")
    if folder.suffix == SUFFIX:
        config, training, encoder = read_encoder(folder, allow)
        return Embedder(folder, encoder.to(device), config, training, classifier_file)
    try:
        config = load_config(folder, allow)
    except RunFolderError as error:
        more = "" if folder.exists() else f"; encoders that come along: {', '.join(READY)}"
        raise RunFolderError(f"{error}{more}") from None
    path, state = RunState.read(folder / "checkpoints", str(checkpoint))
    if data is None:
        training = state.training_data(path)
    else:
        store = data if isinstance(data, PackedStore) else PackedStore.open(data)
        if not state.may_be_of(store.content_checksum):
            raise CheckpointError(f"{path} was trained on other data than {store.path}; name the store that it was")
        training = TrainingData.of_store(store)
    model = trained_model(config, state, training, device, allow, path=path)
    return Embedder(folder, model.representation, config, training, classifier_file)
