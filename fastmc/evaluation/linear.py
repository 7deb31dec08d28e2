"""A linear classifier of frozen features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fastmc.evaluation.config import EvalConfig
from fastmc.evaluation.features import FrozenFeatures
from fastmc.optim import SGD, dropped
from fastmc.progress import progress_bar

TILE = 4096  # features that are classified at once


def linear_evaluate(
    features: FrozenFeatures, num_classes: int, config: EvalConfig, *, seed: int = 0, progress: bool = False
) -> dict[str, float]:
    """Linear evaluation: top-1 and top-5 accuracy in percent of a linear classifier on the frozen features."""
    classifier = train_linear(features, num_classes, config, seed=seed, progress=progress)
    ranked = linear_scores(classifier, features.test).topk(min(5, num_classes), dim=1).indices
    hit = (ranked == features.test_labels[:, None]).double()
    return {f"linear_top{k}": 100.0 * hit[:, :k].sum(dim=1).mean().item() for k in (1, 5)}


@torch.no_grad()
def linear_scores(classifier: nn.Linear, features: Tensor) -> Tensor:
    """Scores (N, C) before the softmax of features (N, H), which may be memory-mapped, where the classifier is."""
    device = classifier.weight.device
    return torch.cat([classifier(part.to(device)) for part in features.split(TILE)])


def train_linear(
    features: FrozenFeatures, num_classes: int, config: EvalConfig, *, seed: int = 0, progress: bool = False
) -> nn.Linear:
    """Train the linear classifier: SGD with momentum 0.9; each epoch sees one random crop of every training clip.

    Raises:
        ValueError: its weights are not finite in the end.
    """
    crops = features.train_crops if len(features.train_crops) else features.train[None]
    device, clips = crops.device, crops.shape[1]
    generator = torch.Generator().manual_seed(seed)
    classifier = new_classifier(crops.shape[2], num_classes, generator).to(device)
    optimizer = SGD(classifier.parameters(), lr=config.linear_lr, momentum=0.9)
    for epoch in tqdm(range(config.linear_epochs), disable=not progress, **progress_bar("epoch", "linear classifier")):
        optimizer.param_groups[0]["lr"] = dropped(config.linear_lr, config.linear_milestones, epoch)
        order = torch.randperm(clips, generator=generator).to(device)
        crop = torch.randint(len(crops), (clips,), generator=generator).to(device)
        for batch in order.split(config.linear_batch_size):
            loss = F.cross_entropy(classifier(crops[crop[batch], batch]), features.train_labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if not all(torch.isfinite(parameter).all() for parameter in classifier.parameters()):
        raise ValueError(
            f"the linear classifier's weights are not finite after {config.linear_epochs} epochs at a rate of "
            f"{config.linear_lr:g}: the features are not, or a smaller --linear-lr may help"
        )
    return classifier


def new_classifier(size: int, num_classes: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with the initial weights that nn.Linear has, drawn from this generator."""
    classifier = unset_classifier(size, num_classes)
    bound = size**-0.5
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return classifier


def unset_classifier(size: int, num_classes: int) -> nn.Linear:
    """A linear layer whose weights are still to be set; no random state moves. (nn.utils.skip_init imports sympy.)"""
    with torch.random.fork_rng(devices=[]):
        return nn.Linear(size, num_classes)
