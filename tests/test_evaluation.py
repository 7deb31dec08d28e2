"""kNN and linear evaluation against scikit-learn and against cases with a known answer."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from view_cases import STREAMS, to_layout, true_stream

from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.evaluation import (
    EvalConfig,
    FinetuneConfig,
    FrozenFeatures,
    finetune,
    frozen_features,
    knn_evaluate,
    knn_predict,
    linear,
    linear_evaluate,
    represent,
)
from fastmc.reference import augment as reference
from fastmc.skeleton import NTU25


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


def test_top5_counts_the_right_label_among_the_five_highest(monkeypatch):
    f = blobs(spread=2.0, classes=9)
    classifier = torch.nn.Linear(12, 9)
    monkeypatch.setattr(linear, "train_linear", lambda *args, **kwargs: classifier)
    scores = classifier(f.test).detach().numpy()
    want = {f"linear_top{k}": 100 * top_k_accuracy_score(f.test_labels.numpy(), scores, k=k) for k in (1, 5)}
    assert linear_evaluate(f, 9, EvalConfig()) == pytest.approx(want)


@pytest.fixture
def encoder_and_store(data_root):
    torch.manual_seed(0)
    store = PackedStore.open(data_root / "small")
    return BiGRU(BiGRUConfig(encoder="1x8"), ClipShape(25, 2)), ResidentStore(store), store


def test_frozen_features_are_the_encoder_s_of_the_named_crops(encoder_and_store):
    encoder, resident, store = encoder_and_store
    encoder(torch.randn(8, 16, 150))  # running statistics that are not the initial ones
    train, test = (torch.from_numpy(ids) for ids in store.split("xsub"))
    config = EvalConfig(train_crops=2)
    assert encoder.training
    f = frozen_features(encoder, resident, train, test, "joint", config, frames=16, seed=3)
    assert encoder.training, "the mode is given back"
    assert f.train.shape == (len(train), 16)
    assert f.train_crops.shape == (2, len(train), 16)
    assert torch.equal(f.test_labels, torch.from_numpy(store.label[test.numpy()]).long())
    assert not torch.equal(f.train_crops[0], f.train_crops[1])
    again = frozen_features(encoder, resident, train, test, "joint", config, frames=16, seed=3)
    assert torch.equal(f.train_crops, again.train_crops)
    without = frozen_features(encoder, resident, train, test, "joint", config, frames=16, crops=0)
    assert without.train_crops.shape[0] == 0
    assert torch.equal(without.train, f.train)

    clip = torch.zeros(store.num_frames[test[0]], 2, 25, 3)
    clip[:, : store.num_bodies[test[0]]] = torch.from_numpy(store.clip(int(test[0])).copy())
    length = int(len(clip) * 0.95)
    start = min(int((len(clip) - length + 1) * 0.5), len(clip) - length)
    x = reference.temporal_crop_resize(clip, start, length, 16)
    want = encoder.eval().represent(to_layout(x)[None])
    torch.testing.assert_close(f.test[:1], want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stream", STREAMS)
def test_the_encoder_reads_its_own_stream(encoder_and_store, stream):
    encoder, resident, store = encoder_and_store
    ids = torch.tensor([4, 9])  # of two bodies
    span = {"ratio": torch.ones(2), "position": torch.zeros(2)}
    found = represent(encoder, resident, ids, stream, frames=16, **span)
    for n, clip in enumerate(store.clip(int(i)) for i in ids):
        x = reference.temporal_crop_resize(torch.from_numpy(clip.copy()), 0, len(clip), 16)
        with torch.no_grad():
            want = encoder.eval().represent(to_layout(true_stream(x, stream, NTU25))[None])
        torch.testing.assert_close(found[n : n + 1], want, atol=1e-5, rtol=0)


def test_representations_do_not_depend_on_the_batch_size(encoder_and_store):
    encoder, resident, _ = encoder_and_store
    ids = torch.arange(len(resident))
    ratio, position = torch.rand(2, len(ids))
    whole, small = (
        represent(encoder, resident, ids, "joint", frames=16, ratio=ratio, position=position, batch_size=size)
        for size in (256, 5)
    )
    torch.testing.assert_close(whole, small, atol=1e-6, rtol=0)


def test_linear_evaluation_repeats_bit_for_bit_and_leaves_the_global_generator_alone():
    f = blobs(spread=2.0)
    state = torch.get_rng_state()
    assert linear_evaluate(f, 6, EvalConfig(linear_epochs=3)) == linear_evaluate(f, 6, EvalConfig(linear_epochs=3))
    assert torch.equal(state, torch.get_rng_state())


def test_a_linear_classifier_that_is_not_finite_is_an_error():
    """It would be saved, and find the same class for every clip."""
    with pytest.raises(ValueError, match=r"not finite after 3 epochs at a rate of 1e\+38: .*--linear-lr may help"):
        linear_evaluate(blobs(spread=2.0), 6, EvalConfig(linear_epochs=3, linear_lr=1e38))


def test_clips_without_a_label_are_refused_by_number(encoder_and_store):
    encoder, resident, store = encoder_and_store
    train, test = (torch.from_numpy(ids) for ids in store.split("xsub"))
    fault = f"train_labels: 1 of {len(train)} clips have no label"
    resident.label[train[0]] = -1
    with pytest.raises(ValueError, match=fault):
        frozen_features(encoder, resident, train, test, "joint", EvalConfig(), frames=8, crops=0)
    with pytest.raises(ValueError, match="labels: 1 of 3 clips have no label"):
        knn_predict(torch.eye(3), torch.tensor([0, -1, 1]), torch.eye(3))
    with pytest.raises(ValueError, match=f"train_ids: 1 of {len(train)} clips have no label"):
        finetune(encoder, resident, train, 3, "joint", FinetuneConfig(), frames=8)
