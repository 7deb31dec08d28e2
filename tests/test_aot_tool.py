"""Compiling for a GPU that is not here: what a launch would compile is compiled, and the report reads it right."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from bench.aot import TARGETS, compile_launches, parse_target, report
from bench.interpreter import repair
from bench.resources import SM, _innermost, _instructions, _loop, resident_programs
from bench.watch import watch

pytestmark = [pytest.mark.compiler, pytest.mark.usefixtures("triton_cache")]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@triton.jit
def scale_kernel(p_x, p_out, count, factor, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < count
    tl.store(p_out + o, tl.exp2(tl.load(p_x + o, mask=m) * factor), mask=m)


@triton.jit
def dot_kernel(p_a, p_b, p_c, N: tl.constexpr):
    o = tl.arange(0, N)
    o = o[:, None] * N + o[None, :]
    tl.store(p_c + o, tl.dot(tl.load(p_a + o), tl.load(p_b + o)))


@triton.jit
def loop_kernel(p_a, p_b, p_c, steps, N: tl.constexpr):
    o = tl.arange(0, N)
    o = o[:, None] * N + o[None, :]
    acc = tl.zeros([N, N], tl.float32)
    for i in range(steps):
        acc = tl.dot(tl.load(p_a + i * N * N + o), tl.load(p_b + o), acc)
    for i in range(steps):
        acc += tl.load(p_c + i * N * N + o)
    tl.store(p_c + o, acc)


def scale(x: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    out = torch.empty_like(x)
    scale_kernel[lambda meta: (triton.cdiv(x.numel(), meta["BLOCK"]),)](x, out, x.numel(), factor, BLOCK=512)
    return out


def dot(**options: int) -> None:
    a, b, c = meta(64, 64, dtype=torch.bfloat16), meta(64, 64, dtype=torch.bfloat16), meta(64, 64)
    dot_kernel[(1, 2)](a, b, c, N=64, **options)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_compiles_to_its_own_matrix_instruction(target):
    with compile_launches(target) as launches:
        dot(num_warps=4)
    (launch,) = launches
    found = report(launch)
    assert (found.name, found.target, found.num_warps, launch.grid) == ("dot_kernel", target, 4, (1, 2, 1))
    own = {"cuda:80": "HMMA", "cuda:90": "HGMMA", "cuda:100": "UTCMMA", "hip:gfx942": "MFMA"}
    for name, instruction in own.items():
        assert (found.counts.get(instruction, 0) > 0) == (name == target)
    assert found.spilled_bytes == found.local_bytes == 0
    assert 16 < found.registers <= 255
    assert found.shared_bytes >= 2 * 64 * 64 * 2 or target == "hip:gfx942"
    assert (found.resident_warps > 0) == target.startswith("cuda")
    assert found.seconds > 0
    assert not found.cached


def test_the_specialisation_is_that_of_a_launch():
    """A size that is no multiple of 16 costs the wide loads, and a launch with such a size compiles that kernel."""
    with compile_launches("cuda:90") as launches:
        scale(meta(4096))
        scale(meta(4097))
        scale(meta(8192))
        scale(torch.zeros(4097)[1:])
    even, odd, larger, unaligned = launches
    assert (even.grid, odd.grid, larger.grid) == ((8, 1, 1), (9, 1, 1), (16, 1, 1))
    assert larger.kernel is even.kernel
    assert larger.seconds == 0 < even.seconds
    assert odd.kernel is not even.kernel is not unaligned.kernel
    wide, narrow = report(even).counts, report(odd).counts
    assert wide["LDG"] == wide["LDG.128"] == 1
    assert wide["STG"] == wide["STG.128"] == 1
    assert narrow["LDG"] == 4 > narrow["LDG.128"] == 0
    assert report(unaligned).counts["LDG.128"] == 0
    assert wide["MUFU"] == 4


def test_loops_are_found():
    """The hot one is that of the product, which it makes once."""
    a, b, c = meta(64, 64, dtype=torch.bfloat16), meta(64, 64, dtype=torch.bfloat16), meta(64, 64)
    with compile_launches("cuda:90") as launches:
        loop_kernel[(1,)](a, b, c, steps=5, N=64, num_warps=4)
        dot(num_warps=4)
    looped, straight = map(report, launches)
    assert launches[0].arguments["steps"] == 5
    assert launches[0].arguments["p_a"] is a
    assert len(looped.loops) >= 2
    assert looped.hot is not None
    assert looped.hot.counts["HGMMA"] > 0
    assert looped.hot.products == 2 * 64**3
    assert looped.hot.counts["STG"] == 0 < looped.counts["STG"]
    assert sum(loop.instructions for loop in looped.loops) < looped.instructions
    assert straight.loops == ()
    assert straight.hot is None


SASS = """
.L_x_0:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_2:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_1:
        /*0020*/                   HGMMA.64x32x16.F32.BF16 R24, gdesc[UR4], R24 ;
        /*0030*/             @!P0 BRA `(.L_x_3) ;
        /*0040*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0050*/              @P1 BRA `(.L_x_1) ;
        /*0060*/              @P2 BRA `(.L_x_2) ;
.L_x_3:
        /*0070*/                   EXIT ;
.L_x_4:
        /*0080*/                   BRA `(.L_x_4);
        /*0090*/                   NOP;
"""


def test_an_innermost_loop_is_what_holds_no_other():
    assert _innermost(SASS) == [(2, 6)]
    code = _instructions(SASS)
    assert len(code) == 9
    loop = _loop(code[2:6], num_warps=8)
    assert (loop.instructions, loop.counts["BAR"], loop.counts["HGMMA"]) == (4, 1, 1)
    assert loop.products == 2 * 64 * 32 * 16 * 2


def test_spills_are_reported():
    with compile_launches("cuda:80") as launches:
        dot(maxnreg=32)
    found = report(launches[0])
    assert found.registers <= 32
    assert found.spill_store_bytes > 0
    assert found.spill_load_bytes > 0
    assert found.spilled_bytes == found.spill_store_bytes + found.spill_load_bytes
    assert found.local_bytes > 0
    assert found.counts["LDL"] > 0
    assert found.counts["STL"] > 0


@pytest.mark.parametrize(
    "arch, registers, shared, warps, programs, limited_by",
    [
        (90, 24, 0, 4, 16, "warps"),
        (90, 33, 0, 4, 12, "registers"),  # 40 registers are given, 12 warps to a partition
        (90, 255, 0, 8, 1, "registers"),
        (80, 64, 100 * 1024, 4, 1, "shared"),
        (90, 64, 113 * 1024, 4, 2, "shared"),  # 1 KiB of each is the system's: 2 x 114 = 228
        (90, 64, 113 * 1024 + 1, 4, 1, "shared"),
        (90, 16, 0, 1, 32, "programs"),
        (86, 16, 0, 4, 12, "warps"),
    ],
)
def test_occupancy(arch, registers, shared, warps, programs, limited_by):
    assert resident_programs(registers, shared, warps, SM[arch]) == (programs, limited_by)


def test_nothing_runs_and_nothing_stays_behind():
    driver, run = triton.runtime.driver._active, triton.JITFunction.run
    x, out = torch.ones(512), torch.full((512,), 7.0)
    with compile_launches("cuda:90"):
        scale_kernel[(1,)](x, out, 512, 2.0, BLOCK=512)
    with pytest.raises(TypeError, match="factor"), compile_launches("cuda:90"):
        scale_kernel[(1,)](x, out, 512, BLOCK=512)
    assert (out == 7).all()
    assert triton.runtime.driver._active is driver
    assert triton.JITFunction.run is run
    assert triton.knobs.compilation.listener is None


def test_the_cache_on_disk_is_used_and_told():
    def compiled(**options):
        with compile_launches("cuda:80", **options) as launches:
            scale(meta(64), 3.0)
        return launches[0].cached

    assert not compiled(fresh=True)
    assert compiled()
    assert not compiled(fresh=True)


def test_wrong_targets_and_processes_are_refused():
    with pytest.raises(ValueError, match="target: 'sm_90' is not"):
        parse_target("sm_90")
    with triton.knobs.runtime.scope():
        triton.knobs.runtime.interpret = True
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 is set"), compile_launches("cuda:90"):
            pass
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 is not set"):
        repair()
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 is not set"), watch():
        pass
