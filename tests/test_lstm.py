"""The LSTM of AS-CAL against the numbers of the authors' code (../shared/golden)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden import golden, near, needs_golden, part_of

from fastmc.encoders.base import ClipShape
from fastmc.encoders.lstm import LSTM, LSTMConfig, SequenceLSTM
from fastmc.skeleton import NTU25

EXACT = 1e-6


def ours(x: torch.Tensor) -> torch.Tensor:
    """Their numbers of a frame, (C, V, M), in our order (V, M, C), along the last axis."""
    return x.unflatten(-1, (3, 25, 2)).movedim(-3, -1).flatten(-3)


@needs_golden
@pytest.mark.parametrize(("name", "both"), [("AS-CAL_encoder_lstm1", False), ("AS-CAL_encoder_bilstm1", True)])
def test_representation_and_gradients(name, both):
    found = golden(name)
    encoder = LSTM(LSTMConfig("1x16", bidirectional=both), ClipShape(25, 2, 12, NTU25.parents)).double()
    state = part_of(found, "state:bi_lstm.")
    moved = {key: ours(value) if "_ih" in key and value.dim() == 2 else value for key, value in state.items()}
    encoder.recurrent.load_state_dict(moved)
    clip = found["x_NCTVM"].double().requires_grad_()
    sequence = clip.permute(0, 2, 3, 4, 1).flatten(2)
    near(sequence, ours(found["sequence_TNF"]).transpose(0, 1), 1e-12)
    h = encoder.represent(sequence)
    near(h, found["representation"], EXACT)
    (h * found["weight"]).sum().backward()
    near(clip.grad, found["grad_x"], EXACT)
    for key, wanted in part_of(found, "grad:bi_lstm.").items():
        wanted = ours(wanted) if "_ih" in key and wanted.dim() == 2 else wanted
        near(getattr(encoder.recurrent, key).grad, wanted, EXACT)


@pytest.mark.parametrize("size", ["1x5", "2x4"])
@pytest.mark.parametrize("both", [False, True])
def test_states_and_gradients_are_those_of_pytorch(size, both):
    """Forward and back, to clips and weights, in float64; and of what asks for no gradient there is none."""
    torch.manual_seed(0)
    ours = LSTM(LSTMConfig(size, bidirectional=both), ClipShape(3, 1)).double().recurrent
    theirs = torch.nn.LSTM(9, *ours.all_weights[0][1].shape[1:], ours.num_layers, batch_first=True, bidirectional=both)
    theirs.double().load_state_dict(ours.state_dict())
    x, upstream = torch.randn(4, 6, 9).double(), torch.randn(4, 6, ours.hidden_size * (1 + both)).double()
    found = []
    for net in (own_nodes(ours), lambda x: theirs(x)[0]):
        variable = x.clone().requires_grad_()
        y = net(variable)
        y.backward(upstream)
        found.append((y.detach(), variable.grad))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-12)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-10, atol=1e-12, msg=name)


def own_nodes(net: SequenceLSTM) -> Callable[[torch.Tensor], torch.Tensor]:
    """Its own nodes of autograd's graph, whoever asks for what."""
    return lambda x: net.by_nodes(x.transpose(0, 1)).transpose(0, 1)


def test_the_final_states_of_both_directions():
    torch.manual_seed(0)
    encoder = LSTM(LSTMConfig("2x5", bidirectional=True, representation="last"), ClipShape(3, 1))
    x = torch.randn(2, 7, 9)
    states = encoder.recurrent(x)
    torch.testing.assert_close(encoder.represent(x), torch.cat((states[:, -1, :5], states[:, 0, 5:]), dim=1))


def test_parameters_of_the_published_size():
    """As counted in the released code, which has no head."""
    with torch.device("meta"):
        encoder = LSTM(LSTMConfig(), ClipShape(25, 2))
    assert sum(p.numel() for p in encoder.recurrent.parameters()) == 417_792
