"""kNN and linear evaluation against scikit-learn and against cases with a known answer."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from fastmc.evaluation import EvalConfig, FrozenFeatures, knn_evaluate, knn_predict, linear_evaluate


def blobs(spread: float, classes=6, per_class=40, dim=12, seed=0) -> FrozenFeatures:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=generator)
    labels = torch.arange(classes).repeat_interleave(per_class)

    def sample() -> torch.Tensor:
        return centres[labels] + spread * torch.randn(len(labels), dim, generator=generator)

    return FrozenFeatures(sample(), torch.stack([sample(), sample()]), labels, sample(), labels)


@pytest.mark.parametrize("tile", [1, 7, 1024])
def test_knn_equals_scikit_learn(tile):
    f = blobs(spread=1.5)
    truth = KNeighborsClassifier(1, metric="cosine").fit(f.train.numpy(), f.train_labels.numpy())
    got = knn_predict(f.train, f.train_labels, f.test, 1, tile=tile)
    assert got.tolist() == truth.predict(f.test.numpy()).tolist()


def test_knn_majority_and_ties():
    train = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, -0.2], [0.0, 1.0]])
    labels = torch.tensor([2, 1, 1, 0])
    query = torch.tensor([[1.0, 0.0]])
    assert knn_predict(train, labels, query, 1).item() == 2
    assert knn_predict(train, labels, query, 2).item() == 2, "a tie goes to the nearest"
    assert knn_predict(train, labels, query, 3).item() == 1, "the majority wins"
    with pytest.raises(ValueError, match="k must be"):
        knn_predict(train, labels, query, 5)


def test_separable_features_are_classified():
    f = blobs(spread=0.05)
    assert knn_evaluate(f, EvalConfig()) == {"knn_top1": 100.0}
    assert linear_evaluate(f, 6, EvalConfig(linear_epochs=20)) == {"linear_top1": 100.0, "linear_top5": 100.0}


def test_features_without_information_give_chance():
    f = blobs(spread=0.05)
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(t.shape, generator=generator) for t in (f.train, f.train_crops, f.test)]
    f = FrozenFeatures(noise[0], noise[1], f.train_labels, noise[2], f.test_labels)
    assert knn_evaluate(f, EvalConfig())["knn_top1"] < 35  # chance is 16.7
    result = linear_evaluate(f, 6, EvalConfig(linear_epochs=5))
    assert result["linear_top1"] < 35
    assert result["linear_top5"] > result["linear_top1"]


def test_linear_evaluation_repeats_bit_for_bit_and_leaves_the_global_generator_alone():
    f = blobs(spread=2.0)
    state = torch.get_rng_state()
    assert linear_evaluate(f, 6, EvalConfig(linear_epochs=3)) == linear_evaluate(f, 6, EvalConfig(linear_epochs=3))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("setting", [{"knn_k": 0}, {"train_crops": 0}, {"test_crop": 1.5}, {"train_crop_min": 0.0}])
def test_config_refuses_nonsense(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        EvalConfig(**setting)
