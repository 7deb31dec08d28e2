"""PKU-MMD: recordings, label files and lists that the tests write, cut into the clips of a store."""

from __future__ import annotations

import re

import numpy as np
import pytest
from format_cases import assert_all_left_out

from fastmc.data import packing
from fastmc.data.bytes.number_lines import read_number_lines
from fastmc.data.formats import pku
from fastmc.data.formats.pku import prepare_pku, read_recording
from fastmc.data.formats.pku_splits import CLASS_NAMES, PKU1, PKU2
from fastmc.data.formats.skeleton_file import SkeletonFileError
from fastmc.data.normalise import normalise
from fastmc.data.packing import PrepareError
from fastmc.skeleton import NTU25
from train.prepare import main

FRAMES = 60
NAMES = ("A01N01-L", "A01N01-M", "A01N02-R", "A02N01-L")
LABELS = "8,1,20,2\n51,31,60,1\n"  # drink water and writing
SUBJECT_LIST = (
    "Training videos: \nA01N01-L, A01N01-M, A02N01-L\n\nValidataion videos: \nA01N02-R, A01N03-L\n"  # as published
)
VIEW_LIST = "Training videos:\nA01N01-L, A02N01-L\nValidataion videos:\nA01N01-M, A01N02-R\n"


def people(seed=0, frames=FRAMES, motion=(0.05, 0.01)):
    """Positions (frames, bodies, 25, 3), as files hold them: upright people who move at random, the first one most."""
    rng = np.random.default_rng(seed)
    joints = rng.normal(0, 0.05, (len(motion), 25, 3)) + (0, 0, 3)
    joints[:, :, 1] += np.linspace(-0.8, 0.8, 25)  # taller than wide
    joints[:, NTU25.spine] = joints[:, NTU25.hip] + (0, 0.3, 0)
    joints[:, NTU25.left_shoulder] = joints[:, NTU25.right_shoulder] + (0.4, 0, 0)
    noise = rng.normal(0, 1, (frames, len(motion), 25, 3)) * np.array(motion)[:, None, None]
    return np.round(joints + noise, 6)


def text(joints):
    """As published: a blank before each line, six decimals, the second body zero where there is none."""
    full = np.zeros((len(joints), 2, 25, 3))
    full[:, : joints.shape[1]] = joints
    return "".join(f" {' '.join(f'{x:.6f}' for x in frame.ravel())}\n" for frame in full)


@pytest.fixture
def raw(tmp_path):
    """A folder as the archives unpack; recording n has the people of seed n."""
    folder = tmp_path / "raw"
    for sub in ("Data/PKU_Skeleton_Renew", "Label/Train_Label_PKU_final", "Split"):
        (folder / sub).mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        recording(folder, name).write_text(text(people(seed)[:, :1]))
        label(folder, name).write_text(LABELS)
    (folder / "Split" / "cross_subject_v2.txt").write_text(SUBJECT_LIST)
    (folder / "Split" / "cross_view_v2.txt").write_text(VIEW_LIST)
    (folder / "README.txt").write_text("Some words, and more of them.\n")
    return folder


def recording(raw, name):
    return raw / "Data" / "PKU_Skeleton_Renew" / f"{name}.txt"


def label(raw, name):
    return raw / "Label" / "Train_Label_PKU_final" / f"{name}.txt"


def clips_of(store, name):
    return [store.clip(n) for n in np.flatnonzero(np.char.startswith(store.names, name))]


def reasons(store):
    return [(entry["name"], entry["reason"]) for entry in store.skipped()]


def test_store_holds_the_clips(raw, tmp_path):
    store = prepare_pku(raw, tmp_path / "out", strict=True, workers=1)
    assert store.names.tolist() == sorted(f"{name}_{line:03}" for name in NAMES for line in (1, 2))
    for seed, name in enumerate(NAMES):
        joints = people(seed).astype(np.float32)[:, :1]
        first, second = clips_of(store, name)
        np.testing.assert_array_equal(first, normalise(joints[:20], NTU25))
        np.testing.assert_array_equal(second, normalise(joints[30:], NTU25))
    assert [store.class_names[label] for label in store.label] == ["drink water", "writing"] * len(NAMES)
    assert (store.name, store.fps, store.skeleton, store.max_bodies) == ("pku2", 30.0, NTU25, 1)
    assert store.camera.tolist() == [1, 1, 2, 2, 3, 3, 1, 1]
    assert store.subject.tolist() == [1, 1, 1, 1, 2, 2, 1, 1]
    assert store.skipped() == []


def test_protocols_follow_the_lists(raw, tmp_path):
    store = prepare_pku(raw, tmp_path / "out", workers=1)
    lists = {"xsub": {"A01N01-L", "A01N01-M", "A02N01-L"}, "xview": {"A01N01-L", "A02N01-L"}}
    for protocol, training in lists.items():
        sides = [{str(store.names[n]).partition("_")[0] for n in side} for side in store.split(protocol)]
        assert sides == [training, set(NAMES) - training]
        values = store.meta["protocols"][protocol]["values"]
        for part, name in zip(store.part, store.names, strict=True):
            recording_name = str(name).partition("_")[0]
            expected = [f"{p} {'training' if recording_name in lists[p] else 'test'}" for p in ("xsub", "xview")]
            assert values[part] == ", ".join(expected)


def test_without_a_cross_view_list_there_is_no_xview(raw, tmp_path, capsys):
    (raw / "Split" / "cross_view_v2.txt").unlink()
    assert main(["pku2", "--raw", str(raw), "--out", str(tmp_path / "out"), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "xsub: 6 training clips, 2 test clips" in printed
    assert "xview:" not in printed
    assert "no cross-view list (cross_view_v2.txt) was found, so there is no protocol xview" in printed
    assert "warning: PKU-MMD phase II, as published, has 6,945 clips; accuracies on fewer" in printed


def test_folders_may_be_named_and_lie_side_by_side(raw, tmp_path):
    expected = prepare_pku(raw, tmp_path / "a", workers=1)
    for old, new in (("Data", "x"), ("Label", "y"), ("Split", "z")):
        (raw / old).rename(tmp_path / new)
    store = prepare_pku(tmp_path / "x", tmp_path / "b", labels=tmp_path / "y", splits=tmp_path / "z", workers=1)
    assert (store.checksum, store.content_checksum) == (expected.checksum, expected.content_checksum)


def test_phase_one(raw, tmp_path):
    """Other names, all 51 classes, other names of the lists; and phase II in the same folder is passed over."""
    one = raw / "one"
    for sub in ("skeleton", "label"):
        (one / sub).mkdir(parents=True)
    for seed, name in enumerate(("0002-L", "0003-R")):
        (one / "skeleton" / f"{name}.txt").write_text(text(people(seed)))
        (one / "label" / f"{name}.txt").write_text("12,1,20,2\n51,31,60,1\n")
    (one / "cross-subject.txt").write_text("Training videos:\n0002-L\nValidataion videos:\n0003-R, 0004-L\n")
    store = prepare_pku(raw, tmp_path / "out", phase=PKU1, strict=True, workers=1)
    assert store.names.tolist() == ["0002-L_001", "0002-L_002", "0003-R_001", "0003-R_002"]
    assert store.class_names == CLASS_NAMES
    assert store.label.tolist() == [11, 50, 11, 50]
    assert store.camera.tolist() == [1, 1, 3, 3]
    assert set(store.subject) == {-1}
    assert [side.tolist() for side in store.split("xsub")] == [[0, 1], [2, 3]]
    assert len(prepare_pku(raw, tmp_path / "two", strict=True, workers=1)) == 2 * len(NAMES)


def test_classes_of_phase_two_are_the_daily_actions():
    assert len(set(CLASS_NAMES)) == len(PKU1.class_names) == 51
    assert len(PKU2.class_names) == 41
    gone = [name for name in CLASS_NAMES if name not in PKU2.class_names]
    assert [name for name in gone if "other person" not in name] == [
        "handshaking",
        "put something inside pocket",
        "take out something from pocket",
    ]
    assert len(gone) == 10
    assert {1: "bow", 8: "drink water", 22: "pickup", 34: "standing up", 51: "writing"}.items() <= dict(
        enumerate(CLASS_NAMES, 1)
    ).items()


# Bodies


def test_two_bodies_of_which_the_livelier_comes_first(raw, tmp_path):
    joints = people(5)
    recording(raw, NAMES[0]).write_text(text(joints))
    recording(raw, NAMES[1]).write_text(text(joints[:, ::-1]))
    store = prepare_pku(raw, tmp_path / "out", workers=1)
    for name in NAMES[:2]:
        clip, _ = clips_of(store, name)
        np.testing.assert_array_equal(clip, normalise(joints[:20].astype(np.float32), NTU25))


def test_second_body_for_a_while_and_alone(raw, tmp_path):
    joints = people(5)
    joints[:20, 1] = 0
    joints[15:, 0] = 0  # frames 16 to 20 hold nobody
    recording(raw, NAMES[0]).write_text(text(joints))
    label(raw, NAMES[0]).write_text("8,1,60,2\n8,21,60,2\n8,16,20,2\n")
    store = prepare_pku(raw, tmp_path / "out", workers=1)
    whole, alone = clips_of(store, NAMES[0])
    joints = joints.astype(np.float32)
    np.testing.assert_array_equal(alone, normalise(joints[20:, 1:], NTU25))
    # One after the other, they are one person to the tracker, as in an NTU clip.
    np.testing.assert_array_equal(
        whole[:, 0], normalise(np.concatenate([joints[:15, :1], joints[20:, 1:]]), NTU25)[:, 0]
    )
    assert whole.shape == (55, 1, 25, 3)
    assert reasons(store) == [(f"{NAMES[0]}_003", packing.NO_BODY)]


# Recordings


def lines_of(joints, number, line):
    lines = text(joints).splitlines(keepends=True)
    lines[number - 1] = line
    return "".join(lines)


ONE_BODY = "0.5 " * 75 + "\n"
WHOLE = "0.5 " * 150 + "\n"
FAULTY_RECORDINGS = {
    "truncated": (text(people())[:-200], r"line 60: found \d+ numbers, expected 150"),
    "one body a line": (lines_of(people(), 7, ONE_BODY), "line 7: found 75 numbers, expected 150"),
    "24 joints": (lines_of(people(), 7, "0.5 " * 144 + "\n"), "line 7: found 144 numbers"),
    "two frames in a line": (lines_of(people(), 7, WHOLE.strip() + " " + WHOLE), "line 7: found 300 numbers"),
    "blank line": (lines_of(people(), 7, "\n"), "line 7: found 0 numbers"),
    "NaN": (lines_of(people(), 7, WHOLE.replace("0.5", "nan", 1)), "line 7: found 'nan', expected a finite number"),
    "infinite": (lines_of(people(), 7, WHOLE.replace("0.5", "1e39", 1)), "line 7: found '1e39', expected a finite"),
    "text": (lines_of(people(), 7, WHOLE.replace("0.5", "1.2.3", 1)), "line 7: found '1.2.3', expected a finite"),
    "not ASCII": (lines_of(people(), 7, WHOLE.replace("0.5", "é", 1)), "line 7: found 'Ã©', expected a finite"),
    "commas": (lines_of(people(), 7, WHOLE.replace(" ", ",")), "line 7: found 1 numbers, expected 150"),
    "empty": ("", "line 1: found the end of the file, expected 150 numbers"),
    "blank": (" \r\n\n", "line 1: found the end of the file, expected 150 numbers"),
}


@pytest.mark.parametrize("fault", FAULTY_RECORDINGS)
def test_faulty_recording_is_refused_with_its_line(tmp_path, fault):
    content, message = FAULTY_RECORDINGS[fault]
    (tmp_path / "A01N01-L.txt").write_text(content, encoding="utf-8", newline="")
    with pytest.raises(SkeletonFileError, match=rf"A01N01-L\.txt, {message}"):
        read_recording(tmp_path / "A01N01-L.txt")


def test_what_a_recording_may_look_like(tmp_path):
    joints = people(3)[:, :1]
    whole = text(joints)
    forms = {
        "CRLF": whole.replace("\n", "\r\n"),
        "no last newline": whole.rstrip("\n"),
        "blank last lines": whole + "\n \n\r\n",
        "blanks behind": whole.replace("\n", "  \n"),
        "none in front": whole.replace("\n ", "\n"),
        "tabs": whole.replace(" ", "\t"),
        "integers": whole.replace(" 0.000000", " 0"),
        "exponent": whole.replace(" 0.000000", " -0.0e+00"),
    }
    for form, content in forms.items():
        (tmp_path / "file.txt").write_text(content, newline="")
        read = read_recording(tmp_path / "file.txt")
        assert (read.shape, read.dtype) == ((FRAMES, 2, 25, 3), np.float32), form
        np.testing.assert_array_equal(read[:, :1], joints.astype(np.float32), err_msg=form)
        assert not read[:, 1].any()


def test_numbers_round_as_float_does(tmp_path):
    rng = np.random.default_rng(7)
    tokens = ["0.5"] + [f"{x:.{digits}g}" for x in rng.normal(0, 3, 300) for digits in (2, 6, 9, 17)]
    tokens += ["-0", "12.5", "1234567.25", ".5", "5.", "+3.25", "1e-7", "-2E3", "0.1234567890123", "3.4e38"]
    tokens = tokens[: len(tokens) // 5 * 5]
    lines = "\n".join(" ".join(tokens[i : i + 5]) for i in range(0, len(tokens), 5))
    expected = np.array([float(token) for token in tokens]).astype(np.float32).reshape(-1, 5)
    np.testing.assert_array_equal(read_number_lines(tmp_path, 5, lines.encode()), expected)
    with pytest.raises(SkeletonFileError, match="line 1: found 5 numbers, expected 6"):
        read_number_lines(tmp_path, 6, lines.encode())


# Labels


FAULTY_LABELS = {
    "three fields": ("8,1,20", "expected class,start_frame,end_frame,confidence, found '8,1,20'"),
    "blanks for commas": ("8 1 20 2", "expected class,start_frame,end_frame,confidence, found '8 1 20 2'"),
    "text": ("8,1,x,2", "expected class,start_frame,end_frame,confidence"),
    "class 0": ("0,1,20,2", "class 0, expected 1 to 51"),
    "class 52": ("52,1,20,2", "class 52, expected 1 to 51"),
    "backwards": ("8,20,1,2", "starts in frame 20 and ends in frame 1"),
    "negative": ("8,-3,20,2", "frames -3 to 20 of a recording of 60"),
    "behind the end": ("8,61,70,2", "frames 61 to 70 of a recording of 60"),
    "far beyond the end": (f"8,40,{FRAMES + pku.SLACK + 1},2", "frames 40 to 91 of a recording of 60"),
}


def test_faulty_labels_are_left_out_with_their_lines(raw):
    label(raw, NAMES[0]).write_text("".join(f"{line}\n8,1,20,2\n" for line, _ in FAULTY_LABELS.values()))
    faults = {}
    for n, (_, message) in enumerate(FAULTY_LABELS.values()):
        place = rf"A01N01-L\.txt, line {2 * n + 1}: "
        faults[f"A01N01-L_{2 * n + 1:03}"] = (packing.MALFORMED, place + re.escape(message))
    assert_all_left_out(prepare_pku, raw, faults, clips=len(FAULTY_LABELS) + 2 * len(NAMES[1:]))


def test_label_of_a_body_without_frame_of_reference_is_malformed(raw, tmp_path):
    joints = people(0)[:, :1]
    joints[30:] = 0.5  # all joints in one point
    recording(raw, NAMES[0]).write_text(text(joints))
    store = prepare_pku(raw, tmp_path / "out", workers=1)
    [entry] = store.skipped()
    assert (entry["name"], entry["reason"]) == ("A01N01-L_002", packing.MALFORMED)
    assert "line 2: no frame of body 1 gives a frame of reference" in entry["detail"]


def test_labels_that_are_no_fault_pass_a_strict_preparation(raw, tmp_path):
    label(raw, NAMES[0]).write_text(
        f"14,1,20,2\r\n\r\n8,5,5,2\r\n 8, 0, 20, 1.0 \r\n8,31,{FRAMES + pku.SLACK},2\r\n\r\n"
    )
    store = prepare_pku(raw, tmp_path / "out", strict=True, workers=1)
    assert reasons(store) == [("A01N01-L_001", pku.UNUSED_CLASS), ("A01N01-L_003", pku.NO_DURATION)]
    assert "line 1: action 14, handshaking" in store.skipped()[0]["detail"]
    joints = people(0).astype(np.float32)[:, :1]
    assert store.names[:2].tolist() == ["A01N01-L_004", "A01N01-L_005"]
    np.testing.assert_array_equal(store.clip(0), normalise(joints[:20], NTU25))
    np.testing.assert_array_equal(store.clip(1), normalise(joints[30:], NTU25))


def test_faulty_files_are_left_out_with_their_reasons(raw):
    """Recordings, label files, files without the other one, and of other names; one pair is good."""
    foreign, truncated = ("A1N01-L", "A01N01-X", "A01N01-L (copy)", "0002-L"), FAULTY_RECORDINGS["truncated"]
    for name in ("A01N03-L", *foreign):
        recording(raw, name).write_text(text(people()[:, :1]))
    for name in ("A01N03-L", "A02N02-L"):
        label(raw, name).write_text(LABELS)
    (raw / "Split" / "cross_view_v2.txt").write_text(VIEW_LIST.replace("A01N02-R", "A01N02-R, A01N03-L"))
    label(raw, NAMES[0]).write_bytes(b"")
    label(raw, NAMES[1]).write_bytes(b"8,1,20,2\n" * 1000)
    label(raw, NAMES[2]).unlink()
    recording(raw, NAMES[3]).write_text(truncated[0])
    faults = {
        NAMES[0]: (packing.MALFORMED, rf"{label(raw, NAMES[0])}.*0 lines, expected 1 to 999 labels"),
        NAMES[1]: (packing.MALFORMED, "1000 lines, expected 1 to 999 labels"),
        NAMES[2]: (pku.UNPAIRED, rf"{NAMES[2]}\.txt: there is no label file of that name"),
        NAMES[3]: (packing.MALFORMED, rf"{NAMES[3]}\.txt, {truncated[1]}"),
        "A02N02-L": (pku.UNPAIRED, r"A02N02-L\.txt: there is no recording of that name"),
    }
    faults |= dict.fromkeys(foreign, (packing.FOREIGN_NAME, "not the name of a recording such as A01N01-L"))
    assert_all_left_out(prepare_pku, raw, faults, clips=2)
    label(raw, NAMES[1]).write_bytes(b"8,1,20,2\n\xff\n")
    store = prepare_pku(raw, raw.parent / "out", overwrite=True, workers=1)
    assert any("can't decode byte 0xff" in entry["detail"] for entry in store.skipped())


# Files


def test_lists_may_lie_beside_the_recordings(raw, tmp_path):
    for file in (raw / "Split").iterdir():
        file.rename(recording(raw, "x").with_name(file.name))
    store = prepare_pku(raw, tmp_path / "out", strict=True, workers=1)
    assert (len(store), store.protocols, store.skipped()) == (8, ("xsub", "xview"), [])


def test_second_file_of_a_name_is_left_out(raw, tmp_path):
    (raw / "again").mkdir()
    (raw / "again" / "A01N01-L.txt").write_text(text(people(0)))
    with pytest.raises(PrepareError, match=r"again/A01N01-L\.txt: .*PKU_Skeleton_Renew/A01N01-L\.txt has the same"):
        prepare_pku(raw, tmp_path / "strict", strict=True, workers=1)
    store = prepare_pku(raw, tmp_path / "out", workers=1)
    assert reasons(store) == [(NAMES[0], packing.DUPLICATE)]


def test_recording_in_no_list_is_left_out(raw, tmp_path):
    (raw / "Split" / "cross_view_v2.txt").write_text(VIEW_LIST.replace(", A01N02-R", ""))
    (raw / "Split" / "cross_subject_v2.txt").write_text(SUBJECT_LIST.replace("A01N02-R, ", ""))
    store = prepare_pku(raw, tmp_path / "out", strict=True, workers=1)
    assert len(store) == 2 * (len(NAMES) - 1)
    [entry] = store.skipped()
    assert (entry["name"], entry["reason"]) == ("A01N02-R", pku.UNLISTED)
    assert entry["detail"].endswith("in no list of xsub and xview")


FAULTY_LISTS = {
    "on both sides": (
        SUBJECT_LIST.replace("A01N03-L", "A01N01-M"),
        "cross_subject_v2.txt: A01N01-M both train and test",
    ),
    "truncated": (SUBJECT_LIST.partition("Valid")[0], "has 2 lines; expected 4"),
    "empty": ("", "is no list of recordings: expected names such as A01N01-L"),
    "prose": ("Training videos: none\n", "is no list of recordings"),
    "foreign name": (SUBJECT_LIST.replace("A01N01-M", "A01N1-M"), "'A01N1-M' is no recording of PKU-MMD phase II"),
    "no test recording": ("Training:\nA01N01-L\nTest:\n,\n", "the list of test recordings is empty"),
    "of the other phase": ("Training:\n0001-L\nTest:\n0002-L\n", "holds no cross-subject list of PKU-MMD phase II"),
    "not text": ("\udcff", "cannot read the list"),
}


def test_faulty_list_is_an_error(raw, tmp_path):
    for content, message in FAULTY_LISTS.values():
        (raw / "Split" / "cross_subject_v2.txt").write_bytes(content.encode(errors="surrogateescape"))
        with pytest.raises(PrepareError, match=message):
            prepare_pku(raw, tmp_path / "out", workers=1)
        assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_two_lists_that_differ_are_an_error(raw, tmp_path):
    (raw / "cross-subject.txt").write_text(SUBJECT_LIST)
    assert len(prepare_pku(raw, tmp_path / "same", workers=1)) == 8
    (raw / "cross-subject.txt").write_text(SUBJECT_LIST.replace(", A01N03-L", ""))
    with pytest.raises(PrepareError, match=r"are lists for xsub that differ: name the folder of the right one"):
        prepare_pku(raw, tmp_path / "out", workers=1)
    assert len(prepare_pku(raw, tmp_path / "out", splits=raw / "Split", workers=1)) == 8


def test_what_is_missing_is_said(raw, tmp_path, capsys):
    def error(*arguments):
        assert main(["pku2", "--out", str(tmp_path / "out"), *map(str, arguments)]) == 1
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    how_to_get = "python -m train.prepare pku2 --raw FOLDER"
    assert "nowhere is not a folder" in (message := error("--raw", tmp_path / "nowhere"))
    assert how_to_get in message
    assert "Split holds no recording of PKU-MMD phase II" in (message := error("--raw", raw / "Split"))
    assert how_to_get in message
    data, labels = raw / "Data", raw / "Label"
    assert "Data holds no label file of PKU-MMD phase II such as A01N01-L.txt" in (message := error("--raw", data))
    assert "unpack Label_PKUMMD_v2.7z there, or name its folder with --labels" in message
    message = error("--raw", data, "--labels", labels)
    assert "Data holds no cross-subject list of PKU-MMD phase II: put cross_subject_v2.txt there" in message
    assert "Label holds no cross-subject list" in error("--raw", data, "--labels", labels, "--splits", labels)
    assert "workers must be at least 1" in error("--raw", raw, "--workers", 0)


def test_names_grow_in_the_order_of_files_and_lines(raw, tmp_path):
    label(raw, NAMES[0]).write_text("8,1,20,2\n" * 120)
    store = prepare_pku(raw, tmp_path / "out", strict=True, workers=1)
    names = store.names.tolist()
    assert names == sorted(names)
    assert names[:120] == [f"A01N01-L_{line:03}" for line in range(1, 121)]
    assert names[120] == "A01N01-M_001"


def test_clips_that_others_cut_are_named_as_that(tmp_path):
    (tmp_path / "F002V001C008L001.skeleton").write_text("1\n")
    with pytest.raises(PrepareError, match=r"clips that others have cut from PKU-MMD \(F002V001C008L001\.skeleton\)"):
        prepare_pku(tmp_path, tmp_path / "out", workers=1)


def test_recordings_with_decimal_commas_and_byte_order_marks_are_read(raw, tmp_path):
    before = prepare_pku(raw, tmp_path / "points", strict=True, workers=1)
    for name in NAMES:
        file = recording(raw, name)
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b".", b","))
    after = prepare_pku(raw, tmp_path / "commas", strict=True, workers=1)
    assert after.names.tolist() == before.names.tolist()
    np.testing.assert_array_equal(after.frames, before.frames)
