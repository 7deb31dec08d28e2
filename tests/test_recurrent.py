"""The CPU's recurrent net against nn.GRU and a plain loop: values, gradients, and what it computes and keeps."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any, ClassVar

import pytest
import torch
from every_pair import every_pair
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fastmc.encoders import recurrent
from fastmc.encoders.recurrent import SequenceGRU, StepwiseGRU

READINGS = ["sequence", "stepwise"]
SIZES = [(5, 7, 6, 4), (1, 1, 1, 1), (1, 9, 3, 5), (4, 1, 3, 2), (3, 2, 5, 8), (2, 8, 7, 33)]  # B, T, F, H


def make(reading: str, size: tuple[int, int, int, int], layers: int = 1, dtype: torch.dtype = torch.float64) -> Any:
    """The net, an input that requires its gradient and an upstream gradient."""
    torch.manual_seed(0)
    batch, frames, features, hidden = size
    net = (SequenceGRU if reading == "sequence" else StepwiseGRU)(features, hidden, layers).to(dtype)
    x = torch.randn(batch, frames, features, dtype=dtype, requires_grad=True)
    return net, x, torch.randn(batch, 2 * hidden, dtype=dtype)


def by_nn_gru(net: nn.Module, x: Tensor) -> Tensor:
    """What the net computes where nn.GRU is one cuDNN call, here by PyTorch's loop."""
    if isinstance(net, SequenceGRU):
        final = nn.GRU.forward(net, x.transpose(0, 1))[1]
        return torch.cat((final[-2], final[-1]), dim=-1)
    x = x.transpose(0, 1)
    for pair in net.layers:
        x = torch.cat([gru(x)[0] for gru in pair], dim=-1)
    return x[-1]


def directions(net: nn.Module) -> list[list[list[Tensor]]]:
    """(W_i, W_h, b_i, b_h) by layer and direction."""
    if isinstance(net, SequenceGRU):
        return [net.all_weights[i : i + 2] for i in range(0, len(net.all_weights), 2)]
    return [[gru.all_weights[0] for gru in pair] for pair in net.layers]


def frame_by_frame(net: nn.Module, x: Tensor) -> Tensor:
    """nn.GRU's documented equations, one frame, direction and layer at a time."""
    final = x
    for pair in directions(net):
        outputs, states = [], []
        for d, (w_i, w_h, b_i, b_h) in enumerate(pair):
            h = x.new_zeros(len(x), w_h.shape[1])
            order = range(x.shape[1])
            backwards = d == 1 and isinstance(net, SequenceGRU)
            by_frame = {}
            for t in reversed(order) if backwards else order:
                i_r, i_z, i_n = (x[:, t] @ w_i.T + b_i).chunk(3, dim=1)
                h_r, h_z, h_n = (h @ w_h.T + b_h).chunk(3, dim=1)
                r, z = torch.sigmoid(i_r + h_r), torch.sigmoid(i_z + h_z)
                h = (1 - z) * torch.tanh(i_n + r * h_n) + z * h
                by_frame[t] = h
            outputs.append(torch.stack([by_frame[t] for t in order], dim=1))
            states.append(h)
        x, final = torch.cat(outputs, dim=2), torch.cat(states, dim=1)
    return final


def everything(call: Any, net: nn.Module, x: Tensor, upstream: Tensor) -> list[Tensor]:
    """The result and the gradients of x and of all weights."""
    result = call(net, x)
    return [result, *torch.autograd.grad(result, (x, *net.parameters()), upstream)]


def ours(net: nn.Module, x: Tensor) -> Tensor:
    return net(x)


def apart(got: list[Tensor], want: list[Tensor]) -> float:
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in zip(got, want, strict=True))


EITHER = pytest.mark.parametrize("impl", ["torch", "cpp"], indirect=True)


@pytest.fixture(autouse=True)
def impl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who computes: the operators of PyTorch where a test does not say. tests/test_cpu_gru.py is about the kernels."""
    for net in (SequenceGRU, StepwiseGRU):
        monkeypatch.setattr(net, "impl", getattr(request, "param", "torch"))


@pytest.mark.parametrize(
    ("size", "layers", "reading", "block"), every_pair(SIZES, [1, 2, 3], READINGS, [recurrent.BLOCK_ROWS, 6])
)
def test_values_and_gradients_in_float64(size, layers, reading, block, monkeypatch):
    """Also with blocks so small that most sizes take several, the last one shorter."""
    monkeypatch.setattr(recurrent, "BLOCK_ROWS", block)
    case = make(reading, size, layers)
    got = everything(ours, *case)
    assert apart(got, everything(by_nn_gru, *case)) < 1e-12
    assert apart(got, everything(frame_by_frame, *case)) < 1e-12
    with torch.no_grad():
        assert apart([case[0](case[1])], got[:1]) < 1e-12


def float32_excess(got: list[Tensor], plain: list[Tensor], truth: list[Tensor]) -> float:
    """|ours - truth| - (2 |nn.GRU - truth| + eps) at its largest: positive if the budget is broken. eps: 4 roundings at
    the scale of the output."""
    over = []
    for ours, theirs, true in zip(got, plain, truth, strict=True):
        eps = 4 * torch.finfo(torch.float32).eps * float(true.detach().abs().max())
        over.append(apart([ours.double()], [true]) - (2 * apart([theirs.double()], [true]) + eps))
    return max(over)


@pytest.mark.parametrize("size", [(16, 32, 150, 64), (7, 16, 21, 33), (1, 1, 3, 5)])
@pytest.mark.parametrize("reading", READINGS)
def test_error_budget_in_float32_and_that_it_can_be_broken(reading, size):
    net, x, upstream = make(reading, size, 2, torch.float32)
    got, plain = everything(ours, net, x, upstream), everything(by_nn_gru, net, x, upstream)
    wide = copy.deepcopy(net).double(), x.detach().double().requires_grad_(), upstream.double()
    truth = everything(by_nn_gru, *wide)
    assert float32_excess(got, plain, truth) <= 0
    for i, output in enumerate(got):
        bent = list(got)
        bent[i] = output + 1e-4 * output.abs().max().clamp(min=1e-6)  # dW_h is zero where T = 1
        assert float32_excess(bent, plain, truth) > 0


@pytest.mark.parametrize("reading", READINGS)
def test_noncontiguous_and_shared_inputs_are_left_alone(reading):
    net, x, upstream = make(reading, (4, 6, 5, 3), 2)
    strided = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    sliced = torch.cat((x, x), dim=2).detach()[..., :5].requires_grad_()
    expanded = x.detach()[:1].expand(4, -1, -1)
    want = everything(ours, net, x, upstream)
    held = upstream.clone()
    for other in (strided, sliced):
        assert not other.is_contiguous()
        assert apart(everything(ours, net, other, upstream), want) < 1e-12
    assert torch.equal(upstream, held)
    one = upstream[:1].expand(4, -1)  # a gradient whose rows share memory, as that of a sum does
    assert apart(everything(ours, net, x, one), everything(by_nn_gru, net, x, one)) < 1e-12
    torch.testing.assert_close(net(expanded), by_nn_gru(net, expanded), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "frozen", ["weight_hh", "weight_ih", "bias", "bias_hh", "reverse", "layers.0", "_l0", "nothing"]
)
@pytest.mark.parametrize("reading", READINGS)
@EITHER
def test_partly_frozen(reading, frozen):
    net, x, upstream = make(reading, (3, 5, 4, 6), 2)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(frozen not in name)
    learning = any(parameter.requires_grad for parameter in net.parameters())
    assert net(x.detach()).requires_grad == learning
    for constant in (False, True) if learning else (False,):
        results = []
        for call in (ours, by_nn_gru):
            net.zero_grad()
            leaf = x.detach().requires_grad_(not constant)
            call(net, leaf).backward(upstream)
            results.append([leaf.grad, *(parameter.grad for parameter in net.parameters())])
        for got, want in zip(*results, strict=True):
            assert (got is None) == (want is None)
            if want is not None:
                torch.testing.assert_close(got, want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("reading", READINGS)
@EITHER
def test_the_graph_can_be_used_twice_and_a_second_derivative_is_an_error(reading):
    net, x, upstream = make(reading, (3, 5, 4, 6), 2)
    result = net(x)
    leaves = (x, *net.parameters())
    first = torch.autograd.grad(result, leaves, upstream, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(result, leaves, upstream, retain_graph=True)))
    for way in (upstream, upstream.clone().requires_grad_()):
        (gradient,) = torch.autograd.grad(result, x, way, create_graph=True)
        assert torch.equal(gradient, first[0])
        with pytest.raises(RuntimeError, match="differentiate twice"):
            (x.sum() + gradient.sum()).backward()


@EITHER
def test_a_weight_changed_in_between_is_an_error():
    net, x, upstream = make("sequence", (3, 5, 4, 6))
    result = net(x)
    with torch.no_grad():
        net.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        result.backward(upstream)


# What is computed: FLOPs of products, by hand. Gates are 3H wide; 2 FLOPs a multiplication.


def products(size: tuple[int, int, int, int], layers: int) -> dict[str, int]:
    batch, frames, features, hidden = size
    inputs = features + (layers - 1) * 2 * hidden
    row = 2 * 2 * 3 * hidden  # of both directions, by input
    return {
        "forward": batch * frames * row * (inputs + layers * hidden),
        "dx of layers above": batch * frames * row * (inputs - features),
        "dx": batch * frames * row * features,
        "states": batch * (frames - 1) * row * layers * hidden,  # none before the first frame
        "dw_x": batch * frames * row * inputs,
        "dw_h": batch * frames * row * layers * hidden,
    }


def counted(work: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("reading", READINGS)
def test_only_what_is_asked_for_is_computed_by_counted_flops(reading, layers):
    size = (4, 6, 10, 8)
    net, x, upstream = make(reading, size, layers)
    constant = x.detach()
    parts = products(size, layers)
    recursion = parts["states"] + parts["dx of layers above"]
    weights = list(net.parameters())

    def backward(x: Tensor, wanted: Any) -> int:
        result = net(x)
        return counted(lambda: torch.autograd.grad(result, wanted, upstream))

    assert counted(lambda: net(constant)) == parts["forward"]
    assert backward(constant, weights) == recursion + parts["dw_x"] + parts["dw_h"], "no gradient of a constant input"
    assert backward(x, [x, *weights]) == recursion + parts["dx"] + parts["dw_x"] + parts["dw_h"]
    result = net(x)
    assert counted(lambda: result.backward(upstream)) == backward(x, [x, *weights])
    net.requires_grad_(False)
    assert backward(x, x) == recursion + parts["dx"], "the attack"


def kept_bytes(net: nn.Module, x: Tensor) -> int:
    """Memory that autograd keeps for the backward pass, beside the weights and x; each storage once."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (x, *net.parameters())}
    storages = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = net(x)
    assert result.requires_grad == bool(storages)
    return sum(storages.values())


@pytest.mark.parametrize("reading", READINGS)
def test_memory_kept_for_backward(reading):
    """Five values by state: q, r, z, n and h, with a zero state by direction; x in order of time if W_i learns."""
    batch, frames, _, hidden = size = (4, 6, 10, 8)
    net, x, _ = make(reading, size, 2)
    state = batch * hidden * 8
    layers = 2 * 2 * (5 * frames + 1) * state
    assert kept_bytes(net, x) == layers + x.nbytes
    net.requires_grad_(False)
    assert kept_bytes(net, x) == layers
    assert kept_bytes(net, x.detach()) == 0
    net.requires_grad_(True)
    with torch.no_grad():
        assert kept_bytes(net, x) == 0


@pytest.mark.parametrize("reading", READINGS)
def test_nothing_is_kept_without_a_gradient(reading, monkeypatch):
    """One step's gates serve all steps; of the last layer's states only the last ones are there."""
    made = []
    forward = recurrent._forward

    def spy(*arguments: Any, **settings: Any) -> Any:
        result, gates, states = forward(*arguments, **settings)
        made.append([*(gate.shape[1] for gate in gates), states.shape[1]])
        return result, gates, states

    monkeypatch.setattr(recurrent, "_forward", spy)
    net, x, _ = make(reading, (4, 6, 10, 8), 2)
    with torch.no_grad():
        net(x)
    assert made == [[1, 1, 1, 7], [1, 1, 1, 1]]
    net(x)
    assert made[2:] == [[6, 6, 6, 7]] * 2


@pytest.mark.parametrize("reading", READINGS)
def test_modules_travel(reading, tmp_path):
    """Names of the parameters as ever; copies, pickles, files and casts compute the same."""
    net, x, _ = make(reading, (3, 5, 4, 6), 2)
    names = set(net.state_dict())
    if reading == "sequence":
        assert names == set(nn.GRU(4, 6, 2, bidirectional=True).state_dict())
    else:
        kinds = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        assert names == {f"layers.{layer}.{d}.{kind}" for layer in range(2) for d in range(2) for kind in kinds}
    want = net(x)
    want.sum().backward()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    loaded, *_ = make(reading, (3, 5, 4, 6), 2)
    for parameter in loaded.parameters():
        nn.init.zeros_(parameter)
    loaded.load_state_dict(torch.load(tmp_path / "net.pt"))
    whole = io.BytesIO()
    torch.save(net, whole)
    whole.seek(0)
    others = (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded, torch.load(whole, weights_only=False))
    for other in (*others, copy.deepcopy(net).float().double()):
        torch.testing.assert_close(other(x), want, atol=1e-6, rtol=0)
    assert all(torch.equal(other(x), want) for other in others)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reading", READINGS)
def test_low_precision(reading, dtype):
    """Against float64 from the same rounded weights and x. An operand is off by eps / 2 of itself. A state is fed back
    through a rounding T times, which z < 1 and the small weights damp: budget of 8 roundings of the largest value."""
    net, x, upstream = make(reading, (16, 32, 30, 24), 2, dtype)
    got = everything(ours, net, x, upstream)
    assert {value.dtype for value in got} == {dtype}
    with torch.no_grad():
        assert torch.equal(net(x), got[0])
    wide = copy.deepcopy(net).double(), x.detach().double().requires_grad_(), upstream.double()
    for mine, true in zip(got, everything(by_nn_gru, *wide), strict=True):
        error = apart([mine.double()], [true]) / float(true.detach().abs().max())
        assert error < 8 * torch.finfo(dtype).eps / 2


def test_low_precision_operands_are_rounded_and_states_are_not():
    """Of every product, forward and backward: what is multiplied is a bfloat16 number, what is added up is float32."""

    def is_rounded(values: Tensor) -> bool:
        return torch.equal(values, values.bfloat16().float())

    class Products(TorchDispatchMode):
        seen: ClassVar[list[str]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.baddbmm, torch.ops.aten.bmm):
                self.seen.append(func.overloadpacket.__name__)
                assert all(operand.dtype == torch.float32 and is_rounded(operand) for operand in args[-2:])
            result = func(*args, **(kwargs or {}))
            if func.overloadpacket is torch.ops.aten.lerp:
                self.seen.append("lerp")
                assert result.dtype == torch.float32 and not is_rounded(result)
            return result

    net, x, upstream = make("sequence", (3, 9, 5, 4), 1, torch.bfloat16)
    with Products() as products:
        everything(ours, net, x, upstream)
    assert {name: products.seen.count(name) for name in set(products.seen)} == {
        "bmm": 9, "lerp": 9, "baddbmm": 8, "addmm": 2 * 4  # by direction: forward, dx, dW_i, dW_h
    }  # fmt: skip


def test_autocast_does_not_reach_in():
    net, x, upstream = make("sequence", (3, 9, 5, 4), 2, torch.float32)
    want = everything(ours, net, x, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        got = everything(ours, net, x, upstream)
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("reading", READINGS)
def test_wrong_inputs_are_named(reading):
    net, x, _ = make(reading, (3, 5, 4, 6))
    for wrong in (x[0], x[..., :3], x[:, :0], x.float()):
        with pytest.raises(ValueError, match=r"x must be \(B, T, 4\) with T > 0 in torch.float64"):
            net(wrong)
    assert net(x[:0]).shape == (0, 12)


@pytest.mark.parametrize("reading", READINGS)
def test_elsewhere_nn_gru_remains(reading, monkeypatch):
    """On other devices, the meta device here, and where torch.compile traces."""
    net, x, _ = make(reading, (3, 5, 4, 6), 2)
    calls = []
    monkeypatch.setattr(recurrent, "_final_states", lambda *arguments, reverse, affine: calls.append(reverse) or x)
    net(x)
    assert calls == [reading == "sequence"]
    assert copy.deepcopy(net).to("meta")(x.to("meta")).shape == (3, 12)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(net(x), by_nn_gru(net, x))
    assert len(calls) == 1


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_states(reading, dtype):
    """Every state is a number of the dtype, and only then; the gradient differs no more than the roundings."""
    net, x, upstream = make(reading, (3, 5, 4, 8), layers=2, dtype=dtype)
    kept = []
    forward = recurrent._forward

    def watched(*arguments: Any, **settings: Any) -> Any:
        found = forward(*arguments, **settings)
        kept.append(found[2].clone())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recurrent, "_forward", watched)
        wide = everything(ours, net, x, upstream)
        with recurrent.rounded_states():
            rounded = everything(ours, net, x, upstream)
    of_dtype = [torch.equal(states, states.to(dtype).float()) for states in kept]
    assert of_dtype == [False, False, True, True]
    for a, b in zip(rounded, wide, strict=True):
        assert (a.float() - b.float()).abs().max() <= 8 * torch.finfo(dtype).eps * b.float().abs().max()
    assert any(not torch.equal(a, b) for a, b in zip(rounded, wide, strict=True))
