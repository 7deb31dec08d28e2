"""The recurrent calls of a step alone, and whether cuDNN's one call is as fast as many small ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from bench.gpu.clock import Call, Clock
from bench.gpu.section import Bench
from bench.recurrent import passes
from fastmc.encoders.amp import AMP, tensor_cores
from fastmc.encoders.bigru import BiGRUConfig
from fastmc.encoders.recurrent import flatten_
from fastmc.methods.streams import Beside
from fastmc.skeleton import NTU25

SPLIT = "One bidirectional call of all layers against a call a layer and direction"
HALF = ("bf16", "fp16")


def step_calls(net: nn.Module, bench: Bench, dtype: torch.dtype) -> Call:
    """What a step asks of its recurrent nets: the attack's pass and the gradient of its input, the key encoder's pass,
    the query encoder's pass over three views and back to the weights. One net stands for both encoders'."""
    sizes = bench.sizes
    generator = torch.Generator(bench.device).manual_seed(0)
    width = NTU25.num_joints * sizes.bodies * 3
    # In memory, frames come first: cuDNN takes them so.
    x = torch.randn(sizes.frames, 3 * sizes.batch, width, generator=generator, device=bench.device).to(dtype)
    calls = passes(net, x.transpose(0, 1))

    def call() -> None:
        for one in calls.values():
            one()

    return call


# --- Split


class Split(nn.Module):
    """A bidirectional GRU as single-layer one-directional ones, frames first; the second of a layer reads the frames
    backwards.

    On a GPU the two directions of a layer run on streams of their own.
    """

    def __init__(self, inputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.GRU(inputs if layer == 0 else 2 * hidden, hidden) for _ in range(2))
            for layer in range(layers)
        )
        self._side: Beside | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(T, B, F) to the outputs of the last layer (T, B, 2 * hidden)."""
        for pair in self.layers:
            assert isinstance(pair, nn.ModuleList)
            forwards, backwards = pair
            if not x.is_cuda:
                x = torch.cat([forwards(x)[0], backwards(x.flip(0))[0].flip(0)], dim=-1)
                continue
            self._side = self._side or Beside(x.device)
            with self._side:
                second = backwards(x.flip(0))[0].flip(0)
            first = forwards(x)[0]
            self._side.join()
            x = torch.cat([first, second], dim=-1)
        return x


def compare_split(bench: Bench, clock: Clock) -> None:
    """Rows of the table, forward alone and forward with backward to weights and input."""
    layers, hidden = BiGRUConfig(bench.sizes.encoder).size
    width = NTU25.num_joints * bench.sizes.bodies * 3
    for batch in bench.sizes.recurrent_batches:
        for amp in HALF:
            if not bench.has(4, f"cuDNN split, B = {batch}, {amp}"):
                return
            nets = {
                "one call": nn.GRU(width, hidden, layers, bidirectional=True),
                "a call a layer and direction": Split(width, hidden, layers),
            }
            x = torch.randn(bench.sizes.frames, batch, width, device=bench.device)
            check_same(nets, x)
            # A CPU takes its own, slow way in half precision.
            dtype = torch.float32 if bench.rehearsal else AMP[amp].dtype
            for says, net in nets.items():
                net.to(dtype)
                for gru in (module for module in net.modules() if isinstance(module, nn.GRU)):
                    flatten_(gru)
                forward, both = calls(net, x.to(dtype))
                seconds = min(1.0, bench.left() / 40)
                cells = {"B": batch, "precision": amp, "as": says}
                for what, call in (("forward", forward), ("forward and backward", both)):
                    with tensor_cores(AMP[amp].tensor_cores):
                        timing = clock.best([call], seconds)
                    bench.found.row(SPLIT, **cells, passes=what, **timing.cells("ms"), how=timing.how)


def check_same(nets: Mapping[str, nn.Module], x: Tensor) -> None:
    """Give all the weights of the first, on the device of x. AssertionError if they compute different things."""
    first = next(iter(nets.values()))
    with tensor_cores(False):
        outputs = []
        for net in nets.values():
            copy_weights(first, net.to(x.device))
            outputs.append(calls(net, x)[0]())
    apart = max(float((y - outputs[0]).abs().max()) for y in outputs)
    assert apart <= 64 * torch.finfo(x.dtype).eps, f"the split net computes something else: {apart:.1e}"


def calls(net: nn.Module, x: Tensor) -> tuple[Call, Call]:
    """The forward pass alone, and with the gradients of weights and input."""
    leaf, weights = x.clone().requires_grad_(), list(net.parameters())

    def forward() -> Tensor:
        with torch.no_grad():
            return _outputs(net(x))

    def both() -> Iterable[Tensor]:
        y = _outputs(net(leaf))
        return torch.autograd.grad(y, [leaf, *weights], x.new_ones(1, 1, 1).expand_as(y))

    return forward, both


def _outputs(found: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return found if isinstance(found, Tensor) else found[0]


@torch.no_grad()
def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """To the same net in the other form."""
    if source is not target:
        for theirs, ours in zip(source.parameters(), target.parameters(), strict=True):
            ours.copy_(theirs)
