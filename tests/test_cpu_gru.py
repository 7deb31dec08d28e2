"""The C++ layers of the recurrent net against nn.GRU and against PyTorch's operators."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from test_recurrent import (
    READINGS,
    apart,
    by_nn_gru,
    everything,
    float32_excess,
    frame_by_frame,
    kept_bytes,
    make,
    ours,
)
from torch import Tensor, nn

from fastmc.backends import RECURRENT, Need
from fastmc.encoders import recurrent
from kernels import cpu
from kernels.cpu import gru

SIZES = [  # B, T, F, H
    (5, 7, 6, 4),
    (1, 1, 1, 1),
    (1, 9, 3, 5),
    (4, 1, 3, 2),
    (3, 2, 5, 8),
    (2, 8, 7, 33),
    (33, 3, 5, 17),  # a share of one clip
    (70, 2, 1, 16),
]


@pytest.fixture(params=[gru.BLOCK_ROWS, 6], ids=["one block", "blocks"])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with blocks so small that most sizes take several, the last one shorter."""
    monkeypatch.setattr(gru, "BLOCK_ROWS", request.param)


def case(reading: str, size: tuple[int, int, int, int], layers: int = 1, dtype: torch.dtype = torch.float64) -> Any:
    net, x, upstream = make(reading, size, layers, dtype)
    net.impl = "cpp"
    return net, x, upstream


def by_pytorch(net: nn.Module, x: Tensor) -> Tensor:
    net.impl = "torch"
    try:
        return net(x)
    finally:
        net.impl = "cpp"


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("reading", READINGS)
def test_values_and_gradients_in_float64(reading, layers, size):
    some = case(reading, size, layers)
    got = everything(ours, *some)
    for other in (by_nn_gru, by_pytorch, frame_by_frame):
        assert apart(got, everything(other, *some)) < 1e-12
    with torch.no_grad():
        assert apart([some[0](some[1])], got[:1]) < 1e-12


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("reading", READINGS)
def test_gradcheck(reading, layers):
    net, x, _ = case(reading, (2, 3, 3, 2), layers)
    assert torch.autograd.gradcheck(lambda x, *weights: net(x), (x, *net.parameters()))


@pytest.mark.parametrize("size", [(32, 32, 150, 128), (96, 32, 150, 128), (7, 16, 21, 33), (1, 1, 3, 5)])
@pytest.mark.parametrize("reading", READINGS)
def test_error_budget_in_float32(reading, size):
    """That it can be broken: tests/test_recurrent.py."""
    net, x, upstream = case(reading, size, 2, torch.float32)
    got, plain = everything(ours, net, x, upstream), everything(by_nn_gru, net, x, upstream)
    wide = copy.deepcopy(net).double(), x.detach().double().requires_grad_(), upstream.double()
    assert float32_excess(got, plain, everything(by_nn_gru, *wide)) <= 0


@pytest.mark.parametrize("wrong", ["gates", "states"])
def test_a_wrong_value_on_the_way_back_is_noticed(wrong, monkeypatch):
    kept = gru.backward

    def bent(upstream, x, weights, found, *others):
        return kept(upstream, x, weights, found._replace(**{wrong: getattr(found, wrong) * 1.01}), *others)

    monkeypatch.setattr(gru, "backward", bent)
    some = case("sequence", (3, 5, 4, 6))
    assert apart(everything(ours, *some), everything(by_nn_gru, *some)) > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_do_not_depend_on_the_number_of_threads(dtype):
    some = case("sequence", (70, 5, 9, 24), 2, dtype)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(everything(ours, *some))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_clips_do_not_meet():
    """A clip's result does not depend on the others of its batch, but for the last bits of products of other sizes."""
    net, x, _ = case("sequence", (70, 4, 6, 8), 2)
    with torch.no_grad():
        assert apart([net(x)], [torch.cat([net(x[i : i + 1]) for i in range(70)])]) < 1e-14


def test_the_scale_of_the_columns_is_taken_up():
    net, x, upstream = case("sequence", (4, 5, 6, 7), 2)
    scale, shift = (torch.randn(6, dtype=x.dtype).requires_grad_() for _ in range(2))
    leaves = (scale, shift, *net.parameters())
    got = torch.autograd.grad(net(x.detach(), (scale, shift)), leaves, upstream)
    want = torch.autograd.grad(by_nn_gru(net, x.detach() * scale + shift), leaves, upstream)
    assert apart(list(got), list(want)) < 1e-12


def test_strided_inputs_and_an_empty_batch():
    net, x, upstream = case("sequence", (4, 6, 5, 3), 2)
    want = everything(ours, net, x, upstream)
    for other in (x.detach().transpose(0, 1).contiguous().transpose(0, 1), torch.cat((x, x), dim=2).detach()[..., :5]):
        assert not other.is_contiguous()
        assert all(map(torch.equal, everything(ours, net, other.requires_grad_(), upstream), want))
    one = upstream[:1].expand(4, -1)  # a gradient whose rows share memory, as that of a sum does
    assert apart(everything(ours, net, x, one), everything(by_nn_gru, net, x, one)) < 1e-12
    result, dx, *gradients = everything(ours, net, x[:0], upstream[:0])
    assert result.shape == (0, 6) and dx.shape == (0, 6, 5)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    net, x, upstream = case("sequence", (3, 5, 4, 6), 1, torch.float32)
    with torch.no_grad():
        x[1, 2, 3] = float("nan") if bad != bad else bad
    result = net(x)
    assert result[[0, 2]].isfinite().all()
    assert result[1].isnan().any() == (bad != bad)
    (gradient,) = torch.autograd.grad(result, [net.weight_ih_l0], upstream)
    assert not gradient.isfinite().all()


def test_memory_kept_for_backward():
    """Five values by state: q, r, z, n and h, with a zero state by direction."""
    batch, frames, _, hidden = size = (4, 6, 10, 8)
    net, x, _ = case("sequence", size, 2)
    state = batch * hidden * 8
    assert kept_bytes(net, x) == 2 * 2 * (5 * frames + 1) * state
    with torch.no_grad():
        assert kept_bytes(net, x) == 0


def ulps(found: Tensor, exact: Tensor) -> float:
    """The largest error in units of the last place of the exact value (float64)."""
    unit = torch.nextafter(exact.abs().float(), torch.tensor(torch.inf)).double() - exact.abs().float().double()
    return float(((found.double() - exact).abs() / unit).max())


def test_sigmoid_and_tanh_in_units_of_the_last_place():
    """Every 4001st float32 number within the clamp."""
    bits = torch.arange(0, 2**31 - 2**23, 4001, dtype=torch.int32)
    x = bits.view(torch.float32)
    x = torch.cat((-x, x))
    sigmoids, tangents = gru.gates(x)
    inside = x.abs() < 87
    assert ulps(sigmoids[inside], x[inside].double().sigmoid()) < SIGMOID_ULPS
    assert ulps(tangents, x.double().tanh()) < TANH_ULPS
    assert (sigmoids[x >= 87] == 1).all() and (sigmoids[x <= -87] < 2e-38).all()
    assert all(found.isnan().all() for found in gru.gates(torch.full((20,), torch.nan)))
    assert [found[:2].tolist() for found in gru.gates(torch.tensor([torch.inf, -torch.inf]))][1] == [1, -1]


SIGMOID_ULPS, TANH_ULPS = 2.3, 2.6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_pytorchs(dtype):
    net, x, _ = make("sequence", (3, 5, 4, 8), 1, dtype)
    net.impl = "auto"
    assert net.chosen(x) == "torch"
    with pytest.raises(RuntimeError, match="float32 and float64"):
        RECURRENT.choose("cpp", Need(x.device, dtype))
    with recurrent.rounded_states():
        assert net.chosen(x.float()) == "torch"


def test_without_a_compiler_pytorchs_operators_take_over(monkeypatch):
    net, x, upstream = case("sequence", (3, 5, 4, 6), 2)
    net.impl = "auto"
    assert net.chosen(x) == "cpp"
    want = everything(ours, net, x, upstream)
    monkeypatch.setenv(cpu.SWITCH, "0")
    cpu._found.cache_clear()
    try:
        assert net.chosen(x) == "torch"
        assert apart(everything(ours, net, x, upstream), want) < 1e-12
        with pytest.raises(RuntimeError, match=f"variable {cpu.SWITCH} is 0"):
            RECURRENT.choose("cpp", Need(x.device, x.dtype))
    finally:
        cpu._found.cache_clear()


def test_operators_have_one_thread_within_and_kernels_those_of_before():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with cpu.one_thread_for_operators():
            assert (torch.get_num_threads(), cpu.threads()) == (1, 3)
            with cpu.one_thread_for_operators():
                assert (torch.get_num_threads(), cpu.threads()) == (1, 3)
        assert (torch.get_num_threads(), cpu.threads()) == (3, 3)
    finally:
        torch.set_num_threads(before)
