"""The helpers that run kernels without a GPU: what they check, and that they leave the process as it was."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl
from gpu_less import (
    INTERPRETED,
    kernels_on_cpu,
    needs_engine,
    needs_ttsem,
    poisoned_memory,
    run_interpreted,
    ttsem_session,
)

from bench.aot import compile_launches

pytestmark = pytest.mark.compiler
N = 16


@triton.jit
def step_kernel(p_x, p_out, p_sum, count, N: tl.constexpr):
    """In place: x += 1; out = bf16 dot of the rows with themselves; one sum a program."""
    i_program = tl.program_id(0)
    o_row, o_col = i_program * N + tl.arange(0, N), tl.arange(0, N)
    o = o_row[:, None] * N + o_col[None, :]
    m = o_row[:, None] < count
    b = tl.load(p_x + o, mask=m, other=0.0)
    tl.store(p_x + o, b + 1, mask=m)
    b = b.to(tl.bfloat16)
    tl.store(p_out + i_program * N * N + o_col[:, None] * N + o_col[None, :], tl.dot(b, tl.trans(b)))
    tl.store(p_sum + i_program, tl.sum(tl.sum(b.to(tl.float32), 1), 0))


@triton.jit
def racing_kernel(p_x, N: tl.constexpr):
    o = tl.arange(0, N)
    tl.store(p_x + o, tl.program_id(0).to(tl.float32))


def step(x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    tiles = triton.cdiv(count, N)
    out, total = x.new_empty(tiles, N, N), x.new_empty(tiles)
    step_kernel[(tiles,)](x, out, total, count, N=N)
    return out, total


@needs_engine
@pytest.mark.parametrize("cc", [80, 90])
def test_the_engine_of_this_process_computes_and_leaves_no_trace(cc):
    """Fails, too, on what is not stored: fresh memory is NaN."""
    driver, run, cuda = triton.runtime.driver._active, triton.JITFunction.run, torch.cuda.is_available
    x = torch.randn(40, N)
    rows = torch.cat([x, torch.zeros(8, N)]).bfloat16().float().view(3, N, N)
    after = x + 1
    with kernels_on_cpu(cc) as engine:
        out, total = step(x, 40)
    assert (len(engine.launches) if INTERPRETED else engine.launches) == 1
    assert torch.equal(x, after)
    torch.testing.assert_close(out, rows @ rows.mT)
    torch.testing.assert_close(total, rows.sum((1, 2)))
    assert triton.runtime.driver._active is driver
    assert triton.JITFunction.run is run
    assert torch.cuda.is_available is cuda
    assert not torch.are_deterministic_algorithms_enabled()


@needs_engine
def test_the_engine_of_this_process_stops_at_faults():
    with pytest.raises(Exception, match=r"test_gpu_less.py:\d+") as fault, kernels_on_cpu():
        step(torch.randn(40, N), 41)
    assert type(fault.value).__name__ == "KernelFault"
    with pytest.raises(Exception, match=r"program.* stores to it") as fault, kernels_on_cpu():
        racing_kernel[(2,)](torch.randn(N), N=N)
    assert type(fault.value).__name__ == "KernelFault"
    with pytest.raises(AssertionError, match="no kernel was launched"), kernels_on_cpu():
        pass


def test_poison():
    with poisoned_memory():
        assert torch.empty(9).isnan().all()
        assert torch.zeros(9).new_empty(9).isnan().all()
        assert torch.empty_like(torch.zeros(9, dtype=torch.bfloat16)).isnan().all()


@pytest.mark.skipif(INTERPRETED, reason="starts such a process")
def test_a_failure_in_the_interpreted_process_is_reported(tmp_path):
    failing = tmp_path / "test_failing.py"
    failing.write_text("import os\ndef test_it():\n    assert os.environ['TRITON_INTERPRET'] == 'sentinel'\n")
    with pytest.raises(pytest.fail.Exception, match=r"(?s)test_failing.py interpreted:.*assert '1' == 'sentinel'"):
        run_interpreted(failing)


@needs_ttsem
def test_ttsem_after_a_compile_for_another_maker(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    for cc in (80, 90):
        with ttsem_session(cc):
            step(torch.randn(40, N), 40)
        with compile_launches("hip:gfx942"):
            step(torch.randn(40, N), 40)
