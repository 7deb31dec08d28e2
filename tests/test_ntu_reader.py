"""`.skeleton` files: the fast reader against the plain one, and the plain one against what was written."""

from __future__ import annotations

import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmc.data.formats import skeleton_file as ntu
from fastmc.data.formats.skeleton_file import ClipName, RawClip, SkeletonFileError, parse_name, read_skeleton
from fastmc.reference import ntu as reference

READERS = [read_skeleton, reference.read_skeleton]
BODY_LINE = "72057594037931101 0 1 1 1 1 0 0.02764709 0.05745083 2"
JOINT_LINE = (
    "0.2181153 0.1725972 3.785547 277.419 191.8218 1036.233 519.1677 -0.2059419 0.05349901 0.9692109 -0.1239193 2"
)
ODD_NUMBERS = [
    *("1e-05", "-3.93107E-05", "2e3", "5.", ".5", "+0.5", "-0.0", "-0", "7", "12.5", "-10.25", "007.50", "1_0.5"),
    *("0.123456789", "0.12345678901234567890", "123456789012345678901234567890.5", "9.99999999", "-9.99999999"),
]
NOT_FINITE = ["nan", "-inf", "Infinity", "1e39", "3.4028236e38", "1e400"]
NOT_NUMBERS = [
    *("x", "1.2.3", "-", ".", "--1", "1-2", "-.", "1e", "0x10", "1,5", "1..2", "\u00e9", "1\x0012", "_1", "- 1"),
]


def body_lines(body_id: str = "7", joint: str = JOINT_LINE) -> list[str]:
    return [BODY_LINE.replace("72057594037931101", body_id), "25", *[joint] * 25]


def good_lines() -> list[str]:
    """Three frames of none, two and one bodies: lines 1; 2; 3, 4-30, 31-57; 58, 59-85."""
    return ["3", "0", "2", *body_lines("7"), *body_lines("8"), "1", *body_lines("8")]


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    path.write_bytes("".join(line + end for line in lines).encode())
    return path


def outcome(reader, path: Path) -> tuple:
    """The value down to its bits, or the error."""
    try:
        clip = reader(path)
    except SkeletonFileError as error:
        return error.path, error.line, error.reason
    bodies = [
        (k, b.frames.tolist(), b.joints.shape, b.joints.dtype, b.joints.tobytes()) for k, b in clip.bodies.items()
    ]
    return clip.num_frames, bodies


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("end", ["\n", "\r\n", " \n", "  \r\n", "\t\n"])
def test_reads_what_was_written(tmp_path, reader, end):
    rng = np.random.default_rng(0)
    joints = rng.normal(size=(3, 25, 3)).astype(np.float32)
    text = [[" ".join(map(str, [*xyz, *range(9)])) for xyz in body.tolist()] for body in joints]
    head = [BODY_LINE.replace("72057594037931101", body_id) for body_id in ("9", "8")]
    lines = ["4", "1", head[0], "25", *text[0], "0", "2", head[1], "25", *text[1], head[0], "25", *text[2]]
    lines += ["0", "", " "]
    clip = reader(write(tmp_path / "a", lines, end))
    assert clip.num_frames == 4
    assert list(clip.bodies) == ["9", "8"]
    assert clip.bodies["9"].frames.tolist() == [0, 2]
    assert clip.bodies["8"].frames.tolist() == [2]
    np.testing.assert_array_equal(clip.bodies["9"].joints, joints[[0, 2]])
    np.testing.assert_array_equal(clip.bodies["8"].joints, joints[[1]])
    assert clip.bodies["9"].joints.dtype == np.float32
    assert clip.bodies["9"].frames.dtype == np.int64


def changed(lines: list[str], change) -> list[str]:
    """With its joints' lines changed."""
    return [change(line) if line == JOINT_LINE else line for line in lines]


CERTAIN = {
    "byte-order mark": lambda text: "\ufeff" + text,
    "decimal commas": lambda text: text.replace(".", ","),
    "both": lambda text: "\ufeff" + text.replace(".", ","),
    **{
        nan: lambda text, nan=nan: text.replace("1036.233", nan)
        for nan in ("-1.#IND", "1.#QNAN", "1.#INF00", "-nan(ind)")
    },
    "x, y, z alone": lambda text: text.replace(JOINT_LINE, " ".join(JOINT_LINE.split()[:3])),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("how", CERTAIN)
def test_text_whose_meaning_is_certain_is_read(tmp_path, reader, how):
    text = "\n".join(good_lines()) + "\n"
    (tmp_path / "a").write_text(text, encoding="utf-8")
    (tmp_path / "b").write_text(CERTAIN[how](text), encoding="utf-8")
    assert outcome(reader, tmp_path / "b") == outcome(reader, tmp_path / "a")


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_position_is_none_in_any_writing(tmp_path, reader):
    for number in ("-1.#IND", "1.#QNAN", "nan(snan)", "1.#INDx", "1.#"):
        path = write(tmp_path / "a", changed(good_lines(), lambda line, n=number: line.replace("0.1725972", n)))
        with pytest.raises(
            SkeletonFileError, match=r"line 6: found (y = nan, expected a finite|'.*', expected a number)"
        ):
            reader(path)
    short = changed(good_lines(), lambda line: " ".join(line.split()[:3]))
    for lines in ([*good_lines()[:-1], short[-1]], [*short[:-1], good_lines()[-1]]):
        with pytest.raises(
            SkeletonFileError, match=r"line 85: found (3|12) fields, expected the (12|3) numbers of a joint"
        ):
            reader(write(tmp_path / "a", lines))
    with pytest.raises(SkeletonFileError, match="'1,5'"):
        reader(write(tmp_path / "a", changed(good_lines(), lambda line: line.replace("0.1725972", "1,5"))))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("frames", [0, 2])
def test_clip_without_bodies(tmp_path, reader, frames):
    clip = reader(write(tmp_path / "a", [str(frames), *["0"] * frames]))
    assert clip == RawClip(frames, {})


@pytest.mark.parametrize("end", ["\n", "\r\n", " \n"])
def test_sound_files_never_need_the_plain_reader(tmp_path, monkeypatch, end):
    path = write(
        tmp_path / "a", [*good_lines()[:-1], "1e-05 -inf".join(JOINT_LINE.rsplit("-0.1239193 2", 1)), "", ""], end
    )
    expected = outcome(reference.read_skeleton, path)
    monkeypatch.setattr(ntu, "read_plainly", lambda path: pytest.fail("gave up on a sound file"))
    assert outcome(read_skeleton, path) == expected


def test_positions_round_as_float_does(tmp_path):
    rng = random.Random(0)
    styles = ["{:.7g}", "{:.8f}", "{:.9g}", "{:.3f}", "{:.1f}", "{:.0f}", "{!r}", "{:.7E}", "{:+.6f}", "{:09.5f}"]
    numbers = [
        rng.choice(styles).format(rng.gauss(0, 1) * 10 ** rng.randint(-8, 3)) for _ in range(75 * 60 - len(ODD_NUMBERS))
    ]
    numbers += ODD_NUMBERS
    rng.shuffle(numbers)
    lines = ["60"]
    for t in range(60):
        xyz = [" ".join(numbers[i : i + 3]) for i in range(75 * t, 75 * t + 75, 3)]
        lines += ["1", BODY_LINE, "25", *[f"{each} 1 2 3 4 5 6 7 8 9" for each in xyz]]
    (body,) = read_skeleton(write(tmp_path / "a", lines)).bodies.values()
    expected = np.array([float(number) for number in numbers]).astype(np.float32)
    assert body.joints.tobytes() == expected.tobytes()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("edit", "line", "found", "expected"),
    [
        (lambda ls: ls.clear(), 1, "end of the file", "number of frames"),
        (lambda ls: ls.__setitem__(0, "x"), 1, "'x'", "number of frames"),
        (lambda ls: ls.__setitem__(0, "-3"), 1, "'-3'", "number of frames"),
        (lambda ls: ls.__setitem__(0, "9" * 5000), 1, "'999", "number of frames"),
        (lambda ls: ls.__setitem__(0, "4"), 86, "end of the file", "number of bodies of frame 4 of 4"),
        (lambda ls: ls.__setitem__(0, "2"), 58, "'1'", "end of the file after 2 frames"),
        (lambda ls: ls.__setitem__(2, "3"), 58, "1 fields", "10 numbers of a body"),
        (lambda ls: ls.__setitem__(2, "1"), 31, "'8 0 1 1", "number of bodies of frame 3 of 3"),
        (lambda ls: ls.__setitem__(4, "24"), 5, "24 joints", "25"),
        (lambda ls: ls.__setitem__(4, "25.0"), 5, "'25.0'", "number of joints"),
        (lambda ls: ls.__setitem__(4, "25 25"), 5, "'25 25'", "number of joints"),
        (lambda ls: ls.__setitem__(2, "2 2"), 3, "'2 2'", "number of bodies of frame 2 of 3"),
        (lambda ls: ls.__delitem__(slice(0, 3)), 1, "'7 0 1 1", "number of frames"),
        (lambda ls: ls.__setitem__(slice(0, None), body_lines()), 1, "'7 0 1 1", "number of frames"),
        (lambda ls: ls.pop(10), 30, "10 fields", "12 numbers of a joint"),
        (lambda ls: ls.insert(10, JOINT_LINE), 31, "12 fields", "10 numbers of a body"),
        (lambda ls: ls.__setitem__(10, JOINT_LINE + " 1"), 11, "13 fields", "12 numbers of a joint"),
        (lambda ls: ls.__setitem__(10, JOINT_LINE[:-2]), 11, "11 fields", "12 numbers of a joint"),
        (lambda ls: ls.__setitem__(3, BODY_LINE[:-2]), 4, "9 fields", "10 numbers of a body"),
        (
            lambda ls: ls.__setitem__(3, BODY_LINE.replace(" 1 ", " one ", 1)),
            4,
            "'one'",
            "number (left hand confidence)",
        ),
        (lambda ls: ls.__setitem__(10, JOINT_LINE.replace("0.17", "0.1.7")), 11, "'0.1.725972'", "a number (y)"),
        (lambda ls: ls.__setitem__(10, JOINT_LINE.replace("0.9692109", "?")), 11, "'?'", "a number (orientation y)"),
        (lambda ls: ls.__setitem__(10, JOINT_LINE.replace("3.785547", "nan")), 11, "z = nan", "finite"),
        (lambda ls: ls.__setitem__(10, JOINT_LINE.replace("0.2181153", "-inf")), 11, "x = -inf", "finite"),
        (lambda ls: ls.__setitem__(10, JOINT_LINE.replace("0.2181153", "1e39")), 11, "x = 1e+39", "finite"),
        (lambda ls: ls.__setitem__(10, "\u00e9"), 11, "0xc3", "ASCII"),
        (lambda ls: ls.insert(10, ""), 11, "an empty line", "12 numbers of a joint"),
        (lambda ls: ls.__setitem__(30, BODY_LINE.replace("72057594037931101", "7")), 31, "ID 7", "once"),
        (lambda ls: ls.append("0"), 86, "'0'", "end of the file after 3 frames"),
        (lambda ls: ls.__delitem__(slice(-3, None)), 83, "end of the file", "12 numbers of a joint"),
    ],
)
def test_errors_name_the_line(tmp_path, reader, edit, line, found, expected):
    lines = good_lines()
    edit(lines)
    path = write(tmp_path / "bad.skeleton", lines)
    with pytest.raises(SkeletonFileError) as caught:
        reader(path)
    assert (caught.value.path, caught.value.line) == (path, line)
    before, after = caught.value.reason.split("expected")
    assert found in before
    assert expected in after
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


PIECES = st.one_of(
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(NOT_FINITE + NOT_NUMBERS + ["25", "1", "0", " ", "", "\t1", "1\x1c", "\n", "\r", "\r\n", "2\r3"]),
    st.text("0123456789.-+eE_ \r\n", max_size=6),
)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A sound file, most of the time, with some tokens, lines and bytes replaced."""
    rng = random.Random(draw(st.integers(0, 2**16)))
    frames = draw(
        st.lists(st.lists(st.sampled_from(["7", "72057594037931101", "-1"]), unique=True, max_size=3), max_size=4)
    )
    numbers = lambda n: [f"{rng.gauss(0, 1):.7g}" for _ in range(n)]  # noqa: E731
    lines = [[str(len(frames))]]
    for bodies in frames:
        lines.append([str(len(bodies))])
        for body_id in bodies:
            lines += [[body_id, *numbers(9)], ["25"], *[numbers(12) for _ in range(25)]]
    for where, piece in draw(st.lists(st.tuples(st.integers(0, 2**16), PIECES), max_size=4)):
        line = lines[where % len(lines)]
        line[(where >> 8) % min(len(line), 4)] = piece
    end, blanks = draw(st.sampled_from(["\n", "\r\n"])), draw(st.sampled_from(["", "", " ", "\t"]))
    for where, kind in draw(
        st.lists(st.tuples(st.integers(0, 2**16), st.sampled_from(["drop", "twice", "empty"])), max_size=1)
    ):
        i = where % len(lines)
        lines[i : i + 1] = {"drop": [], "twice": [lines[i]] * 2, "empty": [[], lines[i]]}[kind]
    content = "".join(" ".join(line) + blanks + end for line in lines) + draw(st.sampled_from(["", end, " " + end]))
    cut = draw(st.one_of(st.none(), st.none(), st.none(), st.integers(0, len(content))))
    return content[:cut].encode()


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(content=files())
def test_same_value_or_same_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "random.skeleton"
    path.write_bytes(content)
    assert outcome(read_skeleton, path) == outcome(reference.read_skeleton, path)


@pytest.mark.parametrize("place", ["{}", "1{}", "{}1", "1{}2"])
def test_any_token_in_any_place(tmp_path, place):
    for text in (*ODD_NUMBERS, *NOT_FINITE, *NOT_NUMBERS, "", " ", "\n", "\r", "\t", "\0", "\x0b", "\x1c", "\x85"):
        token = place.format(text)
        for i, line in enumerate([BODY_LINE, BODY_LINE, JOINT_LINE, JOINT_LINE, JOINT_LINE]):
            fields = line.split()
            fields[[0, 4, 0, 2, 11][i]] = token
            lines = ["1", "1", *body_lines()]
            lines[2 if i < 2 else 9] = " ".join(fields)
            path = write(tmp_path / "a", lines)
            assert outcome(read_skeleton, path) == outcome(reference.read_skeleton, path), (token, i)


def test_parse_name():
    name = "S001C002P003R002A013"
    for form in (name, f"{name}.skeleton", f"a/b/{name}.skeleton", Path(name)):
        assert parse_name(form) == ClipName(setup=1, camera=2, performer=3, replication=2, action=13)
    strict = ["", "S01C002P003R002A013", name.lower(), f"{name}4", f"x{name}", f"{name}.txt"]
    for form in [*strict, f"{name}.skeleton.gz", f"{name}\n", "S001C002P003R002A01\u0663"]:
        with pytest.raises(ValueError, match="expected SsssCcccPpppRrrrAaaa with three digits each"):
            parse_name(form)
    for form in ("S000C001P001R001A001", "S001C004P001R001A001", "S001C001P001R001A000"):
        with pytest.raises(ValueError, match="numbers start at 1, cameras end at 3"):
            parse_name(form)
