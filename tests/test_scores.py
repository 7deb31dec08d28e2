"""Accuracies of predictions, against scikit-learn and plain loops; their fusion; the picture of the confusions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, recall_score, top_k_accuracy_score

from fastmc.evaluation import Predictions, fuse
from fastmc.figures.confusion import draw_confusion


def scores_of(clips: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (clips,), generator=generator)
    labels[:classes] = torch.arange(classes)
    scores = torch.randn(clips, classes, generator=generator)
    scores[torch.arange(clips), labels] += 1.5
    return scores, labels, tuple(f"class {n}" for n in range(classes))


@pytest.mark.parametrize("classes", [3, 9, 60])
def test_accuracies_are_those_of_scikit_learn(classes):
    scores, labels, names = scores_of(500, classes)
    found = Predictions.of_scores(scores, labels, names)
    truth, best = labels.numpy(), scores.argmax(dim=1).numpy()
    assert found.top1 == pytest.approx(100 * (best == truth).mean())
    k = min(5, classes)
    want = 100.0 if k == classes else 100 * top_k_accuracy_score(truth, scores.numpy(), k=k, labels=range(classes))
    assert found.top5 == pytest.approx(want)
    assert found.confusion.tolist() == confusion_matrix(truth, best, labels=range(classes)).tolist()
    recall = recall_score(truth, best, average=None, labels=range(classes), zero_division=0)
    assert list(found.per_class.values()) == pytest.approx(list(100 * recall))
    assert list(found.per_class) == list(names)


def test_a_class_without_test_clips_has_no_accuracy():
    scores = torch.eye(3)[[0, 2, 2]]
    found = Predictions.of_scores(scores, torch.tensor([0, 2, 0]), ("a", "b", "c"))
    assert found.per_class == {"a": 50.0, "b": None, "c": 100.0}
    assert found.confusion.tolist() == [[1, 0, 1], [0, 0, 0], [0, 0, 1]]
    found = Predictions.of_classes(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 1]), ("wave", "sit", "wave"))
    assert found.per_class == {"wave (0)": 100.0, "sit": 50.0, "wave (2)": None}
    labels = torch.arange(12) % 8
    found = Predictions.of_classes(labels, labels, tuple("abcdefgh"))
    assert found.top1 == 100.0 and found.top5 is None, "of one class a clip"


def test_predictions_refuse_what_does_not_belong_together():
    with pytest.raises(ValueError, match="3 classes, there are 2 names"):
        Predictions.of_scores(torch.zeros(4, 3), torch.zeros(4), ("a", "b"))
    with pytest.raises(ValueError, match=r"with N >= 1, got \(0, 1\) and \(0,\)"):
        Predictions(np.zeros(0, int), np.zeros((0, 1), int), ("a",))


def test_fusion_is_a_weighted_sum_of_probabilities():
    streams = [scores_of(20, 6, seed)[0] for seed in range(3)]
    weights = (0.6, 0.0, 2.0)
    got, equal = fuse(streams, weights), fuse(streams)
    for n in range(20):
        want, plain = np.zeros(6), np.zeros(6)
        for weight, stream in zip(weights, streams, strict=True):
            e = np.exp(stream[n].double().numpy())
            want, plain = want + weight * e / e.sum(), plain + e / e.sum()
        assert got[n].tolist() == pytest.approx(want.tolist(), rel=1e-5)
        assert equal[n].tolist() == pytest.approx(plain.tolist(), rel=1e-5)
    shifted = [stream + 100.0 * n for n, stream in enumerate(streams)]
    torch.testing.assert_close(fuse(shifted), equal, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "weights, message",
    [((1.0,), "one for each of the 2 runs"), ((0.0, 0.0), "all 0"), ((1.0, -1.0), "weights must be >= 0")],
)
def test_fusion_refuses_nonsense(weights, message):
    with pytest.raises(ValueError, match=message):
        fuse([torch.zeros(2, 3)] * 2, weights)
    with pytest.raises(ValueError, match="differ in shape"):
        fuse([torch.zeros(2, 3), torch.zeros(2, 4)])


@pytest.mark.parametrize("classes", [3, 60, 120])
def test_the_picture_shows_each_row_in_percent(classes):
    scores, labels, _ = scores_of(40 * classes, classes)
    names = tuple(f"put on a hat or a cap, variant number {n}" for n in range(classes))
    found = Predictions.of_scores(scores, labels, names)
    figure = draw_confusion(found, "small xsub, linear")
    axes, bar = figure.axes
    shown = axes.images[0].get_array()
    assert np.asarray(shown).sum(axis=1) == pytest.approx(100 * np.ones(classes))
    assert np.diag(shown).tolist() == pytest.approx(list(found.per_class.values()))
    assert axes.get_title() == f"small xsub, linear: top-1 {found.top1:.1f} %"
    assert "(%)" in bar.get_ylabel()
