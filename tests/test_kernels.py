"""The MC-loss kernels as they are compiled: values, bounds and races through ttsem; machine code through ptxas."""

from __future__ import annotations

import pytest
import torch
from gpu_less import needs_triton, needs_ttsem, ttsem_session
from kernel_budget import kernel_budget
from oracle import Case, forward_of, forward_truth, step_of, step_truth, within

pytest.importorskip("triton")

from bench.aot import compile_launches, report
from fastmc import chunked
from kernels import mc

WEIGHTS = torch.tensor([1.0, -2.5, 0.5])


def velocity(case: Case) -> torch.Tensor:
    return 0.1 * case.bank.flip(0)


def assert_step(case: Case, update: str, precision: str, cc: int, launches: int) -> None:
    truth, plain = (step_truth(c, update, velocity(c), 7) for c in (case.to(torch.float64), case))
    with ttsem_session(cc) as session:
        ours = step_of(mc, case, update, velocity(case), 7, precision)
    assert session.launches == launches
    verdict = within(ours, truth, kernel_budget(plain, truth, case, precision))
    assert all(verdict.values()), verdict


@needs_ttsem
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("precision", ["bf16x3", "ieee"])
@pytest.mark.parametrize("cc", [80, 90])
def test_step(cc, precision, tiled):
    assert_step(Case.draw(33, 130, 40, tiled=tiled, dtype=torch.float32), "ascent", precision, cc, launches=5)


@needs_ttsem
@pytest.mark.parametrize(
    ("kind", "update", "launches"),
    [("unmixed", "fifo", 5), ("one-hot", "fifo", 5), ("alone", "fifo", 5), ("mc", "none", 4)],
)
def test_other_calls_of_the_trainer(kind, update, launches):
    assert_step(Case.draw(7, 45, 24, kind=kind, dtype=torch.float32), update, "bf16x3", 90, launches)


@needs_ttsem
@pytest.mark.parametrize("tiled", [False, True])
def test_forward_and_bank_gradient(tiled):
    case = Case.draw(33, 130, 40, tiled=tiled, dtype=torch.float32, bank_temperature=0.07)
    truth, plain = (forward_truth(c, WEIGHTS) for c in (case.to(torch.float64), case))
    with ttsem_session() as session:
        ours = forward_of(mc, case, WEIGHTS, "bf16x3")
    assert session.launches == 6  # prepare, sweep, combine, reduce; prepare, bank
    verdict = within(ours, truth, kernel_budget(plain, truth, case, "bf16x3"))
    assert all(verdict.values()), verdict


@needs_ttsem
@pytest.mark.parametrize("tiled", [False, True])
def test_step_at_the_size_of_the_paper(tiled):
    """B = 64, K = 16,384, D = 128. The truth is fastmc.chunked in float64, which its own tests hold to the reference
    within 1e-12: the reference would build 3.2 GB of mixed banks."""
    case = Case.draw(64, 16384, 128, tiled=tiled, dtype=torch.float32)
    wide = case.to(torch.float64)
    truth, plain = (step_of(chunked, c, "ascent", velocity(c), 7) for c in (wide, case))
    with ttsem_session() as session:
        ours = step_of(mc, case, "ascent", velocity(case), 7, "bf16x3")
    assert session.launches == 5
    verdict = within(ours, truth, kernel_budget(plain, truth, case, "bf16x3"))
    assert all(verdict.values()), verdict


def compile_step(target: str, precision: str, tiled: bool, dim: int = 128) -> list:
    """Reports of the kernels of a step at B = 64, K = 16,384; nothing runs."""

    def meta(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    bank, f = meta(16384, dim), meta(64, dim)
    with compile_launches(target) as launches:
        hyper = (0.07, 0.03, 3.0, 0.9, 1e-4, tiled, True, "ascent", None, precision)
        mc.mc_step_(bank, meta(16384, dim), f, f, f, f, meta(16384), *hyper)
    return [report(launch) for launch in launches]


@needs_triton
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("precision", ["bf16x3", "ieee", "bf16"])
@pytest.mark.parametrize("target", ["cuda:80", "cuda:86", "cuda:90", "cuda:100", "hip:gfx942"])
def test_machine_code(target, precision, tiled, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    reports = compile_step(target, precision, tiled)
    assert [r.name for r in reports] == [
        "_prepare_kernel", "_sweep_kernel", "_combine_kernel", "_reduce_kernel", "_bank_kernel"
    ]  # fmt: skip
    shared = {"cuda:80": 163, "cuda:86": 99, "cuda:90": 227, "cuda:100": 227, "hip:gfx942": 64}[target]
    for r in reports:
        assert r.seconds < 20, f"{r.name} took {r.seconds:.0f} s to compile"
        assert r.shared_bytes <= shared * 1024, f"{r.name}: {r.shared_bytes} bytes of shared memory"
        assert target.startswith("hip") or r.resident_warps >= 8, f"{r.name}: {r.resident_warps} warps"
        assert r.counts.get("ATOM", 0) == 0
    if precision != "bf16x3":
        return
    heavy = [r for r in reports if r.name in ("_sweep_kernel", "_bank_kernel")]
    if target in ("cuda:80", "cuda:86", "cuda:90"):
        assert [r.spilled_bytes for r in reports] == [0] * 5
    for r in heavy:
        if target == "hip:gfx942":
            assert r.counts["MFMA"] > 0
            continue
        tensor_core = {"cuda:80": "HMMA", "cuda:86": "HMMA", "cuda:90": "HGMMA", "cuda:100": "UTCMMA"}[target]
        assert r.counts[tensor_core] > 0, f"{r.name}: no {tensor_core}"
        assert r.counts["LDG.128"] + r.counts["LDGSTS.128"] > 0
        assert r.counts["STG.128"] > 0
    # The bank's tile is read, and bank and momentum written, 128 bits at a time; narrower are only rows of numbers.
    if target.startswith("cuda"):
        assert all(r.counts["STG.128"] == r.counts["STG"] for r in heavy if r.name == "_bank_kernel")
