"""Tensors in one storage: values, names and alignment; weights of working copies."""

from __future__ import annotations

import pytest
import torch

from fastmc.encoders.amp import AMP, WorkingCopy
from fastmc.encoders.base import ClipShape
from fastmc.encoders.bigru import BiGRU, BiGRUConfig
from fastmc.encoders.lstm import LSTM, LSTMConfig, SequenceLSTM
from fastmc.encoders.recurrent import CUDNN_MODES, SequenceGRU, flatten_
from fastmc.encoders.s2s import S2S, S2SConfig
from fastmc.encoders.storage import ALIGNMENT, share_storage


def test_tensors_that_share_a_storage_keep_their_values():
    norm = torch.nn.BatchNorm1d(3)
    norm.running_mean.copy_(torch.arange(3.0))
    flat = share_storage([norm.running_mean, norm.running_var])
    other = ALIGNMENT // 4
    assert flat.nonzero().flatten().tolist() == [1, 2, other, other + 1, other + 2]
    norm(torch.randn(4, 3))
    assert torch.equal(flat[:3], norm.running_mean)
    assert torch.equal(flat[other : other + 3], norm.running_var)
    norm.load_state_dict(torch.nn.BatchNorm1d(3).state_dict())
    assert flat.nonzero().flatten().tolist() == [other, other + 1, other + 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_each_begins_at_a_multiple_of_128_bytes(dtype):
    tensors = [
        torch.arange(n).to(dtype).reshape(shape) for n, shape in ((1, ()), (70, (7, 10)), (64, (64,)), (3, (3,)))
    ]
    before = [tensor.clone() for tensor in tensors]
    flat = share_storage(tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    starts = [tensor.storage_offset() * tensor.element_size() for tensor in tensors]
    assert starts == sorted(starts) and all(start % ALIGNMENT == 0 for start in starts)
    assert len({tensor.untyped_storage().data_ptr() for tensor in (flat, *tensors)}) == 1


SHAPE = ClipShape(2, 1, frames=16)
RECURRENT = {
    "sequence": (lambda: BiGRU(BiGRUConfig("2x8", reading="sequence", feature_dim=16), SHAPE), 1),
    "stepwise": (lambda: BiGRU(BiGRUConfig("2x8", reading="stepwise", feature_dim=16), SHAPE), 4),
    "lstm": (lambda: LSTM(LSTMConfig(encoder="2x8", bidirectional=True, feature_dim=16), SHAPE), 1),
    "s2s of gru": (lambda: S2S(S2SConfig(encoder="8", levels=1, sequence="gru", feature_dim=16), SHAPE), 2),
    "s2s of lstm": (lambda: S2S(S2SConfig(encoder="8", levels=1, sequence="lstm", feature_dim=16), SHAPE), 2),
}
"""Encoders, and how many recurrent nets each has."""


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", RECURRENT)
def test_weights_of_a_working_copy_lie_in_one_storage_for_each_call(kind, amp):
    """cuDNN packs weights that do not, at every call. The nets' own flatten_parameters refuses bfloat16."""
    make, count = RECURRENT[kind]
    master = make()
    copy = WorkingCopy(master, AMP[amp].dtype)
    copy.refresh()
    nets = [m for m in copy.network.modules() if isinstance(m, torch.nn.RNNBase)]
    assert len(nets) == count
    for net in nets:
        assert len({weight.untyped_storage().data_ptr() for weight in net.parameters()}) == 1
    for (name, mine), theirs in zip(copy.network.named_parameters(), master.parameters(), strict=True):
        assert torch.equal(mine, theirs.to(mine.dtype)), name


def test_on_a_gpu_cudnn_s_own_order_is_asked_for(monkeypatch):
    """As flatten_parameters would, were it not for the dtype."""
    asked = []

    def stand_in(weights, *sizes):
        assert not torch.is_grad_enabled(), "it writes to the weights"
        asked.append((len(weights), weights[0].dtype, *sizes))

    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", stand_in, raising=False)
    monkeypatch.setattr("fastmc.encoders.recurrent.on_gpu", lambda tensor: True)
    flatten_(SequenceGRU(6, 8, 3).to(torch.bfloat16))
    flatten_(SequenceLSTM(6, 8, 2, batch_first=True).to(torch.bfloat16))
    flatten_(torch.nn.LSTM(6, 8, proj_size=4, bias=False).to(torch.bfloat16))
    # weights, dtype; weights of a layer and direction, input, kind, hidden, projection, layers, batch first, both ways
    assert asked == [
        (24, torch.bfloat16, 4, 6, 3, 8, 0, 3, False, True),
        (8, torch.bfloat16, 4, 6, 2, 8, 0, 2, True, False),
        (3, torch.bfloat16, 3, 6, 2, 8, 4, 1, False, False),
    ]


def test_pytorch_s_numbers_of_the_nets_are_cudnn_s():
    rnn = pytest.importorskip("torch.backends.cudnn.rnn")
    if rnn._cudnn is None:
        pytest.skip("this PyTorch is built without cuDNN")
    assert {mode: rnn.get_cudnn_mode(mode) for mode in CUDNN_MODES} == CUDNN_MODES
