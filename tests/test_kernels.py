"""The MC-loss kernels as they are compiled: values, bounds and races through ttsem; machine code through ptxas."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from gpu_less import needs_triton, needs_ttsem, ttsem_session
from kernel_budget import kernel_budget
from machine_code import TARGETS, compiled, meta
from oracle import Case, Results, forward_of, forward_truth, step_of, step_truth, velocity, within

pytest.importorskip("triton")

import triton

import kernels
from bench.aot import Launch, compile_launches, report
from bench.counting import count_operators
from bench.resources import Report
from fastmc.contrast_table import A2MC, AIMCLR, B1, B2, B3, CPM, HICLR
from fastmc.objective import chunked
from fastmc.objective import contrast_step as step
from fastmc.objective.bank import MemoryBank
from kernels import launch, mc, tiles

pytestmark = [pytest.mark.compiler, pytest.mark.usefixtures("triton_cache")]
WEIGHTS = torch.tensor([1.0, -2.5, 0.5, 2.0])


def assert_step(case: Case, update: str, precision: str, cc: int, launches: int) -> None:
    truth, plain = (step_truth(c, update, velocity(c), 7) for c in (case.to(torch.float64), case))
    with ttsem_session(cc) as session:
        ours = step_of(mc, case, update, velocity(case), 7, precision)
    assert session.launches == launches
    verdict = within(ours, truth, kernel_budget(plain, truth, case, precision))
    assert all(verdict.values()), verdict


@needs_ttsem
@pytest.mark.parametrize(
    ("cc", "precision", "tiled"), [(90, "bf16x3", False), (80, "bf16x3", True), (90, "ieee", True), (80, "ieee", False)]
)
def test_step(cc, precision, tiled):
    assert_step(Case.draw(33, 130, 40, tiled=tiled, dtype=torch.float32), "ascent", precision, cc, launches=4)


@needs_ttsem
@pytest.mark.parametrize(
    ("kind", "update", "launches"),
    [
        ("unmixed", "fifo", 4),
        ("alone", "fifo", 4),
        ("mc", "none", 3),
        ("hiclr", "ascent", 4),
        ("crossed", "ascent", 4),
    ],
)
def test_other_tables(kind, update, launches):
    assert_step(Case.draw(7, 45, 24, kind=kind, dtype=torch.float32), update, "bf16x3", 90, launches)


@needs_ttsem
def test_forward_and_bank_gradient():
    case = Case.draw(33, 130, 40, tiled=True, dtype=torch.float32, bank_temperature=0.07)
    truth, plain = (forward_truth(c, WEIGHTS) for c in (case.to(torch.float64), case))
    with ttsem_session() as session:
        ours = forward_of(mc, case, WEIGHTS, "bf16x3")
    assert session.launches == 5  # prepare, sweep, combine; prepare, bank
    verdict = within(ours, truth, kernel_budget(plain, truth, case, "bf16x3"))
    assert all(verdict.values()), verdict


@needs_ttsem
@pytest.mark.slow
def test_step_at_the_size_of_the_paper():
    """B = 64, K = 16,384, D = 128. The truth is fastmc.objective.chunked in float64, which its own tests hold to the
    reference within 1e-12: the reference would build 3.2 GB of mixed banks."""
    case = Case.draw(64, 16384, 128, dtype=torch.float32)
    wide = case.to(torch.float64)
    truth, plain = (step_of(chunked, c, "ascent", velocity(c), 7) for c in (wide, case))
    with ttsem_session() as session:
        ours = step_of(mc, case, "ascent", velocity(case), 7, "bf16x3")
    assert session.launches == 4
    verdict = within(ours, truth, kernel_budget(plain, truth, case, "bf16x3"))
    assert all(verdict.values()), verdict


@needs_triton
@pytest.mark.parametrize(
    ("method", "dtype"), list(zip(["a2mc", "b3", "b2", "b1"], [torch.bfloat16, torch.float32] * 2, strict=True))
)
def test_the_trainers_call_is_four_launches_in_all(method, dtype, monkeypatch):
    launched = []
    monkeypatch.setattr(triton.JITFunction, "run", lambda self, *_, **__: launched.append(self.__name__))
    monkeypatch.setattr(launch, "current_target", lambda: "hopper")
    monkeypatch.setattr(kernels, "unavailable_reason", lambda device: None)
    monkeypatch.setattr(step, "check_mixing", lambda *_: None)  # it looks at the values on a CPU only
    queue = MemoryBank(45, 6)
    f0, f1, f2, f3 = (torch.randn(7, 6).to(dtype) for _ in range(4))
    if method == "b1":
        f1 = f2 = None
    mixing = torch.rand(45) if method == "a2mc" else None
    objective = "mc" if method in ("a2mc", "b3") else "info_nce"
    update = "ascent" if method == "a2mc" else "fifo"
    call = functools.partial(queue.mc_step_, f0, f1, f2, f3, mixing, objective=objective, update=update, impl="triton")
    beside = count_operators(call)["launches"]
    last = "_bank_kernel" if method == "a2mc" else "_enqueue_kernel"
    assert launched == ["_prepare_kernel", "_sweep_kernel", "_combine_kernel", last]
    assert beside == 0


def entries(tiled: bool, precision: str, dim: int = 128) -> dict[str, Callable[[], object]]:
    """Every call of the kernels at B = 64, K = 16,384, on tensors without memory."""
    f, bank, mixing = meta(64, dim), meta(16384, dim), meta(16384)
    hyper, cursor, three = (0.07, 0.03, 3.0, 0.9, 1e-4), meta(dtype=torch.int64), [f] * 3

    def call(table, update="fifo", f=f, f0=None, lifted=None):
        coefficients = mixing if table.mixed else None
        queries = [f] * table.queries
        return lambda: mc.contrast_step_(
            bank,
            bank,
            f if f0 is None else f0,
            queries,
            coefficients,
            table,
            *hyper,
            tiled,
            update,
            cursor,
            precision,
            lifted,
        )

    calls = {
        "a2mc": call(A2MC, "ascent"),
        "bank_step_": lambda: mc.bank_step_(bank, bank, f, three, mixing, A2MC, *hyper[1:], tiled, precision),
        "forward": lambda: mc.contrast_forward(f, three, bank, mixing, A2MC, 0.07, tiled, precision),
        "bank gradient": lambda: mc.contrast_bank_gradient(
            three, bank, mixing, meta(4, 64), meta(3), A2MC, 0.07, tiled, precision
        ),
    }
    if not tiled:
        tables = {"b3": B3, "b2": B2, "b1": B1, "aimclr": AIMCLR, "hiclr": HICLR}
        tables |= {"mining": AIMCLR.mining(), "mining eight": AIMCLR.mining(8)}
        calls |= {name: call(table) for name, table in tables.items()}
        calls["several"] = call(B1, f0=meta(64, 4, dim))
        calls["no key"] = call(CPM)
        calls["lifted"] = call(CPM.lifting(100), lifted=meta(1, 64, 100, dtype=torch.int64))
        calls["dots"] = call(replace(B1, unit=False))
        calls["half precision"] = call(A2MC, "ascent", meta(64, dim, dtype=torch.bfloat16))
    return calls


TENSOR_CORE = {"cuda:80": "HMMA", "cuda:86": "HMMA", "cuda:90": "HGMMA", "cuda:100": "UTCMMA", "hip:gfx942": "MFMA"}


def code_of(target: str, call: Callable[[], object]) -> list[Report]:
    return compiled(target, call, spilled=None, adds_up=lambda launch: launch.arguments.get("p_ticket") is not None
                    and launch.name == "_combine_kernel")  # fmt: skip


def given(launches: list[Launch], kernel: str) -> dict[str, object]:
    """The arguments of a kernel's launch that are not None."""
    (launch,) = (one for one in launches if one.name == kernel)
    return {name: value for name, value in launch.arguments.items() if value is not None}


@needs_triton
@pytest.mark.parametrize(
    ("target", "precision", "tiled"),
    [(target, "bf16x3", i % 2 == 0) for i, target in enumerate(TARGETS)]
    + [("cuda:90", "bf16x3", False), ("cuda:90", "ieee", True), ("cuda:80", "ieee", False), ("cuda:86", "bf16", False)],
)
def test_machine_code(target, precision, tiled):
    reports = code_of(target, entries(tiled, precision)["a2mc"])
    assert [r.name for r in reports] == [
        "_prepare_kernel", "_sweep_kernel", "_combine_kernel", "_bank_kernel"
    ]  # fmt: skip
    if precision == "ieee":
        return
    for r in (reports[1], reports[3]):
        assert r.counts[TENSOR_CORE[target]] > 0, f"{r.name}: no {TENSOR_CORE[target]}"
        if target.startswith("cuda"):
            assert r.counts["LDG.128"] + r.counts["LDGSTS.128"] > 0
            assert r.counts["STG.128"] > 0
    if target.startswith("cuda"):  # bank and momentum are written 128 bits at a time, all of them
        assert reports[3].counts["STG.128"] == reports[3].counts["STG"]


SPILLED = {"cuda:80": 96, "cuda:90": 96}
"""Bytes a thread that are spilled at most at the default precision, stores and loads together; by own mixing on an H100
none. They lie outside of the loops, but for LOCAL_IN_LOOP instructions."""
LOCAL_IN_LOOP = 2
IN_LOOP = {
    False: {"_sweep_kernel": (990, 3), "_bank_kernel": (590, 3)},
    True: {"_sweep_kernel": (990, 3), "_bank_kernel": (800, 10)},
}
"""By tiled mixing: instructions and barriers at most of the loop on an H100, with Triton 3.6 as with 3.7."""


@needs_triton
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("target", SPILLED)
def test_loops(target, tiled):
    """Next to no local memory; on an H100 no product twice, few barriers and instructions, two programs at a time."""
    for name, call in entries(tiled, "bf16x3").items():
        if target != "cuda:90" and name not in ("a2mc", "bank_step_", "mining", "several", "dots", "no key"):
            continue
        with compile_launches(target) as launches:
            call()
        for one in launches:
            found, what = report(one), f"{name}: {one.name}"
            none = name in ("several", "dots", "no key") or (target == "cuda:90" and not tiled)
            assert found.spilled_bytes <= (0 if none else SPILLED[target]), what
            for loop in found.loops:
                assert loop.counts["LDL"] + loop.counts["STL"] <= LOCAL_IN_LOOP, what
            if target == "cuda:90" and one.name in IN_LOOP[tiled] and name != "mining eight":
                assert found.hot is not None
                assert found.hot.products == products_of_a_trip(one), what
                instructions, barriers = IN_LOOP[tiled][one.name]
                assert found.hot.instructions <= instructions, what
                assert found.hot.counts["BAR"] <= barriers, what
                assert found.resident_warps >= 2 * found.num_warps, what


def products_of_a_trip(one: Launch) -> int:
    """Split products of similarities, and of expected entries or the gradient, of a tile of the bank."""
    a = one.arguments
    matrices = 2 if one.name == "_bank_kernel" or a["LOSS"] else 1
    rows = a["BLOCK_B"] if one.name == "_bank_kernel" else a["BLOCK_R"]
    return 3 * matrices * 2 * rows * a["BLOCK_K"] * a["D"]


@needs_ttsem
@pytest.mark.parametrize("order", ["reverse", "shuffle:1"])
def test_bits_do_not_depend_on_which_program_is_last(order, monkeypatch):
    case = Case.draw(33, 130, 40, dtype=torch.float32)

    def step() -> Results:
        with ttsem_session() as session:
            found = step_of(mc, case, "ascent", velocity(case), 7, "bf16x3")
        assert session.launches == 4
        return found

    first = step()
    monkeypatch.setenv("TTSEM_GRID_ORDER", order)
    again = step()
    assert all(torch.equal(first[name], again[name]) for name in first)


@needs_triton
def test_barriers_and_fences():
    """What only a GPU runs wrongly without them, now and then: the ticket releases what all threads of its program have
    written, and acquires what the others have; no thread moves the queue's cursor before all have read it."""
    with compile_launches("cuda:90") as launches:
        entries(tiled=False, precision="bf16x3")["b1"]()
    code = {one.name: one.kernel.asm["ptx"].splitlines() for one in launches}

    def lines_of(kernel: str, pattern: str) -> list[int]:
        return [number for number, line in enumerate(code[kernel]) if re.search(pattern, line)]

    combine, enqueue = "_combine_kernel", "_enqueue_kernel"
    (ticket,) = lines_of(combine, r"\batom\S*\.acq_rel\S*\.add\.")
    written = max(line for line in lines_of(combine, r"\batom\S*\.exch\.|\bst\.global") if line < ticket)
    assert any(written < barrier < ticket for barrier in lines_of(combine, r"\bbar\.sync"))
    (read,), (moved,) = lines_of(enqueue, r"\bld\.global\S*\.b64"), lines_of(enqueue, r"\bst\.global\S*\.b64")
    assert any(read < barrier < moved for barrier in lines_of(enqueue, r"\bbar\.sync"))


@needs_triton
def test_absent_tensors_are_none():
    with compile_launches("cuda:90") as launches:
        entries(tiled=False, precision="bf16x3")["b1"]()
    prepare, sweep, combine, _enqueue = (given(launches, one.name) for one in launches)
    assert "p_c" not in prepare
    assert {"p_c", "p_mixing"}.isdisjoint(sweep)
    assert len(prepare["p_queries"]) == len(combine["p_queries"]) == 1


@pytest.mark.parametrize(("count", "rounded"), [(132, 128), (114, 112), (108, 104), (148, 144), (7, 8)])
def test_multiprocessors_are_rounded_to_few_classes(count, rounded, monkeypatch):
    class Properties:
        multi_processor_count = count

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties)
    tiles._count.cache_clear()
    assert tiles.multiprocessors(torch.device("cuda", 3)) == rounded
    tiles._count.cache_clear()
    assert tiles.multiprocessors(torch.device("meta")) == 128  # an H100's


@needs_triton
@pytest.mark.parametrize(("dim", "tiled"), [(8, False), (200, True), (512, False), (512, True)])
def test_other_widths_fit_the_smallest_chip(dim, tiled):
    code_of("cuda:86", entries(tiled, "bf16x3", dim)["a2mc"])
