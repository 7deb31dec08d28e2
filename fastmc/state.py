"""What a checkpoint holds: all that a run continues from, and what a user of its encoder has to know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmc import checkpoint
from fastmc.checkpoint import CheckpointError
from fastmc.data.store import PackedStore
from fastmc.skeleton import Skeleton


@dataclass(frozen=True)
class TrainingData:
    """What an encoder expects of its clips, since its training data were so: at most ``max_bodies`` bodies, and their
    frame of reference, in words (`fastmc.data.packing.NORMALISATION`, or none, or that of another code)."""

    skeleton: Skeleton
    max_bodies: int
    class_names: tuple[str, ...]
    fps: float
    normalisation: str
    dataset: str = ""

    @classmethod
    def of_store(cls, store: PackedStore) -> TrainingData:
        return cls(
            store.skeleton, store.max_bodies, store.class_names, store.fps, store.normalisation, dataset=store.name
        )

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any]) -> TrainingData:
        names = {f.name for f in dataclasses.fields(cls)}
        values = {name: value for name, value in plain.items() if name in names}
        skeleton, class_names = Skeleton.from_dict(plain["skeleton"]), tuple(plain["class_names"])
        return cls(**values | {"skeleton": skeleton, "class_names": class_names})

    def to_plain(self) -> dict[str, Any]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return values | {"skeleton": self.skeleton.to_dict(), "class_names": list(self.class_names)}


class Position(NamedTuple):
    """Where a run stands: ``batch`` of ``epoch`` is next, ``step`` batches are done, ``seconds`` of the epoch."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    seconds: float = 0.0


@dataclass
class RunState:
    """The state of a run at one moment.

    Attributes:
        config: plain settings. model: tensors by name. optimizer: of PyTorch. position: see there.
        dataset_checksum: of the frames it was trained on; None where another code trained it.
        data: None where an older fastmc or another code wrote the checkpoint.
        sums: of the epoch's metrics so far; scaling: of gradients in float16.
        metrics: rows of metrics.csv; None where an older fastmc wrote the checkpoint.
        evaluated: name of the encoder that is evaluated, with which the names of its tensors begin.
        ranks: how many processes trained it together.
        clips: (N,) int64, ids of the clips that train it; None where an older fastmc or another code wrote the
            checkpoint.
        before: ids of the clips that trained the weights it started from (--init-from), by the checksum of their
            frames; None where these did not say.
    """

    config: dict[str, Any]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    sums: Tensor
    position: Position
    dataset_checksum: str | None
    data: TrainingData | None
    wall_seconds: float = 0.0
    metrics: list[dict[str, Any]] | None = None
    scaling: Tensor | None = None
    evaluated: str = "query"
    ranks: int = 1
    clips: Tensor | None = None
    before: dict[str, Tensor] | None = None

    @classmethod
    def read(cls, folder: Path, which: str = "last") -> tuple[Path, RunState]:
        """A checkpoint below ``folder``, on the CPU, and its path: the newest whole one, or as `checkpoint.load`.

        Raises:
            CheckpointError: there is none, or it holds something else.
        """
        path, plain = checkpoint.load(folder, which)
        return path, cls.of_plain(plain, path)

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any], path: Path) -> RunState:
        """CheckpointError if what the file at ``path`` holds is none."""
        try:
            names = {f.name for f in dataclasses.fields(cls)}
            values = {name: value for name, value in plain.items() if name in names}
            data = None if plain.get("data") is None else TrainingData.of_plain(plain["data"])
            before = plain.get("before")
            for ids in (plain.get("clips"), *(() if before is None else before.values())):
                if ids is not None and (not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.dim() != 1):
                    raise ValueError("ids of clips must be a tensor (N,) of int64")
            return cls(**values | {"position": Position(**plain["position"]), "data": data})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{path} is no state of a run of fastmc: {error!r}") from error

    def to_plain(self) -> dict[str, Any]:
        """What is written: tensors and plain types."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values |= {"position": self.position._asdict(), "data": None if self.data is None else self.data.to_plain()}
        return {name: value for name, value in values.items() if value is not None or name == "dataset_checksum"}

    def training_data(self, path: Path) -> TrainingData:
        """CheckpointError if the checkpoint, at ``path``, does not say."""
        if self.data is None:
            raise CheckpointError(
                f"{path} does not describe the data it was trained on (an older fastmc wrote it, or it was imported); "
                "name their packed store: fastmc.load(DIR, data=STORE), or --data STORE"
            )
        return self.data

    def may_be_of(self, checksum: str) -> bool:
        """Whether it was trained on the data with this checksum, as far as it says."""
        return self.dataset_checksum in (checksum, None)

    def check_dataset(self, checksum: str, path: Path) -> None:
        """CheckpointError if the state was trained on other data than those with this checksum. What came from other
        code does not say."""
        if not self.may_be_of(checksum):
            raise CheckpointError(
                f"{path} was trained on other data: frames of checksum {self.dataset_checksum}, now {checksum}. "
                "Give the --data-root of the data it was trained on, or start a new run with --out"
            )

    def check_clips(self, clips: Tensor, path: Path) -> None:
        """CheckpointError if other clips than these (N,) of the same frames trained it: to go on would train on clips
        that are tested since, and say nothing of it."""
        if self.clips is None or torch.equal(self.clips.cpu(), clips.cpu()):
            return
        both = int(torch.isin(self.clips.cpu(), clips.cpu()).sum())
        raise CheckpointError(
            f"the split of the data has changed: {path} was trained on {len(self.clips)} clips, the protocol has "
            f"{len(clips)} training clips now, {both} of them the same. Prepare the split that it was trained on "
            "again, or start a new run with --out or --restart"
        )

    @property
    def seen(self) -> dict[str, Tensor] | None:
        """Ids of all clips that trained these weights, and those they started from, by the checksum of their frames;
        None where that is not known."""
        if self.clips is None or self.before is None or self.dataset_checksum is None:
            return None
        earlier = self.before.get(self.dataset_checksum, self.clips[:0])
        return {**self.before, self.dataset_checksum: torch.cat((earlier, self.clips)).unique()}

    def encoder_weights(self) -> dict[str, Tensor]:
        """Of the encoder that is evaluated, under its own names."""
        prefix = f"{self.evaluated}."
        return {k.removeprefix(prefix): v for k, v in self.model.items() if k.startswith(prefix)}
