"""The attack of the training step against the reference, what it must keep, and what it costs.

Its two pieces by PyTorch and by Triton's kernels, which run on the CPU, compiled (by ttsem) or, where it is not there,
interpreted; bounds, races and memory that nobody stored are checked on the way (``kernels_on_cpu``).
"""

from __future__ import annotations

from typing import Any

import attack_cases as cases
import pytest
import torch
from attack_cases import FINITE, HOSTILE, LOGITS, assert_logit_gradient, assert_norm_limit, assert_step
from every_pair import every_pair
from gpu_less import INTERPRETED, kernels_on_cpu, needs_engine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fastmc.methods.attack as by_torch
from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.methods.a2mc import A2MCConfig
from fastmc.methods.attack import AttackHead, attack, limited_step
from fastmc.reference import attack as reference

BATCH, FRAMES, HIDDEN, CLASSES = 5, 8, 16, 128
TORCH = [] if INTERPRETED else ["torch"]


@pytest.fixture
def setting():
    torch.manual_seed(0)
    x, _ = cases.draw(BATCH, FRAMES, 25, 2)
    return x, BiGRU(BiGRUConfig(encoder=f"2x{HIDDEN}"), ClipShape(25, 2)), AttackHead(2 * HIDDEN, CLASSES)


@pytest.fixture(params=[*TORCH, pytest.param("triton", marks=[needs_engine, pytest.mark.compiler])])
def pieces(request):
    """A module with logit_gradient and limited_step."""
    if request.param == "torch":
        yield by_torch
        return
    from kernels import attack as by_triton

    with kernels_on_cpu():
        yield by_triton


def attacked(x, encoder, head, impl="auto", **config):
    with encoder.fixed():
        return attack(x, lambda x: head(encoder.represent(x)), bodies=2, impl=impl, **config)


@pytest.mark.parametrize("eta", [0.5, 1e-3, 1e3])
def test_equals_the_reference_in_float64(setting, eta):
    x, encoder, head = setting
    x, encoder, head = x.double(), encoder.double(), head.double()
    with encoder.fixed():
        want = reference.attack(x, encoder.represent, head, eta=eta, present=cases.present(x, 2))
    for impl in ("auto", "torch", "reference"):
        got = attacked(x, encoder, head, impl, limit=eta)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * max(1.0, min(eta, 10)))
        assert not got.requires_grad


# --- The two pieces


@pytest.mark.parametrize(
    ("frames", "joints", "bodies"), every_pair([1, 2, 5], [1, 20, 25], [1, 2, 3]) + [(64, 25, 2), (200, 25, 2)]
)
def test_step_keeps_the_error_budget(frames, joints, bodies, pieces):
    assert_step(pieces, *cases.draw(4, frames, joints, bodies), bodies)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_step_in_half_precision_and_at_other_limits(dtype, pieces):
    x, gradient = cases.draw(4, 7, 5, 2, dtype)
    for limit, lr in ((1e-3, 0.1), (0.5, 0.1), (1e3, 0.01)):
        assert_step(pieces, x, gradient, 2, limit=limit, lr=lr)
    assert_step(pieces, x, gradient.float(), 2)
    assert_step(pieces, x.float(), gradient, 2)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_gradients(hostile, pieces):
    for bodies in (1, 2):
        x, gradient = cases.draw(4, 6, 5, bodies)
        HOSTILE[hostile](gradient)
        kept = gradient.clone()
        assert_step(pieces, x, gradient, bodies)
        assert torch.equal(gradient.nan_to_num(), kept.nan_to_num()), "it may be anybody's"


@pytest.mark.parametrize(
    ("hostile", "limit"), [(None, 1e-3), (None, 0.5), (None, 2.0), (None, 1e3)] + [(name, 0.5) for name in FINITE]
)
def test_no_clip_moves_further_than_eta(hostile, limit, pieces):
    frames, joints = (200, 25) if hostile in ("huge", "from tiny to huge") else (16, 5)
    _, gradient = cases.draw(2, frames, joints, 2)
    if hostile is not None:
        HOSTILE[hostile](gradient)
    found = assert_norm_limit(pieces, gradient, 2, limit)
    if hostile in ("zero", "zero in one clip"):
        assert found[0] == 0
    if hostile in ("huge", "from tiny to huge"):  # most of the 30,000 elements are 0.1
        assert (found > 0.99 * limit).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_logit_gradient(dtype, pieces):
    for name in LOGITS if dtype == torch.float32 else ["unit"]:
        assert_logit_gradient(pieces, cases.logits_of(name).to(dtype))


def test_each_clip_is_attacked_alone(pieces):
    """Bit for bit, given its gradient, also beside one that is not finite; what the encoder's products of another batch
    size round is not the attack's."""
    x, gradient = cases.draw(4, 6, 5, 2)
    logits, others = cases.logits_of("unit"), torch.tensor([0, 1, 3])
    clean, clean_logits = pieces.limited_step(x, gradient, 2, 0.1, 0.5), pieces.logit_gradient(logits)
    each = [pieces.limited_step(x[n : n + 1], gradient[n : n + 1], 2, 0.1, 0.5) for n in range(4)]
    assert torch.equal(torch.cat(each), clean)
    gradient[2, 1, 0] = float("nan")
    logits[2, 1] = float("inf")
    spoilt, spoilt_logits = pieces.limited_step(x, gradient, 2, 0.1, 0.5), pieces.logit_gradient(logits)
    assert torch.equal(spoilt[others], clean[others]) and spoilt[2].isnan().any()
    assert torch.equal(spoilt_logits[others], clean_logits[others]) and spoilt_logits[2].isnan().all()


def test_clips_and_gradients_with_gaps(pieces):
    x, gradient = cases.draw(4, 6, 5, 2)
    want = pieces.limited_step(x, gradient, 2, cases.LR, cases.LIMIT)
    wide = torch.cat([x, x], dim=2)[..., :30]
    turned = gradient.transpose(0, 2).contiguous().transpose(0, 2)
    rounding = {"rtol": 1e-6, "atol": 1e-7} if pieces is by_torch else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(pieces.limited_step(wide, turned, 2, cases.LR, cases.LIMIT), want, **rounding)


# --- The whole


def test_zero_gradient_leaves_the_clip_through_the_whole_attack(setting):
    x, *_ = setting
    assert torch.equal(attack(x, lambda x: 0.0 * x.flatten(1)[:, :CLASSES], bodies=2), x)


@pytest.mark.parametrize("wrong", ["one element", "norm", "sign", "mask", "neighbour's gradient"])
def test_the_budget_notices_a_wrong_step(wrong):
    x, gradient = cases.draw(4, 6, 5, 2)
    good = limited_step(x, gradient, 2, cases.LR, cases.LIMIT)
    assert not cases.step_errors(x, gradient, 2, good)
    one = good.clone()
    one[2, 3, 4] += 1e-5
    bad = {
        "one element": one,
        "norm": limited_step(x, gradient, 2, cases.LR, cases.LIMIT * 1.001),
        "sign": 2 * x - good,
        "mask": limited_step(x, gradient, 1, cases.LR, cases.LIMIT),
        "neighbour's gradient": limited_step(x, gradient.roll(1, 0), 2, cases.LR, cases.LIMIT),
    }[wrong]
    found = cases.step_errors(x, gradient, 2, bad)
    assert found == [2 * 6 * 30 + 3 * 30 + 4] if wrong == "one element" else found


def test_a_gradient_of_one_number_for_all_elements(setting):
    """Autograd gives such a gradient as an expanded view, which nothing may write to."""
    x, *_ = setting
    weights = torch.linspace(0, 1, CLASSES)
    got = attack(x, lambda x: x.sum(dim=(1, 2))[:, None] * weights * 1e-2, bodies=2)
    torch.testing.assert_close(cases.norms(x, got), torch.full((BATCH,), 0.5, dtype=torch.float64), rtol=1e-4, atol=0)


def test_moves_towards_the_uniform_distribution(setting):
    x, encoder, head = setting
    head.weight.data *= 20  # a peaked distribution to begin with
    # A step short enough for the gradient to tell the truth; nothing promises a descent for a long one.
    moved = attacked(x, encoder, head, limit=0.02)
    with encoder.fixed():
        before, after = (reference.attack_loss(clips, encoder.represent, head) for clips in (x, moved))
    assert (after < before).all()


def test_leaves_no_trace_and_works_under_no_grad(setting):
    x, encoder, head = setting
    x.requires_grad_()
    before = x.detach().clone()
    with torch.no_grad():
        moved = attacked(x, encoder, head)
    assert not moved.requires_grad and not torch.equal(moved, before)
    assert torch.equal(x, before) and x.grad is None
    assert all(p.grad is None for p in (*encoder.parameters(), *head.parameters()))


def products_of_the_input_gradient() -> int:
    """FLOPs of what leads from the logits to x: of each product of the forward pass the one with the weights, turned.
    By layer and direction: gates to inputs of all frames; gates to the state before, but for the first frame's."""
    layer_inputs = (150, 2 * HIDDEN)
    gates = 3 * HIDDEN
    inputs = sum(2 * BATCH * FRAMES * gates * size for size in layer_inputs)
    states = len(layer_inputs) * 2 * BATCH * (FRAMES - 1) * gates * HIDDEN
    return 2 * (inputs + states) + 2 * BATCH * CLASSES * 2 * HIDDEN


def test_no_weight_gradient_is_computed_by_counted_flops(setting):
    x, encoder, head = setting
    assert all(p.requires_grad for p in encoder.parameters())
    encoder.recurrent.impl = "torch"  # whose products the counter sees
    with encoder.fixed(), FlopCounterMode(display=False) as forward:
        head(encoder.represent(x))
    with encoder.fixed(), FlopCounterMode(display=False) as both:
        # The counter's hooks do not bear a leaf as a module's input under autograd.grad: hence the factor.
        attack(x, lambda x: head(encoder.represent(1.0 * x)), bodies=2)
    backward = both.get_total_flops() - forward.get_total_flops()
    assert backward == products_of_the_input_gradient()


class Cudnn(TorchDispatchMode):
    """In place of cuDNN's recurrent net: what autograd asks of its backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.wanted: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._cudnn_rnn.default:
            x, hidden, state = args[0], args[7], args[4]
            out = x.new_zeros(*x.shape[:2], 2 * hidden)
            return out, torch.zeros_like(state), x.new_zeros(0), x.new_zeros(0, dtype=torch.uint8), x.new_zeros(0)
        if func is torch.ops.aten._cudnn_rnn_backward.default:
            self.wanted.append(args[-1])
            return torch.zeros_like(args[0]), None, None, [torch.zeros_like(weight) for weight in args[1]]
        return func(*args, **(kwargs or {}))


def test_cudnn_is_asked_for_no_weight_gradient(setting):
    """On a GPU nn.GRU is one operator whose backward pass computes what autograd asks for: x, states, weights."""
    x, encoder, head = setting
    gru = encoder.recurrent
    state = torch.zeros(2 * gru.num_layers, BATCH, HIDDEN)

    def classify(x):
        arguments = (x.transpose(0, 1), gru._flat_weights, 4, None, state, None, 3, HIDDEN, 0, gru.num_layers)
        out = torch._cudnn_rnn(*arguments, False, 0.0, True, True, [], None)[0]
        return head(out[-1])

    with Cudnn() as seen:
        attack(x, classify, bodies=2)
    assert seen.wanted == [[True, False, False, False]]
    with Cudnn() as seen:
        classify(x).sum().backward()
    assert seen.wanted == [[False, False, False, True]]


def test_nonsense_is_refused(setting):
    x, *_ = setting
    for clips, bodies in ((x, 4), (x, 0), (x[0], 2)):
        with pytest.raises(ValueError, match=r"x must be \(B, T, V \* \d \* 3\)"):
            attack(clips, lambda x: x, bodies=bodies)
    with pytest.raises(ValueError, match="impl must be one of"):
        attack(x, lambda x: x, bodies=2, impl="fast")
    for name in ("attack_lr", "attack_norm", "attack_classes"):
        with pytest.raises(ValueError, match=name):
            A2MCConfig(**{name: 0})
