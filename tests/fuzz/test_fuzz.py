"""Fuzzing of the readers for some seconds, all that once was read wrongly, and proof that fuzzing notices it."""

from __future__ import annotations

import pytest

from tests.fuzz.formats import FORMATS
from tests.fuzz.planted import PLANTED
from tests.fuzz.run import fuzz
from tests.fuzz.worker import FOUND, outcome_of, seeds, unpack

SECONDS = 6  # beside some seconds in which the worker starts


@pytest.mark.parametrize("name", FORMATS)
def test_sound_inputs_are_read(name, tmp_path):
    for files in FORMATS[name].seeds():
        assert outcome_of(name, files, tmp_path) == ("read", "")


@pytest.mark.parametrize("path", sorted(FOUND.glob("*.zip")), ids=lambda path: path.stem)
def test_what_was_read_wrongly_once_is_not(path, tmp_path):
    outcome, said = outcome_of(path.stem.rpartition("-")[0], unpack(path), tmp_path)
    assert outcome in ("read", "refused"), said


@pytest.mark.program
def test_damaged_inputs_are_read_or_refused():
    tally = fuzz(list(FORMATS), SECONDS, first=0)
    assert not tally.wrong, "\n".join(f"input {number} of {name}: {said}" for name, number, said in tally.wrong)
    assert {name for name, _ in tally.counts} == set(FORMATS)
    assert {outcome for _, outcome in tally.counts} == {"read", "refused"}
    print(tally.table())


SIGNS = {
    "planted-exception": "KeyError",
    "planted-nameless": "says too little",
    "planted-memory": "it took",
    "planted-hang": "no answer",
    "planted-death": "ended with -6",
}


@pytest.mark.program
@pytest.mark.parametrize("hang", [False, True])
def test_fuzzing_notices(hang):
    """What hangs is told by a short patience; the others are in one process, of which the last one ends it."""
    assert SIGNS.keys() == PLANTED.keys()
    names = [name for name in PLANTED if (name == "planted-hang") == hang]
    assert all(seeds(name) for name in names)
    tally = fuzz(names, 60, first=0, patience=3 if hang else 60, most_wrong=len(names))
    said = {name: said for name, _, said in tally.wrong}
    assert said.keys() == set(names)
    for name in names:
        assert SIGNS[name] in said[name]
