"""The packed store: what is written is read back, and what is damaged is refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fastmc.data import store as store_module
from fastmc.data.store import PackedStore, StoreError, StoreWriter, check_target
from fastmc.skeleton import KINECT20, NTU25

ROOT = Path(__file__).parents[1]
PROTOCOLS = {"xsub": {"field": "subject", "train": [1, 3]}, "xview": {"field": "camera", "train": [2]}}


def writer(path, **changes):
    options = {"name": "toy", "skeleton": NTU25, "fps": 30, "class_names": ["walk", "run"], "protocols": PROTOCOLS}
    return StoreWriter(path, **{**options, **changes})


def clips(number, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((3 + n % 5, 1 + n % 2, 25, 3), np.float32) for n in range(number)]


def write(path, number=6, **changes):
    with writer(path, **changes) as store:
        for n, clip in enumerate(clips(number)):
            store.add(clip, name=f"c{n:05}", label=n % 2, subject=n % 4, camera=n % 3, setup=7, replication=n)
    return path


def snapshot(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_round_trip(tmp_path):
    store = PackedStore.open(write(tmp_path / "toy"))
    assert len(store) == 6
    for n, clip in enumerate(clips(6)):
        np.testing.assert_array_equal(store.clip(n), clip)
    assert isinstance(store.frames, np.memmap)
    assert store.frames.shape == (sum(clip.shape[0] * clip.shape[1] for clip in clips(6)), 25, 3)
    row = store.start[3] + 2 * store.num_bodies[3] + 1
    np.testing.assert_array_equal(store.frames[row], clips(6)[3][2, 1])
    assert store.names.tolist() == [f"c{n:05}" for n in range(6)]
    assert store.label.tolist() == [0, 1] * 3
    assert store.subject.tolist() == [0, 1, 2, 3, 0, 1]
    assert store.setup.tolist() == [7] * 6
    assert store.part.tolist() == [-1] * 6
    assert store.replication.tolist() == list(range(6))
    assert (store.name, store.fps, store.class_names, store.num_classes) == ("toy", 30.0, ("walk", "run"), 2)
    assert (store.skeleton, store.max_bodies, store.protocols) == (NTU25, 2, ("xsub", "xview"))
    train, test = store.split("xsub")
    assert (train.tolist(), test.tolist()) == ([1, 3, 5], [0, 2, 4])
    assert train.dtype == test.dtype == np.int64
    assert store.split("xview")[0].tolist() == [2, 5]
    with pytest.raises(ValueError, match="no protocol 'xset'; there are: xsub, xview"):
        store.split("xset")
    for array in (store.clip(0), store.label, store.start):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_same_clips_same_bytes(tmp_path):
    assert snapshot(write(tmp_path / "a")) == snapshot(write(tmp_path / "b"))


@pytest.mark.parametrize(
    ("clip", "changes", "message"),
    [
        (np.zeros((4, 1, 20, 3)), {}, r"expected \(T, M, 25, 3\)"),
        (np.zeros((4, 25, 3)), {}, r"expected \(T, M, 25, 3\)"),
        (np.zeros((0, 1, 25, 3)), {}, r"expected \(T, M, 25, 3\)"),
        (np.full((4, 1, 25, 3), np.nan), {}, "NaN"),
        (np.ones((4, 1, 25, 3)), {"label": 2}, r"label 2, outside of -1\.\.1"),
        (np.ones((4, 1, 25, 3)), {"label": -2}, r"label -2, outside of -1\.\.1"),
        (np.ones((4, 1, 25, 3)), {"name": "a"}, "sorted by unique names"),
        (np.ones((4, 1, 25, 3)), {"name": "b"}, "sorted by unique names"),
    ],
)
def test_invalid_clip_leaves_nothing_but_the_store_that_was_there(tmp_path, clip, changes, message):
    def write_both(**how):
        with writer(tmp_path / "toy", **how) as store:
            store.add(np.ones((4, 1, 25, 3)), name="b", label=0)
            store.add(clip, **{"name": "c", "label": 0, **changes})

    with pytest.raises(ValueError, match=message):
        write_both()
    with pytest.raises(StoreError, match="no usable clip"), writer(tmp_path / "toy"):
        pass
    with pytest.raises(ValueError, match="must split by one of subject, camera"):
        writer(tmp_path / "toy", protocols={"xage": {"field": "age", "train": [1]}})
    assert list(tmp_path.iterdir()) == []
    before = snapshot(write(tmp_path / "toy"))
    with pytest.raises(ValueError, match=message):
        write_both(overwrite=True)
    assert snapshot(tmp_path / "toy") == before
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_existing_store_needs_overwrite(tmp_path):
    before = snapshot(write(tmp_path / "toy"))
    with pytest.raises(StoreError, match="--overwrite replaces it"):
        write(tmp_path / "toy", number=2)
    assert snapshot(tmp_path / "toy") == before
    write(tmp_path / "toy", number=2, overwrite=True)
    assert len(PackedStore.open(tmp_path / "toy")) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_overwrite_never_replaces_another_folder(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("irreplaceable")
    with pytest.raises(StoreError, match="holds no packed store"):
        write(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "irreplaceable"


def test_killed_between_the_renames_of_an_overwrite(tmp_path):
    before = snapshot(write(tmp_path / "toy"))
    (tmp_path / "toy").rename(tmp_path / ".toy.old")
    with pytest.raises(StoreError, match="already holds a store"):
        writer(tmp_path / "toy").__enter__()  # before any clip is read
    assert snapshot(tmp_path / "toy") == before


def test_a_linked_target_stays_a_link(tmp_path):
    (tmp_path / "big disk").mkdir()
    (tmp_path / "toy").symlink_to(tmp_path / "big disk" / "toy")
    for overwrite in (False, True):
        with writer(tmp_path / "toy", overwrite=overwrite) as store:
            store.add(clips(1)[0], name="a", label=0)
        assert (tmp_path / "toy").is_symlink()
        assert len(PackedStore.open(tmp_path / "toy")) == 1
        assert [path.name for path in (tmp_path / "big disk").iterdir()] == ["toy"]


def test_memory_does_not_grow_with_the_set(tmp_path):
    peaks = []
    for number in (100, 1000):
        clip = clips(1)[0].repeat(20, axis=0)
        tracemalloc.start()
        with writer(tmp_path / str(number)) as store:
            for n in range(number):
                store.add(clip, name=f"{n:05}", label=0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    written = (tmp_path / "1000" / "frames.npy").stat().st_size
    assert peaks[1] - peaks[0] < written / 20  # the entries of the index only


KILLED_WRITER = """
import sys
import numpy as np
from tests.test_store import writer
with writer(sys.argv[1], overwrite=True) as store:
    store.add(np.ones((4, 1, 25, 3)), name="a", label=0)
    print("writing", flush=True)
    sys.stdin.read()
"""


def start_writer(path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.program
def test_killed_writer_leaves_no_store_and_is_cleaned_up(tmp_path):
    process = start_writer(tmp_path / "toy")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert {path.name for path in tmp_path.iterdir()} == {".toy.lock", f".toy.tmp-{process.pid}"}
    with pytest.raises(StoreError, match="there is no packed store"):
        PackedStore.open(tmp_path / "toy")
    write(tmp_path / "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_what_a_preparation_left_that_was_killed_after_its_work_is_removed_where_it_is_given_again(tmp_path):
    with writer(tmp_path / "small") as store:
        store.add(np.ones((4, 1, 25, 3)), name="a", label=0)
    left = tmp_path / f".small-{2**22 + 1}.tmp"  # above the largest number of a process
    left.mkdir()
    with pytest.raises(StoreError, match="already holds a store"):
        check_target(tmp_path / "small", overwrite=False)
    assert not left.exists()


def test_remains_with_a_reused_process_number_are_cleaned_up(tmp_path):
    (tmp_path / f".toy.tmp-{os.getpid()}").mkdir()
    write(tmp_path / "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_what_was_left_out_may_have_a_name_that_is_no_text(tmp_path):
    """The store was sound, and said to be corrupt for ever."""
    name = os.fsdecode(b"copi\xe9 de S001")
    with writer(tmp_path / "toy") as store:
        store.add(clips(1)[0], name="a", label=0)
        store.skip(name, f"of {name}", f"{name}: why")
    read = PackedStore.open(tmp_path / "toy")
    says = {"name": "copi\\udce9 de S001", "reason": "of copi\\udce9 de S001", "detail": "copi\\udce9 de S001: why"}
    assert read.skipped() == [says]
    (tmp_path / "toy" / "skipped.json").write_text(json.dumps([{"name": name, "reason": "", "detail": ""}]))
    assert read.skipped()[0]["name"] == "copi\\udce9 de S001", "as earlier versions wrote it"
    for changes in ({"name": name}, {"class_names": ["walk", "\ud800"]}):
        with pytest.raises(ValueError, match="is no text: a set or a class needs another name"):
            writer(tmp_path / "other", **changes)


@pytest.mark.parametrize("at", ["start", "label", "frames"])
def test_a_store_that_is_replaced_while_it_is_opened_is_read_whole(at, tmp_path, monkeypatch):
    """Arrays of the new one, of equal size, beside the old one's names of classes."""
    path, load, seen = write(tmp_path / "toy"), store_module._load, []

    def replaced_meanwhile(folder, name, **options):
        if name == at and not seen:
            seen.append(name)
            write(path, overwrite=True, class_names=["run", "walk"])
        return load(folder, name, **options)

    monkeypatch.setattr(store_module, "_load", replaced_meanwhile)
    store = PackedStore.open(path)
    assert seen and store.class_names == ("run", "walk")
    store.check_unchanged()
    store.verify()


@pytest.mark.program
def test_two_writers_of_one_store(tmp_path):
    process = start_writer(tmp_path / "toy")
    with pytest.raises(StoreError, match=f"toy is being written by process {process.pid}; wait for it, or stop it"):
        write(tmp_path / "toy")
    process.communicate("")
    assert process.returncode == 0
    assert PackedStore.open(tmp_path / "toy").names.tolist() == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch):
    def fails(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fails)
    with pytest.raises(StoreError, match=r"\.toy\.lock cannot be locked \(No locks available\)"):
        write(tmp_path / "toy")
    with pytest.raises(StoreError, match="cannot be locked"):
        store_module.wait_for_writer(tmp_path / "toy")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_writer_at_any_moment_of_the_first_one_s_beginning(overwrite, tmp_path, monkeypatch):
    """Between two steps of one that has just begun, another may take it for one that was killed."""
    target, tried = tmp_path / "toy", []
    if overwrite:
        write(target)

    def then_another(name, real):
        def call(*arguments, **settings):
            found = real(*arguments, **settings)
            if name not in tried:
                tried.append(name)
                with pytest.raises(StoreError, match="is being written by"), writer(target, overwrite=True):
                    pass
            return found

        return call

    with monkeypatch.context() as patch:
        for module, name in ((fcntl, "flock"), (os, "ftruncate"), (store_module, "check_target")):
            patch.setattr(module, name, then_another(name, getattr(module, name)))
        with writer(target, overwrite=overwrite) as first:
            first.add(np.ones((4, 1, 25, 3)), name="a", label=0)
    assert tried == ["flock", "ftruncate", "check_target"]
    assert PackedStore.open(target).names.tolist() == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_the_lock_file_of_another_writer_is_not_removed(tmp_path, monkeypatch):
    """One ends between another's opening of the lock file and its locking: that one has to open it again."""
    target, flock = tmp_path / "toy", fcntl.flock
    first = writer(target)
    first.__enter__()
    opened = []

    def late(handle, how):
        if not opened:
            opened.append(handle)
            first.__exit__(ValueError, ValueError(), None)
        return flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with writer(target) as second:
        assert (tmp_path / ".toy.lock").read_text() == str(os.getpid())
        with pytest.raises(StoreError, match="is being written"), writer(target):
            pass
        second.add(np.ones((4, 1, 25, 3)), name="a", label=0)
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


def truncate(path):
    os.truncate(path / "frames.npy", (path / "frames.npy").stat().st_size - 1)


def change_array(name, change):
    def damage(path):
        array = np.load(path / f"{name}.npy")
        np.save(path / f"{name}.npy", change(array))

    return damage


def change_meta(**values):
    def damage(path):
        meta = json.loads((path / "meta.json").read_text())
        (path / "meta.json").write_text(json.dumps({**meta, **values}))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "there is no packed store at"),
        (lambda path: (path / "meta.json").unlink(), "is not a packed store"),
        (lambda path: (path / "meta.json").write_text('{"format":'), "is not a packed store"),
        (lambda path: (path / "meta.json").write_text('["format"]'), "is not a packed store"),
        (change_meta(version=99), "store version 99, this fastmc reads 1"),
        (change_meta(counts={"clips": 7, "rows": 1}), "meta.json says 1 rows"),
        (change_meta(skeleton=KINECT20.to_dict()), "frames.npy is float32"),
        (change_meta(skeleton={"name": "x"}), "corrupt or incomplete"),
        (change_meta(class_names=["walk"]), r"label outside of -1\.\.0"),
        (change_meta(protocols={"xsub": {"train": [1]}}), "corrupt or incomplete"),
        (lambda path: (path / "label.npy").unlink(), r"label\.npy"),
        (lambda path: (path / "label.npy").write_bytes(b""), r"label\.npy"),
        (truncate, r"frames\.npy"),
        (change_array("start", lambda start: start + 1), "do not agree"),
        (change_array("num_frames", lambda frames: frames * 0), "below 1"),
        (change_array("camera", lambda camera: camera[:-1]), r"camera\.npy is int32 \(5,\)"),
        (change_array("camera", lambda camera: camera.astype(np.float32)), r"camera\.npy is float32"),
        (
            change_array("names", lambda names: np.array([{}] * 6, dtype=object)),
            "it holds Python objects, which are never",
        ),
        (change_meta(fps=None), "corrupt"),
        (lambda path: (path / "skipped.json").write_text("["), "corrupt"),
    ],
)
def test_damage_is_reported(tmp_path, damage, message):
    path = write(tmp_path / "toy")
    damage(path)
    with pytest.raises(StoreError, match=message) as error:
        PackedStore.open(path).skipped()
    assert str(path) in str(error.value)


def poke(path, row, value):
    """Write a number into the frames of a store, as a fault of a disk would."""
    frames = np.load(path / "frames.npy", mmap_mode="r+")
    frames[row, 3, 1] = value
    frames.flush()


def test_verifying_finds_a_changed_bit_and_names_the_clip_that_is_not_finite(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "CHUNK_ROWS", 4)
    store = PackedStore.open(write(tmp_path / "toy"))
    store.verify()
    for value, says in (
        (np.nan, ": clip c00003 holds NaN or infinite"),
        (np.inf, ": clip c00003"),
        (0.5, "; prepare it"),
    ):
        poke(tmp_path / "toy", int(store.start[3]), value)
        with pytest.raises(StoreError, match=f"is not what was written to it{says}"):
            PackedStore.open(tmp_path / "toy").verify()


@pytest.mark.parametrize("what", ["written to", "truncated", "replaced", "removed"])
def test_frames_that_change_while_they_are_in_use(what, tmp_path):
    store = PackedStore.open(write(tmp_path / "toy"))
    file = tmp_path / "toy" / "frames.npy"
    store.check_unchanged()
    if what == "written to":
        poke(tmp_path / "toy", 0, 0.25)
    if what == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    if what == "replaced":
        shutil.copy2(file, tmp_path / "copy.npy")
        os.replace(tmp_path / "copy.npy", file)
    if what == "removed":
        file.unlink()
    with pytest.raises(StoreError, match="has gone while" if what == "removed" else "was changed while"):
        store.check_unchanged()
