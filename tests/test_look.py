"""The page of a packed store says what is in the store: by value, from its facts to the views of its clips."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from bodies import performed
from conftest import write_small_store
from test_prepare import clip_name, skeleton_text, write_raw

from fastmc.data.formats.ntu import prepare_ntu
from fastmc.data.placed.resident import ResidentStore
from fastmc.data.report import remarks
from fastmc.data.store import PackedStore, StoreError, StoreWriter
from fastmc.page import store as of_store
from fastmc.page.clips import clip_columns, known_fields, spread
from fastmc.page.motion import unpack
from fastmc.page.store import store_content
from fastmc.page.views import VIEWS, Augmentation
from fastmc.skeleton import NTU25
from fastmc.views.draw import STRONG, AugmentConfig, draw_params, rotation_matrix
from fastmc.views.make import make_views
from fastmc.views.words import ViewOfClip, angles_of, explained
from train.look import main, parse


@pytest.fixture(scope="module")
def small(data_root) -> PackedStore:
    return PackedStore.open(data_root / "small")


def people(path, change=lambda clip: clip, **more) -> PackedStore:
    """A store of people who move as people do, changed before they are stored."""
    meta = {"name": path.name, "skeleton": NTU25, "fps": 30.0, "class_names": ["a", "b"], **more}
    with StoreWriter(path, protocols={"xsub": {"field": "subject", "train": [1]}}, **meta) as writer:
        for n in range(12):
            writer.add(change(performed(1 + n))[:, None], name=f"clip{n:02}", label=n % 2, subject=1 + n // 6)
    return PackedStore.open(path)


# --- What is counted


def test_all_numbers_are_those_of_the_store(small):
    content = store_content(small, clips=1000)["store"]
    lengths = content["lengths"]
    for (low, high), clips in zip(pairwise(lengths["edges"]), lengths["counts"], strict=True):
        assert clips == sum(low <= frames < high for frames in small.num_frames.tolist())
    assert sum(lengths["counts"]) == len(small) and lengths["fps"] == small.fps
    assert content["bodies"] == [[1, 39], [2, 9]]
    assert sorted(content["by"]) == ["camera", "class", "subject"]
    for name, values in (("class", small.label), ("subject", small.subject), ("camera", small.camera)):
        for _, value, clips, tests in content["by"][name]:
            assert clips == (values == value).sum()
            assert tests == [(values[small.split(protocol)[1]] == value).sum() for protocol in small.protocols]
        assert sum(entry[2] for entry in content["by"][name]) == len(small)
    assert [entry[0] for entry in content["by"]["class"]] == list(small.class_names)
    assert [(p["name"], p["train"], p["test"]) for p in content["protocols"]] == [("xsub", 24, 24), ("xview", 32, 16)]
    for protocol in content["protocols"]:
        tests = small.split(protocol["name"])[1]
        assert [n for n, test in enumerate(protocol["tests"]) if test] == tests.tolist()
    assert dict(content["facts"])["bodies"] == "39 clips with 1, 9 clips with 2"
    assert "setups" not in dict(content["facts"]), "what is unknown is no fact"


def test_clips_of_one_length_have_one_bar(tmp_path):
    store = people(tmp_path / "same", lambda clip: clip[:10])
    assert store_content(store, clips=5)["store"]["lengths"] == {"edges": [10, 11], "counts": [12], "fps": 30.0}


def test_clips_are_those_of_the_store(small):
    content = store_content(small, clips=1000)
    assert content["clips"] == clip_columns(small, np.arange(len(small)), small.split("xsub")[1])
    columns = content["clips"]
    assert columns["name"] == small.names.tolist() and columns["class"] == small.label.tolist()
    assert np.allclose(columns["seconds"], small.num_frames / 30, atol=1e-3)
    assert columns["test"] == np.isin(small.subject, [2, 4]).astype(int).tolist()
    assert content["fields"] == known_fields(small) == ["subject", "camera"]
    for n, clip in enumerate(unpack(content["motion"], 25)):
        first, last = small.clip(n)[[0, -1]]
        assert np.abs((clip[-1] - clip[0]) - (last - first)).max() <= 0.005, "whole quanta of 4 mm"
    assert content["skeleton"]["joints"] == list(NTU25.joint_names)
    assert content["notes"] == ["At most 32 frames of each clip are carried; what plays between them is interpolated."]


# --- What the page carries of many


def test_a_sample_is_spread_over_classes_and_then_over_what_else_is_known():
    rng = np.random.default_rng(0)
    label = rng.choice(4, size=500, p=[0.7, 0.2, 0.06, 0.04])
    subject, camera = rng.integers(1, 6, 500), rng.integers(1, 4, 500)
    found = spread([label, subject, camera], 60, seed=1)
    assert np.all(np.diff(found) > 0)
    assert np.bincount(label[found]).tolist() == [15] * 4
    for n in range(2):
        people = np.bincount(subject[found][label[found] == n])[1:]
        assert people.tolist() == [3] * 5
    assert np.array_equal(found, spread([label, subject, camera], 60, seed=1))
    assert not np.array_equal(found, spread([label, subject, camera], 60, seed=2))
    assert np.array_equal(spread([label, subject, camera], 9999), np.arange(500))
    rare = int((label == 3).sum())
    assert np.bincount(label[spread([label], 4 * rare + 40)])[3] == rare, "all of what is rare"


def test_only_what_is_shown_is_read_and_the_page_says_so(small, monkeypatch):
    read, clip = set(), PackedStore.clip
    monkeypatch.setattr(PackedStore, "clip", lambda store, n: read.add(n) or clip(store, n))
    content = store_content(small, clips=9, seed=3)
    shown = {small.names.tolist().index(name) for name in content["clips"]["name"]}
    assert len(shown) == len(content["motion"]["frames"]) == 9
    assert read <= shown | {0}, "and one to see where the front is"
    assert content["notes"][0].startswith("9 of 48 clips are carried by this page, drawn by chance (seed 3)")
    assert sum(content["store"]["lengths"]["counts"]) == 48


def test_a_clip_that_is_not_finite_is_named(tmp_path):
    store = people(tmp_path / "broken")
    frames = np.load(store.path / "frames.npy", mmap_mode="r+")
    frames[int(store.start[7]) + 3, 4, 1] = np.nan
    frames.flush()
    with pytest.raises(StoreError, match="clip clip07 holds NaN or infinite coordinates; prepare it again"):
        store_content(PackedStore.open(store.path), clips=100)


# --- What is wrong


def test_what_was_left_out_has_its_reason_and_the_line(tmp_path, monkeypatch):
    raw = write_raw(tmp_path / "raw", [clip_name(subject=s, action=a) for s in (1, 3) for a in (1, 2)])
    faulty = {
        clip_name(action=7): skeleton_text()[:-200],
        clip_name(action=8): skeleton_text().replace("\n25\n", "\nabc\n", 1),
        "S01C001P001R001A001": skeleton_text(),
    }
    for name, text in faulty.items():
        (raw / f"{name}.skeleton").write_text(text)
    store = prepare_ntu(raw, tmp_path / "out", workers=1)
    content = store_content(store, clips=10)
    groups = content["store"]["skipped"]
    assert [(group["reason"], group["count"]) for group in groups] == [
        ("malformed file", 2),
        ("file name of another kind", 1),
    ]
    listed = sorted((e["name"], g["reason"], e["detail"]) for g in groups for e in g["entries"])
    assert listed == sorted((e["name"], e["reason"], e["detail"]) for e in store.skipped())
    (detail,) = (e["detail"] for e in groups[0]["entries"] if e["name"].endswith("A008"))
    assert re.search(r"A008\.skeleton, line 4: .*abc", detail)
    monkeypatch.setattr(of_store, "ENTRIES", 1)
    cut = store_content(store, clips=10)
    assert [(g["count"], len(g["entries"])) for g in cut["store"]["skipped"]] == [(2, 1), (1, 1)]
    assert (
        cut["notes"][-1]
        == f"Of what was left out, 1 entries a reason are listed; all are in {store.path}/skipped.json."
    )
    assert len(cut["notes"]) == len(content["notes"]) + 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda clip: clip, []),
        (lambda clip: 1000 * clip, ["this looks like millimetres"]),
        (lambda clip: clip[:, np.random.default_rng(0).permutation(25)], ["joints do not seem to be those of 'ntu25'"]),
    ],
)
def test_bodies_that_are_none_are_told_of(tmp_path, change, says):
    found = store_content(people(tmp_path / "out", change), clips=10)["store"]["sanity"]
    assert len(found) == len(says)
    assert all(part in text for part, text in zip(says, found, strict=True))


def test_warnings_and_notes_are_those_of_the_report(tmp_path):
    warned = {"extra_meta": {"warnings": ["joints were odd when it was packed"]}}
    store = people(tmp_path / "odd", class_names=["never", "a", "b"], **warned)
    content = store_content(store, clips=10)["store"]
    assert content["warnings"] == ["joints were odd when it was packed"] and content["remarks"] == []
    finding = store_content(people(tmp_path / "mm", lambda clip: 1000 * clip), clips=10)["store"]["sanity"]
    twice = people(tmp_path / "twice", lambda clip: 1000 * clip, extra_meta={"warnings": finding})
    content = store_content(twice, clips=10)["store"]
    assert (content["sanity"], content["warnings"]) == (finding, []), "one fault is said once"
    with StoreWriter(
        tmp_path / "one", name="one", skeleton=NTU25, fps=30, class_names=["a", "b"],
        protocols={"xsub": {"field": "subject", "train": [9]}}, max_bodies=1,
    ) as writer:  # fmt: skip
        writer.add(np.stack([performed(1)] * 2, axis=1), name="clip", label=1, subject=1)
    store = PackedStore.open(tmp_path / "one")
    content = store_content(store, clips=10)["store"]
    assert content["warnings"] == [
        "xsub cannot be used, it has no training clip",
        "no clip has label 0 (a); do the labels count from 1? Then the names are one off",
    ]
    assert content["remarks"] == ["1 clips had more bodies than --max-bodies, and keep the first"]
    assert {remark.text for remark in remarks(store)} == {*content["warnings"], *content["remarks"]}
    assert content["by"]["class"] == [["a", 0, 0, [0]], ["b", 1, 1, [1]]]


# --- Views

ALL = AugmentConfig(
    crop_padding=1 / 6, reverse_probability=0.5, centre_joint=1, crop_ratio_min=0.3, crop_frames_min=8, jitter_joints=6
)


@pytest.mark.parametrize("config", [AugmentConfig(crop_frames_min=10), ALL], ids=["usual", "all transforms"])
def test_views_are_those_that_training_makes_of_the_same_draws(small, config):
    augmentation = Augmentation(config, frames=24, seed=5, clips=3, draws=4)
    content = store_content(small, clips=20, seed=1, augmentation=augmentation)
    ids = [small.names.tolist().index(name) for name in content["clips"]["name"]]
    placed = ResidentStore(small)
    assert len(content["store"]["views"]) == 3
    for view in content["store"]["views"]:
        clip = torch.tensor([ids[view["clip"]]])
        clips = placed.select(clip)
        assert view["frames"] == int(clips.num_frames)
        assert [(draw["name"], draw["draw"]) for draw in view["draws"]] == [(n, d) for d in range(4) for n in VIEWS]
        shown = iter(unpack(view["motion"], 25))
        for step in range(4):
            params = draw_params(
                config, clips.num_frames, 25, views=(0, 2), strong=(2,), seed=5, step=step, sample=clip, size=24
            )
            made = make_views(clips, params, NTU25, size=24, impl="reference").unflatten(3, (25, 2, 3))
            for row in range(2):
                truth = made[row, 0].transpose(1, 2)[:, : int(clips.num_bodies)].double().numpy()
                page = next(shown)
                assert page.shape == truth.shape
                moved, wanted = page - page[:1], truth - truth[:1]
                assert np.abs(moved - wanted).max() <= 0.0045, "two roundings to whole quanta of 4 mm"
                assert np.abs(moved - np.roll(wanted, 1, axis=0)).max() > 0.02, "and this could fail"


def of_view(config: AugmentConfig, step: int, strong: bool) -> ViewOfClip:
    given = {"views": (STRONG,), "seed": 0, "step": step, "sample": torch.tensor([3]), "size": 32}
    params, plain = (draw_params(config, torch.tensor([80]), 25, strong=s, **given) for s in ((STRONG,) * strong, ()))
    return ViewOfClip(params, 0, 80, 32, strong, plain=plain, joints=NTU25.joint_names)


def test_every_change_has_its_sentence_and_no_other_is_explained():
    known = {name: strong_only for name, _, strong_only in explained(ALL, 32)}
    seen = {strong: {c.name for n in range(40) for c in of_view(ALL, n, strong).changes()} for strong in (False, True)}
    assert seen[True] == set(known)
    assert seen[False] == {name for name, strong_only in known.items() if not strong_only}
    off = {"jitter_probability": 0, "shear": 0, "rotation_degrees": 0, "rotation_minor_degrees": 0, "noise_std": 0}
    probabilities = dict.fromkeys(("flip_probability", "filter_probability", "axis_mask_probability"), 0)
    assert [name for name, _, _ in explained(AugmentConfig(**off, **probabilities), 32)] == ["crop"]


def test_numbers_of_a_view_are_those_of_its_draw():
    texts = {"jitter": 0, "shear": 0, "rotation": 0}
    for step in range(60):
        view = of_view(AugmentConfig(), step, strong=True)
        said = {change.name: change.text for change in view.changes()}
        first, length = view.crop
        assert said["crop"] == f"frames {first}-{first + length - 1} of 80: {length} become 32"
        assert ("flip" in said, "noise" in said) == (view.number("flip") > 0, view.number("noise_std") > 0)
        assert said.get("axis mask") in {None, "x is zero", "y is zero", "z is zero"}
        if "jitter" in said:
            joints = [NTU25.joint_names[n] for n in view.of("jittered").nonzero()[:, 0]]
            assert said["jitter"].startswith(f"{len(joints)} of 25 joints ")
            assert said["jitter"].endswith(f": {', '.join(joints)}")
        else:
            x_of_y = float(view.plain.column("pose")[0, 0, 0, 1])
            assert said["shear"].startswith(f"x {'−' if x_of_y < 0 else '+'} {abs(x_of_y):.2f} y ")
        if said["rotation"] != "turned":
            angles = sorted(float(angle) for angle in re.findall(r"(-?[\d.]+)°", said["rotation"]))
            assert angles[0] >= 0 and angles[1] <= 1 and angles[2] <= 30, "one way, about one main axis"
        for name in said.keys() & texts.keys():
            texts[name] += 1
    assert min(texts.values()) > 10


def test_angles_are_those_that_made_the_matrix():
    angles = torch.tensor([[12.0, -25.0, 3.0], [0.0, 0.0, 0.0], [-80.0, 45.0, 170.0]], dtype=torch.float64)
    for row, matrix in zip(angles.tolist(), rotation_matrix(torch.deg2rad(angles)), strict=True):
        assert angles_of(matrix) == pytest.approx(tuple(row), abs=1e-9)


# --- The command


def content_of(page) -> dict:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page.read_text(encoding="utf-8"))
    return json.loads(found[1])


def test_the_command_writes_one_page_that_says_how_it_was_made(small, tmp_path, capsys):
    page = tmp_path / "pages" / "small.html"
    assert main([str(small.path), "--out", str(page), "--clips", "10", "--views-of", "2", "--draws", "3"]) == 0
    assert f"{page} ({page.stat().st_size / 1e6:.1f} MB)" in capsys.readouterr().out
    content = content_of(page)
    assert (content["kind"], content["title"]) == ("store", "small")
    assert content["by"].endswith(f"python -m train.look {small.path} --out {page} --clips 10 --views-of 2 --draws 3")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", content["made"])
    assert [len(view["draws"]) for view in content["store"]["views"]] == [6, 6]
    assert main([str(small.path), "--out", str(page), "--views-of", "0"]) == 0
    assert "views" not in content_of(page)["store"]


def test_a_page_is_named_after_its_store_and_names_are_no_markup(tmp_path, monkeypatch):
    script = "<script>alert(1)</script>"
    with StoreWriter(
        tmp_path / "odd", name=script, skeleton=NTU25, fps=30, class_names=[script],
        protocols={"xsub": {"field": "subject", "train": [1]}},
    ) as writer:  # fmt: skip
        writer.add(performed(1)[:, None], name=script, label=0, subject=1)
        writer.skip(script, script, script)
    monkeypatch.chdir(tmp_path)
    assert main(["odd", "--draws", "1"]) == 0
    page = tmp_path / "look-odd.html"
    assert script not in page.read_text(encoding="utf-8")
    content = content_of(page)
    assert content["title"] == content["classes"][0] == content["clips"]["name"][0] == script


def test_views_are_made_as_a_preset_or_a_run_makes_them(tmp_path):
    tiny, paper = parse(["data/x"]), parse(["data/x", "--preset", "paper", "--shear", "0.3"])
    assert (tiny.frames, tiny.augment.crop_ratio_min) == (32, 0.5)
    assert (paper.frames, paper.augment.crop_ratio_min, paper.augment.shear) == (64, 0.1, 0.3)
    from fastmc.config import preset_config, to_plain

    config = to_plain(preset_config("small"))
    config["augment"]["flip_probability"], config["frames"] = 0.125, 48
    (tmp_path / "config.json").write_text(json.dumps(config))
    of_run = parse(["data/x", "--run", str(tmp_path)])
    assert (of_run.frames, of_run.augment.flip_probability) == (48, 0.125)
    with pytest.raises(ValueError, match="--preset and --run both say how views are made"):
        parse(["data/x", "--run", str(tmp_path), "--preset", "tiny"])


def test_what_is_no_store_is_one_line_with_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_small_store(tmp_path / "data" / "mine", clips=6)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (tmp_path / "set.npz").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    damaged = write_small_store(tmp_path / "damaged", clips=6).path
    with open(damaged / "frames.npy", "r+b") as file:
        file.seek(5000)
        file.write(b"damage")
    says = {
        ("nowhere",): "there is no packed store at nowhere; data holds mine, and python -m train.prepare --help",
        ("mine",): "there is no packed store at mine; there is one at data/mine",
        ("data",): "data is a folder of packed stores; name one of them: mine",
        ("set.npz",): "set.npz is a file, not a packed store; pack it first (python -m train.prepare --help)",
        ("run",): "run is a run folder, not a packed store; name the store that it was trained on",
        ("empty",): "empty is not a packed store",
        ("damaged",): "damaged/frames.npy is not what was written to it; prepare it again",
        ("data/mine", "--out", "empty"): "--out empty is a folder; name a file in it, such as empty/page.html",
        ("data/mine", "--out", "page.pdf"): "--out page.pdf is no name of a page; browsers want page.pdf.html",
        ("data/mine", "--out", "set.npz/page.html"): "set.npz is, or lies in, a file",
        ("data/mine", "--run", "empty"): "empty is no run folder",
    }
    for arguments, part in says.items():
        assert main(list(arguments)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and part in line
    assert not list(tmp_path.glob("**/*.html"))
    assert main(["nowhere", "--out", "new/page.html"]) == 1 and not (tmp_path / "new").exists()
