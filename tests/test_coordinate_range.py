"""A clip whose coordinates are out of range is left out with its reason, and never ends a preparation."""

from __future__ import annotations

import numpy as np
import pytest
from format_cases import FORMATS, layout_of, ntu

from fastmc.data.clips import MAX_COORDINATE, TOO_FAR, FaultyClip, placed_clip
from fastmc.data.normalise import normalise
from fastmc.data.packing import PrepareError
from fastmc.skeleton import NTU25
from tests.fuzz.formats import people
from train.prepare import main

FAULTY = (
    lambda clip: np.where(clip == clip.max(), 3.4e38, clip),  # the largest float32
    lambda clip: clip * 1e38,
    lambda clip: clip * (1e4 / np.abs(clip).max()),  # 10 km
    lambda clip: clip * (200 / np.abs(clip).max()),  # 200 m once normalised
)


@pytest.mark.parametrize("name", FORMATS)
def test_such_clips_are_left_out_and_the_others_are_packed(name, tmp_path):
    (tmp_path / "raw").mkdir()
    clips = [people(layout_of(name), 4, seed=n) for n in range(7)]
    for n, spoil in enumerate(FAULTY, start=1):
        clips[n] = spoil(clips[n])
    prepare, arguments, options = FORMATS[name](tmp_path / "raw", clips)
    store = prepare(*arguments, tmp_path / "out", **options)
    parts = 2 if name in ("ctrgcn", "npy") else 1
    assert len(store) == 3 * parts
    assert np.abs(store.frames).max() <= MAX_COORDINATE
    skipped = store.skipped()
    assert [entry["reason"] for entry in skipped] == [TOO_FAR] * 4 * parts
    for n, entry in enumerate(skipped):
        assert (f"clip {n + 1}: " if name == "npz" else str(tmp_path)) in entry["detail"]
        assert "a coordinate of " in entry["detail"]
    with pytest.raises(PrepareError, match=r"a coordinate of .*without --strict"):
        prepare(*arguments, tmp_path / "strict", strict=True, **options)


@pytest.mark.parametrize("name", FORMATS)
def test_the_bound_can_be_chosen(name, tmp_path):
    (tmp_path / "raw").mkdir()
    clips = [people(layout_of(name), 4, seed=n) * 1000 for n in range(3)]
    prepare, arguments, options = FORMATS[name](tmp_path / "raw", clips)
    with pytest.raises(PrepareError, match=r"coordinates out of range.*expected at most 100 \(--max-coordinate\)"):
        prepare(*arguments, tmp_path / "out", **options)
    assert len(prepare(*arguments, tmp_path / "out", max_coordinate=1e4, **options)) >= 3
    with pytest.raises(PrepareError, match="max_coordinate must be"):
        prepare(*arguments, tmp_path / "none", max_coordinate=float("nan"), **options)


def test_before_normalisation_the_place_does_not_count():
    clip = people(NTU25, 4).astype(np.float32)
    assert np.abs(placed_clip(clip + np.float32(5000), NTU25)).max() < 2
    with pytest.raises(FaultyClip, match=r"a coordinate of 2e\+04 m in frame 0, expected at most 10000"):
        placed_clip(clip + np.float32(20_000), NTU25)
    with pytest.raises(FaultyClip, match=r"a coordinate of 5e\+03 m in frame 0, expected at most 100"):
        placed_clip(np.full((1, 1, 25, 3), np.float32(5000)), None)


def test_an_overflow_of_the_rotation_is_an_error():
    clip = people(NTU25, 4).astype(np.float32)
    corners = np.stack(np.meshgrid(*[[-3.4e38, 3.4e38]] * 3), axis=-1).reshape(8, 3)
    clip[2, 0, 12:20] = corners
    with pytest.raises(ValueError, match="float32 cannot hold them"):
        normalise(clip, NTU25)


def test_command_line(tmp_path, capsys):
    (tmp_path / "raw").mkdir()
    ntu(tmp_path / "raw", [people(NTU25, 4), people(NTU25, 4) * 1e5])
    command = ["ntu60", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "1 × coordinates out of range" in out and "S001C001P002R001A001.skeleton: a coordinate of" in out
    assert main([*command, "--overwrite", "--strict"]) == 1
    assert main([*command, "--overwrite", "--max-coordinate", "1e6", "--strict"]) == 0
