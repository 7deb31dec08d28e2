"""What holds for every format that is read."""

from __future__ import annotations

import numpy as np
import pytest
from format_cases import ARRAYS, FILES, FORMATS, layout_of

from fastmc.data.normalise import normalise
from fastmc.data.packing import NORMALISATION, PrepareError
from fastmc.data.store import PackedStore, StoreError
from fastmc.skeleton import NTU25
from tests.fuzz.formats import people
from train.runs.load import check_layout


def snapshot(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture(params=FORMATS)
def asked(request, tmp_path):
    """(its name, clips, what reads their files, arguments, options)"""
    (tmp_path / "raw").mkdir()
    clips = [people(layout_of(request.param), 4, seed=n) for n in range(4)]
    return request.param, clips, *FORMATS[request.param](tmp_path / "raw", clips)


def test_clips_are_normalised_unless_asked_otherwise_and_a_store_is_kept_without_overwrite(asked, tmp_path):
    name, clips, prepare, arguments, options = asked
    store = prepare(*arguments, tmp_path / "out", **options)
    assert store.meta["normalisation"] == NORMALISATION
    truth = [normalise(clip.astype(np.float32), layout_of(name)) for clip in clips]
    assert len(store) == len(clips) * (2 if name in ("ctrgcn", "npy") else 1)
    if name == "utd_mhad":  # whose files have an order of their own: test_clip_files.py
        assert all(store.clip(n).shape == truth[0].shape for n in range(len(store)))
    else:
        for n in range(len(store)):
            np.testing.assert_array_equal(store.clip(n), truth[n % len(clips)])
    before = snapshot(store.path)
    with pytest.raises(StoreError, match="--overwrite"):
        prepare(*arguments, tmp_path / "out", **options)
    assert snapshot(store.path) == before
    if name not in ("ntu", "pku"):
        plain = prepare(*arguments, tmp_path / "out", normalise=False, overwrite=True, **options)
        assert (plain.meta["normalisation"], plain.checksum) == ("none", store.checksum)
        for n in range(len(plain) if name in (*ARRAYS, "nwucla") else 0):
            np.testing.assert_array_equal(plain.clip(n), clips[n % len(clips)].astype(np.float32))
    else:
        assert snapshot(prepare(*arguments, tmp_path / "out", overwrite=True, **options).path) == before


@pytest.mark.program
@pytest.mark.parametrize("asked", FILES, indirect=True)
def test_same_store_for_any_number_of_workers_and_its_checksum_follows_the_source(asked, tmp_path):
    name, clips, prepare, arguments, _ = asked
    for workers in (1, 2):
        prepare(*arguments, tmp_path / str(workers), workers=workers)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")
    FORMATS[name](arguments[0], [clips[1], *clips[1:]])
    changed = prepare(*arguments, tmp_path / "changed", workers=1)
    assert changed.checksum != PackedStore.open(tmp_path / "1").checksum


@pytest.mark.parametrize("name", ["ntu", "pku", *ARRAYS])
def test_bodies_beyond_those_that_are_wanted_are_cut(name, tmp_path):
    """After the clip was normalised by its first one, which stays."""
    (tmp_path / "raw").mkdir()
    clips = [np.concatenate([people(NTU25, 14, seed=n), 1 + people(NTU25, 14, seed=9 + n)], axis=1) for n in range(4)]
    prepare, arguments, options = FORMATS[name](tmp_path / "raw", clips)
    both = prepare(*arguments, tmp_path / "both", **options)
    one = prepare(*arguments, tmp_path / "one", max_bodies=1, **options)
    assert (both.num_bodies == 2).all() and (one.num_bodies == 1).all()
    for n in range(len(both)):
        np.testing.assert_array_equal(one.clip(n), both.clip(n)[:, :1])
    assert (one.meta["bodies_cut"], both.meta.get("bodies_cut")) == (len(one), None)
    with pytest.raises(ValueError, match="the encoder reads 1; prepare the data set with --max-bodies 1, or pre-train"):
        check_layout(both, one, "joint")
    with pytest.raises(PrepareError, match="max_bodies must be >= 1"):
        prepare(*arguments, tmp_path / "none", max_bodies=0, **options)


def test_a_set_without_a_usable_clip_is_an_error_and_leaves_nothing(asked, tmp_path):
    name, clips, prepare, _, options = asked
    _, arguments, _ = FORMATS[name](tmp_path / "raw", [0 * clip for clip in clips])
    with pytest.raises(PrepareError, match=r"none of the .* is usable|no usable clip is left to train"):
        prepare(*arguments, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
