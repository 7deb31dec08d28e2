"""From `.skeleton` files to a store, by functions and by the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from bodies import performed
from format_cases import FORMATS, assert_all_left_out

from fastmc.data import packing
from fastmc.data.formats import ntu as prepare
from fastmc.data.formats.ntu import prepare_ntu, prepare_synthetic
from fastmc.data.formats.ntu_splits import read_missing_list
from fastmc.data.formats.skeleton_file import read_skeleton
from fastmc.data.normalise import choose_bodies, normalise
from fastmc.data.packing import PrepareError
from fastmc.data.report import describe, summary
from fastmc.data.store import StoreError
from fastmc.figures.skeletons import draw_clip
from fastmc.parallel import IN_FLIGHT, WorkerDied, ordered_map
from fastmc.skeleton import NTU25
from tests.fuzz.formats import people
from train.prepare import find_clip, main

ROOT = Path(__file__).parents[1]


def skeleton_text(seed=0, frames=4, bodies=1):
    """A valid file: people who stand almost still."""
    rng = np.random.default_rng(seed)
    lines = [str(frames)]
    rest = np.stack([performed(1 + (seed + 7 * body) % 24)[0] + (body, 0, 3) for body in range(bodies)])
    for _ in range(frames):
        lines.append(str(bodies))
        for body, joints in enumerate(rest + rng.normal(0, 0.01, rest.shape)):
            lines += [f"7205759403792{body} 0 1 1 1 1 0 0.1 -0.2 2", "25"]
            lines += [f"{x:.6f} {y:.6f} {z:.6f} 250 200 900 500 0.1 0.9 0.1 0.1 2" for x, y, z in joints]
    return "\n".join(lines) + "\n"


def clip_name(setup=1, camera=1, subject=1, replication=1, action=1):
    return f"S{setup:03}C{camera:03}P{subject:03}R{replication:03}A{action:03}"


def write_raw(folder, names, **content):
    folder.mkdir(exist_ok=True)
    for seed, name in enumerate(names):
        (folder / f"{name}.skeleton").write_text(skeleton_text(seed, **content))
    return folder


NAMES = [clip_name(camera=c, subject=s, action=a) for c in (1, 2) for s in (1, 3) for a in (1, 60)]


@pytest.fixture
def raw(tmp_path):
    return write_raw(tmp_path / "raw", NAMES)


def snapshot(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_store_holds_the_clips(raw, tmp_path):
    store = prepare_ntu(raw, tmp_path / "out", workers=1)
    assert store.names.tolist() == sorted(NAMES)
    for n, name in enumerate(store.names):
        expected = normalise(choose_bodies(read_skeleton(raw / f"{name}.skeleton")), NTU25)
        np.testing.assert_array_equal(store.clip(n), expected)
    n = find_clip(store, clip_name(camera=2, subject=3, action=60))
    assert (store.camera[n], store.subject[n], store.label[n], store.setup[n], store.replication[n]) == (2, 3, 59, 1, 1)
    assert store.class_names[59] == "walking apart"
    for protocol, field, train in (("xsub", "subject", 1), ("xview", "camera", 2)):
        train_clips, test_clips = store.split(protocol)
        assert set(getattr(store, field)[train_clips]) == {train}
        assert len(train_clips) + len(test_clips) == len(store)


@pytest.mark.program
def test_few_items_are_in_flight():
    taken = 0

    def items():
        nonlocal taken
        for item in range(100):
            taken += 1
            yield item

    results = []
    for result in ordered_map(abs, items(), workers=2):
        results.append(result)
        assert taken - len(results) < 2 * IN_FLIGHT
    assert results == list(range(100))


def test_files_are_found_at_any_depth_and_only_once(raw, tmp_path):
    deep = raw / "s002" / "more"
    deep.mkdir(parents=True)
    write_raw(deep, [NAMES[0], clip_name(setup=2)])
    store = prepare_ntu(raw, tmp_path / "out", workers=1)
    assert len(store) == len(NAMES) + 1
    assert [(entry["name"], entry["reason"]) for entry in store.skipped()] == [(NAMES[0], packing.DUPLICATE)]


FAULTY = {
    "S01C001P001R001A001": (skeleton_text(), packing.FOREIGN_NAME, "S01C001P001R001A001"),
    clip_name(action=2): (skeleton_text()[:-200], packing.MALFORMED, r"A002.skeleton, line \d+"),
    clip_name(action=3): (skeleton_text().replace("\n25\n", "\nabc\n", 1), packing.MALFORMED, "line 4"),
    clip_name(action=4): (skeleton_text().replace("\n25\n", "\n25\nnan", 1), packing.MALFORMED, "line 5"),
    clip_name(action=5): ("", packing.MALFORMED, "A005.skeleton"),
    clip_name(action=6): (skeleton_text().replace("\n25\n", "\n24\n", 1), packing.MALFORMED, "line 4"),
}


def test_faulty_files_are_left_out_with_their_reasons(raw):
    for name, (text, _, _) in FAULTY.items():
        (raw / f"{name}.skeleton").write_text(text)
    assert_all_left_out(prepare_ntu, raw, {name: said for name, (_, *said) in FAULTY.items()}, clips=len(NAMES))


@pytest.mark.program
def test_strict_stops_at_the_first_fault_with_many_workers(raw, tmp_path):
    for action in (3, 2):
        (raw / f"{clip_name(action=action)}.skeleton").write_text("nonsense")
    with pytest.raises(PrepareError, match=r"A002\.skeleton, line 1"):
        prepare_ntu(raw, tmp_path / "out", strict=True, workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_files_that_are_no_fault_pass_a_strict_preparation(raw, tmp_path):
    write_raw(raw, [clip_name(action=61), clip_name(subject=41), clip_name(setup=18)])
    (raw / f"{clip_name(action=7)}.skeleton").write_text("2\n0\n0\n")
    store = prepare_ntu(raw, tmp_path / "out", strict=True, workers=1)
    assert store.meta["counts"]["skipped"] == {packing.OTHER_SET: 3, packing.NO_BODY: 1}
    assert len(store) == len(NAMES)


def test_missing_list(raw, tmp_path):
    published = tmp_path / "missing.txt"
    published.write_text(
        "The following samples have missing or incomplete skeletons.\r\n\r\n# a comment\r\n"
        f"{NAMES[2]}\r\n  {NAMES[5]}.skeleton  # with a comment\r\nS017C003P020R002A060\r\n"
    )
    assert read_missing_list(published) == {NAMES[2], NAMES[5], "S017C003P020R002A060"}
    store = prepare_ntu(raw, tmp_path / "out", missing=published, workers=1)
    assert set(store.names) == set(NAMES) - {NAMES[2], NAMES[5]}
    assert store.meta["counts"]["skipped"] == {packing.PUBLISHED: 2}


def test_bad_missing_list(raw, tmp_path):
    with pytest.raises(PrepareError, match="No such file"):
        prepare_ntu(raw, tmp_path / "out", missing=tmp_path / "missing.txt", workers=1)
    for text, message in (
        ("S001C001P001R001A01\n", "line 1: 'S001C001P001R001A01' is not a clip name"),
        ("a list of something else\n", "names no clip"),
    ):
        (tmp_path / "missing.txt").write_text(text)
        with pytest.raises(PrepareError, match=message):
            prepare_ntu(raw, tmp_path / "out", missing=tmp_path / "missing.txt", workers=1)


@pytest.mark.program
def test_worker_that_dies_is_a_clear_error(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_read", _die)
    with pytest.raises(WorkerDied, match="a worker process ended"):
        prepare_ntu(raw, tmp_path / "out", workers=2)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def _die(max_coordinate, source):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.program
def test_workers_do_without_torch(raw, tmp_path):
    code = (
        "import sys, fastmc.data.formats.ntu, train.prepare\n"
        "print('torch' in sys.modules, 'matplotlib' in sys.modules, 'scipy' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False"] * 3


def workers_start(process, store):
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return children.exists() and len(children.read_text().split()) == 3  # two and the resource tracker


def clips_are_packed(process, store):
    return any(path.stat().st_size > 4096 for path in store.parent.glob(f".{store.name}.tmp-*/frames.npy"))


@pytest.mark.program
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the workers in /proc")
@pytest.mark.parametrize(
    ("signal_number", "moment"),
    [(signal.SIGKILL, clips_are_packed), (signal.SIGINT, workers_start), (signal.SIGTERM, clips_are_packed)],
)
def test_stopped_preparation_leaves_no_store_and_can_be_run_again(tmp_path, signal_number, moment):
    raw = write_raw(tmp_path / "raw", [clip_name(subject=s, action=a) for s in range(1, 9) for a in range(1, 16)])
    words = ["ntu60", "--raw", raw, "--out", tmp_path / "out", "--workers", "2"]
    command = [sys.executable, "-m", "train.prepare", *words]
    # What a shell runs in the background ignores Ctrl-C, and so would all that it starts.
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=hears
    )
    while not moment(process, tmp_path / "out"):
        assert process.poll() is None
        time.sleep(0.002)
    if signal_number == signal.SIGINT:
        os.killpg(process.pid, signal.SIGINT)  # to the workers too, as Ctrl-C does
    else:
        process.send_signal(signal_number)
    # Returns when the workers have let go of the pipe: they do not stay behind.
    _, errors = process.communicate(timeout=60)
    assert not (tmp_path / "out").exists()
    if signal_number != signal.SIGKILL:
        assert process.returncode == 128 + signal_number
        assert f"{signal_number.name}: interrupted; no store was written\n" in errors
        # Stopped in the middle of its own start, a worker may complain.
        assert "Traceback" not in errors or moment is workers_start
    else:
        assert process.returncode == -signal.SIGKILL
        assert len(list(tmp_path.glob(".out.tmp-*"))) == 1
    assert len(prepare_ntu(raw, tmp_path / "out", workers=1)) == 120
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


@pytest.mark.slow
def test_synthetic_goes_the_same_way(tmp_path):
    store = prepare_synthetic(tmp_path / "a", raw=tmp_path / "raw", subjects=2, replications=1, seed=3, workers=1)
    assert (store.name, store.protocols) == ("synthetic", ("xsub", "xview"))
    assert set(store.subject[store.split("xsub")[0]]) == {1}
    assert set(store.camera[store.split("xview")[0]]) == {2, 3}
    name = store.names[0]
    expected = normalise(choose_bodies(read_skeleton(tmp_path / "raw" / f"{name}.skeleton")), NTU25)
    np.testing.assert_array_equal(store.clip(0), expected)
    with pytest.raises(PrepareError, match="is not empty"):
        prepare_synthetic(tmp_path / "b", raw=tmp_path / "raw", subjects=2)
    with pytest.raises(StoreError, match="--overwrite"):
        prepare_synthetic(tmp_path / "a", subjects=2)
    with pytest.raises(PrepareError, match="subjects"):
        prepare_synthetic(tmp_path / "c", subjects=0)


def test_report(raw, tmp_path):
    (raw / "notes.skeleton").write_text("")
    text = describe(prepare_ntu(raw, tmp_path / "out", workers=1))
    for said in ("8 clips of 60 classes", "xsub: 4 training clips, 4 test clips", "1 × file name of another kind"):
        assert said in text
    assert "frames a clip: 4 to 4, median 4" in text
    [row] = [line for line in text.splitlines() if "walking apart" in line]
    assert row.split() == ["59", "walking", "apart", "4", "2", "2", "2", "2"]
    one_side = write_raw(tmp_path / "one", [clip_name(camera=2, subject=s) for s in (1, 3)])
    text = summary(prepare_ntu(one_side, tmp_path / "unusable", workers=1))
    assert "note: protocol = 'xview' leaves no test clip in" in text and "protocol = 'xsub'" not in text
    other_side = write_raw(tmp_path / "other", [clip_name(camera=1, subject=s) for s in (1, 3)])
    assert "warning: xview cannot be used, it has no training clip" in summary(
        prepare_ntu(other_side, tmp_path / "untrainable", workers=1)
    )


def test_drawing_shows_the_bodies_that_are_there():
    clip = normalise(np.random.default_rng(0).standard_normal((20, 2, 25, 3), np.float32), NTU25)
    clip[:10, 1] = 0
    [axes] = draw_clip(clip, NTU25, fps=30, poses=4).axes
    lines = [line for line in axes.lines if len(line.get_xdata())]
    assert len(lines) == (4 + 2) * len(NTU25.bones)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.00", "0.20", "0.43", "0.63"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("time (s)", "z, up (m)")


def test_command_line(raw, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["ntu60", "--raw", str(raw), "--out", out, "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "8 clips of 60 classes" in printed
    assert "warning: the complete set, without the files published as missing, has 56,578 clips; accuracies" in printed
    assert main(["ntu60", "--raw", str(raw), "--out", out]) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert main(["info", out, "--verify", "--plot", str(tmp_path / "clip.png"), "--clip", NAMES[3]]) == 0
    assert (tmp_path / "clip.png").read_bytes().startswith(b"\x89PNG")
    assert "drew clip" in capsys.readouterr().out


def test_user_errors_are_one_message(raw, tmp_path, monkeypatch, capsys):
    prepare_ntu(raw, tmp_path / "out", workers=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "afile").touch()
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    for arguments, message in (
        (["ntu60", "--raw", "nowhere"], "56,880 of them"),
        (["ntu60", "--raw", "empty"], "holds no file *.skeleton"),
        (["ntu60", "--raw", "raw", "--workers", "0"], "workers must be at least 1"),
        (["info", "nowhere"], "there is no packed store at nowhere"),
        (["info", "out", "--clip", "8"], "--plot"),
        (["info", "out", "--clip", "S001C001P001R001A06", "--plot", "a.png"], "did you mean"),
        (["info", "out", "--plot", "a.bmpx"], "cannot draw into a.bmpx"),
        (["synthetic", "--out", "afile/x"], "afile/x cannot be written: afile is, or lies in, a file"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error
    with pytest.raises(SystemExit) as stopped:
        main(["ntu60", "--raw", "x", "--worker", "3"])
    assert stopped.value.code == 2 and "--workers" in capsys.readouterr().err


def as_txt2npy(text: str, name: str) -> dict:
    """What NTU's converter makes of a `.skeleton` file: bodies by their place in a frame."""
    raw = {}
    lines = iter(text.splitlines())
    frames, counts = int(next(lines)), []
    for t in range(frames):
        counts.append(int(next(lines)))
        for body in range(counts[-1]):
            next(lines), next(lines)
            joints = raw.setdefault(f"skel_body{body}", np.zeros((frames, 25, 3)))
            joints[t] = [[float(x) for x in next(lines).split()[:3]] for _ in range(25)]
    return {"file_name": name, "nbodys": counts, "njoints": 25, **raw}


@pytest.mark.parametrize("bodies", [1, 2])
def test_files_of_the_converter_of_ntu_are_read_as_their_sources(tmp_path, bodies):
    raw, converted = tmp_path / "raw", tmp_path / "converted"
    raw.mkdir(), converted.mkdir()
    people_of = [people(NTU25, 14, seed=seed) + seed % 2 for seed in range(2 * bodies)]
    FORMATS["ntu"](raw, [np.concatenate(people_of[n * bodies :][:bodies], axis=1) for n in range(2)])
    for file in raw.iterdir():
        values = as_txt2npy(file.read_text(), file.stem)
        np.save(converted / f"{file.name}.npy", np.array(values, dtype=object), allow_pickle=True)
    ours, theirs = (prepare_ntu(folder, tmp_path / folder.name[0], workers=1) for folder in (raw, converted))
    assert ours.names.tolist() == theirs.names.tolist() == [f"S001C001P00{n}R001A001" for n in (1, 2)]
    assert ours.label.tolist() == theirs.label.tolist() and ours.max_bodies == bodies
    np.testing.assert_array_equal(ours.frames, theirs.frames)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


FAULTY_CONVERTED = {
    "no dictionary": ([1, 2], "a dictionary in an array of no axes"),
    "no body": ({"nbodys": [1]}, "a dictionary with skel_body0"),
    "other joints": (
        {"skel_body0": np.zeros((3, 20, 3))},
        r"skel_body0 is float64 \(3, 20, 3\), expected floats \(T, 25",
    ),
    "not finite": ({"skel_body0": np.full((3, 25, 3), np.nan)}, "skel_body0 holds NaN"),
    "code": ({"skel_body0": Runs()}, r"it holds (posix|nt)\.mkdir, which is not plain data and is never loaded"),
}


@pytest.mark.parametrize("fault", FAULTY_CONVERTED)
def test_faulty_files_of_the_converter(tmp_path, monkeypatch, fault):
    monkeypatch.chdir(tmp_path)
    values, message = FAULTY_CONVERTED[fault]
    raw = write_raw(tmp_path / "raw", NAMES[1:2])
    file = raw / f"{NAMES[0]}.skeleton.npy"
    np.save(file, np.array(values, dtype=object), allow_pickle=True)
    assert len(prepare_ntu(raw, tmp_path / "out", workers=1)) == 1
    with pytest.raises(PrepareError, match=message):
        prepare_ntu(raw, tmp_path / "strict", strict=True, workers=1)
    assert not (tmp_path / "ran").exists()
    np.save(file, np.zeros((3, 25, 3)))
    with pytest.raises(PrepareError, match="is not what txt2npy"):
        prepare_ntu(raw, tmp_path / "strict", strict=True, workers=1)
