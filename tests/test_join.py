"""One store of the clips of several."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np

from fastmc.data.packing import NORMALISATION
from fastmc.data.store import UNKNOWN, PackedStore, StoreWriter
from fastmc.skeleton import KINECT20, NTU25, Skeleton, numbered
from train import prepare


def write(path, clips, *, skeleton=NTU25, classes=("a", "b"), train=(1,), name=None, **meta):
    """Clip n is of class n mod the number of classes and of subject n."""
    rng = np.random.default_rng(0)
    protocols = {"xsub": {"field": "subject", "train": list(train)}}
    about = {"name": name or path.name, "skeleton": skeleton, "fps": 30, "class_names": classes, "protocols": protocols}
    with StoreWriter(path, **about, extra_meta=meta) as out:
        for n in range(clips):
            clip = rng.normal(size=(3 + n, 1, skeleton.num_joints, 3)).astype(np.float32)
            out.add(clip, name=f"{n:03d}", label=n % len(classes), subject=n)
    return PackedStore.open(path)


def join(tmp_path, *stores):
    words = ["--stores", *(str(store.path) for store in stores), "--out", str(tmp_path / "both")]
    return prepare.main(["join", *words])


def test_clips_classes_and_parts_of_all(tmp_path, capsys):
    moved = {"normalisation": NORMALISATION}
    late, early = write(tmp_path / "z", 3, train=(0, 2), **moved), write(tmp_path / "b-2", 2, classes=("c",), **moved)
    assert join(tmp_path, late, early) == 0
    assert "5 clips" in capsys.readouterr().out
    both = PackedStore.open(tmp_path / "both")
    assert both.names.tolist() == ["b-2/000", "b-2/001", "z/000", "z/001", "z/002"]
    assert [both.class_names[n] for n in both.label] == ["b-2: c", "b-2: c", "z: a", "z: b", "z: a"]
    assert [part.tolist() for part in both.split("split")] == [[1, 2, 4], [0, 3]]
    assert both.normalisation == NORMALISATION
    for n, (store, of) in enumerate(((early, 0), (early, 1), (late, 0), (late, 1), (late, 2))):
        assert np.array_equal(both.clip(n), store.clip(of))


def test_sets_without_classes_are_joined_too(tmp_path):
    """To pre-train on, labels are not needed; those of another set keep their classes."""
    bare = tmp_path / "bare"
    protocols = {"all": {"field": "subject", "train": [1]}}
    with StoreWriter(bare, name="bare", skeleton=NTU25, fps=30, class_names=(), protocols=protocols) as out:
        out.add(np.ones((4, 1, 25, 3), np.float32), name="0", label=UNKNOWN, subject=1)
    assert join(tmp_path, PackedStore.open(bare), write(tmp_path / "named", 2)) == 0
    both = PackedStore.open(tmp_path / "both")
    assert (both.class_names, both.label.tolist()) == (("named: a", "named: b"), [UNKNOWN, 0, 1])


def test_names_that_begin_alike_and_roles_that_nobody_asks_for(tmp_path):
    """a/x comes before a/b/x, and a-b/x before both; where clips keep their place, hips are no matter."""
    stores = [write(tmp_path / str(n), 2, name=name) for n, name in enumerate(("a", "a/0", "a-b"))]
    assert join(tmp_path, *stores, write(tmp_path / "c", 1, skeleton=replace(NTU25, hip=-1, parents=()))) == 0
    names = PackedStore.open(tmp_path / "both").names.tolist()
    assert names == ["a-b/000", "a-b/001", "a/0/000", "a/0/001", "a/000", "a/001", "c/000"]


def test_what_cannot_be_told_or_kept_is_said(tmp_path, told):
    own = Skeleton("custom", numbered(3))
    slow, fast = write(tmp_path / "slow", 1, skeleton=own, warnings=["odd"]), write(tmp_path / "fast", 1, skeleton=own)
    meta = json.loads((fast.path / "meta.json").read_text())
    (fast.path / "meta.json").write_text(json.dumps({**meta, "fps": 120}))
    assert join(tmp_path, slow, PackedStore.open(fast.path)) == 0
    both = PackedStore.open(tmp_path / "both")
    assert both.fps == 30 and both.meta["warnings"][0] == "slow: odd"
    for text in both.meta["warnings"][1:]:
        assert text in told.text
    assert "slow has 30 frames a second, fast 120: the joined set says 30" in both.meta["warnings"][1]
    assert "the joints have no names" in both.meta["warnings"][2] and len(both.meta["warnings"]) == 3
    assert join(tmp_path / "quiet", write(tmp_path / "x", 1), write(tmp_path / "y", 1)) == 0
    assert PackedStore.open(tmp_path / "quiet" / "both").meta["warnings"] == []


def test_what_does_not_fit_is_not_joined(tmp_path, capsys):
    a = write(tmp_path / "a", 1)
    for other, message in (
        (write(tmp_path / "k", 1, skeleton=KINECT20), "has another joint layout than"),
        (write(tmp_path / "n", 1, normalisation=NORMALISATION), "has another frame of reference than"),
        (write(tmp_path / "c", 1, name="a"), "stores must have different names, got a, a"),
        (write(tmp_path / "p", 1, skeleton=replace(NTU25, parents=(0,) * 25)), "has other bones than"),
        (write(tmp_path / "m", 1, skeleton=replace(NTU25, mirror=tuple(range(25)))), "has other left and right joints"),
        (write(tmp_path / "long", 1, name="n" * 252), f"{tmp_path / 'long'}: nnn"),
    ):
        assert join(tmp_path, a, other) == 1
        assert message in capsys.readouterr().err
    moved = {"normalisation": NORMALISATION}
    spine = write(tmp_path / "s", 1, **moved), write(tmp_path / "t", 1, skeleton=replace(NTU25, spine=20), **moved)
    assert join(tmp_path, *spine) == 1
    assert re.search(
        "t has another frame of .*spine = spine shoulder.*, not .*spine = spine mid", capsys.readouterr().err
    )
    assert join(tmp_path, a) == 1
    assert "fewer than two stores" in capsys.readouterr().err
    assert not (tmp_path / "both").exists()
