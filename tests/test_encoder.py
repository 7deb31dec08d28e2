"""The encoder's readings, shapes and invariances."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig, StepwiseGRU
from fastmc.encoders.norm import ViewNorm


def make(reading="sequence", encoder="2x8", **settings) -> BiGRU:
    torch.manual_seed(0)
    return BiGRU(BiGRUConfig(encoder=encoder, reading=reading, feature_dim=16, **settings), ClipShape(2, 2))


@pytest.mark.parametrize("reading", ["sequence", "stepwise"])
def test_features_are_unit_rows(reading):
    encoder = make(reading)
    f = encoder(torch.randn(6, 9, 12), views=3)
    assert f.shape == (6, 16)
    torch.testing.assert_close(f.norm(dim=1), torch.ones(6))
    assert encoder.represent(torch.randn(2, 9, 12)).shape == (2, 16)


@pytest.mark.parametrize("reading", ["sequence", "stepwise"])
def test_one_call_on_three_views_equals_three_calls(reading):
    encoder = make(reading)
    x = torch.randn(6, 9, 12) * torch.tensor([1.0, 5.0, 0.1]).repeat_interleave(2)[:, None, None]
    together = encoder(x, views=3)
    apart = torch.cat([encoder(view) for view in x.chunk(3)])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=0)
    mixed = encoder(x, views=1)
    assert not torch.allclose(mixed, together, atol=1e-3), "statistics are per view"


def test_input_norm_keeps_running_statistics_of_all_views():
    norm = ViewNorm(3)
    x = torch.randn(8, 5, 3) + 2
    norm(x, views=2)
    plain = nn.BatchNorm1d(3)
    for view in x.chunk(2):
        plain(view.flatten(0, 1))
    torch.testing.assert_close(norm.running_mean, plain.running_mean)
    torch.testing.assert_close(norm.running_var, plain.running_var)


def test_within_fixed_the_recurrent_weights_are_constants():
    """A gradient of the input costs none of theirs, and what required one requires it again."""
    encoder = make()
    frozen = next(encoder.recurrent.parameters()).requires_grad_(False)
    with encoder.fixed():
        x = torch.randn(2, 9, 12, requires_grad=True)
        h = encoder.represent(x)
        assert not any(p.requires_grad for p in encoder.recurrent.parameters())
        h.sum().backward()
    assert x.grad.any() and all(p.grad is None for p in encoder.parameters())
    assert [p is not frozen for p in encoder.recurrent.parameters()] == [
        p.requires_grad for p in encoder.recurrent.parameters()
    ]


def test_sequence_feature_joins_both_final_states():
    encoder = make(input_norm=False)
    x = torch.randn(3, 9, 12)
    gru = nn.GRU(12, 8, 2, batch_first=True, bidirectional=True)
    gru.load_state_dict(encoder.recurrent.state_dict())
    out, _ = gru(x)
    want = torch.cat((out[:, -1, :8], out[:, 0, 8:]), dim=1)  # forward ends at the last frame, backward at the first
    torch.testing.assert_close(encoder.represent(x), want)


def test_stepwise_equals_feeding_one_frame_at_a_time():
    """Against a bidirectional nn.GRU that gets a frame at a time and carries its state, as released codes do."""
    ours = StepwiseGRU(12, 8, 2)
    theirs = nn.GRU(12, 8, 2, batch_first=True, bidirectional=True)
    state = {}
    for layer, pair in enumerate(ours.layers):
        for gru, suffix in zip(pair, ("", "_reverse"), strict=True):
            for name, value in gru.state_dict().items():
                state[name.replace("_l0", f"_l{layer}") + suffix] = value
    theirs.load_state_dict(state)
    x = torch.randn(3, 7, 12)
    hidden = None
    for t in range(7):
        out, hidden = theirs(x[:, t : t + 1], hidden)
    torch.testing.assert_close(ours(x), out[:, 0])


def test_parameter_counts_of_the_named_sizes():
    def millions(size: str) -> float:
        with torch.device("meta"):
            encoder = BiGRU(BiGRUConfig(encoder=size, input_norm=False), ClipShape(25, 2))
        return sum(p.numel() for p in encoder.recurrent.parameters()) / 1e6

    assert round(millions("3x1024")) == 45
    assert round(millions("3x512"), 1) == 11.5


def test_fixed_uses_running_statistics_and_leaves_them():
    encoder = make()
    encoder(torch.randn(6, 9, 12) + 1)
    x = torch.randn(4, 9, 12)
    want = encoder.eval().represent(x)
    encoder.train()
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    with encoder.fixed():
        assert encoder.recurrent.training, "cuDNN's backward needs it"
        torch.testing.assert_close(encoder.represent(x), want)
        torch.testing.assert_close(encoder.represent(x[:1]), want[:1])
    assert encoder.norm is not None
    assert encoder.norm.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())


@pytest.mark.parametrize("size", ["", "3", "x8", "3x", "0x8", "3x-1", "axb"])
def test_size_must_be_layers_by_hidden(size):
    with pytest.raises(ValueError, match="encoder must be LAYERSxHIDDEN"):
        BiGRUConfig(encoder=size)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="views = 3 does not divide the batch of 7"):
        make()(torch.randn(7, 9, 12), views=3)
    with pytest.raises(ValueError, match=r"x must be \(B, T, 12\)"):
        make()(torch.randn(2, 9, 11))


@pytest.mark.parametrize("reading", ["sequence", "stepwise"])
def test_input_norm_s_affine_part_in_the_first_layer_s_weights_changes_nothing(reading, monkeypatch):
    """On a CPU: values, gradients of all parameters and running statistics, in float64, with it and without."""
    torch.manual_seed(0)
    folded = BiGRU(BiGRUConfig(encoder="2x5", reading=reading, feature_dim=4), ClipShape(2, 1)).double()
    with torch.no_grad():
        folded.norm.weight.uniform_(0.5, 2)
        folded.norm.bias.normal_()
    plain = copy.deepcopy(folded)
    plain._folds = lambda x: False
    x, weights = torch.randn(6, 7, 6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    taken = []
    monkeypatch.setattr(folded, "standardised", lambda *args: taken.append(1) or BiGRU.standardised(folded, *args))
    outputs = [encoder(x, views=3) for encoder in (folded, plain)]
    assert taken == [1], "the folded way was gone"
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-13)
    for output in outputs:
        (output * weights).sum().backward()
    for (name, p), q in zip(folded.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    for name, value in folded.norm.state_dict().items():
        torch.testing.assert_close(value, plain.norm.state_dict()[name], rtol=1e-13, atol=0)


def test_inputs_that_want_a_gradient_go_through_the_input_norm_itself():
    torch.manual_seed(0)
    encoder = BiGRU(BiGRUConfig(encoder="1x5", feature_dim=4), ClipShape(2, 1))
    x = torch.randn(4, 7, 6, requires_grad=True)
    encoder.standardised = None  # would fail
    encoder(x).sum().backward()
    assert x.grad is not None
