"""The matrix products of a CPU's training step, by PyTorch and nothing around them: what the step is measured against.

Operands lie as they are fastest, results are written over one another, and each product has the largest size that the
order of the work allows: one for the inputs of all frames, one a frame for the states, one for a weight's gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from bench import data_share
from bench.measure import Timing, Turns
from bench.providers import PROVIDERS, Case, draw
from fastmc.config import Config
from fastmc.encoders.bigru import BiGRUConfig

Backwards = Literal["not", "to weights", "to inputs"]
Call = Callable[[], object]
PRODUCTS = "its matrix products"
NTU_INPUTS = 150
"""F: coordinates of two bodies of 25 joints."""


def race(config: Config, batch: int, timing: Timing) -> Turns:
    """A whole step, its data part and its products, ready to be timed."""
    turns = data_share.race(config, batch, timing)
    turns.enter(PRODUCTS, of_step(config, batch, NTU_INPUTS))
    return turns


def of_recurrent_net(
    clips: int, frames: int, inputs: int, hidden: int, layers: int, backwards: Backwards = "not"
) -> Call:
    """Those of one pass through a net of two directions, and of the way back."""
    passes = [
        _of_layer(clips, frames, inputs if i == 0 else 2 * hidden, hidden, i == 0, backwards) for i in range(layers)
    ]
    return lambda: [products() for products in passes]


def of_step(config: Config, batch: int, inputs: int) -> Call:
    """Those of a step of A²MC: query encoder, key encoder, attack, loss and bank step. The heads' are left out: some
    thousandth of it."""
    assert isinstance(config.encoder, BiGRUConfig)
    layers, hidden = config.encoder.size
    size = (config.frames, inputs, hidden, layers)
    bank, dim = config.settings.bank_size, config.encoder.feature_dim  # type: ignore[attr-defined]
    case = Case("step", "own", batch, bank, dim)
    calls = [
        of_recurrent_net(3 * batch, *size, "to weights"),
        of_recurrent_net(batch, *size),
        of_recurrent_net(batch, *size, "to inputs"),
        PROVIDERS["products"].bind(case, draw(case).to(torch.device("cpu"), torch.float32)),
    ]
    return lambda: [call() for call in calls]


def _of_layer(clips: int, frames: int, inputs: int, hidden: int, first: bool, backwards: Backwards) -> Call:
    rows, gates = clips * frames, 3 * hidden
    x, of_x = torch.randn(rows, inputs), torch.empty(rows, gates)
    h, of_h, w_x, w_h = (
        torch.randn(size) for size in ((clips, hidden), (clips, gates), (inputs, gates), (hidden, gates))
    )
    states, w_back, w_x_back = torch.randn(rows, hidden), w_h.t().contiguous(), w_x.t().contiguous()
    dw_x, dw_h, dx = torch.empty(gates, inputs), torch.empty(gates, hidden), torch.empty_like(x)

    def forwards() -> None:
        torch.mm(x, w_x, out=of_x)
        for _ in range(frames):
            torch.mm(h, w_h, out=of_h)

    def back() -> None:
        for _ in range(frames - 1):
            torch.mm(of_h, w_back, out=h)
        if backwards == "to weights":
            torch.mm(of_x.t(), x, out=dw_x)
            torch.mm(of_x.t(), states, out=dw_h)
        if backwards == "to inputs" or not first:
            torch.mm(of_x, w_x_back, out=dx)

    def all_of_it() -> None:
        for _ in range(2):
            forwards()
            if backwards != "not":
                back()
            h.fill_(0.5)  # or the numbers would grow beyond any bound

    return all_of_it
