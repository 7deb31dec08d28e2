"""Fine-tuning: a copy of the encoder learns with a linear classifier, from all labels or from few (section 4.2)."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Generator, Sequence
from contextlib import closing
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fastmc.checks import check_number
from fastmc.data.placed.resident import PlacedStore
from fastmc.encoders.base import Encoder
from fastmc.evaluation.config import FinetuneConfig
from fastmc.evaluation.features import check_labels, represent
from fastmc.evaluation.linear import linear_scores, new_classifier
from fastmc.optim import SGD, dropped
from fastmc.progress import progress_bar
from fastmc.random import default_generators_kept, key_default_generators
from fastmc.ranks import shares
from fastmc.views.clips import PackedClips, Stream
from fastmc.views.make import crops_of

CLASSIFIER_STD = 0.01  # of the classifier's initial weights: released code of CMD


def finetune(
    encoder: Encoder,
    store: PlacedStore,
    train_ids: Tensor,
    num_classes: int,
    stream: Stream,
    config: FinetuneConfig,
    *,
    frames: int,
    seed: int = 0,
    progress: bool = False,
    what: str = "fine-tuning",
) -> tuple[Encoder, nn.Linear]:
    """Train a copy of the encoder together with a new linear classifier; the encoder itself stays as it is.

    SGD with momentum 0.9; each epoch sees one random temporal crop of every clip. The input norm learns and normalises
    by the batch, as it did in pre-training and as released code fine-tunes (``model.train()``), so that its statistics
    follow data of another set. A batch of very few clips would spoil them: batches differ by one clip at most.

    On a CPU it repeats bit for bit, and the global random state is left alone.

    Args:
        train_ids: (N,) int64, clips of the store, on its device.
        frames: T.
        seed: of the classifier's initial weights, the order of the clips, their crops, and what the encoder draws by
            itself (dropout).
        what: says on the progress bar what is done.

    Raises:
        ValueError: the loss is not finite, or a clip has no label.
    """
    check_labels("train_ids", store.label[train_ids])
    generator = torch.Generator().manual_seed(seed)
    device = store.device
    encoder = copy.deepcopy(encoder).train().requires_grad_()
    classifier = new_classifier(encoder.representation_dim, num_classes, generator)
    with torch.no_grad():
        classifier.weight.normal_(std=CLASSIFIER_STD, generator=generator)
        classifier.bias.zero_()
    classifier = classifier.to(device)
    parameters = [*encoder.parameters(), *classifier.parameters()]  # the head gets no gradient and stays as it is
    optimizer = SGD(parameters, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    batches_per_epoch = -(-len(train_ids) // config.batch_size)
    sizes = shares(len(train_ids), batches_per_epoch)
    steps = config.epochs * batches_per_epoch
    bar = tqdm(total=steps, disable=not progress, **progress_bar("step", what))
    with default_generators_kept(device), bar:
        key_default_generators(device, "finetune", seed)
        for epoch in range(config.epochs):
            optimizer.param_groups[0]["lr"] = dropped(config.lr, config.milestones, epoch)
            order = train_ids[torch.randperm(len(train_ids), generator=generator).to(device)]
            u = torch.rand(2, len(order), generator=generator).to(device)
            ratio = config.train_crop_min + (1 - config.train_crop_min) * u[0]
            crops = zip(ratio.split(sizes), u[1].split(sizes), strict=True)
            with closing(batches_of_sizes(store, order, sizes)) as batches:
                for (ids, clips), (share, place) in zip(batches, crops, strict=True):
                    x = crops_of(clips, share, place, store.skeleton, frames, stream, encoder.shape.centre_joint)
                    loss = F.cross_entropy(classifier(encoder.represent(x)), store.label[ids])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    bar.update()
            if not torch.isfinite(loss):
                raise ValueError(f"{what}: the loss is {loss.item()} after epoch {epoch + 1}; a smaller lr may help")
    return encoder.eval(), classifier


def batches_of_sizes(store: PlacedStore, order: Tensor, sizes: Sequence[int]) -> Generator[tuple[Tensor, PackedClips]]:
    """The clips of ``order`` (n,) int64 in batches of these sizes, as `PlacedStore.batches` gives them."""
    for size, same in groupby(sizes):
        count = size * len(list(same))
        yield from store.batches(order[:count], size)
        order = order[count:]


def finetuned_scores(
    encoder: Encoder,
    classifier: nn.Linear,
    store: PlacedStore,
    ids: Tensor,
    stream: Stream,
    config: FinetuneConfig,
    *,
    frames: int,
) -> Tensor:
    """Scores (N, C) before the softmax of the clips' centre crops."""
    ratio = torch.full((len(ids),), config.test_crop, device=store.device)
    position = torch.full_like(ratio, 0.5)
    h = represent(encoder, store, ids, stream, frames=frames, ratio=ratio, position=position)
    return linear_scores(classifier, h)


def labelled_sample(
    labels: np.ndarray, names: Sequence[str], share: float, num_classes: int, *, key: str
) -> np.ndarray:
    """A class-balanced sample of labelled clips: places in ``labels``, int64 and increasing.

    Of every class round(share * N / num_classes) clips, but one at least, and all of a class that has fewer. Those are
    taken whose names come first by their hash with ``key``: the sample is the same on every machine and with every
    version of any library, and under one key a smaller share is a part of a larger one.

    Args:
        labels: (N,) classes. names: N unique names. share: in (0, 1].
    """
    check_number("share", share, above=0, at_most=1)
    count = max(1, round(share * len(labels) / num_classes))
    drawn = sorted(range(len(labels)), key=lambda n: hashlib.blake2b(f"{key}/{names[n]}".encode()).digest())
    by_class: dict[int, list[int]] = {}
    for n in drawn:
        by_class.setdefault(int(labels[n]), []).append(n)
    return np.array(sorted(n for members in by_class.values() for n in members[:count]), dtype=np.int64)
