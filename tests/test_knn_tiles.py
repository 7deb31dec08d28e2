"""kNN in tiles of both sides: the same neighbours as all at once, in memory that the tiles bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_pair import every_pair
from sklearn.neighbors import KNeighborsClassifier
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmc.evaluation import knn_predict
from fastmc.evaluation.knn import nearest_neighbours


def features(train: int, test: int, dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (train,), generator=generator)
    return torch.randn(train, dim, generator=generator), labels, torch.randn(test, dim, generator=generator)


def plain_neighbours(train: np.ndarray, test: np.ndarray, k: int) -> list[list[int]]:
    """One query after the other, in float64; of equal similarities the lower index first."""
    train, test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    found = []
    for query in test:
        similarity = [float(row @ query) for row in train]
        found.append(sorted(range(len(train)), key=lambda n: (-similarity[n], n))[:k])
    return found


SIZES = every_pair([(7, 1), (61, 23), (30, 64)], [(1, 1), (5, 3), (64, 10), (7, 1000), (1000, 7)], [1, 3, 7])


@pytest.mark.parametrize(("sizes", "tiles", "k"), SIZES)
def test_tiles_of_any_size_give_the_nearest(sizes, tiles, k):
    (train, test), (tile, train_tile) = sizes, tiles
    x, labels, y = features(train, test, dim=6, seed=train + test)
    got, cosines = nearest_neighbours(x, y, k, tile, train_tile)
    assert got.tolist() == plain_neighbours(x.double().numpy(), y.double().numpy(), k)
    torch.testing.assert_close(cosines, torch.cosine_similarity(x[got], y[:, None], dim=2))
    truth = KNeighborsClassifier(1, metric="cosine").fit(x.numpy(), labels.numpy())
    assert knn_predict(x, labels, y, 1, tile, train_tile).tolist() == truth.predict(y.numpy()).tolist()


@pytest.mark.parametrize(("tile", "train_tile", "k"), [(1, 1, 2), (2, 3, 8), (8, 4, 5), (100, 100, 1)])
def test_of_equally_similar_ones_the_first_is_the_nearer(tile, train_tile, k):
    """Directions of length one or five with whole coordinates, so that equal similarities are equal to the bit."""
    choices = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 2.0]])
    x = choices[torch.randint(5, (40,), generator=torch.Generator().manual_seed(k))]
    got, _ = nearest_neighbours(x, choices, k, tile, train_tile)
    assert got.tolist() == plain_neighbours(x.numpy(), choices.numpy(), k)


def test_reads_memory_mapped_features(tmp_path):
    x, labels, y = features(70, 20, dim=5)
    for name, array in (("train", x), ("test", y)):
        np.save(tmp_path / f"{name}.npy", array.numpy())
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("train", "test")]
    want = knn_predict(x, labels, y, 3)
    assert torch.equal(knn_predict(mapped[0], labels, mapped[1], 3, tile=6, train_tile=11), want)
    assert torch.equal(knn_predict(x.double(), labels, y.double(), 3, tile=6, train_tile=11), want)


class LargestResult(TorchDispatchMode):
    """Bytes of the largest tensor that any operation makes; views have none of their own."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        owned = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in owned:
                self.bytes = max(self.bytes, t.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("k", [1, 5])
def test_no_array_is_larger_than_a_tile_of_similarities(k):
    """Whatever is made is no larger than the largest of: similarities of two tiles (with indices twice that), a tile of
    features, the neighbours found."""
    sizes, tile, train_tile, dim = (1500, 400), 50, 100, 16
    x, labels, y = features(*sizes, dim=dim)
    with LargestResult() as largest:
        knn_predict(x, labels, y, k, tile, train_tile)
    bound = max(8 * tile * (train_tile + k), 4 * dim * train_tile, 8 * sizes[1] * k)
    assert 4 * tile * train_tile <= largest.bytes <= bound
    assert bound < 4 * sizes[0] * tile, "less than a row of similarities for each query of a tile"
    x, y = torch.ones_like(x), torch.ones_like(y)
    with LargestResult() as constant:
        knn_predict(x, labels, y, k, tile, train_tile)
    assert constant.bytes <= bound, "not even where all are equally similar"


def test_memory_does_not_grow_with_the_square_of_k():
    x, labels, y = features(600, 40, dim=4)
    with LargestResult() as seen:
        knn_predict(x, labels, y, 500)
    assert seen.bytes <= 40 * (500 + 600) * 8, "scores of the tile, and 500 neighbours each"
