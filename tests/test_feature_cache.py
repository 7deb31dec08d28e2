"""Features are computed once: what is kept, what is taken, what is thrown away."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from fastmc.data.placed.resident import ResidentStore
from fastmc.data.store import PackedStore
from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.evaluation import EvalConfig, FeatureCache, FeatureSource, frozen_features, weights_digest
from fastmc.evaluation.cache import ABOUT


class Counting(BiGRU):
    """Counts the clips that it encodes."""

    clips = 0

    def represent(self, x, views=1):
        self.clips += len(x)
        return super().represent(x, views)


@pytest.fixture
def source(data_root) -> FeatureSource:
    torch.manual_seed(0)
    store = PackedStore.open(data_root / "small")
    train, test = (torch.from_numpy(ids) for ids in store.split("xsub"))
    encoder = Counting(BiGRUConfig(encoder="1x8"), ClipShape(25, 2))
    return FeatureSource(encoder, ResidentStore(store), train, test, "joint", EvalConfig(), frames=16, seed=3)


def cache_of(source: FeatureSource, folder, **changes) -> FeatureCache:
    arguments = {"store_checksum": "abc", "protocol": "xsub", **changes}
    return FeatureCache(folder, source, **arguments)


def assert_same(a, b) -> None:
    for name in ("train", "train_crops", "train_labels", "test", "test_labels"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def computed_by(source: FeatureSource, crops: int):
    ids = source.train_ids, source.test_ids
    return frozen_features(
        source.encoder, source.store, *ids, source.stream, source.config, frames=16, crops=crops, seed=source.seed
    )


def test_nothing_is_encoded_twice(source, tmp_path, caplog):
    train, test, encoder = len(source.train_ids), len(source.test_ids), source.encoder
    caplog.set_level(logging.INFO, "fastmc")
    logging.getLogger("fastmc").propagate = True
    first = cache_of(source, tmp_path).features(2)
    assert encoder.clips == test + 3 * train
    assert "features: computed and kept" in caplog.text
    assert "from cache" not in caplog.text
    again = cache_of(source, tmp_path).features(2)
    fewer, none = cache_of(source, tmp_path).features(1), cache_of(source, tmp_path).features(0)
    only_test = cache_of(source, tmp_path).test()
    assert encoder.clips == test + 3 * train, "kNN after linear, fewer crops and the test clips alone: all kept"
    assert "features: from cache" in caplog.text
    assert_same(first, again)
    assert torch.equal(fewer.train_crops, first.train_crops[:1])
    assert none.train_crops.shape == (0, *first.train.shape)
    assert torch.equal(only_test, first.test)
    more = cache_of(source, tmp_path).features(5)
    assert encoder.clips == test + 6 * train, "three more crops, and nothing else"
    assert_same(more, computed_by(source, 5))


def test_kept_features_are_the_computed_ones_and_mapped(source, tmp_path):
    cache = cache_of(source, tmp_path)
    assert_same(cache.features(2), computed_by(source, 2))
    kept = np.load(cache.entry / "crops.npy")
    assert kept.dtype == np.float32 and kept.shape == (2, len(source.train_ids), 16)
    about = json.loads((cache.entry / ABOUT).read_text())
    assert about["weights"] == weights_digest(source.encoder)
    assert (about["protocol"], about["stream"], about["frames"], about["seed"]) == ("xsub", "joint", 16, 3)
    assert sorted(path.name for path in cache.entry.iterdir()) == ["crops.npy", ABOUT, "test.npy", "train.npy"]


def test_what_features_depend_on_has_an_entry_of_its_own(source, tmp_path):
    entries = [cache_of(source, tmp_path).entry]
    for change in (
        *({"stream": "motion"}, {"frames": 15}, {"seed": 4}, {"config": EvalConfig(test_crop=0.9)}),
        *({"config": EvalConfig(train_crop_min=0.6)}, {"train_ids": torch.arange(9)}, {"test_ids": torch.arange(9)}),
    ):
        entries.append(cache_of(replace(source, **change), tmp_path).entry)
    for change in ({"store_checksum": "abd"}, {"protocol": "xview"}, {"role": "untrained"}):
        entries.append(cache_of(source, tmp_path, **change).entry)
    assert len(set(entries)) == len(entries)
    other = replace(source, config=EvalConfig(knn_k=3, linear_epochs=5, train_crops=2))
    assert cache_of(other, tmp_path).entry == entries[0], "settings of the classifiers share one"


def test_other_weights_take_the_place_of_the_old_ones(source, tmp_path):
    cache_of(source, tmp_path).features(0)
    cache_of(source, tmp_path, role="untrained").features(0)
    kept = cache_of(replace(source, frames=20), tmp_path)
    kept.features(0)
    with torch.no_grad():
        next(iter(source.encoder.parameters())).add_(1e-7)
    new = cache_of(source, tmp_path)
    assert not new.entry.exists()
    assert torch.equal(new.features(0).test, computed_by(source, 0).test)
    roles = [json.loads((entry / ABOUT).read_text())["role"] for entry in tmp_path.iterdir()]
    assert sorted(roles) == ["trained", "untrained"], "both entries of the trained encoder's old weights are gone"
    assert not kept.entry.exists()


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("train.npy", flip_a_bit), ("test.npy", cut_off), ("crops.npy", lambda path: path.unlink())),
        *(("crops.npy", flip_a_bit), (ABOUT, cut_off), (ABOUT, flip_a_bit), (ABOUT, lambda path: path.write_text(""))),
    ],
)
def test_what_is_damaged_is_computed_anew(name, damage, source, tmp_path):
    cache = cache_of(source, tmp_path)
    truth = computed_by(source, 2)
    cache.features(2)
    damage(cache.entry / name)
    encoder = source.encoder
    encoder.clips = 0
    assert_same(cache_of(source, tmp_path).features(2), truth)
    train, test = len(source.train_ids), len(source.test_ids)
    lost = {"train.npy": train, "test.npy": test, "crops.npy": 2 * train, ABOUT: test + 3 * train}
    assert encoder.clips == lost[name]
    cache_of(source, tmp_path).features(2)
    assert encoder.clips == lost[name], "and kept again"


def test_a_fault_while_it_is_written_leaves_nothing_that_counts(source, tmp_path, monkeypatch):
    cache = cache_of(source, tmp_path)
    cache.features(1)

    def fails(self, number, advance=None):
        if number == 2:
            raise RuntimeError("the power is off")
        return compute(self, number)

    compute = FeatureSource.crop
    monkeypatch.setattr(FeatureSource, "crop", fails)
    with pytest.raises(RuntimeError, match="the power is off"):
        cache.features(3)
    monkeypatch.undo()
    assert not list(cache.entry.glob(".*"))
    assert_same(cache_of(source, tmp_path).features(1), computed_by(source, 1))


def test_digest_tells_weights_apart_and_nothing_else():
    torch.manual_seed(0)
    encoder = BiGRU(BiGRUConfig(encoder="1x8"), ClipShape(25, 2))
    digest = weights_digest(encoder)
    assert len(digest) == 32 and weights_digest(encoder.eval().requires_grad_(False)) == digest
    copy = BiGRU(BiGRUConfig(encoder="1x8"), ClipShape(25, 2))
    assert weights_digest(copy) != digest
    copy.load_state_dict(encoder.state_dict())
    assert weights_digest(copy) == digest
    copy.norm.running_mean[3] = 1e-9
    assert weights_digest(copy) != digest, "buffers count"
    assert weights_digest(encoder.double()) != digest
