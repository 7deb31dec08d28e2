"""The page as a file: packed motion, what is text in it and stays text, what it may run, its size."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from page_content import CLASSES, clip_of, report_content, store_of

from fastmc.page.document import ASSETS, ECHARTS, ECHARTS_SHA256, as_json, room_for_motion, write_page
from fastmc.page.motion import pack, unpack
from fastmc.skeleton import NTU25, SKELETONS, Skeleton

MARKUP = "</script><img src=x onerror=alert(1)><!--<script>"


class Parts(HTMLParser):
    """What a browser makes of a page: its scripts, its other text, its attributes by name."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.scripts and data.strip():
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)


@pytest.fixture(scope="module")
def content():
    return report_content(2, tests=24, training=24)


def about_first_middle(clip: np.ndarray) -> np.ndarray:
    there = (clip != 0).any(axis=(2, 3))
    points = clip[0][there[0]].reshape(-1, 3)
    return np.where(there[..., None, None], clip - (points.min(axis=0) + points.max(axis=0)) / 2, 0)


@pytest.mark.parametrize("quantum", [0.004, 0.001])
def test_motion_comes_back_within_half_a_quantum(quantum):
    rng = np.random.default_rng(0)
    clips = store_of(12, rng)
    assert any((clip == 0).all(axis=(2, 3)).any() for clip in clips), "a body is absent for a while"
    packed = json.loads(json.dumps(pack(clips, NTU25, frames=1000, quantum=quantum)))
    for clip, back in zip(clips, unpack(packed, 25), strict=True):
        wanted = about_first_middle(clip)
        assert np.abs(back - wanted).max() <= quantum / 2 + 1e-6
        np.testing.assert_array_equal((back == 0).all(axis=(2, 3)), (clip == 0).all(axis=(2, 3)))


def test_of_a_long_clip_frames_at_equal_intervals_are_kept_and_of_a_short_one_all():
    ramp = np.zeros((101, 1, 25, 3)) + np.linspace(0, 1, 101)[:, None, None, None] + 0.5
    (back,) = unpack(pack([ramp], NTU25, frames=11, quantum=1e-4), 25)
    np.testing.assert_allclose(back[:, 0, 0, 0], np.linspace(0, 1, 11), atol=1e-4)
    assert pack([ramp[:3]], NTU25)["frames"] == [3]
    assert pack([ramp[:1]], NTU25)["frames"] == [1]


def test_a_perturbation_is_packed_where_it_is():
    rho = np.random.default_rng(0).normal(scale=0.01, size=(20, 2, 25, 3))
    packed = pack([rho + 1, rho], NTU25, quantum=[0.004, 1e-5], centred=[True, False])
    assert packed["quantum"] == [0.004, 1e-5]
    assert np.abs(unpack(packed, 25)[1] - rho).max() <= 5.1e-6


def test_a_stray_joint_makes_its_own_clip_coarser_and_no_other():
    clips = store_of(2, np.random.default_rng(0))
    clips[0] = clips[0].copy()
    clips[0][-1, 0, 7] = 500.0
    packed = pack(clips, NTU25)
    assert packed["quantum"][0] > 0.01 and packed["quantum"][1] == 0.004
    back = unpack(packed, 25)[0]
    assert np.isfinite(back).all() and np.abs(back).max() <= 501


@pytest.mark.parametrize("name", SKELETONS)
def test_every_layout_is_packed_and_so_is_one_without_bones(name):
    for skeleton in (SKELETONS[name], Skeleton("points", tuple("abcd"))):
        clip = np.random.default_rng(0).normal(size=(9, 1, skeleton.num_joints, 3))
        (back,) = unpack(pack([clip], skeleton), skeleton.num_joints)
        assert np.abs(back - about_first_middle(clip)).max() <= 0.002 + 1e-9


def test_fewer_frames_and_then_coarser_quanta_where_there_is_little_room():
    clips = store_of(30, np.random.default_rng(0))
    whole = pack(clips, NTU25)
    half = pack(clips, NTU25, most_bytes=len(whole["data"]) // 2)
    tenth = pack(clips, NTU25, most_bytes=len(whole["data"]) // 10)
    assert len(half["data"]) <= len(whole["data"]) // 2 and len(tenth["data"]) <= len(whole["data"]) // 10
    assert max(whole["frames"]) > max(half["frames"]) > max(tenth["frames"]) >= 2
    assert tenth["quantum"] > whole["quantum"] == 0.004
    assert pack(clips, NTU25, most_bytes=len(whole["data"])) == whole


def test_what_is_no_clip_of_the_layout_is_refused():
    with pytest.raises(ValueError, match=r"a clip of ntu25 must be \(T, M, 25, 3\), got \(4, 1, 20, 3\)"):
        pack([np.zeros((4, 1, 20, 3))], NTU25)
    with pytest.raises(ValueError, match="got"):
        pack([np.zeros((0, 1, 25, 3))], NTU25)
    assert pack([], NTU25)["frames"] == []


@pytest.mark.slow
def test_a_page_of_2000_test_clips_is_under_6_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    content = report_content(1, tests=2000, training=3000, play=False)
    clips = store_of(5000, rng)
    room = room_for_motion(content, 6_000_000)
    size = write_page(tmp_path / "report.html", content, pack(clips, NTU25, most_bytes=room))
    assert size == (tmp_path / "report.html").stat().st_size < 6_000_000
    whole = report_content(1, tests=20, training=20)["motion"]["data"]
    assert len(whole) / 40 * 5000 > room, "there is no room for all: the test tries what it says"


def test_names_are_data_whatever_they_say(content, tmp_path):
    hostile = {
        **content,
        "title": MARKUP,
        "classes": [MARKUP, *content["classes"][1:]],
        "notes": ["\u2028&<>", "\ud800"],
    }
    write_page(tmp_path / "page.html", hostile)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    parts = Parts(page)
    assert "img" not in parts.tags and parts.tags.count("script") == page.count("<script")
    (told,) = [text for attributes, text in parts.scripts if attributes.get("id") == "content"]
    assert json.loads(told) == json.loads(json.dumps(hostile))
    assert not re.search(r"[<>&\u2028\u2029]", told)


def test_markup_in_a_name_would_be_seen(content, tmp_path, monkeypatch):
    monkeypatch.setattr("fastmc.page.document.as_json", lambda content: json.dumps(content, ensure_ascii=False))
    with pytest.raises(AssertionError):
        test_names_are_data_whatever_they_say(content, tmp_path)


def test_the_policy_names_each_program_and_nothing_is_loaded(content, tmp_path):
    write_page(tmp_path / "page.html", content)
    parts = Parts((tmp_path / "page.html").read_text(encoding="utf-8"))
    (policy,) = [
        value for tag, name, value in parts.attributes if name == "content" and value and "default-src" in value
    ]
    programs = [text for attributes, text in parts.scripts if attributes.get("type") == "module"]
    sums = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in programs}
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert set(rules.pop("script-src").split()) == sums and len(sums) == len(programs) > 5
    assert rules == {
        "default-src": "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    loaded = [value for _, name, value in parts.attributes if name in ("src", "href", "action", "srcset")]
    assert loaded == ["data:,"]
    assert "@import" not in (ASSETS / "page.css").read_text() and "url(" not in (ASSETS / "page.css").read_text()


def test_our_programs_make_no_markup_and_no_program_of_text():
    ours = sorted(ASSETS.glob("*.js"))
    assert len(ours) > 5
    for path in ours:
        text = path.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch("):
            assert word not in text, f"{path.name} has {word}"
        assert "</script" not in text and "<!--" not in text and "\r" not in text


def test_echarts_is_the_published_file_with_its_licence():
    bundle = (ASSETS / ECHARTS).read_bytes()
    assert hashlib.sha256(bundle).hexdigest() == ECHARTS_SHA256
    assert b"</script" not in bundle and b"<!--" not in bundle
    for name, words in (("LICENSE", "Apache License"), ("NOTICE", "Apache ECharts"), ("LICENSE-d3", "Mike Bostock")):
        assert words in (ASSETS / "vendor" / name).read_text(encoding="utf-8")


def test_what_is_no_number_becomes_null():
    told = as_json({"loss": [1.5, float("nan"), float("inf")], "deep": {"x": (float("-inf"), "NaN")}})
    assert json.loads(told) == {"loss": [1.5, None, None], "deep": {"x": [None, "NaN"]}}


def test_a_page_is_written_whole_or_not_at_all(content, tmp_path):
    (tmp_path / "page.html").write_text("before")
    with pytest.raises(KeyError):
        write_page(tmp_path / "page.html", {**content, "kind": "something"})
    assert (tmp_path / "page.html").read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_sticks_do_what_their_class_says():
    """The content that other tests play: people have their size, and move."""
    rng = np.random.default_rng(0)
    for action in CLASSES:
        clip = clip_of(action, rng)
        height = clip[10, 0, :, 1].max() - clip[10, 0, :, 1].min()
        assert 1.2 < height < 2.2 and np.ptp(clip[:, 0], axis=0).max() > 0.15, action
