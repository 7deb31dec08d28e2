"""The ledger: what a step asks of memory at the paper's size, and that the counting counts."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("triton")

from bench import ledger
from bench.counting import count_operators
from bench.ledger import Ledger, compulsory, measure, render
from bench.providers import Case


@pytest.fixture(scope="module")
def found():
    return measure(Ledger(plain=False))


def test_a_step_stays_within_its_traffic(found):
    total, limit = found["total"], 45e6
    assert total["launches"] <= 6
    assert total["load_bytes"] + total["store_bytes"] <= 110e6
    assert compulsory(Case())["bytes"] < total["first_touch_bytes"] <= limit


def test_every_byte_of_a_step_is_accounted_for(found):
    """Bytes by hand, as docs/kernels.md tells them: MB = K D float32 of the bank, F = B D float32 of one feature."""
    b, k, d = 64, 16384, 128
    bank, feature, programs = 4 * k * d, 4 * b * d, 128
    kernels = {kernel["kernel"]: kernel for kernel in found["kernels"]}
    sweep = kernels["_sweep_kernel"]
    assert sweep["programs"] == programs
    queries = programs * 128 * (4 * d + 4)  # 128 queries each, hi and lo, and their c
    assert sweep["load_bytes"] == 2 * (bank + 4 * k) + queries
    assert sweep["store_bytes"] == 64 * 4 * (feature + 6 * 4 * b)  # 64 chunks: entries and six sums of four rows
    step = kernels["_bank_kernel"]
    assert step["programs"] == 256
    numbers = 256 * 4 * b * 2 * 4  # log-sum-exp and c of four distributions, for every tile
    guard = 256 * 4
    assert step["load_bytes"] == 2 * bank + 4 * k + 256 * 3 * feature + numbers + guard
    assert step["store_bytes"] == 2 * bank
    # 4 queries, split products: S and the expected entries; then S and the gradient for 3 views.
    assert sweep["flops"] == 3 * 2 * 4 * 2 * b * k * d
    assert step["flops"] == 3 * 2 * 3 * 2 * b * k * d


def test_tables(found):
    text = render(found)
    assert "MODEL, not a measurement" in text
    assert "| _sweep_kernel | 128 |" in text
    assert "all 5 launches" in text


def test_json_and_wrong_inputs(monkeypatch, capsys, found):
    monkeypatch.setattr(ledger, "measure", lambda settings: found)
    assert ledger.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["launches"] == 5
    with pytest.raises(ValueError, match="precision must be one of bf16x3, ieee, bf16; got 'fp8'"):
        Ledger(precision="fp8")
    with pytest.raises(ValueError, match="target must be one of cuda:80"):
        Ledger(target="cuda:75")


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
