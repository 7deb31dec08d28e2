"""docs/paper.md: every function, test, flag and default that it names is there, and so is every number of the paper."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from fastmc.config import to_plain
from fastmc.data.formats import ntu_splits as ntu
from fastmc.data.formats import pku_splits as pku
from train import evaluate
from train.command.parse import parse
from train.runs.published import TABLES

ROOT = Path(__file__).resolve().parents[1]
PAPER = ROOT.parent / "shared" / "paper" / "a2mc.txt"
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
SPANS = sorted(set(re.findall(r"`([^`]+)`", PAGE)))
NAMES = [span for span in SPANS if "::" in span]
FLAGS = [span for span in SPANS if re.match(r"(\w+ )?--", span)]
ALTERNATIVES = ("--method b1", "--method b2", "--method b3")
"""Not the defaults."""


@cache
def names_in(path: Path) -> set[str]:
    """Functions, classes and constants of a file, and methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            inner = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{method.name}" for method in inner if isinstance(method, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def exists(name: str) -> bool:
    path, _, inner = name.partition("::")
    return (ROOT / path).is_file() and inner in names_in(ROOT / path)


def test_what_is_named_is_there():
    assert [name for name in NAMES if not exists(name)] == []


def test_a_name_that_is_not_there_is_noticed():
    assert not exists("fastmc/objective/loss.py::mc_lost")
    assert not exists("fastmc/lost.py::mc_loss")
    assert not exists("fastmc/objective/attention.py::Block.lost")


def test_every_span_is_of_a_kind_that_is_checked():
    """Commands are checked by tests/test_docs_examples.py."""
    rest = set(SPANS) - set(NAMES) - set(FLAGS)
    assert {span for span in rest if not (ROOT / span).is_file() and not span.startswith("python -m ")} == set()
    assert len(NAMES) > 120
    assert len(FLAGS) > 40


@pytest.fixture(scope="module")
def paper_run(tmp_path_factory) -> Path:
    """A run folder of preset paper, as far as evaluations look at it before they begin."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps(to_plain(parse(["--preset", "paper"]))))
    return folder


def settings_of(start: str, flags: str, run: Path) -> object:
    """What a command takes flags for that follow ``start``: nothing, a data set, or an evaluation of train.evaluate."""
    if start and not start.startswith("--"):
        needed = ["--dataset", "pku2"] if start == "transfer" else []
        return evaluate.parse([start, "--run", str(run), *needed, *flags.split()])
    config = parse(["--preset", "paper", *start.split(), *flags.split()])
    return replace(config, given=())  # which of them were said


@pytest.mark.parametrize("start", ["", "--dataset pku2", "semi", "transfer"])
def test_flags_are_there_with_their_defaults(start, paper_run):
    found = [re.fullmatch(r"((?:\w+|--dataset \w+)?) ?(--.*)", span).groups() for span in FLAGS]
    assert {each for each, _ in found} == {"", "--dataset pku2", "semi", "transfer"}
    flags = " ".join(flags for each, flags in found if each == start and flags not in ALTERNATIVES)
    assert settings_of(start, flags, paper_run) == settings_of(start, "", paper_run)


@pytest.mark.parametrize("flags", ALTERNATIVES)
def test_alternatives_are_there(flags, paper_run):
    assert settings_of("", flags, paper_run) != settings_of("", "", paper_run)


def test_an_option_that_is_not_there_is_noticed(paper_run):
    with pytest.raises(SystemExit):
        settings_of("", "--lost 3", paper_run)
    with pytest.raises(SystemExit):
        settings_of("semi", "--lost 3", paper_run)


def test_what_the_page_quotes_is_there():
    assert "Size of the encoder" in PAGE
    assert "Size of the encoder" in (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")


def test_no_equation_is_left_out():
    assert [int(n) for n in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)][:11] == list(range(1, 12))


def test_no_figure_or_table_is_left_out():
    named = re.findall(r"^\| ((?:figure|table) \d) \|", PAGE, re.MULTILINE)
    assert named == [*(f"figure {n}" for n in (1, 2, 3, 4)), *(f"table {n}" for n in TABLES)]


def test_numbers_of_the_data_sets():
    """Section 4.1."""
    assert (ntu.NTU60_FILES, len(ntu.NTU60_CLASS_NAMES), ntu.NTU60_LIMITS["performer"]) == (56_880, 60, 40)
    assert (len(set(ntu.NTU60_TRAIN_SUBJECTS)), set(ntu.NTU60_TRAIN_CAMERAS)) == (20, {2, 3})
    assert (ntu.NTU120_FILES, len(ntu.NTU120_CLASS_NAMES)) == (114_480, 120)
    assert ntu.NTU120_LIMITS == {"setup": 32, "performer": 106}
    assert (len(set(ntu.NTU120_TRAIN_SUBJECTS)), set(ntu.NTU120_TRAIN_SETUPS)) == (53, set(range(2, 33, 2)))
    assert (len(pku.PKU1.classes), len(pku.PKU2.classes), pku.PKU2.clips) == (51, 41, 6_945)
    assert pku.PKU2.clips == 5_332 + 1_613


@pytest.mark.parametrize(
    ("table", "other", "column", "points"),
    [
        (1, "CMD", "NTU-120 x-set", 1.7),
        (1, "CMD", "PKU-II x-sub", 5.4),
        (3, "CMD", "NTU-120 x-set", 1.7),
        (4, "CMD", "NTU-60 x-sub, 1 %", 1.4),
        (4, "CMD", "NTU-60 x-view, 10 %", 1.3),
        (5, "CMD", "NTU-60 x-sub", 2.1),
        (6, "B1", "NTU-60 x-sub", 2.9),
        (6, "B1", "NTU-60 x-view", 2.8),
    ],
)
def test_differences_that_the_text_states(table, other, column, points):
    """Sections 4.3 and 4.4. In table 6 it is B2 that is compared."""
    at = [each.title for each in TABLES[table].columns].index(column)
    values = {row.label: row.values[at] for row in TABLES[table].rows}
    assert round(values["B2" if table == 6 else "A²MC"] - values[other], 1) == points
    assert f"{points} %" in PAGE


def numbers_of(text: str) -> set[str]:
    """The numbers of prose, without those that only name a thing: of citations, figures, tables, equations, sections,
    data sets, indices and formulas. Powers of ten are decimals."""
    text = re.sub(r"10\^?\{?[-−]4\}?|1e-4", "0.0001", text)
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    text = re.sub(r"\$[^$]*[_^][^$]*\$", "", text)
    text = re.sub(r"\[[\d, ]+\]|\d+s-|NTU RGB\+D \d+|NTU-\d+|(?:Figure|Table|Eq\.|§) ?\(?[\d.]+\)?", "", text)
    text = re.sub(r"^\d(?:\.\d)?\. .*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"[A-Za-z}][_^]?\{?\d\}?|\^\d|\\\w+", "", text)
    return {number.rstrip(".,").removesuffix(".0") for number in re.findall(r"(?<![\w.])\d[\d.,]*", text)}


@pytest.mark.skipif(not PAPER.exists(), reason="../shared/paper is not here")
def test_no_number_of_sections_3_and_4_is_left_out():
    """Those of tables are compared by tests/test_tables.py."""
    lines = PAPER.read_text(encoding="utf-8").split("3. Methodology")[1].split("5. Discussion")[0].splitlines()
    said = numbers_of("\n".join(line for line in lines if "\t" not in line))
    assert {"56,880", "16,384", "0.07", "0.4", "0.001", "0.0001", "5.4", "2.9", "750", "5"} <= said
    here = {
        number.rstrip(".,").removesuffix(".0") for number in re.findall(r"\d[\d.,]*", PAGE.replace("1e-4", "0.0001"))
    }
    assert said - here == set()


def test_a_number_that_only_names_a_thing_is_none():
    text = "4.2. Of 5\nIn Table 3 of [4, 27], f_1 of NTU-60 and $x_{2}$ (Eq. (9)) has 1,613 clips, 3.0 and 10^{-4}, 64."
    assert numbers_of(text) == {"1,613", "3", "0.0001", "64"}
