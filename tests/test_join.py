"""One store of the clips of several."""

from __future__ import annotations

import numpy as np

from fastmc.data.packing import NORMALISATION
from fastmc.data.store import UNKNOWN, PackedStore, StoreWriter
from fastmc.skeleton import KINECT20, NTU25
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


def test_what_does_not_fit_is_not_joined(tmp_path, capsys):
    a = write(tmp_path / "a", 1)
    for other, message in (
        (write(tmp_path / "k", 1, skeleton=KINECT20), "has another joint layout than"),
        (write(tmp_path / "n", 1, normalisation=NORMALISATION), "has another frame of reference than"),
        (write(tmp_path / "c", 1, name="a"), "stores must have different names, got a, a"),
    ):
        assert join(tmp_path, a, other) == 1
        assert message in capsys.readouterr().err
    assert join(tmp_path, a) == 1
    assert "fewer than two stores" in capsys.readouterr().err
    assert not (tmp_path / "both").exists()
