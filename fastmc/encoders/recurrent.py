"""The recurrent net of the encoder, in both readings of a bidirectional GRU, and an implementation of it for CPUs.

On a GPU nn.GRU is one cuDNN call. On a CPU it is a loop of small operators that autograd records one by one: it sums
weight gradients step by step and fills a (B, T, 2H) gradient for the final states. Here a layer is one
node of autograd's graph, both directions together: by C++ kernels where they can run (`fastmc.encoders.cpp_layers`),
and else, or in half precision, by the operators of PyTorch below, each of which waits for OpenMP's threads. With
x_t (F,), states h_t (H,) and PyTorch's names of the weights:

    r = s(W_ir x_t + b_ir + W_hr h_{t-1} + b_hr)        q = W_hn h_{t-1} + b_hn
    z = s(W_iz x_t + b_iz + W_hz h_{t-1} + b_hz)        n = tanh(W_in x_t + b_in + r q)
    h_t = (1 - z) n + z h_{t-1}

Backwards, dh is the gradient of h_t; da_r, da_z, da_n are those of what s and tanh take, da_q that of q. All are dh
times a factor that the recursion does not enter, so that the factors of many steps are made at once:

    da_n = dh (1 - z)(1 - n^2)                da_q = da_n r
    da_z = dh (h_{t-1} - n) z (1 - z)         da_r = da_n q r (1 - r)
    dh_{t-1} = dh z + W_h^T da_h              da_h = (da_r, da_z, da_q), da_x = (da_r, da_z, da_n)
    dW_h = sum_t da_h h_{t-1}^T               db_h = sum_t da_h
    dW_i = sum_t da_x x_t^T                   db_i = sum_t da_x               dx_t = W_i^T da_x

A step is one product for both directions and 6 (backwards 2 or 3) pointwise operators. Products with x and those of the
weight gradients are made for a block of steps, BLOCK_ROWS rows at once: intermediate values stay in the cache, and
little fresh memory is touched.

Layout: (2 directions, T, B, ...), frames in order of time. Step s takes frame s of the first direction and frame
T - 1 - s of the second, or frame s of both in the stepwise reading. The da are in the order (q, r, z, n): da_h the
first three, da_x the last three, and the rows of W_h are rolled by one gate to match.

float16 and bfloat16: operands of products are rounded to that dtype; sums, states and gates are float32, and so are the
products themselves, since PyTorch's own in these dtypes are slow on many CPUs and round each sum. cuDNN keeps states in
the dtype of its input: `rounded_states` does the same, to find out what that costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastmc.backends import RECURRENT, Need
from fastmc.derivatives import differentiable_once
from fastmc.encoders.storage import share_storage

BLOCK_ROWS = 1024
"""Rows (steps * B) of a block of steps: enough for products at full speed, few enough for the cache."""


_rounds_states = False


@contextmanager
def rounded_states() -> Iterator[None]:
    """Within: nets on a CPU round each frame's state, and its gradient, to the input's dtype, as cuDNN keeps them."""
    global _rounds_states
    _rounds_states = True
    try:
        yield
    finally:
        _rounds_states = False


class RecurrentNet(nn.Module):
    """A net that several implementations compute on a CPU.

    Attributes:
        impl: who does, a name of `fastmc.backends.RECURRENT`, auto, or nn.GRU, which exporters know.
    """

    impl = "auto"

    def chosen(self, x: Tensor) -> str | None:
        """Who computes it of inputs such as x; None where nn.GRU does.

        Raises:
            RuntimeError: torch.jit.trace asks, and would take this batch for every batch.
        """
        if self.impl == "nn.GRU" or x.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        if torch.jit.is_tracing():
            raise RuntimeError(
                "a trace of this encoder would be wrong at other batch sizes; export it by python -m train.export"
            )
        return "torch" if _rounds_states else RECURRENT.choose(self.impl, Need(x.device, x.dtype))


class StepwiseGRU(RecurrentNet):
    """Per layer two GRUs, both forward in time, their outputs joined: what feeding a bidirectional GRU one frame at a
    time and carrying its state computes."""

    def __init__(self, input_size: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.GRU(input_size if layer == 0 else 2 * hidden, hidden) for _ in range(2))
            for layer in range(layers)
        )

    def forward(self, x: Tensor, affine: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, T, F) to the final states of the last layer (B, 2 * hidden). ``affine``: see `SequenceGRU.forward`."""
        pairs: list[list[Any]] = [list(pair) for pair in self.layers if isinstance(pair, nn.ModuleList)]
        if impl := self.chosen(x):
            layers = [[gru.all_weights[0] for gru in pair] for pair in pairs]
            return _final_states(x, layers, impl, reverse=False, affine=affine)
        x = _applied(x, affine).transpose(0, 1)
        for pair in pairs:
            x = torch.cat([gru(x)[0] for gru in pair], dim=-1)
        return x[-1]


class SequenceGRU(RecurrentNet, nn.GRU):
    """A bidirectional GRU whose output is the final states of both directions.

    nn.GRU is given frames first, as cuDNN takes them: of batches first it would copy the input for each of its calls
    and, backwards, a gradient of the outputs' size.
    """

    def __init__(self, input_size: int, hidden: int, layers: int) -> None:
        super().__init__(input_size, hidden, layers, bidirectional=True)

    def forward(self, x: Tensor, affine: tuple[Tensor, Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """(B, T, F) to (B, 2 * hidden).

        ``affine``: scale and shift (F,) of x's columns. On a CPU the first layer's weights take them up, so that their
        gradients cost no more than one of the weights' size.
        """
        if impl := self.chosen(x):
            weights = self.all_weights
            layers = list(zip(weights[::2], weights[1::2], strict=True))
            return _final_states(x, layers, impl, reverse=True, affine=affine)
        _, final = super().forward(_applied(x, affine).transpose(0, 1))
        return torch.cat((final[-2], final[-1]), dim=-1)


@torch.no_grad()
def flatten_(net: nn.RNNBase) -> None:
    """Move a recurrent net's weights into one storage; they keep names and values.

    Such nets do so when they are moved, on a GPU alone, and not in bfloat16, which `flatten_parameters` refuses.
    """
    weights: list[Tensor] = [weight for directions in net.all_weights for weight in directions]
    if not on_gpu(weights[0]):
        share_storage(weights)
        return
    sizes = (net.input_size, CUDNN_MODES[net.mode], net.hidden_size, net.proj_size, net.num_layers)
    torch._cudnn_rnn_flatten_weight(weights, len(net.all_weights[0]), *sizes, net.batch_first, net.bidirectional)


CUDNN_MODES = {"RNN_RELU": 0, "RNN_TANH": 1, "LSTM": 2, "GRU": 3}
"""Of cudnnRNNMode_t, by PyTorch's names."""


def on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def _applied(x: Tensor, affine: tuple[Tensor, Tensor] | None) -> Tensor:
    return x if affine is None else torch.addcmul(affine[1], x, affine[0])


def _taken_up(weights: Sequence[Tensor], affine: tuple[Tensor, Tensor]) -> list[Tensor]:
    """A direction's weights for x, where W_i and b_i are for x * scale + shift."""
    w_i, w_h, b_i, b_h = weights
    scale, shift = affine
    return [w_i * scale, w_h, torch.addmv(b_i, w_i, shift), b_h]


def _final_states(
    x: Tensor,
    layers: Sequence[Sequence[Sequence[Tensor]]],
    impl: str,
    *,
    reverse: bool,
    affine: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """(B, T, F) to the last layer's final states (B, 2H); ``layers`` holds (W_i, W_h, b_i, b_h) by layer and direction.

    Raises:
        ValueError: x has another shape, no frames, or another dtype than the weights.
    """
    weight = layers[0][0][0]
    if x.dim() != 3 or not x.shape[1] or x.shape[2] != weight.shape[1] or x.dtype != weight.dtype:
        raise ValueError(
            f"x must be (B, T, {weight.shape[1]}) with T > 0 in {weight.dtype}, got {tuple(x.shape)} in {x.dtype}"
        )
    if affine is not None:
        layers = [[_taken_up(direction, affine) for direction in layers[0]], *layers[1:]]
    flat = [[weight for direction in directions for weight in direction] for directions in layers]
    return RECURRENT.module(impl).final_states(x, flat, reverse=reverse)


def final_states(x: Tensor, layers: Sequence[Sequence[Tensor]], *, reverse: bool) -> Tensor:
    """(B, T, F) to the last layer's final states (B, 2H), by PyTorch's operators; ``layers`` holds (W_i, W_h, b_i, b_h)
    of both directions."""
    x = x.transpose(0, 1).contiguous()[None]
    for i, weights in enumerate(layers):
        last = i == len(layers) - 1
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *weights)):
            x = _Layer.apply(x, reverse, last, *weights)
        else:
            x, *_ = _forward(x, weights, reverse, last, keep=False)
    return x


class _Layer(torch.autograd.Function):
    """:func:`_forward`, and the gradients of what requires one, no others. A weight counts even where autograd.grad is
    asked for that of x alone, which PyTorch does not tell: `Encoder.fixed` freezes the weights for the attack."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reverse: bool, last: bool, *weights: Tensor) -> Tensor:
        result, gates, states = _forward(x, weights, reverse, last, keep=True)
        ctx.reverse, ctx.last, ctx.x_shape = reverse, last, x.shape
        needs_dw_x = ctx.needs_input_grad[3] or ctx.needs_input_grad[7]
        ctx.save_for_backward(x if needs_dw_x else None, *gates, states, *weights)
        return result

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        x, q, rz, n, states, *weights = ctx.saved_tensors
        reverse, last = ctx.reverse, ctx.last
        _, frames, batch, hidden = states[:, 1:].shape
        low, wide = upstream.dtype, states.dtype
        w_x, w_h, *_ = _by_kind(weights, wide)
        w_step = torch.stack([w.roll(hidden, 0) for w in w_h])
        before, _ = _before_and_after(states, reverse)
        z = _by_step(rz[..., hidden:], reverse)
        arriving = [] if last else _by_step(upstream.to(wide).contiguous(), reverse)
        dh = torch.stack(upstream.to(wide).chunk(2, -1) if last else arriving[-1].unbind())

        wants_x, _, _, *wants = ctx.needs_input_grad
        dx = states.new_zeros(ctx.x_shape) if wants_x else None
        sums = [states.new_zeros(w.shape) if wanted else None for w, wanted in zip(weights, wants, strict=True)]
        block = _block_steps(frames, batch)
        buffer = states.new_empty(2, block, batch, 4 * hidden)
        for start in reversed(range(0, frames, block)):
            stop = min(start + block, frames)
            windows = _windows(start, stop, frames, reverse)
            da = buffer[:, : stop - start]
            for d, window in enumerate(windows):
                _write_factors(*(kept[d, window] for kept in (q, rz, n, before)), out=da[d])
            da_step = _by_step(da.unflatten(-1, (4, hidden)), reverse)
            da_h_step = _by_step(da[..., : 3 * hidden], reverse)
            for i, s in reversed(list(enumerate(range(start, stop)))):
                da_step[i].mul_(dh.unsqueeze(2))
                if low != wide:
                    da_step[i].copy_(_rounded(da_step[i], low))
                if s:  # no one asks for the gradient of the zero state
                    dh = dh.mul_(z[s]) if last else torch.addcmul(arriving[s - 1], z[s], dh, out=dh)
                    torch.baddbmm(dh, da_h_step[i], w_step, out=dh)
                    if _rounds_states:
                        dh.copy_(_rounded(dh, low))
            for d, window in enumerate(windows):
                da_x, da_h = (a.flatten(0, 1) for a in (da[d, ..., hidden:], da[d, ..., : 3 * hidden]))
                dw_x, dw_h, db_x, db_h = sums[4 * d : 4 * d + 4]
                if dx is not None:
                    for part, columns in zip(dx, w_x[d].chunk(len(dx), 1), strict=True):
                        _add_product(part[window].view(-1, columns.shape[1]), da_x, columns)
                if dw_x is not None:
                    for part, columns in zip(x, dw_x.chunk(len(x), 1), strict=True):
                        _add_product(columns, da_x.t(), part[window].flatten(0, 1).to(wide))
                if dw_h is not None:
                    _add_product(dw_h, da_h.t(), _rounded(before[d, window].flatten(0, 1), low))
                for db, a in ((db_x, da_x), (db_h, da_h)):
                    if db is not None:
                        db.add_(a.sum(0))
        for kind in (1, 3):  # W_h and b_h, back to PyTorch's order of the gates
            sums[kind::4] = [None if total is None else total.roll(-hidden, 0) for total in sums[kind::4]]
        dx, *sums = (None if total is None else total.to(low) for total in (dx, *sums))
        return dx, None, None, *sums


def _forward(
    x: Tensor, weights: Sequence[Tensor], reverse: bool, last: bool, *, keep: bool
) -> tuple[Tensor, list[Tensor], Tensor]:
    """One layer.

    Args:
        x: (P, T, B, F / P), each part contiguous: the input's columns in P parts, the directions of the layer below.
        weights: (W_i, W_h, b_i, b_h) of both directions.
        reverse: the second direction runs backwards in time.
        last: the result is the final states (B, 2H), not all states (2, T, B, H).
        keep: gates and states of all steps are kept; else only what the result needs.

    Returns:
        The result; gates q, (r, z) and n (2, T or 1, B, H or 2H), apart because tanh of separate rows is slow; states
        (2, T + 1 or 1, B, H) as in :func:`_before_and_after`.
    """
    _, frames, batch, _ = x.shape
    hidden = weights[1].shape[1]
    low, wide = x.dtype, torch.promote_types(x.dtype, torch.float32)
    w_x, w_h, b_x, b_h = _by_kind(weights, wide)
    w_step = torch.stack([w.roll(hidden, 0).t() for w in w_h])
    b_q = torch.stack([b[2 * hidden :] for b in b_h])[:, None]
    b_block = [b + torch.cat((c[: 2 * hidden], c.new_zeros(hidden))) for b, c in zip(b_x, b_h, strict=True)]

    kept, repeats = (frames, 1) if keep else (1, frames)  # one step's memory serves all steps
    gates = [x.new_empty(2, kept, batch, size * hidden, dtype=wide) for size in (1, 2, 1)]
    q, rz, n = (_by_step(gate, reverse) * repeats for gate in gates)
    r, z = (_by_step(gate, reverse) * repeats for gate in gates[1].chunk(2, -1))
    h = x.new_zeros(2, batch, hidden, dtype=wide)
    states, after_step = h[:, None], [h] * frames  # each state in place of the one before
    if keep or not last:
        states = h.new_empty(2, frames + 1, batch, hidden)
        before, after = _before_and_after(states, reverse)
        after_step = _by_step(after, reverse)
        for direction, window in zip(before, _windows(0, 1, frames, reverse), strict=True):
            direction[window] = 0

    block = _block_steps(frames, batch)
    from_x = x.new_empty(2, block, batch, 3 * hidden, dtype=wide)
    from_h = x.new_empty(2, batch, 3 * hidden, dtype=wide)
    q_h, rz_h = from_h[..., :hidden], from_h[..., hidden:]
    for start in range(0, frames, block):
        stop = min(start + block, frames)
        a_x = from_x[:, : stop - start]
        for d, window in enumerate(_windows(start, stop, frames, reverse)):
            out = a_x[d].view(-1, 3 * hidden)
            addend = b_block[d]
            for part, columns in zip(x, w_x[d].chunk(len(x), 1), strict=True):
                torch.addmm(addend, part[window].flatten(0, 1).to(wide), columns.t(), out=out)
                addend = out
        rz_x, n_x = (_by_step(a, reverse) for a in (a_x[..., : 2 * hidden], a_x[..., 2 * hidden :]))
        for i, s in enumerate(range(start, stop)):
            torch.bmm(_rounded(h, low), w_step, out=from_h)
            torch.add(rz_h, rz_x[i], out=rz[s]).sigmoid_()
            torch.add(q_h, b_q, out=q[s])
            torch.addcmul(n_x[i], r[s], q[s], out=n[s]).tanh_()
            h = torch.lerp(n[s], h, z[s], out=after_step[s])
            if _rounds_states:
                h.copy_(_rounded(h, low))
    result = torch.cat((h[0], h[1]), dim=-1) if last else after
    return result.to(low), gates, states


def _write_factors(q: Tensor, rz: Tensor, n: Tensor, before: Tensor, *, out: Tensor) -> None:
    """da / dh of the module's docstring: gates and h_{t-1} (..., H or 2H) to out (..., 4H)."""
    r, z = rz.chunk(2, -1)
    da_q, da_r, da_z, da_n = out.chunk(4, -1)
    times_1_minus_square = torch.ops.aten.tanh_backward.grad_input
    times_s_1_minus_s = torch.ops.aten.sigmoid_backward.grad_input
    torch.sub(z.new_ones(()), z, out=da_n)
    times_1_minus_square(da_n, n, grad_input=da_n)
    torch.mul(da_n, r, out=da_q)
    torch.mul(da_n, q, out=da_r)
    times_s_1_minus_s(da_r, r, grad_input=da_r)
    torch.sub(before, n, out=da_z)
    times_s_1_minus_s(da_z, z, grad_input=da_z)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    torch.addmm(total, a, b, out=total)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as an operand in this dtype, which is kept in x's own."""
    return x if x.dtype == dtype else x.to(dtype).to(x.dtype)


def _by_kind(weights: Sequence[Tensor], dtype: torch.dtype) -> list[list[Tensor]]:
    """W_i, W_h, b_i and b_h, each of both directions."""
    return [[weight.to(dtype) for weight in weights[kind::4]] for kind in range(4)]


def _block_steps(frames: int, batch: int) -> int:
    return min(frames, max(1, BLOCK_ROWS // max(1, batch)))


def _windows(start: int, stop: int, frames: int, reverse: bool) -> tuple[slice, slice]:
    """The frames that either direction meets in the steps from start to stop."""
    first = slice(start, stop)
    return first, slice(frames - stop, frames - start) if reverse else first


def _by_step(buffer: Tensor, reverse: bool) -> list[Tensor]:
    """(2, T, B, ...) to T views (2, B, ...): the frames of both directions that belong to a step.

    One view of both halves the number of operators. T - 1 - 2 s frames lie between the two, as strides can say.
    """
    frames, size, origin = buffer.shape[1], (2, *buffer.shape[2:]), buffer.storage_offset()
    directions, time, *rest = buffer.stride()
    first, closer = (directions + (frames - 1) * time, 2 * time) if reverse else (directions, 0)
    view = buffer.as_strided
    return [view(size, (first - s * closer, *rest), origin + s * time) for s in range(frames)]


def _before_and_after(states: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """(2, T + 1, B, H) to h_{t-1} and h_t, views (2, T, B, H) in order of time: a direction that runs forward has its
    zero state in front, one that runs backwards at the end. The h_t of a bidirectional layer lie in one piece."""
    if not reverse:
        return states[:, :-1], states[:, 1:]
    _, steps, batch, hidden = states.shape
    row = batch * hidden
    size = (2, steps - 1, batch, hidden)
    before = states.as_strided(size, ((steps + 1) * row, row, hidden, 1))
    after = states.as_strided(size, ((steps - 1) * row, row, hidden, 1), row)
    return before, after
