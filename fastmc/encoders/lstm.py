"""The encoder of AS-CAL: an LSTM over the frames of a clip, whose states are averaged.

Rao, Xu, Hu, Cheng and Hu (2021), arXiv 2008.00188. It is nn.LSTM: one call of cuDNN on a GPU, and of oneDNN on a CPU,
where it takes little longer than its products. But oneDNN always computes the gradients of all weights: where none is
asked for, as in the attack, and in half precision, a direction of a layer is a node of autograd's graph here. With the
gates' sums a = W_i x_t + b_i + W_h h_{t-1} + b_h in the order i, f, g, o, and s the logistic function:

    c_t = s(a_f) c_{t-1} + s(a_i) tanh(a_g)        h_t = s(a_o) tanh(c_t)

Backwards, dh and dc are the gradients of h_t and c_t; each da is one of them times a factor that the recursion does not
enter, so that the factors of all frames are made at once:

    dc += dh o (1 - tanh(c_t)^2)                    da_i = dc g i (1 - i)        da_f = dc c_{t-1} f (1 - f)
    da_o = dh tanh(c_t) o (1 - o)                   da_g = dc i (1 - g^2)        dc_{t-1} = dc f, dh_{t-1} = W_h^T da
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fastmc.derivatives import differentiable_once
from fastmc.encoders.base import ClipShape, Encoder, EncoderConfig, mlp_head, size_of
from fastmc.encoders.layers import ChannelNorm
from fastmc.encoders.recurrent import RecurrentNet
from fastmc.encoders.rows import Rows


@dataclass(frozen=True)
class LSTMConfig(EncoderConfig):
    """LSTM encoder. ``1x256`` in one direction is that of AS-CAL (0.42M parameters)."""

    encoder: str = "1x256"
    """Layers x hidden units per direction."""
    bidirectional: bool = False
    """A second LSTM from the last frame to the first; the representation joins both."""
    representation: Literal["mean", "last"] = "mean"
    """mean: of the states of all frames. last: the final states of each direction."""
    input_norm: bool = False
    """Batch normalisation of the input channels, with statistics per view."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.size

    @property
    def says(self) -> str:
        """Such as LSTM 1x256."""
        return f"LSTM {self.encoder}"

    @property
    def size(self) -> tuple[int, int]:
        """(layers, hidden)."""
        layers, hidden = size_of(self.encoder, "LAYERSxHIDDEN", "1x256")
        return layers, hidden


class SequenceLSTM(RecurrentNet, nn.LSTM):
    """nn.LSTM, batches first: (n, T, F) to the states of all frames (n, T, directions * H)."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        learns = torch.is_grad_enabled() and all(weight.requires_grad for weight in self.parameters())
        is_half = x.dtype.itemsize < 4
        if self.impl == "nn.GRU" or x.device.type != "cpu" or (not is_half and (learns or not x.requires_grad)):
            return super().forward(x)[0]
        frames_first = x.transpose(0, 1).float() if is_half else x.transpose(0, 1)
        return self.by_nodes(frames_first).transpose(0, 1).to(x.dtype)

    def by_nodes(self, x: Tensor) -> Tensor:
        """(T, n, F) to (T, n, directions * H)."""
        for weights in self.directions():
            x = torch.cat([_Direction.apply(x, reverse, *each) for reverse, each in enumerate(weights)], dim=2)
        return x

    def directions(self) -> list[list[list[Tensor]]]:
        """By layer and direction (W_i, W_h, b_i, b_h); in half precision the products' operands alone are rounded."""
        step = 2 if self.bidirectional else 1
        of_all = [[w.float() if w.dtype.itemsize < 4 else w for w in weights] for weights in self.all_weights]
        return [of_all[first : first + step] for first in range(0, len(of_all), step)]


class _Direction(torch.autograd.Function):
    """x (T, n, F) to states (T, n, H), and the gradients of what requires one, no others."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reverse: int, w_i: Tensor, w_h: Tensor, b_i: Tensor, b_h: Tensor) -> Tensor:
        order = list(range(len(x)))[:: -1 if reverse else 1]
        gates = torch.addmm(b_i + b_h, x.flatten(0, 1), w_i.t()).view(*x.shape[:2], 4, -1)
        cells, states = (torch.empty_like(gates[:, :, 0]) for _ in range(2))
        for n, t in enumerate(order):
            i, f, g, o = gates[t].unbind(1)
            if n:
                gates[t].flatten(1).addmm_(states[order[n - 1]], w_h.t())
            gates[t, :, :2].sigmoid_(), g.tanh_(), o.sigmoid_()
            torch.mul(i, g, out=cells[t])
            if n:
                cells[t].addcmul_(f, cells[order[n - 1]])
            torch.tanh(cells[t], out=states[t]).mul_(o)
        ctx.order = order
        ctx.save_for_backward(x, w_i, w_h, gates, cells, states)
        return states

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        x, w_i, w_h, gates, cells, states = ctx.saved_tensors
        wants_x, _, *wanted = ctx.needs_input_grad
        da, of_cell = factors(gates, cells, ctx.order)
        dh = dc = None
        for n in reversed(range(len(x))):
            t = ctx.order[n]
            dh = upstream[t] if dh is None else torch.addmm(upstream[t], da[ctx.order[n + 1]].flatten(1), w_h)
            dc = dh * of_cell[t] if dc is None else torch.addcmul(dc, dh, of_cell[t])
            da[t, :, :3] *= dc[:, None]
            da[t, :, 3] *= dh
            dc = dc * gates[t, :, 1]
        flat = da.flatten(0, 1).flatten(1)
        dx = (flat @ w_i).view_as(x) if wants_x else None
        sums: list[Tensor | None] = [None] * 4
        if wanted[0]:
            sums[0] = flat.t() @ x.flatten(0, 1)
        if wanted[1]:  # states and gates of the frames that have one before them
            later, earlier = (slice(1, None), slice(-1)) if ctx.order[0] == 0 else (slice(-1), slice(1, None))
            sums[1] = da[later].flatten(0, 1).flatten(1).t() @ states[earlier].flatten(0, 1)
        if wanted[2] or wanted[3]:
            sums[2] = sums[3] = flat.sum(0)
        return dx, None, *sums


def factors(gates: Tensor, cells: Tensor, order: list[int]) -> tuple[Tensor, Tensor]:
    """Of da (T, n, 4, H) and of what dh adds to dc (T, n, H)."""
    i, f, g, o = gates.unbind(2)
    found, tanh = torch.empty_like(gates), cells.tanh()
    before = torch.zeros_like(cells)
    if order[0] == 0:
        before[1:] = cells[:-1]
    else:
        before[:-1] = cells[1:]
    torch.mul(g, i - i * i, out=found[:, :, 0])
    torch.mul(before, f - f * f, out=found[:, :, 1])
    torch.mul(i, 1 - g * g, out=found[:, :, 2])
    torch.mul(tanh, o - o * o, out=found[:, :, 3])
    return found, o * (1 - tanh * tanh)


class LSTM(Encoder):
    """Clips (n, T, V * M * 3) to the mean of their states, or the final ones, (n, H)."""

    Config = LSTMConfig
    presets: ClassVar = {"small": {"encoder": "1x256"}, "tiny": {"encoder": "1x128"}}
    compiled = ("after",)
    config: LSTMConfig

    def __init__(self, config: LSTMConfig, shape: ClipShape) -> None:
        super().__init__(config, shape)
        layers, hidden = config.size
        self.norm = ChannelNorm(shape.width) if config.input_norm else None
        self.recurrent = SequenceLSTM(shape.width, hidden, layers, batch_first=True, bidirectional=config.bidirectional)
        self.representation_dim = hidden * (2 if config.bidirectional else 1)
        self.head = mlp_head(self.representation_dim, config.feature_dim, config.head_width)

    def body(self, x: Tensor, views: int) -> Tensor:
        if self.norm is not None:
            x = self.norm(x, Rows(views))
        states = self.recurrent(x.to(self.dtype))
        if self.config.representation == "mean":
            return states.mean(1)
        last, first = states[:, -1], states[:, 0]
        hidden = self.recurrent.hidden_size
        return torch.cat((last[:, :hidden], first[:, hidden:]), dim=1)
