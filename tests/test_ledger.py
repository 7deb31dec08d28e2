"""The ledger: what the pieces of a step ask of memory, to the byte, and that the counting counts."""

from __future__ import annotations

import json
import math

import pytest
import torch

pytest.importorskip("triton")

from bench import ledger
from bench.counting import count_operators
from bench.ledger import Ledger, measure, render
from bench.ledger_data import THINGS, ntu_like_clips
from bench.ledger_mc import compulsory
from bench.ledger_rows import H100, issued
from bench.providers import Case
from bench.resources import Loop, Report

pytestmark = [pytest.mark.slow, pytest.mark.compiler]
VIEWS = ("x0, x3", "x of eq. 5", "x1, x2")
FEW = 5  # clips


@pytest.fixture(scope="module")
def found():
    return measure(Ledger(plain=False))


@pytest.fixture(scope="module")
def data():
    return measure(Ledger(piece="data", batch=FEW))


def test_a_step_stays_within_its_traffic(found):
    """Requested bytes buy two programs a multiprocessor: four blocks of queries ask for the bank, which L2 holds."""
    total, limit = found["total"], 45e6
    assert total["launches"] == 4
    assert total["load_bytes"] + total["store_bytes"] <= 130e6
    assert compulsory(Case())["bytes"] < total["first_touch_bytes"] <= limit


def test_every_byte_of_a_step_is_accounted_for(found):
    """Bytes by hand, as docs/kernels.md tells them: MB = K D float32 of the bank, F = B D float32 of one feature."""
    b, k, d = 64, 16384, 128
    bank, feature, programs = 4 * k * d, 4 * b * d, 256
    kernels = {kernel["kernel"]: kernel for kernel in found["kernels"]}
    sweep = kernels["_sweep_kernel"]
    assert sweep["programs"] == programs
    queries = programs * 64 * (4 * d + 4)  # 64 queries each, hi and lo, and their c
    assert sweep["load_bytes"] == 4 * (bank + 4 * k) + queries
    assert sweep["store_bytes"] == 64 * 4 * (feature + 6 * 4 * b)  # 64 chunks: entries and six sums of four rows
    step = kernels["_bank_kernel"]
    assert step["programs"] == 256
    numbers = 256 * 4 * b * 2 * 4  # log-sum-exp and c of four distributions, for every tile
    guard = 256 * 4
    assert step["load_bytes"] == 3 * bank + 4 * k + 256 * 3 * feature + numbers + guard  # the bank's rows twice
    assert step["store_bytes"] == 2 * bank
    # 4 queries, split products: S and the expected entries; then S and the gradient for 3 views.
    assert sweep["flops"] == 3 * 2 * 4 * 2 * b * k * d
    assert step["flops"] == 3 * 2 * 3 * 2 * b * k * d


def test_the_step_is_modelled_at_30_us(found):
    """With instructions counted: 25.0 at least and 52.4 in turn is what the same model says of the first kernels."""
    total = found["total"]
    assert total["data_seconds"] < total["seconds_at_least"] <= 20e-6
    assert total["seconds_at_least"] < total["seconds_in_turn"] <= 30e-6


def test_the_model_of_a_kernel_is_its_arithmetic(found):
    for row in found["kernels"]:
        hot = row["hot"]["instructions"] if row["hot"] else 0
        warps = {"_prepare_kernel": 1, "_combine_kernel": 1, "_sweep_kernel": 2, "_bank_kernel": 2}[row["kernel"]]
        issue = (row["outside"] + row["trips"] * hot) * warps / 1.755e9
        products, memory = row["flops"] / 989e12, row["first_touch_bytes"] / 3.35e12
        assert row["issue_seconds"] == pytest.approx(issue)
        assert row["seconds_at_least"] == pytest.approx(max(row["data_seconds"], issue))
        assert row["seconds_in_turn"] == pytest.approx(memory + max(issue, products), rel=0.02)
        assert row["redundant_products"] == (0 if row["flops"] else None)
    trips = {row["kernel"]: row["trips"] for row in found["kernels"]}
    assert trips == {"_prepare_kernel": 1, "_sweep_kernel": 8, "_combine_kernel": 1, "_bank_kernel": 6}


@pytest.mark.parametrize(
    ("num_warps", "programs", "warps"), [(4, 1, 1), (4, 132, 1), (4, 133, 2), (8, 256, 4), (1, 264, 1), (2, 192, 1)]
)
def test_seconds_to_issue(num_warps, programs, warps):
    """Warps of a scheduler, on the multiprocessor with most of the programs."""
    assert H100.issue_seconds(1000, num_warps, programs) == pytest.approx(1000 * warps / 1.755e9)


def code_of(products: int, resident_warps: int) -> Report:
    """8 warps; 10 instructions, 4 of them in a loop."""
    sizes = dict.fromkeys(
        ("registers", "spill_store_bytes", "spill_load_bytes", "local_bytes", "shared_bytes", "num_stages"), 0
    )
    return Report(
        name="k",
        target="cuda:90",
        num_warps=8,
        resident_warps=resident_warps,
        limited_by="",
        seconds=0.0,
        cached=False,
        instructions=10,
        loops=(Loop(4, {}, products),),
        **sizes,
    )


def test_redundant_products_and_a_program_that_is_alone():
    row = {"programs": 264, "flops": 264 * 3 * 1e6, "first_touch_bytes": 3.35e6, "seconds_at_least": 1e-6}
    issue = (6 + 3 * 4) * 4 / 1.755e9  # 2 programs of 8 warps on 4 schedulers
    for resident_warps, together in ((8, sum), (16, max)):
        found = issued(row, code_of(1_500_000, resident_warps), 3, "bf16x3")
        assert found["redundant_products"] == pytest.approx(0.5)
        assert found["issue_seconds"] == pytest.approx(issue)
        products = 1.5 * row["flops"] / 989e12
        assert found["seconds_in_turn"] == pytest.approx(1e-6 + together([issue, products]))
    assert issued(row, code_of(0, 8), 3, "bf16x3")["redundant_products"] is None


# --- The data


def test_the_data_of_a_step_is_seven_launches(data):
    assert tuple(row["makes"] for row in data["kernels"]) == THINGS
    draw, views = "_draw_kernel", "_views_kernel"
    attack = ["_logit_gradient_kernel", "_limited_step_kernel"]
    assert [row["kernel"] for row in data["kernels"]] == [draw, views, views, *attack, draw, views]
    assert {made for made, counts in data["beside"].items() if counts["launches"]} == {"x of eq. 5"}, "its table"


def test_views_stay_within_their_traffic(data):
    """What the views cannot do without: the frames that each needs, once, and themselves."""
    for row in rows_of_views(data["kernels"]):
        assert 1 <= row["ratio"] <= 1.25, row
        assert row["ratio"] == (row["load_bytes"] + row["store_bytes"]) / row["compulsory_bytes"]


def rows_of_views(rows):
    return [row for row, made in zip(rows, THINGS, strict=True) if made in VIEWS]


def test_every_byte_of_whole_clips_is_accounted_for(data):
    """By hand: frames of 25 joints, three float32 each, of each body; T = 64."""
    clips, row = ntu_like_clips(FEW, 2, "cpu"), data["kernels"][THINGS.index("x of eq. 5")]
    needed = loaded = 0
    for frames, bodies in zip(clips.num_frames.tolist(), clips.num_bodies.tolist(), strict=True):
        parts = math.ceil(min(frames, 128) / 64)
        needed += min(frames, 128) * bodies * 25 * 12
        numbers = 7 * 4 + 2 * 8  # start, length, shift, reverse, flip, noise and filter; first row and bodies
        maps = 9 * (4 + 4 + 4)  # an entry of either matrix and a scale
        loaded += numbers + parts * maps + bodies * 25 * (8 + 4)  # mirrored joint, whether it is jittered
    written = FEW * 64 * 25 * 2 * 12
    assert row["store_bytes"] == written
    assert row["compulsory_bytes"] == needed + written
    assert row["load_bytes"] == needed + loaded


def test_every_byte_of_choices_and_attack_is_accounted_for(data):
    rows = dict(zip(THINGS, data["kernels"], strict=True))
    for made in ("choices for x0, x3", "choices for x1, x2"):
        table = 2 * FEW * (30 + 25) * 4
        assert rows[made]["load_bytes"] == 2 * FEW * (8 + 8)
        assert rows[made]["store_bytes"] == table
        assert rows[made]["compulsory_bytes"] == FEW * (8 + 8) + table
    logits, x = FEW * 128 * 4, FEW * 64 * 25 * 2 * 12
    for made, read, written in (("gradient of the logits", logits, logits), ("attacked x, eq. 6", 2 * x, x)):
        assert (rows[made]["load_bytes"], rows[made]["store_bytes"]) == (read, written)
        assert rows[made]["compulsory_bytes"] == read + written


# --- The command


@pytest.mark.parametrize(("piece", "rows"), [("mc", "| _sweep_kernel | 256 |"), ("data", f"| x0, x3 | {2 * FEW} |")])
def test_what_is_printed(monkeypatch, capsys, request, piece, rows):
    counted = request.getfixturevalue("found" if piece == "mc" else "data")
    monkeypatch.setattr(ledger, "measure", lambda settings: counted)
    assert ledger.main(["--piece", piece, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["piece"] == piece
    assert printed["total"]["launches"] == (4 if piece == "mc" else 7)
    text = render(counted)
    assert "MODEL, not a measurement" in text and rows in text


def test_wrong_inputs(capsys):
    with pytest.raises(ValueError, match="precision must be one of bf16x3, ieee, bf16; got 'fp8'"):
        Ledger(precision="fp8")
    with pytest.raises(ValueError, match="target must be one of cuda:80"):
        Ledger(target="cuda:75")
    with pytest.raises(ValueError, match="--bank has no meaning for --piece data"):
        Ledger(piece="data", bank=1000)
    with pytest.raises(ValueError, match="--stream has no meaning for --piece mc"):
        Ledger(stream="bone")
    for wrong, says in (
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--piece", "data", "--batch", "0"], "batch must be >= 1, got 0"),
        (["--piece", "data", "--frames", "65"], "frames: a program holds at most 4096 joints"),
    ):
        assert ledger.main(wrong) == 1
        assert says in capsys.readouterr().err


def test_operators_are_counted():
    a, b = torch.zeros(4, 8), torch.zeros(8, 2)

    def call():
        c = (a.T.contiguous().T @ b).view(-1)  # 1: a copied, 2: the product
        c += torch.empty(8).copy_(c.expand(8))  # 3: copied into fresh memory, 4: added in place

    assert count_operators(call) == {
        "launches": 4,
        "load_bytes": 4 * (32 + 32 + 16 + 16 + 16),
        "store_bytes": 4 * (32 + 8 + 8 + 8),
        "flops": 2 * 4 * 8 * 2,
    }
