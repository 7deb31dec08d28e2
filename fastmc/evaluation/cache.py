"""Features that are kept: DIR/KEY/ with train.npy, test.npy and crops.npy, and features.json that says what made them.

Every file is written beside and renamed, and counts only once features.json has its checksum. What is damaged, or was
cut off, is computed anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastmc.data.placed.resident import map_frames
from fastmc.evaluation.digest import weights_digest
from fastmc.evaluation.features import FeatureSource, FrozenFeatures
from fastmc.files import open_file, read_text, sum_of, summed_file, temporary_beside, write_json, writing
from fastmc.progress import progress_bar
from fastmc.reading import explain

log = logging.getLogger("fastmc")
ABOUT = "features.json"
NOT_FINITE = (
    "the encoder's features of these clips are not finite: a clip's coordinates or the weights are not, or too large; "
    "python -m train.prepare info STORE --verify checks the clips"
)


class FeatureCache:
    """The kept features of one source.

    Entries of other weights in the same role are removed with the first that is written, so that the folder does not
    grow with the checkpoints of a run.

    Args:
        folder: of all entries.
        source: what computes the features.
        store_checksum: of the frames of its store.
        protocol: name of the split, for the record.
        role: which of the encoders of the folder the source's is: "trained" or "untrained".
    """

    def __init__(
        self, folder: Path, source: FeatureSource, *, store_checksum: str, protocol: str, role: str = "trained"
    ) -> None:
        assert isinstance(source.encoder, nn.Module)
        self.folder, self.source = folder, source
        self.about: dict[str, Any] = {
            "role": role,
            "weights": weights_digest(source.encoder),
            "store": store_checksum,
            "protocol": protocol,
            "clips": clips_digest(source),
            "stream": source.stream,
            "frames": source.frames,
            "frames_dtype": str(source.store.dtype).removeprefix("torch."),
            "test_crop": source.config.test_crop,
            "train_crop_min": source.config.train_crop_min,
            "seed": source.seed,
        }
        key = hashlib.blake2b(json.dumps(self.about, sort_keys=True).encode(), digest_size=16).hexdigest()
        self.entry = folder / key
        self._computed = 0

    def features(self, crops: int, *, progress: bool = False) -> FrozenFeatures:
        """All features, with ``crops`` random crops; what is not there is computed and kept. One line in the log."""
        source, self._computed = self.source, 0
        clips = len(source.test_ids) + (1 + crops) * len(source.train_ids)
        with tqdm(total=clips, disable=not progress, **progress_bar("clip", "features")) as bar:
            test, train = self._get("test", source.test, bar.update), self._get("train", source.train, bar.update)
            train_crops = self._get_crops(crops, bar.update) if crops else train.new_empty(0, *train.shape)
        self._say()
        return FrozenFeatures(train, train_crops, source.train_labels, test, source.test_labels)

    def keep(self, features: FrozenFeatures) -> None:
        """Keep features that several ranks have computed together, which none of them can take from here by itself."""
        for name, kept in (("test", features.test), ("train", features.train), ("crops", features.train_crops)):
            if kept.numel():
                with self._written(name, tuple(kept.shape)) as write:
                    write(kept.cpu().numpy())
        self._say()

    def test(self, *, progress: bool = False) -> Tensor:
        """(N_test, H) of the test clips alone."""
        self._computed = 0
        total = len(self.source.test_ids)
        with tqdm(total=total, disable=not progress, **progress_bar("clip", "features")) as bar:
            found = self._get("test", self.source.test, bar.update)
        self._say()
        return found

    def _say(self) -> None:
        if self._computed:
            log.info("features: computed and kept, %.1f MB in %s", self._computed / 1e6, self.entry)
        else:
            log.info("features: from cache %s", self.entry)

    def _get(self, name: str, compute: Callable[[Callable[[int], object]], Tensor], advance: Callable) -> Tensor:
        """The kept array, or a computed one, which is kept from now on."""
        kept = self._read(name)
        if kept is None:
            found = compute(advance)
            with self._written(name, tuple(found.shape)) as write:
                write(found.cpu().numpy())
            kept = self._read_again(name)
        else:
            advance(len(kept))
        return self._on_device(kept)

    def _get_crops(self, crops: int, advance: Callable[[int], object]) -> Tensor:
        """(crops, N_train, H). Random crops beyond those that are kept are added to them."""
        kept = self._read("crops")
        there = 0 if kept is None else len(kept)
        advance(min(there, crops) * len(self.source.train_ids))
        if there < crops:
            first = self.source.crop(there, advance)
            with self._written("crops", (crops, *first.shape)) as write:
                for crop in () if kept is None else kept:
                    write(crop)
                write(first.cpu().numpy())
                for number in range(there + 1, crops):
                    write(self.source.crop(number, advance).cpu().numpy())
            kept = self._read_again("crops")
        assert kept is not None
        return self._on_device(kept[:crops])

    def _on_device(self, kept: np.ndarray) -> Tensor:
        """On a CPU the file itself, mapped; on a GPU a copy."""
        return map_frames(kept).to(self.source.store.device)

    def _about(self) -> dict[str, Any]:
        """The content of features.json; that of a new entry if there is none of these features."""
        try:
            found = json.loads(read_text(self.entry / ABOUT))
            if isinstance(found["arrays"], dict) and self.about.items() <= found.items():
                return found
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return {**self.about, "arrays": {}}

    def _read(self, name: str) -> np.ndarray | None:
        """A kept array, memory-mapped; None if it is not there, not as it was written, or not finite."""
        recorded = self._about()["arrays"].get(name)
        path = self.entry / f"{name}.npy"
        if recorded is None:
            return None
        try:
            with open_file(path) as file:
                crc = sum_of(file).crc
            array: np.ndarray = np.load(path, mmap_mode="r")
            whole = [list(array.shape), array.dtype.str, crc] == recorded
        except (OSError, ValueError, EOFError) as error:
            log.warning("%s cannot be read and is computed anew (%s)", path, explain(error))
            return None
        if not whole:
            log.warning("%s is not what was written to it and is computed anew", path)
        elif not _is_finite(array):
            log.warning("%s holds features that are not finite and is computed anew", path)
            whole = False
        return array if whole else None

    def _read_again(self, name: str) -> np.ndarray:
        """What was just written."""
        found = self._read(name)
        if found is None:
            raise OSError(f"{self.entry / name}.npy is not what was written to it a moment ago; does the disk fail?")
        return found

    @contextmanager
    def _written(self, name: str, shape: tuple[int, ...]) -> Iterator[Callable[[np.ndarray], None]]:
        """Within: a function that is given the parts, in order, of a float32 array of this shape, which becomes
        NAME.npy of the entry at the end.

        Raises:
            ValueError: a part is not finite. WriteError: it cannot be written.
        """
        self._remove_stale()
        path = self.entry / f"{name}.npy"
        # Not through a map of the file: a full disk would end the process with a signal.
        with writing(path):
            self.entry.mkdir(parents=True, exist_ok=True)
            with temporary_beside(path) as temporary:
                with summed_file(temporary) as file:
                    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)

                    def write(part: np.ndarray) -> None:
                        if not np.isfinite(part).all():
                            raise ValueError(NOT_FINITE)
                        file.write(np.ascontiguousarray(part, "<f4").data)

                    yield write
                os.replace(temporary, path)
        self._computed += file.sum.size
        about = self._about()
        about["arrays"][name] = [list(shape), "<f4", file.sum.crc]
        about["device"] = str(self.source.store.device)
        write_json(self.entry / ABOUT, about)

    def _remove_stale(self) -> None:
        """Remove the entries of this role's other weights, and what no one can read."""
        for other in self.folder.iterdir() if self.folder.is_dir() else ():
            if other == self.entry or not other.is_dir():
                continue
            try:
                about = json.loads(read_text(other / ABOUT))
                stale = about["role"] == self.about["role"] and about["weights"] != self.about["weights"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # perhaps another process is writing it
            if stale:
                shutil.rmtree(other, ignore_errors=True)


def _is_finite(array: np.ndarray) -> bool:
    """In one pass, without a mask of its size."""
    return not array.size or bool(torch.isfinite(torch.stack(torch.aminmax(map_frames(array)))).all())


def clips_digest(source: FeatureSource) -> str:
    """Which clips train and test: a split may be changed without a change of the frames."""
    digest = hashlib.blake2b(digest_size=16)
    for ids in (source.train_ids, source.test_ids):
        frames, bodies = source.store.num_frames[ids], source.store.num_bodies[ids]
        digest.update(torch.stack((ids, frames, bodies)).cpu().numpy().tobytes())
        digest.update(b";")
    return digest.hexdigest()
