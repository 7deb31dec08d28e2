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
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastmc.data.resident import map_frames
from fastmc.evaluation.digest import weights_digest
from fastmc.evaluation.features import FeatureSource, FrozenFeatures
from fastmc.files import sync_folder, write_json
from fastmc.progress import progress_bar

log = logging.getLogger("fastmc")
ABOUT = "features.json"
CHUNK = 1 << 24


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
            with self._written(name, tuple(found.shape)) as out:
                out[...] = found.cpu().numpy()
            kept = self._read(name)
            if kept is None:
                raise OSError(f"{self.entry / name}.npy cannot be read after it was written: is the disk full?")
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
            with self._written("crops", (crops, *first.shape)) as out:
                if kept is not None:
                    out[:there] = kept
                out[there] = first.cpu().numpy()
                for number in range(there + 1, crops):
                    out[number] = self.source.crop(number, advance).cpu().numpy()
            kept = self._read("crops")
        if kept is None:
            raise OSError(f"{self.entry}/crops.npy cannot be read after it was written: is the disk full?")
        return self._on_device(kept[:crops])

    def _on_device(self, kept: np.ndarray) -> Tensor:
        """On a CPU the file itself, mapped; on a GPU a copy."""
        return map_frames(kept).to(self.source.store.device)

    def _about(self) -> dict[str, Any]:
        """The content of features.json; that of a new entry if there is none of these features."""
        try:
            found = json.loads((self.entry / ABOUT).read_text(encoding="utf-8"))
            if isinstance(found["arrays"], dict) and self.about.items() <= found.items():
                return found
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return {**self.about, "arrays": {}}

    def _read(self, name: str) -> np.ndarray | None:
        """A kept array, memory-mapped; None if it is not there, or not as it was written."""
        recorded = self._about()["arrays"].get(name)
        path = self.entry / f"{name}.npy"
        if recorded is None:
            return None
        try:
            array = np.load(path, mmap_mode="r")
            whole = [list(array.shape), array.dtype.str, _checksum(path)] == recorded
        except (OSError, ValueError, EOFError) as error:
            log.warning("%s cannot be read and is computed anew (%s)", path, error)
            return None
        if not whole:
            log.warning("%s is not what was written to it and is computed anew", path)
        return array if whole else None

    @contextmanager
    def _written(self, name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        """Within: a memory-mapped float32 array of this shape, which becomes NAME.npy of the entry at the end."""
        self._remove_stale()
        self.entry.mkdir(parents=True, exist_ok=True)
        path = self.entry / f"{name}.npy"
        temporary = self.entry / f".{name}-{os.getpid()}.tmp"
        try:
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
            yield array
            array.flush()
            self._computed += array.nbytes
            about, recorded = self._about(), [list(shape), array.dtype.str, _checksum(temporary)]
            os.replace(temporary, path)
            about["arrays"][name] = recorded
            about["device"] = str(self.source.store.device)
            write_json(self.entry / ABOUT, about)
            sync_folder(self.entry)
        finally:
            temporary.unlink(missing_ok=True)

    def _remove_stale(self) -> None:
        """Remove the entries of this role's other weights, and what no one can read."""
        for other in self.folder.iterdir() if self.folder.is_dir() else ():
            if other == self.entry or not other.is_dir():
                continue
            try:
                about = json.loads((other / ABOUT).read_text(encoding="utf-8"))
                stale = about["role"] == self.about["role"] and about["weights"] != self.about["weights"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # perhaps another process is writing it
            if stale:
                shutil.rmtree(other, ignore_errors=True)


def clips_digest(source: FeatureSource) -> str:
    """Which clips train and test: a split may be changed without a change of the frames."""
    digest = hashlib.blake2b(digest_size=16)
    for ids in (source.train_ids, source.test_ids):
        frames, bodies = source.store.num_frames[ids], source.store.num_bodies[ids]
        digest.update(torch.stack((ids, frames, bodies)).cpu().numpy().tobytes())
        digest.update(b";")
    return digest.hexdigest()


def _checksum(path: Path) -> int:
    """CRC-32 of a file."""
    total = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            total = zlib.crc32(chunk, total)
    return total
