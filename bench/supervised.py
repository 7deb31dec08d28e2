"""What the encoder reaches with labels, an upper reference for a data set: python -m bench.supervised --help.

The encoder of the run's config and a linear classifier, trained end to end on views of the basic and of the strong
augmentation, and tested on centre crops as in linear evaluation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fastmc.budget import fitted
from fastmc.build import build_model
from fastmc.config import Config
from fastmc.data.placed.order import epoch_order
from fastmc.data.placed.placement import place_store
from fastmc.data.placed.resident import PlacedStore
from fastmc.data.store import PackedStore
from fastmc.evaluation import represent
from fastmc.files import write_json
from fastmc.methods.base import Batch, Method, View
from fastmc.progress import progress_bar
from fastmc.views.draw import BASIC_QUERY, STRONG
from train.command.datasets import open_dataset
from train.command.errors import run_command
from train.command.parse import parse
from train.engine.optimizer import build_optimizer
from train.runs.folder import read_json, run_settings


@dataclass(frozen=True)
class Supervised:
    """Train the encoder with labels, from several seeds, and print its top-1 accuracy.

    All other flags are those of train.run.
    Example: python -m bench.supervised --dataset synthetic --preset tiny --protocol xview
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    """One run each."""
    keep: Path | None = None
    """Folder of a file a seed with its accuracy; what lies there of the same settings and clips is only read."""


def main(args: Sequence[str] | None = None) -> int:
    def command(args: Sequence[str]) -> None:
        _train(*tyro.cli(Supervised, prog="python -m bench.supervised", args=args, return_unknown_args=True))

    return run_command(command, args, stopped="stopped")


def _train(settings: Supervised, flags: Sequence[str]) -> None:
    config = parse(flags)
    store = open_dataset(config.dataset, config.data_root)
    config = replace(config, protocol=config.protocol or store.protocols[0])
    config = fitted(config, len(store.split(config.protocol or "")[0]))
    accuracies = [_accuracy(replace(config, seed=seed), store, settings.keep) for seed in settings.seeds]
    mean = sum(accuracies) / len(accuracies)
    print(f"{store.name} {config.protocol}, supervised top-1: {mean:.1f} ({', '.join(f'{a:.1f}' for a in accuracies)})")


def _accuracy(config: Config, store: PackedStore, keep: Path | None) -> float:
    if keep is None:
        return supervised_accuracy(config, store)
    known = Known(keep, config, store.split_digest(config.protocol or ""))
    if (accuracy := known.read()) is None:
        accuracy = supervised_accuracy(config, store)
        known.write(accuracy)
    return accuracy


class Known(NamedTuple):
    """The accuracy of one run, kept in a file beside what it is of.

    Attributes:
        folder: where the file of the run's preset and seed lies.
        config: of the run, its steps fitted to the set.
        data: digest of the clips and labels.
    """

    folder: Path
    config: Config
    data: str

    @property
    def path(self) -> Path:
        return self.folder / f"{self.config.preset}-supervised-seed{self.config.seed}.json"

    @property
    def _is_of(self) -> dict[str, Any]:
        settings = run_settings(self.config)
        for name in ("given", "unfitted"):  # how the others came about
            del settings[name]
        return {"config": settings, "data": self.data}

    def read(self) -> float | None:
        """Percent; None where there is no file, or one of other settings or clips."""
        found = read_json(self.path) or {}
        return found.pop("top1") if found.keys() == {*self._is_of, "top1"} and self._is_same(found) else None

    def _is_same(self, found: dict[str, Any]) -> bool:
        return all(json.loads(json.dumps(value)) == found[key] for key, value in self._is_of.items())

    def write(self, accuracy: float) -> None:
        """``accuracy`` in percent."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"top1": accuracy, **self._is_of})


VIEWS = (View(BASIC_QUERY), View(STRONG, strong=True))


def supervised_accuracy(config: Config, store: PackedStore) -> float:
    """Top-1 accuracy on the test clips, percent, after the last epoch."""
    assert config.protocol is not None
    placed, _ = place_store(store, "cpu", config.data)
    train, test = (torch.from_numpy(ids) for ids in store.split(config.protocol))
    model = build_model(config, store, torch.device("cpu"))
    encoder = model.representation
    torch.manual_seed(config.seed)
    classifier = nn.Linear(encoder.representation_dim, store.num_classes)
    parameters = [*encoder.parameters(), *classifier.parameters()]
    optimizer = build_optimizer(config.optim, parameters)
    model.train()
    step = 0
    for epoch in tqdm(range(config.optim.epochs), **progress_bar("epoch", "supervised")):
        for group in optimizer.param_groups:
            group["lr"] = config.optim.lr_at(epoch + 0.5)
        for ids in epoch_order(train, config.seed, epoch).split(config.optim.batch_size):
            loss = _loss(model, classifier, placed, ids, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    with torch.no_grad():
        ratio, position = torch.full((len(test),), config.evaluation.test_crop), torch.full((len(test),), 0.5)
        features = represent(encoder, placed, test, config.stream, frames=config.frames, ratio=ratio, position=position)
        hit = classifier(features).argmax(dim=1) == placed.label[test]
    return 100 * hit.double().mean().item()


def _loss(model: Method, classifier: nn.Linear, placed: PlacedStore, ids: Tensor, step: int) -> Tensor:
    batch = Batch(model.setup, VIEWS, placed.select(ids), ids, step)
    x = batch.make(*VIEWS)
    scores = classifier(model.representation.represent(x.flatten(0, 1), views=2))
    return F.cross_entropy(scores, placed.label[ids].repeat(2))


if __name__ == "__main__":
    sys.exit(main())
