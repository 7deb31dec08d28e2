"""The counts of bench.watch are exact, and each fault is found, by the line of the kernel."""

from __future__ import annotations

import inspect

import pytest
import torch
import triton
import triton.language as tl

from bench.watch import KernelFault, watch

N = 16


def line_of(kernel, text: str) -> str:
    """file:line of the kernel's line that holds this text."""
    lines, start = inspect.getsourcelines(kernel.fn)
    return f"{__file__}:{start + next(i for i, line in enumerate(lines) if text in line)}"


@triton.jit
def product_kernel(p_a, p_b, p_c, rows, PRECISION: tl.constexpr, N: tl.constexpr):
    """c = exp(a) b, one tile of N rows a program."""
    o_row = tl.program_id(0) * N + tl.arange(0, N)
    o = o_row[:, None] * N + tl.arange(0, N)[None, :]
    m = o_row[:, None] < rows
    b_a = tl.exp(tl.load(p_a + o, mask=m, other=0.0)).to(p_b.dtype.element_ty)
    b_b = tl.load(p_b + tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :])
    tl.store(p_c + o, tl.dot(b_a, b_b, input_precision=PRECISION), mask=m)


def product(rows=40, dtype=torch.bfloat16, precision="ieee"):
    a, b = torch.randn(rows, N), torch.randn(N, N).to(dtype)
    c = torch.empty(rows, N)
    product_kernel[(triton.cdiv(rows, N),)](a, b, c, rows, PRECISION=precision, N=N)
    return a, b, c


def test_counts_of_one_launch():
    with watch() as seen:
        product()
    (counts,) = seen.launches
    assert (counts.kernel, counts.grid, counts.programs) == ("product_kernel", (3, 1, 1), 3)
    assert counts.load_bytes == 40 * N * 4 + 3 * N * N * 2  # b by each of 3 programs
    assert counts.memory_load_bytes == 40 * N * 4 + N * N * 2
    assert counts.store_bytes == counts.memory_store_bytes == 40 * N * 4
    assert counts.atomic_bytes == 0
    assert counts.dot_flops == {"bf16": 3 * 2 * N**3}
    assert counts.exponentials == 3 * N * N
    assert seen.total.load_bytes == counts.load_bytes
    assert seen.total.dot_flops == counts.dot_flops


@pytest.mark.parametrize("precision", ["ieee", "tf32", "tf32x3", "bf16x3"])
def test_products_are_told_apart(precision):
    with watch() as seen:
        product(dtype=torch.float32, precision=precision)
    assert seen.total.dot_flops == {"fp32" if precision == "ieee" else precision: 3 * 2 * N**3}


@triton.jit
def copy_kernel(p_from, p_to, N: tl.constexpr):
    o = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(p_to + o, tl.load(p_from + o))


def test_memory_is_what_nothing_watched_had_touched():
    x, y, z = torch.randn(3, 4 * N).unbind()
    x, y, z = x.clone(), y.clone(), z.clone()
    with watch() as seen:
        copy_kernel[(4,)](x, y, N=N)
        copy_kernel[(4,)](y, z, N=N)  # y was stored
        copy_kernel[(4,)](x, z, N=N)  # x was loaded, z was stored
        copy_kernel[(2,)](z.double()[: 2 * N], y, N=N)  # 8 bytes each, and again 4
    size = 4 * N * 4
    assert [c.memory_load_bytes for c in seen.launches] == [size, 0, 0, size]
    assert [c.memory_store_bytes for c in seen.launches] == [size, size, 0, 0]
    assert [c.load_bytes for c in seen.launches] == [size, size, size, size]
    assert seen.total.programs == 14
    assert seen.total.memory_load_bytes == 2 * size


def test_bytes_of_one_storage_in_two_types():
    x = torch.randn(2 * N)
    with watch() as seen:
        copy_kernel[(2,)](x, torch.empty(2 * N), N=N)
        copy_kernel[(2,)](x.view(torch.bfloat16)[: 2 * N], torch.empty(2 * N, dtype=torch.bfloat16), N=N)
    assert [c.memory_load_bytes for c in seen.launches] == [2 * N * 4, 0]


def test_watching_changes_no_value_and_ends():
    torch.manual_seed(0)
    with watch():
        watched = product()
    torch.manual_seed(0)
    for found, expected in zip(product(), watched, strict=True):
        assert torch.equal(found, expected)
    overrunning_kernel[(1,)](torch.zeros(N + 1)[:N], torch.zeros(N + 1), N, N=N)  # not watched


@triton.jit
def overrunning_kernel(p_x, p_out, count, N: tl.constexpr):
    o = tl.arange(0, N)
    b = tl.load(p_x + o + 1, mask=o < count, other=0.0)
    tl.store(p_out + o, b, mask=o < count)


def test_load_out_of_bounds():
    x, out = torch.zeros(N), torch.zeros(N)
    with watch() as seen:
        overrunning_kernel[(1,)](x, out, N - 1, N=N)
    assert seen.total.load_bytes == (N - 1) * 4
    with watch(), pytest.raises(KernelFault) as fault:
        overrunning_kernel[(1,)](x, out, N, N=N)
    message = f"load outside p_x ({N},): 1 active lane(s) of program (0, 0, 0), the first 1 behind its last element"
    assert message in str(fault.value)
    assert line_of(overrunning_kernel, "b = tl.load") in str(fault.value)


@triton.jit
def shift_kernel(p_x, p_out, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_out + o, tl.load(p_x + o - 1))


def test_bounds_are_the_views_even_between_neighbours():
    whole = torch.zeros(3, N)
    with watch(), pytest.raises(KernelFault, match=r"load outside p_x .*the first 1 behind its last"):
        overrunning_kernel[(1,)](whole[0], whole[1], N, N=N)
    with watch(), pytest.raises(KernelFault, match=r"load outside p_x .*the first 1 before its first"):
        shift_kernel[(1,)](whole[1], whole[2], N=N)
    with watch(), pytest.raises(KernelFault, match=r"store outside p_to .*16 active lane"):
        copy_kernel[(1,)](whole[0], whole[1, :0], N=N)


@triton.jit
def through_helper_kernel(p_x, p_out, N: tl.constexpr):
    tl.store(p_out + tl.arange(0, N), fetch(p_x, N))


@triton.jit
def fetch(p_x, N: tl.constexpr):
    return tl.load(p_x + 2 * tl.arange(0, N))


def test_fault_in_a_function_that_the_kernel_calls():
    with watch(), pytest.raises(KernelFault) as fault:
        through_helper_kernel[(1,)](torch.zeros(N), torch.zeros(N), N=N)
    assert line_of(fetch, "tl.load") in str(fault.value)
    with watch():
        through_helper_kernel[(1,)](torch.zeros(2 * N), torch.zeros(N), N=N)


@triton.jit
def select_kernel(p_x, p_y, p_out, N: tl.constexpr):
    """Half of the lanes from each of two tensors, and a pointer by program."""
    o = tl.arange(0, N)
    b = tl.load(tl.where(o < N // 2, p_x, p_y) + o)
    p = p_x
    if tl.program_id(0) == 1:
        p = p_y
    tl.store(p_out + tl.program_id(0) * N + o, b + tl.load(p + o))


def test_pointers_that_are_selected():
    x, y, out = torch.randn(N), torch.randn(N), torch.empty(2 * N)
    with watch() as seen:
        select_kernel[(2,)](x, y, out, N=N)
    mixed = torch.cat([x[: N // 2], y[N // 2 :]])
    assert torch.equal(out, torch.cat([mixed + x, mixed + y]))
    assert seen.total.memory_load_bytes == 2 * N * 4
    with watch(), pytest.raises(KernelFault, match=f"load outside p_y .*{N // 2} active"):
        select_kernel[(2,)](x, y[: N // 2], out, N=N)


@triton.jit
def race_kernel(p_x, p_out, KIND: tl.constexpr, N: tl.constexpr):
    """Programs that meet, each in another way."""
    o, i_program = tl.arange(0, N), tl.program_id(0)
    if KIND == "stores meet":
        tl.store(p_out + o, tl.load(p_x + o))
    elif KIND == "load meets store":
        tl.store(p_x + i_program * N + o, tl.load(p_x + o))
    elif KIND == "store meets load":
        tl.store(p_x + o, tl.load(p_x + N + o), mask=(i_program == 1) & (o >= 0))
        tl.store(p_out + i_program * N + o, tl.load(p_x + o), mask=(i_program == 0) & (o >= 0))
    elif KIND == "store meets several":
        b = tl.load(p_x + o)
        if i_program == 2:
            tl.store(p_x + o, b)
    elif KIND == "update meets load":
        tl.atomic_add(p_x + o, tl.load(p_x + o))
    elif KIND == "store meets update":
        tl.atomic_add(p_x + o, 1.0, mask=(i_program == 0) & (o >= 0))
        tl.store(p_x + o, 1.0, mask=(i_program == 1) & (o >= 0))
    elif KIND == "updates":
        tl.atomic_add(p_x + o, 1.0)
    elif KIND == "own":
        tl.store(p_x + i_program * N + o, tl.load(p_x + i_program * N + o) + 1)
        tl.store(p_x + i_program * N + o, tl.load(p_x + i_program * N + o) + 1)


RACES = {
    "stores meet": "program (1, 0, 0) stores to it, program (0, 0, 0) stores it",
    "load meets store": "program (1, 0, 0) loads it, program (0, 0, 0) stores it",
    "store meets load": "program (1, 0, 0) stores to it, program (0, 0, 0) loads it",
    "store meets several": "program (2, 0, 0) stores to it, several programs load it",
    "update meets load": "program (1, 0, 0) loads it, program (0, 0, 0) updates it",
    "store meets update": "program (1, 0, 0) stores to it, program (0, 0, 0) updates it",
}


@pytest.mark.parametrize("kind", RACES)
def test_races_between_programs(kind):
    x, out = torch.randn(3 * N), torch.empty(3 * N)
    programs = 3 if "several" in kind else 2
    with watch(), pytest.raises(KernelFault) as fault:
        race_kernel[(programs,)](x, out, KIND=kind, N=N)
    assert RACES[kind] in str(fault.value)
    assert "race on byte 0 of " in str(fault.value)
    with watch(races=False):
        race_kernel[(programs,)](x, out, KIND=kind, N=N)
    with watch():
        race_kernel[(1,)](x, out, KIND=kind, N=N)  # alone


@pytest.mark.parametrize("kind", ["updates", "own"])
def test_no_race(kind):
    x = torch.zeros(3 * N)
    with watch() as seen:
        race_kernel[(3,)](x, x, KIND=kind, N=N)
        race_kernel[(3,)](x, x, KIND=kind, N=N)  # launches follow each other
    assert torch.equal(x, torch.tensor([6.0] * N + [0.0] * 2 * N) if kind == "updates" else torch.full((3 * N,), 4.0))
    assert seen.total.atomic_bytes == (2 * 3 * N * 4 if kind == "updates" else 0)
